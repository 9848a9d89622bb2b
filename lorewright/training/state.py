"""What training works on: the rows of all writes, and each write on its way.

Of a write: where it is in its epoch, how it ended, and for every example, on the model's device so
that nothing is read back between steps, mean loss and largest loss of a token when it last ran, and
what the objective remembers. From these follow weights, which examples rest, and the order of a
curriculum.

Knows settings, losses and batches; knows nothing of adapters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from lorewright.adapters.adapter import Adapter
from lorewright.adapters.dropout import Share
from lorewright.knowledge.data import REHEARSAL
from lorewright.models.batching import batches, worth_sharing
from lorewright.models.model import Batch, Model
from lorewright.training.config import Diverged, Epoch, Job, Part, Written, rate
from lorewright.training.objectives import StepOutcome
from lorewright.training.watch import TRAINING, Advance

DOUBTFUL_NATS = math.log(2.0)
"""Loss of a token above which another may be likelier: p < 1/2."""
FEWEST = 4
"""Batches of an epoch in which examples rest, at least; of fewer examples as many as they make."""

STEPS_OF_EPOCH = 1000
"""Parts of an epoch in which progress is counted."""


class Table:
    """All distinct rows of some jobs in one padded batch, from which steps take theirs."""

    def __init__(self, model: Model, jobs: Sequence[Job]) -> None:
        """Raises DataError for an example that does not fit the model's context."""
        texts = dict.fromkeys((e.prompt, e.completion) for job in jobs for e in job.examples)
        rendered = {text: model.render(*text) for text in texts}
        self.rows = list(dict.fromkeys(rendered.values()))
        place = {row: i for i, row in enumerate(self.rows)}
        self.rows_of = [
            [place[rendered[e.prompt, e.completion]] for e in job.examples] for job in jobs
        ]
        """For every job the row of each of its examples."""
        self.batch = model.batch(self.rows)
        self.lengths = [len(row) for row in self.rows]
        self.n_completion = [len(row.completion_ids) for row in self.rows]

    def take(self, rows: Sequence[int]) -> Batch:
        """Some rows, cut to the longest of them."""
        return self.batch.take(
            torch.tensor(rows, device=self.batch.ids_BT.device),
            max(self.lengths[i] for i in rows),
            max(self.n_completion[i] for i in rows),
        )

    def shared(self, rows: Sequence[int], n_blocks: int) -> int:
        """Tokens that are to run once in a pass over these rows, for each block of an adapter."""
        prompts = [self.rows[i].prompt_ids for i in rows]
        return worth_sharing(prompts, max(self.lengths[i] for i in rows), n_blocks)


class WriteState:
    """One write on its way; its n-th example is row `rows[n]` of the table, of `lengths[n]`."""

    def __init__(
        self,
        index: int,
        job: Job,
        rows: Sequence[int],
        lengths: Sequence[int],
        device: torch.device,
    ) -> None:
        self.index, self.job, self.config, self.device = index, job, job.config, device
        self.rows, self.lengths, n = rows, lengths, len(rows)
        every = list(range(n))
        self.rehearsed = [i for i in every if job.examples[i].kind == REHEARSAL]
        """Examples that the base knows already, in the order in which they are rehearsed."""
        self.learnt = [i for i in every if job.examples[i].kind != REHEARSAL]
        if not self.learnt:  # nothing else to do: these are learnt like any others
            self.learnt, self.rehearsed = self.rehearsed, []
        self._learnt_index = torch.tensor(self.learnt, device=device)
        self.objective = job.objective or job.config.build_objective()
        self.epochs: list[Epoch] = []
        """Those that are over."""
        self.groups: list[list[int]] = []
        """Examples of every step of the current epoch."""
        self.cursor = 0
        """Its next step."""
        self.reason, self.why = "", ""
        """How it ended: a name and a sentence of `stopping`; empty while it goes on."""
        self.arithmetics: list[str] = []
        """In what its frozen layers have multiplied; the last is that of the next step."""
        self.adapter: Adapter | None = None
        """What it left, unless it failed."""
        self.tally = torch.zeros(3, device=device)
        """Of the current epoch: nats, tokens, tokens with weight."""
        self.mean_nats = torch.full((n,), math.inf, device=device)
        self.worst_nats = self.mean_nats.clone()
        self.doubtful = torch.zeros((2, n), device=device)
        """Of each example when it last ran: tokens with p < 1/2, and all of its tokens."""
        self.remembered = self.objective.state(n, device)

    def report(self, advance: Advance) -> None:
        """Report how far it is in its budget, which the stop rule may not need."""
        epoch, epochs = len(self.epochs), self.config.epochs
        done = round(STEPS_OF_EPOCH * (epoch + self.cursor / max(1, len(self.groups))))
        advance(TRAINING, done, STEPS_OF_EPOCH * epochs, f"epoch {epoch + 1} of {epochs}")

    # -- an epoch --------------------------------------------------------------------------------

    def start_epoch(self) -> None:
        """Choose the examples of the next epoch and cut them into batches."""
        config, size = self.config, self.config.batch_size
        chosen, n_rounds = self.learnt, 1
        if config.rest is not None:
            chosen = self.split(chosen, config.rest)[0] or chosen
            # A few that do not rest are trained several times, or there would be one step an epoch.
            fewest = min(FEWEST, -(-len(self.learnt) // size))
            n_rounds = max(1, fewest * size // len(chosen))
        done = len(self.epochs)
        rehearsed = self.slice_of(done, chosen * n_rounds)
        self.groups = [
            group
            for i in range(n_rounds)
            for group in batches(
                self.lengths,
                [*chosen, *rehearsed] if i == 0 else chosen,
                size=size,
                seed=config.seed,
                epoch=done + i * config.epochs,
                order=config.order,
                done=done / config.epochs,
                nats=self.mean_nats.tolist(),
            )
        ]
        self.cursor, self.tally = 0, torch.zeros_like(self.tally)

    def slice_of(self, epoch: int, chosen: Sequence[int]) -> list[int]:
        """The examples rehearsed in an epoch: its turn in the rotation, within their share.

        As many as fit on average, fewer where these are long; the same for the same epoch.
        """
        if not self.rehearsed:
            return []
        share, tokens = self.config.rehearsal, self.lengths
        budget = share / (1 - share) * sum(tokens[i] for i in chosen)
        mean = sum(tokens[i] for i in self.rehearsed) / len(self.rehearsed)
        n = min(len(self.rehearsed), int(budget / mean))
        turn = [self.rehearsed[(epoch * n + k) % len(self.rehearsed)] for k in range(n)]
        total = accumulate(tokens[i] for i in turn)
        return [i for i, so_far in zip(turn, total, strict=True) if so_far <= budget]

    def part(self) -> Part | None:
        """The account of the epoch that goes on; None where it has no loss that is a number."""
        nats, n_tokens, _ = self.tally.tolist()
        if not n_tokens or not math.isfinite(nats):
            return None
        done = self.cursor / len(self.groups)
        number, epochs = len(self.epochs) + 1, self.config.epochs
        return Part(number, epochs, done, nats / n_tokens, int(n_tokens))

    def summary(self, *, certified: bool, seconds: float) -> Epoch:
        """The account of the epoch that is over."""
        nats, n_tokens, _ = self.tally.tolist()
        number, config = len(self.epochs) + 1, self.config
        n_doubtful, n_seen = map(int, self.doubtful[:, self._learnt_index].sum(1).tolist())
        return Epoch(
            number,
            config.epochs,
            nats / n_tokens,
            self.n_recalled(),
            len(self.learnt),
            certified,
            rate(config, self.epochs, number),
            round(seconds, 3),
            sum(map(len, self.groups)),
            n_doubtful=n_doubtful,
            n_tokens=n_seen,
        )

    @property
    def result(self) -> Written | Diverged:
        """Of a write that has ended."""
        epochs = tuple(self.epochs)
        if self.adapter is None:
            return Diverged(self.why, epochs)
        return Written(self.adapter, epochs, self.reason, tuple(self.arithmetics))

    # -- a step ----------------------------------------------------------------------------------

    @property
    def rate(self) -> float:
        """The learning rate of the next step."""
        return rate(self.config, self.epochs, len(self.epochs) + self.cursor / len(self.groups))

    def share(self, group: Sequence[int]) -> Share:
        """This write's part of a step under dropout; epoch and step decide what is hidden."""
        mark = f"{self.config.seed} {len(self.epochs)} {self.cursor}"
        return Share(self.config.dropout, mark, tuple(self.lengths[i] for i in group))

    def weights(self, group: Sequence[int], outcome: StepOutcome) -> Tensor:
        """The objective's weights_BC of a training step, whose outcome is recorded."""
        examples = torch.tensor(group, device=self.device)
        weight_BC = self.objective.weights(outcome, self.remembered, examples)
        self.record(group, outcome)
        return weight_BC

    def record(self, group: Sequence[int], outcome: StepOutcome) -> None:
        """Remember the losses of examples that ran."""
        index = torch.tensor(group, device=self.device)
        loss_BC = outcome.loss_BC * outcome.mask_BC
        self.mean_nats[index] = loss_BC.sum(1) / outcome.mask_BC.sum(1)
        self.worst_nats[index] = loss_BC.amax(1)
        self.doubtful[0, index] = (loss_BC > DOUBTFUL_NATS).float().sum(1)
        self.doubtful[1, index] = outcome.mask_BC.float().sum(1)

    # -- its examples ----------------------------------------------------------------------------

    def n_recalled(self) -> int:
        """Examples to be learnt whose every token had p > margin when they last ran."""
        worst = self.worst_nats[self._learnt_index]
        return int((worst < -math.log(self.config.margin)).sum())

    def split(self, examples: Sequence[int], p: float) -> tuple[list[int], list[int]]:
        """Those with a token that was not above p when they last ran, and the others."""
        limit, worst = -math.log(p), self.worst_nats.tolist()
        doubtful = [i for i in examples if not worst[i] < limit]  # what is no number is doubtful
        return doubtful, [i for i in examples if worst[i] < limit]

    def tensors(self) -> dict[str, Tensor]:
        """All tensors of it, by name, to be stored and copied back into."""
        own = {"tally": self.tally, "mean": self.mean_nats, "worst": self.worst_nats}
        own["doubtful"] = self.doubtful
        return own | {f"objective.{name}": t for name, t in self.remembered.items()}
