"""Progress lines: plain ones where there is no terminal, one that is updated where there is."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from lorewright.reports.progress import epoch_line, write_progress
from lorewright.training.config import Epoch


def epoch(number: int = 12, **changes: Any) -> Epoch:
    usual = Epoch(
        epoch=number,
        epochs=60,
        loss_nats=0.0341,
        n_recalled=96,
        n_examples=108,
        certified=True,
        lr=1e-3,
        seconds=24.0,
    )
    return replace(usual, **changes)


def test_epoch_line_says_what_is_left_at_most() -> None:
    assert epoch_line(epoch()) == (
        "epoch 12/60  loss 0.0341 nats/token  96/108 recalled  0:24, at most 1:36 left"
    )


def test_epoch_line_marks_counts_taken_while_the_weights_moved() -> None:
    assert "~96/108 recalled" in epoch_line(epoch(certified=False))


@pytest.mark.parametrize("last", [epoch(60), epoch(n_recalled=108)])
def test_nothing_is_left_at_the_end(last: Epoch) -> None:
    assert "left" not in epoch_line(last)


def test_all_recalled_but_not_certified_may_still_go_on() -> None:
    assert "left" in epoch_line(epoch(n_recalled=108, certified=False))


def test_long_writes_are_shown_in_hours() -> None:
    assert "2:00:00, at most 8:00:00 left" in epoch_line(epoch(seconds=7200))


def test_where_there_is_no_terminal_few_lines_are_written_and_the_last_always() -> None:
    console = Console(file=io.StringIO(), width=40)
    with write_progress(console) as on_epoch:
        for number in range(1, 31):
            on_epoch(epoch(number))
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert [line.split()[1] for line in lines] == ["1/60", "30/60"]
    assert "\x1b" not in console.file.getvalue()


def test_plain_lines_come_again_after_a_while() -> None:
    console = Console(file=io.StringIO())
    with write_progress(console, every_seconds=0.0) as on_epoch:
        for number in range(1, 4):
            on_epoch(epoch(number))
    assert isinstance(console.file, io.StringIO)
    assert len(console.file.getvalue().splitlines()) == 3


def test_a_failed_write_passes_through_and_still_shows_the_last_epoch() -> None:
    console = Console(file=io.StringIO())
    with pytest.raises(KeyboardInterrupt), write_progress(console) as on_epoch:
        on_epoch(epoch(1))
        on_epoch(epoch(2))
        raise KeyboardInterrupt
    assert isinstance(console.file, io.StringIO)
    assert "epoch 2/60" in console.file.getvalue()


def terminal() -> Console:
    """A console that takes itself for a terminal, 100 columns wide."""
    return Console(file=io.StringIO(), force_terminal=True, force_interactive=True, width=100)


def test_on_a_terminal_one_line_is_updated_and_no_colour_is_used_when_not_wanted() -> None:
    console = terminal()
    with write_progress(console) as on_epoch:
        on_epoch(epoch(11))
        on_epoch(epoch(12))
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert "epoch 12/60" in text and "96/108 recalled" in text and "loss 0.034" in text
    assert not re.search(r"\x1b\[[0-9;]*3[1-7]m", text)  # NO_COLOR is set for every test


def test_a_write_that_ended_has_nothing_left() -> None:
    console = terminal()
    with write_progress(console) as on_epoch:
        on_epoch(epoch(12))
    assert isinstance(console.file, io.StringIO)
    frames = [f for f in re.split(r"[\r\n]", console.file.getvalue()) if "recalled" in f]
    assert "0:24" in frames[-1] and "left" not in frames[-1]


def test_before_the_first_epoch_the_clock_is_shown() -> None:
    console = terminal()
    with write_progress(console):
        pass
    assert isinstance(console.file, io.StringIO)
    assert "first epoch" in console.file.getvalue()


def test_progress_goes_to_stderr_by_default(capsys: pytest.CaptureFixture[str]) -> None:
    with write_progress() as on_epoch:
        on_epoch(epoch())
    printed = capsys.readouterr()
    assert printed.out == "" and "epoch 12/60" in printed.err
