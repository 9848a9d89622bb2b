"""Many jobs at once: in this process, in local processes, or on a Ray cluster; the same records.

A task is a module-level function from one job to one record, both plain JSON. What it returns lies
in ``<records>/<digest of task and job>.json``, written whole or not at all, by the process that
runs the sweep. A job whose record is there is not done again, so an interrupted sweep goes on where
it stopped, also somewhere else. A worker that dies is replaced and its job tried again; a task that
raises is not, since it would raise again.

This room knows processes and files. It knows nothing of models, or of what the jobs are about.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import import_module
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NamedTuple

from lorewright import __version__
from lorewright.errors import ConfigError, DataError, JobFailed
from lorewright.files import digest, locked, read_object, save_json

Task = Callable[[dict[str, Any]], dict[str, Any]]
"""One job to one record, both plain JSON; a function of a module, so that others can import it."""

RETRIES = 2
THREADS = "OMP_NUM_THREADS"
"""Threads a worker computes with: this variable where it is set, else its share of the cores."""
AHEAD = 4
"""Jobs a core that a cluster is given at a time: enough to keep it busy, few enough for a queue."""
SHOWN_JOB = 300  # characters of a job in a message


class Step(NamedTuple):
    """How far a sweep is."""

    n_done: int
    n_jobs: int
    n_found: int
    """Of those done: records that were there before."""


@dataclass(frozen=True)
class Attempt:
    """What came of one job: its record, or why there is none."""

    index: int
    record: dict[str, Any] | None
    why: str = ""
    about: Mapping[str, Any] | None = None
    """Where and how long it ran; kept beside the record, never part of it."""


Backend = Callable[[str, Sequence[tuple[int, dict[str, Any]]], int], Iterator[Attempt]]
"""(task's name, jobs with their index, retries) -> attempts, one a job, in any order."""


def run(
    task: Task,
    jobs: Sequence[Mapping[str, Any]],
    records: Path | str,
    *,
    on: str = "here",
    retries: int = RETRIES,
    progress: Callable[[Step], None] = lambda step: None,
) -> list[dict[str, Any]]:
    """Do every job that has no record yet, and return all records in the order of the jobs.

    ``on`` is "here", "local:K" for K processes, "ray" for a cluster of this machine that is started
    and ended here, or "ray://host:port" for one that runs. Equal jobs are done once.

    Raises JobFailed, when all others are done, for tasks that raised and for jobs whose worker died
    more often than ``retries``; ConfigError for another ``on`` or a task that cannot be imported,
    Locked when another process sweeps into the same folder, DataError for a damaged record,
    StorageError when the disk refuses.
    """
    records, name = Path(records), _name(task)
    backend = _backend(on)
    if retries < 0:
        raise ConfigError(f"retries is {retries}; give 0 or more.")
    paths = [record_path(records, task, job) for job in jobs]
    found: dict[Path, dict[str, Any]] = {}
    with locked(records, work="sweeping into"):
        todo: dict[Path, int] = {}
        for index, path in enumerate(paths):
            if path not in found and path.exists():
                found[path] = _stored(path, name)
            elif path not in found:
                todo.setdefault(path, index)
        n_jobs, n_found = len(found) + len(todo), len(found)
        progress(Step(n_found, n_jobs, n_found))
        failures = []
        for attempt in backend(name, [(i, dict(jobs[i])) for i in todo.values()], retries):
            if attempt.record is None:
                failures.append(attempt)
                continue
            path = paths[attempt.index]
            content = {"task": name, "job": dict(jobs[attempt.index]), "record": attempt.record}
            save_json({**content, "run": dict(attempt.about or {})}, path)
            found[path] = attempt.record
            progress(Step(len(found), n_jobs, n_found))
    if failures:
        raise JobFailed(_failures(failures, jobs, n_jobs))
    return [found[path] for path in paths]


def record_path(records: Path | str, task: Task, job: Mapping[str, Any]) -> Path:
    """Return where the record of a job lies, whether it is there or not."""
    return Path(records) / f"{digest([_name(task), dict(job)])[:32]}.json"


def stored(records: Path | str) -> list[dict[str, Any]]:
    """Return what lies in a folder of records, sorted: task, job, record and run of each.

    Raises DataError for a folder without records, or a damaged one.
    """
    remedy = "delete it, and its job is done again"
    found = [read_object(path, remedy) for path in sorted(Path(records).glob("*.json"))]
    if not found:
        raise DataError(f"{records} holds no records; run the sweep first.")
    wrong = next((entry for entry in found if not {"task", "job", "record"} <= entry.keys()), None)
    if wrong is not None:
        raise DataError(f"{records} holds a file that is no record ({list(wrong)}); {remedy}.")
    return found


def _failures(failures: Sequence[Attempt], jobs: Sequence[Mapping[str, Any]], n_jobs: int) -> str:
    first = failures[0]
    shown = str(dict(jobs[first.index]))[:SHOWN_JOB]
    return (
        f"{len(failures)} of {n_jobs} jobs failed; the records of the others are kept. The first: "
        f"{shown}: {first.why} Repair the cause and run the same sweep again."
    )


def _stored(path: Path, name: str) -> dict[str, Any]:
    """The record in a file."""
    entry = read_object(path, "delete it, and its job is done again")
    if entry.get("task") != name or not isinstance(entry.get("record"), dict):
        raise DataError(f"{path} is no record of {name}; delete it, and its job is done again.")
    record: dict[str, Any] = entry["record"]
    return record


def _name(task: Task) -> str:
    """The task as ``module:function``. Raises ConfigError where it could not be imported."""
    name = f"{task.__module__}:{task.__qualname__}"
    if "<" in name or task.__module__ == "__main__":
        raise ConfigError(f"the task {name} cannot be imported; define it in a module.")
    return name


def _attempt(name: str, index: int, job: dict[str, Any]) -> Attempt:
    """Do a job in this process; an exception becomes the reason why there is no record."""
    started = time.monotonic()
    module, _, function = name.partition(":")
    try:
        made = getattr(import_module(module), function)(job)
        record = json.loads(json.dumps(made, allow_nan=False))  # as it will be read again
    except Exception as error:  # noqa: BLE001 - reported with its job, after the others are done
        return Attempt(index, None, f"{type(error).__name__}: {error}")
    about = {
        "seconds": round(time.monotonic() - started, 3),
        "host": socket.gethostname(),
        "threads": os.environ.get(THREADS),
        "python": platform.python_version(),
        "lorewright": __version__,
    }
    return Attempt(index, record, about=about)


# -- where the jobs run --------------------------------------------------------------------------


def _backend(on: str) -> Backend:
    kind, _, rest = on.partition(":")
    if on == "here":
        return _here
    if kind == "local" and rest.isascii() and rest.isdecimal() and int(rest) > 0:
        return _processes(int(rest))
    if on == "ray" or (kind == "ray" and rest.startswith("//") and len(rest) > 2):
        return _ray(None if on == "ray" else on)
    raise ConfigError(
        f"asked to run on {on!r}; choose here, local:K (K processes), ray (a cluster of this "
        "machine) or ray://host:port."
    )


def _here(name: str, jobs: Sequence[tuple[int, dict[str, Any]]], retries: int) -> Iterator[Attempt]:
    """One after the other in this process, which there is nobody to replace."""
    for index, job in jobs:
        yield _attempt(name, index, job)


def _threads(n_workers: int) -> str:
    n_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return os.environ.get(THREADS) or str(max(1, (n_cores or 1) // n_workers))


class _Worker:
    """A process that does one job at a time."""

    def __init__(self, threads: str) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs,), daemon=True)
        before = os.environ.get(THREADS)
        os.environ[THREADS] = threads  # read once, when the new process first imports torch
        try:
            self.process.start()
        finally:
            os.environ.pop(THREADS)
            if before is not None:
                os.environ[THREADS] = before
        theirs.close()  # so that the end of the process is the end of the pipe
        self.index: int | None = None

    def give(self, name: str, index: int, job: dict[str, Any]) -> None:
        """Hand over a job; a process that has died meanwhile shows when it is waited for."""
        self.index = index
        try:
            self.pipe.send((name, index, job))
        except OSError:
            self.process.join()

    def take(self) -> Attempt | None:
        """What came of the job; None: the process died."""
        try:
            found: Attempt = self.pipe.recv()
        except (EOFError, OSError):
            return None
        self.index = None
        return found

    def end(self) -> str:
        """Stop the process; how it ended."""
        self.pipe.close()
        if self.index is not None:
            self.process.terminate()
        self.process.join()
        return f"exit code {self.process.exitcode}"


def _serve(pipe: Connection) -> None:
    """A worker's life: jobs from the pipe, attempts into it, until the sweep closes it."""
    try:
        while True:
            name, index, job = pipe.recv()
            pipe.send(_attempt(name, index, job))
    except (EOFError, OSError, KeyboardInterrupt):
        return


def _processes(n_workers: int) -> Backend:
    """Processes of this machine; each is given its next job when it is done with the last."""

    def backend(
        name: str, jobs: Sequence[tuple[int, dict[str, Any]]], retries: int
    ) -> Iterator[Attempt]:
        waiting, deaths, work = list(reversed(jobs)), dict[int, int](), dict(jobs)
        threads = _threads(n_workers)
        with ExitStack() as ending:
            workers = [_Worker(threads) for _ in range(min(n_workers, len(jobs)))]
            ending.callback(lambda: [worker.end() for worker in workers])
            for worker in workers:
                worker.give(name, *waiting.pop())
            while any(worker.index is not None for worker in workers):
                pipes = {worker.pipe: worker for worker in workers if worker.index is not None}
                for pipe in wait(list(pipes)):
                    worker = pipes[pipe]  # type: ignore[index]
                    index = worker.index
                    attempt = worker.take()
                    if attempt is None and index is not None:
                        how = worker.end()
                        workers[workers.index(worker)] = worker = _Worker(threads)
                        deaths[index] = deaths.get(index, 0) + 1
                        if deaths[index] <= retries:
                            worker.give(name, index, work[index])
                            continue
                        attempt = Attempt(index, None, _died(deaths[index], how))
                    if waiting:
                        worker.give(name, *waiting.pop())
                    if attempt is not None:
                        yield attempt

    return backend


def _died(n_times: int, how: str) -> str:
    return f"its worker died {n_times} times ({how}); perhaps there is too little memory."


def _ray(address: str | None) -> Backend:
    """Ray tasks, one a job, on a GPU each where the cluster has any; Ray replaces the dead."""

    def backend(
        name: str, jobs: Sequence[tuple[int, dict[str, Any]]], retries: int
    ) -> Iterator[Attempt]:
        if not jobs:
            return
        try:
            import ray
        except ImportError as error:
            raise ConfigError(
                "ray is not installed; run `pip install lorewright[ray]`, or sweep on local:K."
            ) from error
        with _cluster(ray, address):
            on_gpu = 1 if ray.cluster_resources().get("GPU") else 0
            job_on = ray.remote(_attempt).options(
                max_retries=retries, num_cpus=1, num_gpus=on_gpu, scheduling_strategy="SPREAD"
            )
            waiting, going = list(reversed(jobs)), dict[Any, int]()
            most = AHEAD * max(1, int(ray.cluster_resources().get("CPU", 1)))
            while waiting or going:
                while waiting and len(going) < most:
                    index, job = waiting.pop()
                    going[job_on.remote(name, index, job)] = index
                (done,), _ = ray.wait(list(going), num_returns=1)
                index = going.pop(done)
                try:
                    yield ray.get(done)
                except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError) as end:
                    yield Attempt(index, None, _died(retries + 1, type(end).__name__))
                except ray.exceptions.RayError as error:  # not even started: no lorewright there, …
                    first = str(error).strip().splitlines()[-1:]
                    yield Attempt(index, None, f"{type(error).__name__}: {' '.join(first)}")

    return backend


@contextmanager
def _cluster(ray: Any, address: str | None) -> Iterator[None]:
    """Connected to a cluster, or to one of this machine that ends with the block."""
    if ray.is_initialized():
        yield  # the caller's own, to keep
        return
    n_cores = int(os.cpu_count() or 1)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anybody
    variables = {THREADS: _threads(n_cores), "TOKENIZERS_PARALLELISM": "false"}
    if address is None:  # what can be imported here can be imported there
        variables["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    environment = {"env_vars": variables}
    quiet = {"log_to_driver": False, "logging_level": "error"}
    local = {"num_cpus": n_cores, "include_dashboard": False}
    try:
        if address is None:
            ray.init(address="local", runtime_env=environment, **quiet, **local)
        else:
            ray.init(address=address, runtime_env=environment, **quiet)
    except (ConnectionError, TimeoutError, ValueError, RuntimeError) as error:
        where = "on this machine" if address is None else f"at {address}"
        raise ConfigError(
            f"there is no Ray cluster {where}: {error}; start one with `ray start --head`."
        ) from error
    try:
        yield
    finally:
        ray.shutdown()
