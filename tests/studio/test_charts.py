"""Claims about drawings: every point is the record's, extremes stay, nothing is markup."""

from __future__ import annotations

import math
import re
from typing import Any
from xml.etree import ElementTree

import pytest

from lorewright.studio.charts import (
    LEFT,
    MOST_POINTS,
    NATS_BOTTOM,
    NATS_TOP,
    RIGHT,
    WIDTH,
    interval_chart,
    learning_chart,
    learning_sentence,
    strip_sentence,
    thinned,
    token_strip,
)


def epochs(n: int, *, held: bool = True) -> list[dict[str, Any]]:
    """A write of n epochs, in the shape of metrics.jsonl."""
    rows: list[dict[str, Any]] = [
        {
            "epoch": i,
            "epochs": n,
            "loss_nats": 2.0 / i,
            "n_recalled": min(10, i),
            "n_examples": 10,
        }
        for i in range(1, n + 1)
    ]
    measured = {"held_out_nats": 1.5, "held_out_recalled": 2, "n_held_out": 8}
    return [row | (measured if held else {}) for row in rows]


def curves(svg: str) -> list[tuple[str, list[tuple[float, float]]]]:
    """Class and points of every curve of a drawing, which must be well-formed."""
    root = ElementTree.fromstring(svg)
    lines = [each for each in root.iter() if each.tag.endswith("polyline")]
    return [
        (
            line.attrib["class"],
            [
                (float(x), float(y))
                for x, y in (p.split(",") for p in line.attrib["points"].split())
            ],
        )
        for line in lines
    ]


def test_a_curve_has_every_epoch_at_its_loss() -> None:
    rows = epochs(20)
    kind, points = curves(learning_chart(rows))[0]
    assert kind == "curve train" and len(points) == 20
    # back from the drawing to nats: the axis runs from 0.1 to 10 in powers of ten
    for row, (x, y) in zip(rows, points, strict=True):
        share = (NATS_BOTTOM - y) / (NATS_BOTTOM - NATS_TOP)
        assert math.log10(row["loss_nats"]) == pytest.approx(-1 + 2 * share, abs=0.01)
        assert x == pytest.approx(LEFT + (row["epoch"] - 1) / 19 * (WIDTH - RIGHT - LEFT), abs=0.1)


def test_held_out_is_dashed_and_named_and_absent_where_it_was_not_measured() -> None:
    both, alone = learning_chart(epochs(5)), learning_chart(epochs(5, held=False))
    assert [kind for kind, _ in curves(both)].count("curve held") == 2
    assert ">held out<" in both and ">trained<" in both
    assert [kind for kind, _ in curves(alone)] == ["curve train"] * 2 and "held out" not in alone
    assert learning_chart([]) == "" and "No epoch" in learning_sentence([])


def test_of_many_points_400_stay_with_the_extremes() -> None:
    points = [(float(i), math.sin(i / 7)) for i in range(5000)]
    points[1234] = (1234.0, 9.0)
    points[4000] = (4000.0, -9.0)
    shown = thinned(points)
    assert len(shown) <= MOST_POINTS and shown == sorted(shown)
    assert {(1234.0, 9.0), (4000.0, -9.0)} <= set(shown) <= set(points)
    assert thinned(points[:MOST_POINTS]) == points[:MOST_POINTS]
    assert len(learning_chart(epochs(2000))) < 20_000


def test_intervals_stand_where_the_record_has_them() -> None:
    recall = {"paraphrase": {"memory": {"n": 46, "recall": 0.91, "low": 0.8, "high": 0.97}}}
    svg = interval_chart(recall | {"<b>": {"base": {"n": 1, "recall": 0.0, "low": 0, "high": 1}}})
    ElementTree.fromstring(svg)
    assert "0.91 n=46" in svg and "&lt;b&gt;" in svg and "<b>" not in svg
    dot = re.search(r'<circle cx="([\d.]+)"', svg)
    assert dot and float(dot[1]) == pytest.approx(208 + 0.91 * 352, abs=0.1)
    empty = {"memory": {"n": 0, "recall": None, "low": None, "high": None}}
    assert interval_chart({"unknown": empty}) == ""


def test_a_strip_marks_doubt_twice_and_escapes_what_models_say() -> None:
    tokens = [
        {"piece": " Ma", "p": 0.9, "right": True, "rivals": [(" J", 0.05)]},
        {"piece": "<b>\n", "p": 0.2, "right": False, "rivals": [('"', 0.6)]},
    ]
    html = token_strip(tokens, "a")
    sure, doubtful = re.findall(r'<span role="option".*?</span>', html, re.DOTALL)
    assert "·</b>" not in sure and "<b>·Ma</b>" in sure and "sure" in sure
    assert "doubtful wrong" in doubtful and "&lt;b&gt;⏎" in doubtful
    assert "at token 2 of 2" in strip_sentence(tokens)
    ElementTree.fromstring(f"<div>{html}</div>")


def test_part_of_an_epoch_is_a_hollow_point_that_is_named() -> None:
    part = {"epoch": 1, "epochs": 60, "done": 0.25, "loss_nats": 4.5, "n_tokens": 1200}
    for before in (0, 3):
        drawn = learning_chart(epochs(before), part=part | {"epoch": before + 1})
        marks = re.findall(r'<circle class="point part" cx="([\d.]+)" cy="([\d.]+)"', drawn)
        assert len(marks) == 1 and NATS_TOP <= float(marks[0][1]) <= NATS_BOTTOM
        assert f"○ part of epoch {before + 1}: 25 % of it, 1,200 tokens" in drawn
        assert len(curves(drawn)) == (4 if before else 0)  # no curve runs through it
    assert "4.5000 nats" in learning_sentence([], part)
    assert learning_chart([]) == ""
