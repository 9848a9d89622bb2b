"""Figures of comparisons: methods or placements side by side, and their paired differences.

Drawn from rows with metric, rank, what is compared, mean, interval and difference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lorewright.reports.figures.style import Palette, canvas, draw_intervals, panels, style_axes
from lorewright.reports.results import checked_record

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LEGEND_LETTERS = 60
"""Names longer than this together stand below one another beside the plots."""


def compared_figure(
    rows: Sequence[Mapping[str, Any]],
    path: Path,
    *,
    metric: str,
    about: str,
    title: str = "",
    by: str = "method",
    dark: bool = False,
) -> None:
    """Draw a metric by rank for everything compared, and the differences to the baseline, if any.

    Bars are 95 % intervals over independent units; differences are paired. Raises DataError for
    rows without the metric.
    """
    with checked_record():
        own = [row for row in rows if row["metric"] == metric]
        names = list(dict.fromkeys(row[by] for row in own))
        ranks = sorted({row["rank"] for row in own if row["rank"] is not None})
        if not names or not ranks:
            raise ValueError(f"it has no {metric}")
        title = title or f"{metric[0].upper()}{metric[1:]} by rank, at the same budget"
        paired = any(row["difference"] for row in own)
        single = len(ranks) == 1 and not paired  # then what is compared stands on the axis
        long = sum(map(len, names)) > LEGEND_LETTERS
        beside = long and not single
        width = 10 if paired or long else 7
        with canvas(path, title, about, size=(width, 4.8), dark=dark) as (figure, ink):
            right_end = 0.985 - 0.225 * beside
            margins = {"left": 0.65 / width, "right": right_end, "top": 0.72, "bottom": 0.14}
            left, *others = panels(figure, 1, 1 + paired, margins | {"wspace": 0.22})[0]
            axis = f"{by}, rank {ranks[0]}" if single else "rank"
            style_axes(left, ink, f"{metric}, mean with 95 % interval", axis)
            against = next((r[by] for r in own if r["difference"] is None), names[0])
            for right in others:
                style_axes(right, ink, f"paired difference to {against}", "rank")
                right.axhline(0, color=ink.muted, linewidth=1)
            for i, name in enumerate(names):
                mine = {row["rank"]: row for row in own if row[by] == name}
                shift = 0.11 * (i - (len(names) - 1) / 2)
                at = np.array([float(i)]) if single else np.arange(len(ranks)) + shift
                colour = ink.lines[i % len(ink.lines)]
                means = [mine.get(rank) for rank in ranks]
                draw_intervals(left, at, means, colour, "o", label=name, markersize=6)
                differences = [(mine.get(rank) or {}).get("difference") for rank in ranks]
                for right in others if any(differences) else ():
                    draw_intervals(right, at, differences, colour, "o", markersize=6)
            for ax in (left, *others):
                ax.set_xticks(range(len(ranks)), [str(rank) for rank in ranks])
            if single:
                labels = [name.replace("@", "\n@").replace(", ", "\n") for name in names]
                left.set_xticks(range(len(names)), labels)
            elif len(names) > 1:
                _legend(left, ink, beside=beside)


def arms_figure(
    shares: Mapping[str, Mapping[str, Mapping[str, Any] | None]],
    path: Path,
    *,
    own: Sequence[str],
    about: str,
    title: str = "What is answered, declined and retained",
    dark: bool = False,
) -> None:
    """Draw shares of several kinds of questions side by side, an arm beside the other.

    `shares` are estimates by what is counted, then by arm; None is left out. `own` are the arms of
    the memory alone, in a colour of their own. Bars are 95 % intervals. Raises DataError for a
    record of another shape.
    """
    with checked_record():
        arms = list(next(iter(shares.values())))
        with canvas(path, title, about, size=(10.5, 4.6), dark=dark) as (figure, ink):
            margins = {"left": 0.06, "right": 0.985, "top": 0.74, "bottom": 0.2, "wspace": 0.12}
            row = panels(figure, 1, len(shares), margins, share="y")[0]
            for ax, (what, by_arm) in zip(row, shares.items(), strict=True):
                counts = [each["n"] for each in by_arm.values() if each]
                style_axes(ax, ink, f"{what}, n = {max(counts, default=0)}")
                for i, arm in enumerate(arms):
                    colour = ink.lines[0] if arm in own else ink.muted
                    draw_intervals(ax, [float(i)], [by_arm[arm]], colour, "o", markersize=6)
                ax.set_xticks(range(len(arms)), arms, rotation=35, ha="right", size=9.5)
                ax.set_xlim(-0.6, len(arms) - 0.4)
                ax.set_ylim(-0.03, 1.03)


def _legend(ax: Axes, ink: Palette, *, beside: bool) -> None:
    """Below the title, over both plots, or beside them: it covers no point there."""
    handles, labels = ax.get_legend_handles_labels()
    assert ax.figure is not None
    ax.figure.legend(
        handles,
        labels,
        frameon=False,
        labelcolor=ink.text,
        loc="center left" if beside else "upper right",
        bbox_to_anchor=(0.775, 0.43) if beside else (0.99, 0.865),
        ncols=1 if beside else len(labels),
        fontsize=9.5,
        handletextpad=0.2,
        columnspacing=1.2,
    )


def placement_figure(
    rows: Sequence[Mapping[str, Any]],
    parameters: Mapping[str, int],
    path: Path,
    *,
    about: str,
    dark: bool = False,
) -> None:
    """Draw bits held against the adapter's parameters, a line for every placement.

    ``parameters`` has those of rank 1. The higher a line, the more a parameter holds there.
    """
    with checked_record():
        own = [row for row in rows if row["metric"] == "bits" and row["rank"] is not None]
        names = list(dict.fromkeys(row["placement"] for row in own))
        title = "Where a parameter holds most"
        with canvas(path, title, about, size=(8.6, 5), dark=dark) as (figure, ink):
            ((ax,),) = panels(
                figure, 1, 1, {"left": 0.085, "right": 0.74, "top": 0.8, "bottom": 0.13}
            )
            style_axes(ax, ink, "", "parameters of the adapter", "bits held", grid="both")
            for i, name in enumerate(names):
                mine = [row for row in own if row["placement"] == name]
                x = [parameters[name] * row["rank"] for row in mine]
                style, colour = ("-", "--")[i // len(ink.lines) % 2], ink.lines[i % len(ink.lines)]
                draw_intervals(ax, x, mine, colour, f"{style}o", label=name, linewidth=1.5)
            ax.set_xscale("log")
            ax.set_ylim(0, ax.get_ylim()[1])
            place = {"loc": "center left", "bbox_to_anchor": (1.01, 0.5)}
            ax.legend(frameon=False, labelcolor=ink.text, fontsize=9.5, **place)
