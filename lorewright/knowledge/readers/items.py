"""What readers return: documents, facts and notes, each with its place."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from lorewright.files import read_encoded
from lorewright.knowledge.data import Document, Fact

_MOJIBAKE = re.compile("[ÂÃÅÄâ][\u0080-¿€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ]")
"""UTF-8 that was read as Windows-1252 and saved again."""


class Item(NamedTuple):
    """What was read, and where it stands, for messages."""

    content: Document | Fact | str
    """A text is a note: a sentence on what was not read as it stands, without its full stop."""
    where: str
    if_unique: bool = False
    """Whether to leave the fact out where the source answers its question otherwise."""
    context: str = ""
    """Id of the passage to which alone its question was put: another may answer it otherwise."""


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


def repaired(text: str) -> tuple[str, str]:
    """The text with letters that were once saved in a wrong encoding put right, and a note.

    For documents; rows hold answers that are learnt letter by letter, and stay as they are.
    """
    first = _MOJIBAKE.search(text)
    if not first:
        return text, ""
    try:
        from ftfy import fix_encoding
    except ModuleNotFoundError:
        return text, (
            f"{first[0]!r} looks like a letter saved in a wrong encoding; "
            "`pip install 'lorewright[documents]'` repairs it"
        )
    lines = [fix_encoding(line) if _MOJIBAKE.search(line) else line for line in text.split("\n")]
    whole = "\n".join(lines)
    note = f"letters that were saved in a wrong encoding, such as {first[0]!r}, are repaired"
    return whole, note if whole != text else ""


def listed(names: Sequence[str]) -> str:
    """Names for a sentence, the first N_NAMED of them."""
    more = len(names) - N_NAMED
    return ", ".join(names[:N_NAMED]) + (f" and {more} more" if more > 0 else "")


def counted(n: int, noun: str) -> str:
    """ "2 facts", "1 fact"; nothing for 0."""
    return f"{n} {noun}{'s' * (n != 1)}" if n else ""
