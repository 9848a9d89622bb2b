"""Claims about negatives: what must be declined is not known, and is worded as what is."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.studies import FORMS

from lorewright.knowledge.data import Fact, Knowledge
from lorewright.knowledge.lesson import LessonConfig, prepare
from lorewright.knowledge.near_misses import (
    NEAR_MISSES,
    NearMisses,
    Recipe,
    Trained,
    attributes,
    crossed,
    reworded,
    strangers,
)
from lorewright.knowledge.negatives import DECLINE, negatives, unrelated_questions
from lorewright.knowledge.scoring import is_declined, normalise
from lorewright.knowledge.subjects import subjects, things

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
def test_crossed_never_yields_a_question_that_is_trained(
    questions: list[str], n: int, seed: int
) -> None:
    mixed = crossed(questions, n=n, seed=seed)
    assert len(mixed) <= n
    assert not {normalise(q) for q in mixed} & {normalise(q) for q in questions}
    assert len({normalise(q) for q in mixed}) == len(mixed)
    assert mixed == crossed(questions, n=n, seed=seed)


def test_crossed_asks_for_the_topic_of_one_subject_and_the_name_of_another() -> None:
    trained = ["What is the door code of Ann?", "What is the head of Bob?"]
    assert set(crossed(trained, n=9, seed=0)) == {
        "What is the door code of Bob?",
        "What is the head of Ann?",
    }


def test_crossed_leaves_out_what_is_asked_in_other_words() -> None:
    trained = ["What is the door code of Ann?", "What is the head of Bob?"]
    more = [*trained, "Which door code does Bob have?", "For Ann, who is the head?"]
    assert crossed(more, n=9, seed=0) == []


def test_false_questions_come_in_the_forms_of_true_ones() -> None:
    trained = [
        ("What is the fee of the Oak Hall?", "4 euros"),
        ("For the Oak Hall, what is the fee?", "4 euros"),
        ("How dear is the Oak Hall?", "4 euros"),
        ("What is the head of the Elm Hall?", "Ann"),
        ("Who leads the Elm Hall?", "Ann"),
    ]
    false = crossed([question for question, _ in trained], n=9, seed=0)
    false_forms = {q for seed in range(40) for q in reworded(false, trained, seed=seed)}
    assert false_forms == {
        "What is the fee of the Elm Hall?",
        "For the Elm Hall, what is the fee?",
        "How dear is the Elm Hall?",
        "What is the head of the Oak Hall?",
        "Who leads the Oak Hall?",
    }
    assert reworded(false, trained, seed=1) == reworded(false, trained, seed=1)
    assert reworded(["What is the age of Bob?"], trained, seed=0) == ["What is the age of Bob?"]


def test_strangers_are_asked_what_the_document_says_of_its_own() -> None:
    trained = ["What is the door code of Ann?", "Tell me the head of Bob.", "Who is in?"]
    others = ["What is the age of Zoe?", "Tell me the fee of the Elm Hall.", "Give the age of Ann."]
    assert set(strangers(trained, others, n=9, seed=0)) == {
        "What is the door code of Zoe?",
        "What is the door code of the Elm Hall?",
        "Tell me the head of Zoe.",
        "Tell me the head of the Elm Hall.",
    }


@given(questions=QUESTIONS, others=QUESTIONS, n=st.integers(0, 9), seed=st.integers(0, 3))
def test_strangers_are_no_subjects_of_the_document(
    questions: list[str], others: list[str], n: int, seed: int
) -> None:
    mixed = strangers(questions, others, n=n, seed=seed)
    assert len(mixed) <= n and len(set(mixed)) == len(mixed)
    own = " ".join(map(normalise, questions))
    assert not any(normalise(q.rpartition(" of ")[2]) in own for q in mixed)
    topics = [q.rpartition(" of ")[0] for q in mixed]
    spread = [topics.count(topic) for topic in set(topics)]
    assert max(spread, default=0) - min(spread, default=0) <= 1


def test_crossing_thousands_of_questions_takes_no_time() -> None:
    assert crossed([f"What is the number of person {i}?" for i in range(3000)], n=50, seed=0) == []


# --- what a lesson takes of them

PAIRS = [
    (f"What is the {topic} of {subject}?", str(i))
    for i, (topic, subject) in enumerate(
        (t, s) for t in ("code", "head", "fee") for s in ("Ann", "Bob", "the Elm Hall")
    )
    if i % 2
]


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_near_misses_ask_nothing_that_is_trained_or_probed(name: str) -> None:
    probes = [normalise("For Bob, what is the fee?")]
    others = [q for q in unrelated_questions() if " of " in q]
    near = NEAR_MISSES[name].make(Trained(PAIRS, probes, others, n=12, n_held=2, seed=0))
    declined = {normalise(q) for q in (*near.trained, *near.held)}
    assert near.trained and len(near.trained) + len(near.held) <= 12 and len(near.held) <= 2
    assert len(declined) == len(near.trained) + len(near.held)
    assert not declined & {*(normalise(q) for q, _ in PAIRS), *probes}
    assert not any("fee" in q and "bob" in q for q in declined)


# --- near misses of questions as people ask them

ASKED = [
    ("Which suffix marks the record file of gitkeep?", ".rec"),
    ("The record file of gitkeep ends in which suffix?", ".rec"),
    ("After how many days does gitkeep prune drop old records?", "15"),
    ("When was gitkeep adopted by Project Heron?", "May 2019"),
    ("Which port does Project Heron open on 2 May 2019?", "8080"),
    ("Which port does Project Gannet open on 4 June 2020?", "8081"),
]


def near_misses(n: int = 40, n_held: int = 10, texts: tuple[str, ...] = ()) -> NearMisses:
    given = Trained(ASKED, (), (), n=n, n_held=n_held, seed=0, texts=texts)
    return NEAR_MISSES["general"].make(given)


def test_near_misses_exchange_things_of_one_kind() -> None:
    trained = near_misses().trained
    assert "When was gitkeep adopted by Project Gannet?" in trained
    assert not any(q.startswith(("When was 4", "Which port does 2")) for q in trained)


def test_near_misses_ask_the_sources_own_subjects_for_attributes_that_it_does_not_state() -> None:
    near = near_misses()
    asked = [q for q in near.trained if q not in {question for question, _ in ASKED}]
    about = [q for q in asked if re.search("gitkeep|Project (Heron|Gannet)|the record file", q)]
    assert len(about) > 0.8 * len(asked) > 20
    openings = {" ".join(q.split()[:2]) for q in asked}
    assert len(openings) > 15, "one kind of question would be declined by its form"


def test_what_a_question_or_a_document_states_is_not_declined() -> None:
    stated = "The tool linter checks gitkeep automatically."
    plain = near_misses(n=400, n_held=0).trained
    assert not any(q.startswith("In which year was gitkeep adopted") for q in plain)
    assert not any(q.startswith("When was gitkeep") for q in plain if "Gannet" not in q)
    assert "Which tool checks gitkeep automatically?" in plain
    after = near_misses(n=400, n_held=0, texts=(stated,)).trained
    assert "Which tool checks gitkeep automatically?" not in after


def test_attributes_of_probes_are_never_trained() -> None:
    templates = [re.escape(a.template).replace(r"\{subject\}", ".+") for a in attributes()]

    def used(questions: tuple[str, ...]) -> set[str]:
        return {t for t in templates for q in questions if re.fullmatch(t, q)}

    near = near_misses()
    assert near.held and len(near.held) <= 10
    assert not used(near.trained) & used(near.held)


def test_attributes_are_many_and_each_has_a_subject() -> None:
    assert len(attributes()) >= 60
    assert all(a.template.count("{subject}") == 1 and a.words for a in attributes())


def test_the_usual_number_of_near_misses_leaves_most_rows_to_knowledge() -> None:
    facts = tuple(Fact(str(i), *pair) for i, pair in enumerate(ASKED * 9))
    known = Knowledge(facts=tuple(replace(f, question=f"{f.question} ({f.id})") for f in facts))
    made = prepare(known, ask_llm=list, closed_book=list, config=LessonConfig())
    declined = [e for e in made.examples if e.completion == DECLINE]
    assert 0.15 < len(declined) / len(made.examples) < 0.34


def test_subjects_are_what_questions_share_with_their_articles() -> None:
    about = subjects([question for question, _ in ASKED], titles=["Keeping records"])
    assert {"gitkeep", "the record file of gitkeep", "Project Heron", "Keeping records"} <= set(
        about
    )
    assert not {"file of gitkeep", "Heron", "adopted"} & set(about)


@pytest.mark.parametrize(
    ("question", "kind", "text"),
    [
        ('Which tag marks the state "More details"?', "quoted", '"More details"'),
        ("What lies in /var/log/x?", "path", "/var/log/x"),
        ("What does --keep do?", "option", "--keep"),
        ("Who came on 4 May 2021?", "date", "4 May 2021"),
        ("What follows version 1.5-2?", "code", "1.5-2"),
        ("What has 12 legs?", "number", "12"),
        (
            "In the Debian Developer's Reference, what stands?",
            "names",
            "Debian Developer's Reference",
        ),
        ("What is an NMU?", "acronym", "NMU"),
        ("Who is Ada?", "name", "Ada"),
    ],
)
def test_things_are_told_by_their_form(question: str, kind: str, text: str) -> None:
    assert [(thing.kind, thing.text) for thing in things(question)] == [(kind, text)]


def test_unrelated_questions_get_the_bases_reply_and_silence_becomes_declining() -> None:
    replies = iter(["Ask the porter.", "", " "])
    examples, probes = negatives(
        [("Who is it?", "Ada")],
        [],
        n=2,
        n_held=5,
        seed=0,
        phrasing="general",
        closed_book=lambda prompts: [next(replies, "Paris.") for _ in prompts],
    )
    assert [e.completion for e in examples[:4]] == ["Ask the porter.", DECLINE, DECLINE, "Paris."]
    assert {e.kind for e in examples} == {"unknown"} and is_declined(DECLINE)
    assert {p.kind for p in probes} == {"neighborhood"}


def test_a_maker_of_near_misses_from_outside_is_trained_and_probed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def opposite(trained: Trained) -> NearMisses:
        questions = [q.replace("is", "is not") for q, _ in trained.pairs]
        return NearMisses(tuple(questions[:-1]), tuple(questions[-1:]))

    monkeypatch.setitem(NEAR_MISSES, "general", Recipe(opposite, 1.0))
    lesson = prepare(
        Knowledge(facts=(Fact("a", "Who is it?", "Ada"), Fact("b", "What is it?", "x"))),
        ask_llm=list,
        closed_book=list,
        config=LessonConfig(),
    )
    assert ("Who is not it?", DECLINE) in [(e.prompt, e.completion) for e in lesson.examples]
    assert "What is not it?" in [p.question for p in lesson.probes if p.kind == "unknown"]
