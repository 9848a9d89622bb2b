"""What readers return: documents, facts and notes, each with its place."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from lorewright.files import read_encoded
from lorewright.knowledge.data import Document, Fact


class Item(NamedTuple):
    """What was read, and where it stands, for messages."""

    content: Document | Fact | str
    """A text is a note: a sentence on what was not read as it stands, without its full stop."""
    where: str
    if_unique: bool = False
    """Whether to leave the fact out where the source answers its question otherwise."""


Reader = Callable[[Path, str], Iterable[Item]]
"""A file, and the name that its own ids begin with (its slug, below a folder with the path), to
what it holds. Raises DataError for what it cannot read."""

N_NAMED = 20
"""At most so many files, or pairs of facts, are listed by name in a sentence."""


def text_of(path: Path) -> tuple[str, list[Item]]:
    """The text of a file, and a note where it is not UTF-8."""
    text, encoding = read_encoded(path)
    note = f"read as {encoding.upper()}; save it as UTF-8 if signs or accents are wrong"
    return text, [Item(note, str(path))] if encoding != "utf-8" else []


def listed(names: Sequence[str]) -> str:
    """Names for a sentence, the first N_NAMED of them."""
    more = len(names) - N_NAMED
    return ", ".join(names[:N_NAMED]) + (f" and {more} more" if more > 0 else "")


def counted(n: int, noun: str) -> str:
    """"2 facts", "1 fact"; nothing for 0."""
    return f"{n} {noun}{'s' * (n != 1)}" if n else ""
