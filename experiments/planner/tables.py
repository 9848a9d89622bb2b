"""The tables of the planner's test: how often a forecast held, beside what needs no planner."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lorewright.law.calibration import Calibration
from lorewright.law.plan import CONFIDENCE, RANKS
from lorewright.recall.statistics import wilson

FIXED = (1, 2, 8)
"""Ranks that somebody without a planner might take."""
EVEN = 0.5
"""A plan with a smaller chance predicts that no rank is enough."""


def smallest(record: dict[str, Any]) -> int | None:
    """The smallest rank written that came to the wanted recall; None: none did."""
    wanted = record["plan"]["wanted"]
    enough = [r for r, row in record["ranks"].items() if row["n_exact"] >= wanted * row["n"]]
    return min(map(int, enough), default=None)


def within_a_step(record: dict[str, Any], rank: int) -> bool:
    """Whether a rank is within one step of the smallest that came to the wanted recall."""
    best = smallest(record)
    return best is not None and abs(RANKS.index(best) - RANKS.index(rank)) <= 1


def near(record: dict[str, Any]) -> bool:
    """The same of the planned rank; where no rank came to it, whether the plan predicted so."""
    plan = record["plan"]
    if smallest(record) is None:
        return bool(plan["chance"] < EVEN)
    return within_a_step(record, plan["rank"])


def at_plan(record: dict[str, Any]) -> dict[str, Any]:
    """The write at the planned rank."""
    return dict(record["ranks"][str(record["plan"]["rank"])])


def share(row: dict[str, Any]) -> float:
    """The recall of a write."""
    return float(row["n_exact"] / row["n"])


def inside(row: dict[str, Any], low: float | None = None, high: float | None = None) -> bool:
    """Whether the recall of a write lies in an interval; by default the one predicted for it."""
    low = row["forecast"]["low"] if low is None else low
    high = row["forecast"]["high"] if high is None else high
    return bool(low <= share(row) <= high)


def blind(known: Calibration) -> tuple[float, float]:
    """The interval of one who knows the calibration's recalls and nothing of the body."""
    shares = [trial.share for trial in known.trials]
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(shares, [tail, 1 - tail])
    return float(low), float(high)


def penalty(rows: Sequence[dict[str, Any]], always: tuple[float, float] | None = None) -> float:
    """Mean width, and 2/0.1 times as far as recall lies outside (Gneiting and Raftery 2007)."""
    total = 0.0
    for row in rows:
        low, high = always or (row["forecast"]["low"], row["forecast"]["high"])
        away = max(0.0, low - share(row), share(row) - high)
        total += high - low + 2 / (1 - CONFIDENCE) * away
    return total / len(rows)


def width(rows: Sequence[dict[str, Any]]) -> float:
    """Mean width of the predicted intervals."""
    return float(np.mean([row["forecast"]["high"] - row["forecast"]["low"] for row in rows]))


def rate(yes: Sequence[bool]) -> str:
    """x/n with its interval."""
    if not yes:
        return "none"
    estimate = wilson(sum(yes), len(yes))
    return f"{sum(yes)}/{len(yes)} = {estimate.mean:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"


def verdict(records: Sequence[dict[str, Any]], known: Calibration) -> str:
    """The two counts in one line."""
    rows = [at_plan(record) for record in records]
    return (
        f"planner n={len(records)} covered={rate([inside(row) for row in rows])} "
        f"width={width(rows):.2f} rank={rate([near(record) for record in records])}"
    )


def covered(records: Sequence[dict[str, Any]], known: Calibration) -> list[str]:
    """How often intervals held, and what they cost, as a table."""
    rows = [at_plan(record) for record in records]
    cells = [row for record in records for row in record["ranks"].values()]
    mixed = [row for row in rows if 0 < row["n_exact"] < row["n"]]
    sets = {
        "the planned rank of every body": rows,
        "of these, writes with some answers right and some wrong": mixed,
        "every rank written": cells,
    }
    low, high = blind(known)
    lines = [
        "| writes | inside the 90 % interval | mean width | penalty | "
        f"always [{low:.2f}, {high:.2f}]: inside | penalty |",
        "|---|---|---|---|---|---|",
    ]
    for name, chosen in sets.items():
        if not chosen:
            continue
        lines.append(
            f"| {name} | {rate([inside(row) for row in chosen])} | {width(chosen):.2f} | "
            f"{penalty(chosen):.2f} | {rate([inside(row, low, high) for row in chosen])} | "
            f"{penalty(chosen, (low, high)):.2f} |"
        )
    return lines


def chosen(records: Sequence[dict[str, Any]]) -> list[str]:
    """How often ranks were within a step of the smallest that did, as a table."""
    reached = [record for record in records if smallest(record) is not None]
    lines = [
        "| rank | where a rank came to the wanted recall: within a step | all bodies, "
        "right also where none did and the chance was below 0.5 |",
        "|---|---|---|",
        f"| planned | {rate([near(record) for record in reached])} | "
        f"{rate([near(record) for record in records])} |",
    ]
    lines += [
        f"| always {rank} | {rate([within_a_step(record, rank) for record in reached])} | "
        f"{rate([within_a_step(record, rank) for record in records])} |"
        for rank in FIXED
    ]
    return lines


def promised(records: Sequence[dict[str, Any]]) -> list[str]:
    """How often plans came to the wanted recall, by the chance that they had given, as a table."""
    lines = [
        "| chance given | plans | mean chance | came to the wanted recall |",
        "|---|---|---|---|",
    ]
    for low, high in ((0.0, 0.2), (0.2, 0.5), (0.5, 0.8), (0.8, 1.01)):
        part = [record for record in records if low <= record["plan"]["chance"] < high]
        came = [share(at_plan(record)) >= record["plan"]["wanted"] for record in part]
        mean = f"{np.mean([r['plan']['chance'] for r in part]):.2f}" if part else ""
        lines.append(f"| {low:g} to {min(high, 1):g} | {len(part)} | {mean} | {rate(came)} |")
    return lines


def bodies(records: Sequence[dict[str, Any]]) -> list[str]:
    """Every body, its plan and what came of it, as a table."""
    lines = [
        "| knowledge | answers | bits each | epochs | wanted | planned rank | chance | predicted "
        "recall | measured | smallest rank that did | recall by rank |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for record in records:
        plan, row = record["plan"], at_plan(record)
        load, forecast = plan["load"], row["forecast"]
        by_rank = ", ".join(f"{rank}: {share(r):.2f}" for rank, r in record["ranks"].items())
        best = smallest(record) or "none"
        lines.append(
            f"| {record['name']} | {load['n_answers']} | {load['bits'] / load['n_answers']:.0f} | "
            f"{plan['epochs']} | {plan['wanted']:g} | {plan['rank']} | {plan['chance']:.2f} | "
            f"{forecast['value']:.2f} [{forecast['low']:.2f}, {forecast['high']:.2f}] | "
            f"{share(row):.2f}{'' if inside(row) else ' (outside)'} | "
            f"{best}{'' if near(record) else ' (missed)'} | {by_rank} |"
        )
    return lines


def page(records: Sequence[dict[str, Any]], known: Calibration) -> str:
    """All tables and figures as Markdown."""
    about = (
        f"{len(records)} bodies, embedded base {known.about['base'][:12]}, one seed each; "
        f"{sum(record['cpu_seconds'] for record in records) / 60:.0f} minutes of one core."
    )
    parts = [
        [about],
        covered(records, known),
        chosen(records),
        promised(records),
        ["![Predicted intervals and measured recall](intervals.svg)"],
        ["![Recall by budget over predicted need](curve.svg)"],
        bodies(records),
    ]
    return "\n\n".join("\n".join(part) for part in parts) + "\n"
