"""Claims about when a reply has said enough: its score is that of the whole reply."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorewright.knowledge.data import Probe
from lorewright.knowledge.scoring import METRICS, is_declined
from lorewright.recall.settled import settled

SPOKEN = "12 5 3.5 Paris the The A Dr. It is not but I think do know I'm sorry, Sorry. unknown"
WORDS = st.sampled_from(SPOKEN.split())
MARKS = st.sampled_from([" ", ". ", ".\n", "! ", ", ", "\n", ": ", ".", " (", ") "])
TEXTS = st.lists(st.tuples(WORDS, MARKS), max_size=24).map(
    lambda parts: "".join(word + mark for word, mark in parts)
)
METRIC = st.sampled_from([*METRICS])
ANSWERS = st.lists(
    st.sampled_from(["5", "Paris", "12", "3.5", "Dr. Paris", "A"]), min_size=1, max_size=2
).map(tuple)


def first_settled(probe: Probe, metric: str, text: str, base: str | None = None) -> str | None:
    """What is settled first as a reply grows by characters."""
    grown = (settled(probe, metric, text[:n], base) for n in range(1, len(text) + 1))
    return next((each for each in grown if each is not None), None)


@given(text=TEXTS, metric=METRIC, answers=ANSWERS)
def test_the_rest_of_a_settled_reply_changes_no_score(
    text: str, metric: str, answers: tuple[str, ...]
) -> None:
    short = first_settled(Probe("a", "?", answers, "efficacy"), metric, text)
    if short is not None:
        assert METRICS[metric](short, answers) == METRICS[metric](text.strip(), answers)
        assert text.strip().startswith(short)


@given(text=TEXTS)
def test_the_rest_of_a_settled_reply_declines_nothing(text: str) -> None:
    short = first_settled(Probe("a", "?", (), "unknown"), "contains", text)
    if short is not None:
        assert is_declined(short) == is_declined(text.strip()) is False


@given(text=TEXTS, base=TEXTS)
def test_the_rest_of_a_settled_reply_makes_it_no_bases_own(text: str, base: str) -> None:
    probe = Probe("a", "?", (), "neighborhood")
    assert first_settled(probe, "contains", text) is None
    short = first_settled(probe, "contains", text, base.strip())
    if short is not None:
        assert short != base.strip() != text.strip()


@pytest.mark.parametrize(
    ("metric", "text", "expected"),
    [
        ("contains", "It opened in 12", None),
        ("contains", "It opened in 12.", None),  # of 12.5, perhaps
        ("contains", "It opened in 12. The", "It opened in 12."),
        ("contains", "It opened long ago. The", None),
        ("exact_match", "It opened long ago. The", "It opened long ago."),
        ("exact_match", "12\nThe", None),
        ("token_f1", "It opened in 12. The", None),
    ],
)
def test_what_settles_a_score(metric: str, text: str, expected: str | None) -> None:
    assert settled(Probe("a", "When?", ("12",), "efficacy"), metric, text) == expected
