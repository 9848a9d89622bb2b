"""Figures of ways of writing: recall by how much was written, by what it costs, and by rank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lorewright.reports.figures.style import Palette, canvas, draw_intervals, panels, style_axes
from lorewright.reports.results import checked_record

MARKS = ("o", "s", "^", "D")
"""One for each round through the colours."""
BAND = 0.1
"""Opacity of an interval as a band, where bars of many lines would stand too close."""
DODGE = 0.42
"""Over how much of an octave lines that share their places are spread."""


def look_of(names: Sequence[str], ink: Palette) -> dict[str, tuple[str, str]]:
    """Colour and mark of each name; no two share both."""
    n = len(ink.lines)
    return {name: (ink.lines[i % n], MARKS[i // n % len(MARKS)]) for i, name in enumerate(names)}


def beside(places: Sequence[float], i: int, n: int) -> list[float]:
    """Places on a logarithmic axis, moved a little for the i-th of n lines, so that bars show."""
    return [place * 2 ** (DODGE * (i - (n - 1) / 2) / n) for place in places]


def recall_figure(
    entries: Sequence[Mapping[str, Any]],
    path: Path,
    *,
    about: str,
    title: str = "What a way of writing holds",
    dark: bool = False,
) -> None:
    """Draw recall by facts, and at the size where most were written by bytes and by seconds.

    An entry has method, facts, recall as mean and interval, bytes and seconds (None for a row
    without a write, which is a line in the first plot only). Raises DataError for another shape.
    """
    with checked_record():
        from matplotlib.ticker import FuncFormatter, LogLocator

        names = list(dict.fromkeys(entry["method"] for entry in entries))
        most = max(entry["facts"] for entry in entries)
        with canvas(path, title, about, size=(12, 4.8), dark=dark) as (figure, ink):
            margins = {"left": 0.05, "right": 0.805, "top": 0.76, "bottom": 0.13, "wspace": 0.2}
            by_facts, by_bytes, by_seconds = panels(figure, 1, 3, margins)[0]
            counted = f"at {most} fact{'' if most == 1 else 's'}"
            style_axes(by_facts, ink, "recall by facts of a source", "facts")
            style_axes(by_bytes, ink, f"recall by bytes, {counted}", "kB of the state")
            style_axes(by_seconds, ink, f"recall by seconds, {counted}", "seconds of the write")
            unwritten = [e["method"] for e in entries if not e["bytes"]]
            look = look_of([name for name in names if name not in unwritten], ink)
            for i, name in enumerate(names):
                colour, mark = look.get(name, (ink.muted, MARKS[i % len(MARKS)]))
                mine = sorted((e for e in entries if e["method"] == name), key=_facts)
                line = "--" if name in unwritten else "-"
                shares = [entry["recall"] for entry in mine]
                at = beside([entry["facts"] for entry in mine], i, len(names))
                draw_intervals(by_facts, at, shares, colour, f"{line}{mark}", label=name)
                last = [e for e in mine if e["facts"] == most and e["bytes"]]
                shares = [e["recall"] for e in last]
                draw_intervals(by_bytes, [e["bytes"] / 1000 for e in last], shares, colour, mark)
                draw_intervals(by_seconds, [e["seconds"] for e in last], shares, colour, mark)
            by_facts.set_xscale("log", base=2)
            sizes = sorted({entry["facts"] for entry in entries})
            by_facts.set_xticks(sizes, [str(size) for size in sizes])
            by_facts.minorticks_off()
            for ax, steps in ((by_bytes, (1.0,)), (by_seconds, (1.0, 3.0))):
                ax.set_xscale("log")
                ax.xaxis.set_major_locator(LogLocator(subs=steps))
                ax.xaxis.set_major_formatter(FuncFormatter(lambda value, at: f"{value:g}"))
                ax.minorticks_off()
            for ax in (by_facts, by_bytes, by_seconds):
                ax.set_ylim(-0.03, 1.03)
            figure.legend(
                *by_facts.get_legend_handles_labels(),
                frameon=False,
                labelcolor=ink.text,
                fontsize=9.5,
                loc="center left",
                bbox_to_anchor=(0.812, 0.46),
            )


def _facts(entry: Mapping[str, Any]) -> int:
    return int(entry["facts"])


def rank_figure(
    entries: Sequence[Mapping[str, Any]],
    path: Path,
    *,
    about: str,
    title: str = "How low is the rank of a fact?",
    dark: bool = False,
) -> None:
    """Draw recall and the least share of the norm by the rank that weight changes are cut to.

    Bands are intervals. An entry has method, facts, rank, held as mean and interval, and energy.
    Raises DataError for another shape.
    """
    with checked_record():
        lines = list(dict.fromkeys((entry["method"], entry["facts"]) for entry in entries))
        names = {line: f"{line[0]}, {line[1]} fact{'' if line[1] == 1 else 's'}" for line in lines}
        with canvas(path, title, about, size=(10.5, 4.8), dark=dark) as (figure, ink):
            margins = {"left": 0.06, "right": 0.79, "top": 0.76, "bottom": 0.13, "wspace": 0.2}
            left, right = panels(figure, 1, 2, margins)[0]
            style_axes(left, ink, "recall in other words", "rank")
            style_axes(right, ink, "share of the norm, least of all modules", "rank")
            look = look_of([names[line] for line in lines], ink)
            for line in lines:
                mine = [e for e in entries if (e["method"], e["facts"]) == line]
                colour, mark = look[names[line]]
                ranks, style = [entry["rank"] for entry in mine], f"-{mark}"
                shares = [entry["held"] for entry in mine]
                plain = {"color": colour, "linewidth": 1.8, "markersize": 5, "mew": 0}
                left.plot(ranks, [e["mean"] for e in shares], style, label=names[line], **plain)
                ends = [[e[end] for e in shares] for end in ("low", "high")]
                left.fill_between(ranks, *ends, color=colour, alpha=BAND, linewidth=0)
                right.plot(ranks, [entry["energy"] for entry in mine], style, **plain)
            ticks = sorted({entry["rank"] for entry in entries})
            for ax in (left, right):
                ax.set_xscale("log", base=2)
                shown = [rank for rank in ticks if rank & (rank - 1) == 0 or rank == ticks[-1]]
                ax.set_xticks(shown, [str(rank) for rank in shown])
                ax.minorticks_off()
                ax.set_ylim(-0.03, 1.03)
            figure.legend(
                *left.get_legend_handles_labels(),
                frameon=False,
                labelcolor=ink.text,
                fontsize=9.5,
                loc="center left",
                bbox_to_anchor=(0.8, 0.46),
            )
