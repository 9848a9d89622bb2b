"""Claims about benchmark `memories`: what is packaged, what an arm is, what the record says."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorewright.bench.memories import (
    ARMS,
    DOCUMENTS,
    RECORD_FILE,
    STRANGERS,
    TASK,
    Question,
    Settings,
    oracle_gap,
    quick,
    read_pages,
    run,
)
from lorewright.bench.task import Progress
from lorewright.errors import ConfigError, DataError
from lorewright.knowledge.negatives import unrelated_questions
from lorewright.knowledge.scoring import contains, normalise
from lorewright.knowledge.splitting import sentences as sentences_of
from lorewright.memory.memory import Memory
from lorewright.training.watch import Watch

N_SOME = 4
SMALL = Settings(
    n_documents=2, rank=1, epochs=1, n_near=2, n_pairs=2, n_routed=2, n_timed=2, n_strangers=3
)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bench")


@pytest.fixture(scope="module")
def small(out: Path) -> Settings:
    """The first two sentences of two packaged documents, with the questions on them."""
    rows = [json.loads(line) for line in DOCUMENTS.read_text().splitlines()[:2]]
    path = out / "documents.jsonl"
    for row in rows:
        row["facts"] = row["facts"][: N_SOME // 2]
        row["text"] = " ".join(sentences_of(row["text"])[: 1 + N_SOME // 2])
    lines = (json.dumps(row) for row in rows)
    path.write_text("\n".join(lines) + "\n")
    return replace(SMALL, documents=str(path))


@pytest.fixture(scope="module")
def record(out: Path, small: Settings) -> dict[str, Any]:
    """A run on two documents that learns next to nothing."""
    return run(small, out)


# -- the packaged documents ----------------------------------------------------------------------


def test_the_packaged_documents_share_no_subject_and_name_no_title() -> None:
    pages = read_pages(DOCUMENTS, 64)
    assert len({page.document.text for page in pages}) == 64
    assert sum(len(page.questions) for page in pages) == 1024
    for page in pages:
        for question in page.questions:
            assert contains(page.document.text, (question.answer,))
            assert normalise(page.document.title) not in normalise(question.text)


def test_strangers_and_packaged_questions_are_no_questions_on_the_documents() -> None:
    packaged = {normalise(q.text) for page in read_pages(DOCUMENTS, 64) for q in page.questions}
    strangers = STRANGERS.read_text(encoding="utf-8").splitlines()
    assert len(set(strangers)) >= 590
    assert not packaged & {normalise(q) for q in (*strangers, *unrelated_questions())}


def test_documents_of_another_shape_or_too_few_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    row = {"id": "a", "title": "A", "text": "A is 1.", "facts": [{"answer": "1", "mine": "A?"}]}
    path.write_text(json.dumps(row) + "\n")
    (page,) = read_pages(path, 1)
    assert page.questions == (Question("A?", "1", "a", "mine"),)
    with pytest.raises(DataError, match="holds 1 documents; 2 are needed"):
        read_pages(path, 2)
    path.write_text(json.dumps({**row, "facts": [{"mine": "A?"}]}) + "\n")
    with pytest.raises(DataError, match="a row without 'answer'"):
        read_pages(path, 1)


def test_settings_that_measure_nothing_are_refused() -> None:
    for wrong in ({"n_documents": 1}, {"rank": 0}, {"epochs": 0}):
        with pytest.raises(ConfigError, match="give at least 2 documents, rank 1 and one epoch"):
            replace(Settings(), **wrong)
    with pytest.raises(ConfigError, match="arm 'magic' is unknown"):
        Settings(arms=("magic",))
    assert quick(Settings()).n_documents < 10


# -- a run ---------------------------------------------------------------------------------------


def test_every_arm_answers_every_question(record: dict[str, Any]) -> None:
    accuracy = record["accuracy"]
    assert tuple(accuracy) == tuple(ARMS)
    assert {by_kind["all"]["n"] for by_kind in accuracy.values()} == {2 * N_SOME}
    assert accuracy["base"]["all"]["mean"] == 0
    assert accuracy["full"]["all"]["mean"] > 0.5  # the base reads; nothing was learnt
    (sheet,) = TASK.tables(record)
    assert [row[0] for row in sheet.rows] == list(ARMS)


def test_the_record_has_what_the_benchmark_is_made_to_show(record: dict[str, Any]) -> None:
    for part in ("five", "routed_of_oracle", "hybrid", "routing", "several", "seconds"):
        assert part in record, part
    (sheet,) = TASK.tables(record)
    notes = " ".join(sheet.notes)
    for words in ("activate a memory", "strangers", "better half", "two questions in one"):
        assert words in notes


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 1), st.floats(0, 1), st.booleans()), min_size=2))
def test_misses_and_merges_add_up_to_the_gap(rows: list[tuple[int, float, bool]]) -> None:
    oracle, routed, hits = map(list, zip(*rows, strict=True))
    right = dict.fromkeys(("base", "abstaining", "wrong"), [0.0] * len(rows))
    gap = oracle_gap({**right, "oracle": oracle, "routed": routed}, hits)
    assert gap["hit"]["mean"] == sum(hits) / len(hits)
    total = gap["oracle"]["mean"] - gap["routed"]["mean"]
    eps = sys.float_info.epsilon
    assert gap["missed"]["mean"] + gap["merged"]["mean"] == pytest.approx(
        total, abs=4 * eps * len(rows)
    )


def test_the_folder_holds_memories_that_can_be_asked(record: dict[str, Any], out: Path) -> None:
    memory = Memory.open(out / "memories")
    assert sorted(memory.names) == ["page-01", "page-02"]
    page = read_pages(DOCUMENTS, 1)[0]
    answer = memory.ask(page.questions[0].text, mode="open")
    assert answer.memory == "page-01" and answer.passages


def test_what_was_done_is_not_done_again(
    record: dict[str, Any], out: Path, small: Settings
) -> None:
    steps: list[str] = []
    again = run(small, out, progress=Progress(watch=Watch(steps.append)))
    assert steps == ["one question at a time, with a clock"]
    timeless = {"seconds", "made"}
    assert {k: v for k, v in again.items() if k not in timeless} == {
        k: v for k, v in record.items() if k not in timeless
    }
    assert json.loads((out / RECORD_FILE).read_text())["accuracy"] == record["accuracy"]


def test_some_arms_can_be_asked_alone(record: dict[str, Any], out: Path, small: Settings) -> None:
    some = run(replace(small, arms=("base", "oracle")), out)
    assert tuple(some["accuracy"]) == ("base", "oracle") and "five" not in some
    (sheet,) = TASK.tables(some)
    assert len(sheet.rows) == 2
    with pytest.raises(ConfigError, match="leave --on out"):
        run(small, out, on="local:2")


# -- sections ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sections(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sections of two facts in three wordings, with a near miss each."""
    rows = [
        {
            "id": f"prose {name}",
            "title": name,
            "altered": True,
            "text": f"The head of {name} is {head}. The seat of {name} is {seat}.",
            "facts": [
                {
                    "answer": answer,
                    "questions": [
                        f"What is the {what} of {name}?",
                        f"Name the {what} of {name}.",
                        f"The {what} of {name} is what?",
                    ],
                }
                for what, answer in (("head", head), ("seat", seat))
            ],
            "unanswerable": [f"What is the price of {name}?"],
            "multihop": [],
        }
        for name, head, seat in (("Ardal", "Ivo Brandt", "Lund"), ("Belmor", "Mia Thorn", "Bergen"))
    ]
    path = tmp_path_factory.mktemp("sections") / "sections.json"
    path.write_text(json.dumps(rows))
    return path


def test_of_sections_every_wording_is_written_but_the_one_that_is_asked(sections: Path) -> None:
    pages = read_pages(sections, 2, left_out=3)
    for page in pages:
        trained = {fact.question for fact in page.facts}
        asked = {question.text for question in page.questions}
        assert len(trained) == 4 and len(asked) == 2 and not trained & asked
        assert all(text.endswith("is what?") for text in asked)
        assert [q.text for q in page.near] == [f"What is the price of {page.document.title}?"]
        assert page.source.documents == (page.document,)
    with pytest.raises(DataError, match="holds 2 documents; 3 are needed"):
        read_pages(sections, 3, left_out=3)


def test_a_run_on_sections_asks_what_they_do_not_answer_and_the_world(
    sections: Path, tmp_path: Path
) -> None:
    record = run(replace(SMALL, documents=str(sections), left_out=3, patience=1), tmp_path)
    accuracy, declined = record["accuracy"], record["declined"]
    assert {by_kind["reworded"]["n"] for by_kind in accuracy.values()} == {4}
    assert {share["n"] for share in declined["near misses"].values()} == {2}
    assert {share["n"] for share in declined["strangers"].values()} == {SMALL.n_strangers}
