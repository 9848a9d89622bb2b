"""Where an adapter may read: what the base is asked in general is left out of A's rows.

ΔW x = B A x. Held orthogonal to the directions in which the inputs of general questions lie, A
hardly sees them, whatever is learnt elsewhere, and so the base's answers to them stay. What tells
the new facts apart is mostly in the other directions.

Measured on what the lesson rehearses; knows nothing of losses. After every step A is projected, not
its gradient: Adam's steps leave the subspace in which gradients lie.

Source: the null-space projection of AlphaEdit, arXiv 2410.02355, for the inputs of a LoRA adapter
as LoRA-Null has it, arXiv 2503.02659. Departures: A is trained and projected, not drawn there once;
directions are chosen by their share of the inputs' energy, with every token counting the same.

Shape letters: S tokens looked at, I in-features, K directions, N adapters (in names of lists).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from lorewright.adapters.lora import Stack
from lorewright.models.model import Model, Rendered
from lorewright.training.recent import Recent
from lorewright.training.whitening import Bases, Basis, directions, measure, untouched

TOKENS = 512
"""Tokens looked at: as many directions can be left out at most."""


def null_spaces(
    model: Model, stack: Stack, rows_N: Sequence[Sequence[Rendered]], shares_N: Sequence[float]
) -> list[Bases]:
    """For every adapter the projections of its A, by layer: {} for none.

    Measured of what each adapted layer reads of the adapter's rows on the base alone; a share of
    its energy, in [0, 1], is left out. Without rows, or at a share of 0, nothing is. Adapters that
    protect the same share their projections.
    """
    keys = [(tuple(rows), share) for rows, share in zip(rows_N, shares_N, strict=True)]
    where = (model.digest, model.loaded_as, str(model.device), model.dtype, *stack.modules)

    def bases_of(rows: tuple[Rendered, ...], share: float) -> Bases:
        return measure(model, stack, rows, partial(complement, share=share), n_tokens=TOKENS)

    measured: dict[object, Bases] = {
        (rows, share): _MEASURED.get((where, rows, share), partial(bases_of, rows, share))
        if rows and share > 0
        else {}
        for rows, share in dict.fromkeys(keys)
    }
    return [measured[key] for key in keys]


def _n_bytes(bases: Bases) -> int:
    """Bytes of the directions, each set counted once."""
    sides = {id(basis): basis.side_IK for basis in bases.values()}
    return sum(side_IK.nbytes for side_IK in sides.values())


_MEASURED: Recent[Bases] = Recent(512 << 20, _n_bytes)
"""The last projections of this process."""


def complement(x_SI: Tensor, share: float) -> Basis:
    """The projection that takes out the fewest directions that hold a share of the inputs' energy.

    Inputs count by direction alone: the few tokens with huge values would count for all else.
    """
    x_SI = x_SI.double()
    norm_S1 = x_SI.norm(dim=1, keepdim=True)
    x_SI = (x_SI / norm_S1.clamp(min=1e-30))[norm_S1[:, 0] > 0]
    if not len(x_SI):
        return untouched(x_SI.shape[1])
    value_K, side_IK = (part.flip(-1) for part in directions(x_SI))  # the largest first
    before_K = value_K.cumsum(0) - value_K  # energy of those before each
    n_out = int((before_K < share * value_K.sum() * (1 - 1e-12)).sum())
    return Basis(side_IK[:, :n_out].float().contiguous(), -torch.ones(n_out), 1.0)
