"""The verb `sides`: one question before the base alone, the memory, its passages, and all of them.

Beside each other they show who answers and from what: the base column never has an adapter, so what
it knows was there before.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from lorewright.memory.ask import ask_as
from lorewright.memory.modes import HALVES
from lorewright.memory.opened import OpenFolder
from lorewright.memory.route import FALSE_ACTIVATION, TOP
from lorewright.routing import ask as asking
from lorewright.routing.ask import Answer, Candidate, Reply, best
from lorewright.training.watch import Watch

BASE, HYBRID = "base", "hybrid"


@dataclass(frozen=True)
class Sides:
    """The replies to one question, by side; a side that nobody took is not there."""

    question: str
    memory: str
    """Which memory answers; empty where none is for the question."""
    replies: Mapping[str, Reply]
    """base, and where a memory is for it closed, open (if it has passages) and hybrid."""
    considered: tuple[Candidate, ...]
    """The memories nearest to the question, best first, chosen or not."""
    note: str

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def sides(
    memory: OpenFolder,
    question: str,
    name: str = "",
    *,
    top: int = TOP,
    false_activation: float = FALSE_ACTIVATION,
    watch: Watch | None = None,
) -> Sides:
    """Put a question before the base alone, and before the memory that it is for in every mode.

    Where no memory is for it, the base's reply is the only one. Raises as `ask`.
    """
    (answer,) = ask_as(
        memory,
        [question],
        mode=HYBRID,
        name=name,
        top=top,
        false_activation=false_activation,
        watch=watch,
    )
    replies = {BASE: _as_reply(asking.ask(memory.model, question))}
    for way in HALVES:
        if own := [reply for reply in answer.replies if reply.way == way]:
            replies[way] = best(own)
    if answer.replies:
        replies[HYBRID] = _as_reply(answer)
    return Sides(answer.question, answer.memory, replies, answer.considered, answer.note)


def _as_reply(answer: Answer) -> Reply:
    return Reply(
        answer.memory,
        answer.way,
        answer.text,
        answer.declined,
        answer.confidence,
        answer.least,
        answer.passages,
    )
