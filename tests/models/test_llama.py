"""Claims about decoders of Llama's form: which are, and when one must run in transformers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.families import FAMILIES, gpt_neox, llama, mistral, qwen2, qwen3
from support.passes import batch_of, loaded
from torch import nn

from lorewright.adapters.dropout import Masks, Share
from lorewright.adapters.targets import text_decoder
from lorewright.models.backends.backend import AS_BOUND, Pass
from lorewright.models.backends.by_hand import ByHand
from lorewright.models.backends.llama import LlamaDecoder, other_form
from lorewright.models.backends.network import Transformers

TAKEN = {"llama": llama, "qwen3": qwen3, "qwen2": qwen2, "mistral": mistral}


def refusal(network: nn.Module) -> str:
    return LlamaDecoder(text_decoder(network.requires_grad_(False))).refusal(AS_BOUND) or ""


@pytest.mark.parametrize("name", TAKEN)
def test_these_families_are_of_the_form(name: str) -> None:
    assert not refusal(TAKEN[name]())


@pytest.mark.parametrize("name", sorted(set(FAMILIES) - set(TAKEN)))
def test_others_are_not_and_run_in_transformers(name: str) -> None:
    model = loaded(FAMILIES[name])
    assert model.backend() is model.backends["transformers"]
    assert torch.isfinite(model.completion_logits(batch_of(model))).all()


def test_a_family_that_only_looks_alike_is_not() -> None:
    from transformers import OlmoConfig, OlmoForCausalLM

    shape = llama().config.to_dict()
    same = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")
    config = OlmoConfig(
        **{key: shape[key] for key in same}, num_attention_heads=4, eos_token_id=2, pad_token_id=0
    )
    assert "olmo is none of llama" in loaded(lambda: OlmoForCausalLM(config).eval()).runs_in()


def test_positions_that_depend_on_the_length_of_the_text_are_not() -> None:
    changes = {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}
    assert other_form(text_decoder(llama(**changes))) == "its rotary positions are dynamic"


@pytest.mark.parametrize("part", ["activation", "scale of attention", "norm", "scale of one layer"])
def test_parts_that_compute_something_else_are_refused_after_a_trial(part: str) -> None:
    network: Any = llama(hidden_act="gelu") if part == "activation" else llama()
    if part == "norm":
        network.model.norm = nn.LayerNorm(32)
        network.model.norm.variance_epsilon = 1e-6
    if part.startswith("scale"):
        layers = network.model.layers if part == "scale of attention" else network.model.layers[:1]
        backend = ByHand(network.requires_grad_(False).model)
        for layer in layers:
            layer.self_attn.scaling *= 2
    else:
        backend = ByHand(network.requires_grad_(False).model)
    assert backend.refusal(AS_BOUND) == "it computed other numbers than the network"


def test_hooks_and_trained_weights_are_seen_at_once() -> None:
    network: Any = llama()
    decoder = LlamaDecoder(network.model)
    assert decoder.refusal(AS_BOUND) is not None, "its weights are trained"
    network.requires_grad_(False)
    assert decoder.refusal(AS_BOUND) is None
    for module in (network.model.layers[1].mlp, network.model.norm, network.model):
        handle = module.register_forward_hook(lambda *_: None)
        assert decoder.refusal(AS_BOUND) == "a hook or a trained weight is in the decoder"
        handle.remove()
        assert decoder.refusal(AS_BOUND) is None
    handle = network.model.layers[0].register_full_backward_hook(lambda *_: None)
    assert decoder.refusal(AS_BOUND) is not None
    handle.remove()
    for place in ("norm", "embed_tokens", "layers.0.input_layernorm", "layers.1.mlp.up_proj"):
        weight = network.model.get_submodule(place).weight
        weight.requires_grad_(True)
        assert decoder.refusal(AS_BOUND) is not None
        weight.requires_grad_(False)
    network.model.norm.forward = lambda x: 2 * x
    assert decoder.refusal(AS_BOUND) is not None


def test_dropout_is_left_to_transformers() -> None:
    masks = Masks([Share(0.5, "0 0 0", (3,))], 1)
    model = loaded(llama)
    assert model.backend(Pass(dropout=masks)) is model.backends["transformers"]
    assert "dropout" in model.runs_in(Pass(dropout=masks))


def test_a_base_in_float64_is_refused_until_it_is_in_float32() -> None:
    model = loaded(lambda: llama().double())
    assert model.runs_in() == "transformers (the base is not in float32 on the CPU)"
    model.network.float()
    assert model.backend() is not model.backends["transformers"]


def test_another_library_s_adapters_are_not_passed_over() -> None:
    from peft import LoraConfig as PeftConfig
    from peft import inject_adapter_in_model

    model = loaded(llama)
    batch = batch_of(model)
    config = PeftConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    inject_adapter_in_model(config, model.network)
    assert model.backend() is model.backends["transformers"]
    alone = Transformers(text_decoder(model.network))
    hidden = alone.hidden(batch.ids_BT, batch.position_BC, AS_BOUND)
    assert torch.equal(model.completion_logits(batch), model.network.lm_head(hidden))


def test_a_network_that_does_more_than_decoder_and_head_is_its_own_body() -> None:
    assert refusal(gpt_neox()).startswith("GPTNeoXModel is not built like")
    network = llama()
    assert "LlamaForCausalLM is not built" in (other_form(network) or "")
