"""The gate: which of the retrieved memories may answer, with what probability, and when none does.

    hits -> features -> p = σ(w · z + b) -> none at p ≤ threshold, else the best and those beside it

A small logistic regression makes the scores of retrieval a probability (Platt's; isotonic
regression wants more held-out questions than there are, takes one score, and its ties spoil a
quantile). The threshold is a quantile over unrelated questions that the regression has not seen.
The gate knows questions and scores; it loads no model and no adapter.

Papers: Platt 1999; Angelopoulos and Bates, arXiv 2107.07511 (conformal quantiles).

Shape letters: N hit, F feature, P part.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorewright.errors import ConfigError, DataError
from lorewright.routing.config import AskConfig
from lorewright.routing.index import Hit, Retriever

N_CANDIDATES = AskConfig.top
RATE = AskConfig.false_activation
"""Share of unrelated questions that may pass."""
BY_MEANING = ("dense", "passages")
"""Parts that compare meanings; measured as better alone than beside any part of words."""
WITHIN = 0.1
"""How far below the best probability another memory may be and still pass."""


# --- scores to a probability -------------------------------------------------------------------


@dataclass(frozen=True)
class HeldOut:
    """A question on which the gate is fitted, and the memories that hold its answer."""

    question: str
    memories: tuple[str, ...] = ()
    """() = none does: the question is unrelated."""


Labelled = tuple[Sequence[Hit], Sequence[str]]
"""What was retrieved for a question, and the memories that hold its answer; () = none does."""


def features(hits: Sequence[Hit], parts: Sequence[str]) -> NDArray[np.float64]:
    """Return one row per hit: score and margin in each part, share matched, agreement.

    The margin is to the best other hit, to 0 if there is none. Agreement is 1 / (1 + largest
    minus smallest rank over the parts), 0 if a part lacks the hit. Shape (N, 2 P + 2). Parts that
    compare meanings alone give no share and no agreement, which are of words: (N, 2 P).
    """
    score_NP = np.array(
        [[hit.parts[name].score if name in hit.parts else 0.0 for name in parts] for hit in hits]
    ).reshape(len(hits), len(parts))
    high_NP = np.sort(score_NP, axis=0)[::-1]
    first_P, second_P = high_NP[0], high_NP[1] if len(hits) > 1 else np.zeros(len(parts))
    margin_NP = score_NP - np.where(score_NP == first_P, second_P, first_P)
    ranks = [[hit.parts[name].rank for name in parts if name in hit.parts] for hit in hits]
    agreement = [1 / (1 + max(r) - min(r)) if r and len(r) == len(parts) else 0.0 for r in ranks]
    if set(parts) <= {*BY_MEANING}:
        return np.column_stack([score_NP, margin_NP])
    return np.column_stack([score_NP, margin_NP, [hit.matched for hit in hits], agreement])


@dataclass(frozen=True)
class Calibration:
    """Scores of a hit to the probability that its memory holds the answer: p = σ(w · z + b)."""

    parts: tuple[str, ...]
    """Names of the parts that `features` reads."""
    mean: tuple[float, ...]
    """Of each feature; z = (feature - mean) / spread."""
    spread: tuple[float, ...]
    weights: tuple[float, ...]
    """Per feature in z."""
    bias: float
    n_right: int
    """Hits whose memory held the answer, of those that it was fitted on."""
    n_wrong: int

    def __call__(self, hits: Sequence[Hit]) -> list[Hit]:
        """Return the hits with their probability, which is also their score, best first."""
        if not hits:
            return []
        from scipy.special import expit

        z_NF = (features(hits, self.parts) - np.array(self.mean)) / np.array(self.spread)
        p_N = expit(z_NF @ np.array(self.weights) + self.bias)
        pairs = sorted(zip(hits, p_N.tolist(), strict=True), key=lambda x: (-x[1], x[0].rank))
        ranked = enumerate(pairs, start=1)
        return [replace(hit, score=p, probability=p, rank=n) for n, (hit, p) in ranked]


def labelled(retriever: Retriever, questions: Sequence[HeldOut]) -> list[Labelled]:
    """Return what is retrieved for held-out questions."""
    return [(retriever(item.question), item.memories) for item in questions]


def fit_calibration(
    cases: Sequence[Labelled], *, parts: Sequence[str] = (), l2: float = 1.0
) -> Calibration:
    """Fit the logistic regression on hits of which it is known whether they are right.

    `parts` are those that it reads; () = all that some hit has.
    Minimises cross-entropy + l2/2 · |w|² on standardised features, the bias free; a feature that
    never varies gets weight 0. Targets are Platt's, (n+1)/(n+2) and 1/(m+2), not 1 and 0, so that
    no hit is certain. Deterministic. Raises DataError unless some hit is right and some is wrong,
    ConfigError for an l2 that is not positive.
    """
    from scipy.optimize import minimize
    from scipy.special import expit

    if not 0 < l2 < math.inf:
        raise ConfigError(f"l2 is {l2}; give a positive number.")
    lists = [(memories, hits) for hits, memories in cases if hits]
    every = sorted({name for _, hits in lists for hit in hits for name in hit.parts})
    parts = tuple(parts or every)
    right_N = np.array([hit.memory in right for right, hits in lists for hit in hits], bool)
    n_right, n_wrong = int(right_N.sum()), int((~right_N).sum())
    if not n_right or not n_wrong:
        raise DataError(
            f"{len(cases)} held-out questions retrieved {n_right} right and {n_wrong} wrong "
            "memories; give questions of both kinds: some that a memory answers, some that none "
            "does."
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
    fitted = minimize(loss, start, jac=True, method="L-BFGS-B", options={"ftol": 1e-14}).x
    weight_F = np.where(constant_F, 0.0, fitted[:-1])
    mean, spread, weights = (tuple(x_F.tolist()) for x_F in (mean_F, spread_F, weight_F))
    return Calibration(parts, mean, spread, weights, float(fitted[-1]), n_right, n_wrong)


# --- a threshold ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Threshold:
    """The probability a memory must exceed, and how often an unrelated question still does."""

    value: float
    rate: float
    """Expected share of unrelated questions above it; at most the one requested."""
    low: float
    """The share itself, for these n questions, is between low and high with the confidence."""
    high: float
    n: int
    """Unrelated questions it was chosen on."""


@lru_cache(maxsize=64)
def choose_threshold(
    best: tuple[float, ...], *, rate: float = RATE, confidence: float = 0.95
) -> Threshold:
    """Choose the threshold from the best probability of each of n unrelated questions.

    The k-th smallest of them with k = ⌈(n+1)(1-rate)⌉: a further question of the same kind exceeds
    it with probability at most `rate` (conformal). Given these n, the share above it is
    Beta(n+1-k, k), less where probabilities tie; the interval is its central one. Raises DataError
    for fewer than ⌈1/rate⌉ - 1 questions, ConfigError for shares outside (0, 1).
    """
    from scipy.special import betaincinv

    if not 0 < rate < 1 or not 0 < confidence < 1:
        raise ConfigError(
            f"the false-activation rate is {rate}, the confidence {confidence}; give shares inside "
            "(0, 1)."
        )
    n = len(best)
    n_above = min(n, math.floor((n + 1) * rate + 1e-9))  # of the n + 1 with the further question
    if n_above < 1:
        raise DataError(
            f"a false-activation rate of {rate} cannot be promised from {n} unrelated questions; "
            f"give at least {math.ceil(1 / rate - 1e-9) - 1}, better ten times as many."
        )
    k, tail = n + 1 - n_above, (1 - confidence) / 2
    low, high = betaincinv(n_above, k, [tail, 1 - tail])
    return Threshold(sorted(best)[k - 1], n_above / (n + 1), float(low), float(high), n)


# --- the decision --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Decision:
    """Which memories may answer one question."""

    hits: tuple[Hit, ...]
    """What was retrieved, best first, with probabilities where a gate was fitted."""
    threshold: Threshold | None
    """None = there was no gate; then the nearest passes."""
    chosen: tuple[Hit, ...]
    """Those that pass; () = abstain."""
    unnamed: tuple[str, ...] = ()
    """What the question names and the memories left out for it do not."""

    @property
    def why_none(self) -> str:
        """Why nothing passed, in a sentence."""
        if not self.hits:
            return "no memory here has a word of the question"
        best = self.hits[0]
        if self.unnamed:
            return f"no memory here names {', '.join(self.unnamed)}; the nearest is {best.memory}"
        floor = f", below {self.threshold.value:.2f}" if self.threshold else ""
        sure = "" if best.probability is None else f" (probability {best.probability:.2f}{floor})"
        return f"no memory here is for it; the nearest is {best.memory}{sure}"


@dataclass(frozen=True)
class Gate:
    """A calibrated probability, and what unrelated questions reach of it."""

    calibration: Calibration
    unrelated: tuple[float, ...]
    """Best probability for each unrelated question outside the fit, ascending."""
    near: tuple[float, ...] = ()
    """The same for questions of other memories, which come nearer; () = not measured."""

    def to_json(self) -> dict[str, Any]:
        """Plain data, as `from_json` reads it."""
        return {
            "calibration": asdict(self.calibration),
            "strangers": list(self.unrelated),
            "near": list(self.near),
        }

    def threshold(self, rate: float) -> Threshold:
        """Return the threshold that neither kind of question exceeds more often than `rate`.

        Too few near ones for that rate have no say. Raises as `choose_threshold`.
        """
        kinds = [self.unrelated]
        if math.floor((len(self.near) + 1) * rate + 1e-9) >= 1:
            kinds.append(self.near)
        limits = [choose_threshold(best, rate=rate) for best in kinds]
        return max(limits, key=lambda limit: limit.value)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Gate:
        """Return the stored gate; raises DataError for data of another shape."""
        try:
            fields = dict(data["calibration"])
            plain: Any = {k: tuple(x) if isinstance(x, list) else x for k, x in fields.items()}
            numbers = {k: tuple(map(float, fields[k])) for k in ("mean", "spread", "weights")}
            if len({*map(len, numbers.values())}) > 1:
                raise ValueError("mean, spread and weights differ in number")
            plain |= numbers | {"bias": float(fields["bias"])}
            near = tuple(map(float, data.get("near", ())))
            return cls(Calibration(**plain), tuple(map(float, data["strangers"])), near)
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"a stored gate is damaged ({error!r}); fit it again.") from error


def fit_gate(retriever: Retriever, questions: Sequence[HeldOut], unrelated: Sequence[str]) -> Gate:
    """Fit the probability and measure unrelated questions, none of which a memory was trained on.

    Every other unrelated question goes to the fit, the rest to the threshold: a quantile over
    questions that the fit has seen would promise too much. Raises DataError as `fit_calibration`.
    """
    cases = labelled(retriever, questions)
    return fit_gate_on(cases, [retriever(question) for question in unrelated])


def fit_gate_on(
    cases: Sequence[Labelled],
    unrelated: Sequence[Sequence[Hit]],
    near: Sequence[Sequence[Hit]] = (),
    *,
    parts: Sequence[str] = (),
) -> Gate:
    """Fit the probability on what was retrieved, and measure unrelated and near questions.

    Of the unrelated ones every other goes to the fit, of the near ones, which are fewer, one in
    four; the rest of both to the threshold. Raises as `fit_gate`.
    """
    nobody = [(hits, ()) for hits in (*unrelated[::2], *near[::4])]
    calibration = fit_calibration([*cases, *nobody], parts=parts)

    def best(lists: Sequence[Sequence[Hit]]) -> tuple[float, ...]:
        ranked = [calibration(hits)[:1] for hits in lists]
        return tuple(sorted(hits[0].score if hits else 0.0 for hits in ranked))

    rest = [hits for n, hits in enumerate(near) if n % 4]
    return Gate(calibration, best(unrelated[1::2]), best(rest))


def decide(
    hits: Sequence[Hit],
    gate: Gate | None,
    *,
    rate: float = RATE,
    within: float = WITHIN,
    most: int = N_CANDIDATES,
) -> Decision:
    """Say which hits may answer: none, the best, or several that are as probable.

    A hit passes when its probability exceeds that of all but `rate` of the unrelated questions and
    lies at most `within` below the best; at most `most` pass. Without a gate the nearest passes.
    Raises ConfigError for shares out of range or `most` below 1, DataError for a rate below what
    the unrelated questions can show.
    """
    if not 0 < rate < 1 or not 0 <= within <= 1 or most < 1:
        raise ConfigError(
            f"the false-activation rate is {rate}, within {within}, most {most}; give a share "
            "inside (0, 1), one in [0, 1], and at least 1."
        )
    if gate is None:
        return Decision(tuple(hits), None, tuple(hits[:1]))
    threshold = gate.threshold(rate)
    ranked = gate.calibration(hits)
    floor = ranked[0].score - within if ranked else 0.0
    passing = [hit for hit in ranked if hit.score > threshold.value and hit.score >= floor]
    return Decision(tuple(ranked), threshold, tuple(passing[:most]))
