"""Bases in which `whitened` moves A: one for every input that adapted layers read.

Knows matrices and a stack's buffers. How a basis is measured is in `whitening`.

Shape letters: L bases of one width, K directions, I in-features, P values of one adapter, R rank,
X rows of all A with one basis.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lorewright.adapters.lora import Flat, Stack


class Basis(NamedTuple):
    """A symmetric matrix W (I, I) = rest + U gain U', by which a layer's inputs are seen."""

    side_IK: Tensor
    gain_K: Tensor
    rest: float

    def to(self, device: torch.device) -> Basis:
        """The same on a device."""
        return Basis(self.side_IK.to(device), self.gain_K.to(device), self.rest)


Bases = Mapping[str, Basis]
"""By the names of a stack's layers."""


class Group(NamedTuple):
    """Places in a flat buffer of those A that have bases of one width, equally many to a basis."""

    spans: list[slice]
    whole_LII: Tensor | None
    """Every W itself, where a product with it costs no more than with its factors."""
    side_LIK: Tensor
    gain_L1K: Tensor
    rest_L11: Tensor

    @classmethod
    def of(cls, bases: Sequence[Basis], spans_L: Sequence[Sequence[slice]]) -> Group:
        """Bases with the spans that each is for; fewer directions are filled up with zeros."""
        most = max(len(basis.gain_K) for basis in bases)
        padded = [(basis, (0, most - len(basis.gain_K))) for basis in bases]
        rests = torch.tensor([basis.rest for basis in bases], device=bases[0].side_IK.device)
        side_LIK = torch.stack([F.pad(basis.side_IK, end) for basis, end in padded])
        gain_L1K = torch.stack([F.pad(basis.gain_K, end) for basis, end in padded])[:, None]
        spans = [span for spans in spans_L for span in spans]
        group = cls(spans, None, side_LIK, gain_L1K, rests[:, None, None])
        return group._replace(whole_LII=group.whole()) if len(side_LIK[0]) <= 2 * most else group

    def whole(self) -> Tensor:
        """Every W (L, I, I)."""
        if self.whole_LII is not None:
            return self.whole_LII
        eye_II = torch.eye(self.side_LIK.shape[1], device=self.rest_L11.device)
        return torch.bmm(self.side_LIK * self.gain_L1K, self.side_LIK.mT) + self.rest_L11 * eye_II

    def by_basis(self) -> list[tuple[Tensor, list[slice]]]:
        """Every W (I, I) with the places of its A."""
        each = len(self.spans) // len(self.side_LIK)
        return [(W, self.spans[each * i : each * (i + 1)]) for i, W in enumerate(self.whole())]

    def apply_exactly(self, values_P: Tensor) -> None:
        """`apply` in float64, whose rounding does not depend on how many rows the A have."""
        for basis_II, spans in self.by_basis():
            for span in spans:
                a_RI = values_P[span].view(-1, len(basis_II))
                a_RI.copy_(a_RI.double() @ basis_II.double())

    def apply(self, values_P: Tensor) -> None:
        """Replace every A by A W."""
        parts = [values_P[span] for span in self.spans]
        x_LXI = torch.cat(parts).view(len(self.side_LIK), -1, self.side_LIK.shape[1])
        if self.whole_LII is not None:
            x_LXI = torch.bmm(x_LXI, self.whole_LII)
        else:
            inner_LXK = torch.bmm(x_LXI, self.side_LIK).mul_(self.gain_L1K)
            x_LXI.mul_(self.rest_L11).baddbmm_(inner_LXK, self.side_LIK.mT)
        torch._foreach_copy_(parts, x_LXI.flatten().split(list(map(len, parts))))


def grouped(stack: Stack, flat: Flat, bases_N: Sequence[Bases]) -> list[list[Group]]:
    """For every adapter the groups of its A in a buffer; {} has none."""
    device = flat.weight_NP.device
    layers = [name for name, x in stack.modules.items() if x.A_NRI.device == device]
    known: dict[int, list[Group]] = {}  # adapters that learn the same rows share their bases
    for bases in bases_N:
        if id(bases) in known:
            continue
        # Layers of one input share a basis; ranks may differ between layers.
        shared: dict[tuple[int, int], tuple[Basis, list[slice]]] = {}
        for name, (span, _) in zip(layers, flat.spans[::2], strict=True) if bases else ():
            size = span.stop - span.start
            shared.setdefault((id(bases[name]), size), (bases[name], []))[1].append(span)
        alike: dict[tuple[int, int, int], list[tuple[Basis, list[slice]]]] = {}
        for (_, size), (basis, spans) in shared.items():
            alike.setdefault((len(basis.side_IK), len(spans), size), []).append((basis, spans))
        known[id(bases)] = [Group.of(*zip(*parts, strict=True)) for parts in alike.values()]
    return [known[id(bases)] for bases in bases_N]
