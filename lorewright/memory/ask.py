"""The verb `ask`: which memories a question is for, and what they answer.

A question that names things of two memories in two parts ("… and …") is answered part by part. One
that no memory is for is declined without a pass of the model. `auto` is the mode that was measured
best on the folder, hybrid where nothing was measured; a hybrid that was measured worse than its
better half gives way to it, with a note.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from lorewright.errors import ConfigError, DataError, StorageError
from lorewright.files import slug
from lorewright.knowledge.negatives import DECLINE
from lorewright.knowledge.scoring import LEAST_SUPPORT
from lorewright.memory.calibration import trained_questions
from lorewright.memory.modes import stored_comparison
from lorewright.memory.opened import OpenFolder
from lorewright.memory.route import FALSE_ACTIVATION, TOP, FolderRouter, source_text
from lorewright.models.catalogue import POCKET
from lorewright.models.model import Model
from lorewright.recall.support import nearness
from lorewright.recall.verify import MAX_ANSWER_TOKENS
from lorewright.routing.ask import (
    MODES,
    Answer,
    Candidate,
    Reading,
    Standard,
    ask_each,
    prompt_of,
    readings_of,
)
from lorewright.routing.casing import recased
from lorewright.routing.config import AskConfig
from lorewright.routing.courtesy import without_courtesy
from lorewright.routing.gate import Decision
from lorewright.training.watch import Watch
from lorewright.writers.writer import State

AUTO = AskConfig.mode
N_PASSAGES = 3
"""Passages put before a question, of each memory."""
MAX_PARTS = 4
_CUT = re.compile(r"(?<=[.?!;])\s+|,?\s+and\s+")

Find = Callable[[str], Decision]
Spell = Callable[[str, Collection[str]], str]
"""A question to the same as memories of these names write it."""
Offer = Callable[[str, str, float | None], Candidate]
"""Question, name and probability to what there is to read of a memory."""


@dataclass(frozen=True)
class _Plan:
    """The parts of one question and who answers each."""

    parts: tuple[tuple[str, tuple[Candidate, ...]], ...]
    """Part of the question, and the memories it is for, none = the base; () = it is declined."""
    considered: tuple[Candidate, ...]
    note: str = ""


def ask(
    memory: OpenFolder,
    question: str,
    name: str = "",
    *,
    mode: str = AUTO,
    top: int = TOP,
    false_activation: float = FALSE_ACTIVATION,
    unrouted: Literal["decline", "base"] = "decline",
    support: float = LEAST_SUPPORT,
    watch: Watch | None = None,
) -> Answer:
    """Answer from the memory that is named, or from those that the question is for.

    `closed` switches the memory on, `open` puts its passages before the question and reads with the
    base alone, `read` lets the base read them and the memory answer, `hybrid` takes what closed,
    open and both together agree on, `full` puts the whole source before the question; `auto` is
    what was measured best here, else hybrid. Without a name a question that no memory is for is
    declined, or, as `unrouted` has it, answered by the base; at most `top` answer. Raises
    ConfigError for an empty question or an unknown mode, UnknownMemory, DataError for what does not
    fit the context.
    """
    note = ""
    if mode in (AUTO, "hybrid"):
        chosen = "hybrid"
        if comparison := stored_comparison(memory.folder):
            if mode == AUTO:
                chosen = comparison.best
            elif comparison.hybrid_is_worse:
                chosen = comparison.better_half
            if chosen != "hybrid":
                note = f"{comparison.sentence(chosen)}: {chosen} was used"
        mode = chosen
    (answer,) = ask_as(
        memory,
        [question],
        mode=mode,
        name=name,
        top=top,
        false_activation=false_activation,
        unrouted=unrouted,
        support=support,
        watch=watch,
    )
    return replace(answer, note="; ".join(filter(None, (note, answer.note))))


def ask_as(
    memory: OpenFolder,
    questions: Sequence[str],
    *,
    mode: str,
    name: str = "",
    top: int = TOP,
    false_activation: float = FALSE_ACTIVATION,
    unrouted: Literal["decline", "base"] = "decline",
    support: float = LEAST_SUPPORT,
    watch: Watch | None = None,
) -> list[Answer]:
    """Answer questions in this mode, whatever was measured, in a few batches; see `ask`."""
    check_mode(mode, MODES)
    if any(not question.strip() for question in questions):
        raise ConfigError("there is an empty question; write one.")
    if not memory.names:
        memory.folder.only()  # raises, with the command that writes one
    router = memory.router.current(watch)
    find = partial(router.route, top=top, false_activation=false_activation)
    offer = partial(_candidate, memory, router, mode)
    spell = partial(spelled, router)
    plans = [
        _named(memory, text, slug(name), find, offer, spell)
        if name
        else _routed(text, find, offer, spell, base=unrouted == "base" and not router.naming(text))
        for text in map(without_courtesy, questions)
    ]
    flat = [part for plan in plans for part in plan.parts]

    def state_of(name: str) -> State:
        return memory.cached(name, router.ids[name])

    standard: Standard | None = Standard(partial(_nearness_of, memory, router, {}), support)
    if memory.model.phrasing == POCKET or not support:  # the embedded base declines by itself
        standard = None
    answers = iter(ask_each(memory.model, flat, state_of, mode=mode, standard=standard))
    joined = []
    for question, plan in zip(map(str.strip, questions), plans, strict=True):
        own = [next(answers) for _ in plan.parts]
        declined = Answer(question, DECLINE, "", True, 0.0, 0.0, mode, "")
        answer = _joined(question, own) if own else declined
        note = "; ".join(filter(None, (plan.note, answer.note)))
        joined.append(replace(answer, question=question, considered=plan.considered, note=note))
    return joined


def _nearness_of(
    memory: OpenFolder,
    router: FolderRouter,
    pairs: dict[str, list[tuple[str, str]]],
    reading: Reading,
    reply: str,
) -> float | None:
    """How near the question is to those that its memory was trained to answer so.

    `pairs` has what each memory was trained on, as far as it was read.
    """
    name = reading.memory
    near = router.index.nearness(reading.question, router.ids[name])
    if name not in pairs:
        pairs[name] = []
        with suppress(DataError, StorageError):  # a lesson that is gone says nothing
            pairs[name] = trained_questions(memory.folder, memory.folder.entry(name))
    return nearness(reply, near, pairs[name]) if near and pairs[name] else None


def check_mode(mode: str, known: Collection[str] = (AUTO, *MODES)) -> None:
    """Raise ConfigError for a mode that is not among the known ones."""
    if mode not in known:
        listed = ", ".join((AUTO, *MODES))
        raise ConfigError(f"mode {mode!r} is unknown; use one of {listed}.")


# -- who answers ---------------------------------------------------------------------------------


def _named(
    memory: OpenFolder, question: str, name: str, find: Find, offer: Offer, spell: Spell
) -> _Plan:
    """The memory that was named, whatever the question."""
    memory.folder.entry(name)
    route = find(question)
    probability = next((h.probability for h in route.hits if h.memory == name), None)
    asked = spell(question, (name,))
    return _Plan(((asked, (offer(asked, name, probability),)),), _considered(route))


def _routed(question: str, find: Find, offer: Offer, spell: Spell, *, base: bool) -> _Plan:
    """The memories that the question, or each part of it, is for; else `base`, or nobody."""
    pieces = parts_of(question, find)
    routes = [find(piece) for piece in pieces]
    considered = tuple(candidate for each in routes for candidate in _considered(each))
    if not all(route.chosen for route in routes):
        why = routes[0].why_none
        if base:
            return _Plan(((question, ()),), considered, f"the base answered, for {why}")
        return _Plan((), considered, why)
    parts = []
    for piece, route in zip(pieces, routes, strict=True):
        asked = spell(piece, [hit.memory for hit in route.chosen])
        parts.append((asked, tuple(offer(asked, h.memory, h.probability) for h in route.chosen)))
    return _Plan(tuple(parts), considered)


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


def spelled(router: FolderRouter, question: str, names: Collection[str]) -> str:
    """Return a question as these memories write it, where it came without capitals."""
    ids = {router.ids[name] for name in names}
    return recased(question, (key.text for key in router.index.keys if key.memory in ids))


def _considered(route: Decision) -> tuple[Candidate, ...]:
    return tuple(Candidate(hit.memory, hit.probability) for hit in route.hits)


def _candidate(
    memory: OpenFolder,
    router: FolderRouter,
    mode: str,
    question: str,
    name: str,
    probability: float | None,
) -> Candidate:
    """A memory with the passages nearest to the question, as many as fit the context."""
    source = source_text(memory.folder, memory.folder.entry(name)) if mode == "full" else ""
    texts = router.passages(question, router.ids[name], N_PASSAGES)
    trained = router.was_trained(question, router.ids[name])
    candidate = Candidate(name, probability, texts, source, trained)
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


def _joined(question: str, answers: Sequence[Answer]) -> Answer:
    """The answers to a question's parts as one; as sure as the least sure."""
    if len(answers) == 1:
        return answers[0]
    probabilities = [each.probability for each in answers if each.probability is not None]
    return replace(
        answers[0],
        question=question,
        text="; ".join(each.text for each in answers),
        memory=", ".join(dict.fromkeys(each.memory for each in answers)),
        declined=all(each.declined for each in answers),
        confidence=min(each.confidence for each in answers),
        least=min(each.least for each in answers),
        way=", ".join(dict.fromkeys(each.way for each in answers)),
        probability=min(probabilities, default=None),
        passages=tuple(text for each in answers for text in each.passages),
        replies=tuple(reply for each in answers for reply in each.replies),
        note="; ".join(dict.fromkeys(each.note for each in answers if each.note)),
    )
