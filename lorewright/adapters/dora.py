"""DoRA: rows of a weight as length and direction, computed by PEFT's own layer.

    y = m * (W x + B A x) / |W + B A|        |.| by row, held constant for the gradient

What A, B and m are trained to is PEFT's to compute: `engine` is its layer around a frozen one, and
`through` runs it with the factors of whichever adapter is meant. The scale is a part of B here.

PEFT is imported when the first such layer is made.

Shape letters: R rank, I in-features, O out-features.

Paper: DoRA, arXiv 2402.09353.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lorewright.adapters.quantise import LAYER, hushed
from lorewright.errors import ConfigError

NAME = "default"
"""Under which PEFT's layer holds what it is given."""


def engine(base: nn.Linear) -> nn.Module:
    """PEFT's DoRA layer around a frozen linear one, which stays as it is.

    Raises ConfigError without peft.
    """
    try:
        with hushed():  # peft imports bitsandbytes where that is installed
            from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ConfigError(
            "a DoRA adapter needs peft, which computes it and is not installed; run "
            "`pip install 'lorewright[peft]'`, or write plain LoRA."
        ) from error
    place = nn.ModuleList([base])
    place.is_loaded_in_4bit = type(base).__name__ == LAYER  # type: ignore[assignment]
    config = LoraConfig(r=1, lora_alpha=1, target_modules=["0"], use_dora=True)
    with torch.random.fork_rng(devices=[]):  # its first A is drawn from everybody's numbers
        inject_adapter_in_model(config, place, NAME)
    layer = place[0]
    layer.lora_dropout[NAME] = _Given()  # type: ignore[index, operator, assignment]
    return layer.requires_grad_(False)


def row_norms(layer: nn.Module) -> Tensor:
    """Length of every row of the frozen weight (O), in float32: where m starts."""
    norms: Tensor = layer.lora_magnitude_vector[NAME].weight  # type: ignore[index, union-attr]
    return norms.detach().float()


def through(
    layer: nn.Module,
    x: Tensor,
    A_RI: Tensor,
    B_OR: Tensor,
    m_O: Tensor,
    *,
    read: Tensor | None = None,
) -> Tensor:
    """What an engine makes of x (..., I) with these factors: (..., O) in the base's dtype.

    `read`: what the adapter sees instead of x, in a step under dropout.
    """
    layer.training = read is not None  # PEFT asks for what dropout left in training only
    layer.lora_dropout[NAME].read = read  # type: ignore[index, union-attr]
    parts = {"lora_A": A_RI, "lora_B": B_OR, "lora_magnitude_vector": m_O}
    named = {f"{part}.{NAME}.weight": tensor for part, tensor in parts.items()}
    try:
        y: Tensor = functional_call(layer, named, (x,))
    finally:
        layer.training, layer.lora_dropout[NAME].read = False, None  # type: ignore[index, union-attr]
    return y


class _Given(nn.Module):
    """In the place of PEFT's dropout: returns what was drawn elsewhere."""

    read: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        return x if self.read is None else self.read.to(x.dtype)
