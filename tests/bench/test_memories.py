"""Claims about benchmark `memories`: what is packaged, what an arm is, what the record says."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from lorewright.bench.memories import (
    ARMS,
    BY_NAME,
    DOCUMENTS,
    STRANGERS,
    Question,
    Settings,
    quick,
    read_pages,
)
from lorewright.bench.memories_record import RECORD_FILE, markdown, rows, run, sentences
from lorewright.errors import ConfigError, DataError
from lorewright.knowledge.negatives import unrelated_questions
from lorewright.knowledge.scoring import contains, normalise
from lorewright.knowledge.splitting import sentences as sentences_of
from lorewright.memory.memory import Memory
from lorewright.models.model import Model
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
    found = [json.loads(line) for line in DOCUMENTS.read_text().splitlines()[:2]]
    path = out / "documents.jsonl"
    for row in found:
        row["facts"] = row["facts"][: N_SOME // 2]
        row["text"] = " ".join(sentences_of(row["text"])[: 1 + N_SOME // 2])
    lines = (json.dumps(row) for row in found)
    path.write_text("\n".join(lines) + "\n")
    return replace(SMALL, documents=str(path))


@pytest.fixture(scope="module")
def record(out: Path, small: Settings) -> dict[str, object]:
    """A run on two documents that learns next to nothing."""
    return run(out, Model.load(), small)


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
    asked = {normalise(q.text) for page in read_pages(DOCUMENTS, 64) for q in page.questions}
    strangers = STRANGERS.read_text(encoding="utf-8").splitlines()
    assert len(set(strangers)) >= 590
    assert not asked & {normalise(q) for q in (*strangers, *unrelated_questions())}


def test_documents_of_another_shape_or_too_few_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    row = {"id": "a", "title": "A", "text": "A is 1.", "facts": [{"answer": "1", "mine": "A?"}]}
    path.write_text(json.dumps(row) + "\n")
    (page,) = read_pages(path, 1)
    assert page.questions == (Question("A?", "1", "a", "mine"),)
    with pytest.raises(DataError, match="holds 1 documents; 2 were asked for"):
        read_pages(path, 2)
    path.write_text(json.dumps({**row, "facts": [{"mine": "A?"}]}) + "\n")
    with pytest.raises(DataError, match="a row without 'answer'"):
        read_pages(path, 1)


def test_settings_that_measure_nothing_are_refused() -> None:
    for wrong in ({"n_documents": 1}, {"rank": 0}, {"epochs": 0}):
        with pytest.raises(ConfigError, match="give at least 2 documents, rank 1 and one epoch"):
            replace(Settings(), **wrong)
    assert quick(Settings()).n_documents < 10


# -- a run ---------------------------------------------------------------------------------------


def test_every_arm_answers_every_question(record: dict[str, object]) -> None:
    accuracy = record["accuracy"]
    assert isinstance(accuracy, dict) and tuple(accuracy) == ARMS == tuple(BY_NAME)
    assert {by_kind["all"]["n"] for by_kind in accuracy.values()} == {2 * N_SOME}
    assert accuracy["base"]["all"]["mean"] == 0
    assert accuracy["full"]["all"]["mean"] > 0.5  # the base reads; nothing was learnt
    assert len(rows(record)) == 1 + len(ARMS)


def test_the_record_has_what_the_benchmark_is_made_to_show(record: dict[str, object]) -> None:
    for part in ("five", "routed_of_oracle", "hybrid", "routing", "several", "seconds"):
        assert part in record, part
    told = " ".join(sentences(record))
    for words in ("2 memories", "strangers let through", "better half", "two questions in one"):
        assert words in told
    assert markdown(record).count("|") > 60


def test_the_folder_holds_memories_that_can_be_asked(record: dict[str, object], out: Path) -> None:
    memory = Memory.open(out / "memories")
    assert sorted(memory.names) == ["page-01", "page-02"]
    page = read_pages(DOCUMENTS, 1)[0]
    found = memory.ask(page.questions[0].text, mode="open")
    assert found.memory == "page-01" and found.passages


def test_what_was_done_is_not_done_again(
    record: dict[str, object], out: Path, small: Settings
) -> None:
    steps: list[str] = []
    again = run(out, Model.load(), small, watch=Watch(steps.append))
    assert steps == ["one question at a time, with a clock"]
    timeless = {"seconds", "made"}
    assert {k: v for k, v in again.items() if k not in timeless} == {
        k: v for k, v in record.items() if k not in timeless
    }
    assert json.loads((out / RECORD_FILE).read_text())["accuracy"] == record["accuracy"]


def test_some_arms_can_be_asked_alone(
    record: dict[str, object], out: Path, small: Settings
) -> None:
    found = run(out, Model.load(), small, arms=("base", "oracle"))
    assert tuple(found["accuracy"]) == ("base", "oracle") and "five" not in found
    assert len(rows(found)) == 3
