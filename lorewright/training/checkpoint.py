"""The run folder of a write: what its next step needs, and the metrics of its epochs.

checkpoint.safetensors, replaced whole or not at all: tensors named "<job>.<part>.<name>" and, in
the file's metadata, a JSON object with the epochs and the place in the current one.
metrics.jsonl: a line for each epoch that is over, so that whoever reads it can follow the write;
after an interruption the epochs that the checkpoint lacks are done, and stand there, again.
part.json: of epochs that take a while, how far they are and the loss of what they have trained;
there while the write goes on.

An interrupted write continues from the checkpoint and gives the same bytes on the same machine.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as dump_tensors
from torch import Tensor

from lorewright.adapters.adapter import content_id
from lorewright.errors import ConfigError, StorageError
from lorewright.files import digest, jsonl, store
from lorewright.models.model import Model
from lorewright.training.config import FLOAT32, Epoch, Job
from lorewright.training.filenames import CHECKPOINT_FILE, METRICS_FILE, OPEN_FILE, PARTS_FILE
from lorewright.training.state import WriteState

METRICS_SECONDS = 0.25
"""Least time between two versions of the metrics, which pages and terminals follow."""
PARTS_SECONDS = 0.5
"""Least time between two versions of what is known of epochs that are not over."""
CHECKPOINT_SECONDS = 2.0
"""Least time between two checkpoints, which cost more than an epoch of a few examples."""
PLACE = ("groups", "cursor", "reason", "why")
"""Of a `WriteState`, beside its epochs and tensors: plain data."""
LAYOUT = 2
"""Of the file; one of another layout is refused."""


def fingerprint(model: Model, jobs: Sequence[Job]) -> str:
    """A digest of all that decides the bytes of some writes."""
    learned = [[[asdict(e) for e in j.examples], j.config.to_json(), [*j.contexts]] for j in jobs]
    starts = [content_id(job.start) if job.start else None for job in jobs]
    objectives = [job.objective.name if job.objective else None for job in jobs]
    more = [each for each in (starts, objectives) if any(each)]
    return digest([model.digest, model.template_digest, learned, *more])


class Moments(Protocol):
    """What an optimiser remembers of each write."""

    def tensors(self, n: int) -> Mapping[str, Tensor]:
        """Those of the n-th write, by name, to be stored and copied back into."""


class Weights(Protocol):
    """What is trained: a `lora.Stack`, or other tensors."""

    def tensors(self, n: int) -> Mapping[str, Tensor]:
        """Those of the n-th write, by name."""

    def load(self, n: int, tensors: Mapping[str, Tensor]) -> None:
        """Put those of the n-th write back."""


class Checkpoint:
    """The run folder of one call of `write_all`; without a folder nothing is stored."""

    def __init__(self, run: Path | None, mark: str) -> None:
        self.run, self.mark = run, mark
        self.saved_at = self.shown_at = self.parts_at = -math.inf

    def resume(self, states: Sequence[WriteState], weights: Weights, optimizer: Moments) -> None:
        """Put every write where the checkpoint has it.

        Raises ConfigError when the file cannot be read or was saved by a write of another
        fingerprint.
        """
        if self.run is None:
            return
        if (path := self.run / CHECKPOINT_FILE).exists():
            parts, members = self._read(path)
            for n, (state, member) in enumerate(zip(states, members, strict=True)):
                state.epochs = [Epoch(**epoch) for epoch in member["epochs"]]
                for name in PLACE:
                    setattr(state, name, member[name])
                state.arithmetics = member.get("arithmetics", [FLOAT32])  # files of before lack it
                if stored := parts.get(f"{n}.weight"):
                    weights.load(n, stored)
                for part, own in (("optimizer", optimizer.tensors(n)), ("state", state.tensors())):
                    for name, tensor in parts.get(f"{n}.{part}", {}).items():
                        own[name].copy_(tensor)

    def _read(self, path: Path) -> tuple[dict[str, dict[str, Tensor]], list[dict[str, Any]]]:
        """Tensors by "<job>.<part>" and name, and the account of every job."""
        parts: dict[str, dict[str, Tensor]] = {}
        try:
            with safe_open(path, "pt") as file:
                about = json.loads(file.metadata()["about"])
                for key in file.keys():  # noqa: SIM118, no dict
                    job, part, name = key.split(".", 2)
                    parts.setdefault(f"{job}.{part}", {})[name] = file.get_tensor(key)
            layout, mark = about.get("layout"), about["fingerprint"]
        except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(
                f"{path} cannot be resumed from ({error}); delete the run folder to start again."
            ) from error
        if layout != LAYOUT:
            raise ConfigError(
                f"{path} was saved by another version of lorewright; finish the write with that "
                "one, or delete the run folder to start again."
            )
        if mark != self.mark:
            raise ConfigError(
                f"{path.parent} holds an interrupted write of other examples, settings or base; "
                "finish that one with its own settings, or delete the folder."
            )
        return parts, about["members"]

    def save(
        self, states: Sequence[WriteState], weights: Weights, optimizer: Moments, *, force: bool
    ) -> None:
        """Store all that the next step needs, if that was not done a moment ago or is forced.

        Raises StorageError when the disk refuses; the last checkpoint stays.
        """
        if self.run is None:
            return
        now = time.monotonic()
        if now - self.shown_at >= METRICS_SECONDS or force:
            self._show(states)
            self.shown_at = now
        if now - self.saved_at >= CHECKPOINT_SECONDS or force:
            self._save(states, weights, optimizer, CHECKPOINT_FILE)
            self.saved_at = time.monotonic()

    def save_open(self, state: WriteState, weights: Weights, optimizer: Moments) -> None:
        """Store where a write, alone in its stack, would go on that is stopped here."""
        if self.run is not None:
            reason, why = state.reason, state.why
            state.reason = state.why = ""
            state.start_epoch()
            self._save([state], weights, optimizer, OPEN_FILE)
            state.reason, state.why = reason, why

    def _save(
        self, states: Sequence[WriteState], weights: Weights, optimizer: Moments, name: str
    ) -> None:
        tensors: dict[str, Tensor] = {}
        active = [state for state in states if not state.reason]
        for state in states:
            parts: dict[str, Mapping[str, Tensor]] = {}
            if state.adapter:
                parts = {"weight": state.adapter.tensors}
            if not state.reason:
                n = active.index(state)
                parts = {"weight": weights.tensors(n), "optimizer": optimizer.tensors(n)}
                parts["state"] = state.tensors()
            for part, named in parts.items():
                start = f"{state.index}.{part}"
                tensors |= {f"{start}.{k}": t.cpu().contiguous() for k, t in named.items()}
        members = [
            {"epochs": [*map(asdict, state.epochs)]}
            | {name: vars(state)[name] for name in (*PLACE, "arithmetics")}
            for state in states
        ]
        about = {"layout": LAYOUT, "fingerprint": self.mark, "members": members}
        assert self.run is not None
        self._store(dump_tensors(tensors, {"about": json.dumps(about)}), self.run / name)

    def show_parts(self, active: Sequence[WriteState]) -> None:
        """Store how far the epochs are that are not over, if nothing was shown a moment ago."""
        now = time.monotonic()
        shown = now - self.shown_at < METRICS_SECONDS or now - self.parts_at < PARTS_SECONDS
        if self.run is None or shown:
            return
        parts = [(state.index, state.part()) for state in active]
        rows = [asdict(part) | {"job": job} for job, part in parts if part is not None]
        self._store(json.dumps({"parts": rows}).encode(), self.run / PARTS_FILE, durable=False)
        self.parts_at = time.monotonic()

    def _show(self, states: Sequence[WriteState]) -> None:
        """Store the metrics of the epochs so far."""
        assert self.run is not None
        rows = [
            asdict(epoch) | ({"job": state.index} if len(states) > 1 else {})
            for state in states
            for epoch in state.epochs
        ]
        self._store(jsonl(rows), self.run / METRICS_FILE)

    def _store(self, content: bytes, path: Path, *, durable: bool = True) -> None:
        try:
            store(content, path, durable=durable)
        except StorageError as error:
            raise StorageError(
                f"the checkpoint could not be written: {error} Free some space and write again; it "
                "goes on from the last checkpoint."
            ) from error
