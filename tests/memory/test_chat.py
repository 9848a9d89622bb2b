"""Claims about conversations: a follow-up is answered as a whole question, or declined."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import lorewright.memory.chat
from lorewright.errors import ConfigError, UnknownMemory
from lorewright.memory.chat import Context, Exchange, converse
from lorewright.memory.memory import Memory
from lorewright.routing.config import AskConfig

STORED = Path(__file__).parents[1] / "fixtures" / "folder-2026-11-28"
CLOSED = AskConfig(mode="closed")
LEADER = Context("Who leads the Tide Office?", "Maren Oskold", ("tide",))


@pytest.fixture(scope="module")
def memory(tmp_path_factory: pytest.TempPathFactory) -> Memory:
    """A copy of the stored folder."""
    folder = tmp_path_factory.mktemp("chat") / "atlas"
    shutil.copytree(STORED, folder)
    return Memory.open(folder)


def chat(memory: Memory, *questions: str, name: str = "") -> list[Exchange]:
    """Questions one after the other."""
    exchanges: list[Exchange] = []
    for question in questions:
        context = exchanges[-1].context if exchanges else None
        exchanges.append(converse(memory, question, context, name=name, config=CLOSED))
    return exchanges


def declined(exchange: Exchange, *words: str) -> None:
    """Check that nothing was answered, and why."""
    assert exchange.answer.declined and not exchange.answer.memory and not exchange.read_as
    assert exchange.answer.note.endswith("name what you mean")
    for each in words:
        assert each in exchange.answer.note


def test_follow_ups_are_read_as_whole_questions_one_after_the_other(memory: Memory) -> None:
    first, second, third = chat(
        memory, "who leads the tide office", "And what is its badge colour?", "and when?"
    )
    assert (first.answer.text, first.read_as) == ("Maren Oskold", "")
    assert second.read_as == "What is the Tide Office's badge colour?"
    assert (second.answer.text, second.answer.memory) == ("teal", "tide")
    assert second.question == second.answer.question == "And what is its badge colour?"
    assert third.read_as == "When does the Tide Office open?" and third.answer.text == "7:30"


def test_a_reading_is_answered_as_if_it_had_been_asked(memory: Memory) -> None:
    after = converse(memory, "And the visitor code?", LEADER, config=CLOSED)
    alone = converse(memory, after.read_as, config=CLOSED)
    assert after.answer.replies == alone.answer.replies and after.route == alone.route
    assert [hit.memory for hit in after.sources] == ["tide"]


def test_another_name_is_asked_the_same_of_another_memory_too(memory: Memory) -> None:
    _, second = chat(memory, "Jorun Hartley:", "And Selma Quist?")
    assert (second.read_as, second.answer.text) == ("Selma Quist:", "9301661318")
    context = Context("Jorun Hartley:", "6260181590", ("tide",))
    assert converse(memory, "And Selma Quist?", context, config=CLOSED).answer.memory == "phones"


def test_a_follow_up_with_nothing_before_it_is_declined_without_asking(memory: Memory) -> None:
    declined(chat(memory, "Who runs it?")[0], "'it'", "no question was answered")


@pytest.mark.parametrize("between", ["Who is the owner of Project Zubkel?", "Who founded Zubkel?"])
def test_after_a_declined_question_nothing_is_referred_to(memory: Memory, between: str) -> None:
    *_, stranger, last = chat(memory, LEADER.question, between, "And when does it open?")
    assert stranger.answer.declined and stranger.context is None
    declined(last, "'it'")


def test_a_declined_follow_up_leaves_the_context_as_it_was(memory: Memory) -> None:
    _, second, third = chat(memory, LEADER.question, "What about the second one?", "And when?")
    declined(second, "'second one'")
    assert third.answer.text == "7:30"


def test_what_the_memory_declines_is_not_answered_for_a_follow_up(memory: Memory) -> None:
    declined(converse(memory, "Who founded it?", LEADER, config=CLOSED), "Who founded the Tide")


def test_a_follow_up_is_answered_by_the_memory_before_or_by_none(memory: Memory) -> None:
    other = Context(LEADER.question, LEADER.answer, ("phones",))
    exchange = converse(memory, "And the visitor code?", other, config=CLOSED)
    declined(exchange, "it is for tide, and phones answered before")
    assert exchange.context == other


def test_a_follow_up_that_may_mean_either_of_two_is_declined(memory: Memory) -> None:
    context = Context("Jorun Hartley or Bram Oakden:", "6260181590", ("phones",))
    exchange = converse(memory, "And Selma Quist?", context, config=CLOSED)
    declined(exchange, "'Selma Quist or Bram Oakden:' or 'Jorun Hartley or Selma Quist:'")


def test_an_answer_that_is_not_sure_is_not_given_to_a_follow_up(
    memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lorewright.memory.chat, "SURE", 1.1)
    exchange = converse(memory, "And the visitor code?", LEADER, config=CLOSED)
    declined(exchange, "the answer is not sure (least token probability")


def test_a_pinned_memory_answers_follow_ups_that_are_for_it(memory: Memory) -> None:
    first, second = chat(memory, LEADER.question, "And the visitor code?", name="tide")
    assert (second.answer.text, second.answer.memory) == ("TD-5093", "tide")
    pinned = converse(memory, "And the visitor code?", first.context, name="phones", config=CLOSED)
    declined(pinned)


def test_a_conversation_refuses_what_ask_refuses(memory: Memory) -> None:
    with pytest.raises(ConfigError, match="empty question"):
        converse(memory, " ")
    with pytest.raises(UnknownMemory):
        converse(memory, "Who?", LEADER, name="x")
    with pytest.raises(ConfigError, match="use one of auto, closed"):
        converse(memory, LEADER.question, config=AskConfig(mode="loud"))
