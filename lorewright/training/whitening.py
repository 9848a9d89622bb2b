"""Bases in which the optimiser `whitened` moves A: for every input that adapted layers read.

The inputs of a layer lie nearly in one direction: what tells two names apart is a small part of
their size. In a basis that makes the inputs of the rows to be learnt white, a step of A moves all
of their differences alike; and an A that is drawn there sees all of them from the start.

Runs the base over rows with hooks on the layers of a stack; knows nothing of losses or of how an
optimiser moves.

Shape letters: B batch row, T token, S tokens looked at, I in-features, K directions, L bases of one
width, P values of one adapter, R rank, X rows of all A with one basis, M tokens of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lorewright.adapters.lora import Flat, Rows, Stack, Stacked
from lorewright.models.backends.backend import Pass
from lorewright.models.batching import by_length, pass_tokens
from lorewright.models.model import Model, Rendered

ROWS, TOKENS = 256, 1024
"""Rows that are run and tokens that are looked at, at most; evenly spaced, so no draw is needed."""
DIRECTIONS = 256
"""Of a layer's inputs so many, the largest, have a gain of their own; the others share one."""
RIDGE = 0.03
"""Added to every direction's variance, as a share of their mean."""


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
    groups: dict[int, list[Group]] = {}  # adapters that learn the same rows share their bases
    for bases in bases_N:
        if id(bases) in groups:
            continue
        # Layers of one input share a basis; ranks may differ between layers.
        shared: dict[tuple[int, int], tuple[Basis, list[slice]]] = {}
        for name, (span, _) in zip(layers, flat.spans[::2], strict=True) if bases else ():
            size = span.stop - span.start
            shared.setdefault((id(bases[name]), size), (bases[name], []))[1].append(span)
        alike: dict[tuple[int, int, int], list[tuple[Basis, list[slice]]]] = {}
        for (_, size), (basis, spans) in shared.items():
            alike.setdefault((len(basis.side_IK), len(spans), size), []).append((basis, spans))
        groups[id(bases)] = [Group.of(*zip(*parts, strict=True)) for parts in alike.values()]
    return [groups[id(bases)] for bases in bases_N]


# Measuring


@torch.no_grad()
def measure(
    model: Model,
    stack: Stack,
    rows: Sequence[Rendered],
    make: Callable[[Tensor], Basis],
    *,
    n_tokens: int = TOKENS,
) -> Bases:
    """What `make` makes (`basis`, say) of what each adapted layer reads of the rows, base alone.

    One forward pass over up to ROWS rows, or as many as hold twice the tokens looked at, `n_tokens`
    at most. A layer that reads nothing, an expert that no token is sent to, gives `make` no rows.
    """
    mean = sum(map(len, rows)) / len(rows)
    chosen = [rows[i] for i in _evenly(len(rows), min(ROWS, int(2 * n_tokens / mean) + 1))]
    n_there = sum(map(len, chosen))
    sampled = torch.zeros(n_there, dtype=torch.bool)
    sampled[_evenly(n_there, n_tokens)] = True
    sampled_of = sampled.split([len(row) for row in chosen])
    read: dict[str, list[Tensor]] = {}
    same_as: dict[str, str] = {}
    """The first layer with the same input: queries, keys and values have one, say."""
    at: list[int] = []
    """Places of the sampled tokens in the flattened batch that runs."""
    last: tuple[Any, str] = (None, "")

    def note(name: str, module: nn.Module, args: tuple[Any, ...]) -> None:
        nonlocal last
        if args[0] is not last[0]:
            last = args[0], name
        if same_as.setdefault(name, last[1]) != name:
            return
        x_MI = args[0].detach().flatten(0, -2)
        routed = isinstance(module, Stacked) and module.routed  # tokens come out of order
        places = _evenly(len(x_MI), n_tokens) if routed else at
        read.setdefault(name, []).append(x_MI[places].double().cpu())

    handles = [
        module.register_forward_pre_hook(partial(note, name))
        for name, module in stack.modules.items()
    ]
    base_alone = Pass(Rows(torch.tensor([-1])))
    try:
        for group in by_length([len(row) for row in chosen], pass_tokens(model.device)):
            batch = model.batch([chosen[i] for i in group])
            width = batch.ids_BT.shape[1]
            at[:] = [
                b * width + t
                for b, i in enumerate(group)
                for t in sampled_of[i].nonzero()[:, 0].tolist()
            ]
            model.completion_logits(batch, base_alone)
            last = None, ""
    finally:
        for handle in handles:
            handle.remove()
    bases: dict[str, Basis] = {}
    for name, layer in stack.modules.items():
        source = same_as.get(name, name)
        if source not in bases:
            nothing = [torch.zeros(0, layer.base.in_features)]
            bases[source] = make(torch.cat(read.get(source, nothing))).to(layer.A_NRI.device)
        bases[name] = bases[source]
    return bases


def basis(x_SI: Tensor) -> Basis:
    """The symmetric W for which x W is white up to the ridge, at the size that x had.

    W = c (C + ridge)^(-1/2) with C = x'x / S, c such that the mean of |x W|^2 is that of |x|^2.
    """
    n, width = x_SI.shape
    x_SI = x_SI.double()
    size = float(x_SI.square().sum()) / n if n else 0.0
    if not size > 0:
        return untouched(width)
    value_K, side_IK = (part[..., -DIRECTIONS:] for part in directions(x_SI))
    ridge = RIDGE * size / width
    gain_K, rest = (value_K + ridge).rsqrt(), ridge**-0.5
    others = max(0.0, size - float(value_K.sum()))
    factor = (size / (float((gain_K.square() * value_K).sum()) + rest**2 * others)) ** 0.5
    return Basis(side_IK.float(), ((gain_K - rest) * factor).float(), rest * factor)


def directions(x_SI: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues (K), rising, of C = x'x / S and their vectors (I, K), those above rounding.

    Of fewer tokens than features the smaller Gram matrix is decomposed.
    """
    n, width = x_SI.shape
    if n < width:
        value_K, side_SK = torch.linalg.eigh(x_SI @ x_SI.T / n)
        side_IK = x_SI.T @ side_SK / (n * value_K.clamp(min=1e-30)).sqrt()
    else:
        value_K, side_IK = torch.linalg.eigh(x_SI.T @ x_SI / n)
    real = value_K > 1e-9 * value_K.max()
    return value_K[real], side_IK[:, real]


def untouched(width: int) -> Basis:
    """The identity."""
    return Basis(torch.zeros(width, 0), torch.zeros(0), 1.0)


def _evenly(n: int, most: int) -> list[int]:
    """Indices below n, all or so many, evenly spaced."""
    return list(range(n)) if n <= most else [i * n // most for i in range(most)]
