"""Claims about batches: every example once, the same again, easy first when asked."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lorewright.errors import ConfigError
from lorewright.models.batching import (
    EASY_FIRST,
    ORDERS,
    OTHER_TOKENS,
    PASS_TOKENS,
    batches,
    by_length,
    pass_tokens,
)

LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=60)


@given(
    lengths=LENGTHS,
    size=st.integers(1, 8),
    epoch=st.integers(0, 30),
    seed=st.integers(0, 5),
    order=st.sampled_from(sorted(ORDERS)),
    data=st.data(),
)
def test_batches_hold_every_chosen_example_exactly_once_and_the_same_again(
    lengths: list[int], size: int, epoch: int, seed: int, order: str, data: st.DataObject
) -> None:
    everyone = list(range(len(lengths)))
    chosen = data.draw(st.lists(st.sampled_from(everyone), unique=True, min_size=1))
    nats = [float(n % 7) for n in lengths]

    def cut() -> list[list[int]]:
        return batches(lengths, chosen, size=size, seed=seed, epoch=epoch, order=order, nats=nats)

    groups = cut()
    assert sorted(i for group in groups for i in group) == sorted(chosen)
    assert all(1 <= len(group) <= size for group in groups)
    assert groups == cut()


@given(lengths=LENGTHS, size=st.integers(1, 8))
def test_a_batch_is_padded_no_more_than_its_span_needs(lengths: list[int], size: int) -> None:
    """Within a span of batches the rows are sorted: only neighbours in length meet."""
    groups = batches(lengths, range(len(lengths)), size=size, seed=0, epoch=0)
    padded = sum(len(group) * max(lengths[i] for i in group) for group in groups)
    if len(lengths) <= 8 * size:  # one span: sorted from end to end
        ranked = sorted(lengths)
        best = sum(
            len(ranked[i : i + size]) * ranked[i : i + size][-1]
            for i in range(0, len(ranked), size)
        )
        assert padded == best


def test_batches_differ_between_epochs_and_seeds() -> None:
    lengths = [2] * 50
    found = [
        str(batches(lengths, range(50), size=8, seed=seed, epoch=epoch))
        for seed in (0, 1)
        for epoch in (0, 1)
    ]
    assert len(set(found)) == 4


@given(nats=st.lists(st.floats(0, 20), min_size=1, max_size=50))
def test_a_curriculum_takes_the_easy_first_in_the_first_third_and_leaves_nothing_out(
    nats: list[float],
) -> None:
    def at(done: float) -> list[int]:
        groups = batches(
            [5] * len(nats),
            range(len(nats)),
            size=4,
            seed=0,
            epoch=1,
            order="curriculum",
            done=done,
            nats=nats,
        )
        return [i for group in groups for i in group]

    early = [nats[i] for i in at(EASY_FIRST / 2)]
    assert early == sorted(nats)
    assert sorted(at(0.9)) == list(range(len(nats)))


def test_an_unknown_order_is_named_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match="order 'random' is unknown; use one of shuffle"):
        batches([1], [0], size=1, seed=0, epoch=0, order="random")


@given(lengths=st.lists(st.integers(1, 20), max_size=30), batch_tokens=st.integers(1, 60))
def test_groups_by_length_hold_every_row_once_within_the_budget(
    lengths: list[int], batch_tokens: int
) -> None:
    groups = list(by_length(lengths, batch_tokens))
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    for group in groups:
        assert len(group) == 1 or len(group) * max(lengths[i] for i in group) <= batch_tokens


def test_a_pass_is_as_large_as_suits_the_device() -> None:
    assert pass_tokens(torch.device("cpu")) == PASS_TOKENS["cpu"]
    assert pass_tokens(torch.device("cuda", 1)) == OTHER_TOKENS > PASS_TOKENS["cpu"]
