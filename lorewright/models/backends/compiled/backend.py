"""The backend in C: a whole pass of a Llama-like decoder is one call.

On a small base a step in torch is mostly the cost of calling operations. decoder.c runs all layers
of a part of the batch at once, forward and back, in memory that stays in the caches. The numbers
are those of `by_hand`, to rounding. It packs copies of the frozen weights, so bases above
MOST_BYTES stay with torch, whose products are as quick there.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lorewright.errors import ConfigError
from lorewright.models.backends.backend import AS_BOUND, Losses, Pass
from lorewright.models.backends.compiled.decoder import CRun, Network
from lorewright.models.backends.compiled.head import Head
from lorewright.models.backends.compiled.library import KERNELS, choice, load
from lorewright.models.backends.llama import LlamaDecoder, hidden_of, projection_refusal

MOST_BYTES = 1 << 28
"""Of a decoder's frozen weights, of which copies are made."""


class Compiled:
    """Runs a decoder of Llama's form in C."""

    reduces = False
    by_weights = True

    def __init__(self, body: nn.Module) -> None:
        """Raises ConfigError for an unknown LOREWRIGHT_KERNELS, or one that insists in vain."""
        self.decoder = LlamaDecoder(body)
        self.name = "compiled code"
        self.network: Network | None = None
        self._unavailable: str | None = None
        self._head: Head | None = None
        if choice() == "c" and (why := self.refusal(AS_BOUND)):
            raise ConfigError(
                f"{KERNELS} is c; compiled code does not run this base: {why}; unset it."
            )

    def refusal(self, pass_: Pass) -> str | None:
        """Why it cannot run a pass; None if it can."""
        why = self.decoder.refusal(pass_)
        if pass_.reduced:
            why = why or "it multiplies in float32"
        if why is None and self.network is None and self._unavailable is None:
            self._unavailable = self._begin()
        return why or self._unavailable

    def _begin(self) -> str | None:
        """Load the library and try it on this decoder; why it cannot be used, if so."""
        layers, body = self.decoder.layers, self.decoder.body
        if sum(weight.nbytes for layer in layers for weight in layer.parameters()) > MOST_BYTES:
            return f"the base has more than {MOST_BYTES >> 20} MiB"
        shapes = [[tuple(w.shape) for w in layer.parameters()] for layer in layers]
        around = (body.embed_tokens.weight, body.norm.weight)
        every = [*around, *(weight for layer in layers for weight in layer.parameters())]
        if {w.dtype for w in every} != {torch.float32} or any(s != shapes[0] for s in shapes):
            return "its layers differ or are not all float32"
        library, about = load()
        if library is None:
            return about
        self.network = Network(library, self.decoder)
        if not self.decoder.agrees(self.hidden):
            self.network = None
            return "it computed other numbers than torch"
        self.name = f"compiled code ({about})"
        return None

    def hidden(self, ids_BT: Tensor, position_BC: Tensor, pass_: Pass) -> Tensor:
        """Hidden states (B, C, D) at the positions; `Backend.hidden`."""
        assert self.network is not None
        # No queried prediction depends on what comes after the last of them.
        n_tokens, entering = int(position_BC.max()) + 1, pass_.entering
        with torch.no_grad():
            x_BTD = (
                entering.hidden_BTD
                if entering
                else self.decoder.body.embed_tokens(ids_BT[:, :n_tokens])
            )
            first = entering.layer if entering else 0
            x_BTD = x_BTD[:, :n_tokens]
            run = CRun(self.network, ids_BT, x_BTD, position_BC, pass_.rows, first)
        whole = None if pass_.whole_NP is None else (pass_.whole_NP, run.backward_whole)
        return hidden_of(run, whole)

    @torch.no_grad()
    def entering(self, ids_BT: Tensor, layer: int) -> Tensor:
        """What enters a layer (B, T, D), of the base alone or as adapters are bound."""
        assert self.network is not None
        x_BTD: Tensor = self.decoder.body.embed_tokens(ids_BT)
        if not layer:
            return x_BTD
        return CRun(self.network, ids_BT, x_BTD, None, None, 0, layer).forward(save=False)

    def losses(self, head: nn.Module) -> Losses | None:
        """What scores positions under a head; None where it cannot."""
        plain = isinstance(head, nn.Linear) and head.bias is None and not projection_refusal(head)
        if self.network is None or not plain:
            return None
        if self._head is None or self._head.head is not head:
            self._head = Head(self.network.library, head)
        return self._head.nats
