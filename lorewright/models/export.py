"""An adapter for other engines: PEFT's folder, what vLLM and SGLang accept of it, GGUF.

Every export is read back and compared before it counts. GGUF is written as llama.cpp's converter
does it, with the `gguf` package: tensors `<base tensor>.lora_a` (R, I) and `.lora_b` (O, R) in
float32 under GGUF's names; `adapter.lora.alpha` is scale × rank, for llama.cpp divides by the rank
and knows no rsLoRA. Where an architecture stores the rows of a weight in another order (Llama's q
and k, for its rotary embedding; GPT-NeoX's fused q, k, v), the rows of B follow. llama.cpp's script
converts bases whose tokenizer it knows; the embedded one it does not, so that is written here too.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lorewright.adapters import adapter as adapters
from lorewright.adapters.adapter import HALVES, Adapter, content_id, needs_plain
from lorewright.adapters.proof import validate
from lorewright.adapters.quantise import quantised
from lorewright.adapters.targets import survey
from lorewright.errors import AdapterError, ConfigError, StorageError
from lorewright.files import slug
from lorewright.models.catalogue import POCKET, POCKET_FOLDER
from lorewright.models.model import Model

ENGINE_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM's --max-lora-rank takes; an adapter's rank may be anything up to it."""
DEFAULT_RANK = 16
"""vLLM's --max-lora-rank where none is given."""
BASE_FILE = "base.gguf"
"""The embedded base, beside the adapters that were exported into the same folder."""
PRE_TOKENIZER = "smollm"
"""llama.cpp's name for how the embedded base splits a text: digits one by one, then as GPT-2."""
_LAYER = re.compile(r"(?:.*\.)?(?:layers|h)\.(\d+)\.(.+)")


@dataclass(frozen=True)
class Exported:
    """What was written, and how an engine loads it."""

    to: str
    path: str
    adapter: str
    """Id of the content, as in the folder it came from."""
    n_modules: int
    commands: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


Exporter = Callable[[Adapter, Model, Path, str], Exported]
"""(adapter, its base, a folder that is not there yet, a name for the engine) -> what was written"""


def export(adapter: Adapter, model: Model, out: Path, *, to: str, name: str = "memory") -> Exported:
    """Write an adapter for an engine into a new folder; a key of EXPORTERS says for which.

    Raises ConfigError for an unknown one, AdapterError for what does not fit the base or what the
    engine would refuse, StorageError when the disk does.
    """
    if to not in EXPORTERS:
        raise ConfigError(f"there is no export to {to!r}; use one of {', '.join(EXPORTERS)}.")
    validate(adapter, model.network, model.digest)
    return EXPORTERS[to](adapter, model, Path(out), name)


# -- PEFT, vLLM, SGLang --------------------------------------------------------------------------


def to_peft(adapter: Adapter, model: Model, out: Path, name: str) -> Exported:
    """The folder as PEFT loads it, read back: the same content."""
    identity = adapters.save(adapter, out)
    again = adapters.load(out)
    validate(again, model.network, model.digest)
    if content_id(again) != identity:
        raise AdapterError(f"{out} does not hold what was exported; check the disk.")
    load = f'PeftModel.from_pretrained(base, "{out}")'
    return Exported("peft", str(out), identity, len(adapter.modules), (load,))


def to_vllm(adapter: Adapter, model: Model, out: Path, name: str) -> Exported:
    """The same folder, if vLLM and SGLang load it, and the lines that start them.

    Our adapters have no bias, no saved modules, one rank and text layers only. Raises AdapterError
    for a rank above the engines' largest.
    """
    needs_plain([adapter], "an export for vLLM and SGLang")
    rank = adapter.config.rank
    fitting = [limit for limit in ENGINE_RANKS if limit >= rank]
    if not fitting:
        raise AdapterError(
            f"the adapter has rank {rank}; vLLM takes at most {ENGINE_RANKS[-1]}; truncate it and "
            f"export that: lore merge FOLDER {name} --method svd --rank {ENGINE_RANKS[-1]} "
            f"--into-name {name}-{ENGINE_RANKS[-1]}."
        )
    exported = to_peft(adapter, model, out, name)
    base = shlex.quote(_base_path(model))
    lora = shlex.quote(f"{name}={out}")
    limit = f" --max-lora-rank {fitting[0]}" if fitting[0] != DEFAULT_RANK else ""
    commands = (
        f"vllm serve {base} --enable-lora{limit} --lora-modules {lora}",
        f"python -m sglang.launch_server --model-path {base} --lora-paths {lora} "
        f"--max-lora-rank {fitting[0]}",
    )
    return replace(
        exported, to="vllm", commands=commands, notes=tuple(_engine_notes(adapter, model))
    )


def _base_path(model: Model) -> str:
    """What an engine loads as the base: the embedded one is a folder like any other."""
    return str(POCKET_FOLDER) if model.name == POCKET else model.name


def _base_notes(model: Model) -> list[str]:
    """What to know of a base that is no plain file of weights."""
    if not quantised(model.network):
        return []
    return [
        "the adapter was written on the base in nf4; what it recalls in another precision, or on a "
        "base that is quantised in another way, was not measured: ask it there."
    ]


def _engine_notes(adapter: Adapter, model: Model) -> list[str]:
    notes = _base_notes(model)
    if model.network.dtype != torch.float32:
        notes.append("engines cast A and B, which are float32 here, to the base's dtype.")
    experts = [name for name in adapter.modules if ".experts." in name]
    if experts:
        notes.append(
            f"{len(experts)} modules are in mixtures of experts; not every engine version adapts "
            "those: ask it for logits with and without the adapter."
        )
    return notes


# -- GGUF ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Architecture:
    """How llama.cpp names an architecture, and in which order it stores rows."""

    name: str
    prefix: str = "model.layers"
    """How GGUF's table of names writes a layer of this family."""
    rows: Callable[[Any, str, int], Tensor | None] = lambda config, ending, n_out: None
    """Order of the rows of a module's weight by its ending and number of rows; None = the same."""


def rotary_rows(config: Any, ending: str, n_out: int) -> Tensor | None:
    """Rows of q and k: halves of each head interleaved, as Llama's own code rotates pairs."""
    heads = {
        "self_attn.q_proj": config.num_attention_heads,
        "self_attn.k_proj": config.num_key_value_heads,
    }.get(ending)
    if heads is None:
        return None
    return torch.arange(n_out).view(heads, 2, -1).transpose(1, 2).reshape(-1)


def fused_rows(config: Any, ending: str, n_out: int) -> Tensor | None:
    """Rows of GPT-NeoX's query_key_value: all of q, then k, then v, not head by head."""
    if ending != "attention.query_key_value":
        return None
    return torch.arange(n_out).view(config.num_attention_heads, 3, -1).transpose(0, 1).reshape(-1)


ARCHITECTURES: dict[str, Architecture] = {
    "llama": Architecture("llama", rows=rotary_rows),
    "mistral": Architecture("llama", rows=rotary_rows),
    "qwen2": Architecture("qwen2"),
    "qwen3": Architecture("qwen3"),
    "gemma": Architecture("gemma"),
    "gemma2": Architecture("gemma2"),
    "gemma3": Architecture("gemma3"),
    "gemma3_text": Architecture("gemma3"),
    "phi": Architecture("phi2"),
    "phi3": Architecture("phi3"),
    "gpt_neox": Architecture("gptneox", "gpt_neox.layers", fused_rows),
}
"""By transformers' model type; those whose conversion is known here."""


def to_gguf(adapter: Adapter, model: Model, out: Path, name: str) -> Exported:
    """One file for llama.cpp, read back: every weight change is what it was, to the last bit.

    Its name ends in the content's id, by which `lore serve --engine-url` knows it. A folder may
    take several. The embedded base is put beside it. Raises ConfigError without the `gguf` package,
    AdapterError for an architecture that is not in ARCHITECTURES, a module that llama.cpp has no
    tensor for, or a file that is there already.
    """
    needs_plain([adapter], "an export for llama.cpp")
    gguf = _gguf()
    architecture = _architecture(model)
    identity = content_id(adapter)
    path = out / f"{slug(name)}-{identity}.gguf"
    if path.exists():
        raise AdapterError(f"{path} exists already; give another folder.")

    def fill(writer: Any) -> None:
        writer.add_type(gguf.GGUFType.ADAPTER)
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, adapter.config.scale * adapter.config.rank)
        writer.add_name(f"{name} {identity}")
        writer.add_string("lorewright.adapter", identity)
        writer.add_string("lorewright.base_digest", model.digest)
        for module in adapter.modules:
            A_RI, B_OR = (adapter.tensors[module + half] for half in HALVES)
            tensor, order_O = _place(architecture, model, module, len(B_OR))
            B_OR = B_OR if order_O is None else B_OR[order_O]
            for letter, half in (("a", A_RI), ("b", B_OR)):
                writer.add_tensor(f"{tensor}.lora_{letter}", half.contiguous().numpy())

    base, note = "BASE.gguf", "is {!r}, converted by llama.cpp's convert_hf_to_gguf.py."
    if model.name == POCKET:
        base = str(out / BASE_FILE)
        note = (
            "is {!r} in float32, with tokenizer and chat template; typographic quotes, dashes and "
            "spaces, which it reads as plain ones, are to be replaced before llama.cpp reads them."
        )
        if not _is_base(out / BASE_FILE, model):
            export_base(model, out / BASE_FILE)
    _write_gguf(path, architecture, fill, lambda part: _check_gguf(part, adapter, model))
    command = f"llama-server -m {shlex.quote(base)} --lora {shlex.quote(str(path))}"
    notes = (f"{Path(base).name} {note.format(model.name)}", *_base_notes(model))
    return Exported("gguf", str(path), identity, len(adapter.modules), (command,), notes)


def _write_gguf(
    path: Path,
    architecture: Architecture,
    fill: Callable[[Any], None],
    check: Callable[[Path], None],
) -> None:
    """Write a file under another name, check it, and rename it; StorageError when the disk fails.

    `fill` adds keys and tensors to a writer; `check` raises for a file that came back different.
    """
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        writer = _gguf().GGUFWriter(part, architecture.name)
        fill(writer)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        check(part)
        os.replace(part, path)
    except OSError as error:
        raise StorageError(f"{path} could not be written: {error}; check the path.") from error
    finally:
        part.unlink(missing_ok=True)


def read_gguf(path: Path, model: Model) -> tuple[float, dict[str, Tensor]]:
    """The scale of a GGUF adapter and its tensors under our keys, rows in the base's order.

    Raises AdapterError for a file that is no LoRA of this base's architecture.
    """
    gguf = _gguf()
    architecture = _architecture(model)
    reader = gguf.GGUFReader(path)
    fields = {key: field.contents() for key, field in reader.fields.items()}
    wanted = {"general.type": "adapter", "adapter.type": "lora"}
    wanted["general.architecture"] = architecture.name
    for key, value in wanted.items():
        if fields.get(key) != value:
            raise AdapterError(f"{path}: {key} is {fields.get(key)!r}, expected {value!r}.")
    halves = {
        tensor.name: torch.from_numpy(tensor.data.copy()).view(*map(int, tensor.shape[::-1]))
        for tensor in reader.tensors
    }
    tensors: dict[str, Tensor] = {}
    for module in (site.name for site in survey(model.network)[0]):
        tensor, order_O = _place(architecture, model, module, None)
        A_RI, B_OR = halves.pop(f"{tensor}.lora_a", None), halves.pop(f"{tensor}.lora_b", None)
        if A_RI is None or B_OR is None:
            continue
        if order_O is not None:
            B_OR = B_OR[torch.argsort(order_O)]
        tensors[module + HALVES[0]], tensors[module + HALVES[1]] = A_RI, B_OR
    if halves or not tensors:
        raise AdapterError(f"{path} holds tensors of no layer of {model.name!r}: {sorted(halves)}.")
    rank = tensors[next(iter(tensors))].shape[0]
    return float(fields["adapter.lora.alpha"]) / rank, tensors


def _check_gguf(path: Path, adapter: Adapter, model: Model) -> None:
    scale, tensors = read_gguf(path, model)
    same = tensors.keys() == adapter.tensors.keys() and all(
        torch.equal(tensors[key], tensor) for key, tensor in adapter.tensors.items()
    )
    if not same or abs(scale - adapter.config.scale) > 1e-6 * adapter.config.scale:
        raise AdapterError(f"{path} did not come back as it was written; nothing was exported.")


# -- the embedded base as GGUF -------------------------------------------------------------------


def export_base(model: Model, path: Path) -> None:
    """The embedded base as GGUF: weights in float32, tokenizer, chat template; read back.

    Raises ConfigError for any other base and without the `gguf` package, AdapterError when the file
    came back different, StorageError when the disk does.
    """
    if model.name != POCKET:
        raise ConfigError(
            f"{model.name!r} cannot be converted here; only {POCKET!r} can; for others use "
            "llama.cpp's convert_hf_to_gguf.py."
        )
    architecture = _architecture(model)
    tensors = dict(_base_tensors(model, architecture))

    def fill(writer: Any) -> None:
        writer.add_name(model.name)
        writer.add_string("lorewright.base_digest", model.digest)
        _add_shape(writer, model)
        _add_tokenizer(writer, model)
        for name, tensor in tensors.items():
            writer.add_tensor(name, tensor.numpy())

    def check(part: Path) -> None:
        reader = _gguf().GGUFReader(part)
        again = {each.name: torch.from_numpy(each.data.copy()).flatten() for each in reader.tensors}
        if again.keys() != tensors.keys() or not all(
            torch.equal(again[name], tensor.flatten()) for name, tensor in tensors.items()
        ):
            raise AdapterError(f"{path} did not come back as it was written; check the disk.")

    _write_gguf(path, architecture, fill, check)


def _is_base(path: Path, model: Model) -> bool:
    """Whether the file is this base; AdapterError for a file that is another."""
    if not path.exists():
        return False
    field = _gguf().GGUFReader(path).fields.get("lorewright.base_digest")
    if field is None or field.contents() != model.digest:
        raise AdapterError(f"{path} is another base than {model.name!r}; give another folder.")
    return True


def _add_shape(writer: Any, model: Model) -> None:
    """What llama.cpp builds the network from."""
    config = model.network.config
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
    writer.add_file_type(_gguf().LlamaFileType.ALL_F32)


def _add_tokenizer(writer: Any, model: Model) -> None:
    """A byte-level BPE; a plain text starts with the token that its template starts with."""
    gguf, tokenizer = _gguf(), model.tokenizer
    stored = json.loads(tokenizer.backend_tokenizer.to_str())
    special = {each["id"]: each["content"] for each in stored["added_tokens"]}
    by_id = {i: token for token, i in stored["model"]["vocab"].items()} | special
    control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(PRE_TOKENIZER)
    writer.add_token_list([by_id[i] for i in range(len(by_id))])
    writer.add_token_types([control if i in special else normal for i in range(len(by_id))])
    writer.add_token_merges([" ".join(pair) for pair in stored["model"]["merges"]])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_add_bos_token(True)  # llama.cpp takes one off where the template wrote it
    writer.add_chat_template(tokenizer.chat_template)


def _base_tensors(model: Model, architecture: Architecture) -> Iterator[tuple[str, Tensor]]:
    """GGUF's names and the weights in float32, rows in the order that llama.cpp wants."""
    gguf, config = _gguf(), model.network.config
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for key, tensor in model.network.state_dict().items():
        if key == "lm_head.weight" and config.tie_word_embeddings:
            continue
        layer = _LAYER.fullmatch(key.removesuffix(".weight"))
        order_O = architecture.rows(config, layer[2], len(tensor)) if layer else None
        tensor = tensor if order_O is None else tensor[order_O]
        stored = names.get_name(key, try_suffixes=(".weight",))
        assert stored is not None, f"{key} has no name in GGUF"
        yield stored, tensor.float().contiguous().cpu()


# -- names and orders ----------------------------------------------------------------------------


def _place(
    architecture: Architecture, model: Model, module: str, n_out: int | None
) -> tuple[str, Tensor | None]:
    """GGUF's name of a module's weight and the order of its rows there."""
    gguf = _gguf()
    config = model.network.config.get_text_config()
    layer = _LAYER.fullmatch(module)
    archs: Mapping[Any, str] = gguf.MODEL_ARCH_NAMES
    arch = next(key for key, value in archs.items() if value == architecture.name)
    names = gguf.get_tensor_name_map(arch, int(config.num_hidden_layers))
    tensor = names.get_name(f"{architecture.prefix}.{layer[1]}.{layer[2]}") if layer else None
    if layer is None or tensor is None:
        raise AdapterError(
            f"{module!r} has no tensor in llama.cpp's {architecture.name!r}; write the memory "
            "without this target."
        )
    if n_out is None:
        n_out = int(model.network.get_submodule(module).weight.shape[0])
    return f"{tensor}.weight", architecture.rows(config, layer[2], n_out)


def _architecture(model: Model) -> Architecture:
    kind = str(model.network.config.model_type)
    if kind not in ARCHITECTURES:
        raise AdapterError(
            f"{model.name!r} is a {kind!r}; to GGUF these can be exported: "
            f"{', '.join(ARCHITECTURES)}; for others use llama.cpp's convert_lora_to_gguf.py."
        )
    return ARCHITECTURES[kind]


def _gguf() -> Any:
    try:
        import gguf
    except ImportError as error:
        raise ConfigError(
            "exporting to GGUF needs the package gguf, which is not installed; run "
            "`pip install lorewright[export]`."
        ) from error
    return gguf


EXPORTERS: dict[str, Exporter] = {"peft": to_peft, "vllm": to_vllm, "gguf": to_gguf}
