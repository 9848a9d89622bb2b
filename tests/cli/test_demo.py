"""The demonstration in small: every arm runs, and the record can be drawn."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from lorewright.cli.contrast import EXAMPLES, run
from lorewright.errors import ConfigError
from lorewright.reports.results import contrast_table


def test_a_document_without_questions_beside_it_is_refused(tmp_path: Path) -> None:
    lonely = tmp_path / "lonely.md"
    lonely.write_text("The Tide Office opens at 7:30.")
    with pytest.raises(ConfigError, match=r"lonely\.probes\.jsonl"):
        run(Console(stderr=True), Console(quiet=True), tmp_path / "out", lonely)


@pytest.mark.slow
def test_the_demo_fills_every_row_and_leaves_a_record_and_figures(tmp_path: Path) -> None:
    text = (EXAMPLES / "handbook.md").read_text().split("\n## ")
    source = tmp_path / "short.md"
    source.write_text("\n## ".join(text[:5]))  # four sections: one is the scaffold
    kept = [
        line
        for line in (EXAMPLES / "handbook.probes.jsonl").read_text().splitlines()
        if json.loads(line).get("source") in {"section-1", "section-2", "section-3", "section-4"}
        or json.loads(line)["id"] in {"unknown-1", "unknown-50"}
    ]
    (tmp_path / "short.probes.jsonl").write_text("\n".join(kept))
    record = run(
        Console(stderr=True, quiet=True), Console(quiet=True), tmp_path / "out", source, quick=True
    )
    assert [row["name"] for row in record["rows"]] == [
        "stable",
        "write: next token",
        "write: questions and answers",
        "full",
    ]
    assert all(row["n"] == record["n_probes"] > 20 for row in record["rows"])
    assert {row["name"] for row in record["extra"]} >= {"base alone", "wrong memory"}
    saved = json.loads((tmp_path / "out" / "record.json").read_text())
    assert len(contrast_table(saved).rows) == len(record["rows"]) + len(record["extra"])
    assert (tmp_path / "out" / "contrast.svg").stat().st_size > 2_000
    assert (tmp_path / "out" / "contrast.png").stat().st_size > 10_000
