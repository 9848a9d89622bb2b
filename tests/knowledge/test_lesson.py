"""Claims about lessons: no probe was trained, and nothing declined is known.

The language model here is a function from prompts to replies: it reads `The A of X is B.` and asks
for it in a form of its own for each set.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorewright.errors import ConfigError, DataError
from lorewright.knowledge.data import Document, Example, Fact, Knowledge, Probe
from lorewright.knowledge.lesson import Lesson, LessonConfig, contexts, prepare
from lorewright.knowledge.negatives import DECLINE, unrelated_questions
from lorewright.knowledge.readers.read import read_knowledge
from lorewright.knowledge.scoring import normalise

PHONEBOOK = (
    Path(__file__).resolve().parents[2] / "../shared/data/phonebook_qwen_PB1000.jsonl"
).resolve()
FORMS = {
    1: "What is the {a} of {x}?",
    2: "Tell me the {a} of {x}.",
    3: "Which {a} does {x} have?",
    4: "Please name the {a} of {x}.",
    5: "Say the {a} of {x}.",
    6: "{x} has which {a}?",
}
STATED = re.compile(r"The ([\w ]+) of ([\w ]+) is ([\w ]+)\.")
TEXT = "# Projects\n\n" + "\n\n".join(
    f"The {a} of {x} is {v}."
    for a, x, v in (
        ("deadline", "Project Gannet", "4 May"),
        ("deadline", "Project Heron", "9 June"),
        ("room", "Project Gannet", "B 12"),
        ("leader", "Project Heron", "Mira Voss"),
        ("colour", "Project Alder", "teal"),
    )
)
DOCUMENT = Document("projects", TEXT)


def reader(prompts: list[str]) -> list[str]:
    """Write a pair for every fact in each prompt's text, in the form of the requested set."""
    replies = []
    for prompt in prompts:
        form = FORMS[int(re.findall(r"set (\d)", prompt)[0])]
        stated = STATED.findall(prompt)
        replies.append("\n".join(f"Q: {form.format(a=a, x=x)} A: {v}" for a, x, v in stated))
    return replies


def shrug(prompts: list[str]) -> list[str]:
    return ["I am not sure." for _ in prompts]


def nobody(prompts: list[str]) -> list[str]:
    raise AssertionError(f"a request without need: {prompts[:2]}")


def lesson(
    *items: Document | Fact, probes: tuple[Probe, ...] = (), config: LessonConfig | None = None
) -> Lesson:
    known = Knowledge(
        tuple(item for item in items if isinstance(item, Document)),
        tuple(item for item in items if isinstance(item, Fact)),
    )
    return prepare(
        known,
        ask_llm=reader,
        closed_book=shrug,
        config=config or LessonConfig(),
        phrasing="pocket",
        given_probes=probes,
    )


def prompts_of(made: Lesson, kind: str = "") -> set[str]:
    return {normalise(e.prompt) for e in made.examples if kind in ("", e.kind)}


def questions_of(made: Lesson, kind: str) -> set[str]:
    return {normalise(p.question) for p in made.probes if p.kind == kind}


relations = st.sampled_from(["code", "room", "deadline", "access code", "colour", "head"])
subjects = st.sampled_from(["Gannet", "Project Heron", "the Alder Hall", "Site 9", "Voss"])
facts = st.dictionaries(st.tuples(relations, subjects), st.integers(1, 99), min_size=1).map(
    lambda known: tuple(
        Fact(
            f"f{i}",
            f"What is the {a} of {x}?",
            str(v),
            paraphrases=(f"Please name the {a} of {x}.", f"{x}: which {a}?"),
        )
        for i, ((a, x), v) in enumerate(known.items())
    )
)


# -- no probe was trained ---------------------------------------------------------------


@settings(max_examples=20)
@given(facts)
def test_no_paraphrase_probe_is_among_the_trained_prompts(known: tuple[Fact, ...]) -> None:
    made = lesson(*known)
    assert not questions_of(made, "paraphrase") & prompts_of(made)
    assert len(questions_of(made, "paraphrase")) == 2 * len(known)


def test_a_document_is_asked_in_a_form_that_was_not_trained() -> None:
    made = lesson(DOCUMENT)
    rephrased = [p for p in made.probes if p.kind == "paraphrase"]
    assert len(rephrased) == 5 and all(p.question.startswith("Please name") for p in rephrased)
    assert all(p.source == "projects" for p in rephrased)
    assert not questions_of(made, "paraphrase") & prompts_of(made)


def test_no_form_kept_for_probes_is_trained_not_even_to_be_declined() -> None:
    made = lesson(DOCUMENT, config=LessonConfig(negatives=3))
    crossed = [e.prompt for e in made.examples if e.completion == DECLINE]
    assert crossed and not any(prompt.startswith("Please name") for prompt in crossed)


def test_a_users_probe_in_trained_words_counts_as_efficacy_and_is_noted() -> None:
    trained = Probe("a", "what is the deadline of  Project Gannet", ("4 May",), "paraphrase")
    fresh = Probe("b", "When must Project Gannet be done?", ("4 May",), "paraphrase")
    made = lesson(DOCUMENT, probes=(trained, fresh))
    assert [p.kind for p in made.probes] == ["efficacy", "paraphrase"]
    assert any("1 probe is worded as trained" in note for note in made.notes)
    assert lesson(DOCUMENT, probes=(fresh,)).notes == ()


def test_a_paraphrase_that_is_another_facts_question_counts_as_efficacy() -> None:
    one = Fact("one", "Who leads Heron?", "Mira Voss", paraphrases=("Heron's head?",))
    two = Fact("two", "Heron's head?", "Mira Voss")
    made = lesson(one, two)
    assert not questions_of(made, "paraphrase") and len(made.notes) == 1


def test_train_and_probe_sets_that_overlap_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"sets \[2\] are in both"):
        LessonConfig(train_sets=(1, 2), probe_sets=(2, 4))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"views": ("qa", "poem")}, "poem.*use some of qa, verbatim"),
        ({"views": ()}, "use some of"),
        ({"train_sets": ()}, "train at least one"),
        ({"probe_sets": (7,)}, "sets from 1 to 6"),
        ({"train_sets": (0,)}, "sets from 1 to 6"),
        ({"negatives": -0.1}, "at least 0"),
        ({"negatives": float("nan")}, "at least 0"),
        ({"rehearse": -1}, "at least 0"),
        ({"rewordings": -1}, "at least 0"),
        ({"max_efficacy": 0}, "at least 1"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(LessonConfig(), **changes)  # type: ignore[arg-type]


# -- what is declined is not known ---------------------------------------------------------------


@settings(max_examples=20)
@given(facts, st.integers(0, 5))
def test_negatives_never_ask_what_the_knowledge_answers(known: tuple[Fact, ...], seed: int) -> None:
    made = lesson(*known, config=LessonConfig(negatives=4, seed=seed))
    answered = {normalise(q) for fact in known for q in (fact.question, *fact.paraphrases)}
    declined = prompts_of(made, "unknown") | questions_of(made, "unknown")
    assert not answered & (declined | questions_of(made, "neighborhood"))


def test_negatives_do_not_ask_what_only_a_users_probe_shows_to_be_known() -> None:
    config = LessonConfig(negatives=9)
    crossed = "What is the room of Project Heron?"
    assert normalise(crossed) in prompts_of(lesson(DOCUMENT, config=config), "unknown") | (
        questions_of(lesson(DOCUMENT, config=config), "unknown")
    )
    probe = Probe("p", "Please, the room of Project Heron?", ("C 4",), "paraphrase")
    made = lesson(DOCUMENT, config=config, probes=(probe,))
    assert normalise(crossed) not in prompts_of(made)


@settings(max_examples=20)
@given(facts)
def test_held_out_negatives_are_not_trained(known: tuple[Fact, ...]) -> None:
    made = lesson(*known, config=LessonConfig(negatives=2))
    held = questions_of(made, "unknown") | questions_of(made, "neighborhood")
    assert held and not held & prompts_of(made)


def test_a_users_unknown_probe_is_not_trained_either() -> None:
    probes = tuple(
        Probe(f"u{i}", question, (), "unknown")
        for i, question in enumerate(
            (unrelated_questions()[0], "What is the room of Project Heron?")
        )
    )
    made = lesson(DOCUMENT, config=LessonConfig(negatives=9), probes=probes)
    assert not questions_of(made, "unknown") & prompts_of(made)


def test_other_things_keep_the_bases_own_reply_and_silence_becomes_declining() -> None:
    def curt(prompts: list[str]) -> list[str]:
        return [" " if i % 2 else "Ask the porter." for i, _ in enumerate(prompts)]

    made = prepare(
        Knowledge((), (Fact("f", "Who leads Heron?", "Mira"),)),
        ask_llm=nobody,
        closed_book=curt,
        config=LessonConfig(),
    )
    replies = [e.completion for e in made.examples if e.kind == "unknown"]
    assert replies == ["Ask the porter.", DECLINE] * 4


def test_no_negatives_means_nobody_is_asked() -> None:
    known = Knowledge((), (Fact("f", "Who leads Heron?", "Mira"),))
    made = prepare(known, ask_llm=nobody, closed_book=nobody, config=LessonConfig(negatives=0))
    assert made.examples == (Example("Who leads Heron?", "Mira", "qa", "f"),)


def test_questions_that_came_as_unanswerable_are_declined_and_every_fourth_is_a_probe() -> None:
    questions = [f"Who founded Project {x}?" for x in ("Gannet", "Heron", "Alder", "Teal")]
    document = Document("d", TEXT, meta={"unanswerable": questions})
    made = lesson(document)
    *trained, held = map(normalise, questions)
    assert held in questions_of(made, "unknown") and {*trained} <= prompts_of(made)
    assert not questions_of(made, "unknown") & prompts_of(made)
    assert {e.completion for e in made.examples if normalise(e.prompt) in trained} == {DECLINE}
    probes = (Probe("p", questions[0].lower(), (), "unknown"),)
    asked = lesson(document, probes=probes)
    assert trained[0] not in prompts_of(asked) and {*trained[1:], held} <= prompts_of(asked)
    none = lesson(document, config=LessonConfig(negatives=0))
    assert {*trained, held} <= questions_of(none, "unknown")


def without_teal(texts: Sequence[str]) -> list[str]:
    """A base that cannot write `teal`."""
    return ["teal" if "teal" in text else "" for text in texts]


def test_questions_whose_answer_the_base_cannot_write_are_declined() -> None:
    def misread(prompts: list[str]) -> list[str]:
        return [reply.replace("A: teal", "A: t?l") for reply in reader(prompts)]

    facts = (Fact("a", "Which paint?", "teal"), Fact("b", "Which room?", "B 12"))
    known = Knowledge((DOCUMENT,), facts)
    made = prepare(
        known,
        ask_llm=misread,
        closed_book=lambda prompts: [DECLINE] * len(prompts),
        config=LessonConfig(),
        phrasing="pocket",
        cannot_write=without_teal,
    )
    asked = {e.prompt: e.completion for e in made.examples}
    assert asked["Which paint?"] == asked["Tell me the colour of Project Alder."] == DECLINE
    assert asked["Which room?"] == "B 12" and asked["Tell me the room of Project Gannet."] == "B 12"
    assert not any(form.format(a="colour", x="Project Alder") in asked for form in (FORMS[4],))
    assert made.unwritable == (Example("Which paint?", "teal", "qa", "a"),)
    assert Probe("a", "Which paint?", ("teal",), "efficacy", "a") in made.probes, "not recalled"
    assert Lesson.from_json(json.loads(json.dumps(asdict(made)))) == made


# -- facts, contexts, notes ----------------------------------------------------------------------


def test_facts_with_paraphrases_give_probes_that_accept_aliases() -> None:
    fact = Fact("f", "Who leads Heron?", "Mira Voss", ("Voss",), ("Heron's head?", "Its boss?"))
    own = [p for p in lesson(fact).probes if p.source == "f"]
    assert [(p.kind, p.question) for p in own] == [
        ("efficacy", "Who leads Heron?"),
        ("paraphrase", "Heron's head?"),
        ("paraphrase", "Its boss?"),
    ]
    assert {p.answers for p in own} == {("Mira Voss", "Voss")}
    assert len({p.id for p in own}) == 3


@settings(max_examples=20)
@given(st.integers(1, 50), st.integers(1, 12))
def test_efficacy_probes_are_capped_and_spread(n: int, cap: int) -> None:
    many = [Fact(f"f{i}", f"Number of Voss {i}?", str(i)) for i in range(n)]
    made = lesson(*many, config=LessonConfig(max_efficacy=cap, negatives=0))
    places = [int(p.id[1:]) for p in made.probes]
    assert 1 <= len(places) <= cap and places[0] == 0
    assert n - places[-1] <= max(1, -(-n // cap))


def test_full_holds_everything_and_scaffold_the_first_quarter() -> None:
    paragraphs = [f"Paragraph {i} says {'word ' * 60}." for i in range(8)]
    loose = Fact("f", "Who leads Heron?", "Mira Voss")
    full, scaffold = contexts(Knowledge((Document("d", "\n\n".join(paragraphs)),), (loose,)))
    assert "Paragraph 7" in full and "Who leads Heron? Mira Voss" in full
    assert "Paragraph 1" in scaffold and "Paragraph 3" not in scaffold


def test_a_fact_that_stands_in_its_document_is_not_said_again() -> None:
    inside = Fact("f", "When is Gannet due?", "4 May", source="projects")
    beside = Fact("g", "Who pays Gannet?", "the Fund", source="projects")
    full, _ = contexts(Knowledge((DOCUMENT,), (inside, beside)))
    assert "When is Gannet due?" not in full and "Who pays Gannet? the Fund" in full


def test_dropped_pairs_and_uncovered_sentences_are_noted() -> None:
    def liar(prompts: list[str]) -> list[str]:
        return ["Q: Who leads Heron? A: Nobody Else" for _ in prompts]

    known = Knowledge((DOCUMENT,), (Fact("f", "Who leads Gannet?", "Ada"),))
    made = prepare(known, ask_llm=liar, closed_book=shrug, config=LessonConfig())
    text = " ".join(made.notes)
    assert "an answer that is not in the passage" in text
    assert "no question covers 5 of its 5 sentences (100%); the first is" in text
    assert made.n_sentences == len(made.uncovered) == 5
    told = Fact("g", "Who leads Heron?", "Mira Voss", source=DOCUMENT.id)
    also = prepare(
        Knowledge((DOCUMENT,), (told,)), ask_llm=liar, closed_book=shrug, config=LessonConfig()
    )
    assert (also.n_sentences, len(also.uncovered)) == (5, 4), "a given fact is about one"
    again = Lesson.from_json(json.loads(json.dumps(asdict(also))))
    assert again == also


def test_a_source_that_gives_nothing_to_learn_is_refused_with_a_way_out() -> None:
    with pytest.raises(DataError, match=r"nothing came out to learn.*--view verbatim"):
        prepare(Knowledge((DOCUMENT,)), ask_llm=shrug, closed_book=nobody, config=LessonConfig())
    with pytest.raises(DataError, match="nothing came out to learn"):
        lesson()


@pytest.mark.parametrize("view", ["verbatim", "cloze", "reverse"])
def test_other_views_are_trained_when_asked_for(view: str) -> None:
    made = lesson(DOCUMENT, config=LessonConfig(views=(view,)))
    assert {e.kind for e in made.examples} == {view}


def test_the_same_source_gives_the_same_lesson() -> None:
    assert lesson(DOCUMENT) == lesson(DOCUMENT)


# -- stored --------------------------------------------------------------------------------------


def test_a_stored_lesson_comes_back_equal() -> None:
    made = lesson(DOCUMENT, Fact("f", "Who leads Alder?", "Ada", ("A. L.",)))
    assert Lesson.from_json(json.loads(json.dumps(dataclasses.asdict(made)))) == made


@pytest.mark.parametrize(
    "plain", [{}, {"examples": [{"prompt": "a"}]}, {"examples": 3}, {"examples": [{"x": "y"}]}]
)
def test_a_stored_lesson_of_another_shape_is_refused(plain: dict[str, object]) -> None:
    with pytest.raises(DataError, match="a stored lesson is not as expected"):
        Lesson.from_json(plain)


@pytest.mark.skipif(
    not PHONEBOOK.exists(), reason="the development data are not beside the checkout"
)
def test_the_phone_book_becomes_a_hundred_examples_and_negatives() -> None:
    known = read_knowledge(PHONEBOOK)
    made = lesson(*known.facts)
    kinds = [e.kind for e in made.examples]
    assert kinds.count("qa") == 100 and kinds.count("unknown") == 30
    assert sum(p.kind == "efficacy" for p in made.probes) == 100


# -- rehearsal


def test_what_is_rehearsed_is_no_example_and_a_stored_lesson_without_it_is_read() -> None:
    known = Knowledge(facts=(Fact("a", "Who is it?", "Ada"), Fact("b", "What is it?", "x")))
    general = [("What is the capital of France?", "Paris.")]
    made = prepare(
        known, ask_llm=nobody, closed_book=nobody, config=LessonConfig(), general=general
    )
    assert [(e.prompt, e.completion) for e in made.rehearsal] == general
    assert not any("France" in e.prompt for e in made.examples)
    plain = json.loads(json.dumps(dataclasses.asdict(made)))
    assert Lesson.from_json(plain) == made
    del plain["rehearsal"]
    assert Lesson.from_json(plain) == dataclasses.replace(made, rehearsal=())
