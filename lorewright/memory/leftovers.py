"""What of some texts stands in files: words in the same order, however they are written down.

A text of up to five words is looked for whole, a longer one as every run of five of its words, so
that neither JSON escapes, Markdown, changed punctuation nor a text that was cut short hides it.
Words are compared in lower case after NFKC. Where there are raw tensors in a file, whose bytes
spell short words by chance, only runs of nine printable characters and more are read there.

This room knows words and files. It knows nothing of memories.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from lorewright.errors import StorageError

WINDOW = 5
"""Longest run of words that is looked for."""
MIN_CHARS = 5
"""Shortest text that is looked for, in characters: shorter ones stand anywhere by chance."""
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
    """What is looked for."""

    runs: frozenset[Run]
    n_texts: int
    """Texts that the runs were taken from."""
    n_short: int
    """Texts too short to be looked for."""

    @cached_property
    def by_length(self) -> dict[int, frozenset[Run]]:
        """The runs by their number of words."""
        lengths = sorted({len(run) for run in self.runs})
        return {n: frozenset(run for run in self.runs if len(run) == n) for n in lengths}

    def without(self, runs: Iterable[Run]) -> Wanted:
        """The same less some runs."""
        return Wanted(self.runs - frozenset(runs), self.n_texts, self.n_short)


@dataclass(frozen=True)
class Trace:
    """A run of words that was found, and the file."""

    path: Path
    """Relative to the folder."""
    words: Run


@dataclass(frozen=True)
class Scan:
    """What looking through a folder came to."""

    n_files: int
    n_bytes: int
    traces: tuple[Trace, ...]


def wanted(texts: Iterable[str]) -> Wanted:
    """What to look for so that none of the texts is overlooked."""
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


def found(content: bytes | str, asked: Wanted) -> set[Run]:
    """The runs that stand in a content, as they are or with backslash escapes undone."""
    return {run for text in _readings(content) for run in _met(words_of(text), asked.by_length)}


def scan(folder: Path, asked: Wanted, *, files: Iterable[Path] | None = None) -> Scan:
    """Look through the files (all in the folder, hidden ones too, unless some are named).

    Raises StorageError for one that cannot be read: what was not read is not known to be clean.
    """
    chosen = sorted(folder.rglob("*") if files is None else files)
    traces: list[Trace] = []
    n_files = n_bytes = 0
    for path in chosen:
        if path.is_symlink() or not path.is_file():
            continue
        try:
            content = path.read_bytes()
        except OSError as error:
            raise StorageError(f"{path} could not be read: {error}; check the path.") from error
        n_files, n_bytes = n_files + 1, n_bytes + len(content)
        traces += [Trace(path.relative_to(folder), r) for r in sorted(found(content, asked))]
    return Scan(n_files, n_bytes, tuple(traces))


def _met(words: list[str], by_length: Mapping[int, frozenset[Run]]) -> Iterator[Run]:
    for length, runs in by_length.items():
        yield from runs & set(_windows(words, length))


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
        said = escape[1]
        if len(said) > 1:
            return chr(int(said[1:], 16))
        return " " if said in _BLANK else said

    halves = _ESCAPE.sub(plain, text)  # an emoji is two of them
    return halves.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
