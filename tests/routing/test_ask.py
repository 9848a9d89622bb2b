"""Claims about asking: what comes back, how sure it was, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorewright.adapters.adapter import Adapter
from lorewright.errors import ConfigError, DataError
from lorewright.knowledge.data import Example
from lorewright.knowledge.scoring import is_declined, normalise
from lorewright.models.model import Model
from lorewright.recall.verify import answer as answers
from lorewright.routing.ask import (
    MODES,
    WAYS,
    Candidate,
    Reading,
    Reply,
    Way,
    agreed,
    ask,
    ask_each,
    best,
    prompt_of,
    read,
    readings_of,
)
from lorewright.training.config import WriteConfig
from lorewright.training.loop import write
from lorewright.training.rates import suggested_lr
from lorewright.writers.adapter import AdapterState
from lorewright.writers.reading import answering
from lorewright.writers.reading import read as read_with

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
    answer = ask(model, QUESTION, adapter=adapter, memory="projects")
    assert (answer.text, answer.memory, answer.declined) == (ANSWER, "projects", False)
    assert answer.least > 0.5 and answer.confidence >= answer.least


def test_the_base_alone_declines_what_it_never_read(model: Model) -> None:
    answer = ask(model, QUESTION)
    assert answer.declined and is_declined(answer.text) and answer.memory == ""


@pytest.mark.parametrize("question", [QUESTION, "Why?", "x", "Tell me the price of Stom. " * 9])
def test_confidence_is_a_probability_and_no_less_than_the_least(
    model: Model, adapter: Adapter, question: str
) -> None:
    for answer in (ask(model, question), ask(model, question, adapter=adapter)):
        assert 0 <= answer.least <= answer.confidence <= 1


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


# -- readers and whose word counts ---------------------------------------------------------------

REPLIES = st.lists(
    st.builds(
        Reply,
        st.sampled_from(["a", "b"]),
        st.sampled_from(["closed", "open"]),
        st.text(max_size=3),
        st.booleans(),
        st.floats(0, 1),
        st.floats(0, 1),
    ),
    min_size=1,
)


def reply_of(text: str, confidence: float, *, declined: bool = False) -> Reply:
    """A reply of one memory's readers."""
    return Reply("a", "closed", text, declined, confidence, confidence)


def test_two_readers_who_agree_outweigh_one_who_is_surer() -> None:
    shy = reply_of("KX-41", 0.8)
    assert (
        agreed([shy, reply_of("I do not know.", 1.0, declined=True), reply_of("kx-41", 0.7)]) == shy
    )


def test_refusals_in_different_words_add_up() -> None:
    refusals = [reply_of("I do not know.", 0.6, declined=True), reply_of("", 0.5, declined=True)]
    assert agreed([*refusals, reply_of("KX-41", 0.9)]).declined
    assert agreed([*refusals, reply_of("KX-41", 0.9)], trained=True).text == "KX-41"
    assert agreed(refusals, trained=True).declined


@given(REPLIES)
def test_no_answer_outweighs_the_one_that_is_agreed(replies: list[Reply]) -> None:
    chosen = agreed(replies)
    weight: dict[str, float] = {}
    for reply in replies:
        key = "" if reply.declined else normalise(reply.text)
        weight[key] = weight.get(key, 0.0) + reply.confidence
    assert weight["" if chosen.declined else normalise(chosen.text)] == max(weight.values())


@given(REPLIES)
def test_of_several_memories_none_that_declines_silences_one_that_does_not(
    replies: list[Reply],
) -> None:
    chosen, answering = best(replies), [reply for reply in replies if not reply.declined]
    assert chosen in (answering or replies[:1])
    assert chosen.confidence == max((r.confidence for r in answering), default=chosen.confidence)


def test_readers_without_passages_are_the_memory_alone() -> None:
    for mode in ("closed", "open", "read", "hybrid"):
        (reading,) = readings_of("Who?", Candidate("a"), mode)
        assert (reading.way, reading.reader, prompt_of(reading)) == ("closed", "a", "Who?")


@pytest.mark.parametrize("mode", MODES)
def test_only_a_reader_that_has_the_memory_attached_is_the_memory(mode: str) -> None:
    candidate = Candidate("a", passages=("One.", "Two."), source="One. Two. Three.")
    for reading in readings_of("Who?", candidate, mode):
        assert reading.reader == ("a" if reading.way in ("closed", "together", "read") else "")
        before = {"closed": "", "full": "One. Two. Three.\n\n"}.get(reading.way, "One.\n\nTwo.\n\n")
        assert prompt_of(reading) == f"{before}Who?"


def test_a_mode_from_outside_is_asked(
    model: Model, adapter: Adapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(WAYS, "first passage", Way(False, lambda c: c.passages[:1]))
    monkeypatch.setitem(MODES, "skim", ("first passage",))
    candidate = Candidate("p", passages=("The code of Project Gannet is BT-7.", "It is KX-41."))
    questions = [(QUESTION, [candidate])]
    (answer,) = ask_each(model, questions, {"p": adapter}.__getitem__, mode="skim")
    assert (answer.text, answer.way, answer.mode) == ("BT-7", "first passage", "skim")


def test_replies_come_in_the_order_of_the_readings(model: Model, adapter: Adapter) -> None:
    text = f"The code of Project Heron is BT-7. The code of Project Gannet is {ANSWER}."
    readings = [
        Reading(QUESTION, "p", "closed"),
        Reading("What is the code of Project Heron?", "", "open", (text,)),
        Reading(QUESTION, "p", "closed"),
        Reading(QUESTION, "", "open"),
    ]
    replies = read(model, readings, {"p": adapter}.__getitem__)
    assert [reply.text for reply in replies[:3]] == [ANSWER, "BT-7", ANSWER]
    assert replies[3].declined and replies[0] == replies[2]


TEXT = f"The code of Project Heron is BT-7. The code of Project Gannet is {ANSWER}."


def test_what_the_base_has_read_is_answered_by_the_memory(model: Model, adapter: Adapter) -> None:
    asked = ["What is the code of Project Heron?", QUESTION, "Who signs off Project Heron?"]
    readings = [Reading(question, "p", "read", (TEXT,)) for question in asked]
    replies = read(model, readings, {"p": adapter}.__getitem__)
    with_state = answering(AdapterState(adapter).on)
    expected = [read_with(model, prompt_of(reading), with_state) for reading in readings]
    assert [reply.text for reply in replies] == expected
    assert all(0 <= reply.least <= reply.confidence <= 1 for reply in replies)


def test_a_memory_that_changes_nothing_answers_from_what_was_read_as_the_base_does(
    model: Model, adapter: Adapter
) -> None:
    tensors = {
        name: tensor.zero_() if name.endswith("lora_B.weight") else tensor
        for name, tensor in ((n, t.clone()) for n, t in adapter.tensors.items())
    }
    idle = replace(adapter, tensors=tensors)
    ways = [Reading(QUESTION, "p", "read", (TEXT,)), Reading(QUESTION, "", "open", (TEXT,))]
    handed, alone = read(model, ways, {"p": idle}.__getitem__)
    assert handed.text == alone.text
    assert handed.confidence == pytest.approx(alone.confidence, rel=1e-3)


def test_readings_of_every_way_come_in_their_order(model: Model, adapter: Adapter) -> None:
    ways = [(way, (TEXT,) if way != "closed" else ()) for way in ("read", "closed", "open", "read")]
    readings = [Reading(QUESTION, "p", way, before) for way, before in ways]
    replies = read(model, readings, {"p": adapter}.__getitem__)
    assert [reply.way for reply in replies] == [way for way, _ in ways]
    assert replies[0] == replies[3] and replies[1].text == ANSWER


def test_nobody_to_ask_is_the_base_alone(model: Model, adapter: Adapter) -> None:
    (answer,) = ask_each(model, [(QUESTION, ())], lambda name: adapter)
    assert answer.declined and answer.memory == "" and answer.text == ask(model, QUESTION).text
