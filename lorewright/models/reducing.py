"""Whether a base is worth multiplying with in bfloat16 on this machine.

Where it is large, in float32 on a CPU, loaded as it is in its files, and a product of its own shape
is measured to be faster so. Training asks, and whatever drafts what is checked afterwards.
"""

from __future__ import annotations

from torch import nn

from lorewright.models.backends.llama import frozen_linear
from lorewright.models.backends.reduced import Reduced, speed_up
from lorewright.models.model import Model

LEAST_BYTES = 1 << 28
"""Of a base's weights, below which bfloat16 is not tried: its products are not what takes time."""
FASTER = 1.3
"""Times as fast from which it is worth it."""
AS_IN_FILES = "auto"
"""How a base is loaded whose dtype nobody named; one that was named is meant."""


def worth(model: Model) -> float:
    """How many times as fast the base multiplies in bfloat16, if it is worth it; else 0."""
    named = model.loaded_as != AS_IN_FILES
    if named or _n_bytes(model) < LEAST_BYTES or not model.backend().reduces:
        return 0.0
    largest = _largest(model)
    times = speed_up(largest) if largest is not None else 0.0
    return times if times >= FASTER else 0.0


def reduced_for(model: Model) -> Reduced | None:
    """Frozen weights in bfloat16 for what is checked afterwards; None where it is not worth it."""
    return Reduced() if worth(model) else None


def _n_bytes(model: Model) -> int:
    return sum(weight.nbytes for weight in model.network.parameters())


def _largest(model: Model) -> nn.Module | None:
    """The largest linear layer of the decoder, the head aside; None where it has no such layers."""
    head = model.network.get_output_embeddings()
    linears = [frozen_linear(m) for m in model.network.modules()]
    plain = [m for m in linears if isinstance(m, nn.Linear) and m is not head]
    return max(plain, key=lambda linear: linear.weight.numel(), default=None)
