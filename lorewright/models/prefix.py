"""Keys and values that stand before every row of a pass, and texts that are read piece by piece.

A prefix of M positions lies at the positions before 0, so that rows keep theirs: where positions
rotate, only distances count. It is given to a network through its cache, whose length does not
count it, and through a mask in which every token sees it.

Knows a network's cache and mask; knows nothing of what a prefix holds.

Shape letters: B row, T token of a pass, K key, M position of the prefix, G key heads, E width of a
head, D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lorewright.adapters.targets import text_decoder
from lorewright.errors import ModelError
from lorewright.models.backends.network import WINDOWS
from lorewright.models.plain import cache_for


class KeysValues(NamedTuple):
    """Of one layer: keys and values (1, G, M, E)."""

    keys_1GME: Tensor
    values_1GME: Tensor


@cache
def _prefixed() -> type[Any]:
    """The class of caches whose layers begin with a prefix; made when first needed.

    Importing what it is made from takes longer than a question does without one.
    """
    from transformers.cache_utils import DynamicCache

    class Prefixed(DynamicCache):
        """A cache whose layers begin with a prefix, which its length does not count."""

        def __init__(self, prefix: Sequence[KeysValues], inner: DynamicCache) -> None:
            super().__init__()
            self.prefix, self.inner = prefix, inner

        def update(
            self,
            key_states: Tensor,
            value_states: Tensor,
            layer_idx: int,
            *args: Any,
            **kwargs: Any,
        ) -> tuple[Tensor, Tensor]:
            """Append a pass's keys and values; return prefix and all of them, (B, G, M + K, E)."""
            both = self.inner.update(key_states, value_states, layer_idx, *args, **kwargs)
            first, second = (
                torch.cat([own.to(every).expand(len(every), -1, -1, -1), every], 2)
                for own, every in zip(self.prefix[layer_idx], both, strict=True)
            )
            return first, second

        def get_seq_length(self, layer_idx: int = 0) -> int:
            """Tokens of the rows so far."""
            return int(self.inner.get_seq_length(layer_idx))

    return Prefixed


@contextmanager
def behind(network: Any, prefix: Sequence[KeysValues]) -> Iterator[None]:
    """Have every pass of a network go on from a prefix, for the length of a block.

    The prefix carries gradient. Raises ModelError for a network that sees a window only.
    """
    body, Prefixed = text_decoder(network), _prefixed()
    _check_windows(network)
    n_before = prefix[0].keys_1GME.shape[2]

    def extend(body: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            raise ModelError(
                f"{type(body).__name__} was called with {len(args)} unnamed arguments; behind a "
                "prefix it takes named ones only."
            )
        inner = kwargs.get("past_key_values")
        if isinstance(inner, Prefixed):  # what generate handed back of the pass before
            inner = inner.inner
        if inner is None:
            inner = cache_for(network.config)
        tokens = kwargs.get("input_ids")
        entering = kwargs["inputs_embeds"] if tokens is None else tokens
        shape, seen = entering.shape[:2], inner.get_seq_length()
        mask = _mask(shape, seen, kwargs.get("attention_mask"), n_before, network.dtype)
        mask = mask.to(entering.device)
        changed = {"past_key_values": Prefixed(prefix, inner), "attention_mask": mask}
        return args, {**kwargs, **changed}

    handle = body.register_forward_pre_hook(extend, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _mask(
    shape: tuple[int, int], seen: int, given: Tensor | None, n_before: int, dtype: torch.dtype
) -> Tensor:
    """What attention adds to its scores (B, 1, T, M + K): the prefix is seen by every token."""
    n_rows, n_tokens = shape
    lowest = torch.finfo(dtype).min
    if given is not None and given.dim() == 4:
        added = given if given.is_floating_point() else torch.zeros_like(given, dtype=dtype)
        own = added if given.is_floating_point() else added.masked_fill(~given, lowest)
    else:
        at_K = torch.arange(seen + n_tokens)
        see = (at_K <= at_K[seen:, None])[None, None].expand(n_rows, 1, -1, -1)
        if given is not None:
            see = see & given.cpu().bool()[:, None, None]
        own = torch.zeros(see.shape, dtype=dtype).masked_fill(~see, lowest)
    return torch.cat([own.new_zeros(*own.shape[:-1], n_before), own], -1)


class Reader:
    """Reads one row of tokens piece by piece; each piece attends to those before it."""

    def __init__(self, network: Any, *, first: int = 0) -> None:
        """`first` is the position of the first token; below 0 where positions rotate."""
        self.network, self.body, self.at = network, text_decoder(network), first
        self.cache = cache_for(network.config)

    def read(self, ids_1M: Tensor) -> list[KeysValues]:
        """Read a piece; return keys and values of all tokens so far, layer by layer."""
        n_tokens = ids_1M.shape[1]
        position_1M = torch.arange(self.at, self.at + n_tokens, device=ids_1M.device)[None]
        self.at += n_tokens
        self.body(
            input_ids=ids_1M,
            position_ids=position_1M,
            past_key_values=self.cache,
            use_cache=True,
        )
        layers: Any = self.cache.layers
        return [KeysValues(layer.keys, layer.values) for layer in layers]


def written_prefix(
    network: Any, ids_1M: Tensor, embeddings_MD: Tensor | None = None
) -> list[KeysValues]:
    """Keys and values of a row of tokens, or of vectors in their place, before position 0.

    Vectors may be those of several rows, (N, M, D), with as many rows of ids. Carries gradient to
    the vectors. Raises ModelError for a network that sees a window only.
    """
    _check_windows(network)
    rotates = "rope_parameters" in network.config.get_text_config().to_dict()
    reader = Reader(network, first=-ids_1M.shape[1] if rotates else 0)
    if embeddings_MD is None:
        return reader.read(ids_1M)
    vectors_1MD = embeddings_MD.reshape(*ids_1M.shape, -1).to(network.dtype)
    table = network.get_input_embeddings()
    handle = table.register_forward_hook(lambda module, args, given: vectors_1MD)
    try:
        return reader.read(ids_1M)
    finally:
        handle.remove()


def _check_windows(network: Any) -> None:
    config: Mapping[str, Any] = network.config.get_text_config().to_dict()
    if windows := [key for key in WINDOWS if config.get(key)]:
        raise ModelError(
            f"a prefix must be seen by every token; this network has a {windows[0]} of "
            f"{config[windows[0]]}; use a method that leaves an adapter."
        )
