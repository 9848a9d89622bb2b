"""Losses under a frozen output head, in C: logits are never stored.

Shape letters: M positions, D width, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lorewright.models.backends.compiled.library import Library
from lorewright.models.backends.compiled.memory import Packed, Spare, floats
from lorewright.models.nats import TokenNats, with_gradient

HEAD_ROWS = 64
"""Positions whose logits a thread holds at a time."""


class Head:
    """A frozen output head without bias, float32 on the CPU."""

    def __init__(self, library: Library, head: nn.Module) -> None:
        self.library, self.head = library, head
        self._packed = Packed(library)
        self._spare = Spare()

    def nats(self, hidden_MD: Tensor, ids_M: Tensor) -> TokenNats:
        """Loss in nats of each id and whether it is the argmax; carries gradient to `hidden`."""
        return with_gradient(hidden_MD, lambda hidden, into: self._run(hidden, ids_M, into))

    def _run(
        self, hidden_MD: Tensor, ids_M: Tensor, into_MD: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The same without gradient; `into` receives the gradient of each position's loss."""
        floats_of, ffi = self.library.floats, self.library.ffi
        hidden_MD, ids_M = hidden_MD.detach().contiguous(), ids_M.contiguous()
        weight_VD = self.head.get_parameter("weight")
        up, down = self._packed.of(weight_VD)
        (m, d), v = hidden_MD.shape, len(weight_VD)
        loss_M, correct_M = floats(m), torch.empty(m, dtype=torch.bool, device="cpu")
        n_threads = torch.get_num_threads()
        logits = self._spare.take(n_threads * HEAD_ROWS * v)
        self.library.lib.lorewright_nats(
            *(m, d, v),
            *(floats_of(hidden_MD), floats_of(down), floats_of(up), self.library.longs(ids_M)),
            *(floats_of(loss_M), ffi.cast("unsigned char *", correct_M.data_ptr())),
            ffi.NULL if into_MD is None else floats_of(into_MD),
            *(floats_of(logits), HEAD_ROWS, n_threads),
        )
        self._spare.give(logits)
        return loss_M, correct_M
