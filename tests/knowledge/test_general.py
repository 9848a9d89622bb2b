"""Claims about general questions: many, in two halves, apart from what the knowledge is about."""

from __future__ import annotations

from lorewright.knowledge.general import HALVES, apart_from, general_questions
from lorewright.knowledge.scoring import contains, normalise


def test_the_halves_are_large_fixed_and_never_mixed() -> None:
    halves = [{normalise(each.question) for each in general_questions(half)} for half in HALVES]
    assert all(len(half) >= 150 for half in halves) and not halves[0] & halves[1]
    assert general_questions("held") == general_questions("held")


def test_every_answer_counts_and_none_stands_in_its_question() -> None:
    given_away = []
    for half in HALVES:
        for each in general_questions(half):
            assert all(contains(f"It is {a}.", each.answers) for a in each.answers), each
            if contains(each.question, each.answers):
                given_away.append(each.question)
    assert all(" or " in q for q in given_away), given_away


def test_questions_that_the_knowledge_is_about_are_left_out() -> None:
    questions = general_questions("held")
    own = ["What is the capital of France since the reform? Bergen"]
    for half in HALVES:
        left = apart_from(general_questions(half), own)
        assert "What is the capital of France?" not in [each.question for each in left]
        assert len(left) > 0.9 * len(general_questions(half))
    assert apart_from(questions, []) == list(questions)
