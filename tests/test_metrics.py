"""Claims about scores, intervals and tests."""

import math
import random
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from lorewright import metrics
from lorewright.errors import ConfigError, DataError
from lorewright.metrics import METRICS, Metric

ANSWERS = st.lists(st.text(min_size=1).filter(str.strip), min_size=1, max_size=3).map(tuple)
FLOATS = st.floats(-1e6, 1e6)


# --- one output


@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
@given(output=st.text(), answers=ANSWERS)
def test_every_metric_stays_between_0_and_1(
    metric: Metric, output: str, answers: tuple[str, ...]
) -> None:
    assert 0 <= metric(output, answers) <= 1


@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
@given(answers=ANSWERS)
def test_every_metric_gives_1_to_any_answer_itself(
    metric: Metric, answers: tuple[str, ...]
) -> None:
    assert all(metric(answer, answers) == 1 for answer in answers)


@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
def test_every_metric_gives_0_to_silence(metric: Metric) -> None:
    assert metric("", ("Paris",)) == 0


@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
@pytest.mark.parametrize("answers", [(), ("",), ("a", " ")])
def test_every_metric_refuses_to_score_without_answers(
    metric: Metric, answers: tuple[str, ...]
) -> None:
    with pytest.raises(DataError, match="unscored"):
        metric("output", answers)


@given(st.text())
def test_normalise_is_idempotent(text: str) -> None:
    once = metrics.normalise(text)
    assert metrics.normalise(once) == once


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("  The  Nile. ", "nile"),
        ("“The ‘Nile’”", "nile"),
        ("**Paris**!", "paris"),
        ("STRASSE, Straße", "strasse, strasse"),
        ("ﬁve ５", "five 5"),
        ("hepatitis A", "hepatitis a"),
        ("−5", "-5"),
        (".5", ".5"),
        ("- Paris", "paris"),
        ("603–556–7631.", "603-556-7631"),
        ("?!", "?!"),
        ("8.45 a.m.", "8.45 a.m"),
        ("the end of the line", "end of line"),
        ("5%", "5%"),
        ("C#", "c#"),
    ],
)
def test_normalise(text: str, plain: str) -> None:
    assert metrics.normalise(text) == plain


@pytest.mark.parametrize(
    ("output", "answer", "score"),
    [
        ("It is 603-556-7631.", "603-556-7631", 1),
        ("Call 1603-556-7631", "603-556-7631", 0),
        ("It is 8.5 km", "5", 0),
        ("It is 12,000", "12", 0),
        ("COVID-19", "19", 0),
        ("It is -5", "5", 0),
        ("It is 5.", "5", 1),
        ("5, 6 or 7", "5", 1),
        ("the KX-4.2 model", "KX-4.2", 1),
        ("the KX-4.25 model", "KX-4.2", 0),
        ("French-speaking", "French", 1),
        ("Parisian", "Paris", 0),
        ("C++ and C#", "C#", 1),
        ("she went to the Nile", "a Nile", 1),
        ("at 8:45", "8:45", 1),
        ("at 18:45", "8:45", 0),
    ],
)
def test_contains_needs_whole_words_and_whole_numbers(
    output: str, answer: str, score: float
) -> None:
    assert metrics.contains(output, (answer,)) == score


@given(st.text(), ANSWERS)
def test_exact_match_implies_the_others(output: str, answers: tuple[str, ...]) -> None:
    if metrics.exact_match(output, answers):
        assert metrics.contains(output, answers) == 1
        assert metrics.token_f1(output, answers) == 1
        assert metrics.rouge_l(output, answers) == 1


@given(st.text("ab ", max_size=30), st.text("ab ", min_size=1, max_size=30).filter(str.strip))
def test_rouge_l_is_at_most_token_f1(output: str, answer: str) -> None:
    assert metrics.rouge_l(output, (answer,)) <= metrics.token_f1(output, (answer,))


WORDS = st.lists(st.sampled_from(["ab", "cd", "ef"]), max_size=7)


@given(WORDS, WORDS)
def test_rouge_l_is_the_longest_common_subsequence(output: list[str], answer: list[str]) -> None:
    chosen = [tuple(c) for n in range(len(answer) + 1) for c in combinations(output, n)]
    asked = {tuple(c) for n in range(len(answer) + 1) for c in combinations(answer, n)}
    longest = max(len(c) for c in chosen if c in asked)
    wanted = 2 * longest / (len(output) + len(answer)) if longest else 0.0
    if answer:
        found = metrics.rouge_l(" ".join(output), (" ".join(answer),))
        assert found == pytest.approx(wanted)


def test_f1_and_rouge_on_a_worked_case() -> None:
    # found: red big dog ran; wanted: big red dog -> 3 common words, 2 of them in order
    assert metrics.token_f1("red big dog ran", ("big red dog",)) == pytest.approx(6 / 7)
    assert metrics.rouge_l("red big dog ran", ("big red dog",)) == pytest.approx(4 / 7)


def test_the_best_answer_counts() -> None:
    assert metrics.exact_match("Ada", ("Grace", "ada")) == 1


def test_verbatim_prefix_measures_to_the_first_mistake() -> None:
    assert metrics.verbatim_prefix("abXd", ("abcd",)) == 0.5
    assert metrics.verbatim_prefix("abcd and more", ("abcd",)) == 1
    assert metrics.verbatim_prefix("ab", ("abcd",)) == 0.5
    assert metrics.verbatim_prefix("Abcd", ("abcd",)) == 0


@pytest.mark.parametrize(
    "text",
    [
        "I don't know.",
        "I don’t know the answer to that.",
        "I'm sorry, but I do not know.",
        "Sorry. I am not sure.",
        "Unfortunately, the document does not mention it.",
        "Unknown",
        "I cannot answer this.",
        "I really don't remember.",
        "I'm unable to find that.",
        "I have no information about this.",
        "There is no record of that person.",
        "It is not specified.",
        "That isn't mentioned.",
        "Don't know",
        "It cannot be determined from the text.",
        "I don't have any information on that.",
        "n/a",
    ],
)
def test_is_declined(text: str) -> None:
    assert metrics.is_declined(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "603-556-7631",
        "Do not say the name.",
        "Lunch is not provided.",
        "Make sure the door is shut.",
        "The office opens at 8.45. I do not know more.",
        "I don't know, but I think it is Paris.",
        "He plays the unknown soldier.",
        "Don't run.",
        "No, it does not.",
    ],
)
def test_is_not_declined(text: str) -> None:
    assert not metrics.is_declined(text)


# --- many outputs


@given(st.integers(1, 3000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_contains_the_mean_and_matches_scipy(case: tuple[int, int]) -> None:
    successes, n = case
    found = metrics.wilson(successes, n)
    assert found.mean is not None and found.low is not None and found.high is not None
    assert 0 <= found.low <= found.mean <= found.high <= 1
    reference = binomtest(successes, n).proportion_ci(0.95, method="wilson")
    assert found.low == pytest.approx(reference.low, abs=1e-12)
    assert found.high == pytest.approx(reference.high, abs=1e-12)


def test_nothing_of_24_still_allows_13_8_percent() -> None:
    found = metrics.wilson(0, 24)
    assert found.low == 0
    assert found.high == pytest.approx(0.138, abs=5e-4)


def test_nothing_scored_is_not_zero() -> None:
    assert metrics.wilson(0, 0).mean is None
    assert metrics.mean_interval([]).mean is None
    assert str(metrics.wilson(0, 0)) == "unscored"


def test_estimates_print_mean_interval_and_n() -> None:
    assert str(metrics.wilson(90, 96)) == "0.94 [0.87, 0.97] n=96"
    assert str(metrics.mean_interval([0.5])) == "0.50 n=1"


@pytest.mark.parametrize(("successes", "n"), [(-1, 3), (4, 3), (0, -1)])
def test_wilson_refuses_impossible_counts(successes: int, n: int) -> None:
    with pytest.raises(DataError, match="successes"):
        metrics.wilson(successes, n)


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95.0])
def test_confidence_is_a_share(confidence: float) -> None:
    with pytest.raises(ConfigError, match=r"such as 0\.95"):
        metrics.wilson(1, 2, confidence=confidence)
    with pytest.raises(ConfigError, match=r"such as 0\.95"):
        metrics.mean_interval([1.0, 2.0], confidence=confidence)


@given(st.lists(FLOATS, min_size=2, max_size=20), st.integers(0, 5))
def test_mean_interval_contains_the_mean_and_repeats(values: list[float], seed: int) -> None:
    found = metrics.mean_interval(values, seed=seed, n_draws=50)
    assert found.n == len(values)
    assert found.mean is not None and found.low is not None and found.high is not None
    assert found.low <= found.mean <= found.high
    assert found == metrics.mean_interval(values, seed=seed, n_draws=50)


def test_mean_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    source = random.Random(0)
    n_covered = 0
    for trial in range(100):
        found = metrics.mean_interval([source.gauss(3, 1) for _ in range(50)], seed=trial)
        assert found.low is not None and found.high is not None
        n_covered += found.low <= 3 <= found.high
    assert 0.88 <= n_covered / 100 <= 0.99


def test_mean_interval_refuses_what_is_not_finite() -> None:
    with pytest.raises(DataError, match="not finite"):
        metrics.mean_interval([1.0, math.nan])


CLUSTERS = st.lists(st.lists(FLOATS, max_size=4), max_size=5)


@given(CLUSTERS)
def test_clustered_interval_contains_the_mean_of_all_values(clusters: list[list[float]]) -> None:
    values = [value for own in clusters for value in own]
    found = metrics.clustered_interval(clusters, n_draws=50)
    assert found.n == len(values)
    if not values:
        assert found.mean is None
    elif len(values) > 1:
        assert found.low is not None and found.mean is not None and found.high is not None
        assert found.low <= found.mean <= found.high
        assert found.mean == pytest.approx(sum(values) / len(values), abs=1e-6)


def test_clustered_interval_is_wide_where_clusters_differ_and_as_usual_where_they_do_not() -> None:
    def width(clusters: list[list[float]]) -> float:
        found = metrics.clustered_interval(clusters)
        assert found.low is not None and found.high is not None
        return found.high - found.low

    alike = width([[0.0, 1.0] * 10] * 10)
    apart = width([[float(i % 2)] * 20 for i in range(10)])
    flat = metrics.mean_interval([0.0, 1.0] * 100)
    assert flat.low is not None and flat.high is not None
    assert alike == pytest.approx(flat.high - flat.low, rel=0.15)
    assert apart > 3 * alike
    with pytest.raises(DataError, match="unscored"):
        metrics.clustered_interval([[1.0], [math.nan]])


def test_paired_difference_is_narrower_than_the_spread() -> None:
    a = [float(n) for n in range(30)]
    found = metrics.paired_difference([x + 1 for x in a], a)
    assert (found.mean, found.low, found.high) == (1, 1, 1)
    with pytest.raises(DataError, match="pair 2 values with 1"):
        metrics.paired_difference([1, 2], [1])


@given(st.integers(0, 300), st.integers(0, 300))
def test_mcnemar_matches_the_binomial_test(b: int, c: int) -> None:
    reference = binomtest(b, b + c).pvalue if b + c else 1.0
    assert metrics.mcnemar(b, c) == pytest.approx(reference, rel=1e-9)


def test_mcnemar_is_symmetric_and_copes_with_large_counts() -> None:
    assert metrics.mcnemar(3, 9) == metrics.mcnemar(9, 3)
    assert 0 < metrics.mcnemar(9000, 9500) < 0.001
    with pytest.raises(DataError, match="counts from 0"):
        metrics.mcnemar(-1, 2)
