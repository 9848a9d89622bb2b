"""The figure: how much of either source every method loses, pair by pair."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lorewright.reports.figures.style import canvas, style_axes

LIMIT = 0.2


def losses_figure(rows: Mapping[str, Mapping[str, Any]], path: Path, *, dark: bool) -> None:
    """Draw one line a method: a dot for each source of each pair, the mean and its interval."""
    order = sorted(rows, key=lambda name: rows[name]["lost"].mean or 0.0, reverse=True)
    n_pairs = next(iter(rows.values()))["n"]
    within = [
        name for name in order if (rows[name]["worse"].mean or 0.0) < LIMIT and name != "rewrite"
    ]
    title = "What merging two memories costs each of them"
    if (
        within == [name for name in order if name.startswith("imitate") and name in within]
        and within
    ):
        title = "Merging two memories: only imitation stays under a fifth"
    about = f"share of recall lost, held question form; dots: both memories of {n_pairs} pairs; bar: mean and 95 % interval over pairs"
    height = 0.33 * len(order) + 1.7
    with canvas(path, title, about, size=(9.6, height), dark=dark) as (figure, ink):
        ax = figure.add_axes((0.21, 0.62 / height, 0.76, 1 - 1.55 / height))
        style_axes(ax, ink, x="share of the recall that is lost", grid="x")
        ax.axvline(LIMIT, color=ink.muted, linewidth=1, linestyle=(0, (2, 3)))
        ax.text(
            LIMIT, len(order) - 0.35, " 20 %", color=ink.muted, size=9, va="bottom", ha="center"
        )
        for y, name in enumerate(order):
            row = rows[name]
            colour = (
                ink.lines[1]
                if name.startswith("imitate")
                else ink.lines[3]
                if name == "rewrite"
                else ink.lines[0]
            )
            dots = [x for pair in row["each"] for x in pair]
            ax.plot(
                dots,
                [y] * len(dots),
                "o",
                color=colour,
                markersize=4,
                alpha=0.35,
                markeredgewidth=0,
            )
            low, high = row["lost"].low, row["lost"].high
            if low is not None:
                ax.plot([low, high], [y, y], color=colour, linewidth=4, solid_capstyle="round")
            ax.plot(
                [row["lost"].mean], [y], "o", color=colour, markersize=8, markeredgecolor=ink.paper
            )
        names = ["rewrite (training)" if name == "rewrite" else name for name in order]
        ax.set_yticks(range(len(order)), names, fontsize=9.5)
        ax.set_ylim(-0.7, len(order) - 0.3)
        ax.set_xlim(-0.12, 1.04)
        ax.set_xticks([0, 0.2, 0.4, 0.6, 0.8, 1], ["0", "0.2", "0.4", "0.6", "0.8", "1"])
