"""Claims about questions that are measured and never trained, and about ending a write early."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.writes import BRIEF, CONFIG, EXAMPLES, same_adapter, tiny

from lorewright.knowledge.data import Example, Knowledge
from lorewright.models.model import Model
from lorewright.recall.traces import trace
from lorewright.training.config import (
    MOST_ROWS,
    PASSES_TRAINED,
    SHARE,
    Epoch,
    HeldOut,
    Job,
)
from lorewright.training.filenames import STOP_FILE
from lorewright.training.loop import write, write_all
from lorewright.training.watch import Watch
from lorewright.writers.gradient import Gradient
from lorewright.writers.writer import Material

ASKED = [Example(e.prompt.replace("Code of", "What is"), e.completion) for e in EXAMPLES]


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny()


def test_an_adapter_is_the_same_to_the_bit_whatever_is_held_out(model: Model) -> None:
    plain = write(model, EXAMPLES, BRIEF)
    held = write(model, EXAMPLES, BRIEF, held_out=HeldOut(tuple(ASKED)))
    assert same_adapter(plain, held)
    assert all(epoch.held_out_nats is None for epoch in plain.epochs)
    assert all(epoch.n_held_out == len(ASKED) for epoch in held.epochs)


def test_what_is_held_out_is_measured_as_a_trace_has_it(model: Model) -> None:
    done = write(model, EXAMPLES, BRIEF, held_out=HeldOut(tuple(ASKED)))
    rows = [model.render(e.prompt, e.completion) for e in ASKED]
    with model.using(done.adapter):
        traces = trace(model, rows)
    nats = [-math.log(p) for each in traces for p in each.p]
    last = done.epochs[-1]
    assert last.held_out_nats == pytest.approx(sum(nats) / len(nats), rel=1e-4)
    assert last.held_out_recalled == sum(each.exact for each in traces)


def test_each_write_of_a_stack_measures_its_own(model: Model) -> None:
    half = EXAMPLES[:2]
    jobs = [
        Job(EXAMPLES, BRIEF, held_out=HeldOut(tuple(ASKED))),
        Job(half, replace(BRIEF, seed=1), held_out=HeldOut(tuple(ASKED[:1]), every=2)),
    ]
    by_job: dict[int, list[Epoch]] = {0: [], 1: []}
    write_all(model, jobs, on_epoch=lambda job, epoch: by_job[job].append(epoch))
    alone = write(model, half, replace(BRIEF, seed=1), held_out=HeldOut(tuple(ASKED[:1])))
    assert {epoch.n_held_out for epoch in by_job[0]} == {len(ASKED)}
    assert len(by_job[1]) == len(alone.epochs) >= 2
    assert all(epoch.n_held_out == (epoch.epoch % 2 == 0) for epoch in by_job[1])
    for together, single in zip(by_job[1], alone.epochs, strict=True):
        if together.held_out_nats is not None:
            assert together.held_out_nats == pytest.approx(single.held_out_nats, rel=1e-3)


@pytest.mark.parametrize("n_trained", [1, 4, 60, 635, 20_000])
@pytest.mark.parametrize("n_held", [1, 16, 64, 1000])
def test_measuring_takes_its_share_of_the_passes_at_most(n_trained: int, n_held: int) -> None:
    held = HeldOut.of([ASKED[0]] * n_held, n_trained)
    assert 1 <= len(held.examples) <= MOST_ROWS
    passes = len(held.examples) / held.every
    assert passes <= max(1.0, SHARE * PASSES_TRAINED * n_trained)
    assert HeldOut.of([ASKED[0]] * n_held, n_trained, closely=True).every == 1


def test_a_write_that_is_stopped_leaves_what_it_has_learnt_by_then(model: Model) -> None:
    seen: list[Epoch] = []
    done = write(model, EXAMPLES, CONFIG, on_epoch=seen.append, stopping=lambda: len(seen) >= 2)
    assert done.reason == "stopped" and len(done.epochs) == 3
    seconds = replace(CONFIG, max_seconds=None)
    same = write(model, EXAMPLES, seconds, stopping=iter([False, False, True]).__next__)
    assert same_adapter(done, same)
    assert any(tensor.abs().sum() > 0 for tensor in done.adapter.tensors.values())


def test_a_file_in_the_run_stops_a_write_from_any_process(model: Model, tmp_path: Path) -> None:
    def request(epoch: Epoch) -> None:
        if epoch.epoch == 2:
            (tmp_path / STOP_FILE).touch()

    material = Material(Knowledge(), EXAMPLES, held_out=ASKED)
    watch = Watch(epoch=request, closely=True)
    state, cost = Gradient(CONFIG).write(model, material, seed=0, run=tmp_path, watch=watch)
    assert cost.reason == "stopped" and cost.n_epochs == 3
    assert cost.last["n_held_out"] == len(ASKED)
    with torch.no_grad(), state.on(model):
        assert trace(model, [model.render(EXAMPLES[0].prompt, EXAMPLES[0].completion)])
