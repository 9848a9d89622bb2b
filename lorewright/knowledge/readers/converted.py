"""Formats that are turned into Markdown first: what all their readers share.

A converter is a function from a path to Markdown. What it raises, whatever it is, becomes a
sentence that names the file: the libraries behind it meet files from anywhere.
"""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

from lorewright.errors import LorewrightError, Unreadable, first_line
from lorewright.files import MAX_BYTES, check_size, kind_of
from lorewright.knowledge.readers.items import Item, Reader
from lorewright.knowledge.readers.text import items_of_markdown

MAX_FILE_BYTES = 8 * MAX_BYTES
"""Largest file whose text is taken out of it, in bytes: most of it is pictures."""
T = TypeVar("T")
EXTRA = "pip install 'lorewright[documents]'"
OLD_OFFICE = b"\xd0\xcf\x11\xe0"
"""First bytes of what Office wrote until 2003, and of what it encrypts today."""


class Converted(NamedTuple):
    """What a file says, in Markdown."""

    text: str
    notes: tuple[str, ...] = ()
    """What of it is not read, in sentences without a full stop."""
    title: str = ""
    """Its title, where the text has no heading."""


Converter = Callable[[Path], Converted]
"""A file to Markdown. May raise anything; Unreadable where it knows what is wrong."""


def reader_by(converter: Converter) -> Reader:
    """Return the reader of a format that is converted to Markdown first."""

    def read(path: Path, name: str) -> Iterator[Item]:
        text, notes, title = convert(path, converter)
        yield from (Item(note, str(path)) for note in notes)
        yield from items_of_markdown(text, path, name, title=title)

    return read


def convert(path: Path, converter: Converter) -> Converted:
    """Return the Markdown of a file; whatever is wrong with it raises Unreadable."""
    converted = guarded(path, converter)
    if not converted.text.strip():
        why = f" ({'; '.join(converted.notes)})" if converted.notes else ""
        raise Unreadable(f"{path} holds no text{why}; give a file with text in it.")
    return converted


def guarded(path: Path, work: Callable[[Path], T]) -> T:
    """Return what comes of a file; raises Unreadable for whatever a library raises about it."""
    check_size(path, MAX_FILE_BYTES)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the libraries' doubts about damaged files
            return work(path)
    except LorewrightError:
        raise
    except ModuleNotFoundError as error:
        raise Unreadable(
            f"{path} cannot be read without the package {error.name}; run `{EXTRA}`."
        ) from error
    except Exception as error:
        raise Unreadable(
            f"{path} cannot be read as {path.suffix.lower()} ({first_line(error)}); it may be "
            "damaged or cut off: open it in its program and save it anew, or as text."
        ) from error


def names_in_archive(path: Path) -> list[str]:
    """The names in a ZIP archive, checked to unpack to a size that is read.

    Raises Unreadable for another kind of file, a damaged archive, an encrypted one, and one that
    unpacks to more than MAX_FILE_BYTES, or to more than MAX_BYTES of markup.
    """
    suffix = path.suffix.lower()
    with path.open("rb") as file:
        start = file.read(400)
    if start.startswith(OLD_OFFICE):
        raise Unreadable(
            f"{path} is encrypted, or of Office 2003 and before; save it as {suffix} without a "
            "password."
        )
    if not start.startswith(b"PK"):
        kind = kind_of(start)
        raise Unreadable(
            f"{path} is {kind or 'no ' + suffix + ' file'}, whatever its name; "
            "give it the ending of what it is."
        )
    try:
        with zipfile.ZipFile(path) as archive:
            parts = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError) as error:
        raise Unreadable(
            f"{path} is damaged or cut off ({first_line(error)}); fetch or save it anew."
        ) from error
    if any(part.flag_bits & 1 for part in parts):
        raise Unreadable(f"{path} is encrypted; save it without a password.")
    markup = (".xml", ".rels", ".xhtml", ".html", ".htm", ".opf", ".ncx", ".vml")
    n_all = sum(part.file_size for part in parts)
    n_markup = sum(part.file_size for part in parts if part.filename.lower().endswith(markup))
    if n_all > MAX_FILE_BYTES or n_markup > MAX_BYTES:
        raise Unreadable(
            f"{path} unpacks to {n_all} bytes, {n_markup} of them markup; at most {MAX_FILE_BYTES} "
            f"and {MAX_BYTES} are read; split it."
        )
    return [part.filename for part in parts]


def left_in_archive(names: list[str]) -> Iterator[str]:
    """Notes on the pictures, charts and comments among the parts of an Office file."""
    for what, marks in (
        ("pictures", ("/media/",)),
        ("charts", ("/charts/chart",)),
        ("comments", ("/comments", "/threadedComments/")),
        ("headers and footers", ("word/header", "word/footer")),
    ):
        n = sum(any(mark in name for mark in marks) for name in names)
        if n:
            yield f"its {what} are not read"
