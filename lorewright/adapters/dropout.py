"""Dropout on what adapters read: masks that depend on the adapter, the step and the module only.

    h = A (m * x) / (1 - rate),    m = 0 with probability `rate`, else 1

As in PEFT's `lora_dropout`, values of the input of A are hidden in a training step; what the frozen
layer reads is not. Every (adapter, epoch, step, module) has a generator of its own, which draws for
the real tokens of that adapter's rows and never for padding: neither the rest of the stack nor an
interruption changes what is drawn, so N adapters written together equal N written alone.

Shape letters: B batch row, T token, I in-features, M tokens of a batch, padding included.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Share:
    """One adapter's part of a training step."""

    rate: float
    """Probability that a value is hidden, in [0, 1)."""
    mark: str
    """What tells this step of this adapter from others: its seed, epoch and step."""
    lengths: tuple[int, ...]
    """Tokens of its rows, padding left out."""


class Masks:
    """What every adapter of a stack does not see in one training step.

    Each adapter has `n_rows` rows of the batch, one after the other; those beyond its own lengths
    are padding.
    """

    def __init__(self, shares: Sequence[Share], n_rows: int) -> None:
        self.shares = tuple(shares)
        self.lengths_B = [
            share.lengths[row] if row < len(share.lengths) else 0
            for share in shares
            for row in range(n_rows)
        ]
        self._places: dict[tuple[int, torch.device], Tensor] = {}

    def hide(self, x_BTI: Tensor, name: str, *, routed: bool = False) -> Tensor:
        """The input of module `name` with values hidden and the rest enlarged to keep the mean.

        x may be flattened to (B*T, I). `routed`: its tokens come out of order, from a router, and
        are all the first adapter's.
        """
        x_MI = x_BTI.reshape(-1, x_BTI.shape[-1])
        if routed:
            return (x_MI * _drawn(self.shares[0], len(x_MI), name, x_MI)).view_as(x_BTI)
        drawn_MI = [_drawn(share, sum(share.lengths), name, x_MI) for share in self.shares]
        mask_MI = torch.ones_like(x_MI)
        mask_MI[self._where(len(x_MI), x_MI.device)] = torch.cat(drawn_MI)
        return (x_MI * mask_MI).view_as(x_BTI)

    def _where(self, n_tokens: int, device: torch.device) -> Tensor:
        """Where in M the real tokens lie, row by row; once for all layers of a pass."""
        key = (n_tokens, device)
        if key not in self._places:
            width = n_tokens // len(self.lengths_B)
            real_BT = torch.arange(width) < torch.tensor(self.lengths_B)[:, None]
            self._places[key] = real_BT.flatten().nonzero()[:, 0].to(device)
        return self._places[key]


def _drawn(share: Share, n_tokens: int, name: str, like: Tensor) -> Tensor:
    """Factors (tokens, I) of one adapter in one module: 0, or what keeps the mean."""
    shape = (n_tokens, like.shape[-1])
    if not share.rate:
        return torch.ones(shape, device=like.device)
    seed = zlib.crc32(f"dropout {share.mark} {name}".encode())
    generator = torch.Generator(like.device).manual_seed(seed)
    seen_MI = torch.rand(shape, generator=generator, device=like.device) >= share.rate
    return seen_MI.float() / (1 - share.rate)
