"""Claims about figures: drawn from records alone, equal for equal records, refused in sentences."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from support.records import record, row

from lorewright.errors import ConfigError, DataError
from lorewright.reports.figures.contrast import contrast_figure
from lorewright.reports.figures.style import apart


@pytest.mark.parametrize("name", ["light.svg", "dark.svg", "light.png", "dark.png"])
def test_figure_is_drawn_from_json_alone(tmp_path: Path, name: str) -> None:
    stored = json.loads(json.dumps(record()))
    path = tmp_path / "figures" / name
    contrast_figure(stored, path, dark=name.startswith("dark"))
    begins = b"\x89PNG" if name.endswith("png") else b"<?xml"
    assert path.read_bytes().startswith(begins)
    assert [p.name for p in path.parent.iterdir()] == [name]
    assert "matplotlib.pyplot" not in sys.modules


def test_equal_records_give_equal_figures(tmp_path: Path) -> None:
    for name in ("a.svg", "b.svg"):
        contrast_figure(record(), tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    contrast_figure(record(), tmp_path / "dark.svg", dark=True)
    assert (tmp_path / "a.svg").read_bytes() != (tmp_path / "dark.svg").read_bytes()


def title_of(path: Path) -> str:
    found = re.search(r"<dc:title>(.*?)</dc:title>", path.read_text(encoding="utf-8"))
    assert found
    return found[1]


def test_title_states_the_finding_only_if_the_record_shows_it(tmp_path: Path) -> None:
    path = tmp_path / "a.svg"
    contrast_figure(record(), path)
    assert title_of(path) == "Both losses fall; only “questions and answers” can be recalled"

    both = record()
    both["curves"]["next token"]["recall"] = [0.9] * 40
    flat = record()
    flat["curves"]["next token"]["loss"] = [2.0] * 40
    poor = record()
    poor["rows"][2] = row("write: questions and answers", 20)
    for other in (both, flat, poor):
        contrast_figure(other, path)
        assert title_of(path) == "One handbook, two ways"


def test_figures_of_short_and_rounded_curves_are_drawn(tmp_path: Path) -> None:
    short = {"epoch": [1], "loss": [0.5], "recall": [0.0]}
    zero = {"epoch": [1, 2], "loss": [0.5, 0.0], "recall": [0.0, 1.0]}
    for name, curves in (("a.svg", {"one": short}), ("b.svg", {"next token": short, "two": zero})):
        contrast_figure(record(curves=curves, rows=[row("stable", 1)]), tmp_path / name)
        assert (tmp_path / name).exists()


@pytest.mark.parametrize(
    "curves",
    [{}, {"a": {"epoch": [], "loss": [], "recall": []}}, {"a": {"epoch": [1]}}, [1]],
)
def test_a_record_without_usable_curves_is_refused(tmp_path: Path, curves: Any) -> None:
    with pytest.raises(DataError, match="another shape"):
        contrast_figure(record(curves=curves), tmp_path / "a.svg")
    assert list(tmp_path.iterdir()) == []


def test_figures_are_svg_or_png(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="change the suffix"):
        contrast_figure(record(), tmp_path / "a.pdf")


def test_without_matplotlib_the_command_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigError, match=r"pip install lorewright\[figures\]"):
        contrast_figure(record(), tmp_path / "a.svg")


def test_labels_keep_their_order_and_distance() -> None:
    assert apart([10.0, 100.0], 20.0) == [10.0, 100.0]
    assert apart([50.0, 50.0, 55.0], 10.0) == pytest.approx([41.67, 51.67, 61.67], abs=0.01)
