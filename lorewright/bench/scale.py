"""Many jobs at once: in this process, in local processes, or on a Ray cluster; the same records.

A job function of a module turns one job into one record, both plain JSON. The record is stored in
``<records>/<digest of function and job>.json``, written whole or not at all, by the process that
runs the sweep. Jobs with a record are skipped, so an interrupted sweep resumes, also elsewhere. A
worker that dies is replaced and its job tried again; a job that raises is not, since it would raise
again.

Knows processes and files; nothing of models, or of what the jobs are about.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import re
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple

from lorewright import __version__
from lorewright.errors import ConfigError, DataError, JobFailed
from lorewright.files import digest, locked, read_object, save_json

Do = Callable[[dict[str, Any]], dict[str, Any]]
"""One job to one record, both plain JSON; a function of a module, so that others can import it."""
Jobs = Sequence[tuple[int, dict[str, Any]]]
"""Jobs with their index."""

RETRIES = 2
THREADS = "OMP_NUM_THREADS"
"""Threads of a worker: this variable where it is set, else its share of the cores."""
AHEAD = 4
"""Jobs a core that a cluster is given at a time: enough to keep it busy, few enough for a queue."""
SHOWN_JOB = 300  # characters of a job in a message
REMEDY = "delete it, and its job is done again"


class Step(NamedTuple):
    """Progress of a sweep."""

    n_done: int
    n_jobs: int
    n_stored: int
    """Of those done: records from before."""


@dataclass(frozen=True)
class Attempt:
    """The outcome of one job: its record, or why there is none."""

    index: int
    record: dict[str, Any] | None
    why: str = ""
    about: Mapping[str, Any] | None = None
    """Where and how long it ran; stored beside the record, never part of it."""


Place = Callable[[str, Jobs, int], Iterator[Attempt]]
"""(name of the job function, jobs, retries) -> attempts, one a job, in any order."""


def run(
    do: Do,
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

    Raises JobFailed, when all others are done, for jobs that raised or whose worker died more often
    than ``retries``; ConfigError for another ``on`` or a function that cannot be imported, Locked
    when another process sweeps into the same folder, DataError for a damaged record, StorageError
    when the disk refuses.
    """
    records, name = Path(records), _name(do)
    place = _place(on)
    if retries < 0:
        raise ConfigError(f"retries is {retries}; give 0 or more.")
    paths = [record_path(records, do, job) for job in jobs]
    with locked(records, work="sweeping into"):
        done = {path: _stored(path, name) for path in dict.fromkeys(paths) if path.exists()}
        todo = {path: i for i, path in reversed(list(enumerate(paths))) if path not in done}
        n_jobs, n_stored = len(done) + len(todo), len(done)
        progress(Step(n_stored, n_jobs, n_stored))
        failures = []
        left = [(i, dict(jobs[i])) for i in sorted(todo.values())]
        for attempt in place(name, left, retries):
            if attempt.record is None:
                failures.append(attempt)
                continue
            path = paths[attempt.index]
            content = {"task": name, "job": dict(jobs[attempt.index]), "record": attempt.record}
            save_json({**content, "run": dict(attempt.about or {})}, path)
            done[path] = attempt.record
            progress(Step(len(done), n_jobs, n_stored))
    if failures:
        shown = str(dict(jobs[failures[0].index]))[:SHOWN_JOB]
        raise JobFailed(
            f"{len(failures)} of {n_jobs} jobs failed; the records of the others are stored. The "
            f"first: {shown}: {failures[0].why} Repair the cause and run the same sweep again."
        )
    return [done[path] for path in paths]


def record_path(records: Path | str, do: Do, job: Mapping[str, Any]) -> Path:
    """The file for the record of a job, whether it exists or not."""
    return Path(records) / f"{digest([_name(do), dict(job)])[:32]}.json"


def _stored(path: Path, name: str) -> dict[str, Any]:
    """The record in a file."""
    entry = read_object(path, REMEDY)
    if entry.get("task") != name or not isinstance(entry.get("record"), dict):
        raise DataError(f"{path} is no record of {name}; {REMEDY}.")
    record: dict[str, Any] = entry["record"]
    return record


def _name(do: Do) -> str:
    """The function as ``module:function``. Raises ConfigError where it cannot be imported."""
    name = f"{do.__module__}:{do.__qualname__}"
    if "<" in name or do.__module__ == "__main__":
        raise ConfigError(f"the function {name} cannot be imported; define it in a module.")
    return name


def _attempt(name: str, index: int, job: dict[str, Any]) -> Attempt:
    """Do a job in this process; an exception becomes the reason why there is no record."""
    started = time.monotonic()
    module, _, function = name.partition(":")
    try:
        result = getattr(import_module(module), function)(job)
        record = json.loads(json.dumps(result, allow_nan=False))  # as it will be read again
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


def _place(on: str) -> Place:
    match = re.fullmatch(r"here|local:0*([1-9]\d*)|ray|(ray://.+)", on, re.ASCII)
    if match is None:
        raise ConfigError(
            f"a sweep cannot run on {on!r}; choose here, local:K (K processes), ray (a cluster of "
            "this machine) or ray://host:port."
        )
    if on == "here":
        return _here
    n_workers, address = match.groups()
    return _processes(int(n_workers)) if n_workers else _ray(address)


def _here(name: str, jobs: Jobs, retries: int) -> Iterator[Attempt]:
    """One after the other in this process, which nothing can replace."""
    for index, job in jobs:
        yield _attempt(name, index, job)


def _threads(n_workers: int) -> str:
    n_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return os.environ.get(THREADS) or str(max(1, (n_cores or 1) // n_workers))


def _processes(n_workers: int) -> Place:
    """Pools of one process each, so that a death says whose job it was."""

    def place(name: str, jobs: Jobs, retries: int) -> Iterator[Attempt]:
        idle: SimpleQueue[ProcessPoolExecutor] = SimpleQueue()
        for _ in range(n_workers):
            idle.put(_pool())

        def attempt(index: int, job: dict[str, Any]) -> Attempt:
            pool = idle.get()
            try:
                for _ in range(retries + 1):
                    try:
                        return pool.submit(_attempt, name, index, job).result()
                    except BrokenProcessPool:
                        pool.shutdown()
                        pool = _pool()
                return Attempt(index, None, _died(retries + 1, "process"))
            finally:
                idle.put(pool)

        waiting = ThreadPoolExecutor(n_workers)
        try:
            with _variable(THREADS, _threads(n_workers)):  # read when a process imports torch
                running = [waiting.submit(attempt, *job) for job in jobs]
                yield from (future.result() for future in as_completed(running))
        finally:  # after an interruption as well: what runs ends, the rest is not begun
            waiting.shutdown(wait=False, cancel_futures=True)
            while not idle.empty():
                idle.get().shutdown(wait=False)

    return place


def _pool() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))


@contextmanager
def _variable(name: str, value: str) -> Iterator[None]:
    """An environment variable for the length of a block."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before


def _died(n_times: int, how: str) -> str:
    return f"its worker died {n_times} times ({how}); perhaps there is too little memory."


def _ray(address: str | None) -> Place:
    """Ray tasks, one a job, on a GPU each where the cluster has any; Ray replaces the dead."""

    def place(name: str, jobs: Jobs, retries: int) -> Iterator[Attempt]:
        if not jobs:
            return
        try:
            import ray
        except ImportError as error:
            raise ConfigError(
                "ray is not installed; run `pip install lorewright[ray]`, or sweep on local:K."
            ) from error
        with _cluster(ray, address):
            resources = ray.cluster_resources()
            job_on = ray.remote(_attempt).options(
                max_retries=retries,
                num_cpus=1,
                num_gpus=1 if resources.get("GPU") else 0,
                scheduling_strategy="SPREAD",
            )
            waiting, running = list(reversed(jobs)), dict[Any, int]()
            most = AHEAD * max(1, int(resources.get("CPU", 1)))
            while waiting or running:
                while waiting and len(running) < most:
                    index, job = waiting.pop()
                    running[job_on.remote(name, index, job)] = index
                (done,), _ = ray.wait(list(running), num_returns=1)
                index = running.pop(done)
                try:
                    yield ray.get(done)
                except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError) as end:
                    yield Attempt(index, None, _died(retries + 1, type(end).__name__))
                except ray.exceptions.RayError as error:  # not even started: no lorewright there, …
                    first = str(error).strip().splitlines()[-1:]
                    yield Attempt(index, None, f"{type(error).__name__}: {' '.join(first)}")

    return place


@contextmanager
def _cluster(ray: Any, address: str | None) -> Iterator[None]:
    """Connected to a cluster, or to one of this machine that ends with the block."""
    if ray.is_initialized():
        yield  # it belongs to the caller, who ends it
        return
    n_cores = int(os.cpu_count() or 1)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anybody
    variables = {THREADS: _threads(n_cores), "TOKENIZERS_PARALLELISM": "false"}
    options: dict[str, Any] = {"address": address or "local"}
    if address is None:  # what can be imported here can be imported there
        variables["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
        options |= {"num_cpus": n_cores, "include_dashboard": False}
    options |= {"runtime_env": {"env_vars": variables}, "log_to_driver": False}
    try:
        ray.init(**options, logging_level="error")
    except (ConnectionError, TimeoutError, ValueError, RuntimeError) as error:
        where = "on this machine" if address is None else f"at {address}"
        raise ConfigError(
            f"there is no Ray cluster {where}: {error}; start one with `ray start --head`."
        ) from error
    try:
        yield
    finally:
        ray.shutdown()
