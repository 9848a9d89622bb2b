"""Claims about layout: numbers stay whole, prose wraps, wide tables stack, Markdown is valid."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console
from support.records import card, merge, record, verdict

from lorewright.adapters.targets import Coverage, Site
from lorewright.law.cells import read_cells
from lorewright.law.law import fit_report
from lorewright.law.law import table as law_rows
from lorewright.recall.statistics import wilson
from lorewright.reports import results
from lorewright.reports.tables import NOT_RUN, Rendered, Table, fitted, to_markdown, wrapped

INTERVAL = r"[-+−]?[\d.]+ \[[^\]]*\]"


def shown(table: Table, width: int = 140) -> str:
    console = Console(width=width, file=io.StringIO(), color_system=None)
    with console.capture() as captured:
        console.print(Rendered(table))
    return captured.get()


def law_table() -> Table:
    csv = Path(__file__).parents[2] / "examples" / "law_qwen_r100.csv"
    head, *rows = law_rows(fit_report(read_cells(csv), n_draws=20))
    return Table("The law", head, tuple(rows))


TABLES: dict[str, Callable[[], Table]] = {
    "verdict": lambda: results.recall_table(verdict()),
    "memories": lambda: results.memories_table([card("handbook"), card("staff-handbook-of-2027")]),
    "trials": lambda: results.trials_table(merge()),
    "merged": lambda: results.merged_table(merge()),
    "demonstration": lambda: results.contrast_table(record()),
    "estimates": lambda: results.estimates_table("Recall", {"base": wilson(1, 9), "other": None}),
    "targets": lambda: results.coverage_table(
        Coverage((Site("layers.0.q_proj", 0, "q_proj", 4, 4),), 4, {"lm_head": "the head"})
    ),
    "law": law_table,
}


@pytest.mark.parametrize("name", TABLES)
def test_every_table_has_the_same_numbers_at_80_and_120_columns(name: str) -> None:
    table = TABLES[name]()
    pages = {width: shown(table, width) for width in (80, 120)}
    for width, page in pages.items():
        assert max(map(len, page.splitlines())) <= width and "…" not in page
        for cell in (cell for row in table.rows for cell in row):
            for piece in re.findall(rf"{INTERVAL}|\S+", cell):
                assert piece in page, (width, piece)
    assert sorted(re.findall(INTERVAL, pages[80])) == sorted(re.findall(INTERVAL, pages[120]))


def test_a_table_too_wide_is_stacked_with_its_keys_once() -> None:
    heads = ("kind", "n", *(f"arm {i}" for i in range(5)))
    table = Table("T", heads, (("paraphrase", "6", *["0.94 [0.87, 0.97]"] * 5),), n_keys=2)
    stacked = fitted(table, 80)
    assert stacked.head == ("kind", "n", "", "value") and len(stacked.rows) == 5
    assert stacked.column(0) == ["paraphrase", "", "", "", ""]
    assert stacked.column(2) == [f"arm {i}" for i in range(5)]
    assert fitted(table, 140) is table


def test_prose_is_wrapped_before_anything_is_stacked() -> None:
    table = Table("", ("name", "why"), (("a name of some words", "word " * 40),), prose=("why",))
    narrow = fitted(table, 60)
    assert narrow.head == table.head and narrow.column(0) == table.column(0)
    assert "\n" in narrow.column(1)[0]
    assert max(map(len, shown(table, 60).splitlines())) <= 60


def test_a_line_never_ends_inside_an_interval() -> None:
    text = "recall 0.94 [0.87, 0.97] n=96, base 0.00 [0.00, 0.04] n=96"
    lines = wrapped(text, 26).split("\n")
    assert lines == ["recall", "0.94 [0.87, 0.97] n=96,", "base 0.00 [0.00, 0.04] n=96"] or (
        " ".join(lines) == text and all(line.count("[") == line.count("]") for line in lines)
    )


@pytest.mark.parametrize("text", ["", "word", "two\nlines", "a [b] c"])
def test_wrapping_at_any_width_loses_no_word(text: str) -> None:
    for width in (1, 5, 80):
        assert wrapped(text, width).split() == text.split()


def test_numbers_stand_at_the_right_and_text_at_the_left() -> None:
    table = Table("", ("name", "n"), (("a", "1,000"), ("long name", NOT_RUN), ("b", "2")))
    assert table.numeric(1) and not table.numeric(0)
    assert shown(table).splitlines()[-1].rstrip().endswith("    2")


def test_text_that_looks_like_markup_stays_text() -> None:
    table = Table("[red]T", ("a",), (("[b]x[/]",),), ("[bold]note[/]",))
    text = shown(table)
    assert "[red]T" in text and "[b]x[/]" in text and "[bold]note[/]" in text


def test_markdown_is_a_table_with_notes() -> None:
    text = to_markdown(Table("T", ("a|b", "c"), (("x\ny", "\\"),), ("a note",)))
    assert text == "| a\\|b | c |\n| --- | --- |\n| x y | \\\\ |\n\n- a note\n"
