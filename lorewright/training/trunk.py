"""The frozen trunk: what enters the first adapted layer, computed once per row and kept.

With adapters only in layers >= k, nothing below k changes during a write. The hidden states that
enter layer k are computed once for every distinct row, kept in memory or, beyond a budget, in a
file, and fed in at every later pass: layers below k do not run again, for any adapter of the stack.

This room knows a Model and its decoder layers. It knows nothing of objectives or of the loop. That
the short cut changes nothing is checked on real rows before it is used.

Shape letters: B row, T token, D hidden width, M tokens of all rows.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lorewright.adapters.targets import survey
from lorewright.errors import ModelError, StorageError
from lorewright.models.backends.backend import Entering
from lorewright.models.batching import by_length, pass_tokens
from lorewright.models.model import Batch, Model

MEMORY_BYTES = 2 << 30
"""Above this many bytes of hidden states they are kept in a file instead of in memory."""


class Trunk:
    """Hidden states that enter layer `first`, for every row of `rows`.

    Use as a context: inside, `feed(index_B, batch)` makes the next forward pass skip the layers
    below. Raises ModelError when the network does not have the plain form that skipping needs,
    StorageError when the disk has no room.
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
        self.on_disk = n_values * model.dtype.itemsize > MEMORY_BYTES
        """Whether the hidden states are in a file."""
        if self.on_disk:
            flat = _mapped(folder, n_values, model.dtype)
        else:
            flat = torch.empty(n_values, dtype=model.dtype, device=model.device)
        self.hidden_MD = flat.view(-1, width)
        self._rest: tuple[Any, ...] | None = None
        """What a layer returns beside hidden states, in families whose layers return tuples."""
        self._fill(rows, lengths)

    def close(self) -> None:
        """Let go of the hidden states; their file, which has no name, goes with them."""
        self.hidden_MD = torch.empty(0, self.hidden_MD.shape[1])

    @torch.no_grad()
    def _fill(self, rows: Batch, lengths: Sequence[int]) -> None:
        for chosen in by_length(lengths, pass_tokens(self.model.device)):
            width = max(lengths[i] for i in chosen)
            found_BTD = self._entering(rows.ids_BT[chosen, :width])
            for i, row_TD in zip(chosen, found_BTD, strict=True):
                start = int(self.starts_E[i])
                self.hidden_MD[start : start + lengths[i]] = row_TD[: lengths[i]]

    def _entering(self, ids_BT: Tensor) -> Tensor:
        """What enters the last of `layers`: the pass is broken off there."""
        if self.model.fused and self.model.fused.ready():
            return self.model.fused.reaching(ids_BT, len(self.layers) - 1)

        def catch(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            raise _Reached(args[0] if args else kwargs["hidden_states"])

        def note(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            self._rest = tuple(output[1:]) if isinstance(output, tuple) else None

        handles = [
            self.layers[-1].register_forward_pre_hook(catch, with_kwargs=True),
            self.layers[-2].register_forward_hook(note),
        ]
        try:
            self.model.network(input_ids=ids_BT, use_cache=False)
        except _Reached as reached:
            return reached.hidden_BTD
        finally:
            for handle in handles:
                handle.remove()
        raise ModelError(
            f"layer {len(self.layers) - 1} of {self.model.name!r} was not reached; write with "
            "trunk off."
        )

    def feed(self, index_B: Sequence[int], n_tokens: int) -> None:
        """Have the next pass over these rows, padded to `n_tokens`, start at the adapted layers."""
        self.model.entering = self.entering(index_B, n_tokens)

    def entering(self, index_B: Sequence[int], n_tokens: int) -> Entering:
        """What a `Pass` over these rows, padded to `n_tokens`, begins with."""
        index = torch.tensor(index_B)
        at_T = torch.arange(n_tokens)
        inside_BT = torch.minimum(at_T, self.lengths_E[index, None] - 1)
        where_BT = (self.starts_E[index, None] + inside_BT).to(self.hidden_MD.device)
        hidden_BTD = self.hidden_MD[where_BT].to(self.model.device)
        return Entering(len(self.layers) - 1, hidden_BTD)

    @contextmanager
    def skipping(self) -> Iterator[None]:
        """Inside, passes that were fed skip the layers below; others run as they are."""
        below = self.layers[:-1]
        plain = [layer.forward for layer in below]

        def skip(position: int) -> Any:
            def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
                entering = self.model.entering
                if entering is None:
                    return plain[position](hidden_states, *args, **kwargs)
                if position == len(below) - 1:
                    self.model.entering, hidden_states = None, entering.hidden_BTD
                return hidden_states if self._rest is None else (hidden_states, *self._rest)

            return forward

        own = [vars(layer).get("forward") for layer in below]  # another library's wrapper, if any
        for position, layer in enumerate(below):
            layer.forward = skip(position)
        try:
            yield
        finally:
            self.model.entering = None
            for layer, wrapper in zip(below, own, strict=True):
                if wrapper is None:
                    del layer.forward
                else:
                    layer.forward = wrapper

    @torch.no_grad()
    def check(self, batch: Batch, index_B: Sequence[int]) -> None:
        """Raise ModelError unless a fed pass gives the logits of a whole one."""
        at = f"feeding hidden states into layer {len(self.layers) - 1} of {self.model.name!r}"
        whole = self.model.completion_logits(batch)
        self.feed(index_B, batch.ids_BT.shape[1])
        try:
            fed = self.model.completion_logits(batch)
        except (ValueError, RuntimeError, IndexError, TypeError, KeyError) as error:
            raise ModelError(f"{at} fails ({error}); write with trunk off.") from error
        off = (whole - fed).abs().max().item()
        # Batches of another shape round differently, by more the coarser the base's numbers are.
        noise = max(1e-3, 16 * torch.finfo(self.model.dtype).eps)
        if not off <= noise * max(1.0, whole.abs().max().item()):
            raise ModelError(f"{at} changes its logits by {off:.2g}; write with trunk off.")


def _mapped(folder: Path | None, n_values: int, dtype: torch.dtype) -> Tensor:
    """A tensor in a file of its own, whose name is gone already: nothing is left, however it ends.

    Raises StorageError when the disk has no room for all of it.
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
