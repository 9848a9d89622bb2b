"""The backend in torch by hand: a Llama-like decoder in few operations, forward and backward.

On a small base a step is mostly the cost of calling operations, not their arithmetic. Here
residuals are added by the product that makes them, the A of one input are one product, nothing is
recorded for autograd, tokens that rows begin with alike run once, and the last layer runs at the
queried positions only. Gradients of A and B are transformers' to rounding.

Shape letters: B row, T token, C queried position, M tokens of all rows, D width, F inner width, H
query heads, G key heads, E width of a head, I in-features, O out-features, R ranks of one input's
adapters together, K blocks of rows, b rows of a block, P token that rows share, S token of a row's
own, N adapters of the stack.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lorewright.adapters.lora import LoraLinear
from lorewright.models.backends.backend import AS_BOUND, Losses, Pass
from lorewright.models.backends.kernels import (
    Blocks,
    Grads,
    Linears,
    Normed,
    attend,
    attend_backward,
    heads,
    rms_norm,
    rms_norm_backward,
    rotate,
)
from lorewright.models.backends.llama import LlamaDecoder, hidden_of, projections
from lorewright.models.backends.packing import Packing


class ByHand:
    """Runs a decoder of Llama's form in torch, without autograd."""

    name = "torch, by hand"
    reduces = True
    by_weights = True

    def __init__(self, body: nn.Module) -> None:
        self.decoder = LlamaDecoder(body)
        self._agrees: bool | None = None
        """Whether it gave the decoder's numbers; None until it was tried."""

    def refusal(self, pass_: Pass) -> str | None:
        """Why it cannot run a pass; None if it can."""
        if why := self.decoder.refusal(pass_):
            return why
        if self._agrees is None:
            self._agrees = self.decoder.agrees(self.hidden)
        return None if self._agrees else "it computed other numbers than the network"

    def hidden(self, ids_BT: Tensor, position_BC: Tensor, pass_: Pass) -> Tensor:
        """Hidden states (B, C, D) at the positions; `Backend.hidden`."""
        with torch.no_grad():
            run = TorchRun(self.decoder, ids_BT, position_BC.clamp(min=pass_.n_shared), pass_)
        return hidden_of(run)

    @torch.no_grad()
    def entering(self, ids_BT: Tensor, layer: int) -> Tensor:
        """What enters a layer (B, T, D)."""
        ends_B1 = torch.full((len(ids_BT), 1), ids_BT.shape[1] - 1)
        run = TorchRun(self.decoder, ids_BT, ends_B1, AS_BOUND)
        x_MD = run.x_MD
        for each in run.layers[:layer]:
            x_MD = each.forward(x_MD, save=False)
        return x_MD.view(*ids_BT.shape, -1)

    def losses(self, head: nn.Module) -> Losses | None:
        """None: transformers' are as quick."""
        return None


class TorchRun:
    """One pass over one batch: what its layers share, and the layers that run."""

    def __init__(
        self, decoder: LlamaDecoder, ids_BT: Tensor, position_BC: Tensor, pass_: Pass
    ) -> None:
        self.decoder, self.head_width = decoder.body, decoder.head_width
        # No queried prediction depends on what comes after the last of them.
        self.n_rows, self.n_tokens = len(ids_BT), int(position_BC.max()) + 1
        self.rotary = decoder.rotary(self.n_tokens)
        self.reduced, entering = pass_.reduced, pass_.entering
        later_TT = torch.ones(self.n_tokens, self.n_tokens, dtype=torch.bool).triu(1)
        self.mask_TT = torch.zeros(later_TT.shape).masked_fill_(later_TT, -torch.inf)
        layers = decoder.layers[entering.layer if entering else 0 :]
        linears = (module for layer in layers for module in projections(layer))
        self.loras = [module for module in linears if isinstance(module, LoraLinear)]
        """Every adapted module of the layers that run, in model order."""
        self.blocks: Blocks | None = None
        """Which adapters the rows use; None = no row any."""
        if self.loras:
            rows = pass_.rows or self.loras[0].binding.rows
            if rows.single != -1:
                self.blocks = Blocks(rows, self.loras[0].scale_N, self.n_rows)
        n_blocks = len(self.blocks.index_K) if self.blocks else 1
        self.packing = Packing(self.n_rows, self.n_tokens, pass_.n_shared, n_blocks)
        if entering is None:
            ids_M = self.packing.pack(ids_BT)
            self.x_MD = F.embedding(ids_M, self.decoder.embed_tokens.weight)
        else:
            self.x_MD = self.packing.pack(entering.hidden_BTD)
        self.learns = self.blocks is not None
        whole = [_Layer(self, layer, None) for layer in layers[:-1]]
        self.layers = [*whole, _Layer(self, layers[-1], position_BC)]
        below = False
        for layer in self.layers:
            layer.below, below = below, below or layer.adapted
        self.norm: Normed | None = None

    def forward(self, *, save: bool) -> Tensor:
        """Run; with `save`, so that `backward` can follow."""
        x_MD = self.x_MD
        for layer in self.layers:
            x_MD = layer.forward(x_MD, save=save and (layer.below or layer.adapted))
        h_MD, self.norm = rms_norm(x_MD, self.decoder.norm)
        return h_MD.view(self.n_rows, -1, h_MD.shape[-1])

    def backward(self, grad_BCD: Tensor) -> Grads:
        """Gradients of all A and B. Once after every `forward`."""
        assert self.layers and self.norm, "a pass saves its values for one backward pass"
        grads: Grads = {}
        grad_MD: Tensor | None = rms_norm_backward(
            grad_BCD.reshape(-1, grad_BCD.shape[-1]), self.norm
        )
        while grad_MD is not None and self.layers:  # frees a layer's values as it passes
            grad_MD = self.layers.pop().backward(grad_MD, grads)
        return grads


# A layer

Table = tuple[Tensor, Tensor]
"""Cosines and sines."""


class _Layer:
    """One decoder layer of a pass; the last one goes on at the queried positions only."""

    def __init__(self, run: TorchRun, layer: Any, position_BC: Tensor | None) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.run, self.layer = run, layer
        # All three from one input, but for the last layer, whose queries are few.
        inputs = [attention.q_proj, attention.k_proj, attention.v_proj]
        apart = 0 if position_BC is None else 1
        using = run.blocks, run.reduced
        self.query = Linears(*using, inputs[:apart])
        self.memory = Linears(*using, inputs[apart:])
        self.output = Linears(*using, [attention.o_proj])
        self.widen = Linears(*using, [mlp.gate_proj, mlp.up_proj])
        self.narrow = Linears(*using, [mlp.down_proj])
        self.attends = bool(self.query.loras or self.memory.loras)
        parts = (self.output, self.widen, self.narrow)
        self.adapted = self.attends or any(part.loras for part in parts)
        self.below = False
        """Whether a layer below this one is adapted."""
        own = slice(run.packing.n_shared, None)
        self.queried_M: Tensor | None = None
        queried: Any = own
        if position_BC is not None:
            self.queried_M, queried = run.packing.index(position_BC), position_BC
        self.mask = run.mask_TT[queried]
        self.rotary = run.rotary[0][queried], run.rotary[1][queried]

    def forward(self, x_MD: Tensor, *, save: bool) -> Tensor:
        """The hidden states that leave the layer."""
        h_MD, norm = rms_norm(x_MD, self.layer.input_layernorm)
        queried_M = self.queried_M
        queries: list[Tensor] = []
        if queried_M is not None:
            x_MD = x_MD[queried_M]
            queries = self.query.forward(h_MD[queried_M], save=save)
        attended = self._attend(*queries, *self.memory.forward(h_MD, save=save), save=save)
        (x_MD,) = self.output.forward(attended, x_MD, save=save)
        h_MD, late = rms_norm(x_MD, self.layer.post_attention_layernorm)
        gate_MF, up_MF = self.widen.forward(h_MD, save=save)
        open_MF = F.silu(gate_MF)
        (x_MD,) = self.narrow.forward(open_MF * up_MF, x_MD, save=save)
        if save:
            self.norms, self.gates = (norm, late), (gate_MF, up_MF, open_MF)
        return x_MD

    def backward(self, grad_MD: Tensor, grads: Grads) -> Tensor | None:
        """Gradient of what entered the layer; None when nothing below has any."""
        deep = self.below or self.attends
        middle = deep or bool(self.output.loras)
        wide = middle or bool(self.widen.loras)
        inner_MF = self.narrow.backward([grad_MD], grads, needed=wide)
        if inner_MF is None:
            return None
        gate_MF, up_MF, open_MF = self.gates
        grad_up = inner_MF * open_MF
        grad_gate = torch.ops.aten.silu_backward(inner_MF.mul_(up_MF), gate_MF)
        h_MD = self.widen.backward([grad_gate, grad_up], grads, needed=middle)
        if h_MD is None:
            return None
        grad_MD = rms_norm_backward(h_MD, self.norms[1]).add_(grad_MD)
        attended = self.output.backward([grad_MD], grads, needed=deep)
        if attended is None:
            return None
        query, *memory = self._attend_backward(attended)
        if self.queried_M is None:
            h_MD = self.memory.backward([query, *memory], grads, needed=self.below)
            return None if h_MD is None else rms_norm_backward(h_MD, self.norms[0]).add_(grad_MD)
        q_MD = self.query.backward([query], grads, needed=self.below)
        h_MD = self.memory.backward(memory, grads, needed=self.below)
        if h_MD is None or q_MD is None:
            return None
        h_MD.index_add_(0, self.queried_M, q_MD)
        return rms_norm_backward(h_MD, self.norms[0]).index_add_(0, self.queried_M, grad_MD)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, *, save: bool) -> Tensor:
        """Attention of queries (M, HE) to keys and values (M', GE), causal: (M, HE)."""
        attention, packing = self.layer.self_attn, self.run.packing
        width, n_rows = self.run.head_width, self.run.n_rows
        q_MHE, k_MGE, v_MGE = (part.unflatten(1, (-1, width)) for part in (query, key, value))
        norms: tuple[Normed, ...] = ()
        if "q_norm" in attention._modules:
            q_MHE, first = rms_norm(q_MHE, attention.q_norm)
            k_MGE, second = rms_norm(k_MGE, attention.k_norm)
            norms = first, second
        k_GBTE, v_GBTE = self._with_shared(k_MGE, self.run.rotary), self._with_shared(v_MGE)
        groups = q_MHE.shape[1] // k_MGE.shape[1]
        k_HBTE, v_HBTE = k_GBTE, v_GBTE
        if groups > 1:
            k_HBTE, v_HBTE = (part.repeat_interleave(groups, 0) for part in (k_GBTE, v_GBTE))
        if self.queried_M is not None:
            q_HBCE = rotate(heads(q_MHE, n_rows), self.rotary)
        else:
            q_HKbSE = packing.own(q_MHE).permute(3, 0, 1, 2, 4)
            q_HBCE = rotate(q_HKbSE, self.rotary).flatten(1, 2)
        out_HBCE, scores = attend(q_HBCE, k_HBTE, v_HBTE, self.mask, save=save)
        if save:
            self.heads = q_HBCE, k_HBTE, v_HBTE, scores, norms, groups
        if self.queried_M is not None or not packing.n_shared:
            return out_HBCE.permute(1, 2, 0, 3).reshape(query.shape)
        attended = torch.empty_like(query)
        at_MHE = attended.unflatten(1, (-1, width))
        packing.own(at_MHE).permute(3, 0, 1, 2, 4).copy_(packing.by_block(out_HBCE))
        q_HKPE = rotate(packing.shared(q_MHE).permute(2, 0, 1, 3), self._shared(self.run.rotary))
        shared = q_HKPE, self._first(k_HBTE), self._first(v_HBTE)
        mask_PP = self.run.mask_TT[: packing.n_shared, : packing.n_shared]
        out_HKPE, scores = attend(*shared, mask_PP, save=save)
        packing.shared(at_MHE).permute(2, 0, 1, 3).copy_(out_HKPE)
        if save:
            self.shared_heads = *shared, scores
        return attended

    def _attend_backward(self, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of queries, keys and values, from that of what was attended."""
        q_HBCE, k_HBTE, v_HBTE, scores, norms, groups = self.heads
        packing, width, n_rows = self.run.packing, self.run.head_width, self.run.n_rows
        grad_MHE = grad.unflatten(1, (-1, width))
        query = torch.empty_like(grad)
        at_q = query.unflatten(1, (-1, width))
        if self.queried_M is not None:
            grad_HBCE, q_out = heads(grad_MHE, n_rows), heads(at_q, n_rows)
        else:
            grad_HBCE = packing.own(grad_MHE).permute(3, 0, 1, 2, 4).flatten(1, 2)
            q_out = packing.own(at_q).permute(3, 0, 1, 2, 4)
        grad_HBCE = grad_HBCE.contiguous()
        grad_q, grad_k, grad_v = attend_backward(grad_HBCE, q_HBCE, k_HBTE, v_HBTE, scores)
        grad_q = grad_q if self.queried_M is not None else packing.by_block(grad_q)
        rotate(grad_q, self.rotary, q_out, inverse=True)
        if self.queried_M is None and packing.n_shared:
            grad_HKPE = packing.shared(grad_MHE).permute(2, 0, 1, 3).contiguous()
            more_q, more_k, more_v = attend_backward(grad_HKPE, *self.shared_heads)
            q_out = packing.shared(at_q).permute(2, 0, 1, 3)
            rotate(more_q, self._shared(self.run.rotary), q_out, inverse=True)
            self._first(grad_k).add_(more_k)
            self._first(grad_v).add_(more_v)
        if groups > 1:
            grad_k, grad_v = (part.unflatten(0, (-1, groups)).sum(1) for part in (grad_k, grad_v))
        n_heads = len(grad_k)
        key, value = grad.new_empty(2, packing.n_blocks * packing.block_tokens, n_heads * width)
        at_k, at_v = (part.unflatten(1, (-1, width)) for part in (key, value))
        self._from_shared(grad_k, at_k, self.run.rotary)
        self._from_shared(grad_v, at_v)
        for at, saved in zip((at_q, at_k), norms, strict=False):
            at.copy_(rms_norm_backward(at, saved))
        return query, key, value

    # Keys and values: of every row those of all its tokens, though shared ones run once.

    def _with_shared(self, x_MGE: Tensor, rotary: Table | None = None) -> Tensor:
        """Of every row what is shared and its own (G, B, T, E), rotated."""
        packing, n_shared = self.run.packing, self.run.packing.n_shared
        shape = packing.n_blocks, packing.block_rows, packing.n_tokens, x_MGE.shape[2]
        all_GKbTE = x_MGE.new_empty(x_MGE.shape[1], *shape)
        own_GKbSE = packing.own(x_MGE).permute(3, 0, 1, 2, 4)
        _turn(own_GKbSE, rotary and self._own(rotary), all_GKbTE[..., n_shared:, :])
        if n_shared:
            shared_GKPE = packing.shared(x_MGE).permute(2, 0, 1, 3)
            first_GKPE = all_GKbTE[:, :, 0, :n_shared]
            _turn(shared_GKPE, rotary and self._shared(rotary), first_GKPE)
            all_GKbTE[:, :, 1:, :n_shared] = first_GKPE[:, :, None]
        return all_GKbTE.flatten(1, 2)

    def _from_shared(self, grad_GBTE: Tensor, at_MGE: Tensor, rotary: Table | None = None) -> None:
        """Gradients of what ran from those of what `_with_shared` made of it."""
        packing, n_shared = self.run.packing, self.run.packing.n_shared
        grad_GKbTE = packing.by_block(grad_GBTE)
        own_GKbSE = packing.own(at_MGE).permute(3, 0, 1, 2, 4)
        own_angles = rotary and self._own(rotary)
        _turn(grad_GKbTE[..., n_shared:, :], own_angles, own_GKbSE, inverse=True)
        if n_shared:
            grad_GKPE = grad_GKbTE[..., :n_shared, :].sum(2)
            shared_GKPE = packing.shared(at_MGE).permute(2, 0, 1, 3)
            _turn(grad_GKPE, rotary and self._shared(rotary), shared_GKPE, inverse=True)

    def _shared(self, rotary: Table) -> Table:
        """Angles of the tokens that rows share."""
        shared = slice(self.run.packing.n_shared)
        return rotary[0][shared], rotary[1][shared]

    def _own(self, rotary: Table) -> Table:
        """Angles of rows' own tokens."""
        own = slice(self.run.packing.n_shared, None)
        return rotary[0][own], rotary[1][own]

    def _first(self, x_HBTE: Tensor) -> Tensor:
        """What is shared, of the first row of every block (H, K, P, E)."""
        return x_HBTE[:, :: self.run.packing.block_rows, : self.run.packing.n_shared]


def _turn(x: Tensor, table: Table | None, out: Tensor, *, inverse: bool = False) -> None:
    """Write x, rotated where it has angles."""
    if table is None:
        out.copy_(x)
    else:
        rotate(x, table, out, inverse=inverse)
