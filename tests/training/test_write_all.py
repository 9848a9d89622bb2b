"""Claims about many writes in one stack: as alone, without leaks, each its own end, resumable."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.stacks import JOBS, OTHERS, UPPER, far, written
from support.writes import BRIEF, CONFIG, EXAMPLES, apart, tiny
from torch import Tensor

from lorewright.adapters.config import LoraConfig
from lorewright.adapters.lora import Flat
from lorewright.errors import ConfigError, DataError, ModelError
from lorewright.knowledge.data import Example
from lorewright.models.backends.compiled.library import KERNELS, find_compiler
from lorewright.models.model import Model
from lorewright.models.sizes import n_kept_of
from lorewright.recall.traces import certify
from lorewright.training import at_once, checkpoint, optimisers, whitening
from lorewright.training.config import Diverged, Epoch, Job, WriteConfig
from lorewright.training.distil import SoftTargets, teach
from lorewright.training.filenames import CHECKPOINT_FILE
from lorewright.training.loop import write, write_all
from lorewright.training.objectives import Uniform
from lorewright.training.optimisers import OPTIMIZERS
from lorewright.training.state import Table


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny()


@pytest.mark.skipif(find_compiler() is None, reason="needs a C compiler")
@pytest.mark.parametrize("optimizer", ["adamw", "whitened"])
def test_in_compiled_code_it_equals_it_bit_for_bit(
    monkeypatch: pytest.MonkeyPatch, optimizer: str
) -> None:
    monkeypatch.setenv(KERNELS, "auto")
    model = tiny()
    jobs = [replace(job, config=replace(job.config, optimizer=optimizer)) for job in JOBS]
    together = [written(result) for result in write_all(model, jobs)]
    for job, result in zip(jobs[:2], together, strict=False):  # the third has a trunk when alone
        alone = write(model, job.examples, job.config)
        assert far(result, alone) == 0
        assert [e.n_recalled for e in result.epochs] == [e.n_recalled for e in alone.epochs]


@pytest.mark.parametrize("kernels", ["auto", "torch"])
@pytest.mark.usefixtures("calm")
def test_whitened_adapters_of_other_layers_and_ranks_do_not_notice_one_another(
    monkeypatch: pytest.MonkeyPatch, kernels: str
) -> None:
    monkeypatch.setenv(KERNELS, kernels)
    model = tiny()
    loras = [
        LoraConfig(rank=6, targets=("q_proj", "down_proj"), layers=(0,)),
        LoraConfig(rank=2, targets=("q_proj", "v_proj", "down_proj"), seed=1),
    ]
    jobs = [Job(EXAMPLES, replace(BRIEF, lora=lora, optimizer="whitened")) for lora in loras]
    for job, result in zip(jobs, write_all(model, jobs), strict=True):
        assert far(written(result), write(model, job.examples, job.config)) < 8 * apart(
            model, BRIEF
        )


@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
@pytest.mark.usefixtures("calm")
def test_written_together_equals_written_alone(model: Model, optimizer: str) -> None:
    jobs = [replace(job, config=replace(job.config, optimizer=optimizer)) for job in JOBS]
    together = [written(result) for result in write_all(model, jobs)]
    for job, result in zip(jobs, together, strict=True):
        alone = write(model, job.examples, job.config)
        # A basis enlarges what rounding leaves, by the square root of one over its ridge at most.
        basis = whitening.RIDGE**-0.5 if optimizer == "whitened" else 1
        assert far(result, alone) < basis * apart(model, job.config, len(job.examples))
        assert result.reason == alone.reason
        assert [e.loss_nats for e in result.epochs] == pytest.approx(
            [e.loss_nats for e in alone.epochs], rel=1e-4
        )


@pytest.mark.usefixtures("calm")
def test_more_than_the_free_memory_holds_are_written_in_parts(
    model: Model, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    together = [written(result) for result in write_all(model, JOBS)]
    assert at_once.n_at_once(model, JOBS) == len(JOBS)
    longest = max(len(model.render(e.prompt, e.completion)) for job in JOBS for e in job.examples)
    each = max(job.config.batch_size for job in JOBS) * longest * 4 * n_kept_of(model.network)
    for n in (0.5, 2):
        free = n * each / at_once.SHARE_TAKEN
        monkeypatch.setattr(at_once, "free_bytes", lambda device, free=free: free)
        assert at_once.n_at_once(model, JOBS) == max(1, n)
        assert at_once.n_at_once(model, JOBS[:1]) == 1, "one is always tried"
    heard: list[int] = []
    run = tmp_path / "run"
    parts = write_all(model, JOBS, run=run, on_epoch=lambda job, epoch: heard.append(job))
    for job, one, other in zip(JOBS, together, map(written, parts), strict=True):
        assert far(one, other) < apart(model, job.config, len(job.examples))
    assert set(heard) == set(range(len(JOBS)))
    assert [p.name for p in sorted(run.iterdir()) if p.is_dir()] == ["0-2", "2-1"]


def test_one_job_in_a_stack_is_the_same_bits_as_a_write(model: Model) -> None:
    (result,) = write_all(model, JOBS[:1])
    assert far(written(result), write(model, JOBS[0].examples, JOBS[0].config)) == 0


def test_what_one_learns_leaves_the_others_bit_for_bit(model: Model) -> None:
    changed = Job([Example(e.prompt, e.completion[::-1]) for e in OTHERS], JOBS[1].config)
    before = write_all(model, JOBS)
    after = write_all(model, (JOBS[0], changed, JOBS[2]))
    distances = [far(written(a), written(b)) for a, b in zip(before, after, strict=True)]
    assert distances[0] == distances[2] == 0 < distances[1]


def test_each_leaves_when_it_is_done_and_the_stack_shrinks(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    def count(flat: Flat, grad_NP: Tensor, state: optimisers.State) -> Tensor:
        sizes.append(len(grad_NP))
        return optimisers.adamw(flat, grad_NP, state)

    monkeypatch.setitem(OPTIMIZERS, "adamw", count)
    jobs = [Job(EXAMPLES, replace(BRIEF, epochs=n, batch_size=4)) for n in (3, 1, 2)]
    done = write_all(model, jobs)
    assert [len(written(each).epochs) for each in done] == [3, 1, 2]
    assert sizes == [3, 2, 1]


def test_all_of_a_stack_recall_when_they_are_done(model: Model) -> None:
    jobs = [
        Job(EXAMPLES, CONFIG),
        Job(OTHERS, replace(CONFIG, lora=LoraConfig(rank=8, seed=5))),
    ]
    for job, result in zip(jobs, write_all(model, jobs), strict=True):
        assert written(result).complete
        with model.using(written(result).adapter):
            assert all(certify(model, job.examples, margin=CONFIG.margin))


def test_one_that_diverges_is_said_to_and_the_others_go_on(model: Model) -> None:
    wild = replace(JOBS[0].config, lr=1e30)
    result = write_all(model, [JOBS[1], Job(EXAMPLES, wild)])
    assert isinstance(result[1], Diverged)
    assert "lower lr" in result[1].why
    assert far(written(result[0]), write(model, JOBS[1].examples, JOBS[1].config)) < apart(
        model, JOBS[1].config, 5
    )
    with pytest.raises(ModelError, match="lower lr"):
        write(model, EXAMPLES, wild)


def test_a_stack_that_is_interrupted_resumes_to_the_same_bits(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "CHECKPOINT_SECONDS", 0.0)
    whole = write_all(model, JOBS)
    for stop in ((1, 2), (2, 4), (0, 5)):  # the third job ends with its fourth epoch
        run = tmp_path / f"{stop}"

        def interrupt(job: int, epoch: Epoch, stop: tuple[int, int] = stop) -> None:
            if (job, epoch.epoch) == stop:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            write_all(model, JOBS, run=run, on_epoch=interrupt)
        assert (run / CHECKPOINT_FILE).exists()
        seen: list[tuple[int, int]] = []

        def note(job: int, epoch: Epoch, seen: list[tuple[int, int]] = seen) -> None:
            seen.append((job, epoch.epoch))

        again = write_all(model, JOBS, run=run, on_epoch=note)
        for a, b in zip(whole, again, strict=True):
            assert far(written(a), written(b)) == 0
            assert written(a).reason == written(b).reason
        assert sorted(seen) == sorted((i, e.epoch) for i, w in enumerate(again) for e in w.epochs)


@pytest.mark.parametrize(
    "change",
    [
        {"rest": 0.8, "recheck": 2},
        {"objective": "memft_window"},
        {"order": "curriculum"},
        {"schedule": "wsd"},
        {"optimizer": "muon"},
        {"optimizer": "preconditioned", "lr_ratio": 2.0},
        {"lora": UPPER},
        {"objective": "distill"},
    ],
    ids=str,
)
def test_every_way_of_writing_resumes_to_the_same_bits(
    model: Model, change: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "CHECKPOINT_SECONDS", 0.0)
    config = replace(BRIEF, batch_size=2, epochs=8, **change)
    contexts = ["red 48, blue 7.5"] * len(EXAMPLES) if config.objective == "distill" else ()
    whole = write(model, EXAMPLES, config, contexts=contexts)

    def stop(epoch: Epoch) -> None:
        if epoch.epoch == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(model, EXAMPLES, config, contexts=contexts, run=tmp_path, on_epoch=stop)
    again = write(model, EXAMPLES, config, contexts=contexts, run=tmp_path)
    assert far(whole, again) == 0
    assert [replace(e, seconds=0) for e in whole.epochs] == [
        replace(e, seconds=0) for e in again.epochs
    ]


def test_a_call_without_jobs_or_with_an_empty_one_is_refused(model: Model) -> None:
    with pytest.raises(DataError, match="no jobs"):
        write_all(model, [])
    with pytest.raises(DataError, match=r"job 1: .*no examples"):
        write_all(model, [JOBS[0], Job([], CONFIG)])


def test_different_optimisers_in_one_stack_are_refused(model: Model) -> None:
    muon = replace(BRIEF, optimizer="muon")
    with pytest.raises(ConfigError, match="adamw, muon; write them in separate stacks"):
        write_all(model, [JOBS[0], Job(EXAMPLES, muon)])


# --- less work


def test_under_memft_what_is_safe_may_rest_and_all_is_recalled_all_the_same(model: Model) -> None:
    config = replace(CONFIG, objective="memft_threshold", batch_size=1, epochs=40)
    resting = replace(config, rest=config.margin, recheck=1)
    plain, rested = write(model, EXAMPLES, config), write(model, EXAMPLES, resting)
    assert rested.complete and plain.complete
    assert min(e.n_trained for e in rested.epochs) < len(EXAMPLES)
    assert all(e.n_trained == len(EXAMPLES) for e in plain.epochs)


def test_resting_examples_are_checked_before_the_write_ends(model: Model) -> None:
    done = write(model, EXAMPLES, replace(CONFIG, rest=0.9))
    assert done.complete and done.epochs[-1].certified
    with model.using(done.adapter):
        assert all(certify(model, EXAMPLES, margin=CONFIG.margin))


def test_the_trunk_runs_once_and_changes_nothing(model: Model) -> None:
    config = replace(CONFIG, lora=UPPER, epochs=10)
    # Prompts that begin alike would run in two calls of a layer without the trunk.
    unalike = [Example(e.prompt[::-1], e.completion) for e in EXAMPLES]
    calls = [0, 0]
    handles = [
        layer.register_forward_hook(lambda *_, i=i: calls.__setitem__(i, calls[i] + 1))
        for i, layer in enumerate(model.network.model.layers)
    ]
    cached = write(model, unalike, config)
    with_trunk = list(calls)
    calls[:] = [0, 0]
    plain = write(model, unalike, replace(config, trunk=False))
    for handle in handles:
        handle.remove()
    assert far(cached, plain) < apart(model, config)
    assert calls[0] == calls[1]
    assert with_trunk[1] == calls[1] + 2  # the check that the short cut changes nothing


def test_a_trunk_too_big_for_memory_lies_in_a_file_and_is_gone_afterwards(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(CONFIG, lora=UPPER, epochs=4)
    small = write(model, EXAMPLES, config)
    monkeypatch.setattr("lorewright.training.trunk.MEMORY_BYTES", 0)
    big = write(model, EXAMPLES, config, run=tmp_path / "run")
    assert far(small, big) == 0
    assert not list((tmp_path / "run").glob("trunk-*"))  # its name is gone while it is used


def test_rows_that_jobs_share_are_in_the_table_once(model: Model) -> None:
    jobs = [Job(EXAMPLES, BRIEF), Job(OTHERS, BRIEF), Job(EXAMPLES[2:], BRIEF)]
    table = Table(model, jobs)
    assert len(table.rows) == len(EXAMPLES) + len(OTHERS)
    assert table.rows_of[2] == table.rows_of[0][2:]


@pytest.mark.parametrize("schedule", ["constant", "cosine", "wsd", "restart"])
def test_every_schedule_reaches_recall(model: Model, schedule: str) -> None:
    assert write(model, EXAMPLES, replace(CONFIG, schedule=schedule)).complete


@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
@pytest.mark.parametrize("ratio", [1.0, 4.0])
def test_every_optimiser_reaches_recall(model: Model, optimizer: str, ratio: float) -> None:
    config = replace(CONFIG, optimizer=optimizer, lr_ratio=ratio, lr=1e-2 / ratio, epochs=160)
    assert write(model, EXAMPLES, config).complete


# --- distillation


def test_distilling_moves_the_adapter_towards_the_base_that_reads(model: Model) -> None:
    contexts = ["red 48, blue 7.5, teal KX, grey a-1"] * len(EXAMPLES)
    config = WriteConfig(
        lora=LoraConfig(rank=8), objective="distill", lr=1e-2, epochs=40, margin=0.99
    )

    def distance(adapter: Any) -> Tensor:
        rows = [model.render(e.prompt, e.completion) for e in EXAMPLES]
        informed = [
            model.render(f"{c}\n\n{e.prompt}", e.completion)
            for c, e in zip(contexts, EXAMPLES, strict=True)
        ]
        batch, taught = model.batch(rows), model.batch(informed)
        with torch.no_grad():
            teacher = model.completion_logits(taught).log_softmax(-1)
            with model.using(*adapter):
                student = model.completion_logits(batch).log_softmax(-1)
        gap = (teacher.exp() * (teacher - student)).sum(-1)
        return (gap * batch.mask_BC).sum() / batch.mask_BC.sum()

    done = write(model, EXAMPLES, config, contexts=contexts)
    assert distance([done.adapter]) < 0.2 * distance([])


def test_the_teachers_predictions_are_stored_and_read_back(model: Model, tmp_path: Path) -> None:
    config = replace(BRIEF, objective="distill")
    contexts = ["red 48"] * len(EXAMPLES)
    first = write(model, EXAMPLES, config, contexts=contexts, run=tmp_path)
    (tmp_path / CHECKPOINT_FILE).unlink()
    (stored,) = tmp_path.glob("teacher-*.safetensors")
    assert far(first, write(model, EXAMPLES, config, contexts=contexts, run=tmp_path)) == 0
    known = SoftTargets.load(stored)
    assert known is not None
    replace(known, logp_MK=known.logp_MK.flip(1)).save(stored)
    (tmp_path / CHECKPOINT_FILE).unlink()
    assert far(first, write(model, EXAMPLES, config, contexts=contexts, run=tmp_path)) > 0


def test_distilling_what_has_no_prompt_is_refused(model: Model) -> None:
    plain = [Example("", "red 48", "verbatim")]
    config = replace(BRIEF, objective="distill")
    with pytest.raises(DataError, match="has no prompt"):
        write(model, plain, config, contexts=["The code of red is 48."])


def test_jobs_with_the_same_questions_share_the_teachers_answers(model: Model) -> None:
    questions: list[int] = []

    def counting(
        model: Model, examples: Sequence[Example], contexts: Sequence[str], run: Path | None
    ) -> SoftTargets:
        questions.append(len(examples))
        return teach(model, examples, contexts, run)

    contexts = ["red 48"] * len(EXAMPLES)
    job = Job(EXAMPLES, replace(BRIEF, epochs=1), contexts, objective=Uniform("mine", counting))
    write_all(model, [job, replace(job, config=replace(job.config, lr=5e-3))])
    assert questions == [len(EXAMPLES)]


def test_distilling_without_contexts_is_refused(model: Model) -> None:
    with pytest.raises(DataError, match="one context for each of 4 examples"):
        write(model, EXAMPLES, replace(BRIEF, objective="distill"))
