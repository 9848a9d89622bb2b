"""The loss of target tokens in nats, and whether greedy decoding picks them.

Shape letters: B batch row, T token, M position, V vocabulary, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

LOGIT_VALUES = 1 << 24
"""Most logits that a pass over completions holds at once: 64 MB in float32."""

CPU_LOGIT_ROWS = 128
"""On a CPU positions as well: those of a small vocabulary then fit its caches."""


class TokenNats(NamedTuple):
    """Teacher-forced outcome per token: loss in nats, and whether the argmax is the target."""

    loss_BT: Tensor
    correct_BT: Tensor


def token_nats(logits_BTV: Tensor, ids_BT: Tensor) -> TokenNats:
    """Compute the loss of every target token in float32, and whether greedy decoding picks it.

    Position t of the logits must predict `ids_BT[:, t]`. A negative id marks padding: loss 0 and
    correct, so that no weighting sees an error there; `weighted_mean` still needs the mask.
    """
    logits_BTV = logits_BTV.float()
    padding_BT = ids_BT < 0
    target_BT = ids_BT.masked_fill(padding_BT, 0)
    loss = F.cross_entropy(logits_BTV.flatten(0, -2), target_BT.flatten(), reduction="none")
    correct_BT = _best(logits_BTV.detach()) == target_BT
    loss_BT = torch.where(padding_BT, 0.0, loss.view_as(target_BT))
    return TokenNats(loss_BT, correct_BT | padding_BT)


def _best(logits_BTV: Tensor) -> Tensor:
    """Indices of the largest logits, the first of equals.

    On the CPU through numpy, whose argmax is a vector operation: torch's takes as long there as the
    product that makes the logits.
    """
    if logits_BTV.device.type != "cpu":
        return logits_BTV.argmax(-1)
    return torch.from_numpy(logits_BTV.numpy().argmax(-1))


def rows_at_once(n_vocab: int, device: torch.device) -> int:
    """How many positions have logits at a time."""
    most = CPU_LOGIT_ROWS if device.type == "cpu" else LOGIT_VALUES
    return max(1, min(LOGIT_VALUES // n_vocab, most))


def chunked_nats(
    head: Callable[[Tensor], Tensor], hidden_MD: Tensor, ids_M: Tensor, chunk: int
) -> TokenNats:
    """`token_nats` of head(hidden) for M positions, of which only `chunk` have logits at a time.

    Memory for logits is chunk x V instead of M x V, forward and backward: big vocabularies fit, and
    on a CPU small ones stay in the cache. The gradient with respect to each position's hidden state
    is computed in the forward pass, where its logits are at hand, and scaled in the backward pass;
    the head must be frozen.
    """

    def score(hidden_MD: Tensor, into_MD: Tensor | None) -> tuple[Tensor, Tensor]:
        loss_M, correct_M = torch.zeros(len(ids_M), device=ids_M.device), ids_M < 0
        for i in range(0, len(ids_M), chunk):
            rows = slice(i, i + chunk)
            if into_MD is None:
                loss_M[rows], correct_M[rows] = token_nats(head(hidden_MD[rows]), ids_M[rows])
                continue
            part = hidden_MD[rows].detach().requires_grad_()
            with torch.enable_grad():
                logits = head(part)
            padding = ids_M[rows] < 0
            target_M1 = ids_M[rows].masked_fill(padding, 0)[:, None]
            values_MV = logits.detach().float()
            correct_M[rows] |= _best(values_MV) == target_M1[:, 0]
            # d(-log p_target) / d(logits) = p - [v is the target]
            change = values_MV.log_softmax(-1)
            loss_M[rows] = -change.gather(-1, target_M1)[:, 0].masked_fill(padding, 0.0)
            minus_M1 = torch.full_like(change[:, :1], -1.0)
            change.exp_().scatter_add_(-1, target_M1, minus_M1)
            change.masked_fill_(padding[:, None], 0.0)
            (into_MD[rows],) = torch.autograd.grad(logits, part, change.to(logits.dtype))
        return loss_M, correct_M

    return with_gradient(hidden_MD, score)


Score = Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor]]
"""(hidden_MD, into_MD or None) -> losses and correctness; `into` receives each loss's gradient with
respect to its own position's hidden state."""


def with_gradient(hidden_MD: Tensor, score: Score) -> TokenNats:
    """Losses that carry gradient to `hidden`: computed with it, which the backward pass scales."""
    if torch.is_grad_enabled() and hidden_MD.requires_grad:
        return TokenNats(*_Scored.apply(hidden_MD, score))
    with torch.no_grad():
        return TokenNats(*score(hidden_MD, None))


class _Scored(torch.autograd.Function):
    """Losses of positions, with their gradients stored instead of their logits."""

    @staticmethod
    def forward(ctx: Any, hidden_MD: Tensor, score: Score) -> tuple[Tensor, Tensor]:
        grad_MD = torch.empty_like(hidden_MD, memory_format=torch.contiguous_format)
        loss_M, correct_M = score(hidden_MD, grad_MD)
        ctx.save_for_backward(grad_MD)
        ctx.mark_non_differentiable(correct_M)
        return loss_M, correct_M

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad_MD,) = ctx.saved_tensors
        return (grad_MD * grads[0][:, None]).to(grad_MD.dtype), None
