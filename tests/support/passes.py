"""What several test modules share: passes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from lorewright.adapters.lora import Stack
from lorewright.models.model import Batch, Model
from support.models import letters

TEXTS = [("Code of red?", "48"), ("Where is the blue one now?", "in 7.5"), ("", "KX-12 is teal")]


def loaded(build: Callable[[], nn.Module]) -> Model:
    return Model(build(), letters(), "tiny")  # type: ignore[arg-type]


def batch_of(model: Model) -> Batch:
    return model.batch([model.render(prompt, completion) for prompt, completion in TEXTS])


def filled(stack: Stack) -> Stack:
    """B of every adapter drawn, as after some steps."""
    generator = torch.Generator().manual_seed(5)
    for layer in stack.modules.values():
        for n, rank in enumerate(layer.ranks_N):
            shape = layer.B_NOR[n, :, :rank].shape
            layer.B_NOR.data[n, :, :rank] = torch.randn(shape, generator=generator) / 4
    return stack


def outcome(model: Model, stack: Stack, batch: Batch) -> tuple[Tensor, list[Tensor | None]]:
    nats = model.completion_nats(batch)
    loss = (nats.loss_BT * batch.mask_BC).sum()
    grads = torch.autograd.grad(loss, stack.parameters(), allow_unused=True)
    return nats.loss_BT.detach(), list(grads)
