"""The one way into a memory folder: nothing has a name before it was proved on disk.

    save in the run -> read back, compare -> prove its effect -> verdict
    -> store by content id, the card last -> source -> name -> the run's report

An interruption at any point leaves every name as it was; the same call goes on from there.
"""

from __future__ import annotations

import platform
import shutil
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol, TypeVar

from lorewright import __version__
from lorewright.errors import AdapterError
from lorewright.files import save_json
from lorewright.knowledge.data import Knowledge
from lorewright.knowledge.lesson import Lesson
from lorewright.knowledge.negatives import unrelated_questions
from lorewright.memory.folder import REPORT_FILE
from lorewright.memory.opened import OpenFolder
from lorewright.writers.methods import load_state
from lorewright.writers.tensors import KIND
from lorewright.writers.writer import State, prove

PACKAGES = ("torch", "transformers", "safetensors")
REPLY = "I do not know."
"""What is scored where no lesson says: a few words, lest an adapter of values alone not show."""


class Result(Protocol):
    """What a verb returns."""

    def to_json(self) -> dict[str, Any]:
        """Plain data for `--json` and the run's report."""


R = TypeVar("R", bound=Result)
Judge = Callable[[State, float], tuple[R, Mapping[str, Any]]]
"""A state as it came back from disk, and how far it moves a logit, to the verb's result and what
its card says besides name, source, versions and report."""


def commit(
    memory: OpenFolder,
    state: State,
    lesson: Lesson,
    judge: Judge[R],
    *,
    name: str,
    run: Path,
    knowledge: Knowledge,
    parents: Sequence[Mapping[str, str]] = (),
) -> R:
    """Prove a state, take the verdict and let a name stand for it; the caller holds the lock.

    Raises AdapterError for what came back changed from the disk, NoEffect for what changes
    nothing, StorageError; then no name has changed.
    """
    stored = _read_back(state, run / "adapter")
    moved = prove(stored, memory.model, *_row(lesson))
    result, card = judge(stored, moved)
    source = "" if knowledge == Knowledge() else knowledge.digest()
    versions = {"lorewright": __version__, "python": platform.python_version()}
    versions |= {package: version(package) for package in PACKAGES}
    report = {k: v for k, v in result.to_json().items() if k not in ("outcomes", "folder")}
    common = {"name": name, "source": source, "versions": versions, "report": report}
    merged_from = {"parents": list(parents)} if parents else {}
    full = {**common, **merged_from, **card, KIND: stored.kind}
    full.pop("adapter", None)  # what the state itself says of its form
    place = memory.folder.state_path(stored.id)
    _set_aside_damaged(place)
    stored.save(place, full)
    load_state(place)
    memory.folder.store_source(knowledge)
    memory.folder.enter(name, stored.id, source=source, run=run.name, parents=parents)
    save_json(result.to_json(), run / REPORT_FILE)
    return result


def _read_back(state: State, place: Path) -> State:
    """The state as the disk has it, the same as in memory."""
    shutil.rmtree(place, ignore_errors=True)
    state.save(place, {KIND: state.kind})
    stored = load_state(place)
    shutil.rmtree(place, ignore_errors=True)
    if stored.id != state.id:
        raise AdapterError(
            f"a state with content {state.id} came back from disk with content {stored.id}; check "
            "the disk."
        )
    return stored


def _row(lesson: Lesson) -> tuple[str, str]:
    """A question and what is scored after it."""
    for example in lesson.examples[:1]:
        return example.prompt, example.completion
    return unrelated_questions()[0], REPLY


def _set_aside_damaged(place: Path) -> None:
    """Rename a state's folder that does not hold its content: this write restores it."""
    if not place.exists():
        return
    try:
        whole = load_state(place).id == place.name
    except AdapterError:
        whole = False
    if not whole:
        names = (f"{place.name}.damaged-{i}" for i in range(1, 1000))
        place.rename(next(path for path in map(place.with_name, names) if not path.exists()))
