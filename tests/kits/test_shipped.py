"""Claims about the kits that are shipped: their cards, the page that quotes them, what they do."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from support.imports import ROOT

from lorewright.kits.examine import OTHER, OWN, SHUFFLED, SIZES, examined
from lorewright.models.model import Model
from lorewright.writers import kit as kits
from lorewright.writers.kit import SHIPPED, SUFFIX
from lorewright.writers.methods import LEARNED

PAGE = ROOT / "docs" / "explanation" / "kits.md"
FILES = sorted(SHIPPED.glob(f"*{SUFFIX}"))
N = 12
"""Documents; of the 40 of a card the first, so that a state that answers otherwise is seen."""


def quoted() -> dict[tuple[str, str, int], tuple[float, float, float]]:
    """Mean and interval of the page's table by method, arm and size."""
    cells: dict[tuple[str, str, int], tuple[float, float, float]] = {}
    method = ""
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        parts = [part.strip() for part in line.strip("|").split("|")]
        if len(parts) != 2 + len(SIZES) or parts[1] not in (OWN, SHUFFLED):
            continue
        method = parts[0].split("`")[1] if parts[0] else method
        for size, cell in zip(SIZES, parts[2:], strict=True):
            numbers = [float(number) for number in re.findall(r"\d\.\d+", cell)]
            if numbers:
                mean, low, high = numbers
                cells[method, parts[1], size] = mean, low, high
    return cells


def recalls(path: Path) -> list[dict[str, Any]]:
    """What a shipped kit's card says that it recalls."""
    rows: list[dict[str, Any]] = kits.load(path).card()["recalls"]
    return rows


def test_every_method_ships_a_kit_or_its_refusal_says_why() -> None:
    there = {kits.load(path).method for path in FILES}
    assert there | {*kits.NONE_SHIPS} == {*LEARNED} and not there & {*kits.NONE_SHIPS}
    assert sum(path.stat().st_size for path in FILES) <= 5_000_000


def test_the_page_quotes_the_cards() -> None:
    page = quoted()
    assert {method for method, _, _ in page} == {kits.load(path).method for path in FILES}
    for path in FILES:
        for row in recalls(path):
            place = kits.load(path).method, row["arm"], row["n_facts"]
            if place in page:
                on_card = row["recall"], row["low"], row["high"]
                assert page[place] == pytest.approx(on_card, abs=0.0051), place


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name.split("-")[0])
def test_a_shipped_kit_recalls_as_the_page_says(path: Path) -> None:
    model = Model.load("pocket")
    kit = kits.load(path)
    rows = examined(model, kit, lambda: Model.load("pocket"), n_documents=N, sizes=(1,))
    by_arm = {row.arm: row for row in rows}
    _, low, high = quoted()[kit.method, OWN, 1]
    own = by_arm[OWN]
    assert own.low <= high and low <= own.high, f"{own.recall} of {N}, quoted [{low}, {high}]"
    assert own.low > 0 == by_arm[OTHER].recall
    assert all(row.recall <= 1 / N for arm, row in by_arm.items() if arm != OWN)
