"""An adapter on disk: PEFT's folder and a card; saved, loaded and checked.

    adapter_config.json, adapter_model.safetensors    what PEFT, vLLM and SGLang load unchanged
    README.md                                         the model card for people and the hub
    card.json                                         where it came from; written last

PEFT itself is never imported. An adapter's id is that of its content.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pickle
import re
import shutil
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as parse_tensors
from safetensors.torch import save as dump_tensors
from torch import Tensor, nn

from lorewright.adapters import foreign
from lorewright.adapters.config import DORA, PLAIN, LoraConfig
from lorewright.adapters.lora import MAGNITUDE, Stack
from lorewright.adapters.modelcard import readme
from lorewright.adapters.targets import Adapted
from lorewright.errors import (
    AdapterError,
    ConfigError,
    DataError,
    LorewrightError,
    StorageError,
    first_line,
)
from lorewright.files import read_object, sync_folder

CONFIG_FILE = "adapter_config.json"
TENSOR_FILE = "adapter_model.safetensors"
CARD_FILE = "card.json"
README_FILE = "README.md"
PICKLE_FILE = "adapter_model.bin"
PREFIX = "base_model.model."
HALVES = (foreign.A, foreign.B)
PARTS = {PLAIN: HALVES, DORA: (*HALVES, MAGNITUDE)}
"""What a module's tensors are called after it, by variant."""
SCHEMA = 1
ORIGIN = {"schema", "id", "lora", "base_id", "base_digest"}  # our part of the card


@dataclass(frozen=True, eq=False)
class Adapter:
    """LoRA matrices of one adapter and where they came from.

    Keys as in `Stack.tensors`: "<module>" and its variant's PARTS: A (R, I), B (O, R), lengths (O).
    """

    config: LoraConfig
    tensors: Mapping[str, Tensor]
    base_id: str
    """Name of the base model: a hub id, a path or a name of ours."""
    base_digest: str
    """Digest of the base's weights; empty if unknown, as in folders that others wrote."""
    card: Mapping[str, Any]
    """Sources, settings, report: anything JSON holds, under any key but "adapter"."""
    target_modules: tuple[str, ...] = ()
    """Short names under which PEFT binds exactly these modules; () = write full names."""
    notes: tuple[str, ...] = ()
    """What reading it took, where the files were of another form than ours."""

    @property
    def modules(self) -> tuple[str, ...]:
        """Full dotted names of the modules that have tensors."""
        return tuple(dict.fromkeys(_split(key)[0] for key in self.tensors))


def capture(
    stack: Stack, n: int, *, base_id: str, base_digest: str, card: Mapping[str, Any] | None = None
) -> Adapter:
    """Copy adapter n out of a stack, with the shortest target names that bind the same modules."""
    names, config = stack.coverage[n].names, stack.configs[n]
    short = short_targets(stack.model, names, config.layers)
    return Adapter(config, stack.tensors(n), base_id, base_digest, dict(card or {}), short)


def short_targets(
    model: nn.Module, names: Sequence[str], layers: tuple[int, ...] | None = None
) -> tuple[str, ...]:
    """Shorten module names to endings ("q_proj") wherever an ending binds no other module.

    Endings follow PEFT's rule, with `layers` as its layers_to_transform. Names whose endings also
    occur elsewhere (another tower, another block) stay whole.
    """
    every, wanted, rest = module_names(model), set(names), set(names)
    short = []
    endings = [".".join(name.split(".")[-depth:]) for depth in (1, 2) for name in names]
    for ending in dict.fromkeys(endings):
        bound = {name for name in every if binds((ending,), layers, name)}
        if bound & rest and bound <= wanted:
            short.append(ending)
            rest -= bound
    return tuple(sorted([*short, *rest]))


def content_id(adapter: Adapter) -> str:
    """Return 16 hex digits of SHA-256 over configuration and tensors; the card does not count."""
    hasher = hashlib.sha256(json.dumps(adapter.config.to_json(), sort_keys=True).encode())
    for key in sorted(adapter.tensors):
        tensor = _plain(adapter.tensors[key])
        hasher.update(json.dumps([key, list(tensor.shape)]).encode())
        hasher.update(tensor.numpy().tobytes())
    return hasher.hexdigest()[:16]


# On disk


def save(adapter: Adapter, folder: Path | str) -> str:
    """Write PEFT's two files, a README and the card into a new folder; return the content id.

    All or nothing: files go to a temporary folder beside it, which is renamed at the end. A folder
    that holds the same content gets the new card; anything else in the way is refused.
    Raises AdapterError for what `load` would refuse, StorageError when the disk does.
    """
    folder = Path(folder)
    check_tensors(adapter.tensors, adapter.config, "the adapter to save")
    identity = content_id(adapter)
    files = _files(adapter, identity)
    part = folder.parent / f".{folder.name}.{uuid.uuid4().hex[:8]}.part"
    old = part.with_suffix(".old")
    try:
        _check_free(folder, identity)
        part.mkdir(parents=True)
        for name, content in files.items():
            with open(part / name, "xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        sync_folder(part)
        if folder.exists():
            folder.rename(old)
        part.rename(folder)
        sync_folder(folder.parent)
    except OSError as error:
        remedy = "free some space" if error.errno == errno.ENOSPC else "check the path"
        raise StorageError(
            f"the adapter was to be saved as {folder}; the disk refused: {error}. Nothing is left; "
            f"{remedy} and save again."
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
        if old.exists() and not folder.exists():
            old.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    return identity


def load(folder: Path | str) -> Adapter:
    """Read an adapter folder: ours, or any plain LoRA that PEFT saved.

    Ranks and alphas that differ by module become one (`foreign.uniform`), a pickle is read as
    tensors only. Raises UnsupportedAdapter for a sound one of a kind in which A and B are not all,
    AdapterError for a folder that is incomplete, corrupt or no adapter, StorageError when a file
    cannot be read.
    """
    folder = Path(folder)
    settings = _read_json(folder, CONFIG_FILE)
    foreign.check_kind(settings, str(folder / CONFIG_FILE))
    tensors = _read_tensors(folder)
    card = _read_json(folder, CARD_FILE) if (folder / CARD_FILE).exists() else {}
    notes: tuple[str, ...] = ()
    if "adapter" not in card:
        settings, tensors, notes = foreign.uniform(settings, tensors, str(folder))
    ours = card.pop("adapter", None)
    if ours is not None and not (isinstance(ours, dict) and ours.keys() >= ORIGIN):
        raise AdapterError(f'{folder / CARD_FILE}: "adapter" must hold {sorted(ORIGIN)}.')
    config = _lora_config(settings, tensors, ours, folder)
    check_tensors(tensors, config, str(folder))
    named = settings.get("target_modules")
    if settings.get("exclude_modules") or (settings.get("layers_to_transform") and not ours):
        named = None  # PEFT's short names alone would bind more than the tensors
    base_id = str(settings.get("base_model_name_or_path") or "")
    digest = str(ours["base_digest"]) if ours else ""
    targets = tuple(map(str, named)) if isinstance(named, list) else ()
    adapter = Adapter(config, tensors, base_id, digest, card, targets, notes)
    if ours and ours["id"] != content_id(adapter):
        raise AdapterError(
            f"{folder}: the card is for content {ours['id']}, the files hold "
            f"{content_id(adapter)}; restore the folder, or write the memory again."
        )
    return adapter


def needs_plain(adapters: Sequence[Adapter], purpose: str) -> None:
    """Raise AdapterError, naming the purpose, unless A and B are all of every adapter."""
    for variant in (each.config.variant for each in adapters if each.config.variant != PLAIN):
        raise AdapterError(
            f"{purpose} needs plain LoRA, whose change is B A; this is {variant}, which also "
            "scales the base's rows; write it with --variant lora."
        )


# PEFT's format


def _split(key: str) -> tuple[str, str]:
    """Split a tensor key into module name and part; the part is empty for anything but PARTS."""
    half = next((half for half in PARTS[DORA] if key.endswith(half)), "")
    return key.removesuffix(half), half


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float32).contiguous()


def module_names(model: nn.Module) -> list[str]:
    """Names of all modules, as they are without a stack."""
    wrapped = tuple(f"{name}." for name, m in model.named_modules() if isinstance(m, Adapted))
    return [name for name, _ in model.named_modules() if not name.startswith(wrapped)]


def binds(targets: Iterable[str], layers: tuple[int, ...] | None, name: str) -> bool:
    """Say whether PEFT would bind the module: its whole name, or an ending in one of the layers."""
    if name in targets:
        return True
    if not any(name.endswith(f".{target}") for target in targets):
        return False
    at = re.match(r".*?\.[^.]*\.(\d+)\.", name)
    return layers is None or (at is not None and int(at[1]) in layers)


def _files(adapter: Adapter, identity: str) -> dict[str, bytes]:
    """The folder's files in writing order, the card last."""
    config = adapter.config
    targets = sorted(adapter.target_modules or adapter.modules)
    endings = not set(targets) <= set(adapter.modules)
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": adapter.base_id,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "use_rslora": config.rslora,
        "target_modules": targets,
        "layers_to_transform": list(config.layers) if config.layers and endings else None,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "modules_to_save": None,
        "use_dora": config.variant == DORA,
        "inference_mode": True,
    }
    base = {"base_id": adapter.base_id, "base_digest": adapter.base_digest}
    origin = {"schema": SCHEMA, "id": identity, "lora": config.to_json(), **base}
    if "adapter" in adapter.card:
        raise AdapterError('the card has a key "adapter", which is ours; use another name.')
    try:
        card = _dump_json({"adapter": origin, **adapter.card})
    except (TypeError, ValueError) as error:
        raise AdapterError(f"the card must be JSON; {error}. Convert its values first.") from error
    # Copies, because safetensors refuses tensors that share memory.
    tensors = {PREFIX + key: _plain(t).clone() for key, t in sorted(adapter.tensors.items())}
    rows = [
        ("base model", adapter.base_id or "unknown"),
        ("rank, alpha, scale", f"{config.rank}, {config.alpha}, {config.scale:.6g}"),
        ("adapted layers", f"{len(adapter.modules)} linear layers of the text decoder"),
        ("parameters", f"{sum(tensor.numel() for tensor in adapter.tensors.values()):,}"),
        *([("variant", config.variant)] if config.variant != PLAIN else []),
    ]
    return {
        CONFIG_FILE: _dump_json(settings),
        TENSOR_FILE: dump_tensors(tensors, {"format": "pt"}),
        README_FILE: readme(identity, adapter.base_id, rows, adapter.card).encode(),
        CARD_FILE: card,
    }


def _dump_json(content: Mapping[str, Any]) -> bytes:
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False, sort_keys=True)
    return f"{text}\n".encode()


def _check_free(folder: Path, identity: str) -> None:
    """Refuse to save over anything but an empty folder or the same content."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    try:
        present = f"content {content_id(load(folder))}"
    except LorewrightError:
        present = "other files"
    if present != f"content {identity}":
        raise AdapterError(f"{folder} holds {present}, not {identity}; choose another folder.")


def inside(folder: Path) -> list[Path]:
    """The adapter folders directly within a folder."""
    return sorted(path.parent for path in folder.glob(f"*/{CONFIG_FILE}"))


def _read_json(folder: Path, name: str) -> dict[str, Any]:
    if folder.is_file():
        raise AdapterError(f"{folder} is one file of an adapter; give its folder, {folder.parent}.")
    if not (folder / name).exists():
        within = ", ".join(map(str, inside(folder)[:5]))
        remedy = f" It holds adapters: {within}; give one of them." if within else ""
        raise AdapterError(f"{folder} is not an adapter: it has no {name}.{remedy}")
    try:
        return read_object(folder / name, "copy it again")
    except DataError as error:
        raise AdapterError(str(error)) from error


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors in float32, without PEFT's prefix and the adapter's name."""
    path, pickled = folder / TENSOR_FILE, folder / PICKLE_FILE
    try:
        if path.exists() or not pickled.exists():
            tensors = parse_tensors(path.read_bytes())
        else:
            path, tensors = pickled, _unpickled(pickled)
    except FileNotFoundError as error:
        raise AdapterError(
            f"{folder} needs {TENSOR_FILE} or {PICKLE_FILE}; it has neither. Copy it again."
        ) from error
    except SafetensorError as error:
        raise AdapterError(f"{path} is truncated or corrupt ({error}); copy it again.") from error
    except OSError as error:
        raise StorageError(f"{path} could not be read: {error}.") from error
    tensors = foreign.plain_names(tensors, str(path))
    strange = [k for k in tensors if not k.startswith(PREFIX) or not _split(k)[1]]
    foreign.check_names(tensors, strange, str(path))
    return {k.removeprefix(PREFIX): _plain(tensors[k]) for k in sorted(tensors)}


def _unpickled(path: Path) -> dict[str, Tensor]:
    """The tensors of a pickle, which may hold nothing else: no code of it runs."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise AdapterError(
            f"{path} holds more than tensors, which could run code, or is corrupt "
            f"({first_line(error)}); save it as safetensors."
        ) from error
    if not isinstance(content, dict) or not all(
        isinstance(k, str) and isinstance(v, Tensor) for k, v in content.items()
    ):
        raise AdapterError(f"{path} holds no table of tensors; save it as safetensors.")
    return content


def _lora_config(
    settings: Mapping[str, Any], tensors: Mapping[str, Tensor], ours: Any, folder: Path
) -> LoraConfig:
    """The configuration from our card, or from PEFT's settings with every module named in full."""
    rank, alpha, rslora = settings.get("r"), settings.get("lora_alpha"), settings.get("use_rslora")
    if isinstance(alpha, float) and alpha.is_integer():
        alpha = int(alpha)
    names = tuple(dict.fromkeys(_split(key)[0] for key in tensors))
    variant = DORA if settings.get("use_dora") else PLAIN
    try:
        peft = LoraConfig(rank, alpha, names, rslora=bool(rslora), variant=variant)  # type: ignore[arg-type]
        config = peft if ours is None else LoraConfig(**ours["lora"])
    except (ConfigError, TypeError, KeyError) as error:
        raise AdapterError(f"{folder}: its settings cannot be read: {error}") from error
    forms = [(each.rank, each.alpha, each.rslora, each.variant) for each in (config, peft)]
    if forms[0] != forms[1]:
        raise AdapterError(
            f"{folder}: card and {CONFIG_FILE} differ: rank {config.rank} and {peft.rank}, alpha "
            f"{config.alpha} and {peft.alpha}. Restore the folder, or delete {CARD_FILE}."
        )
    return config


def check_tensors(tensors: Mapping[str, Tensor], config: LoraConfig, where: str) -> None:
    """Check that A and B come in pairs, have the rank, and hold finite numbers."""
    if not tensors:
        raise AdapterError(f"{where}: there are no tensors; an adapter needs at least one pair.")
    parts = PARTS[config.variant]
    for key, tensor in tensors.items():
        name, part = _split(key)
        if other := next((name + p for p in parts if name + p not in tensors), ""):
            raise AdapterError(f"{where}: {key!r} has no partner {other!r}; it is incomplete.")
        if part not in parts:
            raise AdapterError(
                f"{where}: {key!r} is no part of {config.variant} ({', '.join(parts)}); say so in "
                f"{CONFIG_FILE} (use_dora), or leave it out."
            )
        if part == MAGNITUDE and tensor.dim() == 1:
            rank: int | None = config.rank
        else:
            rank = tensor.shape[0 if part == HALVES[0] else 1] if tensor.dim() == 2 else None
        if rank != config.rank:
            raise AdapterError(
                f"{where}: {key!r} is {tuple(tensor.shape)}; with rank {config.rank}, A must be "
                f"({config.rank}, in) and B (out, {config.rank})."
            )
        if not torch.isfinite(tensor).all():
            raise AdapterError(f"{where}: {key!r} holds NaN or infinity; write it again.")
