"""What a base knows of the world: its own replies to the packaged general questions.

Replies are computed once for each base and stored in the user's cache, by the digest of its
weights. The embedded base knows nothing of the world; others are believed after some right answers.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from lorewright.errors import DataError
from lorewright.files import cache_folder, digest
from lorewright.knowledge.general import GeneralQuestion, apart_from, general_questions
from lorewright.knowledge.scoring import contains
from lorewright.knowledge.teacher import ReplyCache
from lorewright.models.catalogue import POCKET
from lorewright.models.decoding import Progress
from lorewright.models.model import Model

REPLY_TOKENS = 20
"""Longest reply that is stored, rehearsed or compared, in tokens."""
FEW_WORDS = 4
_SENTENCE_END = re.compile(r"[.!?](?=\s|\Z)")
ASKING_OF_THE_WORLD = "asking the base what it knows of the world"
"""The phase in which it is asked."""
CHUNK = 32
"""Questions put to the base at once; it knows nothing where the first of these are all wrong."""


@dataclass(frozen=True)
class Known:
    """A general question that a base answers right by itself, and how."""

    question: str
    answers: tuple[str, ...]
    reply: str
    """Whole sentences up to the one with the answer: what was cut off must not be learnt."""


def replies_to(
    model: Model, questions: Sequence[str], progress: Progress = lambda done, total: None
) -> list[str]:
    """The base's own greedy replies of at most REPLY_TOKENS, stored for the next time.

    To be called with the base as it is, without an adapter. Raises StorageError when the cache
    cannot be written.
    """
    stored = ReplyCache(cache_folder() / "general" / f"{model.digest[:32]}.jsonl")
    keys = [digest([REPLY_TOKENS, question]) for question in questions]
    missing = {k: q for k, q in zip(keys, questions, strict=True) if k not in stored.replies}
    fresh = model.generate(list(missing.values()), max_new_tokens=REPLY_TOKENS, progress=progress)
    for key, reply in zip(missing, fresh, strict=True):
        stored.add(key, reply, model.name)
    return [stored.replies[key] for key in keys]


def known_to(
    model: Model,
    half: str,
    n: int,
    *,
    texts: Sequence[str] = (),
    progress: Progress = lambda done, total: None,
) -> list[Known]:
    """The first n questions of a half that the base answers right; none that the texts touch.

    Empty for a base that answers none of the first. `progress` counts questions.
    """
    known: list[Known] = []
    if model.phrasing == POCKET or n < 1:
        return known
    fitting = [each for each in general_questions(half) if _fits(model, each.question)]
    first = fitting[:CHUNK]
    candidates = apart_from(fitting, texts)
    total = max(CHUNK, len(candidates))

    def within(done: int) -> Progress:
        """Progress of one chunk as that of all questions, of which so many are done."""
        return lambda part, whole: progress(done + round(CHUNK * part / max(1, whole)), total)

    if not _known(model, first, within(0)):
        return known
    for start in range(0, len(candidates), CHUNK):
        known += _known(model, candidates[start : start + CHUNK], within(start))
        if len(known) >= n:
            break
    return known[:n]


def _fits(model: Model, question: str) -> bool:
    """Whether question and reply have space in the model's context."""
    try:
        return len(model.render(question)) + REPLY_TOKENS <= model.context
    except DataError:
        return False


def _known(model: Model, questions: Sequence[GeneralQuestion], progress: Progress) -> list[Known]:
    """Those that the base answers right in whole sentences."""
    replies = replies_to(model, [each.question for each in questions], progress)
    rows = [
        Known(each.question, each.answers, whole_answer(reply, each.answers))
        for each, reply in zip(questions, replies, strict=True)
    ]
    return [row for row in rows if row.reply]


def whole_answer(reply: str, answers: tuple[str, ...]) -> str:
    """A reply up to the end of the sentence in which it is right; empty where there is none.

    A reply of a few words needs no full stop.
    """
    ends = [found.end() for found in _SENTENCE_END.finditer(reply)]
    if len(reply.split()) <= FEW_WORDS:
        ends.append(len(reply))
    parts = (reply[:end] for end in ends)
    return next((part for part in parts if contains(part, answers)), "")
