"""IA³: a factor on every key, on every value, and on what every down projection reads.

Paper: Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning,
arXiv 2205.05638. The factors could be folded into the weights; here they are a few numbers beside
them, and no new direction: what a layer cannot say already, they cannot have it say.

Shape letters: O out-features of a projection of keys or values, I in-features of a down projection.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from lorewright.adapters.targets import DOWN, named, resolve_targets
from lorewright.knowledge.data import Knowledge
from lorewright.models.model import Model

KEYS_VALUES = ("k_proj", "v_proj")


@dataclass(frozen=True)
class IA3:
    """Factors on keys, values and the inputs of down projections; there is no size to choose."""

    name = "ia3"
    trains = "a factor on every key, value and input of a down projection (IA³)"
    size = 1

    def start(
        self, model: Model, knowledge: Knowledge, size: int, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Ones. Raises TargetsNotFound where keys, values or down projections are not apart."""
        targets = *KEYS_VALUES, *named(model.network, DOWN)
        sites = resolve_targets(model.network, targets).sites
        return {
            site.name: torch.ones(site.n_out if _scales_output(site.name) else site.n_in)
            for site in sites
        }

    def idle(self, tensors: Mapping[str, Tensor]) -> bool:
        """Whether every factor is 1."""
        return all(bool((factor == 1).all()) for factor in tensors.values())

    @contextmanager
    def on(self, model: Model, tensors: Mapping[str, Tensor]) -> Iterator[None]:
        """Multiply for the length of a block."""
        with ExitStack() as hooks:
            for name, factor in tensors.items():
                layer = model.network.get_submodule(name)
                if _scales_output(name):
                    hook = layer.register_forward_hook(partial(_output, factor))
                else:
                    hook = layer.register_forward_pre_hook(partial(_input, factor))
                hooks.callback(hook.remove)
            yield


def _scales_output(name: str) -> bool:
    return name.split(".")[-1] in KEYS_VALUES


def _output(factor_O: Tensor, layer: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> Tensor:
    return y * factor_O.to(y.dtype)


def _input(factor_I: Tensor, layer: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (args[0] * factor_I.to(args[0].dtype), *args[1:])
