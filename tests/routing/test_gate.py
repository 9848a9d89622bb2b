"""Claims about the gate: calibrated probabilities, a threshold with a rate, abstention."""

import dataclasses
import json
import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from lorewright.errors import ConfigError, DataError
from lorewright.routing.gate import (
    Asked,
    Gate,
    activation,
    by_keys,
    choose_threshold,
    features,
    fit_calibration,
    fit_gate,
    gated,
)
from lorewright.routing.index import Hit, Index, Key, Part

RELATIONS = ("door code", "desk plant", "home town", "night animal", "opening time")


def world(n: int, seed: int) -> list[tuple[str, str]]:
    """Return n invented names, each with a relation."""
    rng = random.Random(seed)
    letters = "abdegiklmnorstuz"
    return [("".join(rng.choices(letters, k=6)).title(), rng.choice(RELATIONS)) for _ in range(n)]


KNOWN, STRANGE = world(60, 1), world(240, 2)
INDEX = Index.build(
    Key(f"m{n % 12:02}", f"The {relation} of {name} is {n}.")
    for n, (name, relation) in enumerate(KNOWN)
)
ASKED = [
    Asked(f"For {name}, which {relation}?", (f"m{n % 12:02}",))
    for n, (name, relation) in enumerate(KNOWN)
]
UNRELATED = [f"For {name}, which {relation}?" for name, relation in STRANGE]
KEYS_ROUTER = by_keys(INDEX)
GATE = fit_gate(KEYS_ROUTER, ASKED[::2], UNRELATED[:160])


def hit(memory: str, rank: int, matched: float = 0.0, **parts: tuple[float, int]) -> Hit:
    """Return a hit with these scores and ranks by part."""
    return Hit(memory, "", "question", 0.0, rank, {k: Part(*v) for k, v in parts.items()}, matched)


# --- features and probability


def test_features_are_scores_margins_match_and_agreement() -> None:
    hits = [
        hit("a", 1, 0.9, bm25=(0.8, 1), dense=(0.5, 3)),
        hit("b", 2, 0.4, bm25=(0.3, 2), dense=(0.7, 1)),
        hit("c", 3, 0.0, dense=(0.6, 2)),
    ]
    expected = [
        [0.8, 0.5, 0.5, -0.2, 0.9, 1 / 3],
        [0.3, 0.7, -0.5, 0.1, 0.4, 1 / 2],
        [0.0, 0.6, -0.8, -0.1, 0.0, 0.0],
    ]
    assert features(hits, ("bm25", "dense")) == pytest.approx(np.array(expected))


def test_a_lone_candidate_leads_by_its_score_and_equals_by_nothing() -> None:
    assert features([hit("a", 1, bm25=(0.8, 1))], ("bm25",))[0].tolist() == [0.8, 0.8, 0.0, 1.0]
    twins = features([hit("a", 1, bm25=(0.8, 1)), hit("b", 2, bm25=(0.8, 1))], ("bm25",))
    assert twins[:, 1].tolist() == [0.0, 0.0]


def test_fit_is_at_the_minimum_and_deterministic() -> None:
    found = fit_calibration(KEYS_ROUTER, [*ASKED, *map(Asked, UNRELATED[:60])])
    assert found == fit_calibration(KEYS_ROUTER, [*ASKED, *map(Asked, UNRELATED[:60])])
    # at the minimum over the bias, the mean probability is the mean target
    probabilities = [
        hit.probability
        for question in [*(item.question for item in ASKED), *UNRELATED[:60]]
        for hit in found(KEYS_ROUTER(question))
    ]
    right, wrong = found.n_right, found.n_wrong
    targets = right * (right + 1) / (right + 2) + wrong / (wrong + 2)
    assert sum(p for p in probabilities if p is not None) == pytest.approx(targets, rel=1e-3)


def test_probability_recovers_a_known_logistic_curve() -> None:
    rng = random.Random(0)
    scores = {f"q{n}": rng.uniform(-3, 3) for n in range(4000)}
    asked = [
        Asked(q, ("m",) if rng.random() < 1 / (1 + math.exp(1 - 2 * x)) else ())
        for q, x in scores.items()
    ]

    def router(question: str) -> list[Hit]:
        return [hit("m", 1, x=(scores[question], 1))]

    found = fit_calibration(router, asked)
    for x in (-1.0, 0.0, 1.0, 2.0):
        (calibrated,) = found([hit("m", 1, x=(x, 1))])
        assert calibrated.probability == pytest.approx(1 / (1 + math.exp(1 - 2 * x)), abs=0.04)


def test_separable_questions_give_no_certainty() -> None:
    found = fit_calibration(KEYS_ROUTER, [*ASKED, *map(Asked, UNRELATED[:60])])
    every = [h.probability for item in ASKED for h in found(KEYS_ROUTER(item.question))]
    assert all(p is not None and 0 < p < 1 for p in every)


def test_questions_of_one_kind_only_are_refused() -> None:
    with pytest.raises(DataError, match="0 right"):
        fit_calibration(KEYS_ROUTER, [Asked(question) for question in UNRELATED])
    with pytest.raises(DataError, match="0 wrong"):
        fit_calibration(by_keys(INDEX, k=1), [ASKED[0]])
    with pytest.raises(ConfigError, match="l2 is 0"):
        fit_calibration(KEYS_ROUTER, ASKED, l2=0)


# --- threshold and abstention


def test_threshold_is_the_conformal_quantile() -> None:
    found = choose_threshold([n / 100 for n in range(99)], rate=0.05)
    assert found.value == 0.94  # the 95th of 99: four lie above, the next is fifth of a hundred
    assert found.rate == pytest.approx(0.05)
    assert found.low < 0.05 < found.high


@settings(max_examples=30)
@given(st.integers(1, 300), st.floats(0.01, 0.6))
def test_threshold_keeps_its_rate_or_refuses(n: int, rate: float) -> None:
    best = [k / n for k in range(n)]
    if n < math.ceil(1 / rate - 1e-9) - 1:
        with pytest.raises(DataError, match="give at least"):
            choose_threshold(best, rate=rate)
        return
    found = choose_threshold(best, rate=rate)
    above = sum(x > found.value for x in best)
    assert (above + 1) / (n + 1) == pytest.approx(found.rate)
    assert found.rate <= rate + 1e-9 and 0 <= found.low <= found.rate <= found.high <= 1


def test_threshold_interval_is_the_binomial_tail() -> None:
    found = choose_threshold([n / 199 for n in range(199)], rate=0.05, confidence=0.9)
    # share <= x iff at least n_above of n uniform values lie below x: 10 of 199
    assert binom.sf(9, 199, found.low) == pytest.approx(0.05)
    assert binom.sf(9, 199, found.high) == pytest.approx(0.95)


@pytest.mark.parametrize("rate", [0.0, 1.0, -1.0])
def test_impossible_rates_are_refused(rate: float) -> None:
    with pytest.raises(ConfigError, match="inside"):
        choose_threshold([0.5], rate=rate)


def test_gate_finds_held_out_questions_and_abstains_from_strange_ones() -> None:
    router = gated(KEYS_ROUTER, GATE)
    held_out = ASKED[1::2]
    right = sum(
        bool(hits) and hits[0].memory in item.memories
        for item in held_out
        for hits in [router(item.question)]
    )
    assert right / len(held_out) >= 0.95
    false = activation(router, UNRELATED[160:])
    assert false.low is not None and false.low <= GATE.threshold.rate
    assert activation(router, [item.question for item in held_out]).n == len(held_out)


def test_gate_abstains_where_no_word_is_known() -> None:
    assert gated(KEYS_ROUTER, GATE)("zzz") == []


def test_equally_probable_memories_are_returned_together_and_no_more_than_asked() -> None:
    both = INDEX.with_keys([Key(name, "Mara keeps the seal") for name in ("x", "y")])
    wide = gated(by_keys(both), GATE)("Mara keeps the seal")
    assert [hit.memory for hit in wide] == ["x", "y"]
    assert wide[0].probability == wide[0].score == wide[1].score
    assert [h.memory for h in gated(by_keys(both), GATE, most=1)("Mara keeps the seal")] == ["x"]
    with pytest.raises(ConfigError, match="most 0"):
        gated(KEYS_ROUTER, GATE, most=0)


def test_gate_comes_back_from_json() -> None:
    data = json.loads(json.dumps(dataclasses.asdict(GATE)))
    assert Gate.from_json(data) == GATE
    with pytest.raises(DataError, match="fit it again"):
        Gate.from_json({"threshold": {}})
