"""Drawings of the pages that compare and merge: memories as points, a timeline, arrows to drag."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from lorewright.studio.charts import linear, log, svg, tick

LEFT, TOP, RIGHT, BOTTOM = 52, 16, 540, 276
SIZE, HALF = 440, 220
"""Of the square in which arrows are drawn."""
MARGIN = 64
REACH = 1.4
"""Largest weight that the square has room for."""


def points_chart(points: Sequence[Mapping[str, Any]], claims: Sequence[Mapping[str, Any]]) -> str:
    """Recall against the share of the base that a state has; what is retained as a second mark.

    A line from each point goes to the share that the paper of its method states.
    """
    shown = [p for p in points if p["share"] and p["recall"] and p["recall"]["recall"] is not None]
    if not shown:
        return ""
    stated = {c["method"]: c["share"] for c in claims if c["method"] and c["share"]}
    claimed = [stated[p["method"]] for p in shown if p["method"] in stated]
    shares = [*(p["share"] for p in shown), *claimed]
    low = 10.0 ** math.floor(math.log10(min(shares)))
    high = max(1.0, 10.0 ** math.ceil(math.log10(max(shares))))
    x, y = log(low, high, LEFT, RIGHT), linear(0.0, 1.0, BOTTOM, TOP)
    parts = []
    for at in (0.0, 0.25, 0.5, 0.75, 1.0):
        ends = f'x1="{LEFT}" x2="{RIGHT}" y1="{y(at):.1f}" y2="{y(at):.1f}"'
        parts.append(f'<line class="grid" {ends}/>{tick(LEFT - 8, y(at) + 4, f"{at:g}", "end")}')
    for power in range(round(math.log10(low)), round(math.log10(high)) + 1):
        parts.append(tick(x(10.0**power), BOTTOM + 18, f"{100 * 10.0**power:g} %", "middle"))
    for point in shown:
        parts += _point(point, x(point["share"]), y, stated.get(point["method"]), x)
    parts.append(f'<text class="axis" x="{RIGHT + 28}" y="{BOTTOM + 18}">of base</text>')
    best = shown[0]
    sentence = (
        f"Recall against size of {len(shown)} memories; first is {best['memory']}, recall "
        f"{best['recall']['recall']:.2f} with {100 * best['share']:.2g} % of the base."
    )
    return svg(BOTTOM + 28, sentence, parts)


def _point(
    point: Mapping[str, Any], across: float, y: Any, claimed: float | None, x: Any
) -> list[str]:
    recall = point["recall"]
    at = y(recall["recall"])
    parts = [
        f'<line class="whisker" x1="{across:.1f}" x2="{across:.1f}" y1="{y(recall["low"]):.1f}" '
        f'y2="{y(recall["high"]):.1f}"/>'
    ]
    if claimed:
        parts.append(
            f'<line class="claim" x1="{across:.1f}" x2="{x(claimed):.1f}" y1="{at:.1f}" '
            f'y2="{at:.1f}"/><path class="claim" d="M{x(claimed):.1f} {at - 5:.1f}v10"/>'
        )
    retained = point["retained"]
    if retained and retained["recall"] is not None:
        other = y(retained["recall"])
        parts.append(
            f'<rect class="point held" x="{across - 4:.1f}" y="{other - 4:.1f}" width="8" '
            'height="8"/>'
        )
    about = f"{point['memory']}, {point['method']}: {recall['recall']:.2f} n={recall['n']}"
    parts.append(
        f'<circle class="point train" cx="{across:.1f}" cy="{at:.1f}" r="5" '
        f'data-memory="{escape(point["memory"])}"><title>{escape(about)}</title></circle>'
    )
    end = across > RIGHT - 90
    anchor, shift = ("end", -8) if end else ("start", 8)
    parts.append(
        f'<text class="arm" x="{across + shift:.1f}" y="{at - 7:.1f}" text-anchor="{anchor}">'
        f"{escape(point['memory'])}</text>"
    )
    return parts


def timeline(claims: Sequence[Mapping[str, Any]], points: Sequence[Mapping[str, Any]]) -> str:
    """Ways of writing by the month of their papers; those that the folder has are filled."""
    dated = [claim for claim in claims if claim["published"]]
    months = [12 * int(c["published"][:4]) + int(c["published"][5:]) for c in dated]
    first, last = min(months) // 12 * 12, (max(months) // 12 + 1) * 12
    x = linear(first, last, LEFT, RIGHT + 40)
    own = {point["method"] for point in points}
    parts = [f'<line class="line" x1="{LEFT}" x2="{RIGHT + 40}" y1="64" y2="64"/>']
    for month in range(first, last + 1, 12):
        parts.append(tick(x(month), 112, f"{month // 12}", "middle"))
        parts.append(f'<path class="grid" d="M{x(month):.1f} 60v8"/>')
    for n, (claim, month) in enumerate(zip(dated, months, strict=True)):
        here = "here" if claim["method"] in own else "elsewhere"
        up = (90, 44, 90, 24)[n % 4]
        parts.append(
            f'<circle class="event {here}" cx="{x(month):.1f}" cy="64" r="6"/>'
            f'<text class="arm" x="{x(month):.1f}" y="{up}" text-anchor="middle">'
            f"{escape(claim['called'])}</text>"
        )
    listed = ", ".join(f"{c['called']} {c['published']}" for c in dated)
    return svg(120, f"Ways of writing by the month of their papers: {listed}.", parts)


def matrix(picture: Mapping[str, Any], side: int = 9) -> str:
    """A matrix in blocks, the largest darkest."""
    rows = picture["blocks"]
    top = max(map(max, rows)) or 1.0
    parts = [
        f'<rect class="shade-{round(10 * value / top)}" x="{side * i}" y="{side * j}" '
        f'width="{side}" height="{side}"/>'
        for j, row in enumerate(rows)
        for i, value in enumerate(row)
    ]
    height, width = picture["shape"]
    sentence = f"{picture['name']}, {height} by {width}, norm {picture['norm']:.3f}"
    size = f"{side * len(rows[0])} {side * len(rows)}"
    return (
        f'<svg class="chart matrix" viewBox="0 0 {size}" width="{side * len(rows[0])}" '
        f'height="{side * len(rows)}" role="img" aria-label="{escape(sentence)}">{"".join(parts)}'
        "</svg>"
    )


# -- arrows -----------------------------------------------------------------------------------


def arrows(plane: Mapping[str, Any]) -> str:
    """Memories in their plane, each with a handle whose distance is its weight."""
    longest = max([*(math.hypot(*tip) for tip in plane["at"]), 1e-9])
    unit = (HALF - MARGIN) / (REACH * longest)
    about = {key: plane[key] for key in ("names", "at", "weights", "linear")}
    about |= {"unit": unit, "landings": {each["method"]: each["at"] for each in plane["landings"]}}
    parts = _cross()
    for n, (name, tip, weight) in enumerate(
        zip(plane["names"], plane["at"], plane["weights"], strict=True)
    ):
        x, y = _place(tip, unit)
        parts.append(
            f'<line class="ray" x1="{HALF}" y1="{HALF}" x2="{x:.1f}" y2="{y:.1f}"/>'
            + _arrow(n, _place([weight * each for each in tip], unit), name, f"{weight:g}")
        )
    parts += _landings(about["landings"], unit)
    return _board(parts, about, "plane", "Memories as arrows; drag a tip to change its weight.")


def sketch_arrows(sketch: Mapping[str, Any]) -> str:
    """Free vectors with their tips as handles, and where merges of them are."""
    vectors, unit = sketch["vectors"], float(HALF - MARGIN)
    weights = sketch["weights"] or [1.0] * len(vectors)
    about = {"vectors": vectors, "weights": weights, "linear": sketch["linear"], "unit": unit}
    about["landings"] = sketch["points"]
    parts = _cross()
    parts += [
        _arrow(n, _place(v, unit), "abcdef"[n], f"{v[0]:g}, {v[1]:g}")
        for n, v in enumerate(vectors)
    ]
    parts += _landings(sketch["points"], unit)
    return _board(parts, about, "sketch", "Free vectors; drag a tip to move it.")


def _board(parts: Sequence[str], about: Mapping[str, Any], kind: str, sentence: str) -> str:
    drawn = (
        f'<svg class="chart arrows" viewBox="0 0 {SIZE} {SIZE}" role="group" '
        f'aria-label="{escape(sentence)}" data-arrows="{kind}" data-about="'
        f'{escape(json.dumps(about))}">{"".join(parts)}</svg>'
    )
    return drawn


def _cross() -> list[str]:
    return [
        f'<path class="grid" d="M{HALF} 12V{SIZE - 12}M12 {HALF}H{SIZE - 12}"/>',
        f'<circle class="ring" cx="{HALF}" cy="{HALF}" r="3"/>',
    ]


def _place(at: Sequence[float], unit: float) -> tuple[float, float]:
    return HALF + unit * at[0], HALF - unit * at[1]


def _arrow(n: int, at: tuple[float, float], name: str, value: str) -> str:
    x, y = at
    return (
        f'<g class="arrow arrow-{n}"><line x1="{HALF}" y1="{HALF}" x2="{x:.1f}" y2="{y:.1f}"/>'
        f'<circle class="tip" cx="{x:.1f}" cy="{y:.1f}" r="10" tabindex="0" role="slider" '
        f'data-tip="{n}" aria-label="{escape(name)}" aria-valuemin="-{REACH}" '
        f'aria-valuemax="{REACH}" aria-valuenow="1" aria-valuetext="{escape(value)}"/>'
        f'<text class="arm" x="{x + 14:.1f}" y="{y - 10:.1f}">{escape(name)}</text></g>'
    )


def _landings(landings: Mapping[str, Sequence[float]], unit: float) -> list[str]:
    parts = []
    for n, (method, at) in enumerate(landings.items()):
        x, y = _place(at, unit)
        parts.append(
            f'<g class="landing" data-landing="{method}" transform="translate({x:.1f} {y:.1f})">'
            f'<path d="M0 -10 10 0 0 10 -10 0z"/><text y="4" text-anchor="middle">{n + 1}</text>'
            f"<title>{method}</title></g>"
        )
    return parts
