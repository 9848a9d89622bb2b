"""The frozen trunk: what enters the first adapted layer, computed once per row and kept.

With adapters only in layers >= k, nothing below k changes during a write. The hidden states that
enter layer k are computed once for every distinct row, kept in memory or, beyond a budget, in a
file, and fed in at every later pass: layers below k do not run again, for any adapter of the stack.

This room knows a Model and its decoder layers. It knows nothing of objectives or of the loop. That
the short cut changes nothing is checked on real rows before it is used.

Shape letters: B row, T token, D hidden width, M tokens of all rows.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lorewright.errors import ModelError
from lorewright.model import Batch, Model
from lorewright.targets import survey

MEMORY_BYTES = 2 << 30
"""Above this many bytes of hidden states they are kept in a file instead of in memory."""
FIRST_PASS_TOKENS = 8192


class Trunk:
    """Hidden states that enter layer `first`, for every row of `rows`.

    Use as a context: inside, `feed(index_B, batch)` makes the next forward pass skip the layers
    below. Raises ModelError when the network does not have the plain form that skipping needs.
    """

    def __init__(
        self, model: Model, rows: Batch, lengths: Sequence[int], first: int, folder: Path | None
    ) -> None:
        self.model = model
        self.layers = decoder_layers(model.network)[: first + 1]
        self.starts_E = torch.tensor([0, *lengths[:-1]]).cumsum(0)
        self.lengths_E = torch.tensor(lengths)
        width = int(model.network.config.get_text_config().hidden_size)
        n_values = int(self.lengths_E.sum()) * width
        self._file: tempfile.TemporaryDirectory[str] | None = None
        if n_values * model.dtype.itemsize > MEMORY_BYTES:
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
            self._file = tempfile.TemporaryDirectory(dir=folder, prefix="trunk-")
            path = str(Path(self._file.name) / "hidden")
            flat = torch.from_file(path, shared=True, size=n_values, dtype=model.dtype)
        else:
            flat = torch.empty(n_values, dtype=model.dtype, device=model.device)
        self.hidden_MD = flat.view(-1, width)
        self._fed: Tensor | None = None
        self._fill(rows, lengths)

    @property
    def on_disk(self) -> bool:
        """Whether the hidden states are in a file."""
        return self._file is not None

    def close(self) -> None:
        """Let go of the hidden states and of their file."""
        self.hidden_MD = self.hidden_MD[:0]
        if self._file is not None:
            self._file.cleanup()

    @torch.no_grad()
    def _fill(self, rows: Batch, lengths: Sequence[int]) -> None:
        order = sorted(range(len(lengths)), key=lambda i: lengths[i])
        while order:
            n = max(1, FIRST_PASS_TOKENS // lengths[order[-1]])
            chosen, order = order[-n:], order[:-n]
            width = max(lengths[i] for i in chosen)
            found_BTD = self._entering(rows.ids_BT[chosen, :width])
            for i, row_TD in zip(chosen, found_BTD, strict=True):
                start = int(self.starts_E[i])
                self.hidden_MD[start : start + lengths[i]] = row_TD[: lengths[i]]

    def _entering(self, ids_BT: Tensor) -> Tensor:
        """What enters the last of `layers`: the pass is broken off there."""

        def catch(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            raise _Reached(args[0] if args else kwargs["hidden_states"])

        handle = self.layers[-1].register_forward_pre_hook(catch, with_kwargs=True)
        try:
            self.model.network(input_ids=ids_BT, use_cache=False)
        except _Reached as reached:
            return reached.hidden_BTD
        finally:
            handle.remove()
        raise ModelError(
            f"layer {len(self.layers) - 1} of {self.model.name!r} was not reached; write with "
            "trunk off."
        )

    def feed(self, index_B: Sequence[int], n_tokens: int) -> None:
        """Have the next pass over these rows, padded to `n_tokens`, start at the adapted layers."""
        index = torch.tensor(index_B)
        at_T = torch.arange(n_tokens)
        inside_BT = torch.minimum(at_T, self.lengths_E[index, None] - 1)
        where_BT = (self.starts_E[index, None] + inside_BT).to(self.hidden_MD.device)
        self._fed = self.hidden_MD[where_BT].to(self.model.device)

    @contextmanager
    def skipping(self) -> Iterator[None]:
        """Inside, passes that were fed skip the layers below; others run as they are."""
        below = self.layers[:-1]
        plain = [layer.forward for layer in below]

        def skip(position: int) -> Any:
            def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
                fed = self._fed
                if fed is None:
                    return plain[position](hidden_states, *args, **kwargs)
                if position < len(below) - 1:
                    return hidden_states
                self._fed = None
                return fed

            return forward

        for position, layer in enumerate(below):
            layer.forward = skip(position)
        try:
            yield
        finally:
            self._fed = None
            for layer in below:
                del layer.forward

    @torch.no_grad()
    def check(self, batch: Batch, index_B: Sequence[int]) -> None:
        """Raise ModelError unless a fed pass gives the logits of a whole one."""
        whole = self.model.completion_logits(batch)
        self.feed(index_B, batch.ids_BT.shape[1])
        fed = self.model.completion_logits(batch)
        off = (whole - fed).abs().max().item()
        if off > 1e-3 * max(1.0, whole.abs().max().item()):
            raise ModelError(
                f"feeding hidden states into layer {len(self.layers) - 1} of {self.model.name!r} "
                f"changes its logits by {off:.2g}; write with trunk off."
            )


class _Reached(Exception):
    """The pass has come to the first adapted layer."""

    def __init__(self, hidden_BTD: Tensor) -> None:
        super().__init__()
        self.hidden_BTD = hidden_BTD


def decoder_layers(network: nn.Module) -> list[nn.Module]:
    """The decoder's numbered layers, in order. Raises ModelError when they are not one list."""
    sites, _ = survey(network)
    lists: dict[str, int] = {}
    for site in sites:
        prefix = site.name.removesuffix(site.projection).rstrip(".").rpartition(".")[0]
        lists[prefix] = max(site.layer + 1, lists.get(prefix, 0))
    if len(lists) != 1:
        raise ModelError(
            f"the decoder has {len(lists)} lists of layers ({', '.join(list(lists)[:3])}); write "
            "with trunk off."
        )
    ((prefix, n_layers),) = lists.items()
    return [network.get_submodule(f"{prefix}.{i}") for i in range(n_layers)]
