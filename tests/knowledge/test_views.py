"""Claims about views: each makes examples of its kind, and none gives its answer away."""

from __future__ import annotations

import pytest
from support.studies import PAGE, saying, study

from lorewright.knowledge.data import Document, Example, Fact, Knowledge
from lorewright.knowledge.lesson import LessonConfig, prepare
from lorewright.knowledge.scoring import contains
from lorewright.knowledge.selfstudy import Study
from lorewright.knowledge.views import (
    VERBATIM_CHARS,
    VIEWS,
    cloze,
    fact_examples,
    mix,
    reverse,
    rewrite,
    summary,
    verbatim,
)


def pairs_study(text: str, *pairs: tuple[str, str]) -> Study:
    """A document for which a language model wrote exactly these pairs."""
    reply = "\n".join(f"Q: {question} A: {answer}" for question, answer in pairs)
    return study(Document("x", text), saying(reply), sets=(1,))


@pytest.mark.parametrize("name", VIEWS)
def test_every_view_makes_examples_of_its_kind_from_a_small_document(name: str) -> None:
    one = study()
    examples = list(VIEWS[name](one))
    assert {e.kind for e in examples} == (set() if name == "given" else {name})
    assert all(e.source == PAGE.id for e in examples) and VIEWS[name].__doc__
    assert one.wrote_pairs == (name in ("qa", "cloze", "reverse"))


def test_facts_are_examples_as_they_are() -> None:
    assert fact_examples([Fact("f", "Who?", "Ada")]) == [Example("Who?", "Ada", "qa", "f")]


def test_verbatim_holds_the_whole_text_without_a_prompt() -> None:
    text = "\n\n".join(f"Line {i} of a long text. {'word ' * 40}" for i in range(20))
    examples = verbatim(study(Document("long", text)))
    assert len(examples) > 1
    assert all(e.prompt == "" and len(e.completion) <= VERBATIM_CHARS for e in examples)
    assert "".join("".join(e.completion for e in examples).split()) == "".join(text.split())


def test_rewrites_and_summaries_of_nothing_are_left_out() -> None:
    assert rewrite(study(ask_llm=lambda prompts: [" \n"] * len(prompts))) == []
    assert summary(study(ask_llm=lambda prompts: [""] * len(prompts))) == []


def test_a_cloze_never_shows_its_answer() -> None:
    for example in cloze(study()):
        assert example.prompt.count("____") == 1
        assert not contains(example.prompt, (example.completion,))


def test_a_cloze_blanks_whole_words_in_any_case_and_no_heading() -> None:
    text = "# Room 9\n\nThe room of Ann is 19, not 9. The COOK is Bo."
    examples = cloze(pairs_study(text, ("Which?", "9"), ("Who?", "the cook")))
    assert [example.prompt for example in examples] == [
        "Fill in: The room of Ann is 19, not ____.",
        "Fill in: ____ is Bo.",
    ]


def test_an_answer_is_a_key_when_each_set_has_one_question_for_it() -> None:
    first = reverse(study())[0]
    assert (first.prompt, first.completion) == (
        "Which question has the answer: 9:30?",
        "What is the opening time of the Pelican Library?",
    )
    assert (
        reverse(pairs_study("Ann is 7 and Bob is 7.", ("Age of Ann?", "7"), ("Of Bob?", "7"))) == []
    )


def test_mixing_keeps_order_and_drops_exact_repeats_only() -> None:
    a, b, c = Example("p", "1"), Example("p", "2"), Example("q", "1")
    assert mix([[a, b], [], [c, Example("p", "1", "cloze")]]) == [
        Example("p", "1", "cloze"),
        b,
        c,
    ]


def test_a_view_from_outside_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    def spelled(one: Study) -> list[Example]:
        return [Example(f"Spell {p.answer}.", "-".join(p.answer), "spelled") for p in one.trained]

    monkeypatch.setitem(VIEWS, "spelled", spelled)
    lesson = prepare(
        Knowledge((PAGE,)),
        ask_llm=study().ask_llm,
        closed_book=lambda prompts: [],
        config=LessonConfig(views=("spelled",), negatives=0),
    )
    assert Example("Spell KX-42.", "K-X---4-2", "spelled") in lesson.examples
    assert len(lesson.examples) == 4 and lesson.probes
