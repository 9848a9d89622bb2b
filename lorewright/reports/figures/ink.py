"""The look of all figures: colours for light and dark, paper, titles, axes, files.

This part knows matplotlib. It knows nothing of what is drawn.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lorewright.errors import ConfigError
from lorewright.files import store

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 200


class Ink(NamedTuple):
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


LIGHT = Ink(
    "#ffffff",
    "#1f2328",
    "#59636e",
    "#e4e8ec",
    ("#bc4c00", "#0969da", "#8250df", "#1a7f37", "#bf3989", "#6e5a00"),
)
DARK = Ink(
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
        raise ConfigError(f"asked to draw {path}; figures are .svg or .png; change the suffix.")
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "figures need matplotlib; it is not installed; run `pip install lorewright[figures]`."
        ) from error
    return kind


@contextmanager
def sheet(
    path: Path, title: str, about: str, *, size: tuple[float, float], dark: bool
) -> Iterator[tuple[Figure, Ink]]:
    """Yield a figure with its title to draw on, of so many inches; afterwards it is a file.

    Equal figures are equal files. Raises ConfigError as `kind_of`, StorageError.
    """
    kind, ink = kind_of(path := Path(path)), DARK if dark else LIGHT
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    # Not pyplot: no window, no state. The salt makes equal records equal files.
    with rc_context({"svg.hashsalt": "lorewright", "font.family": "DejaVu Sans", "font.size": 11}):
        figure = Figure(figsize=size, facecolor=ink.paper)
        width, height = size
        fit = min(15.0, 103 * width / max(1, len(title)))
        small = min(10.5, 111 * width / max(1, len(about)))
        figure.text(
            0.18 / width,
            1 - 0.28 / height,
            title,
            va="center",
            size=fit,
            weight="bold",
            color=ink.text,
        )
        figure.text(
            0.18 / width, 1 - 0.59 / height, about, va="center", size=small, color=ink.muted
        )
        yield figure, ink
        content = io.BytesIO()
        meta: dict[str, Any] | None = {"Date": None, "Title": title} if kind == "svg" else None
        figure.savefig(content, format=kind, dpi=DPI, metadata=meta)
    store(content.getvalue(), path)


def plain(
    ax: Axes, ink: Ink, title: str = "", x: str = "", y: str = "", *, grid: str = "y"
) -> None:
    """Give an axis the house's look: no frame, few lines, muted labels."""
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


def shades(n: int, ink: Ink) -> list[str]:
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
