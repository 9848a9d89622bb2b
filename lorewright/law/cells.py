"""Cells: what runs of known size learned from texts of known length, and how many bits that is.

A cell is one point that the memory law is fitted on; a table of them is read from CSV, wherever it
was measured. Knows nothing of laws, models or how the runs were made.

Source: "How LoRA Remembers? A Parametric Memory Law for LLM Finetuning", arXiv 2605.30260.
"""

import csv
import io
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from lorewright.errors import DataError
from lorewright.files import read_text
from lorewright.knowledge.scoring import SAFE_NATS

REFERENCE_BITS = {
    "raw memorisation by whole transformers (Morris et al. 2025, arXiv 2505.24832)": 3.6,
    "knowledge in whole transformers (Allen-Zhu & Li 2024, arXiv 2404.05405)": 2.0,
}
"""Bits per parameter that others have measured, to stand beside one's own."""

_REQUIRED = ("rank", "n_answer_tokens", "loss_drop")
_COLUMNS = (*_REQUIRED, "loss_init", "n_parameters", "recall", "n", "group")


@dataclass(frozen=True)
class Cell:
    """What one run, or the mean of several, at one rank and one length came to.

    Losses are nats per answer token. A loss_drop may be negative: the run made it worse. Raises
    DataError for values that no run can have.
    """

    rank: int
    n_answer_tokens: int
    """Of all answers together, without template tokens."""
    loss_drop: float
    """L_init - L_final."""
    loss_init: float | None = None
    n_parameters: int | None = None
    """Of the adapter; comparable between target sets, which ranks are not."""
    recall: float | None = None
    """Share of the answers that were reproduced exactly."""
    n: int | None = None
    """How many answers the recall is of."""
    group: str = ""
    """What cells share that stand or fall together: a seed, a document."""

    def __post_init__(self) -> None:
        """Refuse what no run can have."""
        for name in ("rank", "n_answer_tokens", "n_parameters", "n"):
            count = vars(self)[name]
            if count is not None and count < 1:
                raise DataError(f"{name} is {count}; give a whole number from 1 up.")
        for name in ("loss_drop", "loss_init", "recall"):
            value = vars(self)[name]
            if value is not None and not math.isfinite(value):
                raise DataError(f"{name} is {value}; give a finite number, or leave the cell out.")
        if self.loss_init is not None and self.loss_init <= 0:
            raise DataError(f"loss_init is {self.loss_init}; give the nats before the write, > 0.")
        if self.loss_init is not None and self.loss_drop > self.loss_init:
            raise DataError(
                f"loss_drop is {self.loss_drop} and loss_init {self.loss_init}; a loss cannot "
                "fall below zero; check that both are nats per answer token."
            )
        if self.recall is not None and not 0 <= self.recall <= 1:
            raise DataError(f"recall is {self.recall}; give a share between 0 and 1.")

    @property
    def is_saturated(self) -> bool:
        """Whether L_final <= ln 2; a cell without loss_init is taken for unsaturated."""
        return self.loss_init is not None and self.loss_init - self.loss_drop <= SAFE_NATS

    @property
    def bits(self) -> float:
        """Bits stored: loss_drop × n_answer_tokens / ln 2."""
        return self.loss_drop * self.n_answer_tokens / math.log(2.0)


def by_group(cell: Cell) -> str:
    """Return the cell's group, for resampling whole groups; raise DataError where it has none."""
    if not cell.group:
        raise DataError(
            f"groups cannot be resampled: the cell of rank {cell.rank} and {cell.n_answer_tokens} "
            "tokens has none; fill the column group, or resample cells."
        )
    return cell.group


class Capacity(NamedTuple):
    """The most bits that any cell of a rank stored, and how many that is per parameter."""

    rank: int
    n_parameters: int | None
    n_answer_tokens: int
    bits: float
    bits_per_parameter: float | None


def capacity(cells: Iterable[Cell]) -> tuple[Capacity, ...]:
    """Return the capacity of every rank and number of parameters, smallest first.

    Where the longest text stored the most, longer ones may store more.
    """
    best: dict[tuple[int, int], Cell] = {}
    for cell in cells:
        key = (cell.rank, cell.n_parameters or 0)
        if key not in best or cell.bits > best[key].bits:
            best[key] = cell
    return tuple(
        Capacity(
            cell.rank,
            cell.n_parameters,
            cell.n_answer_tokens,
            cell.bits,
            cell.bits / cell.n_parameters if cell.n_parameters else None,
        )
        for _, cell in sorted(best.items())
    )


# --- a table from anywhere ---------------------------------------------------------------------


def read_cells(path: Path | str) -> tuple[Cell, ...]:
    """Return the cells of a CSV file, in order.

    Columns, in any order and case: rank, n_answer_tokens, loss_drop; optional loss_init,
    n_parameters, recall, n, group, whose fields may be empty. Separators: comma, semicolon, tab.
    Raises DataError, with the line, for anything else: a missing or unknown column, a field that
    is no number, a value that no run can have, two cells of the same size, length and group.
    """
    path = Path(path)
    text = read_text(path)
    head = text.lstrip().split("\n", 1)[0]
    rows = _rows(text, path, next((mark for mark in ",;\t" if mark in head), ","))
    line, first = next(rows)
    header = _header(first, f"{path} line {line}")
    lines: dict[tuple[object, ...], int] = {}
    cells = []
    for line, row in rows:
        where = f"{path} line {line}"
        if len(row) != len(header):
            raise DataError(f"{where} has {len(row)} fields and the header {len(header)}.")
        cell = _cell(dict(zip(header, (field.strip() for field in row), strict=True)), where)
        key = (cell.rank, cell.n_answer_tokens, cell.n_parameters, cell.group)
        if key in lines:
            raise DataError(
                f"{where} repeats rank {cell.rank} and {cell.n_answer_tokens} tokens of line "
                f"{lines[key]}; name each seed or document in the column group, or keep one."
            )
        lines[key] = line
        cells.append(cell)
    if not cells:
        raise DataError(f"{path} holds a header and no cells; give one run a line.")
    return tuple(cells)


def _rows(text: str, path: Path, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows that are not blank, each with the line on which it begins."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    line = 1
    try:
        for row in reader:
            if any(field.strip() for field in row):
                yield line, row
            line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{path} line {line} is not valid CSV ({error}); repair it.") from error


def _header(first: Sequence[str], where: str) -> list[str]:
    names = [name.strip().lower() for name in first]
    unknown = [name for name in names if name not in _COLUMNS]
    missing = [name for name in _REQUIRED if name not in names]
    if missing:
        raise DataError(
            f"{where} names the columns {', '.join(names)}; {', '.join(missing)} is missing."
        )
    if unknown:
        raise DataError(
            f"{where} names the unknown column {unknown[0]!r}; known are {', '.join(_COLUMNS)}; "
            "rename it or take it out."
        )
    if len(set(names)) != len(names):
        raise DataError(f"{where} names a column twice among {', '.join(names)}; keep one.")
    return names


def _cell(fields: dict[str, str], where: str) -> Cell:
    try:
        return Cell(
            rank=_count(fields, "rank"),
            n_answer_tokens=_count(fields, "n_answer_tokens"),
            loss_drop=_number(fields, "loss_drop"),
            loss_init=_number(fields, "loss_init") if fields.get("loss_init") else None,
            n_parameters=_count(fields, "n_parameters") if fields.get("n_parameters") else None,
            recall=_number(fields, "recall") if fields.get("recall") else None,
            n=_count(fields, "n") if fields.get("n") else None,
            group=fields.get("group", ""),
        )
    except DataError as error:
        raise DataError(f"{where}: {error}") from error


def _number(fields: dict[str, str], name: str) -> float:
    try:
        number = float(fields[name])
    except ValueError as error:
        raise DataError(f"{name} is {fields[name]!r}; give a number such as 2.81.") from error
    if not math.isfinite(number):
        raise DataError(f"{name} is {fields[name]!r}; give a finite number, or take the line out.")
    return number


def _count(fields: dict[str, str], name: str) -> int:
    number = _number(fields, name)
    if number != int(number):
        raise DataError(f"{name} is {fields[name]!r}; give a whole number.")
    return int(number)
