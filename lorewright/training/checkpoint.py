"""What an interrupted write needs to go on: one safetensors file, replaced whole or not at all.

Tensors by name, and a JSON object beside them in the file's metadata. This room knows files; it
does not know what the tensors are.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as dump_tensors
from torch import Tensor

from lorewright.errors import ConfigError, StorageError

CHECKPOINT = "checkpoint.safetensors"
METRICS = "metrics.jsonl"


def load(run: Path, mark: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The tensors and the account in `run`; None when nothing was saved there.

    Raises ConfigError when the file cannot be read or was saved under another `mark`.
    """
    path = run / CHECKPOINT
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            about = json.loads(file.metadata()["about"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118, no dict
        found = about["fingerprint"]
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path} cannot be resumed from ({error}); delete the run folder to start again."
        ) from error
    if found != mark:
        raise ConfigError(
            f"{run} holds an interrupted write of other examples, settings or base; "
            "finish that one with its own settings, or delete the folder."
        )
    return tensors, about


def save(run: Path, mark: str, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Replace the checkpoint. Raises StorageError when the disk refuses; the last one stays."""
    part = run / (CHECKPOINT + ".part")
    text = json.dumps({"fingerprint": mark, **about})
    try:
        run.mkdir(parents=True, exist_ok=True)
        # Not safetensors' save_file: its error for a full disk is no OSError.
        part.write_bytes(dump_tensors(dict(tensors), {"about": text}))
        os.replace(part, run / CHECKPOINT)
    except OSError as error:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise _refused(run, error) from error


def log(run: Path, rows: Sequence[Mapping[str, Any]], *, append: bool) -> None:
    """Write rows to metrics.jsonl, after those there are or instead of them."""
    try:
        run.mkdir(parents=True, exist_ok=True)
        with open(run / METRICS, "a" if append else "w") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    except OSError as error:
        raise _refused(run, error) from error


def _refused(run: Path, error: OSError) -> StorageError:
    return StorageError(
        f"the checkpoint could not be written to {run}: {error}; free some space and write again, "
        "it goes on from the last one."
    )
