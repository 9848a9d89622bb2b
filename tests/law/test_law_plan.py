"""Claims about the planner: the smallest rank that is sure enough, its price, when to split."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from support.forecasts import FORECAST
from support.writes import CONFIG, EXAMPLES, tiny

from lorewright.adapters.adapter import save
from lorewright.adapters.config import LoraConfig
from lorewright.errors import ConfigError
from lorewright.law.forecast import Load
from lorewright.law.plan import (
    ENGINES,
    ENOUGH,
    RANKS,
    SURE,
    Shape,
    engine_rank,
    make,
    pace,
    shape_of,
    table,
    timed,
)
from lorewright.models.model import Model
from lorewright.training.loop import write

SHAPE = Shape(16_000, 70, 3_000, 192)


def load(n: int, nats: float = 50.0, n_declined: int = 0) -> Load:
    return Load(n, n, 10 * n, n * nats, n_declined)


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny()


def test_the_smallest_rank_that_does_where_any_does_is_planned() -> None:
    planned = make(load(40), FORECAST, SHAPE, epochs=48)
    below = [option for option in planned.options if option.rank < planned.rank]
    least = ENOUGH * planned.options[-1].chance
    assert 1 < planned.rank < 64 and planned.n_memories == 1
    assert below and all(option.chance < least for option in below) and planned.chance >= least
    assert planned.recall.low <= planned.recall.value <= planned.recall.high
    assert planned.n_parameters == planned.rank * SHAPE.n_values


loads = st.builds(load, st.integers(1, 400), st.floats(5, 300))


@settings(max_examples=30)
@given(loads, st.integers(2, 8), st.integers(5, 200), st.floats(0.5, 0.99))
def test_more_of_the_same_never_needs_a_smaller_rank(
    some: Load, times: int, epochs: int, wanted: float
) -> None:
    more = load(times * some.n_answers, some.nats / some.n_answers)
    small = make(some, FORECAST, SHAPE, epochs=epochs, wanted=wanted)
    large = make(more, FORECAST, SHAPE, epochs=epochs, wanted=wanted)
    assert large.n_memories >= small.n_memories or not large.reaches
    assume(small.n_memories == large.n_memories == 1)
    assert large.rank >= small.rank


@settings(max_examples=30)
@given(loads, st.integers(5, 200), st.floats(0.5, 0.9))
def test_wanting_more_never_takes_a_smaller_rank(some: Load, epochs: int, wanted: float) -> None:
    less, more = (make(some, FORECAST, SHAPE, epochs=epochs, wanted=w) for w in (wanted, 0.95))
    assume(more.n_memories == less.n_memories)
    assert more.rank >= less.rank


@settings(max_examples=30)
@given(loads, st.integers(5, 200), st.floats(0.1, 0.9))
def test_a_plan_that_is_to_have_more_of_the_best_chance_never_takes_a_smaller_rank(
    some: Load, epochs: int, enough: float
) -> None:
    less, more = (make(some, FORECAST, SHAPE, epochs=epochs, enough=e) for e in (enough, 0.95))
    assert more.rank >= less.rank and more.chance >= less.chance
    assert less.recall.low <= less.recall.value <= less.recall.high


@settings(max_examples=30)
@given(loads, st.integers(5, 200))
def test_the_options_promise_more_with_every_rank_up_to_the_layers_own(
    some: Load, epochs: int
) -> None:
    planned = make(some, FORECAST, SHAPE, epochs=epochs)
    assert [option.rank for option in planned.options] == [r for r in RANKS if r <= 192]
    for a, b in zip(planned.options, planned.options[1:], strict=False):
        assert a.chance <= b.chance and a.recall.value <= b.recall.value and a.n_bytes < b.n_bytes


def test_what_one_memory_does_not_hold_is_split_and_said() -> None:
    planned = make(load(4000), FORECAST, SHAPE, epochs=60)
    assert planned.n_memories > 1 and planned.reaches
    assert any(f"split into {planned.n_memories}" in note for note in planned.notes)
    part = planned.load.part(planned.n_memories)
    assert make(part, FORECAST, SHAPE, epochs=60).n_memories == 1
    fewer = planned.load.part(planned.n_memories - 1)
    assert FORECAST.chance(fewer, 128, 60, 0.95) < SURE
    assert planned.n_bytes == planned.n_memories * SHAPE.n_bytes(planned.rank)
    assert any("Beyond what was calibrated" in note for note in planned.notes)


def test_too_few_epochs_for_a_small_load_are_said_with_the_number_that_would_do() -> None:
    planned = make(load(20), FORECAST, SHAPE, epochs=15)
    assert not planned.reaches and planned.n_memories == 1
    (note,) = [note for note in planned.notes if "No rank" in note]
    more = int(note.split("; ")[1].split()[0])
    assert FORECAST.chance(load(20), planned.rank, more, 0.95) >= SURE
    assert FORECAST.chance(load(20), planned.rank, more - 1, 0.95) < SURE
    hopeless = make(load(40, 9000), FORECAST, SHAPE, epochs=2)
    assert any("neither would many more epochs" in note for note in hopeless.notes)


def test_a_larger_rank_that_would_be_surer_is_named() -> None:
    planned = make(load(40), FORECAST, SHAPE, epochs=50)
    best = planned.options[-1].chance
    assert planned.chance < SURE <= best and planned.n_memories == 1
    (note,) = [note for note in planned.notes if "surer" in note]
    surer = next(option for option in planned.options if option.chance >= SURE)
    assert f"take rank {surer.rank} (chance {surer.chance:.2f})" in note
    assert not any("No rank" in note for note in planned.notes)


def test_what_the_base_cannot_write_lowers_what_is_predicted_and_no_rank_is_said_to_help() -> None:
    whole, half = (make(load(40), FORECAST, SHAPE, epochs=60, writable=w) for w in (1.0, 0.5))
    assert half.rank == whole.rank and half.n_memories == whole.n_memories
    assert half.recall == tuple(x / 2 for x in whole.recall)
    assert half.chance == 0.0 and not half.reaches
    first, *rest = half.notes
    assert first.startswith("Of what is to be recalled this base can write 50%")
    assert rest == [whole.notes[-1]]
    most = make(load(40), FORECAST, SHAPE, epochs=60, wanted=0.5, writable=0.9)
    assert 0 < most.chance <= 1


def test_every_plan_says_that_other_words_are_verified_and_not_predicted() -> None:
    assert "verified by the write" in make(load(40), FORECAST, SHAPE, epochs=60).notes[-1]


@pytest.mark.parametrize(
    ("rank", "wants"), [(1, 8), (8, 8), (9, 16), (64, 64), (300, 320), (512, 512), (513, None)]
)
def test_engines_are_started_for_the_next_rank_that_they_accept(
    rank: int, wants: int | None
) -> None:
    assert engine_rank(rank, ENGINES["vllm"]) == wants


def test_a_share_that_is_none_and_ranks_that_do_not_fit_are_refused() -> None:
    for wanted in (0.0, 1.0, 95.0):
        with pytest.raises(ConfigError, match="between 0 and 1"):
            make(load(9), FORECAST, SHAPE, epochs=60, wanted=wanted)
    with pytest.raises(ConfigError, match="1 to 192"):
        make(load(9), FORECAST, SHAPE, epochs=60, ranks=(256,))


def test_a_plan_is_plain_data_and_one_line_and_a_table() -> None:
    planned = timed(make(load(40, n_declined=20), FORECAST, SHAPE, epochs=60), FORECAST, 0.01)
    plain = json.loads(json.dumps(planned.to_json()))
    assert plain["rank"] == planned.rank and plain["recall"]["low"] == planned.recall.low
    assert plain["load"]["bits"] == pytest.approx(load(40).bits)
    assert str(planned).startswith(f"rank {planned.rank}, 1 memory, ") and "recall" in str(planned)
    rows = table(planned)
    assert [row[-1] for row in rows[1:]].count("planned") == 1
    assert len({len(row) for row in rows}) == 1


def test_the_time_is_the_pace_times_the_epochs_and_never_over_the_budget() -> None:
    planned = make(load(40, n_declined=20), FORECAST, SHAPE, epochs=60)
    assert planned.seconds is None
    with_time = timed(planned, FORECAST, 0.01)
    assert with_time.most_seconds == pytest.approx(0.01 * 60 * 60)
    assert with_time.seconds is not None and 0 < with_time.seconds < with_time.most_seconds


def test_the_bytes_are_those_of_the_file(model: Model, tmp_path: Path) -> None:
    for rank in (1, 8):
        config = replace(CONFIG, epochs=1, lora=LoraConfig(rank=rank))
        save(write(model, EXAMPLES, config).adapter, tmp_path / str(rank))
        n_bytes = (tmp_path / str(rank) / "adapter_model.safetensors").stat().st_size
        assert shape_of(model, config.lora).n_bytes(rank) == pytest.approx(n_bytes, rel=0.02)


def test_the_pace_is_that_of_a_write_and_leaves_the_base_alone(model: Model) -> None:
    ids = torch.arange(3, 30)[None]
    with torch.no_grad():
        before = model.network(ids).logits
        for config in (CONFIG, replace(CONFIG, objective="distill"), replace(CONFIG, epochs=1)):
            assert 0 < pace(model, EXAMPLES, config) < 1
        assert torch.equal(model.network(ids).logits, before)
