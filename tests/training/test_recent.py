"""Results that later writes use again."""

from __future__ import annotations

from lorewright.training.recent import Recent


def test_a_result_is_made_once_while_it_is_here():
    recent, made = Recent(10, len), []

    def make(text: str) -> str:
        made.append(text)
        return text

    for text in ("abc", "def", "abc"):
        assert recent.get(text, lambda text=text: make(text)) == text
    assert made == ["abc", "def"]


def test_those_used_longest_ago_go_first():
    recent = Recent(6, len)
    for text in ("abc", "def", "abc", "ghi"):
        recent.get(text, lambda text=text: text)
    assert list(recent.results) == ["abc", "ghi"]


def test_what_is_too_large_by_itself_is_returned_and_not_stored():
    recent = Recent(2, len)
    assert recent.get("a", lambda: "long") == "long"
    assert not recent.results
