"""How a decoder's pass runs: what a pass is, and what every backend offers.

Shape letters: B row, T token, C queried position, D width, M positions, N adapters of a stack, P
values of one adapter.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from lorewright.adapters.dropout import Masks
from lorewright.adapters.lora import Rows
from lorewright.models.backends.reduced import Reduced
from lorewright.models.nats import TokenNats


@dataclass(frozen=True, eq=False)
class Entering:
    """Hidden states with which a pass begins, and the layer that they enter."""

    layer: int
    hidden_BTD: Tensor


@dataclass(frozen=True, eq=False)
class Pass:
    """What a pass uses beside its tokens."""

    rows: Rows | None = None
    """The adapter of each row of the batch; None = as `Stack.bind` left the stack."""
    entering: Entering | None = None
    """Hidden states with which it begins, in place of tokens and of the layers below."""
    dropout: Masks | None = None
    """What adapters do not see of their input."""
    reduced: Reduced | None = None
    """Frozen weights in bfloat16, with which a backend that `reduces` multiplies."""
    n_shared: int = 0
    """Tokens with which all rows begin alike, before any that is queried. A backend may run them
    once for the rows of an adapter, with the same numbers and gradients; it need not."""
    whole_NP: Tensor | None = None
    """All A and B of the stack in one tensor (`lora.Flat`) whose gradient is wanted; a backend that
    cannot give it gives that of A and B one by one."""


AS_BOUND = Pass()
"""A pass over tokens with the adapters that the stack is bound to, if there is one."""

Losses = Callable[[Tensor, Tensor], TokenNats]
"""(hidden_MD, ids_M) -> loss in nats of each id, and whether it is the argmax; carries gradient to
the hidden states. A negative id is padding: loss 0, and correct."""


class Backend(Protocol):
    """Runs the passes of one network's body: its decoder, or all of it where more follows the head.

    `Model` asks its backends in order and takes the first that does not refuse. Gradients reach A
    and B of attached adapters and nothing else.
    """

    @property
    def name(self) -> str:
        """What reports call it."""

    @property
    def reduces(self) -> bool:
        """Whether it multiplies with the `reduced` weights of a pass."""

    @property
    def by_weights(self) -> bool:
        """Whether it computes from weights of modules that it knows and refuses any others, so that
        rows may share what they begin with, whatever else of a memory is on."""

    def refusal(self, pass_: Pass) -> str | None:
        """Why it cannot run a pass on the network as it is now, in a few words; None if it can."""

    def hidden(self, ids_BT: Tensor, position_BC: Tensor, pass_: Pass) -> Tensor:
        """What the body gives (B, C, D) at the positions. Negative ones, the last of their row, are
        padding: what is returned for them means nothing.

        Raises AdapterError when the pass's rows are of another batch.
        """

    def entering(self, ids_BT: Tensor, layer: int) -> Tensor:
        """The hidden states (B, T, D) that enter a layer, without gradient."""

    def losses(self, head: nn.Module) -> Losses | None:
        """What scores positions under a frozen head; None where another backend is to do it."""


MakeBackend = Callable[[nn.Module], Backend]
"""A backend for a network's body."""
