"""What adapted layers read of some rows, as bases in which `optimisers.whitened` moves their A.

The inputs of a layer lie nearly in one direction: what tells two names apart is a small part of
their size. In a basis that makes the inputs of the rows to be learnt white, a step of A moves all
of their differences alike; and an A that is drawn there sees all of them from the start.

Runs the base over rows with hooks on the layers of a stack; knows nothing of losses or of how an
optimiser moves.

Shape letters: B batch row, T token, S tokens looked at, I in-features, K directions kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lorewright.adapters.lora import Rows, Stack, Stacked
from lorewright.models.backends.backend import Pass
from lorewright.models.batching import by_length, pass_tokens
from lorewright.models.model import Model, Rendered
from lorewright.training.bases import Bases, Basis
from lorewright.training.optimisers import Optimizer

ROWS, TOKENS = 256, 1024
"""Rows that are run and tokens that are looked at, at most; evenly spaced, so no draw is needed."""
DIRECTIONS = 256
"""Of a layer's inputs so many, the largest, have a gain of their own; the others share one."""
RIDGE = 0.03
"""Added to every direction's variance, as a share of their mean."""


def begin(
    model: Model,
    stack: Stack,
    optimizer: Optimizer,
    rows_N: Sequence[Sequence[Rendered]],
    drawn_N: Sequence[bool],
) -> None:
    """Give every adapter of a stack the bases of its rows, and those newly drawn an A in them."""
    known: dict[tuple[Rendered, ...], Bases] = {}
    bases_N = []
    for rows in map(tuple, rows_N):
        if rows not in known:
            known[rows] = measure(model, stack, rows)
        bases_N.append(known[rows])
    optimizer.whiten(bases_N)
    for n, drawn in enumerate(drawn_N):
        if drawn:
            optimizer.bring_into_bases(n)


@torch.no_grad()
def measure(model: Model, stack: Stack, rows: Sequence[Rendered]) -> Bases:
    """A basis for every adapted layer, from what it reads of the rows on the base alone.

    One forward pass over up to ROWS rows, or as many as hold twice the TOKENS. A layer that reads
    nothing, an expert that no token is sent to, gets the identity.
    """
    mean = sum(map(len, rows)) / len(rows)
    chosen = [rows[i] for i in _evenly(len(rows), min(ROWS, int(2 * TOKENS / mean) + 1))]
    n_tokens = sum(map(len, chosen))
    sampled = torch.zeros(n_tokens, dtype=torch.bool)
    sampled[_evenly(n_tokens, TOKENS)] = True
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
        places = _evenly(len(x_MI), TOKENS) if routed else at
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
            bases[source] = basis(torch.cat(read.get(source, nothing))).to(layer.A_NRI.device)
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
        return Basis(x_SI.new_zeros(width, 0).float(), x_SI.new_zeros(0).float(), 1.0)
    if n < width:
        value_K, side_SK = torch.linalg.eigh(x_SI @ x_SI.T / n)
        side_IK = x_SI.T @ side_SK / (n * value_K.clamp(min=1e-30)).sqrt()
    else:
        value_K, side_IK = torch.linalg.eigh(x_SI.T @ x_SI / n)
    kept = (value_K > 1e-9 * value_K.max()).nonzero()[:, 0][-DIRECTIONS:]
    value_K, side_IK = value_K[kept], side_IK[:, kept]
    ridge = RIDGE * size / width
    gain_K, rest = (value_K + ridge).rsqrt(), ridge**-0.5
    others = max(0.0, size - float(value_K.sum()))
    factor = (size / (float((gain_K.square() * value_K).sum()) + rest**2 * others)) ** 0.5
    return Basis(side_IK.float(), ((gain_K - rest) * factor).float(), rest * factor)


def _evenly(n: int, most: int) -> list[int]:
    """Indices below n, all or so many, evenly spaced."""
    return list(range(n)) if n <= most else [i * n // most for i in range(most)]
