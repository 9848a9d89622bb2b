"""Proportions, means and differences, each with its n and an interval; scipy computes them.

scipy.stats takes most of a second to import and numpy a tenth, so they are imported where they are
called.

Papers: Wilson 1927 (interval of a proportion); McNemar 1947, in its exact binomial form; Efron 1979
(bootstrap).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lorewright.errors import ConfigError, DataError

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Estimate:
    """A mean with its interval; None where there was too little to say."""

    n: int
    """How many were scored."""
    mean: float | None
    low: float | None
    high: float | None

    def to_json(self) -> dict[str, float | int | None]:
        """Plain data, as reports, cards and records have it."""
        return {"n": self.n, "recall": self.mean, "low": self.low, "high": self.high}

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

    Raises DataError unless 0 <= successes <= n, ConfigError unless 0 < confidence < 1.
    """
    _check_confidence(confidence)
    if not 0 <= successes <= n:
        raise DataError(f"a share of {successes} successes in {n}; give 0 <= successes <= n.")
    if n == 0:
        return Proportion(0, None, None, None)
    from scipy.stats import binomtest

    interval = binomtest(successes, n).proportion_ci(confidence, method="wilson")
    p = successes / n  # rounding must not move a bound past it
    return Proportion(n, p, min(p, float(interval.low)), max(p, float(interval.high)))


def estimate(scores: Sequence[float]) -> Estimate:
    """Return the mean score: with Wilson's interval if all are 0 or 1, else the bootstrap's."""
    if all(score in (0, 1) for score in scores):
        return wilson(round(sum(scores)), len(scores))
    return mean_interval(scores)


def mean_interval(
    values: Sequence[float], *, confidence: float = 0.95, seed: int = 0, n_draws: int = 2000
) -> Estimate:
    """Return the mean with its percentile bootstrap interval; the same seed gives the same one.

    Pass scored values only. One value has a mean and no interval. Raises DataError for values that
    are not finite, ConfigError unless 0 < confidence < 1.
    """
    _check_confidence(confidence)
    value_N = _finite(values)
    n = len(value_N)
    if n < 2:
        return Estimate(n, float(value_N[0]) if n else None, None, None)
    import numpy as np
    from scipy.stats import bootstrap

    low, high = bootstrap(
        (value_N,),
        np.mean,
        n_resamples=n_draws,
        batch=max(1, 1_000_000 // n),
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    mean = float(value_N.mean())
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
        raise DataError(f"{len(a)} values paired with {len(b)}; score the same items twice.")
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

    Bootstrap of two levels, which scipy lacks: clusters with replacement (documents, say), then
    values within each. One value has a mean and no interval. Raises as `mean_interval`.

    Shape letters: N value, K cluster, D draw.
    """
    import numpy as np

    _check_confidence(confidence)
    filled = [_finite(cluster) for cluster in clusters if len(cluster)]
    value_N = np.concatenate(filled) if filled else np.zeros(0)
    n = len(value_N)
    if n < 2:
        return Estimate(n, float(value_N[0]) if n else None, None, None)
    rng = np.random.default_rng(seed)
    sum_KD = np.stack(
        [
            value_C[rng.integers(len(value_C), size=(n_draws, len(value_C)))].sum(axis=1)
            for value_C in filled
        ]
    )
    size_K = np.array([len(value_C) for value_C in filled])
    chosen_DK = rng.integers(len(filled), size=(n_draws, len(filled)))
    # A cluster drawn twice is resampled twice: each time it brings one of its resampled sums.
    which_DK = rng.integers(n_draws, size=(n_draws, len(filled)))
    draws = sum_KD[chosen_DK, which_DK].sum(axis=1) / size_K[chosen_DK].sum(axis=1)
    mean, tail = float(value_N.mean()), (1 - confidence) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return Estimate(n, mean, min(mean, float(low)), max(mean, float(high)))


def mcnemar(b: int, c: int) -> float:
    """Return the exact two-sided p of McNemar's test from the two counts of disagreement.

    b items only the first answered correctly, c only the second; p = P of counts at least as uneven
    under Bin(b + c, 1/2). No disagreement gives 1. Raises DataError for negative counts.
    """
    if b < 0 or c < 0:
        raise DataError(f"McNemar's test on counts {b} and {c}; give counts from 0 up.")
    if b + c == 0:
        return 1.0
    from scipy.stats import binomtest

    return float(binomtest(b, b + c).pvalue)


def _finite(values: Sequence[float]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    import numpy as np

    value_N = np.asarray(values, dtype=np.float64)
    if not np.isfinite(value_N).all():
        raise DataError("a mean of values that are not all finite; leave unscored ones out.")
    return value_N


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ConfigError(
            f"confidence is {confidence}; give a share between 0 and 1, such as 0.95."
        )
