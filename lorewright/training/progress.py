"""Where one write is in its epoch, and what it knows of its examples.

Per example, kept on the model's device so that nothing is read back between steps: mean loss,
largest loss of a token, position of the first error, for how many visits that has not moved. From
these follow the weights of an objective, which examples rest, and the order of a curriculum.

This room knows settings, losses and batches; it knows no model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lorewright.adapters.dropout import Share
from lorewright.models.batching import batches
from lorewright.models.nats import TokenNats
from lorewright.training.config import Epoch, Job
from lorewright.training.objectives import (
    WEIGHTINGS,
    first_mismatch,
    threshold,
    window,
    window_width,
)

FEWEST = 4
"""Batches of an epoch in which examples rest, at least; of fewer examples as many as they make."""


class Progress:
    """Where one write is in its epoch, and how its examples were last met."""

    def __init__(
        self,
        index: int,
        job: Job,
        rows: list[int],
        device: torch.device,
    ) -> None:
        self.index = index
        self.config = job.config
        self.rows = rows  # of the loop's table, example by example
        self.records: list[Epoch] = []
        self.groups: list[list[int]] = []
        self.cursor = 0
        self.device = device
        self.tally = torch.zeros(3, device=device)  # nats, tokens, tokens with weight
        n = len(rows)
        self.seen = {
            "mean": torch.full((n,), math.inf, device=device),
            "worst": torch.full((n,), math.inf, device=device),
            "anchor": torch.full((n,), -1, device=device),
            "stuck": torch.zeros(n, dtype=torch.long, device=device),
        }

    @property
    def epochs_done(self) -> float:
        """Passes over the examples, the current one in part."""
        return len(self.records) + (self.cursor / len(self.groups) if self.groups else 0.0)

    def n_recalled(self) -> int:
        """Examples whose every token had p > margin when they were last met."""
        return int((self.seen["worst"] < -math.log(self.config.margin)).sum())

    def split(self, examples: Sequence[int], p: float) -> tuple[list[int], list[int]]:
        """Those with a token that was not above p when they were last met, and the others."""
        limit, worst = -math.log(p), self.seen["worst"].tolist()
        doubtful = [i for i in examples if not worst[i] < limit]  # what is no number is doubtful
        return doubtful, [i for i in examples if worst[i] < limit]

    def start_epoch(self, lengths: Sequence[int]) -> None:
        """Choose the examples of the next epoch and cut them into batches."""
        chosen, size = list(range(len(self.rows))), self.config.batch_size
        if self.config.rest is not None:
            chosen = self.split(chosen, self.config.rest)[0] or chosen
        # A few that are awake are met several times, or they would have one step an epoch.
        rounds = 1
        if self.config.rest is not None:
            rounds = max(1, min(FEWEST, -(-len(self.rows) // size)) * size // len(chosen))
        self.groups = [
            group
            for i in range(rounds)
            for group in batches(
                [lengths[row] for row in self.rows],
                chosen,
                size=size,
                seed=self.config.seed,
                epoch=len(self.records) + i * self.config.epochs,
                order=self.config.order,
                done=len(self.records) / self.config.epochs,
                nats=self.seen["mean"].tolist(),
            )
        ]
        self.cursor = 0
        self.tally = torch.zeros(3, device=self.device)

    def share(self, group: Sequence[int], lengths: Sequence[int]) -> Share:
        """This write's part of a step under dropout; where it is decides what is hidden."""
        mark = f"{self.config.seed} {len(self.records)} {self.cursor}"
        tokens = tuple(lengths[self.rows[i]] for i in group)
        return Share(self.config.dropout, mark, tokens)

    def weights(self, group: Sequence[int], loss_BC: Tensor, right_BC: Tensor) -> Tensor:
        """The objective's weights_BC, from detached losses and this write's own state."""
        name = self.config.objective
        if name == "memft_window":
            stuck_B = self.seen["stuck"][torch.tensor(group, device=self.device)]
            return window(window_width(stuck_B))(loss_BC, right_BC)
        if name == "memft_threshold":
            # At the paper's ln 2 a token between 1/2 and the margin has no weight and stays there.
            return threshold(-math.log(self.config.margin))(loss_BC, right_BC)
        return WEIGHTINGS["sft"](loss_BC, right_BC)

    def met(self, group: Sequence[int], nats: TokenNats, mask_BC: Tensor) -> None:
        """Remember how the examples of a batch were met."""
        index = torch.tensor(group, device=self.device)
        loss_BC = nats.loss_BT.detach() * mask_BC
        anchor = first_mismatch(nats.correct_BT | (mask_BC == 0))
        moved = anchor != self.seen["anchor"][index]
        self.seen["stuck"][index] = torch.where(moved, 0, self.seen["stuck"][index] + 1)
        self.seen["anchor"][index] = anchor
        self.seen["mean"][index] = loss_BC.sum(1) / mask_BC.sum(1)
        self.seen["worst"][index] = loss_BC.amax(1)
