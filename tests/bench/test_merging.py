"""Claims about the benchmark of merging: what is lost, of what, and who counts as worse off."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.sections import ROW, section, stored

from lorewright.bench import merging
from lorewright.bench.task import load, page, run
from lorewright.errors import ConfigError, DataError
from lorewright.reports.page import to_markdown

GORSE = section("prose-gorse", "Gorse Ferry", "Tom Reed", "QP-17")


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("merging")
    data = stored(folder, ROW, GORSE)
    methods = ("mean", "ties", "refine")
    config = merging.Merging(model="pocket", data=data, left_out=3, methods=methods, patience=0)
    return run(load("merging"), config, folder / "out")


def test_every_method_is_asked_for_both_sources_beside_the_controls(merged: dict[str, Any]) -> None:
    assert set(merged["shares"]) == {
        *(merging.ALONE, merging.OTHER, merging.BASE),
        *("mean", "ties", "refine"),
    }
    assert {share["paraphrase"]["n"] for share in merged["shares"].values()} == {4}
    alone, base = (merged["shares"][arm]["paraphrase"] for arm in (merging.ALONE, merging.BASE))
    assert alone["mean"] > base["mean"] == 0


def test_the_page_has_a_row_a_method(merged: dict[str, Any]) -> None:
    text = to_markdown(page(merged))
    assert all(f"| {method} |" in text for method in ("mean", "ties", "refine", merging.ALONE))
    assert "of 1 |" in text


def rows(**scores: tuple[float, float]) -> list[dict[str, Any]]:
    """Two questions of a source under two arms."""
    return [
        {"source": source, "kind": "paraphrase", "arm": arm, "score": score}
        for source, both in scores.items()
        for arm, share in zip((merging.ALONE, "mean"), both, strict=True)
        for score in (1.0, 2 * share - 1)
    ]


def test_losses_are_of_what_a_source_recalls_alone() -> None:
    a, b = merging.losses_of(rows(a=(1.0, 0.75), b=(1.0, 0.5)), "mean")
    assert (a, b) == (0.25, 0.5)
    nothing = [{"source": "a", "kind": "paraphrase", "arm": merging.ALONE, "score": 0.0}]
    nothing += [{**nothing[0], "arm": "mean", "score": 1.0}]
    assert merging.losses_of(nothing, "mean") == [], "of nothing, nothing can be lost"


def test_what_cannot_be_merged_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="average_of_all"):
        merging.Merging(data="x", methods=("average_of_all",))
    with pytest.raises(DataError, match="a merge needs two"):
        merging.check(merging.Merging(data=stored(tmp_path, ROW), left_out=3))


def test_no_document_is_in_two_pairs(tmp_path: Path) -> None:
    names = ("Teal Office", "Gorse Ferry", "Amber Mill", "Slate Inn", "Flint Pier")
    data = stored(tmp_path, *(section(f"prose-{n}", n, "Ida Moor", "AB-1") for n in names))
    pairs = [job["pair"] for job in merging.jobs(merging.Merging(data=data, left_out=3), "")]
    assert len(pairs) == 2 and len({own for pair in pairs for own in pair}) == 4
