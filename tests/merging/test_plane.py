"""Claims about the plane of weight changes: inner products, coordinates and landings are exact."""

from __future__ import annotations

import math

import pytest
import torch

from lorewright.adapters.adapter import HALVES, Adapter
from lorewright.adapters.config import LoraConfig
from lorewright.errors import ConfigError
from lorewright.merging.algebra import factors_of, merge
from lorewright.merging.plane import LINEAR, PLANAR, coordinates, inner, plane, sketch

NAMES = ("a", "b", "c")


def adapter(seed: int, rank: int = 2) -> Adapter:
    """A random adapter on one module of 9 by 7."""
    draw = torch.Generator().manual_seed(seed)
    A_RI, B_OR = torch.randn(rank, 7, generator=draw), torch.randn(9, rank, generator=draw)
    tensors = {"m" + HALVES[0]: A_RI, "m" + HALVES[1]: B_OR}
    return Adapter(LoraConfig(rank, rank, ("m",)), tensors, "tiny/base", "d" * 64, {})


def dense(one: Adapter) -> torch.Tensor:
    (change,) = factors_of(one).values()
    return change.B_OR @ change.A_RI


def test_inner_products_are_those_of_the_matrices() -> None:
    one, other = adapter(1), adapter(2, 3)
    expected = float((dense(one) * dense(other)).sum())
    assert inner(factors_of(one), factors_of(other)) == pytest.approx(expected)


def test_two_are_drawn_at_their_lengths_and_angle() -> None:
    drawn = plane(NAMES[:2], [adapter(1), adapter(2)], weights=[1, -0.5])
    (x, y), (u, v) = drawn.at
    assert x == pytest.approx(0, abs=1e-9) and y > 0 and u >= 0
    assert math.hypot(u, v) == pytest.approx(drawn.norms[1])
    assert (x * u + y * v) / drawn.norms[0] / drawn.norms[1] == pytest.approx(drawn.cosines[0][1])
    (total,) = [each for each in drawn.landings if each.method == "task_arithmetic"]
    assert total.at == pytest.approx((x - 0.5 * u, y - 0.5 * v))
    assert (total.in_plane, total.in_span) == pytest.approx((1, 1))


@pytest.mark.parametrize("method", [m for m in PLANAR if m not in ("dare", "dare_ties")])
def test_a_landing_is_that_of_the_merged_adapter(method: str) -> None:
    own, weights = [adapter(n) for n in (1, 2, 3)], [1.0, 0.8, -0.5]
    drawn = plane(NAMES, own, weights=weights, methods=[method])
    (landing,) = drawn.landings
    merged = dense(merge(own, weights, method).adapter)
    assert landing.norm == pytest.approx(float(merged.norm()), rel=1e-4)
    products = [float((merged * dense(each)).sum()) for each in own]
    together = sum(c * dense(each) for c, each in zip(landing.coefficients, own, strict=True))
    assert isinstance(together, torch.Tensor)
    for product, each in zip(products, own, strict=True):
        assert float((together * dense(each)).sum()) == pytest.approx(product, rel=1e-3, abs=1e-3)
    assert 0 <= landing.in_plane <= landing.in_span + 1e-9 <= 1 + 2e-9
    if method in LINEAR:
        assert landing.in_span == pytest.approx(1)


def test_three_orthogonal_arrows_stand_120_degrees_apart() -> None:
    at_N2 = coordinates(torch.eye(3, dtype=torch.float64))
    for a, b in ((0, 1), (1, 2), (2, 0)):
        assert float(at_N2[a] @ at_N2[b]) == pytest.approx(-1 / 3, abs=1e-9)
    assert torch.allclose(at_N2.square().sum(1), torch.full((3,), 2 / 3, dtype=torch.float64))


def test_a_sketch_is_the_algebra_on_vectors_of_two_numbers() -> None:
    points = sketch([(1.0, 0.2), (0.4, -1.0)], weights=[1, 2])
    assert points["task_arithmetic"] == pytest.approx([1.8, -1.8])
    assert points["mean"] == pytest.approx([0.9, -0.9])
    assert points["ties"] == pytest.approx([1.0, -2.0])  # each keeps its larger number


def test_what_cannot_be_drawn_is_refused() -> None:
    with pytest.raises(ConfigError, match="two at least"):
        plane(["a"], [adapter(1)])
    with pytest.raises(ConfigError, match="regmean"):
        plane(NAMES[:2], [adapter(1), adapter(2)], methods=["regmean"])
    with pytest.raises(ConfigError, match="two finite numbers"):
        sketch([(1.0,), (2.0,)])
