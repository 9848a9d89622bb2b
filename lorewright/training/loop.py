"""Write examples into adapters: the one training loop, for one write or for many at once.

N writes share one frozen base: their adapters are one stack, a step of the loop is one optimiser
step of each, and each has its own examples, seed, rate, clip and stop. One that is done leaves and
the stack shrinks. N written together equal N written alone.

The loop stops on recall, never on a loss: when greedy decoding is certain to reproduce every
completion (p > margin at every token, one forward pass, no decoding). Examples that are safe may
rest until they are checked again; layers below the first adapted one run once and never again. A
checkpoint holds everything that the next step needs, so an interrupted run continues and gives the
same bytes on the same machine.

This room knows models, examples and objectives. It knows nothing of probes, folders of memories or
reports; the verdict is taken elsewhere, on questions that were not trained.

Shape letters: N adapters, E distinct rows, B batch row, T token, C completion token, V vocabulary.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lorewright.adapters.adapter import Adapter, capture, content_id, validate
from lorewright.adapters.config import LoraConfig
from lorewright.adapters.dropout import Masks
from lorewright.adapters.lora import Stack, attach
from lorewright.errors import ConfigError, DataError, ModelError
from lorewright.files import digest
from lorewright.knowledge.data import Example
from lorewright.models.batching import by_length, pass_tokens
from lorewright.models.model import Batch, Model
from lorewright.models.nats import TokenNats, token_nats
from lorewright.training import checkpoint, whitening
from lorewright.training.config import (
    NEARLY,
    Diverged,
    Epoch,
    Job,
    WriteConfig,
    Written,
    ending,
    rate,
)
from lorewright.training.distil import SoftTargets, teach
from lorewright.training.objectives import distill_topk, weighted_mean
from lorewright.training.optimisers import WHITENED, Optimizer
from lorewright.training.progress import Progress
from lorewright.training.trunk import Trunk

CHECKPOINT_SECONDS = 2.0
"""Least time between two checkpoints, which cost more than an epoch of a few examples."""


def write(
    model: Model,
    examples: Sequence[Example],
    config: WriteConfig,
    *,
    contexts: Sequence[str] = (),
    start: Adapter | None = None,
    run: Path | None = None,
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
) -> Written:
    """Train one adapter on the examples until every completion is recalled or the budget is spent.

    It goes on from `start`, whose form config.lora then is. With a `run` folder, metrics go to
    metrics.jsonl and a checkpoint is kept; the same call on the same folder resumes, and reports
    its past epochs again. Raises DataError for no examples or one that does not fit the context,
    ConfigError when the folder holds another write's checkpoint or `start` has another form,
    ModelError when loss or weights are no longer numbers or a layer learns nothing, StorageError
    when the disk refuses. The network is as before in every case.
    """
    (done,) = write_all(
        model,
        [Job(examples, config, contexts, start)],
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

    Results are in the order of the jobs. One that diverges is dropped and said to have; the others
    go on. `on_epoch` gets the job's index. Otherwise as `write`; all jobs of a call share the
    optimiser.
    """
    if not jobs:
        raise DataError("write_all was asked to write nothing: there are no jobs.")
    for i, job in enumerate(jobs):
        which = f"job {i}: " if len(jobs) > 1 else ""
        job.check(which)
        if job.start is not None:
            _check_start(model, job.start, job.config.lora, which)
    stack = attach(model.network, [job.config.lora for job in jobs])
    try:
        with torch.enable_grad():  # whatever the caller has switched off
            return _Loop(model, stack, jobs, run, on_epoch).run()
    finally:
        stack.detach()


def _check_start(model: Model, start: Adapter, lora: LoraConfig, which: str) -> None:
    """Raise ConfigError unless an adapter to go on from has the form that is asked for."""
    validate(start, model.network, model.digest)
    here, asked = ((c.rank, c.scale, c.targets, c.layers, c.variant) for c in (start.config, lora))
    if here != asked:
        raise ConfigError(
            f"{which}the adapter to go on from has (rank, scale, targets, layers, variant) {here}; "
            f"config.lora asks for {asked}; give its own config."
        )


class _Loop:
    """The members of a stack on their way; see the module's first lines."""

    def __init__(
        self,
        model: Model,
        stack: Stack,
        jobs: Sequence[Job],
        run: Path | None,
        on_epoch: Callable[[int, Epoch], None],
    ) -> None:
        self.model, self.stack, self.jobs, self.folder = model, stack, jobs, run
        self.on_epoch = on_epoch
        # Jobs of a sweep learn the same rows: they are tokenised, and their trunk computed, once.
        pairs = dict.fromkeys((e.prompt, e.completion) for job in jobs for e in job.examples)
        known = {pair: model.render(*pair) for pair in pairs}
        rendered = [[known[e.prompt, e.completion] for e in job.examples] for job in jobs]
        distinct = list(dict.fromkeys(row for rows in rendered for row in rows))
        place = {row: i for i, row in enumerate(distinct)}
        self.table = model.batch(distinct)
        self.lengths = [len(row) for row in distinct]
        self.n_completion = [len(row.completion_ids) for row in distinct]
        self.members = [
            Progress(i, job, [place[row] for row in rows], model.device)
            for i, (job, rows) in enumerate(zip(jobs, rendered, strict=True))
        ]
        for i, job in enumerate(jobs):
            if job.start is not None:
                stack.load(i, job.start.tensors)
        self.results: dict[int, Written | Diverged] = {}
        self.optimizer = Optimizer(stack, [job.config.moving for job in jobs])
        asked = [[[asdict(e) for e in j.examples], j.config.to_json(), [*j.contexts]] for j in jobs]
        begun = [content_id(job.start) if job.start else None for job in jobs]
        self.mark = digest(
            [model.digest, model.template_digest, asked, *([begun] if any(begun) else [])]
        )
        self.started = time.monotonic()
        self.saved_at, self.appending = -math.inf, False
        self.soft: dict[int, SoftTargets] = {}
        self.trunk: Trunk | None = None
        self._resume()  # refuses a folder of another write before anything is computed
        taught: dict[str, SoftTargets] = {}
        for member in self.members:
            if member.config.objective == "distill":
                self.stack.bind(torch.full((1,), -1))  # the base alone
                job = jobs[member.index]
                self.soft[member.index] = teach(model, job.examples, job.contexts, run, taught)
        if self.members:
            self.trunk = self._frozen()
            if self.members[0].config.optimizer == WHITENED:
                rows_N = [[distinct[i] for i in member.rows] for member in self.members]
                drawn_N = [not m.records and not jobs[m.index].start for m in self.members]
                whitening.begin(model, stack, self.optimizer, rows_N, drawn_N)

    def _frozen(self) -> Trunk | None:
        """The trunk below the first adapted layer, if there is one and every job wants it."""
        first = min(site.layer for found in self.stack.coverage for site in found.sites)
        if first == 0 or not all(job.config.trunk for job in self.jobs):
            return None
        return Trunk(self.model, self.table, self.lengths, first, self.folder)

    # -- the loop --------------------------------------------------------------------------------

    def run(self) -> list[Written | Diverged]:
        """Step until every write has ended; results in the order of the jobs."""
        try:
            with self.trunk.skipping() if self.trunk else nullcontext():
                if self.trunk and self.members:
                    rows = self.members[0].rows[:2]
                    self.trunk.check(self._batch(rows), rows)
                while self.members:
                    for member in list(self.members):
                        if member.cursor == len(member.groups):
                            self._turn(member)
                    if self.members:
                        self._step()
        finally:
            if self.trunk:
                self.trunk.close()
        return [self.results[i] for i in range(len(self.jobs))]

    def _turn(self, member: Progress) -> None:
        """Between two epochs: close the one that is over, then end the write or begin the next."""
        n_before = len(member.records)
        reason = self._close_epoch(member) if member.groups else None
        if member.index in self.results:
            return
        reason = reason or ending(member.records, member.config)
        if reason:
            self._leave(member, reason)
        else:
            if member.config.order == "curriculum" and not member.records:
                self._check(member, range(len(member.rows)))
            member.start_epoch(self.lengths)
        if len(member.records) > n_before:
            self._log(member, member.records[-1:])
            self._save(force=reason is not None)
            self.on_epoch(member.index, member.records[-1])

    def _step(self) -> None:
        """One optimiser step of every member, on one batch in which each has as many rows."""
        members = self.members
        groups = [member.groups[member.cursor] for member in members]
        size = max(map(len, groups))
        index = [
            member.rows[group[min(i, len(group) - 1)]]
            for member, group in zip(members, groups, strict=True)
            for i in range(size)
        ]
        batch = self._batch(index)
        real_B = torch.tensor([i < len(group) for group in groups for i in range(size)])
        mask_BC = batch.mask_BC * real_B[:, None].to(batch.mask_BC)
        alone = len(members) == 1
        self.stack.rows.whole_NP = self.optimizer.whole_NP
        self.stack.bind(None if alone else torch.arange(len(members)).repeat_interleave(size))
        nats, cost_BC = self._passed(replace(batch, mask_BC=mask_BC), index, groups, size)
        loss_BC = nats.loss_BT.detach()
        weight_BC = torch.zeros_like(loss_BC)
        with torch.no_grad():
            for n, (member, group) in enumerate(zip(members, groups, strict=True)):
                rows = slice(n * size, n * size + len(group))
                seen = TokenNats(loss_BC[rows], nats.correct_BT[rows])
                weight_BC[rows] = member.weights(group, *seen)
                member.met(group, seen, mask_BC[rows])
            weight_BC *= mask_BC
            sums = (loss_BC * mask_BC, mask_BC, (weight_BC > 0).float())
            tally_N3 = torch.stack([part.view(len(members), -1).sum(1) for part in sums], 1)
        group_B = None if alone else self.stack.rows.rows_B
        loss = weighted_mean(cost_BC, weight_BC, mask_BC, group_B=group_B)
        grads, whole_NP = self.optimizer.gradients(loss)
        rates = [rate(m.config, m.records, m.epochs_done) for m in members]
        self.optimizer.step(grads, rates, tally_N3[:, 2] > 0, whole_NP)
        for member, tally_3 in zip(members, tally_N3, strict=True):
            member.tally += tally_3
            member.cursor += 1

    def _passed(
        self, batch: Batch, index: Sequence[int], groups: list[list[int]], size: int
    ) -> tuple[TokenNats, Tensor]:
        """How the tokens of a step are met, in a pass without dropout, and what is minimised."""
        masks = self._masks(groups, size)
        self._feed(index, batch)
        if masks is None:
            return self._costs(batch, groups, size)
        with torch.no_grad():
            nats = self.model.completion_nats(batch)
        self._feed(index, batch)
        with self.stack.dropping(masks):
            return nats, self._costs(batch, groups, size)[1]

    def _masks(self, groups: list[list[int]], size: int) -> Masks | None:
        """What this step hides, of which adapter; None when no write has dropout."""
        shares = [m.share(g, self.lengths) for m, g in zip(self.members, groups, strict=True)]
        return Masks(shares, size) if any(share.rate for share in shares) else None

    def _feed(self, index: Sequence[int], batch: Batch) -> None:
        """Have the next pass over these rows start at the adapted layers, if there is a trunk."""
        if self.trunk:
            self.trunk.feed(index, batch.ids_BT.shape[1])

    def _batch(self, index: Sequence[int]) -> Batch:
        """Rows of the table, cut to the longest of them."""
        return self.table.take(
            torch.tensor(index, device=self.table.ids_BT.device),
            max(self.lengths[i] for i in index),
            max(self.n_completion[i] for i in index),
        )

    def _costs(self, batch: Batch, groups: list[list[int]], size: int) -> tuple[TokenNats, Tensor]:
        """Loss of every token, and what is minimised: the same, or the distance to the teacher."""
        if not any(member.index in self.soft for member in self.members):
            nats = self.model.completion_nats(batch)
            return nats, nats.loss_BT
        logits_BCV = self.model.completion_logits(batch)
        nats = token_nats(logits_BCV, torch.where(batch.mask_BC.bool(), batch.target_BC, -1))
        costs = []
        for n, (member, group) in enumerate(zip(self.members, groups, strict=True)):
            rows = slice(n * size, (n + 1) * size)
            soft = self.soft.get(member.index)
            if soft is None:
                costs.append(nats.loss_BT[rows])
                continue
            filled = [*group, *group[-1:] * (size - len(group))]
            top = soft.take(filled, logits_BCV.shape[1])
            ids_BCK, logp_BCK = (part.to(logits_BCV.device) for part in top)
            costs.append(distill_topk(logits_BCV[rows], ids_BCK, logp_BCK))
        return nats, torch.cat(costs)

    # -- between epochs --------------------------------------------------------------------------

    def _close_epoch(self, member: Progress) -> str | None:
        """Record the epoch that is over; why the write ends with it, if something odd ends it."""
        n, n_rows = self.members.index(member), len(member.rows)
        loss, n_tokens, n_active = member.tally.tolist()
        if not math.isfinite(loss):
            why = f"the loss is {loss} in epoch {len(member.records) + 1}; lower lr (it is "
            return self._fail(member, f"{why}{member.config.lr}).")
        idle = self.stack.idle(n) if not member.records else ()
        if idle and member.n_recalled() < len(member.rows):
            return self._fail(
                member,
                f"{len(idle)} of {len(self.stack.coverage[n].sites)} adapted layers got no "
                f"gradient in a whole epoch, the first is {idle[0]!r}; leave them out of targets.",
            )
        certified = self._certify(member)
        member.records.append(
            Epoch(
                len(member.records) + 1,
                member.config.epochs,
                loss / n_tokens,
                member.n_recalled(),
                len(member.rows),
                certified,
                rate(member.config, member.records, len(member.records) + 1),
                round(time.monotonic() - self.started, 3),
                sum(map(len, member.groups)),
            )
        )
        member.groups, member.cursor = [], 0
        # Safe in the batches that train and not in those that check: training would idle.
        idles = n_active == 0 and member.config.rest is None and member.n_recalled() < n_rows
        return "nothing left" if idles else None

    def _certify(self, member: Progress) -> bool:
        """Check what may be recalled; whether all was checked with the weights as they are."""
        epoch, n_rows = len(member.records) + 1, len(member.rows)
        trained = sorted({i for group in member.groups for i in group})
        resting = sorted(set(range(n_rows)) - set(trained))
        if epoch == member.config.epochs:
            self._check(member, range(n_rows))
            return True
        # Examples are met before the step that may make them safe, so the count lags behind.
        if member.n_recalled() >= NEARLY * n_rows - 2:
            doubtful, safe = member.split(trained, member.config.margin)
            self._check(member, doubtful)
            if member.n_recalled() == n_rows:
                self._check(member, [*safe, *resting])
                return True
        if epoch % member.config.recheck == 0:
            self._check(member, resting)
        return False

    @torch.no_grad()
    def _check(self, member: Progress, examples: Sequence[int]) -> None:
        """Meet examples without training them: one forward pass each."""
        n = self.members.index(member)
        stuck, anchor = (member.seen[name].clone() for name in ("stuck", "anchor"))
        lengths = [self.lengths[member.rows[i]] for i in examples]
        for group in by_length(lengths, pass_tokens(self.model.device)):
            chosen = [examples[i] for i in group]
            index = [member.rows[i] for i in chosen]
            batch = self._batch(index)
            self.stack.bind(torch.full((len(index),), n))
            self._feed(index, batch)
            member.met(chosen, self.model.completion_nats(batch), batch.mask_BC)
        member.seen |= {"stuck": stuck, "anchor": anchor}  # visits are counted in training

    def _fail(self, member: Progress, why: str) -> str:
        """Take a member out that cannot go on."""
        self.results[member.index] = Diverged(why, tuple(member.records))
        self._drop(member)
        return "failed"

    def _leave(self, member: Progress, reason: str) -> None:
        """Take a member out that is done, with its adapter."""
        model, n = self.model, self.members.index(member)
        adapter = capture(self.stack, n, base_id=model.name, base_digest=model.digest)
        if not all(torch.isfinite(tensor).all() for tensor in adapter.tensors.values()):
            lr = member.config.lr
            self._fail(member, f"the last steps left weights of no number; lower lr ({lr}).")
            return
        self.results[member.index] = Written(adapter, tuple(member.records), reason)
        self._drop(member)

    def _drop(self, member: Progress) -> None:
        """The stack shrinks by a member, unless it is the last, which `detach` takes."""
        n = self.members.index(member)
        del self.members[n]
        if self.members:
            self.stack.drop(n)
            self.optimizer.drop(n)

    # -- on disk ---------------------------------------------------------------------------------

    def _log(self, member: Progress, rows: Sequence[Epoch]) -> None:
        """Add to metrics.jsonl; the first time after a start or a resume, begin it anew."""
        if self.folder is None:
            return
        logged = [(member.index, row) for row in rows]
        if not self.appending:  # drops epochs that the checkpoint lacks
            done = [(i, result.epochs) for i, result in self.results.items()]
            going = [(m.index, tuple(m.records)) for m in self.members]
            logged = [(i, row) for i, epochs in sorted([*done, *going]) for row in epochs]
        tags = [{"job": i} if len(self.jobs) > 1 else {} for i, _ in logged]
        checkpoint.log(
            self.folder,
            [asdict(row) | tag for (_, row), tag in zip(logged, tags, strict=True)],
            append=self.appending,
        )
        self.appending = True

    def _save(self, *, force: bool) -> None:
        """Keep all that the next step needs, unless that was done a moment ago."""
        if self.folder is None:
            return
        if not force and time.monotonic() - self.saved_at < CHECKPOINT_SECONDS:
            return
        tensors: dict[str, Tensor] = {}
        about: list[dict[str, Any]] = [{} for _ in self.jobs]
        for n, member in enumerate(self.members):
            parts = {
                "weight": self.stack.tensors(n),
                "state": self.optimizer.tensors(n),
                "seen": {**member.seen, "tally": member.tally},
            }
            about[member.index] = {
                "epochs": [asdict(record) for record in member.records],
                "groups": member.groups,
                "cursor": member.cursor,
            }
            for part, found in parts.items():
                tensors |= {f"{member.index}.{part}.{k}": t.cpu() for k, t in found.items()}
        for i, result in self.results.items():
            about[i] = {"epochs": [asdict(record) for record in result.epochs]}
            if isinstance(result, Diverged):
                about[i]["why"] = result.why
            else:
                about[i]["reason"] = result.reason
                tensors |= {f"{i}.weight.{k}": t for k, t in result.adapter.tensors.items()}
        tensors = {key: tensor.contiguous() for key, tensor in tensors.items()}
        checkpoint.save(self.folder, self.mark, tensors, {"members": about})
        self.saved_at = time.monotonic()

    def _resume(self) -> None:
        """Put every member where the checkpoint has it, and report its epochs again."""
        found = None if self.folder is None else checkpoint.load(self.folder, self.mark)
        if found is None:
            return
        tensors, about = found
        spent = 0.0
        for member, entry in zip(list(self.members), about["members"], strict=True):
            start = f"{member.index}."
            own = {k.removeprefix(start): t for k, t in tensors.items() if k.startswith(start)}
            member.records = [Epoch(**row) for row in entry["epochs"]]
            spent = max([spent, *(record.seconds for record in member.records)])
            for record in member.records:
                self.on_epoch(member.index, record)
            if "why" in entry:
                self._fail(member, entry["why"])
                continue
            n = self.members.index(member)
            self.stack.load(n, _part(own, "weight."))
            if "reason" in entry:
                self._leave(member, entry["reason"])
                continue
            self.optimizer.load(n, _part(own, "state."))
            for name, tensor in _part(own, "seen.").items():
                if name == "tally":
                    member.tally = tensor.to(member.device)
                else:
                    member.seen[name] = tensor.to(member.device)
            member.groups, member.cursor = entry["groups"], entry["cursor"]
        self.started -= spent


def _part(tensors: Mapping[str, Tensor], start: str) -> dict[str, Tensor]:
    return {k.removeprefix(start): t for k, t in tensors.items() if k.startswith(start)}
