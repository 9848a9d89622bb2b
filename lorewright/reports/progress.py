"""What is shown while a verb runs: one line that is updated, or plain lines without a terminal."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from lorewright.training.config import Epoch
from lorewright.training.watch import TRAINING, Watch

PLAIN_SECONDS = 10.0
"""Least time between two progress lines where there is no terminal."""


def epoch_line(epoch: Epoch) -> str:
    """Return one plain line on an epoch; `~` marks recall counted while the weights still moved."""
    return (
        f"epoch {epoch.epoch}/{epoch.epochs}  loss {epoch.loss_nats:.4f} nats/token  "
        f"{_recalled(epoch)}{_held_out(epoch)}  "
        f"{_clock(epoch.seconds)}{_left(_left_seconds(epoch))}"
    )


def _recalled(epoch: Epoch) -> str:
    return f"{'' if epoch.certified else '~'}{epoch.n_recalled}/{epoch.n_examples} recalled"


def _held_out(epoch: Epoch) -> str:
    """What came back of questions that are not trained, where that was measured."""
    if epoch.held_out_nats is None:
        return ""
    counts = f"{epoch.held_out_recalled}/{epoch.n_held_out}"
    return f"  held out {epoch.held_out_nats:.3f} nats, {counts}"


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


def phase_line(phase: str, share: float, note: str, seconds: float, left: float) -> str:
    """Return one plain line on a long phase: what, how far, for how long, and how long at most."""
    parts = (phase, f"{share:.0%}", note, f"{_clock(seconds)}{_left(left)}")
    return "  ".join(part for part in parts if part)


@dataclass
class Pace:
    """How quickly a phase gets on."""

    phase: str
    done: int = 0
    total: int = 0
    note: str = ""
    first: int = 0
    """What was done when it was first heard of: from before an interruption, say."""
    since: float = field(default_factory=time.monotonic)

    @property
    def share(self) -> float:
        """How much of the phase is done, from 0 to 1."""
        return self.done / self.total if self.total else 0.0

    @property
    def seconds(self) -> float:
        """Time since it was first heard of."""
        return time.monotonic() - self.since

    @property
    def left(self) -> float:
        """Seconds for the rest at the pace so far; 0 while there is no pace."""
        ahead = self.done - self.first
        return (self.total - self.done) * self.seconds / ahead if ahead > 0 else 0.0

    def line(self) -> str:
        """As a plain line."""
        return phase_line(self.phase, self.share, self.note, self.seconds, self.left)


class _Shown:
    """What is known of the work at hand: a step, an epoch, a phase."""

    def __init__(self) -> None:
        self.text = ""
        self.since = time.monotonic()
        self.epoch: Epoch | None = None
        self.pace: Pace | None = None
        self.ended = False

    def watch(self) -> Watch:
        """The functions that a verb calls."""
        return Watch(self.on_step, self.on_epoch, self.on_advance)

    def on_step(self, text: str) -> None:
        """Another step begins."""
        self.text, self.since, self.epoch, self.pace = text, time.monotonic(), None, None

    def on_epoch(self, epoch: Epoch) -> None:
        """An epoch is over; what is held out is not measured after each, and stays in view."""
        last = self.epoch
        if epoch.held_out_nats is None and last is not None:
            held = {key: vars(last)[key] for key in ("held_out_nats", "held_out_recalled")}
            epoch = replace(epoch, **held, n_held_out=last.n_held_out)
        self.epoch, self.since = epoch, time.monotonic()

    def on_advance(self, phase: str, done: int, total: int, note: str) -> None:
        """A phase has come so far."""
        if self.pace is None or self.pace.phase != phase:
            self.pace = Pace(phase, first=done)
            if phase != TRAINING:
                self.epoch = None
        self.pace.done, self.pace.total, self.pace.note = done, total, note


class _Plain(_Shown):
    """Lines, at most one in so many seconds, but for steps."""

    def __init__(self, console: Console, every_seconds: float) -> None:
        super().__init__()
        self.console, self.every_seconds = console, every_seconds
        self.printed = -math.inf
        self.pending: Epoch | None = None

    def on_step(self, text: str) -> None:
        """Print every step."""
        self.end()
        super().on_step(text)
        self._print(text)

    def on_epoch(self, epoch: Epoch) -> None:
        """Print the epoch, if it is time."""
        super().on_epoch(epoch)
        self.pending = self.epoch
        if self._due():
            self.end()

    def on_advance(self, phase: str, done: int, total: int, note: str) -> None:
        """Print how far the phase is, if it is time."""
        super().on_advance(phase, done, total, note)
        assert self.pace is not None
        if self._due():
            self._print(self.pace.line())

    def end(self) -> None:
        """Print the last epoch, if that has not been."""
        if self.pending is not None:
            self._print(epoch_line(self.pending))
            self.pending = None

    def _due(self) -> bool:
        return time.monotonic() - self.printed >= self.every_seconds

    def _print(self, text: str) -> None:
        self.console.out(text, highlight=False)
        self.printed = time.monotonic()


class _Live(_Shown):
    """One line of a terminal, rewritten; steps that are over stay above it."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        columns = (TextColumn("{task.description}", markup=False), BarColumn(24), _State(self))
        self.bar = Progress(*columns, console=console)
        self.task = self.bar.add_task("", total=None, visible=False)

    def on_step(self, text: str) -> None:
        """Leave the step before, and show the one that begins."""
        self.leave()
        super().on_step(text)
        self._update(text, total=None, completed=0)

    def on_epoch(self, epoch: Epoch) -> None:
        """Show the epoch."""
        super().on_epoch(epoch)
        self._update(
            f"epoch {epoch.epoch}/{epoch.epochs}",
            total=epoch.n_examples,
            completed=epoch.n_recalled,
        )

    def on_advance(self, phase: str, done: int, total: int, note: str) -> None:
        """Show how far the phase is; in training, once an epoch is over, that stays in view."""
        super().on_advance(phase, done, total, note)
        if self.epoch is None:
            self._update(phase, total=total, completed=done)

    def leave(self) -> None:
        """Leave the step at hand above the line."""
        if self.text:
            self.bar.console.print(Text(self.text, "dim"), highlight=False)
            self.text = ""

    def end(self) -> None:
        """Leave the last step, and the last epoch if there is one."""
        self.ended = True
        self.leave()
        if self.epoch is None:
            self.bar.update(self.task, visible=False)

    def _update(self, description: str, *, total: int | None, completed: int) -> None:
        # `update` takes a total of None for no change
        self.bar.reset(self.task, description=description, total=total, completed=completed)
        self.bar.update(self.task, visible=True)


@contextlib.contextmanager
def shown(
    console: Console | None = None, *, every_seconds: float = PLAIN_SECONDS
) -> Iterator[Watch]:
    """Yield a watch that shows how a verb gets on, by default on stderr.

    On a terminal one line is updated; elsewhere a plain line is written at most every so many
    seconds, and every step and the last epoch always.
    """
    console = console if console is not None else Console(stderr=True)
    if not console.is_interactive:
        plain = _Plain(console, every_seconds)
        try:
            yield plain.watch()
        finally:
            plain.end()
        return
    live = _Live(console)
    with live.bar:
        try:
            yield live.watch()
        finally:
            live.end()


class _State(ProgressColumn):
    """What a phase or an epoch has come to, elapsed and what is left, the clocks running on."""

    def __init__(self, shown: _Shown) -> None:
        super().__init__()
        self.shown = shown

    def render(self, task: Task) -> Text:
        """Return the text after the bar."""
        epoch, pace, since = self.shown.epoch, self.shown.pace, time.monotonic() - self.shown.since
        if epoch is None and pace is None:
            return Text(_clock(since), style="dim")
        if epoch is None and pace is not None:
            clocks = (f"{_clock(pace.seconds)}{_left(pace.left)}", "dim")
            return Text.assemble(f"{pace.note}  " if pace.note else "", clocks)
        assert epoch is not None
        left, seconds = _left_seconds(epoch) - since, epoch.seconds + since
        if self.shown.ended:
            left, seconds = 0.0, epoch.seconds
        clocks = (f"{_clock(seconds)}{_left(left)}", "dim")
        state = f"{_recalled(epoch)}  loss {epoch.loss_nats:.3f}{_held_out(epoch)}  "
        return Text.assemble(state, clocks)
