"""The run folder of a write: what its next step needs, and the metrics of its epochs.

checkpoint.safetensors, replaced whole or not at all: tensors named "<job>.<part>.<name>" and, in
the file's metadata, a JSON object with the epochs and the place in the current one.
metrics.jsonl: a line for each epoch.

An interrupted write continues from the checkpoint and gives the same bytes on the same machine.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as dump_tensors
from torch import Tensor

from lorewright.adapters.adapter import content_id
from lorewright.adapters.lora import Stack
from lorewright.errors import ConfigError, StorageError
from lorewright.files import digest, store
from lorewright.models.model import Model
from lorewright.training.config import Diverged, Epoch, Job, Written
from lorewright.training.optimisers import Optimizer
from lorewright.training.state import WriteState

CHECKPOINT = "checkpoint.safetensors"
METRICS = "metrics.jsonl"
CHECKPOINT_SECONDS = 2.0
"""Least time between two checkpoints, which cost more than an epoch of a few examples."""
LAYOUT = 2
"""Of the file; one of another layout is refused."""


def fingerprint(model: Model, jobs: Sequence[Job]) -> str:
    """A digest of all that decides the bytes of some writes."""
    given = [[[asdict(e) for e in j.examples], j.config.to_json(), [*j.contexts]] for j in jobs]
    starts = [content_id(job.start) if job.start else None for job in jobs]
    objectives = [job.objective.name if job.objective else None for job in jobs]
    more = [each for each in (starts, objectives) if any(each)]
    return digest([model.digest, model.template_digest, given, *more])


class Checkpoint:
    """The run folder of one call of `write_all`; without a folder nothing is stored."""

    def __init__(self, run: Path | None, mark: str) -> None:
        self.run, self.mark, self.saved_at = run, mark, -math.inf

    def resume(
        self, states: Sequence[WriteState], stack: Stack, optimizer: Optimizer
    ) -> dict[int, tuple[str, str]]:
        """Put every write where the checkpoint has it; reason and sentence of those that ended.

        Metrics begin anew with the epochs that the checkpoint has. Raises ConfigError when the file
        cannot be read, or was saved by a write of another fingerprint.
        """
        ended: dict[int, tuple[str, str]] = {}
        if self.run is None:
            return ended
        path = self.run / CHECKPOINT
        if path.exists():
            tensors, members = self._read(path)
            for n, (state, entry) in enumerate(zip(states, members, strict=True)):
                state.epochs = [Epoch(**row) for row in entry["epochs"]]
                if "reason" in entry:
                    ended[n] = entry["reason"], entry["why"]
                if weights := _part(tensors, f"{n}.weight."):
                    stack.load(n, weights)
                if "groups" in entry:
                    state.load(_part(tensors, f"{n}.state."))
                    optimizer.load(n, _part(tensors, f"{n}.optimizer."))
                    state.groups, state.cursor = entry["groups"], entry["cursor"]
        _store(b"", self.run / METRICS)
        for state in states:
            self.log(state.index, state.epochs, len(states))
        return ended

    def _read(self, path: Path) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
        try:
            with safe_open(path, "pt") as file:
                about = json.loads(file.metadata()["about"])
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
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
        return tensors, about["members"]

    def save(
        self,
        active: Sequence[WriteState],
        results: Mapping[int, Written | Diverged],
        stack: Stack,
        optimizer: Optimizer,
        *,
        force: bool,
    ) -> None:
        """Store all that the next step needs, unless that was done a moment ago or is not forced.

        Raises StorageError when the disk refuses; the last checkpoint stays.
        """
        recent = time.monotonic() - self.saved_at < CHECKPOINT_SECONDS
        if self.run is None or (recent and not force):
            return
        tensors: dict[str, Tensor] = {}
        members: dict[int, dict[str, Any]] = {}
        for n, state in enumerate(active):
            parts = {
                "weight": stack.tensors(n),
                "optimizer": optimizer.tensors(n),
                "state": state.tensors(),
            }
            for part, named in parts.items():
                tensors |= {f"{state.index}.{part}.{k}": t.cpu() for k, t in named.items()}
            members[state.index] = {
                "epochs": [asdict(epoch) for epoch in state.epochs],
                "groups": state.groups,
                "cursor": state.cursor,
            }
        for i, result in results.items():
            members[i] = {
                "epochs": [asdict(epoch) for epoch in result.epochs],
                "reason": result.reason,
                "why": result.why if isinstance(result, Diverged) else "",
            }
            if isinstance(result, Written):
                tensors |= {f"{i}.weight.{k}": t for k, t in result.adapter.tensors.items()}
        about = {
            "layout": LAYOUT,
            "fingerprint": self.mark,
            "members": [members[i] for i in sorted(members)],
        }
        whole = {key: tensor.contiguous() for key, tensor in tensors.items()}
        _store(dump_tensors(whole, {"about": json.dumps(about)}), self.run / CHECKPOINT)
        self.saved_at = time.monotonic()

    def log(self, job: int, epochs: Sequence[Epoch], n_jobs: int) -> None:
        """Add epochs of a job to metrics.jsonl; its number too when there are several."""
        if self.run is None:
            return
        tag = {"job": job} if n_jobs > 1 else {}
        try:
            with open(self.run / METRICS, "a") as file:
                file.writelines(json.dumps(asdict(epoch) | tag) + "\n" for epoch in epochs)
        except OSError as error:
            raise _refused(self.run, error) from error


def _part(tensors: Mapping[str, Tensor], start: str) -> dict[str, Tensor]:
    return {k.removeprefix(start): t for k, t in tensors.items() if k.startswith(start)}


def _store(content: bytes, path: Path) -> None:
    try:
        store(content, path)
    except StorageError as error:
        raise _refused(path.parent, error) from error


def _refused(run: Path, error: Exception) -> StorageError:
    return StorageError(
        f"the checkpoint could not be written to {run}: {error}; free some space and write again, "
        "it goes on from the last one."
    )
