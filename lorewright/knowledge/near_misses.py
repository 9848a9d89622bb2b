"""Near misses: questions close to trained ones that the source does not answer.

How they are made depends on how a base words its questions, so NEAR_MISSES has a recipe for each
phrasing of `selfstudy`. The embedded base asks for "the <topic> of <subject>": topics and subjects
are crossed. Other bases ask as people do: things are exchanged within trained questions (Rajpurkar
et al. 2018, SQuAD 2.0, after Jia and Liang 2017), and the source's own subjects are asked for
packaged attributes that it does not state.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path

from lorewright.knowledge.data import Document
from lorewright.knowledge.scoring import normalise
from lorewright.knowledge.splitting import sentences
from lorewright.knowledge.subjects import subjects, things, words_of

ATTRIBUTES_FILE = Path(__file__).parent / "attributes.txt"
MAX_CROSSED = 20_000
"""Combinations of topic and subject, or of things, that are looked at for open questions."""
EXCHANGED_SHARE = 0.15
"""At most so many of the near misses come from exchanging things; the others ask for attributes."""
HELD_TEMPLATES = 4
"""Every fourth attribute is never trained: it serves for probes."""
MAX_SUBJECTS = 60
"""At most so many subjects are asked for attributes, the most frequent."""


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
    texts: Sequence[str] = ()
    """Of documents: what these state cannot be declined."""
    titles: Sequence[str] = ()
    """Names of what the documents are about."""


@dataclass(frozen=True)
class NearMisses:
    """Questions close to trained ones that the source does not answer."""

    trained: tuple[str, ...] = ()
    held: tuple[str, ...] = ()
    """Not trained: questions of probes."""


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


# --- near misses of questions as people ask them ------------------------------------------------


@dataclass(frozen=True)
class Attribute:
    """Something that could be asked about nearly anything."""

    template: str
    """A question with `{subject}` in it."""
    words: frozenset[str]
    """A question on the same subject with any of these may ask for it already."""

    @property
    def content(self) -> set[str]:
        """Its own content words, for comparison."""
        return words_of(self.template.replace("{subject}", " "))


@cache
def attributes() -> tuple[Attribute, ...]:
    """The packaged attributes, in an order that mixes their kinds."""
    lines = ATTRIBUTES_FILE.read_text(encoding="utf-8").splitlines()
    parts = [line.split(" | ") for line in lines]
    listed = [Attribute(template, frozenset(words.split())) for words, template in parts]
    return tuple(random.Random("attributes").sample(listed, len(listed)))


def exchanged_and_unstated(trained: Trained) -> NearMisses:
    """Trained questions with another thing of the same kind, and attributes that nothing states.

    The probes held out ask for attributes that are never trained.
    """
    known = _Known(trained)
    n_held = min(trained.n_held, trained.n // 6)
    held = known.fresh(unstated(trained, known, held_out=True), n_held)
    n = trained.n - len(held)
    swapped = known.fresh(exchanged(trained, known), round(EXCHANGED_SHARE * n))
    asked = known.fresh(unstated(trained, known, held_out=False), n - len(swapped))
    return NearMisses((*asked, *swapped), tuple(held))


class _Known:
    """What trained questions, probes and documents state, in words, and what was made of them."""

    def __init__(self, trained: Trained) -> None:
        questions = [f"{question} {answer}" for question, answer in trained.pairs]
        asked = [*questions, *trained.probes]
        self.asked = [(words_of(text), _plain_words(text)) for text in asked]
        self.stated = [words_of(s) for text in trained.texts for s in sentences(text)]
        self.taken = {*(normalise(question) for question, _ in trained.pairs), *trained.probes}

    def fresh(self, candidates: Iterator[str], n: int) -> list[str]:
        """The first n candidates that nobody has, which are then taken."""
        new: list[str] = []
        while len(new) < n and (candidate := next(candidates, "")):
            if (plain := normalise(candidate)) not in self.taken:
                self.taken.add(plain)
                new.append(candidate)
        return new

    def asks(self, about: set[str], content: set[str]) -> bool:
        """Whether a known question names all of `about` and shares half of the other words."""
        return any(
            about <= words and 2 * len(content & words) >= len(content) for words, _ in self.asked
        )

    def answers(self, about: set[str], attribute: Attribute) -> bool:
        """Whether a question may ask for the attribute, or a sentence state it, of the subject."""
        may_ask = any(
            about <= words and not attribute.words.isdisjoint(plain) for words, plain in self.asked
        )
        content = attribute.content
        return (
            may_ask
            or self.asks(about, content)
            or any(about & words and content <= words for words in self.stated)
        )


def titles_of(document: Document) -> list[str]:
    """What a document calls itself and its parts, where that is more than one word."""
    headings = re.findall(r"^#{1,6} +(.+?) *#*$", document.text, re.MULTILINE)
    return [t for t in dict.fromkeys([document.title, *headings]) if len(t.split()) > 1]


def _plain_words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))


def unstated(trained: Trained, known: _Known, *, held_out: bool) -> Iterator[str]:
    """The source's subjects in turn, each asked for the next of the packaged attributes.

    Left out is what a trained question or a probe may ask, or a sentence state.
    """
    about = subjects([question for question, _ in trained.pairs], trained.titles)[:MAX_SUBJECTS]
    every = range(len(attributes()))
    own = [i for i in every if (i % HELD_TEMPLATES == HELD_TEMPLATES - 1) is held_out]
    order = random.Random(f"unstated-{trained.seed}").sample(own, len(own))
    cycle = math.lcm(len(order), len(about))
    for i in range(len(order) * len(about)):
        subject = about[i % len(about)]
        attribute = attributes()[order[(i + i // cycle) % len(order)]]
        if not known.answers(words_of(subject), attribute):
            question = attribute.template.format(subject=subject)
            yield question[:1].upper() + question[1:]


def exchanged(trained: Trained, known: _Known) -> Iterator[str]:
    """Trained questions in which one thing is another of the same kind from another question.

    Left out is what may ask the same as a known question does of the new thing.
    """
    questions = list(dict.fromkeys(question for question, _ in trained.pairs))
    places = [(question, thing) for question in questions for thing in things(question)]
    by_kind: dict[str, list[str]] = {}
    for _, thing in places:
        if thing.text not in (texts := by_kind.setdefault(thing.kind, [])):
            texts.append(thing.text)
    rng = random.Random(f"exchanged-{trained.seed}")
    rng.shuffle(places)
    for _ in range(min(MAX_CROSSED // max(1, len(places)), 4)):
        for question, thing in places:
            other = rng.choice(by_kind[thing.kind])
            before, after = question[: thing.start], question[thing.end :]
            rest = words_of(f"{before} {after}")
            if normalise(other) not in normalise(question) and not known.asks(
                words_of(other), rest
            ):
                yield f"{_with_article(before, other)}{other}{after}"


def _with_article(before: str, name: str) -> str:
    """The text before a name, its indefinite article fitted to it."""
    vowel = name[:1].lower() in "aeiou" or bool(re.match(r"[FHLMNRSX][A-Z]", name))
    return re.sub(r"\b([Aa])n? \Z", r"\1n " if vowel else r"\1 ", before)


# --- recipes ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recipe:
    """How near misses are made for a way of wording questions, and how many are usual."""

    make: Callable[[Trained], NearMisses]
    share: float
    """Usual number, as a share of the questions trained."""


NEAR_MISSES: dict[str, Recipe] = {
    "pocket": Recipe(topic_of_subject, 2.0),
    "general": Recipe(exchanged_and_unstated, 0.6),
}


def recipe_for(phrasing: str) -> Recipe:
    """The recipe for a phrasing, or the general one."""
    return NEAR_MISSES.get(phrasing, NEAR_MISSES["general"])
