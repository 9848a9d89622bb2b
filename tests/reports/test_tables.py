"""Tables, Markdown, JSON, figures and progress lines, from records written here."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from rich.console import Console, RenderableType
from support.records import record, row

from lorewright.adapters.targets import Coverage, Site
from lorewright.errors import DataError, StorageError
from lorewright.files import save_json
from lorewright.recall.statistics import wilson
from lorewright.recall.verify import ARMS, Recall, RecallReport
from lorewright.reports import tables as room
from lorewright.reports.tables import (
    contrast_markdown,
    contrast_table,
    coverage_table,
    epoch_line,
    memories_table,
    recall_markdown,
    recall_table,
    write_progress,
)
from lorewright.training.config import Epoch


def shown(what: RenderableType, width: int = 140) -> str:
    console = Console(width=width, file=io.StringIO(), color_system=None)
    with console.capture() as captured:
        console.print(what)
    return captured.get()


def outcomes(kind: str, n_right: int, n: int, n_unscored: int = 0) -> tuple[Recall, ...]:
    scores: list[float | None] = [1.0] * n_right + [0.0] * (n - n_right) + [None] * n_unscored
    return tuple(
        Recall(f"{kind}-{i}", kind, "Who?", ("Anna",), "Anna", score)
        for i, score in enumerate(scores)
    )


def verdict(**arms: Sequence[Recall]) -> RecallReport:
    notes = ("wrong: there is no other memory in the folder.",)
    filled = {arm: tuple(rows) for arm, rows in arms.items()}
    return RecallReport("exact_match", filled, notes, {"memory": "handbook"})


def usual() -> RecallReport:
    return verdict(
        memory=[*outcomes("paraphrase", 90, 96), *outcomes("unknown", 20, 24)],
        base=[*outcomes("paraphrase", 0, 96), *outcomes("unknown", 24, 24)],
        full=[*outcomes("paraphrase", 93, 96), *outcomes("unknown", 24, 24)],
    )


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


# The verdict


def test_recall_table_has_a_row_per_kind_and_a_column_per_arm() -> None:
    text = shown(recall_table(usual()))
    assert "Recall of handbook" in text
    assert [text.index(arm) for arm in ARMS] == sorted(text.index(arm) for arm in ARMS)
    (line,) = [line for line in text.splitlines() if line.startswith("paraphrase")]
    assert line.split("  ")[0].strip() == "paraphrase"
    assert "0.94 [0.87, 0.97]" in line and "96" in line and "0.97 [0.91, 0.99]" in line


def test_an_arm_that_was_not_run_is_a_dash_with_the_reason_below() -> None:
    text = shown(recall_table(usual()))
    (line,) = [line for line in text.splitlines() if line.startswith("paraphrase")]
    assert line.count(room.NOT_RUN) == 2  # scaffold and wrong
    assert "wrong: there is no other memory in the folder." in text.splitlines()[-1]


def test_unscored_probes_are_counted_and_are_not_zero() -> None:
    report = verdict(
        memory=outcomes("paraphrase", 10, 10, n_unscored=2), base=outcomes("paraphrase", 0, 12)
    )
    text = shown(recall_table(report))
    assert "1.00 [0.72, 1.00]" in text
    assert "10–12" in text
    assert "memory: 2 of 12 paraphrase probes unscored." in text


def test_a_kind_without_any_score_is_unscored() -> None:
    report = verdict(memory=outcomes("paraphrase", 0, 0, n_unscored=3))
    assert "unscored" in shown(recall_table(report))


@pytest.mark.parametrize("width", [60, 80, 100])
def test_narrow_terminals_keep_every_number(width: int) -> None:
    arms = {arm: outcomes("neighborhood", 90, 96) for arm in ARMS}
    text = shown(recall_table(verdict(**arms)), width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    assert text.count("0.94") == text.count("0.97]") == len(ARMS)


def test_brackets_in_notes_are_not_markup() -> None:
    report = replace(usual(), notes=("full: [bold]text[/] does not fit.",))
    assert "[bold]text[/]" in shown(recall_table(report))


def test_recall_markdown_is_a_table_with_notes() -> None:
    lines = recall_markdown(usual()).splitlines()
    assert lines[2] == "| probes | n | memory | base | scaffold | wrong | full |"
    assert lines[3] == "| --- | --- | --- | --- | --- | --- | --- |"
    assert lines[4].startswith("| paraphrase | 96 | 0.94 [0.87, 0.97] | 0.00 [0.00, 0.04] | – |")
    assert lines[-1] == "- wrong: there is no other memory in the folder."


def test_a_report_without_arms_still_renders() -> None:
    assert "wrong: there is no other" in shown(recall_table(verdict()))
    assert "| probes |" in recall_markdown(verdict())


# What stands in a folder, and where an adapter goes


def test_memories_table_shows_recall_beside_the_base() -> None:
    card = {
        "name": "handbook",
        "id": "e923893f9a6fccfa",
        "reason": "recalled",
        "adapter": {"lora": {"rank": 8}},
        "report": {"recall": usual().to_json()["recall"]},
    }
    bare = {**card, "name": "bare", "report": {"recall": {}}}
    lines = shown(memories_table([card, bare])).splitlines()
    (full,) = [line for line in lines if "handbook" in line]
    assert re.search(r"e923893f9a6fccfa\s+8\s+96\s+0.94 \[0.87, 0.97\]\s+0.00", full)
    (empty,) = [line for line in lines if "bare" in line]
    assert empty.count(room.NOT_RUN) == 3


def test_a_damaged_card_is_refused_in_a_sentence() -> None:
    with pytest.raises(DataError, match="not as expected"):
        memories_table([{"name": "handbook"}])


def test_coverage_table_shows_where_and_why_not() -> None:
    sites = tuple(Site(f"layers.{i}.q_proj", i, "q_proj", 4, 4) for i in range(3))
    text = shown(coverage_table(Coverage(sites, 4, {"lm_head": "the head"})))
    assert "3 of 4 linear layers" in text
    assert re.search(r"q_proj\s+3\s+layers 0", text)
    assert re.search(r"skipped\s+1\s+the head", text)


# Files


def test_save_json_keeps_order_and_text_and_takes_dataclasses(tmp_path: Path) -> None:
    path = tmp_path / "new" / "record.json"
    save_json({"b": "Größe", "a": [1, None], "p": wilson(1, 2)}, path)
    found = json.loads(path.read_text(encoding="utf-8"))
    assert list(found) == ["b", "a", "p"] and found["p"]["n"] == 2
    assert "Größe" in path.read_text(encoding="utf-8")
    assert [p.name for p in path.parent.iterdir()] == ["record.json"]


@pytest.mark.parametrize("bad", [float("nan"), {1, 2}, MappingProxyType({}), "\ud800"])
def test_what_json_cannot_hold_is_refused_and_the_old_file_stays(
    tmp_path: Path, bad: object
) -> None:
    path = tmp_path / "record.json"
    save_json(1, path)
    with pytest.raises(DataError):
        save_json({"a": bad}, path)
    assert path.read_text() == "1\n"


def test_a_disk_that_refuses_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "taken"
    path.mkdir()
    with pytest.raises(StorageError, match="could not be written"):
        save_json(1, path)
    assert [p.name for p in tmp_path.iterdir()] == ["taken"]


# While a write runs


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


def test_long_writes_are_told_in_hours() -> None:
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


def test_plain_lines_come_again_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "PLAIN_SECONDS", 0.0)
    console = Console(file=io.StringIO())
    with write_progress(console) as on_epoch:
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


def test_on_a_terminal_one_line_is_kept_and_no_colour_is_used_when_not_wanted() -> None:
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


def test_progress_goes_to_stderr_unless_told_otherwise(capsys: pytest.CaptureFixture[str]) -> None:
    with write_progress() as on_epoch:
        on_epoch(epoch())
    found = capsys.readouterr()
    assert found.out == "" and "epoch 12/60" in found.err


# The demonstration


@pytest.mark.parametrize("width", [80, 140])
def test_contrast_table_shows_both_parts_with_intervals(width: int) -> None:
    text = shown(contrast_table(record()), width)
    assert "One handbook, two ways" in text and "108 probes" in text
    for word in ("stable", "next token", "full", "0.94 [0.87, 0.97]", "0.055", "wrong", "unscored"):
        assert word in text
    assert "97 s" in text and "$ lore demo" in text


def test_contrast_markdown_escapes_and_ends_with_the_commands() -> None:
    odd = {**row("a|b", 1), "meaning": "two\nlines"}
    text = contrast_markdown(record(extra=[odd]))
    assert "| a\\|b | two lines | 108 | 0.01 [0.00, 0.05] | – |" in text
    assert text.endswith("```sh\nlore demo\n```\n")
    assert "```" not in contrast_markdown(record(commands=[]))


@pytest.mark.parametrize(
    "broken", [{}, {**record(), "rows": [{"name": "x"}]}, {**record(), "seconds": None}]
)
def test_a_record_of_another_shape_is_refused_in_a_sentence(broken: dict[str, Any]) -> None:
    for show in (contrast_table, contrast_markdown):
        with pytest.raises(DataError, match="not as expected"):
            show(broken)
