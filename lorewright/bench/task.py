"""A benchmark as a whole: settings to jobs, jobs to records, records to a summary, in one folder.

    OUT/config.json       which benchmark, with which settings, on which base, with which versions
    OUT/records/*.json    one file a job; what is there is not done again
    OUT/summary.json      all that tables, figures and reports say, worked out from the records

This room knows sweeps and folders. It knows nothing of what is measured.
"""

from __future__ import annotations

import platform
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lorewright import __version__
from lorewright.bench import scale
from lorewright.errors import DataError
from lorewright.files import read_object, save_json
from lorewright.models.model import Model

CONFIG_FILE = "config.json"
SUMMARY_FILE = "summary.json"
RECORDS = "records"

Done = Sequence[tuple[dict[str, Any], dict[str, Any]]]
"""Jobs with their records."""


@dataclass(frozen=True)
class Task:
    """A benchmark; its settings are a frozen dataclass with a field ``model``."""

    name: str
    jobs: Callable[[Any, str], list[dict[str, Any]]]
    """(settings, the base's digest) -> jobs, plain JSON."""
    do: scale.Do
    summarise: Callable[[Any, Done], dict[str, Any]]
    """(settings, jobs with records) -> plain JSON."""
    complete: Callable[[Any, Done, Path], Done] = lambda settings, done, out: done
    """(settings, jobs with records, folder) -> the same, with what somebody else says of them."""


def run(
    task: Task,
    settings: Any,
    out: Path | str,
    *,
    on: str = "here",
    progress: Callable[[scale.Step], None] = lambda step: None,
) -> dict[str, Any]:
    """Do what is left of a benchmark in a folder, and return its summary, which is kept there.

    Raises DataError when the folder holds another benchmark, and as `scale.run`.
    """
    # Jobs load the base themselves; kept here as well, it would be in memory twice.
    out, base_digest = Path(out), Model.load(settings.model).digest
    about = {
        "bench": task.name,
        "config": asdict(settings),
        "base": {"id": settings.model, "digest": base_digest},
        "command": shlex.join(["lore", *sys.argv[1:]]),
        "versions": versions(),
    }
    jobs = task.jobs(settings, base_digest)  # refuses data that cannot be read; nothing is begun
    _begin(out, about)
    records = scale.run(task.do, jobs, out / RECORDS, on=on, progress=progress)
    done = task.complete(settings, list(zip(jobs, records, strict=True)), out)
    summary = {**about, "n_jobs": len(jobs), "seconds": _seconds(out, task, jobs)}
    summary |= task.summarise(settings, done)
    save_json(summary, out / SUMMARY_FILE)
    return summary


def _begin(out: Path, about: Mapping[str, Any]) -> None:
    path = out / CONFIG_FILE
    if path.exists():
        before = read_object(path, "give another folder").get("bench")
        if before != about["bench"]:
            raise DataError(
                f"{out} holds a sweep of {before!r}; give {about['bench']} another folder."
            )
    elif out.is_dir() and any(out.iterdir()):
        raise DataError(f"{out} holds other files and no {CONFIG_FILE}; give an empty folder.")
    save_json(about, path)


def _seconds(out: Path, task: Task, jobs: Sequence[Mapping[str, Any]]) -> float:
    """Seconds that the jobs took, one added to the other, wherever they ran."""
    paths = {scale.record_path(out / RECORDS, task.do, job) for job in jobs}
    about = [read_object(path, "run the sweep again").get("run", {}) for path in paths]
    return round(sum(float(each.get("seconds", 0.0)) for each in about), 1)


def versions() -> dict[str, str]:
    """Return the versions that a result may depend on."""
    packages = {name: version(name) for name in ("torch", "transformers", "numpy")}
    machine = {"python": platform.python_version(), "machine": platform.machine()}
    return {"lorewright": __version__, **packages, **machine}
