"""Figures of single tokens: where a text is not safe, and where its recitation first fails.

Drawn from probabilities by position and from the failures of many sequences.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lorewright.reports.figures.style import DASHED, canvas, panels, shades, style_axes
from lorewright.reports.results import checked_record

SAFE = 0.5


def positions_figure(
    cells: Sequence[Mapping[str, Any]], path: Path, *, about: str, dark: bool = False
) -> None:
    """Draw p of every token over rank and length; p < 1/2 marked, the first failure as a line.

    ``cells`` have rank, length, p and first_failure. Raises DataError for another shape.
    """
    with checked_record():
        ranks = sorted({cell["rank"] for cell in cells})
        lengths = sorted({cell["length"] for cell in cells})
        place = {(cell["rank"], cell["length"]): cell for cell in cells}
        width, height = 1.2 + 1.75 * len(ranks), 1.5 + 1.05 * len(lengths)
        title = "Probability of every token; below ½ it is not safe"
        with canvas(path, title, about, size=(width, height), dark=dark) as (figure, ink):
            across = {"left": 0.95 / width, "right": 1 - 0.15 / width, "wspace": 0.1}
            down = {"top": 1 - 1.15 / height, "bottom": 0.4 / height, "hspace": 0.42}
            axes = panels(figure, len(lengths), len(ranks), {**across, **down}, share="y")
            for (row, column), ax in np.ndenumerate(axes):
                style_axes(ax, ink, grid="")
                ax.set_ylim(-0.06, 1.06)
                ax.set_yticks([0, 0.5, 1], ["0", "½", "1"])
                length, rank = lengths[row], ranks[column]
                if row == 0:
                    ax.set_title(f"rank {rank}", size=10.5, color=ink.text, pad=7)
                if column == 0:
                    look = {"rotation": 0, "ha": "right", "va": "center"}
                    ax.set_ylabel(f"{length}\ntokens", color=ink.text, size=10, **look)
                ax.set_xlim(-0.03 * length, 1.03 * length)
                ax.set_xticks([0, length])
                ax.tick_params(labelsize=8, pad=2)
                ax.axhline(SAFE, color=ink.grid, linewidth=1, zorder=0)
                if (rank, length) in place:
                    _probabilities(ax, place[rank, length], ink)


def _probabilities(ax: Any, cell: Mapping[str, Any], ink: Any) -> None:
    p = np.array(cell["p"], float)
    at = np.arange(len(p))
    size = max(1.2, min(3.2, 160 / len(p)))
    for unsafe, colour in ((False, ink.lines[1]), (True, ink.lines[0])):
        chosen = (p < SAFE) == unsafe
        ax.plot(at[chosen], p[chosen], "o", color=colour, markersize=size, mew=0, alpha=0.8)
    if cell["first_failure"] is not None:
        ax.axvline(cell["first_failure"], color=ink.text, linewidth=1.1)


def failures_figure(
    failures: Mapping[str, Any], path: Path, *, about: str, dark: bool = False
) -> None:
    """Draw the first failure against the first token below ½, which comes before it or with it."""
    with checked_record():
        spearman, points = failures["spearman"], failures["points"]
        mean, low, high = (spearman[key] for key in ("mean", "low", "high"))
        rho = "too few to say" if mean is None else f"Spearman’s ρ {mean:.2f}"
        rho += "" if low is None else f" [{low:.2f}, {high:.2f}]"
        title = f"Recitation fails at a token that was not safe: {rho}"
        with canvas(path, title, about, size=(10, 5), dark=dark) as (figure, ink):
            margins = {"left": 0.07, "right": 0.985, "top": 0.74, "bottom": 0.125, "wspace": 0.2}
            left, right = panels(figure, 1, 2, margins)[0]
            title, x = "Every point a text of its own", "first token with p < ½"
            style_axes(left, ink, title, x, "first failure", grid="both")
            top = 1.04 * max([1, *(point["failure"] for point in points)])
            left.plot([0, top], [0, top], color=ink.muted, linewidth=1, linestyle=DASHED)
            ranks = sorted({point["rank"] for point in points})
            for rank, colour in zip(ranks, shades(len(ranks), ink), strict=True):
                own = [(p["stubborn"], p["failure"]) for p in points if p["rank"] == rank]
                look = {"markersize": 5.5, "alpha": 0.7, "mew": 0, "label": f"rank {rank}"}
                left.plot(*np.array(own).T, "o", color=colour, **look)
            left.set_xlim(-0.03 * top, top)
            left.set_ylim(-0.03 * top, top)
            if ranks:
                left.legend(frameon=False, labelcolor=ink.text, loc="lower right", fontsize=9.5)
            style_axes(right, ink, "Where the first failure is", "position", "texts")
            width = max(1, round(top / 24))
            bins = np.arange(0, top + width, width) - 0.5
            right.hist([p["failure"] for p in points], bins=bins, color=ink.lines[1], rwidth=0.88)
            right.yaxis.get_major_locator().set_params(integer=True)
