"""Claims about measured cells: what a table may hold, and how many bits a cell is."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from lorewright.errors import DataError
from lorewright.knowledge.scoring import SAFE_NATS
from lorewright.law.cells import Cell, by_group, capacity, read_cells

FIXTURE = Path(__file__).parents[2] / "examples" / "law_qwen_r100.csv"
HEADER = "rank,n_answer_tokens,loss_drop\n"


def _file(folder: Path, text: str | bytes) -> Path:
    path = folder / "cells.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


# --- a table from anywhere


def test_fixture_has_the_seventy_cells_of_the_figure() -> None:
    cells = read_cells(FIXTURE)
    assert len(cells) == 70
    assert cells[0] == Cell(1, 200, 12.10)
    assert cells[-1] == Cell(24, 10000, 10.83)
    assert sum(cell.rank <= 6 and cell.n_answer_tokens <= 4000 for cell in cells) == 18


@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_columns_come_in_any_order_case_and_separator(tmp_path: Path, mark: str) -> None:
    header = "Loss_Drop,recall,RANK,n_answer_tokens,n,group,loss_init,n_parameters"
    text = f"\ufeff{header}\r\n\r\n2.5,0.75,8.0,1e3,40,seed 1,3.5,4096\r\n"
    path = _file(tmp_path, text.replace(",", mark))
    assert read_cells(path) == (Cell(8, 1000, 2.5, 3.5, 4096, 0.75, 40, "seed 1"),)


def test_optional_fields_may_be_empty(tmp_path: Path) -> None:
    path = _file(tmp_path, "rank,n_answer_tokens,loss_drop,recall,loss_init\n1,200,2.5,,\n")
    assert read_cells(path) == (Cell(1, 200, 2.5),)


def test_cells_of_two_groups_are_no_repetition(tmp_path: Path) -> None:
    path = _file(tmp_path, "rank,n_answer_tokens,loss_drop,group\n1,200,2.5,a\n1,200,2.6,b\n")
    assert [by_group(cell) for cell in read_cells(path)] == ["a", "b"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        (b"\x00\x01\x02\x03\x00\x00", "is binary"),
        (b"rank,gr\x81e\n", "is not UTF-8"),
        (HEADER, "holds a header and no cells"),
        ("1,200,12.1\n", "line 1 names the columns 1, 200, 12.1; rank, n_answer_tokens, loss_drop"),
        ("rank,loss_drop\n1,2\n", "n_answer_tokens is missing"),
        (
            "rank,n_answer_tokens,loss_drop,seed\n1,2,3,4\n",
            "line 1 names the unknown column 'seed'",
        ),
        ("rank,rank,n_answer_tokens,loss_drop\n1,1,2,3\n", "names a column twice"),
        (HEADER + "1,200\n", "line 2 has 2 fields and the header 3"),
        (HEADER + "1,200,2.5\n\n2,200,much\n", "line 4: loss_drop is 'much'; give a number"),
        (HEADER + "1,200,\n", "line 2: loss_drop is ''"),
        (HEADER + "1,200,nan\n", "line 2: loss_drop is 'nan'; give a finite number"),
        (HEADER + "1,200,inf\n", "line 2: loss_drop is 'inf'; give a finite number"),
        (HEADER + "inf,200,1\n", "line 2: rank is 'inf'; give a finite number"),
        (HEADER + "-1,200,2.5\n", "line 2: rank is -1; give a whole number from 1 up"),
        (HEADER + "1.5,200,2.5\n", "line 2: rank is '1.5'; give a whole number"),
        (HEADER + "1,0,2.5\n", "line 2: n_answer_tokens is 0"),
        (HEADER + '1,200,"2.5\n', "line 2 is not valid CSV"),
        (
            HEADER + "1,200,2.5\n2,200,3\n1,200,2.6\n",
            "line 4 repeats rank 1 and 200 tokens of line 2",
        ),
        ("rank,n_answer_tokens,loss_drop,recall\n1,200,2,95\n", "line 2: recall is 95.0"),
        ("rank,n_answer_tokens,loss_drop,loss_init\n1,200,3,2\n", "line 2: loss_drop is 3.0 and"),
        ("rank,n_answer_tokens,loss_drop,loss_init\n1,200,-3,0\n", "line 2: loss_init is 0.0"),
    ],
)
def test_bad_table_is_refused_with_file_and_line(
    tmp_path: Path, text: str | bytes, message: str
) -> None:
    with pytest.raises(DataError) as refusal:
        read_cells(_file(tmp_path, text))
    assert message in str(refusal.value)
    assert "cells.csv" in str(refusal.value)


def test_missing_file_and_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no such file"):
        read_cells(tmp_path / "none.csv")
    with pytest.raises(DataError, match="not a regular file"):
        read_cells(tmp_path)


# --- one cell


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_cell_refuses_what_is_not_finite(value: float) -> None:
    with pytest.raises(DataError, match="finite"):
        Cell(1, 200, value)


def test_cell_may_have_made_the_loss_worse() -> None:
    assert Cell(1, 200, -0.5, 3.0).bits < 0


def test_cell_is_saturated_from_ln_2_down() -> None:
    assert Cell(1, 200, 3.0, 3.0 + SAFE_NATS / 2).is_saturated
    assert not Cell(1, 200, 3.0, 3.0 + 2 * SAFE_NATS).is_saturated
    assert not Cell(1, 200, 3.0).is_saturated


def test_grouping_cells_without_a_group_is_refused() -> None:
    with pytest.raises(DataError, match="rank 1 and 200 tokens has none"):
        by_group(Cell(1, 200, 3.0))


# --- bits


def test_a_nat_is_one_over_ln_2_bits() -> None:
    assert Cell(1, 1000, math.log(2)).bits == pytest.approx(1000)


def test_fixture_stores_two_bits_a_parameter_at_rank_1_and_less_above() -> None:
    # One branch of rank r around a block of width 4096 has 2 × 4096 r parameters.
    cells = [replace(cell, n_parameters=8192 * cell.rank) for cell in read_cells(FIXTURE)]
    result = capacity(cells)
    assert [row.rank for row in result] == [1, 2, 4, 6, 8, 10, 12, 14, 16, 24]
    assert {row.n_answer_tokens for row in result} == {10000}
    assert result[0].bits_per_parameter == pytest.approx(2.28, abs=0.02)
    assert result[-1].bits_per_parameter == pytest.approx(0.79, abs=0.01)


def test_capacity_without_parameters_counts_bits_only() -> None:
    (row,) = capacity([Cell(1, 200, 2.0), Cell(1, 1000, 1.0)])
    assert (row.n_answer_tokens, row.bits_per_parameter) == (1000, None)
