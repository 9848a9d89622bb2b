"""Questions that must not be answered: near misses of trained ones, and unrelated ones.

Without them a memory answers every question that has a word of its own in it. Some are trained to
be declined, others ask afterwards whether it worked. How near misses are made depends on how a base
words its questions, so NEAR_MISSES has a maker for each phrasing of `selfstudy`.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path

from lorewright.knowledge.data import Example, Probe
from lorewright.knowledge.scoring import normalise
from lorewright.knowledge.selfstudy import AskLLM

DECLINE = "I do not know."
UNRELATED_FILE = Path(__file__).parent / "unrelated.txt"
N_LEAST_UNRELATED = 8
"""At least so many unrelated questions are trained, however small the source."""
UNRELATED_SHARE = 0.3
"""At most so many, as a share of the questions trained; other negatives are near misses."""
MAX_CROSSED = 20_000
"""Combinations of topic and subject that are looked at for questions without an answer."""


@dataclass(frozen=True)
class Trained:
    """What near misses must differ from, and how many are wanted."""

    pairs: Sequence[tuple[str, str]]
    """Trained questions with their answers."""
    probes: Sequence[str]
    """Questions of probes, normalised: no near miss may ask the same."""
    others: Sequence[str]
    """Unrelated questions, for subjects that the source does not name."""
    n: int
    """At most so many."""
    n_held: int
    """At most so many are held out for probes, a quarter of them at most."""
    seed: int


@dataclass(frozen=True)
class NearMisses:
    """Questions close to trained ones that the source does not answer."""

    trained: tuple[str, ...] = ()
    held: tuple[str, ...] = ()
    """Not trained: questions of probes."""


@cache
def _unrelated() -> tuple[str, ...]:
    return tuple(UNRELATED_FILE.read_text(encoding="utf-8").splitlines())


def unrelated_questions() -> list[str]:
    """Packaged questions about things that no document of the user's mentions."""
    return list(_unrelated())


def negatives(
    pairs: Sequence[tuple[str, str]],
    probes: Sequence[str],
    *,
    n: int,
    n_held: int,
    seed: int,
    phrasing: str,
    closed_book: AskLLM,
) -> tuple[list[Example], list[Probe]]:
    """At most n questions to decline, and probes of the kinds `unknown` and `neighborhood`.

    None asks what a trained question or a probe asks. Near misses are declined; unrelated questions
    get the base's own reply, which `closed_book` gives.
    """
    probed = [normalise(question) for question in probes]
    known = {*(normalise(question) for question, _ in pairs), *probed}
    others = [q for q in unrelated_questions() if normalise(q) not in known]
    n_trainable = len(others) * 3 // 4  # the rest are probes
    trained = Trained(pairs, probed, others[:n_trainable], n, n_held, seed)
    near = NEAR_MISSES.get(phrasing, NEAR_MISSES["general"])(trained)
    n_others = min(n, round(UNRELATED_SHARE * len(pairs))) - len(near.trained)
    chosen = others[: min(n_trainable, max(N_LEAST_UNRELATED, n_others))]
    examples = [Example(question, DECLINE, "unknown", "") for question in near.trained]
    examples += [
        Example(question, reply if reply.strip() else DECLINE, "unknown", "")
        for question, reply in zip(chosen, closed_book(chosen), strict=True)
    ]
    unknown = [Probe(f"unknown-{i}", q, (), "unknown") for i, q in enumerate(near.held, 1)]
    elsewhere = enumerate(others[n_trainable:], 1)
    return examples, unknown + [Probe(f"other-{i}", q, (), "neighborhood") for i, q in elsewhere]


# --- near misses of questions of the form "<topic> of <subject>" --------------------------------


def topic_of_subject(trained: Trained) -> NearMisses:
    """Trained topics with other subjects of the source, and with subjects that only others name.

    `What is the A of X?` and `What is the B of Y?` give `What is the A of Y?`, in the forms in
    which true questions are trained. Questions without ` of ` give none.
    """
    questions = [question for question, _ in trained.pairs]
    n, seed = trained.n, trained.seed
    mixed = [q for q in crossed(questions, n=n // 2, seed=seed) if not _asks(q, trained.probes)]
    n_held = min(trained.n_held, -(-len(mixed) // 4))
    held = mixed[len(mixed) - n_held :]
    strange = strangers(questions, trained.others, n=n - n // 2, seed=seed)
    reserved = {*map(normalise, [*questions, *held]), *trained.probes}
    false = reworded([*mixed[: len(mixed) - n_held], *strange], trained.pairs, seed=seed)
    fresh = (q for q in false if normalise(q) not in reserved and not _asks(q, trained.probes))
    return NearMisses(tuple(fresh), tuple(held))


def crossed(questions: Sequence[str], *, n: int, seed: int) -> list[str]:
    """Questions about this document's own subjects and topics that it does not answer.

    A topic of one question is combined with the subject of another, unless that is a question too,
    in whatever words: no question that names the subject has the topic's word.
    """
    parts = [q.rsplit(" of ", 1) for q in questions if " of " in q]
    topics = list(dict.fromkeys(topic for topic, _ in parts))
    subjects = list(dict.fromkeys(subject for _, subject in parts))
    n_mixed = len(topics) * len(subjects)
    known = [normalise(q) for q in questions]
    fresh: dict[str, str] = {}
    for i in random.Random(f"crossed-{seed}").sample(range(n_mixed), min(n_mixed, MAX_CROSSED)):
        if len(fresh) == n:
            break
        question = f"{topics[i // len(subjects)]} of {subjects[i % len(subjects)]}"
        if not _asks(question, known):
            fresh.setdefault(normalise(question), question)
    return list(fresh.values())


def _asks(question: str, known: Collection[str]) -> bool:
    """Whether a known question names the subject and the last word of the topic of this one."""
    topic, _, subject = question.rpartition(" of ")
    about, words = normalise(subject), {*normalise(topic).split()[-1:]}
    return any(about in other and words <= set(other.split()) for other in known)


def strangers(questions: Sequence[str], others: Sequence[str], *, n: int, seed: int) -> list[str]:
    """This document's topics of subjects that only the other questions name.

    At most n of them, spread evenly over the topics. A memory that declines these has learnt whose
    topics it knows.
    """
    parts = [q.rpartition(" of ") for q in questions if " of " in q]
    endings = {topic: subject[len(subject.rstrip("?.! ")) :] for topic, _, subject in parts}
    own = " ".join(map(normalise, questions))
    names = dict.fromkeys(q.rpartition(" of ")[2].rstrip("?.! ") for q in others if " of " in q)
    foreign = [name for name in names if name and normalise(name) not in own]
    rng = random.Random(f"strangers-{seed}")
    drawn = {topic: rng.sample(foreign, len(foreign)) for topic in endings}
    rounds = range(min(n, len(foreign)))
    mixed = (f"{topic} of {drawn[topic][i]}{end}" for i in rounds for topic, end in endings.items())
    return list(islice(mixed, n))


def reworded(questions: Sequence[str], pairs: Sequence[tuple[str, str]], *, seed: int) -> list[str]:
    """Crossed questions in the forms in which true ones are trained, drawn by seed.

    `What is the A of Y?` takes the words of any trained question with the answer of `What is the A
    of X?`, with Y for X. Otherwise only the plain form would be declined, and a memory would know
    false questions by their form.
    """
    by_answer: dict[str, list[str]] = {}
    for question, answer in pairs:
        by_answer.setdefault(normalise(answer), []).append(question)
    forms: dict[str, list[tuple[str, str]]] = {}
    for same in by_answer.values():
        for plain in same:
            topic, of, subject = plain.rpartition(" of ")
            name = subject.rstrip("?.! ")
            if of and name:
                naming = [(name, q) for q in same if name.lower() in q.lower()]
                forms.setdefault(normalise(topic), []).extend(naming)
    rng = random.Random(f"reworded-{seed}")
    new_forms: list[str] = []
    for question in questions:
        topic, _, subject = question.rpartition(" of ")
        name, form = rng.choice(forms.get(normalise(topic)) or [("", question)])
        parts = re.split(re.escape(name), form, flags=re.IGNORECASE) if name else [form]
        new = subject.rstrip("?.! ").join(parts)
        new_forms.append(new[:1].upper() + new[1:])
    return list(dict.fromkeys(new_forms))


NEAR_MISSES: dict[str, Callable[[Trained], NearMisses]] = {
    "pocket": topic_of_subject,
    "general": topic_of_subject,
}
