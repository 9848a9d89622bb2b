"""Jobs for sweeps in tests: functions of a module that any worker can import.

Knows the tasks only; what a sweep makes of them is in test_scale.py.
"""

from __future__ import annotations

import functools
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lorewright.bench.task import Done, Summary, Task, sweep
from lorewright.reports.tables import Table


def doubled(job: dict[str, Any]) -> dict[str, Any]:
    """Twice the number; leaves a mark in a folder each time it runs."""
    if "marks" in job:
        with Path(job["marks"]).joinpath(str(job["n"])).open("a") as marks:
            marks.write(".")
    return {"twice": 2 * job["n"], "pair": (1, 2)}


def refusing(job: dict[str, Any]) -> dict[str, Any]:
    """Raise for odd numbers."""
    if job["n"] % 2:
        raise ValueError(f"{job['n']} is odd")
    return {"n": job["n"]}


def unspeakable(job: dict[str, Any]) -> dict[str, Any]:
    """Return what JSON cannot hold."""
    return {"loss": float("nan")}


def mortal(job: dict[str, Any]) -> dict[str, Any]:
    """Kill the own process, as often as the job says, before answering."""
    if job.get("lives", 0):
        diary = Path(job["marks"]) / f"deaths-{job['n']}"
        n_deaths = diary.stat().st_size if diary.exists() else 0
        if n_deaths < job["lives"]:
            with diary.open("a") as marks:
                marks.write(".")
            os.kill(os.getpid(), signal.SIGKILL)
    return doubled(job)


@functools.cache
def _model() -> Any:
    import torch

    from lorewright.models.model import Model

    torch.set_num_threads(1)
    return Model.load("pocket")


def tiny_write(job: dict[str, Any]) -> dict[str, Any]:
    """Write two facts for a few epochs; every loss, and a digest of the adapter."""
    from lorewright.adapters.adapter import content_id
    from lorewright.adapters.config import LoraConfig
    from lorewright.knowledge.data import Example
    from lorewright.training.config import WriteConfig
    from lorewright.training.loop import write

    lora = LoraConfig(rank=job["rank"], targets=("down_proj",), layers=(4,), seed=job["seed"])
    examples = [Example("Code of Ann?", "48"), Example("Code of Bo?", "7-51")]
    done = write(_model(), examples, WriteConfig(lora=lora, epochs=4, lr=1e-2, seed=job["seed"]))
    losses = [epoch.loss_nats for epoch in done.epochs]
    return {"losses": losses, "adapter": content_id(done.adapter)}


@dataclass(frozen=True)
class Doubling:
    """Settings of a benchmark."""

    model: str = "pocket"
    """A base."""
    n: int = 4
    """How many numbers."""


def _summary(settings: Doubling, done: Done) -> dict[str, Any]:
    return {"twice": [record["twice"] for _, record in done]}


def _tables(summary: Summary) -> Iterator[Table]:
    yield Table("Doubled", ("twice",), tuple((str(twice),) for twice in summary["twice"]))


def _jobs(settings: Doubling, base_digest: str) -> list[dict[str, Any]]:
    return [{"n": n} for n in range(settings.n)]


TASK = Task(
    "double",
    Doubling,
    lambda settings: replace(settings, n=2),
    sweep("double", _jobs, doubled, _summary),
    _tables,
)
"""A benchmark that the package does not know."""
