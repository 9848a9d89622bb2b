"""Drawings of the law page: curves by length, the plane, predicted against true, heat, tokens.

Plain data in, SVG out, as in `charts`; a shade is a class of the style sheet, from 0 to 10.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby, pairwise
from typing import Any

from lorewright.studio.charts import Scale, linear, svg, tick
from lorewright.studio.charts import log as logarithmic

N_SHADES = 10
DEEP = 8
"""Shade above which a number stands in the colour of the paper."""
LEFT, TOP = 52, 12
CELL_WIDTH, CELL_HEIGHT = 62, 26
TOKEN_WIDTH, TOKEN_HEIGHT = 4, 12
SURE = (0.5, 0.9, 0.99)
"""Probabilities at which a token of the grid changes its shade."""


def families_chart(
    families: Sequence[Mapping[str, Any]], points: Sequence[Mapping[str, Any]]
) -> str:
    """By rank, a curve of the law for every length, and the runs as points."""
    width, bottom, right = 520, 260, 412
    ranks = families[0]["ranks"]
    top = max([*(p["measured"] for p in points), *(v for f in families for v in f["values"])])
    x = logarithmic(ranks[0], ranks[-1], LEFT, right)
    y = linear(0.0, top, bottom, TOP)
    parts = _axis(y, top, right)
    parts += [
        tick(x(rank), bottom + 18, f"{rank}", "middle")
        for rank in sorted({p["rank"] for p in points})
        if math.log2(rank).is_integer()
    ]
    parts.append(f'<text class="axis" x="{right + 8}" y="{bottom + 18}">rank</text>')
    ends = _apart([y(family["values"][-1]) for family in families], bottom)
    for n, (family, end) in enumerate(zip(families, ends, strict=True)):
        shade = _shade(n / max(1, len(families) - 1))
        line = " ".join(
            f"{x(rank):.1f},{y(value):.1f}"
            for rank, value in zip(family["ranks"], family["values"], strict=True)
        )
        parts.append(f'<polyline class="family shade-{shade}" points="{line}"/>')
        parts += [
            f'<circle class="run shade-{shade}" cx="{x(p["rank"]):.1f}" '
            f'cy="{y(p["measured"]):.1f}" r="3"/>'
            for p in points
            if p["tokens"] == family["tokens"]
        ]
        label = f"{family['tokens']:,} tokens"
        parts.append(f'<text class="tick" x="{right + 8}" y="{end + 4:.1f}">{label}</text>')
    sentence = (
        f"Curves of the law by rank for {len(families)} lengths, and {len(points)} runs as points; "
        "a larger rank holds more, a longer text leaves less for each token."
    )
    return svg(bottom + 28, sentence, parts, width)


def _apart(ends: Sequence[float], bottom: float, least: float = 14.0) -> list[float]:
    """Heights of labels, moved so that none overlaps the next."""
    order = sorted(range(len(ends)), key=lambda n: ends[n])
    placed = list(ends)
    for before, n in pairwise(order):
        placed[n] = max(placed[n], placed[before] + least)
    over = max(0.0, placed[order[-1]] - ends[order[-1]]) / 2
    over = max(min(over, placed[order[0]] - TOP), placed[order[-1]] - bottom)
    return [each - over for each in placed]


def _axis(y: Scale, top: float, right: float, n: int = 4) -> list[str]:
    step = _round_step(top / n)
    parts = []
    for i in range(int(top / step + 1e-9) + 1):
        at = y(i * step)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(tick(LEFT - 8, at + 4, f"{i * step:g}", "end"))
    return parts


def _round_step(step: float) -> float:
    """The next of 1, 2, 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(max(step, 1e-9)))
    return next(power * each for each in (1, 2, 5, 10) if power * each >= step - 1e-12)


def _shade(share: float) -> int:
    return round(N_SHADES * min(max(share, 0.0), 1.0))


def plane_chart(plane: Mapping[str, Any], points: Sequence[Mapping[str, Any]]) -> str:
    """The law over rank and length as a plane of shades; runs as discs in the same scale."""
    ranks, lengths, values = plane["ranks"], plane["lengths"], plane["values"]
    top = max([max(map(max, values)), *(p["measured"] for p in points)])
    width, right, bottom = 520, 432, 276
    x = linear(0, len(ranks), LEFT + 24, right)
    y = linear(0, len(lengths), bottom, TOP)
    wide, high = x(1) - x(0), y(0) - y(1)
    parts = [
        f'<rect class="shade-{_shade(value / top)}" x="{x(i):.1f}" y="{y(j + 1):.1f}" '
        f'width="{wide + 0.4:.1f}" height="{high + 0.4:.1f}"/>'
        for j, row in enumerate(values)
        for i, value in enumerate(row)
    ]
    across, along = _places(ranks, x), _places(lengths, y)
    means: dict[tuple[float, float], list[float]] = {}
    for point in points:
        means.setdefault((point["rank"], point["tokens"]), []).append(point["measured"])
    for (rank, tokens), measured in means.items():
        value = sum(measured) / len(measured)
        parts.append(
            f'<circle class="disc shade-{_shade(value / top)}" cx="{across(rank):.1f}" '
            f'cy="{along(tokens):.1f}" r="7"><title>rank {rank}, {tokens} tokens: {value:.2f}'
            "</title></circle>"
        )
    shown = sorted({rank for rank, _ in means})
    parts += [
        tick(across(rank), bottom + 18, str(rank), "middle")
        for rank in shown
        if math.log2(rank).is_integer()
    ]
    last = math.inf
    for n in sorted({n for _, n in means}):
        if last - along(n) >= 14:
            last = along(n)
            parts.append(tick(LEFT + 16, last + 4, f"{n:,}", "end"))
    parts.append(f'<text class="axis" x="{right + 8}" y="{bottom + 18}">rank</text>')
    parts += _key(right + 24, top)
    sentence = (
        "The law over rank and length; darker holds more. A disc that stands out from the plane is "
        "a run that the law misses."
    )
    return svg(bottom + 28, sentence, parts, width)


def _places(values: Sequence[float], scale: Scale) -> Callable[[float], float]:
    low, high = math.log(values[0]), math.log(values[-1])
    n = len(values)

    def place(value: float) -> float:
        share = (math.log(value) - low) / (high - low) if high > low else 0.5
        return scale(0.5 + share * (n - 1))

    return place


def _key(x: float, top: float) -> list[str]:
    parts = [
        f'<rect class="shade-{n}" x="{x}" y="{TOP + 16 * (N_SHADES - n):.0f}" width="16" '
        'height="16"/>'
        for n in range(N_SHADES + 1)
    ]
    last = TOP + 16 * N_SHADES
    return [
        *parts,
        tick(x + 22, TOP + 12, f"{top:.3g}", "start"),
        tick(x + 22, last + 12, "0", "start"),
    ]


def predicted_chart(points: Sequence[Mapping[str, Any]]) -> str:
    """Predicted against measured; what was held out of the fit is dashed."""
    top = max(max(p["measured"], p["predicted"]) for p in points)
    low = min(0.0, min(min(p["measured"], p["predicted"]) for p in points))
    bottom, right = 300, 360
    x, y = linear(low, top, LEFT, right), linear(low, top, bottom, TOP)
    parts = _axis(linear(0.0, top, y(0.0), TOP), top, right)
    step = _round_step(top / 4)
    parts += [
        tick(x(i * step), bottom + 18, f"{i * step:g}", "middle")
        for i in range(int(top / step) + 1)
    ]
    ends = f'x1="{x(low):.1f}" y1="{y(low):.1f}" x2="{x(top):.1f}" y2="{y(top):.1f}"'
    parts.append(f'<line class="diagonal" {ends}/>')
    for p in points:
        kind = "held" if p["held_out"] else "train"
        where = f"rank {p['rank']}, {p['tokens']} tokens"
        about = f"{where}: measured {p['measured']:.3g}, predicted {p['predicted']:.3g}"
        parts.append(
            f'<circle class="point {kind}" cx="{x(p["predicted"]):.1f}" '
            f'cy="{y(p["measured"]):.1f}" r="{4 if p["held_out"] else 3}"><title>{about}</title>'
            "</circle>"
        )
    parts.append(f'<text class="axis" x="{right + 8}" y="{bottom + 18}">predicted</text>')
    n_held = sum(p["held_out"] for p in points)
    beyond = f"; {n_held} were not fitted on" if n_held else ""
    sentence = f"{len(points)} runs, measured against predicted{beyond}; on the line they agree."
    return svg(bottom + 28, sentence, parts, 480)


def prediction_chart(predicted: Mapping[str, Any]) -> str:
    """The curve at one length with its interval, the rank that was chosen, and what is wanted."""
    curve = predicted["curve"]
    bottom, right, width = 168, 520, 600
    most = max(row["high"] for row in curve)
    top = max(most, predicted["wanted"], 1e-6)
    x = logarithmic(curve[0]["rank"], curve[-1]["rank"], LEFT, right)
    y = linear(0.0, top, bottom, TOP)
    parts = _axis(y, top, right, 3)
    band = [f"{x(r['rank']):.1f},{y(r['high']):.1f}" for r in curve]
    band += [f"{x(r['rank']):.1f},{y(r['low']):.1f}" for r in reversed(curve)]
    parts.append(f'<polygon class="band" points="{" ".join(band)}"/>')
    line = " ".join(f"{x(r['rank']):.1f},{y(r['value']):.1f}" for r in curve)
    parts.append(f'<polyline class="curve held solid" points="{line}"/>')
    at = y(predicted["wanted"])
    parts.append(f'<line class="wanted" x1="{LEFT}" x2="{right}" y1="{at:.1f}" y2="{at:.1f}"/>')
    parts.append(f'<text class="label third" x="{right + 8}" y="{at + 4:.1f}">wanted</text>')
    rank, value = predicted["rank"], predicted["prediction"]
    if curve[0]["rank"] <= rank <= curve[-1]["rank"]:
        across = x(rank)
        ends = f'y1="{y(value["low"]):.1f}" y2="{y(value["high"]):.1f}"'
        parts.append(f'<line class="whisker" x1="{across:.1f}" x2="{across:.1f}" {ends}/>')
        parts.append(
            f'<circle class="point train" cx="{across:.1f}" cy="{y(value["value"]):.1f}" r="6"/>'
        )
    last = int(math.log2(curve[-1]["rank"]))
    parts += [tick(x(2**n), bottom + 18, str(2**n), "middle") for n in range(last + 1)]
    parts.append(f'<text class="axis" x="{right + 16}" y="{bottom + 18}">rank</text>')
    sentence = (
        f"At {predicted['tokens']:,} tokens, by rank; rank {rank} is predicted to reach "
        f"{value['value']:.4g}, between {value['low']:.4g} and {value['high']:.4g}."
    )
    return svg(bottom + 28, sentence, parts, width)


def heat_chart(grid: Sequence[Mapping[str, Any]], key: str, what: str, *, rising: bool) -> str:
    """A number for every rank and length, shaded; `rising`: more is darker, else less is."""
    ranks, lengths = (sorted({cell[name] for cell in grid}) for name in ("rank", "length"))
    top = max(cell[key] for cell in grid) or 1.0
    parts = [
        tick(LEFT + CELL_WIDTH * (i + 0.5), 14, f"rank {rank}", "middle")
        for i, rank in enumerate(ranks)
    ]
    for cell in grid:
        i, j = ranks.index(cell["rank"]), lengths.index(cell["length"])
        share = cell[key] / top if rising else 1 - cell[key] / top
        x, y = LEFT + CELL_WIDTH * i, 22 + CELL_HEIGHT * j
        ink = "deep" if _shade(share) > DEEP else "light"
        size = f'width="{CELL_WIDTH - 2}" height="{CELL_HEIGHT - 2}"'
        parts.append(f'<rect class="shade-{_shade(share)}" x="{x}" y="{y}" {size}/>')
        parts.append(
            f'<text class="cell {ink}" x="{x + CELL_WIDTH / 2}" y="{y + 17}" text-anchor="middle">'
            f"{cell[key]:.2f}</text>"
        )
    for j, length in enumerate(lengths):
        parts.append(tick(LEFT - 8, 22 + CELL_HEIGHT * j + 17, str(length), "end"))
    sentence = f"{what} by rank and length; the numbers are in the cells."
    width = LEFT + CELL_WIDTH * len(ranks) + 8
    return svg(30 + CELL_HEIGHT * len(lengths), sentence, parts, width)


def tokens_chart(positions: Sequence[Mapping[str, Any]]) -> str:
    """A row for every rank and length: each token by its probability, the first failure marked."""
    rows = sorted(positions, key=lambda row: (row["length"], row["rank"]))
    parts, y, before, widest = [], 4, None, 0
    for row in rows:
        if row["length"] != before:
            y += 10 if before else 0
            before = row["length"]
        parts.append(tick(LEFT + 24, y + 10, f"{row['length']}, rank {row['rank']}", "end"))
        start = 0
        for doubt, run in groupby(row["p"], key=lambda p: sum(p >= each for each in SURE)):
            n = len(list(run))
            parts.append(
                f'<rect class="p-{doubt}" x="{LEFT + 32 + TOKEN_WIDTH * start}" y="{y}" '
                f'width="{TOKEN_WIDTH * n}" height="{TOKEN_HEIGHT}"/>'
            )
            start += n
        if row["first_failure"] is not None:
            at = LEFT + 32 + TOKEN_WIDTH * row["first_failure"]
            parts.append(f'<path class="failed" d="M{at} {y - 2}v{TOKEN_HEIGHT + 4}"/>')
        widest = max(widest, start)
        y += TOKEN_HEIGHT + 3
    n_below = sum(p < 0.5 for row in rows for p in row["p"])
    sentence = (
        f"Every token of {len(rows)} texts under their adapters; {n_below} have p below one half. "
        "A line stands at the first token that decoding gets wrong."
    )
    return svg(y + 4, sentence, parts, LEFT + 40 + TOKEN_WIDTH * widest)


def failures_chart(stubborn: Mapping[str, Any]) -> str:
    """The first failure against the first token below one half, a point a sequence."""
    points = stubborn["points"]
    top = max([*(p["failure"] for p in points), *(p["stubborn"] for p in points), 1])
    bottom, right = 260, 320
    x, y = linear(0, top, LEFT, right), linear(0, top, bottom, TOP)
    parts = _axis(y, top, right)
    ends = f'x1="{x(0):.1f}" y1="{y(0):.1f}" x2="{x(top):.1f}" y2="{y(top):.1f}"'
    parts.append(f'<line class="diagonal" {ends}/>')
    parts += [
        f'<circle class="point train faint" cx="{x(p["stubborn"]):.1f}" cy="{y(p["failure"]):.1f}" '
        'r="3"/>'
        for p in points
    ]
    step = _round_step(top / 4)
    parts += [
        tick(x(i * step), bottom + 18, f"{i * step:g}", "middle")
        for i in range(int(top / step) + 1)
    ]
    parts.append(f'<text class="axis" x="{right + 8}" y="{bottom + 18}">first p &lt; ½</text>')
    rho = stubborn["spearman"]
    how = (
        ""
        if rho["mean"] is None
        else f" Spearman {rho['mean']:.2f} [{rho['low']:.2f}, {rho['high']:.2f}]."
    )
    sentence = f"First failure against first token below one half, {len(points)} sequences.{how}"
    return svg(bottom + 28, sentence, parts, 440)
