"""Bottleneck adapters: a narrow network behind attention and behind the feed-forward part.

    y_D = x + U gelu(D norm(x) + b) + c

x is what a part of a layer gives, before it is added to the residual stream; norm divides by the
root of the mean square. U and c start at zero, so that training starts at the base.

Paper: Parameter-Efficient Transfer Learning for NLP, arXiv 1902.00751, with an adapter after either
part of a layer. Departure: the norm, without which parts whose outputs differ in size would want
rates of their own.

Shape letters: D width, W width of the bottleneck.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lorewright.adapters.targets import survey
from lorewright.errors import TargetsNotFound
from lorewright.knowledge.data import Knowledge
from lorewright.models.model import Model

NORM_EPS = 1e-6


class Weights(NamedTuple):
    """Of one bottleneck, in the order of PARTS."""

    down_WD: Tensor
    bias_W: Tensor
    up_DW: Tensor
    bias_D: Tensor


PARTS = ("down", "down_bias", "up", "up_bias")
"""What the names of a bottleneck's tensors end in."""


@dataclass(frozen=True)
class Bottleneck:
    """Bottlenecks behind every attention and every feed-forward part."""

    name = "bottleneck"
    trains = "networks of width --size behind attention and feed-forward parts"
    size = 8

    def start(
        self, model: Model, knowledge: Knowledge, size: int, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Random projections down and zeros up. Raises TargetsNotFound for an unlisted decoder."""
        width = int(model.network.config.get_text_config().hidden_size)
        parts = _parts(model)
        if not parts:
            raise TargetsNotFound(
                f"method 'bottleneck' was to stand behind the parts of every layer of "
                f"{model.name!r}; its decoder has no linear layers in numbered layers. Use method "
                "'prompt'."
            )
        tensors: dict[str, Tensor] = {}
        for part in parts:
            down_WD = torch.randn(size, width, generator=generator) / width**0.5
            own = Weights(down_WD, torch.zeros(size), torch.zeros(width, size), torch.zeros(width))
            tensors |= {f"{part}.{name}": each for name, each in zip(PARTS, own, strict=True)}
        return tensors

    def idle(self, tensors: Mapping[str, Tensor]) -> bool:
        """Whether everything that is added is zero."""
        added = [t for name, t in tensors.items() if name.endswith((".up", ".up_bias"))]
        return not any(bool(each.any()) for each in added)

    @contextmanager
    def on(self, model: Model, tensors: Mapping[str, Tensor]) -> Iterator[None]:
        """Have the parts' outputs go through their bottlenecks."""
        with ExitStack() as hooks:
            for part in dict.fromkeys(name.rpartition(".")[0] for name in tensors):
                weights = Weights(*(tensors[f"{part}.{name}"] for name in PARTS))
                module = model.network.get_submodule(part)
                hooks.callback(module.register_forward_hook(partial(_through, weights)).remove)
            yield


def _parts(model: Model) -> list[str]:
    """Names of the modules directly in a numbered layer that have linear layers."""
    names = []
    for site in survey(model.network)[0]:
        first, _, rest = site.projection.partition(".")
        if rest:
            names.append(f"{site.name.removesuffix(site.projection)}{first}")
    return list(dict.fromkeys(names))


def _through(weights: Weights, module: nn.Module, args: Any, output: Any) -> Any:
    x_BTD = output[0] if isinstance(output, tuple) else output
    x32_BTD = x_BTD.float()
    square = x32_BTD.square().mean(-1, keepdim=True)
    inner = F.linear(x32_BTD * torch.rsqrt(square + NORM_EPS), weights.down_WD, weights.bias_W)
    added_BTD = F.linear(F.gelu(inner), weights.up_DW, weights.bias_D)
    y_BTD = x_BTD + added_BTD.to(x_BTD.dtype)
    return (y_BTD, *output[1:]) if isinstance(output, tuple) else y_BTD
