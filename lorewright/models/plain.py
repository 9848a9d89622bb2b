"""A plain Llama from a folder, in torch alone, without transformers' model classes.

Those take seconds to import, which is longer than a question takes to be answered. A
decoder of Llama's plainest form is few operations: these are transformers', in its order, with its
names of modules, weights and arguments, so that every number has the same bits. What is not exactly
that form is not read here.

Shape letters: B row, T token, K key, D width, F inner width, H query heads, G key heads, E width of
a head, V vocabulary.

Source: transformers' modeling_llama.py and sdpa_attention.py, Apache 2.0; Llama, arXiv 2302.13971.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from lorewright.errors import ModelError

if TYPE_CHECKING:
    from transformers.cache_utils import Cache

CONFIG, GENERATION, WEIGHTS = "config.json", "generation_config.json", "model.safetensors"
OTHERS = ("model.safetensors.index.json", "adapter_config.json")
"""Files with which a folder is more than one file of weights."""
FORM = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "attention_dropout": 0.0,
    "dtype": "float32",
}
"""What a configuration must say."""
SIZES = {
    "hidden_size": int,
    "intermediate_size": int,
    "num_hidden_layers": int,
    "num_attention_heads": int,
    "num_key_value_heads": int,
    "head_dim": int,
    "max_position_embeddings": int,
    "vocab_size": int,
    "rms_norm_eps": float,
    "rope_parameters": dict,
    "tie_word_embeddings": bool,
}
"""What it must have, by type; of positions only how quickly they rotate."""
IDLE = {
    "bos_token_id",
    "eos_token_id",
    "initializer_range",
    "pad_token_id",
    "pretraining_tp",
    "transformers_version",
    "unk_token_id",
    "use_cache",
}
"""What it may say beside that, as it may names that begin with _ or lorewright_: none changes a
number."""


class PlainConfig(SimpleNamespace):
    """A configuration of Llama's: what its file says, by name, and no default."""

    def to_dict(self) -> dict[str, Any]:
        """All of it, by name."""
        return dict(vars(self))

    def get_text_config(self, decoder: bool | None = None) -> PlainConfig:
        """Itself: there is no other part."""
        return self


class Ending(SimpleNamespace):
    """What the folder says of how replies end."""

    eos_token_id: int | list[int] | None


class Decoded(NamedTuple):
    """What the decoder gives: hidden states (B, T, D), and the keys and values of its layers."""

    last_hidden_state: Tensor
    past_key_values: Cache | None


class Predicted(NamedTuple):
    """What the network gives: logits (B, T, V), and the keys and values of its layers."""

    logits: Tensor
    past_key_values: Cache | None


def read_plain(folder: Path) -> PlainLlama | None:
    """The network in a folder, in float32 on the CPU; None when it is not exactly of this form.

    Reads no further than it must to know. Files that are damaged are of another form, too.
    """
    if any((folder / name).exists() for name in OTHERS):
        return None
    try:
        stated = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        if not (isinstance(stated, dict) and _is_plain(stated)):
            return None
        tensors = load_file(folder / WEIGHTS)
        generation = _ending(folder)
    except (OSError, ValueError, SafetensorError):
        return None
    with torch.device("meta"):
        network = PlainLlama(PlainConfig(**stated), generation)
    head, embeddings = network.lm_head, network.model.embed_tokens
    shapes = {name: tuple(each.shape) for name, each in network.state_dict().items()}
    if stated["tie_word_embeddings"]:
        del shapes["lm_head.weight"]
    there = {name: tuple(each.shape) for name, each in tensors.items()}
    if shapes != there or any(each.dtype is not torch.float32 for each in tensors.values()):
        return None
    # Copies: a tensor of a mapped file would change with the file.
    own = {name: each.clone() for name, each in tensors.items()}
    network.load_state_dict(own, assign=True, strict=False)
    if stated["tie_word_embeddings"]:
        head.weight = embeddings.weight
    return network


def _ending(folder: Path) -> Ending:
    """The stop tokens of a folder. Raises OSError or ValueError for a damaged file."""
    path = folder / GENERATION
    stated = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if not isinstance(stated, dict):
        raise ValueError(f"{GENERATION} is no object")
    return Ending(eos_token_id=stated.get("eos_token_id"))


def _is_plain(stated: dict[str, Any]) -> bool:
    """Whether a configuration says what this module computes, and nothing that it does not know."""
    if any(stated.get(key) != value for key, value in FORM.items()):
        return False
    if any(type(stated.get(key)) is not kind for key, kind in SIZES.items()):
        return False
    rest = set(stated) - set(FORM) - set(SIZES) - IDLE
    if any(not key.startswith(("_", "lorewright_")) for key in rest):
        return False
    rope = stated["rope_parameters"]
    return set(rope) == {"rope_theta", "rope_type"} and rope["rope_type"] == "default"


class PlainLlama(nn.Module):
    """Decoder and head, with the arguments and results that callers of transformers' use."""

    def __init__(self, config: PlainConfig, generation_config: Ending) -> None:
        super().__init__()
        self.config = config
        self.generation_config: Any = generation_config
        self.model = Decoder(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of its weights."""
        return self.lm_head.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where its weights lie."""
        return self.lm_head.weight.device

    def get_decoder(self) -> Decoder:
        """All but the head."""
        return self.model

    def get_input_embeddings(self) -> nn.Embedding:
        """The table of tokens."""
        return self.model.embed_tokens

    def get_output_embeddings(self) -> nn.Linear:
        """The head."""
        return self.lm_head

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool = True,
        logits_to_keep: int | Tensor = 0,
    ) -> Predicted:
        """Logits at all positions, at the last few (a number), or at some (their indices)."""
        hidden_BTD, past = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
        )
        if isinstance(logits_to_keep, Tensor):
            hidden_BTD = hidden_BTD[:, logits_to_keep]
        elif logits_to_keep:
            hidden_BTD = hidden_BTD[:, -logits_to_keep:]
        return Predicted(self.lm_head(hidden_BTD), past)

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        generation_config: Any,
        stopping_criteria: Sequence[Callable[..., Tensor]] = (),
    ) -> Tensor:
        """Left-padded prompts (B, T) and their greedy continuations, padded after their end.

        Ends when all rows have, by a stop token or a criterion, or after `max_new_tokens` of the
        configuration. Raises ModelError when replies are to be drawn: `decoding` does that, where
        no hook is in the decoder.
        """
        if generation_config.do_sample:
            raise ModelError(
                "a decoder with hooks draws no replies here; remove them, or load the base with "
                "implementation='transformers'."
            )
        ids_BT, mask_BT, cache = input_ids, attention_mask, cache_for(self.config)
        stops = torch.tensor(generation_config.eos_token_id, device=ids_BT.device)
        pad = generation_config.pad_token_id
        position_BT = (mask_BT.cumsum(-1) - 1).clamp(min=0)
        ended_B = torch.zeros(len(ids_BT), dtype=torch.bool, device=ids_BT.device)
        for _ in range(generation_config.max_new_tokens):
            n_new = ids_BT.shape[1] - cache.get_seq_length()
            logits_BTV = self(
                ids_BT[:, -n_new:], mask_BT, position_BT, cache, logits_to_keep=1
            ).logits
            next_B = logits_BTV[:, -1].float().argmax(-1).masked_fill(ended_B, pad)
            ids_BT = torch.cat([ids_BT, next_B[:, None]], 1)
            mask_BT = torch.cat([mask_BT, torch.ones_like(mask_BT[:, :1])], 1)
            position_BT = position_BT[:, -1:] + 1
            ended_B = ended_B | torch.isin(next_B, stops)
            for ends in stopping_criteria:
                ended_B = ended_B | ends(ids_BT, logits_BTV[:, -1])
            if bool(ended_B.all()):
                break
        return ids_BT


class Decoder(nn.Module):
    """Embeddings, layers and the last norm."""

    def __init__(self, config: PlainConfig) -> None:
        super().__init__()
        self.config = config
        # Random values, even of tensors without any, would have torch import its compiler.
        empty_VD = torch.empty(config.vocab_size, config.hidden_size)
        self.embed_tokens = nn.Embedding.from_pretrained(empty_VD, freeze=False)
        self.layers = nn.ModuleList(Layer(config, at) for at in range(config.num_hidden_layers))
        self.norm = Norm(config)
        self.rotary_emb = Rotary(config)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool = True,
    ) -> Decoded:
        """Hidden states of tokens (B, T) that follow those of the cache.

        attention_mask: 1 on real tokens, the cache's among them, or what attention adds to its
        scores (B, 1, T, K).
        """
        if use_cache and past_key_values is None:
            past_key_values = cache_for(self.config)
        seen = 0 if past_key_values is None else past_key_values.get_seq_length()
        hidden_BTD = self.embed_tokens(input_ids)
        if position_ids is None:
            n_tokens, device = input_ids.shape[1], input_ids.device
            position_ids = (torch.arange(n_tokens, device=device) + seen)[None]
        rotary = self.rotary_emb(hidden_BTD, position_ids)
        mask = visible(input_ids, attention_mask, seen)
        for layer in self.layers:
            hidden_BTD = layer(
                hidden_BTD,
                attention_mask=mask,
                position_embeddings=rotary,
                past_key_values=past_key_values,
            )
        return Decoded(self.norm(hidden_BTD), past_key_values)


def cache_for(config: Any) -> Cache:
    """Keys and values of no token yet, as transformers keeps them for such a network."""
    from transformers.cache_utils import DynamicCache

    return DynamicCache() if isinstance(config, PlainConfig) else DynamicCache(config=config)


def visible(ids_BT: Tensor, attention_mask: Tensor | None, seen: int) -> Tensor | None:
    """Which keys each token sees (B, 1, T, K); None where it is those up to itself."""
    if attention_mask is not None and attention_mask.dim() == 4:
        return attention_mask
    n_rows, n_tokens = ids_BT.shape
    real_BK = None if attention_mask is None else attention_mask.bool()
    padded = real_BK is not None and not bool(real_BK.all())
    if not padded and (n_tokens == 1 or not seen):
        return None
    at_K = torch.arange(seen + n_tokens, device=ids_BT.device)
    see = (at_K <= at_K[seen:, None])[None, None]
    if real_BK is not None:
        see = see & real_BK[:, None, None]
    return see.expand(n_rows, -1, -1, -1)


class Layer(nn.Module):
    """Attention, then the feed-forward network, each added to what enters it."""

    def __init__(self, config: PlainConfig, at: int) -> None:
        super().__init__()
        self.self_attn = Attention(config, at)
        self.mlp = FeedForward(config)
        self.input_layernorm = Norm(config)
        self.post_attention_layernorm = Norm(config)

    def forward(self, hidden_states: Tensor, **attention: Any) -> Tensor:
        """The hidden states (B, T, D) that leave it."""
        hidden_states = hidden_states + self.self_attn(
            self.input_layernorm(hidden_states), **attention
        )
        inner: Tensor = self.mlp(self.post_attention_layernorm(hidden_states))
        return hidden_states + inner


class Attention(nn.Module):
    """Attention with rotary positions; several query heads may share a key head."""

    def __init__(self, config: PlainConfig, at: int) -> None:
        super().__init__()
        self.at, self.head_dim, self.scaling = at, config.head_dim, config.head_dim**-0.5
        self.groups = config.num_attention_heads // config.num_key_value_heads
        wide = config.num_attention_heads * self.head_dim
        narrow = config.num_key_value_heads * self.head_dim
        self.q_proj = nn.Linear(config.hidden_size, wide, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, narrow, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, narrow, bias=False)
        self.o_proj = nn.Linear(wide, config.hidden_size, bias=False)

    def forward(
        self,
        x_BTD: Tensor,
        attention_mask: Tensor | None,
        position_embeddings: tuple[Tensor, Tensor],
        past_key_values: Cache | None,
    ) -> Tensor:
        """What each token gathers (B, T, D)."""
        shape = *x_BTD.shape[:-1], -1, self.head_dim
        cos, sin = (part.unsqueeze(1) for part in position_embeddings)
        q_BHTE = self.q_proj(x_BTD).view(shape).transpose(1, 2)
        k_BGKE = self.k_proj(x_BTD).view(shape).transpose(1, 2)
        v_BGKE = self.v_proj(x_BTD).view(shape).transpose(1, 2)
        q_BHTE = q_BHTE * cos + _turned(q_BHTE) * sin
        k_BGKE = k_BGKE * cos + _turned(k_BGKE) * sin
        if past_key_values is not None:
            k_BGKE, v_BGKE = past_key_values.update(k_BGKE, v_BGKE, self.at)
        n_tokens, share = q_BHTE.shape[2], False
        if self.groups > 1:  # as transformers chooses, for its bits
            share = attention_mask is None and self.head_dim <= 256
            if not share and n_tokens == 1:  # its query heads are a key head's tokens
                q_BHTE = q_BHTE.reshape(len(q_BHTE), -1, self.groups, self.head_dim)
            elif not share:
                k_BGKE, v_BGKE = (
                    part[:, :, None].expand(-1, -1, self.groups, -1, -1).flatten(1, 2)
                    for part in (k_BGKE, v_BGKE)
                )
        out = F.scaled_dot_product_attention(
            q_BHTE,
            k_BGKE,
            v_BGKE,
            attn_mask=attention_mask,
            scale=self.scaling,
            is_causal=n_tokens > 1 and attention_mask is None,
            enable_gqa=share,
        )
        out = out.reshape(len(out), -1, n_tokens, self.head_dim).transpose(1, 2).contiguous()
        attended: Tensor = self.o_proj(out.flatten(2))
        return attended


def _turned(x: Tensor) -> Tensor:
    """Both halves of every head exchanged, the new first one negated."""
    first, second = x.chunk(2, -1)
    return torch.cat((-second, first), -1)


class FeedForward(nn.Module):
    """A gated feed-forward network."""

    def __init__(self, config: PlainConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        self.act_fn = nn.SiLU()

    def forward(self, x_BTD: Tensor) -> Tensor:
        """The network's output (B, T, D)."""
        y_BTD: Tensor = self.down_proj(self.act_fn(self.gate_proj(x_BTD)) * self.up_proj(x_BTD))
        return y_BTD


class Norm(nn.Module):
    """Division by the root of the mean square."""

    def __init__(self, config: PlainConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.hidden_size))
        self.variance_epsilon = config.rms_norm_eps

    def forward(self, x_BTD: Tensor) -> Tensor:
        """The scaled values (B, T, D), computed in float32."""
        x32_BTD = x_BTD.float()
        inverse_BT1 = torch.rsqrt(x32_BTD.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return self.weight * (x32_BTD * inverse_BT1).to(x_BTD.dtype)


class Rotary(nn.Module):
    """Cosines and sines of rotary positions."""

    inv_freq: Tensor

    def __init__(self, config: PlainConfig) -> None:
        super().__init__()
        self.config, self.rope_type = config, "default"
        self.attention_scaling = 1.0
        base, width = config.rope_parameters["rope_theta"], config.head_dim
        exponents = torch.arange(0, width, 2, dtype=torch.float, device="cpu") / width
        self.register_buffer("inv_freq", 1.0 / (base**exponents), persistent=False)

    @torch.no_grad()
    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines (B, T, E) in the dtype of x."""
        angles = position_ids[..., None].float() * self.inv_freq
        angles = torch.cat((angles, angles), -1)
        return angles.cos().to(x.dtype), angles.sin().to(x.dtype)
