"""Proportions, means and differences, each with its n and an interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from lorewright.errors import ConfigError, DataError


@dataclass(frozen=True)
class Estimate:
    """A mean with its interval; None where there was too little to say."""

    n: int
    """How many were scored."""
    mean: float | None
    low: float | None
    high: float | None

    def __str__(self) -> str:
        """Return for instance ``0.94 [0.87, 0.97] n=96``, or ``unscored``."""
        if self.mean is None:
            return "unscored"
        if self.low is None or self.high is None:
            return f"{self.mean:.2f} n={self.n}"
        return f"{self.mean:.2f} [{self.low:.2f}, {self.high:.2f}] n={self.n}"


class Proportion(Estimate):
    """A share of successes with its Wilson interval."""


def wilson(successes: int, n: int, *, confidence: float = 0.95) -> Proportion:
    """Return the share of successes with Wilson's score interval, without continuity correction.

    centre = (p + z²/2n) / (1 + z²/n); half = z √(p(1-p)/n + z²/4n²) / (1 + z²/n). Raises DataError
    unless 0 <= successes <= n, ConfigError unless 0 < confidence < 1.
    """
    _check_confidence(confidence)
    if not 0 <= successes <= n:
        raise DataError(f"asked for {successes} successes of {n}; give 0 <= successes <= n.")
    if n == 0:
        return Proportion(0, None, None, None)
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    p = successes / n
    shrink = 1 + z * z / n
    centre = (p + z * z / (2 * n)) / shrink
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / shrink
    # At the ends the bound is exact; rounding must not move it off the mean.
    low = 0.0 if successes == 0 else min(p, centre - half)
    high = 1.0 if successes == n else max(p, centre + half)
    return Proportion(n, p, low, high)


def mean_interval(
    values: Sequence[float], *, confidence: float = 0.95, seed: int = 0, n_draws: int = 2000
) -> Estimate:
    """Return the mean with its percentile bootstrap interval; the same seed gives the same one.

    Pass scored values only. One value has a mean and no interval. Raises DataError for values that
    are not finite.
    """
    _check_confidence(confidence)
    value_N = np.asarray(values, dtype=np.float64)
    if not np.isfinite(value_N).all():
        raise DataError("asked for the mean of values that are not finite; leave unscored out.")
    n = len(value_N)
    if n == 0:
        return Estimate(0, None, None, None)
    mean = float(value_N.mean())
    if n == 1:
        return Estimate(1, mean, None, None)
    generator = np.random.default_rng(seed)
    n_at_once = max(1, 1_000_000 // n)
    sizes = [min(n_at_once, n_draws - done) for done in range(0, n_draws, n_at_once)]
    draws = np.concatenate(
        [value_N[generator.integers(n, size=(size, n))].mean(axis=1) for size in sizes]
    )
    tail = (1 - confidence) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return Estimate(n, mean, min(mean, float(low)), max(mean, float(high)))


def paired_difference(
    a: Sequence[float],
    b: Sequence[float],
    *,
    confidence: float = 0.95,
    seed: int = 0,
    n_draws: int = 2000,
) -> Estimate:
    """Return the mean of ``a - b`` over the same items with its bootstrap interval.

    Raises DataError when the lengths differ.
    """
    if len(a) != len(b):
        raise DataError(f"asked to pair {len(a)} values with {len(b)}; score the same items twice.")
    differences = [x - y for x, y in zip(a, b, strict=True)]
    return mean_interval(differences, confidence=confidence, seed=seed, n_draws=n_draws)


def clustered_interval(
    clusters: Sequence[Sequence[float]],
    *,
    confidence: float = 0.95,
    seed: int = 0,
    n_draws: int = 2000,
) -> Estimate:
    """Return the mean over all values with an interval that knows they come in clusters.

    Bootstrap of two levels: clusters with replacement (documents, say), then values within each.
    One value has a mean and no interval. Raises DataError for values that are not finite.
    """
    _check_confidence(confidence)
    kept = [np.asarray(own, dtype=np.float64) for own in clusters if len(own)]
    value_N = np.concatenate(kept) if kept else np.zeros(0)
    if not np.isfinite(value_N).all():
        raise DataError("asked for the mean of values that are not finite; leave unscored out.")
    n = len(value_N)
    if n < 2:
        return Estimate(n, float(value_N[0]) if n else None, None, None)
    generator = np.random.default_rng(seed)
    sum_KD = np.stack(
        [own[generator.integers(len(own), size=(n_draws, len(own)))].sum(axis=1) for own in kept]
    )
    size_K = np.array([len(own) for own in kept])
    chosen_DK = generator.integers(len(kept), size=(n_draws, len(kept)))
    # A cluster drawn twice is resampled twice: each time it brings one of its resampled sums.
    which_DK = generator.integers(n_draws, size=(n_draws, len(kept)))
    draws = sum_KD[chosen_DK, which_DK].sum(axis=1) / size_K[chosen_DK].sum(axis=1)
    mean, tail = float(value_N.mean()), (1 - confidence) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return Estimate(n, mean, min(mean, float(low)), max(mean, float(high)))


def mcnemar(b: int, c: int) -> float:
    """Return the exact two-sided p of McNemar's test from the two counts of disagreement.

    b items only the first got right, c only the second;
    p = min(1, 2 P[Bin(b + c, 1/2) <= min(b, c)]). No disagreement gives 1.

    Raises DataError for negative counts.
    """
    if b < 0 or c < 0:
        raise DataError(f"asked for McNemar's test on counts {b} and {c}; give counts from 0 up.")
    n = b + c
    term = total = 1
    for k in range(min(b, c)):
        term = term * (n - k) // (k + 1)
        total += term
    return min(1.0, 2 * total / 2**n)


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ConfigError(
            f"confidence is {confidence}; give a share between 0 and 1, such as 0.95."
        )
