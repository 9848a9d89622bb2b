"""The bodies of knowledge that plans are tested on; none of them is in the calibration.

Facts and documents of the embedded base's own world, phone numbers, other random strings, dates,
addresses, sentences, the handbook, and mixtures. Each comes with a budget of epochs and with the
recall that is wanted, so that plans are tested where writes fail as well as where they succeed. Budgets
were raised and some bodies made smaller after the first three had been seen on the present base.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lorewright.data import Document, Fact, Knowledge
from lorewright.readers import read_knowledge

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

    def knowledge(self) -> Knowledge:
        """What is to be written, the same every time."""
        return self.make(random.Random(f"planner-{self.name}"))


def facts(
    n: int, ask: Callable[[random.Random], str], answer: Callable[[random.Random], str]
) -> Callable[[random.Random], Knowledge]:
    """n facts whose questions differ."""

    def make(rng: random.Random) -> Knowledge:
        found: dict[str, str] = {}
        while len(found) < n:
            found.setdefault(ask(rng), answer(rng))
        return Knowledge(facts=tuple(Fact(f"f{i}", q, a) for i, (q, a) in enumerate(found.items())))

    return make


def entry(rng: random.Random) -> str:
    """A line of a phone book, as in the PhoneBook benchmark."""
    return f"{rng.choice(FIRST)} {rng.choice(LAST)}:"


def key(rng: random.Random) -> str:
    """A question for a key."""
    return f"Which key opens the {world.proper(rng)} {rng.choice(('vault', 'gate', 'archive', 'cellar'))}?"


def string(alphabet: str, n: int) -> Callable[[random.Random], str]:
    """Random strings of one length."""
    return lambda rng: "".join(rng.choice(alphabet) for _ in range(n))


def sentence(rng: random.Random) -> str:
    """Seven ordinary words."""
    return " ".join(rng.choice(world.WORDS) for _ in range(7)).capitalize() + "."


def statements(n: int) -> Callable[[random.Random], Knowledge]:
    """n statements of the world, each asked for once."""

    def make(rng: random.Random) -> Knowledge:
        found: dict[str, str] = {}
        for item in world.statements(rng, 2 * n):
            found.setdefault(world.ask(rng, item), item.value)
        return Knowledge(
            facts=tuple(Fact(f"f{i}", q, a) for i, (q, a) in enumerate(list(found.items())[:n]))
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


def mixed(n: int) -> Callable[[random.Random], Knowledge]:
    """Phone numbers, hexadecimal keys and values of the world, in equal parts."""

    def make(rng: random.Random) -> Knowledge:
        parts = (
            facts(n, entry, string("0123456789", 10)),
            facts(n, key, string("0123456789abcdef", 12)),
            statements(n),
        )
        found = [fact for part in parts for fact in part(rng).facts]
        return Knowledge(
            facts=tuple(Fact(f"f{i}", fact.question, fact.answer) for i, fact in enumerate(found))
        )

    return make


DIGITS, HEX = "0123456789", "0123456789abcdef"
CORPORA = (
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
)
