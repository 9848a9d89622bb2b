"""Where memories of a folder disagree: the same question, asked alike or nearly so, two answers.

    same       the questions are equal once normalised
    near       min(share of a's terms in b, share of b's terms in a) ≥ NEAR, weighted by idf
    reversed   one's answer stands in the other's question, whose other terms are the one's too,
               and the other's answer is not the one's subject

What is compared is what memories were written from: facts as given, and the questions of their
lessons. Within one memory readers and views refuse two answers already. The first kind is certain;
the others are candidates for a person to judge, best first, as two things may share an answer.

This module loads no model.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from lorewright.errors import ConfigError, DataError, StorageError
from lorewright.knowledge.data import PROBE_KINDS, Fact
from lorewright.knowledge.lesson import Lesson
from lorewright.knowledge.scoring import contains, is_declined, normalise
from lorewright.memory.folder import Folder
from lorewright.routing.index import Index, Key
from lorewright.routing.lexicon import tokens

NEAR = 0.85
"""Least share of the rarer terms that nearly equal questions have in common, both ways."""
N_NEAREST = 8
"""Questions of others that each one is compared with."""
MAX_NEAR = 50_000
"""Most questions that are compared with near ones; equal ones are always listed."""
OPEN = ("neighborhood", "unknown")
_ENDINGS = re.compile(r"(?<=\w{3})(?:ings?|ers?|ors?|ed|es|s|e)\Z")
_ASKING = """
    a about according am an and any anyone are as ask asked asking at be been being belong belongs
    by can could did do does for from get give given had happen has have having how i in is it its
    itself know known list listed look looking may me mention mentioned my need of on one or
    please provide recorded remind said say says see should show shown so stand stands state
    stated states tell than that the their them there these they this those to up use used want
    was we were what whats when where which who whom whose why will with would you your
"""
_GENERAL = frozenset(_ASKING.split())


@dataclass(frozen=True)
class Statement:
    """A question and what one memory was given as its answer."""

    memory: str
    question: str
    answers: tuple[str, ...]
    origin: str
    """`fact` as given, or `lesson`: made of the source."""


@dataclass(frozen=True)
class Contradiction:
    """Two statements of different memories that cannot both be right, or hardly."""

    kind: str
    """`same`, `near` or `reversed`."""
    first: Statement
    second: Statement
    score: float
    """1 for equal questions, else the smaller share of terms."""

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def statements(folder: Folder) -> list[Statement]:
    """What every memory of a folder was written from, as questions and answers.

    One whose source or lesson is gone or damaged states as much as is left of them.
    """
    unique: dict[tuple[str, str], Statement] = {}
    for name, entry in sorted(folder.entries().items()):
        facts: Sequence[Fact] = ()
        lesson = Lesson((), (), "", "", ())
        with suppress(DataError, StorageError):
            facts = folder.knowledge(entry).facts
        with suppress(DataError, StorageError):
            lesson = folder.lesson(entry)
        for each in (*_of_facts(name, facts), *_of_lesson(name, lesson)):
            unique.setdefault((name, normalise(each.question)), each)
    return list(unique.values())


def _of_facts(name: str, facts: Iterable[Fact]) -> Iterator[Statement]:
    for fact in facts:
        for question in (fact.question, *fact.paraphrases):
            yield Statement(name, question, fact.answers, "fact")


def _of_lesson(name: str, lesson: Lesson) -> Iterator[Statement]:
    for example in lesson.examples:
        if example.kind == "qa" and not is_declined(example.completion):
            yield Statement(name, example.prompt, (example.completion,), "lesson")
    kinds = {*PROBE_KINDS} - {*OPEN, "reverse", "verbatim"}
    for probe in lesson.probes:
        if probe.kind in kinds and not probe.context:
            yield Statement(name, probe.question, probe.answers, "lesson")


def contradictions(
    stated: Sequence[Statement], *, near: float = NEAR, only: str = ""
) -> list[Contradiction]:
    """Pairs of statements of different memories that disagree: equal ones first, then by score.

    `only` leaves those in which this memory has a part. Raises ConfigError for a share outside
    (0, 1], or more than MAX_NEAR statements with near < 1.
    """
    if not 0 < near <= 1:
        raise ConfigError(f"near is {near}; give a share of terms above 0, at most 1.")
    pairs = {_pair(a, b): Contradiction("same", a, b, 1.0) for a, b in _same(stated)}
    if near < 1:
        if len(stated) > MAX_NEAR:
            raise ConfigError(
                f"{len(stated)} questions are too many to compare with near ones (at most "
                f"{MAX_NEAR}); compare equal ones only (--near 1)."
            )
        for each in _near(stated, near):
            pairs.setdefault(_pair(each.first, each.second), each)
    chosen = [c for c in pairs.values() if only in ("", c.first.memory, c.second.memory)]
    order = ("same", "near", "reversed")
    return sorted(chosen, key=lambda c: (order.index(c.kind), -c.score, c.first.question))


def contradictions_in(folder: Folder, *, near: float = NEAR, only: str = "") -> list[Contradiction]:
    """The contradictions between the memories of a folder. Raises UnknownMemory for `only`."""
    if only:
        folder.entry(only)
    return contradictions(statements(folder), near=near, only=only)


def _pair(a: Statement, b: Statement) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(((a.memory, a.question), (b.memory, b.question))))


def _agree(a: Statement, b: Statement) -> bool:
    """Whether an answer of one stands in an answer of the other."""
    return any(contains(text, b.answers) for text in a.answers) or any(
        contains(text, a.answers) for text in b.answers
    )


def _same(stated: Sequence[Statement]) -> Iterator[tuple[Statement, Statement]]:
    by_question: dict[str, list[Statement]] = {}
    for each in stated:
        by_question.setdefault(normalise(each.question), []).append(each)
    for group in by_question.values():
        for n, a in enumerate(group):
            for b in group[n + 1 :]:
                if a.memory != b.memory and not _agree(a, b):
                    yield a, b


def terms(text: str) -> tuple[str, ...]:
    """The terms that a question is compared by: without general words, endings cut off.

    A question of general words only keeps them.
    """
    every = tokens(text)
    special = [term for term in every if term not in _GENERAL] or list(every)
    return tuple(t if any(c.isdigit() for c in t) else _ENDINGS.sub("", t) for t in special)


def _near(stated: Sequence[Statement], near: float) -> Iterator[Contradiction]:
    """Nearly equal questions, and reversed ones, each among the nearest of all."""
    by_key: dict[tuple[str, str], list[Statement]] = {}
    for each in stated:
        by_key.setdefault((each.memory, each.question), []).append(each)
    if not by_key:
        return
    index = Index.build([Key(m, q, "question") for m, q in by_key], tokenise=terms)
    shares: dict[tuple[tuple[str, str], tuple[str, str]], float] = {}
    for a in by_key:
        for hit in index.retrieve(a[1], k=N_NEAREST + 1):
            shares[a, (hit.memory, hit.key)] = hit.matched
    for (a, b), share in shares.items():
        both = min(share, shares.get((b, a), 0.0))
        if a < b and a[0] != b[0] and both >= near:
            one, other = by_key[a][0], by_key[b][0]
            if not _agree(one, other):
                yield Contradiction("near", one, other, both)
    for each in stated:
        yield from _reversed(each, index, by_key, near)


def _reversed(
    each: Statement,
    index: Index,
    by_key: dict[tuple[str, str], list[Statement]],
    near: float,
) -> Iterator[Contradiction]:
    """Questions that name the answer of this one and ask for something else than its subject."""
    subject = set(terms(each.question))
    for answer in each.answers:
        value = set(terms(answer))
        for hit in index.retrieve(f"{answer} {each.question}", k=N_NEAREST):
            theirs = set(terms(hit.key))
            rest = theirs - value
            if hit.memory == each.memory or not value <= theirs or not rest:
                continue
            share = len(rest & subject) / len(rest)
            other = by_key[hit.memory, hit.key][0]
            about = any(set(terms(answer)) <= subject for answer in other.answers)
            if share >= near and not about and not value <= subject:
                yield Contradiction("reversed", each, other, share)
