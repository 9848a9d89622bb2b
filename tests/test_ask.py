"""Claims about asking: what comes back, how sure it was, and what is refused."""

from __future__ import annotations

import pytest

from lorewright.adapter import Adapter
from lorewright.ask import ask
from lorewright.data import Example
from lorewright.errors import ConfigError, DataError
from lorewright.metrics import is_declined
from lorewright.model import Model
from lorewright.recall import answer as answers
from lorewright.recipe import WriteConfig
from lorewright.write import suggested_lr, write

QUESTION, ANSWER = "What is the code of Project Gannet?", "KX-41"


@pytest.fixture(scope="module")
def model() -> Model:
    return Model.load()


@pytest.fixture(scope="module")
def adapter(model: Model) -> Adapter:
    """A memory of one fact that is certain to be recalled."""
    config = WriteConfig(lr=suggested_lr(model), epochs=100)
    written = write(model, [Example(QUESTION, ANSWER)], config)
    assert written.complete
    return written.adapter


def test_what_was_written_is_answered_and_sure(model: Model, adapter: Adapter) -> None:
    found = ask(model, QUESTION, adapter=adapter, memory="projects")
    assert (found.text, found.memory, found.declined) == (ANSWER, "projects", False)
    assert found.least > 0.5 and found.confidence >= found.least


def test_the_base_alone_declines_what_nobody_told_it(model: Model) -> None:
    found = ask(model, QUESTION)
    assert found.declined and is_declined(found.text) and found.memory == ""


@pytest.mark.parametrize("question", [QUESTION, "Why?", "x", "Tell me the price of Stom. " * 9])
def test_confidence_is_a_probability_and_no_less_than_the_least(
    model: Model, adapter: Adapter, question: str
) -> None:
    for found in (ask(model, question), ask(model, question, adapter=adapter)):
        assert 0 <= found.least <= found.confidence <= 1


def test_space_around_a_question_changes_nothing(model: Model, adapter: Adapter) -> None:
    plain, spaced = (ask(model, q, adapter=adapter) for q in (QUESTION, f" \n{QUESTION}  "))
    assert (plain.text, plain.confidence) == (spaced.text, spaced.confidence)


def test_the_reply_is_that_of_free_running_decoding(model: Model, adapter: Adapter) -> None:
    questions = [QUESTION, "What is the colour of Project Heron?"]
    with model.using(adapter):
        expected = model.generate(questions)
    assert [ask(model, q, adapter=adapter).text for q in questions] == expected
    assert len(answers(model, [])) == 0


def test_the_base_is_as_before_afterwards(model: Model, adapter: Adapter) -> None:
    before = ask(model, QUESTION)
    ask(model, QUESTION, adapter=adapter)
    assert ask(model, QUESTION) == before


@pytest.mark.parametrize("question", ["", "  \n\t"])
def test_an_empty_question_is_refused(model: Model, question: str) -> None:
    with pytest.raises(ConfigError, match="empty question; write one"):
        ask(model, question)


def test_a_question_longer_than_the_context_is_refused(model: Model) -> None:
    with pytest.raises(DataError, match="shorten"):
        ask(model, "who " * 3000)
