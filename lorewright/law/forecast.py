"""Forecast: the share of answers that a write will reproduce exactly, before anything is trained.

    logit(share) = κ (ln E - ln T + z)      E epochs; z ~ N(0, spread²), one draw per body of facts
    T = T0 (n / 32)^g (b / 50)^h f^-c t^-d (1 + n b / (C r))

n answers of b nats each that the base lacks, each in f forms of question, with t examples trained
for every one that has an answer; rank r, which is full near C r nats. T is the number of epochs in
which half of the answers are learnt. All exponents are positive: more epochs or a larger rank never
promise less.

The constants minimise binomial deviance plus a Gaussian prior on their logarithms. The spread is
not fitted: it is the least under which 90 % of the trials lie in the 90 % interval that the curve
of the *other* bodies gives them (leave one body out; conformal with pooled groups, Dunn, Wasserman
and Ramdas, arXiv 1809.07441). Facts unlike any trial come with no such promise.

Knows numbers; nothing of models, or of how the trials were made.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorewright.errors import ConfigError, DataError
from lorewright.law.law import Interval

Array = NDArray[np.float64]

PRIOR = {  # centre, and sd of the logarithm around it
    "kappa": (8.0, 0.7),
    "T0": (30.0, 1.0),
    "g": (0.15, 0.8),
    "h": (0.5, 0.7),
    "c": (0.6, 0.5),
    "d": (0.3, 0.7),
    "C": (4000.0, 1.5),
}
"""What small sweeps came to; it decides where the trials say nothing."""
ANSWERS, NATS = 32.0, 50.0  # near the middle of the trials
LARGEST_LOGIT = 30.0
SPREADS = np.linspace(0.05, 1.0, 191)
"""Candidates for the spread."""
COVERAGE = 0.9
"""Share of left-out trials that the spread is to cover."""
Z_K = np.array([NormalDist().inv_cdf((k + 0.5) / 64) for k in range(64)])
"""Equally likely standard normal values, over which counts are averaged."""


@dataclass(frozen=True)
class Load:
    """What is to be written, in the numbers on which its recall depends.

    Raises DataError for numbers that no knowledge has.
    """

    n_answers: int
    """Answers that differ in text or source."""
    n_examples: int
    """Examples with these answers, in one form or several."""
    n_answer_tokens: int
    """Of the different answers together, stop tokens included."""
    nats: float
    """What the base lacks of the different answers together."""
    n_declined: int = 0
    """Examples trained beside them whose question is to be declined."""

    def __post_init__(self) -> None:
        """Refuse what no knowledge has."""
        if not 1 <= self.n_answers <= min(self.n_examples, self.n_answer_tokens):
            raise DataError(
                f"a load has {self.n_answers} answers, {self.n_examples} examples and "
                f"{self.n_answer_tokens} tokens; each answer needs an example and a token."
            )
        if not 0 < self.nats < math.inf or self.n_declined < 0:
            raise DataError(
                f"a load has {self.nats} nats and {self.n_declined} examples to decline; give "
                "a finite number above 0 and a count."
            )

    @property
    def bits(self) -> float:
        """What the base lacks of all answers, in bits."""
        return self.nats / math.log(2.0)

    @property
    def features(self) -> dict[str, float]:
        """What the curve depends on, rank and epochs apart."""
        return {
            "answers": self.n_answers,
            "nats an answer": self.nats / self.n_answers,
            "forms an answer": self.n_examples / self.n_answers,
            "examples a question": 1 + self.n_declined / self.n_examples,
        }

    def part(self, n: int) -> Load:
        """One of n equal parts, the larger one where they differ. Raises ConfigError below 1."""
        if n < 1:
            raise ConfigError(f"a load cannot be split into {n} parts; give at least 1.")
        n_answers = math.ceil(self.n_answers / n)
        share = n_answers / self.n_answers
        return Load(
            n_answers,
            max(n_answers, round(self.n_examples * share)),
            max(n_answers, round(self.n_answer_tokens * share)),
            self.nats * share,
            round(self.n_declined * share),
        )


@dataclass(frozen=True)
class Trial:
    """The outcome of one write of a load at one rank."""

    load: Load
    rank: int
    epochs: int
    """The budget."""
    n_exact: int
    """Examples answered exactly, of `load.n_examples`."""
    used: int
    """Epochs until everything was recalled; the budget where it was not."""
    group: str
    """Trials of one group have the same knowledge."""

    def __post_init__(self) -> None:
        """Refuse what no write can come to."""
        exact_fits = 0 <= self.n_exact <= self.load.n_examples
        if self.rank < 1 or not 1 <= self.used <= self.epochs or not exact_fits:
            raise DataError(
                f"a trial has rank {self.rank}, {self.used} of {self.epochs} epochs, "
                f"{self.n_exact} of {self.load.n_examples} answers; give counts within bounds."
            )

    @property
    def share(self) -> float:
        """Share of the examples answered exactly."""
        return self.n_exact / self.load.n_examples


@dataclass(frozen=True)
class Forecast:
    """The fitted curve and how bodies of facts vary around it."""

    constants: tuple[float, ...]
    """In the order of PRIOR."""
    spread: float
    """Sd of ln T between bodies of facts, of the same size as the error of the curve."""
    stop: float
    """Epochs after which a write that recalls everything ends, as a share of T."""
    ranges: dict[str, tuple[float, float]]
    """Least and greatest of every feature, and of the rank, among the trials."""

    def needs(self, load: Load, rank: int) -> float:
        """Epochs in which half of the answers are learnt."""
        return math.exp(_log_need(np.log(self.constants), _features(load, rank)))

    def predict(self, load: Load, rank: int, epochs: float, *, confidence: float = 0.9) -> Interval:
        """The median share of a new run, and the interval in which its share lies."""
        from scipy.special import bdtr

        if not 0 < confidence < 1:
            raise ConfigError(f"confidence is {confidence}; give a share between 0 and 1.")
        n, logit = load.n_examples, self._logit(load, rank, epochs)
        share_K = _share(logit + self.constants[0] * self.spread * Z_K)

        def quantile(p: float) -> float:
            return bisect_left(range(n), p, key=lambda k: bdtr(k, n, share_K).mean()) / n

        tail = (1 - confidence) / 2
        low, high = quantile(tail), quantile(1 - tail)
        return Interval(min(max(float(_share(logit)), low), high), low, high)

    def log_chance(self, load: Load, rank: int, epochs: float, wanted: float) -> float:
        """Ln of the chance of a share of at least `wanted`; it also orders hopeless ranks."""
        from scipy.special import log_ndtr, logit

        if not 0 < wanted < 1:
            raise ConfigError(f"the wanted recall is {wanted}; give a share between 0 and 1.")
        above = self._logit(load, rank, epochs) - logit(wanted)
        return float(log_ndtr(above / (self.constants[0] * self.spread)))

    def chance(self, load: Load, rank: int, epochs: float, wanted: float) -> float:
        """The chance of a share of at least `wanted`."""
        return math.exp(self.log_chance(load, rank, epochs, wanted))

    def extrapolates(self, load: Load, rank: int) -> tuple[str, ...]:
        """Which features of a load, or its rank, lie outside the trials; a phrase for each."""
        values = load.features | {"rank": float(rank)}
        return tuple(
            f"{name} {values[name]:.4g} (tried {low:.4g} to {high:.4g})"
            for name, (low, high) in self.ranges.items()
            if not low / 1.05 <= values[name] <= high * 1.05
        )

    def _logit(self, load: Load, rank: int, epochs: float) -> float:
        if rank < 1 or not epochs > 0:
            raise ConfigError(f"rank is {rank} and epochs {epochs}; give both above 0.")
        return float(_logits(np.log(self.constants), _features(load, rank), epochs))


def expected(load: Load) -> float:
    """Epochs that half of a load takes at a large rank, by the prior alone: up to a factor."""
    return math.exp(_log_need(_prior()[0], _features(load, 1 << 20)))


def fit(trials: Sequence[Trial]) -> Forecast:
    """Fit the curve to trials.

    Raises DataError for trials of fewer than three groups or two ranks, or without failures and
    successes: they do not say when a write fails.
    """
    groups = np.array([trial.group for trial in trials])
    ranks = {trial.rank for trial in trials}
    shares = [trial.share for trial in trials]
    names = list(dict.fromkeys(groups.tolist()))
    if len(names) < 3 or len(ranks) < 2 or not min(shares) < 0.5 < max(shares):
        span = f"{min(shares):.2f} to {max(shares):.2f}" if shares else "none"
        raise DataError(
            f"{len(trials)} trials of {len(names)} groups and {len(ranks)} ranks with recall "
            f"{span} fix no forecast; give three groups and two ranks, with failures and successes."
        )
    features_NF = np.array([_features(trial.load, trial.rank) for trial in trials])
    counts_N3 = np.array([(t.epochs, t.n_exact, t.load.n_examples) for t in trials], float)
    best_P = _minimise(features_NF, counts_N3, _prior()[0])
    spreads, weights = [], []
    for name in names:
        own = groups == name
        others_P = _minimise(features_NF[~own], counts_N3[~own], best_P)
        pairs = zip(features_NF[own], counts_N3[own], strict=True)
        spreads += [_least_spread(others_P, *pair) for pair in pairs]
        weights += [1 / own.sum()] * own.sum()
    order = np.argsort(spreads)
    covered = np.cumsum(np.array(weights)[order]) / len(names)
    spread = spreads[order[np.argmax(covered >= COVERAGE - 1e-9)]]
    rows = [trial.load.features | {"rank": float(trial.rank)} for trial in trials]
    ranges = {k: (min(r[k] for r in rows), max(r[k] for r in rows)) for k in rows[0]}
    need_N = np.exp(_log_need(best_P, features_NF))
    early = [t.used / need for t, need in zip(trials, need_N, strict=True) if t.used < t.epochs]
    stop = float(np.median(early)) if early else 1.0
    return Forecast(tuple(np.exp(best_P).tolist()), spread, stop, ranges)


# -- the curve: P constants as logarithms, N trials, F features ----------------------------------


def _features(load: Load, rank: int) -> Array:
    answers, nats, forms, examples = load.features.values()
    return np.log([answers / ANSWERS, nats / NATS, forms, examples, load.nats / rank])


def _log_need(log_P: Array, features_NF: Array) -> Any:
    """ln T."""
    answers_N, nats_N, forms_N, examples_N, fill_N = features_NF.T
    g, h, c, d = np.exp(log_P[2:6])
    plain_N = log_P[1] + g * answers_N + h * nats_N - c * forms_N - d * examples_N
    return plain_N + np.logaddexp(0.0, fill_N - log_P[6])


def _logits(log_P: Array, features_NF: Array, epochs_N: Any) -> Any:
    return np.exp(log_P[0]) * (np.log(epochs_N) - _log_need(log_P, features_NF))


def _share(logit: Any) -> Any:
    return 1 / (1 + np.exp(-np.clip(logit, -LARGEST_LOGIT, LARGEST_LOGIT)))


def _prior() -> tuple[Array, Array]:
    """Centre and sd of the constants' logarithms."""
    centre_P, width_P = np.array(list(PRIOR.values())).T
    return np.log(centre_P), width_P


def _minimise(features_NF: Array, counts_N3: Array, start_P: Array) -> Array:
    """Logarithms of the constants with the least deviance and distance from the prior."""
    from scipy.optimize import least_squares
    from scipy.special import xlogy

    epochs_N, exact_N, n_N = counts_N3.T
    centre_P, width_P = _prior()

    def residuals(log_P: Array) -> Array:
        share_N = _share(_logits(log_P, features_NF, epochs_N))
        half_N = xlogy(exact_N, exact_N / (n_N * share_N))
        half_N = half_N + xlogy(n_N - exact_N, (n_N - exact_N) / (n_N * (1 - share_N)))
        # Rounding may leave a deviance just below 0.
        deviance_N = np.sign(exact_N - n_N * share_N) * np.sqrt(2 * np.maximum(half_N, 1e-12))
        return np.concatenate([deviance_N, (log_P - centre_P) / width_P])

    return np.asarray(least_squares(residuals, start_P).x)


def _least_spread(log_P: Array, features_F: Array, counts_3: Array) -> float:
    """The least spread under which a trial's count lies in the interval of a curve."""
    from scipy.special import bdtr

    epochs, n_exact, n = counts_3[0], counts_3[1], int(counts_3[2])
    kappa, logit = math.exp(log_P[0]), _logits(log_P, features_F, epochs)
    tail = (1 - COVERAGE) / 2

    def covers(spread: float) -> bool:
        share_K = _share(logit + kappa * spread * Z_K)
        fewer = bdtr(n_exact - 1, n, share_K).mean() if n_exact else 0.0
        return bool(bdtr(n_exact, n, share_K).mean() >= tail and fewer <= 1 - tail)

    first = bisect_left(SPREADS, True, key=covers)
    return float(SPREADS[min(first, len(SPREADS) - 1)])
