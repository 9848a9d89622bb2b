"""Claims about routers by tensors: exact on small cases, blind to gauge and scale."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lorewright.bench.routers import (
    PROJECTIONS,
    arrow,
    by_projection,
    by_states,
    centroid_scores,
    projection_scores,
    spectr,
    spectr_rows,
    state_centroids,
)
from lorewright.errors import AdapterError, ConfigError, DataError, NoEffect
from lorewright.routing.index import Retriever


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


def makers() -> dict[str, Callable[[], Retriever]]:
    """Return every baseline router on a small case of its own."""
    states = {"a": torch.tensor([[1.0, 0.0]]), "b": torch.tensor([[-1.0, 0.0]])}
    adapters = {"a": outer([1.0], [1.0, 0.0]), "b": outer([1.0], [0.0, 1.0])}
    hidden = {"layer0": torch.tensor([[2.0, 1.0]])}
    return {
        "states": lambda: by_states(states, lambda question: torch.tensor([3.0, 1.0])),
        **{
            name: lambda name=name: by_projection(adapters, lambda question: hidden, project=name)
            for name in PROJECTIONS
        },
    }


@pytest.mark.parametrize("name", ["states", *PROJECTIONS])
def test_every_router_ranks_best_first_and_alike_each_time(name: str) -> None:
    router = makers()[name]()
    hits = router("what is it")
    assert [hit.memory for hit in hits] == ["a", "b"]
    assert [hit.rank for hit in hits] == [1, 2]
    assert hits[0].score >= hits[1].score
    assert router("what is it") == hits


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
    result = {n: projection_scores({"m": p(two)}, second)["m"] for n, p in PROJECTIONS.items()}
    assert result == pytest.approx(
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
    with pytest.raises(ConfigError, match="got none"):
        projection_scores(maps, {})
    with pytest.raises(ConfigError, match=r"got \(2, 3\)"):
        projection_scores(maps, {"layer0": torch.ones(2, 3)})
    with pytest.raises(ConfigError, match="one of arrow"):
        by_projection({}, lambda question: {}, project="bow")
