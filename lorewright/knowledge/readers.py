"""Files into knowledge: Markdown and text, JSON, JSON lines, tables, and the shapes the field uses.

    READERS    suffix of a file's name -> how it is read; add a file format here
    LAYOUTS    what a JSON file holds -> its rows
    SHAPES     shape of a row of JSON, JSON lines or a table -> documents and facts; add one here

Nothing is skipped in silence: what cannot be read is refused, with the file and the line, and what
is left out or read otherwise than as it stands is a note of the knowledge. Column names count in
any case; columns that a shape does not name are ignored; rows with a `weight` of 0 are left out.
"""

from __future__ import annotations

import csv
import io
import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from lorewright.errors import DataError
from lorewright.files import (
    MAX_BYTES,
    digest,
    jsonl_rows,
    read_encoded,
    read_text,
    slug,
    unique_keys,
)
from lorewright.knowledge.data import DOCUMENT_SUFFIXES, Document, Fact, Knowledge, Probe
from lorewright.knowledge.markdown import questions_and_answers, without_markup
from lorewright.knowledge.splitting import first_heading


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


class Row(NamedTuple):
    """One row of a file, its column names in lower case."""

    where: str
    name: str
    """Id of what it holds, unless it gives one."""
    file: str
    """Name of the file: the source of its facts, unless they give one."""
    values: Mapping[str, Any]


Layout = Callable[[Any], list[Any] | None]
"""The rows of a JSON file of this layout; None for a file of another layout."""
Shape = Callable[[Row], Iterable[Item] | None]
"""What a row of this shape holds; None for a row of another shape."""
N_NAMED = 20
"""At most so many files, or pairs of facts, are listed by name in a sentence."""

_SURROGATE = re.compile("[\ud800-\udfff]")
_QUESTION_ANSWER = re.compile(
    r"\s*Question:\s*(?P<question>(?:(?!Question:|Answer:).)*?)\s*"
    r"Answer:(?P<answer>(?:(?!Question:|Answer:).)*)",
    re.DOTALL,
)
_LINE = re.compile(r" (?:line|item) \d+.*")


def read_knowledge(path: Path | str) -> Knowledge:
    """Return the documents and facts of a file, or of all readable files below a folder, sorted.

    Facts that stand there twice are read once. Raises DataError for anything that cannot be read as
    knowledge: a missing, empty, binary or damaged file, an unknown shape, an empty question or
    answer, a question with two answers, an id that comes twice. Questions are the same when they
    differ only in white space and in the Unicode form of their characters; those that differ in
    case or punctuation only and have different answers are a note.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path} cannot be read: there is no such file or folder; check the path.")
    files, left_out = _files(path)
    by_file = {file: _read(file, name) for file, name in files}
    items = [item for read in by_file.values() for item in read]
    documents = _distinct_documents(items)
    facts, notes = _distinct_facts(items)
    _refuse_repeated_ids([*documents, *facts])
    if path.is_dir():
        notes = [_listing(path, by_file), *left_out, *notes]
    return Knowledge(
        documents=tuple(each.content for each in documents if isinstance(each.content, Document)),
        facts=tuple(each.content for each in facts if isinstance(each.content, Fact)),
        notes=(*notes, *_notes(items)),
    )


def _files(path: Path) -> tuple[list[tuple[Path, str]], list[str]]:
    """Return the files to read, each with the name that its ids begin with; and what is left."""
    if not path.is_dir():
        return [(path, slug(path.stem))], []
    below = sorted(
        (file.relative_to(path) for file in path.rglob("*") if file.is_file()),
        key=lambda file: file.as_posix(),
    )
    visible = [file for file in below if not any(part.startswith(".") for part in file.parts)]
    readable = [file for file in visible if file.suffix.lower() in READERS]
    if not readable:
        raise DataError(
            f"the folder {path} holds {len(visible)} files and none that can be read"
            f"{_of([str(file) for file in visible])}; add some ending in {', '.join(READERS)}."
        )
    others = [str(file) for file in visible if file not in readable]
    notes = []
    if others:
        notes.append(
            f"{path}: not read, for their names end otherwise than in {', '.join(READERS)}: "
            f"{_listed(others)}."
        )
    if hidden := [str(file) for file in below if file not in visible and ".git" not in file.parts]:
        notes.append(f"{path}: hidden and not read: {_listed(hidden)}.")
    return [(path / file, slug(str(file.with_suffix("")))) for file in readable], notes


def _of(names: Sequence[str]) -> str:
    return f" ({_listed(names)})" if names else ""


def _listed(names: Sequence[str]) -> str:
    more = len(names) - N_NAMED
    return ", ".join(names[:N_NAMED]) + (f" and {more} more" if more > 0 else "")


def _listing(path: Path, by_file: Mapping[Path, Sequence[Item]]) -> str:
    """What each file of a folder holds, in one sentence."""
    lines = []
    for file, items in by_file.items():
        n_documents = sum(isinstance(item.content, Document) for item in items)
        n_facts = sum(isinstance(item.content, Fact) for item in items)
        counts = [_counted(n_documents, "document"), _counted(n_facts, "fact")]
        lines.append(f"{file.relative_to(path)} ({', '.join(filter(None, counts))})")
    return f"{path}: read {_counted(len(by_file), 'file')}: {_listed(lines)}."


def _counted(n: int, noun: str) -> str:
    return f"{n} {noun}{'s' * (n != 1)}" if n else ""


def _read(path: Path, name: str) -> list[Item]:
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(
            f"{path} cannot be read: its name ends in {path.suffix or 'nothing'!r}; "
            f"use one of {', '.join(READERS)}."
        )
    items = list(reader(path, name))
    if all(isinstance(item.content, str) for item in items):
        why = f" to learn ({_notes(items)[0].rstrip('.')})" if items else ""
        raise DataError(f"{path} holds no rows{why}; give at least one.")
    return items


def _notes(items: Iterable[Item]) -> list[str]:
    """The notes of the items, one for all places of a file with the same one."""
    places: dict[tuple[str, str], list[str]] = {}
    for content, where, _ in items:
        if isinstance(content, str):
            places.setdefault((_LINE.sub("", where), content), []).append(where)
    return [
        f"{first}{f' and {len(more)} more' if more else ''}: {note}."
        for (_, note), (first, *more) in places.items()
    ]


def _distinct_documents(items: Iterable[Item]) -> list[Item]:
    """The documents; a passage that several rows have is one, with what it does not answer."""
    distinct: dict[tuple[str, str], Item] = {}
    for item in items:
        document = item.content
        if not isinstance(document, Document):
            continue
        key = (document.id, document.text)
        # Only passages named by their own text come twice: other ids are refused if they do.
        first = distinct.setdefault(key, item).content
        if first is document or not isinstance(first, Document):
            continue
        unanswered = [*first.meta.get("unanswerable", ()), *document.meta.get("unanswerable", ())]
        if unanswered:
            meta = {**first.meta, "unanswerable": list(dict.fromkeys(unanswered))}
            distinct[key] = distinct[key]._replace(content=replace(first, meta=meta))
    return list(distinct.values())


def _distinct_facts(items: Iterable[Item]) -> tuple[list[Item], list[str]]:
    """The facts, each once, and notes; raises DataError for a question with two answers."""
    distinct: dict[str, Item] = {}
    copies, contradictions, dropped = [], [], []
    positions: dict[str, int] = {}
    # What may be left out comes last, so that it meets everything that may not.
    for n, item in sorted(enumerate(items), key=lambda pair: pair[1].if_unique):
        fact, where, if_unique = item
        if not isinstance(fact, Fact):
            continue
        key = " ".join(unicodedata.normalize("NFC", fact.question).split())
        first, place, _ = distinct.setdefault(key, item)
        positions.setdefault(key, n)
        if first is fact or not isinstance(first, Fact):
            continue
        pair = f"{first.question!r} -> {first.answer!r} ({place}) and {fact.answer!r} ({where})"
        if {_nfc(a) for a in first.answers} & {_nfc(a) for a in fact.answers}:
            copies += [] if if_unique else [where]
            aliases = [a for a in (*first.aliases, *fact.answers) if a != first.answer]
            asked = dict.fromkeys((*first.paraphrases, *fact.paraphrases))
            merged = replace(first, aliases=tuple(dict.fromkeys(aliases)), paraphrases=tuple(asked))
            distinct[key] = distinct[key]._replace(content=merged)
        elif if_unique:
            dropped.append((key, pair))
        else:
            contradictions.append(pair)
    if contradictions:
        raise DataError(
            f"questions with contradictory answers: {len(contradictions)}, first "
            f"{_listed(contradictions[:N_NAMED])}; leave one answer, or make the questions differ."
        )
    for key, _ in dropped:
        if key in distinct and distinct[key].if_unique:
            del distinct[key]
    notes = []
    if copies:
        notes.append(
            f"{_counted(len(copies), 'fact')} stood there more than once and counted once: "
            f"{_listed(copies)}."
        )
    if dropped:
        notes.append(
            f"{_counted(len(dropped), 'question')} had several answers in the source "
            f"and were not learnt alone: {_listed([pair for _, pair in dropped])}."
        )
    facts = [distinct[key] for key in sorted(distinct, key=positions.__getitem__)]
    return facts, notes + _near_contradictions(facts)


def _nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def _near_contradictions(facts: Sequence[Item]) -> list[str]:
    """A note on the questions that differ in case and punctuation only and are answered apart."""
    by_words: dict[str, Item] = {}
    pairs = []
    for item in facts:
        fact = item.content
        assert isinstance(fact, Fact)
        words = re.sub(
            r"[^\w\s+#%&@$€£-]|-(?!\d)", " ", unicodedata.normalize("NFKC", fact.question)
        )
        near, place, _ = by_words.setdefault(" ".join(words.casefold().split()), item)
        if isinstance(near, Fact) and not {*near.answers} & {*fact.answers}:
            pairs.append(
                f"{near.question!r} -> {near.answer!r} ({place}) and "
                f"{fact.question!r} -> {fact.answer!r} ({item.where})"
            )
    if not pairs:
        return []
    return [
        f"{_counted(len(pairs), 'question')} differ from another in case or punctuation only and "
        f"have other answers; only exact wording tells them apart: {_listed(pairs)}."
    ]


def _refuse_repeated_ids(items: Iterable[Item]) -> None:
    seen: dict[str, str] = {}
    for content, where, _ in items:
        assert not isinstance(content, str)
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
    """A Markdown or text file: one document, and a fact for each question that it answers."""
    whole, notes = _text_of(path)
    text, left_out = without_markup(whole)
    yield from (*notes, *(Item(note, str(path)) for note in left_out))
    if not text.strip():
        return
    yield Item(Document(name, text, first_heading(text)), str(path))
    for n, (question, answer) in enumerate(questions_and_answers(text), start=1):
        fact = Fact(f"{name}-question-{n}", question, answer, source=name)
        yield Item(fact, str(path), if_unique=True)


def read_jsonl(path: Path, name: str) -> Iterator[Item]:
    """A JSON-lines file: a row a line."""
    text, notes = _text_of(path)
    yield from notes
    yield from _items(_jsonl(text, path, name))


def read_json(path: Path, name: str) -> Iterator[Item]:
    """A JSON file in any of LAYOUTS; JSON lines under this name too."""
    text, notes = _text_of(path)
    yield from notes
    try:
        content = json.loads(text, parse_float=Decimal, object_pairs_hook=unique_keys)
        laid_out = (layout(content) for layout in LAYOUTS.values())
        rows = next((rows for rows in laid_out if rows is not None), None)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and "\n" not in text[: error.pos].strip():
            yield from _items(_jsonl(text, path, name))
            return
        raise DataError(
            f"{path} line {error.lineno} is not valid JSON ({error.msg}); it may be cut off; "
            "repair it."
        ) from error
    except DataError as error:
        raise DataError(f"{path} {error}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read as JSON ({error}); repair it.") from error
    if rows is None:
        raise DataError(
            f"{path} holds a {type(content).__name__}; give a list of rows: {'; '.join(SHAPES)}."
        )
    if rows is not content and _splits(content) and len(content) > 1:
        left = ", ".join(key for key in content if content[key] is not rows)
        yield Item(f"only the split train is learnt, not {left}", str(path))
    yield from _items(_elements(rows, path, name))


def _text_of(path: Path) -> tuple[str, list[Item]]:
    """The text of a file, and a note where it is not UTF-8."""
    text, encoding = read_encoded(path)
    note = f"read as {encoding.upper()}; save it as UTF-8 if signs or accents are wrong"
    return text, [Item(note, str(path))] if encoding != "utf-8" else []


def _elements(rows: list[Any], path: Path, name: str) -> Iterator[Row]:
    for n, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise DataError(f"{path} item {n} is a {type(row).__name__}; give an object per item.")
        yield _row(f"{path} item {n}", f"{name}-{n}", name, row.items())


def read_csv(path: Path, name: str) -> Iterator[Item]:
    """A CSV file with a header; commas, semicolons, tabs or what `sep=` says separate its fields.

    Several aliases, paraphrases or answers of one cell are separated by a vertical bar. Empty cells
    at the end of a row may be left out, or be more than the header has.
    """
    text, notes = _text_of(path)
    yield from notes
    csv.field_size_limit(MAX_BYTES)  # the default refuses documents over 128 KiB
    if excel := re.match(r'\s*"?sep=(.)"?[ \t]*\n', text):
        delimiter, text = excel[1], "\n" * excel[0].count("\n") + text[excel.end() :]
    else:
        head = re.sub(r'"(?:[^"]|"")*"', "", text.lstrip()).split("\n", 1)[0]
        delimiter = next((mark for mark in ",;\t" if mark in head), ",")
    yield from _items(_table_rows(text, path, name, delimiter))


def read_tsv(path: Path, name: str) -> Iterator[Item]:
    """A table with a header whose fields are separated by tabs, otherwise as CSV."""
    text, notes = _text_of(path)
    yield from notes
    csv.field_size_limit(MAX_BYTES)
    yield from _items(_table_rows(text, path, name, "\t"))


def _table_rows(text: str, path: Path, name: str, delimiter: str) -> Iterator[Row]:
    """The rows below the header, each with the line on which it begins; blank ones are left out."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: list[str] = []
    line = 1
    try:
        for fields in reader:
            where, line = f"{path} line {line}", reader.line_num + 1
            if not any(field.strip() for field in fields) and len(fields) != 1:
                continue
            if not header:
                header = [column.strip() for column in fields]
                while header and not header[-1]:
                    header.pop()
                continue
            if any(field.strip() for field in fields[len(header) :]):
                raise DataError(
                    f"{where} has {len(fields)} fields and the header {len(header)}; put quotation "
                    "marks around a field that holds the separator."
                )
            full = [*fields, *[""] * len(header)]
            cells = [(key, _cell(key, field)) for key, field in zip(header, full, strict=False)]
            yield _row(where, f"{name}-{where.rpartition(' ')[2]}", name, cells)
    except csv.Error as error:
        raise DataError(
            f"{path} line {line} is not valid CSV ({error}); a quotation mark may be missing or "
            "stand inside a field (write it twice); repair that line."
        ) from error


def _cell(key: str, field: str) -> str | list[str]:
    if key.lower() in ("aliases", "paraphrases", "answers"):
        return [part for part in field.split("|") if part.strip()]
    return field


def _items(rows: Iterable[Row]) -> Iterator[Item]:
    """What the rows hold, by the first shape that each has."""
    for row in rows:
        if _weightless(row.values):
            yield Item("a row of weight 0 is not learnt", row.where)
            continue
        shaped = (shape(row) for shape in SHAPES.values())
        items = next((items for items in shaped if items is not None), None)
        if items is None:
            raise DataError(
                f"{row.where} has keys {', '.join(row.values) or 'none'}, which is no known shape; "
                f"use one of {'; '.join(SHAPES)}."
            )
        yield from items


def _weightless(values: Mapping[str, Any]) -> bool:
    """Whether a row or message says, as OpenAI's do, that it is not trained."""
    weight = values.get("weight")
    return str(weight).strip() in ("0", "0.0") and not isinstance(weight, bool)


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


# --- layouts of a JSON file --------------------------------------------------------------------


def list_of_rows(content: Any) -> list[Any] | None:
    """A list of rows."""
    return content if isinstance(content, list) else None


def columns_and_data(content: Any) -> list[Any] | None:
    """Column names beside lists of cells: `DataFrame.to_json(orient="split")`."""
    if not (isinstance(content, dict) and {"columns", "data"} <= content.keys()):
        return None
    columns, data = content["columns"], content["data"]
    if not (isinstance(data, list) and isinstance(columns, list)):
        return None
    if not all(isinstance(cells, list) and len(cells) == len(columns) for cells in data):
        return None
    return [unique_keys(list(zip(map(str, columns), cells, strict=True))) for cells in data]


def rows_under_data(content: Any) -> list[Any] | None:
    """Rows under the key data, as in SQuAD."""
    rows = content.get("data") if isinstance(content, dict) else None
    return rows if isinstance(rows, list) else None


def rows_under_train(content: Any) -> list[Any] | None:
    """Rows under the names of splits: those of train are learnt, the others are held out."""
    if not _splits(content):
        return None
    return content["train"] if "train" in content else next(iter(content.values()))


def _splits(content: Any) -> bool:
    return (
        isinstance(content, dict)
        and bool(content)
        and all(isinstance(rows, list) for rows in content.values())
        and (content.keys() & {"train"} != set() or len(content) == 1)
        and all(isinstance(row, dict) for rows in content.values() for row in rows)
        and not content.keys() & {"messages", "conversations", "paragraphs"}
    )


def cells_under_columns(content: Any) -> list[Any] | None:
    """A column a key, its cells a list or numbered: `Dataset.to_dict`, `DataFrame.to_json`."""
    if not isinstance(content, dict) or not content:
        return None
    columns = [
        list(cells.items()) if isinstance(cells, dict) else list(enumerate(cells))
        for cells in content.values()
        if isinstance(cells, list | dict)
    ]
    numbers = [[number for number, _ in cells] for cells in columns]
    if len(columns) != len(content) or len(columns) < 2 or any(n != numbers[0] for n in numbers):
        return None
    if not all(str(number).isdigit() for number in numbers[0]):
        return None
    cells = zip(*([cell for _, cell in column] for column in columns), strict=True)
    return [dict(zip(content, row, strict=True)) for row in cells]


def one_row(content: Any) -> list[Any] | None:
    """One row alone."""
    return [content] if isinstance(content, dict) and "data" not in content else None


# --- shapes of a row ---------------------------------------------------------------------------


def question_and_answer(row: Row) -> Iterable[Item] | None:
    """question, answer or answers; if present aliases, paraphrases, id, source, and a context.

    The context is a document, as in flat SQuAD; without an answer its question is one that the
    context does not answer.
    """
    if "question" not in row.values or not {"answer", "answers"} & row.values.keys():
        return None
    question, answers = _text(row, "question"), _answers(row)
    if not _given(row, "context"):
        return [_fact(row, question, answers)]
    open_questions = [] if any(answers) and not _impossible(row) else [question]
    document = _passage(row, "context", open_questions)
    source = document.content.id if isinstance(document.content, Document) else ""
    return (
        [document] if open_questions else [document, _fact(row, question, answers, source=source)]
    )


def query_and_target(row: Row) -> Iterable[Item] | None:
    """query and target, as in PhoneBook."""
    if not {"query", "target"} <= row.values.keys():
        return None
    return [_fact(row, _text(row, "query"), (_text(row, "target"),))]


def prompt_and_completion(row: Row) -> Iterable[Item] | None:
    """prompt and completion, as texts or as chat messages; only the completion is learnt."""
    if not {"prompt", "completion"} <= row.values.keys():
        return None
    return _prompted(row, row.values["prompt"], "completion")


def chosen_and_rejected(row: Row) -> Iterable[Item] | None:
    """chosen and rejected, with or without a prompt, as for DPO: the chosen reply is learnt."""
    if not {"chosen", "rejected"} <= row.values.keys():
        return None
    chosen = row.values["chosen"]
    whole = isinstance(chosen, list) and any(_role(each) == "user" for each in chosen)
    if whole or "prompt" not in row.values:
        messages = _templated(chosen) if isinstance(chosen, str) else chosen
        return [*_chat(row, messages), _rejected(row)]
    return [*_prompted(row, row.values["prompt"], "chosen"), _rejected(row)]


def _rejected(row: Row) -> Item:
    return Item("the rejected reply is not learnt", row.where)


def _prompted(row: Row, prompt: Any, key: str) -> list[Item]:
    reply = row.values[key]
    if isinstance(prompt, str) and isinstance(reply, list):
        prompt = [{"role": "user", "content": prompt}]
    if isinstance(prompt, list) and isinstance(reply, str):
        reply = [{"role": "assistant", "content": reply}]
    if isinstance(prompt, list) and isinstance(reply, list):
        return _chat(row, prompt + reply, n_given=len(prompt))
    return [_fact(row, _string(row, "prompt", prompt).strip(), (_text(row, key),))]


def instruction_and_output(row: Row) -> Iterable[Item] | None:
    """instruction and output, as Alpaca has them; if present input and history."""
    if not {"instruction", "output"} <= row.values.keys():
        return None
    question = _text(row, "instruction")
    if _given(row, "input"):
        question += f"\n{_text(row, 'input')}"
    turns = row.values.get("history") or []
    if not isinstance(turns, list) or not all(isinstance(t, list) and len(t) == 2 for t in turns):
        raise DataError(f"{row.where} has a history that is no list of pairs; repair it.")
    if not turns:
        return [_fact(row, question, (_text(row, "output"),))]
    turns = [*turns, [question, row.values["output"]]]
    roles = ("user", "assistant")
    messages = [
        {"role": role, "content": text}
        for turn in turns
        for role, text in zip(roles, turn, strict=True)
    ]
    return _chat(row, messages)


def instruction_and_response(row: Row) -> Iterable[Item] | None:
    """instruction and response, as Dolly has them; a context is a document beside the fact."""
    if not {"instruction", "response"} <= row.values.keys():
        return None
    question, answers = _text(row, "instruction"), (_text(row, "response"),)
    if not _given(row, "context"):
        return [_fact(row, question, answers)]
    document = _passage(row, "context", [])
    source = document.content.id if isinstance(document.content, Document) else ""
    return [document, _fact(row, question, answers, source=source)]


def chat_messages(row: Row) -> Iterable[Item] | None:
    """messages: each reply of the assistant is a fact; see `_chat`."""
    return _chat(row, row.values["messages"]) if "messages" in row.values else None


def conversations(row: Row) -> Iterable[Item] | None:
    """conversations of from and value, as ShareGPT has them: as messages."""
    return _chat(row, row.values["conversations"]) if "conversations" in row.values else None


def text(row: Row) -> Iterable[Item] | None:
    """text: "Question: … Answer: …" and prompts of a template are facts, any other a document.

    A document may have title and meta; a row with meta is always a document.
    """
    if "text" not in row.values:
        return None
    content = _string(row, "text", row.values["text"])
    meta = row.values.get("meta") or {}
    if not isinstance(meta, dict):
        raise DataError(f"{row.where} has a meta of type {type(meta).__name__}; give an object.")
    if "meta" not in row.values:
        match = _QUESTION_ANSWER.fullmatch(content)
        if match:
            return [_fact(row, match["question"].strip(), (match["answer"].strip(),))]
        if messages := _templated(content):
            return _chat(row, messages)
        content, left_out = without_markup(content)
        row = row._replace(values={**row.values, "text": content})
        notes = [Item(note, row.where) for note in left_out]
        if notes and not content.strip():
            return notes
        return [*notes, _document(row, "text", title=_optional(row, "title"), meta=meta)]
    return [_document(row, "text", title=_optional(row, "title"), meta=meta)]


def squad(row: Row) -> Iterable[Item] | None:
    """paragraphs, as in SQuAD: contexts with their facts; what they leave open goes to meta."""
    if "paragraphs" not in row.values:
        return None
    items = []
    for paragraph in _children(row, "paragraphs"):
        questions = list(_children(paragraph, "qas"))
        impossible = [qa for qa in questions if _impossible(qa)]
        meta = {"unanswerable": [_text(qa, "question") for qa in impossible]} if impossible else {}
        document = _document(paragraph, "context", title=_optional(row, "title"), meta=meta)
        source = document.content.id if isinstance(document.content, Document) else ""
        items.append(document)
        items += [
            _fact(qa, _text(qa, "question"), _answers(qa), source=source)
            for qa in questions
            if qa not in impossible
        ]
    return items


def _impossible(row: Row) -> bool:
    return str(row.values.get("is_impossible")).strip().lower() in ("true", "1")


def _given(row: Row, key: str) -> bool:
    return row.values.get(key) is not None and bool(_text(row, key))


def _children(row: Row, key: str) -> Iterator[Row]:
    children = row.values.get(key)
    if not isinstance(children, list) or not all(isinstance(child, dict) for child in children):
        keys = ", ".join(row.values)
        raise DataError(f"{row.where} has keys {keys}; {key!r} must be a list of objects.")
    for n, child in enumerate(children, start=1):
        yield _row(f"{row.where} {key} {n}", f"{row.name}-{n}", row.file, child.items())


# --- chats -------------------------------------------------------------------------------------

N_TURNS_BEFORE = 3
"""At most so many earlier turns of a chat stand before the question of a later one."""
_ROLES = {
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bard", "bot", "model"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("tool", "function", "function_call", "observation"), "tool"),
}
_TEMPLATES = tuple(
    re.compile(template, re.MULTILINE)
    for template in (
        r"^### ?(?:(?P<user>Instruction|Human|User|Question)"
        r"|(?P<assistant>Response|Assistant|Answer)|(?P<system>System)) ?:",
        r"<\|im_start\|>(?:(?P<user>user)|(?P<assistant>assistant)|(?P<system>system))\n",
        r"<\|start_header_id\|>(?:(?P<user>user)|(?P<assistant>assistant)|(?P<system>system))"
        r"<\|end_header_id\|>",
        r"<start_of_turn>(?:(?P<user>user)|(?P<assistant>model))\n",
        r"(?P<user>\[INST\])|(?P<assistant>\[/INST\])",
        r"^(?:(?P<user>USER|Human|User)|(?P<assistant>ASSISTANT|Assistant)|(?P<system>SYSTEM)): ?",
    )
)
"""Marks of turns in prompts that are written as one text, of the templates in use."""
_TURN_ENDS = re.compile(r"<\|im_end\|>|<\|eot_id\|>|<end_of_turn>|<\|endoftext\|>|</?s>|<bos>")


def _templated(text: str) -> list[dict[str, str]] | None:
    """The messages of a text that is a chat in one of the templates; None for other texts."""
    for template in _TEMPLATES:
        marks = list(template.finditer(text))
        roles = [str(mark.lastgroup) for mark in marks]
        if ("user", "assistant") not in pairwise(roles):
            continue
        ends = [*(mark.start() for mark in marks[1:]), len(text)]
        parts = [text[mark.end() : end] for mark, end in zip(marks, ends, strict=True)]
        lead = [("system", text[: marks[0].start()])]
        return [
            {"role": role, "content": bare}
            for role, part in [*lead, *zip(roles, parts, strict=True)]
            if (bare := re.sub(r"\n*### ?Input ?:\s*", "\n", _TURN_ENDS.sub("", part)).strip())
        ]
    return None


def _role(message: Any) -> str:
    name = message.get("role", message.get("from")) if isinstance(message, dict) else None
    return _ROLES.get(str(name).lower(), str(name))


def _chat(row: Row, messages: object, *, n_given: int = 0) -> list[Item]:
    """One fact for each reply: its question is the user's, after the turns before it.

    The question of a later turn is a fact without those as well, unless the source answers the same
    words otherwise. Not learnt: the first `n_given` messages, replies of weight 0, what the system
    and tools say.
    """
    if not isinstance(messages, list) or not all(isinstance(each, dict) for each in messages):
        raise DataError(f"{row.where} has chat messages that are no list of objects; give a list.")
    items: list[Item] = []
    before: list[tuple[str, str]] = []
    question: list[str] = []
    for n, message in enumerate(messages):
        role, content = _role(message), _content(row, message)
        if role not in ("user", "assistant") or not content:
            what = f"a message of the {role}" if content or role == "tool" else "a call of a tool"
            items.append(Item(f"{what} is not learnt", row.where))
        elif role == "user":
            question.append(content)
        elif not question:
            items.append(Item("a reply before the first question is not learnt", row.where))
        else:
            asked = "\n".join(question)
            if n >= n_given and _weightless(message):
                items.append(Item("a reply of weight 0 is not learnt", row.where))
            elif n >= n_given:
                items += _turn(row, before, asked, content)
            before, question = [*before, (asked, content)], []
    if question and before:
        items.append(Item("a question without a reply is not learnt", row.where))
    if not before:
        roles = ", ".join(map(_role, messages)) or "nobody"
        raise DataError(
            f"{row.where} has messages of {roles}; one of the user and then one of the assistant "
            "are needed."
        )
    return items


def _turn(row: Row, before: list[tuple[str, str]], question: str, answer: str) -> list[Item]:
    """The facts of one reply; the row's own id is that of the first."""
    if not before:
        return [_fact(row, question, (answer,))]
    numbered = row._replace(
        name=f"{row.name}-turn-{len(before) + 1}",
        values={key: value for key, value in row.values.items() if key == "source"},
    )
    if own := _optional(row, "id"):
        numbered = numbered._replace(name=f"{own}-turn-{len(before) + 1}")
    history = "\n".join(part for turn in before[-N_TURNS_BEFORE:] for part in turn)
    alone = numbered._replace(name=f"{numbered.name}-alone")
    return [
        _fact(numbered, f"{history}\n{question}", (answer,)),
        _fact(alone, question, (answer,))._replace(if_unique=True),
    ]


def _content(row: Row, message: Mapping[str, Any]) -> str:
    """The text of a message, of its parts if it has several; raises DataError for other media."""
    content = message.get("content", message.get("value"))
    if content is None:
        return ""
    parts = content if isinstance(content, list) else [content]
    texts = []
    for part in parts:
        kind = part.get("type", "text") if isinstance(part, dict) else "text"
        if kind not in ("text", "input_text", "output_text", "refusal"):
            raise DataError(f"{row.where} has a message part of type {kind}; only text is read.")
        texts.append(part.get("text", part.get(kind)) if isinstance(part, dict) else part)
    return "\n".join(_string(row, "content", each) for each in texts).strip()


# --- documents and facts of a row --------------------------------------------------------------


def _passage(row: Row, key: str, unanswered: list[str]) -> Item:
    """A document that several rows may have: it is named by its text."""
    content = _string(row, key, row.values[key])
    name = f"{row.file}-{digest(content)[:12]}"
    meta = {"unanswerable": unanswered} if unanswered else {}
    return Item(Document(name, content, _optional(row, "title"), meta), row.where)


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
            f"{row.where} has {key!r} of type {type(value).__name__}; give a text or a number."
        )
    if _SURROGATE.search(value):
        raise DataError(f"{row.where} has in {key!r} half a surrogate pair; repair its escape.")
    return value


READERS: dict[str, Reader] = {
    **dict.fromkeys(DOCUMENT_SUFFIXES, read_document),
    ".csv": read_csv,
    ".json": read_json,
    ".jsonl": read_jsonl,
    ".tsv": read_tsv,
}

LAYOUTS: dict[str, Layout] = {
    "[row, …]": list_of_rows,
    "{columns, data}": columns_and_data,
    "{data: [row, …]}": rows_under_data,
    "{train: [row, …], test: …}": rows_under_train,
    "{column: {number: cell}}": cells_under_columns,
    "row": one_row,
}

SHAPES: dict[str, Shape] = {
    "SQuAD {data: [{paragraphs}]}": squad,
    "question+answer": question_and_answer,
    "query+target": query_and_target,
    "prompt+completion": prompt_and_completion,
    "chosen+rejected": chosen_and_rejected,
    "instruction+output": instruction_and_output,
    "instruction+response": instruction_and_response,
    "messages": chat_messages,
    "conversations": conversations,
    "text": text,
}
