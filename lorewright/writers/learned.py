"""Writing with a kit: what reads a text and leaves a state, learnt once for a base.

    kit, pieces of N documents -> states, one a document -> passes of questions that use them

A `Method` is differentiable from kit to answer, which is how `lorewright.kits` trains it on many
documents at once; `Learned` is the same with one document and without gradients, as a writer.

Knows what such methods have in common; the mathematics is each method's own.

Shape letters: N documents, B rows.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from lorewright.adapters.config import PLAIN, LoraConfig
from lorewright.errors import ConfigError
from lorewright.models.model import Model
from lorewright.training.config import WriteConfig
from lorewright.training.watch import Watch
from lorewright.writers import kit as kits
from lorewright.writers.adapter import AdapterState
from lorewright.writers.kit import Kit
from lorewright.writers.pieces import Pieces, pieces_of
from lorewright.writers.writer import Cost, Material, State

Tensors = Mapping[str, Tensor]
PIECE = "piece_tokens"
"""The option that says how long a piece is."""


class Method(Protocol):
    """How a kit's tensors turn documents into states, and passes use these."""

    @property
    def name(self) -> str:
        """A key of `methods.LEARNED` and of `methods.WRITERS`."""

    @property
    def trains(self) -> str:
        """What it computes, in a few words."""

    @property
    def leaves(self) -> str:
        """The kind of its states: a key of `methods.STATES`."""

    @property
    def streams(self) -> bool:
        """Whether a state can take up another source without a new write."""

    @property
    def options(self) -> Mapping[str, float]:
        """What a kit fixes for all its writes, with the usual values; PIECE is one of them."""

    def start(
        self, model: Model, options: Mapping[str, float], generator: torch.Generator
    ) -> dict[str, Tensor]:
        """A kit's tensors before training, in float32."""

    def states(self, model: Model, kit: Kit, pieces: Pieces) -> dict[str, Tensor]:
        """The states of N documents (N first), differentiable in the kit where gradients are on."""

    def on(
        self, model: Model, kit: Kit, states: Tensors, owner_B: Tensor
    ) -> AbstractContextManager[object]:
        """Have every row of the passes in a block use its document's state."""

    def leave(
        self, model: Model, kit: Kit, states: Tensors, rank: int
    ) -> tuple[State, dict[str, Any]]:
        """The state of the first document as it is stored, and what its card says."""


@dataclass(frozen=True)
class Learned:
    """Writes with a method and the kit of the base."""

    method: Method
    config: WriteConfig
    kit: Kit | None = None
    """In the place of the file that the settings name."""

    reads: Literal["text", "lesson"] = "text"
    needs_context = False
    trained_offline = True

    def __post_init__(self) -> None:
        usual = LoraConfig()
        lora = self.config.lora
        if lora.variant != PLAIN or (lora.targets, lora.layers) != (usual.targets, usual.layers):
            raise ConfigError(
                f"method {self.name!r} adapts the layers that its kit was trained for, as plain "
                "LoRA; leave targets, layers and variant out."
            )

    @property
    def name(self) -> str:
        """The method's name."""
        return self.method.name

    @property
    def trains(self) -> str:
        """What the method computes."""
        return self.method.trains

    @property
    def leaves(self) -> str:
        """The kind of its states."""
        return self.method.leaves

    @property
    def exports(self) -> bool:
        """Whether its states are adapters."""
        return self.leaves == AdapterState.kind

    @property
    def streams(self) -> bool:
        """As the method says."""
        return self.method.streams

    def write(
        self, model: Model, material: Material, *, seed: int, run: Path | None, watch: Watch
    ) -> tuple[State, Cost]:
        """Read the material's texts with the kit; `seed` decides nothing.

        Raises ConfigError, WrongBase or DataError without a kit for this base, DataError without a
        text. The seconds are those after the kit was loaded.
        """
        watch.step(f"reading with the kit of {self.name}")
        kit = self.kit or kits.find(model, self.name, self.config.kit)
        started = time.monotonic()
        with torch.no_grad():
            pieces = pieces_of(model, [material.knowledge], int(kit.options[PIECE]))
            states = self.method.states(model, kit, pieces)
            state, about = self.method.leave(model, kit, states, self.config.lora.rank)
        seconds = time.monotonic() - started
        about = {"kit": kit.id, **about}
        cost = Cost("written", seconds, "transformers", n_tokens=pieces.n_tokens, about=about)
        return state, cost
