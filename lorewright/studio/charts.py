"""Curves, intervals and token strips as SVG and HTML: plain data in, text out.

Colours are classes of the style sheet, so that one drawing serves light and dark; every curve is
also told apart by its dash and named where it ends. Raw points, nothing smoothed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

MOST_POINTS = 400
"""Of one curve; more are thinned, the extremes stay."""
MOST_MARKED = 30
"""Points of a curve that are marked one by one; a longer one is a line."""
WIDTH, LEFT, RIGHT = 640, 56, 84
NATS_TOP, NATS_BOTTOM = 28, 220
SHARE_TOP, SHARE_BOTTOM = 268, 356
HEIGHT = 388
STOP_SIGN = "⏎"
MINE = ("memory", "merged")
"""Arms that are looked at; the others are what they are compared with."""

Points = Sequence[tuple[float, float]]
Scale = Callable[[float], float]


def thinned(points: Points, most: int = MOST_POINTS) -> list[tuple[float, float]]:
    """At most so many of the points, in order; of each stretch the lowest and the highest stay."""
    if len(points) <= most:
        return list(points)
    n_parts = most // 2
    chosen: list[tuple[float, float]] = []
    for i in range(n_parts):
        part = points[i * len(points) // n_parts : (i + 1) * len(points) // n_parts]
        low, high = min(part, key=lambda p: p[1]), max(part, key=lambda p: p[1])
        chosen += sorted({low, high})
    return chosen


def learning_chart(
    epochs: Sequence[Mapping[str, Any]],
    behind: Sequence[Mapping[str, Any]] = (),
    part: Mapping[str, Any] | None = None,
) -> str:
    """Nats by epoch on a logarithmic axis, and below it shares; held out beside both.

    `epochs` are lines of metrics.jsonl, `behind` those of a write to compare with, drawn faintly;
    `part` is how far the next epoch is, a hollow point. Below stand the share recalled and, dotted,
    that of tokens with p below one half. Empty text where there is nothing to draw yet.
    """
    if not epochs and part is None:
        return ""
    every = [*epochs, *behind, *([part] if part else [])]
    last = max(2.0, *(float(e["epoch"]) for e in every))
    held = _measured(epochs)
    nats = [*(e["loss_nats"] for e in every), *(e["held_out_nats"] for e in _measured(every))]
    low, high = _powers(nats)
    x = linear(1.0, last, LEFT, WIDTH - RIGHT)
    y = log(low, high, NATS_BOTTOM, NATS_TOP)
    share = linear(0.0, 1.0, SHARE_BOTTOM, SHARE_TOP)
    parts = [*_nats_axis(low, high, y), *_share_axis(share), *_epoch_axis(last, x)]
    parts += _behind(behind, x, y, share, low)
    trained = [(x(e["epoch"]), y(max(e["loss_nats"], low))) for e in epochs]
    parts += _curve(trained, "train", "trained")
    recalled = [(x(e["epoch"]), share(e["n_recalled"] / e["n_examples"])) for e in epochs]
    parts += _curve(recalled, "train", "")
    if held:
        parts += _curve([(x(e["epoch"]), y(max(e["held_out_nats"], low))) for e in held], *_HELD)
        shares = [(x(e["epoch"]), share(e["held_out_recalled"] / e["n_held_out"])) for e in held]
        parts += _curve(shares, "held", "")
    if counted := [e for e in epochs if e.get("n_tokens")]:
        doubtful = [(x(e["epoch"]), share(e["n_doubtful"] / e["n_tokens"])) for e in counted]
        parts += _curve(doubtful, "third", "p < ½")
    if part is not None:
        at = f'cx="{x(part["epoch"]):.1f}" cy="{y(max(part["loss_nats"], low)):.1f}"'
        parts.append(f'<circle class="point part" {at} r="4"/>')
        parts.append(tick(WIDTH - 8, 12, f"○ {_part_label(part)}", "end"))
    return svg(HEIGHT, learning_sentence(epochs, part), parts)


def _part_label(part: Mapping[str, Any]) -> str:
    """What a hollow point is the mean of."""
    share = f"{100 * part['done']:.0f} % of it, {part['n_tokens']:,} tokens"
    return f"part of epoch {part['epoch']}: {share}"


def _behind(
    epochs: Sequence[Mapping[str, Any]], x: Scale, y: Scale, share: Scale, low: float
) -> list[str]:
    """The curves of a write to compare with."""
    if not epochs:
        return []
    curves = [
        ("train", [(x(e["epoch"]), y(max(e["loss_nats"], low))) for e in epochs]),
        ("train", [(x(e["epoch"]), share(e["n_recalled"] / e["n_examples"])) for e in epochs]),
    ]
    if held := _measured(epochs):
        curves += [
            ("held", [(x(e["epoch"]), y(max(e["held_out_nats"], low))) for e in held]),
            (
                "held",
                [(x(e["epoch"]), share(e["held_out_recalled"] / e["n_held_out"])) for e in held],
            ),
        ]
    parts = [part for kind, points in curves for part in _curve(points, kind, "")]
    return [f'<g class="behind">{"".join(parts)}</g>']


def arms_axes(arms: Sequence[Mapping[str, Any]]) -> tuple[float, float, float]:
    """Least and largest loss of all arms, as powers of ten, and the last epoch of any."""
    rows = [row for arm in arms for row in arm["epochs"]]
    rows += [arm["part"] for arm in arms if arm["part"]]
    if not rows:
        return 0.1, 10.0, 2.0
    nats = [row["loss_nats"] for row in rows] + [row["held_out_nats"] for row in _measured(rows)]
    low, high = _powers(nats)
    return low, high, max(2.0, float(max(row["epoch"] for row in rows)))


def arm_chart(arm: Mapping[str, Any], axes: tuple[float, float, float]) -> str:
    """An arm's loss, trained and held out, on the axes of all arms."""
    (low, high, last), rows = axes, arm["epochs"]
    width, top, bottom, left = 300, 8, 128, 52
    x = linear(1.0, last, left, width - 8)
    y = log(low, high, bottom, top)
    parts = [
        f'<line class="grid" x1="{left}" x2="{width - 8}" y1="{y(p):.1f}" y2="{y(p):.1f}"/>'
        + tick(left - 8, y(p) + 4, f"{p:g}", "end")
        for p in (10.0**n for n in range(round(math.log10(low)), round(math.log10(high)) + 1))
    ]
    parts += [tick(x(at), bottom + 18, f"{at:g}", "middle") for at in (1, last)]
    if rows:
        parts += _curve([(x(e["epoch"]), y(max(e["loss_nats"], low))) for e in rows], "train", "")
        held = _measured(rows)
        parts += _curve(
            [(x(e["epoch"]), y(max(e["held_out_nats"], low))) for e in held], "held", ""
        )
    if part := arm["part"]:
        at = f'cx="{x(part["epoch"]):.1f}" cy="{y(max(part["loss_nats"], low)):.1f}"'
        parts.append(f'<circle class="point part" {at} r="4"/>')
    sentence = f"{arm['arm']}: {learning_sentence(rows, part)}"
    return (
        f'<svg class="chart small" viewBox="0 0 {width} {bottom + 24}" role="img" '
        f'aria-label="{escape(sentence)}">{"".join(parts)}</svg>'
    )


def _measured(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [row for row in rows if row.get("held_out_nats") is not None]


def _powers(nats: Sequence[float]) -> tuple[float, float]:
    """Powers of ten around some losses, a decade apart at least."""
    low = min(10.0 ** math.floor(math.log10(max(min(nats), 1e-4))), 0.1)
    return low, max(10.0 ** math.ceil(math.log10(max(max(nats), low * 10))), 1.0)


_HELD = ("held", "held out")


def learning_sentence(
    epochs: Sequence[Mapping[str, Any]], part: Mapping[str, Any] | None = None
) -> str:
    """What the learning chart shows, in words for those who do not see it."""
    under_way = ""
    if part is not None:
        under_way = f" Hollow, {_part_label(part)}: loss {part['loss_nats']:.4f} nats a token."
    if not epochs:
        return f"No epoch is over yet.{under_way}"
    last = epochs[-1]
    text = (
        f"After epoch {last['epoch']} of at most {last['epochs']}: loss {last['loss_nats']:.4f} "
        f"nats a token, {last['n_recalled']} of {last['n_examples']} trained questions recalled"
    )
    if held := _measured(epochs):
        e = held[-1]
        text += (
            f"; of questions in other words, never trained, {e['held_out_recalled']} of "
            f"{e['n_held_out']}, at {e['held_out_nats']:.3f} nats a token"
        )
    if last.get("n_tokens"):
        text += f"; {last['n_doubtful']} of {last['n_tokens']} trained tokens have p below ½"
    return f"{text}.{under_way}"


def interval_chart(recall: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """Recall by kind of probe and arm as dots with their 95 % intervals."""
    rows = [
        (kind, arm, row)
        for kind, arms in recall.items()
        for arm, row in arms.items()
        if row.get("recall") is not None
    ]
    if not rows:
        return ""
    step, left, right = 22, 208, 560
    x, parts, y, before = linear(0.0, 1.0, left, right), [], 20, ""
    for at in (0.0, 0.5, 1.0):
        parts.append(f'<line class="grid" x1="{x(at):.1f}" x2="{x(at):.1f}" y1="14" y2="BOTTOM"/>')
        parts.append(tick(x(at), 10, f"{at:g}", "middle"))
    for kind, arm, row in rows:
        if kind != before:
            y += 8 if before else 0
            parts.append(f'<text class="kind" x="0" y="{y + 14}">{escape(kind)}</text>')
            y, before = y + step, kind
        mine = "memory" if arm in MINE else "control"
        middle = y + 10
        parts.append(
            f'<g class="{mine}"><text class="arm" x="{left - 12}" y="{y + 14}" text-anchor="end">'
            f'{escape(arm)}</text><line class="interval" x1="{x(row["low"]):.1f}" '
            f'x2="{x(row["high"]):.1f}" y1="{middle}" y2="{middle}"/>'
            f'<circle cx="{x(row["recall"]):.1f}" cy="{middle}" r="{5 if arm in MINE else 4}"/>'
            f'<text class="n" x="{right + 12}" y="{y + 14}">{row["recall"]:.2f} n={row["n"]}</text>'
            "</g>"
        )
        y += step
    drawn = [part.replace("BOTTOM", str(y + 4)) for part in parts]
    arms = ", ".join(dict.fromkeys(arm for _, arm, _ in rows))
    return svg(y + 8, f"Recall with 95 % intervals, by kind of probe, of: {arms}.", drawn)


def bar_chart(terms: Sequence[tuple[str, float]], unit: str) -> str:
    """Amounts as bars from zero, the largest over the whole width."""
    most = max(amount for _, amount in terms) or 1.0
    left, right, step = 244, 540, 26
    parts = []
    for n, (what, amount) in enumerate(terms):
        y = n * step
        width = amount / most * (right - left)
        parts.append(
            f'<text x="{left - 12}" y="{y + 16}" text-anchor="end">{escape(what)}</text>'
            f'<rect class="bar" x="{left}" y="{y + 4}" width="{max(width, 1.0):.1f}" height="16"/>'
            f'<text class="n" x="{left + width + 8:.1f}" y="{y + 16}">{_amount(amount)} {unit}'
            "</text>"
        )
    listed = ", ".join(f"{what} {_amount(amount)} {unit}" for what, amount in terms)
    return svg(len(terms) * step, f"Parts: {listed}.", parts)


def _amount(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def ranks_chart(ranks: Sequence[Mapping[str, Any]]) -> str:
    """By rank: the share of the norm that is left, and the shares that come back."""
    top, bottom, left, right = 16, 216, 56, 500
    last = max(2.0, math.log2(ranks[-1]["rank"]))
    x = linear(0.0, last, left, right)
    y = linear(0.0, 1.0, bottom, top)
    parts = []
    for at in (0.0, 0.25, 0.5, 0.75, 1.0):
        line = f'x1="{left}" x2="{right}" y1="{y(at):.1f}" y2="{y(at):.1f}"'
        parts.append(f'<line class="grid" {line}/>{tick(left - 8, y(at) + 4, f"{at:g}", "end")}')
    parts += [
        tick(x(math.log2(each["rank"])), bottom + 20, str(each["rank"]), "middle") for each in ranks
    ]
    parts.append(f'<text class="axis" x="{right + 16}" y="{bottom + 20}">rank</text>')
    energies = [(x(math.log2(each["rank"])), y(each["energy"])) for each in ranks]
    parts += _curve(energies, "third", "")
    for key, kind in (("trained", "train"), ("held", "held")):
        shares = [
            (x(math.log2(each["rank"])), y(each[key]["recall"]))
            for each in ranks
            if each[key]["recall"] is not None
        ]
        parts += _curve(shares, kind, "")
    names = (("third", "energy left"), ("train", "as trained"), ("held", "other words"))
    for n, (kind, label) in enumerate(names):
        at = top + 12 + 24 * n
        parts.append(
            f'<line class="curve {kind}" x1="{right + 16}" x2="{right + 40}" y1="{at}" y2="{at}"/>'
            f'<text class="label {kind}" x="{right + 48}" y="{at + 4}">{label}</text>'
        )
    first, own = ranks[0], ranks[-1]
    sentence = (
        f"At rank {first['rank']} {first['energy']:.2f} of the squared norm is left, at rank "
        f"{own['rank']} all of it; what comes back at each rank is in the table."
    )
    return svg(bottom + 32, sentence, parts)


def token_strip(tokens: Sequence[Mapping[str, Any]], name: str = "strip") -> str:
    """A completion token by token: below one half is marked, another that is likelier struck.

    One stop of the tab key; arrows move through it. `name` makes ids differ between strips.
    """
    cells = []
    for n, token in enumerate(tokens):
        sure = "sure" if token["p"] >= 0.5 else "doubtful"
        wrong = "" if token["right"] else " wrong"
        rivals = "; ".join(f"{_shown(piece)} {p:.3f}" for piece, p in token["rivals"])
        place = "first" if token["right"] else "not first"
        about = f"{_shown(token['piece'])}: p {token['p']:.3f}, {place}. Others: {rivals}"
        cells.append(
            f'<span role="option" id="{name}-{n}" class="token {sure}{wrong}" aria-selected="false"'
            f' data-about="{escape(about)}" title="{escape(about)}">{_cell(token["piece"])}'
            f"<small>{token['p']:.2f}</small></span>"
        )
    label = "tokens of the answer; arrow keys move through them"
    return (
        f'<div class="strip" role="listbox" tabindex="0" aria-label="{label}" '
        f'data-strip="{name}">{"".join(cells)}</div><p class="about-token muted" '
        f'data-strip-about="{name}">{escape(strip_sentence(tokens))}</p>'
    )


def strip_sentence(tokens: Sequence[Mapping[str, Any]]) -> str:
    """Where greedy decoding leaves the answer, and which tokens are doubtful."""
    wrong = next((n for n, token in enumerate(tokens) if not token["right"]), None)
    doubtful = sum(token["p"] < 0.5 for token in tokens)
    where = (
        "Greedy decoding gives this answer."
        if wrong is None
        else f"Greedy decoding leaves it at token {wrong + 1} of {len(tokens)}."
    )
    return f"{where} {doubtful} of {len(tokens)} tokens have p below ½."


def _shown(piece: str) -> str:
    return f"“{piece.replace(chr(10), STOP_SIGN)}”"


def _cell(piece: str) -> str:
    """A piece with its leading space visible."""
    lead = len(piece) - len(piece.lstrip(" "))
    return f"<b>{'·' * lead}{escape(piece[lead:]).replace(chr(10), STOP_SIGN)}</b>"


# -- parts of a drawing -----------------------------------------------------------------------


def svg(height: float, sentence: str, parts: Sequence[str], width: float = WIDTH) -> str:
    """A drawing with a sentence for those who do not see it."""
    return (
        f'<svg class="chart" viewBox="0 0 {width:g} {height:g}" role="img" '
        f'aria-label="{escape(sentence)}">{"".join(parts)}</svg>'
    )


def linear(low: float, high: float, start: float, end: float) -> Scale:
    """From values to places."""
    return lambda value: start + (value - low) / (high - low) * (end - start)


def log(low: float, high: float, start: float, end: float) -> Scale:
    """From values to places, evenly in their logarithms."""
    scale = linear(math.log10(low), math.log10(high), start, end)
    return lambda value: scale(math.log10(value))


def _curve(points: Points, kind: str, label: str) -> list[str]:
    shown = thinned(points)
    if not shown:
        return []
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in shown)
    x, y = shown[-1]
    parts = [f'<polyline class="curve {kind}" points="{path}"/>']
    if len(shown) <= MOST_MARKED:
        parts += [_point(kind, a, b) for a, b in shown]
    if label:
        parts.append(f'<text class="label {kind}" x="{x + 8:.1f}" y="{y + 4:.1f}">{label}</text>')
    return parts


def _point(kind: str, x: float, y: float) -> str:
    return f'<circle class="point {kind}" cx="{x:.1f}" cy="{y:.1f}" r="2.5"/>'


def tick(x: float, y: float, text: str, anchor: str) -> str:
    """A small label."""
    return f'<text class="tick" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{text}</text>'


def _nats_axis(low: float, high: float, y: Scale) -> list[str]:
    parts = []
    for power in range(round(math.log10(low)), round(math.log10(high)) + 1):
        at = y(10.0**power)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at}" y2="{at}"/>')
        parts.append(tick(LEFT - 8, at + 4, f"{10.0**power:g}", "end"))
    return [*parts, '<text class="axis" x="0" y="12">nats a token</text>']


def _share_axis(share: Scale) -> list[str]:
    parts = []
    for at in (0.0, 0.5, 1.0):
        y = share(at)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>')
        parts.append(tick(LEFT - 8, y + 4, f"{at:g}", "end"))
    return [*parts, f'<text class="axis" x="0" y="{SHARE_TOP - 16}">share recalled</text>']


def _epoch_axis(last: float, x: Scale) -> list[str]:
    step = max(1, 5 * math.ceil(last / 50)) if last > 12 else max(1, math.ceil(last / 8))
    ticks = [1, *range(step if step > 1 else 2, int(last) + 1, step)]
    parts = [tick(x(at), SHARE_BOTTOM + 18, str(at), "middle") for at in ticks]
    end = WIDTH - RIGHT + 16
    return [*parts, f'<text class="axis" x="{end}" y="{SHARE_BOTTOM + 18}">epoch</text>']
