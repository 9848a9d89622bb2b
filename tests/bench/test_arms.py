"""Claims about scores under arms: seeds are averaged first, units resampled, differences paired."""

from __future__ import annotations

import math
from typing import Any

import pytest

from lorewright.bench import arms
from lorewright.recall.statistics import wilson


def row(arm: str, unit: str, scores: list[float | None], seed: int = 0) -> dict[str, Any]:
    own = arm in arms.OWN
    return {
        "arm": arm,
        "unit": unit,
        "format": "qa" if own else "",
        "rank": 8 if own else 0,
        "seed": seed,
        "scores": {"right": scores},
    }


def table(rows: list[dict[str, Any]], kinds: dict[str, list[str]]) -> arms.Table:
    return arms.table_of([{"kinds": kinds, "rows": rows}])


KINDS = {"a": ["easy", "hard"], "b": ["easy", "hard"]}
ROWS = [
    *(row("memory", "a", [1, 0], 0), row("memory", "a", [1, 1], 1)),
    *(row("memory", "b", [1, 1], 0), row("memory", "b", [0, 1], 1)),
    *(row("base", "a", [0, 0]), row("base", "b", [0, 0])),
    row("full", "a", [1, None]),
    {k: v for k, v in row("full", "b", []).items() if k != "scores"} | {"why": "it does not fit"},
]


def by(result: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    (entry,) = [entry for entry in result if entry["kind"] == kind]
    return entry


def test_a_worked_case() -> None:
    result = arms.compared(table(ROWS, KINDS))
    whole = by(result, arms.ALL)
    assert (whole["format"], whole["rank"], whole["n_units"]) == ("qa", 8, 2)
    assert whole["arms"]["memory"]["mean"] == pytest.approx((1 + 0.5 + 0.5 + 1) / 4)
    assert whole["arms"]["memory"]["n"] == 4 and whole["by_seed"] == [0.75, 0.75]
    assert by(result, "hard")["arms"]["memory"]["mean"] == pytest.approx(0.75)
    assert whole["over_base"]["mean"] == pytest.approx(0.75)


def test_what_was_not_run_or_scored_is_left_out_and_never_zero() -> None:
    whole = by(arms.compared(table(ROWS, KINDS)), arms.ALL)
    assert whole["arms"]["full"] == {"n": 1, "mean": 1.0, **bounds(1, 1)}
    assert "wrong" not in whole["arms"] and whole["over_wrong"]["mean"] is None
    assert "full" not in by(arms.compared(table(ROWS, KINDS)), "hard")["arms"]


def bounds(successes: int, n: int) -> dict[str, Any]:
    result = wilson(successes, n)
    return {"low": result.low, "high": result.high}


def test_differences_are_paired_by_unit_and_position() -> None:
    a = {"x": {0: 1.0, 1: 0.9}, "y": {0: 0.5}}
    b = {"x": {1: 0.4}, "y": {0: 0.0}, "z": {0: 9.0}}
    result = arms.difference(a, b)
    assert result.n == 2 and result.mean == pytest.approx(0.5)
    # Levels differ and the difference never: only pairing can see that.
    assert result.low == pytest.approx(0.5) and result.high == pytest.approx(0.5)


def test_a_difference_of_arms_that_never_vary_has_newcombes_interval() -> None:
    ones, zeros = ({"a": dict.fromkeys(range(9), value)} for value in (1.0, 0.0))
    low = wilson(9, 9).low
    assert low is not None
    result = arms.difference(ones, zeros)
    assert (result.n, result.mean, result.high) == (9, 1, 1)
    assert result.low == pytest.approx(1 - math.hypot(1 - low, 1 - low))
    same = arms.difference(zeros, zeros)
    assert same.mean == 0 and same.high == pytest.approx(1 - low) == pytest.approx(-same.low)  # type: ignore[operator]


def test_every_unit_counts_alike_where_that_is_asked() -> None:
    kinds = {"a": ["p"] * 3, "b": ["p"]}
    some = table([row("memory", "a", [1, 1, 1]), row("memory", "b", [0])], kinds)
    assert by(arms.compared(some), "p")["arms"]["memory"]["mean"] == 0.75
    alike = arms.compared(some, each_unit_alike=["right"])
    assert by(alike, "p")["arms"]["memory"] == {"n": 2, "mean": 0.5, **bounds(1, 2)}


def test_all_right_or_none_has_wilsons_interval() -> None:
    items = {"a": {0: 1.0, 1: 1.0}, "b": {0: 1.0}}
    assert arms.estimated(items) == wilson(3, 3)
    mixed = arms.estimated({"a": {0: 1.0, 1: 0.0}, "b": {0: 1.0, 1: 0.5}})
    assert mixed.n == 4 and mixed.low < mixed.mean < mixed.high  # type: ignore[operator]
