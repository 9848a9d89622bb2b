"""What of some texts stands in files: words in the same order, in whatever encoding.

A text of up to five words is searched for whole, a longer one as every run of five of its words, so
that neither JSON escapes, Markdown, changed punctuation nor a text that was cut short hides it.
Words are compared in lower case after NFKC. In files with raw tensors, whose bytes spell short
words by chance, only runs of nine printable characters and more are read. Weights hold no words, so
copies of files are searched for as well, by their digest. Links are followed.
"""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from lorewright.errors import StorageError

WINDOW = 5
"""Longest run of words that is searched for."""
MIN_CHARS = 5
"""Shortest text that is searched for, in characters: shorter ones stand anywhere by chance."""
MIN_PRINTABLE = 9
N_ESCAPED = 2
"""How deep escapes may be nested: JSON inside a JSON string is two."""

Run = tuple[str, ...]
"""Words in a row."""

_WORD = re.compile(r"\d+(?:\.\d+)+|\w+")  # a decimal is one word: 12345 does not stand in 0.12345
_ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|.)", re.DOTALL)
_PRINTABLE = re.compile(rb"[\x20-\x7e]{%d,}" % MIN_PRINTABLE)
_BLANK = "nrtbf"


@dataclass(frozen=True)
class Wanted:
    """What is searched for."""

    runs: frozenset[Run]
    n_texts: int
    """Texts that the runs were taken from."""
    n_short: int
    """Texts too short to be searched for."""
    contents: frozenset[str] = frozenset()
    """SHA-256 of whole files, such as an adapter's tensors."""

    @cached_property
    def by_length(self) -> dict[int, frozenset[Run]]:
        """The runs by their number of words."""
        lengths = sorted({len(run) for run in self.runs})
        return {n: frozenset(run for run in self.runs if len(run) == n) for n in lengths}

    def without(self, runs: Iterable[Run]) -> Wanted:
        """The same less some runs."""
        return replace(self, runs=self.runs - frozenset(runs))


@dataclass(frozen=True)
class Leftover:
    """A run of words that stands in a file, or a file that is wanted as a whole."""

    path: Path
    """Relative to the folder where it lies in it."""
    words: Run
    """() for a file that is wanted as a whole."""


@dataclass(frozen=True)
class Scan:
    """What searching a folder came to."""

    n_files: int
    n_bytes: int
    leftovers: tuple[Leftover, ...]


def wanted(texts: Iterable[str]) -> Wanted:
    """What to search for so that none of the texts is overlooked."""
    unique = list(dict.fromkeys(texts))
    runs: set[Run] = set()
    n_short = 0
    for text in unique:
        words = words_of(text)
        if sum(map(len, words)) < MIN_CHARS:
            n_short += 1
            continue
        runs.update(_windows(words, min(WINDOW, len(words))))
    return Wanted(frozenset(runs), len(unique), n_short)


def words_of(text: str) -> list[str]:
    """The words of a text as they are compared."""
    plain = text if text.isascii() else unicodedata.normalize("NFKC", text)
    return _WORD.findall(plain.casefold())


def runs_in(content: bytes | str, wanted: Wanted) -> set[Run]:
    """The wanted runs that stand in a content, as it is or with backslash escapes undone."""
    runs: set[Run] = set()
    for text in _readings(content):
        words = words_of(text)
        for length, sought in wanted.by_length.items():
            runs |= sought & set(_windows(words, length))
    return runs


def files_in(folder: Path) -> Iterator[Path]:
    """Every file of a folder, hidden ones and those behind links too, each folder once.

    Raises StorageError for a folder that cannot be listed.
    """

    def refused(error: OSError) -> None:
        raise StorageError(f"{error.filename} could not be read: {error}; check the path.")

    visited: set[tuple[int, int]] = set()
    for place, folders, files in os.walk(folder, onerror=refused, followlinks=True):
        about = os.stat(place)
        if (about.st_dev, about.st_ino) in visited:
            folders.clear()
            continue
        visited.add((about.st_dev, about.st_ino))
        yield from filter(Path.is_file, (Path(place) / name for name in files))


def scan(folder: Path, wanted: Wanted, *, files: Iterable[Path] | None = None) -> Scan:
    """Search the files (all of `files_in` unless some are given).

    Raises StorageError for one that cannot be read: what was not read is not known to be clean.
    """
    leftovers: list[Leftover] = []
    n_files = n_bytes = 0
    for path in sorted(files_in(folder) if files is None else files):
        if not path.is_file():
            continue
        try:
            content = path.read_bytes()
        except OSError as error:
            raise StorageError(f"{path} could not be read: {error}; check the path.") from error
        n_files, n_bytes = n_files + 1, n_bytes + len(content)
        runs = sorted(runs_in(content, wanted))
        if wanted.contents and hashlib.sha256(content).hexdigest() in wanted.contents:
            runs.append(())
        shown = path.relative_to(folder) if path.is_relative_to(folder) else path
        leftovers += [Leftover(shown, run) for run in runs]
    return Scan(n_files, n_bytes, tuple(leftovers))


def _windows(words: list[str], length: int) -> Iterator[Run]:
    """Every run of so many words."""
    return zip(*(words[n:] for n in range(length)), strict=False)


def _readings(content: bytes | str) -> Iterator[str]:
    """The content as text, then with escapes undone as often as they may be nested."""
    if isinstance(content, bytes):
        if b"\0" in content:
            yield from _binary(content)
            return
        content = content.decode("utf-8", "replace")
    yield content
    for _ in range(N_ESCAPED):
        if "\\" not in content:
            return
        content = _unescaped(content)
        yield content


def _binary(content: bytes) -> Iterator[str]:
    """The header of a safetensors file as text; of everything else what can be printed."""
    n_header = int.from_bytes(content[:8], "little")
    if content[8:9] == b"{" and 8 + n_header <= len(content):
        yield from _readings(content[8 : 8 + n_header].replace(b"\0", b" "))
        content = content[8 + n_header :]
    for piece in _PRINTABLE.findall(content):
        yield from _readings(piece.decode("ascii"))


def _unescaped(text: str) -> str:
    def plain(escape: re.Match[str]) -> str:
        code = escape[1]
        if len(code) > 1:
            return chr(int(code[1:], 16))
        return " " if code in _BLANK else code

    halves = _ESCAPE.sub(plain, text)  # an emoji is two of them
    return halves.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
