"""Claims about imitation: one adapter is copied, several are joined; refusals."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from support.families import FAMILIES, gemma3_text, gpt_neox, llama, logits, phi, qwen3_moe
from support.models import letters
from support.numbers import rounding
from torch import Tensor, nn

from lorewright.adapters.adapter import HALVES, Adapter, capture, content_id, load, save
from lorewright.adapters.config import LoraConfig
from lorewright.adapters.lora import attach
from lorewright.adapters.proof import validate
from lorewright.errors import AdapterError, ConfigError, WrongBase
from lorewright.knowledge.data import Example
from lorewright.merging.algebra import merge
from lorewright.merging.imitate import Source, grams, imitate
from lorewright.merging.layerwise import tapping
from lorewright.models.model import Model

Build = Callable[[], nn.Module]
family = pytest.mark.parametrize("build", FAMILIES.values(), ids=FAMILIES)
peft_warns = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
ASKED = (
    (("Code of red?", "48"), ("Where is blue?", "in 7.5"), ("Teal?", "KX-12"), ("Rose?", "by 3")),
    (("Name of fox?", "Ann"), ("Who leads owl?", "Mo"), ("Hare?", "x 9"), ("Is it elk?", "no")),
)
RIDGE = {"ridge": 1e-9}


def tiny(build: Build = llama) -> Model:
    return Model(build(), letters(), "tiny")  # type: ignore[arg-type]


def examples(n: int) -> list[Example]:
    return [Example(question, answer) for question, answer in ASKED[n]]


def source(model: Model, n: int, *, rank: int = 2, size: float = 0.3, **settings: Any) -> Source:
    """A random adapter, as large as a trained one, and its examples."""
    config = LoraConfig(rank=rank, alpha=2 * rank, seed=n, **settings)
    with attach(model.network, [config]) as stack:
        generator = torch.Generator().manual_seed(n)
        tensors = stack.tensors(0)
        for key, tensor in tensors.items():
            if key.endswith(HALVES[1]):
                tensor.copy_(size * torch.randn(tensor.shape, generator=generator))
        stack.load(0, tensors)
        result = capture(stack, 0, base_id=model.name, base_digest=model.digest)
    return Source(result, examples(n))


@torch.no_grad()
def answers(model: Model, adapter: Adapter | None, rows: list[Example]) -> Tensor:
    """Logits at the answers' tokens (M, V)."""
    batch = model.batch([model.render(row.prompt, row.completion) for row in rows])
    with model.using(*([adapter] if adapter else [])):
        return model.completion_logits(batch)[batch.mask_BC.bool()]


def off(model: Model, adapter: Adapter, of: Source) -> float:
    """How far an adapter's logits are from the source's, where the base's are at 1."""
    own, result, base = (answers(model, a, [*of.examples]) for a in (of.adapter, adapter, None))
    return ((result - own).norm() / (base - own).norm()).item()


@family
def test_one_source_at_its_rank_is_imitated_exactly_in_every_family(build: Build) -> None:
    model = tiny(build)
    before, one = logits(model.network), source(model, 0)
    result = imitate(model, [one], rank=2, **RIDGE)
    assert off(model, result.adapter, one) < 1e-2 and result.strayed[0] < 1e-4
    validate(result.adapter, model.network, model.digest)
    assert torch.equal(before, logits(model.network)), "the network is as it was"


def test_two_sources_are_followed_where_their_sum_follows_neither() -> None:
    model = tiny()
    two = [source(model, 0), source(model, 1)]
    result = imitate(model, two)
    assert result.adapter.config.rank == 4 and not result.notes
    added = merge([each.adapter for each in two], method="cat").adapter
    for each, strayed in zip(two, result.strayed, strict=True):
        assert off(model, result.adapter, each) < 0.5 * off(model, added, each)
        assert strayed < 0.3


def test_more_rank_follows_more_closely_and_less_is_the_best_of_it() -> None:
    model = tiny()
    two = [source(model, 0), source(model, 1)]
    strayed = [sum(imitate(model, two, rank=rank).strayed) for rank in (1, 2, 4, 8)]
    assert strayed == sorted(strayed, reverse=True) and strayed[-1] < strayed[0] / 2


def test_copies_of_one_source_are_that_source_at_its_own_rank() -> None:
    model = tiny()
    one = source(model, 0)
    result = imitate(model, [one, one], rank=2, **RIDGE)
    assert off(model, result.adapter, one) < 1e-2


def test_sources_on_different_layers_and_modules_are_joined() -> None:
    model = tiny()
    two = [source(model, 0, layers=(0,)), source(model, 1, targets=("mlp",), layers=(1,), rank=3)]
    result = imitate(model, two)
    names = {name for each in two for name in each.adapter.modules}
    assert set(result.adapter.modules) == names and result.adapter.config.rank == 5
    validate(result.adapter, model.network, model.digest)
    assert max(result.strayed) < 0.5


def test_weights_are_factors_on_what_each_source_changes() -> None:
    model = tiny()
    one = source(model, 0)
    none = imitate(model, [one], [1e-6], rank=2, **RIDGE).adapter
    base = answers(model, None, [*one.examples])
    torch.testing.assert_close(answers(model, none, [*one.examples]), base, rtol=0, atol=1e-3)
    tensors = {k: t * (0.5 if k.endswith(HALVES[1]) else 1) for k, t in one.adapter.tensors.items()}
    half = Source(replace(one.adapter, tensors=tensors), one.examples)
    result = imitate(model, [one], [0.5], rank=2, **RIDGE).adapter
    assert off(model, result, half) < 1e-2


@pytest.mark.parametrize(
    ("build", "noted"), [(llama, False), (phi, False), (gpt_neox, False), (gemma3_text, True)]
)
def test_a_stream_that_is_normed_before_it_is_added_is_said_not_to_be_followed(
    build: Build, noted: bool
) -> None:
    model = tiny(build)
    result = imitate(model, [source(model, 0), source(model, 1)])
    assert bool(result.notes) == noted
    assert all("layers [0, 1]" in note for note in result.notes)


def test_a_base_in_bfloat16_is_followed_as_closely_as_its_numbers_allow() -> None:
    model = tiny(lambda: llama().bfloat16())
    two = [source(model, 0), source(model, 1)]
    result = imitate(model, two)
    assert not result.notes and max(result.strayed) < 0.4
    assert {tensor.dtype for tensor in result.adapter.tensors.values()} == {torch.float32}


def test_attention_beside_a_mixture_of_experts_is_imitated() -> None:
    model = tiny(qwen3_moe)
    two = [source(model, n, targets=("attention",)) for n in (0, 1)]
    result = imitate(model, two)
    assert max(result.strayed) < 0.5


def test_the_gap_to_a_source_does_not_grow_from_layer_to_layer() -> None:
    model = tiny(lambda: llama(num_hidden_layers=3))
    two = [source(model, 0), source(model, 1)]
    result = imitate(model, two, rank=3)
    layers_off = []
    for each in two:
        rows = [model.render(row.prompt, row.completion) for row in each.examples]
        batch = model.batch(rows)
        states = []
        for adapter in (each.adapter, result.adapter):
            names = [f"model.layers.{at}" for at in range(3)]
            with torch.no_grad(), model.using(adapter), tapping(model.network, names) as tap:
                model.completion_logits(batch)
            states.append([tap[name][1] for name in names])
        gaps = [(a - b).norm() / a.norm() for a, b in zip(*states, strict=True)]
        layers_off.append([gap.item() for gap in gaps])
    for first, *_, last in layers_off:
        assert last < 1.5 * first, "the gap does not grow from layer to layer"


@peft_warns
def test_the_result_is_a_plain_adapter_that_loads_in_peft(tmp_path: Path) -> None:
    model = tiny()
    two = [source(model, 0), source(model, 1, rank=3)]
    result = imitate(model, two).adapter
    assert (result.config.rank, result.config.alpha, result.config.scale) == (5, 5, 1.0)
    assert result.config.targets == ("all-linear",)
    card = result.card["merge"]
    assert card["method"] == "imitate" and card["n_examples"] == [4, 4]
    assert card["sources"] == [content_id(each.adapter) for each in two]
    save(result, tmp_path / "merged")
    assert content_id(load(tmp_path / "merged")) == content_id(result)
    wrapped = peft.PeftModel.from_pretrained(llama(), tmp_path / "merged")
    with model.using(result):
        ours = logits(model.network)
    atol = rounding(torch.float32, 32 * 8, ours)  # sums over 32 inputs in 8 matrices
    torch.testing.assert_close(logits(wrapped), ours, rtol=0, atol=atol)


def test_the_same_sources_give_the_same_bytes() -> None:
    model = tiny()
    two = [source(model, 0), source(model, 1)]
    first, second = imitate(model, two).adapter, imitate(model, two).adapter
    assert content_id(first) == content_id(second)


def test_grams_are_products_of_what_each_module_receives_without_padding() -> None:
    model = tiny()
    one = source(model, 0)
    result = grams(model, one)
    assert set(result) == set(one.adapter.modules)
    name = "model.layers.1.mlp.down_proj"
    expected = torch.zeros(48, 48).double()
    for row in one.examples:  # alone, so that nothing is padded
        batch = model.batch([model.render(row.prompt, row.completion)])
        with (
            torch.no_grad(),
            model.using(one.adapter),
            tapping(model.network, [name]) as tap,
        ):
            model.completion_logits(batch)
        x_TI = tap[name][0][0].double()
        expected += x_TI.T @ x_TI
    n_values = sum(len(model.render(row.prompt, row.completion)) for row in one.examples)
    atol = rounding(torch.float32, 48 * n_values, expected)
    torch.testing.assert_close(result[name], expected, rtol=0, atol=atol)
    merged = merge([one.adapter, one.adapter], method="regmean", grams=[result, result])
    assert off(model, merged.adapter, one) < 1e-2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sources": []}, "at least one source"),
        ({"weights": [1.0, 2.0]}, "1 finite numbers; they"),
        ({"weights": [math.nan]}, "1 finite numbers"),
        ({"rank": 0}, "rank must be"),
        ({"ridge": 0.0}, "ridge must be above 0"),
        ({"floor": -1.0}, "floor must be above 0"),
        ({"damping": math.inf}, "damping must be above 0"),
    ],
)
def test_wrong_arguments_are_refused_with_a_reason(change: dict[str, Any], message: str) -> None:
    model = tiny()
    with pytest.raises(ConfigError, match=message):
        imitate(model, **{"sources": [source(model, 0)], **change})


def test_sources_without_examples_or_of_another_base_are_refused() -> None:
    model = tiny()
    one = source(model, 0)
    with pytest.raises(ConfigError, match="source 1 has none"):
        imitate(model, [one, replace(one, examples=[])])
    foreign = replace(one, adapter=replace(one.adapter, base_digest="e" * 64))
    with pytest.raises(WrongBase):
        imitate(model, [foreign])
    gone = {k: t for k, t in one.adapter.tensors.items() if "layers.0" not in k}
    with pytest.raises(AdapterError):
        imitate(model, [replace(one, adapter=replace(one.adapter, tensors=gone))])
    assert not any("lora" in name for name, _ in model.network.named_parameters())
