"""Claims about a base in four bits: a digest of its own, gradients all the way, memories on it."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.commands import Lore, refused
from support.families import llama
from support.models import letters
from support.writes import BRIEF, CONFIG, EXAMPLES, logits, same_adapter

from lorewright.adapters.adapter import load, save
from lorewright.adapters.config import LoraConfig
from lorewright.adapters.lora import attach
from lorewright.adapters.quantise import LAYER, quantised
from lorewright.errors import ModelError, WrongBase
from lorewright.files import dump_jsonl
from lorewright.knowledge.data import Fact, Knowledge
from lorewright.memory.memory import Memory
from lorewright.merging.algebra import merge
from lorewright.models.export import export
from lorewright.models.model import Model
from lorewright.recall.traces import certify
from lorewright.training.loop import write

pytest.importorskip("bitsandbytes", reason="needs bitsandbytes: pip install lorewright[quantise]")
FACTS = Knowledge(facts=tuple(Fact(e.prompt, e.prompt, e.completion) for e in EXAMPLES))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny base as files, its head loud enough for adapters to make it sure of something."""
    folder = tmp_path_factory.mktemp("base")
    network = llama(max_position_embeddings=128, hidden_size=64, intermediate_size=64)
    network.lm_head.weight.data.mul_(40)
    network.save_pretrained(folder)
    letters().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(place: Path) -> Model:
    return Model.load(str(place), dtype="nf4")


def test_the_decoders_linear_layers_hold_four_bits(model: Model) -> None:
    layers = quantised(model.network)
    assert len(layers) == 14 and all(type(layer).__name__ == LAYER for layer in layers)
    assert all(layer.weight.dtype == torch.uint8 for layer in layers)
    assert model.network.lm_head.weight.dtype == torch.float32 == model.dtype


def test_loaded_twice_it_is_the_same_base_and_another_than_the_float_one(
    model: Model, place: Path
) -> None:
    assert Model.load(str(place), dtype="nf4").digest == model.digest
    assert Model.load(str(place)).digest != model.digest


def test_predictions_are_near_those_of_the_float_base_and_not_equal(
    model: Model, place: Path
) -> None:
    exact, rough = logits(Model.load(str(place))), logits(model)
    off = (exact - rough).norm() / exact.norm()
    assert 0.001 < off < 0.5


def test_gradients_reach_the_lowest_layer_after_a_pass_without_any(model: Model) -> None:
    ids = torch.arange(3, 20)[None]
    logits(model)
    with attach(model.network, [LoraConfig(rank=2)]) as stack:
        for layer in stack.modules.values():
            layer.B_NOR.data.fill_(0.1)
        model.network(ids).logits.square().mean().backward()
        lowest = stack.modules["model.layers.0.self_attn.q_proj"]
        assert lowest.A_NRI.grad is not None and lowest.A_NRI.grad.abs().max() > 0


def test_gradients_are_those_of_the_weights_that_four_bits_stand_for(model: Model) -> None:
    from bitsandbytes.functional import dequantize_4bit

    layer = quantised(model.network)[0]
    whole = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    x = torch.randn(5, whole.shape[1], generator=torch.Generator().manual_seed(0))
    x.requires_grad_(True)
    (mine,) = torch.autograd.grad(layer(x).square().sum(), x)
    (plain,) = torch.autograd.grad((x @ whole.float().T).square().sum(), x)
    assert torch.allclose(mine, plain, rtol=1e-3, atol=1e-4)


def test_a_write_recalls_repeats_and_leaves_the_base(model: Model) -> None:
    before = logits(model)
    done = write(model, EXAMPLES, CONFIG)
    assert done.complete, done.reason
    with model.using(done.adapter):
        assert all(certify(model, EXAMPLES, margin=CONFIG.margin))
        assert model.generate([e.prompt for e in EXAMPLES]) == [e.completion for e in EXAMPLES]
    assert torch.equal(logits(model), before)
    assert same_adapter(write(model, EXAMPLES, BRIEF), write(model, EXAMPLES, BRIEF))


def test_a_dora_adapter_is_written_on_it_and_follows_the_quantised_rows(model: Model) -> None:
    pytest.importorskip("peft")
    config = replace(CONFIG, lora=LoraConfig(rank=4, variant="dora"))
    done = write(model, EXAMPLES, config)
    assert done.complete, done.reason
    with model.using(done.adapter):
        assert all(certify(model, EXAMPLES, margin=config.margin))


def test_the_float_base_refuses_its_adapters_and_the_other_way_round(
    model: Model, place: Path
) -> None:
    exact = Model.load(str(place))
    for here, there in ((model, exact), (exact, model)):
        adapter = write(here, EXAMPLES, replace(BRIEF, epochs=1)).adapter
        with pytest.raises(WrongBase, match="Load that base"), there.using(adapter):
            pass


def test_adapters_are_merged_for_the_same_quantised_base(model: Model) -> None:
    made = [write(model, EXAMPLES, replace(BRIEF, seed=n)).adapter for n in range(2)]
    both = merge(made, [0.5, 0.5]).adapter
    with model.using(both):
        logits(model)


@pytest.mark.slow
def test_a_memory_is_reopened_on_the_base_it_was_written_on(place: Path, tmp_path: Path) -> None:
    memory = Memory.open(tmp_path / "atlas", str(place), dtype="nf4")
    outcome = memory.write(FACTS, name="codes", config=BRIEF)
    assert outcome.report.arms
    told = json.loads((tmp_path / "atlas" / "memory.json").read_text())["base"]
    assert told["dtype"] == "nf4"
    again = Memory.open(tmp_path / "atlas")
    assert quantised(again.model.network) and again.model.digest == memory.model.digest
    with pytest.raises(WrongBase, match="own base and dtype"):
        Memory.open(tmp_path / "atlas", dtype="float32")


@pytest.mark.slow
def test_a_folder_remembers_how_a_given_base_was_loaded(model: Model, tmp_path: Path) -> None:
    Memory.open(tmp_path / "atlas", model).write(FACTS, name="codes", config=BRIEF)
    assert quantised(Memory.open(tmp_path / "atlas").model.network)


def test_an_export_says_which_base_the_adapter_is_for(model: Model, tmp_path: Path) -> None:
    adapter = write(model, EXAMPLES, BRIEF).adapter
    save(adapter, tmp_path / "adapter")
    found = export(load(tmp_path / "adapter"), model, tmp_path / "out", to="vllm")
    assert any("nf4" in note for note in found.notes)


def test_lore_write_takes_nf4_and_ask_needs_no_word_of_it(
    lore: Lore,
    place: Path,
    tmp_path: Path,
) -> None:
    dump_jsonl(
        [{"question": e.prompt, "answer": e.completion} for e in EXAMPLES], tmp_path / "a.jsonl"
    )
    base = ("--model", place, "--dtype", "nf4", "--rank", 4, "--lr", 0.01, "--epochs", 6)
    ran = lore("write", tmp_path / "a.jsonl", "--into", tmp_path / "atlas", *base, "--json")
    assert ran.code in (0, 1) and ran.json["memory"] == "a", ran.err  # 1 where it recalls nothing
    said = lore(
        "ask", EXAMPLES[0].prompt, "--memory", tmp_path / "atlas", "--name", "a", "--mode", "closed"
    )
    assert said.code == 0, said.err


def test_without_the_extra_it_is_said_what_to_install(
    lore: Lore,
    place: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ModelError, match="pip install 'lorewright\\[quantise\\]'"):
        Model.load(str(place), dtype="nf4")
    dump_jsonl([{"question": "Who?", "answer": "A"}], tmp_path / "a.jsonl")
    ran = lore("write", tmp_path / "a.jsonl", "--into", tmp_path / "atlas", "--dtype", "nf4")
    refused(ran, "ModelError", "bitsandbytes, which is not installed")
    assert not (tmp_path / "atlas").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_refused(place: Path) -> None:
    with pytest.raises(ModelError, match="use cpu"):
        Model.load(str(place), dtype="nf4", device="cuda")
