"""Claims about losses of tokens: cross-entropy, what greedy picks, padding, chunks of positions."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from support.outcomes import outcomes
from torch import Tensor

from lorewright.knowledge.scoring import SAFE_NATS
from lorewright.models.nats import chunked_nats, token_nats


def test_token_nats_is_cross_entropy_and_says_what_greedy_picks() -> None:
    logits_BTV = torch.tensor([[[2.0, 0.0, 0.0], [0.0, 0.0, 1.0]]], dtype=torch.bfloat16)
    loss_BT, correct_BT = token_nats(logits_BTV, torch.tensor([[0, 1]]))
    expected = -logits_BTV.float().log_softmax(-1)[0, [0, 1], [0, 1]]
    torch.testing.assert_close(loss_BT[0], expected)
    assert loss_BT.dtype == torch.float32
    assert correct_BT.tolist() == [[True, False]]


def test_negative_ids_are_padding_safe_and_without_gradient() -> None:
    logits_BTV = torch.randn(1, 3, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    loss_BT, correct_BT = token_nats(logits_BTV, torch.tensor([[1, -100, -1]]))
    assert loss_BT[0, 1:].tolist() == [0.0, 0.0] and correct_BT[0, 1:].all()
    loss_BT.sum().backward()
    assert logits_BTV.grad is not None
    assert logits_BTV.grad[0, 0].any() and not logits_BTV.grad[0, 1:].any()


@given(outcomes())
def test_below_ln_2_greedy_decoding_always_picks_the_target(case: tuple[Tensor, ...]) -> None:
    loss_BT, correct_BT = token_nats(case[0], case[1])
    assert correct_BT[loss_BT < SAFE_NATS - 1e-6].all()


# Big vocabularies


@given(case=outcomes(), chunk=st.integers(1, 9), seed=st.integers(0, 99))
def test_in_chunks_losses_and_gradients_are_those_of_all_at_once(
    case: tuple[Tensor, ...], chunk: int, seed: int
) -> None:
    logits_BTV, ids_BT, _ = case
    torch.manual_seed(seed)
    n_words = logits_BTV.shape[-1]
    head = torch.nn.Linear(7, n_words)
    ids_M = ids_BT.flatten()
    scale_M = torch.rand(len(ids_M))
    found = []
    for in_chunks in (True, False):
        torch.manual_seed(seed)
        hidden_MD = torch.randn(len(ids_M), 7, requires_grad=True)
        nats = (
            chunked_nats(head, hidden_MD, ids_M, chunk)
            if in_chunks
            else token_nats(head(hidden_MD), ids_M)
        )
        (nats.loss_BT * scale_M).sum().backward()
        found.append((nats.loss_BT.detach(), nats.correct_BT, hidden_MD.grad))
        with torch.no_grad():
            silent = chunked_nats(head, hidden_MD, ids_M, chunk)
        torch.testing.assert_close(silent.loss_BT, found[0][0])
    for chunked, whole in zip(*found, strict=True):
        torch.testing.assert_close(chunked, whole)


def test_a_bf16_head_is_read_in_float32_and_gets_its_gradient_in_bf16() -> None:
    torch.manual_seed(0)
    head, ids_M = torch.nn.Linear(7, 11).bfloat16(), torch.arange(6)
    hidden_MD = torch.randn(6, 7).bfloat16().requires_grad_()
    nats = chunked_nats(head, hidden_MD, ids_M, 4)
    whole = token_nats(head(hidden_MD), ids_M)
    torch.testing.assert_close(nats.loss_BT, whole.loss_BT)
    assert torch.equal(nats.correct_BT, whole.correct_BT)
    nats.loss_BT.sum().backward()
    assert hidden_MD.grad is not None and hidden_MD.grad.dtype == torch.bfloat16
    assert hidden_MD.grad.any()
