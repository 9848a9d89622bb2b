"""What several test modules share: engines."""

from __future__ import annotations

import torch

from lorewright.adapters.adapter import Adapter, capture
from lorewright.adapters.config import LoraConfig
from lorewright.adapters.lora import attach
from lorewright.models.model import Model


def untrained(model: Model, config: LoraConfig, size: float = 0.3) -> Adapter:
    """An adapter that changes what the base says, in no useful way."""
    generator = torch.Generator().manual_seed(config.seed)
    with attach(model.network, [config]) as stack:
        for layer in stack.modules.values():
            layer.B_NOR.data.normal_(generator=generator).mul_(size)
        return capture(stack, 0, base_id=model.name, base_digest=model.digest)
