"""Tiny random-weight models of the families people use, built in memory from configuration.

Hidden size 32, 2 layers, vocabulary 128. Knows nothing about adapters. Builders are seeded, return
float32 models in eval mode and import transformers when called.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

VOCABULARY = 128
N_LAYERS = 2

_SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": N_LAYERS,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GROUPED: dict[str, Any] = {**_SHAPE, "num_key_value_heads": 2}


def llama(**changes: Any) -> nn.Module:
    """Separate q, k, v; gated MLP; changes go into the configuration."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return _build(LlamaForCausalLM, LlamaConfig(**{**_GROUPED, **changes}))


def qwen3() -> nn.Module:
    """Head size of its own, norms on q and k, tied embeddings."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    return _build(Qwen3ForCausalLM, Qwen3Config(**_GROUPED, head_dim=8, tie_word_embeddings=True))


def qwen2() -> nn.Module:
    """Biases on q, k and v."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    network = _build(Qwen2ForCausalLM, Qwen2Config(**_GROUPED))
    generator = torch.Generator().manual_seed(3)
    for name, weight in network.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(weight, generator=generator)
    return network


def mistral() -> nn.Module:
    """One key head for all, no window."""
    from transformers import MistralConfig, MistralForCausalLM

    config = MistralConfig(**{**_SHAPE, "num_key_value_heads": 1}, sliding_window=None, head_dim=8)
    return _build(MistralForCausalLM, config)


def gemma3_text(sliding_window: int = 16) -> nn.Module:
    """Sliding and full attention, four norms a layer."""
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    shape = {**_GROUPED, "head_dim": 8, "sliding_window": sliding_window}
    return _build(Gemma3ForCausalLM, Gemma3TextConfig(**shape))


def gemma3_multimodal() -> nn.Module:
    """A text decoder and a vision tower whose layers share the names q_proj, k_proj and v_proj."""
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    vision = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 16,
        "patch_size": 4,
    }
    config = Gemma3Config(
        text_config={**_GROUPED, "head_dim": 8, "sliding_window": 16},
        vision_config=vision,
        mm_tokens_per_image=4,
        image_token_index=100,
        boi_token_index=101,
        eoi_token_index=102,
    )
    return _build(Gemma3ForConditionalGeneration, config)


def phi() -> nn.Module:
    """Parallel attention and MLP, biases everywhere, `dense`, `fc1`, `fc2`."""
    from transformers import PhiConfig, PhiForCausalLM

    return _build(PhiForCausalLM, PhiConfig(**_SHAPE))


def phi3() -> nn.Module:
    """Fused qkv_proj and gate_up_proj."""
    from transformers import Phi3Config, Phi3ForCausalLM

    return _build(Phi3ForCausalLM, Phi3Config(**_GROUPED))


def gpt_neox() -> nn.Module:
    """Pythia: `gpt_neox.layers`, fused query_key_value, untied embed_out."""
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    return _build(GPTNeoXForCausalLM, GPTNeoXConfig(**_SHAPE))


def gpt2() -> nn.Module:
    """Projections are Conv1D, which carry no adapter here; not one of FAMILIES."""
    from transformers import GPT2Config, GPT2LMHeadModel

    shape = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": N_LAYERS, "n_head": 4}
    return _build(GPT2LMHeadModel, GPT2Config(**shape, bos_token_id=1, eos_token_id=2))


def qwen3_moe() -> nn.Module:
    """A mixture of experts: a router and fused expert weights; not one of FAMILIES."""
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    return _build(Qwen3MoeForCausalLM, Qwen3MoeConfig(**_GROUPED, head_dim=8, **experts))


def _build(kind: Callable[[Any], nn.Module], config: Any) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return kind(config).eval()


def token_ids(n_rows: int = 3, n_tokens: int = 7, seed: int = 0) -> torch.Tensor:
    """Random ids (B, T) that no family reads as padding or as an image."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, 100, (n_rows, n_tokens), generator=generator)


def logits(model: nn.Module, ids_BT: torch.Tensor | None = None) -> torch.Tensor:
    """Logits (B, T, V) of one forward without gradient."""
    with torch.no_grad():
        found: torch.Tensor = model(token_ids() if ids_BT is None else ids_BT).logits
    return found


FAMILIES: dict[str, Callable[[], nn.Module]] = {
    "llama": llama,
    "qwen3": qwen3,
    "gemma3_text": gemma3_text,
    "gemma3_multimodal": gemma3_multimodal,
    "phi": phi,
    "phi3": phi3,
    "gpt_neox": gpt_neox,
}
