"""Tiny models, batches, and what plain transformers makes of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lorewright.adapters.lora import Rows, Stack
from lorewright.models.backends.backend import AS_BOUND, MakeBackend, Pass
from lorewright.models.backends.builtin import BACKENDS
from lorewright.models.backends.compiled.backend import Compiled
from lorewright.models.model import Batch, Model
from support.models import letters

TEXTS = [("Code of red?", "48"), ("Where is the blue one now?", "in 7.5"), ("", "KX-12 is teal")]


def loaded(build: Callable[[], nn.Module], backends: Mapping[str, MakeBackend] = BACKENDS) -> Model:
    return Model(build(), letters(), "tiny", backends=backends)  # type: ignore[arg-type]


def running_in(key: str, build: Callable[[], nn.Module]) -> Model:
    """A tiny model whose passes run in one backend where it does not refuse them."""
    return loaded(build, {key: BACKENDS[key], "transformers": BACKENDS["transformers"]})


def batch_of(model: Model, texts: Sequence[tuple[str, str]] = TEXTS) -> Batch:
    return model.batch([model.render(prompt, completion) for prompt, completion in texts])


def filled(stack: Stack) -> Stack:
    """B of every adapter drawn, as after some steps."""
    generator = torch.Generator().manual_seed(5)
    for layer in stack.modules.values():
        for n, rank in enumerate(layer.ranks_N):
            shape = layer.B_NOR[n, :, :rank].shape
            layer.B_NOR.data[n, :, :rank] = torch.randn(shape, generator=generator) / 16
    return stack


def rows(stack: Stack, adapters: Sequence[int] | None) -> Rows:
    return Rows(None if adapters is None else torch.tensor(adapters), len(stack))


def spoil(model: Model) -> None:
    """Fill the memory that compiled code takes with NaN: it must write before it reads."""
    for backend in model.backends.values():
        if isinstance(backend, Compiled) and backend.network is not None:
            backend.network.spare.give(torch.full((1 << 20,), torch.nan))


def outcome(
    model: Model, stack: Stack, batch: Batch, pass_: Pass = AS_BOUND
) -> tuple[Tensor, list[Tensor]]:
    """Losses, and the gradients of their sum; zeros where there is none."""
    spoil(model)
    nats = model.completion_nats(batch, pass_)
    loss = (nats.loss_BT * batch.mask_BC).sum()
    weights = stack.parameters()
    if not loss.requires_grad:
        return nats.loss_BT.detach(), [torch.zeros_like(weight) for weight in weights]
    grads = torch.autograd.grad(loss, weights, allow_unused=True)
    pairs = zip(grads, weights, strict=True)
    return nats.loss_BT.detach(), [torch.zeros_like(w) if g is None else g for g, w in pairs]


class Plain(NamedTuple):
    """What a network in float64, with W + scale B A as its weights, makes of a batch."""

    loss_BC: Tensor
    grads: list[Tensor]


def plain(model: Model, stack: Stack, batch: Batch, adapters: Sequence[int] | None) -> Plain:
    """Losses and gradients of A and B without a stack or a backend of ours, row by row."""
    names, layers = list(stack.modules), list(stack.modules.values())
    network: Any = deepcopy(model.network).double()
    for name, layer in zip(names, layers, strict=True):
        network.set_submodule(name, deepcopy(layer.base).double())
    grads = [torch.zeros_like(weight, dtype=torch.float64) for weight in stack.parameters()]
    losses = torch.zeros(batch.mask_BC.shape, dtype=torch.float64)
    for b in range(len(batch.ids_BT)):
        n, real_C = adapters[b] if adapters else 0, batch.mask_BC[b].bool()
        weights = {}
        for name, layer in zip(names, layers, strict=True):
            weight = layer.base.weight.double()
            if n >= 0:
                A_RI, B_OR = layer.A_NRI[n].detach().double(), layer.B_NOR[n].detach().double()
                weight = weight + layer.scale_N[n].double() * B_OR @ A_RI
            weights[f"{name}.weight"] = weight.requires_grad_()
        out = torch.func.functional_call(
            network, weights, (), {"input_ids": batch.ids_BT[b : b + 1]}
        )
        logits_CV = out.logits[0, batch.position_BC[b]][real_C]
        loss_C = F.cross_entropy(logits_CV, batch.target_BC[b][real_C], reduction="none")
        losses[b, real_C] = loss_C.detach()
        slopes = torch.autograd.grad(loss_C.sum(), list(weights.values()))
        if n < 0:
            continue
        for i, (layer, slope_OI) in enumerate(zip(layers, slopes, strict=True)):
            slope_OI = layer.scale_N[n].double() * slope_OI
            grads[2 * i][n] += layer.B_NOR[n].detach().double().T @ slope_OI
            grads[2 * i + 1][n] += slope_OI @ layer.A_NRI[n].detach().double().T
    return Plain(losses, grads)
