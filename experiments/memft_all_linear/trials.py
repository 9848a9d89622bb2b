"""What is written and how: tasks, arms and cells of the comparison, and the two kinds of trial.

A *cell* is a place for the adapter, a rank, a task and a budget; within it all arms get the same
facts, first weights, order of batches (but for the curriculum) and number of epochs, so equally
many tokens. This file knows writes and traces. It does not know which rates are tried, or what
comes of the outcomes.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lorewright.adapters.config import LoraConfig
from lorewright.bench.exact import base_model, placement
from lorewright.bench.passages import digits, passage, person
from lorewright.knowledge.data import Example
from lorewright.models.model import Model
from lorewright.recall.traces import audit, trace
from lorewright.training.config import Diverged, Epoch, Job, WriteConfig, Written
from lorewright.training.loop import write, write_all


class Arm(NamedTuple):
    """What is minimised, in which order the examples come, and whether safe ones rest."""

    objective: str
    order: str = "shuffle"
    rests: bool = False
    """Examples whose every token is safe are left out until the next check."""
    tuned_as: str = ""
    """The arm whose rate it takes; empty: it has a rate of its own."""


ARMS = {
    "plain": Arm("sft"),
    "threshold": Arm("memft_threshold"),
    "window": Arm("memft_window"),
    "curriculum": Arm("sft", "curriculum"),
    "window+curriculum": Arm("memft_window", "curriculum"),
    "plain, resting": Arm("sft", rests=True, tuned_as="plain"),
    "threshold, resting": Arm("memft_threshold", rests=True, tuned_as="threshold"),
}
"""The paper's MemFT-OT is threshold, its MemFT-SW window+curriculum."""


class Task(NamedTuple):
    """How many facts of which length, and how they are visited."""

    n_facts: int
    n_tokens: int
    """Answer tokens of a fact: digits up to 10, else random tokens of the vocabulary."""
    batch: int
    epochs: int


TASKS = {
    "10 digits": Task(12, 10, 4, 40),
    "40 tokens": Task(4, 40, 2, 50),
    "120 tokens": Task(1, 120, 1, 80),
    "10 digits, many": Task(40, 10, 8, 30),
}


class Cell(NamedTuple):
    """Where arms are compared."""

    place: str
    rank: int
    task: str
    epochs: int
    margin: float = 0.5
    """Safe is p > margin; the paper's ln 2 is margin 1/2."""
    arms: tuple[str, ...] = tuple(ARMS)


class Member(NamedTuple):
    """One write of a cell; the seed draws the facts, the first weights and the order."""

    arm: str
    lr: float
    seed: int


def facts(model: Model, task: Task, seed: int) -> list[Example]:
    """Return the facts of a seed: an invented person's name, and what nothing predicts."""
    rng = random.Random(f"memft/{task}/{seed}")
    answers: dict[str, str] = {}
    while len(answers) < task.n_facts:
        key = f"{person(rng)}:"
        name = f"memft/{seed}/{len(answers)}"
        answers[key] = (
            digits(rng, task.n_tokens)
            if task.n_tokens <= 10
            else passage(model, task.n_tokens, 100, name).example.completion
        )
    return [Example(key, value) for key, value in answers.items()]


def job_of(cell: Cell, members: Sequence[Member], **about: Any) -> dict[str, Any]:
    """Return a trial as plain JSON: all that decides its record."""
    return {
        **{name: value for name, value in cell._asdict().items() if name != "arms"},
        "facts": TASKS[cell.task]._asdict(),
        "members": [list(member) for member in members],
        **about,
    }


def stack(job: dict[str, Any]) -> dict[str, Any]:
    """Write all members of a job at once; what each came to, in their order.

    The members of the job's `decoded` seed are decoded freely as well, to see whether the
    certificate and decoding ever disagree.
    """
    model = base_model(job["model"], job["base"])
    members, works = _works(model, job)
    rows = []
    for member, work, done in zip(members, works, write_all(model, works), strict=True):
        rows.append(_outcome(model, member, work, done, decode=member.seed == job["decoded"]))
    return {"rows": rows}


def solo(job: dict[str, Any]) -> dict[str, Any]:
    """Write the members of a job one after the other, and measure the processor's time."""
    model = base_model(job["model"], job["base"])
    members, works = _works(model, job)
    first = works[0]
    write(model, first.examples, first.config)  # warms what is computed once
    rows = []
    for member, work in zip(members, works, strict=True):
        started = time.process_time()
        epochs = write(model, work.examples, work.config).epochs
        seconds = time.process_time() - started
        rows.append({**member._asdict(), "seconds": seconds, **_course(epochs)})
    return {"rows": rows}


def _works(model: Model, job: Mapping[str, Any]) -> tuple[list[Member], list[Job]]:
    targets, layers = placement(model, job["place"])
    task = Task(**job["facts"])
    members = [Member(*each) for each in job["members"]]
    known = {seed: facts(model, task, seed) for seed in {member.seed for member in members}}
    works = []
    for member in members:
        arm = ARMS[member.arm]
        config = WriteConfig(
            lora=LoraConfig(rank=job["rank"], targets=targets, layers=layers, seed=member.seed),
            objective=arm.objective,
            order=arm.order,
            rest=job["margin"] if arm.rests else None,
            margin=job["margin"],
            lr=member.lr,
            epochs=job["epochs"],
            batch_size=task.batch,
            seed=member.seed,
        )
        works.append(Job(known[member.seed], config))
    return members, works


def _course(epochs: Sequence[Epoch]) -> dict[str, Any]:
    """Recalled and trained examples of every epoch."""
    return {
        "recalled": [epoch.n_recalled for epoch in epochs],
        "trained": [epoch.n_trained for epoch in epochs],
    }


def _outcome(
    model: Model, member: Member, work: Job, done: Written | Diverged, *, decode: bool
) -> dict[str, Any]:
    row = {**member._asdict(), "n": len(work.examples), **_course(done.epochs)}
    if isinstance(done, Diverged):
        return row | {"why": done.why}
    rows = [model.render(e.prompt, e.completion) for e in work.examples]
    with model.using(done.adapter):
        traces = trace(model, rows)
        differ = len(audit(model, work.examples).disagreements) if decode else None
    n_tokens = sum(len(t.right) for t in traces)
    n_before = sum(len(t.right) if t.exact else t.first_failure or 0 for t in traces)
    return row | {
        "reason": done.reason,
        "n_parameters": sum(tensor.numel() for tensor in done.adapter.tensors.values()),
        "exact": sum(t.exact for t in traces),
        "tokens": round(sum(sum(t.right) for t in traces) / n_tokens, 4),
        "recited": round(n_before / n_tokens, 4),
        "nats": round(sum(-math.log(max(p, 1e-30)) for t in traces for p in t.p) / n_tokens, 4),
        "disagreements": differ,
    }
