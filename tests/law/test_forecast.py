"""Claims about the forecast: it recovers the curve that trials came from, its intervals cover new
bodies of facts, and it never promises less for more rank or more for more facts."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.forecasts import FORECAST

from lorewright.errors import ConfigError, DataError
from lorewright.law.forecast import Forecast, Load, Trial, expected, fit

TRUTH = replace(FORECAST, constants=(8.0, 22.0, 0.15, 0.6, 0.6, 0.3, 4000.0))
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


def body(load: Load, share: float, rng: np.random.Generator, spread: float = 0.1) -> list[Trial]:
    """Runs of the true curve: a factor on T for the body, then answers fail independently."""
    epochs = max(2, round(share * TRUTH.needs(load, 8)))
    z = spread * rng.standard_normal()
    group = f"{load.n_answers}-{load.nats:.0f}-{share}"
    runs = []
    for rank in (1, 2, 8):
        logit = TRUTH.constants[0] * (math.log(epochs / TRUTH.needs(load, rank)) + z)
        n_exact = int(rng.binomial(load.n_examples, 1 / (1 + math.exp(-logit))))
        used = epochs if n_exact < load.n_examples else max(1, round(0.9 * epochs))
        runs.append(Trial(load, rank, epochs, n_exact, used, group))
    return runs


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


def test_intervals_cover_nine_in_ten_new_bodies_and_are_not_everything(forecast: Forecast) -> None:
    rng = np.random.default_rng(7)
    runs = [
        run
        for n, forms, nats, declined in ((14, 1, 30.0, 8), (40, 1, 80.0, 90), (24, 4, 50.0, 96))
        for share in (0.8, 0.9, 1.0, 1.1, 1.2, 1.5)
        for run in body(Load(n, n * forms, 6 * n, n * nats, declined), share, rng)
    ]
    intervals = [forecast.predict(run.load, run.rank, run.epochs) for run in runs]
    pairs = zip(intervals, runs, strict=True)
    assert np.mean([each.low <= run.share <= each.high for each, run in pairs]) >= 0.85
    assert np.mean([each.high - each.low for each in intervals]) < 0.75


def test_bodies_that_the_others_do_not_predict_widen_the_intervals(trials: list[Trial]) -> None:
    late = {trials[i].group for i in (3, 15, 24)}
    worse = [replace(t, n_exact=0, used=t.epochs) if t.group in late else t for t in trials]
    assert fit(worse).spread > 1.5 * fit(trials).spread


def test_the_fit_recovers_the_curve_of_bodies_that_lie_on_it() -> None:
    rng = np.random.default_rng(4)
    pairs = zip(LOADS, SHARES, strict=True)
    fitted = fit([run for pair in pairs for run in body(*pair, rng, spread=0.0)])
    for load in (*LOADS, Load(40, 40, 240, 40 * 80)):
        for rank in (1, 4):
            # A count of n has a logit with sd of at least 2 / sqrt(n): 0.08 in ln T at n = 10.
            away = math.log(fitted.needs(load, rank) / TRUTH.needs(load, rank))
            assert abs(away) < 2 * 0.08


def test_the_same_trials_give_the_same_forecast(trials: list[Trial], forecast: Forecast) -> None:
    assert fit(trials) == forecast


def test_an_interval_is_wide_where_runs_differ_and_narrow_where_all_succeed(
    forecast: Forecast,
) -> None:
    load = LOADS[3]
    need = forecast.needs(load, 4)
    middle, sure = forecast.predict(load, 4, need), forecast.predict(load, 4, 4 * need)
    assert middle.high - middle.low > 0.2 and 0.3 < middle.value < 0.7
    assert sure.low > 0.97 and forecast.chance(load, 4, 4 * need, 0.95) > 0.97


def test_log_chances_order_hopeless_ranks(forecast: Forecast) -> None:
    load = Load(300, 300, 3000, 300 * 200.0)
    small, large = (forecast.log_chance(load, rank, 2, 0.95) for rank in (1, 8))
    assert -math.inf < small < large < -30


@given(loads, ranks, budgets, st.floats(0.05, 0.85), st.floats(0.05, 0.1))
def test_more_confidence_never_narrows_an_interval(
    forecast: Forecast, load: Load, rank: int, epochs: int, confidence: float, more: float
) -> None:
    narrow = forecast.predict(load, rank, epochs, confidence=confidence)
    wide = forecast.predict(load, rank, epochs, confidence=confidence + more)
    assert 0 <= wide.low <= narrow.low <= narrow.value <= narrow.high <= wide.high <= 1


@given(loads, ranks, ranks, budgets, budgets, st.integers(0, 500))
def test_more_rank_epochs_or_examples_beside_never_promise_less(
    forecast: Forecast, load: Load, rank: int, more: int, epochs: int, longer: int, beside: int
) -> None:
    def promise(load: Load, rank: int, epochs: int) -> np.ndarray[Any, Any]:
        chance = forecast.chance(load, rank, epochs, 0.9)
        return np.array(
            [*forecast.predict(load, rank, epochs), chance, 1 / forecast.needs(load, rank)]
        )

    less = promise(load, min(rank, more), min(epochs, longer))
    wider = replace(load, n_declined=load.n_declined + beside)
    assert (promise(load, max(rank, more), min(epochs, longer)) >= less).all()
    assert (promise(load, min(rank, more), max(epochs, longer)) >= less).all()
    assert (promise(wider, min(rank, more), min(epochs, longer)) >= less).all()


@given(loads, st.integers(2, 9), ranks, budgets)
def test_more_of_the_same_facts_are_never_recalled_more_surely(
    forecast: Forecast, load: Load, times: int, rank: int, epochs: int
) -> None:
    n_answers, n_examples = times * load.n_answers, times * load.n_examples
    more = Load(n_answers, n_examples, 9999999, times * load.nats, times * load.n_declined)
    # Features are ratios of rounded sums, so equal ones may differ in the last bit.
    assert forecast.needs(more, rank) >= forecast.needs(load, rank) * (1 - 1e-12)


@given(loads, st.integers(1, 60))
def test_parts_of_a_load_are_loads_and_hold_all_of_it(load: Load, n: int) -> None:
    part = load.part(n)
    assert load.n_answers <= part.n_answers * n and part.n_answers <= load.n_answers
    assert part.n_examples <= load.n_examples and part.n_declined <= load.n_declined
    assert part.nats / part.n_answers == pytest.approx(load.nats / load.n_answers)
    assert load.part(1).n_examples == load.n_examples


def test_what_lies_beyond_the_trials_is_named(forecast: Forecast) -> None:
    assert forecast.extrapolates(LOADS[2], 4) == ()
    outside = forecast.extrapolates(Load(900, 900, 9000, 900 * 55.0, 9000), 64)
    assert len(outside) == 3 and "answers 900" in outside[0] and "rank 64" in outside[2]
    assert "examples a question 11" in outside[1]


def test_trials_that_do_not_say_when_a_write_fails_are_refused(trials: list[Trial]) -> None:
    all_right = [replace(t, n_exact=t.load.n_examples) for t in trials]
    for wrong in ([], trials[:6], [t for t in trials if t.rank == 1], all_right):
        with pytest.raises(DataError, match="three groups and two ranks, with failures"):
            fit(wrong)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ((0, 1, 1, 1.0), "needs an example and a token"),
        ((5, 4, 9, 1.0), "needs an example and a token"),
        ((5, 5, 4, 1.0), "needs an example and a token"),
        ((5, 5, 5, 0.0), "nats"),
        ((5, 5, 5, math.nan), "nats"),
        ((5, 5, 5, 9.0, -1), "decline"),
    ],
)
def test_loads_that_no_knowledge_has_are_refused(numbers: tuple[Any, ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Load(*numbers)


def test_arguments_out_of_range_are_refused(forecast: Forecast) -> None:
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
        with pytest.raises(DataError, match="within bounds"):
            replace(Trial(load, 2, 20, 3, 20, "a"), **broken)


def test_a_load_is_expected_to_take_longer_for_longer_answers_and_shorter_for_more_forms() -> None:
    assert expected(LOADS[4]) > expected(LOADS[0])
    assert expected(LOADS[6]) < expected(Load(16, 16, 96, 16 * 55.0, 32))
