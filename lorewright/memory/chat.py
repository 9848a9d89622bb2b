"""Questions one after the other: a follow-up is read with what it leaves out put in, or declined.

    question, context -> stands by itself: ask
                      -> a follow-up: its readings, each routed and answered; exactly one that is
                         for the same memory and sure is the answer, anything else is declined

Nothing of earlier questions stands before a prompt: a reading is a whole question, the answer says
which, and it is the one that `ask` would answer. What a follow-up refers to is the last question
that named something; one that was declined leaves nothing to refer to.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace

from lorewright.errors import DataError
from lorewright.files import slug
from lorewright.knowledge.followups import Completion, completions, left_out
from lorewright.knowledge.negatives import DECLINE
from lorewright.memory.ask import ask, spelled
from lorewright.memory.calibration import trained_questions
from lorewright.memory.opened import OpenFolder
from lorewright.routing.ask import Answer
from lorewright.routing.config import AskConfig
from lorewright.routing.gate import Decision
from lorewright.routing.index import Hit
from lorewright.training.watch import Watch

SURE = 0.5
"""Least probability of each token of a follow-up's answer: at 1/2 no other token is likelier."""


@dataclass(frozen=True)
class Context:
    """What a follow-up refers to: the last question that was answered."""

    question: str
    """As it was read, nothing left out."""
    answer: str
    memories: tuple[str, ...]
    """Names of those that answered."""


@dataclass(frozen=True)
class Exchange:
    """A question and its answer among others."""

    question: str
    answer: Answer
    route: Decision
    """Which memories the question, as it was read, is for."""
    read_as: str = ""
    """The whole question that was answered in place of a follow-up; empty = as it was typed."""
    context: Context | None = None
    """What the next question may refer to."""

    @property
    def sources(self) -> tuple[Hit, ...]:
        """What in the memories that answered is nearest to the question: a fact, a passage."""
        names = _names(self.answer)
        return tuple(hit for hit in self.route.hits if hit.memory in names)


def converse(
    memory: OpenFolder,
    question: str,
    context: Context | None = None,
    *,
    name: str = "",
    config: AskConfig | None = None,
    watch: Watch | None = None,
) -> Exchange:
    """Answer a question that may refer to the one before, from the memory named or routed.

    `context` is that of the exchange before. A follow-up that can be read in no way, or in several
    that are answered, is declined with a note. Raises as `ask`.
    """
    config = config or AskConfig()

    def answered(text: str) -> tuple[Answer, Decision]:
        answer = ask(memory, text, name, **asdict(config), watch=watch)
        own = {"top": config.top, "false_activation": config.false_activation}
        return answer, memory.router.route(text, **own, watch=watch)  # type: ignore[arg-type]

    text = _with_capitals(memory, question, watch)
    words = left_out(text)
    if not words:
        answer, route = answered(question)
        after = None if answer.declined else Context(text, answer.text, _names(answer))
        return Exchange(question.strip(), answer, route, context=after)
    readings: Sequence[Completion] = ()
    if context is not None:
        trained = _trained(memory, context)
        readings = completions(text, context.question, context.answer, trained)
    tried = [(reading, *answered(reading.text)) for reading in readings]
    doubts = [_doubt(*each, context, slug(name) if name else "") for each in tried]
    passed = [each for each, doubt in zip(tried, doubts, strict=True) if not doubt]
    if len(passed) == 1:
        ((reading, answer, route),) = passed
        after = Context(reading.text, answer.text, _names(answer))
        answer = replace(answer, question=question.strip())
        return Exchange(question.strip(), answer, route, reading.text, after)
    note = _why_not(
        left_out(question) or words, context, [reading for reading, *_ in passed], tried, doubts
    )
    none = Answer(question.strip(), DECLINE, "", True, 0.0, 0.0, config.mode, "", note=note)
    route = tried[0][2] if tried else Decision((), None, ())
    return Exchange(question.strip(), none, route, context=context)


def _names(answer: Answer) -> tuple[str, ...]:
    return tuple(answer.memory.split(", ")) if answer.memory else ()


def _with_capitals(memory: OpenFolder, question: str, watch: Watch | None) -> str:
    """The question as the memories nearest to it write it, if it came without capitals."""
    if not question.islower():
        return question
    router = memory.router.current(watch)
    return spelled(router, question, {hit.memory for hit in router.route(question).hits})


def _trained(memory: OpenFolder, context: Context) -> list[tuple[str, str]]:
    """Questions that these memories were trained to answer; none of one whose lesson is gone."""
    pairs: list[tuple[str, str]] = []
    for name in context.memories:
        with suppress(DataError):
            pairs += trained_questions(memory.folder, memory.folder.entry(name))
    return pairs


def _doubt(
    reading: Completion, answer: Answer, route: Decision, context: Context | None, pinned: str
) -> str:
    """Why an answer to this reading must not be given; empty = it may."""
    if answer.declined:
        return answer.note or "it is declined"
    if context and not reading.named and {*_names(answer)} != {*context.memories}:
        return f"it is for {answer.memory}, and {', '.join(context.memories)} answered before"
    if pinned and pinned not in {hit.memory for hit in route.chosen}:
        return f"it is not for {pinned}"
    if answer.least < SURE:
        return f"the answer is not sure (least token probability {answer.least:.2f})"
    return ""


def _why_not(
    words: str,
    context: Context | None,
    passed: Sequence[Completion],
    tried: Sequence[tuple[Completion, Answer, Decision]],
    doubts: Sequence[str],
) -> str:
    """Why a follow-up was declined, and what to do."""
    if len(passed) > 1:
        listed = " or ".join(repr(reading.text) for reading in passed)
        why = f"{words!r} may be read as {listed}"
    elif tried:
        pairs = zip(tried, doubts, strict=True)
        why = "; ".join(f"read as {reading.text!r}, {doubt}" for (reading, *_), doubt in pairs)
    elif context is None:
        why = f"{words!r} leaves out what it is about, and no question was answered just before"
    else:
        why = f"{words!r} cannot be read from the question before"
    return f"{why}: name what you mean"
