"""Records of a sweep to its results: laws, failures, capacities, comparisons.

Every number stands with its n and, where runs vary, an interval over independent units: documents,
books, sets of pairs. Knows plain records; nothing of models or figures.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from lorewright.errors import DataError
from lorewright.law.cells import Cell, by_group
from lorewright.law.law import fit, fit_report, score
from lorewright.recall.statistics import mean_interval, paired_difference, wilson

Row = Mapping[str, Any]
"""What one member of a stack came to, with the fields of its job."""
Metric = Callable[[Row], float]

LAW_DRAWS = 500
RANK_DRAWS = 2000
BASELINE = "sft"
"""Methods are compared with this one."""


def rows_of(done: Iterable[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Return the rows of all records, each with the fields of its job beside its own."""
    rows = []
    for job, record in done:
        shared = {key: value for key, value in job.items() if not isinstance(value, list)}
        rows += [shared | dict(row) for row in record["rows"]]
    return rows


def caveats(rows: Iterable[Row]) -> dict[str, int]:
    """Return how many writes diverged, and of how many texts decoding and certificate disagree."""
    every = list(rows)
    return {
        "n_diverged": sum("why" in row for row in every),
        "n_flipped": sum(row.get("n_flipped", 0) for row in every),
    }


def exact_share(row: Row) -> float:
    """Return the share of examples that came back whole."""
    return float(row["exact"] / row["n"])


def loss_drop(row: Row) -> float:
    """Return L_init - L_final, nats per answer token."""
    return float(row["loss_init"] - row["loss"])


def bits(row: Row) -> float:
    """Return what was stored of all answer tokens, ΔL × tokens / ln 2."""
    return loss_drop(row) * float(row["n_answer_tokens"]) / math.log(2)


EFFORT = {"loss drop": loss_drop, "steps": lambda row: float(row["steps"])}


# -- the law -------------------------------------------------------------------------------------


def cells(rows: Iterable[Row]) -> list[Cell]:
    """Return a cell for every run that has an outcome; a document is a group."""
    return [
        Cell(
            rank=row["rank"],
            n_answer_tokens=row["n_answer_tokens"],
            loss_drop=loss_drop(row),
            loss_init=row["loss_init"],
            n_parameters=row["n_parameters"],
            recall=exact_share(row),
            n=row["n"],
            group=f"{row['length']}/{row['document']}",
        )
        for row in rows
        if "loss" in row
    ]


def laws(rows: Sequence[Row], ranks: Sequence[int], lengths: Sequence[int]) -> dict[str, Any]:
    """Return, for each share of noise, the laws of its cells, held-out scores and the cells.

    Held out are the upper halves of ranks and lengths: what is larger than all that is fitted on.
    """
    by_noise: dict[str, Any] = {}
    limits = {
        "hold_out_above_rank": sorted(ranks)[(len(ranks) - 1) // 2],
        "hold_out_above_length": sorted(lengths)[(len(lengths) - 1) // 2],
    }
    for noise in sorted({row["noise"] for row in rows}):
        own = cells(row for row in rows if row["noise"] == noise)
        report = _law_report(own, limits)
        by_noise[str(noise)] = {"cells": [asdict(cell) for cell in own], "report": report}
    return by_noise


def _law_report(own: Sequence[Cell], limits: Mapping[str, Any]) -> dict[str, Any]:
    try:
        report = fit_report(own, unit=by_group, n_draws=LAW_DRAWS, **limits)
    except DataError as refusal:  # a quick sweep may be too small for any law
        return {"refused": str(refusal)}
    # Saturated cells are easy for a law that knows each text's first loss: score the others too.
    unsaturated = [cell for cell in own if not cell.is_saturated]
    bounded = report["laws"]["bounded"]
    if unsaturated and "refused" not in bounded:
        bounded["unsaturated"] = asdict(score(fit(own, "bounded", n_draws=0), unsaturated))
    return report


def grid(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """Return the mean outcome of every rank and length: final loss, accuracies, n documents."""
    groups: dict[tuple[int, int], list[Row]] = defaultdict(list)
    for row in rows:
        if "loss" in row:
            groups[row["rank"], row["length"]].append(row)
    return [
        {
            "rank": rank,
            "length": length,
            "n": len(own),
            "loss": _mean(own, lambda row: row["loss"]),
            "loss_drop": _mean(own, loss_drop),
            "token_accuracy": _mean(own, lambda row: row["token_accuracy"]),
            "exact": asdict(wilson(sum(row["exact"] for row in own), sum(r["n"] for r in own))),
        }
        for (rank, length), own in sorted(groups.items())
    ]


def _mean(rows: Sequence[Row], value: Callable[[Row], float]) -> float:
    return sum(map(value, rows)) / len(rows)


def capacities(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return per rank the bits and the whole texts that it holds, and per parameter.

    Bits: the most of any length, ΔL × tokens / ln 2, mean over documents. Tokens: the longest
    length of which most documents come back exactly.
    """
    by_rank = []
    for rank in sorted({row["rank"] for row in rows if "loss" in row}):
        by_length: dict[int, list[Row]] = defaultdict(list)
        for row in rows:
            if row["rank"] == rank and "loss" in row:
                by_length[row["n_answer_tokens"]].append(row)
        bits_of = {n: mean_interval(list(map(bits, same))) for n, same in by_length.items()}
        most = max(bits_of, key=lambda length: bits_of[length].mean or 0.0)
        whole = [
            n for n, same in by_length.items() if 2 * sum(r["exact"] for r in same) > len(same)
        ]
        n_parameters, held = by_length[most][0]["n_parameters"], asdict(bits_of[most])
        by_rank.append(
            {
                "rank": rank,
                "n_parameters": n_parameters,
                "at_tokens": most,
                "at_the_longest": most == max(by_length),
                "bits": held,
                "bits_per_parameter": {"n": held["n"]}
                | {end: held[end] and held[end] / n_parameters for end in ("mean", "low", "high")},
                "tokens_recalled": max(whole, default=0),
            }
        )
    return by_rank


# -- failures ------------------------------------------------------------------------------------


def failures(rows: Sequence[Row], *, seed: int = 0) -> dict[str, Any]:
    """Return where independent sequences first fail, against their first stubborn token.

    Spearman's ρ with a percentile bootstrap interval over the sequences that fail; a row is a
    sequence of its own. Sequences recalled whole have no failure and are counted apart.
    """
    outcomes = [row for row in rows if "loss" in row]
    failed = [row for row in outcomes if row["first_failure"][0] is not None]
    points = [
        {
            "stubborn": row["first_stubborn"][0],
            "failure": row["first_failure"][0],
            "rank": row["rank"],
            "noise": row["noise"],
        }
        for row in failed
        if row["first_stubborn"][0] is not None
    ]
    pairs = np.array([(point["stubborn"], point["failure"]) for point in points], float)
    counts = np.unique(pairs[:, 1], return_counts=True)[1] if len(pairs) else np.array([0])
    return {
        "n_sequences": len(outcomes),
        "n_failed": len(failed),
        "points": points,
        "spearman": _spearman_interval(pairs, seed),
        "n_same": int((pairs[:, 0] == pairs[:, 1]).sum()) if len(pairs) else 0,
        "n_before": int((pairs[:, 0] > pairs[:, 1]).sum()) if len(pairs) else 0,
        "largest_share_at_one_position": float(counts.max() / max(1, len(pairs))),
    }


def _spearman_interval(pairs: Any, seed: int) -> dict[str, Any]:
    from scipy.stats import spearmanr

    n = len(pairs)
    if n < 3 or any(len(set(column)) < 2 for column in pairs.T):
        return {"n": n, "mean": None, "low": None, "high": None}
    samples = pairs[np.random.default_rng(seed).integers(n, size=(RANK_DRAWS, n))]
    varied = [sample for sample in samples if all(len(set(column)) > 1 for column in sample.T)]
    low, high = np.quantile([spearmanr(*sample.T).statistic for sample in varied], [0.025, 0.975])
    mean = float(spearmanr(*pairs.T).statistic)
    return {"n": n, "mean": mean, "low": float(low), "high": float(high)}


# -- comparisons ---------------------------------------------------------------------------------


def compared(
    rows: Sequence[Row],
    metrics: Mapping[str, Metric],
    *,
    by: str = "method",
    unit: str = "seed",
    against: str = BASELINE,
) -> list[dict[str, Any]]:
    """Return, for every metric, rank and value of ``by``, the mean over units and the difference.

    Differences are paired: the same unit (a document, a book, a set of pairs) under both, with the
    bootstrap over units. Rank None is the mean over ranks of every unit. Units in which a member
    diverged are left out of that member, and counted.
    """
    values: dict[tuple[str, int | None, str], dict[Any, float]] = defaultdict(dict)
    pooled: dict[tuple[str, str, Any], list[float]] = defaultdict(list)
    lost: dict[tuple[int | None, str], int] = defaultdict(int)
    for row in rows:
        if "loss" not in row:
            lost[row["rank"], row[by]] += 1
            continue
        for name, metric in metrics.items():
            values[name, row["rank"], row[by]][row[unit]] = metric(row)
            pooled[name, row[by], row[unit]].append(metric(row))
    n_ranks = len({row["rank"] for row in rows})
    for (name, what, which), several in pooled.items():
        if len(several) == n_ranks > 1:
            values[name, None, what][which] = sum(several) / n_ranks
    entries = []
    for (name, rank, what), own in values.items():
        base = values.get((name, rank, against), {})
        both = sorted(own.keys() & base.keys()) if what != against else []
        difference = paired_difference([own[u] for u in both], [base[u] for u in both])
        entries.append(
            {
                "metric": name,
                "rank": rank,
                by: what,
                **asdict(mean_interval(list(own.values()))),
                "n_diverged": lost[rank, what],
                "difference": asdict(difference) if both else None,
            }
        )
    order = list(dict.fromkeys(row[by] for row in rows))
    return sorted(
        entries,
        key=lambda e: (list(metrics).index(e["metric"]), e["rank"] or math.inf, order.index(e[by])),
    )
