"""The figure of the planner's test: what was predicted, what was measured, one line a body."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lorewright.figures.ink import plain, sheet


def intervals(records: Sequence[dict[str, Any]], n_inside: int, path: Path, *, dark: bool) -> None:
    """Draw the predicted interval and the measured recall of every body at its planned rank."""
    rows = [record["ranks"][str(record["plan"]["rank"])] for record in records]
    order = sorted(range(len(rows)), key=lambda i: rows[i]["forecast"]["value"])
    title = f"Of {len(rows)} writes, {n_inside} came to what was predicted"
    about = (
        "recall at the planned rank: 90 % interval and median before the write; measured after it"
    )
    with sheet(path, title, about, size=(9.6, 0.27 * len(rows) + 1.8), dark=dark) as (figure, ink):
        ax = figure.add_axes(
            (
                0.30,
                0.09,
                0.66,
                1 - (0.95 + 0.09 * (0.27 * len(rows) + 1.8)) / (0.27 * len(rows) + 1.8),
            )
        )
        plain(ax, ink, x="share of answers reproduced exactly", grid="x")
        for y, i in enumerate(order):
            found, share = rows[i]["forecast"], rows[i]["n_exact"] / rows[i]["n"]
            inside = found["low"] <= share <= found["high"]
            ax.plot(
                [found["low"], found["high"]],
                [y, y],
                color=ink.lines[1],
                linewidth=5,
                alpha=0.35,
                solid_capstyle="round",
            )
            ax.plot(
                [found["value"]],
                [y],
                marker="|",
                markersize=10,
                color=ink.lines[1],
                linestyle="none",
            )
            ax.plot(
                [share],
                [y],
                marker="o",
                markersize=5.5,
                color=ink.text if inside else ink.lines[0],
                linestyle="none",
            )
        ax.set_yticks(range(len(order)), [records[i]["name"] for i in order], fontsize=9)
        ax.set_ylim(-0.8, len(order) - 0.2)
        ax.set_xlim(-0.03, 1.03)
