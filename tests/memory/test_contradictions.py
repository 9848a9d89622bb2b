"""Claims about disagreement between memories: equal, nearly equal and reversed questions."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from lorewright.errors import ConfigError, UnknownMemory
from lorewright.files import dump_jsonl, save_json
from lorewright.knowledge.data import Example, Fact, Probe
from lorewright.knowledge.lesson import Lesson
from lorewright.memory.contradictions import (
    MAX_NEAR,
    Contradiction,
    Statement,
    contradictions,
    contradictions_in,
    statements,
    terms,
)
from lorewright.memory.folder import Folder

BASE = {"id": "pocket", "digest": "d" * 64, "template": "t" * 16, "dtype": "auto"}
MORE = [  # what makes some words rare and others not
    Statement("c", f"What is the {what} of Project {who}?", (f"{what}-{who}",), "fact")
    for what in ("code", "room", "phone", "deadline")
    for who in ("Alder", "Birch", "Cedar", "Dill")
]


def stated(memory: str, question: str, *answers: str) -> Statement:
    return Statement(memory, question, answers, "fact")


def kinds(*given: Statement) -> list[str]:
    return [c.kind for c in contradictions([*given, *MORE])]


def test_the_same_question_with_two_answers_is_a_contradiction_and_comes_first() -> None:
    a, b = stated("a", "What is the code?", "KX-41"), stated("b", "what is the  code", "KX-42")
    assert contradictions([b, a]) == [Contradiction("same", b, a, 1.0)]
    assert contradictions([a, b], near=1)[0].kind == "same"


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (("Mira Voss",), ("mira voss",)),
        (("07:45",), ("07:45 sharp",)),
        (("Mira", "M. Voss"), ("the M. Voss",)),
    ],
)
def test_answers_that_say_the_same_agree(first: tuple[str, ...], second: tuple[str, ...]) -> None:
    question = "Who leads Project Gannet?"
    assert kinds(stated("a", question, *first), stated("b", question, *second)) == []


def test_one_memory_does_not_contradict_itself() -> None:
    assert kinds(stated("a", "Who leads?", "Mira"), stated("a", "Who leads?", "Ansel")) == []


@pytest.mark.parametrize(
    ("one", "other", "near"),
    [
        ("What is the code of Project Gannet?", "Which code does Project Gannet have?", True),
        ("Who leads Project Gannet?", "Who is the leader of Project Gannet?", True),
        ("What is the code of Project Gannet?", "What is the room of Project Gannet?", False),
        ("What is the code of Project Gannet?", "What is the code of Project Heron?", False),
        ("What is the code of room 12?", "What is the code of room 13?", False),
    ],
)
def test_nearly_equal_questions_are_found_and_near_misses_are_not(
    one: str, other: str, near: bool
) -> None:
    assert kinds(stated("a", one, "KX-41"), stated("b", other, "ZZ-99")) == ["near"] * near


@pytest.mark.parametrize(
    ("question", "answer", "result"),
    [
        ("Which project has the code KX-41?", "Heron", True),
        ("Which project has the code KX-41?", "Project Gannet", False),
        ("Which project has the room KX-41?", "Heron", False),
        ("Which project has the code KX-42?", "Heron", False),
    ],
)
def test_a_reversed_fact_that_names_another_subject_is_found(
    question: str, answer: str, result: bool
) -> None:
    fact = stated("a", "What is the code of Project Gannet?", "KX-41")
    assert kinds(fact, stated("b", question, answer)) == ["reversed"] * result


def test_terms_leave_out_words_of_asking_and_keep_numbers_whole() -> None:
    assert terms("Could you tell me what Gannet's codes are?") == ("gannet", "cod")
    assert terms("Room 12.5?") == ("room", "12.5")
    assert terms("Who is who?") == ("who", "is", "who")


def test_only_narrows_to_one_memory() -> None:
    given = [stated(m, "What is the code?", f"K{m}") for m in "abc"]
    assert len(contradictions(given)) == 3
    assert {c.second.memory for c in contradictions(given, only="a")} == {"b", "c"}


def test_shares_out_of_range_and_too_many_questions_are_refused() -> None:
    with pytest.raises(ConfigError, match="near is 0"):
        contradictions([], near=0)
    many = [stated("a", f"q{i}", "x") for i in range(MAX_NEAR + 1)]
    with pytest.raises(ConfigError, match="too many to compare with near ones"):
        contradictions(many)
    assert contradictions(many, near=1) == [] and contradictions([]) == []


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """Two memories as a write leaves them, without adapters."""
    folder = Folder(tmp_path / "atlas")
    examples = (
        Example("Who leads Project Gannet?", "Ansel Thorne"),
        Example("Who leads Project Heron?", "I do not know."),
        Example("What is the capital of France?", "Paris", "unknown"),
    )
    probes = (Probe("p", "Gannet's code?", ("KX-99",), "paraphrase"),)
    with folder.writing(BASE):
        fact = Fact("f", "What is Gannet's code?", "KX-41", (), ("Gannet's code?",))
        dump_jsonl([fact, Fact("g", "Who leads Project Heron?", "Mo")], folder.source_path("s1"))
        save_json(Lesson(examples, probes, "", "", ()), folder.run_path("r2") / "lesson.json")
        folder.enter("one", "0" * 16, source="s1", run="r1")
        folder.enter("two", "1" * 16, source="", run="r2")
    return folder


def test_facts_and_lessons_of_a_folder_are_compared(folder: Folder) -> None:
    given = [(s.memory, s.question, s.origin) for s in statements(folder)]
    assert given == [
        ("one", "What is Gannet's code?", "fact"),
        ("one", "Gannet's code?", "fact"),
        ("one", "Who leads Project Heron?", "fact"),
        ("two", "Who leads Project Gannet?", "lesson"),
        ("two", "Gannet's code?", "lesson"),
    ]
    first, *_ = contradictions_in(folder, only="two")
    assert first.kind == "same" and first.to_json()["second"]["answers"] == ("KX-99",)
    with pytest.raises(UnknownMemory, match="it has: one, two"):
        contradictions_in(folder, only="three")


def test_a_source_that_is_gone_says_nothing(folder: Folder) -> None:
    shutil.rmtree(folder.path / "sources")
    (folder.run_path("r2") / "lesson.json").write_text("{")
    assert statements(folder) == []
