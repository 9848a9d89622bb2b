"""What every way of writing knowledge into a model has in common.

A `Writer` reads `Material` and leaves a `State`, which can be stored and switched on and off around
a frozen model, and a `Cost`. The built-in ones are in `methods`.

This module knows protocols and the proof that a state does something. It knows nothing of lessons'
probes, folders of memories or verdicts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import torch

from lorewright.errors import ModelError, NoEffect
from lorewright.knowledge.data import Example, Knowledge
from lorewright.models.model import Model
from lorewright.training.watch import Watch


@dataclass(frozen=True)
class Material:
    """What a writer may read: a source and, unless it reads text only, the lesson's examples."""

    knowledge: Knowledge
    examples: Sequence[Example] = ()
    rehearsal: Sequence[Example] = ()
    """What the base knows already, for writers that train: to be unchanged, not learnt."""
    held_out: Sequence[Example] = ()
    """Questions on the knowledge that are measured on the way and never trained."""


@dataclass(frozen=True)
class Cost:
    """What a write took and why it ended."""

    reason: str
    """For gradient training a name of `stopping.STOPS`; `written` for what is computed at once."""
    seconds: float
    engine: str
    """What the passes ran in, as `compiled code (cc)`."""
    n_examples: int = 0
    n_epochs: int = 0
    n_tokens: int = 0
    """Tokens of the material, each counted once."""
    last: Mapping[str, Any] = field(default_factory=dict)
    """The last record of the training, for the card; empty when nothing was trained."""
    about: Mapping[str, Any] = field(default_factory=dict)
    """What else the card says of it, as how much of a change its rank holds."""


class State(Protocol):
    """What a writer leaves of one source: an adapter, a prefix, a module's weights."""

    @property
    def kind(self) -> str:
        """A key of `methods.STATES`."""

    @property
    def id(self) -> str:
        """16 hex digits of SHA-256 over the content; the card does not count."""

    @property
    def base_digest(self) -> str:
        """Digest of the base's weights that it was written on."""

    @property
    def size_bytes(self) -> int:
        """Bytes of its tensors."""

    def save(self, folder: Path, card: Mapping[str, Any]) -> str:
        """Store it with its card, card.json last, in a folder that `STATES[kind]` reads.

        Returns its id. All or nothing. Raises StorageError when the disk refuses.
        """

    def check(self, model: Model) -> None:
        """Raise AdapterError or WrongBase unless it fits the model, NoEffect if it is zero."""

    def on(self, model: Model) -> AbstractContextManager[object]:
        """Switch it on for every pass of the model in a block; afterwards the base is as before."""


class Writer(Protocol):
    """A way to put knowledge into a model, with its settings."""

    @property
    def name(self) -> str:
        """A key of `methods.WRITERS`."""

    @property
    def trains(self) -> str:
        """What it changes or computes, in a few words."""

    @property
    def leaves(self) -> str:
        """The kind of its states: a key of `methods.STATES`."""

    @property
    def reads(self) -> Literal["text", "lesson"]:
        """`text`: the source alone; `lesson`: questions and answers made from it as well."""

    @property
    def needs_context(self) -> bool:
        """Whether the source must still be in the prompt when a question is asked: no memory."""

    @property
    def exports(self) -> bool:
        """Whether its state is a LoRA adapter, which merges, exports and serves elsewhere."""

    @property
    def streams(self) -> bool:
        """Whether a state can take up another source without a new write."""

    @property
    def trained_offline(self) -> bool:
        """Whether something was trained for the base beforehand."""

    def write(
        self, model: Model, material: Material, *, seed: int, run: Path | None, watch: Watch
    ) -> tuple[State, Cost]:
        """Read the material and return what is left of it; the model is as before.

        With a `run` folder an interrupted write goes on where it was.
        """


def prove(state: State, model: Model, prompt: str, completion: str) -> float:
    """The largest change of a logit of the completion when a state is switched on.

    Raises what `State.check` does, NoEffect when no logit changes, ModelError when the base gives
    other logits after the state was switched off.
    """
    state.check(model)
    batch = model.batch([model.render(prompt, completion)])
    with torch.no_grad():
        before = model.completion_logits(batch)
        with state.on(model):
            during = model.completion_logits(batch)
        after = model.completion_logits(batch)
    if not torch.equal(before, after):
        raise ModelError(
            f"a state of kind {state.kind!r} changed the base for good, by up to "
            f"{(after - before).abs().max().item():.2g} in a logit; its `on` must undo itself."
        )
    moved = (during - before).abs().max().item()
    if not moved > 0:
        raise NoEffect(
            f"a state of kind {state.kind!r} was switched on and no logit changed ({moved}); write "
            "it again, for longer or at a higher rate."
        )
    return moved
