"""Records to terminal tables, Markdown, JSON and figures; and the lines shown while a write runs.

Figures are drawn from JSON only, so that a stored record can be drawn again without a model. A
number stands with its n and its interval; what was not run is a dash and what was not scored is
counted, neither is ever zero. This room knows nothing of how the records came about.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import math
import os
import secrets
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rich import box
from rich.console import Console, ConsoleOptions, JustifyMethod, RenderResult
from rich.measure import Measurement
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.table import Table
from rich.text import Text

from lorewright.errors import ConfigError, DataError, StorageError
from lorewright.metrics import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from lorewright.recall import RecallReport
    from lorewright.recipe import Epoch
    from lorewright.targets import Coverage

NOT_RUN = "–"
WIDE = 110  # characters from which every arm of a verdict fits on one line
NUMBERS = ("n", "rank", "count", "final loss")  # columns set to the right
WHOLE = (*NUMBERS, "probes", "adapter", "module")  # columns never broken
CONTRAST_COLUMNS = ("", "what it is", "n", "recall", "final loss")
PLAIN_SECONDS = 5.0  # at least, between two progress lines where there is no terminal
LEAST_LOSS = 1e-5  # drawn for a loss below it, in nats per token: a logarithmic scale has no 0


# -- the verdict ---------------------------------------------------------------------------------


def recall_table(report: RecallReport) -> Table:
    """Return probe kinds by arms, `0.94 [0.87, 0.97]` each, with n; notes stand below.

    Arms that were not run show a dash. Where arms scored different numbers of a kind, n is a range.
    """
    heading = f"Recall of {report.context.get('memory', 'the probes')}"
    columns, subtitle = ["probes", "n", *_arms()], f"{report.metric}, 95 % intervals"
    table = _table(heading, subtitle, columns, dim=_arms()[1:])
    for kind, n, *cells in _recall_rows(report):
        style = "bold" if kind == "paraphrase" else ""  # the headline number
        table.add_row(Text(kind), Text(n), *map(_Cell, cells), style=style)
    table.caption = Text("\n".join(_notes(report)))
    return table


def recall_markdown(report: RecallReport) -> str:
    """Return the same table and notes as GitHub-flavoured Markdown."""
    table = _markdown(["probes", "n", *_arms()], _recall_rows(report))
    notes = "".join(f"- {note}\n" for note in _notes(report))
    text = f"Recall ({report.metric}, 95 % intervals)\n\n{table}"
    return f"{text}\n{notes}" if notes else text


def _arms() -> tuple[str, ...]:
    from lorewright.recall import ARMS  # here, as the figures of a stored record need no torch

    return ARMS


def _recall_rows(report: RecallReport) -> list[list[str]]:
    rows = []
    for kind in report.kinds:
        found = {arm: report.proportion(arm, kind) for arm in report.arms}
        ns = sorted({estimate.n for estimate in found.values()})
        n = f"{ns[0]}–{ns[-1]}" if len(ns) > 1 else f"{ns[0]}"
        rows.append([kind, n, *(_spell(found.get(arm)) for arm in _arms())])
    return rows


def _notes(report: RecallReport) -> list[str]:
    """The report's notes, then how many probes each arm left unscored."""
    notes = list(report.notes)
    for arm, rows in report.arms.items():
        for kind in report.kinds:
            scores = [row.score for row in rows if row.kind == kind]
            if n_unscored := scores.count(None):
                notes.append(f"{arm}: {n_unscored} of {len(scores)} {kind} probes unscored.")
    return notes


def _spell(estimate: Estimate | None) -> str:
    """Mean and interval; n stands in its own column."""
    return NOT_RUN if estimate is None else str(estimate).split(" n=")[0]


class _Cell:
    """A mean and its interval on one line, or on two or three where the table is narrow."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        least, halves = (max(map(len, self.text.split(" ", n))) for n in (-1, 1))
        return Measurement(least, len(self.text) if options.max_width > WIDE else halves)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        mean, _, interval = self.text.partition(" ")
        lines = self.text if len(self.text) <= options.max_width else f"{mean}\n{interval}"
        yield Text(lines)


def _table(title: str, subtitle: str, columns: Sequence[str], dim: Sequence[str] = ()) -> Table:
    heading = Text.assemble((title, "bold"), (f"  {subtitle}", "dim"))
    table = Table(
        title=heading,
        title_style="",
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        collapse_padding=True,
    )
    for name in columns:
        align: JustifyMethod = "right" if name in NUMBERS else "left"
        table.add_column(
            name,
            justify=align,
            style="dim" if name in dim else "",
            min_width=len(name),
            no_wrap=name in WHOLE,
        )
    return table


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def spelt(cell: str) -> str:
        return " ".join(cell.split()).replace("\\", "\\\\").replace("|", "\\|")

    lines = (head, ["---"] * len(head), *rows)
    return "".join(f"| {' | '.join(map(spelt, line))} |\n" for line in lines)


def memories_table(cards: Sequence[Mapping[str, Any]]) -> Table:
    """Return a row per card, its recall beside the base's; raises DataError for other shapes."""
    columns = ["memory", "adapter", "rank", "n", "recall", "base alone", "training ended"]
    table = _table("Memories", "paraphrases, 95 % intervals", columns, dim=["base alone"])
    with _stored():
        for card in cards:
            arms = card["report"]["recall"].get("paraphrase", {})
            found = {arm: _estimate(row) for arm, row in arms.items()}
            n = str(found["memory"].n) if "memory" in found else NOT_RUN
            words = [card["name"], card["id"], str(card["adapter"]["lora"]["rank"]), n]
            cells = [_Cell(_spell(found.get(arm))) for arm in ("memory", "base")]
            table.add_row(*map(Text, words), *cells, Text(card["reason"]))
    return table


def coverage_table(coverage: Coverage) -> Table:
    """Return which linear layers carry an adapter, and what does not and why."""
    subtitle = f"{len(coverage.sites)} of {coverage.n_linear} linear layers"
    table = _table("Targets", subtitle, ["module", "count", "where, or why not"])
    for what, n, where in coverage.table():
        table.add_row(Text(what), str(n), Text(where), style="dim" if what == "skipped" else "")
    return table


def save_json(obj: object, path: Path) -> None:
    """Write an object (plain data or dataclasses) as indented JSON, whole or not at all.

    Raises DataError for what JSON cannot hold (NaN included), StorageError when the disk refuses.
    """
    try:
        text = json.dumps(obj, indent=2, ensure_ascii=False, allow_nan=False, default=asdict)
        content = (text + "\n").encode()
    except (TypeError, ValueError) as error:
        raise DataError(f"asked to write {path}; the record cannot be JSON: {error}.") from error
    _store(content, Path(path))


def _store(content: bytes, path: Path) -> None:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as cleanup:
            cleanup.callback(temporary.unlink, missing_ok=True)
            temporary.write_bytes(content)
            os.replace(temporary, path)
    except OSError as error:
        raise StorageError(f"asked to write {path}; the disk said: {error}.") from error


# -- while a write runs --------------------------------------------------------------------------


def epoch_line(epoch: Epoch) -> str:
    """Return one plain line on an epoch; `~` marks recall counted while the weights still moved."""
    return (
        f"epoch {epoch.epoch}/{epoch.epochs}  loss {epoch.loss_nats:.4f} nats/token  "
        f"{_recalled(epoch)}  {_clock(epoch.seconds)}{_left(_left_seconds(epoch))}"
    )


def _recalled(epoch: Epoch) -> str:
    return f"{'' if epoch.certified else '~'}{epoch.n_recalled}/{epoch.n_examples} recalled"


def _left_seconds(epoch: Epoch) -> float:
    """The rest of the budget at the pace so far; 0 when everything is recalled."""
    done = epoch.certified and epoch.n_recalled == epoch.n_examples
    return 0.0 if done else (epoch.epochs - epoch.epoch) * epoch.seconds / epoch.epoch


def _left(seconds: float) -> str:
    # The stop rule usually ends a write before its budget does.
    return f", at most {_clock(seconds)} left" if seconds > 0 else ""


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


@contextlib.contextmanager
def write_progress(console: Console | None = None) -> Iterator[Callable[[Epoch], None]]:
    """Yield an `on_epoch` for `write` that shows how it goes, on stderr unless told otherwise.

    On a terminal one line is kept up to date; elsewhere a plain line is written every five seconds
    at most, and the last epoch always.
    """
    console = console if console is not None else Console(stderr=True)
    if not console.is_interactive:
        yield from _plain_lines(console)
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(24), _Standing())
    with Progress(*columns, console=console) as progress:
        start = time.monotonic()
        task_id = progress.add_task("writing", total=None, epoch=None, met=start, ended=False)

        def on_epoch(epoch: Epoch) -> None:
            progress.update(
                task_id,
                description=f"epoch {epoch.epoch}/{epoch.epochs}",
                epoch=epoch,
                total=epoch.n_examples,
                completed=epoch.n_recalled,
                met=time.monotonic(),
            )

        try:
            yield on_epoch
        finally:
            progress.update(task_id, ended=True)


def _plain_lines(console: Console) -> Iterator[Callable[[Epoch], None]]:
    shown = -math.inf
    held: Epoch | None = None

    def on_epoch(epoch: Epoch) -> None:
        nonlocal shown, held
        held = epoch
        if time.monotonic() - shown >= PLAIN_SECONDS:
            console.out(epoch_line(epoch), highlight=False)
            shown, held = time.monotonic(), None

    try:
        yield on_epoch
    finally:
        if held is not None:
            console.out(epoch_line(held), highlight=False)


class _Standing(ProgressColumn):
    """Recalled, loss, elapsed and what is left, the clocks running on between epochs."""

    def render(self, task: Task) -> Text:
        """Return the text after the bar."""
        epoch: Epoch | None = task.fields["epoch"]
        since = time.monotonic() - task.fields["met"]
        if epoch is None:
            return Text(f"first epoch  {_clock(since)}", style="dim")
        left, seconds = _left_seconds(epoch) - since, epoch.seconds + since
        if task.fields["ended"]:
            left, seconds = 0.0, epoch.seconds
        clocks = (f"{_clock(seconds)}{_left(left)}", "dim")
        return Text.assemble(f"{_recalled(epoch)}  loss {epoch.loss_nats:.3f}  ", clocks)


# -- the demonstration: the same document, written in two ways -----------------------------------


@contextlib.contextmanager
def _stored() -> Iterator[None]:  # says of a record that cannot be read what is wrong with it
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"asked to show a stored record; it is not as expected ({type(error).__name__}: "
            f"{error}); make it again with this version."
        ) from error


def contrast_table(record: Mapping[str, Any]) -> Table:
    """Return the demonstration's arms with recall, interval, n and final training loss.

    Raises DataError for a record of another shape.
    """
    with _stored():
        subtitle = f"{record['n_probes']} probes, 95 % intervals"
        table = _table(str(record["title"]), subtitle, CONTRAST_COLUMNS, dim=["what it is"])
        for part in ("rows", "extra"):
            for row in record[part]:
                table.add_row(*map(Text, _cells(row)))
            table.add_section()
        notes = [_took(record), *(f"$ {command}" for command in record["commands"])]
        table.caption = Text("\n".join(notes))
        return table


def contrast_markdown(record: Mapping[str, Any]) -> str:
    """Return the same as GitHub-flavoured Markdown; raises DataError likewise."""
    with _stored():
        rows = map(_cells, (*record["rows"], *record["extra"]))
        text = f"### {record['title']}\n\n{_markdown(CONTRAST_COLUMNS, [*rows])}\n{_took(record)}\n"
        commands = "".join(f"{command}\n" for command in record["commands"])
        return text + (f"\n```sh\n{commands}```\n" if commands else "")


def _cells(row: Mapping[str, Any]) -> list[str]:
    loss = NOT_RUN if row["final_loss"] is None else f"{row['final_loss']:.3f}"
    return [row["name"], row["meaning"], str(row["n"]), _spell(_estimate(row)), loss]


def _estimate(row: Mapping[str, Any]) -> Estimate:
    return Estimate(row["n"], row["recall"], row["low"], row["high"])


def _took(record: Mapping[str, Any]) -> str:
    return f"Final loss in nats per trained token. It took {record['seconds']:.0f} s."


class _Curve(NamedTuple):
    name: str
    epoch: list[float]
    loss: list[float]
    recall: list[float]
    verdict: Estimate | None  # the row of the table that belongs to it

    @property
    def final(self) -> float:
        """The verdict's recall; without one, the last of the curve."""
        mean = self.verdict.mean if self.verdict else None
        return self.recall[-1] if mean is None else mean


def _curves(record: Mapping[str, Any]) -> list[_Curve]:
    """The curves; a loss that was rounded to 0 is drawn at LEAST_LOSS."""
    rows, curves = {row["name"]: _estimate(row) for row in record["rows"]}, []
    for name, curve in record["curves"].items():
        epoch, loss, recall = ([float(x) for x in curve[k]] for k in ("epoch", "loss", "recall"))
        if not 0 < len(epoch) == len(loss) == len(recall):
            raise ValueError(f"curve {name!r} needs epochs, and as many losses and recalls")
        loss = [max(value, LEAST_LOSS) for value in loss]
        curves.append(_Curve(name, epoch, loss, recall, rows.get(f"write: {name}")))
    if not curves:
        raise ValueError("it has no curves")
    return curves


class _Ink(NamedTuple):
    paper: str
    text: str
    muted: str
    grid: str
    lines: tuple[str, ...]


_LIGHT = _Ink("#ffffff", "#1f2328", "#59636e", "#e4e8ec", ("#bc4c00", "#0969da", "#8250df"))
_DARK = _Ink("#0d1117", "#f0f6fc", "#9198a1", "#262c36", ("#f0883e", "#58a6ff", "#bc8cff"))


def contrast_figure(record: Mapping[str, Any], path: Path, *, dark: bool = False) -> None:
    """Draw training loss and recall by epoch, side by side, into an SVG or PNG file.

    The title states the finding where the curves bear it out, else it is the record's own. Raises
    ConfigError for another suffix or without matplotlib, DataError for a record of another shape.
    """
    kind = (path := Path(path)).suffix.lower().removeprefix(".")
    if kind not in ("svg", "png"):
        raise ConfigError(f"asked to draw {path}; figures are .svg or .png; change the suffix.")
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
        from matplotlib.ticker import LogLocator, MaxNLocator
    except ImportError as error:
        raise ConfigError(
            "figures need matplotlib; it is not installed; run `pip install lorewright[figures]`."
        ) from error
    ink = _DARK if dark else _LIGHT
    with _stored():
        curves, title = _curves(record), str(record["title"])
        full = next((row["recall"] for row in record["rows"] if row["name"] == "full"), None)
        finding = _finding(curves) or title
        about = "" if finding == title else f"{title} · "
        about += f"{record['n_probes']} probes · numbers and bars: final recall, 95 % interval"
    content = io.BytesIO()
    # Not pyplot: no window, no state. The salt makes equal records equal files.
    with rc_context({"svg.hashsalt": "lorewright", "font.family": "DejaVu Sans", "font.size": 11}):
        figure = Figure(figsize=(9, 4.6), facecolor=ink.paper)
        left, right = figure.subplots(1, 2, sharex=True, subplot_kw={"facecolor": ink.paper})
        figure.subplots_adjust(left=0.065, right=0.875, top=0.73, bottom=0.15, wspace=0.52)
        _draw_frame(figure, finding, about, ink)
        first = min(curve.epoch[0] for curve in curves)
        left.set_xlim(first, max(first + 1, *(curve.epoch[-1] for curve in curves)))
        left.set_yscale("log")
        left.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        left.yaxis.set_major_formatter("{x:g}")
        left.minorticks_off()
        left.xaxis.set_major_locator(MaxNLocator(7, integer=True))
        _draw_lines(left, [(curve, curve.loss, "") for curve in curves], ink)
        _draw_recalls(right, curves, full, ink)
        meta = {"Date": None, "Title": finding} if kind == "svg" else None
        figure.savefig(content, format=kind, dpi=200, metadata=meta)
    _store(content.getvalue(), path)


def _finding(curves: Sequence[_Curve]) -> str | None:
    """The finding in words, if these curves show it."""
    ranked = sorted(curves, key=lambda curve: curve.final)
    falling = all(curve.loss[-1] < curve.loss[0] / 2 for curve in curves)
    # The curve and the verdict must both say so: they are measured in different ways.
    ends = [(curve.final, curve.recall[-1]) for curve in ranked]
    if falling and len(ends) == 2 and max(ends[0]) <= 0.1 and min(ends[1]) >= 0.5:
        return f"Both losses fall; only “{ranked[1].name}” can be recalled"
    return None


def _draw_frame(figure: Figure, finding: str, about: str, ink: _Ink) -> None:
    size, small = min(15, 930 / max(1, len(finding))), min(10.5, 1000 / len(about))
    figure.text(0.02, 0.94, finding, va="center", size=size, weight="bold", color=ink.text)
    figure.text(0.02, 0.872, about, va="center", size=small, color=ink.muted)
    heads = ("Training loss, nats per token (log scale)", "Recall on held-out question forms")
    for ax, head in zip(figure.axes, heads, strict=True):
        ax.set_title(head, loc="left", size=11, color=ink.text, pad=10)
        ax.set_xlabel("epoch", color=ink.muted)
        ax.grid(axis="y", color=ink.grid, linewidth=0.8)
        ax.tick_params(which="both", length=0, labelcolor=ink.muted, pad=6)
        ax.spines[:].set_visible(False)


def _draw_recalls(ax: Axes, curves: Sequence[_Curve], full: float | None, ink: _Ink) -> None:
    ax.set_ylim(-0.04, 1.1)
    ax.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "", "0.5", "", "1"])
    if full is not None:
        ax.axhline(full, color=ink.muted, linewidth=1, linestyle=(0, (2, 3)))
        ax.annotate(
            f"full document in the prompt {full:.2f}",
            (0, full),
            (0, 5),
            ("axes fraction", "data"),
            "offset points",
            size=9.5,
            color=ink.muted,
            bbox={"fc": ink.paper, "lw": 0, "pad": 1},
        )
    for curve, color in zip(curves, itertools.cycle(ink.lines), strict=False):
        if curve.verdict and curve.verdict.low is not None and curve.verdict.high is not None:
            x, ends = [curve.epoch[-1]] * 2, [curve.verdict.low, curve.verdict.high]
            ax.plot(x, ends, color=color, linewidth=1.6, clip_on=False)
    _draw_lines(ax, [(curve, curve.recall, f"\n{curve.final:.2f}") for curve in curves], ink)


def _draw_lines(ax: Axes, series: Sequence[tuple[_Curve, list[float], str]], ink: _Ink) -> None:
    """Lines with their names at the right edge, moved apart where they would overlap.

    A write that ended early is led to its name by a dotted line.
    """
    right, points = ax.get_xlim()[1], 72 / ax.figure.dpi
    names = [textwrap.fill(curve.name, 12) + more for curve, _, more in series]
    for i, (curve, values, _) in enumerate(series):
        x, y, color = curve.epoch[-1], values[-1], ink.lines[i % len(ink.lines)]
        ax.plot(curve.epoch, values, color=color, linewidth=2.2, solid_capstyle="round")
        ax.plot([x, right], [y, y], ":", color=color, linewidth=1, alpha=0.8)
        ax.plot(x, y, "o", color=color, markersize=6, clip_on=False, zorder=3)
    # Names last: only now are the limits of both axes final.
    ends = [ax.transData.transform((right, values[-1]))[1] * points for _, values, _ in series]
    places = _apart(ends, 14.0 * max(name.count("\n") + 1 for name in names))
    for i, (_, values, _) in enumerate(series):
        ax.annotate(
            names[i],
            (right, values[-1]),
            xytext=(9, places[i] - ends[i]),
            size=10.5,
            textcoords="offset points",
            va="center",
            color=ink.lines[i % len(ink.lines)],
            linespacing=1.15,
            annotation_clip=False,
        )


def _apart(heights: Sequence[float], gap: float) -> list[float]:
    """Heights moved, in their order and about their middle, until none is nearer than `gap`."""
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    placed = list(heights)
    for below, above in itertools.pairwise(order):
        placed[above] = max(placed[above], placed[below] + gap)
    shift = sum(a - b for a, b in zip(placed, heights, strict=True)) / len(heights)
    return [place - shift for place in placed]
