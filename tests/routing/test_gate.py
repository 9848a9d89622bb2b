"""Claims about the gate: calibrated probabilities, a threshold with a rate, abstention."""

import json
import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from lorewright.errors import ConfigError, DataError
from lorewright.recall.statistics import wilson
from lorewright.routing.gate import (
    Gate,
    HeldOut,
    choose_threshold,
    decide,
    features,
    fit_calibration,
    fit_gate,
    fit_gate_on,
    labelled,
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
HELD_OUT = [
    HeldOut(f"For {name}, which {relation}?", (f"m{n % 12:02}",))
    for n, (name, relation) in enumerate(KNOWN)
]
UNRELATED = [f"For {name}, which {relation}?" for name, relation in STRANGE]
MIXED = [*HELD_OUT, *map(HeldOut, UNRELATED[:60])]


def retrieve(question: str) -> list[Hit]:
    """The three memories nearest to a question."""
    return INDEX.retrieve_memories(question, k=3)


GATE = fit_gate(retrieve, HELD_OUT[::2], UNRELATED[:160])


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
    calibration = fit_calibration(labelled(retrieve, MIXED))
    assert calibration == fit_calibration(labelled(retrieve, MIXED))
    # at the minimum over the bias, the mean probability is the mean target
    total = sum(hit.score for item in MIXED for hit in calibration(retrieve(item.question)))
    right, wrong = calibration.n_right, calibration.n_wrong
    targets = right * (right + 1) / (right + 2) + wrong / (wrong + 2)
    assert total == pytest.approx(targets, rel=1e-3)


def test_probability_recovers_a_known_logistic_curve() -> None:
    rng = random.Random(0)
    scores = {f"q{n}": rng.uniform(-3, 3) for n in range(4000)}
    questions = [
        HeldOut(q, ("m",) if rng.random() < 1 / (1 + math.exp(1 - 2 * x)) else ())
        for q, x in scores.items()
    ]
    calibration = fit_calibration(labelled(lambda q: [hit("m", 1, x=(scores[q], 1))], questions))
    for x in (-1.0, 0.0, 1.0, 2.0):
        (calibrated,) = calibration([hit("m", 1, x=(x, 1))])
        assert calibrated.probability == pytest.approx(1 / (1 + math.exp(1 - 2 * x)), abs=0.04)


def test_separable_questions_give_no_certainty() -> None:
    calibration = fit_calibration(labelled(retrieve, MIXED))
    assert all(
        h.probability is not None and 0 < h.probability < 1
        for item in HELD_OUT
        for h in calibration(retrieve(item.question))
    )


def test_questions_of_one_kind_only_are_refused() -> None:
    with pytest.raises(DataError, match="0 right"):
        fit_calibration(labelled(retrieve, [HeldOut(question) for question in UNRELATED]))
    with pytest.raises(DataError, match="0 wrong"):
        fit_calibration(labelled(lambda question: retrieve(question)[:1], [HELD_OUT[0]]))
    with pytest.raises(ConfigError, match="l2 is 0"):
        fit_calibration(labelled(retrieve, HELD_OUT), l2=0)


# --- threshold and abstention


def test_threshold_is_the_conformal_quantile() -> None:
    threshold = choose_threshold(tuple(n / 100 for n in range(99)), rate=0.05)
    assert threshold.value == 0.94  # the 95th of 99: four lie above, the next is fifth of a hundred
    assert threshold.rate == pytest.approx(0.05)
    assert threshold.low < 0.05 < threshold.high


@settings(max_examples=30)
@given(st.integers(1, 300), st.floats(0.01, 0.6))
def test_threshold_promises_its_rate_or_refuses(n: int, rate: float) -> None:
    best = tuple(k / n for k in range(n))
    if n < math.ceil(1 / rate - 1e-9) - 1:
        with pytest.raises(DataError, match="give at least"):
            choose_threshold(best, rate=rate)
        return
    threshold = choose_threshold(best, rate=rate)
    above = sum(x > threshold.value for x in best)
    assert (above + 1) / (n + 1) == pytest.approx(threshold.rate)
    assert threshold.rate <= rate + 1e-9
    assert 0 <= threshold.low <= threshold.rate <= threshold.high <= 1


def test_threshold_interval_is_the_binomial_tail() -> None:
    best = tuple(n / 199 for n in range(199))
    threshold = choose_threshold(best, rate=0.05, confidence=0.9)
    # share <= x iff at least n_above of n uniform values lie below x: 10 of 199
    assert binom.sf(9, 199, threshold.low) == pytest.approx(0.05)
    assert binom.sf(9, 199, threshold.high) == pytest.approx(0.95)


@pytest.mark.parametrize("rate", [0.0, 1.0, -1.0])
def test_impossible_rates_are_refused(rate: float) -> None:
    with pytest.raises(ConfigError, match="inside"):
        choose_threshold((0.5,), rate=rate)
    with pytest.raises(ConfigError, match="inside"):
        decide([], None, rate=rate)


def test_gate_passes_held_out_questions_and_abstains_from_strange_ones() -> None:
    right = 0
    for item in HELD_OUT[1::2]:
        chosen = decide(retrieve(item.question), GATE).chosen
        right += bool(chosen) and chosen[0].memory in item.memories
    assert right / len(HELD_OUT[1::2]) >= 0.95
    strange = UNRELATED[160:]
    activated = wilson(sum(bool(decide(retrieve(q), GATE).chosen) for q in strange), len(strange))
    assert activated.low is not None and activated.low <= 0.05


def test_nothing_passes_where_no_word_is_known() -> None:
    decision = decide(retrieve("zzz"), GATE)
    assert decision.chosen == decision.hits == ()
    assert decision.why_none == "no memory here has a word of the question"


def test_what_falls_short_says_how_near_it_came() -> None:
    decision = decide(retrieve(UNRELATED[-1]), GATE, rate=0.02)
    assert decision.threshold and not decision.chosen
    assert decision.why_none.startswith("no memory here is for it; the nearest is m")
    assert decision.why_none.endswith(f", below {decision.threshold.value:.2f})")


def test_without_a_gate_the_nearest_passes_uncalibrated() -> None:
    hits = retrieve(HELD_OUT[0].question)
    decision = decide(hits, None)
    assert decision.chosen == tuple(hits[:1]) and decision.threshold is None


def test_equally_probable_memories_pass_together_and_no_more_than_requested() -> None:
    both = INDEX.with_keys([Key(name, "Mara keeps the seal") for name in ("x", "y")])
    hits = both.retrieve_memories("Mara keeps the seal", k=3)
    wide = decide(hits, GATE).chosen
    assert [hit.memory for hit in wide] == ["x", "y"]
    assert wide[0].probability == wide[0].score == wide[1].score
    assert [hit.memory for hit in decide(hits, GATE, most=1).chosen] == ["x"]
    with pytest.raises(ConfigError, match="most 0"):
        decide(hits, GATE, most=0)


def test_gate_comes_back_from_json() -> None:
    assert Gate.from_json(json.loads(json.dumps(GATE.to_json()))) == GATE
    for damaged in ({"strangers": []}, {"calibration": {}, "strangers": []}, {"calibration": 3}):
        with pytest.raises(DataError, match="fit it again"):
            Gate.from_json(damaged)


def test_near_questions_that_come_closer_raise_the_threshold_and_few_of_them_do_not() -> None:
    cases = labelled(retrieve, HELD_OUT)
    unrelated = [retrieve(question) for question in UNRELATED]
    near = [retrieve(item.question) for item in HELD_OUT]  # as close as any can come
    without, few, many = (fit_gate_on(cases, unrelated, near[:n]) for n in (0, 8, len(near)))
    limits = [gate.threshold(0.05).value for gate in (without, few, many)]
    assert limits[2] > max(limits[:2]) and few.near
    assert few.threshold(0.05).value == choose_threshold(few.unrelated, rate=0.05).value
    assert Gate.from_json(many.to_json()) == many
