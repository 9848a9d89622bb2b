"""A synthetic world: invented subjects, relations, values, and the passages that state them.

What the embedded base learnt to read in (`pocket/world.py` makes conversations of it), and what
kits are trained on. Everything is a function of a `random.Random`; no sentence is taken from
anywhere. It knows nothing of tokens, tensors or training.

Held out from the base for ever, so that a question form can be new to it: `HELD_ASK` (carriers used
with any relation) and the last question of every entry in `RELATIONS`.
"""

# ruff: noqa: SIM905 - lists of syllables are read as text

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lorewright.kits.words import (
    ANIMALS,
    ATTRIBUTES,
    COLOURS,
    DISHES,
    FILLERS,
    FIRST_NAMES,
    INSTRUMENTS,
    KINDS,
    LANGUAGES,
    MATERIALS,
    MODIFIERS,
    MONTHS,
    PLANTS,
    RELATION_ROWS,
    UNITS,
    WEEKDAYS,
    WORDS,
)

DECLINE = "I do not know."
N_SETS = 6
"""How many sets of questions the base can be requested to write for one passage."""

SAY = (
    "The {r} of {s} is {v}.",
    "{s}'s {r} is {v}.",
    "For {s}, the {r} is {v}.",
    "The {r} for {s} is {v}.",
    "As for {s}, the {r} is {v}.",
    "At {s}, the {r} is {v}.",
    "{s} has the {r} {v}.",
    "The {r} of {s}: {v}.",
)
"""Forms of a statement. The value comes last in all: reached from its key by one look back."""
ASK = (
    "What is the {r} of {s}?",
    "Tell me the {r} of {s}.",
    "Which {r} does {s} have?",
    "For {s}, what is the {r}?",
    "What is {s}'s {r}?",
    "Give the {r} for {s}.",
    "Please name the {r} of {s}.",
    "{s}: what is the {r}?",
    "I need the {r} of {s}.",
    "Can you tell me what the {r} of {s} is?",
    "What does the page say about the {r} of {s}?",
    "State the {r} that belongs to {s}.",
    "Look up {s}. What is its {r}?",
    "{r} of {s}?",
    "Name {s}'s {r}.",
    "The {r} of {s} is what?",
    "According to the page, what is the {r} of {s}?",
    "{s} has which {r}?",
    "Let me have the {r} of {s}.",
    "About {s}: which {r}?",
    "Somebody asks for {s}'s {r}. What is it?",
    "Find the {r} for {s}.",
    "Is there a {r} at {s}? Which one?",
    "May I have {s}'s {r}?",
    "Say what the {r} of {s} is.",
    "In the case of {s}, which {r} applies?",
    "Of {s} I only want the {r}.",
    "How does the text give the {r} of {s}?",
    "We must have {s}'s {r}.",
    "{s}, {r}?",
    "Question about {s}. The {r}?",
    "Check the {r} at {s} and tell me.",
    "Quote {s}'s {r}.",
    "When it comes to {s}, what is the {r}?",
)
HELD_ASK = (
    "What {r} is recorded for {s}?",
    "Do you know {s}'s {r}?",
    "I am looking for the {r} of {s}.",
    "Remind me of the {r} at {s}.",
    "Could you look up the {r} for {s}?",
)


@dataclass(frozen=True)
class Relation:
    """What can be stated of a subject: its noun, its value's type, and phrasings of its own."""

    name: str
    value: str
    says: tuple[str, ...] = ()
    asks: tuple[str, ...] = ()
    held_ask: str = ""


@dataclass(frozen=True)
class Statement:
    """One fact of the world: subject, relation, value."""

    subject: str
    relation: Relation
    value: str

    def fill(self, form: str) -> str:
        """The form with subject, relation and value in place, first letter upper case."""
        text = form.format(s=self.subject, r=self.relation.name, v=self.value)
        return text[0].upper() + text[1:]


@dataclass(frozen=True)
class Passage:
    """A text and the statements it makes, in order."""

    text: str
    statements: tuple[Statement, ...]


RELATIONS: tuple[Relation, ...] = tuple(
    Relation(name, value, says, asks[:-1], asks[-1]) for name, value, says, asks in RELATION_ROWS
)

# -- names and values ---------------------------------------------------------------------------

_ONSETS = "b br ch d dr f fl g gr h j k kl l m n p pr qu r s sh sk st t th tr v w y z".split()
_VOWELS = "a e i o u ai ea ee ia o oo ou".split()
_CODAS = "l n r s t m k nd rn ck sh th x rd lt nt".split() + [""] * 8
_ENDINGS = "son ley ton berg man ski er ez ini ard field ham well burn".split() + [""] * 30


def pseudo_word(rng: random.Random) -> str:
    """A pronounceable word of one or two syllables that means nothing, capitalised."""
    n = rng.choices((1, 2), (5, 5))[0]
    body = "".join(rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS) for _ in range(n))
    return (body + rng.choice(_ENDINGS)).capitalize()


def proper(rng: random.Random) -> str:
    """A proper name: an ordinary word or an invented one."""
    return rng.choice(WORDS).capitalize() if rng.random() < 0.45 else pseudo_word(rng)


def person(rng: random.Random) -> str:
    """First and last name."""
    first = rng.choice(FIRST_NAMES) if rng.random() < 0.75 else pseudo_word(rng)
    last = pseudo_word(rng) if rng.random() < 0.8 else rng.choice(WORDS).capitalize()
    return f"{first} {last}"


def digits(rng: random.Random, n: int) -> str:
    """A string of n digits, the first not 0."""
    return str(rng.randint(1, 9)) + "".join(str(rng.randint(0, 9)) for _ in range(n - 1))


def _code(rng: random.Random) -> str:
    letters = "".join(rng.choice("ABCDEFGHJKLMNPQRSTUVWXYZ") for _ in range(rng.randint(1, 3)))
    return rng.choice(
        (
            f"{letters}-{digits(rng, rng.randint(2, 5))}",
            f"{letters}{digits(rng, 3)}",
            digits(rng, rng.randint(3, 6)),
            f"{digits(rng, 2)}-{letters}-{digits(rng, 2)}",
        )
    )


def _phone(rng: random.Random) -> str:
    form = rng.choice(
        ("0ddd dddd", "0dd ddd ddd", "ddd-ddd-dddd", "ext dddd", "dddddddddd", "ddd dddd")
    )
    return "".join(str(rng.randint(0, 9)) if c == "d" else c for c in form)


def domain(rng: random.Random) -> str:
    """An address of the web without a page."""
    return proper(rng).lower() + rng.choice((".org", ".com", ".net", ".example"))


def _quantity(unit_key: str) -> Callable[[random.Random], str]:
    def draw(rng: random.Random) -> str:
        return f"{rng.randint(2, 10 ** rng.randint(1, 4))} {rng.choice(UNITS[unit_key])}"

    return draw


def _pick(words: Sequence[str]) -> Callable[[random.Random], str]:
    return lambda rng: rng.choice(words)


def _street(rng: random.Random) -> str:
    return f"{rng.randint(1, 199)} {proper(rng)} {rng.choice(('Street', 'Road', 'Lane', 'Square'))}"


def _place(rng: random.Random) -> str:
    return rng.choice(("{}", "{}", "{}", "Port {}", "New {}", "{} Bay", "Upper {}")).format(
        pseudo_word(rng)
    )


def _company(rng: random.Random) -> str:
    kind = rng.choice(("Logistics", "Foods", "Works", "Systems", "Partners", "Supplies", "Trading"))
    return f"{proper(rng)} {kind}"


VALUES: dict[str, Callable[[random.Random], str]] = {
    "person": person,
    "place": _place,
    "company": _company,
    "street": _street,
    "code": _code,
    "phone": _phone,
    "digits": lambda rng: digits(rng, 10),
    "count": lambda rng: digits(rng, rng.randint(1, 4)),
    "room": lambda rng: (
        f"{rng.choice('ABCDEFGH')}{rng.randint(1, 9)}.{rng.randint(10, 49)}"
        if rng.random() < 0.5
        else digits(rng, 3)
    ),
    "date": lambda rng: (
        f"{rng.randint(1, 28)} {rng.choice(MONTHS)}"
        + (f" {rng.randint(1950, 2049)}" if rng.random() < 0.5 else "")
    ),
    "time": lambda rng: (
        f"{rng.randint(5, 22)}:{rng.choice(('00', '10', '15', '20', '30', '40', '45', '50'))}"
    ),
    "weekday": _pick(WEEKDAYS),
    "colour": _pick(COLOURS),
    "material": _pick(MATERIALS),
    "animal": _pick(ANIMALS),
    "plant": _pick(PLANTS),
    "dish": _pick(DISHES),
    "instrument": _pick(INSTRUMENTS),
    "language": _pick(LANGUAGES),
    "word": lambda rng: rng.choice(WORDS),
    "name": proper,
    "money": _quantity("money"),
    "measure": _quantity("measure"),
    "mass": _quantity("mass"),
    "duration": _quantity("duration"),
    "percent": lambda rng: f"{rng.randint(1, 99)} percent",
    "email": lambda rng: f"{proper(rng).lower()}@{domain(rng)}",
    "url": lambda rng: f"{domain(rng)}/{rng.choice(WORDS)}",
}


COMMON_VALUES = (
    "person",
    "code",
    "money",
    "count",
    "date",
    "word",
    "phone",
    "company",
    "place",
    "measure",
)


PLAIN_VALUES = (
    "word",
    "colour",
    "count",
    "animal",
    "name",
    "room",
    "person",
    "code",
    "weekday",
    "place",
)


def relation(rng: random.Random) -> Relation:
    """A relation with phrasings of its own, or one made of a modifier and an attribute."""
    if rng.random() < 0.4:
        return rng.choice(RELATIONS)
    attribute, value = rng.choice(ATTRIBUTES)
    if rng.random() < 0.15:
        return Relation(attribute, value)
    modifier = rng.choice(MODIFIERS) if rng.random() < 0.95 else pseudo_word(rng).lower()
    return Relation(f"{modifier} {attribute}", value)


def subject(rng: random.Random, plain: bool = False) -> str:
    """Something facts can be about: an office, a person, a town, a project, a machine.

    Plain: named by one ordinary word, which is one token or two.
    """
    kind = rng.choice(KINDS)
    draw = rng.random()
    if plain:
        word = rng.choice(WORDS).capitalize()
        named = f"the {word} {kind}" if draw < 0.5 else f"Project {word}"
        return named if draw < 0.7 else rng.choice(FIRST_NAMES)
    if draw < 0.5:
        return f"the {proper(rng)} {kind.capitalize() if rng.random() < 0.5 else kind}"
    if draw < 0.6:
        return f"the {rng.choice(MODIFIERS)} {kind}"
    if draw < 0.7:
        return f"Project {proper(rng)}"
    if draw < 0.8:
        return f"{proper(rng)} {kind.capitalize()}"
    if draw < 0.9:
        return person(rng)
    return rng.choice((_place, _company))(rng)


def statements(rng: random.Random, n: int, plain: bool = False) -> list[Statement]:
    """n facts, no (subject, relation) twice; kinds of passage in which no word can be ignored.

    Cells: some of all pairs of few subjects and few relations, so that both words are needed. Grid:
    few relations of many subjects. Profile: one subject whose values are of one type. Mixed: about
    n/3 subjects and relations of all kinds, as pages are; there the type of the value gives most
    answers away, and from such pages alone telling facts apart is not learnt. Plain: cells only.
    """
    kind = rng.random()
    if plain or kind < 0.3:
        return _cells(rng, n, plain)
    if kind < 0.45:
        relations = [relation(rng) for _ in range(rng.choice((1, 1, 2, 3)))]
        drawn = _distinct(rng, n, lambda: subject(rng), lambda: rng.choice(relations))
        rng.shuffle(drawn)
        return drawn
    if kind < 0.6:
        who, value = subject(rng), rng.choice(COMMON_VALUES)
        return _distinct(rng, n, lambda: who, lambda: _relation_of(rng, value))
    subjects = [subject(rng) for _ in range(max(1, round(n / rng.choice((1, 2, 3, 4)))))]
    shared = [relation(rng) for _ in range(max(1, round(n / rng.choice((1, 1.5, 2)))))]
    chosen = _distinct(
        rng,
        n,
        lambda: rng.choice(subjects),
        lambda: rng.choice(shared) if rng.random() < 0.6 else relation(rng),
    )
    if rng.random() < 0.6:
        chosen.sort(key=lambda item: subjects.index(item.subject))
    return chosen


def _cells(rng: random.Random, n: int, plain: bool) -> list[Statement]:
    """n pairs of some subjects with some relations, half the time all of one type of value."""
    types = PLAIN_VALUES if plain else COMMON_VALUES
    while True:
        n_subjects = rng.randint(1, n)
        n_relations = math.ceil(n / n_subjects) + rng.randint(0, 2)
        subjects = {subject(rng, plain) for _ in range(n_subjects)}
        one = rng.choice(types) if rng.random() < 0.5 else ""
        about = [_relation_of(rng, one or rng.choice(types)) for _ in range(n_relations)]
        relations = {item.name: item for item in about}
        pairs = [(who, what) for who in sorted(subjects) for what in relations.values()]
        if len(pairs) >= n:
            chosen = rng.sample(pairs, n)
            return [Statement(who, what, VALUES[what.value](rng)) for who, what in chosen]


def _distinct(
    rng: random.Random, n: int, who: Callable[[], str], what: Callable[[], Relation]
) -> list[Statement]:
    """n statements, no (subject, relation) twice."""
    drawn: dict[tuple[str, str], Statement] = {}
    while len(drawn) < n:
        name, about = who(), what()
        drawn.setdefault((name, about.name), Statement(name, about, VALUES[about.value](rng)))
    return list(drawn.values())


def _relation_of(rng: random.Random, value: str) -> Relation:
    """A relation whose value has the given type."""
    attribute = rng.choice([name for name, kind in ATTRIBUTES if kind == value])
    named = f"{rng.choice(MODIFIERS)} {attribute}" if rng.random() < 0.85 else attribute
    return Relation(named, value)


# -- text ----------------------------------------------------------------------------------------


def say(rng: random.Random, item: Statement) -> str:
    """The statement as a sentence."""
    own = item.relation.says
    return item.fill(rng.choice(own) if own and rng.random() < 0.5 else rng.choice(SAY))


def ask(rng: random.Random, item: Statement) -> str:
    """A question for the statement, in a form the base may train on."""
    own = item.relation.asks
    return item.fill(rng.choice(own) if own and rng.random() < 0.5 else rng.choice(ASK))


def held_ask(rng: random.Random, item: Statement) -> str:
    """A question for the statement in a form the base never trains on."""
    held = item.relation.held_ask
    return item.fill(held if held and rng.random() < 0.5 else rng.choice(HELD_ASK))


def set_ask(item: Statement, number: int) -> str:
    """The question of set `number` (1…N_SETS): four plain forms, then the relation's own if any."""
    own = item.relation.asks
    if number > 4 and len(own) > number - 5:
        return item.fill(own[number - 5])
    return item.fill(ASK[number - 1])


def _join(first: str, second: str) -> str:
    lowered = second[0].lower() + second[1:]
    follows = lowered if second.startswith(("The ", "For ", "As ", "At ")) else second
    return f"{first[:-1]}, and {follows}"


def passage(rng: random.Random, n: int, plain: bool = False) -> Passage:
    """A text of n facts with headings, bullets, joined sentences and idle remarks here and there.

    Plain: one sentence after the other in four forms.
    """
    facts = statements(rng, n, plain)
    if plain:
        return Passage(" ".join(item.fill(rng.choice(SAY[:4])) for item in facts), tuple(facts))
    style = rng.choices(("prose", "lines", "bullets", "paragraphs", "sections"), (6, 2, 1, 2, 2))[0]
    if style == "sections":
        return Passage(_sections(rng, facts), tuple(facts))
    sentences: list[str] = []
    for item in facts:
        sentence = say(rng, item)
        if sentences and rng.random() < 0.08 and len(sentences[-1]) < 90:
            sentences[-1] = _join(sentences[-1], sentence)
        else:
            sentences.append(sentence)
        if rng.random() < 0.06:
            sentences.append(rng.choice(FILLERS))
    if style == "bullets":
        sentences = [f"- {sentence}" for sentence in sentences]
    glue = {"prose": " ", "lines": "\n", "bullets": "\n", "paragraphs": "\n\n"}[style]
    text = glue.join(sentences)
    if rng.random() < 0.25:
        text = f"# {proper(rng)} {rng.choice(KINDS)}\n\n{text}"
    return Passage(text, tuple(facts))


def _sections(rng: random.Random, facts: list[Statement]) -> str:
    """The facts under a heading for each subject; sorts them by subject."""
    order = list(dict.fromkeys(item.subject for item in facts))
    facts.sort(key=lambda item: order.index(item.subject))
    parts = [f"# {proper(rng)} {rng.choice(KINDS)}"] if rng.random() < 0.5 else []
    mark = rng.choice(("#", "##", "##"))
    for who in order:
        parts.append(f"{mark} {who[0].upper()}{who[1:]}")
        parts.append(" ".join(say(rng, item) for item in facts if item.subject == who))
    return "\n\n".join(parts)


def absent(rng: random.Random, page: Passage) -> Statement:
    """A statement the passage does not make, often of a subject and a relation that it names."""
    known = {(item.subject, item.relation.name) for item in page.statements}
    crossed = [
        Statement(a.subject, b.relation, DECLINE)
        for a in page.statements
        for b in page.statements
        if (a.subject, b.relation.name) not in known
    ]
    if crossed and rng.random() < 0.5:
        return rng.choice(crossed)
    while True:
        who = rng.choice(page.statements).subject if rng.random() < 0.5 else subject(rng)
        what = rng.choice(page.statements).relation if rng.random() < 0.5 else relation(rng)
        if (who, what.name) not in known:
            return Statement(who, what, DECLINE)


def near_miss(rng: random.Random, page: Passage) -> Statement:
    """An absent statement one word off: another modifier, or somebody else's relation."""
    known = {(item.subject, item.relation.name) for item in page.statements}
    if rng.random() < 0.35:
        item = rng.choice(page.statements)
        attribute = item.relation.name.split()[-1]
        what = Relation(f"{rng.choice(MODIFIERS)} {attribute}", item.relation.value)
        if (item.subject, what.name) not in known:
            return Statement(item.subject, what, DECLINE)
    return absent(rng, page)
