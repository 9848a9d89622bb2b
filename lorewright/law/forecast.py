"""Forecast: the share of answers that a write will reproduce exactly, before anything is trained.

    odds of an answer = (E f^c t^d / T)^κ    E epochs, f forms in which an answer is asked for,
                                             t examples trained for one that asks for an answer
    T = T0 (n / 32)^g (b / 50)^h (1 + X)     n answers, b nats that the base lacks of each
    X = X0 (n / 32)^u (b / 50)^v / rank^w

A write needs T epochs for half of its answers: more of them for longer answers, for more of them,
and where a small rank is filled (X); fewer where an epoch has more steps, because answers are asked
for in several forms, or because questions to be declined are trained beside them. All exponents are
above zero, so that a larger rank or more epochs never promise less. Bodies of knowledge differ from
the curve by a factor on T that is log-normal with `spread` and common to all ranks; answers fail
independently beyond that. Constants are of greatest penalised likelihood, and as sure as its
curvature there.

The spread is not the one that fits best. Each group of trials is left out in turn and told by the
curve of the others; the spread is the least under which new groups lie in their intervals as often
as promised, if they are drawn as the old ones were (conformal, groups pooled: Dunn, Wasserman and
Ramdas, arXiv 1809.07441). Knowledge unlike any that was tried is promised nothing by that.

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
from lorewright.law.law import Interval

Array = NDArray[np.float64]

CONSTANTS = ("kappa", "T0", "g", "h", "c", "d", "X0", "u", "v", "w")
CENTRE = (8.0, 30.0, 0.15, 0.5, 0.6, 0.3, 0.3, 0.5, 0.5, 1.0)
"""Where a constant is sought that the trials say nothing of: what small sweeps came to."""
WIDTH = (0.7, 1.0, 0.8, 0.7, 0.5, 0.7, 1.0, 0.7, 0.7, 0.4)
"""And how far around it: sd of its logarithm."""
SPREAD, SPREAD_WIDTH = 0.1, 0.7
"""The same for the spread."""
ANSWERS, NATS = 32.0, 50.0  # where the powers are 1: near the middle of the trials
LARGEST_LOGIT = 30.0
LARGEST_SPREAD = 1.0
N_DRAWS = 400
"""Draws of the constants, when an interval is asked for, and so many runs of each."""
N_RUNS = 10
HELD = 0.9
"""Share of groups that the spread is to hold."""
_NODES = np.linspace(-4, 4, 65)  # close enough for groups whose own share is well known
_WEIGHTS = np.exp(-(_NODES**2) / 2) / np.exp(-(_NODES**2) / 2).sum()


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
    n_declined: int = 0
    """Examples trained beside them that are to be declined."""

    def __post_init__(self) -> None:
        """Refuse what no knowledge has."""
        if not 1 <= self.n_answers <= min(self.n_examples, self.n_answer_tokens):
            raise DataError(
                f"a load has {self.n_answers} answers, {self.n_examples} examples and "
                f"{self.n_answer_tokens} tokens; each answer needs an example and a token."
            )
        if not 0 < self.nats < math.inf or self.n_declined < 0:
            raise DataError(
                f"a load has {self.nats} nats and {self.n_declined} examples to be declined; give "
                "a finite number above 0 and a count."
            )

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

    @property
    def trained(self) -> float:
        """How many examples are trained for one that asks for an answer."""
        return 1 + self.n_declined / self.n_examples

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
            round(self.n_declined * share),
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
    """Of bodies of knowledge around the curve: sd of ln T."""
    stop: float
    """Epochs after which a write ends that recalls everything, as a share of T at its rank."""
    answers: tuple[float, float]
    """Fewest and most answers among the trials."""
    nats: tuple[float, float]
    """Least and most nats an answer."""
    forms: tuple[float, float]
    trained: tuple[float, float]
    """Fewest and most examples trained for one that asks for an answer."""
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

    def chance(self, load: Load, rank: int, epochs: float, wanted: float) -> float:
        """The chance that a run comes to the wanted share; never less for a larger rank."""
        return math.exp(self.log_chance(load, rank, epochs, wanted))

    def log_chance(self, load: Load, rank: int, epochs: float, wanted: float) -> float:
        """Its logarithm, which tells hopeless ranks apart as well."""
        from scipy.special import log_ndtr, logsumexp

        if not 0 < wanted < 1:
            raise ConfigError(f"the wanted recall is {wanted}; give a share between 0 and 1.")
        draws_DP, logit_D1 = self._curves(load, rank, epochs, 0)
        above_D1 = logit_D1 - math.log(wanted / (1 - wanted))
        log_D = log_ndtr(above_D1[:, 0] / (np.exp(draws_DP[:, 0]) * self.spread))
        return min(0.0, float(logsumexp(log_D)) - math.log(len(log_D)))

    def extrapolates(self, load: Load, rank: int) -> tuple[str, ...]:
        """What of a load or rank lies outside the trials, in words; nothing when all is inside."""
        asked = {
            "answers": (load.n_answers, self.answers),
            "nats an answer": (load.nats_per_answer, self.nats),
            "forms an answer": (load.forms, self.forms),
            "examples for one asked": (load.trained, self.trained),
            "rank": (rank, self.ranks),
        }
        return tuple(
            f"{name} {value:.4g} (tried {low:.4g} to {high:.4g})"
            for name, (value, (low, high)) in asked.items()
            if not low / 1.05 <= value <= high * 1.05
        )

    def _best(self) -> Array:
        return np.log([[self.constants[name] for name in CONSTANTS]])

    def _curves(self, load: Load, rank: int, epochs: float, seed: int) -> tuple[Array, Array]:
        """Draws of the constants, and the logits that they give for a load."""
        if rank < 1 or not epochs > 0:
            raise ConfigError(f"asked for rank {rank} and {epochs} epochs; give both above 0.")
        generator = np.random.default_rng(seed)
        draws_DP = _drawn(self._best()[0], np.array(self.covariance), generator, N_DRAWS)
        features_15 = np.array([_features(load, rank)])
        return draws_DP, _logits(draws_DP, features_15, np.array([float(epochs)]))

    def _runs(self, load: Load, rank: int, epochs: float, seed: int) -> Array:
        """Shares that runs may come to: draws of the curve, and of runs around it."""
        draws_DP, logit_D1 = self._curves(load, rank, epochs, seed)
        normal_DR = np.random.default_rng(seed + 2).standard_normal((len(draws_DP), N_RUNS))
        return _share(logit_D1 + np.exp(draws_DP[:, :1]) * self.spread * normal_DR).ravel()

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
                _range(plain["trained"]),
                _range(plain["ranks"]),
                int(plain["n_trials"]),
                tuple(tuple(map(float, row)) for row in plain["covariance"]),
            )
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise DataError(
                f"this is no forecast ({type(error).__name__}: {error}); calibrate again."
            ) from error


# --- the curve: P constants as logarithms, N trials --------------------------------------------


def _features(load: Load, rank: int) -> tuple[float, float, float, float, float]:
    return (
        math.log(load.n_answers / ANSWERS),
        math.log(load.nats_per_answer / NATS),
        math.log(load.forms),
        math.log(load.trained),
        math.log(rank),
    )


def _log_need(log_DP: Array, features_N5: Array) -> Array:
    """ln T for every draw D and trial N, what forms and steps take off included."""
    answers_N, nats_N, forms_N, trained_N, rank_N = features_N5.T
    plain_P = (1, 2, 3, 4, 5, 7, 8, 9)
    _, g, h, c, d, u, v, w = np.exp(log_DP[:, plain_P].T)[:, :, None]
    fill_DN = log_DP[:, 6:7] + u * answers_N + v * nats_N - w * rank_N
    plain_DN = log_DP[:, 1:2] + g * answers_N + h * nats_N - c * forms_N - d * trained_N
    return np.asarray(plain_DN + np.logaddexp(0.0, fill_DN))


def _logits(log_DP: Array, features_N5: Array, epochs_N: Array) -> Array:
    kappa_D1 = np.exp(log_DP[:, :1])
    return np.asarray(kappa_D1 * (np.log(epochs_N) - _log_need(log_DP, features_N5)))


def _share(logit: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-np.clip(logit, -LARGEST_LOGIT, LARGEST_LOGIT))))


def expected(load: Load) -> float:
    """Epochs that a load takes at a large rank where nothing was measured, up to a factor."""
    return float(np.exp(_log_need(np.log([CENTRE]), np.array([_features(load, 1 << 20)]))[0, 0]))


# --- fitting: Q = the constants and the spread, G groups, K deviations of a group ----------------


@dataclass(frozen=True)
class _Cells:
    features_N5: Array
    epochs_N: Array
    exact_N: Array
    n_N: Array
    group_N: NDArray[np.intp]

    def take(self, rows: NDArray[np.intp]) -> _Cells:
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
        np.array([groups.index(trial.group) for trial in trials]),
    )
    best_Q = _maximise(cells, np.append(np.log(CENTRE), math.log(SPREAD)))
    loads = [trial.load for trial in trials]
    forecast = Forecast(
        dict(zip(CONSTANTS, np.exp(best_Q[:-1]).tolist(), strict=True)),
        max(math.exp(best_Q[-1]), _spread_unseen(cells, best_Q)),
        1.0,
        _range([load.n_answers for load in loads]),
        _range([load.nats_per_answer for load in loads]),
        _range([load.forms for load in loads]),
        _range([load.trained for load in loads]),
        _range(ranks),
        len(trials),
        tuple(map(tuple, _covariance(cells, best_Q).tolist())),
    )
    early = [t.used / forecast.needs(t.load, t.rank) for t in trials if t.used < t.epochs]
    return replace(forecast, stop=float(np.median(early)) if early else 1.0)


def _range(values: Sequence[float]) -> tuple[float, float]:
    return float(min(values)), float(max(values))


def _maximise(cells: _Cells, start_Q: Array) -> Array:
    """Constants and spread, as logarithms, of greatest penalised likelihood."""
    from scipy.optimize import minimize

    low_Q, high_Q = _limits().T
    found = minimize(
        lambda log_Q: _cost(log_Q, cells),
        start_Q,
        jac=True,
        method="L-BFGS-B",
        bounds=list(zip(low_Q, high_Q, strict=True)),
        options={"maxiter": 500},
    )
    return np.asarray(found.x)


def _cost(log_Q: Array, cells: _Cells) -> tuple[float, Array]:
    """Less is likelier; with its slope. A group's own deviation is integrated out."""
    kappa, spread = math.exp(log_Q[0]), math.exp(log_Q[-1])
    logit_N = _logits(log_Q[None, :-1], cells.features_N5, cells.epochs_N)[0]
    free_NK = logit_N[:, None] + kappa * spread * _NODES
    logit_NK = np.clip(free_NK, -LARGEST_LOGIT, LARGEST_LOGIT)
    exact_N1, n_N1 = cells.exact_N[:, None], cells.n_N[:, None]
    log_NK = exact_N1 * logit_NK - n_N1 * np.logaddexp(0.0, logit_NK)
    log_GK = np.zeros((cells.group_N.max() + 1, len(_NODES))) + np.log(_WEIGHTS)
    np.add.at(log_GK, cells.group_N, log_NK)
    top_G1 = log_GK.max(axis=1, keepdims=True)
    sum_G1 = np.exp(log_GK - top_G1).sum(axis=1, keepdims=True)
    own_NK = (np.exp(log_GK - top_G1) / sum_G1)[cells.group_N]
    pull_NK = own_NK * (exact_N1 - n_N1 * _share(logit_NK)) * (logit_NK == free_NK)
    slope_Q = np.empty(len(log_Q))
    slope_Q[0] = (pull_NK * free_NK).sum()
    slope_Q[-1] = kappa * spread * (pull_NK * _NODES).sum()
    slope_Q[1:-1] = -kappa * pull_NK.sum(axis=1) @ _need_slopes(log_Q[:-1], cells.features_N5)
    centre_Q, width_Q = _prior()
    away_Q = (log_Q - centre_Q) / width_Q
    likelihood = (np.log(sum_G1) + top_G1).sum()
    return float(away_Q @ away_Q / 2 - likelihood), away_Q / width_Q - slope_Q


def _need_slopes(log_P: Array, features_N5: Array) -> Array:
    """How ln T changes with every logarithm of a constant but kappa's."""
    answers_N, nats_N, forms_N, trained_N, rank_N = features_N5.T
    g, h, c, d, _, u, v, w = np.exp(log_P[2:])
    filled_N = _share(log_P[6] + u * answers_N + v * nats_N - w * rank_N)
    plain = (np.ones_like(rank_N), g * answers_N, h * nats_N, -c * forms_N, -d * trained_N)
    fill = (np.ones_like(rank_N), u * answers_N, v * nats_N, -w * rank_N)
    return np.stack([*plain, *(filled_N * part_N for part_N in fill)], axis=1)


def _covariance(cells: _Cells, best_Q: Array) -> Array:
    """Of the constants, from the curvature of the penalised likelihood."""
    step = 1e-4
    rows = []
    for axis_Q in np.eye(len(best_Q)):
        above_Q, below_Q = (_cost(best_Q + s * axis_Q, cells)[1] for s in (step, -step))
        rows.append((above_Q - below_Q) / (2 * step))
    values_Q, axes_QQ = np.linalg.eigh((np.array(rows) + np.array(rows).T) / 2)
    # No direction is less sure than before anything was tried.
    values_Q = np.maximum(values_Q, 1 / _prior()[1].max() ** 2)
    return np.asarray((axes_QQ / values_Q) @ axes_QQ.T)[:-1, :-1]


def _spread_unseen(cells: _Cells, best_Q: Array) -> float:
    """The spread under which groups lie in the intervals that the others' curve gives them."""
    generator = np.random.default_rng(0)
    n_groups = int(cells.group_N.max()) + 1
    least: list[Array] = []
    weight: list[Array] = []
    for group in range(n_groups):
        own = cells.take(np.flatnonzero(cells.group_N == group))
        seen = cells.take(np.flatnonzero(cells.group_N != group))
        told_Q = _maximise(seen, best_Q)
        draws_DP = _drawn(told_Q[:-1], _covariance(seen, told_Q), generator, 40)
        least.append(_least_spread(own, draws_DP))
        weight.append(np.full(len(own.n_N), 1 / len(own.n_N)))
    spread_N, weight_N = np.concatenate(least), np.concatenate(weight)
    order = np.argsort(spread_N)
    reached_N = np.cumsum(weight_N[order]) / n_groups
    return float(spread_N[order][int(np.argmax(reached_N >= HELD - 1e-9))])


def _least_spread(cells: _Cells, draws_DP: Array) -> Array:
    """The least spread, for every trial, under which its count is in the interval of the draws."""
    from scipy.special import bdtr

    kappa_D1 = np.exp(draws_DP[:, :1])
    logit_DN1 = _logits(draws_DP, cells.features_N5, cells.epochs_N)[:, :, None]
    exact_N1, n_N1 = cells.exact_N[:, None], cells.n_N[:, None].astype(int)
    node_K, weight_K = _NODES[::4], _WEIGHTS[::4] / _WEIGHTS[::4].sum()
    low_N, high_N = np.zeros(len(cells.n_N)), np.full(len(cells.n_N), LARGEST_SPREAD)
    tail = (1 - HELD) / 2
    for _ in range(8):
        middle_N = (low_N + high_N) / 2
        share_DNK = _share(logit_DN1 + (kappa_D1 * middle_N)[:, :, None] * node_K)
        at_most_N = (bdtr(exact_N1, n_N1, share_DNK) @ weight_K).mean(axis=0)
        fewer_DN = bdtr(np.maximum(exact_N1 - 1, 0), n_N1, share_DNK) @ weight_K
        fewer_N = np.where(cells.exact_N > 0, fewer_DN.mean(axis=0), 0.0)
        held_N = (at_most_N >= tail) & (fewer_N <= 1 - tail)
        low_N, high_N = np.where(held_N, low_N, middle_N), np.where(held_N, middle_N, high_N)
    return high_N


def _drawn(centre_P: Array, covariance: Array, generator: np.random.Generator, n: int) -> Array:
    """Draws of the constants, as logarithms."""
    values_P, axes_PP = np.linalg.eigh(covariance)
    normal_DP = generator.standard_normal((n, len(centre_P)))
    drawn_DP = centre_P + (normal_DP * np.sqrt(np.maximum(values_P, 0))) @ axes_PP.T
    low_P, high_P = _limits()[:-1].T
    return np.asarray(np.clip(drawn_DP, low_P, high_P))


def _prior() -> tuple[Array, Array]:
    """Centre and width of the logarithms of all constants and the spread."""
    return np.log([*CENTRE, SPREAD]), np.array([*WIDTH, SPREAD_WIDTH])


def _limits() -> Array:
    """Least and greatest logarithm of every constant and the spread."""
    centre_Q, width_Q = _prior()
    return np.stack([centre_Q - 4 * width_Q, centre_Q + 4 * width_Q], axis=1)
