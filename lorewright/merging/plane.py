"""Weight changes as arrows in one plane, and where a merge of them lands.

    G_nm = <ΔW_n, ΔW_m> = Σ_modules tr((B_n A_n)ᵀ B_m A_m)     coordinates: eigenvectors of G

Of three arrows the plane is the one that shortens all of them alike: three that are orthogonal, as
those of disjoint memories nearly are, stand 120° apart. Two have a plane of their own; of more it
is the plane with most of what is left. What a merge has outside of it is given as a share, for a
drawing in a plane cannot show it. With free vectors of two numbers in place of weight changes the
same combinations run as a sketch.

Knows adapters in memory; nothing of what they recall.

Shape letters: N adapters, R rank, I in-features, O out-features.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from lorewright.adapters.adapter import Adapter
from lorewright.adapters.lowrank import Factors
from lorewright.errors import ConfigError
from lorewright.merging.algebra import COMBINATIONS, Parts, checked_weights, factors_of, merge

PLANAR = tuple(name for name in COMBINATIONS if name != "regmean")
"""Ways to combine that look at nothing but the weight changes."""
LINEAR: Mapping[str, bool] = {"cat": False, "task_arithmetic": False, "svd": False, "mean": True}
"""Those that are a sum of the weighted changes; true where it is divided by their number."""
FLAT = 1e-9
"""Share of the largest eigenvalue below which a direction is rounding."""

Point = tuple[float, float]


@dataclass(frozen=True)
class Landing:
    """Where a merge is."""

    method: str
    at: Point
    coefficients: tuple[float, ...]
    """Of the sources, in the part of the merged change that is a sum of them."""
    norm: float
    """Frobenius norm of the merged change over all modules."""
    in_plane: float
    """Share of its square that the plane shows, in [0, 1]."""
    in_span: float
    """Share of its square that is a sum of the sources at all; the rest is new."""


@dataclass(frozen=True)
class Plane:
    """Some weight changes and their merges."""

    names: tuple[str, ...]
    weights: tuple[float, ...]
    at: tuple[Point, ...]
    """Tips of the sources at weight 1, in units of Frobenius norm."""
    norms: tuple[float, ...]
    in_plane: tuple[float, ...]
    """Share of each source's square that the plane shows."""
    cosines: tuple[tuple[float, ...], ...]
    landings: tuple[Landing, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        plain = asdict(self) | {"linear": dict(LINEAR)}
        listed = ("names", "weights", "norms", "in_plane")
        plain |= {key: list(plain[key]) for key in listed}
        plain["at"] = [list(point) for point in self.at]
        plain["cosines"] = [list(row) for row in self.cosines]
        plain["landings"] = [
            asdict(each) | {"at": list(each.at), "coefficients": list(each.coefficients)}
            for each in self.landings
        ]
        return plain


def plane(
    names: Sequence[str],
    adapters: Sequence[Adapter],
    *,
    weights: Sequence[float] | None = None,
    methods: Sequence[str] = PLANAR,
) -> Plane:
    """Draw adapters in their plane, and where each method puts their merge with these weights.

    Raises ConfigError for fewer than two, another number of weights or an unknown method, and as
    `algebra.merge`.
    """
    factors = checked_weights(len(adapters), weights)
    _check(len(adapters), methods)
    own = [factors_of(adapter) for adapter in adapters]
    gram_NN = torch.tensor([[inner(a, b) for b in own] for a in own], dtype=torch.float64)

    def landed(method: str) -> tuple[list[float], float]:
        if method in LINEAR:
            return _linear(method, gram_NN, factors)
        result = factors_of(merge(adapters, factors, method).adapter)
        return [inner(result, each) for each in own], inner(result, result)

    return _drawn(names, factors, gram_NN, {method: landed(method) for method in methods})


def sketch(
    vectors: Sequence[Sequence[float]],
    *,
    weights: Sequence[float] | None = None,
    methods: Sequence[str] = PLANAR,
) -> dict[str, list[float]]:
    """Where each method puts a merge of free vectors, each taken for a weight change of one output.

    Raises ConfigError for vectors of other than two finite numbers, and as `plane`.
    """
    if any(len(v) != 2 or not all(math.isfinite(x) for x in v) for v in vectors):
        raise ConfigError(f"a sketch has vectors of two finite numbers; these are {vectors}.")
    factors = checked_weights(len(vectors), weights)
    _check(len(vectors), methods)
    one = torch.ones(1, 1, dtype=torch.float64)
    rows = [torch.tensor([list(map(float, v))], dtype=torch.float64) for v in vectors]
    changes = tuple(Factors(w * one, row) for w, row in zip(factors, rows, strict=True))
    parts = Parts("sketch", changes, tuple(range(len(rows))), len(rows), None)
    points = {}
    for method in methods:
        made = COMBINATIONS[method](parts)
        delta_OI = made if isinstance(made, Tensor) else made.B_OR @ made.A_RI
        points[method] = [round(float(x), 6) + 0.0 for x in delta_OI.flatten()]
    return points


def inner(one: Mapping[str, Factors], other: Mapping[str, Factors]) -> float:
    """The inner product of two weight changes over the modules that both cover."""
    total = 0.0
    for module in one.keys() & other.keys():
        a, b = one[module], other[module]
        total += float(((a.B_OR.T @ b.B_OR) * (a.A_RI @ b.A_RI.T)).sum())
    return total


def _check(n: int, methods: Sequence[str]) -> None:
    if n < 2:
        raise ConfigError(f"a plane is of two at least; there is {n}.")
    if unknown := [method for method in methods if method not in PLANAR]:
        raise ConfigError(
            f"method {unknown[0]!r} cannot be drawn from weight changes alone; use one of "
            f"{', '.join(PLANAR)}."
        )


def _linear(method: str, gram_NN: Tensor, weights: Sequence[float]) -> tuple[list[float], float]:
    weight_N = torch.tensor(weights, dtype=torch.float64)
    if LINEAR[method]:
        weight_N = weight_N / len(weight_N)
    return (gram_NN @ weight_N).tolist(), float(weight_N @ gram_NN @ weight_N)


def _drawn(
    names: Sequence[str],
    weights: Sequence[float],
    gram_NN: Tensor,
    landed: Mapping[str, tuple[list[float], float]],
) -> Plane:
    at_N2 = coordinates(gram_NN)
    norm_N = gram_NN.diagonal().clamp(min=0).sqrt()
    scale_N = norm_N.clamp(min=1e-30)
    landings = []
    for method, (products, square) in landed.items():
        product_N = torch.tensor(products, dtype=torch.float64)
        coefficient_N = torch.linalg.pinv(gram_NN, rtol=FLAT, hermitian=True) @ product_N
        at_2 = coefficient_N @ at_N2
        whole = max(square, 1e-30)
        landings.append(
            Landing(
                method,
                (float(at_2[0]), float(at_2[1])),
                tuple(coefficient_N.tolist()),
                math.sqrt(max(square, 0.0)),
                min(1.0, float(at_2 @ at_2) / whole),
                min(1.0, float(coefficient_N @ product_N) / whole),
            )
        )
    return Plane(
        tuple(names),
        tuple(weights),
        tuple((float(x), float(y)) for x, y in at_N2),
        tuple(norm_N.tolist()),
        tuple((at_N2.square().sum(1) / scale_N.square()).clamp(max=1.0).tolist()),
        tuple(map(tuple, (gram_NN / scale_N / scale_N[:, None]).tolist())),
        tuple(landings),
    )


def coordinates(gram_NN: Tensor) -> Tensor:
    """Tips (N, 2) in the plane; the first points up, the second to its right."""
    value_N, vector_NN = torch.linalg.eigh(gram_NN)
    spread_NK = vector_NN * value_N.clamp(min=0).sqrt()
    if int((value_N > FLAT * value_N.max()).sum()) > 2:
        unit_NK = spread_NK / spread_NK.norm(dim=1, keepdim=True).clamp(min=1e-30)
        ones_N = torch.ones(len(gram_NN), dtype=torch.float64)
        view_K = torch.linalg.pinv(unit_NK, rtol=1e-6) @ ones_N
        if float(view_K.norm()) > FLAT:
            view_K = view_K / view_K.norm()
            spread_NK = spread_NK - (spread_NK @ view_K)[:, None] * view_K
    _, _, axes_KK = torch.linalg.svd(spread_NK, full_matrices=False)
    at_N2 = spread_NK @ axes_KK[:2].T
    angle = math.pi / 2 - math.atan2(float(at_N2[0, 1]), float(at_N2[0, 0]))
    c, s = math.cos(angle), math.sin(angle)
    at_N2 = at_N2 @ torch.tensor([[c, s], [-s, c]], dtype=torch.float64)
    return at_N2 * torch.tensor([1.0 if float(at_N2[1, 0]) >= 0 else -1.0, 1.0])
