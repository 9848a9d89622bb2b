"""Claims about full fine-tuning: what is stored of it, and that the base comes back."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support.writes import CONFIG, EXAMPLES, logits, tiny
from torch import nn

from lorewright.adapters.adapter import HALVES
from lorewright.adapters.config import LoraConfig
from lorewright.errors import ConfigError
from lorewright.knowledge.data import Fact, Knowledge
from lorewright.training.watch import Watch
from lorewright.writers.adapter import reduced
from lorewright.writers.full import Full, replacing
from lorewright.writers.writer import Material

FULL_RANK = 32
"""Of the tiny base's smallest matrices no rank is higher."""
MATERIAL = Material(
    Knowledge(facts=tuple(Fact(e.prompt, e.prompt, e.completion) for e in EXAMPLES)), EXAMPLES
)
CONFIGURED = replace(CONFIG, lr=1e-3, lora=LoraConfig(rank=FULL_RANK))


def test_at_full_rank_the_adapter_is_the_trained_weights() -> None:
    model = tiny()
    state, cost = Full(CONFIGURED).write(model, MATERIAL, seed=0, run=None, watch=Watch())
    with state.on(model):
        replies = model.generate([e.prompt for e in EXAMPLES])
    assert replies == [e.completion for e in EXAMPLES] and cost.reason == "recalled"
    shares = [row["share"] for row in cost.about["energy_by_rank"]]
    assert shares == sorted(shares) and shares[0] > 0 and shares[-1] == pytest.approx(1)


def test_a_lower_rank_holds_the_share_that_the_card_says() -> None:
    model = tiny()
    generator = torch.Generator().manual_seed(0)
    name = "model.layers.0.mlp.up_proj"
    weight = model.network.get_parameter(f"{name}.weight")
    delta_OI = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
    lora = LoraConfig(rank=4, targets=("up_proj",), layers=(0,))
    adapter, held = reduced(model, {name: delta_OI}, lora)
    A_RI, B_OR = (adapter.tensors[name + half].double() for half in HALVES)
    left = (delta_OI - adapter.config.scale * B_OR @ A_RI).square().sum()
    share = next(row["share"] for row in held if row["rank"] == 4)
    assert 1 - (left / delta_OI.square().sum()).item() == pytest.approx(share, abs=1e-5)


def test_the_base_is_the_same_object_and_the_same_bits_after_an_interruption() -> None:
    model, before = tiny(), logits(tiny())
    name = "model.layers.1.self_attn.q_proj"
    own = model.network.get_parameter(f"{name}.weight")
    other = nn.Parameter(own + 1)
    with pytest.raises(KeyboardInterrupt), replacing(model, {name: other}):
        assert not torch.equal(logits(model), before)
        raise KeyboardInterrupt
    assert model.network.get_parameter(f"{name}.weight") is own
    assert torch.equal(logits(model), before)


def test_a_base_in_another_dtype_is_refused() -> None:
    model = tiny(dtype=torch.bfloat16)
    model.network.to(torch.bfloat16)
    with pytest.raises(ConfigError, match=r"trains weights in float32; .* --dtype float32"):
        Full(CONFIGURED).write(model, MATERIAL, seed=0, run=None, watch=Watch())


def test_settings_that_only_adapters_have_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"dropout 0\.1, which hides what A reads"):
        Full(replace(CONFIG, dropout=0.1))
    with pytest.raises(ConfigError, match="stores plain LoRA, not dora"):
        Full(replace(CONFIG, lora=LoraConfig(variant="dora")))
