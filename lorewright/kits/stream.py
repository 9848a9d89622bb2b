"""What kits are trained on: freshly invented documents with questions, never the same twice.

A step's documents are drawn from seed and step alone, so that an interrupted training goes on with
the same ones. No subject and no value of the packaged test documents occurs (`reserved`), and
questions have forms that are not those held out for tests. Of every document some questions are
about what it does not say; they are to be declined.

Knows the world and the test documents' names; knows nothing of tokens or of methods.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lorewright.files import load_jsonl
from lorewright.kits import world
from lorewright.kits.world import Statement
from lorewright.knowledge.data import Document, Fact, Knowledge
from lorewright.knowledge.scoring import normalise

TEST_DOCUMENTS = Path(__file__).parents[1] / "bench" / "memories.jsonl"
LINES, PAGE = 0.5, 0.2
"""Shares of documents that are lines of question and answer, and pages with headings and remarks;
the others are sentences, one after the other."""
DECLINED = 0.3
"""Share of documents of one fact or two with a question on what they do not say."""


@dataclass(frozen=True)
class Lesson:
    """A document, the questions it answers, and questions that it does not answer."""

    knowledge: Knowledge
    answered: tuple[tuple[str, str], ...]
    """Question and answer, one for each fact."""
    declined: tuple[str, ...]
    """Questions on what is not in it."""


@functools.cache
def reserved() -> frozenset[str]:
    """Answers and subjects of the test documents, normalised; a kit never sees them."""
    answers = {f["answer"] for row in load_jsonl(TEST_DOCUMENTS) for f in row["facts"]}
    return frozenset(map(normalise, answers))


@functools.cache
def test_text() -> str:
    """All test documents, normalised, to look for subjects in."""
    texts = " ".join(normalise(str(row["text"])) for row in load_jsonl(TEST_DOCUMENTS))
    return f" {texts} "


def is_reserved(item: Statement) -> bool:
    """Whether a statement has a value or a subject of the test documents."""
    subject = f" {normalise(item.subject)} "
    return normalise(item.value) in reserved() or subject in test_text()


def statements(rng: random.Random, n: int) -> list[Statement]:
    """n statements of the world without anything reserved, no (subject, relation) twice."""
    while True:
        drawn = [item for item in world.statements(rng, n) if not is_reserved(item)]
        if len(drawn) == n:
            return drawn


def lesson(rng: random.Random, n_facts: int, n_declined: int = 1) -> Lesson:
    """A document of so many facts with its questions."""
    items = statements(rng, n_facts)
    draw = rng.random()
    if draw < LINES:
        lines = [Fact(f"f{i}", world.ask(rng, it), it.value) for i, it in enumerate(items)]
        knowledge = Knowledge((), tuple(lines))
    else:
        text = " ".join(world.say(rng, item) for item in items)
        if draw < LINES + PAGE:
            text = f"# {world.proper(rng)}\n\n{text}"
        knowledge = Knowledge((Document("page", text),), ())
    page = world.Passage("", tuple(items))
    answered = tuple((world.ask(rng, item), item.value) for item in items)
    misses = (world.near_miss(rng, page) for _ in range(n_declined))
    return Lesson(knowledge, answered, tuple(world.ask(rng, miss) for miss in misses))


def lessons(seed: int, step: int, n_documents: int, most_facts: int) -> Sequence[Lesson]:
    """The documents of a step: half of them with the most facts, the others with fewer."""
    rng = random.Random(f"kits/{seed}/{step}")
    counts = [
        most_facts if rng.random() < 0.5 else rng.randint(1, most_facts) for _ in range(n_documents)
    ]
    return [lesson(rng, n, int(rng.random() < max(DECLINED, n / 8))) for n in counts]
