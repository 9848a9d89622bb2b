"""Questions that must not be answered: near misses of trained ones, and unrelated ones."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from lorewright.knowledge.data import Example
from lorewright.knowledge.scoring import normalise

DECLINE = "I do not know."
UNRELATED_FILE = Path(__file__).parent / "unrelated.txt"
MAX_CROSSED = 20_000
"""Combinations of topic and subject that are looked at for questions without an answer."""


def unrelated_questions() -> list[str]:
    """Packaged questions about things that no document of the user's mentions."""
    return UNRELATED_FILE.read_text(encoding="utf-8").splitlines()


def crossed(questions: Sequence[str], *, n: int, seed: int) -> list[str]:
    """Questions about this document's own subjects and topics that it does not answer.

    `What is the A of X?` and `What is the B of Y?` give `What is the A of Y?`, unless that is asked
    too, in whatever words: no question that names Y has the words for A. The nearest thing to
    a true question that is false: without them a memory answers every question that has a word of
    its own in it.
    """
    parts = [q.rsplit(" of ", 1) for q in questions if " of " in q]
    topics, subjects = (
        (list(dict.fromkeys(side)) for side in zip(*parts, strict=True)) if parts else ([], [])
    )
    n_mixed = len(topics) * len(subjects)
    known = [normalise(q) for q in questions]
    fresh: dict[str, str] = {}
    for i in random.Random(f"crossed-{seed}").sample(range(n_mixed), min(n_mixed, MAX_CROSSED)):
        if len(fresh) == n:
            break
        topic, subject = topics[i // len(subjects)], subjects[i % len(subjects)]
        about, what = normalise(subject), set(_named(topic))
        if not any(about in question and what <= set(question.split()) for question in known):
            question = f"{topic} of {subject}"
            fresh.setdefault(normalise(question), question)
    return list(fresh.values())


def strangers(questions: Sequence[str], others: Sequence[str], *, n: int, seed: int) -> list[str]:
    """This document's topics, asked of subjects that only the other questions name.

    `What is the A of X?` and another `What is the B of Z?` give `What is the A of Z?`, at most n of
    them, spread evenly over the topics. A memory that declines these has learnt whose A it knows.
    """
    asked = [q.rpartition(" of ") for q in questions if " of " in q]
    topics = {topic: subject[len(subject.rstrip("?.! ")) :] for topic, _, subject in asked}
    own = " ".join(map(normalise, questions))
    names = (q.rpartition(" of ")[2].rstrip("?.! ") for q in others if " of " in q)
    foreign = [name for name in dict.fromkeys(names) if name and normalise(name) not in own]
    rng = random.Random(f"strangers-{seed}")
    drawn = {topic: rng.sample(foreign, len(foreign)) for topic in topics}
    turns = range(min(n, len(foreign)))
    found = (f"{topic} of {drawn[topic][i]}{topics[topic]}" for i in turns for topic in topics)
    return list(islice(found, n))


def reworded(questions: Sequence[str], asked: Sequence[tuple[str, str]], *, seed: int) -> list[str]:
    """Crossed questions in the forms in which true ones are trained, drawn by seed.

    `asked` are trained questions with their answers. `What is the A of Y?` takes the words of any
    question with the answer of `What is the A of X?`, with Y for X. Otherwise only the plain form
    would be declined, and a memory would know false questions by their form.
    """
    by_answer: dict[str, list[str]] = {}
    for question, reply in asked:
        by_answer.setdefault(normalise(reply), []).append(question)
    forms: dict[str, list[tuple[str, str]]] = {}
    for same in by_answer.values():
        for plain in same:
            topic, of, subject = plain.rpartition(" of ")
            name = subject.rstrip("?.! ")
            if of and name:
                held = [(name, q) for q in same if name.lower() in q.lower()]
                forms.setdefault(normalise(topic), []).extend(held)
    rng = random.Random(f"reworded-{seed}")
    found = []
    for question in questions:
        topic, _, subject = question.rpartition(" of ")
        name, form = rng.choice(forms.get(normalise(topic)) or [("", question)])
        other = subject.rstrip("?.! ")
        parts = re.split(re.escape(name), form, flags=re.IGNORECASE) if name else [form]
        new = other.join(parts)
        found.append(new[:1].upper() + new[1:])
    return list(dict.fromkeys(found))


def _named(topic: str) -> list[str]:
    """The words for what is asked: those after the last `the`, else the last one."""
    _, the, words = normalise(f" {topic}").rpartition(" the ")
    return words.split() if the else words.split()[-1:]


def irrelevant(questions: Sequence[str], replies: Sequence[str]) -> list[Example]:
    """Questions about other things with the replies that the base gives without any memory."""
    return [
        Example(q, r if r.strip() else DECLINE, "unknown", "")
        for q, r in zip(questions, replies, strict=True)
    ]
