"""Which memories answer a question, with what probability, and when none does.

    candidates -> features -> p = σ(w · f + b) -> [] at p ≤ τ, else the best and those beside it

A router is a function from a question to hits, best first; [] abstains. Some rank candidates: by
keys of an index, centroids of the base's hidden states, directions that adapters react to. `gated`
turns any of them into one that abstains: a small logistic regression makes their scores a
probability (Platt's; isotonic regression wants more held-out questions than there are, takes one
score, and its ties spoil a quantile), and a quantile on unrelated questions makes the threshold.

This room knows questions, scores and tensors passed in. It loads no model, attaches no adapter and
asks nothing: hidden states come from a function, outcomes from the caller.

Papers: Platt 1999; Angelopoulos and Bates, arXiv 2107.07511 (conformal quantiles); Arrow, arXiv
2405.11157; SpectR, arXiv 2504.03454.

Shape letters: N hit, F feature, P part, M memory, T token, H hidden, K direction, R rank, I input.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit
from scipy.stats import beta

from lorewright.errors import ConfigError, DataError
from lorewright.recall.statistics import Proportion, wilson
from lorewright.routing.index import Chosen, Hit, Index

Router = Callable[[str], list[Hit]]
"""Question to memories, best first; [] = abstain."""

N_CANDIDATES = 3
WITHIN = 0.1
"""How far below the best probability another memory may be and still be returned."""


# --- candidates --------------------------------------------------------------------------------


def by_keys(index: Index, *, k: int = N_CANDIDATES, kinds: Chosen = None) -> Router:
    """Return the router that ranks memories by their keys; [] where no key is found."""
    return partial(index.retrieve_memories, k=k, kinds=kinds)


# --- a probability, a threshold -----------------------------------------------------------------


@dataclass(frozen=True)
class Asked:
    """A held-out question and the memories that hold its answer."""

    question: str
    memories: tuple[str, ...] = ()
    """() = no memory does: the question is about other things."""


def features(hits: Sequence[Hit], parts: Sequence[str]) -> NDArray[np.float64]:
    """Return one row per hit: score and margin in each part, share matched, agreement.

    The margin is to the best other candidate, to 0 if there is none. Agreement is 1 / (1 + largest
    minus smallest rank over the parts), 0 if a part did not find the hit. Shape (N, 2 P + 2).
    """

    def row(hit: Hit) -> list[float]:
        return [hit.parts[name].score if name in hit.parts else 0.0 for name in parts]

    score_NP = np.array([row(hit) for hit in hits]).reshape(len(hits), len(parts))
    high_NP = np.sort(score_NP, axis=0)[::-1]
    first_P, second_P = high_NP[0], high_NP[1] if len(hits) > 1 else np.zeros(len(parts))
    margin_NP = score_NP - np.where(score_NP == first_P, second_P, first_P)
    ranks = [[hit.parts[name].rank for name in parts if name in hit.parts] for hit in hits]
    agreed = [1 / (1 + max(r) - min(r)) if r and len(r) == len(parts) else 0.0 for r in ranks]
    return np.column_stack([score_NP, margin_NP, [hit.matched for hit in hits], agreed])


@dataclass(frozen=True)
class Calibration:
    """Scores of a candidate to the probability that it holds the answer: p = σ(w · z + b)."""

    parts: tuple[str, ...]
    """Names of the parts that `features` reads."""
    mean: tuple[float, ...]
    """Of each feature; z = (feature - mean) / spread."""
    spread: tuple[float, ...]
    weights: tuple[float, ...]
    """Per feature in z."""
    bias: float
    n_right: int
    """Candidates that held the answer, of those that it was fitted on."""
    n_wrong: int

    def __call__(self, hits: Sequence[Hit]) -> list[Hit]:
        """Return the hits with their probability, which is also their score, best first."""
        if not hits:
            return []
        z_NF = (features(hits, self.parts) - np.array(self.mean)) / np.array(self.spread)
        p_N = expit(z_NF @ np.array(self.weights) + self.bias)
        pairs = sorted(zip(hits, p_N.tolist(), strict=True), key=lambda x: (-x[1], x[0].rank))
        ranked = enumerate(pairs, start=1)
        return [replace(hit, score=p, probability=p, rank=n) for n, (hit, p) in ranked]


def fit_calibration(router: Router, asked: Sequence[Asked], *, l2: float = 1.0) -> Calibration:
    """Fit the logistic regression on the candidates of held-out questions.

    Minimises cross-entropy + l2/2 · |w|² on standardised features, the bias free; a feature that
    never varies gets weight 0. Targets are Platt's, (n+1)/(n+2) and 1/(m+2), not 1 and 0, so that
    no candidate is certain. Deterministic. Raises DataError unless some candidate is right and some
    is wrong, ConfigError for an l2 that is not positive.
    """
    if not 0 < l2 < math.inf:
        raise ConfigError(f"l2 is {l2}; give a positive number.")
    lists = [(item, hits) for item in asked if (hits := router(item.question))]
    parts = tuple(sorted({name for _, hits in lists for hit in hits for name in hit.parts}))
    right_N = np.array([hit.memory in item.memories for item, hits in lists for hit in hits], bool)
    n_right, n_wrong = int(right_N.sum()), int((~right_N).sum())
    if not n_right or not n_wrong:
        raise DataError(
            f"{len(asked)} held-out questions gave {n_right} right and {n_wrong} wrong candidates; "
            "give questions of both kinds: some that a memory answers, some that none does."
        )
    feature_NF = np.concatenate([features(hits, parts) for _, hits in lists])
    mean_F, spread_F = feature_NF.mean(axis=0), feature_NF.std(axis=0)
    constant_F = spread_F < 1e-9
    spread_F = np.where(constant_F, 1.0, spread_F)
    z_NF = np.where(constant_F, 0.0, (feature_NF - mean_F) / spread_F)
    target_N = np.where(right_N, (n_right + 1) / (n_right + 2), 1 / (n_wrong + 2))

    def loss(x: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        logit_N = z_NF @ x[:-1] + x[-1]
        nats = float(np.sum(np.logaddexp(0, logit_N) - target_N * logit_N))
        off_N = expit(logit_N) - target_N
        slope = np.append(z_NF.T @ off_N + l2 * x[:-1], off_N.sum())
        return nats + l2 / 2 * float(x[:-1] @ x[:-1]), slope

    start = np.zeros(z_NF.shape[1] + 1)
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"ftol": 1e-14}).x
    weight_F = np.where(constant_F, 0.0, found[:-1])
    mean, spread, weights = (tuple(x_F.tolist()) for x_F in (mean_F, spread_F, weight_F))
    return Calibration(parts, mean, spread, weights, float(found[-1]), n_right, n_wrong)


@dataclass(frozen=True)
class Threshold:
    """The probability a memory must exceed, and how often an unrelated question still does."""

    value: float
    rate: float
    """Expected share of unrelated questions above it; at most what was wanted."""
    low: float
    """The share itself, for these n questions, is between low and high with the confidence."""
    high: float
    n: int
    """Unrelated questions it was chosen on."""


def choose_threshold(
    best: Sequence[float], *, rate: float = 0.05, confidence: float = 0.95
) -> Threshold:
    """Choose the threshold from the best probability of each of n unrelated questions.

    The k-th smallest of them with k = ⌈(n+1)(1-rate)⌉: a further question of the same kind exceeds
    it with probability at most `rate` (conformal). Given these n, the share above it is
    Beta(n+1-k, k), less where probabilities tie; the interval is its central one. Raises DataError
    for fewer than ⌈1/rate⌉ - 1 questions, ConfigError for shares outside (0, 1).
    """
    if not 0 < rate < 1 or not 0 < confidence < 1:
        raise ConfigError(f"rate is {rate}, confidence {confidence}; give shares inside (0, 1).")
    n = len(best)
    n_above = min(n, math.floor((n + 1) * rate + 1e-9))  # of the n + 1 with the further question
    if n_above < 1:
        raise DataError(
            f"a false-activation rate of {rate} cannot be promised from {n} unrelated questions; "
            f"give at least {math.ceil(1 / rate - 1e-9) - 1}, better ten times as many."
        )
    k, tail = n + 1 - n_above, (1 - confidence) / 2
    low, high = beta.ppf([tail, 1 - tail], n_above, k)
    return Threshold(sorted(best)[k - 1], n_above / (n + 1), float(low), float(high), n)


@dataclass(frozen=True)
class Gate:
    """What makes a ranking router one that abstains."""

    calibration: Calibration
    threshold: Threshold

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Gate:
        """Return the gate whose fields, as JSON holds them, these are; else raise DataError."""
        try:
            fields = dict(data["calibration"])
            plain: Any = {k: tuple(x) if isinstance(x, list) else x for k, x in fields.items()}
            return cls(Calibration(**plain), Threshold(**data["threshold"]))
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"a gate cannot be read ({error!r}); fit it again.") from error


def fit_gate(
    router: Router, asked: Sequence[Asked], unrelated: Sequence[str], *, rate: float = 0.05
) -> Gate:
    """Fit the probability and choose the threshold, on questions that no memory was trained on.

    Every other unrelated question goes to the fit, the rest to the threshold: a quantile over
    questions that the fit has seen would promise too much. Raises as the two functions do.
    """
    told = [*asked, *(Asked(question) for question in unrelated[::2])]
    calibration = fit_calibration(router, told)
    tops = [calibration(router(question))[:1] for question in unrelated[1::2]]
    best = [hits[0].score if hits else 0.0 for hits in tops]
    return Gate(calibration, choose_threshold(best, rate=rate))


def gated(
    router: Router, gate: Gate, *, within: float = WITHIN, most: int = N_CANDIDATES
) -> Router:
    """Return the router that abstains, and returns several memories where they are as probable.

    [] unless the best probability exceeds the threshold; else the best, and at most `most` in all
    of those that exceed it too and lie at most `within` below the best. Raises ConfigError.
    """
    if not 0 <= within <= 1 or most < 1:
        raise ConfigError(f"within is {within}, most {most}; give a share and at least 1.")

    def route(question: str) -> list[Hit]:
        hits = gate.calibration(router(question))
        floor = hits[0].score - within if hits else 0.0
        kept = [hit for hit in hits if hit.score > gate.threshold.value and hit.score >= floor]
        return kept[:most]

    return route


def activation(router: Router, questions: Sequence[str]) -> Proportion:
    """Return the share of questions that the router does not abstain from.

    On unrelated questions this is the false-activation rate, on answerable ones the coverage.
    """
    return wilson(sum(bool(router(question)) for question in questions), len(questions))
