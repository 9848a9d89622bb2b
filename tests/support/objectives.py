"""Objectives from outside the package."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lorewright.knowledge.data import Example
from lorewright.models.model import Model
from lorewright.training.objectives import StepOutcome, Teacher


@dataclass(frozen=True)
class Fading:
    """An example counts less each time it was trained, and some of them never."""

    only: tuple[int, ...] | None = None
    """Examples that count; None = all."""
    by: float = 1.0
    """What a visit adds to the divisor of the weight."""
    teacher: Teacher | None = None

    @property
    def name(self) -> str:
        return f"fading {self.only} {self.by}"

    def state(self, n_examples: int, device: torch.device) -> dict[str, Tensor]:
        return {"visits": torch.zeros(n_examples, device=device)}

    def weights(
        self, outcome: StepOutcome, state: Mapping[str, Tensor], examples: Tensor
    ) -> Tensor:
        assert not outcome.loss_BC.requires_grad
        weight_B = 1 / (1 + self.by * state["visits"][examples])
        state["visits"][examples] += 1
        if self.only is not None:
            weight_B = weight_B * torch.isin(examples, torch.tensor(self.only))
        # The mean is taken by example, so within one the first token loses weight to the others.
        at_C = torch.arange(outcome.loss_BC.shape[1])
        return torch.where(at_C == 0, weight_B[:, None], (weight_B > 0).float()[:, None])


class Halved:
    """Targets whose cost is half the cross-entropy of the completions."""

    def __init__(self, model: Model, examples: Sequence[Example]) -> None:
        self.rows = [model.render(e.prompt, e.completion).completion_ids for e in examples]

    def cover(self, examples: Sequence[int]) -> bool:
        return True

    def costs(self, logits_BCV: Tensor, examples: Sequence[int], nats_BC: Tensor) -> Tensor:
        logp_BCV = logits_BCV.log_softmax(-1)
        costs = []
        for logp_CV, i in zip(logp_BCV, examples, strict=True):
            ids = torch.zeros(len(logp_CV), dtype=torch.long)
            ids[: len(self.rows[i])] = torch.tensor(self.rows[i])
            costs.append(-logp_CV.gather(1, ids[:, None])[:, 0] / 2)
        return torch.stack(costs)


def halving(
    model: Model, examples: Sequence[Example], contexts: Sequence[str], run: Path | None
) -> Halved:
    """A teacher that needs no contexts."""
    return Halved(model, examples)
