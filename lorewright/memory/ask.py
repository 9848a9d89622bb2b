"""The verb `ask`: which memories a question is for, and what they say.

A question that names things of two memories in two parts ("… and …") is asked part by part. One
that no memory is for is declined without asking anybody. `auto` is the mode that was measured best
on the folder, hybrid where nothing was measured; a hybrid that was measured worse than its better
half gives way to it and says so.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from lorewright.adapters.adapter import Adapter
from lorewright.errors import ConfigError, DataError
from lorewright.files import slug
from lorewright.knowledge.negatives import DECLINE
from lorewright.memory.folder import entry_of
from lorewright.memory.modes import kept
from lorewright.memory.route import FALSE_ACTIVATION, Finder, finder, source_of
from lorewright.models.model import Model
from lorewright.recall.verify import MAX_ANSWER_TOKENS
from lorewright.routing.ask import MODES, Answer, Candidate, ask_each, prompt_of, readings_of
from lorewright.routing.gate import Decision
from lorewright.training.watch import Watch

if TYPE_CHECKING:
    from lorewright.memory.memory import Memory

AUTO = "auto"
TOP = 3
"""At most so many memories are asked for one question."""
N_PASSAGES = 3
"""Passages put before a question, of each memory."""
N_KEPT = 64
"""Adapters kept loaded after a question, for the next one."""
MAX_PARTS = 4
_CUT = re.compile(r"(?<=[.?!;])\s+|,?\s+and\s+")


@dataclass(frozen=True)
class _Plan:
    """What is asked of whom for one question."""

    parts: tuple[tuple[str, tuple[Candidate, ...]], ...]
    """Part of the question, and the memories it is for; () = nobody is asked."""
    considered: tuple[Candidate, ...]
    note: str = ""


def ask_all(
    memory: Memory,
    questions: Sequence[str],
    *,
    name: str = "",
    mode: str = AUTO,
    top: int = TOP,
    false_activation: float = FALSE_ACTIVATION,
    watch: Watch | None = None,
) -> list[Answer]:
    """Answer questions, all in a few batches, in the mode that suits; see `Memory.ask`."""
    note = ""
    if mode in (AUTO, "hybrid"):
        mode = "hybrid"
        standing = kept(memory.folder, list(memory.names.values()))
        if standing is not None and standing.hybrid_is_worse:
            mode = standing.better_half
            note = f"{standing.sentence}: {mode} was used"
    answers = ask_as(
        memory,
        questions,
        mode=mode,
        name=name,
        top=top,
        false_activation=false_activation,
        watch=watch,
    )
    return [replace(a, note="; ".join(filter(None, (note, a.note)))) for a in answers]


def ask_as(
    memory: Memory,
    questions: Sequence[str],
    *,
    mode: str,
    name: str = "",
    top: int = TOP,
    false_activation: float = FALSE_ACTIVATION,
    watch: Watch | None = None,
) -> list[Answer]:
    """Answer questions in this mode, whatever was measured; see `Memory.ask`."""
    if mode not in MODES:
        listed = ", ".join((AUTO, *MODES))
        raise ConfigError(f"mode {mode!r} is unknown; use one of {listed}.")
    if any(not question.strip() for question in questions):
        raise ConfigError("ask was given an empty question; write one.")
    if not memory.names:
        memory.only()  # raises, saying how to write one
    found = finder(memory, watch)
    find = partial(found.find, top=top, false_activation=false_activation)
    offer = partial(_candidate, memory, found, mode)
    plans = [
        _named(memory, text, slug(name), find, offer) if name else _routed(text, find, offer)
        for text in questions
    ]
    flat = [part for plan in plans for part in plan.parts]
    answers = iter(ask_each(memory.model, flat, partial(_adapter, memory, found), mode=mode))
    done = []
    for question, plan in zip(questions, plans, strict=True):
        told = [next(answers) for _ in plan.parts]
        answer = _joined(question.strip(), told) if told else _nobody(question.strip(), mode)
        done.append(replace(answer, considered=plan.considered, note=plan.note))
    return done


# -- whom to ask ---------------------------------------------------------------------------------

Find = Callable[[str], Decision]
Offer = Callable[[str, str, float | None], Candidate]
"""Question, name and probability to what there is to read of a memory."""


def _named(memory: Memory, question: str, name: str, find: Find, offer: Offer) -> _Plan:
    """The memory that was named, whatever the question."""
    entry_of(memory.folder, name)
    finding = find(question)
    probability = next((h.probability for h in finding.hits if h.memory == name), None)
    return _Plan(((question, (offer(question, name, probability),)),), _considered(finding))


def _routed(question: str, find: Find, offer: Offer) -> _Plan:
    """The memories that the question, or each part of it, is for."""
    pieces = parts_of(question, find)
    findings = [find(piece) for piece in pieces]
    considered = tuple(candidate for each in findings for candidate in _considered(each))
    if not all(finding.chosen for finding in findings):
        return _Plan((), considered, findings[0].why_none)
    parts = tuple(
        (piece, tuple(offer(piece, hit.memory, hit.probability) for hit in finding.chosen))
        for piece, finding in zip(pieces, findings, strict=True)
    )
    return _Plan(parts, considered)


def parts_of(question: str, find: Find) -> tuple[str, ...]:
    """Return the parts of a question that are for different memories, else the question alone.

    It is cut after sentences and at `and`; every part must be for some memory.
    """
    pieces = [piece.strip() for piece in _CUT.split(question.strip()) if piece.strip()]
    if 2 <= len(pieces) <= MAX_PARTS:
        mark = question.strip()[-1] if question.strip()[-1] in "?.!" else "?"
        ended = (piece if piece[-1] in "?.!" else piece + mark for piece in pieces)
        parts = tuple(piece[:1].upper() + piece[1:] for piece in ended)
        firsts = [find(part).chosen[:1] for part in parts]
        if all(firsts) and len({hit.memory for (hit,) in firsts}) > 1:
            return parts
    return (question,)


def _considered(finding: Decision) -> tuple[Candidate, ...]:
    return tuple(Candidate(hit.memory, hit.probability) for hit in finding.hits)


def _candidate(
    memory: Memory, found: Finder, mode: str, question: str, name: str, probability: float | None
) -> Candidate:
    """A memory with the passages nearest to the question, as many as the model has room for."""
    source = source_of(memory.folder, entry_of(memory.folder, name)) if mode == "full" else ""
    texts = found.passages(question, found.ids[name], N_PASSAGES)
    candidate = Candidate(name, probability, texts, source)
    while candidate.passages and mode != "full" and not _fits(memory.model, question, candidate):
        candidate = replace(candidate, passages=candidate.passages[:-1])
    if mode == "open" and not candidate.passages:
        raise DataError(
            f"{name!r} has no passage that could be read before the question; ask it closed-book."
        )
    return candidate


def _fits(model: Model, question: str, candidate: Candidate) -> bool:
    (reading,) = readings_of(question, candidate, "open")
    try:
        return len(model.render(prompt_of(reading))) + MAX_ANSWER_TOKENS <= model.context
    except DataError:
        return False


def _adapter(memory: Memory, found: Finder, name: str) -> Adapter:
    """A memory's adapter, kept loaded: adapters never change."""
    identity = found.ids[name]
    if identity not in memory.loaded:
        while len(memory.loaded) >= N_KEPT:
            memory.loaded.pop(next(iter(memory.loaded)))
        memory.loaded[identity] = memory.adapter(name)
    return memory.loaded[identity]


# -- what is said --------------------------------------------------------------------------------


def _nobody(question: str, mode: str) -> Answer:
    """Declined without asking anybody."""
    return Answer(question, DECLINE, "", True, 0.0, 0.0, mode, "")


def _joined(question: str, told: Sequence[Answer]) -> Answer:
    """The answers to a question's parts as one; as sure as the least sure."""
    if len(told) == 1:
        return told[0]
    known = [each.probability for each in told if each.probability is not None]
    return replace(
        told[0],
        question=question,
        text="; ".join(each.text for each in told),
        memory=", ".join(dict.fromkeys(each.memory for each in told)),
        declined=all(each.declined for each in told),
        confidence=min(each.confidence for each in told),
        least=min(each.least for each in told),
        way=", ".join(dict.fromkeys(each.way for each in told)),
        probability=min(known, default=None),
        passages=tuple(text for each in told for text in each.passages),
        replies=tuple(reply for each in told for reply in each.replies),
    )
