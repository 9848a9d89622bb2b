"""How a kit is trained: plain data with its checks; importing it loads no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lorewright.errors import ConfigError


@dataclass(frozen=True)
class TrainConfig:
    """How a kit is trained."""

    steps: int = 800
    """Steps of the training; each has fresh documents."""
    lr: float = 4e-3
    """Peak learning rate of Adam; it warms up, then falls to a tenth as a cosine."""
    first: int = 1
    """Most facts of a document at the start."""
    facts: int = 8
    """Most facts of a document, reached by a curriculum that doubles."""
    questions: int = 32
    """About so many facts a step, over all its documents."""
    declines: float = 0.3
    """Weight of questions that are to be declined; 0 = they are left out."""
    master: float = 0.7
    """Share of answers right, over the last steps, at which documents get twice the facts."""
    seed: int = 0
    """Seed of the kit's start and of the documents."""

    def __post_init__(self) -> None:
        whole = {"steps": 1, "first": 1, "facts": 1, "questions": 1, "seed": 0}
        for name, least in whole.items():
            if type(getattr(self, name)) is not int or getattr(self, name) < least:
                raise ConfigError(
                    f"{name} must be a whole number from {least}; got {getattr(self, name)!r}."
                )
        if not (0 < self.lr < math.inf and self.declines >= 0 and 0 < self.master <= 1):
            raise ConfigError(
                f"lr {self.lr!r} must be above 0, declines {self.declines!r} at least 0, and "
                f"master {self.master!r} in (0, 1]."
            )
