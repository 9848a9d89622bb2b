"""Decoders of Llama's form: which are, and whether one may run outside transformers now.

What `compiled` and `by_hand` share: RMS norms, rotary positions, full causal attention, SwiGLU,
float32 on the CPU, plain linear layers or `LoraLinear`, no hooks, A and B the only weights with
gradients. Everything else runs in transformers.

Shape letters: B row, T token, C queried position, D width, E width of a head, N adapters of a
stack, P values of one adapter.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lorewright.adapters.lora import LoraLinear
from lorewright.adapters.targets import layer_list
from lorewright.models.backends.backend import AS_BOUND, Pass

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
"""Kinds of configuration that are taken: others look alike and differ where a short trial cannot
see it, in positions far out, say."""
TRIAL_TOKENS = 12
"""Tokens of a row when a decoder is compared with what a backend computes of it."""
STATIC_ROPE = ("default", "linear", "llama3", "yarn")
"""Kinds of rotary positions whose frequencies do not depend on the length of the text."""

DECODER = {"embed_tokens", "layers", "norm", "rotary_emb"}
LAYER = {"input_layernorm", "self_attn", "post_attention_layernorm", "mlp"}
ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
HEAD_NORMS = {"q_norm", "k_norm"}
FEED_FORWARD = {"gate_proj", "up_proj", "down_proj", "act_fn"}

Hidden = Callable[[Tensor, Tensor, Pass], Tensor]
"""(ids_BT, position_BC, pass) -> hidden states (B, C, D): `Backend.hidden`."""


class LlamaDecoder:
    """A network's decoder, if it is of Llama's form: then `layers`, `head_width` and `rotary` hold.

    It reads the network as it stands; weights are not copied.
    """

    def __init__(self, body: nn.Module) -> None:
        self.body: Any = body
        self.other_form = other_form(body)
        """Why the decoder is not of Llama's form; None if it is."""
        self._rotary = (torch.empty(0), torch.empty(0))
        self.layers: list[Any] = []
        if self.other_form is None:
            self.layers = list(layer_list(self.body))
            attention = self.layers[0].self_attn
            self.head_width, self.scaling = int(attention.head_dim), float(attention.scaling)

    def refusal(self, pass_: Pass) -> str | None:
        """Why its layers may not run outside transformers as they are now; None if they may."""
        if self.other_form or pass_.dropout:
            return self.other_form or "dropout hides values from adapters"
        body, first = self.body, pass_.entering.layer if pass_.entering else 0
        if type(body.embed_tokens) is not nn.Embedding:
            return f"the embeddings are a {type(body.embed_tokens).__name__}"
        modules = [body, body.embed_tokens, body.norm, body.rotary_emb]
        for layer in self.layers[first:]:
            modules += _others(layer)
        if not all(map(_untouched, modules)):
            return "a hook or a trained weight is in the decoder"
        for layer in self.layers[first:]:
            for projection in projections(layer):
                if why := projection_refusal(projection):
                    return why
        return None

    def agrees(self, hidden: Hidden) -> bool:
        """Whether a backend's hidden states are the network's, tried on random tokens."""
        embeddings_VD = self.body.embed_tokens.weight
        generator = torch.Generator().manual_seed(0)
        ids_BT = torch.randint(len(embeddings_VD), (2, TRIAL_TOKENS), generator=generator)
        with torch.no_grad():
            whole_BTD = self.body(input_ids=ids_BT, use_cache=False).last_hidden_state
            own_BTD = hidden(ids_BT, torch.arange(TRIAL_TOKENS).expand(2, -1), AS_BOUND)
        return bool(torch.allclose(own_BTD, whole_BTD, rtol=1e-3, atol=1e-4))

    def rotary(self, n_tokens: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines (T, E/2) of positions from 0, times the root of attention's scale.

        A product of a rotated query and a rotated key then has the scale in it.
        """
        if n_tokens > len(self._rotary[0]):
            positions = torch.arange(max(64, 1 << (n_tokens - 1).bit_length()))[None]
            weight, half = self.body.embed_tokens.weight, self.head_width // 2
            with torch.no_grad():
                table = self.body.rotary_emb(weight[:1, None], positions)
            cos, sin = (part[0, :, :half].float() * math.sqrt(self.scaling) for part in table)
            self._rotary = cos.contiguous(), sin.contiguous()
        return self._rotary[0][:n_tokens], self._rotary[1][:n_tokens]


# The form, which stays


def other_form(body: nn.Module) -> str | None:
    """Why a decoder is not of Llama's form; None if it is.

    Parts are compared by name. That they compute what Llama's do is left to a trial.
    """
    children = dict(body.named_children())
    if set(children) != DECODER or type(children["embed_tokens"]) is not nn.Embedding:
        return f"{type(body).__name__} is not built like Llama's decoder"
    rotary: Any = children["rotary_emb"]
    config = rotary.config.to_dict()
    if config["model_type"] not in FAMILIES:
        return f"{config['model_type']} is none of {', '.join(FAMILIES)}"
    kinds = config.get("layer_types") or ()
    windowed = config.get("sliding_window") and not kinds
    if windowed or set(kinds) - {"full_attention"}:
        return "its attention has a window"
    if rotary.rope_type not in STATIC_ROPE:
        return f"its rotary positions are {rotary.rope_type}"
    plain = all(map(_is_plain, body.get_submodule("layers").children()))
    return None if plain else "its layers have other parts than Llama's"


def _is_plain(layer: nn.Module) -> bool:
    """Whether a layer consists of the parts of Llama's, and of nothing more."""
    parts = {
        name: {child for child, _ in part.named_children()} for name, part in layer.named_children()
    }
    return (
        set(parts) == LAYER
        and parts["self_attn"] in (ATTENTION, ATTENTION | HEAD_NORMS)
        and parts["mlp"] == FEED_FORWARD
    )


# As it is now: checked at every step, so that it must be quick


def _untouched(module: nn.Module) -> bool:
    """Whether a module has no hooks, learns nothing, and its forward is its class's own."""
    has = module.__dict__
    hooks = has["_forward_hooks"] or has["_forward_pre_hooks"]
    if hooks or has["_backward_hooks"] or has["_backward_pre_hooks"] or "forward" in has:
        return False
    if type(module) is LoraLinear:
        return True
    return not any(w is not None and w.requires_grad for w in has["_parameters"].values())


def _others(layer: Any) -> list[nn.Module]:
    """What a layer has besides projections."""
    inside = layer._modules
    attention, mlp = inside["self_attn"], inside["mlp"]
    norms = [module for name, module in attention._modules.items() if name in HEAD_NORMS]
    around = (inside["input_layernorm"], inside["post_attention_layernorm"], *norms)
    return [layer, attention, mlp, mlp._modules["act_fn"], *around]


def projections(layer: Any) -> tuple[nn.Module, ...]:
    """A layer's linear layers, as they are now."""
    attention, mlp = (layer._modules[name]._modules for name in ("self_attn", "mlp"))
    wide = (attention["q_proj"], attention["k_proj"], attention["v_proj"], attention["o_proj"])
    return (*wide, mlp["gate_proj"], mlp["up_proj"], mlp["down_proj"])


def frozen_linear(module: Any) -> Any:
    """A projection's frozen layer."""
    return module.base if isinstance(module, LoraLinear) else module


def projection_refusal(projection: nn.Module) -> str | None:
    """Why a projection may not run outside transformers as it is now; None if it may."""
    if not _untouched(projection):
        return "a hook or a trained weight is in the decoder"
    if type(projection) is LoraLinear:
        projection = projection._modules["base"]  # type: ignore[assignment]
        if not _untouched(projection):
            return "a hook or a trained weight is in the decoder"
    if type(projection) is not nn.Linear:
        return f"{type(projection).__name__} is no plain linear layer"
    weight = projection._parameters["weight"]
    if weight is None or weight.dtype is not torch.float32 or weight.device.type != "cpu":
        return "the base is not in float32 on the CPU"
    return None


# Gradients


class Run(Protocol):
    """One pass over one batch, forward and then, once, back."""

    loras: list[LoraLinear]
    """Every adapted module of the layers that run, in model order."""
    learns: bool
    """Whether any row uses an adapter."""

    def forward(self, *, save: bool) -> Tensor:
        """The hidden states (B, C, D); with `save`, so that `backward` can follow."""

    def backward(self, grad_BCD: Tensor) -> dict[LoraLinear, tuple[Tensor, Tensor]]:
        """Gradients of A_NRI and B_NOR. Once after every `forward`."""


def hidden_of(run: Run, whole: tuple[Tensor, Callable[[Tensor], Tensor]] | None = None) -> Tensor:
    """A run's hidden states, with gradient to A and B where autograd wants it.

    `whole`: one tensor that stands for all A and B, and what computes its gradient from that of the
    hidden states.
    """
    weights = [weight for lora in run.loras for weight in (lora.A_NRI, lora.B_NOR)]
    if not (run.learns and torch.is_grad_enabled() and any(w.requires_grad for w in weights)):
        with torch.no_grad():
            return run.forward(save=False)

    def by_weight(grad_BCD: Tensor) -> list[Tensor | None]:
        grads = run.backward(grad_BCD)
        return [grad for lora in run.loras for grad in grads.get(lora, (None, None))]

    hidden: Tensor
    if whole is None:
        hidden = _ByHand.apply(run, by_weight, *weights)
    else:
        parameter, gradient = whole
        hidden = _ByHand.apply(run, lambda grad: [gradient(grad)], parameter)
    return hidden


class _ByHand(torch.autograd.Function):
    """A whole pass as one step of autograd: its inputs are A and B, nothing else has gradient."""

    @staticmethod
    def forward(ctx: Any, run: Run, gradients: Any, *inputs: Tensor) -> Tensor:
        ctx.gradients = gradients
        return run.forward(save=True)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *ctx.gradients(grads[0])
