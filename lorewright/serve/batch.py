"""Sequences that grow together, one token a step, each with keys and values of its own.

A pass over a batch reads the base once for all rows, whatever memories they use. Rows join after a
pass over their prompts and leave at any step; the others are not affected. Keys and values of a row
lie in buffers at the row's own positions, so nothing is shifted when the batch changes, and a mask
hides everything beyond a row's own length: no row sees another one's.

`batch_for` tries this on the base at hand and falls back to `SequentialBatch` where it would not be
exact: sliding windows, states instead of keys, experts that receive tokens out of order.

Shape letters: B row, T token, V vocabulary, H head, D head width.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from lorewright.models.model import Model
from lorewright.serve.adapter_cache import NO_SLOT, AdapterCache

FULL_ATTENTION_LAYER = "DynamicLayer"
"""Name of the cache layer of full attention, the only one that can be laid out by rows."""
CHUNK_TOKENS = 64
"""Buffers of keys and values grow in multiples of this many tokens."""
PREFILL_TOKENS = 4096
"""Most prompt tokens, padding included, that one pass takes."""


class Batch(Protocol):
    """What the scheduler needs of either kind."""

    def __len__(self) -> int:
        """Return the number of rows."""

    def add(self, prompts: Sequence[Sequence[int]], slots: Sequence[int]) -> Tensor:
        """Append rows after a pass over their prompts; return logits_BV of their next token."""

    def step(self, ids: Sequence[int]) -> Tensor:
        """Append one token to every row; return logits_BV of the one after."""

    def keep(self, rows: Sequence[int]) -> list[int]:
        """Drop all rows but these; return them in the order in which they lie afterwards."""


# --- one pass for all rows ---------------------------------------------------------------------


class _Positions:
    """Where the pass at hand reads and writes: shared by the buffers of all layers."""

    first_row: int = 0
    """Row that the first row of a pass over prompts becomes."""
    n_seen: int = 0
    """Tokens before this pass, of the longest row; 0 in a pass over prompts."""
    at_B: Tensor | None = None
    """Position of each row's token; None in a pass over prompts."""
    n_rows: int = 0
    n_tokens: int = 0
    """Rows, and tokens a row, that the buffers must hold."""


def _update(self: Any, key_BHTD: Tensor, value_BHTD: Tensor, *_: Any, **__: Any) -> Any:
    """Write the pass's keys and values at the rows' positions; return what it attends to."""
    positions: _Positions = self.positions
    n_rows, n_tokens = positions.n_rows, positions.n_tokens
    if self.keys is None or len(self.keys) < n_rows or self.keys.shape[2] < n_tokens:
        for name, like in (("keys", key_BHTD), ("values", value_BHTD)):
            old = getattr(self, name)
            new = like.new_zeros(n_rows, like.shape[1], n_tokens, like.shape[3])
            if old is not None:
                new[: len(old), :, : old.shape[2]] = old
            setattr(self, name, new)
        self.is_initialized = True
    n_rows, n_tokens = len(key_BHTD), key_BHTD.shape[2]
    pairs = ((self.keys, key_BHTD), (self.values, value_BHTD))
    if positions.at_B is None:
        own = slice(positions.first_row, positions.first_row + n_rows)
        for buffer, new in pairs:
            buffer[own, :, :n_tokens] = new
            # what the mask hides must be finite, or 0 x NaN of the row before would spread
            buffer[own, :, n_tokens:] = 0
        return key_BHTD, value_BHTD
    every_B = torch.arange(n_rows, device=key_BHTD.device)
    for buffer, new in pairs:
        buffer[every_B, :, positions.at_B] = new[:, :, 0]
    n_seen = positions.n_seen
    return self.keys[:n_rows, :, : n_seen + 1], self.values[:n_rows, :, : n_seen + 1]


def _buffers(layer_class: type, positions: _Positions) -> Any:
    """A cache layer of the network's own class that keeps rows apart."""
    namespace = {
        "positions": positions,
        "update": _update,
        "get_seq_length": lambda self: positions.n_seen,
        "get_mask_sizes": lambda self, n_query: (positions.n_seen + n_query, 0),
    }
    return type("RowBuffers", (layer_class,), namespace)()


class PaddedBatch:
    """Rows in one batch: one pass a step for all of them."""

    def __init__(self, model: Model, adapters: AdapterCache, cache: Any) -> None:
        """Take over an empty key-value cache of the network's own kind."""
        self.model = model
        self.adapters = adapters
        self.lengths: list[int] = []
        self.slots: list[int] = []
        self.positions = _Positions()
        self.cache = cache
        layer_class = type(cache.layers[0])
        cache.layers = [_buffers(layer_class, self.positions) for _ in cache.layers]
        forward = inspect.signature(model.network.forward).parameters
        self._selects_logits = "logits_to_keep" in forward

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.lengths)

    @torch.inference_mode()
    def add(self, prompts: Sequence[Sequence[int]], slots: Sequence[int]) -> Tensor:
        """Append rows after a pass over their prompts, right-padded; several passes if many."""
        parts = _parts([len(prompt) for prompt in prompts])
        return torch.cat([self._prefill(prompts[part], slots[part]) for part in parts])

    def _prefill(self, prompts: Sequence[Sequence[int]], slots: Sequence[int]) -> Tensor:
        lengths = [len(prompt) for prompt in prompts]
        width, first, device = max(lengths), len(self), self.model.device
        self._reserve(first + len(prompts), width)
        self.positions.first_row, self.positions.n_seen, self.positions.at_B = first, 0, None
        ids_BT = torch.tensor([[*p, *[0] * (width - len(p))] for p in prompts], device=device)
        ends = sorted(set(lengths))
        select = {"logits_to_keep": torch.tensor(ends, device=device) - 1}
        self.adapters.binding.bind(slots)
        logits_BTV = self.model.network(
            input_ids=ids_BT,
            position_ids=torch.arange(width, device=device).expand(len(prompts), width),
            past_key_values=self.cache,
            use_cache=True,
            **(select if self._selects_logits else {}),
        ).logits
        self.lengths += lengths
        self.slots += slots
        at = [ends.index(n) if self._selects_logits else n - 1 for n in lengths]
        return logits_BTV[torch.arange(len(at)), torch.tensor(at)].float()

    @torch.inference_mode()
    def step(self, ids: Sequence[int]) -> Tensor:
        """Append one token to every row; return logits_BV of the one after."""
        device, longest = self.model.device, max(self.lengths)
        self._reserve(len(self), longest + 1)
        at_B = torch.tensor(self.lengths, device=device)
        self.positions.n_seen, self.positions.at_B = longest, at_B
        hidden_BT = torch.arange(longest + 1, device=device) > at_B[:, None]
        mask_BT = torch.zeros(hidden_BT.shape, dtype=self.model.dtype, device=device)
        mask_BT.masked_fill_(hidden_BT, torch.finfo(self.model.dtype).min)
        self.adapters.binding.bind(self.slots)
        logits_BTV = self.model.network(
            input_ids=torch.tensor(ids, device=device)[:, None],
            position_ids=at_B[:, None],
            attention_mask=mask_BT[:, None, None],
            past_key_values=self.cache,
            use_cache=True,
        ).logits
        self.lengths = [n + 1 for n in self.lengths]
        return logits_BTV[:, -1].float()

    @torch.inference_mode()
    def keep(self, rows: Sequence[int]) -> list[int]:
        """Drop all rows but these; rows from the end move into the gaps."""
        wanted = set(rows)
        order = list(range(len(self)))
        gaps = [row for row in order[: len(wanted)] if row not in wanted]
        movers = [row for row in order[len(wanted) :] if row in wanted]
        for gap, mover in zip(gaps, movers, strict=True):
            for layer in self.cache.layers:
                layer.keys[gap], layer.values[gap] = layer.keys[mover], layer.values[mover]
            order[gap] = mover
        order = order[: len(wanted)]
        if not order:  # free the buffers, and leave nothing of the replies in memory
            self.positions.n_rows = self.positions.n_tokens = 0
            for layer in self.cache.layers:
                layer.keys = layer.values = None
        self.lengths = [self.lengths[row] for row in order]
        self.slots = [self.slots[row] for row in order]
        return order

    def _reserve(self, n_rows: int, n_tokens: int) -> None:
        """Set the size of the buffers; it doubles, so that few steps copy."""
        positions = self.positions
        if n_rows > positions.n_rows:
            positions.n_rows = max(n_rows, min(2 * positions.n_rows, self.adapters.n_slots))
        if n_tokens > positions.n_tokens:
            wanted = max(n_tokens, min(2 * positions.n_tokens, self.model.context))
            positions.n_tokens = -(-wanted // CHUNK_TOKENS) * CHUNK_TOKENS


def _parts(lengths: Sequence[int]) -> list[slice]:
    """Cut prompts, in order, into passes of at most PREFILL_TOKENS with their padding."""
    parts, start = [], 0
    for end in range(1, len(lengths) + 1):
        if end > start + 1 and max(lengths[start:end]) * (end - start) > PREFILL_TOKENS:
            parts.append(slice(start, end - 1))
            start = end - 1
    return [*parts, slice(start, len(lengths))]


# --- one pass for each row ---------------------------------------------------------------------


class SequentialBatch:
    """Rows one after the other, each with a key-value cache as the network makes it."""

    def __init__(self, model: Model, adapters: AdapterCache) -> None:
        """Start without rows."""
        self.model = model
        self.adapters = adapters
        self.slots: list[int] = []
        self.caches: list[Any] = []

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.slots)

    def add(self, prompts: Sequence[Sequence[int]], slots: Sequence[int]) -> Tensor:
        """Append rows after a pass over each prompt."""
        outputs = [self._pass(p, slot, None) for p, slot in zip(prompts, slots, strict=True)]
        self.slots += slots
        self.caches += [cache for _, cache in outputs]
        return torch.stack([logits_V for logits_V, _ in outputs])

    def step(self, ids: Sequence[int]) -> Tensor:
        """Append one token to every row; return logits_BV of the one after."""
        rows = zip(ids, self.slots, self.caches, strict=True)
        outputs = [self._pass([token], slot, cache) for token, slot, cache in rows]
        self.caches = [cache for _, cache in outputs]
        return torch.stack([logits_V for logits_V, _ in outputs])

    def keep(self, rows: Sequence[int]) -> list[int]:
        """Drop all rows but these, which stay in order."""
        order = sorted(rows)
        self.slots = [self.slots[row] for row in order]
        self.caches = [self.caches[row] for row in order]
        return order

    @torch.inference_mode()
    def _pass(self, ids: Sequence[int], slot: int, cache: Any) -> tuple[Tensor, Any]:
        self.adapters.binding.bind([slot])
        ids_BT = torch.tensor([list(ids)], device=self.model.device)
        out = self.model.network(input_ids=ids_BT, past_key_values=cache, use_cache=True)
        return out.logits[0, -1].float(), out.past_key_values


# --- which -------------------------------------------------------------------------------------


def batch_for(model: Model, adapters: AdapterCache) -> Batch:
    """Return a padded batch where that gives the base's own logits, else a sequential one."""
    sequential = SequentialBatch(model, adapters)
    if not adapters.batches:
        return sequential
    start = int(model.render("").prompt_ids[0])
    first, second = [start, *range(1, 4)], [start, *range(3, 9)]
    expected = [sequential.add([p], [NO_SLOT])[0] for p in (first, second)]
    cache = sequential.caches[0]
    if not all(type(layer).__name__ == FULL_ATTENTION_LAYER for layer in cache.layers):
        return SequentialBatch(model, adapters)
    expected += list(sequential.step([1, 2]))
    try:
        padded = PaddedBatch(model, adapters, cache)
        logits = [*padded.add([first, second], [NO_SLOT] * 2), *padded.step([1, 2])]
    except (RuntimeError, ValueError, TypeError, AttributeError, IndexError):
        # an architecture that takes no mask of four axes, say
        return SequentialBatch(model, adapters)
    noise = max(1e-3, 16 * torch.finfo(model.dtype).eps)
    pairs = zip(logits, expected, strict=True)
    exact = all((a - b).abs().max() <= noise * b.abs().max() for a, b in pairs)
    padded.keep([])
    return padded if exact else SequentialBatch(model, adapters)
