"""Claims about adapters on disk: PEFT agrees, bytes repeat, and whatever is wrong is refused."""

from __future__ import annotations

import json
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.families import FAMILIES, gemma3_multimodal, llama, logits, phi, qwen3_moe, token_ids
from support.numbers import assert_close, depth
from torch import Tensor, nn

from lorewright.adapters.adapter import (
    Adapter,
    capture,
    content_id,
    load,
    save,
    short_targets,
)
from lorewright.adapters.config import LoraConfig
from lorewright.adapters.lora import Stack, attach
from lorewright.adapters.proof import delta_norms, prove, validate
from lorewright.errors import AdapterError, NoEffect, StorageError, WrongBase

# peft reads a property that transformers 5 is about to rename
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")

Build = Callable[[], nn.Module]
family = pytest.mark.parametrize("build", FAMILIES.values(), ids=FAMILIES)
TENSORS = "adapter_model.safetensors"
SETTINGS = "adapter_config.json"


def train(model: nn.Module, stack: Stack, n_steps: int = 2) -> None:
    """A few real steps for adapter 0."""
    optimizer = torch.optim.AdamW(stack.parameters(), lr=2e-2)
    for _ in range(n_steps):
        optimizer.zero_grad()
        found: Tensor = model(token_ids()).logits.log_softmax(-1)
        (-found[:, :-1].gather(-1, token_ids()[:, 1:, None]).mean()).backward()
        optimizer.step()


CONFIG = LoraConfig(rank=2, alpha=8)


def written(model: nn.Module, config: LoraConfig = CONFIG) -> Adapter:
    """A trained adapter; the model is left as it was."""
    with attach(model, [config]) as stack:
        train(model, stack)
        return capture(stack, 0, base_id="tiny/base", base_digest="d" * 64, card={"seed": 0})


def logits_with(model: nn.Module, adapter: Adapter) -> Tensor:
    """Logits with the adapter in our own layers."""
    with attach(model, [adapter.config]) as stack:
        stack.load(0, adapter.tensors)
        return logits(model)


def logits_in_peft(model: nn.Module, folder: Path) -> Tensor:
    """Logits with the adapter in PEFT's layers; every tensor of the file must have been bound."""
    wrapped = peft.PeftModel.from_pretrained(model, folder)
    bound = {n.replace(".default", "") for n, _ in wrapped.named_parameters() if ".lora_" in n}
    assert bound == set(load_file(folder / TENSORS))
    return logits(wrapped)


def edit(folder: Path, **changes: Any) -> None:
    """Change PEFT's settings and drop our card, as if another tool had written the folder."""
    path = folder / SETTINGS
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    (folder / "card.json").unlink(missing_ok=True)


@pytest.fixture(scope="module")
def adapter() -> Adapter:
    """One trained adapter of the Llama family."""
    return written(llama())


@pytest.fixture
def folder(adapter: Adapter, tmp_path: Path) -> Path:
    """That adapter on disk."""
    save(adapter, tmp_path / "memory")
    return tmp_path / "memory"


# PEFT is the referee


def same(theirs: Tensor, ours: Tensor) -> None:
    """Logits of a tiny network, computed in two ways."""
    assert_close(theirs, ours, depth(llama(), ours.shape[1]))


@family
def test_peft_loads_our_folder_with_the_same_logits(build: Build, tmp_path: Path) -> None:
    adapter = written(build())
    save(adapter, tmp_path / "memory")
    ours, base = logits_with(build(), adapter), logits(build())
    theirs = logits_in_peft(build(), tmp_path / "memory")
    assert (ours - base).abs().max() > 1e-2
    same(theirs, ours)


@family
@pytest.mark.parametrize("rslora", [False, True])
def test_we_load_what_peft_saved_with_the_same_logits(
    build: Build, rslora: bool, tmp_path: Path
) -> None:
    names = r".*language_model.*_proj" if build is gemma3_multimodal else "all-linear"
    config = peft.LoraConfig(
        r=3, lora_alpha=5, target_modules=names, use_rslora=rslora, task_type="CAUSAL_LM"
    )
    wrapped = peft.get_peft_model(build(), config)
    generator = torch.Generator().manual_seed(0)
    for name, weight in wrapped.named_parameters():
        if "lora_B" in name:
            weight.data = 0.1 * torch.randn(weight.shape, generator=generator)
    wrapped.save_pretrained(tmp_path)
    adapter = load(tmp_path)
    assert adapter.base_digest == "" and not adapter.card and adapter.config.rslora is rslora
    model = build()
    validate(adapter, model)
    ours, theirs = logits_with(model, adapter), logits(wrapped)
    assert (ours - logits(model)).abs().max() > 1e-2
    same(ours, theirs)
    save(adapter, tmp_path / "again")
    same(logits_in_peft(build(), tmp_path / "again"), theirs)


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(rank=2, targets=("q_proj", "v_proj"), layers=(1,)),
        LoraConfig(rank=2, targets=("model.layers.0.mlp.up_proj", "o_proj")),
        LoraConfig(rank=2, targets=("attention",), rslora=True, alpha=3),
    ],
)
def test_peft_binds_partial_targets_the_same_way(config: LoraConfig, tmp_path: Path) -> None:
    adapter = written(llama(), config)
    save(adapter, tmp_path / "short")
    save(replace(adapter, target_modules=()), tmp_path / "full")
    ours = logits_with(llama(), adapter)
    for name in ("short", "full"):
        theirs = logits_in_peft(llama(), tmp_path / name)
        same(theirs, ours)
    full = json.loads((tmp_path / "full" / SETTINGS).read_text())
    assert full["target_modules"] == sorted(adapter.modules)
    assert full["layers_to_transform"] is None


def test_a_partial_adapter_of_peft_survives_being_saved_by_us(tmp_path: Path) -> None:
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], layers_to_transform=[1])
    wrapped = peft.get_peft_model(llama(), config)
    for name, weight in wrapped.named_parameters():
        if "lora_B" in name:
            weight.data = torch.ones_like(weight)
    wrapped.save_pretrained(tmp_path)
    adapter = load(tmp_path)
    validate(adapter, llama())
    save(adapter, tmp_path / "again")
    again = logits_in_peft(llama(), tmp_path / "again")
    same(again, logits(wrapped))


def test_target_names_are_short_unless_they_also_bind_elsewhere(tmp_path: Path) -> None:
    assert "q_proj" in written(llama()).target_modules
    assert len(written(llama()).target_modules) == 7
    targets = written(gemma3_multimodal()).target_modules
    assert {"o_proj", "gate_proj", "up_proj", "down_proj"} < set(targets)
    assert "q_proj" not in targets
    assert "model.language_model.layers.0.self_attn.q_proj" in targets


def test_short_targets_use_two_parts_where_the_last_alone_is_ambiguous() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attn = nn.ModuleDict({"proj": nn.Linear(2, 2)})
            self.mlp = nn.ModuleDict({"proj": nn.Linear(2, 2)})

    model = nn.ModuleDict({"layers": nn.ModuleList([Block(), Block()])})
    assert short_targets(model, ["layers.0.attn.proj", "layers.1.attn.proj"]) == ("attn.proj",)
    assert short_targets(model, ["layers.1.mlp.proj"]) == ("layers.1.mlp.proj",)


def test_settings_stay_in_the_subset_that_every_engine_accepts(folder: Path) -> None:
    settings = json.loads((folder / SETTINGS).read_text())
    assert settings["peft_type"] == "LORA" and settings["task_type"] == "CAUSAL_LM"
    assert type(settings["lora_alpha"]) is int and type(settings["r"]) is int
    assert settings["bias"] == "none" and settings["modules_to_save"] is None
    assert settings["lora_dropout"] == 0 and settings["inference_mode"] is True
    assert settings["base_model_name_or_path"] == "tiny/base"
    tensors = load_file(folder / TENSORS)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    assert all(key.startswith("base_model.model.model.layers.") for key in tensors)


# Round trips and bytes


def test_load_undoes_save(adapter: Adapter, folder: Path) -> None:
    again = load(folder)
    assert (again.config, again.base_id, again.base_digest) == (
        adapter.config,
        "tiny/base",
        "d" * 64,
    )
    assert again.card == {"seed": 0} and again.target_modules == adapter.target_modules
    assert again.tensors.keys() == adapter.tensors.keys()
    assert all(torch.equal(again.tensors[key], t) for key, t in adapter.tensors.items())
    assert content_id(again) == content_id(adapter)


def test_same_config_and_seed_give_byte_identical_files(tmp_path: Path) -> None:
    config = LoraConfig(rank=3, seed=5)
    ids = [save(written(llama(), config), tmp_path / name) for name in ("one", "two")]
    assert ids[0] == ids[1]
    for name in (TENSORS, SETTINGS, "card.json", "README.md"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    other = written(llama(), replace(config, seed=6))
    assert content_id(other) != ids[0]


def test_the_id_depends_on_config_and_tensors_and_not_on_the_card(adapter: Adapter) -> None:
    assert len(content_id(adapter)) == 16
    assert content_id(replace(adapter, card={"x": 1}, base_id="y")) == content_id(adapter)
    assert content_id(replace(adapter, config=replace(adapter.config, alpha=9))) != content_id(
        adapter
    )
    shuffled = dict(reversed(adapter.tensors.items()))
    assert content_id(replace(adapter, tensors=shuffled)) == content_id(adapter)
    key = next(iter(shuffled))
    moved = {**adapter.tensors, key: adapter.tensors[key] + 1e-7}
    assert content_id(replace(adapter, tensors=moved)) != content_id(adapter)


def test_a_new_card_replaces_the_old_one_and_nothing_else_is_overwritten(
    adapter: Adapter, folder: Path
) -> None:
    save(replace(adapter, card={"recall": {"paraphrase": 0.9}}), folder)
    assert load(folder).card == {"recall": {"paraphrase": 0.9}}
    assert sorted(path.name for path in folder.parent.iterdir()) == ["memory"]
    other = replace(adapter, config=replace(adapter.config, alpha=9))
    with pytest.raises(AdapterError, match="holds content"):
        save(other, folder)
    assert load(folder).config == adapter.config
    (folder.parent / "notes").mkdir()
    (folder.parent / "notes" / "mine.txt").write_text("keep")
    with pytest.raises(AdapterError, match="holds other files"):
        save(adapter, folder.parent / "notes")
    (folder.parent / "empty").mkdir()
    save(adapter, folder.parent / "empty")


def test_the_readme_has_hub_front_matter_and_the_numbers_of_the_card(
    adapter: Adapter, tmp_path: Path
) -> None:
    card = {"recall": {"paraphrase": {"mean": 0.94, "n": 96}}, "views": ["qa", "cloze"]}
    save(replace(adapter, card=card), tmp_path / "a")
    text = (tmp_path / "a" / "README.md").read_text()
    assert text.startswith('---\nbase_model: "tiny/base"\nlibrary_name: peft\n')
    assert "| recall.paraphrase.mean | 0.94 |" in text and "| views | 2 entries |" in text
    save(replace(adapter, base_id="/home/me/model"), tmp_path / "b")
    assert "base_model:" not in (tmp_path / "b" / "README.md").read_text()


@contextmanager
def disk_of(n_bytes: int) -> Iterator[None]:
    """Let the operating system refuse files larger than this."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_a_storage_error_and_leaves_nothing_behind(
    adapter: Adapter, tmp_path: Path
) -> None:
    with disk_of(5_000), pytest.raises(StorageError, match="Nothing is left"):
        save(adapter, tmp_path / "memory")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_the_earlier_folder_as_it_was(adapter: Adapter, folder: Path) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with disk_of(5_000), pytest.raises(StorageError):
        save(replace(adapter, card={"new": 1}), folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir()] == ["memory"]


def test_a_path_through_a_file_is_a_storage_error(adapter: Adapter, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="check the path"):
        save(adapter, tmp_path / "file" / "memory")


def test_tensors_that_share_memory_are_saved(adapter: Adapter, tmp_path: Path) -> None:
    a, b = (f"model.layers.{n}.self_attn.q_proj.lora_A.weight" for n in (0, 1))
    save(replace(adapter, tensors={**adapter.tensors, a: adapter.tensors[b]}), tmp_path / "x")
    again = load(tmp_path / "x")
    assert torch.equal(again.tensors[a], again.tensors[b])


def test_save_refuses_what_load_would_refuse(adapter: Adapter, tmp_path: Path) -> None:
    key = next(iter(adapter.tensors))
    broken = {**adapter.tensors, key: adapter.tensors[key] * torch.nan}
    with pytest.raises(AdapterError, match="NaN or infinity"):
        save(replace(adapter, tensors=broken), tmp_path / "memory")
    with pytest.raises(AdapterError, match="there are no tensors"):
        save(replace(adapter, tensors={}), tmp_path / "memory")
    with pytest.raises(AdapterError, match="the card must be JSON"):
        save(replace(adapter, card={"path": tmp_path}), tmp_path / "memory")
    with pytest.raises(AdapterError, match="the card must be JSON"):
        save(replace(adapter, card={"mean": float("nan")}), tmp_path / "memory")
    with pytest.raises(AdapterError, match='a key "adapter"'):
        save(replace(adapter, card={"adapter": 1}), tmp_path / "memory")
    assert list(tmp_path.iterdir()) == []


# Refusals of load


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"peft_type": "LOHA"}, "peft_type is 'LOHA'.*all of it"),
        ({"peft_type": None}, "peft_type is None"),
        ({"task_type": "SEQ_CLS"}, "task_type is 'SEQ_CLS'"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"use_dora": True}, r"has no partner .*lora_magnitude_vector"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save is \['lm_head'\].*whole layers"),
        ({"lora_bias": True}, "lora_bias is True.*the biases of B would be lost"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out is True"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'"),
        ({"r": 3}, r"is \(2, 48\); with rank 3, A must be \(3, in\)"),
        ({"r": None}, "rank must be an integer"),
        ({"lora_alpha": 0}, r"alpha must be an integer of at least 1; got 0"),
    ],
)
def test_settings_that_the_two_matrices_cannot_express_are_refused(
    folder: Path, settings: dict[str, Any], message: str
) -> None:
    edit(folder, **settings)
    with pytest.raises(AdapterError, match=message):
        load(folder)


def test_a_whole_alpha_written_as_a_float_is_read(folder: Path) -> None:
    edit(folder, lora_alpha=8.0)
    assert load(folder).config.alpha == 8


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (SETTINGS, None, f"it has no {SETTINGS}"),
        (SETTINGS, b"{", "is damaged .*; copy it again"),
        (SETTINGS, b"\xff\xfe", "is damaged"),
        (SETTINGS, b"[]", "holds no JSON object"),
        (TENSORS, None, f"needs {TENSORS} or adapter_model.bin; it has neither"),
        (TENSORS, b"", "truncated or corrupt"),
        (TENSORS, b"\x80\x02}q\x00.", "truncated or corrupt"),
        ("card.json", b"{", "is damaged"),
        ("card.json", b'{"adapter": {}}', '"adapter" must hold'),
    ],
)
def test_missing_or_damaged_files_are_refused_by_name(
    folder: Path, name: str, content: bytes | None, message: str
) -> None:
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    with pytest.raises(AdapterError, match=message):
        load(folder)


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.999])
def test_truncated_tensors_are_refused(folder: Path, kept: float) -> None:
    path = folder / TENSORS
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    with pytest.raises(AdapterError, match="truncated or corrupt"):
        load(folder)


def test_a_pickle_with_code_is_refused_and_runs_none(folder: Path, tmp_path: Path) -> None:
    (folder / TENSORS).unlink()
    code = f"cposix\nsystem\n(S'touch {tmp_path}/ran'\ntR."
    (folder / "adapter_model.bin").write_bytes(code.encode())
    with pytest.raises(AdapterError, match="more than tensors, which could run code"):
        load(folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda key, t: {key: t * torch.nan}, "holds NaN or infinity"),
        (lambda key, t: {key: t / 0}, "holds NaN or infinity"),
        (lambda key, t: {key: t[:1].clone()}, r"is \(1, 32\); with rank 2"),
        (lambda key, t: {key: t.flatten()}, r"is \(64,\)"),
        (lambda key, t: {key: None}, "has no partner"),
        (
            lambda key, t: {"base_model.model.lm_head.weight": t},
            "1 of 29 tensors are .*lm_head.weight.*whole layers",
        ),
        (
            lambda key, t: {key.replace("lora_A", "lora_magnitude_vector"): t},
            "of a kind not read here",
        ),
        (lambda key, t: {"model.layers.0.x.lora_A.weight": t}, "and no more"),
    ],
)
def test_tensors_that_are_no_adapter_are_refused(
    folder: Path, change: Callable[[str, Tensor], dict[str, Tensor | None]], message: str
) -> None:
    tensors: dict[str, Tensor | None] = dict(load_file(folder / TENSORS))
    key = next(key for key in sorted(tensors) if "lora_A" in key and "q_proj" in key)
    tensor = tensors[key]
    assert tensor is not None
    tensors |= {k: None if t is None else t.clone() for k, t in change(key, tensor).items()}
    save_file({k: t for k, t in tensors.items() if t is not None}, folder / TENSORS)
    with pytest.raises(AdapterError, match=message):
        load(folder)


def test_an_empty_tensor_file_is_refused(folder: Path) -> None:
    save_file({}, folder / TENSORS)
    with pytest.raises(AdapterError, match="and no more"):
        load(folder)


def test_files_of_two_adapters_do_not_mix(adapter: Adapter, folder: Path, tmp_path: Path) -> None:
    other = {key: tensor + 1 for key, tensor in adapter.tensors.items()}
    save(replace(adapter, tensors=other), tmp_path / "other")
    shutil.copy(tmp_path / "other" / TENSORS, folder / TENSORS)
    with pytest.raises(AdapterError, match="the card is for content"):
        load(folder)
    card = folder / "card.json"
    settings = json.loads((folder / SETTINGS).read_text())
    content = card.read_bytes()
    edit(folder, **{**settings, "lora_alpha": 9})
    card.write_bytes(content)
    with pytest.raises(AdapterError, match="differ: rank 2 and 2, alpha 8 and 9"):
        load(folder)


def test_half_precision_files_become_float32(folder: Path) -> None:
    tensors = {key: t.to(torch.bfloat16) for key, t in load_file(folder / TENSORS).items()}
    save_file(tensors, folder / TENSORS)
    edit(folder)
    assert {tensor.dtype for tensor in load(folder).tensors.values()} == {torch.float32}


# On a model


def test_validate_accepts_its_own_model_also_while_attached(adapter: Adapter) -> None:
    model = llama()
    validate(adapter, model, base_digest="d" * 64)
    with attach(model, [adapter.config]):
        validate(adapter, model)


def test_another_base_is_refused(adapter: Adapter) -> None:
    with pytest.raises(WrongBase, match=r"written on 'tiny/base' \(digest dddddddddddd\)"):
        validate(adapter, llama(), base_digest="e" * 64)
    validate(replace(adapter, base_digest=""), llama(), base_digest="e" * 64)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (phi, r"8 of the adapter's 14 modules cannot be bound.*no such layer.*'tiny/base'"),
        (qwen3_moe, r"6 of the adapter's 14 modules cannot be bound.*layers\.0\.mlp\.gate_proj"),
        (lambda: llama(hidden_size=40), r"is \(40, 40\) \(in, out\) in the model, \(32, 32\) in"),
        (lambda: llama(num_hidden_layers=3), r"14 of 42 missing"),
        (lambda: llama(num_hidden_layers=1), r"7 of the adapter's 14 modules cannot be bound"),
    ],
)
def test_a_model_of_another_shape_is_refused(adapter: Adapter, build: Build, message: str) -> None:
    with pytest.raises(AdapterError, match=message):
        validate(adapter, build())


def test_missing_and_extra_tensors_are_named_in_both_directions(adapter: Adapter) -> None:
    key = "model.layers.1.mlp.up_proj.lora_B.weight"
    half = {k: t for k, t in adapter.tensors.items() if k != key}
    with pytest.raises(AdapterError, match=f"no partner '{key}'"):
        validate(replace(adapter, tensors=half), llama())
    fewer = {k: t for k, t in adapter.tensors.items() if "layers.1.mlp.up_proj" not in k}
    with pytest.raises(AdapterError, match=r"2 of 28 missing \(model.layers.1.mlp.up_proj"):
        validate(replace(adapter, tensors=fewer), llama())
    narrow = replace(adapter.config, targets=("attention",))
    with pytest.raises(AdapterError, match=r"0 of 16 missing, 12 of 28 not expected"):
        validate(replace(adapter, config=narrow), llama())
    elsewhere = replace(adapter.config, targets=("nonsense",))
    with pytest.raises(AdapterError, match="own targets do not fit the model"):
        validate(replace(adapter, config=elsewhere), llama())


def test_an_adapter_that_reaches_into_the_vision_tower_is_refused(tmp_path: Path) -> None:
    wrapped = peft.get_peft_model(gemma3_multimodal(), peft.LoraConfig(target_modules=["q_proj"]))
    wrapped.save_pretrained(tmp_path)
    with pytest.raises(AdapterError, match=r"2 of.*vision_tower.*outside the text decoder"):
        validate(load(tmp_path), gemma3_multimodal())


def test_short_names_that_would_bind_more_than_the_tensors_are_refused(adapter: Adapter) -> None:
    only = {k: t for k, t in adapter.tensors.items() if "layers.0.self_attn.q_proj" in k}
    config = replace(adapter.config, targets=("layers.0.self_attn.q_proj",))
    lone = replace(adapter, tensors=only, config=config)
    with pytest.raises(AdapterError, match=r"bind 1 modules without.*layers\.1\.self_attn\.q_proj"):
        validate(replace(lone, target_modules=("q_proj",)), llama())
    validate(replace(lone, target_modules=()), llama())


# Proof


def test_delta_norms_are_those_of_the_full_matrices(adapter: Adapter) -> None:
    norms = delta_norms(adapter)
    assert norms.keys() == set(adapter.modules)
    for name, norm in norms.items():
        a_RI, b_OR = (adapter.tensors[f"{name}.lora_{half}.weight"].double() for half in "AB")
        expected = (adapter.config.scale * b_OR @ a_RI).norm().item()
        assert norm == pytest.approx(expected, rel=1e-9)


@family
def test_a_trained_adapter_proves_its_effect(build: Build) -> None:
    model = build()
    adapter = written(model)
    proof = prove(
        adapter, model, base=lambda: logits(model), adapted=lambda: logits_with(model, adapter)
    )
    assert proof.n_tensors == len(adapter.tensors) and proof.moved > 1e-2
    assert min(proof.delta_norms.values()) > 0


def test_an_untrained_or_unbound_adapter_proves_nothing(adapter: Adapter) -> None:
    model = llama()
    with attach(model, [adapter.config]) as stack:
        untrained = capture(stack, 0, base_id="tiny/base", base_digest="")

    def base() -> Tensor:
        return logits(model)

    with pytest.raises(NoEffect, match="14 of 14 modules have a weight change of zero"):
        prove(untrained, model, base=base, adapted=base)
    key = "model.layers.1.mlp.up_proj.lora_B.weight"
    partly = {**adapter.tensors, key: torch.zeros_like(adapter.tensors[key])}
    partly_unchanged = replace(adapter, tensors=partly)  # as where layers share keys and values
    moved = prove(partly_unchanged, model, base=base, adapted=lambda: base() + 1)
    assert sum(norm == 0 for norm in moved.delta_norms.values()) == 1
    with pytest.raises(NoEffect, match="no logit moved"):
        prove(adapter, model, base=base, adapted=base)
    with pytest.raises(NoEffect, match=r"no logit moved \(largest change nan\)"):
        prove(adapter, model, base=base, adapted=lambda: base() * torch.nan)


def test_reading_an_unreadable_file_is_a_storage_error(folder: Path) -> None:
    (folder / SETTINGS).unlink()
    os.mkdir(folder / SETTINGS)
    with pytest.raises(StorageError, match="could not be read"):
        load(folder)
