"""Tables as data, and as a terminal and Markdown show them; `pages` shows them as HTML.

A number stands with its n and its interval and is never broken over lines; what was not run is a
dash. A table that is wider than the terminal first wraps its prose, then stacks its columns as
rows: every number that stands at 120 columns stands at 80.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.table import Table as RichTable

NOT_RUN = "–"
GAP = 2
"""Spaces between columns on a terminal."""
LEAST_PROSE = 16
"""Characters below which a column of prose is no longer narrowed."""
PIECE = re.compile(r"\S+(?: \[[-+−–\d., %e]*\]\S*)*(?: n=\d+\S*)?")
"""What is never broken: a word, or a number with its interval and its n."""
NUMBER = re.compile(r"[-+−~]?\d[\d.,]*(?:e[-+]?\d+)?\+?(?: ?%)?")


@dataclass(frozen=True)
class Table:
    """Rows of text under a head, with what must be read beside them."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    """Explanations, one a line, below the table."""
    _: KW_ONLY
    subtitle: str = ""
    n_keys: int = 1
    """Columns that name a row; the others are stacked as rows where the width is short."""
    stacked: tuple[str, str] = ("", "value")
    """Heads of the two columns that stacked columns become: their name and their cell."""
    prose: tuple[str, ...] = ()
    """Columns of sentences, which may be broken between words."""
    dim: tuple[str, ...] = ()
    """Columns of lesser weight, such as controls."""
    bold: tuple[int, ...] = ()
    """Rows of greater weight, by index."""
    sections: tuple[int, ...] = ()
    """Rows after which there is a gap."""

    def column(self, at: int) -> list[str]:
        """Return the cells of a column."""
        return [row[at] for row in self.rows]

    def numeric(self, at: int) -> bool:
        """Return whether a column holds plain numbers, which stand at the right."""
        cells = [cell for cell in self.column(at) if cell not in (NOT_RUN, "")]
        return bool(cells) and all(NUMBER.fullmatch(cell) for cell in cells)


def wrapped(text: str, width: int) -> str:
    """Break a text into lines of at most so many characters, never inside a number's interval."""
    lines = []
    for paragraph in text.split("\n"):
        line = ""
        for piece in PIECE.findall(paragraph):
            if line and len(line) + 1 + len(piece) > width:
                lines.append(line)
                line = ""
            line = f"{line} {piece}" if line else piece
        lines.append(line)
    return "\n".join(lines)


def fitted(table: Table, width: int) -> Table:
    """Return a table whose lines have at most so many characters, as far as its pieces allow."""
    widths = _widths(table)
    if sum(widths) <= _budget(table, width):
        return table
    narrow = _with_wrapped_prose(table, width)
    if sum(_widths(narrow)) <= _budget(table, width):
        return narrow
    stacked = _stacked(table)
    if sum(_widths(stacked)) <= _budget(stacked, width):
        return stacked
    return _with_wrapped_prose(stacked, width)


def _budget(table: Table, width: int) -> int:
    return width - GAP * (len(table.head) - 1)


def _widths(table: Table) -> list[int]:
    return [
        max(len(line) for cell in (name, *table.column(at)) for line in cell.split("\n"))
        for at, name in enumerate(table.head)
    ]


def _with_wrapped_prose(table: Table, width: int) -> Table:
    """The columns of prose share what the others leave."""
    widths, at = _widths(table), [i for i, name in enumerate(table.head) if name in table.prose]
    rest = _budget(table, width) - sum(w for i, w in enumerate(widths) if i not in at)
    share = dict.fromkeys(at, 0)
    for i in sorted(at, key=lambda i: widths[i]):  # a narrow one leaves more to the others
        share[i] = max(LEAST_PROSE, min(widths[i], rest // len(at)))
        rest, at = rest - share[i], at[1:]
    rows = tuple(
        tuple(wrapped(cell, share[i]) if i in share else cell for i, cell in enumerate(row))
        for row in table.rows
    )
    return replace(table, rows=rows)


def _stacked(table: Table) -> Table:
    """A row for every cell that is no key: its column's name, then the cell."""
    n, rows, bold, sections = table.n_keys, list[tuple[str, ...]](), [], []
    for at, row in enumerate(table.rows):
        keys: Sequence[str] = row[:n]
        for name, cell in zip(table.head[n:], row[n:], strict=True):
            if cell:
                bold += [len(rows)] if at in table.bold and name not in table.dim else []
                rows.append((*keys, name, cell))
                keys = ("",) * n
        sections += [len(rows) - 1] if at in table.sections else []
    return replace(
        table,
        head=(*table.head[:n], *table.stacked),
        rows=tuple(rows),
        prose=(*table.prose, table.stacked[1]),
        dim=(),
        bold=tuple(bold),
        sections=tuple(sections),
    )


class Rendered:
    """A table for rich, laid out for the width that it is printed at."""

    def __init__(self, table: Table) -> None:
        self.table = table

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.text import Text

        table = fitted(self.table, options.max_width)
        if table.title:
            heading = f"{table.title}  {table.subtitle}".strip()
            text = Text(wrapped(heading, options.max_width), "bold")
            text.stylize("not bold dim", len(table.title))
            yield text
        if table.rows:
            yield _rich(table)
        for note in table.notes:
            yield Text(wrapped(note, options.max_width), "dim")


def _rich(table: Table) -> RichTable:
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    drawn = RichTable(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    for at, name in enumerate(table.head):
        drawn.add_column(
            Text(name),
            justify="right" if table.numeric(at) else "left",
            style="dim" if name in table.dim else "",
            overflow="fold",  # a number cut short would be another number
        )
    for at, row in enumerate(table.rows):
        style = "bold" if at in table.bold else ""
        drawn.add_row(*map(Text, row), style=style, end_section=False)
        if at in table.sections:
            drawn.add_row(*[""] * len(row))
    return drawn


# -- Markdown ------------------------------------------------------------------------------------


def to_markdown(table: Table) -> str:
    """Return the rows and notes as GitHub-flavoured Markdown; the title is the caller's."""
    text = "".join(_markdown_lines(table))
    notes = "".join(f"- {note}\n" for note in table.notes)
    return f"{text}\n{notes}" if notes else text


def _markdown_lines(table: Table) -> Iterator[str]:
    for line in (table.head, ["---"] * len(table.head), *table.rows):
        cells = (" ".join(cell.split()).replace("\\", "\\\\").replace("|", "\\|") for cell in line)
        yield f"| {' | '.join(cells)} |\n"
