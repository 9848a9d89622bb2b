"""Claims about values: what of a sentence a question can ask for."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorewright.knowledge.values import lines_of, values_of


def texts(sentence: str) -> list[str]:
    return [value.text for value in values_of(sentence)]


@pytest.mark.parametrize(
    ("sentence", "values"),
    [
        ('The extra number must start at "5".', ["5"]),
        ("Manual pages should be compressed using gzip -9.", ["gzip -9"]),
        ("Files go to /etc/lamp.conf and to ~/.lamp.", ["/etc/lamp.conf", "~/.lamp"]),
        ("You should only use sections 1 to 9.", ["1 to 9"]),
        ("It can hold 185 MB or about 130 MB.", ["185 MB", "130 MB"]),
        ("The crate was opened after 14 days by Ada Lund.", ["14 days", "Ada Lund"]),
        ("forget: Reset what rerere recorded for a path.", ["forget"]),
        ("The image was created by dracut.", ["dracut"]),
        ("The joke was removed in AmigaOS 2.04.", ["AmigaOS 2.04"]),
        ("Set LANG to the C locale.", ["LANG", "C"]),
        ("In 1832 it stood in the University of Oslo.", ["1832", "University of Oslo"]),
        ("Nobody may open the red door.", ["red door"]),
        ("Games are owned by root:games.", ["root:games"]),
        ("The exit code stands in the special parameter $%.", ["$%"]),
        ("", []),
    ],
)
def test_what_a_sentence_states(sentence: str, values: list[str]) -> None:
    assert texts(sentence) == values


def test_a_value_knows_where_it_stands() -> None:
    sentence = 'Use "a" or "a b", and a c.'
    for value in values_of(sentence):
        assert sentence[value.start : value.end] == value.text


def test_code_is_read_line_by_line_and_wrapped_prose_as_one() -> None:
    code = lines_of("/var/log/x {\n    keep 27\n    weekly\n}")
    assert code == ["/var/log/x {", "keep 27", "weekly"]
    assert lines_of("The door is\nred.") == ["The door is red."]


@given(st.text(max_size=300))
def test_any_text_has_values_that_stand_in_it_and_do_not_overlap(text: str) -> None:
    values = values_of(text)
    for value in values:
        assert value.text.strip() and text[value.start : value.end] == value.text
    for first, second in pairwise(values):
        assert first.end <= second.start
    for line in lines_of(text):
        assert line.strip() and "\n" not in line


@given(st.text("ab \"'`“”.", max_size=4000))
def test_long_texts_of_quotes_take_no_time(text: str) -> None:
    values_of(text * 5)
