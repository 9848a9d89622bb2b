"""What one LoRA adapter looks like: rank, scale, the layers that carry it. Plain data, no torch."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from lorewright.errors import ConfigError

PLAIN, DORA = "lora", "dora"
VARIANTS = (PLAIN, DORA)
ALPHA = 16
"""The same for every rank: at alpha / rank the rate that suits one rank then suits the others."""


@dataclass(frozen=True)
class LoraConfig:
    """What one adapter looks like: its rank, its scale and the layers that carry it."""

    rank: int = 8
    """Rows of A and columns of B, at least 1."""
    alpha: int | None = None
    """Numerator of the scale alpha / rank; 0 = 16.

    An integer because engines refuse fractions; None = ALPHA.
    """
    targets: tuple[str, ...] = ("all-linear",)
    """What is adapted: all-linear, attention, mlp, or names of layers, as dotted suffixes."""
    layers: tuple[int, ...] | None = None
    """Decoder layers to adapt, like 0-3,7; all by default."""
    rslora: bool = False
    """Divide alpha by sqrt(rank) instead of rank."""
    seed: int = 0
    """Seed of the first A, in [0, 2**32)."""
    variant: str = PLAIN
    """lora, or dora: magnitude and direction of the rows of W + B A (needs peft)."""

    def __post_init__(self) -> None:
        alpha = ALPHA if self.alpha is None else self.alpha
        for name, value in (("rank", self.rank), ("alpha", alpha)):
            if type(value) is not int or value < 1:
                raise ConfigError(f"{name} must be an integer of at least 1; got {value!r}.")
        if type(self.seed) is not int or not 0 <= self.seed < 2**32:
            raise ConfigError(f"seed must be an integer in [0, 2**32); got {self.seed!r}.")
        if isinstance(self.targets, str) or not self.targets or not all(self.targets):
            raise ConfigError(f"targets must be a tuple of module names; got {self.targets!r}.")
        if self.variant not in VARIANTS:
            raise ConfigError(
                f"variant {self.variant!r} is unknown; use one of {', '.join(VARIANTS)}."
            )
        layers = None if self.layers is None else tuple(sorted(set(self.layers)))
        if layers == () or not all(type(layer) is int and layer >= 0 for layer in layers or ()):
            raise ConfigError(f"layers must be None or indices from 0; got {self.layers!r}.")
        object.__setattr__(self, "alpha", alpha)
        object.__setattr__(self, "targets", tuple(self.targets))
        object.__setattr__(self, "layers", layers)

    def to_json(self) -> dict[str, Any]:
        """As cards and digests have it; a field that came later is left out at its default."""
        return {k: v for k, v in asdict(self).items() if (k, v) != ("variant", PLAIN)}

    @property
    def scale(self) -> float:
        """The factor of B A x: alpha / rank, or alpha / sqrt(rank) with rslora."""
        assert self.alpha is not None
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)
