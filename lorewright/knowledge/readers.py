"""Files into knowledge: Markdown and text, JSON, JSON lines, CSV, and the shapes the field uses.

This room knows file shapes; it knows nothing about models or what becomes of the knowledge. Nothing
is skipped in silence: what cannot be read is refused, with the file and the line.

Shapes of a row (other columns are ignored; column names in any case):

    question, answer or answers       aliases, paraphrases, id and source if present
    query, target                     PhoneBook
    prompt, completion                strings, or chat turns
    messages                          chat turns: the last assistant turn answers the last user turn
    text                              "Question: ... Answer: ..." is a fact, other text a document

A JSON file holds one row, a list of rows, ``{"data": rows}``, or SQuAD v1 or v2.
"""

import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

from lorewright.errors import DataError
from lorewright.files import MAX_BYTES, jsonl_rows, read_text, slug
from lorewright.knowledge.data import DOCUMENT_SUFFIXES, Document, Fact, Knowledge, Probe

SHAPES = (
    "question+answer",
    "query+target",
    "prompt+completion",
    "messages",
    "text",
    "SQuAD {data: [{paragraphs}]}",
)

_SURROGATE = re.compile("[\ud800-\udfff]")
_QUESTION_ANSWER = re.compile(
    r"\s*Question:\s*(?P<question>(?:(?!Question:|Answer:).)*?)\s*"
    r"Answer:(?P<answer>(?:(?!Question:|Answer:).)*)",
    re.DOTALL,
)


class _Place(NamedTuple):
    """A row and where it stands; ``name`` is its id unless it gives one, ``file`` its source."""

    where: str
    name: str
    file: str
    values: Mapping[str, Any]


class _Found(NamedTuple):
    item: Document | Fact
    where: str


def read_knowledge(path: Path | str) -> Knowledge:
    """Return the documents and facts of a file, or of all readable files below a folder, sorted.

    Raises DataError for anything that cannot be read as knowledge: a missing, empty, binary or
    damaged file, an unknown shape, an empty question or answer, a question asked twice, an id given
    twice. Questions are the same when they differ only in white space.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"asked to read {path}; there is no such file or folder; check the path.")
    found: list[_Found] = []
    for file, name in _files(path):
        found.extend(_file(file, name))
    _refuse_repeated_questions(found)
    _refuse_repeated_ids(found)
    items = [item for item, _ in found]
    return Knowledge(
        documents=tuple(item for item in items if isinstance(item, Document)),
        facts=tuple(item for item in items if isinstance(item, Fact)),
    )


def read_probes(path: Path | str) -> tuple[Probe, ...]:
    """Return the probes of a JSON-lines file: question, answers or answer, kind; id, source,
    context.

    A probe without an id is named after the file and its line. Raises DataError as read_knowledge.
    """
    path = Path(path)
    found: dict[str, str] = {}
    probes = []
    for place in _jsonl(path, slug(path.stem)):
        probe = _probe(place)
        if probe.id in found:
            raise DataError(
                f"{place.where}: id {probe.id!r} is also given at {found[probe.id]}; "
                "give each probe its own."
            )
        found[probe.id] = place.where
        probes.append(probe)
    return tuple(probes)


def _probe(place: _Place) -> Probe:
    if "question" not in place.values or "kind" not in place.values:
        keys = ", ".join(place.values)
        raise DataError(f"{place.where} has keys {keys}; a probe needs question, answers and kind.")
    answers = _texts(place, "answers") or _texts(place, "answer")
    try:
        return Probe(
            id=_optional(place, "id") or place.name,
            question=_text(place, "question"),
            answers=answers,
            kind=_text(place, "kind"),
            source=_optional(place, "source"),
            context=_optional(place, "context"),
        )
    except DataError as error:
        raise _at(place, error) from error


# --- files -------------------------------------------------------------------------------------


def _files(path: Path) -> list[tuple[Path, str]]:
    """Return the files to read, each with the name that its ids begin with."""
    if not path.is_dir():
        return [(path, slug(path.stem))]
    below = [(file.relative_to(path), file) for file in path.rglob("*") if file.is_file()]
    visible = [pair for pair in below if not any(part.startswith(".") for part in pair[0].parts)]
    readable = [
        (file, slug(str(relative.with_suffix(""))))
        for relative, file in sorted(visible, key=lambda pair: pair[0].as_posix())
        if file.suffix.lower() in FORMATS
    ]
    if not readable:
        raise DataError(
            f"the folder {path} holds {len(visible)} files and none that can be read; "
            f"add some ending in {', '.join(FORMATS)}."
        )
    return readable


def _file(path: Path, name: str) -> list[_Found]:
    read = FORMATS.get(path.suffix.lower())
    if read is None:
        raise DataError(
            f"asked to read {path}; its name ends in {path.suffix or 'nothing'!r}; "
            f"use one of {', '.join(FORMATS)}."
        )
    found = list(read(path, name))
    if not found:
        raise DataError(f"{path} holds no rows; give at least one.")
    return found


def _document_file(path: Path, name: str) -> Iterator[_Found]:
    document = Document.read(path)
    yield _Found(Document(name, document.text, document.title), str(path))


def _jsonl_file(path: Path, name: str) -> Iterator[_Found]:
    return (_found(place) for place in _jsonl(path, name))


def _jsonl(path: Path, name: str) -> Iterator[_Place]:
    return _json_lines(read_text(path), path, name)


def _json_lines(text: str, path: Path, name: str) -> Iterator[_Place]:
    # Decimal keeps the digits of an answer as they were written: 3.10 is not 3.1.
    for line, values in jsonl_rows(text, path, parse_float=Decimal):
        yield _place(f"{path} line {line}", f"{name}-{line}", name, values)


def _json_file(path: Path, name: str) -> Iterator[_Found]:
    text = read_text(path)
    try:
        content = json.loads(text, parse_float=Decimal)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and "\n" not in text[: error.pos].strip():
            return (_found(place) for place in _json_lines(text, path, name))
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
    places = (_item(path, name, n, row) for n, row in enumerate(rows, start=1))
    return (found for place in places for found in _squad_or_row(place))


def _item(path: Path, name: str, number: int, row: object) -> _Place:
    where = f"{path} item {number}"
    if not isinstance(row, dict):
        raise DataError(f"{where} is a {type(row).__name__}; give an object per item.")
    return _place(where, f"{name}-{number}", name, row)


def _csv_file(path: Path, name: str) -> Iterator[_Found]:
    text = read_text(path)
    csv.field_size_limit(MAX_BYTES)  # the default refuses documents over 128 KiB
    head = text.lstrip().split("\n", 1)[0]
    delimiter = next((mark for mark in ",;\t" if mark in head), ",")
    lines = _csv_lines(text, path, delimiter)
    _, first = next(lines)
    header = [column.strip() for column in first]
    for line, row in lines:
        where = f"{path} line {line}"
        if len(row) != len(header):
            raise DataError(
                f"{where} has {len(row)} fields and the header {len(header)}; put quotation marks "
                "around a field that holds the separator."
            )
        cells = dict(zip(header, row, strict=True))
        values = {key: _cell(key, cell) for key, cell in cells.items()}
        yield _found(_place(where, f"{name}-{line}", name, values))


def _csv_lines(text: str, path: Path, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the non-blank rows, each with the line on which it begins."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    line = 1
    try:
        for row in reader:
            if row:
                yield line, row
            line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(
            f"{path} line {line} is not valid CSV ({error}); a quotation mark may be missing; "
            "repair that line."
        ) from error


def _cell(key: str, cell: str) -> str | list[str]:
    """Return a cell's text; cells that hold several texts separate them by a vertical bar."""
    if key.lower() in ("aliases", "paraphrases", "answers"):
        return [part for part in cell.split("|") if part.strip()]
    return cell


def _place(where: str, name: str, file: str, values: Mapping[str, Any]) -> _Place:
    lowered = {key.strip().lower(): value for key, value in values.items()}
    if len(lowered) != len(values):
        raise DataError(f"{where} names a column twice among {', '.join(values)}; rename one.")
    return _Place(where, name, file, lowered)


# --- rows --------------------------------------------------------------------------------------


def _squad_or_row(place: _Place) -> Iterator[_Found]:
    if "paragraphs" in place.values:
        for paragraph in _children(place, "paragraphs"):
            yield from _squad_paragraph(paragraph, title=_optional(place, "title"))
    else:
        yield _found(place)


def _squad_paragraph(place: _Place, *, title: str) -> Iterator[_Found]:
    """Yield the context and its facts; unanswerable questions are kept in the document's meta."""
    questions = list(_children(place, "qas"))
    impossible = [qa for qa in questions if qa.values.get("is_impossible") is True]
    meta = {"unanswerable": [_text(qa, "question") for qa in impossible]} if impossible else {}
    document = _document(place, "context", title=title, meta=meta)
    yield _Found(document, place.where)
    for qa in questions:
        if qa.values.get("is_impossible") is not True:
            fact = _fact(qa, _text(qa, "question"), _answers(qa), source=document.id)
            yield _Found(fact, qa.where)


def _children(place: _Place, key: str) -> Iterator[_Place]:
    children = place.values.get(key)
    if not isinstance(children, list) or not all(isinstance(child, dict) for child in children):
        keys = ", ".join(place.values)
        raise DataError(f"{place.where} has keys {keys}; {key!r} must be a list of objects.")
    for n, child in enumerate(children, start=1):
        yield _place(f"{place.where} {key} {n}", f"{place.name}-{n}", place.file, child)


def _found(place: _Place) -> _Found:
    """Return the document or fact of one row, by the columns that it has."""
    keys = place.values.keys()
    item: Document | Fact
    if "question" in keys and ("answer" in keys or "answers" in keys):
        item = _fact(place, _text(place, "question"), _answers(place))
    elif {"query", "target"} <= keys:
        item = _fact(place, _text(place, "query"), (_text(place, "target"),))
    elif {"prompt", "completion"} <= keys:
        prompt, completion = place.values["prompt"], place.values["completion"]
        if isinstance(prompt, list) and isinstance(completion, list):
            item = _chat(place, prompt + completion)
        else:
            item = _fact(place, _text(place, "prompt"), (_text(place, "completion"),))
    elif "messages" in keys:
        item = _chat(place, place.values["messages"])
    elif "text" in keys:
        item = _document_or_fact(place)
    else:
        raise DataError(
            f"{place.where} has keys {', '.join(keys) or 'none'}, which is no known shape; "
            f"use one of {'; '.join(SHAPES)}."
        )
    return _Found(item, place.where)


def _document_or_fact(place: _Place) -> Document | Fact:
    text = _string(place, "text", place.values["text"])
    match = _QUESTION_ANSWER.fullmatch(text)
    if match and "meta" not in place.values:
        return _fact(place, match["question"].strip(), (match["answer"].strip(),))
    meta = place.values.get("meta") or {}
    if not isinstance(meta, dict):
        raise DataError(f"{place.where} has a meta of type {type(meta).__name__}; give an object.")
    return _document(place, "text", title=_optional(place, "title"), meta=meta)


def _document(place: _Place, key: str, *, title: str, meta: Mapping[str, Any]) -> Document:
    text = _string(place, key, place.values.get(key))
    try:
        return Document(_optional(place, "id") or place.name, text, title, meta)
    except DataError as error:
        raise _at(place, error) from error


def _fact(
    place: _Place, question: str, answers: Sequence[str], *, source: str | None = None
) -> Fact:
    if source is None:
        given = place.values.get("source")
        source = place.file if given is None else _optional(place, "source")
    aliases = (*answers[1:], *_texts(place, "aliases"))
    try:
        return Fact(
            id=_optional(place, "id") or place.name,
            question=question,
            answer=answers[0] if answers else "",
            aliases=tuple(dict.fromkeys(alias for alias in aliases if alias != answers[0])),
            paraphrases=_texts(place, "paraphrases"),
            source=source,
        )
    except DataError as error:
        raise _at(place, error) from error


def _chat(place: _Place, turns: object) -> Fact:
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise DataError(f"{place.where} has chat turns that are no list of objects; give a list.")
    roles = [turn.get("role") for turn in turns]
    answered = max((n for n, role in enumerate(roles) if role == "assistant"), default=-1)
    asked = max((n for n, role in enumerate(roles[: answered + 1]) if role == "user"), default=-1)
    if asked < 0:
        raise DataError(
            f"{place.where} has turns of {', '.join(map(str, roles)) or 'nobody'}; "
            "a user turn and then an assistant turn are needed."
        )
    question = _string(place, "content", turns[asked].get("content")).strip()
    answer = _string(place, "content", turns[answered].get("content")).strip()
    return _fact(place, question, (answer,))


# --- values ------------------------------------------------------------------------------------


def _answers(place: _Place) -> tuple[str, ...]:
    """Return the distinct answers, from text, a list of texts, or SQuAD's objects with a text."""
    return tuple(dict.fromkeys(_texts(place, "answer" if "answer" in place.values else "answers")))


def _texts(place: _Place, key: str) -> tuple[str, ...]:
    value = place.values.get(key)
    if isinstance(value, dict) and "text" in value:
        value = value["text"]
    if value is None:
        return ()
    if not isinstance(value, list):
        value = [value]
    parts = (part["text"] if isinstance(part, dict) and "text" in part else part for part in value)
    return tuple(_string(place, key, part).strip() for part in parts)


def _text(place: _Place, key: str) -> str:
    return _string(place, key, place.values.get(key)).strip()


def _optional(place: _Place, key: str) -> str:
    return "" if place.values.get(key) is None else _text(place, key)


def _string(place: _Place, key: str, value: object) -> str:
    """Return text as it is and a number as its digits; refuse everything else."""
    if isinstance(value, int | Decimal) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise DataError(
            f"{place.where} has a {key} of type {type(value).__name__}; give a text or a number."
        )
    if _SURROGATE.search(value):
        raise DataError(f"{place.where} has a {key} with half a surrogate pair; repair its escape.")
    return value


def _at(place: _Place, error: DataError) -> DataError:
    return DataError(f"{place.where}: {error}")


# --- the whole ---------------------------------------------------------------------------------


def _refuse_repeated_questions(found: Sequence[_Found]) -> None:
    seen: dict[str, tuple[Fact, str]] = {}
    contradictions, copies = [], []
    for fact, where in found:
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
            f"{contradictions[0]}; keep one answer, or make the questions differ."
        )
    if copies:
        raise DataError(
            f"{len(copies)} facts are duplicates, first {copies[0]}; remove one of the two."
        )


def _refuse_repeated_ids(found: Sequence[_Found]) -> None:
    seen: dict[str, str] = {}
    for item, where in found:
        if item.id in seen:
            raise DataError(
                f"the id {item.id!r} is given to {seen[item.id]} and to {where}; rename one, or "
                "leave ids out to have rows numbered."
            )
        seen[item.id] = where


FORMATS: dict[str, Callable[[Path, str], Iterator[_Found]]] = {
    **dict.fromkeys(DOCUMENT_SUFFIXES, _document_file),
    ".csv": _csv_file,
    ".json": _json_file,
    ".jsonl": _jsonl_file,
}
