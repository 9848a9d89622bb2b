"""Figures of the memory law: what ranks held of texts, beside what the law says they hold.

Drawn from the summary of a sweep: its cells, and the constants of the law in its report.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lorewright.law.curves import FORMS
from lorewright.reports.figures.style import (
    DASHED,
    Palette,
    canvas,
    draw_intervals,
    draw_reference,
    name_at_right,
    panels,
    shades,
    style_axes,
)
from lorewright.reports.results import checked_record

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

FORM = "bounded"


def law_figure(law: Mapping[str, Any], path: Path, *, about: str, dark: bool = False) -> None:
    """Draw ΔL against rank and against length, runs as points, the law as lines.

    ``law`` has ``cells`` and ``report``. Raises DataError for another shape, and as `canvas`.
    """
    with checked_record():
        cells, title = law["cells"], _title(law, "What a rank keeps of a text")
        with canvas(path, title, about, size=(10, 4.9), dark=dark) as (figure, ink):
            margins = {"left": 0.06, "right": 0.905, "top": 0.73, "bottom": 0.135, "wspace": 0.26}
            left, right = panels(figure, 1, 2, margins, share="y")[0]
            style_axes(left, ink, "ΔL in nats per token, against rank", "rank")
            style_axes(right, ink, "The same, against length", "answer tokens")
            left.set_ylim(0, 1.06 * max(cell["loss_init"] for cell in cells))
            _families(left, law, cells, ("rank", "n_answer_tokens"), "{} tokens", ink)
            _families(right, law, cells, ("n_answer_tokens", "rank"), "rank {}", ink)


def _title(law: Mapping[str, Any], otherwise: str) -> str:
    scores = law["report"].get("laws", {}).get(FORM, {}).get("scores")
    if not scores or scores["r2"] is None:
        return otherwise
    held = law["report"]["laws"][FORM].get("held_out", {}).get("mape")
    beyond = "" if held is None else f", {held:.1%} off beyond what it was fitted on"
    return f"{otherwise}: the bounded law, R² {scores['r2']:.3f}{beyond}"


def _curve(law: Mapping[str, Any], size: Any, length: Any) -> NDArray[np.float64] | None:
    """The law's ΔL; None where it could not be fitted."""
    fitted = law["report"].get("laws", {}).get(FORM, {}).get("constants")
    if not fitted:
        return None
    constants = np.array([fitted[name]["value"] for name in FORMS[FORM].constants])
    # Texts of each length have a first loss of their own, which bounds what can be gained.
    tops: dict[int, list[float]] = defaultdict(list)
    for cell in law["cells"]:
        tops[cell["n_answer_tokens"]].append(cell["loss_init"])
    lengths = sorted(tops)
    means = [float(np.mean(tops[n])) for n in lengths]
    ceiling = np.interp(np.log(length), np.log(lengths), means)
    drawn = FORMS[FORM].curve(constants, np.log(size), np.log(length), ceiling)
    return np.asarray(drawn, float)


def _families(
    ax: Axes,
    law: Mapping[str, Any],
    cells: Sequence[Mapping[str, Any]],
    axes: tuple[str, str],
    named: str,
    ink: Palette,
) -> None:
    """A line of the law and its points for every value of the second axis."""
    across, along = axes
    families: dict[int, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for cell in cells:
        families[cell[along]][cell[across]].append(cell["loss_drop"])
    xs = sorted({cell[across] for cell in cells})
    dense = np.geomspace(xs[0], xs[-1], 60)
    ends, names = [], []
    for value, colour in zip(sorted(families), shades(len(families), ink), strict=True):
        for x, drops in families[value].items():
            ax.plot([x] * len(drops), drops, "o", color=colour, markersize=4, alpha=0.75, mew=0)
        pair = (dense, value) if across == "rank" else (value, dense)
        line = _curve(law, *pair)
        if line is None:
            line = np.interp(np.log(dense), np.log(xs), [np.mean(families[value][x]) for x in xs])
        ax.plot(dense, line, color=colour, linewidth=1.6)
        ends.append(float(line[-1]))
        names.append(named.format(value))
    _ticks(ax, xs)
    name_at_right(ax, ends, names, shades(len(families), ink))


def _ticks(ax: Axes, xs: Sequence[int]) -> None:
    ax.set_xscale("log")
    ax.set_xticks(xs, [str(x) for x in xs])
    ax.minorticks_off()


def plane_figure(law: Mapping[str, Any], path: Path, *, about: str, dark: bool = False) -> None:
    """Draw ΔL over rank and length as a plane: the law as bands, runs as discs in the same scale.

    A disc that stands out from its band is a cell that the law misses.
    """
    with checked_record():
        cells = law["cells"]
        top = max(cell["loss_init"] for cell in cells)
        with canvas(path, _title(law, "The plane"), about, size=(8.2, 5.2), dark=dark) as drawn:
            figure, ink = drawn
            ((ax,),) = panels(
                figure, 1, 1, {"left": 0.085, "right": 0.99, "top": 0.83, "bottom": 0.125}
            )
            style_axes(ax, ink, "", "rank", "answer tokens", grid="")
            ranks, lengths = (
                sorted({cell[name] for cell in cells}) for name in ("rank", "n_answer_tokens")
            )
            x = np.geomspace(ranks[0] / 1.3, ranks[-1] * 1.3, 120)
            y = np.geomspace(lengths[0] / 1.3, lengths[-1] * 1.3, 120)
            plane = _curve(law, *np.meshgrid(x, y))
            if plane is not None:
                levels = np.linspace(0, top, 13)
                bands = ax.contourf(x, y, plane, levels=levels, cmap="viridis", vmin=0, vmax=top)
                bands.set_edgecolor("face")
            means: dict[tuple[int, int], list[float]] = defaultdict(list)
            for cell in cells:
                means[cell["rank"], cell["n_answer_tokens"]].append(cell["loss_drop"])
            at = np.array(list(means), float)
            shown = ax.scatter(
                at[:, 0],
                at[:, 1],
                c=[float(np.mean(drops)) for drops in means.values()],
                cmap="viridis",
                vmin=0,
                vmax=top,
                s=190,
                edgecolors="white",
                linewidths=1.4,
                zorder=3,
            )
            ax.set_yscale("log")
            ax.set_yticks(lengths, [str(n) for n in lengths])
            _ticks(ax, ranks)
            ax.set_xlim(x[0], x[-1])
            ax.set_ylim(y[0], y[-1])
            bar = figure.colorbar(shown, ax=ax, pad=0.02)
            bar.outline.set_visible(False)
            bar.ax.tick_params(length=0, labelcolor=ink.muted)
            bar.set_label("ΔL, nats per token", color=ink.muted)


def predicted_figure(
    laws: Mapping[str, Mapping[str, Any]], path: Path, *, about: str, dark: bool = False
) -> None:
    """Draw predicted against measured ΔL: cells that the law was fitted on, and those held out.

    Held-out cells are predicted by the law that never saw them; one plot for each share of noise.
    """
    with checked_record():
        title = "Predicted against measured, and beyond what was fitted"
        width = max(6.2, 1.4 + 3.1 * len(laws))
        with canvas(path, title, about, size=(width, 4.7), dark=dark) as (figure, ink):
            margins = {"right": 0.985, "top": 0.715, "bottom": 0.145, "wspace": 0.1}
            axes = panels(figure, 1, len(laws), {**margins, "left": 0.65 / width}, share="xy")[0]
            top = 1.05 * max(c["loss_init"] for law in laws.values() for c in law["cells"])
            for ax, (noise, law) in zip(axes, laws.items(), strict=True):
                style_axes(ax, ink, f"{noise} % random tokens", "predicted ΔL, nats", grid="both")
                ax.plot([0, top], [0, top], color=ink.muted, linewidth=1, linestyle=DASHED)
                ax.set_xlim(0, top)
                ax.set_ylim(0, top)
                _predictions(ax, law, ink)
            axes[0].set_ylabel("measured ΔL, nats", color=ink.muted)
            handles, labels = axes[0].get_legend_handles_labels()
            axes[0].legend(handles, labels, frameon=False, labelcolor=ink.text, loc="upper left")


def _predictions(ax: Axes, law: Mapping[str, Any], ink: Palette) -> None:
    fitted = law["report"].get("laws", {}).get(FORM, {})
    limits = law["report"].get("held_out")
    if "held_out" not in fitted or not limits:
        return
    before = np.array([fitted["held_out"]["constants"][name] for name in FORMS[FORM].constants])
    whole = np.array([fitted["constants"][name]["value"] for name in FORMS[FORM].constants])
    groups: dict[bool, list[tuple[float, float]]] = {False: [], True: []}
    for cell in law["cells"]:
        above = cell["rank"] > limits["above_rank"]
        held = above or cell["n_answer_tokens"] > limits["above_length"]
        constants = before if held else whole
        size, length = np.log(cell["rank"]), np.log(cell["n_answer_tokens"])
        predicted = FORMS[FORM].curve(constants, size, length, cell["loss_init"])
        groups[held].append((float(predicted), cell["loss_drop"]))
    looks = ((False, "fitted on", ink.lines[1]), (True, "held out", ink.lines[0]))
    for held, name, colour in looks:
        points = np.array(groups[held] or [(np.nan, np.nan)])
        ax.plot(*points.T, "o", color=colour, markersize=5, alpha=0.7, mew=0, label=name)
    held_score = fitted["held_out"]
    ax.annotate(
        f"held out: {held_score['mape']:.1%} off, n={held_score['n']}",
        (1, 0),
        (-4, 8),
        "axes fraction",
        "offset points",
        ha="right",
        size=9.5,
        color=ink.muted,
    )


def heat_figure(
    grids: Mapping[str, Sequence[Mapping[str, Any]]], path: Path, *, about: str, dark: bool = False
) -> None:
    """Draw final loss and token accuracy of every rank and length as heat maps, noise by noise."""
    with checked_record():
        width, height = max(7.0, 1.6 + 3.2 * len(grids)), 7.4
        title = "What is lost, and what comes back, by rank and length"
        with canvas(path, title, about, size=(width, height), dark=dark) as (figure, ink):
            margins = {"top": 0.82, "bottom": 0.085, "wspace": 0.22, "hspace": 0.36}
            ends = {"left": 0.85 / width, "right": 1 - 0.2 / width}
            axes = panels(figure, 2, len(grids), {**ends, **margins})
            worst = max(cell["loss"] for cells in grids.values() for cell in cells)
            for column, (noise, cells) in enumerate(grids.items()):
                loss, accuracy = axes[0, column], axes[1, column]
                _heat(loss, cells, "loss", worst, "{:.1f}", "magma_r", ink)
                _heat(accuracy, cells, "token_accuracy", 1.0, "{:.2f}", "viridis", ink)
                style_axes(loss, ink, f"Final loss, {noise} % random", grid="")
                style_axes(accuracy, ink, f"Token accuracy, {noise} % random", "rank", grid="")
            for row in axes:
                row[0].set_ylabel("answer tokens", color=ink.muted)


def _heat(
    ax: Axes,
    cells: Sequence[Mapping[str, Any]],
    name: str,
    top: float,
    form: str,
    colours: str,
    ink: Palette,
) -> None:
    ranks, lengths = (sorted({cell[key] for cell in cells}) for key in ("rank", "length"))
    table = np.full((len(lengths), len(ranks)), np.nan)
    for cell in cells:
        table[lengths.index(cell["length"]), ranks.index(cell["rank"])] = cell[name]
    drawn = ax.imshow(table, origin="lower", aspect="auto", cmap=colours, vmin=0, vmax=top)
    ax.set_xticks(range(len(ranks)), [str(rank) for rank in ranks])
    ax.set_yticks(range(len(lengths)), [str(length) for length in lengths])
    for (y, x), value in np.ndenumerate(table):
        if not np.isnan(value):
            red, green, blue, _ = drawn.cmap(drawn.norm(value))
            bright = 0.3 * red + 0.59 * green + 0.11 * blue > 0.55
            colour = "#000000" if bright else "#fefefe"
            ax.text(x, y, form.format(value), ha="center", va="center", size=8.5, color=colour)


def capacity_figure(
    capacities: Mapping[str, Sequence[Mapping[str, Any]]],
    path: Path,
    *,
    about: str,
    references: Mapping[str, float],
    dark: bool = False,
) -> None:
    """Draw bits held and bits per parameter by rank, with intervals, beside what others report."""
    with checked_record():
        title = "Capacity grows with rank, efficiency falls"
        with canvas(path, title, about, size=(10, 4.7), dark=dark) as (figure, ink):
            margins = {"left": 0.07, "right": 0.87, "top": 0.72, "bottom": 0.14, "wspace": 0.5}
            left, right = panels(figure, 1, 2, margins)[0]
            style_axes(left, ink, "Bits held, the most at any length", "rank")
            style_axes(right, ink, "Bits per parameter of the adapter", "rank")
            names, ranks = [f"{noise} % random" for noise in capacities], set[int]()
            for ax, key in ((left, "bits"), (right, "bits_per_parameter")):
                ends = []
                for i, rows in enumerate(capacities.values()):
                    colour = ink.lines[i % len(ink.lines)]
                    x = [row["rank"] for row in rows]
                    ranks.update(x)
                    draw_intervals(ax, x, [row[key] for row in rows], colour)
                    ends.append(rows[-1][key]["mean"])
                _ticks(ax, sorted(ranks))
                ax.set_ylim(0, 1.05 * ax.get_ylim()[1])
                if key != "bits":
                    ax.set_ylim(0, max(ax.get_ylim()[1], 1.08 * max(references.values())))
                    for name, bits in references.items():
                        draw_reference(ax, bits, f"{name.partition(' (')[0]}: {bits:g}", ink)
                name_at_right(ax, ends, names, ink.lines)
