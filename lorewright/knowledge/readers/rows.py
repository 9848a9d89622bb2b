"""JSON, JSON lines, CSV and TSV: files of rows.

LAYOUTS    what a JSON file holds -> its rows
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

from lorewright.errors import DataError
from lorewright.files import MAX_BYTES, unique_keys
from lorewright.knowledge.data import Document
from lorewright.knowledge.markdown import table
from lorewright.knowledge.readers.cells import Row, jsonl, row_of
from lorewright.knowledge.readers.items import Item, text_of
from lorewright.knowledge.readers.shapes import SHAPES, is_shaped, items_of

Layout = Callable[[Any], list[Any] | None]
"""The rows of a JSON file of this layout; None for a file of another layout."""


def read_jsonl(path: Path, name: str) -> Iterator[Item]:
    """A JSON-lines file: a row a line."""
    text, notes = text_of(path)
    yield from notes
    yield from items_of(jsonl(text, path, name))


def read_json(path: Path, name: str) -> Iterator[Item]:
    """A JSON file in any of LAYOUTS; JSON lines under this name too."""
    text, notes = text_of(path)
    yield from notes
    try:
        content = json.loads(text, parse_float=Decimal, object_pairs_hook=unique_keys)
        laid_out = (layout(content) for layout in LAYOUTS.values())
        rows = next((rows for rows in laid_out if rows is not None), None)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and "\n" not in text[: error.pos].strip():
            yield from items_of(jsonl(text, path, name))
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
    yield from items_of(_elements(rows, path, name))


def _elements(rows: list[Any], path: Path, name: str) -> Iterator[Row]:
    for n, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise DataError(f"{path} item {n} is a {type(row).__name__}; give an object per item.")
        yield row_of(f"{path} item {n}", f"{name}-{n}", name, row.items())


def read_csv(path: Path, name: str) -> Iterator[Item]:
    """A CSV file with a header; commas, semicolons, tabs or what `sep=` says separate its fields.

    A table of no known shape is a document, its rows those of a Markdown table.

    Several aliases, paraphrases or answers of one cell are separated by a vertical bar. Empty cells
    at the end of a row may be left out, or be more than the header has.
    """
    text, notes = text_of(path)
    yield from notes
    csv.field_size_limit(MAX_BYTES)  # the default refuses documents over 128 KiB
    if excel := re.match(r'\s*"?sep=(.)"?[ \t]*\n', text):
        delimiter, text = excel[1], "\n" * excel[0].count("\n") + text[excel.end() :]
    else:
        head = re.sub(r'"(?:[^"]|"")*"', "", text.lstrip()).split("\n", 1)[0]
        delimiter = next((mark for mark in ",;\t" if mark in head), ",")
    yield from _items_of_table(_records(text, path, delimiter), path, name)


def read_tsv(path: Path, name: str) -> Iterator[Item]:
    """A table with a header whose fields are separated by tabs, otherwise as CSV."""
    text, notes = text_of(path)
    yield from notes
    csv.field_size_limit(MAX_BYTES)
    yield from _items_of_table(_records(text, path, "\t"), path, name)


class _Record(NamedTuple):
    where: str
    columns: tuple[str, ...]
    fields: tuple[str, ...]


def _items_of_table(records: Iterable[_Record], path: Path, name: str) -> Iterator[Item]:
    """Facts and documents of a table of a known shape; one document of any other table."""
    records = list(records)
    columns = records[0].columns if records else ()
    if len(columns) > 1 and not is_shaped(columns):
        yield Item("read as a table: its columns are those of no known shape", str(path))
        text = table([columns, *(fields for _, _, fields in records)])
        yield Item(Document(name, text, path.stem), str(path))
        return
    yield from items_of(
        row_of(
            where,
            f"{name}-{where.rpartition(' ')[2]}",
            name,
            [(key, cell_of(key, field)) for key, field in zip(columns, fields, strict=True)],
        )
        for where, columns, fields in records
    )


def _records(text: str, path: Path, delimiter: str) -> Iterator[_Record]:
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
            full = [*fields, *[""] * len(header)][: len(header)]
            yield _Record(where, tuple(header), tuple(full))
    except csv.Error as error:
        raise DataError(
            f"{path} line {line} is not valid CSV ({error}); a quotation mark may be missing or "
            "stand inside a field (write it twice); repair that line."
        ) from error


def cell_of(key: str, field: str) -> str | list[str]:
    """A cell of this column; of those that may hold several texts, their list."""
    if key.lower() in ("aliases", "paraphrases", "answers"):
        return [part for part in field.split("|") if part.strip()]
    return field


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


LAYOUTS: dict[str, Layout] = {
    "[row, …]": list_of_rows,
    "{columns, data}": columns_and_data,
    "{data: [row, …]}": rows_under_data,
    "{train: [row, …], test: …}": rows_under_train,
    "{column: {number: cell}}": cells_under_columns,
    "row": one_row,
}
