"""Rows of a Llama-like decoder that grow token by token, behind a prefix that all of them share.

Keys and values of the prefix are held once, and a pass reads them once for all rows. Those of a row
lie in buffers at its own positions: nothing moves when a row ends, and a mask hides what is beyond
a row's own length. The layers' own modules compute everything but attention, so that adapters, any
dtype and any device are as in the network's own pass.

Shape letters: B row, T token of a pass, D width, G key heads, R query heads of one key head, E
width of a head, Q queries of one key head (R T), P token of the prefix, S own token of a row, M
positions.

Paper: attention to a shared prefix apart from the rows' own, Hydragen, arXiv 2402.05099.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lorewright.adapters.lora import Binding, Rows, Stacked
from lorewright.adapters.targets import layer_list
from lorewright.models.backends.llama import other_form

PREFIX_TOKENS = 512
"""Most tokens of a shared prefix that one pass takes."""
SCORE_BYTES = 128 << 20
"""Most bytes of attention scores that a pass over prompts has at a time, for each layer."""


class Growing:
    """Keys and values of rows that grow; `refusal` says where it must not be used."""

    def __init__(self, body: nn.Module) -> None:
        self.body: Any = body
        self.other_form = other_form(body)
        self.layers: list[Any] = list(layer_list(body)) if self.other_form is None else []
        self.prefix: tuple[int, ...] = ()
        self.lengths: list[int] = []
        """Own tokens of every row."""
        self.adapters: list[int] = []
        """What every row uses, where rows differ in that."""
        self._shared: list[tuple[Tensor, Tensor]] = []
        self._own: list[tuple[Tensor, Tensor]] = []
        self._table: tuple[Tensor, Tensor] | None = None

    def refusal(self) -> str | None:
        """Why the network's own forward is needed; None where it is not."""
        if self.other_form:
            return self.other_form
        bypassed = [self.body, *self.layers, *(layer.self_attn for layer in self.layers)]
        return None if all(map(_as_made, bypassed)) else "a hook is in the decoder"

    @property
    def token_bytes(self) -> int:
        """Bytes of keys and values that one token of a row takes."""
        weight, attention = self.body.embed_tokens.weight, self.layers[0].self_attn
        width = attention.head_dim * self._n_key_heads
        return int(2 * len(self.layers) * width * weight.element_size())

    @property
    def _n_key_heads(self) -> int:
        config = self.body.config
        return int(config.num_key_value_heads or config.num_attention_heads)

    # -- rows ------------------------------------------------------------------------------------

    def begin(
        self,
        prefix: Sequence[int],
        n_rows: int,
        n_tokens: int,
        passed: Callable[[int], None] = lambda n_tokens: None,
    ) -> None:
        """Drop all rows; space for so many of at most so many own tokens, behind a prefix.

        `passed` is called with the tokens of each pass over the prefix.
        """
        self.lengths, self.adapters, self.prefix, self._shared = [], [], (), []
        weight = self.body.embed_tokens.weight
        shape = (n_rows, self._n_key_heads, n_tokens, self.layers[0].self_attn.head_dim)
        self._own = [
            (weight.new_zeros(shape), weight.new_zeros(shape)) for _ in range(len(self.layers))
        ]
        for start in range(0, len(prefix), PREFIX_TOKENS):
            part = list(prefix[start : start + PREFIX_TOKENS])
            pairs: list[tuple[Tensor, Tensor]] = []
            self._pass(torch.tensor([part], device=weight.device), pairs=pairs)
            if self._shared:
                both = zip(self._shared, pairs, strict=True)
                pairs = [(torch.cat((a, c), 1), torch.cat((b, d), 1)) for (a, b), (c, d) in both]
            self.prefix, self._shared = (*self.prefix, *part), pairs
            passed(len(part))

    def at_once(self, n_tokens: int) -> int:
        """Most rows of so many own tokens that one pass takes."""
        config = self.body.config
        scores = config.num_attention_heads * n_tokens * (len(self.prefix) + n_tokens)
        return max(1, SCORE_BYTES // (4 * scores))

    def add(self, rows: Sequence[Sequence[int]], adapters: Sequence[int] = ()) -> Tensor:
        """Append rows after a pass over their tokens; return hidden_BTD, padded on the right."""
        width, first, device = max(map(len, rows)), len(self.lengths), self._own[0][0].device
        ids_BT = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], device=device)
        self.lengths += map(len, rows)
        self.adapters += adapters
        return self._pass(ids_BT, first=first, adapters=adapters)

    def step(self, ids: Sequence[int]) -> Tensor:
        """Append one token to every row; return hidden_BD."""
        device = self._own[0][0].device
        at_B = torch.tensor(self.lengths, device=device)
        ids_BT = torch.tensor(ids, device=device)[:, None]
        hidden_BTD = self._pass(ids_BT, at_B=at_B, adapters=self.adapters)
        self.lengths = [n + 1 for n in self.lengths]
        return hidden_BTD[:, 0]

    def spread(self, rows: Sequence[int]) -> None:
        """Have these rows instead, each as often as it is named."""
        index = torch.tensor(rows, device=self._own[0][0].device)
        self._own = [(keys[index], values[index]) for keys, values in self._own]
        self.lengths = [self.lengths[row] for row in rows]
        self.adapters = [self.adapters[row] for row in rows] if self.adapters else []

    def keep(self, rows: Sequence[int]) -> list[int]:
        """Drop all rows but these; the last ones move into gaps. Returns their new order."""
        wanted, order = set(rows), list(range(len(self.lengths)))
        gaps = [row for row in order[: len(wanted)] if row not in wanted]
        movers = [row for row in order[len(wanted) :] if row in wanted]
        for gap, mover in zip(gaps, movers, strict=True):
            for keys, values in self._own:
                keys[gap], values[gap] = keys[mover], values[mover]
            order[gap] = mover
        order = order[: len(wanted)]
        self.lengths = [self.lengths[row] for row in order]
        self.adapters = [self.adapters[row] for row in order] if self.adapters else []
        return order

    def end(self) -> None:
        """Free all keys and values."""
        self.prefix, self._shared, self._own, self.lengths, self.adapters = (), [], [], [], []

    # -- a pass ----------------------------------------------------------------------------------

    def _pass(
        self,
        ids_BT: Tensor,
        *,
        pairs: list[tuple[Tensor, Tensor]] | None = None,
        first: int = 0,
        at_B: Tensor | None = None,
        adapters: Sequence[int] = (),
    ) -> Tensor:
        """The last hidden states, normed; leaves keys and values in the buffers or in `pairs`."""
        n_tokens, n_shared = ids_BT.shape[1], len(self.prefix)
        x_BTD = self.body.embed_tokens(ids_BT)
        positions_BT = torch.arange(n_tokens, device=ids_BT.device)[None]
        if at_B is None:
            hidden = torch.ones(n_tokens, n_tokens, dtype=torch.bool, device=ids_BT.device).triu(1)
        else:
            positions_BT = at_B[:, None]
            hidden = torch.arange(int(at_B.max()) + 1, device=ids_BT.device) > positions_BT
            hidden = hidden[:, None, None]
        positions_BT = positions_BT + n_shared
        rotary = [part[positions_BT][:, :, None] for part in self._rotary(x_BTD, positions_BT)]
        with self._using(adapters):
            for i, layer in enumerate(self.layers):
                q_BTHE, k_BTGE, v_BTGE = _heads(layer, layer.input_layernorm(x_BTD), rotary)
                k_BGTE, v_BGTE = k_BTGE.transpose(1, 2), v_BTGE.transpose(1, 2)
                if pairs is not None:
                    pairs.append((k_BGTE[0].contiguous(), v_BGTE[0].contiguous()))
                else:
                    k_BGTE, v_BGTE = self._store(i, k_BGTE, v_BGTE, first, at_B)
                shared = self._shared[i] if self._shared else None
                scale = layer.self_attn.scaling
                out_BTX = _attend(q_BTHE, k_BGTE, v_BGTE, hidden, shared, scale)
                x_BTD = x_BTD + layer.self_attn.o_proj(out_BTX)
                x_BTD = x_BTD + layer.mlp(layer.post_attention_layernorm(x_BTD))
        normed: Tensor = self.body.norm(x_BTD)
        return normed

    def _store(
        self, i: int, k_BGTE: Tensor, v_BGTE: Tensor, first: int, at_B: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Write a pass's keys and values into a layer's buffers; return what it attends to."""
        n_rows, n_tokens = len(k_BGTE), k_BGTE.shape[2]
        keys, values = self._own[i]
        if at_B is None:
            keys[first : first + n_rows, :, :n_tokens] = k_BGTE
            values[first : first + n_rows, :, :n_tokens] = v_BGTE
            return k_BGTE, v_BGTE
        every_B, n_seen = torch.arange(n_rows, device=at_B.device), int(at_B.max()) + 1
        keys[every_B, :, at_B], values[every_B, :, at_B] = k_BGTE[:, :, 0], v_BGTE[:, :, 0]
        return keys[:n_rows, :, :n_seen], values[:n_rows, :, :n_seen]

    def _rotary(self, x_BTD: Tensor, positions_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines (T, E) of positions from 0."""
        n_tokens = int(positions_BT.max()) + 1
        table = self._table
        if table is None or n_tokens > len(table[0]) or table[0].dtype != x_BTD.dtype:
            far = max(256, 1 << (n_tokens - 1).bit_length())
            every_T = torch.arange(far, device=x_BTD.device)
            cos, sin = self.body.rotary_emb(x_BTD[:1, :1], every_T[None])
            table = self._table = cos[0].to(x_BTD.dtype), sin[0].to(x_BTD.dtype)
        return table

    def _using(self, adapters: Sequence[int]) -> Any:
        """Rows of a pass bound to their adapters, where they differ in that."""
        binding = binding_of(self.body) if adapters else None
        if binding is None:
            return nullcontext()
        # As many as are attached, also when the rows of the last ones have left.
        return binding.using(Rows(torch.tensor(adapters), binding.rows.n_adapters), None)


def binding_of(body: nn.Module) -> Binding | None:
    """What says which adapter a row uses; None without adapters."""
    return next((m.binding for m in body.modules() if isinstance(m, Stacked)), None)


def _as_made(module: nn.Module) -> bool:
    """Whether a module has no hooks and its forward is its class's own."""
    has = module.__dict__
    return not (has["_forward_hooks"] or has["_forward_pre_hooks"] or "forward" in has)


def _heads(layer: Any, h_BTD: Tensor, rotary: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Queries (B, T, H, E), rotated, and keys and values (B, T, G, E)."""
    attention = layer.self_attn
    parts = (attention.q_proj, attention.k_proj, attention.v_proj)
    q, k, v = (part(h_BTD).unflatten(-1, (-1, attention.head_dim)) for part in parts)
    if "q_norm" in attention._modules:
        q, k = attention.q_norm(q), attention.k_norm(k)
    return _rotated(q, rotary), _rotated(k, rotary), v


def _rotated(x_BTHE: Tensor, rotary: Sequence[Tensor]) -> Tensor:
    cos, sin = rotary
    one, two = x_BTHE.chunk(2, -1)
    return x_BTHE * cos + torch.cat((-two, one), -1) * sin


def _attend(
    q_BTHE: Tensor,
    k_BGSE: Tensor,
    v_BGSE: Tensor,
    hidden: Tensor,
    shared: tuple[Tensor, Tensor] | None,
    scale: float,
) -> Tensor:
    """Attention (B, T, HE) to the shared prefix, if any, and to a row's own tokens.

    hidden: (T, S) or (B, 1, 1, S), True where a token must not be seen.
    """
    n_rows, n_tokens, n_heads, _ = q_BTHE.shape
    n_keys = k_BGSE.shape[1]
    if shared is None and hidden.dim() == 2:
        k, v = (part.repeat_interleave(n_heads // n_keys, 1) for part in (k_BGSE, v_BGSE))
        out = F.scaled_dot_product_attention(
            q_BTHE.transpose(1, 2), k, v, is_causal=True, scale=scale
        )
        return out.transpose(1, 2).flatten(2)
    q_BGRTE = q_BTHE.unflatten(2, (n_keys, -1)).permute(0, 2, 3, 1, 4)
    q_BGQE = q_BGRTE.flatten(2, 3) * scale
    scores = (q_BGQE @ k_BGSE.mT).unflatten(2, (-1, n_tokens))
    scores = scores.masked_fill_(hidden if hidden.dim() == 2 else hidden[:, :, None], -torch.inf)
    scores_BGQS = scores.flatten(2, 3)
    n_shared = 0
    if shared is not None:
        k_GPE, v_GPE = shared
        n_shared = k_GPE.shape[1]
        apart_GMP = q_BGQE.transpose(0, 1).flatten(1, 2) @ k_GPE.mT
        apart_BGQP = apart_GMP.unflatten(1, (n_rows, -1)).transpose(0, 1)
        scores_BGQS = torch.cat((apart_BGQP, scores_BGQS), -1)
    whole = torch.promote_types(q_BTHE.dtype, torch.float32)
    share_BGQS = scores_BGQS.softmax(-1, dtype=whole).to(q_BTHE.dtype)
    out_BGQE = share_BGQS[..., n_shared:] @ v_BGSE
    if shared is not None:
        apart_GMP = share_BGQS[..., :n_shared].transpose(0, 1).flatten(1, 2)
        out_BGQE += (apart_GMP @ v_GPE).unflatten(1, (n_rows, -1)).transpose(0, 1)
    return out_BGQE.unflatten(2, (-1, n_tokens)).permute(0, 3, 1, 2, 4).flatten(2)
