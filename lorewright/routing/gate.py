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
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit
from scipy.stats import beta
from torch import Tensor

from lorewright.adapters.adapter import HALVES
from lorewright.errors import AdapterError, ConfigError, DataError, NoEffect
from lorewright.recall.statistics import Estimate, Proportion, mean_interval, wilson
from lorewright.routing.index import Chosen, Hit, Index, Part

Router = Callable[[str], list[Hit]]
"""Question to memories, best first; [] = abstain."""
Tensors = Mapping[str, Tensor]
"""Of an adapter: "<module>.lora_A.weight" (R, I), "<module>.lora_B.weight" (O, R)."""
Projection = Callable[[Tensors], dict[str, Tensor]]
"""An adapter's tensors to one map_RI per module; how much of an input it keeps is the score."""

N_CANDIDATES = 3
WITHIN = 0.1
"""How far below the best probability another memory may be and still be returned."""
ROUNDING = 1e-6  # of the largest singular value; below it float32 factors hold nothing


# --- candidates --------------------------------------------------------------------------------


def by_keys(index: Index, *, k: int = N_CANDIDATES, kinds: Chosen = None) -> Router:
    """Return the router that ranks memories by their keys; [] where no key is found."""
    return partial(index.retrieve_memories, k=k, kinds=kinds)


def by_states(
    states: Mapping[str, Tensor], state_of: Callable[[str], Tensor], *, k: int = N_CANDIDATES
) -> Router:
    """Return the router that ranks memories by `centroid_scores`; it never abstains.

    `states` as in `state_centroids`; `state_of` gives the state_H of a question, pooled alike.
    """
    centroids = state_centroids(states)
    return lambda question: _ranked(centroid_scores(centroids, state_of(question)), "states", k)


def by_projection(
    adapters: Mapping[str, Tensors],
    hidden_of: Callable[[str], Mapping[str, Tensor]],
    *,
    project: str = "arrow",
    k: int = N_CANDIDATES,
) -> Router:
    """Return the router that ranks adapters by `projection_scores`; it never abstains.

    `hidden_of` gives, by module, the hidden_TI that enters it in the base. Raises ConfigError for a
    name that PROJECTIONS does not have.
    """
    if project not in PROJECTIONS:
        raise ConfigError(f"asked for {project!r}; use one of {', '.join(PROJECTIONS)}.")
    maps = {memory: PROJECTIONS[project](tensors) for memory, tensors in adapters.items()}
    return lambda question: _ranked(projection_scores(maps, hidden_of(question)), project, k)


def oracle(gold: Mapping[str, Sequence[str]]) -> Router:
    """Return the router that knows the answer, for measurement only; () in `gold` abstains.

    It raises DataError for a question that it was not told about.
    """

    def route(question: str) -> list[Hit]:
        if question not in gold:
            raise DataError(f"the oracle was not told who answers {question!r}; add it to gold.")
        places = enumerate(gold[question], start=1)
        return [Hit(m, "", "oracle", 1.0, n, {}, probability=1.0) for n, m in places]

    return route


def _ranked(scores: Mapping[str, float], name: str, k: int) -> list[Hit]:
    order = sorted(scores, key=lambda memory: (-scores[memory], memory))
    values = [scores[memory] for memory in order]
    return [
        Hit(memory, "", name, value, n, {name: Part(value, values.index(value) + 1)})
        for n, (memory, value) in enumerate(zip(order, values, strict=True), start=1)
    ][:k]


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


# --- how far from the oracle -------------------------------------------------------------------


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


# --- tensors to scores -------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Centroids:
    """Where each memory's own texts lie among the base's hidden states, centred and whitened."""

    memories: tuple[str, ...]
    mean_H: Tensor
    whiten_HK: Tensor
    centroid_MK: Tensor


def state_centroids(states: Mapping[str, Tensor], *, shrink: float = 0.1) -> Centroids:
    """Average the base's states of each memory's own samples, after centring and whitening.

    `states` maps a memory to state_TH, one row per sample, pooled at the last token. Raw states of
    language models are anisotropic: the mean over all samples is subtracted, and direction k of
    variance v_k divided by √(v_k + shrink · mean v). Directions that no sample has are left out.
    Raises DataError for states that do not differ or do not fit one another.
    """
    shapes = {tuple(state_TH.shape[1:]) for state_TH in states.values()}
    if len(shapes) != 1 or any(s.ndim != 2 or not len(s) for s in states.values()):
        widths = f"states of {len(states)} memories have widths {sorted(shapes)}"
        raise DataError(f"{widths}; give each a matrix of at least one row, all of one width.")
    every_TH = torch.cat([state_TH.double() for state_TH in states.values()])
    mean_H = every_TH.mean(dim=0)
    centred_TH = (every_TH - mean_H) / math.sqrt(len(every_TH))
    _, spread_K, V_KH = torch.linalg.svd(centred_TH, full_matrices=False)
    kept = spread_K > ROUNDING * max(float(spread_K[0]), float(every_TH.abs().max()))
    if not kept.any():
        raise DataError(f"the {len(every_TH)} states are all alike; give samples that differ.")
    variance_K = spread_K[kept] ** 2
    whiten_HK = V_KH[kept].T / torch.sqrt(variance_K + shrink * variance_K.mean())
    centroids = [(s.double() - mean_H).mean(dim=0) @ whiten_HK for s in states.values()]
    return Centroids(tuple(states), mean_H, whiten_HK, torch.stack(centroids))


def centroid_scores(centroids: Centroids, state_H: Tensor) -> dict[str, float]:
    """Return the cosine of a whitened state_H with each memory's centroid; 0 at the mean."""
    white_K = (state_H.double() - centroids.mean_H) @ centroids.whiten_HK
    cosine_M = torch.nn.functional.cosine_similarity(centroids.centroid_MK, white_K[None], dim=1)
    return dict(zip(centroids.memories, cosine_M.tolist(), strict=True))


def arrow(tensors: Tensors) -> dict[str, Tensor]:
    """Return per module v₁ᵀ (1, I), the top right singular vector of ΔW: Arrow's prototype."""
    return {module: V_RI[:1] for module, (_, V_RI) in _spectra(tensors).items()}


def spectr(tensors: Tensors) -> dict[str, Tensor]:
    """Return per module Σ Vᵀ / |ΔW|_F (R, I): SpectR with singular values, |map x| = |ΔW x|/|ΔW|.

    Divided by the norm because otherwise adapters with large weight changes win every question.
    """
    spectra = _spectra(tensors).items()
    return {name: (s_R / s_R.norm())[:, None] * V_RI for name, (s_R, V_RI) in spectra}


def spectr_rows(tensors: Tensors) -> dict[str, Tensor]:
    """Return per module Vᵀ (R, I): SpectR without singular values, the part in the row space."""
    return {module: V_RI for module, (_, V_RI) in _spectra(tensors).items()}


def _spectra(tensors: Tensors) -> dict[str, tuple[Tensor, Tensor]]:
    """Singular values and right singular vectors of B A, (R,) and (R, I), without forming B A.

    QR(B) = Q_B R_B, QR(Aᵀ) = Q_A R_A, SVD(R_B R_Aᵀ) = P Σ Qᵀ, so Vᵀ = Qᵀ Q_Aᵀ. No score depends on
    the scale of the adapter, so it is left out.
    """
    found = {}
    for module in dict.fromkeys(key.removesuffix(HALVES[0]) for key in tensors if HALVES[0] in key):
        if module + HALVES[1] not in tensors:
            raise AdapterError(f"{module} has A and no B; give both halves of every module.")
        A_RI, B_OR = (tensors[module + half].double() for half in HALVES)
        Q_A, R_A = torch.linalg.qr(A_RI.T)
        _, s_R, Q_RR = torch.linalg.svd(torch.linalg.qr(B_OR).R @ R_A.T, full_matrices=False)
        kept = s_R > ROUNDING * s_R[0]
        if not kept.any():
            raise NoEffect(f"{module} changes nothing (B A = 0); leave it out or write it again.")
        found[module] = (s_R[kept], Q_RR[kept] @ Q_A.T)
    if not found:
        raise AdapterError(f"{len(tensors)} tensors hold no {HALVES[0]}; give an adapter's.")
    return found


def projection_scores(
    maps: Mapping[str, Mapping[str, Tensor]], hidden: Mapping[str, Tensor]
) -> dict[str, float]:
    """Return per memory the mean over modules and tokens of |map_RI x_I| / |x_I|, in [0, 1].

    The papers choose per token and layer; this is one choice per question, so that the memory fits
    the whole answer. Inputs are divided by their length, lest the modules with the largest decide.
    Raises ConfigError when the hidden_TI of a module are missing or of another width.
    """
    scores = {}
    for memory, by_module in maps.items():
        kept = []
        for module, map_RI in by_module.items():
            hidden_TI = hidden.get(module)
            if hidden_TI is None or hidden_TI.ndim != 2 or hidden_TI.shape[1] != map_RI.shape[1]:
                found = "none" if hidden_TI is None else tuple(hidden_TI.shape)
                raise ConfigError(
                    f"memory {memory!r} wants the inputs of {module}, (tokens, {map_RI.shape[1]}); "
                    f"found {found}; pass those of every adapted module."
                )
            unit_TI = torch.nn.functional.normalize(hidden_TI.double(), dim=1)
            kept.append(float((unit_TI @ map_RI.T).norm(dim=1).mean()))
        scores[memory] = sum(kept) / len(kept)
    return scores


PROJECTIONS: dict[str, Projection] = {"arrow": arrow, "spectr": spectr, "spectr_rows": spectr_rows}
ROUTERS: dict[str, Callable[..., Router]] = {
    "keys": by_keys,
    "states": by_states,
    "projection": by_projection,
    "oracle": oracle,
}
"""What each router is made by; `gated` makes one that abstains of any of them."""
