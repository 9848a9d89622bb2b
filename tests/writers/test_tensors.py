"""Claims about states that are a few tensors: stored, checked, refused, and what each form is."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.families import FAMILIES, gpt_neox, token_ids
from support.families import logits as logits_of
from support.models import letters
from support.numbers import assert_close, depth
from support.writes import CONFIG, EXAMPLES, logits, tiny

from lorewright.adapters.config import LoraConfig
from lorewright.errors import AdapterError, ConfigError, NoEffect, TargetsNotFound, WrongBase
from lorewright.knowledge.data import Document, Knowledge
from lorewright.models.model import Model
from lorewright.training.watch import Watch
from lorewright.writers.bottleneck import Bottleneck
from lorewright.writers.ia3 import IA3
from lorewright.writers.prefix import Prefix, Prompt
from lorewright.writers.tensors import CARD_FILE, TENSOR_FILE, Form, TensorState, Tuning, load
from lorewright.writers.writer import Material

SOURCE = Knowledge((Document("codes", "Red is 48. Blue is 7.5."),))
FORMS: tuple[Form, ...] = (Prompt(), Prefix(), IA3(), Bottleneck())
STARTS_AT_THE_BASE: tuple[Form, ...] = (IA3(), Bottleneck())
GENERAL: tuple[Form, ...] = (Bottleneck(),)
"""Forms for every family; the others name projections or need full attention."""


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny()


def started(form: Form, model: Model, size: int = 4) -> TensorState:
    tensors = form.start(model, SOURCE, size, torch.Generator().manual_seed(0))
    return TensorState(form, tensors, size, model.name, model.digest)


def moved(form: Form, model: Model) -> TensorState:
    state = started(form, model)
    return replace(state, tensors={name: t + 0.1 for name, t in state.tensors.items()})


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_a_folder_takes_its_content_and_no_other(form: Form, model: Model, tmp_path: Path) -> None:
    state = moved(form, model)
    assert state.save(tmp_path / "s", {"about": 1}) == state.save(tmp_path / "s", {"about": 2})
    again = load(tmp_path / "s", form)
    assert (again.id, again.size, again.base_digest) == (state.id, 4, model.digest)
    assert json.loads((tmp_path / "s" / CARD_FILE).read_text())["about"] == 2
    with pytest.raises(AdapterError, match=f"holds {state.id}, not"):
        started(form, model).save(tmp_path / "s", {})
    again.check(model)


def truncate(folder: Path) -> None:
    content = (folder / TENSOR_FILE).read_bytes()
    (folder / TENSOR_FILE).write_bytes(content[: len(content) // 2])


def edit(folder: Path) -> None:
    content = bytearray((folder / TENSOR_FILE).read_bytes())
    content[-2] ^= 1
    (folder / TENSOR_FILE).write_bytes(content)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "half": (truncate, "is truncated or corrupt"),
    "edited": (edit, "the file holds"),
    "no tensors": (lambda folder: (folder / TENSOR_FILE).unlink(), "needs state.safetensors"),
    "no card": (lambda folder: (folder / CARD_FILE).unlink(), "needs state.safetensors and card"),
    "other card": (lambda folder: (folder / CARD_FILE).write_text("{}"), "cannot be read"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_damaged_is_refused_with_what_to_do(
    damage: str, model: Model, tmp_path: Path
) -> None:
    moved(IA3(), model).save(tmp_path / "s", {})
    act, complaint = DAMAGE[damage]
    act(tmp_path / "s")
    with pytest.raises(AdapterError, match=rf"(?s){complaint}.*restore it from a copy"):
        load(tmp_path / "s", IA3())


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_another_base_or_another_shape_is_refused(form: Form, model: Model) -> None:
    state = moved(form, model)
    with pytest.raises(WrongBase, match="Load that base, or write it again"):
        replace(state, base_digest="0" * 64).check(model)
    name = min(state.tensors)
    other = {**state.tensors, name: state.tensors[name][:1]}
    with pytest.raises(AdapterError, match=f"'{name}' is .*, where .* is needed"):
        replace(state, tensors=other).check(model)


@pytest.mark.parametrize("form", STARTS_AT_THE_BASE, ids=lambda form: form.name)
def test_before_training_it_is_the_base_bit_for_bit_and_no_state(form: Form, model: Model) -> None:
    state, before = started(form, model), logits(model)
    with state.on(model):
        assert torch.equal(logits(model), before)
    with pytest.raises(NoEffect, match="changes nothing"):
        state.check(model)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_every_tensor_gets_a_gradient(form: Form, model: Model) -> None:
    tensors = {name: t.requires_grad_() for name, t in moved(form, model).tensors.items()}
    batch = model.batch([model.render(EXAMPLES[0].prompt, EXAMPLES[0].completion)])
    with torch.enable_grad(), form.on(model, tensors):
        loss = model.completion_nats(batch).loss_BT.sum()
    gradients = torch.autograd.grad(loss, list(tensors.values()))
    assert all(bool(gradient.any()) for gradient in gradients)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("form", GENERAL, ids=lambda form: form.name)
def test_it_switches_on_and_off_in_every_family(form: Form, family: str) -> None:
    model = Model(FAMILIES[family](), letters(), family)
    before, state = logits_of(model.network, token_ids()), moved(form, model)
    state.check(model)
    with state.on(model):
        assert not torch.equal(logits_of(model.network, token_ids()), before)
    assert torch.equal(logits_of(model.network, token_ids()), before)


def test_factors_folded_into_the_weights_are_the_factors(model: Model) -> None:
    state = moved(IA3(), model)
    with state.on(model):
        beside = logits(model)
    folded = tiny()
    for name, factor in state.tensors.items():
        weight = folded.network.get_parameter(f"{name}.weight").data
        weight.mul_(factor if name.endswith("down_proj") else factor[:, None])
    assert_close(beside, logits(folded), depth(model.network, 60))


def test_where_keys_and_values_are_one_projection_there_are_no_factors() -> None:
    model = Model(gpt_neox(), letters(), "neox")
    with pytest.raises(TargetsNotFound, match="'k_proj'"):
        started(IA3(), model)


def test_a_short_source_is_repeated_and_a_size_is_a_size(model: Model) -> None:
    prompt = started(Prompt(), model, size=100).tensors["embeddings"]
    n = len(model.tokenizer(SOURCE.documents[0].text, add_special_tokens=False)["input_ids"]) + 1
    assert prompt.shape[0] == 100 and torch.equal(prompt[0], prompt[n])
    sizes = {form.name: started(form, model, size=8).size_bytes for form in FORMS}
    # width 32, 2 layers with 2 key heads of 8, inner width 48
    assert sizes["prompt"] == 4 * 8 * 32 and sizes["prefix"] == 4 * 2 * 2 * 8 * (2 * 8)
    assert sizes["ia3"] == 4 * 2 * (16 + 16 + 48)
    assert sizes["bottleneck"] == 4 * 2 * 2 * (2 * 8 * 32 + 8 + 32)


def test_settings_that_only_adapters_have_are_refused() -> None:
    with pytest.raises(ConfigError, match="'prefix' trains no adapter, so alpha, targets, layers"):
        Tuning(Prefix(), replace(CONFIG, lora=LoraConfig(layers=(0,))))
    with pytest.raises(ConfigError, match="optimizer 'muon', which goes by pairs of A and B"):
        Tuning(Prompt(), replace(CONFIG, lora=LoraConfig(), optimizer="muon"))


def test_the_size_of_the_settings_is_that_of_the_state(model: Model) -> None:
    config = replace(CONFIG, lora=LoraConfig(), size=3, epochs=1)
    material = Material(SOURCE, EXAMPLES[:1])
    state, _ = Tuning(Prompt(), config).write(model, material, seed=0, run=None, watch=Watch())
    assert state.size == 3 and state.tensors["embeddings"].shape == (3, 32)
