"""Rows of the trials to numbers: which rate an arm gets, and how it stands against plain loss.

Everything is paired: an arm and plain loss on the same facts from the same first weights. A write
that does not recall everything within its budget counts with its whole budget (censored), and is
counted. This file knows rows as the trials make them; it knows no model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from trials import ARMS, Cell, Member

from lorewright.recall.statistics import Estimate, paired_difference

Row = Mapping[str, Any]
STEP = 2.0  # between two rates of a grid
BASELINE = "plain"


def whole(row: Row) -> bool:
    """Whether everything was recalled, certainly, within the budget."""
    return bool(row.get("reason") == "recalled")


def epochs_to_whole(row: Row, cell: Cell) -> float:
    """Epochs until everything was recalled; the whole budget where it was not."""
    return float(len(row["recalled"]) if whole(row) else cell.epochs)


def trained_to_whole(row: Row, cell: Cell) -> float:
    """Examples trained until everything was recalled, in epochs' worth of them."""
    missing = 0 if whole(row) else cell.epochs - len(row["trained"])
    return sum(row["trained"]) / row["n"] + missing


def share(row: Row, key: str) -> float:
    """Return a share at the end of the budget; a write that diverged has nothing to show."""
    if "why" in row:
        return 0.0
    return float(row[key] / row["n"] if key == "exact" else row[key])


def score(row: Row, cell: Cell) -> tuple[float, float, float]:
    """Return what rates are chosen by: mean share recalled over the budget, token accuracy, loss.

    In this order: the first says how early and how much, and where nothing is recalled the others do.
    """
    if "why" in row:
        return (-1.0, 0.0, 0.0)
    after = row["n"] * (cell.epochs - len(row["recalled"])) if whole(row) else 0
    recalled = (sum(row["recalled"]) + after) / (row["n"] * cell.epochs)
    return recalled, share(row, "tokens"), -row["nats"]


def best_rates(rows: Iterable[Row], cell: Cell) -> dict[str, float]:
    """Return the rate of every arm that has the best score; the lower one of two equals."""
    best: dict[str, Row] = {}
    for row in sorted(rows, key=lambda row: row["lr"]):
        arm = str(row["arm"])
        if arm not in best or score(row, cell) > score(best[arm], cell):
            best[arm] = row
    return {arm: float(row["lr"]) for arm, row in best.items()}


def beyond(rows: Sequence[Row], cell: Cell) -> list[Member]:
    """Return the rates to try next: one step beyond the grid where an arm's best is at its edge."""
    more = []
    for arm, lr in best_rates(rows, cell).items():
        tried = sorted(row["lr"] for row in rows if row["arm"] == arm)
        seed = next(row["seed"] for row in rows)
        if lr == tried[-1]:
            more.append(Member(arm, lr * STEP, seed))
        elif lr == tried[0]:
            more.append(Member(arm, lr / STEP, seed))
    return more


def rate_of(arm: str, rates: Mapping[str, float]) -> float:
    """Return the rate that an arm is written with."""
    return rates[ARMS[arm].tuned_as or arm]


# -- against plain loss --------------------------------------------------------------------------


class Measured(NamedTuple):
    """What the fresh seeds of a cell came to."""

    cell: Cell
    rates: Mapping[str, float]
    rows: Sequence[Row]
    seconds: Mapping[str, float]
    """Processor seconds of an example trained, by arm; empty where none were measured."""

    def of(self, arm: str) -> list[Row]:
        """Return the rows of an arm, by seed."""
        return sorted((r for r in self.rows if r["arm"] == arm), key=lambda r: int(r["seed"]))


Outcome = Callable[[Row, Measured], float]


def epochs_log(row: Row, at: Measured) -> float:
    """Return ln epochs to exact match 1.00."""
    return math.log(epochs_to_whole(row, at.cell))


def seconds_log(row: Row, at: Measured) -> float:
    """Return ln seconds to exact match 1.00, by the cost of an example of the arm."""
    return math.log(trained_to_whole(row, at.cell) * at.seconds[str(row["arm"])])


def exact(row: Row, at: Measured) -> float:
    """Return the share of answers recalled exactly at the end."""
    return share(row, "exact")


def tokens(row: Row, at: Measured) -> float:
    """Return the share of tokens that are the most likely ones, teacher-forced, at the end."""
    return share(row, "tokens")


def recited(row: Row, at: Measured) -> float:
    """Return the share of tokens that free-running decoding gives before its first mistake."""
    return share(row, "recited")


def with_arm(arm: str, measured: Sequence[Measured]) -> list[Measured]:
    """Return the cells that have an arm."""
    return [at for at in measured if arm in at.cell.arms]


def against(arm: str, measured: Sequence[Measured], outcome: Outcome) -> Estimate:
    """Return the paired difference to plain loss; an item is a set of facts, averaged over ranks."""
    items: dict[tuple[str, int], list[tuple[float, float]]] = {}
    for at in with_arm(arm, measured):
        for row, plain in zip(at.of(arm), at.of(BASELINE), strict=True):
            assert row["seed"] == plain["seed"]
            pair = (outcome(row, at), outcome(plain, at))
            items.setdefault((at.cell.task, int(row["seed"])), []).append(pair)
    means = [
        tuple(sum(pair[side] for pair in pairs) / len(pairs) for side in (0, 1))
        for pairs in items.values()
    ]
    return paired_difference([mean[0] for mean in means], [mean[1] for mean in means])


def as_ratio(difference: Estimate) -> Estimate:
    """Return a difference of logarithms as a ratio."""
    if difference.mean is None or difference.low is None or difference.high is None:
        return difference
    ends = (difference.mean, difference.low, difference.high)
    return Estimate(difference.n, *map(math.exp, ends))


def n_whole(arm: str, measured: Sequence[Measured]) -> tuple[int, int]:
    """Return how many writes of an arm recalled everything, and how many there were."""
    rows = [row for at in measured for row in at.of(arm)]
    return sum(map(whole, rows)), len(rows)
