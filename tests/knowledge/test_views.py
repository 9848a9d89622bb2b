"""Claims about views: what a language model's replies become, and which questions never meet."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorewright.errors import ConfigError
from lorewright.knowledge.data import Document, Example, Fact
from lorewright.knowledge.negatives import DECLINE, crossed, irrelevant, reworded, strangers
from lorewright.knowledge.scoring import contains, is_declined, normalise
from lorewright.knowledge.selfstudy import (
    PHRASINGS,
    Pair,
    Pairs,
    parse_pairs,
    texts_of,
    write_pairs,
)
from lorewright.knowledge.views import (
    VIEWS,
    cloze,
    mix,
    qa,
    reverse,
    rewrite,
    summary,
    verbatim,
)
from lorewright.knowledge.views import given as given_facts

SAYS = {
    "opening time": ("the Pelican Library", "9:30"),
    "archive room": ("the Pelican Library", "C4.18"),
    "door code": ("the Teal Office", "KX-42"),
    "head": ("the Teal Office", "Ada Lund"),
}
TEXT = "# House page\n\n" + "\n".join(f"The {r} of {s} is {v}." for r, (s, v) in SAYS.items())
PAGE = Document("house", TEXT)
FORMS = (
    "What is the {r} of {s}?",
    "Tell me the {r} of {s}.",
    "Which {r} does {s} have?",
    "{r} at {s}?",
)
STATED = re.compile(r"The (.+) of (.+) is (.+)\.")
GARBAGE = st.text(st.sampled_from("QA:? \n*ab1"), max_size=60)


def reader(prompts: list[str]) -> list[str]:
    """A careful language model: a pair for every sentence of the form it knows."""
    replies = []
    for prompt in prompts:
        number = int(re.findall(r"(?:set|round) (\d)", prompt)[0])
        found = [STATED.fullmatch(line) for line in prompt.split("\n")]
        stated = [m.groups() for m in found if m]
        replies.append(
            "\n".join(f"Q: {FORMS[number - 1].format(r=r, s=s)} A: {v}" for r, s, v in stated)
        )
    return replies


def saying(*replies: str) -> Callable[[list[str]], list[str]]:
    """A language model that says the same to every first prompt, and nothing when asked again."""
    left = list(replies)
    return lambda prompts: [left.pop(0) if left else "" for _ in prompts]


def pairs(sets: Sequence[int] = (1, 2, 3)) -> Pairs:
    return write_pairs(PAGE, reader, numbers=sets)


# --- reading replies


@pytest.mark.parametrize(
    ("reply", "found"),
    [
        ("Q: Who leads it? A: Ada Lund", [("Who leads it?", "Ada Lund")]),
        ("Q: Who? A: Ada\nQ: When? A: 9:30\n", [("Who?", "Ada"), ("When?", "9:30")]),
        (
            "Q: Who leads it?\nA: Ada Lund\n\nQ: When?\nA: 9",
            [("Who leads it?", "Ada Lund"), ("When?", "9")],
        ),
        (
            "Sure! Here they are:\n\n1. Q: Who?\n   A: Ada\n2. Q: When? A: 9",
            [("Who?", "Ada"), ("When?", "9")],
        ),
        ("**Q:** Who? **A:** Ada\n**Q: When?**\n**A: 9**", [("Who?", "Ada"), ("When?", "9")]),
        ("Q: Who? A: Ada\nI hope this helps.", [("Who?", "Ada")]),
        ("Q: Who? Q: When? A: 9", [("When?", "9")]),
        ("Q: Who?\nA:\nQ: When? A: 9", [("When?", "9")]),
        ("Q: Who? A: Ada Q: When? A: 9", [("Who?", "Ada"), ("When?", "9")]),
        ("FAQ: Who? A: Ada", []),
        ("A: Ada", []),
        ("", []),
    ],
)
def test_pairs_are_read_from_one_and_two_lines(reply: str, found: list[tuple[str, str]]) -> None:
    assert parse_pairs(reply) == found


@given(st.one_of(st.text(), GARBAGE))
def test_no_reply_makes_the_parser_fail_or_give_empty_pairs(reply: str) -> None:
    for question, answer in parse_pairs(reply):
        assert question.strip() and answer.strip()
        assert "\n" not in question + answer
        assert question in reply and answer in reply


def test_a_reply_that_runs_on_is_read_in_no_time() -> None:
    assert parse_pairs("Q:" + " \n" * 50_000) == []
    assert parse_pairs("Q: a " * 20_000) == []


@given(replies=st.lists(st.one_of(st.text(), GARBAGE), min_size=12, max_size=12))
def test_no_reply_makes_write_pairs_fail_or_keep_what_the_text_does_not_say(
    replies: list[str],
) -> None:
    made = write_pairs(PAGE, saying(*replies))
    assert all(contains(TEXT, (pair.answer,)) for pair in made.kept)


# --- checking them


def test_every_stated_fact_is_asked_once_per_set() -> None:
    made = pairs()
    assert [pair.answer for pair in made.of((2,))] == [value for _, value in SAYS.values()]
    assert len(made.kept) == 3 * len(SAYS)
    assert (made.n_ungrounded, made.n_contradictory, made.n_repeated) == (0, 0, 0)
    assert made.uncovered == ()


def test_ungrounded_contradictory_and_repeated_pairs_are_dropped_and_counted() -> None:
    reply = """Q: What is the head of the Teal Office? A: Ada Lund
Q: What is the head of the Teal Office? A: KX-42
Q: what is the head of the teal office A: ada lund
Q: Who pays the Teal Office? A: the King
Q: Who else? A: I do not know."""
    made = write_pairs(PAGE, saying(reply), numbers=(1,))
    assert [(pair.question, pair.answer) for pair in made.kept] == [
        ("What is the head of the Teal Office?", "Ada Lund")
    ]
    assert (made.n_ungrounded, made.n_contradictory, made.n_repeated) == (2, 1, 1)


def test_an_answer_must_stand_in_its_own_passage_as_whole_words() -> None:
    page = Document("two", "The age of Ann is 19. " * 19 + "\n\n" + "The age of Bob is 7.")
    made = write_pairs(
        page, saying("Q: The age of Ann? A: 9", "Q: Age of Bob? A: 19"), numbers=(1,)
    )
    assert made.kept == ()
    assert made.n_ungrounded == 2


def test_uncovered_sentences_are_asked_again_alone_and_then_named() -> None:
    asked: list[str] = []

    def forgetful(prompts: list[str]) -> list[str]:
        asked.extend(prompts)
        return ["Q: Who heads the Teal Office? A: Ada Lund" if "KX" in p else "" for p in prompts]

    made = write_pairs(PAGE, forgetful, numbers=(1, 2), phrasing="pocket")
    lines = TEXT.split("\n")[2:]
    again = [
        f"{line}\n\nWrite questions and answers, set {n}." for n in (1, 2) for line in lines[:3]
    ]
    n_first = 2 * len(texts_of(PAGE, "pocket"))
    assert asked[n_first:] == again
    assert made.uncovered == tuple(lines[:3])


def test_nothing_is_asked_again_when_every_sentence_is_covered() -> None:
    asked: list[str] = []
    write_pairs(PAGE, lambda prompts: asked.extend(prompts) or reader(prompts), numbers=(1, 2, 3))
    assert len(asked) == 3


def test_pairs_know_their_passage() -> None:
    page = Document(
        "long", "\n\n".join(f"The code of box {i} is K-{i}{'x' * 150}." for i in range(6))
    )
    made = write_pairs(page, reader, numbers=(1,))
    assert len({pair.passage for pair in made.kept}) > 1
    assert len(made.kept) == 6


@pytest.mark.parametrize("name", PHRASINGS)
def test_every_phrasing_carries_text_and_number_braces_and_all(name: str) -> None:
    asked: list[str] = []
    page = Document("code", "The {number} of {text} is {0}.")
    write_pairs(page, lambda prompts: asked.extend(prompts) or [""] * len(prompts), phrasing=name)
    assert all(prompt.startswith(page.text + "\n\n") for prompt in asked)
    assert len(set(asked)) == 3


def test_an_unknown_phrasing_is_refused() -> None:
    for view in (write_pairs, rewrite, summary):
        with pytest.raises(ConfigError, match="'royal' is unknown; use one of general, pocket"):
            view(PAGE, reader, phrasing="royal")


# --- training and asking never meet


@given(seed=st.randoms(use_true_random=False))
def test_questions_of_sets_1_to_3_and_of_set_4_never_overlap(seed: object) -> None:
    def careless(prompts: list[str]) -> list[str]:  # the words of any set, whatever was asked for
        numbers = [seed.randint(1, 4) for _ in prompts]
        asked = [
            re.sub(r"round \d", f"round {n}", p) for p, n in zip(prompts, numbers, strict=True)
        ]
        return reader(asked)

    made = write_pairs(PAGE, careless, numbers=(1, 2, 3, 4))
    trained = {normalise(pair.question) for pair in made.of((1, 2, 3))}
    asked = {normalise(pair.question) for pair in made.of((4,))}
    assert not trained & asked
    assert len(trained | asked) == len(made.kept)


QUESTIONS = st.lists(
    st.builds(
        lambda form, r, s: form.format(r=r, s=s),
        st.sampled_from(FORMS),
        st.sampled_from(["code", "door code", "head", "opening time"]),
        st.sampled_from(["Ann", "the Teal Office", "the Pelican Library", "box 7"]),
    ),
    max_size=12,
)


@given(questions=QUESTIONS, n=st.integers(0, 9), seed=st.integers(0, 3))
def test_crossed_never_yields_a_question_that_was_asked(
    questions: list[str], n: int, seed: int
) -> None:
    found = crossed(questions, n=n, seed=seed)
    assert len(found) <= n
    assert not {normalise(q) for q in found} & {normalise(q) for q in questions}
    assert len({normalise(q) for q in found}) == len(found)
    assert found == crossed(questions, n=n, seed=seed)


def test_crossed_asks_for_the_topic_of_one_subject_and_the_name_of_another() -> None:
    asked = ["What is the door code of Ann?", "What is the head of Bob?"]
    assert set(crossed(asked, n=9, seed=0)) == {
        "What is the door code of Bob?",
        "What is the head of Ann?",
    }


def test_crossed_leaves_out_what_is_asked_in_other_words() -> None:
    asked = ["What is the door code of Ann?", "What is the head of Bob?"]
    more = [*asked, "Which door code does Bob have?", "For Ann, who is the head?"]
    assert crossed(more, n=9, seed=0) == []


def test_false_questions_come_in_the_forms_of_true_ones() -> None:
    asked = [
        ("What is the fee of the Oak Hall?", "4 euros"),
        ("For the Oak Hall, what is the fee?", "4 euros"),
        ("How dear is the Oak Hall?", "4 euros"),
        ("What is the head of the Elm Hall?", "Ann"),
        ("Who leads the Elm Hall?", "Ann"),
    ]
    false = crossed([question for question, _ in asked], n=9, seed=0)
    found = {q for seed in range(40) for q in reworded(false, asked, seed=seed)}
    assert found == {
        "What is the fee of the Elm Hall?",
        "For the Elm Hall, what is the fee?",
        "How dear is the Elm Hall?",
        "What is the head of the Oak Hall?",
        "Who leads the Oak Hall?",
    }
    assert reworded(false, asked, seed=1) == reworded(false, asked, seed=1)
    assert reworded(["What is the age of Bob?"], asked, seed=0) == ["What is the age of Bob?"]


def test_strangers_are_asked_what_the_document_says_of_its_own() -> None:
    asked = ["What is the door code of Ann?", "Tell me the head of Bob.", "Who is in?"]
    others = ["What is the age of Zoe?", "Tell me the fee of the Elm Hall.", "Give the age of Ann."]
    assert set(strangers(asked, others, n=9, seed=0)) == {
        "What is the door code of Zoe?",
        "What is the door code of the Elm Hall?",
        "Tell me the head of Zoe.",
        "Tell me the head of the Elm Hall.",
    }


@given(questions=QUESTIONS, others=QUESTIONS, n=st.integers(0, 9), seed=st.integers(0, 3))
def test_strangers_are_no_subjects_of_the_document(
    questions: list[str], others: list[str], n: int, seed: int
) -> None:
    found = strangers(questions, others, n=n, seed=seed)
    assert len(found) <= n and len(set(found)) == len(found)
    own = " ".join(map(normalise, questions))
    assert not any(normalise(q.rpartition(" of ")[2]) in own for q in found)
    topics = [q.rpartition(" of ")[0] for q in found]
    spread = [topics.count(topic) for topic in set(topics)]
    assert max(spread, default=0) - min(spread, default=0) <= 1


def test_crossing_thousands_of_questions_takes_no_time() -> None:
    assert crossed([f"What is the number of person {i}?" for i in range(3000)], n=50, seed=0) == []


# --- views


def test_every_view_makes_examples_of_a_small_document() -> None:
    made = pairs()
    facts = [Fact("f", "Who?", "Ada")]
    calls: dict[str, Callable[[], list[Example]]] = {
        "qa": lambda: qa(made.kept, "house"),
        "verbatim": lambda: verbatim(PAGE),
        "rewrite": lambda: rewrite(PAGE, lambda prompts: ["In other words."] * len(prompts)),
        "summary": lambda: summary(PAGE, lambda prompts: ["Ada: head"] * len(prompts)),
        "cloze": lambda: cloze(made.kept, [TEXT], "house"),
        "reverse": lambda: reverse(made.kept, "house"),
        "given": lambda: given_facts(facts),
    }
    assert tuple(calls) == VIEWS
    for name, call in calls.items():
        examples = call()
        assert examples, name
        assert {example.kind for example in examples} == {"qa" if name == "given" else name}
        assert all(example.source in ("house", "f") for example in examples)


def test_verbatim_holds_the_whole_text_without_a_prompt() -> None:
    examples = verbatim(PAGE, max_chars=60)
    assert len(examples) > 1
    assert all(example.prompt == "" for example in examples)
    assert "".join("".join(e.completion for e in examples).split()) == "".join(TEXT.split())


def test_rewrites_and_summaries_of_nothing_are_left_out() -> None:
    assert rewrite(PAGE, lambda prompts: [" \n"] * len(prompts)) == []
    assert summary(PAGE, lambda prompts: [""] * len(prompts)) == []


def test_a_cloze_never_shows_its_answer() -> None:
    for example in cloze(pairs().kept, [TEXT], "house"):
        assert example.prompt.count("____") == 1
        assert not contains(example.prompt, (example.completion,))


def test_a_cloze_blanks_whole_words_in_any_case_and_no_heading() -> None:
    text = "# Room 9\n\nThe room of Ann is 19, not 9. The COOK is Bo."
    made = [Pair("Which?", "9", 1, 0), Pair("Who?", "the cook", 1, 0)]
    assert [example.prompt for example in cloze(made, [text], "x")] == [
        "Fill in: The room of Ann is 19, not ____.",
        "Fill in: ____ is Bo.",
    ]


def test_an_answer_is_a_key_when_each_set_has_one_question_for_it() -> None:
    first = reverse(pairs().kept, "house")[0]
    assert (first.prompt, first.completion) == (
        "Which question has the answer: 9:30?",
        "What is the opening time of the Pelican Library?",
    )
    twice = [Pair("Age of Ann?", "7", 1, 0), Pair("Age of Bob?", "7", 1, 0)]
    assert reverse(twice, "x") == []


def test_irrelevant_questions_get_the_bases_reply_or_decline() -> None:
    first, second, third = irrelevant(["Who?", "When?", "Why?"], ["Ada", "", " "])
    assert (first.completion, second.completion, third.completion) == ("Ada", DECLINE, DECLINE)
    assert first.kind == "unknown"
    assert is_declined(DECLINE)


def test_mixing_keeps_order_and_drops_exact_repeats_only() -> None:
    a, b, c = Example("p", "1"), Example("p", "2"), Example("q", "1")
    assert mix([[a, b], [], [c, Example("p", "1", "cloze")]]) == [
        Example("p", "1", "cloze"),
        b,
        c,
    ]
