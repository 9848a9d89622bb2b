"""Claims about exports: the same weight change in every format, and what no engine would take.

That a real llama.cpp agrees is claimed in test_llamacpp.py.
"""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.families import FAMILIES, llama, qwen3_moe
from support.models import an_adapter, letters
from support.numbers import assert_close

from lorewright.adapters import adapter as adapters
from lorewright.adapters.adapter import HALVES, Adapter
from lorewright.adapters.config import LoraConfig
from lorewright.adapters.lora import attach
from lorewright.cli.main import main
from lorewright.cli.terminal import Exit
from lorewright.errors import AdapterError, ConfigError, WrongBase
from lorewright.knowledge.data import Probe
from lorewright.memory.memory import Memory
from lorewright.models.export import (
    ARCHITECTURES,
    BASE_FILE,
    ENGINE_RANKS,
    EXPORTERS,
    Exported,
    export,
    export_base,
    read_gguf,
)
from lorewright.models.model import Model


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest) -> Model:
    return Model(FAMILIES[request.param](), letters(), request.param)


@pytest.fixture(scope="module")
def tiny() -> Model:
    return Model(llama(), letters(), "tiny")


@pytest.fixture(scope="module")
def pocket() -> Model:
    return Model.load()


def of_rank(model: Model, rank: int, **changes: Any) -> Adapter:
    config = LoraConfig(rank=rank, targets=("q_proj",), **changes)
    with attach(model.network, [config]) as stack:
        stack.reset(0, 0)
        tensors = {k: t + 0.01 for k, t in stack.tensors(0).items()}
        stack.load(0, tensors)
        return adapters.capture(stack, 0, base_id=model.name, base_digest=model.digest)


def change_of(adapter: Adapter, module: str) -> torch.Tensor:
    A_RI, B_OR = (adapter.tensors[module + half] for half in HALVES)
    return adapter.config.scale * B_OR @ A_RI


# -- GGUF ----------------------------------------------------------------------------------------


def test_gguf_holds_every_weight_change_of_every_family(model: Model, tmp_path: Path) -> None:
    adapter = an_adapter(model)
    found = export(adapter, model, tmp_path / "out", to="gguf", name="book")
    scale, tensors = read_gguf(Path(found.path), model)
    assert tensors.keys() == adapter.tensors.keys()
    assert scale == pytest.approx(adapter.config.scale) and found.n_modules == len(adapter.modules)
    for key, tensor in adapter.tensors.items():
        assert torch.equal(tensors[key], tensor)


def test_gguf_has_the_names_shapes_and_keys_that_llama_cpp_reads(
    tiny: Model, tmp_path: Path
) -> None:
    import gguf

    adapter = an_adapter(tiny)
    reader = gguf.GGUFReader(export(adapter, tiny, tmp_path / "out", to="gguf").path)
    told = {key: field.contents() for key, field in reader.fields.items()}
    assert told["lorewright.adapter"] == adapters.content_id(adapter)
    assert told["general.architecture"] == "llama" and told["general.type"] == "adapter"
    assert told["adapter.type"] == "lora" and told["adapter.lora.alpha"] == adapter.config.alpha
    tensors = {t.name: t for t in reader.tensors}
    assert len(tensors) == 2 * len(adapter.modules)
    a, b = (tensors[f"blk.1.ffn_down.weight.lora_{letter}"] for letter in "ab")
    assert list(map(int, a.shape)) == [48, 2] and list(map(int, b.shape)) == [2, 32]  # ne order
    names = {name.split(".")[2] for name in tensors}
    assert names == {
        *("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    }


@pytest.mark.parametrize(("projection", "heads"), [("q_proj", 4), ("k_proj", 2), ("v_proj", 0)])
def test_rows_of_llamas_q_and_k_are_in_the_order_of_its_rotary_pairs(
    tiny: Model, tmp_path: Path, projection: str, heads: int
) -> None:
    import gguf

    adapter = an_adapter(tiny)
    reader = gguf.GGUFReader(export(adapter, tiny, tmp_path / "out", to="gguf").path)
    tensors = {t.name: np.array(t.data) for t in reader.tensors}
    name = f"blk.0.attn_{projection[0]}.weight"
    stored = adapter.config.scale * tensors[f"{name}.lora_b"] @ tensors[f"{name}.lora_a"]
    ours = change_of(adapter, f"model.layers.0.self_attn.{projection}").numpy()
    if heads:  # what llama.cpp does to the weight itself
        halves = ours.reshape(heads, 2, len(ours) // heads // 2, -1)
        assert not np.allclose(stored, ours)
        ours = halves.swapaxes(1, 2).reshape(ours.shape)
    assert_close(torch.from_numpy(stored), torch.from_numpy(ours), 2)  # the rank


def test_the_alpha_of_a_root_scaled_adapter_gives_its_scale_over_the_rank(
    tiny: Model, tmp_path: Path
) -> None:
    adapter = of_rank(tiny, 4, rslora=True, alpha=8)
    found = export(adapter, tiny, tmp_path / "out", to="gguf")
    assert read_gguf(Path(found.path), tiny)[0] == pytest.approx(8 / 4**0.5)


def test_what_llama_cpp_cannot_take_is_refused(tiny: Model, tmp_path: Path) -> None:
    strange = Model(qwen3_moe(), letters(), "moe")
    with pytest.raises(AdapterError, match=r"is a 'qwen3_moe'; to GGUF these .*llama, mistral"):
        export(an_adapter(strange), strange, tmp_path / "a", to="gguf")
    export(an_adapter(tiny), tiny, tmp_path / "b", to="gguf")
    with pytest.raises(AdapterError, match="exists already"):
        export(an_adapter(tiny), tiny, tmp_path / "b", to="gguf")
    names = sorted(p.name for p in tmp_path.rglob("*"))
    assert names == ["b", f"memory-{adapters.content_id(an_adapter(tiny))}.gguf"]


def test_a_file_of_another_kind_is_no_adapter(tiny: Model, tmp_path: Path) -> None:
    import gguf

    path = tmp_path / "x.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(AdapterError, match=r"general\.type is None, expected 'adapter'"):
        read_gguf(path, tiny)


def test_without_the_package_the_extra_is_named(
    tiny: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ConfigError, match=r"pip install lorewright\[export\]"):
        export(an_adapter(tiny), tiny, tmp_path / "a", to="gguf")


# -- the embedded base as GGUF -------------------------------------------------------------------


def test_the_embedded_base_is_put_beside_its_memories_once(pocket: Model, tmp_path: Path) -> None:
    import gguf

    for name in ("harbour", "mill"):
        found = export(an_adapter(pocket, seed=len(name)), pocket, tmp_path, to="gguf", name=name)
        assert Path(found.path).name == f"{name}-{found.adapter}.gguf"
        assert "'pocket' in float32" in found.notes[0]
    assert len(list(tmp_path.iterdir())) == 3
    reader = gguf.GGUFReader(tmp_path / BASE_FILE)
    told = {key: field.contents() for key, field in reader.fields.items()}
    tokenizer = pocket.tokenizer
    assert told["tokenizer.chat_template"] == tokenizer.chat_template
    assert told["tokenizer.ggml.tokens"] == tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    assert told["tokenizer.ggml.eos_token_id"] == tokenizer.eos_token_id
    tensors = {tensor.name: tensor.data for tensor in reader.tensors}
    held = pocket.network.state_dict()
    np.testing.assert_array_equal(tensors["token_embd.weight"], held["model.embed_tokens.weight"])
    assert len(tensors) == len(held) - 1  # the head is the embedding
    n_weights = sum(weight.numel() for weight in pocket.network.parameters())
    assert sum(data.size for data in tensors.values()) == n_weights


def test_the_base_splits_texts_as_the_pre_tokenizer_that_the_file_names(pocket: Model) -> None:
    stored = json.loads(pocket.tokenizer.backend_tokenizer.to_str())
    digits, bytes_ = stored["pre_tokenizer"][
        "pretokenizers"
    ]  # llama.cpp: LLAMA_VOCAB_PRE_TYPE_SMOLLM
    assert (digits["pattern"], digits["behavior"]) == ({"Regex": r"\d"}, "Isolated")
    assert (bytes_["type"], bytes_["use_regex"]) == ("ByteLevel", True)
    assert not bytes_["add_prefix_space"]
    # Typographic marks become straight ones, which the file's readers do not do.
    assert {part["type"] for part in stored["normalizer"]["normalizers"]} == {"Replace"}


def test_another_base_is_neither_converted_nor_overwritten(
    tiny: Model, pocket: Model, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"'tiny' cannot be converted here; .*convert_hf_to_gguf"):
        export_base(tiny, tmp_path / "x.gguf")
    export(an_adapter(tiny), tiny, tmp_path, to="gguf", name="a")
    next(tmp_path.iterdir()).rename(tmp_path / BASE_FILE)
    with pytest.raises(AdapterError, match=r"base\.gguf is another base than 'pocket'"):
        export(an_adapter(pocket), pocket, tmp_path, to="gguf")
    assert len(list(tmp_path.iterdir())) == 1


# -- PEFT and vLLM -------------------------------------------------------------------------------


@pytest.mark.parametrize("to", ["peft", "vllm"])
def test_a_folder_export_is_the_same_content(model: Model, tmp_path: Path, to: str) -> None:
    adapter = an_adapter(model)
    found = export(adapter, model, tmp_path / "out", to=to)
    assert adapters.content_id(adapters.load(tmp_path / "out")) == found.adapter
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["bias"] == "none"


@pytest.mark.parametrize(
    ("rank", "limit"), [(1, " --max-lora-rank 8"), (8, " --max-lora-rank 8"), (16, "")]
)
def test_vllm_is_started_with_a_rank_that_it_takes(
    tiny: Model, tmp_path: Path, rank: int, limit: str
) -> None:
    found = export(of_rank(tiny, rank), tiny, tmp_path / "out", to="vllm", name="book")
    command, other = found.commands
    assert command == f"vllm serve tiny --enable-lora{limit} --lora-modules book={tmp_path}/out"
    assert "--lora-paths" in other and f"--max-lora-rank {max(8, rank)}" in other


def test_a_rank_above_the_engines_is_refused(tiny: Model, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="has rank 600; vLLM takes at most 512"):
        export(of_rank(tiny, 600), tiny, tmp_path / "out", to="vllm")
    assert not (tmp_path / "out").exists() and ENGINE_RANKS[-1] == 512


# -- every one -----------------------------------------------------------------------------------


@pytest.mark.parametrize("to", EXPORTERS)
def test_an_adapter_of_another_base_is_exported_nowhere(
    tiny: Model, tmp_path: Path, to: str
) -> None:
    other = replace(an_adapter(tiny), base_digest="0" * 64)
    with pytest.raises(WrongBase):
        export(other, tiny, tmp_path / "out", to=to)
    assert not (tmp_path / "out").exists()


def test_an_exporter_from_outside_is_used(
    tiny: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A function and an entry: the adapter is checked against its base before it is called."""

    def to_numbers(adapter: Adapter, model: Model, out: Path, name: str) -> Exported:
        np.savez(out, **{key: tensor.numpy() for key, tensor in adapter.tensors.items()})
        return Exported("npz", f"{out}.npz", name, len(adapter.modules), ())

    monkeypatch.setitem(EXPORTERS, "npz", to_numbers)
    adapter = an_adapter(tiny)
    written = export(adapter, tiny, tmp_path / "out", to="npz")
    assert set(np.load(written.path)) == set(adapter.tensors)
    with pytest.raises(WrongBase):
        export(replace(adapter, base_digest="0" * 64), tiny, tmp_path / "out", to="npz")


def test_an_unknown_engine_is_refused_with_those_there_are(tiny: Model, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'onnx'; use one of peft, vllm, gguf"):
        export(an_adapter(tiny), tiny, tmp_path, to="onnx")
    assert set(ARCHITECTURES) >= {"llama", "mistral", "qwen2", "qwen3", "gemma3", "phi3"}


Lore = Callable[..., tuple[object, str, str]]


@pytest.fixture
def lore(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Lore:
    """Run a command: its exit code, what it printed, and what it said on the side, unwrapped."""

    def run(*arguments: object) -> tuple[object, str, str]:
        monkeypatch.setattr(sys, "argv", ["lore", *map(str, arguments)])
        with pytest.raises(SystemExit) as ending:
            main()
        found = capsys.readouterr()
        return ending.value.code or 0, found.out, " ".join(found.err.split())

    return run


def test_the_command_finds_a_memory_by_path_or_by_name(
    pocket: Model, tmp_path: Path, lore: Lore
) -> None:
    adapters.save(an_adapter(pocket), tmp_path / "made")
    memory = Memory.open(tmp_path / "atlas", pocket)
    memory.add(tmp_path / "made", name="book")
    code, out, _ = lore(
        "export", tmp_path / "atlas" / "book", "--to", "gguf", "--out", tmp_path / "a"
    )
    file = tmp_path / "a" / f"book-{memory.names['book']}.gguf"
    assert code == 0 and file.exists()
    assert f"llama-server -m {tmp_path}/a/base.gguf --lora {file}" in out
    code, out, _ = lore(
        *("export", "--memory", tmp_path / "atlas", "--name", "book", "--to", "vllm"),
        *("--out", tmp_path / "b", "--json"),
    )
    assert code == 0 and json.loads(out)["adapter"] == memory.names["book"]
    assert "lorewright/models/pocket --enable-lora" in json.loads(out)["commands"][0]
    code, _, err = lore("export", "--to", "peft")
    assert code == 2 and "no memory to export" in err


def test_the_command_that_a_rank_too_large_is_answered_with_works(
    pocket: Model, tmp_path: Path, lore: Lore
) -> None:
    adapters.save(of_rank(pocket, 513), tmp_path / "made")
    memory = Memory.open(tmp_path / "atlas", pocket)
    probe = Probe("p", "What is the code of Project Gannet?", ("KX-41",), "paraphrase")
    memory.add(tmp_path / "made", name="book", probes=[probe])
    out = tmp_path / "out"
    code, _, err = lore("export", tmp_path / "atlas" / "book", "--to", "vllm", "--out", out)
    named = re.search(r"lore (merge FOLDER \S.*--into-name (\S+))\.$", err)
    assert code == 2 and named is not None, err
    command = named[1].replace("FOLDER", str(tmp_path / "atlas"))
    code, _, err = lore(*shlex.split(command))
    assert code == Exit.FAILED, err  # noise recalls nothing; stored it is
    code, _, err = lore("export", tmp_path / "atlas" / named[2], "--to", "vllm", "--out", out)
    assert code == 0 and adapters.load(out).config.rank == ENGINE_RANKS[-1], err
    for module, whole in (
        (m, change_of(memory.adapter("book"), m)) for m in memory.adapter("book").modules
    ):
        torch.testing.assert_close(
            change_of(adapters.load(out), module), whole, atol=1e-4, rtol=1e-4
        )
