"""What several test modules share: calibrations."""

from __future__ import annotations

from lorewright.law.calibration import (
    Body,
)
from lorewright.models.model import Model
from support.families import llama
from support.models import letters

BODIES = (
    Body("4 digits", 4, 1, 1.0),
    Body("4 digits", 8, 1, 0.5),
    Body("names", 4, 1, 0.6),
    Body("4 digits", 3, 2, 1.4),
)


def tiny() -> Model:
    """A random model that reads a page of letters and can be made sure of something."""
    network = llama(max_position_embeddings=512)
    network.lm_head.weight.data.mul_(40)
    return Model(network, letters(), "tiny")
