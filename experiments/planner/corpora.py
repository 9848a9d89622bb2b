"""The bodies of knowledge that plans are tested on; none of them is in the calibration.

`DEVELOPMENT` is what the forecast and the plan's rule were settled on. `FRESH` is the test: written
once, afterwards. The two share no fact and no seed, and most kinds of question and answer of the one
are not in the other. Each body comes with a budget of epochs and with the recall that is wanted, so
that plans are tested where writes fail as well as where they succeed. The fresh budgets were set before
any of these bodies had been written, by the forecast of the base before this one: most of them 1.05 to
1.5 times what half of the answers take, where a forecast is hardest, and some the default of 60.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lorewright.knowledge.data import Document, Fact, Knowledge
from lorewright.knowledge.readers.read import read_knowledge

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "pocket"))
import world  # noqa: E402  the generator of the base's world lies beside its recipe

FIRST = [
    "Ada",
    "Bram",
    "Cato",
    "Dora",
    "Edda",
    "Finn",
    "Gerd",
    "Hugo",
    "Iris",
    "Jorun",
    "Kara",
    "Lars",
    "Mina",
    "Nils",
    "Olga",
    "Pia",
    "Rolf",
    "Selma",
]
LAST = [
    "Abel",
    "Berg",
    "Crane",
    "Dahl",
    "Eklund",
    "Frey",
    "Grove",
    "Hartley",
    "Iversen",
    "Joss",
    "Kemp",
    "Lund",
    "Moss",
    "Nord",
    "Oakden",
    "Quist",
]


@dataclass(frozen=True)
class Corpus:
    """One test of the planner."""

    name: str
    make: Callable[[random.Random], Knowledge]
    epochs: int
    """The budget."""
    wanted: float

    seed: str = "planner"

    def knowledge(self) -> Knowledge:
        """What is to be written, the same every time."""
        return self.make(random.Random(f"{self.seed}-{self.name}"))


def facts(
    n: int, ask: Callable[[random.Random], str], answer: Callable[[random.Random], str]
) -> Callable[[random.Random], Knowledge]:
    """n facts whose questions differ."""

    def make(rng: random.Random) -> Knowledge:
        answers: dict[str, str] = {}
        while len(answers) < n:
            answers.setdefault(ask(rng), answer(rng))
        return Knowledge(
            facts=tuple(Fact(f"f{i}", q, a) for i, (q, a) in enumerate(answers.items()))
        )

    return make


def entry(rng: random.Random) -> str:
    """A line of a phone book, as in the PhoneBook benchmark."""
    return f"{rng.choice(FIRST)} {rng.choice(LAST)}:"


def key(rng: random.Random) -> str:
    """A question for a key."""
    return f"Which key opens the {world.proper(rng)} {rng.choice(('vault', 'gate', 'archive', 'cellar'))}?"


def asks(*forms: str, of: Callable[[random.Random], str]) -> Callable[[random.Random], str]:
    """Questions of some forms for subjects of one sort."""
    return lambda rng: rng.choice(forms).format(of(rng))


def twice(n: int, answer: Callable[[random.Random], str]) -> Callable[[random.Random], Knowledge]:
    """n facts in two question forms each."""

    def make(rng: random.Random) -> Knowledge:
        answers: dict[str, str] = {}
        while len(answers) < n:
            answers.setdefault(world.proper(rng), answer(rng))
        return Knowledge(
            facts=tuple(
                Fact(f"f{i}", form.format(name), reply)
                for i, (name, reply) in enumerate(answers.items())
                for form in ("Where does {} live?", "The home of {}:")
            )
        )

    return make


def string(alphabet: str, n: int) -> Callable[[random.Random], str]:
    """Random strings of one length."""
    return lambda rng: "".join(rng.choice(alphabet) for _ in range(n))


def sentence(rng: random.Random) -> str:
    """Seven ordinary words."""
    return " ".join(rng.choice(world.WORDS) for _ in range(7)).capitalize() + "."


def statements(n: int) -> Callable[[random.Random], Knowledge]:
    """n statements of the world, one question each."""

    def make(rng: random.Random) -> Knowledge:
        answers: dict[str, str] = {}
        for item in world.statements(rng, 2 * n):
            answers.setdefault(world.ask(rng, item), item.value)
        return Knowledge(
            facts=tuple(Fact(f"f{i}", q, a) for i, (q, a) in enumerate(list(answers.items())[:n]))
        )

    return make


def page(n: int) -> Callable[[random.Random], Knowledge]:
    """A document of the world that makes n statements; the base writes the questions."""
    return lambda rng: Knowledge((Document("page", world.passage(rng, n).text),))


def handbook(first: int, last: int) -> Callable[[random.Random], Knowledge]:
    """Some sections of the handbook of the examples."""

    def make(rng: random.Random) -> Knowledge:
        sections = (ROOT / "examples" / "handbook.md").read_text(encoding="utf-8").split("\n## ")
        return Knowledge((Document("handbook", "## " + "\n\n## ".join(sections[first:last])),))

    return make


def handbook_of(*numbers: int) -> Callable[[random.Random], Knowledge]:
    """Some sections of the handbook that do not follow each other, as one document each."""
    return lambda rng: Knowledge(
        tuple(doc for n in numbers for doc in handbook(n, n + 1)(rng).documents)
    )


def mixed(n: int) -> Callable[[random.Random], Knowledge]:
    """Phone numbers, hexadecimal keys and values of the world, in equal parts."""

    def make(rng: random.Random) -> Knowledge:
        parts = (
            facts(n, entry, string("0123456789", 10)),
            facts(n, key, string("0123456789abcdef", 12)),
            statements(n),
        )
        facts_ = [fact for part in parts for fact in part(rng).facts]
        return Knowledge(
            facts=tuple(Fact(f"f{i}", fact.question, fact.answer) for i, fact in enumerate(facts_))
        )

    return make


DIGITS, HEX = "0123456789", "0123456789abcdef"
DEVELOPMENT = (
    Corpus(
        "phone book, 12 of the examples",
        lambda rng: read_knowledge(ROOT / "examples" / "phones.jsonl"),
        60,
        0.95,
    ),
    Corpus("phone book, 15 entries", facts(15, entry, string(DIGITS, 10)), 23, 0.95),
    Corpus("phone book, 20 entries", facts(20, entry, string(DIGITS, 10)), 30, 0.5),
    Corpus("phone book, 28 entries", facts(28, entry, string(DIGITS, 10)), 40, 0.9),
    Corpus("hex keys of 8, 14 of them", facts(14, key, string(HEX, 8)), 25, 0.8),
    Corpus("hex keys of 12, 10 of them", facts(10, key, string(HEX, 12)), 35, 0.95),
    Corpus("hex keys of 20, 6 of them", facts(6, key, string(HEX, 20)), 37, 0.8),
    Corpus("codes of 6 letters, 18", facts(18, key, string("ABCDEFGHKLMNPRSTUVWXYZ", 6)), 23, 0.7),
    Corpus("statements of the world, 10", statements(10), 22, 0.95),
    Corpus("statements of the world, 12", statements(12), 18, 0.5),
    Corpus("statements of the world, 16", statements(16), 21, 0.8),
    Corpus("statements of the world, 20", statements(20), 26, 0.95),
    Corpus(
        "dates, 18",
        facts(
            18,
            key,
            lambda rng: (
                f"{rng.randint(1, 28)} {rng.choice(world.MONTHS)} {rng.randint(1950, 2049)}"
            ),
        ),
        17,
        0.8,
    ),
    Corpus("mail addresses, 12", facts(12, entry, world.VALUES["email"]), 30, 0.8),
    Corpus("web addresses, 12", facts(12, key, world.VALUES["url"]), 24, 0.9),
    Corpus("sentences of 7 words, 8", facts(8, key, sentence), 30, 0.7),
    Corpus("persons, 18", facts(18, key, world.person), 21, 0.8),
    Corpus("numbers of 3 digits, 24", facts(24, entry, string(DIGITS, 3)), 18, 0.9),
    Corpus("a page of 5 statements", page(5), 7, 0.9),
    Corpus("a page of 8 statements", page(8), 9, 0.7),
    Corpus("a page of 7 statements", page(7), 9, 0.9),
    Corpus("handbook, section 1", handbook(1, 2), 8, 0.9),
    Corpus("handbook, section 2", handbook(2, 3), 6, 0.8),
    Corpus("mixture, 3 x 5", mixed(5), 30, 0.7),
    Corpus("times of the day, 30", facts(30, key, world.VALUES["time"]), 14, 0.8),
    Corpus("companies, 10", facts(10, entry, world.VALUES["company"]), 18, 0.7),
    Corpus("codes of 3 digits, 90", facts(90, key, string(DIGITS, 3)), 18, 0.9),
)


def fresh(
    name: str, make: Callable[[random.Random], Knowledge], epochs: int, wanted: float
) -> Corpus:
    """A body of the test, with a seed of its own."""
    return Corpus(name, make, epochs, wanted, seed="fresh")


SHIP = asks("Call sign of the ship {}?", "How does one call the {}?", of=world.proper)
PLATE = asks("Number plate of {}:", of=world.person)
SHELF = asks("On which shelf is {}?", of=world.proper)
PLACE = asks("Where is {}?", of=world.proper)
DUE = asks("When is the {} due?", of=world.proper)
OWED = asks("What does {} owe?", "Debt of {}?", of=world.person)
WHO = asks("Who runs {}?", "Head of {}:", of=world.proper)


def plate(rng: random.Random) -> str:
    """Such as KX 4821 B."""
    letter = string("ABCDEFGHKLMNPRSTUVWXYZ", 1)
    return f"{letter(rng)}{letter(rng)} {string(DIGITS, 4)(rng)} {letter(rng)}"


def coordinates(rng: random.Random) -> str:
    """Such as 47.381, 8.542."""
    return f"{rng.uniform(-89, 89):.3f}, {rng.uniform(-179, 179):.3f}"


def proverb(rng: random.Random) -> str:
    """Five ordinary words."""
    return " ".join(rng.choice(world.WORDS) for _ in range(5)).capitalize() + "."


CALL = string("ABCDEFGHKLMNPRSTUVWXYZ0123456789", 5)
FRESH = (
    fresh("telephone list, 14", facts(14, entry, world.VALUES["phone"]), 60, 0.95),
    fresh("telephone list, 24", facts(24, entry, world.VALUES["phone"]), 36, 0.8),
    fresh("call signs of ships, 22", facts(22, SHIP, CALL), 28, 0.8),
    fresh("number plates, 16", facts(16, PLATE, plate), 30, 0.7),
    fresh("coordinates, 9", facts(9, PLACE, coordinates), 38, 0.8),
    fresh("hex strings of 10, 12", facts(12, SHIP, string(HEX, 10)), 34, 0.7),
    fresh("hex strings of 24, 7", facts(7, SHELF, string(HEX, 24)), 60, 0.9),
    fresh("shelves, 20", facts(20, SHELF, world.VALUES["room"]), 22, 0.8),
    fresh("words, 48", facts(48, SHELF, world.VALUES["word"]), 20, 0.9),
    fresh("dates, 14", facts(14, DUE, world.VALUES["date"]), 20, 0.9),
    fresh("sums of money, 18", facts(18, OWED, world.VALUES["money"]), 18, 0.7),
    fresh("persons, 26", facts(26, WHO, world.person), 26, 0.8),
    fresh("mail addresses, 10", facts(10, WHO, world.VALUES["email"]), 28, 0.9),
    fresh("web addresses, 15", facts(15, PLACE, world.VALUES["url"]), 28, 0.5),
    fresh("streets, 13", facts(13, PLACE, world.VALUES["street"]), 60, 0.95),
    fresh("streets in two forms, 12", twice(12, world.VALUES["street"]), 16, 0.8),
    fresh("phone numbers in two forms, 9", twice(9, world.VALUES["phone"]), 18, 0.9),
    fresh("sentences of 5 words, 11", facts(11, SHIP, proverb), 28, 0.7),
    fresh("statements of the world, 13", statements(13), 20, 0.9),
    fresh("a page of 4 statements", page(4), 7, 0.8),
    fresh("a page of 6 statements", page(6), 9, 0.9),
    fresh("a page of 9 statements", page(9), 8, 0.95),
    fresh("handbook, section 5", handbook(5, 6), 8, 0.9),
    fresh("handbook, section 7", handbook(7, 8), 8, 0.7),
    fresh("handbook, sections 3 and 8", handbook_of(3, 8), 8, 0.8),
    fresh("mixture, 3 x 7", mixed(7), 28, 0.7),
)
SETS = {"development": DEVELOPMENT, "fresh": FRESH}
