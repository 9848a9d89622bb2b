"""Claims about adapters that PEFT wrote: each kind is read with PEFT's logits, or named."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.families import llama, logits, token_ids
from support.numbers import assert_close, depth
from torch import Tensor

from lorewright.adapters import foreign
from lorewright.adapters.adapter import load, save
from lorewright.adapters.lora import attach
from lorewright.adapters.proof import delta_norms, validate
from lorewright.errors import AdapterError, UnsupportedAdapter

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
TERMS = depth(llama(), token_ids().shape[1])
TENSORS, SETTINGS = "adapter_model.safetensors", "adapter_config.json"


def saved_by_peft(folder: Path, **settings: Any) -> Tensor:
    """An adapter with random B in a folder as PEFT writes it; the logits that it has in PEFT."""
    how = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    wrapped = peft.get_peft_model(llama(), peft.LoraConfig(**{**how, **settings}))
    generator = torch.Generator().manual_seed(0)
    for name, weight in wrapped.named_parameters():
        if "lora_B" in name:
            weight.data = 0.1 * torch.randn(weight.shape, generator=generator)
    wrapped.save_pretrained(folder)
    return logits(wrapped)


def logits_here(folder: Path) -> Tensor:
    adapter, model = load(folder), llama()
    validate(adapter, model)
    with attach(model, [adapter.config]) as stack:
        stack.load(0, adapter.tensors)
        return logits(model)


def edit(folder: Path, **changes: Any) -> None:
    path = folder / SETTINGS
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


READ: dict[str, dict[str, Any]] = {
    "ranks": {"rank_pattern": {"q_proj": 2, r"layers\.1\..*down_proj": 7}},
    "alphas": {"alpha_pattern": {"q_proj": 16, "model.layers.0.mlp.up_proj": 3}},
    "both": {"rank_pattern": {"v_proj": 8}, "alpha_pattern": {"v_proj": 4, "o_proj": 32}},
    "both, rsLoRA": {
        "rank_pattern": {"v_proj": 8},
        "alpha_pattern": {"o_proj": 5},
        "use_rslora": True,
    },
    "both, DoRA": {
        "rank_pattern": {"v_proj": 8},
        "alpha_pattern": {"o_proj": 4},
        "use_dora": True,
    },
    "a fraction": {"lora_alpha": 12.5},
    "no fraction of two": {"lora_alpha": 0.3},
}


@pytest.mark.parametrize("settings", READ.values(), ids=READ)
def test_ranks_and_alphas_by_module_have_the_logits_of_peft(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    theirs = saved_by_peft(tmp_path / "a", **settings)
    adapter = load(tmp_path / "a")
    assert_close(logits_here(tmp_path / "a"), theirs, TERMS)
    assert adapter.notes and "folded into B" in adapter.notes[-1]
    save(adapter, tmp_path / "b")  # plain: what every engine takes
    stored = json.loads((tmp_path / "b" / SETTINGS).read_text())
    assert not stored.get("rank_pattern") and type(stored["lora_alpha"]) is int
    assert_close(logits_here(tmp_path / "b"), theirs, TERMS)


def test_padding_and_powers_of_two_are_exact(tmp_path: Path) -> None:
    saved_by_peft(tmp_path, rank_pattern={"q_proj": 2}, alpha_pattern={"q_proj": 16})
    tensors = load_file(tmp_path / TENSORS)
    adapter = load(tmp_path)
    assert "without rounding" in adapter.notes[-1] and "padded with zeros to 4" in adapter.notes[0]
    for name in adapter.modules:
        A_RI, B_OR = (adapter.tensors[name + half].double() for half in (foreign.A, foreign.B))
        A, B = (tensors["base_model.model." + name + h].double() for h in (foreign.A, foreign.B))
        scale = 16 / 2 if "q_proj" in name else 8 / 4
        # a power of two changes no digit, so each product is the same number
        assert torch.equal(adapter.config.scale * B_OR[:, : len(A)], scale * B)
        assert torch.equal(A_RI[: len(A)], A) and not A_RI[len(A) :].any()


def test_a_fraction_that_is_no_power_of_two_is_rounded_once_and_noted(tmp_path: Path) -> None:
    saved_by_peft(tmp_path, lora_alpha=0.3)
    adapter = load(tmp_path)
    assert "rounded to float32 in 14 modules" in adapter.notes[-1]
    tensors = load_file(tmp_path / TENSORS)
    for name, norm in delta_norms(adapter).items():
        A, B = (tensors["base_model.model." + name + h].double() for h in (foreign.A, foreign.B))
        exact = 0.3 / 4 * (B @ A).norm().item()
        assert math.isclose(norm, exact, rel_tol=torch.finfo(torch.float32).eps)


def test_a_pattern_that_the_tensors_contradict_is_damage(tmp_path: Path) -> None:
    saved_by_peft(tmp_path)
    edit(tmp_path, rank_pattern={"q_proj": 9})
    with pytest.raises(AdapterError, match=r"q_proj' has A \(4, .* its settings rank 9") as caught:
        load(tmp_path)
    assert not isinstance(caught.value, UnsupportedAdapter)
    edit(tmp_path, rank_pattern={"(": 9})
    with pytest.raises(AdapterError, match="ranks or alphas cannot be read"):
        load(tmp_path)


def test_keys_with_the_adapters_name_are_read(tmp_path: Path) -> None:
    theirs = saved_by_peft(tmp_path)
    tensors = load_file(tmp_path / TENSORS)
    renamed = {k.replace(".weight", ".default.weight"): t for k, t in tensors.items()}
    save_file(renamed, tmp_path / TENSORS)
    assert_close(logits_here(tmp_path), theirs, TERMS)
    mixed = {
        k.replace("default", "other" if "lora_A" in k else "default"): t for k, t in renamed.items()
    }
    save_file(mixed, tmp_path / TENSORS)
    with pytest.raises(AdapterError, match=r"holds 2 adapters \(default, other\)"):
        load(tmp_path)


def test_a_pickle_of_tensors_is_read(tmp_path: Path) -> None:
    theirs = saved_by_peft(tmp_path)
    torch.save(load_file(tmp_path / TENSORS), tmp_path / "adapter_model.bin")
    (tmp_path / TENSORS).unlink()
    assert_close(logits_here(tmp_path), theirs, TERMS)
    torch.save([1, 2], tmp_path / "adapter_model.bin")
    with pytest.raises(AdapterError, match="no table of tensors"):
        load(tmp_path)
    (tmp_path / "adapter_model.bin").write_bytes(b"PK\x03\x04 cut")
    with pytest.raises(AdapterError, match="or is corrupt"):
        load(tmp_path)


UNREAD: dict[str, tuple[dict[str, Any], str]] = {
    "whole layers": ({"modules_to_save": ["lm_head"]}, "whole layers"),
    "biases": ({"bias": "lora_only"}, "trained biases"),
    "biases of B": ({"lora_bias": True}, "biases of B"),
    "tokens": ({"trainable_token_indices": [1, 2]}, "embeddings of single tokens"),
    "a base that was changed": ({"init_lora_weights": "pissa"}, "the base's own weights"),
    "a classifier": ({"task_type": "SEQ_CLS"}, "a head"),
    "IA3": ({"peft_type": "IA3"}, "all of it"),
}


@pytest.mark.parametrize(("settings", "lost"), UNREAD.values(), ids=UNREAD)
def test_a_kind_that_is_not_read_is_named_with_what_would_be_lost(
    settings: dict[str, Any], lost: str, tmp_path: Path
) -> None:
    saved_by_peft(tmp_path)
    edit(tmp_path, **settings)
    with pytest.raises(UnsupportedAdapter, match=f"of a kind not read here: .*{lost}.*be lost"):
        load(tmp_path)


@pytest.mark.parametrize("key", ["model.embed_tokens.weight", "model.layers.0.x.lora_B.bias"])
def test_tensors_beside_a_and_b_are_of_a_kind_that_is_not_read(key: str, tmp_path: Path) -> None:
    saved_by_peft(tmp_path)
    tensors = {**load_file(tmp_path / TENSORS), f"base_model.model.{key}": torch.ones(3, 2)}
    save_file(tensors, tmp_path / TENSORS)
    with pytest.raises(UnsupportedAdapter, match=rf"1 of 29 tensors .*{key}.* would be lost"):
        load(tmp_path)


def test_a_folder_above_and_a_file_within_are_sent_to_the_adapter(tmp_path: Path) -> None:
    saved_by_peft(tmp_path / "many" / "one")
    with pytest.raises(AdapterError, match=r"It holds adapters: .*many/one; give one of them"):
        load(tmp_path / "many")
    with pytest.raises(AdapterError, match=r"give its folder, .*many/one"):
        load(tmp_path / "many" / "one" / TENSORS)
