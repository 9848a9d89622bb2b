"""Sequences that grow together, one token a step, each with keys and values of its own.

A pass over a batch reads the base once for all rows, whatever memories they use. Rows join after a
pass over their prompts and leave at any step; the others do not notice. Keys and values of a row
lie in buffers at the row's own positions, so nothing is shifted when the batch changes, and a mask
hides everything beyond a row's own length: no row sees another one's.

`rows_for` tries this on the base at hand and takes `OneByOne` where it would not be exact: windows
that slide, states instead of keys, experts that receive tokens out of order. That is slower and
always right.

This room knows token ids and slots of a `Bank`. It knows nothing of requests, text or sampling.

Shape letters: B row, T token, V vocabulary, H head, D head width.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, Protocol

import torch
from torch import Tensor

from lorewright.models.model import Model
from lorewright.serve.bank import NO_SLOT, Bank

PLAIN_LAYER = "DynamicLayer"
"""Name of the cache layer of full attention, the only one that can be laid out by rows."""
CHUNK_TOKENS = 64
"""Buffers of keys and values grow in multiples of this many tokens."""
PREFILL_TOKENS = 4096
"""Most prompt tokens, padding included, that one pass takes."""


class Rows(Protocol):
    """What the engine asks of either kind."""

    def __len__(self) -> int:
        """Return the number of rows."""

    def add(self, prompts: Sequence[Sequence[int]], slots: Sequence[int]) -> Tensor:
        """Append rows after a pass over their prompts; return logits_BV of their next token."""

    def step(self, ids: Sequence[int]) -> Tensor:
        """Append one token to every row; return logits_BV of the one after."""

    def keep(self, rows: Sequence[int]) -> list[int]:
        """Drop all rows but these; return them in the order in which they lie afterwards."""


# --- together ----------------------------------------------------------------------------------


class _Plan:
    """Where the pass at hand reads and writes: shared by the buffers of all layers."""

    first: int = 0
    """Row that the first row of a pass over prompts becomes."""
    seen: int = 0
    """Tokens before this pass, of the longest row; 0 in a pass over prompts."""
    at_B: Tensor | None = None
    """Where each row's token goes; None in a pass over prompts."""
    n_rows: int = 0
    n_tokens: int = 0
    """Rows and tokens a row that there must be room for."""


def _update(self: Any, key_BHTD: Tensor, value_BHTD: Tensor, *_: Any, **__: Any) -> Any:
    """Write the pass's keys and values at the rows' positions; return what it attends to."""
    plan: _Plan = self.plan
    if self.keys is None or len(self.keys) < plan.n_rows or self.keys.shape[2] < plan.n_tokens:
        for name, like in (("keys", key_BHTD), ("values", value_BHTD)):
            old = getattr(self, name)
            # zeros: what a mask hides must be finite, or 0 x NaN would spread
            new = like.new_zeros(plan.n_rows, like.shape[1], plan.n_tokens, like.shape[3])
            if old is not None:
                new[: len(old), :, : old.shape[2]] = old
            setattr(self, name, new)
        self.is_initialized = True
    n_rows, n_tokens = len(key_BHTD), key_BHTD.shape[2]
    if plan.at_B is None:
        own = slice(plan.first, plan.first + n_rows)
        self.keys[own, :, :n_tokens], self.values[own, :, :n_tokens] = key_BHTD, value_BHTD
        return key_BHTD, value_BHTD
    every_B = torch.arange(n_rows, device=key_BHTD.device)
    self.keys[every_B, :, plan.at_B] = key_BHTD[:, :, 0]
    self.values[every_B, :, plan.at_B] = value_BHTD[:, :, 0]
    return self.keys[:n_rows, :, : plan.seen + 1], self.values[:n_rows, :, : plan.seen + 1]


def _buffers(layer_class: type, plan: _Plan) -> Any:
    """A cache layer of the network's own class that keeps rows apart."""
    namespace = {
        "plan": plan,
        "update": _update,
        "get_seq_length": lambda self: plan.seen,
        "get_mask_sizes": lambda self, n_query: (plan.seen + n_query, 0),
    }
    return type("RowBuffers", (layer_class,), namespace)()


class Together:
    """Rows in one batch: one pass a step for all of them."""

    def __init__(self, model: Model, bank: Bank, cache: Any) -> None:
        """Take over an empty cache of the network's own kind."""
        self.model = model
        self.bank = bank
        self.lengths: list[int] = []
        self.slots: list[int] = []
        self.plan = _Plan()
        self.cache = cache
        layer_class = type(cache.layers[0])
        cache.layers = [_buffers(layer_class, self.plan) for _ in cache.layers]
        forward = inspect.signature(model.network.forward).parameters
        self._picks_logits = "logits_to_keep" in forward

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.lengths)

    @torch.inference_mode()
    def add(self, prompts: Sequence[Sequence[int]], slots: Sequence[int]) -> Tensor:
        """Append rows after a pass over their prompts, right-padded; several passes if many."""
        found = []
        for part in _parts([len(prompt) for prompt in prompts]):
            found.append(self._prefill(prompts[part], slots[part]))
        return torch.cat(found)

    def _prefill(self, prompts: Sequence[Sequence[int]], slots: Sequence[int]) -> Tensor:
        lengths = [len(prompt) for prompt in prompts]
        width, first, device = max(lengths), len(self), self.model.device
        self._plan(first + len(prompts), width)
        self.plan.first, self.plan.seen, self.plan.at_B = first, 0, None
        ids_BT = torch.tensor([[*p, *[0] * (width - len(p))] for p in prompts], device=device)
        ends = sorted(set(lengths))
        keep = {"logits_to_keep": torch.tensor(ends, device=device) - 1}
        self.bank.binding.bind(slots)
        logits_BTV = self.model.network(
            input_ids=ids_BT,
            position_ids=torch.arange(width, device=device).expand(len(prompts), width),
            past_key_values=self.cache,
            use_cache=True,
            **(keep if self._picks_logits else {}),
        ).logits
        self.lengths += lengths
        self.slots += slots
        at = [ends.index(n) if self._picks_logits else n - 1 for n in lengths]
        return logits_BTV[torch.arange(len(at)), torch.tensor(at)].float()

    @torch.inference_mode()
    def step(self, ids: Sequence[int]) -> Tensor:
        """Append one token to every row; return logits_BV of the one after."""
        device, longest = self.model.device, max(self.lengths)
        self._plan(len(self), longest + 1)
        at_B = torch.tensor(self.lengths, device=device)
        self.plan.seen, self.plan.at_B = longest, at_B
        hidden_BT = torch.arange(longest + 1, device=device) > at_B[:, None]
        mask_BT = torch.zeros(hidden_BT.shape, dtype=self.model.dtype, device=device)
        mask_BT.masked_fill_(hidden_BT, torch.finfo(self.model.dtype).min)
        self.bank.binding.bind(self.slots)
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
        """Drop all rows but these; rows from the end move into the holes."""
        kept = set(rows)
        order = list(range(len(self)))
        holes = [row for row in order[: len(kept)] if row not in kept]
        movers = [row for row in order[len(kept) :] if row in kept]
        for hole, mover in zip(holes, movers, strict=True):
            n_tokens = self.lengths[mover]
            for layer in self.cache.layers:
                layer.keys[hole, :, :n_tokens] = layer.keys[mover, :, :n_tokens]
                layer.values[hole, :, :n_tokens] = layer.values[mover, :, :n_tokens]
            order[hole] = mover
        order = order[: len(kept)]
        if not order:  # give the room back, and leave nothing of what was said in memory
            self.plan.n_rows = self.plan.n_tokens = 0
            for layer in self.cache.layers:
                layer.keys = layer.values = None
        self.lengths = [self.lengths[row] for row in order]
        self.slots = [self.slots[row] for row in order]
        return order

    def _plan(self, n_rows: int, n_tokens: int) -> None:
        """Ask for room; it doubles, so that few steps copy."""
        if n_rows > self.plan.n_rows:
            self.plan.n_rows = max(n_rows, min(2 * self.plan.n_rows, self.bank.n_slots))
        if n_tokens > self.plan.n_tokens:
            wanted = max(n_tokens, min(2 * self.plan.n_tokens, self.model.context))
            self.plan.n_tokens = -(-wanted // CHUNK_TOKENS) * CHUNK_TOKENS


def _parts(lengths: Sequence[int]) -> list[slice]:
    """Cut prompts, in order, into passes of at most PREFILL_TOKENS with their padding."""
    parts, start = [], 0
    widest = list(accumulate(lengths, max))
    for end in range(1, len(lengths) + 1):
        if end > start + 1 and max(lengths[start:end]) * (end - start) > PREFILL_TOKENS:
            parts.append(slice(start, end - 1))
            start = end - 1
    assert widest
    return [*parts, slice(start, len(lengths))]


# --- one by one --------------------------------------------------------------------------------


class OneByOne:
    """Rows that take turns, each with a cache as the network makes it."""

    def __init__(self, model: Model, bank: Bank) -> None:
        """Start without rows."""
        self.model = model
        self.bank = bank
        self.slots: list[int] = []
        self.caches: list[Any] = []

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.slots)

    def add(self, prompts: Sequence[Sequence[int]], slots: Sequence[int]) -> Tensor:
        """Append rows after a pass over each prompt."""
        found = [self._pass(p, slot, None) for p, slot in zip(prompts, slots, strict=True)]
        self.slots += slots
        self.caches += [cache for _, cache in found]
        return torch.stack([logits_V for logits_V, _ in found])

    def step(self, ids: Sequence[int]) -> Tensor:
        """Append one token to every row; return logits_BV of the one after."""
        turns = zip(ids, self.slots, self.caches, strict=True)
        found = [self._pass([token], slot, cache) for token, slot, cache in turns]
        self.caches = [cache for _, cache in found]
        return torch.stack([logits_V for logits_V, _ in found])

    def keep(self, rows: Sequence[int]) -> list[int]:
        """Drop all rows but these, which stay in order."""
        order = sorted(rows)
        self.slots = [self.slots[row] for row in order]
        self.caches = [self.caches[row] for row in order]
        return order

    @torch.inference_mode()
    def _pass(self, ids: Sequence[int], slot: int, cache: Any) -> tuple[Tensor, Any]:
        self.bank.binding.bind([slot])
        ids_BT = torch.tensor([list(ids)], device=self.model.device)
        out = self.model.network(input_ids=ids_BT, past_key_values=cache, use_cache=True)
        return out.logits[0, -1].float(), out.past_key_values


# --- which -------------------------------------------------------------------------------------


def rows_for(model: Model, bank: Bank) -> Rows:
    """Return rows in one batch where that gives the base's own logits, else rows one by one."""
    if not bank.mixes:
        return OneByOne(model, bank)
    start = int(model.render("").prompt_ids[0])
    first, second = [start, *range(1, 4)], [start, *range(3, 9)]
    alone = OneByOne(model, bank)
    expected = [alone.add([p], [NO_SLOT])[0] for p in (first, second)]
    cache = alone.caches[0]
    if not all(type(layer).__name__ == PLAIN_LAYER for layer in cache.layers):
        return OneByOne(model, bank)
    expected += list(alone.step([1, 2]))
    try:
        together = Together(model, bank, cache)
        found = [*together.add([first, second], [NO_SLOT] * 2), *together.step([1, 2])]
    except (RuntimeError, ValueError, TypeError, AttributeError, IndexError):
        return OneByOne(model, bank)  # an architecture that takes no mask of four axes, say
    noise = max(1e-3, 16 * torch.finfo(model.dtype).eps)
    pairs = zip(found, expected, strict=True)
    exact = all((a - b).abs().max() <= noise * b.abs().max() for a, b in pairs)
    together.keep([])
    return together if exact else OneByOne(model, bank)
