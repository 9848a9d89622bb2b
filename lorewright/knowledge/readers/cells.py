"""Rows of a file, and what one holds: texts, documents and facts, or a DataError with its place."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

from lorewright.errors import DataError
from lorewright.files import digest, jsonl_rows
from lorewright.knowledge.data import Document, Fact
from lorewright.knowledge.readers.items import Item

_SURROGATE = re.compile("[\ud800-\udfff]")


class Row(NamedTuple):
    """One row of a file, its column names in lower case."""

    where: str
    name: str
    """Id of what it holds, unless it gives one."""
    file: str
    """Name of the file: the source of its facts, unless they give one."""
    values: Mapping[str, Any]


def row_of(where: str, name: str, file: str, cells: Iterable[tuple[str, Any]]) -> Row:
    """The row of these cells; raises DataError for a column that comes twice."""
    pairs = [(key.strip().lower(), value) for key, value in cells]
    values = dict(pairs)
    if len(values) != len(pairs):
        columns = ", ".join(key for key, _ in pairs)
        raise DataError(f"{where} names a column twice among {columns}; rename one.")
    return Row(where, name, file, values)


def jsonl(text: str, path: Path, name: str) -> Iterator[Row]:
    """The rows of a JSON-lines text."""
    # Decimal has the digits of an answer as they were written: 3.10 is not 3.1.
    for line, values in jsonl_rows(text, path, parse_float=Decimal):
        yield row_of(f"{path} line {line}", f"{name}-{line}", name, values.items())


def is_weightless(values: Mapping[str, Any]) -> bool:
    """Whether a row or message says, as OpenAI's do, that it is not trained."""
    weight = values.get("weight")
    return str(weight).strip() in ("0", "0.0") and not isinstance(weight, bool)


# --- documents and facts of a row --------------------------------------------------------------


def passage_of(row: Row, key: str, unanswered: list[str]) -> Item:
    """A document that several rows may have: it is named by its text."""
    content = as_text(row, key, row.values[key])
    name = f"{row.file}-{digest(content)[:12]}"
    meta = {"unanswerable": unanswered} if unanswered else {}
    return Item(Document(name, content, optional_text(row, "title"), meta), row.where)


def document_of(row: Row, key: str, *, title: str, meta: Mapping[str, Any]) -> Item:
    """The document of a row, whose text is the column of this key."""
    content = as_text(row, key, row.values.get(key))
    with naming(row):
        return Item(Document(optional_text(row, "id") or row.name, content, title, meta), row.where)


def fact_of(row: Row, question: str, answers: Sequence[str], *, source: str | None = None) -> Item:
    """The fact of a row: the first answer, and the others and its aliases beside it."""
    if source is None:
        unnamed = row.values.get("source") is None
        source = row.file if unnamed else optional_text(row, "source")
    aliases = (*answers[1:], *texts_in(row, "aliases"))
    with naming(row):
        fact = Fact(
            id=optional_text(row, "id") or row.name,
            question=question,
            answer=answers[0] if answers else "",
            aliases=tuple(dict.fromkeys(alias for alias in aliases if alias != answers[0])),
            paraphrases=texts_in(row, "paraphrases"),
            source=source,
        )
    return Item(fact, row.where)


@contextmanager
def naming(row: Row) -> Iterator[None]:
    """Begin what is wrong with a row's content by the place of the row."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{row.where}: {error}") from error


# --- values of a row ---------------------------------------------------------------------------


def answers_of(row: Row) -> tuple[str, ...]:
    """Return the distinct answers, from text, a list of texts, or SQuAD's objects with a text."""
    return tuple(dict.fromkeys(texts_in(row, "answer" if "answer" in row.values else "answers")))


def texts_in(row: Row, key: str) -> tuple[str, ...]:
    """The texts of a column: one, a list, or SQuAD's object with a text."""
    value = row.values.get(key)
    if isinstance(value, dict) and "text" in value:
        value = value["text"]
    if value is None:
        return ()
    if not isinstance(value, list):
        value = [value]
    parts = (part["text"] if isinstance(part, dict) and "text" in part else part for part in value)
    return tuple(as_text(row, key, part).strip() for part in parts)


def text_in(row: Row, key: str) -> str:
    """The text of a column without outer white space; raises DataError if it is none."""
    return as_text(row, key, row.values.get(key)).strip()


def optional_text(row: Row, key: str) -> str:
    """The text of a column; empty where there is none."""
    return "" if row.values.get(key) is None else text_in(row, key)


def as_text(row: Row, key: str, value: object) -> str:
    """Return text as it is and a number as its digits; refuse everything else."""
    if isinstance(value, int | Decimal) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise DataError(
            f"{row.where} has {key!r} of type {type(value).__name__}; give a text or a number."
        )
    if _SURROGATE.search(value):
        raise DataError(f"{row.where} has in {key!r} half a surrogate pair; repair its escape.")
    return value


def is_given(row: Row, key: str) -> bool:
    """Whether a column is there and not empty."""
    return row.values.get(key) is not None and bool(text_in(row, key))


def child_rows(row: Row, key: str) -> Iterator[Row]:
    """The objects of a column that is a list of them, each a row with its place."""
    children = row.values.get(key)
    if not isinstance(children, list) or not all(isinstance(child, dict) for child in children):
        keys = ", ".join(row.values)
        raise DataError(f"{row.where} has keys {keys}; {key!r} must be a list of objects.")
    for n, child in enumerate(children, start=1):
        yield row_of(f"{row.where} {key} {n}", f"{row.name}-{n}", row.file, child.items())
