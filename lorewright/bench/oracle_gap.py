"""How far a router is from the oracle, and what the distance is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lorewright.errors import DataError
from lorewright.recall.statistics import Estimate, Proportion, mean_interval, wilson


@dataclass(frozen=True)
class Trial:
    """Scores in [0, 1] of one question answered five ways; None = unscored."""

    base: float | None
    oracle: float | None
    """With the memory that holds the answer."""
    routed: float | None
    """With what the router put first, never abstaining; if it put several there, with these."""
    abstaining: float | None
    """With what the router returned, the base where it abstained."""
    wrong: float | None
    """With another memory, drawn at random: what any adapter does, its format above all."""
    hit: bool
    """Whether the router's first was a memory that holds the answer."""


WAYS = ("base", "oracle", "routed", "abstaining", "wrong")


@dataclass(frozen=True)
class OracleGap:
    """The five numbers, and what the gap between oracle and routed is made of."""

    base: Estimate
    oracle: Estimate
    routed: Estimate
    abstaining: Estimate
    wrong: Estimate
    hit: Proportion
    """Share of questions routed to a memory that holds the answer."""
    missed: Estimate
    """Part of oracle - routed, per question, that is lost where the router missed."""
    merged: Estimate
    """The rest, lost although it hit: what several memories at once cost."""
    n_unscored: Mapping[str, int]


def oracle_gap(trials: Sequence[Trial], *, seed: int = 0) -> OracleGap:
    """Account for the gap between the oracle and a router.

    Each way is a mean over the questions scored that way, the others counted: Wilson's interval
    where all scores are 0 or 1, bootstrap otherwise. missed + merged = oracle - routed over those
    scored in both. Raises DataError for no trials.
    """
    if not trials:
        raise DataError("asked for the oracle gap of no trials; ask at least one question.")
    scored = {way: [vars(trial)[way] for trial in trials] for way in WAYS}
    pairs = [(trial.oracle, trial.routed, trial.hit) for trial in trials]
    gaps = [(a - b, hit) for a, b, hit in pairs if a is not None and b is not None]
    return OracleGap(
        **{way: _estimate(scored[way], seed) for way in WAYS},
        hit=wilson(sum(trial.hit for trial in trials), len(trials)),
        missed=mean_interval([0.0 if hit else gap for gap, hit in gaps], seed=seed),
        merged=mean_interval([gap if hit else 0.0 for gap, hit in gaps], seed=seed),
        n_unscored={way: scored[way].count(None) for way in WAYS},
    )


def _estimate(scores: Sequence[float | None], seed: int) -> Estimate:
    values = [score for score in scores if score is not None]
    if all(value in (0.0, 1.0) for value in values):
        return wilson(round(sum(values)), len(values))
    return mean_interval(values, seed=seed)
