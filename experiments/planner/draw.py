"""The figures of the planner's test: what was predicted beside what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tables import at_plan, inside, share

from lorewright.law.forecast import Forecast
from lorewright.reports.figures.style import canvas, style_axes

ROW_INCHES, FRAME_INCHES = 0.27, 1.8


def intervals(records: Sequence[dict[str, Any]], path: Path, *, dark: bool) -> None:
    """Draw the predicted interval and the measured recall of every body at its planned rank."""
    rows = [at_plan(record) for record in records]
    order = sorted(range(len(rows)), key=lambda i: (rows[i]["forecast"]["value"], share(rows[i])))
    n_inside = sum(map(inside, rows))
    title = f"{n_inside} of {len(rows)} writes came to what was predicted"
    about = "at the planned rank: 90 % interval and median before the write (blue), recall after it; orange: outside"
    height = ROW_INCHES * len(rows) + FRAME_INCHES
    with canvas(path, title, about, size=(9.6, height), dark=dark) as (figure, ink):
        ax = figure.add_axes((0.30, 0.6 / height, 0.66, 1 - 1.5 / height))
        style_axes(ax, ink, x="share of answers reproduced exactly", grid="x")
        for y, i in enumerate(order):
            predicted, measured, held = rows[i]["forecast"], share(rows[i]), inside(rows[i])
            span, band = [predicted["low"], predicted["high"]], ink.lines[1]
            ax.plot(span, [y, y], color=band, linewidth=5, alpha=0.35, solid_capstyle="round")
            ax.plot(
                [predicted["value"]], [y], marker="|", markersize=10, color=band, linestyle="none"
            )
            colour = ink.text if held else ink.lines[0]
            ax.plot([measured], [y], marker="o", markersize=5.5, color=colour, linestyle="none")
        ax.set_yticks(range(len(order)), [records[i]["name"] for i in order], fontsize=9)
        ax.set_ylim(-0.8, len(order) - 0.2)
        ax.set_xlim(-0.03, 1.03)


def curve(records: Sequence[dict[str, Any]], forecast: Forecast, path: Path, *, dark: bool) -> None:
    """Draw recall of every write against its budget over the epochs it was predicted to need."""
    held = [inside(row) for record in records for row in record["ranks"].values()]
    title = f"{sum(held)} of {len(held)} writes at all ranks came to what was predicted"
    about = (
        "curve as calibrated, 90 % of bodies of knowledge around it; orange: outside its interval"
    )
    kappa, most = forecast.constants[0], 2.6
    with canvas(path, title, about, size=(7.6, 5.2), dark=dark) as (figure, ink):
        ax = figure.add_axes((0.10, 0.13, 0.86, 0.68))
        style_axes(ax, ink, x="epochs given over epochs predicted for half", y="recall")
        ratio = np.linspace(0.5, most, 300)
        shares = [
            1 / (1 + np.exp(-kappa * (np.log(ratio) + z * forecast.spread)))
            for z in (-1.645, 0.0, 1.645)
        ]
        ax.fill_between(ratio, shares[0], shares[2], color=ink.lines[1], alpha=0.2, linewidth=0)
        ax.plot(ratio, shares[1], color=ink.lines[1], linewidth=1.6)
        for record in records:
            for row in record["ranks"].values():
                x = min(record["epochs"] / row["needs"], most)
                colour = ink.text if inside(row) else ink.lines[0]
                ax.plot([x], [share(row)], marker="o", markersize=4, color=colour, alpha=0.65)
        ax.set_xlim(0.5, most + 0.04)
        ax.set_ylim(-0.03, 1.03)
