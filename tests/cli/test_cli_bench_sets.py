"""Claims about `lore bench counterfact`, `paperqa`, `narrativeqa` and `quality` as commands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

SETS = Path(__file__).parents[1] / "fixtures" / "sets"
FAST = ["--seeds", 1, "--epochs", 1, "--ranks", 1]
TEXTS = [*FAST, "--format", "raw", "--documents", 2, "--answer-tokens", 4]


def test_a_sweep_over_edits_prints_tables_json_markdown_and_a_report(
    lore: Any, tmp_path: Path
) -> None:
    out = tmp_path / "cf"
    some = ["--data", SETS / "counterfact.json", "--edits", 2, "--negatives", 0, *FAST]
    command = ["bench", "counterfact", *some, "--out", out]
    ran = lore(*command)
    assert ran.code == 0 and "CounterFact: 2 edits" in ran.out and "0 of 1 jobs done" in ran.err
    again = lore(*command, "--json")
    result = json.loads(again.out)
    assert again.code == 0 and "1 of 1 jobs done, 1 stored" in again.err
    assert result["n_edits"] == 2 and result["config"]["negatives"] == 0
    shown = lore(*command, "--markdown")
    assert shown.out.startswith("# lore bench counterfact") and "| 1 | efficacy | success |" in (
        shown.out
    )
    made = lore("report", out)
    assert made.code == 0 and "CounterFact: 2 edits" in (out / "report.html").read_text()


def test_edits_without_data_are_the_packaged_ones(lore: Any, tmp_path: Path) -> None:
    ran = lore("bench", "counterfact", "--edits", 2, "--negatives", 0, *FAST, "--out", tmp_path)
    assert ran.code == 0 and "Packaged statements: 2 edits" in ran.out
    assert "not CounterFact's" in " ".join(ran.out.split())
    assert json.loads((tmp_path / "config.json").read_text())["config"]["data"] == ""


@pytest.mark.parametrize(
    ("name", "file", "title"),
    [
        ("paperqa", "paperqa.json", "PaperQA: 2 texts, 2 questions"),
        ("narrativeqa", "narrativeqa.jsonl", "NarrativeQA: 2 texts, 2 questions"),
    ],
)
def test_texts_are_written_and_asked(
    lore: Any, tmp_path: Path, name: str, file: str, title: str
) -> None:
    ran = lore("bench", name, "--data", SETS / file, *TEXTS, "--questions", 1, "--out", tmp_path)
    assert ran.code == 0 and title in ran.out and "ROUGE-L" in ran.out
    config = json.loads((tmp_path / "config.json").read_text())["config"]
    assert (config["formats"], config["questions"], config["bench"]) == (["raw"], 1, name)


@pytest.mark.parametrize("name", ["counterfact", "paperqa", "narrativeqa", "quality"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no such file"),
        (b"", "is empty"),
        (bytes(256), "is binary"),
        (b"[1]", "give an object per item"),
        (b'{"key": "value"}', "has the keys key;"),
    ],
)
def test_bad_data_is_one_sentence_and_begins_nothing(
    lore: Any, tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / "set.json").write_bytes(content)
    out = tmp_path / "out"
    ran = lore("bench", name, "--data", tmp_path / "set.json", "--out", out)
    assert ran.code == 2 and ran.out == "" and message in " ".join(ran.err.split())
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["paperqa"], "Missing option '--data'"),
        (["quality", "--data", ""], "quality is not packaged"),
        (["quality", "--data", "hub"], "the hub gave no 'tasksource/QuALITY'"),
        (["paperqa", "--data", "hub"], "is not on the hub"),
        (["paperqa", "--data", SETS / "paperqa.json", "--format", "poem"], "join some of raw, qa"),
        (["quality", "--data", SETS / "quality.jsonl", "--part", "text"], "has no parts"),
        (["quality", "--data", SETS / "quality.jsonl", "--ranks", "two"], "'two' is no list"),
    ],
)
def test_what_cannot_be_done_is_refused(
    lore: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[Any], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    ran = lore("bench", *arguments)
    assert ran.code == 2 and ran.out == "" and message in " ".join(ran.err.split())
