"""Claims about intervals and tests."""

import math
import random
from fractions import Fraction
from statistics import NormalDist

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorewright.errors import ConfigError, DataError
from lorewright.recall import statistics
from lorewright.recall.statistics import Estimate

FLOATS = st.floats(-1e6, 1e6)
CLUSTERS = st.lists(st.lists(FLOATS, max_size=4), max_size=5)


def bounds(estimate: Estimate) -> tuple[float, float, float]:
    """The lower bound, the mean and the upper bound of an estimate that has all three."""
    assert estimate.low is not None and estimate.mean is not None and estimate.high is not None
    return estimate.low, estimate.mean, estimate.high


@given(st.integers(1, 3000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_is_its_formula_and_contains_the_mean(case: tuple[int, int]) -> None:
    successes, n = case
    low, p, high = bounds(statistics.wilson(successes, n))
    assert 0 <= low <= p <= high <= 1
    z = NormalDist().inv_cdf(0.975)
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n * n)) / (1 + z**2 / n)
    assert low == pytest.approx(max(0.0, centre - half), abs=1e-12)
    assert high == pytest.approx(min(1.0, centre + half), abs=1e-12)


def test_nothing_of_24_still_allows_13_8_percent() -> None:
    low, _, high = bounds(statistics.wilson(0, 24))
    assert low == 0 and high == pytest.approx(0.138, abs=5e-4)


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
    estimate = statistics.mean_interval(values, seed=seed, n_draws=50)
    low, mean, high = bounds(estimate)
    assert estimate.n == len(values) and low <= mean <= high
    assert estimate == statistics.mean_interval(values, seed=seed, n_draws=50)


def test_mean_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    source = random.Random(0)
    n_covered = 0
    for trial in range(100):
        values = [source.gauss(3, 1) for _ in range(50)]
        low, _, high = bounds(statistics.mean_interval(values, seed=trial))
        n_covered += low <= 3 <= high
    assert 0.88 <= n_covered / 100 <= 0.99


def test_mean_interval_refuses_what_is_not_finite() -> None:
    with pytest.raises(DataError, match="not all finite"):
        statistics.mean_interval([1.0, math.nan])


@given(CLUSTERS)
def test_clustered_interval_contains_the_mean_of_all_values(clusters: list[list[float]]) -> None:
    values = [value for cluster in clusters for value in cluster]
    estimate = statistics.clustered_interval(clusters, n_draws=50)
    assert estimate.n == len(values)
    if not values:
        assert estimate.mean is None
    elif len(values) > 1:
        low, mean, high = bounds(estimate)
        assert low <= mean <= high
        assert mean == pytest.approx(sum(values) / len(values), abs=1e-6)


def test_clustered_interval_is_wide_where_clusters_differ_and_as_usual_where_they_do_not() -> None:
    def width(estimate: Estimate) -> float:
        low, _, high = bounds(estimate)
        return high - low

    alike = width(statistics.clustered_interval([[0.0, 1.0] * 10] * 10))
    apart = width(statistics.clustered_interval([[float(i % 2)] * 20 for i in range(10)]))
    assert alike == pytest.approx(width(statistics.mean_interval([0.0, 1.0] * 100)), rel=0.15)
    assert apart > 3 * alike
    with pytest.raises(DataError, match="unscored"):
        statistics.clustered_interval([[1.0], [math.nan]])


def test_paired_difference_is_narrower_than_the_spread() -> None:
    a = [float(n) for n in range(30)]
    assert bounds(statistics.paired_difference([x + 1 for x in a], a)) == (1, 1, 1)
    with pytest.raises(DataError, match="2 values paired with 1"):
        statistics.paired_difference([1, 2], [1])


@given(st.integers(0, 300), st.integers(0, 300))
def test_mcnemar_is_the_exact_sum(b: int, c: int) -> None:
    tail = sum(math.comb(b + c, k) for k in range(min(b, c) + 1))
    exact = min(Fraction(1), Fraction(2 * tail, 2 ** (b + c)))
    assert statistics.mcnemar(b, c) == pytest.approx(float(exact), rel=1e-12)


def test_mcnemar_is_symmetric_and_copes_with_large_counts() -> None:
    assert statistics.mcnemar(3, 9) == statistics.mcnemar(9, 3)
    assert 0 < statistics.mcnemar(9000, 9500) < 0.001
    with pytest.raises(DataError, match="counts from 0"):
        statistics.mcnemar(-1, 2)
