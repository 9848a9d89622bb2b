"""Records to terminal tables, Markdown, JSON and figures; and the lines shown while a write runs.

Figures are drawn from JSON only, so that a stored record can be drawn again without a model. A
number stands with its n and its interval; what was not run is a dash and what was not scored is
counted, neither is ever zero. This room knows nothing of how the records came about.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console, ConsoleOptions, JustifyMethod, RenderResult
from rich.measure import Measurement
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.table import Table
from rich.text import Text

from lorewright.errors import DataError
from lorewright.recall.statistics import Estimate

if TYPE_CHECKING:
    from lorewright.adapters.targets import Coverage
    from lorewright.recall.verify import RecallReport
    from lorewright.training.config import Epoch

NOT_RUN = "–"
WIDE = 110  # characters from which every arm of a verdict fits on one line
NUMBERS = ("n", "rank", "count", "final loss", "seconds")  # columns set to the right
WHOLE = (*NUMBERS, "probes", "adapter", "module")  # columns never broken
CONTRAST_COLUMNS = ("", "what it is", "n", "recall", "final loss")
PLAIN_SECONDS = 5.0  # at least, between two progress lines where there is no terminal


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
    from lorewright.recall.verify import (
        ARMS,  # here, as the figures of a stored record need no torch
    )

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
    with checked_record():
        for card in cards:
            arms = card["report"]["recall"].get("paraphrase", {})
            found = {arm: estimate_of(row) for arm, row in arms.items()}
            n = str(found["memory"].n) if "memory" in found else NOT_RUN
            rank = card["adapter"]["lora"]["rank"]
            words = [card["name"], card["id"], NOT_RUN if rank is None else str(rank), n]
            cells = [_Cell(_spell(found.get(arm))) for arm in ("memory", "base")]
            table.add_row(*map(Text, words), *cells, Text(card["reason"]))
    return table


def tried_table(record: Mapping[str, Any]) -> Table:
    """Return the ways of merging that were tried, and the recall of each source under each.

    Raises DataError for a record of another shape.
    """
    with checked_record():
        parts, trials = record["parts"], record["trials"]
        counts = [row["n"] for row in next((t["held"] for t in trials if t["held"]), [])]
        heads = [f"{p['memory']} ({n})" for p, n in zip(parts, counts, strict=False)]
        subtitle = "recall of trained questions that were held back, 95 % intervals"
        table = _table("Tried", subtitle, ["method", "rank", *heads, "seconds"])
        for trial in trials:
            about = [trial["method"], *(f"{k} {v:g}" for k, v in trial["options"].items())]
            told = [_spell(estimate_of(row)) for row in trial["held"]] or [trial["why_not"]]
            cells = map(_Cell, [*told, *[NOT_RUN] * (len(heads) - len(told))])
            rank, seconds = str(trial["rank"]), f"{trial['seconds']:.1f}"
            table.add_row(Text(" ".join(about)), rank, *cells, seconds)
        return table


def parts_table(record: Mapping[str, Any]) -> Table:
    """Return every source's recall alone and merged, what was lost, and the base's; by kind.

    Raises DataError for a record of another shape.
    """
    columns = ["source", "probes", "n", "alone", "merged", "lost", "base"]
    table = _table("Recall before and after", "95 % intervals", columns, dim=["base"])
    with checked_record():
        for part in record["parts"]:
            for kind, arms in part["recall"].items():
                found = {arm: _spell(estimate_of(row)) for arm, row in arms.items()}
                lost = _spell(Estimate(**part["lost"][kind]))
                cells = [found["alone"], found["merged"], lost, found["base"]]
                words = [part["memory"], kind, str(arms["merged"]["n"])]
                style = "bold" if kind == "paraphrase" else ""
                table.add_row(*map(Text, words), *map(_Cell, cells), style=style)
    return table


def coverage_table(coverage: Coverage) -> Table:
    """Return which linear layers carry an adapter, and what does not and why."""
    subtitle = f"{len(coverage.sites)} of {coverage.n_linear} linear layers"
    table = _table("Targets", subtitle, ["module", "count", "where, or why not"])
    for what, n, where in coverage.table():
        table.add_row(Text(what), str(n), Text(where), style="dim" if what == "skipped" else "")
    return table


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
def checked_record() -> Iterator[None]:
    """Inside, a record that is not of the expected shape raises DataError, which says so."""
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
    with checked_record():
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
    with checked_record():
        rows = map(_cells, (*record["rows"], *record["extra"]))
        text = f"### {record['title']}\n\n{_markdown(CONTRAST_COLUMNS, [*rows])}\n{_took(record)}\n"
        commands = "".join(f"{command}\n" for command in record["commands"])
        return text + (f"\n```sh\n{commands}```\n" if commands else "")


def _cells(row: Mapping[str, Any]) -> list[str]:
    loss = NOT_RUN if row["final_loss"] is None else f"{row['final_loss']:.3f}"
    return [row["name"], row["meaning"], str(row["n"]), _spell(estimate_of(row)), loss]


def estimate_of(row: Mapping[str, Any]) -> Estimate:
    """The row's n, recall and interval."""
    return Estimate(row["n"], row["recall"], row["low"], row["high"])


def _took(record: Mapping[str, Any]) -> str:
    return f"Final loss in nats per trained token. It took {record['seconds']:.0f} s."
