"""A Llama-like decoder in few operations: forward and backward by hand, adapters included.

On a small base a step is mostly the cost of calling operations, not their arithmetic. This room
runs the same decoder with fewer: residuals are added by the product that makes them, A of one input
are one product, nothing is recorded for autograd, and the last layer runs at the positions that are
asked for only. Gradients of A and B are the network's to rounding; nothing else has any.

It reads the network as it stands (weights are not copied) and takes FAMILIES where they are plain:
RMS norms, rotary positions, full causal attention, SwiGLU. `of` finds out whether a decoder is one,
`ready` whether it may run now: float32 on the CPU, plain linear layers or `LoraLinear`, nothing
that listens or learns. Everything else runs through the network itself.

Shape letters: B row, T token, C position asked for, M tokens of all rows, D width, F inner width,
H query heads, G key heads, E width of a head, I in-features, O out-features, R ranks of one input's
adapters together, K blocks of rows, N adapters of the stack.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lorewright.adapters.lora import LoraLinear
from lorewright.models.backends import compiled
from lorewright.models.backends.backend import Entering
from lorewright.models.backends.compiled.decoder import projections
from lorewright.models.backends.kernels import (
    Bound,
    Grads,
    Linears,
    Normed,
    attend,
    attend_back,
    heads,
    rms_norm,
    rms_norm_back,
    turn,
)
from lorewright.models.nats import TokenNats, chunked_nats

DECODER = {"embed_tokens", "layers", "norm", "rotary_emb"}
LAYER = {"input_layernorm", "self_attn", "post_attention_layernorm", "mlp"}
ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
HEAD_NORMS = {"q_norm", "k_norm"}
FEED_FORWARD = {"gate_proj", "up_proj", "down_proj", "act_fn"}
FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
"""Kinds of configuration that are taken: others look alike and differ where a short trial cannot
see it, in positions far out, say."""
TRIED_TOKENS = 12
"""Tokens a row when a decoder is compared with what this room makes of it."""
STATIC_ROPE = ("default", "linear", "llama3", "yarn")
"""Kinds of rotary positions whose frequencies do not depend on the length of the text."""


class Fused:
    """A decoder that can be run by hand; made by `of`."""

    def __init__(self, decoder: Any) -> None:
        self.decoder = decoder
        self.layers: list[Any] = list(decoder.layers)
        attention = self.layers[0].self_attn
        self.head_width = int(attention.head_dim)
        self.scaling = float(attention.scaling)
        self._turns = (torch.empty(0), torch.empty(0))
        self.compiled: compiled.Network | None = None
        """The same layers in compiled code, where that can be had."""
        self.says = ""
        self._head: compiled.Head | None = None
        self.agrees: bool | None = None
        """Whether it gave the decoder's numbers; None until it was ready for a trial."""

    @classmethod
    def of(cls, decoder: nn.Module) -> Fused | None:
        """The decoder as one to run by hand; None if it is built otherwise."""
        children = dict(decoder.named_children())
        if set(children) != DECODER or type(children["embed_tokens"]) is not nn.Embedding:
            return None
        rotary: Any = children["rotary_emb"]
        config = rotary.config.to_dict()
        if config["model_type"] not in FAMILIES:
            return None
        kinds = config.get("layer_types") or ()
        windowed = config.get("sliding_window") and not kinds
        if rotary.rope_type not in STATIC_ROPE or windowed or set(kinds) - {"full_attention"}:
            return None
        layers = list(decoder.get_submodule("layers").children())
        norms = [decoder.get_submodule("norm")]
        for layer in layers:
            if not _is_plain(layer):
                return None
            norms += [m for n, m in layer.named_modules() if n.endswith("norm")]
        attentions: list[Any] = [layer.get_submodule("self_attn") for layer in layers]
        if len({(attention.head_dim, attention.scaling) for attention in attentions}) > 1:
            return None
        if not all(_is_rms(norm) for norm in norms):
            return None
        found = cls(decoder)
        found.ready()
        return None if found.agrees is False else found

    def _agrees(self) -> bool:
        """Whether hidden states are the decoder's own, tried on tokens drawn at random.

        Tried in compiled code first, which is dropped if it makes other numbers.
        """
        embeddings_VD = self.decoder.embed_tokens.weight
        generator = torch.Generator().manual_seed(0)
        ids_BT = torch.randint(len(embeddings_VD), (2, TRIED_TOKENS), generator=generator)
        with torch.no_grad():
            whole_BTD = self.decoder(input_ids=ids_BT, use_cache=False).last_hidden_state
        found = compiled.Network.of(self.decoder, self.layers, lambda n: self.turns(n))
        self.compiled, self.says = found
        if self.compiled is not None and not self._gives(ids_BT, whole_BTD):
            self.compiled, self.says = None, "it computed other numbers than torch"
        return self.compiled is not None or self._gives(ids_BT, whole_BTD)

    def _gives(self, ids_BT: Tensor, whole_BTD: Tensor) -> bool:
        with torch.no_grad():
            found_BTD = self.hidden(ids_BT, torch.arange(TRIED_TOKENS).expand(2, -1))
        return bool(torch.allclose(found_BTD, whole_BTD, rtol=1e-3, atol=1e-4))

    def ready(self, first: int = 0) -> bool:
        """Whether layers from `first` on may run by hand as they are now."""
        embedding, layers = self.decoder.embed_tokens, self.layers[first:]
        around = (self.decoder, embedding, self.decoder.norm, self.decoder.rotary_emb)
        if type(embedding) is not nn.Embedding or not all(map(_untouched, around)):
            return False
        linears = [module for layer in layers for module in projections(layer)]
        others = [module for layer in layers for module in _others(layer)]
        if not all(map(_takes, linears)) or not all(map(_untouched, others)):
            return False
        if self.agrees is None and not first and LoraLinear not in map(type, linears):
            self.agrees = self._agrees()
        return bool(self.agrees)

    def hidden(
        self, ids_BT: Tensor, position_BC: Tensor, entering: Entering | None = None
    ) -> Tensor:
        """The decoder's last hidden states (B, C, D) at the positions asked for.

        Carries gradient to the A and B of attached adapters. `entering` replaces ids and the layers
        below its own. Negative positions, the last of a row, are not asked for: what is returned
        for them means nothing.
        """
        with torch.no_grad():
            run = self._run(ids_BT, position_BC, entering)
        weights = [weight for lora in run.loras for weight in (lora.A_NRI, lora.B_NOR)]
        learns = run.learns and any(weight.requires_grad for weight in weights)
        if learns and torch.is_grad_enabled():
            whole_NP = run.loras[0].binding.whole_NP
            if whole_NP is not None and isinstance(run, compiled.Run):
                return _Whole.apply(run, whole_NP)
            hidden: Tensor = _Pass.apply(run, *weights)
            return hidden
        with torch.no_grad():
            return run.forward(keep=False)

    def _run(
        self, ids_BT: Tensor, position_BC: Tensor, entering: Entering | None
    ) -> _Run | compiled.Run:
        if self.compiled is None:
            return _Run(self, ids_BT, position_BC.clamp(min=0), entering)
        # No prediction asked for depends on what comes after the last of them.
        n_tokens, first = int(position_BC.max()) + 1, entering.layer if entering else 0
        x_BTD = entering.hidden_BTD if entering else self.decoder.embed_tokens(ids_BT[:, :n_tokens])
        return compiled.Run(self.compiled, ids_BT, x_BTD[:, :n_tokens], position_BC, first)

    def nats(self, head: nn.Module, hidden_MD: Tensor, ids_M: Tensor, chunk: int) -> TokenNats:
        """`losses.chunked_nats` under a head, in compiled code where that can be had."""
        plain = isinstance(head, nn.Linear) and head.bias is None and _takes(head)
        if self.compiled is None or not plain:
            return chunked_nats(head, hidden_MD, ids_M, chunk)
        if self._head is None or self._head.head is not head:
            self._head = compiled.Head(self.compiled.library, head)
        return self._head.nats(hidden_MD, ids_M)

    @torch.no_grad()
    def reaching(self, ids_BT: Tensor, layer: int) -> Tensor:
        """What enters a layer (B, T, D)."""
        if self.compiled is not None:
            x_BTD: Tensor = self.decoder.embed_tokens(ids_BT)
            below = compiled.Run(self.compiled, ids_BT, x_BTD, None, 0, layer)
            return below.forward(keep=False) if layer else x_BTD
        ends_B1 = torch.full((len(ids_BT), 1), ids_BT.shape[1] - 1)
        run = _Run(self, ids_BT, ends_B1, None)
        x_MD = run.x_MD
        for each in run.layers[:layer]:
            x_MD = each.forward(x_MD, keep=False)
        return x_MD.view(*ids_BT.shape, -1)

    def turns(self, n_tokens: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines (T, E/2) of positions from 0, times the root of attention's scale.

        A product of a turned query and a turned key then has the scale in it.
        """
        if n_tokens > len(self._turns[0]):
            positions = torch.arange(max(64, 1 << (n_tokens - 1).bit_length()))[None]
            weight, half = self.decoder.embed_tokens.weight, self.head_width // 2
            with torch.no_grad():
                found = self.decoder.rotary_emb(weight[:1, None], positions)
            cos, sin = (part[0, :, :half].float() * math.sqrt(self.scaling) for part in found)
            self._turns = cos.contiguous(), sin.contiguous()
        return self._turns[0][:n_tokens], self._turns[1][:n_tokens]


def engine(fused: Fused | None) -> str:
    """What passes run in that train or score, and why not in something quicker."""
    if fused is None or not fused.ready():
        return "the network"
    return f"{'compiled code' if fused.compiled else 'torch, by hand'} ({fused.says})"


def _is_plain(layer: nn.Module) -> bool:
    """Whether a layer consists of what this room knows how to run, and of nothing more."""
    if {name for name, _ in layer.named_children()} != LAYER:
        return False
    attention: Any = layer.get_submodule("self_attn")
    mlp: Any = layer.get_submodule("mlp")
    inside = {name for name, _ in attention.named_children()}
    if inside not in (ATTENTION, ATTENTION | HEAD_NORMS):
        return False
    if {name for name, _ in mlp.named_children()} != FEED_FORWARD:
        return False
    probe = torch.linspace(-3, 3, 13)
    own = [p for m in (layer, attention, mlp) for p in m.parameters(recurse=False)]
    return not own and torch.equal(mlp.act_fn(probe), F.silu(probe))


def _is_rms(norm: nn.Module) -> bool:
    """Whether a norm divides by the root of the mean square and multiplies by its weight."""
    weight = norm.get_parameter("weight")
    if weight.dim() != 1 or "variance_epsilon" not in vars(norm):
        return False
    probe = torch.linspace(-2, 3, len(weight), device=weight.device, dtype=weight.dtype)[None]
    with torch.no_grad():
        found, expected = norm(probe), rms_norm(probe, norm)[0]
    return bool(torch.allclose(found, expected, rtol=1e-2, atol=1e-2))


def _untouched(module: nn.Module) -> bool:
    """Whether nothing listens at a module or learns in it, and its forward is its class's own."""
    has = module.__dict__  # a hundred modules are asked at every step, so that this must be quick
    hooks = has["_forward_hooks"] or has["_forward_pre_hooks"]
    if hooks or has["_backward_hooks"] or has["_backward_pre_hooks"] or "forward" in has:
        return False
    if type(module) is LoraLinear:
        return True
    for weight in has["_parameters"].values():
        if weight is not None and weight.requires_grad:
            return False
    return True


def _others(layer: Any) -> list[nn.Module]:
    """What a layer has besides projections."""
    inside = layer._modules
    attention, mlp = inside["self_attn"], inside["mlp"]
    norms = [module for name, module in attention._modules.items() if name in HEAD_NORMS]
    around = (inside["input_layernorm"], inside["post_attention_layernorm"], *norms)
    return [layer, attention, mlp, mlp._modules["act_fn"], *around]


def _takes(projection: nn.Module) -> bool:
    """Whether a projection is one that this room can stand for, as it is now."""
    if type(projection) is LoraLinear and projection.binding.dropout is None:
        if not _untouched(projection):
            return False
        projection = projection._modules["base"]  # type: ignore[assignment]
    if type(projection) is not nn.Linear or not _untouched(projection):
        return False
    weight = projection._parameters["weight"]
    return weight is not None and weight.dtype is torch.float32 and weight.device.type == "cpu"


# A pass


class _Pass(torch.autograd.Function):
    """A whole pass as one step of autograd: its inputs are A and B, nothing else has gradient."""

    @staticmethod
    def forward(ctx: Any, run: _Run | compiled.Run, *weights: Tensor) -> Tensor:
        ctx.run = run
        return run.forward(keep=True)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        found = ctx.run.backward(grads[0])
        none = (None, None)
        return None, *(grad for lora in ctx.run.loras for grad in found.get(lora, none))


class _Whole(torch.autograd.Function):
    """The same with one input: the buffer in which all A and B lie."""

    @staticmethod
    def forward(ctx: Any, run: compiled.Run, whole_NP: Tensor) -> Tensor:
        ctx.run = run
        return run.forward(keep=True)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return None, ctx.run.backward_whole(grads[0])


class _Run:
    """One pass over one batch: what its layers share, and the layers that run."""

    def __init__(
        self, fused: Fused, ids_BT: Tensor, position_BC: Tensor, entering: Entering | None
    ) -> None:
        self.decoder = fused.decoder
        self.head_width = fused.head_width
        # No prediction asked for depends on what comes after the last of them.
        self.n_rows, self.n_tokens = len(ids_BT), int(position_BC.max()) + 1
        self.turns = fused.turns(self.n_tokens)
        if entering is None:
            embeddings_VD = self.decoder.embed_tokens.weight
            self.x_MD = F.embedding(ids_BT[:, : self.n_tokens], embeddings_VD).flatten(0, 1)
        else:
            self.x_MD = entering.hidden_BTD[:, : self.n_tokens].flatten(0, 1)
        later_TT = torch.ones(self.n_tokens, self.n_tokens, dtype=torch.bool).triu(1)
        self.mask_TT = torch.zeros(later_TT.shape).masked_fill_(later_TT, -torch.inf)
        layers = fused.layers[entering.layer if entering else 0 :]
        linears = (module for layer in layers for module in projections(layer))
        self.loras = [module for module in linears if isinstance(module, LoraLinear)]
        """Every adapted module of the layers that run, in model order."""
        used = self.loras and self.loras[0].binding.rows.single != -1
        self.bound = Bound(self.loras[0], self.n_rows) if used else None
        self.learns = self.bound is not None
        whole = [_Layer(self, layer, None) for layer in layers[:-1]]
        self.layers = [*whole, _Layer(self, layers[-1], position_BC)]
        below = False
        for layer in self.layers:
            layer.below, below = below, below or layer.adapted
        self.norm: Normed | None = None

    def forward(self, *, keep: bool) -> Tensor:
        """Run; with `keep`, so that `backward` can follow."""
        x_MD = self.x_MD
        for layer in self.layers:
            x_MD = layer.forward(x_MD, keep=keep and (layer.below or layer.adapted))
        h_MD, self.norm = rms_norm(x_MD, self.decoder.norm)
        return h_MD.view(self.n_rows, -1, h_MD.shape[-1])

    def backward(self, grad_BCD: Tensor) -> Grads:
        """Gradients of all A and B. Once after every `forward`."""
        assert self.layers and self.norm, "a pass keeps its values for one way back"
        found: Grads = {}
        grad_MD: Tensor | None = rms_norm_back(grad_BCD.reshape(-1, grad_BCD.shape[-1]), self.norm)
        while grad_MD is not None and self.layers:  # lets go of a layer's values as it passes
            grad_MD = self.layers.pop().backward(grad_MD, found)
        return found


# A layer


class _Layer:
    """One decoder layer of a pass; the last one goes on at the positions asked for only."""

    def __init__(self, run: _Run, layer: Any, position_BC: Tensor | None) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.run, self.layer = run, layer
        # All three from one input, but for the last layer, which asks at few positions.
        inputs = [attention.q_proj, attention.k_proj, attention.v_proj]
        apart = 0 if position_BC is None else 1
        self.query = Linears(run.bound, inputs[:apart])
        self.memory = Linears(run.bound, inputs[apart:])
        self.output = Linears(run.bound, [attention.o_proj])
        self.widen = Linears(run.bound, [mlp.gate_proj, mlp.up_proj])
        self.narrow = Linears(run.bound, [mlp.down_proj])
        self.attends = bool(self.query.loras or self.memory.loras)
        parts = (self.output, self.widen, self.narrow)
        self.adapted = self.attends or any(part.loras for part in parts)
        self.below = False
        """Whether a layer below this one is adapted."""
        self.mask, self.turns = run.mask_TT, run.turns
        self.kept_M: Tensor | None = None
        if position_BC is not None:
            first_B1 = torch.arange(run.n_rows)[:, None] * run.n_tokens
            self.kept_M = (first_B1 + position_BC).flatten()
            self.mask = self.mask[position_BC]
            self.turns = self.turns[0][position_BC], self.turns[1][position_BC]

    def forward(self, x_MD: Tensor, *, keep: bool) -> Tensor:
        """The hidden states that leave the layer."""
        h_MD, norm = rms_norm(x_MD, self.layer.input_layernorm)
        kept_M = self.kept_M
        asked: list[Tensor] = []
        if kept_M is not None:
            x_MD = x_MD[kept_M]
            asked = self.query.forward(h_MD[kept_M], keep=keep)
        attended = self._attend(*asked, *self.memory.forward(h_MD, keep=keep), keep=keep)
        (x_MD,) = self.output.forward(attended, x_MD, keep=keep)
        h_MD, late = rms_norm(x_MD, self.layer.post_attention_layernorm)
        gate_MF, up_MF = self.widen.forward(h_MD, keep=keep)
        open_MF = F.silu(gate_MF)
        (x_MD,) = self.narrow.forward(open_MF * up_MF, x_MD, keep=keep)
        if keep:
            self.norms, self.gates = (norm, late), (gate_MF, up_MF, open_MF)
        return x_MD

    def backward(self, grad_MD: Tensor, found: Grads) -> Tensor | None:
        """Gradient of what entered the layer; None when nothing below has any."""
        deep = self.below or self.attends
        middle = deep or bool(self.output.loras)
        wide = middle or bool(self.widen.loras)
        inner_MF = self.narrow.backward([grad_MD], found, needed=wide)
        if inner_MF is None:
            return None
        gate_MF, up_MF, open_MF = self.gates
        grad_up = inner_MF * open_MF
        grad_gate = torch.ops.aten.silu_backward(inner_MF.mul_(up_MF), gate_MF)
        h_MD = self.widen.backward([grad_gate, grad_up], found, needed=middle)
        if h_MD is None:
            return None
        grad_MD = rms_norm_back(h_MD, self.norms[1]).add_(grad_MD)
        attended = self.output.backward([grad_MD], found, needed=deep)
        if attended is None:
            return None
        query, *memory = self._attend_back(attended)
        if self.kept_M is None:
            h_MD = self.memory.backward([query, *memory], found, needed=self.below)
            return None if h_MD is None else rms_norm_back(h_MD, self.norms[0]).add_(grad_MD)
        q_MD = self.query.backward([query], found, needed=self.below)
        h_MD = self.memory.backward(memory, found, needed=self.below)
        if h_MD is None or q_MD is None:
            return None
        h_MD.index_add_(0, self.kept_M, q_MD)
        return rms_norm_back(h_MD, self.norms[0]).index_add_(0, self.kept_M, grad_MD)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, *, keep: bool) -> Tensor:
        """Attention of queries (M, HE) to keys and values (M', GE), causal: (M, HE)."""
        attention, width, n_rows = self.layer.self_attn, self.run.head_width, self.run.n_rows
        q_MHE, k_MGE, v_MGE = (part.unflatten(1, (-1, width)) for part in (query, key, value))
        norms: tuple[Normed, ...] = ()
        if "q_norm" in attention._modules:
            q_MHE, first = rms_norm(q_MHE, attention.q_norm)
            k_MGE, second = rms_norm(k_MGE, attention.k_norm)
            norms = first, second
        q_HBCE = turn(heads(q_MHE, n_rows), self.turns)
        k_HBTE = turn(heads(k_MGE, n_rows), self.run.turns)
        v_HBTE = heads(v_MGE, n_rows).contiguous()
        groups = q_MHE.shape[1] // k_MGE.shape[1]
        if groups > 1:
            k_HBTE, v_HBTE = (part.repeat_interleave(groups, 0) for part in (k_HBTE, v_HBTE))
        out_HBCE, scores = attend(q_HBCE, k_HBTE, v_HBTE, self.mask, keep=keep)
        if keep:
            self.heads = q_HBCE, k_HBTE, v_HBTE, scores, norms, groups
        return out_HBCE.permute(1, 2, 0, 3).reshape(query.shape)

    def _attend_back(self, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of queries, keys and values, from that of what was attended."""
        q_HBCE, k_HBTE, v_HBTE, scores, norms, groups = self.heads
        width, n_rows = self.run.head_width, self.run.n_rows
        grad_HBCE = heads(grad.unflatten(1, (-1, width)), n_rows).contiguous()
        grad_q, grad_k, grad_v = attend_back(grad_HBCE, q_HBCE, k_HBTE, v_HBTE, scores)
        if groups > 1:
            grad_k, grad_v = (part.unflatten(0, (-1, groups)).sum(1) for part in (grad_k, grad_v))
        query = torch.empty_like(grad)
        key, value = grad.new_empty(2, n_rows * self.run.n_tokens, len(grad_k) * width)
        at_q, at_k, at_v = (part.unflatten(1, (-1, width)) for part in (query, key, value))
        heads(at_v, n_rows).copy_(grad_v)
        turn(grad_q, self.turns, heads(at_q, n_rows), back=True)
        turn(grad_k, self.run.turns, heads(at_k, n_rows), back=True)
        for at, saved in zip((at_q, at_k), norms, strict=False):
            at.copy_(rms_norm_back(at, saved))
        return query, key, value
