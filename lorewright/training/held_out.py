"""Questions that are not trained, measured while a write goes on: does it learn, or learn by heart?

What is measured here decides nothing: no weight, no order, no end depends on it, so equal seeds
give equal bytes with and without it.

Shape letters: B row, C completion token.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

import torch

from lorewright.adapters.lora import Rows, Stack
from lorewright.errors import DataError
from lorewright.models.batching import by_length, pass_tokens
from lorewright.models.model import Model, Rendered
from lorewright.training.config import Epoch, HeldOut


class HeldOutRows:
    """The rows of what is held out of each write of a stack."""

    def __init__(self, model: Model, held: Sequence[HeldOut]) -> None:
        """What does not fit the model's context is not measured."""
        self.model, self.held = model, held
        self.rows: list[list[Rendered]] = []
        for each in held:
            self.rows.append([])
            for example in each.examples:
                with suppress(DataError):
                    self.rows[-1].append(model.render(example.prompt, example.completion))

    def measured(self, epoch: Epoch, job: int, stack: Stack, n: int) -> Epoch:
        """The epoch with what the n-th adapter of the stack makes of the job's held-out rows."""
        rows = self.rows[job]
        if not rows or epoch.epoch % self.held[job].every:
            return epoch
        nats, n_tokens, n_recalled = self._measure(rows, stack, n)
        return replace(
            epoch,
            held_out_nats=nats / n_tokens,
            held_out_recalled=n_recalled,
            n_held_out=len(rows),
        )

    @torch.no_grad()
    def _measure(self, rows: Sequence[Rendered], stack: Stack, n: int) -> tuple[float, int, int]:
        """Nats, tokens, and rows that greedy decoding is certain to reproduce."""
        total, n_recalled = 0.0, 0
        for group in by_length([len(row) for row in rows], pass_tokens(self.model.device)):
            part = [rows[i] for i in group]
            batch, using = self.model.batch(part), Rows(torch.full((len(part),), n), len(stack))
            pass_ = replace(self.model.sharing(part), rows=using)
            loss_BC, right_BC = self.model.completion_nats(batch, pass_)
            total += float((loss_BC * batch.mask_BC).sum())
            n_recalled += int(right_BC.all(1).sum())
        return total, sum(len(row.completion_ids) for row in rows), n_recalled
