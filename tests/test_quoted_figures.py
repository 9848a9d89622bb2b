"""The figures that README and docs quote are those of records that lie beside them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
RECORDS = sorted(
    [*ROOT.glob("docs/results/**/*.json"), *ROOT.glob("docs/results/studies/*/study.json")]
)
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]
QUOTED = re.compile(r"([+−-]?\d*\.\d+) \[([+−-]?\d*\.\d+), ([+−-]?\d*\.\d+)\]")
"""A mean and its interval."""
WITHOUT_RECORD = {
    "docs/explanation/engine.md": 9,
    "docs/explanation/kits.md": 27,
    "docs/explanation/merging.md": 2,
    "docs/explanation/objectives.md": 4,
    "docs/explanation/routing.md": 5,
    "docs/explanation/variants.md": 1,
    "docs/results/index.md": 2,
    "docs/results/law/linear-rule.md": 27,
    "docs/results/law/longcontext.md": 141,
    "docs/results/law/phonebook.md": 43,
    "docs/results/many-memories.md": 57,
    "docs/tutorial.md": 13,
}
"""Figures of commands whose records were not kept; may only shrink."""


def estimates(record: Any) -> Iterator[tuple[float, float, float]]:
    """Every mean with its interval that a record holds."""
    if isinstance(record, dict):
        mean = record.get("mean", record.get("recall"))
        ends = record.get("low"), record.get("high")
        if isinstance(mean, float | int) and None not in ends:
            yield (mean, *ends)
        parts: Any = record.values()
    else:
        parts = record if isinstance(record, list) else ()
    for part in parts:
        yield from estimates(part)


@cache
def recorded() -> frozenset[tuple[str, str, str]]:
    """Means and intervals of all records as they may be quoted, with one to four decimals."""
    every = {each for path in RECORDS for each in estimates(json.loads(path.read_text("utf-8")))}
    return frozenset(
        tuple(f"{abs(value):.{n}f}" for value in each)  # type: ignore[misc]
        for each in every
        for n in (1, 2, 3, 4)
    )


def strangers(page: Path) -> list[str]:
    """Quoted means with intervals that no record has."""
    text = page.read_text("utf-8")
    return [
        found.group()
        for found in QUOTED.finditer(text)
        if tuple(part.lstrip("+−-") for part in found.groups()) not in recorded()
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_mean_with_an_interval_stands_in_a_record(page: Path) -> None:
    unknown = strangers(page)
    allowed = WITHOUT_RECORD.get(str(page.relative_to(ROOT)), 0)
    assert len(unknown) <= allowed, unknown


def test_a_page_that_is_listed_has_figures_without_a_record() -> None:
    counts = {str(page.relative_to(ROOT)): len(strangers(page)) for page in PAGES}
    assert not [page for page in WITHOUT_RECORD if not counts.get(page)]


def test_there_are_records_and_they_are_quoted() -> None:
    known = sum(
        len(QUOTED.findall(page.read_text("utf-8"))) - len(strangers(page)) for page in PAGES
    )
    assert len(RECORDS) > 2 and known > 100
