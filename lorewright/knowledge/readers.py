"""Files into knowledge: Markdown and text, JSON, JSON lines, CSV, and the shapes the field uses.

    READERS    suffix of a file's name -> how it is read; add a file format here
    SHAPES     shape of a row of JSON, JSON lines or CSV -> document or facts; add a shape here

Nothing is skipped in silence: what cannot be read is refused, with the file and the line. Column
names count in any case; columns that a shape does not name are ignored. A JSON file holds one row,
a list of rows, or ``{"data": rows}``.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

from lorewright.errors import DataError
from lorewright.files import MAX_BYTES, jsonl_rows, read_text, slug
from lorewright.knowledge.data import DOCUMENT_SUFFIXES, Document, Fact, Knowledge, Probe


class Item(NamedTuple):
    """A document or fact, and where it stands, for messages."""

    content: Document | Fact
    where: str


Reader = Callable[[Path, str], Iterable[Item]]
"""A file, and the name that its own ids begin with (its slug, below a folder with the path), to
what it holds. Raises DataError for what it cannot read."""


class Row(NamedTuple):
    """One row of a file, its column names in lower case."""

    where: str
    name: str
    """Id of what it holds, unless it gives one."""
    file: str
    """Name of the file: the source of its facts, unless they give one."""
    values: Mapping[str, Any]


Shape = Callable[[Row], Iterable[Item] | None]
"""What a row of this shape holds; None for a row of another shape."""

_SURROGATE = re.compile("[\ud800-\udfff]")
_QUESTION_ANSWER = re.compile(
    r"\s*Question:\s*(?P<question>(?:(?!Question:|Answer:).)*?)\s*"
    r"Answer:(?P<answer>(?:(?!Question:|Answer:).)*)",
    re.DOTALL,
)


def read_knowledge(path: Path | str) -> Knowledge:
    """Return the documents and facts of a file, or of all readable files below a folder, sorted.

    Raises DataError for anything that cannot be read as knowledge: a missing, empty, binary or
    damaged file, an unknown shape, an empty question or answer, a question or an id that comes
    twice. Questions are the same when they differ only in white space.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path} cannot be read: there is no such file or folder; check the path.")
    items = [item for file, name in _files(path) for item in _read(file, name)]
    _refuse_repeated_questions(items)
    _refuse_repeated_ids(items)
    contents = [item.content for item in items]
    return Knowledge(
        documents=tuple(each for each in contents if isinstance(each, Document)),
        facts=tuple(each for each in contents if isinstance(each, Fact)),
    )


def _files(path: Path) -> list[tuple[Path, str]]:
    """Return the files to read, each with the name that its ids begin with."""
    if not path.is_dir():
        return [(path, slug(path.stem))]
    below = [(file.relative_to(path), file) for file in path.rglob("*") if file.is_file()]
    visible = [pair for pair in below if not any(part.startswith(".") for part in pair[0].parts)]
    readable = [
        (file, slug(str(relative.with_suffix(""))))
        for relative, file in sorted(visible, key=lambda pair: pair[0].as_posix())
        if file.suffix.lower() in READERS
    ]
    if not readable:
        raise DataError(
            f"the folder {path} holds {len(visible)} files and none that can be read; "
            f"add some ending in {', '.join(READERS)}."
        )
    return readable


def _read(path: Path, name: str) -> list[Item]:
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(
            f"{path} cannot be read: its name ends in {path.suffix or 'nothing'!r}; "
            f"use one of {', '.join(READERS)}."
        )
    items = list(reader(path, name))
    if not items:
        raise DataError(f"{path} holds no rows; give at least one.")
    return items


def _refuse_repeated_questions(items: Sequence[Item]) -> None:
    seen: dict[str, tuple[Fact, str]] = {}
    contradictions, copies = [], []
    for fact, where in items:
        if not isinstance(fact, Fact):
            continue
        first, place = seen.setdefault(" ".join(fact.question.split()), (fact, where))
        if first is fact:
            continue
        if set(first.answers) & set(fact.answers):
            copies.append(f"{first.question!r} -> {first.answer!r} ({place} and {where})")
        else:
            contradictions.append(
                f"{first.question!r} -> {first.answer!r} ({place}) and {fact.answer!r} ({where})"
            )
    if contradictions:
        raise DataError(
            f"{len(contradictions)} questions have contradictory answers, first "
            f"{contradictions[0]}; leave one answer, or make the questions differ."
        )
    if copies:
        raise DataError(
            f"{len(copies)} facts are duplicates, first {copies[0]}; remove one of the two."
        )


def _refuse_repeated_ids(items: Iterable[Item]) -> None:
    seen: dict[str, str] = {}
    for content, where in items:
        if content.id in seen:
            raise DataError(
                f"the id {content.id!r} stands at {seen[content.id]} and at {where}; rename one, "
                "or leave ids out to have rows numbered."
            )
        seen[content.id] = where


# --- probes ------------------------------------------------------------------------------------


def read_probes(path: Path | str) -> tuple[Probe, ...]:
    """Return the probes of a JSON-lines file.

    Columns: question, answers or answer, kind; if present id, source and context. A probe without
    an id is named after the file and its line. Raises DataError as read_knowledge.
    """
    path = Path(path)
    seen: dict[str, str] = {}
    probes = []
    for row in _jsonl(read_text(path), path, slug(path.stem)):
        probe = _probe(row)
        if probe.id in seen:
            raise DataError(
                f"{row.where}: the id {probe.id!r} also stands at {seen[probe.id]}; "
                "give each probe its own."
            )
        seen[probe.id] = row.where
        probes.append(probe)
    return tuple(probes)


def _probe(row: Row) -> Probe:
    if not {"question", "kind"} <= row.values.keys():
        keys = ", ".join(row.values)
        raise DataError(f"{row.where} has keys {keys}; a probe needs question, answers and kind.")
    with _naming(row):
        return Probe(
            id=_optional(row, "id") or row.name,
            question=_text(row, "question"),
            answers=_texts(row, "answers") or _texts(row, "answer"),
            kind=_text(row, "kind"),
            source=_optional(row, "source"),
            context=_optional(row, "context"),
        )


# --- file formats ------------------------------------------------------------------------------


def read_document(path: Path, name: str) -> Iterator[Item]:
    """A Markdown or text file: one document."""
    document = Document.read(path)
    yield Item(Document(name, document.text, document.title), str(path))


def read_jsonl(path: Path, name: str) -> Iterator[Item]:
    """A JSON-lines file: a row a line."""
    return _items(_jsonl(read_text(path), path, name))


def read_json(path: Path, name: str) -> Iterator[Item]:
    """A JSON file: a row, a list of rows or ``{"data": rows}``; JSON lines under this name too."""
    text = read_text(path)
    try:
        content = json.loads(text, parse_float=Decimal)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and "\n" not in text[: error.pos].strip():
            return _items(_jsonl(text, path, name))
        raise DataError(
            f"{path} line {error.lineno} is not valid JSON ({error.msg}); it may be cut off; "
            "repair it."
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read as JSON ({error}); repair it.") from error
    rows = content.get("data", [content]) if isinstance(content, dict) else content
    if not isinstance(rows, list):
        raise DataError(
            f"{path} holds a {type(rows).__name__}; give a list of rows: {'; '.join(SHAPES)}."
        )
    return _items(_elements(rows, path, name))


def _elements(rows: list[Any], path: Path, name: str) -> Iterator[Row]:
    for n, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise DataError(f"{path} item {n} is a {type(row).__name__}; give an object per item.")
        yield _row(f"{path} item {n}", f"{name}-{n}", name, row.items())


def read_csv(path: Path, name: str) -> Iterator[Item]:
    """A CSV file with a header; commas, semicolons or tabs separate its fields.

    Several aliases, paraphrases or answers of one cell are separated by a vertical bar.
    """
    text = read_text(path)
    csv.field_size_limit(MAX_BYTES)  # the default refuses documents over 128 KiB
    head = text.lstrip().split("\n", 1)[0]
    delimiter = next((mark for mark in ",;\t" if mark in head), ",")
    return _items(_csv_rows(text, path, name, delimiter))


def _csv_rows(text: str, path: Path, name: str, delimiter: str) -> Iterator[Row]:
    """The rows below the header, each with the line on which it begins; blank ones are left out."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: list[str] = []
    line = 1
    try:
        for fields in reader:
            where, line = f"{path} line {line}", reader.line_num + 1
            if not fields:
                continue
            if not header:
                header = [column.strip() for column in fields]
                continue
            if len(fields) != len(header):
                raise DataError(
                    f"{where} has {len(fields)} fields and the header {len(header)}; put quotation "
                    "marks around a field that holds the separator."
                )
            cells = [(key, _cell(key, field)) for key, field in zip(header, fields, strict=True)]
            yield _row(where, f"{name}-{where.rpartition(' ')[2]}", name, cells)
    except csv.Error as error:
        raise DataError(
            f"{path} line {line} is not valid CSV ({error}); a quotation mark may be missing; "
            "repair that line."
        ) from error


def _cell(key: str, field: str) -> str | list[str]:
    if key.lower() in ("aliases", "paraphrases", "answers"):
        return [part for part in field.split("|") if part.strip()]
    return field


def _items(rows: Iterable[Row]) -> Iterator[Item]:
    """What the rows hold, by the first shape that each has."""
    for row in rows:
        shaped = (shape(row) for shape in SHAPES.values())
        items = next((items for items in shaped if items is not None), None)
        if items is None:
            raise DataError(
                f"{row.where} has keys {', '.join(row.values) or 'none'}, which is no known shape; "
                f"use one of {'; '.join(SHAPES)}."
            )
        yield from items


def _row(where: str, name: str, file: str, cells: Iterable[tuple[str, Any]]) -> Row:
    pairs = [(key.strip().lower(), value) for key, value in cells]
    values = dict(pairs)
    if len(values) != len(pairs):
        columns = ", ".join(key for key, _ in pairs)
        raise DataError(f"{where} names a column twice among {columns}; rename one.")
    return Row(where, name, file, values)


def _jsonl(text: str, path: Path, name: str) -> Iterator[Row]:
    # Decimal has the digits of an answer as they were written: 3.10 is not 3.1.
    for line, values in jsonl_rows(text, path, parse_float=Decimal):
        yield _row(f"{path} line {line}", f"{name}-{line}", name, values.items())


# --- shapes of a row ---------------------------------------------------------------------------


def question_and_answer(row: Row) -> Iterable[Item] | None:
    """question, answer or answers; if present aliases, paraphrases, id and source."""
    if "question" not in row.values or not {"answer", "answers"} & row.values.keys():
        return None
    return [_fact(row, _text(row, "question"), _answers(row))]


def query_and_target(row: Row) -> Iterable[Item] | None:
    """query and target, as in PhoneBook."""
    if not {"query", "target"} <= row.values.keys():
        return None
    return [_fact(row, _text(row, "query"), (_text(row, "target"),))]


def prompt_and_completion(row: Row) -> Iterable[Item] | None:
    """prompt and completion, as texts or as chat messages."""
    if not {"prompt", "completion"} <= row.values.keys():
        return None
    prompt, completion = row.values["prompt"], row.values["completion"]
    if isinstance(prompt, list) and isinstance(completion, list):
        return [_chat(row, prompt + completion)]
    return [_fact(row, _text(row, "prompt"), (_text(row, "completion"),))]


def chat_messages(row: Row) -> Iterable[Item] | None:
    """messages: the last one of the assistant answers the last one of the user before it."""
    return [_chat(row, row.values["messages"])] if "messages" in row.values else None


def text(row: Row) -> Iterable[Item] | None:
    """text: "Question: … Answer: …" is a fact, any other a document, with title and meta."""
    if "text" not in row.values:
        return None
    content = _string(row, "text", row.values["text"])
    match = _QUESTION_ANSWER.fullmatch(content)
    if match and "meta" not in row.values:
        return [_fact(row, match["question"].strip(), (match["answer"].strip(),))]
    meta = row.values.get("meta") or {}
    if not isinstance(meta, dict):
        raise DataError(f"{row.where} has a meta of type {type(meta).__name__}; give an object.")
    return [_document(row, "text", title=_optional(row, "title"), meta=meta)]


def squad(row: Row) -> Iterable[Item] | None:
    """paragraphs, as in SQuAD: contexts with their facts; what they leave open goes to meta."""
    if "paragraphs" not in row.values:
        return None
    items = []
    for paragraph in _children(row, "paragraphs"):
        questions = list(_children(paragraph, "qas"))
        impossible = [qa for qa in questions if qa.values.get("is_impossible") is True]
        meta = {"unanswerable": [_text(qa, "question") for qa in impossible]} if impossible else {}
        document = _document(paragraph, "context", title=_optional(row, "title"), meta=meta)
        source = document.content.id
        items.append(document)
        items += [
            _fact(qa, _text(qa, "question"), _answers(qa), source=source)
            for qa in questions
            if qa not in impossible
        ]
    return items


def _children(row: Row, key: str) -> Iterator[Row]:
    children = row.values.get(key)
    if not isinstance(children, list) or not all(isinstance(child, dict) for child in children):
        keys = ", ".join(row.values)
        raise DataError(f"{row.where} has keys {keys}; {key!r} must be a list of objects.")
    for n, child in enumerate(children, start=1):
        yield _row(f"{row.where} {key} {n}", f"{row.name}-{n}", row.file, child.items())


def _chat(row: Row, messages: object) -> Item:
    if not isinstance(messages, list) or not all(isinstance(each, dict) for each in messages):
        raise DataError(f"{row.where} has chat messages that are no list of objects; give a list.")
    roles = [message.get("role") for message in messages]
    reply = max((n for n, role in enumerate(roles) if role == "assistant"), default=-1)
    request = max((n for n, role in enumerate(roles[: reply + 1]) if role == "user"), default=-1)
    if request < 0:
        raise DataError(
            f"{row.where} has messages of {', '.join(map(str, roles)) or 'nobody'}; one of the "
            "user and then one of the assistant are needed."
        )
    question = _string(row, "content", messages[request].get("content")).strip()
    answer = _string(row, "content", messages[reply].get("content")).strip()
    return _fact(row, question, (answer,))


def _document(row: Row, key: str, *, title: str, meta: Mapping[str, Any]) -> Item:
    content = _string(row, key, row.values.get(key))
    with _naming(row):
        return Item(Document(_optional(row, "id") or row.name, content, title, meta), row.where)


def _fact(row: Row, question: str, answers: Sequence[str], *, source: str | None = None) -> Item:
    if source is None:
        unnamed = row.values.get("source") is None
        source = row.file if unnamed else _optional(row, "source")
    aliases = (*answers[1:], *_texts(row, "aliases"))
    with _naming(row):
        fact = Fact(
            id=_optional(row, "id") or row.name,
            question=question,
            answer=answers[0] if answers else "",
            aliases=tuple(dict.fromkeys(alias for alias in aliases if alias != answers[0])),
            paraphrases=_texts(row, "paraphrases"),
            source=source,
        )
    return Item(fact, row.where)


@contextmanager
def _naming(row: Row) -> Iterator[None]:
    """Begin what is wrong with a row's content by the place of the row."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{row.where}: {error}") from error


# --- values of a row ---------------------------------------------------------------------------


def _answers(row: Row) -> tuple[str, ...]:
    """Return the distinct answers, from text, a list of texts, or SQuAD's objects with a text."""
    return tuple(dict.fromkeys(_texts(row, "answer" if "answer" in row.values else "answers")))


def _texts(row: Row, key: str) -> tuple[str, ...]:
    value = row.values.get(key)
    if isinstance(value, dict) and "text" in value:
        value = value["text"]
    if value is None:
        return ()
    if not isinstance(value, list):
        value = [value]
    parts = (part["text"] if isinstance(part, dict) and "text" in part else part for part in value)
    return tuple(_string(row, key, part).strip() for part in parts)


def _text(row: Row, key: str) -> str:
    return _string(row, key, row.values.get(key)).strip()


def _optional(row: Row, key: str) -> str:
    return "" if row.values.get(key) is None else _text(row, key)


def _string(row: Row, key: str, value: object) -> str:
    """Return text as it is and a number as its digits; refuse everything else."""
    if isinstance(value, int | Decimal) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise DataError(
            f"{row.where} has a {key} of type {type(value).__name__}; give a text or a number."
        )
    if _SURROGATE.search(value):
        raise DataError(f"{row.where} has a {key} with half a surrogate pair; repair its escape.")
    return value


READERS: dict[str, Reader] = {
    **dict.fromkeys(DOCUMENT_SUFFIXES, read_document),
    ".csv": read_csv,
    ".json": read_json,
    ".jsonl": read_jsonl,
}

SHAPES: dict[str, Shape] = {
    "SQuAD {data: [{paragraphs}]}": squad,
    "question+answer": question_and_answer,
    "query+target": query_and_target,
    "prompt+completion": prompt_and_completion,
    "messages": chat_messages,
    "text": text,
}
