"""What a way of writing has learnt once for a base: a file of tensors, with its card inside.

    kit.safetensors    tensors in bfloat16; in the header's metadata the card as JSON

Shipped kits lie beside this module, trained ones in the user's cache; both are looked up by method
and by the digest of the base, so that a kit is never used on another one.

Knows the file and where it lies; what the tensors mean is the method's, and how they came about is
`lorewright.kits`'.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as dump_tensors
from torch import Tensor

from lorewright.errors import ConfigError, DataError, StorageError, WrongBase
from lorewright.files import cache_folder, store
from lorewright.models.model import Model

SHIPPED = Path(__file__).parent / "shipped"
SUFFIX = ".kit.safetensors"
METADATA = "kit"
NONE_SHIPS = {
    "gradmem": "None ships, for trainings of up to 200 steps recalled nothing; its paper has tens "
    "of thousands."
}
"""Why, for methods of which that is so."""
N_DIGEST = 12
"""Hex digits of a base's digest in the name of a kit's file."""


@dataclass(frozen=True, eq=False)
class Kit:
    """Tensors of a method, its options, the base they are for, and how they were trained."""

    method: str
    tensors: Mapping[str, Tensor]
    options: Mapping[str, float]
    base_id: str
    base_digest: str
    about: Mapping[str, Any] = field(default_factory=dict)
    """Seed, steps, seconds, recalls: what a card says."""

    @cached_property
    def id(self) -> str:
        """Digest of method, options and tensors in the precision of the file, 16 hex digits."""
        hasher = hashlib.sha256(json.dumps([self.method, dict(self.options)]).encode())
        for name, tensor in sorted(self.tensors.items()):
            hasher.update(json.dumps([name, list(tensor.shape)]).encode())
            hasher.update(_stored(tensor).view(torch.uint8).numpy().tobytes())
        return hasher.hexdigest()[:16]

    @property
    def size_bytes(self) -> int:
        """Bytes of its tensors in the file."""
        return sum(2 * tensor.numel() for tensor in self.tensors.values())

    def card(self) -> dict[str, Any]:
        """What the file says of itself beside the tensors."""
        base = {"base_id": self.base_id, "base_digest": self.base_digest}
        own = {"method": self.method, "id": self.id, "options": dict(self.options)}
        return {**own, **base, "size_bytes": self.size_bytes, **self.about}

    def save(self, path: Path) -> None:
        """Write the file whole or not at all. Raises StorageError when the disk refuses."""
        tensors = {name: _stored(tensor) for name, tensor in self.tensors.items()}
        store(dump_tensors(tensors, {METADATA: json.dumps(self.card())}), path)

    def check(self, model: Model, method: str) -> None:
        """Raise ConfigError for another method's kit, WrongBase for another base's."""
        if self.method != method:
            raise ConfigError(
                f"a kit of method {method!r} is needed and this one is of {self.method!r}; give "
                f"another, or train one: lore kit train {method}."
            )
        if self.base_digest != model.digest:
            raise WrongBase(
                f"the kit of method {self.method!r} was trained on {self.base_id!r} (digest "
                f"{self.base_digest[:N_DIGEST]}); this base, {model.name!r}, has digest "
                f"{model.digest[:N_DIGEST]}. Load that base, or train a kit for this one: lore kit "
                f"train {method} --model {model.name}."
            )


def load(path: Path) -> Kit:
    """Read a kit's file, its tensors in float32.

    Raises DataError for one that is missing, truncated, damaged or no kit.
    """
    if not path.is_file():
        raise DataError(f"there is no kit {path}; check the path, or train one: lore kit train.")
    remedy = "restore it from a copy, or train it again: lore kit train"
    try:
        with safe_open(path, framework="pt") as file:
            card = json.loads((file.metadata() or {})[METADATA])
            tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
        kit = _of_card(card, tensors)
        if kit.id != card["id"]:
            raise DataError(f"{path} holds other tensors than its card says; {remedy}.")
    except SafetensorError as error:
        raise DataError(f"the kit {path} is truncated or damaged ({error}); {remedy}.") from error
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} is no kit: its card lacks {error}; {remedy}.") from error
    except OSError as error:
        raise StorageError(f"{path} could not be read: {error}.") from error
    return kit


def _of_card(card: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Kit:
    own = ("method", "options", "base_id", "base_digest")
    about = {key: card[key] for key in card if key not in (*own, "id", "size_bytes")}
    method, options, base_id, base_digest = (card[key] for key in own)
    return Kit(method, tensors, options, base_id, base_digest, about)


def _stored(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().to(torch.bfloat16).contiguous()


def rounded(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors with the values that a file gives back."""
    return {name: _stored(tensor).float() for name, tensor in tensors.items()}


def cached_path(method: str, base_digest: str) -> Path:
    """Where a kit that is trained here lies, if nobody says otherwise."""
    return cache_folder() / "kits" / f"{method}-{base_digest[:N_DIGEST]}{SUFFIX}"


def paths() -> Iterator[Path]:
    """Every kit there is: the user's own first, then those shipped."""
    for folder in (cache_folder() / "kits", SHIPPED):
        yield from sorted(folder.glob(f"*{SUFFIX}"))


def usual_path(method: str, base_digest: str) -> Path | None:
    """The kit of a base that is taken where none is named: the user's own, or the shipped one."""
    name = cached_path(method, base_digest)
    return next((each for each in (name, SHIPPED / name.name) if each.is_file()), None)


def find(model: Model, method: str, path: str = "") -> Kit:
    """The kit in a file, or that of this base in the user's cache, or the shipped one.

    Raises ConfigError where there is none, WrongBase for another base's, DataError for damage.
    """
    if path:
        kit = load(Path(path))
    else:
        usual = usual_path(method, model.digest)
        if not usual:
            why = f" {NONE_SHIPS[method]}" if method in NONE_SHIPS else ""
            raise ConfigError(
                f"method {method!r} needs a kit, which is trained once for a base, and there is "
                f"none for {model.name!r}; train one: lore kit train {method} --model "
                f"{model.name}, or give its file with --kit.{why}"
            )
        kit = load(usual)
    kit.check(model, method)
    return kit
