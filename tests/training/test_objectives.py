"""Claims about objectives: which tokens get gradient, how they are averaged, what is padding."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lorewright.knowledge.scoring import SAFE_NATS
from lorewright.models.nats import chunked_nats, token_nats
from lorewright.training.objectives import (
    FLOOR,
    WEIGHTINGS,
    WIDTH,
    Weighting,
    below_threshold,
    distill_topk,
    first_mismatch,
    threshold,
    trainer_loss,
    uniform,
    weighted_mean,
    weighted_mean_pooled,
    window,
    window_width,
)

MEANS = {"by_example": weighted_mean, "pooled": weighted_mean_pooled}
mean_of = pytest.mark.parametrize("mean", MEANS.values(), ids=MEANS)
every_weighting = pytest.mark.parametrize("weighting", WEIGHTINGS.values(), ids=WEIGHTINGS)


@st.composite
def outcomes(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (B, T, V), target ids (B, T) and a mask (B, T) with padding on the right."""
    n_rows, n_tokens, n_words = draw(st.integers(1, 4)), draw(st.integers(1, 60)), 5
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    sharpness = draw(st.sampled_from([0.0, 0.3, 3.0, 30.0]))
    logits_BTV = sharpness * torch.randn(n_rows, n_tokens, n_words, generator=generator)
    ids_BT = torch.randint(n_words, (n_rows, n_tokens), generator=generator)
    if draw(st.booleans()):  # mostly recalled
        kept_BT = torch.rand(ids_BT.shape, generator=generator) < 0.9
        ids_BT = torch.where(kept_BT, logits_BTV.argmax(-1), ids_BT)
    length_B = torch.randint(0, n_tokens + 1, (n_rows,), generator=generator)
    return logits_BTV, ids_BT, torch.arange(n_tokens) < length_B[:, None]


def gradient(
    logits_BTV: Tensor, ids_BT: Tensor, mask_BT: Tensor, weighting: Weighting, mean: object
) -> tuple[Tensor, Tensor]:
    """Loss and its gradient with respect to the logits."""
    assert callable(mean)
    logits_BTV = logits_BTV.clone().requires_grad_()
    loss_BT, correct_BT = token_nats(logits_BTV, ids_BT)
    loss = mean(loss_BT, weighting(loss_BT, correct_BT), mask_BT)
    loss.backward()
    assert logits_BTV.grad is not None
    return loss.detach(), logits_BTV.grad


# Tokens


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


# Weightings: the contract of every entry


@every_weighting
@given(case=outcomes())
def test_weights_lie_in_0_1_and_carry_no_gradient(
    weighting: Weighting, case: tuple[Tensor, ...]
) -> None:
    loss_BT, correct_BT = token_nats(case[0].clone().requires_grad_(), case[1])
    weight_BT = weighting(loss_BT, correct_BT)
    assert weight_BT.shape == loss_BT.shape and weight_BT.dtype == loss_BT.dtype
    assert ((weight_BT >= 0) & (weight_BT <= 1)).all()
    assert not weight_BT.requires_grad


@every_weighting
@mean_of
@given(case=outcomes())
def test_padding_gets_exactly_zero_gradient(
    weighting: Weighting, mean: object, case: tuple[Tensor, ...]
) -> None:
    loss, grad_BTV = gradient(*case[:2], case[2], weighting, mean)
    assert torch.isfinite(loss) and torch.isfinite(grad_BTV).all()
    assert not grad_BTV[~case[2]].any()


@mean_of
@given(case=outcomes())
def test_below_threshold_gives_safe_tokens_exactly_zero_gradient(
    mean: object, case: tuple[Tensor, ...]
) -> None:
    logits_BTV, ids_BT, mask_BT = case
    _, grad_BTV = gradient(logits_BTV, ids_BT, mask_BT, below_threshold, mean)
    loss_BT, _ = token_nats(logits_BTV, ids_BT)
    assert not grad_BTV[loss_BT <= SAFE_NATS].any()
    assert grad_BTV[(loss_BT > SAFE_NATS) & mask_BT].any(-1).all()


@mean_of
@given(case=outcomes())
def test_all_safe_gives_zero_loss_and_zero_gradient(mean: object, case: tuple[Tensor, ...]) -> None:
    logits_BTV = 3 * torch.nn.functional.one_hot(case[1], 5).float()
    loss, grad_BTV = gradient(logits_BTV, case[1], case[2], below_threshold, mean)
    assert loss == 0 and not grad_BTV.any()


def test_uniform_is_plain_cross_entropy() -> None:
    generator = torch.Generator().manual_seed(0)
    logits_BTV = torch.randn(2, 3, 5, generator=generator)
    ids_BT = torch.randint(5, (2, 3), generator=generator)
    loss_BT, correct_BT = token_nats(logits_BTV, ids_BT)
    loss = weighted_mean(loss_BT, uniform(loss_BT, correct_BT), torch.ones(2, 3))
    expected = torch.nn.functional.cross_entropy(logits_BTV.flatten(0, 1), ids_BT.flatten())
    torch.testing.assert_close(loss, expected)


def test_threshold_with_a_margin_keeps_pushing_tokens_that_are_merely_safe() -> None:
    loss_BT = -torch.tensor([[0.4, 0.6, 0.95]]).log()
    correct_BT = torch.tensor([[False, True, True]])
    assert below_threshold(loss_BT, correct_BT).tolist() == [[1, 0, 0]]
    assert threshold(-math.log(0.9))(loss_BT, correct_BT).tolist() == [[1, 1, 0]]


# The window


def test_window_decays_after_the_first_error_and_has_a_floor() -> None:
    loss_BT = torch.full((1, 200), 100.0)  # the sigmoid is 1
    correct_BT = torch.ones(1, 200, dtype=torch.bool)
    correct_BT[0, [10, 30]] = False
    weight_T = window()(loss_BT, correct_BT)[0]
    assert weight_T[:11].tolist() == [1.0] * 11
    torch.testing.assert_close(weight_T[30], torch.tensor(math.exp(-1.0)))
    assert weight_T[10 + 49] > FLOOR and weight_T[10 + 50] == FLOOR


def test_window_is_the_sigmoid_alone_where_nothing_is_wrong() -> None:
    loss_BT = torch.tensor([[SAFE_NATS, SAFE_NATS + 1, 0.0]])
    weight_BT = window()(loss_BT, torch.ones(1, 3, dtype=torch.bool))
    expected = torch.sigmoid(10 * (loss_BT - SAFE_NATS))
    torch.testing.assert_close(weight_BT, expected)


@given(outcomes(), st.lists(st.floats(1, 300), min_size=2, max_size=2))
def test_a_wider_window_never_lowers_a_weight(
    case: tuple[Tensor, ...], widths: list[float]
) -> None:
    loss_BT, correct_BT = token_nats(case[0], case[1])
    narrow, wide = (
        window(torch.full((len(loss_BT),), width))(loss_BT, correct_BT) for width in sorted(widths)
    )
    assert (wide >= narrow - 1e-6).all()


def test_each_row_has_a_window_of_its_own() -> None:
    loss_BT = torch.full((2, 100), 100.0)
    correct_BT = torch.ones(2, 100, dtype=torch.bool)
    correct_BT[:, 0] = False
    weight_BT = window(torch.tensor([10.0, 200.0]))(loss_BT, correct_BT)
    assert weight_BT[0, 10] == FLOOR and weight_BT[1, 99] > FLOOR


def test_first_mismatch_is_per_row_and_the_length_where_all_is_right() -> None:
    correct_BT = torch.tensor([[True, False, False], [True, True, True], [False, True, True]])
    assert first_mismatch(correct_BT).tolist() == [1, 3, 0]


def test_window_widens_by_half_every_three_stuck_steps_up_to_four_times() -> None:
    widths = window_width(torch.tensor([0, 2, 3, 6, 17, 18, 1000])) / WIDTH
    assert widths.tolist() == [1, 1, 1.5, 2, 3.5, 4, 4]


# Means


@given(outcomes())
def test_examples_without_weight_do_not_change_the_mean(case: tuple[Tensor, ...]) -> None:
    """This is what makes skipping them (the active set) exact."""
    logits_BTV, ids_BT, mask_BT = case
    loss_BT, correct_BT = token_nats(logits_BTV, ids_BT)
    weight_BT = below_threshold(loss_BT, correct_BT)
    active_B = (weight_BT * mask_BT).any(-1)
    whole = weighted_mean(loss_BT, weight_BT, mask_BT)
    part = weighted_mean(loss_BT[active_B], weight_BT[active_B], mask_BT[active_B])
    torch.testing.assert_close(whole, part, rtol=1e-5, atol=1e-7)


def test_one_long_example_does_not_outweigh_short_ones_unless_pooled() -> None:
    loss_BT = torch.tensor([[4.0, 4.0, 4.0, 4.0], [1.0, 0.0, 0.0, 0.0]])
    mask_BT = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0]])
    ones_BT = torch.ones(2, 4)
    torch.testing.assert_close(weighted_mean(loss_BT, ones_BT, mask_BT), torch.tensor(2.5))
    pooled = weighted_mean_pooled(loss_BT, ones_BT, mask_BT)
    torch.testing.assert_close(pooled, torch.tensor(17 / 5))


@mean_of
@given(case=outcomes(), seed=st.integers(0, 99))
def test_groups_sum_to_what_each_adapter_gets_alone(
    mean: object, case: tuple[Tensor, ...], seed: int
) -> None:
    assert callable(mean)
    loss_BT, correct_BT = token_nats(case[0], case[1])
    weight_BT = window()(loss_BT, correct_BT)
    group_B = torch.randint(-1, 3, loss_BT.shape[:1], generator=torch.Generator().manual_seed(seed))
    together = mean(loss_BT, weight_BT, case[2], group_B=group_B)
    each = [mean(loss_BT[b], weight_BT[b], case[2][b]) for b in (group_B == n for n in range(3))]
    torch.testing.assert_close(together, torch.stack(each).sum(), rtol=1e-5, atol=1e-6)


@mean_of
def test_a_nan_of_one_group_stays_out_of_the_gradient_of_the_others(mean: object) -> None:
    assert callable(mean)
    loss_BT = torch.tensor([[1.0, 2.0], [torch.nan, 1.0], [3.0, 4.0]], requires_grad=True)
    group_B = torch.tensor([0, 1, 0])
    mean(loss_BT, torch.ones(3, 2), torch.ones(3, 2), group_B=group_B).backward()
    assert loss_BT.grad is not None
    torch.testing.assert_close(loss_BT.grad[[0, 2]], torch.full((2, 2), 0.25))


# Distillation


@given(outcomes(), st.integers(1, 5))
def test_distill_is_the_kl_over_the_top_and_the_rest(case: tuple[Tensor, ...], k: int) -> None:
    student_BTV = case[0]
    teacher_BTV = case[0].flip(-1).log_softmax(-1)
    top_logp_BTK, top_ids_BTK = teacher_BTV.topk(k, -1)
    found_BT = distill_topk(student_BTV, top_ids_BTK, top_logp_BTK)
    t_BTK, s_BTV = top_logp_BTK.double().exp(), student_BTV.double().log_softmax(-1).exp()
    s_BTK = s_BTV.gather(-1, top_ids_BTK)
    t_rest, s_rest = 1 - t_BTK.sum(-1), 1 - s_BTK.sum(-1)
    rest = torch.special.xlogy(t_rest.clamp(min=0), t_rest / s_rest.clamp(min=1e-12))
    expected_BT = torch.special.xlogy(t_BTK, t_BTK / s_BTK.clamp(min=1e-300)).sum(-1)
    expected_BT = expected_BT + (rest if k < 5 else 0)
    assert torch.isfinite(found_BT).all() and (found_BT > -1e-5).all()
    exact = (s_rest > 1e-6) | (t_rest < 1e-6)
    torch.testing.assert_close(
        found_BT[exact], expected_BT[exact].float(), rtol=1e-3, atol=1e-4, check_dtype=False
    )


def test_distill_is_zero_with_zero_gradient_at_the_teacher_and_pulls_the_tail_along() -> None:
    generator = torch.Generator().manual_seed(0)
    teacher_BTV = torch.randn(1, 2, 6, generator=generator)
    top_logp_BTK, top_ids_BTK = teacher_BTV.log_softmax(-1).topk(2, -1)
    student_BTV = teacher_BTV.clone().requires_grad_()
    loss_BT = distill_topk(student_BTV, top_ids_BTK, top_logp_BTK)
    loss_BT.sum().backward()
    assert student_BTV.grad is not None
    torch.testing.assert_close(loss_BT, torch.zeros(1, 2), rtol=0, atol=1e-6)
    torch.testing.assert_close(student_BTV.grad, torch.zeros(1, 2, 6), rtol=0, atol=1e-6)
    sharper = 5 * teacher_BTV
    assert (distill_topk(sharper, top_ids_BTK, top_logp_BTK) > 0.01).all()


def test_distill_survives_a_teacher_that_is_certain() -> None:
    student_BTV = torch.zeros(1, 1, 4, requires_grad=True)
    top_logp_BTK = torch.tensor([[[0.0, -torch.inf]]], dtype=torch.float16)
    loss_BT = distill_topk(student_BTV, torch.tensor([[[2, 0]]]), top_logp_BTK)
    loss_BT.sum().backward()
    torch.testing.assert_close(loss_BT, torch.full((1, 1), math.log(4)))
    assert student_BTV.grad is not None and torch.isfinite(student_BTV.grad).all()


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


# In other people's trainers


@every_weighting
@given(case=outcomes(), n_prompt=st.integers(1, 5))
def test_a_trainers_loss_is_ours_on_shifted_labels(
    weighting: Weighting, case: tuple[Tensor, ...], n_prompt: int
) -> None:
    logits_BTV, ids_BT, mask_BT = case
    n_rows, n_tokens, n_words = logits_BTV.shape
    before = torch.randn(n_rows, n_prompt - 1, n_words)
    shown = torch.cat([before, logits_BTV, torch.randn(n_rows, 1, n_words)], 1)
    labels = torch.full((n_rows, n_prompt + n_tokens), -100)
    labels[:, n_prompt:] = torch.where(mask_BT.bool(), ids_BT, -100)
    masked = torch.where(mask_BT.bool(), ids_BT, -1)
    nats = token_nats(logits_BTV, masked)
    wanted = weighted_mean(nats.loss_BT, weighting(nats.loss_BT, nats.correct_BT), mask_BT)
    n_labels = int(mask_BT.sum())
    loss = trainer_loss(weighting)
    torch.testing.assert_close(loss({"logits": shown}, labels), wanted)
    torch.testing.assert_close(loss({"logits": shown}, labels, n_labels), wanted)
    torch.testing.assert_close(loss({"logits": shown}, labels, 4 * n_labels), wanted / 4)
