"""Workbooks: the tables of their sheets, and sheets of questions and answers.

A sheet whose head names a shape of rows, such as question and answer, holds facts. Any other is a
part of one document, as Markdown tables: a block of rows without a gap is a table, a row with one
cell above it its caption.
"""

from __future__ import annotations

import datetime
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lorewright.errors import Unreadable
from lorewright.knowledge.data import Document
from lorewright.knowledge.markdown import table
from lorewright.knowledge.readers.cells import Row, row_of
from lorewright.knowledge.readers.converted import guarded, left_in_archive, names_in_archive
from lorewright.knowledge.readers.items import Item
from lorewright.knowledge.readers.rows import cell_of
from lorewright.knowledge.readers.shapes import is_shaped, items_of

if TYPE_CHECKING:
    from openpyxl.cell import Cell
    from openpyxl.worksheet.worksheet import Worksheet

MAX_CELLS = 1_000_000
"""A sheet that reaches further is refused, empty cells included."""


class Line(NamedTuple):
    """A row of a sheet with something in it."""

    number: int
    cells: tuple[str, ...]
    spread: bool
    """Whether a cell spans several columns here, though not all: a head of several rows."""


class Sheet(NamedTuple):
    """What stands on a sheet, and what of it is not read."""

    name: str
    lines: tuple[Line, ...]
    notes: tuple[str, ...] = ()


def read_xlsx(path: Path, name: str) -> Iterator[Item]:
    """A workbook: facts of the sheets that hold rows of a shape, one document of the others.

    The values of formulas are those that the file has stored. Hidden sheets, errors and formulas
    without a value are left out, with a note.
    """
    sheets, notes = guarded(path, _sheets)
    yield from (Item(note, str(path)) for note in notes)
    parts = []
    for n, sheet in enumerate(sheets, start=1):
        place = f"{path} sheet {sheet.name!r}"
        yield from (Item(note, place) for note in sheet.notes)
        tables = list(_blocks(sheet.lines))
        rows = [row for block in tables for row in _rows(block, place, f"{name}-{n}", name)]
        yield from items_of(rows)
        texts = [text for block in tables if (text := _markdown(block))]
        if texts and len(sheets) > 1:
            texts.insert(0, f"## {sheet.name}")
        parts += texts
    if parts:
        yield Item(Document(name, "\n\n".join(parts), path.stem), str(path))


def _sheets(path: Path) -> tuple[list[Sheet], list[str]]:
    from openpyxl import load_workbook

    names = names_in_archive(path)
    if "xl/workbook.xml" not in names:
        raise Unreadable(f"{path} is an archive and no workbook: it has no xl/workbook.xml.")
    with zipfile.ZipFile(path) as archive:
        parts = [part for part in names if part.startswith("xl/worksheets/")]
        computed = any(b"<f" in archive.read(part) for part in parts if part.endswith(".xml"))
    with path.open("rb") as file:
        values = load_workbook(file, data_only=True)
        formulas = load_workbook(file) if computed else None
    notes = list(left_in_archive(names))
    hidden = [sheet.title for sheet in values.worksheets if sheet.sheet_state != "visible"]
    if hidden:
        notes.append(f"hidden sheets are not read ({', '.join(hidden)})")
    visible = [sheet for sheet in values.worksheets if sheet.sheet_state == "visible"]
    for sheet in visible:
        if sheet.max_row * sheet.max_column > MAX_CELLS:
            raise Unreadable(
                f"{path} sheet {sheet.title!r} reaches to row {sheet.max_row} and column "
                f"{sheet.max_column}, {MAX_CELLS} cells are read; delete empty rows and columns, "
                "or split it."
            )
    sheets = [_sheet(sheet, formulas[sheet.title] if formulas else None) for sheet in visible]
    if not any(sheet.lines for sheet in sheets):
        why = "; ".join([*notes, *(note for sheet in sheets for note in sheet.notes)])
        raise Unreadable(f"{path} holds no cells with content{f' ({why})' if why else ''}.")
    return sheets, notes


def _sheet(sheet: Worksheet, formulas: Worksheet | None) -> Sheet:
    merged = {
        (row, column): (area.min_row, area.min_col)
        for area in sheet.merged_cells.ranges
        for row, column in _cells_of(area)
    }
    wide = {
        area.min_row
        for area in sheet.merged_cells.ranges
        if 1 < area.max_col - area.min_col + 1 < sheet.max_column
    }
    n_uncomputed = n_errors = 0
    lines = []
    for row in sheet.iter_rows():
        texts = []
        for cell in row:
            place = (cell.row, cell.column)
            first = sheet.cell(*merged.get(place, place))
            text = _text_of(first)
            if first.data_type == "e":
                n_errors += first is cell
                text = ""
            elif first.value is None and formulas is not None and first is cell:
                n_uncomputed += formulas.cell(*place).data_type == "f"
            texts.append(text)
        if any(texts):
            lines.append(Line(row[0].row, tuple(texts), row[0].row in wide))
    notes = []
    if n_uncomputed:
        notes.append(
            f"{n_uncomputed} formulas have no stored value and are not read; open and save the "
            "file in a spreadsheet program"
        )
    if n_errors:
        notes.append(f"{n_errors} cells hold an error and are not read")
    return Sheet(sheet.title, tuple(lines), tuple(notes))


def _cells_of(area: Any) -> Iterator[tuple[int, int]]:
    if area.size["rows"] * area.size["columns"] > MAX_CELLS:
        raise Unreadable(f"a merged cell spans {area.coord}; divide it.")
    for row in range(area.min_row, area.max_row + 1):
        for column in range(area.min_col, area.max_col + 1):
            yield row, column


def _text_of(cell: Cell) -> str:
    """A value as the sheet shows it, roughly: dates without midnight, percent, 15 digits."""
    value = cell.value
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, datetime.datetime):
        text = value.isoformat(sep=" ", timespec="minutes")
        return text.removesuffix(" 00:00")
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, int | float):
        percent = "%" in cell.number_format
        digits = format(value * 100 if percent else value, ".15g" if not percent else ".10g")
        return f"{digits} %" if percent else digits
    return " ".join(str(value).split())


# --- tables of a sheet -------------------------------------------------------------------------


class Block(NamedTuple):
    """Rows without a gap: what stands above the head, the head, and the rows below it."""

    above: tuple[str, ...]
    head: tuple[str, ...]
    lines: tuple[Line, ...]


def _blocks(lines: Sequence[Line]) -> Iterator[Block]:
    for _, run in groupby(enumerate(lines), key=lambda pair: pair[1].number - pair[0]):
        yield _block([line for _, line in run])


def _block(lines: list[Line]) -> Block:
    used = [n for n in range(len(lines[0].cells)) if any(line.cells[n] for line in lines)]
    rows = [line._replace(cells=tuple(line.cells[n] for n in used)) for line in lines]
    above = []
    while rows and len({cell for cell in rows[0].cells if cell}) == 1 and len(used) > 1:
        above.append(next(cell for cell in rows.pop(0).cells if cell))
    if not rows or len(used) == 1:
        return Block((*above, *(row.cells[0] for row in rows)), (), ())
    heads = [rows.pop(0)]
    while heads[-1].spread and len(rows) > 1:
        heads.append(rows.pop(0))
    columns = zip(*(line.cells for line in heads), strict=True)
    head = tuple(" ".join(dict.fromkeys(filter(None, column))) for column in columns)
    return Block(tuple(above), head, tuple(rows))


def _rows(block: Block, place: str, name: str, file: str) -> Iterable[Row]:
    """The rows of a block whose head names a shape; none of others."""
    if not block.lines or not is_shaped(block.head):
        return
    for number, cells, _ in block.lines:
        pairs = zip(block.head, cells, strict=True)
        values = [(key, cell_of(key, cell)) for key, cell in pairs if key]
        yield row_of(f"{place} row {number}", f"{name}-{number}", file, values)


def _markdown(block: Block) -> str:
    """A block that holds no rows of a shape, in Markdown."""
    if block.lines and is_shaped(block.head):
        return ""
    texts = list(block.above)
    if block.head:
        texts.append(table([block.head, *(line.cells for line in block.lines)]))
    return "\n\n".join(texts)
