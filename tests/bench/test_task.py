"""Claims about benchmarks as tasks: every entry meets the contract, one from outside works too."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from support.commands import Lore
from support.sweeping import doubled

from lorewright.bench.task import SUMMARY_FILE, TASKS, Entry, load, page, run
from lorewright.errors import ConfigError

NEEDED = {"counterfact": "counterfact.json", "quality": "quality.jsonl"}
SETS = Path(__file__).parents[1] / "fixtures" / "sets"


@pytest.mark.parametrize("name", TASKS)
def test_a_task_has_settings_that_can_be_made_quick(name: str) -> None:
    task = load(name)
    fields = {field.name for field in dataclasses.fields(task.config)}
    assert task.name == name and "model" in fields
    assert {*task.flags, *task.fixed} <= fields
    required = {"data": "nowhere.json"} if "data" in fields else {}
    settings = task.config(**required, **task.fixed)
    quick = task.quick(settings)
    assert type(quick) is type(settings) and quick != settings and quick.model == settings.model
    with pytest.raises(dataclasses.FrozenInstanceError):
        quick.model = "other"


@pytest.mark.parametrize("name", TASKS)
def test_an_entry_has_a_help_with_an_example(name: str) -> None:
    first, _, rest = TASKS[name].help.partition("\n")
    assert len(first) <= 100 and f"lore bench {name}" in rest


def test_an_unknown_benchmark_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="choose one of longcontext, phonebook"):
        load("magic")


def test_a_task_from_outside_runs_is_shown_and_is_a_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lore: Lore
) -> None:
    monkeypatch.setitem(TASKS, "double", Entry("support.sweeping:TASK", "Double numbers."))
    task = load("double")
    summary = run(task, task.config(n=3), tmp_path / "here")
    assert summary["twice"] == [doubled({"n": n})["twice"] for n in range(3)]
    assert json.loads((tmp_path / "here" / SUMMARY_FILE).read_text())["bench"] == "double"
    assert page(summary).title == "lore bench double"
    ran = lore("bench", "double", "--n", 5, "--quick", "--out", tmp_path / "there", "--json")
    assert ran.code == 0 and ran.json["twice"] == [0, 2]
    assert "Double numbers." in lore("bench", "--help").out
