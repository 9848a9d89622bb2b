"""Claims about DoRA: PEFT's numbers, the same loop, folders that PEFT loads, refusals in words."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.commands import Lore, refused
from support.families import llama
from support.numbers import assert_close, depth
from support.stacks import OTHERS, far, written
from support.writes import BRIEF, CONFIG, EXAMPLES, apart, interrupted, logits, same_adapter, tiny
from torch import Tensor

from lorewright.adapters import dora
from lorewright.adapters.adapter import Adapter, content_id, load, save
from lorewright.adapters.config import LoraConfig
from lorewright.adapters.lora import DoraLinear, LoraLinear, attach
from lorewright.adapters.proof import prove
from lorewright.errors import AdapterError, ConfigError
from lorewright.files import dump_jsonl
from lorewright.knowledge.data import Fact, Knowledge
from lorewright.memory.memory import Memory
from lorewright.merging.algebra import merge
from lorewright.merging.imitate import Source, imitate
from lorewright.models.export import export
from lorewright.models.model import Model
from lorewright.recall.traces import certify
from lorewright.serve.adapter_cache import check
from lorewright.training.config import Job, WriteConfig, Written
from lorewright.training.loop import write, write_all

pytest.importorskip("peft", reason="needs peft: pip install lorewright[peft]")
LENGTHS = LoraConfig(rank=4, variant="dora")
DORA = replace(CONFIG, lora=LENGTHS)
SHORT = replace(BRIEF, lora=LENGTHS)
FACTS = Knowledge(facts=tuple(Fact(e.prompt, e.prompt, e.completion) for e in EXAMPLES))
IDS = torch.arange(3, 60)[None]


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny()


@pytest.fixture(scope="module")
def done(model: Model) -> Written:
    return write(model, EXAMPLES, DORA)


def moved(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of an untrained adapter with numbers in B, and lengths changed."""
    generator = torch.Generator().manual_seed(0)
    return {
        key: tensor + 0.1 * torch.randn(tensor.shape, generator=generator)
        for key, tensor in tensors.items()
    }


# --- the layer


def test_untrained_it_leaves_the_base_as_it_is(model: Model) -> None:
    before = logits(model)
    with attach(model.network, [LENGTHS]) as stack:
        assert all(type(layer) is DoraLinear for layer in stack.modules.values())
        assert_close(logits(model), before, 4 * depth(model.network, 32))  # W is normed
    assert torch.equal(logits(model), before)


def test_the_equation_is_the_papers() -> None:
    base = torch.nn.Linear(6, 5)
    layer = dora.engine(base)
    A, B, m = torch.randn(2, 6), torch.randn(5, 2), torch.rand(5) + 0.5
    x = torch.randn(3, 4, 6)
    whole = base.weight + B @ A
    expected = x @ (m[:, None] * whole / whole.norm(dim=1, keepdim=True)).T + base.bias
    assert_close(dora.through(layer, x, A, B, m), expected, 6 * 5 * 2)
    assert_close(dora.row_norms(layer), base.weight.norm(dim=1), 6)


def test_an_engine_draws_from_nobodys_random_numbers() -> None:
    base = torch.nn.Linear(6, 5)
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    dora.engine(base)
    assert torch.equal(torch.rand(4), expected)


def test_rows_of_a_batch_use_their_own_adapter_plain_ones_beside_dora(model: Model) -> None:
    configs = [LENGTHS, LoraConfig(rank=2, seed=1), replace(LENGTHS, rank=3, seed=2)]
    ids = torch.stack([torch.arange(3 + n, 20 + n) for n in range(4)])
    with torch.no_grad():
        alone = []
        tensors = []
        for n, config in enumerate(configs):
            with attach(model.network, [config]) as stack:
                tensors.append(moved(stack.tensors(0)))
                stack.load(0, tensors[-1])
                alone.append(model.network(ids[n : n + 1]).logits)
        alone.append(model.network(ids[3:]).logits)
        with attach(model.network, configs) as stack:
            for n, own in enumerate(tensors):
                stack.load(n, own)
            stack.bind(torch.tensor([0, 1, 2, -1]))
            together = model.network(ids).logits
            for n in range(4):
                assert_close(together[n], alone[n][0], 4 * depth(model.network, 17))
            stack.drop(0)
            stack.bind(torch.tensor([0, 1, -1]))
            left = model.network(ids[1:]).logits
        assert_close(left, together[1:], 4 * depth(model.network, 17))


# --- writes


def test_a_write_recalls_moves_lengths_and_leaves_the_base(model: Model, done: Written) -> None:
    assert done.complete, done.reason
    with model.using(done.adapter):
        assert all(certify(model, EXAMPLES, margin=DORA.margin))
        assert model.generate([e.prompt for e in EXAMPLES]) == [e.completion for e in EXAMPLES]
    for name in done.adapter.modules:
        start = model.network.get_submodule(name).weight.norm(dim=1)  # type: ignore[operator, union-attr]
        assert not torch.equal(done.adapter.tensors[f"{name}.lora_magnitude_vector"], start)


def test_same_seed_same_bytes_and_resumed_the_same(model: Model, tmp_path: Path) -> None:
    once = write(model, EXAMPLES, SHORT)
    assert same_adapter(once, write(model, EXAMPLES, SHORT))
    interrupted(model, tmp_path, at=3, config=SHORT)
    assert same_adapter(once, write(model, EXAMPLES, SHORT, run=tmp_path))


@pytest.mark.usefixtures("calm")
def test_written_together_equals_written_alone_also_beside_plain_lora(model: Model) -> None:
    jobs = [
        Job(EXAMPLES, replace(SHORT, batch_size=2)),
        Job(OTHERS, replace(SHORT, lora=replace(LENGTHS, rank=2, seed=3), dropout=0.2)),
        Job(EXAMPLES, replace(BRIEF, epochs=4)),
    ]
    for job, found in zip(jobs, write_all(model, jobs), strict=True):
        alone = write(model, job.examples, job.config)
        assert far(written(found), alone) < apart(model, job.config, len(job.examples))


def test_decay_shrinks_a_and_b_and_never_the_bases_rows(model: Model) -> None:
    decayed = write(model, EXAMPLES, replace(SHORT, weight_decay=5.0)).adapter.tensors
    plain = write(model, EXAMPLES, SHORT).adapter.tensors

    def size(tensors: Mapping[str, Tensor], part: str) -> float:
        return float(sum(t.norm() ** 2 for key, t in tensors.items() if part in key) ** 0.5)

    assert size(decayed, "lora_A") < 0.9 * size(plain, "lora_A")
    ratio = size(decayed, "magnitude") / size(plain, "magnitude")
    assert ratio == pytest.approx(1, abs=0.05)


def test_optimisers_that_go_by_pairs_are_refused() -> None:
    with pytest.raises(ConfigError, match="use adamw, or variant lora"):
        WriteConfig(lora=LENGTHS, optimizer="muon")


# --- on disk


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_peft_loads_the_folder_with_the_same_logits(done: Written, tmp_path: Path) -> None:
    from peft import PeftModel

    save(done.adapter, tmp_path / "adapter")
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert settings["use_dora"] is True
    mine, theirs = tiny(), tiny()
    loaded = PeftModel.from_pretrained(theirs.network, str(tmp_path / "adapter"))  # type: ignore[arg-type]
    with torch.no_grad(), mine.using(done.adapter):
        ours = mine.network(IDS).logits
        assert torch.allclose(loaded(IDS).logits, ours, atol=1e-3 * ours.abs().max().item())


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_what_peft_saved_is_read_with_the_same_logits(tmp_path: Path) -> None:
    from peft import LoraConfig as PeftConfig
    from peft import get_peft_model

    theirs = get_peft_model(
        llama(),  # type: ignore[arg-type]
        PeftConfig(r=4, lora_alpha=8, target_modules=["q_proj", "up_proj"], use_dora=True),
    )
    with torch.no_grad():
        for name, weight in theirs.named_parameters():
            if "lora_" in name:
                weight.add_(0.05)
        theirs.save_pretrained(str(tmp_path))
        expected = theirs(IDS).logits
        adapter = load(tmp_path)
        assert adapter.config.variant == "dora"
        network = llama()
        with attach(network, [adapter.config]) as stack:
            stack.load(0, adapter.tensors)
            assert torch.allclose(network(IDS).logits, expected, atol=1e-4)


def test_load_undoes_save_and_the_id_tells_the_variant(done: Written, tmp_path: Path) -> None:
    identity = save(done.adapter, tmp_path / "adapter")
    found = load(tmp_path / "adapter")
    assert content_id(found) == identity and found.config == done.adapter.config
    assert all(torch.equal(t, found.tensors[k]) for k, t in done.adapter.tensors.items())
    assert LoraConfig().to_json().keys() == LENGTHS.to_json().keys() - {"variant"}


def test_tensors_that_do_not_fit_the_variant_are_refused(done: Written, tmp_path: Path) -> None:
    plain = replace(done.adapter, config=replace(LENGTHS, variant="lora"))
    with pytest.raises(AdapterError, match="is no part of lora"):
        save(plain, tmp_path / "a")
    short = {k: t for k, t in done.adapter.tensors.items() if "magnitude" not in k}
    with pytest.raises(AdapterError, match=r"no partner .*lora_magnitude_vector"):
        save(replace(done.adapter, tensors=short), tmp_path / "b")


def test_an_adapter_that_was_trained_proves_its_effect(model: Model, done: Written) -> None:
    def adapted() -> Tensor:
        with model.using(done.adapter):
            return logits(model)

    proof = prove(done.adapter, model.network, base=lambda: logits(model), adapted=adapted)
    assert proof.moved > 0 and proof.n_tensors == 3 * len(done.adapter.modules)


# --- memories


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with facts."""
    folder = tmp_path_factory.mktemp("dora")
    dump_jsonl(
        [{"question": e.prompt, "answer": e.completion} for e in EXAMPLES], folder / "a.jsonl"
    )
    return folder


@pytest.mark.slow
def test_lore_writes_verifies_and_asks_one(
    lore: Lore,
    place: Path,
) -> None:
    atlas = place / "atlas"
    common = ("--into", atlas, "--rank", 4, "--layers", "2", "--epochs", 60, "--lr", 0.01)
    ran = lore("write", place / "a.jsonl", *common, "--name", "d", "--variant", "dora", "--json")
    assert ran.code == 0, ran.err
    assert lore("write", place / "a.jsonl", *common, "--name", "p").code == 0
    card = Memory.open(atlas).adapter("d").card
    assert card["settings"]["write"]["lora"]["variant"] == "dora"
    assert lore("verify", atlas, "--name", "d").code == 0
    for name in ("d", "p"):
        said = lore(
            "ask", EXAMPLES[0].prompt, "--memory", atlas, "--name", name, "--mode", "closed"
        )
        assert said.code == 0, said.err


def test_where_it_cannot_go_a_sentence_says_what_to_do(
    lore: Lore,
    model: Model,
    done: Written,
    tmp_path: Path,
) -> None:
    adapter: Adapter = done.adapter
    plain = write(model, EXAMPLES, BRIEF).adapter
    remedy = "this is dora, .* write it with --variant lora"
    with pytest.raises(AdapterError, match=f"merging needs plain LoRA.*{remedy}"):
        merge([plain, adapter])
    with pytest.raises(AdapterError, match=f"imitation needs plain LoRA.*{remedy}"):
        imitate(model, [Source(adapter, EXAMPLES)])
    with pytest.raises(AdapterError, match=f"one batch needs plain LoRA.*{remedy}"):
        check(adapter, model)
    for engine in ("vllm", "gguf"):
        with pytest.raises(AdapterError, match=remedy):
            export(adapter, model, tmp_path / engine, to=engine)
    assert export(adapter, model, tmp_path / "peft", to="peft").to == "peft"


def test_an_unknown_variant_is_refused(
    lore: Lore,
    place: Path,
) -> None:
    arguments = ("--into", place / "x", "--variant", "vera")
    refused(lore("write", place / "a.jsonl", *arguments), "ConfigError", "use one of lora, dora")


def test_without_peft_it_is_said_what_to_install(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = logits(model)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ConfigError, match="pip install 'lorewright\\[peft\\]'"):
        write(model, EXAMPLES, SHORT)
    assert torch.equal(logits(model), before)
    assert not any(isinstance(m, DoraLinear | LoraLinear) for m in model.network.modules())
