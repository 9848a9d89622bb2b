"""Claims about exports: the same weight change in every format, and a real llama.cpp that agrees.

The last is opt-in: it runs where llama-cpp-python is installed, on the embedded base as GGUF.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import FAMILIES, llama, qwen3_moe
from test_model import an_adapter, letters

from lorewright import adapter as adapters
from lorewright.adapter import HALVES, Adapter
from lorewright.cli import main
from lorewright.errors import AdapterError, ConfigError, WrongBase
from lorewright.export import ARCHITECTURES, ENGINE_RANKS, EXPORTS, export, read_gguf
from lorewright.lora import LoraConfig, attach
from lorewright.memory import Memory
from lorewright.model import Model


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest) -> Model:
    return Model(FAMILIES[request.param](), letters(), request.param)


@pytest.fixture(scope="module")
def tiny() -> Model:
    return Model(llama(), letters(), "tiny")


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
    np.testing.assert_allclose(stored, ours, rtol=1e-5, atol=1e-6)


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
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["adapter.gguf", "b"]


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


@pytest.mark.parametrize("to", EXPORTS)
def test_an_adapter_of_another_base_is_exported_nowhere(
    tiny: Model, tmp_path: Path, to: str
) -> None:
    other = replace(an_adapter(tiny), base_digest="0" * 64)
    with pytest.raises(WrongBase):
        export(other, tiny, tmp_path / "out", to=to)
    assert not (tmp_path / "out").exists()


def test_an_unknown_engine_is_refused_with_those_there_are(tiny: Model, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'onnx'; use one of peft, vllm, gguf"):
        export(an_adapter(tiny), tiny, tmp_path, to="onnx")
    assert set(ARCHITECTURES) >= {"llama", "mistral", "qwen2", "qwen3", "gemma3", "phi3"}


def test_the_command_finds_a_memory_by_path_or_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pocket = Model.load()
    adapters.save(an_adapter(pocket), tmp_path / "made")
    memory = Memory.open(tmp_path / "atlas", pocket)
    memory.add(tmp_path / "made", name="book")

    def lore(*arguments: object) -> tuple[object, str, str]:
        monkeypatch.setattr(sys, "argv", ["lore", "export", *map(str, arguments)])
        with pytest.raises(SystemExit) as ending:
            main()
        said = capsys.readouterr()
        return ending.value.code or 0, said.out, said.err

    code, out, _ = lore(tmp_path / "atlas" / "book", "--to", "gguf", "--out", tmp_path / "a")
    assert code == 0 and "llama-server -m BASE.gguf --lora" in out
    code, out, _ = lore(
        *("--memory", tmp_path / "atlas", "--name", "book", "--to", "vllm"),
        *("--out", tmp_path / "b", "--json"),
    )
    assert code == 0 and json.loads(out)["adapter"] == memory.names["book"]
    assert "lorewright/pocket --enable-lora" in json.loads(out)["commands"][0]
    code, _, err = lore("--to", "peft")
    assert code == 2 and "say which memory to export" in err


# -- a real llama.cpp ----------------------------------------------------------------------------


@pytest.mark.llamacpp
def test_llama_cpp_loads_the_export_and_predicts_as_we_do(tmp_path: Path) -> None:
    from llama_cpp import Llama

    pocket = Model.load()
    adapter = an_adapter(pocket)
    adapter = replace(
        adapter,
        tensors={k: t * 0.1 if "lora_B" in k else t for k, t in adapter.tensors.items()},
    )
    found = export(adapter, pocket, tmp_path / "out", to="gguf")
    base_as_gguf(pocket, tmp_path / "base.gguf")
    ids = list(pocket.render("What is the code of Project Gannet?", "KX-41").prompt_ids)

    def theirs(**how: Any) -> np.ndarray[Any, Any]:
        engine = Llama(
            str(tmp_path / "base.gguf"), n_ctx=256, logits_all=True, verbose=False, **how
        )
        engine.eval(ids)
        return np.array(engine.scores[: len(ids)])

    def ours() -> np.ndarray[Any, Any]:
        with torch.no_grad():
            return np.array(pocket.network(torch.tensor([ids])).logits[0])

    alone, base = theirs(), ours()
    np.testing.assert_allclose(alone, base, atol=0.05)
    with pocket.using(adapter):
        adapted = ours()
    with_lora = theirs(lora_path=found.path)
    moved = np.abs(adapted - base).max()
    assert moved > 1 and np.abs(with_lora - alone).max() > 1
    np.testing.assert_allclose(with_lora, adapted, atol=0.02 * moved)
    assert (with_lora.argmax(-1) == adapted.argmax(-1)).mean() > 0.95


def base_as_gguf(model: Model, path: Path) -> None:
    """The embedded base for llama.cpp: a Llama with tied embeddings and a byte-level BPE."""
    import gguf

    config, network = model.network.config, model.network
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_freq_base(float(config.rope_parameters["rope_theta"]))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    tokenizer = json.loads(model.tokenizer.backend_tokenizer.to_str())
    special = {each["id"]: each["content"] for each in tokenizer["added_tokens"]}
    by_id = {i: token for token, i in tokenizer["model"]["vocab"].items()} | special
    tokens = [by_id.get(i, f"<unused{i}>") for i in range(config.vocab_size)]
    control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types([control if i in special else normal for i in range(len(tokens))])
    merges = tokenizer["model"]["merges"]
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in merges])
    writer.add_eos_token_id(model.tokenizer.eos_token_id)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in network.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        heads = {
            "q_proj.weight": config.num_attention_heads,
            "k_proj.weight": config.num_key_value_heads,
        }.get(name.rsplit("self_attn.", 1)[-1])
        array = tensor.float().numpy()
        if heads:
            halves = array.reshape(heads, 2, len(array) // heads // 2, -1)
            array = halves.swapaxes(1, 2).reshape(array.shape)
        stored = names.get_name(name, try_suffixes=(".weight",))
        assert stored, name
        writer.add_tensor(stored, np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
