"""Write examples into tensors of any form: a prompt, a prefix, vectors of layers, whole weights.

The counterpart of `loop` for one write whose weights are no adapter in a stack. Batches,
objectives, schedules, the order of examples and the reasons to stop are the same; every step is a
pass of the network itself, for compiled passes know adapters only.

Knows tensors and a function that has a pass use them. It knows nothing of what they are.

Shape letters: B batch row, C completion token.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from lorewright.errors import ConfigError, DataError, ModelError
from lorewright.files import digest
from lorewright.knowledge.data import Example
from lorewright.models.backends.backend import AS_BOUND
from lorewright.models.batching import by_length, pass_tokens
from lorewright.models.model import Model
from lorewright.training.checkpoint import Checkpoint, fingerprint
from lorewright.training.config import FLOAT32, NEARLY, Epoch, Job, WriteConfig
from lorewright.training.distil import remind
from lorewright.training.loop import costs_of
from lorewright.training.objectives import StepOutcome, Targets, weighted_mean
from lorewright.training.optimisers import BETAS, EPS
from lorewright.training.state import Table, WriteState
from lorewright.training.stopping import FAILURES, Status, stop
from lorewright.training.watch import Watch

Attach = Callable[[Model, Mapping[str, Tensor]], AbstractContextManager[object]]
"""Has every pass of a model use some tensors for the length of a block, with gradient to them."""


@dataclass(frozen=True)
class Tuned:
    """Trained tensors and the account of their training."""

    tensors: Mapping[str, Tensor]
    epochs: tuple[Epoch, ...]
    reason: str
    """Why training ended: a name in `stopping.STOPS`."""


def check(config: WriteConfig, method: str) -> None:
    """Raise ConfigError for a setting that only adapters have, rather than ignore it."""
    for name, usual, why in (
        ("optimizer", "adamw", "goes by pairs of A and B"),
        ("dropout", 0.0, "hides what A reads"),
        ("lr_ratio", 1.0, "is the rate of B over that of A"),
    ):
        if (value := getattr(config, name)) != usual:
            raise ConfigError(
                f"method {method!r} was to be trained with {name} {value!r}, which {why}; it "
                f"trains no A and B: leave {name} at {usual!r}, or use method 'gradient'."
            )


def tune(
    model: Model,
    start: Mapping[str, Tensor],
    attach: Attach,
    examples: Sequence[Example],
    config: WriteConfig,
    *,
    mark: str,
    contexts: Sequence[str] = (),
    run: Path | None = None,
    watch: Watch,
) -> Tuned:
    """Train tensors until every completion is recalled or the budget is spent.

    Training begins at `start`. `mark` tells this method and what it starts from: with a `run`
    folder the same call resumes, and a checkpoint of another mark is refused. `contexts` as in
    `loop.write`. Raises as that does; ModelError for numbers that are none any more.
    """
    if not examples:
        raise DataError("there are no examples, so nothing to learn; check the views.")
    with torch.enable_grad():  # whatever the caller has switched off
        training = _Training(model, start, attach, Job(examples, config, contexts), run, mark)
        return training.run(watch)


class AdamW:
    """Adam with decoupled decay and one clipped norm, over a few tensors.

    Papers: Adam, arXiv 1412.6980; decoupled weight decay, arXiv 1711.05101.
    """

    def __init__(self, weights: Sequence[Tensor], config: WriteConfig) -> None:
        self.weights, self.decay, self.clip = list(weights), config.weight_decay, config.clip
        self.steps_1 = torch.zeros(1)
        self.moments = [(torch.zeros_like(w), torch.zeros_like(w)) for w in self.weights]

    def tensors(self, n: int) -> dict[str, Tensor]:
        """Views of its state, by name; there is one write, so that n is 0."""
        parts = {
            f"{i}.{k}": part
            for i, both in enumerate(self.moments)
            for k, part in zip("mv", both, strict=True)
        }
        return {"steps": self.steps_1, **parts}

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor], lr: float) -> None:
        """Move every weight against its gradient."""
        self.steps_1 += 1
        n_steps = int(self.steps_1)
        norm = torch.stack([g.float().square().sum() for g in gradients]).sum().sqrt()
        scale = (self.clip / norm.clamp(min=self.clip)).item()
        first, second = (1 - beta**n_steps for beta in BETAS)
        for w, gradient, (mean, square) in zip(self.weights, gradients, self.moments, strict=True):
            mean.lerp_(gradient * scale, 1 - BETAS[0])
            square.mul_(BETAS[1]).addcmul_(gradient, gradient, value=scale**2 * (1 - BETAS[1]))
            w.mul_(1 - lr * self.decay)
            w.addcdiv_(mean / first, (square / second).sqrt() + EPS, value=-lr)


class _Leaves:
    """The tensors that are trained, as a checkpoint stores them."""

    def __init__(self, start: Mapping[str, Tensor], device: torch.device) -> None:
        self.by_name = {k: nn.Parameter(t.detach().to(device, copy=True)) for k, t in start.items()}

    def tensors(self, n: int) -> dict[str, Tensor]:
        """Copies, by name."""
        return {name: w.detach().to("cpu", copy=True) for name, w in self.by_name.items()}

    @torch.no_grad()
    def load(self, n: int, tensors: Mapping[str, Tensor]) -> None:
        """Put stored ones back."""
        for name, w in self.by_name.items():
            w.copy_(tensors[name])


class _Training:
    """One write on its way, with what every step of it needs."""

    def __init__(
        self,
        model: Model,
        start: Mapping[str, Tensor],
        attach: Attach,
        job: Job,
        run: Path | None,
        mark: str,
    ) -> None:
        self.model, self.attach, self.config = model, attach, job.config
        self.table = Table(model, [job])
        (rows,) = self.table.rows_of
        lengths = [self.table.lengths[row] for row in rows]
        self.state = WriteState(0, job, rows, lengths, model.device)
        self.state.arithmetics = [FLOAT32]
        self.leaves = _Leaves(start, model.device)
        self.weights = list(self.leaves.by_name.values())
        self.optimizer = AdamW(self.weights, job.config)
        self.checkpoint = Checkpoint(run, digest([fingerprint(model, [job]), mark]))
        self.checkpoint.resume([self.state], self.leaves, self.optimizer)
        self.targets: Targets | None = None
        if (teacher := self.state.objective.teacher) is not None:
            self.targets = teacher(model, tuple(job.examples), tuple(job.contexts), run)
        elif self.state.rehearsed:
            self.targets = remind(model, job.examples, self.state.rehearsed)

    def run(self, watch: Watch) -> Tuned:
        """Step until a reason to stop applies."""
        state = self.state
        started = time.monotonic() - max((e.seconds for e in state.epochs), default=0.0)
        for past in state.epochs:
            watch.epoch(past)
        if not state.groups:
            if self.config.order == "curriculum":
                self.measure(range(len(state.rows)))
            state.start_epoch()
        while True:
            self.step(state.groups[state.cursor])
            state.cursor += 1
            state.report(watch.advance)
            if state.cursor < len(state.groups):
                continue
            certified = self.certify()
            epoch = state.summary(certified=certified, seconds=time.monotonic() - started)
            finite = all(bool(w.isfinite().all()) for w in self.weights)
            epochs = [*state.epochs, epoch]
            reason, why = stop(Status(self.config, epochs, int(state.tally[2]), finite))
            if reason in FAILURES:
                raise ModelError(why)
            state.epochs = epochs
            if not reason:
                state.start_epoch()
                self.checkpoint.save([state], self.leaves, self.optimizer, force=False)
            watch.epoch(epoch)
            if reason:
                return Tuned(self.leaves.tensors(0), tuple(epochs), reason)

    def step(self, group: Sequence[int]) -> None:
        """One step on a batch of examples; what has no weight moves nothing."""
        state = self.state
        batch = self.table.take([state.rows[i] for i in group])
        with self.attach(self.model, self.leaves.by_name):
            nats, cost_BC = costs_of(self.model, batch, AS_BOUND, [(self.targets, group)])
        with torch.no_grad():
            outcome = StepOutcome(nats.loss_BT.detach(), nats.correct_BT, batch.mask_BC)
            weight_BC = state.weights(group, outcome) * batch.mask_BC
            sums = (outcome.loss_BC * batch.mask_BC, batch.mask_BC, (weight_BC > 0).float())
            state.tally += torch.stack([part.sum() for part in sums])
        if not bool((weight_BC > 0).any()):
            return
        loss = weighted_mean(cost_BC, weight_BC, batch.mask_BC)
        self.optimizer.step(torch.autograd.grad(loss, self.weights), state.rate)

    @torch.no_grad()
    def measure(self, examples: Sequence[int]) -> None:
        """Run examples without training them."""
        state = self.state
        for group in by_length(
            [state.lengths[i] for i in examples], pass_tokens(self.model.device)
        ):
            chosen = [examples[i] for i in group]
            batch = self.table.take([state.rows[i] for i in chosen])
            with self.attach(self.model, self.leaves.by_name):
                nats = self.model.completion_nats(batch)
            state.record(chosen, StepOutcome(nats.loss_BT, nats.correct_BT, batch.mask_BC))

    def certify(self) -> bool:
        """Check what may be recalled; whether all was checked with the weights as they are."""
        state, config = self.state, self.config
        epoch = len(state.epochs) + 1
        # Examples run before the step that may make them safe, so the count lags behind.
        if epoch == config.epochs or state.n_recalled() >= NEARLY * len(state.learnt) - 2:
            self.measure(state.learnt)
            return True
        if epoch % config.recheck == 0:
            trained = {i for group in state.groups for i in group}
            if resting := [i for i in state.learnt if i not in trained]:
                self.measure(resting)
        return False
