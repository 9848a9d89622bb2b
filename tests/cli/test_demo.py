"""The demonstration in small: every arm runs, and the record can be drawn."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console
from support.real import link_models, needs

from lorewright.cli.contrast import EXAMPLES, run
from lorewright.cli.demos import HANDBOOK, KESTREL, demo_on
from lorewright.errors import ConfigError, DataError
from lorewright.models.catalogue import POCKET
from lorewright.reports.results import contrast_table


def test_a_document_without_questions_beside_it_is_refused(tmp_path: Path) -> None:
    lonely = tmp_path / "lonely.md"
    lonely.write_text("The Tide Office opens at 7:30.")
    with pytest.raises(ConfigError, match=r"lonely\.probes\.jsonl"):
        run(HANDBOOK, POCKET, Console(stderr=True), Console(quiet=True), tmp_path / "out", lonely)
    lonely.with_name("lonely.probes.jsonl").write_text("{}")
    with pytest.raises(ConfigError, match=r"answers to train.*lonely\.jsonl"):
        run(KESTREL, POCKET, Console(stderr=True), Console(quiet=True), tmp_path / "out", lonely)


def test_the_embedded_base_has_the_handbook_and_others_the_memo_under_their_own_command() -> None:
    assert demo_on(POCKET) is HANDBOOK
    assert demo_on("smollm2").command == "lore demo --model smollm2" == KESTREL.command
    assert demo_on("some/folder").document == KESTREL.document


def test_every_row_is_of_a_condition_and_every_condition_has_the_row_of_its_curve() -> None:
    for demo in (HANDBOOK, KESTREL):
        names = {condition.name for condition in demo.conditions}
        assert {row.condition for row in (*demo.rows, *demo.extra)} <= names
        assert {f"write: {name}" for name in names} <= {row.name for row in demo.rows}


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
    consoles = Console(stderr=True, quiet=True), Console(quiet=True)
    record = run(HANDBOOK, POCKET, *consoles, tmp_path / "out", source, quick=True)
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


@pytest.mark.slow
@pytest.mark.parametrize("base", [POCKET, pytest.param("smollm2", marks=needs("smollm2"))])
def test_the_memo_fills_every_row_and_a_second_run_trains_nothing_again(
    base: str, tmp_path: Path, own_cache: Path
) -> None:
    if base != POCKET:
        link_models(own_cache)
    about = (KESTREL, base, Console(quiet=True), Console(quiet=True), tmp_path)
    first, second = (run(*about, quick=True, jobs=jobs) for jobs in (2, 1))
    assert {row["n"] for row in first["rows"]} == {12}
    assert all(row["declined"]["n"] == 4 for row in first["rows"])
    writes = [row["name"] for row in first["rows"] if row["final_loss"] is not None]
    assert writes == [f"write: {condition.name}" for condition in KESTREL.conditions]
    if base != POCKET:  # which knows nothing of the world
        unknown = {row["name"] for row in first["rows"] if row["retained"] is None}
        assert unknown == {"stable", "full"}
    assert second["seconds"] >= sum(c["seconds"] for c in second["conditions"].values())
    assert {**second, "seconds": 0} == {**first, "seconds": 0}
    assert len(list((tmp_path / "conditions").iterdir())) == len(KESTREL.conditions)


@pytest.mark.slow
def test_what_fails_in_the_other_process_is_raised_here(tmp_path: Path) -> None:
    about = (KESTREL, POCKET, Console(quiet=True), Console(quiet=True), tmp_path)
    run(*about, quick=True)
    for record in [*(tmp_path / "conditions").glob("next-token-*.json")]:
        record.unlink()
        if "next-token-all" in record.name:  # the second of two: it goes to the other process
            record.with_suffix(".curve.json").write_text("{")
    with pytest.raises(DataError, match=r"curve\.json"):
        run(*about, quick=True, jobs=2)
