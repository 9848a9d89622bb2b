"""Frozen weights in bfloat16, beside those of the base: what training may multiply with.

Processors with bfloat16 instructions (AVX512-BF16, AMX) multiply in it several times as fast as in
float32. Products alone are in bfloat16, inputs and results rounded to it, those of the head too;
what they are added to, norms, attention, A and B and losses stay in float32, and so do the gates of
a mixture of experts, where a rounding would choose another expert. The base is not touched: a pass
that has no such weights, an audit say, computes as ever.

Shape letters: M tokens, I in-features, O out-features.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

DTYPE = torch.bfloat16
GATES = ("gate", "router")
"""Names of layers that choose experts."""
TOKENS, REPEATS = 256, 12
"""Of the product by which `speed_up` measures, and how often it is timed."""


class Reduced:
    """Copies of frozen weights, each made when it is first needed; gone with this object."""

    def __init__(self) -> None:
        self._copies: dict[nn.Module, Tensor] = {}

    def weight(self, linear: nn.Module) -> Tensor:
        """The weight (O, I) of a frozen linear layer."""
        if linear not in self._copies:
            self._copies[linear] = linear.get_parameter("weight").detach().to(DTYPE)
        return self._copies[linear]

    def product(self, linear: nn.Linear, x: Tensor) -> Tensor:
        """What a frozen linear layer makes of x (..., I), in float32 (..., O)."""
        y: Tensor = _Product.apply(x, self.weight(linear))
        return y if linear.bias is None else y + linear.bias

    @contextmanager
    def within(self, body: nn.Module) -> Iterator[None]:
        """For the length of a block the frozen linear layers of a network multiply in bfloat16."""
        linears = [module for name, module in body.named_modules() if _is_frozen(name, module)]
        try:
            for linear in linears:
                linear.forward = partial(self.product, linear)
            yield
        finally:
            for linear in linears:
                linear.__dict__.pop("forward", None)

    def head(self, head: nn.Module) -> nn.Module:
        """An output head that multiplies with its copy; the head itself where it adds a bias."""
        if not isinstance(head, nn.Linear) or head.bias is not None:
            return head
        return _Head(self.weight(head))


def _is_frozen(name: str, module: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether it is a plain linear layer as the base has it, and no gate."""
    return (
        type(module) is nn.Linear
        and "forward" not in module.__dict__
        and not any(weight.requires_grad for weight in module.parameters())
        and name.rpartition(".")[2] not in GATES
    )


class _Head(nn.Module):
    """Logits in float32 of products in bfloat16, forward and back; frozen."""

    def __init__(self, weight_VD: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight_VD, requires_grad=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """Logits (..., V) of hidden states (..., D)."""
        logits: Tensor = _Product.apply(hidden, self.weight)
        return logits


class _Product(torch.autograd.Function):
    """x W' with both rounded to bfloat16; the gradient of x alike."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_VD: Tensor) -> Tensor:
        ctx.save_for_backward(weight_VD)
        return (x.to(DTYPE) @ weight_VD.t()).float()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (weight_VD,) = ctx.saved_tensors
        return (grads[0].to(DTYPE) @ weight_VD).float(), None


@torch.no_grad()
def speed_up(linear: nn.Module) -> float:
    """How many times as fast this processor multiplies with a layer in bfloat16 as in float32.

    Forward and back, roundings included; the best of some repeats each, one after the other, and
    this thread's own time, so that what else the machine does counts little.
    """
    weight_OI = linear.get_parameter("weight").detach()
    x_MI = torch.ones(TOKENS, weight_OI.shape[1])
    half_OI = weight_OI.to(DTYPE)

    def plain() -> None:
        torch.mm(torch.mm(x_MI, weight_OI.t()), weight_OI)

    def reduced() -> None:
        y_MO = torch.mm(x_MI.to(DTYPE), half_OI.t()).float()
        torch.mm(y_MO.to(DTYPE), half_OI).float()

    best = {plain: math.inf, reduced: math.inf}
    for _ in range(REPEATS):
        for product in best:
            best[product] = min(best[product], _seconds(product))
    return best[plain] / best[reduced]


def _seconds(product: Callable[[], None]) -> float:
    started = time.thread_time()
    product()
    return time.thread_time() - started
