"""Claims about scores, intervals and tests."""

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorewright.errors import DataError
from lorewright.knowledge import scoring
from lorewright.knowledge.scoring import METRICS, Metric

ANSWERS = st.lists(st.text(min_size=1).filter(str.strip), min_size=1, max_size=3).map(tuple)


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
    once = scoring.normalise(text)
    assert scoring.normalise(once) == once


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
    assert scoring.normalise(text) == plain


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
    assert scoring.contains(output, (answer,)) == score


@given(st.text(), ANSWERS)
def test_exact_match_implies_the_others(output: str, answers: tuple[str, ...]) -> None:
    if scoring.exact_match(output, answers):
        assert scoring.contains(output, answers) == 1
        assert scoring.token_f1(output, answers) == 1
        assert scoring.rouge_l(output, answers) == 1


@given(st.text("ab ", max_size=30), st.text("ab ", min_size=1, max_size=30).filter(str.strip))
def test_rouge_l_is_at_most_token_f1(output: str, answer: str) -> None:
    assert scoring.rouge_l(output, (answer,)) <= scoring.token_f1(output, (answer,))


WORDS = st.lists(st.sampled_from(["ab", "cd", "ef"]), max_size=7)


@given(WORDS, WORDS)
def test_rouge_l_is_the_longest_common_subsequence(output: list[str], answer: list[str]) -> None:
    chosen = [tuple(c) for n in range(len(answer) + 1) for c in combinations(output, n)]
    subsequences = {tuple(c) for n in range(len(answer) + 1) for c in combinations(answer, n)}
    longest = max(len(c) for c in chosen if c in subsequences)
    wanted = 2 * longest / (len(output) + len(answer)) if longest else 0.0
    if answer:
        score = scoring.rouge_l(" ".join(output), (" ".join(answer),))
        assert score == pytest.approx(wanted)


def test_f1_and_rouge_on_a_worked_case() -> None:
    # output: red big dog ran; wanted: big red dog -> 3 common words, 2 of them in order
    assert scoring.token_f1("red big dog ran", ("big red dog",)) == pytest.approx(6 / 7)
    assert scoring.rouge_l("red big dog ran", ("big red dog",)) == pytest.approx(4 / 7)


def test_the_best_answer_counts() -> None:
    assert scoring.exact_match("Ada", ("Grace", "ada")) == 1


def test_verbatim_prefix_measures_to_the_first_mistake() -> None:
    assert scoring.verbatim_prefix("abXd", ("abcd",)) == 0.5
    assert scoring.verbatim_prefix("abcd and more", ("abcd",)) == 1
    assert scoring.verbatim_prefix("ab", ("abcd",)) == 0.5
    assert scoring.verbatim_prefix("Abcd", ("abcd",)) == 0


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
    assert scoring.is_declined(text)


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
    assert not scoring.is_declined(text)


# --- many outputs
