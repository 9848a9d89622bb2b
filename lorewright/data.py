"""What is known, what is trained on and what is asked; text and JSON lines in and out.

This room knows nothing about models, tokens or file shapes: ``readers`` turns foreign files into
these types, ``views`` turns knowledge into examples. Splitting is by character positions, so that
every piece is an exact substring of the text it came from and only whitespace lies between pieces.
"""

import dataclasses
import hashlib
import json
import os
import re
import secrets
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lorewright.errors import ConfigError, DataError, StorageError

PROBE_KINDS = (
    "efficacy",
    "paraphrase",
    "neighborhood",
    "verbatim",
    "reverse",
    "multihop",
    "unknown",
)
OPEN_KINDS = ("neighborhood", "unknown")
"""Probe kinds judged without a list of answers: unchanged behaviour, or declining."""

DOCUMENT_SUFFIXES = (".md", ".markdown", ".txt")
MAX_BYTES = 64 * 1024 * 1024
"""Largest file that is read as knowledge or probes, in bytes."""

SLUG_CHARS = 60


@dataclasses.dataclass(frozen=True)
class Document:
    """A text to be remembered."""

    id: str
    text: str
    title: str = ""
    meta: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        _require("document", self.id, id=self.id, text=self.text)

    @classmethod
    def read(cls, path: Path | str) -> "Document":
        """Return the Markdown or text file as one document whose id is the slug of its name.

        The title is the first heading, if there is one. Raises DataError for other suffixes and for
        files that are empty, binary or not UTF-8.
        """
        path = Path(path)
        if path.suffix.lower() not in DOCUMENT_SUFFIXES:
            raise DataError(
                f"asked to read {path} as a document; its name ends in {path.suffix or 'nothing'!r}"
                f"; use one of {', '.join(DOCUMENT_SUFFIXES)}."
            )
        text = read_text(path)
        first = next((block for block in _blocks(text) if block.heading), None)
        title = text[first.start : first.end].split("\n")[0].strip(" \t#") if first else ""
        return cls(id=slug(path.stem), text=text, title=title)


@dataclasses.dataclass(frozen=True)
class Fact:
    """One checkable piece of knowledge: a question and its answer."""

    id: str
    question: str
    answer: str
    aliases: tuple[str, ...] = ()
    """Other spellings of the answer that count as right."""
    paraphrases: tuple[str, ...] = ()
    """Other ways to ask; for probes only, never trained on."""
    source: str = ""
    """Id of the document or file that the fact came from."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "aliases", tuple(self.aliases))
        object.__setattr__(self, "paraphrases", tuple(self.paraphrases))
        _require("fact", self.id, id=self.id, question=self.question, answer=self.answer)
        for text in self.aliases:
            _require("fact", self.id, alias=text)
        for text in self.paraphrases:
            _require("fact", self.id, paraphrase=text)

    @property
    def answers(self) -> tuple[str, ...]:
        """The answer and its aliases: everything that counts as right."""
        return (self.answer, *self.aliases)


@dataclasses.dataclass(frozen=True)
class Example:
    """A prompt and the completion to learn; the loss is on the completion only."""

    prompt: str
    completion: str
    kind: str = "qa"
    source: str = ""
    """Id of the fact or document that the example came from."""

    def __post_init__(self) -> None:
        _require("example", self.source or self.prompt[:40], completion=self.completion)


@dataclasses.dataclass(frozen=True)
class Probe:
    """A question asked afterwards, with acceptable answers and a kind."""

    id: str
    question: str
    answers: tuple[str, ...]
    kind: str
    source: str = ""
    context: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "answers", tuple(self.answers))
        if self.kind not in PROBE_KINDS:
            raise DataError(
                f"probe {self.id!r} has kind {self.kind!r}; use one of {', '.join(PROBE_KINDS)}."
            )
        _require("probe", self.id, id=self.id, question=self.question)
        if not self.answers and self.kind not in OPEN_KINDS:
            raise DataError(
                f"probe {self.id!r} of kind {self.kind!r} has no answers; give at least one, or "
                f"use a kind that needs none ({', '.join(OPEN_KINDS)})."
            )
        for text in self.answers:
            _require("probe", self.id, answer=text)


@dataclasses.dataclass(frozen=True)
class Knowledge:
    """Documents and facts, in reading order."""

    documents: tuple[Document, ...] = ()
    facts: tuple[Fact, ...] = ()

    def digest(self) -> str:
        """Return the sha256 of everything in it, order included, as 64 hex digits."""
        return digest(self)


def _require(what: str, name: str, **fields: str) -> None:
    for field, value in fields.items():
        if not isinstance(value, str):
            found = type(value).__name__
            raise DataError(f"{what} {name!r} has a {field} of type {found}; give a string.")
        if not value.strip():
            raise DataError(f"{what} {name!r} has an empty {field}; give a text or leave it out.")


# --- text in -----------------------------------------------------------------------------------


def read_text(path: Path) -> str:
    """Return the UTF-8 text of a file with ``\\n`` line ends and without a byte order mark.

    Raises DataError when it is missing, not a file, empty, over MAX_BYTES, binary, UTF-16 or not
    UTF-8; StorageError when the disk refuses.
    """
    if not path.exists():
        raise DataError(f"asked to read {path}; there is no such file; check the path.")
    if not path.is_file():
        raise DataError(f"asked to read {path}; it is not a regular file; give a file.")
    try:
        n_bytes = path.stat().st_size
        if n_bytes > MAX_BYTES:
            raise DataError(
                f"{path} has {n_bytes} bytes; at most {MAX_BYTES} (64 MiB) are read; split it."
            )
        text = _decode(path.read_bytes(), path)
    except OSError as error:
        raise StorageError(f"asked to read {path}; the disk said: {error}.") from error
    if not text.strip():
        raise DataError(f"{path} is empty; give a file with text in it.")
    return text


def _decode(content: bytes, path: Path) -> str:
    n_zero = content.count(0)
    halves = sorted((content[::2].count(0), content[1::2].count(0)))
    # Latin text saved as UTF-16 without a mark has a NUL in every other byte.
    alternating = halves[0] == 0 and halves[1] * 20 > len(content) * 9
    if content.startswith((b"\xff\xfe", b"\xfe\xff")) or alternating:
        raise DataError(f"{path} is UTF-16 text; save it as UTF-8.")
    n_control = sum(content.count(byte) for byte in (*range(1, 9), *range(14, 27), *range(28, 32)))
    if n_zero or n_control * 2 > len(content):
        raise DataError(
            f"{path} is binary ({n_zero} NUL and {n_control} control bytes of {len(content)}); "
            "give a text file."
        )
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # The codec counts from after the byte order mark.
        offset = error.start + (3 if content.startswith(b"\xef\xbb\xbf") else 0)
        raise DataError(
            f"{path} is not UTF-8: byte {content[offset]:#04x} at offset {offset}; "
            "save it as UTF-8."
        ) from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


# --- JSON lines --------------------------------------------------------------------------------


class Row(NamedTuple):
    """One JSON object and the line, counted from 1, on which it stands."""

    line: int
    values: dict[str, Any]


def jsonl_rows(
    text: str, path: Path, *, parse_float: Callable[[str], Any] = float
) -> Iterator[Row]:
    """Yield the objects of a JSON-lines text; ``path`` is for messages only.

    Raises DataError naming the line that is not valid JSON or not an object.
    """
    # Not str.splitlines: it also breaks at U+2028 and U+0085, which JSON strings may hold.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            values = json.loads(line, parse_float=parse_float)
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{path} line {number} is not valid JSON ({error}); it may be cut off or lack a "
                "quote; repair that line."
            ) from error
        if not isinstance(values, dict):
            found = type(values).__name__
            raise DataError(f"{path} line {number} holds a {found}; write one object per line.")
        yield Row(number, values)


def load_jsonl(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a JSON-lines file; an empty file gives an empty list.

    Raises DataError for a missing file or a bad line, StorageError when the disk refuses.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"asked to load {path}; there is no such file; check the path.") from error
    except OSError as error:
        raise StorageError(f"asked to load {path}; the disk said: {error}.") from error
    return [row.values for row in jsonl_rows(_decode(content, path), path)]


def dump_jsonl(rows: Iterable[Any], path: Path) -> None:
    """Write one JSON object per line, whole or not at all (temporary name, then rename).

    Rows are mappings or dataclasses. Raises DataError for what JSON or UTF-8 cannot hold,
    StorageError when the disk refuses; the old file, if any, is then still there.
    """
    path = Path(path)
    try:
        content = jsonl(rows)
    except ValueError as error:
        raise DataError(f"asked to write {path}; a row cannot be stored: {error}.") from error
    store(content, path)


def jsonl(rows: Iterable[Any]) -> bytes:
    """Return rows as JSON lines; raises ValueError for what JSON or UTF-8 cannot hold."""
    return "".join(_json(row, ensure_ascii=False) + "\n" for row in rows).encode()


def store(content: bytes, path: Path) -> None:
    """Write a file whole or not at all, with its folder; raises StorageError."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"asked to write {path}; the disk said: {error}.") from error


def _json(obj: object, *, ensure_ascii: bool) -> str:
    return json.dumps(
        obj,
        ensure_ascii=ensure_ascii,
        allow_nan=False,
        sort_keys=True,
        separators=(",", ":") if ensure_ascii else None,
        default=_plain,
    )


def _plain(obj: object) -> object:
    if dataclasses.is_dataclass(obj) and not isinstance(obj, type):
        return {field.name: vars(obj)[field.name] for field in dataclasses.fields(obj)}
    if isinstance(obj, Mapping):
        return dict(obj)
    raise TypeError(f"a {type(obj).__name__} cannot be written as JSON")


def digest(obj: object) -> str:
    """Return the sha256 of an object's canonical JSON (sorted keys, ASCII) as 64 hex digits."""
    return hashlib.sha256(_json(obj, ensure_ascii=True).encode()).hexdigest()


def slug(text: str) -> str:
    """Return a name safe in file names and addresses: lower-case words joined by hyphens.

    Letters of every script are kept. At most SLUG_CHARS characters: longer ones, and texts without
    any letter, end in eight hex digits of the text's sha256, so that they stay apart.
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    kept = (c if c.isalnum() or unicodedata.category(c)[0] == "M" else " " for c in folded)
    name = "-".join("".join(kept).split())
    if name and len(name) <= SLUG_CHARS:
        return name
    return f"{name[: SLUG_CHARS - 9]}-{digest(text)[:8]}".strip("-")


# --- splitting ---------------------------------------------------------------------------------


class _Span(NamedTuple):
    """Text between two positions: a heading, list, table, code or paragraph, or a part of one."""

    start: int
    end: int
    heading: bool = False
    code: bool = False


_FENCE = re.compile(r" {0,3}(```|~~~)")
_HEADING = re.compile(r" {0,3}#{1,6}(?:[ \t]|$)")
_UNDERLINE = re.compile(r" {0,3}(?:={3,}|-{3,})[ \t]*$")
_ITEM = re.compile(r"\s*(?:[-*+•][ \t]|\d{1,3}[.)][ \t]|\|)")
_SENTENCE_END = re.compile(r"[.!?…؟।]+[\"'”’»)\]*_]*(?=\s)|[。！？]+[」』”’）]*")
_NEVER_LAST = re.compile(
    r"(?:m(?:rs?|s|x)|dr|prof|st|rev|hon|gen|col|capt|lt|sgt|e\.?g|i\.?e|vs|cf|viz|approx"
    r"|jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec)",
    re.IGNORECASE,
)
_BEFORE_NUMBER = re.compile(
    r"(?:nos?|figs?|eqs?|sec|ch|vol|art|pp?|para|tab|ref|ext)", re.IGNORECASE
)
_INITIALS = re.compile(r"[^\W\d_](?:\.[^\W\d_])*")


def sentences(text: str) -> tuple[str, ...]:
    """Return the sentences in order; headings, list items, table rows and code stay whole.

    Each is an exact substring without outer whitespace. Abbreviations, initials and decimals do not
    end a sentence; where a full stop is ambiguous, the text is kept together.
    """
    return tuple(text[s.start : s.end] for block in _blocks(text) for s in _parts(text, block))


def passages(document: Document, *, max_chars: int = 1200) -> tuple[str, ...]:
    """Return the document in pieces of at most ``max_chars`` characters, in order.

    A heading begins a passage and stays with what follows it. Paragraphs are cut only when too long
    alone: between sentences, else between words, else anywhere. Each passage is an exact substring;
    only whitespace lies between two of them. Raises ConfigError when ``max_chars`` is below 1.
    """
    if max_chars < 1:
        raise ConfigError(f"max_chars is {max_chars}; give at least 1.")
    text = document.text
    passed: list[_Span] = []
    for span in _fitting(text, max_chars):
        last = passed[-1] if passed else None
        fits = last is not None and span.end - last.start <= max_chars
        if last and fits and (last.heading or not span.heading):
            passed[-1] = _Span(last.start, span.end, heading=last.heading and span.heading)
        else:
            passed.append(span)
    return tuple(text[span.start : span.end] for span in passed)


def _fitting(text: str, max_chars: int) -> Iterator[_Span]:
    """Yield blocks that fit, the sentences of those that do not, and words of those."""
    for block in _blocks(text):
        if block.end - block.start <= max_chars:
            yield block
            continue
        for part in _parts(text, block):
            start = part.start
            while part.end - start > max_chars:
                cut = start + max_chars
                while cut > start and not (text[cut].isspace() or text[cut - 1].isspace()):
                    cut -= 1
                cut = cut if cut > start else start + max_chars
                yield _Span(*_trim(text, start, cut), heading=part.heading)
                start = _trim(text, cut, part.end)[0]
            yield _Span(start, part.end, heading=part.heading)


def _blocks(text: str) -> Iterator[_Span]:
    """Yield headings, fenced code and paragraphs (with lists and tables), without blank lines."""
    start: int | None = None
    fence = ""
    position = end = 0
    for line in text.split("\n"):
        opened = _FENCE.match(line)
        begin, position = position, position + len(line) + 1
        stop = begin + len(line.rstrip())
        if fence:
            end = max(end, stop) if line.strip() else end
            if opened and opened[1] == fence:
                yield _Span(start or 0, end, code=True)
                start, fence = None, ""
            continue
        underline = _UNDERLINE.match(line) and start is not None and "\n" not in text[start:end]
        if start is not None and underline:
            yield _Span(start, stop, heading=True)
            start = None
            continue
        if start is not None and (opened or not line.strip() or _HEADING.match(line)):
            yield _Span(start, end)
            start = None
        if opened:
            start, fence = begin, opened[1]
        elif _HEADING.match(line):
            yield _Span(begin, stop, heading=True)
        elif line.strip() and start is None:
            start = begin
        end = stop
    if start is not None:
        yield _Span(start, end, code=bool(fence))


def _parts(text: str, block: _Span) -> Iterator[_Span]:
    """Yield the sentences, list items and table rows of a block; headings and code stay whole."""
    if block.heading or block.code:
        yield _Span(*_trim(text, block.start, block.end), heading=block.heading)
        return
    start = position = block.start
    for line in text[block.start : block.end].split("\n"):
        if _ITEM.match(line) and position > start:
            yield from _sentences(text, start, position)
            start = position
        position += len(line) + 1
    yield from _sentences(text, start, block.end)


def _sentences(text: str, start: int, end: int) -> Iterator[_Span]:
    start, end = _trim(text, start, end)
    if not _ITEM.match(text, start, end):
        for stop in _SENTENCE_END.finditer(text, start, end):
            if stop.end() < end and _ends_sentence(text, start, stop, end):
                yield _Span(*_trim(text, start, stop.end()))
                start = _trim(text, stop.end(), end)[0]
    yield _Span(start, end)


def _ends_sentence(text: str, start: int, stop: re.Match[str], end: int) -> bool:
    following = text[stop.end() : min(end, stop.end() + 40)].lstrip().lstrip("\"'“‘«([*_¿¡")[:1]
    if following.islower():
        return False
    if stop[0][0] != ".":
        return True
    words = text[max(start, stop.start() - 40) : stop.start()].split()
    word = words[-1].lstrip("\"'“‘«([*_") if words else ""
    if _NEVER_LAST.fullmatch(word):
        return False
    if _BEFORE_NUMBER.fullmatch(word) and following.isdigit():
        return False
    return not (_INITIALS.fullmatch(word) and word.isupper())


def _trim(text: str, start: int, end: int) -> tuple[int, int]:
    """Return the span without outer white space; by steps, as slices would make long texts slow."""
    while start < end and text[start].isspace():
        start += 1
    while start < end and text[end - 1].isspace():
        end -= 1
    return start, end
