"""Claims about pages of writes and memories: read from their files, refused where damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lorewright.errors import DataError, UnknownMemory
from lorewright.memory.runs import memory_page, write_page
from lorewright.reports.page import Page, Picture, to_markdown
from lorewright.reports.tables import Table


def arm(n: int, share: float) -> dict[str, Any]:
    return {"n": n, "recall": share, "low": max(0.0, share - 0.1), "high": min(1.0, share + 0.1)}


REPORT: dict[str, Any] = {
    "memory": "handbook",
    "metric": "exact_match",
    "reason": "recalled",
    "n_examples": 20,
    "epochs": 3,
    "seconds": 4.2,
    "trained": arm(20, 1.0),
    "recall": {"paraphrase": {"memory": arm(10, 0.9), "base": arm(10, 0.0)}},
    "notes": ["wrong: no other memory was given."],
    "outcomes": {
        "memory": [
            {
                "kind": "paraphrase",
                "question": "Who?",
                "answers": ["Ann"],
                "output": "Bo",
                "score": 0,
            },
            {
                "kind": "paraphrase",
                "question": "When?",
                "answers": ["May"],
                "output": "May",
                "score": 1,
            },
        ]
    },
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    epoch = {"epochs": 3, "loss_nats": 1.5, "n_recalled": 4, "n_examples": 20, "certified": False}
    epochs = [
        epoch | {"epoch": i, "certified": i == 3, "n_recalled": 4 + 8 * (i - 1)} for i in (1, 2, 3)
    ]
    (tmp_path / "report.json").write_text(json.dumps(REPORT))
    (tmp_path / "config.json").write_text(json.dumps({"write": {"lora": {"rank": 8}, "lr": 0.003}}))
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(e) + "\n" for e in epochs))
    return tmp_path


def test_a_write_is_told_with_verdict_failures_curve_and_settings(run: Path) -> None:
    page = write_page(run)
    text = to_markdown(page)
    assert "20 examples, 3 epochs in 4 s, ended: recalled" in text
    assert "| paraphrase | 10 | 0.90 [0.80, 1.00] | 0.00 [0.00, 0.10] | – | – | – |" in text
    assert "wrong: no other memory was given." in text
    assert "| paraphrase | Who? | Ann | Bo |" in text and "When?" not in text
    assert "write.lora.rank = 8" in text
    assert sum(isinstance(part, Picture) for part in page.parts) == 1


def test_a_write_without_metrics_has_no_curve(run: Path) -> None:
    (run / "metrics.jsonl").unlink()
    assert not any(isinstance(part, Picture) for part in write_page(run).parts)


@pytest.mark.parametrize("name", ["report.json", "config.json", "metrics.jsonl"])
def test_damaged_files_are_refused_by_name(run: Path, name: str) -> None:
    (run / name).write_text("{")
    with pytest.raises(DataError, match=name):
        write_page(run)


def test_unfinished_and_foreign_reports_are_refused(run: Path, tmp_path: Path) -> None:
    (run / "report.json").write_text(json.dumps({"other": 1}))
    with pytest.raises(DataError, match="another shape"):
        write_page(run)
    (run / "report.json").unlink()
    with pytest.raises(DataError, match="not finished"):
        write_page(run)


def test_a_memory_is_told_with_all_that_it_holds(tmp_path: Path) -> None:
    identity = "0" * 16
    card = {
        "adapter": {"base_id": "pocket", "lora": {"rank": 4}},
        "report": {"metric": "exact_match", "recall": REPORT["recall"]},
        "reason": "recalled",
        "versions": {"torch": "2.13.0"},
    }
    (tmp_path / "adapters" / identity).mkdir(parents=True)
    (tmp_path / "adapters" / identity / "card.json").write_text(json.dumps(card))
    entry = {"adapter": identity, "source": "a", "run": "b"}
    base = {"id": "pocket", "digest": "d"}
    index = {"schema": 1, "base": base, "memories": {"handbook": entry}}
    (tmp_path / "memory.json").write_text(json.dumps(index))
    page = memory_page(tmp_path)
    assert isinstance(page, Page) and page.about == "1 memory on pocket."
    first = page.parts[0]
    assert isinstance(first, Table)
    recalls = ("0.90 [0.80, 1.00]", "0.00 [0.00, 0.10]")
    assert first.rows == (("handbook", "4", "10", *recalls, identity),)
    with pytest.raises(UnknownMemory):
        memory_page(tmp_path / "adapters")
