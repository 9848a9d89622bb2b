"""Progress lines: plain ones where there is no terminal, one that is updated where there is."""

from __future__ import annotations

import io
import re
import time
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from lorewright.reports.progress import Pace, epoch_line, shown
from lorewright.training.config import Epoch
from lorewright.training.watch import TRAINING


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
    with shown(console) as watch:
        for number in range(1, 31):
            watch.epoch(epoch(number))
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert [line.split()[1] for line in lines] == ["1/60", "30/60"]
    assert "\x1b" not in console.file.getvalue()


def test_plain_lines_come_again_after_a_while() -> None:
    console = Console(file=io.StringIO())
    with shown(console, every_seconds=0.0) as watch:
        for number in range(1, 4):
            watch.epoch(epoch(number))
    assert isinstance(console.file, io.StringIO)
    assert len(console.file.getvalue().splitlines()) == 3


def test_a_failed_write_passes_through_and_still_shows_the_last_epoch() -> None:
    console = Console(file=io.StringIO())
    with pytest.raises(KeyboardInterrupt), shown(console) as watch:
        watch.epoch(epoch(1))
        watch.epoch(epoch(2))
        raise KeyboardInterrupt
    assert isinstance(console.file, io.StringIO)
    assert "epoch 2/60" in console.file.getvalue()


def terminal() -> Console:
    """A console that takes itself for a terminal, 100 columns wide."""
    return Console(file=io.StringIO(), force_terminal=True, force_interactive=True, width=100)


def test_on_a_terminal_one_line_is_updated_and_no_colour_is_used_when_not_wanted() -> None:
    console = terminal()
    with shown(console) as watch:
        watch.epoch(epoch(11))
        watch.epoch(epoch(12))
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert "epoch 12/60" in text and "96/108 recalled" in text and "loss 0.034" in text
    assert not re.search(r"\x1b\[[0-9;]*3[1-7]m", text)  # NO_COLOR is set for every test


def test_a_write_that_ended_has_nothing_left() -> None:
    console = terminal()
    with shown(console) as watch:
        watch.epoch(epoch(12))
    assert isinstance(console.file, io.StringIO)
    frames = [f for f in re.split(r"[\r\n]", console.file.getvalue()) if "recalled" in f]
    assert "0:24" in frames[-1] and "left" not in frames[-1]


def test_a_step_has_a_clock_and_stays_in_view() -> None:
    console = terminal()
    with shown(console) as watch:
        watch.step("proving that it is on disk")
        watch.step("asking: base")
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert "proving that it is on disk" in text and "0:00" in text
    assert text.index("proving") < text.index("asking: base")


def test_progress_goes_to_stderr_by_default(capsys: pytest.CaptureFixture[str]) -> None:
    with shown() as watch:
        watch.epoch(epoch())
    printed = capsys.readouterr()
    assert printed.out == "" and "epoch 12/60" in printed.err


# --- phases


def test_a_phase_on_a_terminal_has_a_note_and_what_is_left() -> None:
    console = terminal()
    with shown(console) as watch:
        watch.step("asking: base")
        watch.advance("asking: base", 30, 120, "7 of 30 answered, arm 1 of 4")
    assert isinstance(console.file, io.StringIO)
    assert "7 of 30 answered, arm 1 of 4" in console.file.getvalue()


def test_a_phase_without_a_terminal_has_few_lines() -> None:
    console = Console(file=io.StringIO(), width=40)
    with shown(console) as watch:
        watch.step("asking: base")
        for done in range(100):
            watch.advance("asking: base", done, 100, "")
    with shown(console, every_seconds=0.0) as watch:
        watch.advance("asking: full", 1, 4, "1 of 2 answered")
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert lines == ["asking: base", "asking: full  25%  1 of 2 answered  0:00"]


def test_what_is_left_follows_from_what_was_measured() -> None:
    pace = Pace("asking", done=30, total=120, first=10, since=time.monotonic() - 40)
    assert pace.left == pytest.approx(90 * 40 / 20, rel=1e-3)  # 20 in 40 seconds, 90 to do
    assert Pace("asking", done=10, total=120, first=10).left == 0


def test_an_epoch_stays_in_view_while_the_next_one_is_trained() -> None:
    console = terminal()
    with shown(console) as watch:
        watch.advance(TRAINING, 1, 60, "epoch 1 of 60")
        watch.epoch(epoch(12))
        watch.advance(TRAINING, 13, 60, "epoch 13 of 60")
        live = console.file.getvalue() if isinstance(console.file, io.StringIO) else ""
    assert "96/108 recalled" in console.file.getvalue()  # type: ignore[attr-defined]
    assert "epoch 13 of 60" not in live
