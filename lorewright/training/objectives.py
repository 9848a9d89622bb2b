"""Objectives on answer tokens: cross-entropy in nats, and which tokens it is spent on.

    L = sum_t w_t L_t / (sum_t w_t + eps)        w from detached losses

This room knows logits, target ids and masks. It knows nothing about models, adapters, optimisers or
the history of a run: what must be remembered between steps (how long an example has been stuck) is
an argument, kept per example by the caller.

Shape letters: B batch row, T answer token, V vocabulary, K teacher tokens kept per position.

Paper: How LoRA Remembers (MemFT), arXiv 2605.30260.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from lorewright.knowledge.scoring import SAFE_NATS
from lorewright.models.nats import token_nats

Weighting = Callable[[Tensor, Tensor], Tensor]
"""(loss_BT in nats, correct_BT) -> weight_BT, detached."""

EPS = 1e-8
KAPPA = 10.0  # slope of the window weighting around SAFE_NATS, per nat
TAU = 20.0  # its decay after the first error, tokens, at the width below
WIDTH = 50.0  # its window after the first error, tokens
FLOOR = 0.01  # its factor outside the window
PATIENCE = 3  # steps with the first error unmoved, after which the window widens
WIDEST = 4.0  # times WIDTH


# Weightings


def uniform(loss_BT: Tensor, correct_BT: Tensor) -> Tensor:
    """Weight every token 1: plain supervised fine-tuning."""
    return torch.ones_like(loss_BT)


def below_threshold(loss_BT: Tensor, correct_BT: Tensor) -> Tensor:
    """Weight 1 on tokens not yet safe under greedy decoding, else 0 (MemFT-OT).

    w_t = 1[L_t > ln 2]. p > 1/2 is sufficient, not necessary, for greedy recall: a token may be
    correct and still weighted. All zeros when everything is safe: the caller stops.

    Paper: How LoRA Remembers, arXiv 2605.30260, MemFT objective.
    """
    return (loss_BT.detach() > SAFE_NATS).to(loss_BT.dtype)


def threshold(safe_nats: float) -> Weighting:
    """Make `below_threshold` with a margin: w_t = 1[L_t > safe_nats].

    At ln 2 answers end up at the edge, where merging or quantising flips them; -ln 0.9 keeps them
    recalled with some room.
    """

    def above(loss_BT: Tensor, correct_BT: Tensor) -> Tensor:
        return (loss_BT.detach() > safe_nats).to(loss_BT.dtype)

    return above


def window(width_B: Tensor | None = None) -> Weighting:
    """Make the weighting that works on the tokens at and after the first error (MemFT-SW, spatial).

    w_t = sigmoid(KAPPA (L_t - ln 2)) f_t with, for the first argmax mismatch a of the same forward,
    f_t = 1 before a; exp(-(t - a) / tau) for a <= t < a + width; FLOOR beyond. f = 1 everywhere if
    nothing mismatches. `width_B` (tokens, per row; `window_width` gives it) defaults to WIDTH.

    Departure: tau grows with the width (TAU at WIDTH, as in the paper), so a wider window never
    lowers a weight; with a fixed tau the decay falls under the floor after 92 tokens.

    Paper: How LoRA Remembers, arXiv 2605.30260, MemFT-SW.
    """

    def near_first_error(loss_BT: Tensor, correct_BT: Tensor) -> Tensor:
        width = torch.full(loss_BT.shape[:1], WIDTH) if width_B is None else width_B
        width_B1 = width.to(loss_BT.device, torch.float32)[:, None]
        at_T = torch.arange(loss_BT.shape[-1], device=loss_BT.device)
        after_BT = at_T - first_mismatch(correct_BT)[:, None]
        decay_BT = torch.exp(-after_BT.clamp(min=0) * WIDTH / (TAU * width_B1))
        factor_BT = torch.where(after_BT < width_B1, decay_BT, FLOOR)
        return torch.sigmoid(KAPPA * (loss_BT.detach() - SAFE_NATS)) * factor_BT

    return near_first_error


def first_mismatch(correct_BT: Tensor) -> Tensor:
    """Return the position of the first wrong token per row (B), T if there is none."""
    n_tokens = correct_BT.shape[-1]
    at_T = torch.arange(n_tokens, device=correct_BT.device)
    return torch.where(correct_BT, n_tokens, at_T).amin(-1)


def window_width(stuck_steps_B: Tensor) -> Tensor:
    """Widen the window of examples whose first error has not moved: WIDTH x 1, 1.5, 2 ... 4.

    `stuck_steps_B` counts steps per example (not per batch slot); each PATIENCE of them adds half.
    """
    halves_B = torch.div(stuck_steps_B, PATIENCE, rounding_mode="floor")
    return WIDTH * (1 + 0.5 * halves_B).clamp(max=WIDEST)


# Means


def weighted_mean(
    loss_BT: Tensor,
    weight_BT: Tensor,
    mask_BT: Tensor,
    *,
    group_B: Tensor | None = None,
    eps: float = EPS,
) -> Tensor:
    """Average tokens within each example, then the examples that have any weight.

    Scalar. Every example counts the same, however long or hard. Examples without weight are not in
    the mean, so leaving them out of the batch changes nothing; if none has weight, the value and
    all gradients are exactly zero. With `group_B` (one adapter index per row, -1 = none) the means
    of the groups are summed: each adapter of a stack gets the gradient it would get alone.
    """
    mask_BT = _taken(mask_BT, group_B)
    with torch.no_grad():
        weight_BT = torch.where(mask_BT, weight_BT, 0.0)
        total_B = weight_BT.sum(-1)
        n_active_B = _sum_of_group((total_B > 0).to(weight_BT.dtype), group_B)
        share_BT = weight_BT / (total_B + eps)[:, None] / (n_active_B + EPS)[:, None]
    return _spent(loss_BT, share_BT, mask_BT)


def weighted_mean_pooled(
    loss_BT: Tensor,
    weight_BT: Tensor,
    mask_BT: Tensor,
    *,
    group_B: Tensor | None = None,
    eps: float = EPS,
) -> Tensor:
    """Average all tokens of the batch together, as the paper does: long, hard examples dominate.

    Scalar; arguments and zero behaviour as in `weighted_mean`.
    """
    mask_BT = _taken(mask_BT, group_B)
    with torch.no_grad():
        weight_BT = torch.where(mask_BT, weight_BT, 0.0)
        share_BT = weight_BT / (_sum_of_group(weight_BT.sum(-1), group_B) + eps)[:, None]
    return _spent(loss_BT, share_BT, mask_BT)


def _taken(mask_BT: Tensor, group_B: Tensor | None) -> Tensor:
    """The mask as bool, without the rows of group -1."""
    mask_BT = mask_BT.bool()
    return mask_BT if group_B is None else mask_BT & (group_B >= 0).to(mask_BT.device)[:, None]


def _sum_of_group(value_B: Tensor, group_B: Tensor | None) -> Tensor:
    """For every row the sum over the rows of its group.

    Rows are selected, not multiplied by 0: what is no number in one group stays out of the others.
    """
    if group_B is None:
        return value_B.sum().expand_as(value_B)
    same_BB = (group_B == group_B[:, None]).to(value_B.device)
    return torch.where(same_BB, value_B, 0.0).sum(-1)


def _spent(loss_BT: Tensor, share_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Sum of the losses by their shares."""
    return (torch.where(mask_BT, loss_BT, 0.0) * share_BT).sum()


def trainer_loss(weighting: Weighting) -> Callable[..., Tensor]:
    """Make a `compute_loss_func` of a weighting, for Transformers' Trainer and TRL's SFTTrainer.

    Labels are -100 where nothing is learnt, as those trainers have them, and are shifted here. With
    gradient accumulation a micro-batch counts by its share of the label tokens. A trainer shows no
    example's identity, so `memft_window` keeps its first width; and weights come from the forward
    pass that trains, so adapters should have no dropout.
    """

    def compute_loss(
        outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        logits_BTV = outputs["logits"] if isinstance(outputs, Mapping) else outputs.logits
        target_BT = labels[:, 1:]
        nats = token_nats(logits_BTV[:, :-1], target_BT)
        mask_BT = (target_BT >= 0).float()
        weight_BT = weighting(nats.loss_BT.detach(), nats.correct_BT)
        loss = weighted_mean(nats.loss_BT, weight_BT, mask_BT)
        if num_items_in_batch is None:
            return loss
        n_all = torch.as_tensor(num_items_in_batch, device=loss.device).clamp(min=1)
        return loss * (mask_BT.sum() / n_all).clamp(max=1.0)

    return compute_loss


# Distillation


def distill_topk(student_logits_BTV: Tensor, top_ids_BTK: Tensor, top_logp_BTK: Tensor) -> Tensor:
    """KL(teacher || student) per token, in nats, on the teacher's K best tokens and all the rest.

    KL_t = sum_{v in K} T(v) (log T(v) - log S(v)) + T_rest (log T_rest - log S_rest), where S is
    the student's full softmax and rest = 1 - sum over K. Zero when the K probabilities agree.
    Departure: the published top-K loss has no rest term, and so removes the tail's mass.

    Shapes: (B, T, V), (B, T, K) ids, (B, T, K) teacher log-probabilities -> (B, T), float32.
    Source: context distillation as in Doc-to-LoRA, arXiv 2602.15902.
    """
    logits_BTV = student_logits_BTV.float()
    top_BTK = top_logp_BTK.detach().float().exp()
    norm_BT1 = logits_BTV.logsumexp(-1, keepdim=True)
    student_BTK = logits_BTV.gather(-1, top_ids_BTK) - norm_BT1
    kl_BT = (torch.special.xlogy(top_BTK, top_BTK) - top_BTK * student_BTK).sum(-1)
    if top_ids_BTK.shape[-1] == logits_BTV.shape[-1]:
        return kl_BT
    rest_BT = (1 - top_BTK.sum(-1)).clamp(min=0.0)
    others_BTV = logits_BTV.scatter(-1, top_ids_BTK, -torch.inf)
    student_rest_BT = others_BTV.logsumexp(-1) - norm_BT1.squeeze(-1)
    return kl_BT + torch.special.xlogy(rest_BT, rest_BT) - rest_BT * student_rest_BT


WEIGHTINGS: dict[str, Weighting] = {
    "sft": uniform,
    "memft_threshold": below_threshold,
    "memft_window": window(),
}
