"""Claims about questions that are typed without capitals."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorewright.routing.casing import recased

TEXTS = (
    "The price of the Osprey Kiln is 40 crowns. The Osprey Kiln opens at 8:30.",
    "What is the price of the Osprey Kiln?",
    "Who signs the KX-41 log?",
    "The head of the Kiln is Mirela O'Hara.",
)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("what is the price of the osprey kiln", "What is the price of the Osprey Kiln?"),
        ("what is the price of the osprey kiln?", "What is the price of the Osprey Kiln?"),
        ("when does the osprey kiln open", "When does the Osprey Kiln open?"),
        ("tell me the price of the osprey kiln", "Tell me the price of the Osprey Kiln."),
        ("who signs the kx-41 log", "Who signs the KX-41 log?"),
        ("is mirela o'hara in", "Is Mirela O'Hara in?"),
        ("What is the price of the osprey kiln", "What is the price of the osprey kiln"),
        ("4711", "4711"),
    ],
)
def test_words_get_the_capitals_that_the_texts_have(typed: str, meant: str) -> None:
    assert recased(typed, TEXTS) == meant


def test_what_was_trained_in_lower_case_stays_as_it_was_trained() -> None:
    assert recased("who signs the log", ("who signs the log", "Who signs the log?")) == (
        "who signs the log"
    )
    assert recased("who pays for it", ("who signs the log",)) == "who pays for it"


@given(st.text(max_size=40), st.lists(st.text(max_size=40), max_size=4))
def test_any_text_can_be_recased_and_a_second_time_changes_nothing(
    typed: str, texts: list[str]
) -> None:
    once = recased(typed, texts)
    if typed.islower() and once[:1].isupper():
        assert recased(once, texts) == once
    if not typed.islower():
        assert once == typed
