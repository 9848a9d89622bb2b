"""Claims about one write's state: its epochs, its examples' record, what is stored of it."""

from __future__ import annotations

import pytest
import torch
from support.families import llama
from support.models import PLAIN, letters

from lorewright.knowledge.data import REHEARSAL, Example
from lorewright.models.model import Model
from lorewright.training.config import Job, WriteConfig
from lorewright.training.objectives import StepOutcome
from lorewright.training.state import Table, WriteState

CPU = torch.device("cpu")


def state_of(n_rows: int, config: WriteConfig) -> WriteState:
    examples = [Example(f"Where is {i}?", str(i)) for i in range(n_rows)]
    return WriteState(0, Job(examples, config), range(n_rows), [5] * n_rows, CPU)


@pytest.mark.parametrize(
    ("n_rows", "n_awake", "n_batches", "n_visits"),
    [(40, 40, 5, 1), (40, 20, 3, 1), (40, 9, 6, 3), (40, 2, 16, 16), (6, 6, 1, 1), (6, 2, 4, 4)],
)
def test_few_that_do_not_rest_are_trained_several_times_in_an_epoch(
    n_rows: int, n_awake: int, n_batches: int, n_visits: int
) -> None:
    state = state_of(n_rows, WriteConfig(rest=0.9, batch_size=8, epochs=10))
    state.worst_nats[n_awake:] = 0.01
    state.start_epoch()
    visited = [i for group in state.groups for i in group]
    assert len(state.groups) == n_batches
    assert sorted(visited) == sorted(list(range(n_awake)) * n_visits)
    assert not any(len(set(group)) < len(group) for group in state.groups)


TURN = "<bos><|system|>be as brief as you can be<|end|>"


def test_prompts_that_begin_alike_share_what_comes_before_their_last_token() -> None:
    model = Model(llama(), letters(TURN + PLAIN.removeprefix("{{ bos_token }}")), "tiny")
    config = WriteConfig()
    questions = ["red?", "round or not?", "red? ", "blue?"]
    examples = [Example(text, "yes") for text in questions]
    table = Table(model, [Job(examples, config)])
    head = len("__be as brief as you can be__")
    assert table.shared([0, 1, 3], 1) == head
    assert table.shared([0, 1], 1) == head + len("r")
    assert table.shared([0, 2], 1) == head + len("red?")
    assert table.shared([1, 1, 1, 1], 1) == len(table.rows[1].prompt_ids) - 1
    # An adapter of its own for every row: nothing to share.
    assert table.shared([0, 1], 2) == 0
    short = Table(Model(llama(), letters(), "tiny"), [Job(examples, config)])
    assert short.shared([0, 1, 3], 1) == 0


def test_the_record_of_an_example_leaves_padding_out() -> None:
    state = state_of(3, WriteConfig(margin=0.6))
    loss_BC = torch.tensor([[0.2, 0.4, 9.0], [0.3, 0.9, 0.3]])
    mask_BC = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]])
    state.record([2, 0], StepOutcome(loss_BC, torch.ones(2, 3).bool(), mask_BC))
    assert state.mean_nats.tolist() == pytest.approx([0.5, float("inf"), 0.3])
    assert state.worst_nats.tolist() == pytest.approx([0.9, float("inf"), 0.4])
    assert state.n_recalled() == 1
    assert state.split([0, 1, 2], 0.6) == ([0, 1], [2])


def test_what_is_no_number_is_not_recalled_and_does_not_rest() -> None:
    state = state_of(2, WriteConfig(rest=0.9))
    state.worst_nats[:] = torch.tensor([float("nan"), 0.0])
    assert state.n_recalled() == 1
    state.start_epoch()
    assert {i for group in state.groups for i in group} == {0}


def test_its_tensors_are_all_that_further_weights_depend_on() -> None:
    config = WriteConfig(objective="memft_window", batch_size=2)
    state, other = state_of(3, config), state_of(3, config)
    outcome = StepOutcome(torch.rand(2, 4), torch.rand(2, 4) > 0.5, torch.ones(2, 4))
    state.weights([0, 2], outcome)
    state.tally += 3
    stored = {name: tensor.clone() for name, tensor in state.tensors().items()}
    for name, tensor in other.tensors().items():
        tensor.copy_(stored[name])
    own = {"tally", "mean", "worst", "doubtful"}
    assert own | {"objective.stuck", "objective.first_error"} == stored.keys()
    for name, tensor in other.tensors().items():
        assert torch.equal(tensor, stored[name])
    state.weights([0, 2], outcome)
    other.weights([0, 2], outcome)
    assert torch.equal(state.remembered["stuck"], other.remembered["stuck"])


def rehearsing(n_learnt: int, n_rehearsed: int, share: float, tokens: int = 2) -> WriteState:
    examples = [Example(f"Where is {i}?", str(i)) for i in range(n_learnt)]
    examples += [Example(f"Who is {i}?", str(i), REHEARSAL) for i in range(n_rehearsed)]
    n = len(examples)
    sizes = [2] * n_learnt + [tokens] * n_rehearsed
    config = WriteConfig(rehearsal=share, batch_size=4, epochs=20)
    return WriteState(0, Job(examples, config), range(n), sizes, CPU)


@pytest.mark.parametrize(("share", "tokens"), [(0.25, 2), (0.25, 7), (0.5, 3), (0.1, 1)])
def test_rehearsal_takes_its_share_of_an_epochs_tokens_at_most(share: float, tokens: int) -> None:
    state = rehearsing(24, 30, share, tokens)
    for epoch in range(5):
        turn = state.slice_of(epoch, state.learnt)
        rehearsed = tokens * len(turn)
        assert turn and rehearsed <= share * (rehearsed + 48) + 1e-9


def test_rehearsal_goes_round_so_that_nothing_is_left_out_for_long() -> None:
    state = rehearsing(24, 30, 0.25)
    turns = [state.slice_of(epoch, state.learnt) for epoch in range(4)]
    assert [len(turn) for turn in turns] == [8] * 4 and len(set(turns[0]) & set(turns[1])) == 0
    assert {i for turn in turns for i in turn} == set(state.rehearsed)
    assert turns[2] == rehearsing(24, 30, 0.25).slice_of(2, state.learnt), "resumed, it is the same"


def test_what_is_rehearsed_never_counts_as_learnt() -> None:
    state = rehearsing(4, 8, 0.5)
    state.start_epoch()
    trained = {i for group in state.groups for i in group}
    assert trained & set(state.rehearsed) and trained >= set(state.learnt)
    state.worst_nats[state.rehearsed] = 0.0
    assert state.n_recalled() == 0
    state.worst_nats[state.learnt] = 0.0
    state.worst_nats[state.rehearsed] = 9.0
    state.tally = torch.ones(3)
    assert state.n_recalled() == state.summary(certified=True, seconds=0.0).n_examples == 4


def test_a_share_of_zero_rehearses_nothing_and_rehearsal_alone_is_learnt() -> None:
    assert rehearsing(4, 8, 0.0).slice_of(0, range(4)) == []
    alone = rehearsing(0, 3, 0.25)
    assert alone.learnt == [0, 1, 2] and not alone.rehearsed
