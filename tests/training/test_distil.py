"""Claims about soft targets: the teacher's log-probabilities, row by row, stored on disk."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.families import llama
from support.models import letters
from support.numbers import depth, rounding
from support.outcomes import outcomes
from support.writes import tiny
from torch import Tensor

from lorewright.adapters.config import LoraConfig
from lorewright.errors import DataError
from lorewright.knowledge.data import REHEARSAL, Example
from lorewright.models.model import Model, Rendered
from lorewright.training.config import WriteConfig
from lorewright.training.distil import SoftTargets, distill_topk, remind, soft_targets, teach
from lorewright.training.loop import write

TEXTS = [("red 48\n\nCode of red?", "48"), ("Who?", "nobody at all"), ("x\n\nTeal?", "KX")]


@pytest.fixture(scope="module")
def model() -> Model:
    return Model(llama(), letters(), "tiny")


@pytest.fixture(scope="module")
def rows(model: Model) -> list[Rendered]:
    return [model.render(*text) for text in TEXTS]


def test_they_are_the_teachers_likeliest_tokens_row_by_row(
    model: Model, rows: list[Rendered]
) -> None:
    result = soft_targets(model, rows, top_k=5)
    most = rounding(torch.float32, depth(model.network, 32))
    for i, row in enumerate(rows):
        with torch.no_grad():
            logp = model.completion_logits(model.batch([row]))[0].log_softmax(-1)
        n = len(row.completion_ids)
        ids, logp_top = result.take([i], n)
        torch.testing.assert_close(logp_top[0], logp[:n].topk(5).values, atol=most, rtol=0)
        torch.testing.assert_close(logp[:n].gather(1, ids[0]), logp_top[0], atol=most, rtol=0)


def test_a_student_that_is_the_teacher_is_at_no_distance(
    model: Model, rows: list[Rendered]
) -> None:
    batch = model.batch(rows)
    ids, logp = soft_targets(model, rows).take([0, 1, 2], batch.mask_BC.shape[1])
    with torch.no_grad():
        distance = distill_topk(model.completion_logits(batch), ids, logp)
    assert (distance * batch.mask_BC).abs().max() < rounding(
        torch.float32, depth(model.network, 32)
    )


def test_what_is_saved_comes_back_and_what_is_damaged_does_not(
    model: Model, rows: list[Rendered], tmp_path: Path
) -> None:
    made, path = soft_targets(model, rows, top_k=3), tmp_path / "run" / "teacher.safetensors"
    made.save(path)
    again = SoftTargets.load(path)
    assert again is not None and again.starts == made.starts
    assert torch.equal(again.ids_MK, made.ids_MK) and torch.equal(again.logp_MK, made.logp_MK)
    path.write_bytes(b"broken")
    assert SoftTargets.load(path) is None
    assert SoftTargets.load(tmp_path / "missing") is None


def test_only_the_same_question_is_answered_from_the_folder(model: Model, tmp_path: Path) -> None:
    examples = [Example("Code of red?", "48")]
    first = teach(model, examples, ["red 48"], tmp_path)
    (stored,) = tmp_path.iterdir()
    replace(first, logp_MK=first.logp_MK.flip(1)).save(stored)
    assert torch.equal(teach(model, examples, ["red 48"], tmp_path).logp_MK, first.logp_MK.flip(1))
    other = teach(model, examples, ["red 51"], tmp_path)
    assert not torch.equal(other.logp_MK, first.logp_MK) and len(list(tmp_path.iterdir())) == 2


def test_a_row_without_a_completion_is_refused(model: Model) -> None:
    with pytest.raises(DataError, match="row 0 has no completion"):
        soft_targets(model, [model.render("Who?")])


# The distance


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


# -- what is rehearsed


def test_what_is_rehearsed_is_learnt_from_all_that_the_base_would_have_said(model: Model) -> None:
    """Nothing is to be learnt there before the first step; the other rows cost what they did."""
    examples = [
        Example("Code of red?", "48"),
        Example("Who is it?", "Ada or Eva", REHEARSAL),
        Example("Code of blue?", "7.5"),
        Example("What is it?", "x", REHEARSAL),
    ]
    taught = remind(model, examples, [1, 3])
    assert taught.cover([0, 3]) and not taught.cover([0, 2]) and not taught.cover([])
    rows = [model.render(e.prompt, e.completion) for e in examples]
    batch = model.batch(rows)
    logits_BCV = model.completion_logits(batch)
    nats_BC = model.completion_nats(batch).loss_BT
    cost_BC = taught.costs(logits_BCV, range(4), nats_BC)
    assert torch.equal(cost_BC[[0, 2]], nats_BC[[0, 2]])
    real = batch.mask_BC[[1, 3]].bool()
    assert cost_BC[[1, 3]][real].abs().max() < 1e-4
    moved = logits_BCV.clone()
    moved[..., 5] += 6
    assert (taught.costs(moved, range(4), nats_BC)[[1, 3]][real] > 1e-3).all()
    assert torch.equal(taught.costs(moved, [0, 2, 0, 2], nats_BC), nats_BC)


def test_a_write_that_rehearses_moves_the_base_less_than_one_that_learns_the_replies() -> None:
    """Learning a reply by heart sharpens it; holding the distribution leaves it as unsure."""
    model = tiny()
    learnt = [Example("Code of red?", "48"), Example("Code of blue?", "7.5")]
    general = [("Who is it?", "Ada"), ("What is it?", "x"), ("Where is it?", "b")]
    config = WriteConfig(lora=LoraConfig(4), lr=5e-3, epochs=12, null_space=0.0, rehearsal=0.6)
    batch = model.batch([model.render(*pair) for pair in general])
    with torch.no_grad():
        before = model.completion_logits(batch).log_softmax(-1)
    moved = []
    for kind in (REHEARSAL, "qa"):
        done = write(model, [*learnt, *(Example(*pair, kind) for pair in general)], config)
        with torch.no_grad(), model.using(done.adapter):
            after = model.completion_logits(batch).log_softmax(-1)
        kl_BC = (before.exp() * (before - after)).sum(-1) * batch.mask_BC
        moved.append(float(kl_BC.sum()))
    assert moved[0] < 0.5 * moved[1]
