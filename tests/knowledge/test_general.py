"""Claims about general questions: many, in two halves, apart from what the knowledge is about."""

from __future__ import annotations

from lorewright.knowledge.general import (
    HALVES,
    apart_from,
    general_questions,
    nearest_in_form,
)
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
    for half in HALVES:  # also where what is written contradicts it in a wording of its own
        left = apart_from(general_questions(half), ["In Brazil, the official language is Dutch"])
        assert "Which language is spoken in Brazil?" not in [each.question for each in left]
        assert len(left) > 0.9 * len(general_questions(half))


def test_questions_that_ask_alike_are_the_nearest_whatever_they_are_about() -> None:
    questions = [each.question for each in general_questions("rehearsed")]
    declined = ["In which city is the Tide Office?", "Which language is spoken at the Mill?"]
    first = [questions[i] for i in nearest_in_form(questions, declined, 6)]
    assert all(q.startswith(("In which city is", "Which language is spoken")) for q in first[:2])
    assert len({*first}) == 6
    everything = nearest_in_form(questions, declined, 10_000)
    assert sorted(everything) == list(range(len(questions)))
    assert nearest_in_form(questions, [], 3) == [0, 1, 2]
    assert nearest_in_form([], declined, 3) == nearest_in_form(questions, declined, 0) == []
