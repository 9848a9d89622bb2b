"""States that are no adapter: a few tensors, and how a pass uses them.

    folder: state.safetensors, card.json (last, with the kind, the size and the content's id)

A `Form` says how its tensors start, what has to fit, and how they are switched on; `Tuning` trains
any of them on a lesson. Nothing of this is LoRA, so it neither merges nor exports.

Knows tensors by name; what they mean is the form's.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load as parse_tensors
from safetensors.torch import save as dump_tensors
from torch import Tensor

from lorewright.adapters.config import LoraConfig
from lorewright.errors import (
    AdapterError,
    ConfigError,
    DataError,
    NoEffect,
    StorageError,
    WrongBase,
)
from lorewright.files import new_folder, read_object, save_json, store
from lorewright.knowledge.data import Document, Knowledge
from lorewright.models.model import Model
from lorewright.training.config import WriteConfig
from lorewright.training.descent import check, tune
from lorewright.training.watch import Watch
from lorewright.writers.lessons import contexts_of, cost_of
from lorewright.writers.writer import Cost, Material

CARD_FILE, TENSOR_FILE = "card.json", "state.safetensors"
KIND, OWN = "kind", "state"
"""Keys of a card: the state's kind, and what the state says of itself."""
NEUTRAL = Knowledge((Document("neutral", "A text."),))
"""Gives a form's tensors their shapes where there is nothing to start from."""


class Form(Protocol):
    """What tensors of one kind are."""

    @property
    def name(self) -> str:
        """A key of `methods.WRITERS` and of `methods.STATES`."""

    @property
    def trains(self) -> str:
        """What they are, in a few words."""

    @property
    def size(self) -> int:
        """How large they are where nobody says: vectors, positions, a width."""

    def start(
        self, model: Model, knowledge: Knowledge, size: int, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Tensors before training, in float32. Raises as the model's parts do where none fit."""

    def idle(self, tensors: Mapping[str, Tensor]) -> bool:
        """Whether they change nothing, whatever the model."""

    def on(self, model: Model, tensors: Mapping[str, Tensor]) -> AbstractContextManager[object]:
        """Have every pass use them for the length of a block, with gradient to them."""


@dataclass(frozen=True, eq=False)
class TensorState:
    """Tensors of a form, and the base that they were written on."""

    form: Form
    tensors: Mapping[str, Tensor]
    size: int
    base_id: str
    base_digest: str

    @property
    def kind(self) -> str:
        """Its form's name."""
        return self.form.name

    @property
    def id(self) -> str:
        """Digest of kind and tensors."""
        hasher = hashlib.sha256(json.dumps([self.kind, self.size]).encode())
        for name, tensor in sorted(self.tensors.items()):
            hasher.update(json.dumps([name, list(tensor.shape)]).encode())
            hasher.update(tensor.float().contiguous().numpy().tobytes())
        return hasher.hexdigest()[:16]

    @property
    def size_bytes(self) -> int:
        """Bytes of its tensors in float32."""
        return sum(4 * tensor.numel() for tensor in self.tensors.values())

    def save(self, folder: Path, card: Mapping[str, Any]) -> str:
        """Write tensors and card; a folder with the same content gets the new card.

        Raises AdapterError for a folder that holds anything else, StorageError when the disk
        refuses.
        """
        about = {"id": self.id, "size": self.size, "base_id": self.base_id}
        full = {**card, KIND: self.kind, OWN: {**about, "base_digest": self.base_digest}}
        if folder.exists() and any(folder.iterdir()):
            present = load(folder, self.form).id
            if present != self.id:
                raise AdapterError(
                    f"{folder} holds {present}, not {self.id}; choose another folder."
                )
            save_json(full, folder / CARD_FILE)
            return self.id
        tensors = {
            name: tensor.float().contiguous().clone() for name, tensor in self.tensors.items()
        }
        with new_folder(folder, CARD_FILE) as part:
            store(dump_tensors(tensors, {"format": "pt"}), part / TENSOR_FILE)
            save_json(full, part / CARD_FILE)
        return self.id

    def check(self, model: Model) -> None:
        """Raise unless base, names and shapes fit and something is changed."""
        if self.base_digest != model.digest:
            raise WrongBase(
                f"the {self.kind} was written on {self.base_id!r} (digest "
                f"{self.base_digest[:12]}); this base has digest {model.digest[:12]}. Load that "
                "base, or write it again."
            )
        wanted = self.form.start(model, NEUTRAL, self.size, torch.Generator().manual_seed(0))
        shapes, has = (
            {name: tuple(tensor.shape) for name, tensor in tensors.items()}
            for tensors in (wanted, self.tensors)
        )
        if shapes != has:
            name = min(k for k in {*shapes, *has} if shapes.get(k) != has.get(k))
            raise AdapterError(
                f"the {self.kind} does not fit {model.name!r}: {name!r} is {has.get(name)}, where "
                f"{shapes.get(name)} is needed; write it again."
            )
        if self.form.idle(self.tensors):
            raise NoEffect(
                f"the {self.kind} is as it was before training, so it changes nothing: its change "
                "is zero. Write it again, for longer or at a higher rate."
            )

    def on(self, model: Model) -> AbstractContextManager[object]:
        """Switch its tensors on for the length of a block."""
        return self.form.on(model, {k: t.to(model.device) for k, t in self.tensors.items()})


def load(folder: Path, form: Form) -> TensorState:
    """Read what `TensorState.save` wrote.

    Raises AdapterError for files that are missing, damaged or of other content than the card says,
    StorageError when they cannot be read.
    """
    remedy = "restore it from a copy, or write it again"
    path = folder / TENSOR_FILE
    if not (path.is_file() and (folder / CARD_FILE).is_file()):
        raise AdapterError(f"{folder} needs {TENSOR_FILE} and {CARD_FILE}; {remedy}.")
    try:
        own = read_object(folder / CARD_FILE, remedy)[OWN]
        tensors = parse_tensors(path.read_bytes())
        state = TensorState(form, tensors, own["size"], own["base_id"], own["base_digest"])
    except SafetensorError as error:
        raise AdapterError(f"{path} is truncated or corrupt ({error}); {remedy}.") from error
    except (DataError, KeyError, TypeError) as error:
        raise AdapterError(f"{folder / CARD_FILE} cannot be read ({error}); {remedy}.") from error
    except OSError as error:
        raise StorageError(f"{path} could not be read: {error}.") from error
    if state.id != own.get("id"):
        raise AdapterError(
            f"{folder}: the card is for content {own.get('id')}, the file holds {state.id}; "
            f"{remedy}."
        )
    return state


@dataclass(frozen=True)
class Tuning:
    """Trains the tensors of a form on a lesson until it is recalled."""

    form: Form
    config: WriteConfig

    reads: Literal["text", "lesson"] = "lesson"
    needs_context = False
    exports = False
    streams = False
    trained_offline = False

    def __post_init__(self) -> None:
        check(self.config, self.name)
        usual = LoraConfig()
        if replace(self.config.lora, rank=usual.rank, seed=usual.seed) != usual:
            raise ConfigError(
                f"method {self.name!r} trains no adapter, so alpha, targets, layers, rslora and "
                "variant decide nothing; leave them out, or use method 'gradient'."
            )

    @property
    def name(self) -> str:
        """The form's name."""
        return self.form.name

    @property
    def trains(self) -> str:
        """What the form's tensors are."""
        return self.form.trains

    @property
    def leaves(self) -> str:
        """The kind of its states, the form's name."""
        return self.form.name

    def write(
        self, model: Model, material: Material, *, seed: int, run: Path | None, watch: Watch
    ) -> tuple[TensorState, Cost]:
        """Train on the material's examples. Raises as `training.descent.tune`."""
        config = replace(self.config, seed=seed)
        size = config.size or self.form.size
        generator = torch.Generator().manual_seed(seed)
        watch.step("training in transformers")
        start = self.form.start(model, material.knowledge, size, generator)
        tuned = tune(
            model,
            start,
            self.form.on,
            [*material.examples, *material.rehearsal],
            config,
            mark=f"{self.name} {size} {material.knowledge.digest()}",
            contexts=contexts_of(material, config),
            run=run,
            watch=watch,
        )
        state = TensorState(self.form, tuned.tensors, size, model.name, model.digest)
        return state, cost_of(model, material, tuned.epochs, tuned.reason, "transformers")
