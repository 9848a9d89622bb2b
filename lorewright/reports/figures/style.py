"""The style of all figures: colours for light and dark, titles, axes, what several figures draw.

Knows matplotlib, which is imported when something is drawn, and nothing of what is drawn.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lorewright.errors import ConfigError
from lorewright.files import store

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 200
DASHED = (0, (2, 3))
"""Line style of what is compared with: a reference, the diagonal."""


class Palette(NamedTuple):
    """Colours of a figure; those of both settings differ, so that one can be put for the other."""

    paper: str
    text: str
    muted: str
    grid: str
    lines: tuple[str, ...]

    def named(self) -> dict[str, str]:
        """Return the colours by names that are the same in both settings."""
        named = {"paper": self.paper, "text": self.text, "muted": self.muted, "grid": self.grid}
        return named | {f"line-{n}": colour for n, colour in enumerate(self.lines)}


LIGHT = Palette(
    "#ffffff",
    "#1f2328",
    "#59636e",
    "#e4e8ec",
    ("#bc4c00", "#0969da", "#8250df", "#1a7f37", "#bf3989", "#6e5a00"),
)
DARK = Palette(
    "#0d1117",
    "#f0f6fc",
    "#9198a1",
    "#262c36",
    ("#f0883e", "#58a6ff", "#bc8cff", "#3fb950", "#f778ba", "#d4a72c"),
)


def kind_of(path: Path) -> str:
    """Return svg or png; raises ConfigError for another suffix, or without matplotlib."""
    kind = path.suffix.lower().removeprefix(".")
    if kind not in ("svg", "png"):
        raise ConfigError(
            f"{path} is no figure's name; figures are .svg or .png; change the suffix."
        )
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "figures need matplotlib; it is not installed: run `pip install lorewright[figures]`."
        ) from error
    return kind


@contextmanager
def canvas(
    path: Path, title: str, about: str, *, size: tuple[float, float], dark: bool
) -> Iterator[tuple[Figure, Palette]]:
    """Yield a figure with its title to draw on, of so many inches; afterwards it is a file.

    Equal figures are equal files. Raises ConfigError as `kind_of`, StorageError.
    """
    kind, palette = kind_of(path := Path(path)), DARK if dark else LIGHT
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    # Not pyplot: no window, no state. The salt makes equal records equal files.
    with rc_context({"svg.hashsalt": "lorewright", "font.family": "DejaVu Sans", "font.size": 11}):
        figure = Figure(figsize=size, facecolor=palette.paper)
        width, height = size
        fit = min(15.0, 103 * width / max(1, len(title)))
        small = min(10.5, 111 * width / max(1, len(about)))
        head, note = 1 - 0.28 / height, 1 - 0.59 / height
        bold = {"size": fit, "weight": "bold", "color": palette.text}
        figure.text(0.18 / width, head, title, bold, va="center")
        figure.text(0.18 / width, note, about, va="center", size=small, color=palette.muted)
        yield figure, palette
        content = io.BytesIO()
        meta: dict[str, Any] | None = {"Date": None, "Title": title} if kind == "svg" else None
        figure.savefig(content, format=kind, dpi=DPI, metadata=meta)
    store(content.getvalue(), path)


def panels(
    figure: Figure, rows: int, columns: int, margins: Mapping[str, float], share: str = ""
) -> Any:
    """Return axes within margins as of `subplots_adjust`; `share` is "x", "y", "xy" or nothing."""
    figure.subplots_adjust(**margins)
    return figure.subplots(rows, columns, squeeze=False, sharex="x" in share, sharey="y" in share)


def style_axes(
    ax: Axes, ink: Palette, title: str = "", x: str = "", y: str = "", *, grid: str = "y"
) -> None:
    """Style an axis: no frame, few lines, muted labels."""
    ax.set_facecolor(ink.paper)
    if title:
        ax.set_title(title, loc="left", size=11, color=ink.text, pad=10)
    ax.set_xlabel(x, color=ink.muted)
    ax.set_ylabel(y, color=ink.muted)
    if grid:
        ax.grid(axis=grid, color=ink.grid, linewidth=0.8)  # type: ignore[arg-type]
    ax.set_axisbelow(True)
    ax.tick_params(which="both", length=0, labelcolor=ink.muted, pad=6)
    ax.spines[:].set_visible(False)


def shades(n: int, ink: Palette) -> list[str]:
    """Return colours for ordered things: from the first line's colour to the second's."""
    from matplotlib.colors import LinearSegmentedColormap, to_hex

    between = LinearSegmentedColormap.from_list("", [ink.lines[0], ink.lines[2], ink.lines[1]])
    return [to_hex(between(i / max(1, n - 1))) for i in range(n)]


def apart(heights: Sequence[float], gap: float) -> list[float]:
    """Return heights moved, in their order, about their middle, until none is nearer than gap."""
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    placed = list(heights)
    for below, above in itertools.pairwise(order):
        placed[above] = max(placed[above], placed[below] + gap)
    shift = sum(a - b for a, b in zip(placed, heights, strict=True)) / len(heights)
    return [place - shift for place in placed]


def draw_intervals(
    ax: Axes,
    x: Iterable[float],
    rows: Sequence[Mapping[str, Any] | None],
    colour: str,
    style: str = "-o",
    **look: Any,
) -> None:
    """Draw means with their intervals as bars; None is left out."""
    x, means = list(x), [float("nan") if row is None else row["mean"] for row in rows]
    ax.plot(x, means, style, color=colour, mew=0, **{"linewidth": 1.8, "markersize": 5, **look})
    for at, row in zip(x, rows, strict=True):
        if row is not None and row["low"] is not None:
            ax.plot([at, at], [row["low"], row["high"]], color=colour, linewidth=1.5)


def name_at_right(
    ax: Axes,
    heights: Sequence[float],
    names: Sequence[str],
    colours: Sequence[str],
    *,
    gap: float = 12.5,
    size: float = 9.5,
) -> None:
    """Write names at the right edge, beside their heights, moved apart where they would overlap."""
    ax.set_ylim(ax.get_ylim())  # names are placed for these limits
    points = 72 / ax.figure.dpi
    at = [ax.transData.transform((1.0, height))[1] * points for height in heights]
    places = apart(at, gap)
    for name, height, was, place, colour in zip(names, heights, at, places, colours, strict=False):
        ax.annotate(
            name,
            (1, height),
            (8, place - was),
            ("axes fraction", "data"),
            "offset points",
            va="center",
            size=size,
            color=colour,
            linespacing=1.15,
            annotation_clip=False,
        )


def draw_reference(
    ax: Axes, height: float, text: str, ink: Palette, *, below: bool = False
) -> None:
    """Draw a dashed line at a height, its text above or below it at the right."""
    ax.axhline(height, color=ink.muted, linewidth=1, linestyle=DASHED)
    ax.annotate(
        text,
        (1, height),
        (0, -5 if below else 4),
        ("axes fraction", "data"),
        "offset points",
        ha="right",
        va="top" if below else "bottom",
        size=9,
        color=ink.muted,
        bbox={"fc": ink.paper, "lw": 0, "pad": 1},
        zorder=1,  # below the curves
    )
