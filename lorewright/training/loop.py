"""Write examples into adapters: the one training loop, for one write or for many at once.

N writes share one frozen base: their adapters are one stack, a step of the loop is one optimiser
step of each, and each has its own examples, seed, rate, clip and end. One that ends leaves and the
stack shrinks. N written together equal N written alone.

Training stops on recall, never on a loss: when greedy decoding is certain to reproduce every
completion (p > margin at every token, one forward pass, no decoding).

Knows models, examples and objectives. It knows nothing of probes, folders of memories or reports;
the verdict, on questions that were not trained, belongs to `recall`.

Shape letters: N adapters, B batch row, C completion token, V vocabulary, P values of an adapter.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from lorewright.adapters.adapter import Adapter, capture
from lorewright.adapters.dropout import Masks
from lorewright.adapters.lora import Rows, Stack, attach
from lorewright.adapters.proof import validate
from lorewright.errors import ConfigError, DataError, ModelError
from lorewright.knowledge.data import Example
from lorewright.models.backends.backend import Pass
from lorewright.models.backends.reduced import Reduced
from lorewright.models.batching import by_length, pass_tokens
from lorewright.models.model import Batch, Model
from lorewright.models.nats import TokenNats, token_nats
from lorewright.training.arithmetic import choose
from lorewright.training.at_once import n_at_once
from lorewright.training.checkpoint import Checkpoint, fingerprint
from lorewright.training.config import (
    BFLOAT16,
    FLOAT32,
    NEARLY,
    Diverged,
    Epoch,
    HeldOut,
    Job,
    WriteConfig,
    Written,
)
from lorewright.training.distil import remind
from lorewright.training.filenames import PARTS_FILE
from lorewright.training.held_out import HeldOutRows
from lorewright.training.null_space import null_spaces
from lorewright.training.objectives import Objective, StepOutcome, Targets, weighted_mean
from lorewright.training.optimisers import WHITENED, Optimizer
from lorewright.training.state import Table, WriteState
from lorewright.training.stopping import FAILURES, Status, stop
from lorewright.training.trunk import Trunk
from lorewright.training.watch import Advance
from lorewright.training.whitening import basis, measure


def write(
    model: Model,
    examples: Sequence[Example],
    config: WriteConfig,
    *,
    objective: Objective | None = None,
    contexts: Sequence[str] = (),
    start: Adapter | None = None,
    held_out: HeldOut | None = None,
    stopping: Callable[[], bool] = lambda: False,
    run: Path | None = None,
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
    on_note: Callable[[str], None] = lambda text: None,
    advance: Advance = lambda phase, done, total, note: None,
) -> Written:
    """Train one adapter on the examples until every completion is recalled or the budget is spent.

    `objective` is used in place of the one that config.objective names. Training goes on from
    `start`, whose form config.lora then is. With a `run` folder, metrics go to metrics.jsonl and
    checkpoints are stored; the same call on the same folder resumes, and reports its past epochs
    again. `on_note` gets what is worth knowing between them, in a few words. `held_out` is measured
    after epochs; `stopping` is called after each, and ends the write where it is true. The network
    is as before in every case.

    Raises DataError for no examples or one that does not fit the context, ConfigError when the
    folder holds another write's checkpoint or `start` has another form, ModelError when loss or
    weights are no longer numbers or a layer learns nothing, StorageError when the disk refuses.
    """
    (done,) = write_all(
        model,
        [Job(examples, config, contexts, start, objective, held_out or HeldOut(), stopping)],
        run=run,
        on_epoch=lambda job, epoch: on_epoch(epoch),
        on_note=on_note,
        advance=advance,
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
    on_note: Callable[[str], None] = lambda text: None,
    advance: Advance = lambda phase, done, total, note: None,
) -> list[Written | Diverged]:
    """Write several adapters on one base at once, each as it would be written alone.

    Of more than the free memory holds, some are written after the others, in folders of their own.
    Results are in the order of the jobs. One that fails is reported as `Diverged`; the others go
    on. `on_epoch` gets the job's index; `advance` hears of every pass. Otherwise as `write`; all
    jobs of a call share the optimiser and the arithmetic.
    """
    if not jobs:
        raise DataError("write_all got no jobs, so there is nothing to write; give it some.")
    for i, job in enumerate(jobs):
        which = f"job {i}: " if len(jobs) > 1 else ""
        if not job.examples:
            raise DataError(f"{which}there are no examples, so nothing to learn; check the views.")
        if job.start is not None:
            _check_start(model, job.start, job.config, which)
    size = n_at_once(model, jobs)
    done: list[Written | Diverged] = []
    for start in range(0, len(jobs), size):
        part, place = jobs[start : start + size], run
        if run is not None and size < len(jobs):
            place = run / f"{start}-{len(part)}"
            place.mkdir(parents=True, exist_ok=True)

        def report(job: int, epoch: Epoch, start: int = start) -> None:
            on_epoch(start + job, epoch)

        with _attached(model, part, place) as stack:
            done += _train(model, stack, part, place, report, on_note, advance)
    return done


@contextmanager
def _attached(model: Model, jobs: Sequence[Job], run: Path | None) -> Iterator[Stack]:
    """The stack of some writes on the network, which is as before in the end."""
    stack = attach(model.network, [job.config.lora for job in jobs])
    try:
        with torch.enable_grad():  # whatever the caller has switched off
            yield stack
    finally:
        stack.detach()
        if run is not None:
            with suppress(OSError):
                (run / PARTS_FILE).unlink()


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
    on_note: Callable[[str], None],
    advance: Advance,
) -> list[Written | Diverged]:
    """Step until every write has ended; results in the order of the jobs."""
    started = time.monotonic()

    # Prepare: the rows of all writes, the state of each, and what moves its adapter.
    table = Table(model, jobs)
    states = []
    for i, (job, rows) in enumerate(zip(jobs, table.rows_of, strict=True)):
        lengths = [table.lengths[row] for row in rows]
        states.append(WriteState(i, job, rows, lengths, model.device))
        if job.start is not None:
            stack.load(i, job.start.tensors)
    active = list(states)  # in the order of the stack
    optimizer = Optimizer(stack, [job.config.optimizing for job in jobs])

    def leave(state: WriteState) -> None:
        """Take a write that has ended out of the stack, unless it is the last in it."""
        n = active.index(state)
        if state.reason not in FAILURES:
            state.adapter = capture(stack, n, base_id=model.name, base_digest=model.digest)
        del active[n]
        if active:
            stack.drop(n)
            optimizer.drop(n)

    # Resume; a folder of another write is refused before anything is computed.
    checkpoint = Checkpoint(run, fingerprint(model, jobs))
    checkpoint.resume(states, stack, optimizer)
    started -= max((epoch.seconds for state in states for epoch in state.epochs), default=0.0)
    for state in states:
        for past in state.epochs:
            on_epoch(state.index, past)
        if state.reason:
            leave(state)

    # Compute once what every step needs.
    targets = _targets(model, active, run)
    if active and active[0].config.optimizer == WHITENED:
        rows_N = [tuple(table.rows[i] for i in state.rows) for state in active]
        bases = {rows: measure(model, stack, rows, basis) for rows in dict.fromkeys(rows_N)}
        optimizer.whiten([bases[rows] for rows in rows_N])
        for n, state in enumerate(active):
            if not state.epochs and state.job.start is None:
                optimizer.bring_into_bases(n)
    _confine(model, stack, table, active, optimizer, on_note)
    trunk = _trunk(model, stack, table, jobs, run) if active else None

    def report() -> None:
        """Report how far the first write is."""
        active[0].report(advance)

    reduced = _reduced(model, states, on_note)
    held_out = HeldOutRows(model, [job.held_out for job in jobs])
    passes = _Passes(model, stack, table, trunk, reduced, report)

    for n, state in enumerate(active):
        if not state.groups:
            if state.config.order == "curriculum":
                passes.measure(state, n, range(len(state.rows)))
            state.start_epoch()

    while active:
        # A step of every write: its group of examples, filled up to the largest.
        groups = [state.groups[state.cursor] for state in active]
        size = max(map(len, groups))
        filled = [[*group, *group[-1:] * (size - len(group))] for group in groups]
        rows = [s.rows[i] for s, group in zip(active, filled, strict=True) for i in group]
        adapter_B = None
        if len(active) > 1:
            adapter_B = torch.arange(len(active)).repeat_interleave(size)
        batch, pass_ = passes.over(rows, adapter_B, optimizer.whole_NP)
        real_B = torch.tensor([i < len(group) for group in groups for i in range(size)])
        mask_BC = batch.mask_BC * real_B[:, None].to(batch.mask_BC)
        batch = replace(batch, mask_BC=mask_BC)

        # How its tokens come out, in a pass without dropout, and what is minimised at each.
        shares = [s.share(group) for s, group in zip(active, groups, strict=True)]
        soft = [(targets.get(s.index), group) for s, group in zip(active, filled, strict=True)]
        if any(share.rate for share in shares):
            with torch.no_grad():
                nats = model.completion_nats(batch, pass_)
            hiding = replace(pass_, dropout=Masks(shares, size))
            _, cost_BC = costs_of(model, batch, hiding, soft)
        else:
            nats, cost_BC = costs_of(model, batch, pass_, soft)

        # Weights, the gradient, and the move.
        with torch.no_grad():
            loss_BC = nats.loss_BT.detach()
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
        checkpoint.show_parts(active)
        report()

        # Epochs that are over: certify, record, end the write or go on, store.
        closed = [state for state in active if state.cursor == len(state.groups)]
        for state in closed:
            n = active.index(state)
            certified = passes.certify(state, n)
            epoch = state.summary(certified=certified, seconds=time.monotonic() - started)
            epoch = held_out.measured(epoch, state.index, stack, n)
            n_weighted = int(state.tally[2])
            finite = all(flat.weight_NP[n].isfinite().all() for flat in stack.flats)
            idle = () if state.epochs else stack.idle(n)
            epochs = [*state.epochs, epoch]
            requested = state.job.stopping()
            status = Status(state.config, epochs, n_weighted, finite, idle, requested)
            state.reason, state.why = stop(status)
            if state.reason not in FAILURES:
                state.epochs = epochs
            if state.reason == "stopped" and len(states) == 1:
                checkpoint.save_open(state, stack, optimizer)
            if state.reason:
                leave(state)
            else:
                state.start_epoch()
            if passes.reduced and certified and not state.reason:
                passes = replace(passes, reduced=None)
                for other in active:
                    other.arithmetics.append(FLOAT32)
                on_note(
                    f"{epoch.n_recalled} of {epoch.n_examples} recalled in float32; going on in it"
                )
        if closed:
            checkpoint.save(states, stack, optimizer, force=any(state.reason for state in closed))
        for state in closed:
            if state.reason not in FAILURES:
                on_epoch(state.index, state.epochs[-1])
    return [state.result for state in states]


# What a step needs


@dataclass(frozen=True)
class _Passes:
    """Passes over rows of the table, which begin at the adapted layers where there is a trunk."""

    model: Model
    stack: Stack
    table: Table
    trunk: Trunk | None
    reduced: Reduced | None
    """Frozen weights in bfloat16, where training multiplies with them; audits never do."""
    report: Callable[[], None]
    """Called after every pass that trains nothing."""

    def over(
        self, rows: Sequence[int], adapter_B: Tensor | None, whole_NP: Tensor | None = None
    ) -> tuple[Batch, Pass]:
        """A batch of these rows and the pass over it; `adapter_B` None = all use the first."""
        batch = self.table.take(rows)
        entering = self.trunk.entering(rows, batch.ids_BT.shape[1]) if self.trunk else None
        using = Rows(adapter_B, len(self.stack))
        n_shared = self.table.shared(rows, len(using.blocks))
        return batch, Pass(
            using, entering, reduced=self.reduced, n_shared=n_shared, whole_NP=whole_NP
        )

    @torch.no_grad()
    def measure(self, state: WriteState, n: int, examples: Sequence[int]) -> None:
        """Run examples of the write that is n-th in the stack without training them."""
        budget = pass_tokens(self.model.device)
        for group in by_length([state.lengths[i] for i in examples], budget):
            chosen = [examples[i] for i in group]
            adapter_B = torch.full((len(group),), n)
            batch, pass_ = self.over([state.rows[i] for i in chosen], adapter_B)
            nats = self.model.completion_nats(batch, pass_)
            state.record(chosen, StepOutcome(nats.loss_BT, nats.correct_BT, batch.mask_BC))
            self.report()

    def certify(self, state: WriteState, n: int) -> bool:
        """Check what may be recalled; whether all was checked with the weights as they are."""
        epoch, n_rows, config = len(state.epochs) + 1, len(state.learnt), state.config
        trained = sorted({i for group in state.groups for i in group} & set(state.learnt))
        resting = sorted(set(state.learnt) - set(trained))
        audit = replace(self, reduced=None)
        if epoch == config.epochs:
            audit.measure(state, n, state.learnt)
            return True
        # Examples run before the step that may make them safe, so the count lags behind.
        if state.n_recalled() >= NEARLY * n_rows - 2:
            doubtful, safe = state.split(trained, config.margin)
            self.measure(state, n, doubtful)
            if state.n_recalled() == n_rows:
                audit.measure(state, n, state.learnt if self.reduced else [*safe, *resting])
                return True
        if epoch % config.recheck == 0:
            self.measure(state, n, resting)
        return False


def _reduced(
    model: Model, states: Sequence[WriteState], on_note: Callable[[str], None]
) -> Reduced | None:
    """What the passes that train multiply with: as the checkpoint has it, or chosen here."""
    active = [state for state in states if not state.reason]
    if not active:
        return None
    if not active[0].arithmetics:
        chosen, why = choose(model, [state.config for state in active])
        if why:
            on_note(why)
        for state in active:
            state.arithmetics = [chosen]
    return Reduced() if active[0].arithmetics[-1] == BFLOAT16 else None


def _confine(
    model: Model,
    stack: Stack,
    table: Table,
    active: Sequence[WriteState],
    optimizer: Optimizer,
    on_note: Callable[[str], None],
) -> None:
    """Keep every A out of what the base reads of the questions that its write rehearses.

    What an adapter to go on from reads already it may go on reading.
    """
    protected_N = [
        [table.rows[s.rows[i]] for i in s.rehearsed if s.job.start is None] for s in active
    ]
    shares_N = [state.config.null_space for state in active]
    if any(rows and share for rows, share in zip(protected_N, shares_N, strict=True)):
        on_note("measuring what the base reads of the rehearsed questions")
    optimizer.confine(null_spaces(model, stack, protected_N, shares_N))
    for n, state in enumerate(active):
        if not state.epochs:
            optimizer.project(n)


def _trunk(
    model: Model, stack: Stack, table: Table, jobs: Sequence[Job], run: Path | None
) -> Trunk | None:
    """The frozen layers below the first adapted one, if there are any and every job wants them."""
    first = min(site.layer for coverage in stack.coverage for site in coverage.sites)
    if first == 0 or not all(job.config.trunk for job in jobs):
        return None
    trunk = Trunk(model, table.batch, table.lengths, first, run)
    rows = range(len(table.rows))[:2]
    trunk.check(table.take(rows), rows)
    return trunk


def _targets(model: Model, active: Sequence[WriteState], run: Path | None) -> dict[int, Targets]:
    """Soft targets: of all examples where the objective has a teacher, else of those rehearsed.

    What is rehearsed has the plain base as its teacher: all that it would have said there is held
    in place, not only what it said. Equal ones share theirs.
    """
    answers: dict[object, Targets] = {}
    targets = {}
    for state in active:
        examples, contexts = tuple(state.job.examples), tuple(state.job.contexts)
        teacher = state.objective.teacher
        if teacher is None and not state.rehearsed:
            continue
        key = teacher, examples, contexts
        if key not in answers:
            answers[key] = (
                teacher(model, examples, contexts, run)
                if teacher is not None
                else remind(model, examples, state.rehearsed)
            )
        targets[state.index] = answers[key]
    return targets


def costs_of(
    model: Model, batch: Batch, pass_: Pass, soft: Sequence[tuple[Targets | None, Sequence[int]]]
) -> tuple[TokenNats, Tensor]:
    """How the tokens come out, and what is minimised at each (B, C): the same, or by targets.

    `soft`: of every adapter of the stack its targets, if any, and its examples; each has as many.
    """
    if not any(targets and targets.cover(examples) for targets, examples in soft):
        nats = model.completion_nats(batch, pass_)
        return nats, nats.loss_BT
    logits_BCV = model.completion_logits(batch, pass_)
    nats = token_nats(logits_BCV, torch.where(batch.mask_BC.bool(), batch.target_BC, -1))
    costs, size = [], len(soft[0][1])
    for n, (targets, examples) in enumerate(soft):
        own = slice(n * size, (n + 1) * size)
        cost_BC = nats.loss_BT[own]
        if targets is not None:
            cost_BC = targets.costs(logits_BCV[own], examples, cost_BC)
        costs.append(cost_BC)
    return nats, torch.cat(costs)
