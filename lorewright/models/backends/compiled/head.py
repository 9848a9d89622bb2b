"""Losses under a frozen output head, in compiled code.

Shape letters: M positions, D width, V vocabulary.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor, nn

from lorewright.models.backends.compiled.buffers import Panels, Spare, floats
from lorewright.models.nats import TokenNats, with_gradient

HEAD_ROWS = 64
"""Positions whose logits a thread holds at a time."""


class Head:
    """A frozen output head: losses of positions without their logits being kept."""

    def __init__(self, library: ctypes.CDLL, head: nn.Module) -> None:
        self.library, self.head = library, head
        self._panels = Panels(library)
        self._spare = Spare()

    def nats(self, hidden_MD: Tensor, ids_M: Tensor) -> TokenNats:
        """Loss in nats of each id and whether it is the argmax; carries gradient to `hidden`."""
        return with_gradient(hidden_MD, lambda hidden, into: self.run(hidden, ids_M, into))

    def run(
        self, hidden_MD: Tensor, ids_M: Tensor, into_MD: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The same without gradient; `into` takes the losses' gradients by their position's row."""
        hidden_MD, ids_M = hidden_MD.detach().contiguous(), ids_M.contiguous()
        weight_VD = self.head.get_parameter("weight")
        up, down = self._panels.of(weight_VD)
        (m, d), v = hidden_MD.shape, len(weight_VD)
        loss_M, correct_M = floats(m), torch.empty(m, dtype=torch.bool, device="cpu")
        n_threads = torch.get_num_threads()
        logits = self._spare.take(n_threads * HEAD_ROWS * v)
        places = hidden_MD, down, up, ids_M, loss_M, correct_M
        grad = None if into_MD is None else into_MD.data_ptr()
        at = [tensor.data_ptr() for tensor in places]
        how = HEAD_ROWS, n_threads
        self.library.lorewright_nats(m, d, v, *at, grad, logits.data_ptr(), *how)
        self._spare.give(logits)
        return loss_M, correct_M
