"""Claims about the forecast: it finds the curve that trials came from, holds new knowledge in its
intervals, and never promises less for more rank, more for more facts, or surety that it has not."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorewright.errors import ConfigError, DataError
from lorewright.law.forecast import CENTRE, CONSTANTS, Forecast, Load, Trial, expected, fit

TRUE = dict(zip(CONSTANTS, CENTRE, strict=True)) | {"T0": 22.0, "h": 0.6}
NOTHING = ((0.0,) * len(CONSTANTS),) * len(CONSTANTS)
TRUTH = Forecast(TRUE, 0.1, 1.2, (8, 64), (25, 120), (1, 5), (1, 3), (1, 8), 1, NOTHING)
LOADS = [
    Load(n, n * forms, 6 * n, n * nats, declined)
    for n, forms, nats, declined in (
        (10, 1, 25.0, 20),
        (60, 1, 25.0, 8),
        (20, 1, 55.0, 40),
        (50, 1, 55.0, 100),
        (10, 1, 120.0, 8),
        (30, 1, 120.0, 60),
        (16, 5, 55.0, 160),
        (24, 1, 30.0, 8),
        (12, 1, 70.0, 24),
        (8, 5, 30.0, 20),
    )
]
SHARES = (1.0, 1.2, 0.95, 1.1, 1.05, 1.2, 1.1, 0.9, 1.3, 1.0)


def body(load: Load, share: float, rng: np.random.Generator) -> list[Trial]:
    """Runs as the true curve has them: a factor on T of the knowledge, then answers one by one."""
    epochs = max(2, round(share * TRUTH.needs(load, 8)))
    own = TRUTH.spread * rng.standard_normal()
    found = []
    for rank in (1, 2, 8):
        logit = TRUE["kappa"] * (math.log(epochs / TRUTH.needs(load, rank)) + own)
        n_exact = int(rng.binomial(load.n_examples, 1 / (1 + math.exp(-logit))))
        used = epochs if n_exact < load.n_examples else max(1, round(0.9 * epochs))
        group = f"{load.n_answers}-{load.nats:.0f}-{share}"
        found.append(Trial(load, rank, epochs, n_exact, used, group))
    return found


@pytest.fixture(scope="module")
def trials() -> list[Trial]:
    rng = np.random.default_rng(4)
    return [run for pair in zip(LOADS, SHARES, strict=True) for run in body(*pair, rng)]


@pytest.fixture(scope="module")
def forecast(trials: list[Trial]) -> Forecast:
    return fit(trials)


loads = st.builds(
    lambda n, forms, tokens, nats, declined: Load(n, n * forms, n * tokens, n * nats, n * declined),
    st.integers(1, 5000),
    st.integers(1, 6),
    st.integers(1, 40),
    st.floats(0.5, 400),
    st.integers(0, 5),
)
ranks = st.sampled_from([1, 2, 4, 8, 16, 64, 512])
budgets = st.integers(1, 400)


def test_intervals_hold_nine_in_ten_new_bodies_and_are_not_everything(forecast: Forecast) -> None:
    rng = np.random.default_rng(7)
    runs = [
        run
        for n, forms, nats, declined in ((14, 1, 30.0, 8), (40, 1, 80.0, 90), (24, 4, 50.0, 96))
        for share in (0.8, 0.9, 1.0, 1.1, 1.2, 1.5)
        for run in body(Load(n, n * forms, 6 * n, n * nats, declined), share, rng)
    ]
    told = [forecast.predict(run.load, run.rank, run.epochs) for run in runs]
    held = [
        found.low <= run.n_exact / run.load.n_examples <= found.high
        for found, run in zip(told, runs, strict=True)
    ]
    assert np.mean(held) >= 0.85
    assert np.mean([found.high - found.low for found in told]) < 0.75


def test_bodies_that_the_others_do_not_foretell_widen_the_intervals(trials: list[Trial]) -> None:
    late = {trials[i].group for i in (3, 15, 24)}
    worse = [replace(t, n_exact=0, used=t.epochs) if t.group in late else t for t in trials]
    wide, usual = fit(worse), fit(trials)
    assert wide.spread > 1.5 * usual.spread


def test_the_curve_is_found_again(forecast: Forecast) -> None:
    for load in (*LOADS, Load(40, 40, 240, 40 * 80)):
        for rank in (1, 4):
            ratio = forecast.needs(load, rank) / TRUTH.needs(load, rank)
            assert 0.85 < ratio < 1.18


def test_an_interval_is_wide_where_runs_differ_and_narrow_where_all_succeed(
    forecast: Forecast,
) -> None:
    load = LOADS[3]
    need = forecast.needs(load, 4)
    middle, sure = forecast.predict(load, 4, need), forecast.predict(load, 4, 4 * need)
    assert middle.high - middle.low > 0.2 and 0.3 < middle.value < 0.7
    assert sure.low > 0.97 and forecast.chance(load, 4, 4 * need, 0.95) > 0.97


def test_hopeless_ranks_are_told_apart(forecast: Forecast) -> None:
    load = Load(300, 300, 3000, 300 * 200.0)
    small, large = (forecast.log_chance(load, rank, 2, 0.95) for rank in (1, 8))
    assert -math.inf < small < large < -30


@given(loads, ranks, budgets, st.floats(0.05, 0.85), st.floats(0.05, 0.1))
def test_an_interval_that_is_to_be_surer_is_never_narrower(
    forecast: Forecast, load: Load, rank: int, epochs: int, confidence: float, more: float
) -> None:
    narrow = forecast.predict(load, rank, epochs, confidence=confidence)
    wide = forecast.predict(load, rank, epochs, confidence=confidence + more)
    assert wide.low <= narrow.low <= narrow.high <= wide.high


@given(loads, st.integers(1, 500))
def test_what_is_trained_beside_the_answers_never_takes_more_epochs(
    forecast: Forecast, load: Load, more: int
) -> None:
    beside = replace(load, n_declined=load.n_declined + more)
    assert forecast.needs(beside, 4) <= forecast.needs(load, 4)
    assert forecast.chance(beside, 4, 20, 0.9) >= forecast.chance(load, 4, 20, 0.9)


@given(loads, ranks, ranks, budgets)
def test_a_larger_rank_never_promises_less(
    forecast: Forecast, load: Load, a: int, b: int, epochs: int
) -> None:
    low, high = sorted((a, b))
    small, large = (forecast.predict(load, rank, epochs) for rank in (low, high))
    assert small.low <= large.low and small.value <= large.value and small.high <= large.high
    assert forecast.chance(load, low, epochs, 0.9) <= forecast.chance(load, high, epochs, 0.9)
    assert forecast.needs(load, low) >= forecast.needs(load, high)


@given(loads, st.integers(2, 9), ranks, budgets)
def test_more_of_the_same_facts_never_come_back_more_surely(
    forecast: Forecast, load: Load, times: int, rank: int, epochs: int
) -> None:
    n_answers, n_examples = times * load.n_answers, times * load.n_examples
    more = Load(n_answers, n_examples, 9999999, times * load.nats, times * load.n_declined)
    assert forecast.chance(more, rank, epochs, 0.9) <= forecast.chance(load, rank, epochs, 0.9)


@given(loads, ranks, budgets, budgets)
def test_more_epochs_never_promise_less(
    forecast: Forecast, load: Load, rank: int, a: int, b: int
) -> None:
    low, high = sorted((a, b))
    assert forecast.predict(load, rank, low).value <= forecast.predict(load, rank, high).value


@given(loads, ranks, budgets)
def test_a_prediction_is_a_share_inside_its_interval(
    forecast: Forecast, load: Load, rank: int, epochs: int
) -> None:
    found = forecast.predict(load, rank, epochs)
    assert 0 <= found.low <= found.value <= found.high <= 1


@given(loads, st.integers(1, 60))
def test_parts_of_a_load_are_loads_and_hold_all_of_it(load: Load, n: int) -> None:
    part = load.part(n)
    assert part.n_answers * n >= load.n_answers
    assert part.n_answers <= load.n_answers and part.n_examples <= load.n_examples
    assert part.nats_per_answer == pytest.approx(load.nats_per_answer)
    assert part.n_declined <= load.n_declined
    assert load.part(1).n_examples == load.n_examples


def test_it_says_what_lies_beyond_the_trials(forecast: Forecast) -> None:
    assert forecast.extrapolates(LOADS[2], 4) == ()
    said = forecast.extrapolates(Load(900, 900, 9000, 900 * 55.0, 9000), 64)
    assert len(said) == 3 and "answers 900" in said[0] and "rank 64" in said[2]
    assert "examples for one asked 11" in said[1]


def test_a_forecast_survives_the_disk(forecast: Forecast) -> None:
    again = Forecast.from_json(json.loads(json.dumps(forecast.to_json())))
    assert again == forecast
    assert again.predict(LOADS[0], 2, 20) == forecast.predict(LOADS[0], 2, 20)
    for damage in ({"constants": {}}, {"spread": None}, {"ranks": []}):
        with pytest.raises(DataError, match="calibrate again"):
            Forecast.from_json(forecast.to_json() | damage)


def test_the_same_trials_give_the_same_forecast(trials: list[Trial], forecast: Forecast) -> None:
    assert fit(trials) == forecast


def test_trials_that_do_not_say_when_a_write_fails_are_refused(trials: list[Trial]) -> None:
    all_right = [replace(t, n_exact=t.load.n_examples) for t in trials]
    for wrong in ([], trials[:6], [t for t in trials if t.rank == 1], all_right):
        with pytest.raises(DataError, match="three groups and two ranks, with failures"):
            fit(wrong)


@pytest.mark.parametrize(
    ("numbers", "says"),
    [
        ((0, 1, 1, 1.0), "needs an example and a token"),
        ((5, 4, 9, 1.0), "needs an example and a token"),
        ((5, 5, 4, 1.0), "needs an example and a token"),
        ((5, 5, 5, 0.0), "nats"),
        ((5, 5, 5, math.nan), "nats"),
        ((5, 5, 5, 9.0, -1), "declined"),
    ],
)
def test_loads_that_no_knowledge_has_are_refused(numbers: tuple[Any, ...], says: str) -> None:
    with pytest.raises(DataError, match=says):
        Load(*numbers)


def test_wrong_questions_are_refused(forecast: Forecast) -> None:
    load = LOADS[0]
    for rank, epochs in ((0, 5), (4, 0)):
        with pytest.raises(ConfigError, match="above 0"):
            forecast.predict(load, rank, epochs)
    with pytest.raises(ConfigError, match="confidence"):
        forecast.predict(load, 4, 9, confidence=1.0)
    with pytest.raises(ConfigError, match="share between 0 and 1"):
        forecast.chance(load, 4, 9, 1.0)
    with pytest.raises(ConfigError, match="at least 1"):
        load.part(0)
    for broken in ({"rank": 0}, {"used": 0}, {"used": 99}, {"n_exact": 999}):
        with pytest.raises(DataError):
            replace(Trial(load, 2, 20, 3, 20, "a"), **broken)


def test_a_load_is_expected_to_take_longer_for_longer_answers_and_sooner_for_more_forms() -> None:
    assert expected(LOADS[4]) > expected(LOADS[0])
    assert expected(LOADS[6]) < expected(Load(16, 16, 96, 16 * 55.0, 32))
