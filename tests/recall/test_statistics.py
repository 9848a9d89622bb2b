"""Claims about intervals and tests."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from lorewright.errors import ConfigError, DataError
from lorewright.recall import statistics

FLOATS = st.floats(-1e6, 1e6)
CLUSTERS = st.lists(st.lists(FLOATS, max_size=4), max_size=5)


@given(st.integers(1, 3000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_contains_the_mean_and_matches_scipy(case: tuple[int, int]) -> None:
    successes, n = case
    found = statistics.wilson(successes, n)
    assert found.mean is not None and found.low is not None and found.high is not None
    assert 0 <= found.low <= found.mean <= found.high <= 1
    reference = binomtest(successes, n).proportion_ci(0.95, method="wilson")
    assert found.low == pytest.approx(reference.low, abs=1e-12)
    assert found.high == pytest.approx(reference.high, abs=1e-12)


def test_nothing_of_24_still_allows_13_8_percent() -> None:
    found = statistics.wilson(0, 24)
    assert found.low == 0
    assert found.high == pytest.approx(0.138, abs=5e-4)


def test_nothing_scored_is_not_zero() -> None:
    assert statistics.wilson(0, 0).mean is None
    assert statistics.mean_interval([]).mean is None
    assert str(statistics.wilson(0, 0)) == "unscored"


def test_estimates_print_mean_interval_and_n() -> None:
    assert str(statistics.wilson(90, 96)) == "0.94 [0.87, 0.97] n=96"
    assert str(statistics.mean_interval([0.5])) == "0.50 n=1"


@pytest.mark.parametrize(("successes", "n"), [(-1, 3), (4, 3), (0, -1)])
def test_wilson_refuses_impossible_counts(successes: int, n: int) -> None:
    with pytest.raises(DataError, match="successes"):
        statistics.wilson(successes, n)


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95.0])
def test_confidence_is_a_share(confidence: float) -> None:
    with pytest.raises(ConfigError, match=r"such as 0\.95"):
        statistics.wilson(1, 2, confidence=confidence)
    with pytest.raises(ConfigError, match=r"such as 0\.95"):
        statistics.mean_interval([1.0, 2.0], confidence=confidence)


@given(st.lists(FLOATS, min_size=2, max_size=20), st.integers(0, 5))
def test_mean_interval_contains_the_mean_and_repeats(values: list[float], seed: int) -> None:
    found = statistics.mean_interval(values, seed=seed, n_draws=50)
    assert found.n == len(values)
    assert found.mean is not None and found.low is not None and found.high is not None
    assert found.low <= found.mean <= found.high
    assert found == statistics.mean_interval(values, seed=seed, n_draws=50)


def test_mean_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    source = random.Random(0)
    n_covered = 0
    for trial in range(100):
        found = statistics.mean_interval([source.gauss(3, 1) for _ in range(50)], seed=trial)
        assert found.low is not None and found.high is not None
        n_covered += found.low <= 3 <= found.high
    assert 0.88 <= n_covered / 100 <= 0.99


def test_mean_interval_refuses_what_is_not_finite() -> None:
    with pytest.raises(DataError, match="not finite"):
        statistics.mean_interval([1.0, math.nan])


@given(CLUSTERS)
def test_clustered_interval_contains_the_mean_of_all_values(clusters: list[list[float]]) -> None:
    values = [value for own in clusters for value in own]
    found = statistics.clustered_interval(clusters, n_draws=50)
    assert found.n == len(values)
    if not values:
        assert found.mean is None
    elif len(values) > 1:
        assert found.low is not None and found.mean is not None and found.high is not None
        assert found.low <= found.mean <= found.high
        assert found.mean == pytest.approx(sum(values) / len(values), abs=1e-6)


def test_clustered_interval_is_wide_where_clusters_differ_and_as_usual_where_they_do_not() -> None:
    def width(clusters: list[list[float]]) -> float:
        found = statistics.clustered_interval(clusters)
        assert found.low is not None and found.high is not None
        return found.high - found.low

    alike = width([[0.0, 1.0] * 10] * 10)
    apart = width([[float(i % 2)] * 20 for i in range(10)])
    flat = statistics.mean_interval([0.0, 1.0] * 100)
    assert flat.low is not None and flat.high is not None
    assert alike == pytest.approx(flat.high - flat.low, rel=0.15)
    assert apart > 3 * alike
    with pytest.raises(DataError, match="unscored"):
        statistics.clustered_interval([[1.0], [math.nan]])


def test_paired_difference_is_narrower_than_the_spread() -> None:
    a = [float(n) for n in range(30)]
    found = statistics.paired_difference([x + 1 for x in a], a)
    assert (found.mean, found.low, found.high) == (1, 1, 1)
    with pytest.raises(DataError, match="pair 2 values with 1"):
        statistics.paired_difference([1, 2], [1])


@given(st.integers(0, 300), st.integers(0, 300))
def test_mcnemar_matches_the_binomial_test(b: int, c: int) -> None:
    reference = binomtest(b, b + c).pvalue if b + c else 1.0
    assert statistics.mcnemar(b, c) == pytest.approx(reference, rel=1e-9)


def test_mcnemar_is_symmetric_and_copes_with_large_counts() -> None:
    assert statistics.mcnemar(3, 9) == statistics.mcnemar(9, 3)
    assert 0 < statistics.mcnemar(9000, 9500) < 0.001
    with pytest.raises(DataError, match="counts from 0"):
        statistics.mcnemar(-1, 2)
