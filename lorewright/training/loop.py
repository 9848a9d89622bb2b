"""Write examples into adapters: the one training loop, for one write or for many at once.

N writes share one frozen base: their adapters are one stack, a step of the loop is one optimiser
step of each, and each has its own examples, seed, rate, clip and end. One that ends leaves and the
stack shrinks. N written together equal N written alone.

Training stops on recall, never on a loss: when greedy decoding is certain to reproduce every
completion (p > margin at every token, one forward pass, no decoding).

Knows models, examples and objectives. It knows nothing of probes, folders of memories or reports;
the verdict is taken elsewhere, on questions that were not trained.

Shape letters: N adapters, B batch row, C completion token, V vocabulary, P values of an adapter.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from lorewright.adapters.adapter import Adapter, capture, validate
from lorewright.adapters.dropout import Masks
from lorewright.adapters.lora import Rows, Stack, attach
from lorewright.errors import ConfigError, DataError, ModelError
from lorewright.knowledge.data import Example
from lorewright.models.backends.backend import Pass
from lorewright.models.batching import by_length, pass_tokens
from lorewright.models.model import Batch, Model
from lorewright.models.nats import TokenNats, token_nats
from lorewright.training import whitening
from lorewright.training.checkpoint import Checkpoint, fingerprint
from lorewright.training.config import NEARLY, Diverged, Epoch, Job, WriteConfig, Written
from lorewright.training.objectives import Objective, StepOutcome, Targets, Teacher, weighted_mean
from lorewright.training.optimisers import WHITENED, Optimizer
from lorewright.training.state import WriteState
from lorewright.training.stopping import FAILURES, Known, stop
from lorewright.training.table import Table
from lorewright.training.trunk import Trunk


def write(
    model: Model,
    examples: Sequence[Example],
    config: WriteConfig,
    *,
    objective: Objective | None = None,
    contexts: Sequence[str] = (),
    start: Adapter | None = None,
    run: Path | None = None,
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
) -> Written:
    """Train one adapter on the examples until every completion is recalled or the budget is spent.

    `objective` is used in place of the one that config.objective names. Training goes on from
    `start`, whose form config.lora then is. With a `run` folder, metrics go to metrics.jsonl and
    checkpoints are stored; the same call on the same folder resumes, and reports its past epochs
    again. The network is as before in every case.

    Raises DataError for no examples or one that does not fit the context, ConfigError when the
    folder holds another write's checkpoint or `start` has another form, ModelError when loss or
    weights are no longer numbers or a layer learns nothing, StorageError when the disk refuses.
    """
    (done,) = write_all(
        model,
        [Job(examples, config, contexts, start, objective)],
        run=run,
        on_epoch=lambda job, epoch: on_epoch(epoch),
    )
    if isinstance(done, Diverged):
        raise ModelError(done.why)
    return done


def write_all(
    model: Model,
    jobs: Sequence[Job],
    *,
    run: Path | None = None,
    on_epoch: Callable[[int, Epoch], None] = lambda job, epoch: None,
) -> list[Written | Diverged]:
    """Write several adapters on one base at once, each as it would be written alone.

    Results are in the order of the jobs. One that fails is reported as `Diverged`; the others go
    on. `on_epoch` gets the job's index. Otherwise as `write`; all jobs of a call share the
    optimiser.
    """
    if not jobs:
        raise DataError("write_all got no jobs, so there is nothing to write; give it some.")
    for i, job in enumerate(jobs):
        which = f"job {i}: " if len(jobs) > 1 else ""
        job.check(which)
        if job.start is not None:
            _check_start(model, job.start, job.config, which)
    stack = attach(model.network, [job.config.lora for job in jobs])
    try:
        with torch.enable_grad():  # whatever the caller has switched off
            return _train(model, stack, jobs, run, on_epoch)
    finally:
        stack.detach()


def _check_start(model: Model, start: Adapter, config: WriteConfig, which: str) -> None:
    """Raise ConfigError unless an adapter to go on from has the form that config.lora has."""
    validate(start, model.network, model.digest)
    has, wanted = (
        (c.rank, c.scale, c.targets, c.layers, c.variant) for c in (start.config, config.lora)
    )
    if has != wanted:
        raise ConfigError(
            f"{which}the adapter to go on from has (rank, scale, targets, layers, variant) {has}; "
            f"config.lora has {wanted}; give its own config."
        )


def _train(
    model: Model,
    stack: Stack,
    jobs: Sequence[Job],
    run: Path | None,
    on_epoch: Callable[[int, Epoch], None],
) -> list[Written | Diverged]:
    """Step until every write has ended; results in the order of the jobs."""
    started = time.monotonic()

    # Prepare: the rows of all writes, what is known of each write, and what moves its adapter.
    table = Table(model, jobs)
    active = [WriteState(i, job, table.rows_of[i], model.device) for i, job in enumerate(jobs)]
    for i, job in enumerate(jobs):
        if job.start is not None:
            stack.load(i, job.start.tensors)
    optimizer = Optimizer(stack, [job.config.optimizing for job in jobs])
    results: dict[int, Written | Diverged] = {}

    def leave(state: WriteState, reason: str, why: str) -> None:
        """Take a write that has ended out of the stack, unless it is the last in it."""
        n, epochs = active.index(state), tuple(state.epochs)
        if reason in FAILURES:
            results[state.index] = Diverged(why, epochs, reason)
        else:
            adapter = capture(stack, n, base_id=model.name, base_digest=model.digest)
            results[state.index] = Written(adapter, epochs, reason)
        active.remove(state)
        if active:
            stack.drop(n)
            optimizer.drop(n)

    # Resume; a folder of another write is refused before anything is computed.
    checkpoint = Checkpoint(run, fingerprint(model, jobs))
    ended = checkpoint.resume(active, stack, optimizer)
    started -= max((epoch.seconds for state in active for epoch in state.epochs), default=0.0)
    for state in list(active):
        for past in state.epochs:
            on_epoch(state.index, past)
        if state.index in ended:
            leave(state, *ended[state.index])

    # Compute once what the writes that go on need in every step.
    targets = _targets(model, active, run)
    if active and active[0].config.optimizer == WHITENED:
        rows_N = [[table.rows[i] for i in state.rows] for state in active]
        drawn_N = [not state.epochs and state.job.start is None for state in active]
        whitening.begin(model, stack, optimizer, rows_N, drawn_N)
    with _passes(model, stack, table, jobs, run) as passes:
        while active:
            # Epochs that are over: record, certify, end the write or begin the next epoch.
            for state in [state for state in active if state.epoch_is_over]:
                n, reason, why = active.index(state), "", ""
                epoch: Epoch | None = None
                if state.groups:
                    certified = _certify(passes, state, n)
                    seconds = time.monotonic() - started
                    epoch, n_weighted = state.summary(certified=certified, seconds=seconds)
                    layers = stack.coverage[n].sites
                    known = Known(
                        state.config,
                        [*state.epochs, epoch],
                        n_weighted,
                        all(flat.weight_NP[n].isfinite().all() for flat in stack.flats),
                        () if state.epochs else stack.idle(n),
                        len(layers),
                    )
                    reason, why = stop(known)
                    if reason in FAILURES:
                        leave(state, reason, why)
                        continue
                    state.epochs.append(epoch)
                if reason:
                    leave(state, reason, why)
                else:
                    if state.config.order == "curriculum" and epoch is None:
                        passes.measure(state, n, range(len(state.rows)))
                    state.start_epoch(table.lengths)
                if epoch is not None:
                    checkpoint.log(state.index, [epoch], len(jobs))
                    checkpoint.save(active, results, stack, optimizer, force=bool(reason))
                    on_epoch(state.index, epoch)
            if not active:
                break

            # A step of every write: the groups, a pass, weights, the gradient, and the move.
            groups = [state.groups[state.cursor] for state in active]
            size = max(map(len, groups))
            filled = [[*group, *group[-1:] * (size - len(group))] for group in groups]
            index = [
                state.rows[i] for state, group in zip(active, filled, strict=True) for i in group
            ]
            batch = table.take(index)
            real_B = torch.tensor([i < len(group) for group in groups for i in range(size)])
            batch = replace(batch, mask_BC=batch.mask_BC * real_B[:, None].to(batch.mask_BC))
            shares = [
                s.share(group, table.lengths) for s, group in zip(active, groups, strict=True)
            ]
            dropout = Masks(shares, size) if any(share.rate for share in shares) else None
            adapter_B = None
            if len(active) > 1:
                adapter_B = torch.arange(len(active)).repeat_interleave(size)
            pass_ = passes.of(index, batch, Rows(adapter_B, len(active)), optimizer.whole_NP)
            teachers = [targets.get(state.index) for state in active]
            nats, cost_BC = _losses(model, batch, pass_, dropout, teachers, filled)
            with torch.no_grad():
                loss_BC, mask_BC = nats.loss_BT.detach(), batch.mask_BC
                weight_BC = torch.zeros_like(loss_BC)
                for n, (state, group) in enumerate(zip(active, groups, strict=True)):
                    own = slice(n * size, n * size + len(group))
                    outcome = StepOutcome(loss_BC[own], nats.correct_BT[own], mask_BC[own])
                    weight_BC[own] = state.weights(group, outcome)
                weight_BC *= mask_BC
                sums = (loss_BC * mask_BC, mask_BC, (weight_BC > 0).float())
                tally_N3 = torch.stack([part.view(len(active), -1).sum(1) for part in sums], 1)
            loss = weighted_mean(cost_BC, weight_BC, mask_BC, group_B=adapter_B)
            gradients = optimizer.gradients(loss)
            optimizer.step(gradients, [state.rate for state in active], tally_N3[:, 2] > 0)
            for state, tally_3 in zip(active, tally_N3, strict=True):
                state.tally += tally_3
                state.cursor += 1
    return [results[i] for i in range(len(jobs))]


# What a step needs


@dataclass(frozen=True)
class _Passes:
    """Passes over rows of the table, which begin at the adapted layers where there is a trunk."""

    model: Model
    table: Table
    trunk: Trunk | None
    n_adapters: Callable[[], int]

    def of(
        self, rows: Sequence[int], batch: Batch, adapters: Rows, whole_NP: Tensor | None = None
    ) -> Pass:
        """The pass over a batch of these rows."""
        width = batch.ids_BT.shape[1]
        entering = self.trunk.entering(rows, width) if self.trunk else None
        return Pass(adapters, entering, whole_NP=whole_NP)

    @torch.no_grad()
    def measure(self, state: WriteState, n: int, examples: Sequence[int]) -> None:
        """Run examples of the write that is n-th in the stack without training them."""
        lengths = [self.table.lengths[state.rows[i]] for i in examples]
        for group in by_length(lengths, pass_tokens(self.model.device)):
            chosen = [examples[i] for i in group]
            rows = [state.rows[i] for i in chosen]
            batch = self.table.take(rows)
            adapters = Rows(torch.full((len(rows),), n), self.n_adapters())
            nats = self.model.completion_nats(batch, self.of(rows, batch, adapters))
            state.record(chosen, StepOutcome(nats.loss_BT, nats.correct_BT, batch.mask_BC))


@contextmanager
def _passes(
    model: Model, stack: Stack, table: Table, jobs: Sequence[Job], run: Path | None
) -> Iterator[_Passes]:
    """With the trunk below the first adapted layer, if there is one and every job wants it."""
    first = min(site.layer for coverage in stack.coverage for site in coverage.sites)
    if first == 0 or not all(job.config.trunk for job in jobs):
        yield _Passes(model, table, None, lambda: len(stack))
        return
    trunk = Trunk(model, table.batch, table.lengths, first, run)
    try:
        with trunk.skipping():
            rows = list(range(len(table.rows)))[:2]
            trunk.check(table.take(rows), rows)
            yield _Passes(model, table, trunk, lambda: len(stack))
    finally:
        trunk.close()


def _targets(model: Model, active: Sequence[WriteState], run: Path | None) -> dict[int, Targets]:
    """Soft targets of the writes whose objective has a teacher, asked once for equal questions."""
    known: dict[tuple[Teacher, tuple[Example, ...], tuple[str, ...]], Targets] = {}
    targets = {}
    for state in active:
        if (teacher := state.objective.teacher) is not None:
            examples, contexts = tuple(state.job.examples), tuple(state.job.contexts)
            key = teacher, examples, contexts
            if key not in known:
                known[key] = teacher(model, examples, contexts, run)
            targets[state.index] = known[key]
    return targets


def _losses(
    model: Model,
    batch: Batch,
    pass_: Pass,
    dropout: Masks | None,
    teachers: Sequence[Targets | None],
    groups: Sequence[Sequence[int]],
) -> tuple[TokenNats, Tensor]:
    """How the tokens come out in a pass without dropout, and what is minimised at each (B, C).

    `teachers` and `groups` are of the stack's adapters in order; every group has as many examples.
    """
    if dropout is not None:
        with torch.no_grad():
            nats = model.completion_nats(batch, pass_)
        pass_ = replace(pass_, dropout=dropout)
        return nats, _losses(model, batch, pass_, None, teachers, groups)[1]
    if all(teacher is None for teacher in teachers):
        nats = model.completion_nats(batch, pass_)
        return nats, nats.loss_BT
    logits_BCV = model.completion_logits(batch, pass_)
    nats = token_nats(logits_BCV, torch.where(batch.mask_BC.bool(), batch.target_BC, -1))
    costs = []
    for n, (teacher, group) in enumerate(zip(teachers, groups, strict=True)):
        own = slice(n * len(group), (n + 1) * len(group))
        costs.append(
            nats.loss_BT[own] if teacher is None else teacher.costs(logits_BCV[own], group)
        )
    return nats, torch.cat(costs)


def _certify(passes: _Passes, state: WriteState, n: int) -> bool:
    """Check what may be recalled; whether all was checked with the weights as they are."""
    epoch, n_rows, config = len(state.epochs) + 1, len(state.rows), state.config
    trained = sorted({i for group in state.groups for i in group})
    resting = sorted(set(range(n_rows)) - set(trained))
    if epoch == config.epochs:
        passes.measure(state, n, range(n_rows))
        return True
    # Examples run before the step that may make them safe, so the count lags behind.
    if state.n_recalled() >= NEARLY * n_rows - 2:
        doubtful, safe = state.split(trained, config.margin)
        passes.measure(state, n, doubtful)
        if state.n_recalled() == n_rows:
            passes.measure(state, n, [*safe, *resting])
            return True
    if epoch % config.recheck == 0:
        passes.measure(state, n, resting)
    return False
