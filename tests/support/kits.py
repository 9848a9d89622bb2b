"""What several test modules share: kits for a tiny base."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from lorewright.models.model import Model
from lorewright.writers.kit import Kit, rounded
from lorewright.writers.methods import LEARNED


def untrained(model: Model, name: str, options: Mapping[str, float] | None = None) -> Kit:
    """A method's kit as it is before training."""
    method = LEARNED[name]
    chosen = {**method.options, **(options or {})}
    tensors = method.start(model, chosen, torch.Generator().manual_seed(0))
    return Kit(name, rounded(tensors), chosen, model.name, model.digest)


def random_kit(
    model: Model, name: str, options: Mapping[str, float] | None = None, size: float = 0.1
) -> Kit:
    """A kit that is moved at random from where training starts, so that it writes something."""
    kit = untrained(model, name, options)
    generator = torch.Generator().manual_seed(1)
    moved = {
        key: tensor + size * torch.randn(tensor.shape, generator=generator)
        for key, tensor in kit.tensors.items()
    }
    return Kit(name, rounded(moved), kit.options, kit.base_id, kit.base_digest)
