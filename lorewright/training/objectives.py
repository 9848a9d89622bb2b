"""Objectives: which completion tokens a step is spent on, and what is minimised there.

    L = sum_t w_t L_t / (sum_t w_t + eps)        w from detached losses

The loop calls an `Objective` once for every step of a write, with the outcome of a pass and the
state that it has of the examples. A new objective is one class and, to be named in settings and on
the command line, an entry in OBJECTIVES.

Knows losses, masks and indices of examples; knows nothing of adapters, optimisers or the loop.

Shape letters: B batch row, C completion token (T in trainers of others), V vocabulary.

Paper: How LoRA Remembers (MemFT), arXiv 2605.30260.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from lorewright.errors import ConfigError
from lorewright.knowledge.data import Example
from lorewright.knowledge.scoring import SAFE_NATS
from lorewright.models.model import Model
from lorewright.models.nats import token_nats
from lorewright.training.distil import teach

EPS = 1e-8
KAPPA = 10.0  # slope of the window weighting around SAFE_NATS, per nat
TAU = 20.0  # its decay after the first error, tokens, at the width below
WIDTH = 50.0  # its window after the first error, tokens
FLOOR = 0.01  # its factor outside the window
PATIENCE = 3  # steps with the first error unmoved, after which the window widens
WIDEST = 4.0  # times WIDTH


class StepOutcome(NamedTuple):
    """Completion tokens of some examples in a pass without dropout; nothing carries gradient.

    loss_BC in nats; correct_BC: whether greedy decoding picks the target; mask_BC: 1 on real
    tokens. Padding has loss 0 and counts as correct.
    """

    loss_BC: Tensor
    correct_BC: Tensor
    mask_BC: Tensor


ExampleState = Mapping[str, Tensor]
"""Tensors whose first axis is the examples of a write."""


class Targets(Protocol):
    """What a teacher predicts for the examples of a write, or for some of them."""

    def cover(self, examples: Sequence[int]) -> bool:
        """Whether any of these examples is taught."""

    def costs(self, logits_BCV: Tensor, examples: Sequence[int], nats_BC: Tensor) -> Tensor:
        """What is minimised at every completion token of these examples (B, C), in nats.

        `nats_BC` are those of the completions themselves: the cost of an example without a teacher.
        """


Teacher = Callable[[Model, Sequence[Example], Sequence[str], Path | None], Targets]
"""(model, examples, a context for each, run folder) -> targets; called once before training."""


class Objective(Protocol):
    """What one write is trained towards."""

    @property
    def name(self) -> str:
        """Tells it, settings included, from others: a checkpoint of another name is refused."""

    @property
    def teacher(self) -> Teacher | None:
        """What to learn from instead of the completions themselves; None = cross-entropy."""

    def state(self, n_examples: int, device: torch.device) -> dict[str, Tensor]:
        """What it remembers of each example between steps, before the first: an `ExampleState`.

        It may be empty, and is stored in checkpoints.
        """

    def weights(self, outcome: StepOutcome, state: ExampleState, examples: Tensor) -> Tensor:
        """Weight_BC >= 0 of every token, without gradient; all zeros when nothing is left.

        `examples` (B) are the rows of `state`, which may be changed in place: this is called once
        for each step. Weights of padding are ignored.
        """


# Weights


@dataclass(frozen=True)
class Uniform:
    """Every token counts: supervised fine-tuning, or distillation when there is a teacher."""

    name: str = "sft"
    teacher: Teacher | None = None

    def state(self, n_examples: int, device: torch.device) -> dict[str, Tensor]:
        """Nothing."""
        return {}

    def weights(self, outcome: StepOutcome, state: ExampleState, examples: Tensor) -> Tensor:
        """Ones."""
        return torch.ones_like(outcome.loss_BC)


@dataclass(frozen=True)
class Threshold(Uniform):
    """Only tokens not yet safe count (MemFT-OT): w_t = 1[L_t > safe_nats].

    At ln 2 a token is safe under greedy decoding (p > 1/2 is sufficient, not necessary), but
    merging or quantising may flip it: -ln 0.9, say, leaves a distance. All zeros when every token
    is safe.

    Paper: How LoRA Remembers, arXiv 2605.30260, MemFT objective.
    """

    name: str = "memft_threshold"
    safe_nats: float = SAFE_NATS

    def weights(self, outcome: StepOutcome, state: ExampleState, examples: Tensor) -> Tensor:
        """1 above the threshold, else 0."""
        return (outcome.loss_BC > self.safe_nats).to(outcome.loss_BC.dtype)


@dataclass(frozen=True)
class Window(Uniform):
    """Tokens at and after the first error count most (MemFT-SW, spatial); see `window`.

    The state has for each example the position of its first error and for how many steps that has
    not moved.
    """

    name: str = "memft_window"

    def state(self, n_examples: int, device: torch.device) -> dict[str, Tensor]:
        """`first_error`, -1 before the first step, and `stuck`, in steps."""
        first_error = torch.full((n_examples,), -1, device=device)
        return {"first_error": first_error, "stuck": torch.zeros_like(first_error)}

    def weights(self, outcome: StepOutcome, state: ExampleState, examples: Tensor) -> Tensor:
        """The window by how long each example has been stuck before this step."""
        stuck_B = state["stuck"][examples]
        first_B = first_mismatch(outcome.correct_BC | (outcome.mask_BC == 0))
        moved_B = first_B != state["first_error"][examples]
        state["stuck"][examples] = torch.where(moved_B, 0, stuck_B + 1)
        state["first_error"][examples] = first_B
        return window(outcome.loss_BC, outcome.correct_BC, window_width(stuck_B))


def window(loss_BC: Tensor, correct_BC: Tensor, width_B: Tensor) -> Tensor:
    """Weight the tokens at and after the first error of every row.

    w_t = sigmoid(KAPPA (L_t - ln 2)) f_t with, for the first argmax mismatch a of the same forward,
    f_t = 1 before a; exp(-(t - a) / tau) for a <= t < a + width; FLOOR beyond. f = 1 everywhere if
    nothing mismatches. `width_B` in tokens.

    Departure: tau grows with the width (TAU at WIDTH, as in the paper), so a wider window never
    lowers a weight; with a fixed tau the decay falls under the floor after 92 tokens.

    Paper: How LoRA Remembers, arXiv 2605.30260, MemFT-SW.
    """
    width_B1 = width_B.to(loss_BC.device, torch.float32)[:, None]
    at_C = torch.arange(loss_BC.shape[-1], device=loss_BC.device)
    after_BC = at_C - first_mismatch(correct_BC)[:, None]
    decay_BC = torch.exp(-after_BC.clamp(min=0) * WIDTH / (TAU * width_B1))
    factor_BC = torch.where(after_BC < width_B1, decay_BC, FLOOR)
    return torch.sigmoid(KAPPA * (loss_BC - SAFE_NATS)) * factor_BC


def first_mismatch(correct_BC: Tensor) -> Tensor:
    """Position of the first wrong token per row (B); C if there is none."""
    n_tokens = correct_BC.shape[-1]
    at_C = torch.arange(n_tokens, device=correct_BC.device)
    return torch.where(correct_BC, n_tokens, at_C).amin(-1)


def window_width(stuck_B: Tensor) -> Tensor:
    """Widen the window of examples whose first error has not moved: WIDTH x 1, 1.5, 2 ... 4.

    `stuck_B` counts steps per example; each PATIENCE of them adds half.
    """
    halves_B = torch.div(stuck_B, PATIENCE, rounding_mode="floor")
    return WIDTH * (1 + 0.5 * halves_B).clamp(max=WIDEST)


OBJECTIVES: dict[str, Callable[[float], Objective]] = {
    "sft": lambda margin: Uniform(),
    # At the paper's ln 2 a token between 1/2 and the margin has no weight and stays there.
    "memft_threshold": lambda margin: Threshold(safe_nats=-math.log(margin)),
    "memft_window": lambda margin: Window(),
    "distill": lambda margin: Uniform("distill", teach),
}
"""Made with the margin: the p above which a token is recalled."""


# Means


def weighted_mean(
    loss_BC: Tensor, weight_BC: Tensor, mask_BC: Tensor, *, group_B: Tensor | None = None
) -> Tensor:
    """Average tokens within each example, then the examples that have any weight.

    Scalar. Every example counts the same, however long or hard. Examples without weight are not in
    the mean, so leaving them out of the batch changes nothing; if none has weight, the value and
    all gradients are exactly zero. With `group_B` (one adapter index per row, -1 = none) the means
    of the groups are summed: each adapter of a stack gets the gradient it would get alone.
    """
    mask_BC = mask_BC.bool()
    if group_B is not None:
        mask_BC = mask_BC & (group_B >= 0).to(mask_BC.device)[:, None]
    with torch.no_grad():
        weight_BC = torch.where(mask_BC, weight_BC, 0.0)
        total_B = weight_BC.sum(-1)
        active_B = (total_B > 0).to(weight_BC.dtype)
        if group_B is None:
            n_active_B = active_B.sum().expand_as(active_B)
        else:  # selected, not multiplied by 0: what is no number in one group stays out of others
            same_BB = (group_B == group_B[:, None]).to(active_B.device)
            n_active_B = torch.where(same_BB, active_B, 0.0).sum(-1)
        share_BC = weight_BC / (total_B + EPS)[:, None] / (n_active_B + EPS)[:, None]
    return (torch.where(mask_BC, loss_BC, 0.0) * share_BC).sum()


def trainer_loss(objective: Objective) -> Callable[..., Tensor]:
    """Make a `compute_loss_func` for Transformers' Trainer and TRL's SFTTrainer.

    Labels are -100 where nothing is learnt, as those trainers have them, and are shifted here. With
    gradient accumulation a micro-batch counts by its share of the label tokens. A trainer names no
    examples, so nothing is remembered of them and `memft_window` stays at its first width; and
    weights come from the forward pass that trains, so adapters should have no dropout.

    Raises ConfigError for an objective with a teacher.
    """
    if objective.teacher is not None:
        raise ConfigError(
            f"objective {objective.name!r} has a teacher, which a trainer of labels does not ask; "
            "write with lorewright, or use another objective."
        )

    def compute_loss(
        outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        logits_BTV = outputs["logits"] if isinstance(outputs, Mapping) else outputs.logits
        target_BT = labels[:, 1:]
        nats = token_nats(logits_BTV[:, :-1], target_BT)
        mask_BT = (target_BT >= 0).float()
        n_rows, device = len(labels), labels.device
        outcome = StepOutcome(nats.loss_BT.detach(), nats.correct_BT, mask_BT)
        state, examples = objective.state(n_rows, device), torch.arange(n_rows, device=device)
        loss = weighted_mean(nats.loss_BT, objective.weights(outcome, state, examples), mask_BT)
        if num_items_in_batch is None:
            return loss
        n_all = torch.as_tensor(num_items_in_batch, device=loss.device).clamp(min=1)
        return loss * (mask_BT.sum() / n_all).clamp(max=1.0)

    return compute_loss
