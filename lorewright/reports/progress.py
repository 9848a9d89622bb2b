"""What is shown while a write runs: one line that is updated, or plain lines without a terminal."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

if TYPE_CHECKING:
    from lorewright.training.config import Epoch

PLAIN_SECONDS = 5.0
"""Least time between two progress lines where there is no terminal."""


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
def write_progress(
    console: Console | None = None, *, every_seconds: float = PLAIN_SECONDS
) -> Iterator[Callable[[Epoch], None]]:
    """Yield an `on_epoch` for `write` that shows how it goes, by default on stderr.

    On a terminal one line is updated; elsewhere a plain line is written at most every so many
    seconds, and the last epoch always.
    """
    console = console if console is not None else Console(stderr=True)
    if not console.is_interactive:
        yield from _plain_lines(console, every_seconds)
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(24), _State())
    with Progress(*columns, console=console) as progress:
        task_id = progress.add_task(
            "writing", total=None, epoch=None, since=time.monotonic(), ended=False
        )

        def on_epoch(epoch: Epoch) -> None:
            progress.update(
                task_id,
                description=f"epoch {epoch.epoch}/{epoch.epochs}",
                epoch=epoch,
                total=epoch.n_examples,
                completed=epoch.n_recalled,
                since=time.monotonic(),
            )

        try:
            yield on_epoch
        finally:
            progress.update(task_id, ended=True)


def _plain_lines(console: Console, every_seconds: float) -> Iterator[Callable[[Epoch], None]]:
    printed = -math.inf
    pending: Epoch | None = None

    def on_epoch(epoch: Epoch) -> None:
        nonlocal printed, pending
        pending = epoch
        if time.monotonic() - printed >= every_seconds:
            console.out(epoch_line(epoch), highlight=False)
            printed, pending = time.monotonic(), None

    try:
        yield on_epoch
    finally:
        if pending is not None:
            console.out(epoch_line(pending), highlight=False)


class _State(ProgressColumn):
    """Recalled, loss, elapsed and what is left, the clocks running on between epochs."""

    def render(self, task: Task) -> Text:
        """Return the text after the bar."""
        epoch: Epoch | None = task.fields["epoch"]
        since = time.monotonic() - task.fields["since"]
        if epoch is None:
            return Text(f"first epoch  {_clock(since)}", style="dim")
        left, seconds = _left_seconds(epoch) - since, epoch.seconds + since
        if task.fields["ended"]:
            left, seconds = 0.0, epoch.seconds
        clocks = (f"{_clock(seconds)}{_left(left)}", "dim")
        return Text.assemble(f"{_recalled(epoch)}  loss {epoch.loss_nats:.3f}  ", clocks)
