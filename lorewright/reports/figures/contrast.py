"""The figure of the demonstration: training loss beside recall, drawn from its stored record."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lorewright.recall.statistics import Estimate
from lorewright.reports.figures.style import (
    Palette,
    canvas,
    draw_reference,
    kind_of,
    name_at_right,
    panels,
    style_axes,
)
from lorewright.reports.results import checked_record, estimate_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LEAST_LOSS = 1e-5  # drawn for a loss below it, in nats per token: a logarithmic scale has no 0


class _Curve(NamedTuple):
    name: str
    epoch: list[float]
    loss: list[float]
    recall: list[float]
    verdict: Estimate | None  # the row of the table that belongs to it

    @property
    def final(self) -> float:
        """The verdict's recall; without one, the last of the curve."""
        mean = self.verdict.mean if self.verdict else None
        return self.recall[-1] if mean is None else mean


def _curves(record: Mapping[str, Any]) -> list[_Curve]:
    """The curves; a loss that was rounded to 0 is drawn at LEAST_LOSS."""
    rows, curves = {row["name"]: estimate_of(row) for row in record["rows"]}, []
    for name, curve in record["curves"].items():
        epoch, loss, recall = ([float(x) for x in curve[k]] for k in ("epoch", "loss", "recall"))
        if not 0 < len(epoch) == len(loss) == len(recall):
            raise ValueError(f"curve {name!r} needs epochs, and as many losses and recalls")
        loss = [max(value, LEAST_LOSS) for value in loss]
        curves.append(_Curve(name, epoch, loss, recall, rows.get(f"write: {name}")))
    if not curves:
        raise ValueError("it has no curves")
    return curves


def contrast_figure(record: Mapping[str, Any], path: Path, *, dark: bool = False) -> None:
    """Draw training loss and recall by epoch, side by side, into an SVG or PNG file.

    The title states the finding where the curves bear it out, else it is the record's own. Raises
    ConfigError for another suffix or without matplotlib, DataError for a record of another shape.
    """
    kind_of(Path(path))
    with checked_record():
        curves, title = _curves(record), str(record["title"])
        full = next((row["recall"] for row in record["rows"] if row["name"] == "full"), None)
        finding = _finding(curves) or title
        about = "" if finding == title else f"{title} · "
        about += f"{record['n_probes']} probes · numbers and bars: final recall, 95 % interval"
    from matplotlib.ticker import LogLocator, MaxNLocator

    with canvas(path, finding, about, size=(9, 4.6), dark=dark) as (figure, ink):
        margins = {"left": 0.085, "right": 0.875, "top": 0.73, "bottom": 0.15, "wspace": 0.52}
        left, right = panels(figure, 1, 2, margins, share="x")[0]
        style_axes(left, ink, "Training loss, nats per token (log scale)", "epoch")
        style_axes(right, ink, "Recall on held-out question forms", "epoch")
        first = min(curve.epoch[0] for curve in curves)
        left.set_xlim(first, max(first + 1, *(curve.epoch[-1] for curve in curves)))
        left.set_yscale("log")
        left.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        left.yaxis.set_major_formatter("{x:g}")
        left.minorticks_off()
        left.xaxis.set_major_locator(MaxNLocator(7, integer=True))
        _draw_lines(left, [(curve, curve.loss, "") for curve in curves], ink)
        _draw_recalls(right, curves, full, ink)


def _finding(curves: Sequence[_Curve]) -> str | None:
    """The finding in words, if these curves show it."""
    ranked = sorted(curves, key=lambda curve: curve.final)
    falling = all(curve.loss[-1] < curve.loss[0] / 2 for curve in curves)
    # The curve and the verdict must both say so: they are measured in different ways.
    ends = [(curve.final, curve.recall[-1]) for curve in ranked]
    if falling and len(ends) == 2 and max(ends[0]) <= 0.1 and min(ends[1]) >= 0.5:
        return f"Both losses fall; only “{ranked[1].name}” can be recalled"
    return None


def _draw_recalls(ax: Axes, curves: Sequence[_Curve], full: float | None, ink: Palette) -> None:
    ax.set_ylim(-0.04, 1.1)
    ax.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "", "0.5", "", "1"])
    if full is not None:  # its text where curves that end high have left space
        text = f"full document in the prompt {full:.2f}"
        draw_reference(ax, full, text, ink, below=full > 0.2)
    for curve, color in zip(curves, itertools.cycle(ink.lines), strict=False):
        if curve.verdict and curve.verdict.low is not None and curve.verdict.high is not None:
            x, ends = [curve.epoch[-1]] * 2, [curve.verdict.low, curve.verdict.high]
            ax.plot(x, ends, color=color, linewidth=1.6, clip_on=False)
    _draw_lines(ax, [(curve, curve.recall, f"\n{curve.final:.2f}") for curve in curves], ink)


def _draw_lines(ax: Axes, series: Sequence[tuple[_Curve, list[float], str]], ink: Palette) -> None:
    """Lines with their names at the right edge.

    A write that ended early is led to its name by a dotted line.
    """
    right, colours = (
        ax.get_xlim()[1],
        list(itertools.islice(itertools.cycle(ink.lines), len(series))),
    )
    for (curve, values, _), color in zip(series, colours, strict=True):
        x, y = curve.epoch[-1], values[-1]
        ax.plot(curve.epoch, values, color=color, linewidth=2.2, solid_capstyle="round")
        ax.plot([x, right], [y, y], ":", color=color, linewidth=1, alpha=0.8)
        ax.plot(x, y, "o", color=color, markersize=6, clip_on=False, zorder=3)
    names = [textwrap.fill(curve.name, 12) + more for curve, _, more in series]
    gap = 14.0 * max(name.count("\n") + 1 for name in names)
    ends = [values[-1] for _, values, _ in series]
    name_at_right(ax, ends, names, colours, gap=gap, size=10.5)
