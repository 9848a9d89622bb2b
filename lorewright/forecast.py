"""Forecast: the share of answers that a write will reproduce exactly, before anything is trained.

    odds of an answer = (E f^c / T)^κ        E epochs, f forms in which an answer is asked for
    T = T0 (n / 32)^g (b / 50)^h (1 + X)     n answers, b nats that the base lacks of each
    X = X0 (n / 32)^u (b / 50)^v / rank^w

A write needs T epochs for half of its answers: more of them for longer answers, for more of them,
and where a small rank is filled (X). All exponents are above zero, so that a larger rank or more
epochs never promise less, and more of the same facts never more. Runs differ from the curve by a
factor on T that is log-normal with `spread`; answers of one run fail independently beyond that.
Constants are of greatest penalised likelihood; how sure they are comes from leaving out one group
of trials after the other (jackknife, Quenouille 1956), and the spread from how far each group lies
from the curve that has not seen it.

The law of `law.py` says what a rank holds when training is not what is short. This one is for a
given recipe with its budget of epochs. This room knows numbers; nothing of models or how the
trials were made.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorewright.errors import ConfigError, DataError
from lorewright.law import Interval

Array = NDArray[np.float64]

CONSTANTS = ("kappa", "T0", "g", "h", "c", "X0", "u", "v", "w")
CENTRE = (8.0, 30.0, 0.15, 0.5, 0.6, 0.4, 0.5, 0.5, 1.0)
"""Where a constant is sought that the trials say nothing of: what small sweeps came to."""
WIDTH = (0.7, 1.0, 0.8, 0.7, 0.5, 1.0, 0.7, 0.7, 0.4)
"""And how far around it: sd of its logarithm."""
ANSWERS, NATS = 32.0, 50.0  # where the powers are 1: near the middle of the trials
LARGEST_LOGIT = 30.0
SPREADS = np.geomspace(0.01, 1.0, 40)
N_DRAWS = 400
"""Draws of the constants, when an interval is asked for, and so many runs of each."""
N_RUNS = 10
_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(11)


@dataclass(frozen=True)
class Load:
    """What is to be written, in the numbers that its recall hangs on.

    Raises DataError for numbers that no knowledge has.
    """

    n_answers: int
    """Answers that differ in text or source."""
    n_examples: int
    """Examples that ask for them, in one form or several."""
    n_answer_tokens: int
    """Of the different answers together, their stop tokens included."""
    nats: float
    """What the base lacks of the different answers together."""

    def __post_init__(self) -> None:
        """Refuse what no knowledge has."""
        if not 1 <= self.n_answers <= min(self.n_examples, self.n_answer_tokens):
            raise DataError(
                f"a load has {self.n_answers} answers, {self.n_examples} examples and "
                f"{self.n_answer_tokens} tokens; each answer needs an example and a token."
            )
        if not 0 < self.nats < math.inf:
            raise DataError(f"a load has {self.nats} nats; give a finite number above 0.")

    @property
    def nats_per_answer(self) -> float:
        """What the base lacks of an answer."""
        return self.nats / self.n_answers

    @property
    def bits(self) -> float:
        """The same as bits, of all answers."""
        return self.nats / math.log(2.0)

    @property
    def forms(self) -> float:
        """How many examples ask for one answer."""
        return self.n_examples / self.n_answers

    def part(self, n: int) -> Load:
        """One of n equal parts, the larger one where they differ. Raises ConfigError below 1."""
        if n < 1:
            raise ConfigError(f"a load was to be cut into {n} parts; give at least 1.")
        share = max(1, math.ceil(self.n_answers / n)) / self.n_answers
        whole = max(1, round(self.n_answers * share))
        return Load(
            whole,
            max(whole, round(self.n_examples * share)),
            max(whole, round(self.n_answer_tokens * share)),
            self.nats * share,
        )


@dataclass(frozen=True)
class Trial:
    """What one write of a load at one rank came to."""

    load: Load
    rank: int
    epochs: int
    """The budget."""
    n_exact: int
    """Examples that ask for an answer and are answered exactly, of `load.n_examples`."""
    used: int
    """Epochs it took; fewer than the budget where everything was recalled before."""
    group: str
    """Trials of one group have the same knowledge."""

    def __post_init__(self) -> None:
        """Refuse what no write can come to."""
        if self.rank < 1 or not 1 <= self.used <= self.epochs:
            raise DataError(
                f"a trial has rank {self.rank} and {self.used} of {self.epochs} epochs; give "
                "whole numbers from 1, and no more epochs than the budget."
            )
        if not 0 <= self.n_exact <= self.load.n_examples:
            raise DataError(
                f"a trial has {self.n_exact} of {self.load.n_examples} answers; give a count."
            )


@dataclass(frozen=True)
class Forecast:
    """A fitted curve with its draws; see the module's first lines."""

    constants: Mapping[str, float]
    spread: float
    """Of runs around the curve: sd of ln T."""
    stop: float
    """Epochs after which a write ends that recalls everything, as a share of T at its rank."""
    answers: tuple[float, float]
    """Fewest and most answers among the trials."""
    nats: tuple[float, float]
    """Least and most nats an answer."""
    forms: tuple[float, float]
    ranks: tuple[float, float]
    n_trials: int
    covariance: tuple[tuple[float, ...], ...] = ()
    """Of the logarithms of the constants."""

    def needs(self, load: Load, rank: int) -> float:
        """Epochs in which half of the answers come to be recalled."""
        log_need = _log_need(self._best(), np.array([_features(load, rank)]))
        return float(np.exp(log_need[0, 0]))

    def predict(
        self, load: Load, rank: int, epochs: float, *, confidence: float = 0.9, seed: int = 0
    ) -> Interval:
        """The median share of a new run, and the interval in which its share lies.

        It holds what is not known of the curve, how runs differ, and that answers are counted.
        """
        from scipy.stats import binom

        if not 0 < confidence < 1:
            raise ConfigError(f"confidence is {confidence}; give a share between 0 and 1.")
        # Every tenth of them in order stands for all: counting is the slow part.
        share_D = np.sort(self._runs(load, rank, epochs, seed))[N_RUNS // 2 :: N_RUNS]
        generator = np.random.default_rng(seed + 1)
        # Drawn through the inverse, a larger share never counts fewer answers.
        drawn_D = generator.random(len(share_D))
        counted_D = binom.ppf(drawn_D, load.n_examples, share_D) / load.n_examples
        tails = ((1 - confidence) / 2, (1 + confidence) / 2)
        low, high = np.quantile(counted_D, tails)
        return Interval(float(np.clip(np.median(share_D), low, high)), float(low), float(high))

    def chance(self, load: Load, rank: int, epochs: float, wanted: float, seed: int = 0) -> float:
        """The chance that a run comes to the wanted share; never less for a larger rank."""
        if not 0 < wanted < 1:
            raise ConfigError(f"the wanted recall is {wanted}; give a share between 0 and 1.")
        return float((self._runs(load, rank, epochs, seed) >= wanted).mean())

    def extrapolates(self, load: Load, rank: int) -> tuple[str, ...]:
        """What of a load or rank lies outside the trials, in words; nothing when all is inside."""
        asked = {
            "answers": (load.n_answers, self.answers),
            "nats an answer": (load.nats_per_answer, self.nats),
            "forms an answer": (load.forms, self.forms),
            "rank": (rank, self.ranks),
        }
        return tuple(
            f"{name} {value:.4g} (tried {low:.4g} to {high:.4g})"
            for name, (value, (low, high)) in asked.items()
            if not low / 1.05 <= value <= high * 1.05
        )

    def _best(self) -> Array:
        return np.log([[self.constants[name] for name in CONSTANTS]])

    def _runs(self, load: Load, rank: int, epochs: float, seed: int) -> Array:
        """Shares that runs may come to: draws of the curve, and of runs around it."""
        if rank < 1 or not epochs > 0:
            raise ConfigError(f"asked for rank {rank} and {epochs} epochs; give both above 0.")
        generator = np.random.default_rng(seed)
        draws_DP = _drawn(self._best()[0], np.array(self.covariance), generator, N_DRAWS)
        logit_D = _logits(draws_DP, np.array([_features(load, rank)]), np.array([float(epochs)]))
        noise_DR = self.spread * generator.standard_normal((len(draws_DP), N_RUNS))
        return _share(logit_D + np.exp(draws_DP[:, :1]) * noise_DR).ravel()

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self) | {"constants": dict(self.constants)}

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Forecast:
        """The forecast that to_json gave. Raises DataError for data of another shape."""
        try:
            return cls(
                {name: float(plain["constants"][name]) for name in CONSTANTS},
                float(plain["spread"]),
                float(plain["stop"]),
                _range(plain["answers"]),
                _range(plain["nats"]),
                _range(plain["forms"]),
                _range(plain["ranks"]),
                int(plain["n_trials"]),
                tuple(tuple(map(float, row)) for row in plain["covariance"]),
            )
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise DataError(
                f"this is no forecast ({type(error).__name__}: {error}); calibrate again."
            ) from error


# --- the curve: P constants as logarithms, N trials --------------------------------------------


def _features(load: Load, rank: int) -> tuple[float, float, float, float]:
    return (
        math.log(load.n_answers / ANSWERS),
        math.log(load.nats_per_answer / NATS),
        math.log(load.forms),
        math.log(rank),
    )


def _log_need(log_DP: Array, features_N4: Array) -> Array:
    """ln T for every draw D and trial N, the forms an answer has taken off."""
    value_DP1 = np.exp(np.clip(log_DP, -LARGEST_LOGIT, LARGEST_LOGIT))[:, :, None]
    answers_N, nats_N, forms_N, rank_N = features_N4.T
    g, h, c, u, v, w = (value_DP1[:, i] for i in (2, 3, 4, 6, 7, 8))
    fill_DN = log_DP[:, 5:6] + u * answers_N + v * nats_N - w * rank_N
    plain_DN = log_DP[:, 1:2] + g * answers_N + h * nats_N - c * forms_N
    return np.asarray(plain_DN + np.logaddexp(0.0, fill_DN))


def _logits(log_DP: Array, features_N4: Array, epochs_N: Array) -> Array:
    kappa_D1 = np.exp(log_DP[:, :1])
    return np.asarray(kappa_D1 * (np.log(epochs_N) - _log_need(log_DP, features_N4)))


def _share(logit: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-np.clip(logit, -LARGEST_LOGIT, LARGEST_LOGIT))))


def expected(load: Load) -> float:
    """Epochs that a load takes at a large rank where nothing was measured, up to a factor."""
    return float(np.exp(_log_need(np.log([CENTRE]), np.array([_features(load, 1 << 20)]))[0, 0]))


# --- fitting -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Cells:
    features_N4: Array
    epochs_N: Array
    exact_N: Array
    n_N: Array

    def take(self, rows: Sequence[int] | NDArray[np.intp]) -> _Cells:
        return _Cells(*(part[rows] for part in vars(self).values()))


def fit(trials: Sequence[Trial]) -> Forecast:
    """Return the forecast that fits the trials best, with what its intervals need.

    Raises DataError for trials of fewer than three groups or two ranks, or that all came to
    everything or all to nothing: they do not say when a write fails.
    """
    groups = list(dict.fromkeys(trial.group for trial in trials))
    ranks = sorted({trial.rank for trial in trials})
    shares = [trial.n_exact / trial.load.n_examples for trial in trials]
    if len(groups) < 3 or len(ranks) < 2 or not (min(shares) < 0.5 < max(shares)):
        span = f"{min(shares):.2f} to {max(shares):.2f}" if shares else "none"
        raise DataError(
            f"asked to fit {len(trials)} trials of {len(groups)} groups and {len(ranks)} ranks "
            f"with recall {span}; give three groups and two ranks, with failures and successes."
        )
    cells = _Cells(
        np.array([_features(trial.load, trial.rank) for trial in trials]),
        np.array([float(trial.epochs) for trial in trials]),
        np.array([float(trial.n_exact) for trial in trials]),
        np.array([float(trial.load.n_examples) for trial in trials]),
    )
    members = [np.flatnonzero([t.group == name for t in trials]) for name in groups]
    best_Q = _maximise(cells, np.append(np.log(CENTRE), math.log(0.1)))
    every = np.arange(len(trials))
    without_GQ = np.array(
        [_maximise(cells.take(np.setdiff1d(every, own)), best_Q) for own in members]
    )
    apart_GP = (without_GQ - without_GQ.mean(axis=0))[:, :-1]
    covariance = (len(groups) - 1) / len(groups) * apart_GP.T @ apart_GP
    loads = [trial.load for trial in trials]
    forecast = Forecast(
        dict(zip(CONSTANTS, np.exp(best_Q[:-1]).tolist(), strict=True)),
        _spread_unseen(cells, members, without_GQ[:, :-1], covariance),
        1.0,
        _range([load.n_answers for load in loads]),
        _range([load.nats_per_answer for load in loads]),
        _range([load.forms for load in loads]),
        _range(ranks),
        len(trials),
        tuple(map(tuple, covariance.tolist())),
    )
    early = [t.used / forecast.needs(t.load, t.rank) for t in trials if t.used < t.epochs]
    return replace(forecast, stop=float(np.median(early)) if early else 1.0)


def _range(values: Sequence[float]) -> tuple[float, float]:
    return float(min(values)), float(max(values))


def _maximise(cells: _Cells, start_Q: Array) -> Array:
    """Constants and spread, as logarithms, of greatest penalised likelihood."""
    from scipy.optimize import minimize

    centre, width = np.log(CENTRE), np.array(WIDTH)

    def cost(log_Q: Array) -> float:
        penalty = (((log_Q[:-1] - centre) / width) ** 2).sum()
        penalty += ((log_Q[-1] - math.log(0.1)) / 0.7) ** 2
        return float(penalty / 2 - _likelihood(cells, log_Q[:-1], math.exp(log_Q[-1])).sum())

    bounds = [*map(tuple, _limits()), (-5.0, 0.5)]
    how = {"ftol": 1e-7, "maxiter": 200}
    found = minimize(cost, start_Q, method="L-BFGS-B", bounds=bounds, options=how)
    return np.asarray(found.x)


def _likelihood(cells: _Cells, log_P: Array, spread: float) -> Array:
    """ln of the likelihood of each trial, its own deviation integrated out."""
    logit_N = _logits(log_P[None], cells.features_N4, cells.epochs_N)[0]
    share_NK = _share(logit_N[:, None] + math.exp(log_P[0]) * spread * _NODES)
    exact_N1, n_N1 = cells.exact_N[:, None], cells.n_N[:, None]
    log_NK = exact_N1 * np.log(share_NK) + (n_N1 - exact_N1) * np.log1p(-share_NK)
    top_N1 = log_NK.max(axis=1, keepdims=True)
    mean_N = (np.exp(log_NK - top_N1) * _WEIGHTS).sum(axis=1) / _WEIGHTS.sum()
    return np.asarray(np.log(mean_N) + top_N1[:, 0])


def _spread_unseen(
    cells: _Cells, members: Sequence[NDArray[np.intp]], without_GP: Array, covariance: Array
) -> float:
    """The spread under which groups are likeliest, each by the curve of the others."""
    generator = np.random.default_rng(0)
    total_S = np.zeros(len(SPREADS))
    for own, others_P in zip(members, without_GP, strict=True):
        seen = cells.take(own)
        draws_DP = _drawn(others_P, covariance, generator, 40)
        for s, spread in enumerate(SPREADS):
            log_DN = np.array([_likelihood(seen, draw_P, float(spread)) for draw_P in draws_DP])
            top_N = log_DN.max(axis=0)
            total_S[s] += (np.log(np.exp(log_DN - top_N).mean(axis=0)) + top_N).sum()
    return float(SPREADS[int(np.argmax(total_S))])


def _drawn(centre_P: Array, covariance: Array, generator: np.random.Generator, n: int) -> Array:
    """Draws of the constants, as logarithms."""
    values_P, axes_PP = np.linalg.eigh(covariance)
    normal_DP = generator.standard_normal((n, len(centre_P)))
    drawn_DP = centre_P + (normal_DP * np.sqrt(np.maximum(values_P, 0))) @ axes_PP.T
    low_P, high_P = _limits().T
    return np.asarray(np.clip(drawn_DP, low_P, high_P))


def _limits() -> Array:
    """Least and greatest logarithm of every constant."""
    centre_P, width_P = np.log(CENTRE), np.array(WIDTH)
    return np.stack([centre_P - 4 * width_P, centre_P + 4 * width_P], axis=1)
