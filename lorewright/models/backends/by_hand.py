"""The backend in torch by hand: a Llama-like decoder in few operations, forward and backward.

On a small base a step is mostly the cost of calling operations, not their arithmetic. Here
residuals are added by the product that makes them, the A of one input are one product, nothing is
recorded for autograd, and the last layer runs at the queried positions only. Gradients of A and B
are transformers' to rounding.

Shape letters: B row, T token, C queried position, M tokens of all rows, D width, F inner width, H
query heads, G key heads, E width of a head, I in-features, O out-features, R ranks of one input's
adapters together, K blocks of rows, N adapters of the stack.
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


class ByHand:
    """Runs a decoder of Llama's form in torch, without autograd."""

    name = "torch, by hand"

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
            run = TorchRun(self.decoder, ids_BT, position_BC.clamp(min=0), pass_)
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
        entering = pass_.entering
        if entering is None:
            embeddings_VD = self.decoder.embed_tokens.weight
            self.x_MD = F.embedding(ids_BT[:, : self.n_tokens], embeddings_VD).flatten(0, 1)
        else:
            self.x_MD = entering.hidden_BTD[:, : self.n_tokens].flatten(0, 1)
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


class _Layer:
    """One decoder layer of a pass; the last one goes on at the queried positions only."""

    def __init__(self, run: TorchRun, layer: Any, position_BC: Tensor | None) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.run, self.layer = run, layer
        # All three from one input, but for the last layer, whose queries are few.
        inputs = [attention.q_proj, attention.k_proj, attention.v_proj]
        apart = 0 if position_BC is None else 1
        self.query = Linears(run.blocks, inputs[:apart])
        self.memory = Linears(run.blocks, inputs[apart:])
        self.output = Linears(run.blocks, [attention.o_proj])
        self.widen = Linears(run.blocks, [mlp.gate_proj, mlp.up_proj])
        self.narrow = Linears(run.blocks, [mlp.down_proj])
        self.attends = bool(self.query.loras or self.memory.loras)
        parts = (self.output, self.widen, self.narrow)
        self.adapted = self.attends or any(part.loras for part in parts)
        self.below = False
        """Whether a layer below this one is adapted."""
        self.mask, self.rotary = run.mask_TT, run.rotary
        self.queried_M: Tensor | None = None
        if position_BC is not None:
            first_B1 = torch.arange(run.n_rows)[:, None] * run.n_tokens
            self.queried_M = (first_B1 + position_BC).flatten()
            self.mask = self.mask[position_BC]
            self.rotary = self.rotary[0][position_BC], self.rotary[1][position_BC]

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
        attention, width, n_rows = self.layer.self_attn, self.run.head_width, self.run.n_rows
        q_MHE, k_MGE, v_MGE = (part.unflatten(1, (-1, width)) for part in (query, key, value))
        norms: tuple[Normed, ...] = ()
        if "q_norm" in attention._modules:
            q_MHE, first = rms_norm(q_MHE, attention.q_norm)
            k_MGE, second = rms_norm(k_MGE, attention.k_norm)
            norms = first, second
        q_HBCE = rotate(heads(q_MHE, n_rows), self.rotary)
        k_HBTE = rotate(heads(k_MGE, n_rows), self.run.rotary)
        v_HBTE = heads(v_MGE, n_rows).contiguous()
        groups = q_MHE.shape[1] // k_MGE.shape[1]
        if groups > 1:
            k_HBTE, v_HBTE = (part.repeat_interleave(groups, 0) for part in (k_HBTE, v_HBTE))
        out_HBCE, scores = attend(q_HBCE, k_HBTE, v_HBTE, self.mask, save=save)
        if save:
            self.heads = q_HBCE, k_HBTE, v_HBTE, scores, norms, groups
        return out_HBCE.permute(1, 2, 0, 3).reshape(query.shape)

    def _attend_backward(self, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of queries, keys and values, from that of what was attended."""
        q_HBCE, k_HBTE, v_HBTE, scores, norms, groups = self.heads
        width, n_rows = self.run.head_width, self.run.n_rows
        grad_HBCE = heads(grad.unflatten(1, (-1, width)), n_rows).contiguous()
        grad_q, grad_k, grad_v = attend_backward(grad_HBCE, q_HBCE, k_HBTE, v_HBTE, scores)
        if groups > 1:
            grad_k, grad_v = (part.unflatten(0, (-1, groups)).sum(1) for part in (grad_k, grad_v))
        query = torch.empty_like(grad)
        key, value = grad.new_empty(2, n_rows * self.run.n_tokens, len(grad_k) * width)
        at_q, at_k, at_v = (part.unflatten(1, (-1, width)) for part in (query, key, value))
        heads(at_v, n_rows).copy_(grad_v)
        rotate(grad_q, self.rotary, heads(at_q, n_rows), inverse=True)
        rotate(grad_k, self.run.rotary, heads(at_k, n_rows), inverse=True)
        for at, saved in zip((at_q, at_k), norms, strict=False):
            at.copy_(rms_norm_backward(at, saved))
        return query, key, value
