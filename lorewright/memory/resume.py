"""The verb `resume`: a write that was cut off or stopped goes on, from what its run holds.

A write leaves in its run, until it is over, what it was called with. One that was cut off goes on
from its checkpoint under its own run. One that was stopped is a memory already, which stays as it
is until the rest is written: it goes on in a new run. Both end in the bytes of a write that nothing
came between.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lorewright.adapters.config import LoraConfig
from lorewright.errors import ConfigError, DataError, UnknownMemory
from lorewright.files import load_jsonl, read_object
from lorewright.knowledge.data import Knowledge, Probe
from lorewright.knowledge.lesson import LessonConfig
from lorewright.memory.folder import (
    AGAIN_FILE,
    CONFIG_FILE,
    LESSON_FILE,
    REPORT_FILE,
    Folder,
    knowledge_of,
)
from lorewright.memory.opened import OpenFolder
from lorewright.memory.stop import resumable
from lorewright.memory.write import PLAN_FILE, RATES_FILE, Outcome, write
from lorewright.training.config import WriteConfig
from lorewright.training.filenames import CHECKPOINT_FILE, METRICS_FILE, OPEN_FILE
from lorewright.training.watch import Watch

REMEDY = "write the same text again"
COPIED = (LESSON_FILE, PLAN_FILE, RATES_FILE, METRICS_FILE, AGAIN_FILE)
"""What a stopped run hands on to the one that goes on."""


def resume(memory: OpenFolder, run: str = "", *, watch: Watch | None = None) -> Outcome:
    """Go on with a write that was cut off or stopped, by default the latest, as it was called.

    Raises UnknownMemory where there is none to go on with, ConfigError where a teacher is needed
    that only the command knows, DataError for a run that is damaged; otherwise as `write`.
    """
    path = _run_of(memory.folder, run)
    about = read_object(path / CONFIG_FILE, REMEDY)
    again, knowledge = _called_with(path)
    if again["taught"] and not (path / LESSON_FILE).exists():
        raise ConfigError(
            f"{path.name} was to be taught by a teacher that is not stored; {REMEDY}, with it."
        )
    if (path / REPORT_FILE).exists():
        with memory.writing():
            _hand_on(path, memory.folder.new_run(str(about["name"]), about))
    return write(
        memory,
        knowledge,
        name=str(about["name"]),
        overwrite=bool(again["overwrite"]),
        method=str(again["method"]),
        config=_config(about["write"]),
        lesson=LessonConfig(**{key: _tuple(value) for key, value in about["lesson"].items()}),
        teacher=_gone if again["taught"] else None,
        probes=[Probe(**row) for row in again["probes"]],
        metric=str(about["metric"]),
        find_rate=bool(again["find_rate"]),
        find_rank=bool(again["find_rank"]),
        preset=str(again["preset"]),
        watch=watch,
    )


def _run_of(folder: Folder, run: str) -> Path:
    """The run by its name, or the latest that can go on."""
    listed = [path.name for path in resumable(folder)]
    if not listed or run not in ("", *listed):
        which = f"go on with {run!r}" if run else "go on with"
        has = f"it has: {', '.join(listed)}" if listed else REMEDY
        raise UnknownMemory(f"{folder.path} has no write to {which}; {has}.")
    return folder.run_path(run or listed[-1])


def _called_with(run: Path) -> tuple[Mapping[str, Any], Knowledge]:
    """What the write of a run was called with."""
    path = run / AGAIN_FILE
    try:
        again, *rows = load_jsonl(path)
        return again, knowledge_of(rows)
    except (TypeError, ValueError) as error:
        raise DataError(f"{path} is damaged ({error}); {REMEDY}.") from error


def _config(plain: Mapping[str, Any]) -> WriteConfig:
    """The settings of a write from plain data as `WriteConfig.to_json` has it."""
    lora = {key: _tuple(value) for key, value in plain["lora"].items()}
    return WriteConfig(**{**plain, "lora": LoraConfig(**lora)})


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _hand_on(stopped: Path, run: Path) -> None:
    """Give a new run what a stopped one holds, which is then no more to be gone on with."""
    for name in COPIED:
        if (stopped / name).exists():
            shutil.copyfile(stopped / name, run / name)
    shutil.copyfile(stopped / OPEN_FILE, run / CHECKPOINT_FILE)
    for name in (AGAIN_FILE, OPEN_FILE):
        (stopped / name).unlink()


def _gone(prompts: Any) -> Any:
    """Stand for a teacher whose lesson is stored."""
    raise AssertionError("the lesson is stored")
