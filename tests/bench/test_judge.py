"""Claims about a judge: one number is a verdict, everything else is none, and none is no zero."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorewright.bench.judge import Case, judge, number_of


@pytest.mark.parametrize(
    ("reply", "number"),
    [
        ("7", 7),
        ("Score: 8/10.", 8),
        ("**9**", 9),
        ("6.5", 6.5),
        ("10 out of 10", 10),
        ("I give it a 4, that is 4/10", 4),
        ("eleven", None),
        ("11", None),
        ("between 3 and 5", None),
        ("-3", None),
        ("", None),
    ],
)
def test_a_verdict_is_exactly_one_number_up_to_ten(reply: str, number: float | None) -> None:
    assert number_of(reply) == number


@given(st.text(max_size=40))
def test_no_reply_gives_a_number_out_of_range(reply: str) -> None:
    result = number_of(reply)
    assert result is None or 0 <= result <= 10


def test_equal_cases_are_asked_once_and_empty_answers_never() -> None:
    requests: list[str] = []

    def says(prompts: list[str]) -> list[str]:
        requests.extend(prompts)
        return ["no idea" if "{amber}" in prompt else "8" for prompt in prompts]

    case = Case("Which {colour}?", ("teal", "a teal"), "teal")
    cases = [case, case._replace(output="{amber}"), case._replace(output=" "), case]
    assert judge(says)(cases) == [8, None, 0, 8]
    assert len(requests) == 2
    assert "Question: Which {colour}?\nReference: teal / a teal\nAnswer: teal\n" in requests[0]


def test_nobody_is_asked_about_nothing() -> None:
    assert judge(lambda prompts: 1 / 0)([Case("Who?", ("Ann",), "")]) == [0.0]  # type: ignore[arg-type, return-value]
