"""What is known of one write while it trains: where it is in its epoch, how its examples came out.

Per example, on the model's device so that nothing is read back between steps: mean loss and largest
loss of a token when it last ran, and what the objective remembers. From these follow weights, which
examples rest, and the order of a curriculum.

Knows settings, losses and batches; knows no model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lorewright.adapters.dropout import Share
from lorewright.models.batching import batches
from lorewright.training.config import Epoch, Job, rate
from lorewright.training.objectives import OBJECTIVES, StepOutcome

FEWEST = 4
"""Batches of an epoch in which examples rest, at least; of fewer examples as many as they make."""


class WriteState:
    """One write on its way; its n-th example is row `rows[n]` of the table."""

    def __init__(self, index: int, job: Job, rows: Sequence[int], device: torch.device) -> None:
        self.index, self.job, self.config, self.rows = index, job, job.config, rows
        self.objective = job.objective or OBJECTIVES[job.config.objective](job.config.margin)
        self.device = device
        self.epochs: list[Epoch] = []
        """Those that are over."""
        self.groups: list[list[int]] = []
        """Examples of every step of the current epoch."""
        self.cursor = 0
        """Its next step."""
        self.tally = torch.zeros(3, device=device)
        """Of the current epoch: nats, tokens, tokens with weight."""
        self.mean_nats = torch.full((len(rows),), math.inf, device=device)
        self.worst_nats = torch.full((len(rows),), math.inf, device=device)
        self.remembered = self.objective.state(len(rows), device)

    # -- an epoch --------------------------------------------------------------------------------

    def start_epoch(self, lengths: Sequence[int]) -> None:
        """Choose the examples of the next epoch and cut them into batches by rows' lengths."""
        config, size = self.config, self.config.batch_size
        chosen, n_rounds = list(range(len(self.rows))), 1
        if config.rest is not None:
            chosen = self.split(chosen, config.rest)[0] or chosen
            # A few that do not rest are trained several times, or there would be one step an epoch.
            fewest = min(FEWEST, -(-len(self.rows) // size))
            n_rounds = max(1, fewest * size // len(chosen))
        self.groups = [
            group
            for i in range(n_rounds)
            for group in batches(
                [lengths[row] for row in self.rows],
                chosen,
                size=size,
                seed=config.seed,
                epoch=len(self.epochs) + i * config.epochs,
                order=config.order,
                done=len(self.epochs) / config.epochs,
                nats=self.mean_nats.tolist(),
            )
        ]
        self.cursor = 0
        self.tally = torch.zeros_like(self.tally)

    @property
    def epoch_is_over(self) -> bool:
        """Whether there is no further step in this epoch, or none has begun."""
        return self.cursor == len(self.groups)

    def summary(self, *, certified: bool, seconds: float) -> tuple[Epoch, int]:
        """The account of the epoch that is over, and how many tokens had weight in it."""
        nats, n_tokens, n_weighted = self.tally.tolist()
        number = len(self.epochs) + 1
        epoch = Epoch(
            number,
            self.config.epochs,
            nats / n_tokens,
            self.n_recalled(),
            len(self.rows),
            certified,
            rate(self.config, self.epochs, number),
            round(seconds, 3),
            sum(map(len, self.groups)),
        )
        return epoch, int(n_weighted)

    # -- a step ----------------------------------------------------------------------------------

    @property
    def rate(self) -> float:
        """The learning rate of the next step."""
        part = self.cursor / len(self.groups) if self.groups else 0.0
        return rate(self.config, self.epochs, len(self.epochs) + part)

    def share(self, group: Sequence[int], lengths: Sequence[int]) -> Share:
        """This write's part of a step under dropout; epoch and step decide what is hidden."""
        mark = f"{self.config.seed} {len(self.epochs)} {self.cursor}"
        return Share(self.config.dropout, mark, tuple(lengths[self.rows[i]] for i in group))

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

    # -- its examples ----------------------------------------------------------------------------

    def n_recalled(self) -> int:
        """Examples whose every token had p > margin when they last ran."""
        return int((self.worst_nats < -math.log(self.config.margin)).sum())

    def split(self, examples: Sequence[int], p: float) -> tuple[list[int], list[int]]:
        """Those with a token that was not above p when they last ran, and the others."""
        limit, worst = -math.log(p), self.worst_nats.tolist()
        doubtful = [i for i in examples if not worst[i] < limit]  # what is no number is doubtful
        return doubtful, [i for i in examples if worst[i] < limit]

    # -- between interruptions -------------------------------------------------------------------

    def tensors(self) -> dict[str, Tensor]:
        """All tensors of it, by name."""
        own = {"tally": self.tally, "mean": self.mean_nats, "worst": self.worst_nats}
        return own | {f"objective.{name}": t for name, t in self.remembered.items()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what `tensors` returned."""
        for name, own in self.tensors().items():
            own.copy_(tensors[name])
