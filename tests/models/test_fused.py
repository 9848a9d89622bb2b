"""Claims about the decoder run by hand: the network's numbers on what it takes, or not at all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.families import FAMILIES, llama, qwen3
from support.models import letters
from support.passes import TEXTS, batch_of, filled, loaded, outcome
from torch import nn

import lorewright.models.backends.kernels
from lorewright.adapters.config import LoraConfig
from lorewright.adapters.lora import attach
from lorewright.adapters.targets import text_decoder
from lorewright.errors import AdapterError
from lorewright.models.backends.backend import Entering
from lorewright.models.backends.compiled.buffers import Spare
from lorewright.models.backends.compiled.build import CHOICES, KERNELS
from lorewright.models.backends.fused import Fused
from lorewright.models.model import Model
from lorewright.training.trunk import Trunk


def mistral() -> nn.Module:
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(2)
    shape = llama().config.to_dict()
    kept = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")
    config: Any = MistralConfig(
        **{key: shape[key] for key in kept},
        num_attention_heads=4,
        num_key_value_heads=1,
        sliding_window=None,
        head_dim=8,
    )
    return MistralForCausalLM(config).eval()


def qwen2() -> nn.Module:
    """Biases on q, k and v."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(3)
    shape = llama().config.to_dict()
    kept = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")
    network = Qwen2ForCausalLM(
        Qwen2Config(
            **{key: shape[key] for key in kept}, num_attention_heads=4, num_key_value_heads=2
        )
    ).eval()
    for name, weight in network.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(weight)
    return network


TAKEN: dict[str, Callable[[], nn.Module]] = {
    "llama": llama,
    "llama, as many key heads": lambda: llama(num_key_value_heads=4),
    "llama, stretched positions": lambda: llama(
        rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}
    ),
    "qwen3": qwen3,
    "qwen2": qwen2,
    "mistral": mistral,
}
taken = pytest.mark.parametrize("build", TAKEN.values(), ids=TAKEN)


@pytest.fixture(autouse=True, params=CHOICES)
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every claim holds in compiled code, where there is a compiler, and in torch.

    Compiled code finds memory full of what is no number, so that it must write before it reads.
    """
    monkeypatch.setenv(KERNELS, request.param)
    take = Spare.take
    monkeypatch.setattr(Spare, "take", lambda self, n: take(self, n).fill_(torch.nan))


def compare(model: Model, configs: list[LoraConfig], rows: list[int] | None) -> None:
    """By hand and through the network: the same losses and gradients, the same absences."""
    batch, fused = batch_of(model), model.fused
    assert fused is not None
    with filled(attach(model.network, configs)) as stack:
        stack.bind(None if rows is None else torch.tensor(rows))
        assert fused.ready()
        loss, grads = outcome(model, stack, batch)
        model.fused = None
        expected, others = outcome(model, stack, batch)
        model.fused = fused
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-4)
    for mine, other in zip(grads, others, strict=True):
        zero = torch.zeros(1)
        mine, other = (zero if grad is None else grad for grad in (mine, other))
        torch.testing.assert_close(mine, other.expand_as(mine), rtol=1e-3, atol=2e-5)


@taken
def test_losses_and_gradients_are_the_network_s(build: Callable[[], nn.Module]) -> None:
    compare(loaded(build), [LoraConfig(rank=3)], None)


@pytest.mark.parametrize("rows", [[0, 1, 2], [2, -1, 0], [1, 1, 1], [0, 0, 1]])
def test_rows_use_the_adapters_they_are_bound_to(rows: list[int]) -> None:
    configs = [LoraConfig(rank=3), LoraConfig(rank=1, seed=1, rslora=True), LoraConfig(rank=4)]
    compare(loaded(qwen3), configs, rows)


def test_a_stack_that_was_never_bound_uses_its_first_adapter() -> None:
    model = loaded(llama)
    batch = batch_of(model)
    with filled(attach(model.network, [LoraConfig(rank=3), LoraConfig(rank=2)])) as stack:
        found = model.completion_logits(batch)
        stack.bind(torch.zeros(3, dtype=torch.long))
        assert torch.equal(found, model.completion_logits(batch))


def test_without_an_adapter_in_use_it_is_the_base_and_has_no_gradient() -> None:
    model = loaded(llama)
    batch = batch_of(model)
    base = model.completion_logits(batch)
    with filled(attach(model.network, [LoraConfig(rank=3)])) as stack:
        assert not torch.equal(model.completion_logits(batch), base)
        stack.bind(torch.full((3,), -1))
        found = model.completion_logits(batch)
    assert torch.equal(found, base)
    assert not found.requires_grad


@pytest.mark.parametrize(
    ("targets", "layers"),
    [
        (("q_proj",), (1,)),
        (("v_proj",), (0,)),
        (("o_proj",), (1,)),
        (("o_proj", "k_proj"), None),
        (("down_proj",), (0,)),
        (("up_proj",), (1,)),
        (("attention",), None),
    ],
)
def test_wherever_the_adapters_are(targets: tuple[str, ...], layers: tuple[int, ...]) -> None:
    compare(loaded(llama), [LoraConfig(rank=2, targets=targets, layers=layers)], None)


def test_adapters_of_one_stack_may_be_in_different_layers() -> None:
    configs = [LoraConfig(rank=2, layers=(1,)), LoraConfig(rank=3, targets=("q_proj", "up_proj"))]
    compare(loaded(llama), configs, [1, 0, 1])


def test_long_texts_go_through_torch_s_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lorewright.models.backends.kernels, "SCORE_BYTES", 0)
    compare(loaded(llama), [LoraConfig(rank=3)], None)


def test_what_comes_after_the_last_prediction_is_not_computed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = loaded(llama)
    batch = batch_of(model)
    assert model.fused is not None
    asked: list[int] = []
    turns = model.fused.turns
    monkeypatch.setattr(model.fused, "turns", lambda n: (asked.append(n), turns(n))[1])
    model.completion_logits(batch)
    assert asked == [int(batch.position_BC.max()) + 1]


@pytest.mark.parametrize("name", sorted(set(FAMILIES) - {"llama", "qwen3"}))
def test_other_families_run_through_the_network(name: str) -> None:
    model = Model(FAMILIES[name](), letters(), "tiny")  # type: ignore[arg-type]
    assert model.fused is None
    assert torch.isfinite(model.completion_logits(batch_of(model))).all()


def test_a_decoder_that_does_something_else_is_not_taken() -> None:
    network: Any = llama()
    assert Fused.of(text_decoder(network)) is not None
    network.model.norm.forward = lambda x: 2 * x
    assert Fused.of(text_decoder(network)) is None
    strange: Any = llama()
    strange.model.layers[0].self_attn.scaling *= 2
    assert Fused.of(text_decoder(strange)) is None
    assert Fused.of(text_decoder(llama(hidden_act="gelu"))) is None
    turning = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    assert Fused.of(text_decoder(llama(rope_parameters=turning))) is None


def test_it_does_not_run_while_something_listens_or_the_base_learns() -> None:
    model = loaded(llama)
    fused: Any = model.fused
    assert fused.ready()
    handle = model.network.model.layers[1].mlp.register_forward_hook(lambda *_: None)
    assert not fused.ready()
    handle.remove()
    assert fused.ready()
    model.network.model.layers[1].mlp.up_proj.weight.requires_grad_(True)
    assert not fused.ready()
    assert not loaded(lambda: llama().double()).fused.ready()  # type: ignore[union-attr]


@pytest.mark.parametrize("place", ["norm", "embed_tokens", "layers.0.input_layernorm"])
def test_a_weight_that_learns_keeps_it_from_running(place: str) -> None:
    model = loaded(llama)
    assert model.fused is not None
    model.network.model.get_submodule(place).weight.requires_grad_(True)
    assert not model.fused.ready()


def test_a_backward_hook_keeps_it_from_running() -> None:
    model = loaded(llama)
    assert model.fused is not None
    model.network.model.layers[0].register_full_backward_hook(lambda *_: None)
    assert not model.fused.ready()


def test_a_base_that_becomes_ready_later_is_tried_then() -> None:
    model = loaded(lambda: llama().double())
    assert model.fused is not None and model.fused.agrees is None
    model.network.float()
    assert model.fused.ready() and model.fused.agrees


def test_families_that_only_look_alike_load_and_are_not_taken() -> None:
    from transformers import OlmoConfig, OlmoForCausalLM

    shape = llama().config.to_dict()
    kept = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")
    config = OlmoConfig(
        **{key: shape[key] for key in kept}, num_attention_heads=4, eos_token_id=2, pad_token_id=0
    )
    assert loaded(lambda: OlmoForCausalLM(config).eval()).fused is None


def test_another_library_s_adapters_are_not_passed_over() -> None:
    from peft import LoraConfig as PeftConfig
    from peft import inject_adapter_in_model

    model = loaded(llama)
    batch, fused = batch_of(model), model.fused
    assert fused is not None
    config = PeftConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    inject_adapter_in_model(config, model.network)
    assert not fused.ready()
    found = model.completion_logits(batch)
    model.fused = None
    assert torch.equal(found, model.completion_logits(batch))


def test_a_pass_that_needs_no_gradient_keeps_nothing() -> None:
    model = loaded(llama)
    with attach(model.network, [LoraConfig(rank=2)]), torch.no_grad():
        assert not model.completion_logits(batch_of(model)).requires_grad
    assert not model.completion_logits(batch_of(model)).requires_grad


def test_rows_of_another_batch_are_refused() -> None:
    model = loaded(llama)
    with attach(model.network, [LoraConfig(), LoraConfig()]) as stack:
        stack.bind(torch.tensor([0, 1]))
        with pytest.raises(AdapterError, match="2 rows are bound; the batch has 3"):
            model.completion_logits(batch_of(model))


def test_it_starts_where_the_trunk_ends() -> None:
    model = loaded(lambda: llama(num_hidden_layers=3))
    batch, fused = batch_of(model), model.fused
    assert fused is not None
    lengths = [len(model.render(*text)) for text in TEXTS]
    with filled(attach(model.network, [LoraConfig(layers=(2,))])) as stack:
        trunk = Trunk(model, batch, lengths, 2, None)
        expected, others = outcome(model, stack, batch)
        with trunk.skipping():
            trunk.feed([0, 1, 2], batch.ids_BT.shape[1])
            entering = model.entering
            loss, grads = outcome(model, stack, batch)
        assert isinstance(entering, Entering)
        assert model.entering is None
    real = batch.mask_BC.bool()
    torch.testing.assert_close(loss[real], expected[real], rtol=1e-4, atol=1e-5)
    for mine, other in zip(grads, others, strict=True):
        assert mine is not None and other is not None
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-5)
