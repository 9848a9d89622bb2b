"""The frozen trunk: what enters the first adapted layer, computed once per row.

With adapters only in layers >= k, nothing below k changes during a write. The hidden states that
enter layer k are computed once for every distinct row, stored in memory or, beyond a budget, in a
file, and every later pass begins with them: layers below k do not run again, for any adapter of the
stack. That this changes nothing is checked on real rows before it is used.

Shape letters: B row, T token, D hidden width, M tokens of all rows.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from lorewright.errors import ModelError, StorageError
from lorewright.models.backends.backend import Entering, Pass
from lorewright.models.batching import by_length, pass_tokens
from lorewright.models.model import Batch, Model

MEMORY_BYTES = 2 << 30
"""Above this many bytes of hidden states they are in a file instead of in memory."""


class Trunk:
    """Hidden states that enter layer `first`, for every row of `rows`.

    Raises ModelError when the decoder's layers are not one list, StorageError when the disk is
    full.
    """

    def __init__(
        self, model: Model, rows: Batch, lengths: Sequence[int], first: int, folder: Path | None
    ) -> None:
        self.model = model
        self.first = first
        self.starts_E = torch.tensor([0, *lengths[:-1]]).cumsum(0)
        self.lengths_E = torch.tensor(lengths)
        width = int(model.network.config.get_text_config().hidden_size)
        n_values = int(self.lengths_E.sum()) * width
        self.on_disk = n_values * model.dtype.itemsize > MEMORY_BYTES
        """Whether the hidden states are in a file."""
        if self.on_disk:
            flat = _mapped(folder, n_values, model.dtype)
        else:
            flat = torch.empty(n_values, dtype=model.dtype, device=model.device)
        self.hidden_MD = flat.view(-1, width)
        self._fill(rows, lengths)

    @torch.no_grad()
    def _fill(self, rows: Batch, lengths: Sequence[int]) -> None:
        backend = self.model.backend()
        for chosen in by_length(lengths, pass_tokens(self.model.device)):
            width = max(lengths[i] for i in chosen)
            hidden_BTD = backend.entering(rows.ids_BT[chosen, :width], self.first)
            for i, row_TD in zip(chosen, hidden_BTD, strict=True):
                start = int(self.starts_E[i])
                self.hidden_MD[start : start + lengths[i]] = row_TD[: lengths[i]]

    def entering(self, index_B: Sequence[int], n_tokens: int) -> Entering:
        """What a `Pass` over these rows, padded to `n_tokens`, begins with."""
        index = torch.tensor(index_B)
        at_T = torch.arange(n_tokens)
        inside_BT = torch.minimum(at_T, self.lengths_E[index, None] - 1)
        where_BT = (self.starts_E[index, None] + inside_BT).to(self.hidden_MD.device)
        hidden_BTD = self.hidden_MD[where_BT].to(self.model.device)
        return Entering(self.first, hidden_BTD)

    @torch.no_grad()
    def check(self, batch: Batch, index_B: Sequence[int]) -> None:
        """Raise ModelError unless a pass that begins here gives the logits of a whole one."""
        at = f"beginning a pass at layer {self.first} of {self.model.name!r}"
        whole = self.model.completion_logits(batch)
        pass_ = Pass(entering=self.entering(index_B, batch.ids_BT.shape[1]))
        try:
            short = self.model.completion_logits(batch, pass_)
        except (ValueError, RuntimeError, IndexError, TypeError, KeyError) as error:
            raise ModelError(f"{at} fails ({error}); write with trunk off.") from error
        off = (whole - short).abs().max().item()
        # Batches of another shape round differently, by more the coarser the base's numbers are.
        noise = max(1e-3, 16 * torch.finfo(self.model.dtype).eps)
        if not off <= noise * max(1.0, whole.abs().max().item()):
            raise ModelError(f"{at} changes its logits by {off:.2g}; write with trunk off.")


def _mapped(folder: Path | None, n_values: int, dtype: torch.dtype) -> Tensor:
    """A tensor in a file of its own, whose name is gone already: nothing is left, however it ends.

    Raises StorageError when the disk has no space for all of it.
    """
    try:
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix="trunk-") as file:
            os.posix_fallocate(file.fileno(), 0, n_values * dtype.itemsize)
            return torch.from_file(file.name, shared=True, size=n_values, dtype=dtype)
    except (OSError, RuntimeError) as error:
        raise StorageError(
            f"the frozen layers' hidden states need {n_values * dtype.itemsize / 2**30:.1f} GiB in "
            f"{folder or tempfile.gettempdir()}: {error}; free some space, or write with trunk off."
        ) from error
