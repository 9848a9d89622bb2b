"""Sources of a chosen number of facts, as prose for who reads text and as a lesson for who trains.

A file is one of two shapes:

    packaged   JSON lines of documents with facts, each with answer, question and the forms `known`
               and `new`; consecutive facts are a source, their sentences its prose
    sections   a JSON list of sections as `lore bench sections` reads it; a section is a source, the
               questions are on its first facts, its whole text is the prose

Of every fact two forms are trained and one is left for the questions: the packaged `new` ones are
also new to the embedded base, of a section's wordings it is the last.

Knows texts and questions; nothing of models.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lorewright.bench.memories import DOCUMENTS
from lorewright.bench.sections import sections_of
from lorewright.errors import DataError
from lorewright.files import load_jsonl
from lorewright.knowledge.data import Document, Fact, Knowledge

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+")


@dataclass(frozen=True)
class Asked:
    """A fact with the forms of its question that are trained, and the one that is not."""

    forms: tuple[str, ...]
    held: str
    answer: str


@dataclass(frozen=True)
class Source:
    """Some facts and a text that states them."""

    facts: tuple[Asked, ...]
    text: str
    unanswerable: tuple[str, ...] = ()
    """Questions that its text does not answer, where the file has some."""

    @property
    def answers(self) -> tuple[str, ...]:
        """Of its facts, in order."""
        return tuple(fact.answer for fact in self.facts)

    @property
    def prose(self) -> Knowledge:
        """What readers of text get."""
        return Knowledge((Document("source", self.text),))

    @property
    def taught(self) -> Knowledge:
        """What lessons are made from: each fact in the forms that are trained."""
        return Knowledge(
            facts=tuple(
                Fact(f"fact-{n}-{form}", question, fact.answer)
                for n, fact in enumerate(self.facts, 1)
                for form, question in enumerate(fact.forms, 1)
            )
        )

    def with_answers(self, answers: Sequence[str]) -> Source:
        """The same source with other values, in its text as well."""
        other = dict(zip(self.answers, answers, strict=True))
        longest_first = sorted(map(re.escape, other), key=len, reverse=True)
        text = re.sub("|".join(longest_first), lambda value: other[value[0]], self.text)
        pairs = zip(self.facts, answers, strict=True)
        facts = tuple(replace(fact, answer=answer) for fact, answer in pairs)
        return replace(self, facts=facts, text=text)


@functools.lru_cache(maxsize=4)
def facts_in(data: str, skip: int = 0) -> tuple[tuple[Asked, str], ...]:
    """Facts of a file in the packaged shape with the one sentence that states each.

    The first `skip` are left out, and those whose value stands in no sentence of its own. Raises
    DataError for rows of another shape.
    """
    path = Path(data) if data else DOCUMENTS
    stated = []
    try:
        for row in load_jsonl(path):
            sentences = _SENTENCE_END.split(row["text"])
            for fact in row["facts"]:
                own = [each for each in sentences if fact["answer"] in each]
                if len(own) == 1:
                    forms = (fact["question"], fact["known"])
                    stated.append((Asked(forms, fact["new"], fact["answer"]), own[0]))
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} holds a row without {error}; each needs text and facts with answer, question, "
            "known and new."
        ) from error
    return tuple(stated[skip:])


@functools.lru_cache(maxsize=32)
def sources(data: str, n_facts: int, skip: int = 0) -> tuple[Source, ...]:
    """Every source of so many facts that a file has, no fact in two of them.

    Raises DataError for rows of another shape.
    """
    if data.endswith(".json"):
        return tuple(
            Source(
                tuple(Asked(forms[:2], forms[-1], a) for a, forms in section.facts[:n_facts]),
                section.document.text,
                section.unanswerable,
            )
            for section in sections_of(data)[skip:]
            if len(section.facts) >= n_facts and all(len(forms) > 2 for _, forms in section.facts)
        )
    every = facts_in(data, skip)
    return tuple(
        Source(tuple(fact for fact, _ in chosen), " ".join(sentence for _, sentence in chosen))
        for at in range(0, len(every) - n_facts + 1, n_facts)
        if (chosen := every[at : at + n_facts])
    )


def shuffled(own: Sequence[Source], number: int) -> Source:
    """A source whose values are moved on by one fact; the last has the next source's first.

    So every question has a value of the same world that is not its own, unless two are equal.
    """
    source, after = own[number], own[(number + 1) % len(own)]
    return source.with_answers([*source.answers[1:], after.answers[0]])
