"""The verb `stop`: a write that goes on, in this process or another, ends and keeps what it has.

Loads no model: the request is a file in the run, which the write looks for after every epoch.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from lorewright.errors import ConfigError, UnknownMemory
from lorewright.files import is_locked, store
from lorewright.memory.folder import AGAIN_FILE, CONFIG_FILE, REPORT_FILE, Folder
from lorewright.training.filenames import OPEN_FILE, STOP_FILE


def stop(folder: Folder) -> str:
    """Have the write that goes on end after its epoch; the name of its run.

    Raises UnknownMemory where there is no folder, ConfigError where nothing is being written,
    StorageError.
    """
    if not folder.path.is_dir():
        raise UnknownMemory(f"there is no folder {folder.path}, so nothing is written in it.")
    run = current_run(folder)
    if run is None:
        raise ConfigError(
            f"nothing is being written in {folder.path}, so there is nothing to stop."
        )
    store(b"", run / STOP_FILE)
    return run.name


def current_run(folder: Folder) -> Path | None:
    """The run that a process is writing at this moment; None where none is."""
    open_runs = [path for path in runs_of(folder) if not (path / REPORT_FILE).exists()]
    if not open_runs or not is_locked(folder.path):
        return None
    # one that was resumed is older than others that were left, and its files are newer
    return max(open_runs, key=_changed)


def _changed(run: Path) -> float:
    """When a file of a run changed last; those that are replaced meanwhile are passed over."""
    times = [0.0]
    with suppress(OSError):
        for path in run.iterdir():
            with suppress(FileNotFoundError):
                times.append(path.stat().st_mtime)
    return max(times)


def resumable(folder: Folder) -> list[Path]:
    """The runs that can go on, oldest first: cut off, or stopped; none that is being written."""
    current = current_run(folder)
    return [run for run in runs_of(folder) if run != current and can_go_on(run)]


def can_go_on(run: Path) -> bool:
    """Whether a run that nobody writes holds what it takes to go on with it."""
    is_open = not (run / REPORT_FILE).exists() or (run / OPEN_FILE).is_file()
    return is_open and (run / AGAIN_FILE).is_file()


def runs_of(folder: Folder) -> list[Path]:
    """The runs of writes, oldest first."""
    return sorted(path.parent for path in folder.path.glob(f"runs/*/{CONFIG_FILE}"))
