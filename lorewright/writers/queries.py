"""How query projections are tuned on a prompt: plain data, no torch."""

from __future__ import annotations

from dataclasses import dataclass

from lorewright.errors import ConfigError

RATE = 1e-4
"""Chosen on sources that are in no table; the paper's 1e-6 to 1e-5 are for widths from 2,560."""
STEPS, SPAN = 32, 128


@dataclass(frozen=True)
class Tuning:
    """How query projections are tuned on a prompt."""

    steps: int = STEPS
    """Spans that are read; 0 = none, which is reading as the base does."""
    span: int = SPAN
    """Tokens of a span; a shorter prompt is one as a whole."""
    lr: float = RATE
    """Rate of AdamW."""
    seed: int = 0
    """Of where the spans start."""

    def __post_init__(self) -> None:
        """Check ranges."""
        if self.steps < 0 or self.span < 2 or not self.lr > 0 or self.seed < 0:
            raise ConfigError(
                f"steps is {self.steps}, span {self.span}, lr {self.lr}, seed {self.seed}; give at "
                "least 0 steps, a span of 2, a rate above 0 and a seed from 0."
            )
