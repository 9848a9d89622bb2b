"""Scores of the same questions under several arms: means with intervals, and paired differences.

    memory   what was written, closed-book
    base     the base alone
    wrong    another memory, written in the same way
    full     the base with what was to be remembered in its prompt

A row is one unit (a document, an edit) under one arm; its scores are lists over the unit's items
(questions, prompts), None where an item has no such score. Scores are averaged over seeds before
anything else; units are what is independent, so intervals resample them first. Knows plain records;
nothing of models.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lorewright.recall.statistics import Estimate, clustered_interval, mean_interval, wilson

ARMS = ("memory", "base", "wrong", "full")
OWN = ("memory", "wrong")
"""Arms that depend on what was trained: they differ by format, rank and seed."""
ALL = "all"

Row = Mapping[str, Any]
Items = dict[str, dict[int, float]]
"""Scores by unit and position of the item in it."""


@dataclass(frozen=True)
class Table:
    """All scores of a benchmark, seeds apart."""

    kinds: Mapping[str, Sequence[str]]
    """The kind of every item, by unit."""
    rows: Sequence[Row]
    """unit, arm, format, rank, seed, and scores, which those that came to nothing lack."""

    @property
    def settings(self) -> list[tuple[str, int]]:
        """Format and rank of whatever was written, in order of appearance."""
        return list(dict.fromkeys((r["format"], r["rank"]) for r in self.rows if r["arm"] in OWN))

    @property
    def metrics(self) -> list[str]:
        """The names of the scores."""
        return list(dict.fromkeys(name for row in self.rows for name in row.get("scores", ())))

    def items(
        self, arm: str, metric: str, kind: str, setting: tuple[str, int], seed: int | None = None
    ) -> Items:
        """The scores of an arm by unit, mean over seeds or of one; items without one left out."""
        several: dict[str, list[Sequence[float | None]]] = defaultdict(list)
        for row in self.rows:
            same = arm not in OWN or (row["format"], row["rank"]) == setting
            same = same and (arm not in OWN or seed is None or row["seed"] == seed)
            if row["arm"] == arm and same and metric in row.get("scores", ()):
                several[row["unit"]].append(row["scores"][metric])
        by_unit: Items = {}
        for unit, lists in several.items():
            own = {}
            for position, scores in enumerate(zip(*lists, strict=True)):
                real = [score for score in scores if score is not None]
                if real and kind in (ALL, self.kinds[unit][position]):
                    own[position] = sum(real) / len(real)
            if own:
                by_unit[unit] = own
        return by_unit


def estimated(items: Items) -> Estimate:
    """Return the mean over all items with its interval.

    Wilson's over the items where each is a unit of its own and scores 0 or 1, or where all score 0
    or all 1, so that resampling would say nothing; else a bootstrap over units, then items.
    """
    clusters = [list(own.values()) for own in items.values()]
    values = [value for own in clusters for value in own]
    alone = all(len(own) == 1 for own in clusters)
    if set(values) in ({0.0}, {1.0}) or (alone and set(values) <= {0.0, 1.0}):
        return wilson(round(sum(values)), len(values))
    return mean_interval(values) if alone else clustered_interval(clusters)


def difference(a: Items, b: Items) -> Estimate:
    """Return the mean of a - b over the items that both have, with its bootstrap interval.

    Where each arm scores all 0 or all 1, resampling would say nothing: Newcombe's interval, which
    joins the two of Wilson (1998, method 10, without the gain of pairing).
    """
    pairs = [[(a[u][i], b[u][i]) for i in a[u] if i in b[u]] for u in a if u in b]
    flat = [pair for own in pairs for pair in own]
    if len(set(flat)) == 1 and set(flat[0]) <= {0.0, 1.0}:
        return _newcombe(*flat[0], len(flat))
    clusters = [[x - y for x, y in own] for own in pairs if own]
    if all(len(own) == 1 for own in clusters):
        return mean_interval([own[0] for own in clusters])
    return clustered_interval(clusters)


def _newcombe(a: float, b: float, n: int) -> Estimate:
    """The interval of a - b, where one arm scores a on all n items and the other b."""
    first, second = wilson(round(a * n), n), wilson(round(b * n), n)
    assert first.low is not None and first.high is not None
    assert second.low is not None and second.high is not None
    down = math.hypot(a - first.low, second.high - b)
    up = math.hypot(first.high - a, b - second.low)
    return Estimate(n, a - b, a - b - down, a - b + up)


def by_unit(items: Items) -> Items:
    """Return each unit's mean as its one item: every unit counts alike."""
    return {unit: {0: sum(own.values()) / len(own)} for unit, own in items.items()}


def mean(items: Items) -> float | None:
    """Return the mean over all items; None where there are none."""
    values = [value for own in items.values() for value in own.values()]
    return sum(values) / len(values) if values else None


def compared(table: Table, *, each_unit_alike: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Return, for every setting, metric and kind: each arm, memory less base and less wrong, seeds.

    A metric of ``each_unit_alike`` is averaged within units first. Kind ALL comes only where there
    are several kinds or none.
    """
    kinds = [kind for kind in dict.fromkeys(k for own in table.kinds.values() for k in own) if kind]
    seeds = sorted({row["seed"] for row in table.rows if row["arm"] in OWN})
    entries = []
    for setting in table.settings:
        for metric in table.metrics:
            for kind in (ALL, *kinds):
                arms = {arm: table.items(arm, metric, kind, setting) for arm in ARMS}
                if metric in each_unit_alike:
                    arms = {arm: by_unit(items) for arm, items in arms.items()}
                if not any(arms.values()):
                    continue
                alone = [table.items("memory", metric, kind, setting, seed) for seed in seeds]
                entries.append(
                    {
                        "format": setting[0],
                        "rank": setting[1],
                        "metric": metric,
                        "kind": kind,
                        "n_units": len(arms["memory"] or arms["base"]),
                        "arms": {a: asdict(estimated(own)) for a, own in arms.items() if own},
                        "over_base": asdict(difference(arms["memory"], arms["base"])),
                        "over_wrong": asdict(difference(arms["memory"], arms["wrong"])),
                        "by_seed": [mean(items) for items in alone],
                    }
                )
    return entries


def table_of(records: Iterable[Mapping[str, Any]]) -> Table:
    """Return the table of all records: each has ``kinds`` by unit and ``rows``."""
    kinds: dict[str, Sequence[str]] = {}
    rows: list[Row] = []
    for record in records:
        kinds |= record["kinds"]
        rows += record["rows"]
    return Table(kinds, rows)
