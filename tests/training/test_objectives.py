"""Claims about objectives: which tokens get gradient, how they are averaged, what is padding."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.objectives import Fading, halving
from support.outcomes import outcomes
from support.stacks import far
from support.writes import BRIEF, CONFIG, EXAMPLES, apart, interrupted, same_adapter, tiny
from torch import Tensor

from lorewright.errors import ConfigError, ModelError
from lorewright.knowledge.scoring import SAFE_NATS
from lorewright.models.model import Model
from lorewright.models.nats import token_nats
from lorewright.training import checkpoint
from lorewright.training.config import Job
from lorewright.training.loop import write, write_all
from lorewright.training.objectives import (
    FLOOR,
    OBJECTIVES,
    WIDTH,
    Objective,
    StepOutcome,
    Threshold,
    Uniform,
    Window,
    first_mismatch,
    trainer_loss,
    weighted_mean,
    window,
    window_width,
)

CPU = torch.device("cpu")
EVERY: dict[str, Callable[[float], Objective]] = {**OBJECTIVES, "outside": lambda margin: Fading()}
every_objective = pytest.mark.parametrize(
    "objective", [make(0.6) for make in EVERY.values()], ids=EVERY
)


def outcome_of(case: tuple[Tensor, ...]) -> StepOutcome:
    """The tokens of a case, padding as the loop has it."""
    nats = token_nats(case[0], torch.where(case[2], case[1], -1))
    return StepOutcome(nats.loss_BT, nats.correct_BT, case[2].float())


def weights_of(objective: Objective, outcome: StepOutcome) -> Tensor:
    """Of a first step in which every example has a row."""
    n = len(outcome.loss_BC)
    return objective.weights(outcome, objective.state(n, CPU), torch.arange(n))


def gradient(case: tuple[Tensor, ...], objective: Objective) -> tuple[Tensor, Tensor]:
    """Loss and its gradient with respect to the logits."""
    logits_BTV = case[0].clone().requires_grad_()
    loss_BT, _ = token_nats(logits_BTV, case[1])
    loss = weighted_mean(loss_BT, weights_of(objective, outcome_of(case)), case[2])
    loss.backward()
    assert logits_BTV.grad is not None
    return loss.detach(), logits_BTV.grad


# The contract of every objective


@every_objective
@given(case=outcomes())
def test_weights_are_finite_shares_without_gradient(
    objective: Objective, case: tuple[Tensor, ...]
) -> None:
    outcome = outcome_of(case)
    weight_BC = weights_of(objective, outcome)
    assert weight_BC.shape == outcome.loss_BC.shape and weight_BC.dtype == outcome.loss_BC.dtype
    assert ((weight_BC >= 0) & (weight_BC <= 1)).all()
    assert not weight_BC.requires_grad


@every_objective
@given(case=outcomes())
def test_padding_gets_exactly_zero_gradient(objective: Objective, case: tuple[Tensor, ...]) -> None:
    loss, grad_BTV = gradient(case, objective)
    assert torch.isfinite(loss) and torch.isfinite(grad_BTV).all()
    assert not grad_BTV[~case[2]].any()


@every_objective
def test_state_is_per_example_and_only_that_of_the_step_changes(objective: Objective) -> None:
    outcome = StepOutcome(torch.ones(2, 3), torch.zeros(2, 3).bool(), torch.ones(2, 3))
    state = objective.state(5, CPU)
    before = {name: tensor.clone() for name, tensor in state.items()}
    objective.weights(outcome, state, torch.tensor([3, 1]))
    for name, tensor in state.items():
        assert len(tensor) == 5
        assert torch.equal(tensor[[0, 2, 4]], before[name][[0, 2, 4]])


@every_objective
def test_names_tell_objectives_apart(objective: Objective) -> None:
    assert [make(0.6).name for make in EVERY.values()].count(objective.name) == 1


@given(case=outcomes(), p=st.sampled_from([0.5, 0.6, 0.9]))
def test_a_threshold_gives_safe_tokens_exactly_zero_gradient(
    case: tuple[Tensor, ...], p: float
) -> None:
    _, grad_BTV = gradient(case, OBJECTIVES["memft_threshold"](p))
    loss_BT, _ = token_nats(case[0], case[1])
    assert not grad_BTV[loss_BT <= -math.log(p)].any()
    assert grad_BTV[(loss_BT > -math.log(p)) & case[2]].any(-1).all()


@given(case=outcomes())
def test_all_safe_gives_zero_loss_and_zero_gradient(case: tuple[Tensor, ...]) -> None:
    safe = 3 * torch.nn.functional.one_hot(case[1], 5).float()
    loss, grad_BTV = gradient((safe, *case[1:]), Threshold())
    assert loss == 0 and not grad_BTV.any()


def test_sft_is_plain_cross_entropy() -> None:
    generator = torch.Generator().manual_seed(0)
    logits_BTV = torch.randn(2, 3, 5, generator=generator)
    ids_BT = torch.randint(5, (2, 3), generator=generator)
    loss, _ = gradient((logits_BTV, ids_BT, torch.ones(2, 3).bool()), OBJECTIVES["sft"](0.6))
    expected = torch.nn.functional.cross_entropy(logits_BTV.flatten(0, 1), ids_BT.flatten())
    torch.testing.assert_close(loss, expected)


def test_a_margin_weights_tokens_that_are_merely_safe() -> None:
    loss_BC = -torch.tensor([[0.4, 0.6, 0.95]]).log()
    outcome = StepOutcome(loss_BC, torch.tensor([[False, True, True]]), torch.ones(1, 3))
    assert weights_of(Threshold(), outcome).tolist() == [[1, 0, 0]]
    assert weights_of(OBJECTIVES["memft_threshold"](0.9), outcome).tolist() == [[1, 1, 0]]


# The window


def test_window_decays_after_the_first_error_and_has_a_floor() -> None:
    loss_BT = torch.full((1, 200), 100.0)  # the sigmoid is 1
    correct_BT = torch.ones(1, 200, dtype=torch.bool)
    correct_BT[0, [10, 30]] = False
    weight_T = weights_of(Window(), StepOutcome(loss_BT, correct_BT, torch.ones(1, 200)))[0]
    assert weight_T[:11].tolist() == [1.0] * 11
    torch.testing.assert_close(weight_T[30], torch.tensor(math.exp(-1.0)))
    assert weight_T[10 + 49] > FLOOR and weight_T[10 + 50] == FLOOR


def test_window_is_the_sigmoid_alone_where_nothing_is_wrong() -> None:
    loss_BT = torch.tensor([[SAFE_NATS, SAFE_NATS + 1, 0.0]])
    weight_BT = window(loss_BT, torch.ones(1, 3, dtype=torch.bool), torch.tensor([WIDTH]))
    torch.testing.assert_close(weight_BT, torch.sigmoid(10 * (loss_BT - SAFE_NATS)))


@given(outcomes(), st.lists(st.floats(1, 300), min_size=2, max_size=2))
def test_a_wider_window_never_lowers_a_weight(
    case: tuple[Tensor, ...], widths: list[float]
) -> None:
    loss_BT, correct_BT = token_nats(case[0], case[1])
    narrow, wide = (
        window(loss_BT, correct_BT, torch.full((len(loss_BT),), width)) for width in sorted(widths)
    )
    assert (wide >= narrow - 8 * torch.finfo(torch.float32).eps).all()


def test_each_row_has_a_window_of_its_own() -> None:
    loss_BT = torch.full((2, 100), 100.0)
    correct_BT = torch.ones(2, 100, dtype=torch.bool)
    correct_BT[:, 0] = False
    weight_BT = window(loss_BT, correct_BT, torch.tensor([10.0, 200.0]))
    assert weight_BT[0, 10] == FLOOR and weight_BT[1, 99] > FLOOR


def test_first_mismatch_is_per_row_and_the_length_where_all_is_right() -> None:
    correct_BT = torch.tensor([[True, False, False], [True, True, True], [False, True, True]])
    assert first_mismatch(correct_BT).tolist() == [1, 3, 0]


def test_window_widens_by_half_every_three_stuck_steps_up_to_four_times() -> None:
    widths = window_width(torch.tensor([0, 2, 3, 6, 17, 18, 1000])) / WIDTH
    assert widths.tolist() == [1, 1, 1.5, 2, 3.5, 4, 4]


def test_an_example_is_stuck_while_its_first_error_does_not_move() -> None:
    objective, examples = Window(), torch.tensor([1])
    state, stuck = objective.state(2, CPU), []
    for first in (2, 2, 2, 1, 1):
        correct_BC = torch.arange(4)[None] != first
        outcome = StepOutcome(torch.ones(1, 4), correct_BC, torch.ones(1, 4))
        objective.weights(outcome, state, examples)
        stuck.append(state["stuck"].tolist())
    assert stuck == [[0, 0], [0, 1], [0, 2], [0, 0], [0, 1]]


# Means


@given(outcomes())
def test_examples_without_weight_do_not_change_the_mean(case: tuple[Tensor, ...]) -> None:
    """This is what makes leaving them out (resting) exact."""
    loss_BT, weight_BT, mask_BT = case[0][..., 0].double(), torch.ones(case[1].shape), case[2]
    weight_BT = (loss_BT > 0).double()
    active_B = (weight_BT * mask_BT).any(-1)
    whole = weighted_mean(loss_BT, weight_BT, mask_BT)
    part = weighted_mean(loss_BT[active_B], weight_BT[active_B], mask_BT[active_B])
    torch.testing.assert_close(whole, part)


def test_one_long_example_does_not_outweigh_short_ones() -> None:
    loss_BT = torch.tensor([[4.0, 4.0, 4.0, 4.0], [1.0, 0.0, 0.0, 0.0]])
    mask_BT = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0]])
    mean = weighted_mean(loss_BT, torch.ones(2, 4), mask_BT)
    torch.testing.assert_close(mean, torch.tensor(2.5))


@given(case=outcomes(), seed=st.integers(0, 99))
def test_groups_sum_to_what_each_adapter_gets_alone(case: tuple[Tensor, ...], seed: int) -> None:
    loss_BT, weight_BT = case[0][..., 0].double(), case[0][..., 1].sigmoid().double()
    group_B = torch.randint(-1, 3, loss_BT.shape[:1], generator=torch.Generator().manual_seed(seed))
    together = weighted_mean(loss_BT, weight_BT, case[2], group_B=group_B)
    each = [
        weighted_mean(loss_BT[b], weight_BT[b], case[2][b])
        for b in (group_B == n for n in range(3))
    ]
    torch.testing.assert_close(together, torch.stack(each).sum())


def test_a_nan_of_one_group_stays_out_of_the_gradient_of_the_others() -> None:
    loss_BT = torch.tensor([[1.0, 2.0], [torch.nan, 1.0], [3.0, 4.0]], requires_grad=True)
    group_B = torch.tensor([0, 1, 0])
    weighted_mean(loss_BT, torch.ones(3, 2), torch.ones(3, 2), group_B=group_B).backward()
    assert loss_BT.grad is not None
    torch.testing.assert_close(loss_BT.grad[[0, 2]], torch.full((2, 2), 0.25))


# In other people's trainers


@pytest.mark.parametrize(
    "objective", [make(0.6) for name, make in OBJECTIVES.items() if name != "distill"], ids=str
)
@given(case=outcomes(), n_prompt=st.integers(1, 5))
def test_a_trainers_loss_is_ours_on_shifted_labels(
    objective: Objective, case: tuple[Tensor, ...], n_prompt: int
) -> None:
    logits_BTV, ids_BT, mask_BT = case
    n_rows, n_tokens, n_words = logits_BTV.shape
    before = torch.randn(n_rows, n_prompt - 1, n_words)
    shown = torch.cat([before, logits_BTV, torch.randn(n_rows, 1, n_words)], 1)
    labels = torch.full((n_rows, n_prompt + n_tokens), -100)
    labels[:, n_prompt:] = torch.where(mask_BT, ids_BT, -100)
    outcome = outcome_of(case)
    wanted = weighted_mean(outcome.loss_BC, weights_of(objective, outcome), mask_BT)
    n_labels = int(mask_BT.sum())
    loss = trainer_loss(objective)
    torch.testing.assert_close(loss({"logits": shown}, labels), wanted)
    torch.testing.assert_close(loss({"logits": shown}, labels, n_labels), wanted)
    torch.testing.assert_close(loss({"logits": shown}, labels, 4 * n_labels), wanted / 4)


def test_a_trainer_cannot_ask_a_teacher() -> None:
    with pytest.raises(ConfigError, match="'distill' has a teacher"):
        trainer_loss(OBJECTIVES["distill"](0.6))


# One from outside, through a whole write


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny()


@pytest.mark.usefixtures("calm")
def test_the_weights_of_an_objective_from_outside_are_those_of_the_steps(model: Model) -> None:
    """Weight on one example only is that example alone, but for rounding in other batches."""
    config = replace(BRIEF, margin=0.999)  # so that none of them ends before its budget
    alone = write(model, EXAMPLES[:1], config, objective=Fading(by=0.5))
    among = write(model, EXAMPLES, config, objective=Fading(only=(0,), by=0.5))
    plain = write(model, EXAMPLES[:1], config)
    assert far(alone, among) < apart(model, config) < far(alone, plain)
    with pytest.raises(ModelError, match="14 adapted layers got no gradient"):
        write(model, EXAMPLES, BRIEF, objective=Fading(only=()))


def test_its_state_survives_an_interruption_and_its_name_marks_the_checkpoint(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "CHECKPOINT_SECONDS", 0.0)
    objective, config = Fading(by=0.5), replace(BRIEF, batch_size=2)
    whole = write(model, EXAMPLES, config, objective=objective)
    interrupted(model, tmp_path, at=3, config=config, objective=objective)
    for other in (None, Fading(by=0.7)):
        with pytest.raises(ConfigError, match="other examples, settings or base"):
            write(model, EXAMPLES, config, objective=other, run=tmp_path)
    assert same_adapter(write(model, EXAMPLES, config, objective=objective, run=tmp_path), whole)


def test_an_entry_under_a_name_trains_what_it_is_and_nothing_else(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="objective 'fading' is unknown"):
        replace(BRIEF, objective="fading")
    monkeypatch.setitem(OBJECTIVES, "fading", lambda margin: Fading(by=margin))
    named = write(model, EXAMPLES, replace(BRIEF, objective="fading"))
    assert same_adapter(named, write(model, EXAMPLES, BRIEF, objective=Fading(by=BRIEF.margin)))
    assert not same_adapter(named, write(model, EXAMPLES, BRIEF))


@pytest.mark.usefixtures("calm")
def test_a_teacher_from_outside_sets_what_is_minimised(model: Model) -> None:
    """Half the loss at a clip that lets it through is half the gradient: Adam's steps differ by
    its epsilon only, and in a stack each write has its own."""
    halved = Uniform("halved", halving)
    config = replace(BRIEF, clip=1e-3)
    plain, taught = (
        write(model, EXAMPLES, config, objective=objective) for objective in (None, halved)
    )
    assert far(plain, taught) < apart(model, config), (
        "clipped to one norm, their gradients are equal"
    )
    assert all(
        a.loss_nats == pytest.approx(b.loss_nats)
        for a, b in zip(plain.epochs, taught.epochs, strict=True)
    )
    jobs = [Job(EXAMPLES, config), Job(EXAMPLES, config, objective=halved)]
    for result in write_all(model, jobs):
        assert far(plain, result) < apart(model, config)


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name != "distill"])
@pytest.mark.parametrize("margin", [0.5, 0.9])
def test_every_objective_reaches_recall(model: Model, name: str, margin: float) -> None:
    config = replace(CONFIG, objective=name, margin=margin, epochs=160)
    done = write(model, EXAMPLES, config)
    assert done.complete, done.reason
    with model.using(done.adapter):
        assert model.generate([e.prompt for e in EXAMPLES]) == [e.completion for e in EXAMPLES]
