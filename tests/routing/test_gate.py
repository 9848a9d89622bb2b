"""Claims about routing: calibrated, able to abstain, exact on tensors, honest about the gap."""

import dataclasses
import json
import math
import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom
from torch import Tensor

from lorewright.errors import AdapterError, ConfigError, DataError, NoEffect
from lorewright.routing.gate import (
    PROJECTIONS,
    ROUTERS,
    Asked,
    Gate,
    Router,
    Trial,
    activation,
    arrow,
    by_keys,
    by_projection,
    by_states,
    centroid_scores,
    choose_threshold,
    features,
    fit_calibration,
    fit_gate,
    gated,
    oracle,
    oracle_gap,
    projection_scores,
    spectr,
    spectr_rows,
    state_centroids,
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


def adapter(*modules: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of an adapter from (B_OR, A_RI), module by module."""
    return {
        f"layer{n}{half}": tensor
        for n, (B_OR, A_RI) in enumerate(modules)
        for half, tensor in ((".lora_B.weight", B_OR), (".lora_A.weight", A_RI))
    }


def outer(u: list[float], v: list[float]) -> dict[str, Tensor]:
    """Return the adapter whose only weight change is u vᵀ."""
    return adapter((torch.tensor(u)[:, None], torch.tensor(v)[None]))


def hit(memory: str, rank: int, matched: float = 0.0, **parts: tuple[float, int]) -> Hit:
    """Return a hit with these scores and ranks by part."""
    return Hit(memory, "", "question", 0.0, rank, {k: Part(*v) for k, v in parts.items()}, matched)


def makers() -> dict[str, Callable[[], Router]]:
    """Return every built-in router on a small case of its own."""
    states = {"a": torch.tensor([[1.0, 0.0]]), "b": torch.tensor([[-1.0, 0.0]])}
    adapters = {"a": outer([1.0], [1.0, 0.0]), "b": outer([1.0], [0.0, 1.0])}
    hidden = {"layer0": torch.tensor([[2.0, 1.0]])}
    return {
        "keys": lambda: by_keys(Index.build([Key("a", "what is it"), Key("b", "it was")])),
        "states": lambda: by_states(states, lambda question: torch.tensor([3.0, 1.0])),
        "projection": lambda: by_projection(adapters, lambda question: hidden),
        "oracle": lambda: oracle({"what is it": ("a", "b")}),
    }


@pytest.mark.parametrize("name", ROUTERS)
def test_every_router_ranks_best_first_and_alike_each_time(name: str) -> None:
    router = makers()[name]()
    hits = router("what is it")
    assert [hit.memory for hit in hits] == ["a", "b"]
    assert [hit.rank for hit in hits] == [1, 2]
    assert hits[0].score >= hits[1].score
    assert router("what is it") == hits


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


def test_oracle_knows_abstains_and_refuses_what_it_was_not_told() -> None:
    router = oracle({"who": ("b", "a"), "other": ()})
    assert [h.memory for h in router("who")] == ["b", "a"]
    assert router("other") == []
    with pytest.raises(DataError, match="not told"):
        router("why")


# --- the gap


def test_gap_is_misses_and_merges_and_identities_hold() -> None:
    rows = [(0, 1, 1, 1, 0, True)] * 6 + [(0, 1, 0, 0, 0, False)] * 2 + [(0, 1, 0, 1, 0, True)]
    gap = oracle_gap([Trial(*row[:5], hit=row[5]) for row in rows])
    assert (gap.base.mean, gap.oracle.mean, gap.wrong.mean) == (0, 1, 0)
    assert gap.routed.mean == pytest.approx(6 / 9)
    assert gap.hit.mean == pytest.approx(7 / 9)
    assert gap.missed.mean == pytest.approx(2 / 9)
    assert gap.merged.mean == pytest.approx(1 / 9)


@settings(max_examples=30)
@given(st.lists(st.tuples(*[st.floats(0, 1)] * 5, st.booleans()), min_size=1, max_size=20))
def test_parts_of_the_gap_add_up(
    rows: list[tuple[float, float, float, float, float, bool]],
) -> None:
    gap = oracle_gap([Trial(*row[:5], hit=row[5]) for row in rows])
    total = sum(row[1] - row[2] for row in rows) / len(rows)
    assert gap.missed.mean is not None and gap.merged.mean is not None
    assert gap.missed.mean + gap.merged.mean == pytest.approx(total, abs=1e-9)


def test_unscored_is_counted_and_never_zero() -> None:
    trials = [Trial(None, 1.0, 1.0, 1.0, None, True), Trial(0.5, 1.0, None, 1.0, None, False)]
    gap = oracle_gap(trials)
    assert gap.n_unscored == {"base": 1, "oracle": 0, "routed": 1, "abstaining": 0, "wrong": 2}
    assert (gap.base.mean, gap.routed.mean, gap.wrong.mean) == (0.5, 1.0, None)
    assert gap.missed.n == 1
    with pytest.raises(DataError, match="no trials"):
        oracle_gap([])


# --- centroids


def test_centroids_of_opposite_memories_lie_opposite() -> None:
    states = {"a": torch.tensor([[3.0, 5.0]]), "b": torch.tensor([[1.0, 5.0]])}
    centroids = state_centroids(states)
    assert centroid_scores(centroids, torch.tensor([2.5, 9.0])) == pytest.approx({"a": 1, "b": -1})
    assert centroid_scores(centroids, torch.tensor([2.0, 5.0])) == {"a": 0.0, "b": 0.0}


def test_whitening_lets_a_quiet_direction_decide() -> None:
    noise = torch.tensor([[100.0, 0.0], [-100.0, 0.0]])
    states = {"a": noise + torch.tensor([0.0, 1.0]), "b": noise - torch.tensor([0.0, 1.0])}
    question = torch.tensor([100.0, 0.9])
    sharp = centroid_scores(state_centroids(states, shrink=0.0), question)
    blunt = centroid_scores(state_centroids(states, shrink=1.0), question)
    assert sharp["a"] == pytest.approx(0.9 / math.hypot(1.0, 0.9), abs=1e-6)
    assert abs(blunt["a"]) < 0.05


def test_states_that_cannot_tell_memories_apart_are_refused() -> None:
    one = torch.ones(2, 3)
    with pytest.raises(DataError, match="all alike"):
        state_centroids({"a": one, "b": one})
    with pytest.raises(DataError, match="all of one width"):
        state_centroids({"a": one, "b": torch.ones(2, 4)})
    with pytest.raises(DataError, match="0 memories"):
        state_centroids({})


# --- directions


def random_adapter(seed: int, rank: int = 3) -> dict[str, Tensor]:
    """Return an adapter with two modules of 5 and 7 inputs."""
    g = torch.Generator().manual_seed(seed)
    pairs = [
        (torch.randn(6, rank, generator=g), torch.randn(rank, width, generator=g))
        for width in (5, 7)
    ]
    return adapter(*pairs)


def test_arrow_selects_the_memory_whose_input_it_is_and_ignores_the_sign() -> None:
    maps = {"a": arrow(outer([9.0, 9.0], [3.0, 4.0])), "b": arrow(outer([1.0], [4.0, -3.0]))}
    scores = projection_scores(maps, {"layer0": torch.tensor([[6.0, 8.0], [-0.3, -0.4]])})
    assert scores == pytest.approx({"a": 1.0, "b": 0.0}, abs=1e-7)


@pytest.mark.parametrize("name", PROJECTIONS)
@pytest.mark.parametrize("seed", range(3))
def test_scores_do_not_depend_on_the_gauge_or_the_scale(name: str, seed: int) -> None:
    g = torch.Generator().manual_seed(seed + 100)
    tensors = random_adapter(seed)
    G = torch.randn(3, 3, generator=g) + 3 * torch.eye(3)
    other = {
        key: -5 * t @ G if ".lora_B" in key else torch.linalg.solve(G, t)
        for key, t in tensors.items()
    }
    hidden = {"layer0": torch.randn(4, 5, generator=g), "layer1": torch.randn(4, 7, generator=g)}
    maps = {"a": PROJECTIONS[name](tensors), "b": PROJECTIONS[name](other)}
    scores = projection_scores(maps, hidden)
    assert scores["a"] == pytest.approx(scores["b"], abs=1e-5)
    assert 0 <= scores["a"] <= 1 + 1e-9


def test_maps_agree_with_the_dense_weight_change() -> None:
    tensors = random_adapter(0)
    B_OR, A_RI = (tensors[f"layer0.lora_{half}.weight"].double() for half in "BA")
    delta = B_OR @ A_RI
    _, _, V_RI = torch.linalg.svd(delta, full_matrices=False)
    x = torch.arange(1.0, 6.0).double()
    assert float((arrow(tensors)["layer0"] @ x).abs()) == pytest.approx(float((V_RI[0] @ x).abs()))
    weighted = spectr(tensors)["layer0"] @ x
    assert float(weighted.norm()) == pytest.approx(float((delta @ x).norm() / delta.norm()))
    rows = spectr_rows(tensors)["layer0"]
    assert rows.shape == (3, 5)
    assert torch.allclose(rows.T @ rows, torch.linalg.pinv(delta) @ delta, atol=1e-6)


def test_spectr_sees_directions_that_arrow_does_not() -> None:
    two = adapter((torch.eye(2) * torch.tensor([1.0, 0.9]), torch.eye(3)[:2]))
    second = {"layer0": torch.tensor([[0.0, 1.0, 0.0]])}
    found = {n: projection_scores({"m": p(two)}, second)["m"] for n, p in PROJECTIONS.items()}
    assert found == pytest.approx(
        {"arrow": 0.0, "spectr": 0.9 / math.hypot(1, 0.9), "spectr_rows": 1.0}, abs=1e-6
    )


def test_a_larger_weight_change_does_not_win_by_its_size() -> None:
    maps = {"big": spectr(outer([100.0], [1.0, 0.0])), "right": spectr(outer([0.1], [0.6, 0.8]))}
    scores = projection_scores(maps, {"layer0": torch.tensor([[0.6, 0.8]])})
    assert scores["right"] > scores["big"]


def test_directions_that_are_not_there_are_refused() -> None:
    with pytest.raises(NoEffect, match="layer0 changes nothing"):
        arrow(adapter((torch.zeros(2, 1), torch.ones(1, 2))))
    with pytest.raises(AdapterError, match="no B"):
        arrow({"layer0.lora_A.weight": torch.ones(1, 2)})
    with pytest.raises(AdapterError, match="hold no"):
        arrow({})
    maps = {"a": arrow(outer([1.0], [1.0, 0.0]))}
    with pytest.raises(ConfigError, match="found none"):
        projection_scores(maps, {})
    with pytest.raises(ConfigError, match=r"found \(2, 3\)"):
        projection_scores(maps, {"layer0": torch.ones(2, 3)})
    with pytest.raises(ConfigError, match="one of arrow"):
        by_projection({}, lambda question: {}, project="bow")
