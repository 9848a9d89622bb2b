"""Full fine-tuning, stored as the adapter of a rank that is nearest to what it changed.

Every targeted weight W is trained as a whole; of W - W0 the truncated SVD is stored. How much of
the change a rank holds answers how low the rank of a fact is.

Knows the training of weights and low ranks; the verdict, on what the truncation left, belongs to
`recall`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from lorewright.adapters.config import PLAIN
from lorewright.adapters.proof import unchanged
from lorewright.adapters.targets import resolve_targets
from lorewright.errors import ConfigError, NoEffect
from lorewright.models.model import Model
from lorewright.training.config import WriteConfig
from lorewright.training.descent import check, tune
from lorewright.training.watch import Watch
from lorewright.writers.adapter import AdapterState, reduced
from lorewright.writers.lessons import contexts_of, cost_of
from lorewright.writers.writer import Cost, Material


@dataclass(frozen=True)
class Full:
    """Trains the weights themselves; leaves their change at the rank of the settings."""

    config: WriteConfig

    name = "full"
    trains = "every weight of the targeted layers; stored at --rank by truncated SVD"
    leaves = AdapterState.kind
    reads: Literal["text", "lesson"] = "lesson"
    needs_context = False
    exports = True
    streams = False
    trained_offline = False

    def __post_init__(self) -> None:
        check(self.config, self.name)
        if self.config.lora.variant != PLAIN:
            raise ConfigError(
                f"method 'full' stores plain LoRA, not {self.config.lora.variant}; leave the "
                "variant out."
            )

    def write(
        self, model: Model, material: Material, *, seed: int, run: Path | None, watch: Watch
    ) -> tuple[AdapterState, Cost]:
        """Train the targeted layers' weights on the material's examples.

        Raises as `training.descent.tune`; ConfigError for a base that is not in float32, NoEffect
        for a module that training left as it was.
        """
        config = replace(self.config, seed=seed)
        names = resolve_targets(model.network, config.lora.targets, config.lora.layers).names
        before = {name: model.network.get_parameter(f"{name}.weight") for name in names}
        _check_dtype(before)
        watch.step("training whole weights in transformers")
        examples = [*material.examples, *material.rehearsal]
        tuned = tune(
            model,
            before,
            replacing,
            examples,
            config,
            mark=self.name,
            contexts=contexts_of(material, config),
            run=run,
            watch=watch,
        )
        watch.step(f"reducing the change to rank {config.lora.rank}")
        changes = {
            name: (tuned.tensors[name].double() - w.detach().cpu().double())
            for name, w in before.items()
        }
        adapter, held = reduced(model, changes, config.lora)
        if dead := unchanged(adapter):
            raise NoEffect(
                f"{len(dead)} of {len(names)} modules have a weight change of zero after training, "
                f"the first is {dead[0]!r}; leave them out of the targets."
            )
        about = {"energy_by_rank": held}
        cost = cost_of(model, material, tuned.epochs, tuned.reason, "transformers", about)
        return AdapterState(adapter), cost


@contextmanager
def replacing(model: Model, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Other weights in the place of a network's own for the length of a block."""
    layers = {name: model.network.get_submodule(name) for name in weights}
    own = {name: layer.get_parameter("weight") for name, layer in layers.items()}
    try:
        for name, weight in weights.items():
            assert isinstance(weight, nn.Parameter), "leaves of a training are parameters"
            layers[name].weight = weight
        yield
    finally:
        for name, weight in own.items():
            layers[name].weight = weight


def _check_dtype(weights: Mapping[str, Tensor]) -> None:
    for name, weight in weights.items():
        if weight.dtype is not torch.float32:
            raise ConfigError(
                f"method 'full' trains weights in float32; {name!r} is {weight.dtype}; open the "
                "base with --dtype float32."
            )
