"""Natural text about an invented world, as long as asked, so that no model can know it already.

The sentences are those that the embedded base reads: an invented subject, a relation, a value. This
room knows English words and random numbers; it knows no model and no token.
"""

from __future__ import annotations

import random
import string
from collections.abc import Callable

_SAY = (
    "The {r} of {s} is {v}.",
    "{s}'s {r} is {v}.",
    "For {s}, the {r} is {v}.",
    "The {r} for {s} is {v}.",
    "As for {s}, the {r} is {v}.",
    "At {s}, the {r} is {v}.",
    "{s} has the {r} {v}.",
    "The {r} of {s}: {v}.",
)
_ONSETS = "b br c cr d f fr g gl gr h j k l m n p pl r s st t tr v w y z sh th".split()
_VOWELS = "a e i o u ai ea ee ia o oo ou".split()
_CODAS = ["l", "n", "r", "s", "t", "m", "k", "nd", "rn", "sh", "x", "lt", *[""] * 8]
_KINDS = (
    "office clinic bakery library workshop harbour gallery school depot garden museum laboratory"
).split()
_MODIFIERS = "annual first last main spare summer winter night market record sample storage".split()
_COLOURS = "red blue green grey amber teal crimson violet ivory black white brown".split()
_ANIMALS = "heron otter lynx badger owl gannet ferret bison hare newt raven beaver".split()
_WORDS = (
    "anchor barrel candle drift ember flint glass horizon island juniper kettle lantern meadow "
    "needle orchard prairie quarry ribbon saddle timber umbrella velvet willow yarrow"
).split()
_MONTHS = (
    "January February March April May June July August September October November December"
).split()
FIRST_NAMES = (
    "Ada Albert Alice Amir Anna Bruno Carla Cedric Clara Dana David Edith Elena Emil Esther Farid "
    "Fiona Frank Grace Hana Hugo Ida Ingrid Ivan Jane Jonas Judith Karim Laura Leo Lina Lucas "
    "Mara Martin Maya Mira Nadia Nils Nora Oscar Paula Peter Rosa Ruth Samir Sara Simon Stella "
    "Tara Theo Thomas Ulla Vera Victor Walter Yusuf"
).split()
"""Given names of invented people."""

Draw = Callable[[random.Random], str]


def invented(rng: random.Random) -> str:
    """Return a pronounceable word of one or two syllables that means nothing, capitalised."""
    n = rng.choice((1, 2, 2))
    parts = (rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS) for _ in range(n))
    return "".join(parts).capitalize()


def person(rng: random.Random) -> str:
    """Return a first and a last name; the last one is invented."""
    return f"{rng.choice(FIRST_NAMES)} {invented(rng)}"


def digits(rng: random.Random, n: int) -> str:
    """Return n digits of which the first is not 0."""
    return str(rng.randint(1, 9)) + "".join(str(rng.randint(0, 9)) for _ in range(n - 1))


def prose(rng: random.Random, n_words: int) -> str:
    """Return at least so many words of statements about a few subjects, one after the other."""
    subjects = [_subject(rng) for _ in range(max(2, n_words // 60))]
    text: list[str] = []
    while len(text) < n_words:
        relation, value = rng.choice(_RELATIONS)
        named = f"{rng.choice(_MODIFIERS)} {relation}" if rng.random() < 0.5 else relation
        said = rng.choice(_SAY).format(r=named, s=rng.choice(subjects), v=value(rng))
        text += (said[0].upper() + said[1:]).split()
    return " ".join(text)


def _subject(rng: random.Random) -> str:
    draw = rng.random()
    if draw < 0.5:
        return f"the {invented(rng)} {rng.choice(_KINDS)}"
    return person(rng) if draw < 0.7 else f"Project {invented(rng)}"


def _code(rng: random.Random) -> str:
    letters = "".join(rng.choice(string.ascii_uppercase) for _ in range(rng.randint(1, 2)))
    return f"{letters}-{digits(rng, rng.randint(2, 4))}"


def _date(rng: random.Random) -> str:
    return f"{rng.randint(1, 28)} {rng.choice(_MONTHS)} {rng.randint(1950, 2049)}"


def _from(words: list[str]) -> Draw:
    return lambda rng: rng.choice(words)


_RELATIONS: tuple[tuple[str, Draw], ...] = (
    ("code", _code),
    ("room", lambda rng: f"{rng.choice('ABCDEFGH')}{rng.randint(1, 9)}.{rng.randint(10, 49)}"),
    ("owner", person),
    ("keeper", person),
    ("colour", _from(_COLOURS)),
    ("mascot", _from(_ANIMALS)),
    ("password", _from(_WORDS)),
    ("opening", _date),
    ("number", lambda rng: digits(rng, rng.randint(2, 5))),
    ("town", invented),
    ("price", lambda rng: f"{rng.randint(2, 999)} euros"),
    ("supplier", lambda rng: f"{invented(rng)} Trading"),
)
