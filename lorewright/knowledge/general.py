"""General questions with short answers: what nearly everybody knows, and a base may know too.

Two fixed halves that are never mixed: one is rehearsed while something is written, the other shows
afterwards what is retained. What a base answers of them is in `models.general`.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from lorewright.knowledge.scoring import normalise
from lorewright.knowledge.subjects import words_of

GENERAL_FILE = Path(__file__).parent / "general.tsv"
HALVES = ("rehearsed", "held")


@dataclass(frozen=True)
class GeneralQuestion:
    """A question about the world and the answers that count as right."""

    question: str
    answers: tuple[str, ...]


@cache
def general_questions(half: str) -> tuple[GeneralQuestion, ...]:
    """The packaged questions of one of HALVES, in a fixed order that mixes their subjects."""
    lines = GENERAL_FILE.read_text(encoding="utf-8").splitlines()
    parts = [line.split("\t") for line in lines]
    listed = [GeneralQuestion(question, tuple(answers.split("|"))) for question, answers in parts]
    mixed = random.Random("general").sample(listed, len(listed))
    return tuple(mixed[HALVES.index(half) :: len(HALVES)])


def apart_from(questions: Sequence[GeneralQuestion], texts: Sequence[str]) -> list[GeneralQuestion]:
    """The questions that none of the texts may be about: none shares two thirds of their words.

    A text is a question of the knowledge with its answer, or a sentence of it.
    """
    known = [words_of(text) for text in texts]

    def free(general: GeneralQuestion) -> bool:
        content = words_of(general.question)
        return not any(3 * len(content & words) >= 2 * len(content) for words in known)

    return [general for general in questions if free(general)]


def nearest_in_form(questions: Sequence[str], others: Sequence[str], n: int) -> list[int]:
    """Which n of the questions ask most nearly as the others do, the nearest first.

    Questions that are answered in one place and declined in another differ in what they are about,
    not in how they ask; those that ask alike show the difference best. Near is the largest share of
    short runs of words that two questions have in common.
    """
    forms = [_runs(other) for other in others]

    def nearness(question: str) -> float:
        own = _runs(question)
        return max((len(own & form) / len(own | form) for form in forms if own | form), default=0.0)

    order = sorted(range(len(questions)), key=lambda i: -nearness(questions[i]))
    return order[:n]


def _runs(question: str) -> frozenset[tuple[str, ...]]:
    """Its runs of one to three words."""
    words = normalise(question).split()
    return frozenset(
        tuple(words[i : i + size]) for size in (1, 2, 3) for i in range(len(words) + 1 - size)
    )
