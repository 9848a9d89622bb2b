"""Figures of the comparison: recall by epoch, and paired differences to plain loss."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from compare import BASELINE, Measured, against, as_ratio, epochs_log, tokens
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullFormatter
from trials import ARMS, TASKS

from lorewright.files import store

Groups = Mapping[str, Sequence[Measured]]
DRAWN = tuple(name for name, arm in ARMS.items() if not arm.rests)
OTHERS = tuple(name for name in DRAWN if name != BASELINE)
HEIGHT = len(OTHERS) + 1.5  # of a cell's marks
FULL = ("all linear layers", "one layer's projection")


class Ink(NamedTuple):
    """Colours of a figure; the lines in the order of DRAWN."""

    paper: str
    text: str
    muted: str
    grid: str
    lines: tuple[str, ...]


LIGHT = Ink(
    "#ffffff", "#1f2328", "#59636e", "#e4e8ec",
    ("#1f2328", "#bc4c00", "#0969da", "#1a7f37", "#8250df"),
)  # fmt: skip
DARK = Ink(
    "#0d1117", "#f0f6fc", "#9198a1", "#262c36",
    ("#f0f6fc", "#f0883e", "#58a6ff", "#56d364", "#bc8cff"),
)  # fmt: skip


def curves(groups: Groups, path: Path, *, dark: bool) -> None:
    """Draw the share recalled by epoch, a panel a cell, mean over the fresh seeds."""
    rows = [[at for at in groups[name] if at.cell.rank == rank] for name, rank in _ranks(groups)]
    ink = DARK if dark else LIGHT
    with _figure(path, (9.6, 1.75 * len(rows) + 1.8), (len(rows), 3), ink, "y") as panels:
        for (name, rank), line, cells in zip(_ranks(groups), panels, rows, strict=True):
            for ax, at in zip(line, cells, strict=True):
                for arm, color in zip(DRAWN, ink.lines, strict=True):
                    if arm not in at.cell.arms:
                        continue
                    y = _mean_course(at, arm)
                    x = range(1, len(y) + 1)
                    ax.plot(x, y, color=color, linewidth=1.8, alpha=0.9, label=arm)
                ax.set_ylim(-0.05, 1.08)
                ax.set_xlim(0, at.cell.epochs)
                ax.set_yticks([0, 0.5, 1], ["0", "", "1"])
                ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
                if cells is rows[0]:
                    ax.set_title(_task(at.cell.task), loc="left", size=10.5, color=ink.text)
                if cells is rows[-1]:
                    ax.set_xlabel("epoch", color=ink.muted)
            line[0].set_ylabel(f"{_place(name)}\nrank {rank}", color=ink.muted, size=9.5)
        _head(panels, "Share of answers recalled, by epoch", "mean of the fresh seeds", ink)


def effects(groups: Groups, path: Path, *, dark: bool) -> None:
    """Draw each arm against plain loss, cell by cell, with intervals."""
    ink = DARK if dark else LIGHT
    with _figure(path, (9.6, 7.2), (2, 3), ink, "x") as panels:
        for line, name in zip(panels, FULL, strict=True):
            tasks = list(dict.fromkeys(at.cell.task for at in groups[name]))
            for ax, task in zip(line, tasks, strict=True):
                cells = [at for at in groups[name] if at.cell.task == task]
                for i, at in enumerate(cells):
                    _marks(ax, at, i * HEIGHT, ink, ratio=name == FULL[0])
                middles = [-i * HEIGHT - (_n_marks(at) - 1) / 2 for i, at in enumerate(cells)]
                names = [f"rank {at.cell.rank}" if ax is line[0] else "" for at in cells]
                ax.set_yticks(middles, names)
                ax.set_title(_task(task), loc="left", size=10.5, color=ink.text)
                _even(ax, ink, ratio=name == FULL[0])
        _same_scale(panels)
        of = "epochs to exact match 1.00 over plain loss's: left is better"
        panels[0][1].set_xlabel(f"all linear layers: {of}", color=ink.muted)
        of = "token accuracy at the end minus plain loss's: right is better"
        panels[1][1].set_xlabel(f"one layer's projection: {of}", color=ink.muted)
        about = "mean over the fresh seeds of a cell, with 95 % intervals of the paired difference"
        _head(panels, "MemFT against plain loss at equal tokens", about, ink)


def _n_marks(at: Measured) -> int:
    """Lines from a cell's first mark to its last."""
    return 1 + max((j for j, arm in enumerate(OTHERS) if arm in at.cell.arms), default=0)


def _marks(ax: Axes, at: Measured, down: float, ink: Ink, *, ratio: bool) -> None:
    """A cell's arms below one another: the difference to plain loss and its interval."""
    for j, arm in enumerate(OTHERS):
        if arm not in at.cell.arms:
            continue
        difference = (
            as_ratio(against(arm, [at], epochs_log)) if ratio else against(arm, [at], tokens)
        )
        y, color = -(down + j), ink.lines[DRAWN.index(arm)]
        if difference.low is not None and difference.high is not None:
            ax.plot([difference.low, difference.high], [y, y], color=color, linewidth=2)
        ax.plot(difference.mean, y, "o", color=color, markersize=5, label=arm)


def _even(ax: Axes, ink: Ink, *, ratio: bool) -> None:
    """A line where there is no difference."""
    ax.axvline(1 if ratio else 0, color=ink.muted, linewidth=1)
    if ratio:
        ax.set_xscale("log")
        ticks = (0.5, 0.7, 1, 1.4, 2, 2.8)
        ax.xaxis.set_major_locator(FixedLocator(ticks))
        ax.xaxis.set_major_formatter("{x:g}")
        ax.xaxis.set_minor_formatter(NullFormatter())


def _same_scale(panels: Sequence[Sequence[Axes]]) -> None:
    for line in panels:
        ends = [ax.get_xlim() for ax in line]
        for ax in line:
            ax.set_xlim(min(low for low, _ in ends), max(high for _, high in ends))


def _ranks(groups: Groups) -> list[tuple[str, int]]:
    """Group and rank of every line of panels."""
    return list(dict.fromkeys((name, at.cell.rank) for name in FULL for at in groups[name]))


def _place(name: str) -> str:
    return {"all linear layers": "all layers", "one layer's projection": "one layer"}[name]


def _task(name: str) -> str:
    n = TASKS[name].n_facts
    return f"{n} fact{'s' * (n > 1)} of {name}"


def _mean_course(at: Measured, arm: str) -> list[float]:
    """Mean share recalled after every epoch; a write that ended keeps what it had."""
    courses = [[0.0] * at.cell.epochs for _ in at.of(arm)]
    for course, row in zip(courses, at.of(arm), strict=True):
        last = 0.0
        for i in range(at.cell.epochs):
            last = row["recalled"][i] / row["n"] if i < len(row["recalled"]) else last
            course[i] = last
    return [sum(values) / len(values) for values in zip(*courses, strict=True)]


@contextmanager
def _figure(
    path: Path, size: tuple[float, float], shape: tuple[int, int], ink: Ink, grid_lines: str
) -> Iterator[list[list[Axes]]]:
    """A grid of empty panels, that is saved when they are filled."""
    content = io.BytesIO()
    with rc_context({"svg.hashsalt": "lorewright", "font.family": "DejaVu Sans", "font.size": 9.5}):
        figure = Figure(figsize=size, facecolor=ink.paper)
        grid = figure.subplots(*shape, squeeze=False, subplot_kw={"facecolor": ink.paper})
        panels = [list(line) for line in grid]
        yield panels
        for ax in figure.axes:
            ax.grid(axis=grid_lines, color=ink.grid, linewidth=0.8)
            ax.set_axisbelow(True)
            ax.tick_params(which="both", length=0, labelcolor=ink.muted, pad=5)
            ax.spines[:].set_visible(False)
        top = 1 - 1.25 / size[1]
        figure.subplots_adjust(
            left=0.1, right=0.98, top=top, bottom=0.55 / size[1], wspace=0.2, hspace=0.34
        )
        kind = path.suffix.removeprefix(".")
        meta = {"Date": None} if kind == "svg" else None
        figure.savefig(content, format=kind, dpi=110, metadata=meta)
    store(content.getvalue(), path)


def _head(panels: Sequence[Sequence[Axes]], title: str, about: str, ink: Ink) -> None:
    figure = panels[0][0].figure
    height = figure.get_figheight()  # type: ignore[union-attr]
    figure.text(0.02, 1 - 0.22 / height, title, va="center", size=14, weight="bold", color=ink.text)
    figure.text(0.02, 1 - 0.47 / height, about, va="center", size=9.5, color=ink.muted)
    legends = [ax.get_legend_handles_labels() for line in panels for ax in line]
    shown = {n: h for handles, names in legends for h, n in zip(handles, names, strict=True)}
    chosen = {name: shown[name] for name in DRAWN if name in shown}
    figure.legend(
        chosen.values(), chosen.keys(), loc="upper left", ncols=len(chosen), frameon=False,
        fontsize=9, labelcolor=ink.text, bbox_to_anchor=(0.01, 1 - 0.58 / height),
    )  # fmt: skip
