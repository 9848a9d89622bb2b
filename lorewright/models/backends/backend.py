"""What one pass of a decoder uses beside its tokens.

Shape letters: B row, T token, D width, N adapters of a stack, P values of one adapter.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lorewright.adapters.dropout import Masks
from lorewright.adapters.lora import Rows


@dataclass(frozen=True, eq=False)
class Entering:
    """Hidden states with which a pass begins, and the layer that they enter."""

    layer: int
    hidden_BTD: Tensor


@dataclass(frozen=True, eq=False)
class Pass:
    """What a pass uses beside its tokens; the default is the stack as `Stack.bind` left it."""

    rows: Rows | None = None
    """The adapter of each row of the batch; None = as the stack is bound."""
    entering: Entering | None = None
    """Hidden states with which it begins, in place of tokens and of the layers below."""
    dropout: Masks | None = None
    """What adapters do not see of their input."""
    whole_NP: Tensor | None = None
    """All A and B of the stack in one tensor (`lora.Flat`) whose gradient is wanted; a backend that
    cannot give it gives that of A and B one by one."""


AS_BOUND = Pass()
"""A pass over tokens with the adapters that the stack is bound to, if there is one."""
