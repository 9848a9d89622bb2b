"""Claims about the comparison of MemFT with plain loss: matched members, honest numbers."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lorewright.models.model import Model

FOLDER = Path(__file__).resolve().parent
NAMES = ("trials", "compare", "tables")


@pytest.fixture(scope="module")
def here() -> Iterator[SimpleNamespace]:
    """The experiment's modules, importable while these tests run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER)
        yield SimpleNamespace(**{name: __import__(name) for name in NAMES})
        for name in NAMES:
            sys.modules.pop(name)


def row(arm: str, seed: int, **about: Any) -> dict[str, Any]:
    """What a write of two facts came to that recalled both in its third epoch."""
    came = {"recalled": [0, 1, 2], "trained": [2, 2, 1], "reason": "recalled"}
    ends = {"exact": 2, "tokens": 1.0, "nats": 0.1}
    return {"arm": arm, "seed": seed, "lr": 0.01, "n": 2, **came, **ends, **about}


FAILED = {"recalled": [0] * 8, "trained": [2] * 8, "reason": "budget", "exact": 1, "tokens": 0.5}


@pytest.fixture
def cell(here: SimpleNamespace) -> Any:
    return here.trials.Cell("all-linear", 2, "10 digits", 8, arms=("plain", "threshold"))


def test_arms_differ_in_the_objective_and_nothing_else(here: SimpleNamespace) -> None:
    model, arms = Model.load("pocket"), here.trials.ARMS
    cell = here.trials.Cell("down_proj@middle", 2, "40 tokens", 8)
    job = here.trials.job_of(cell, [here.trials.Member(arm, 0.1, 3) for arm in arms])
    _, works = here.trials._works(model, job)
    assert all(work.examples == works[0].examples for work in works)
    same = {"lora", "lr", "schedule", "epochs", "batch_size", "clip", "seed", "margin"}
    for name in same:
        assert len({str(getattr(work.config, name)) for work in works}) == 1, name
    kinds = {(w.config.objective, w.config.order, w.config.rest) for w in works}
    assert len(kinds) == len(arms)


def test_a_stack_of_trials_comes_to_what_single_ones_come_to(here: SimpleNamespace) -> None:
    model = Model.load("pocket")
    task = here.trials.Task(2, 4, 2, 3)
    cell = here.trials.Cell("down_proj@middle", 4, "10 digits", 3)
    members = [here.trials.Member(arm, 0.1, 1) for arm in ("plain", "threshold", "window")]
    job = here.trials.job_of(cell, members, model="pocket", base=model.digest, decoded=1)
    job["facts"] = task._asdict()
    together = here.trials.stack(job)["rows"]
    alone = [here.trials.stack(job | {"members": [list(m)]})["rows"][0] for m in members]
    timed = here.trials.solo(job)["rows"]
    for one, other, third in zip(together, alone, timed, strict=True):
        assert one["recalled"] == other["recalled"] == third["recalled"]
        assert one["nats"] == pytest.approx(other["nats"], abs=1e-3)
        assert one["disagreements"] == 0
        assert third["seconds"] > 0


def test_a_write_that_never_recalls_all_counts_with_its_whole_budget(
    here: SimpleNamespace, cell: Any
) -> None:
    failed = row("plain", 1, **FAILED)
    assert here.compare.epochs_to_whole(failed, cell) == 8
    assert here.compare.epochs_to_whole(row("plain", 1), cell) == 3
    diverged = {"arm": "plain", "seed": 1, "n": 2, "recalled": [0], "trained": [2], "why": "nan"}
    assert here.compare.epochs_to_whole(diverged, cell) == 8
    assert here.compare.trained_to_whole(diverged, cell) == 8


def test_examples_that_rested_cost_nothing(here: SimpleNamespace, cell: Any) -> None:
    assert here.compare.trained_to_whole(row("plain", 1), cell) == 2.5
    assert here.compare.epochs_to_whole(row("plain", 1), cell) == 3


def test_the_rate_that_recalls_earliest_is_chosen(here: SimpleNamespace, cell: Any) -> None:
    rows = [row("plain", 0, lr=0.1), row("plain", 0, lr=0.2, recalled=[0, 2])]
    rows += [row("plain", 0, lr=0.4, **FAILED), row("threshold", 0, lr=0.2)]
    rows += [row("threshold", 0, lr=0.1, why="the loss is nan")]
    assert here.compare.best_rates(rows, cell) == {"plain": 0.2, "threshold": 0.2}


def test_a_grid_grows_on_the_side_of_its_best_rate_until_that_is_inside(
    here: SimpleNamespace, cell: Any
) -> None:
    rows = [row("plain", 0, lr=0.2), row("plain", 0, lr=0.1, recalled=[2])]
    assert here.compare.beyond(rows, cell) == [here.trials.Member("plain", 0.05, 0)]
    rows.append(row("plain", 0, lr=0.05, **FAILED))
    assert here.compare.beyond(rows, cell) == []


def test_seeds_are_paired_and_ranks_averaged(here: SimpleNamespace, cell: Any) -> None:
    slow = {"recalled": [0] * 5 + [2], "trained": [2] * 6}
    rows = [row("plain", seed, **slow) for seed in (1, 2, 3)]
    rows += [row("threshold", seed) for seed in (3, 2, 1)]
    at = [
        here.compare.Measured(cell._replace(rank=rank), {"plain": 1, "threshold": 1}, rows, {})
        for rank in (2, 4)
    ]
    difference = here.compare.as_ratio(
        here.compare.against("threshold", at, here.compare.epochs_log)
    )
    assert difference.n == 3
    assert (difference.mean, difference.low, difference.high) == pytest.approx((0.5, 0.5, 0.5))
    assert here.compare.n_whole("threshold", at) == (6, 6)


def test_tables_go_between_the_marks_of_the_page(
    here: SimpleNamespace, cell: Any, tmp_path: Path
) -> None:
    rows = [row(arm, seed, recited=1.0) for arm in cell.arms for seed in (1, 2)]
    at = here.compare.Measured(cell, {"plain": 1, "threshold": 1}, rows, {"plain": 2.0})
    page = tmp_path / "page.md"
    page.write_text(f"before\n{here.tables.BEGIN}\nstale\n{here.tables.END}\nafter\n")
    here.tables.into_page({"a group": [at]}, page)
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "stale" not in text
    assert "| a group | threshold | 2 | 2 of 2 | 1.00 [1.00, 1.00] | – |" in text
