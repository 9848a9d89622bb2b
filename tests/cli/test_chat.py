"""Claims about `lore chat`: a pipe answers line by line, a terminal has a prompt that goes on."""

from __future__ import annotations

import io
import json
import os
import select
import shutil
import sys
import time
from pathlib import Path
from subprocess import Popen
from typing import Any

import pytest
from support.commands import Lore, Ran, refused

from lorewright.cli.terminal import Exit

STORED = Path(__file__).parents[1] / "fixtures" / "folder-2026-11-28"
OWN_TERMINAL = (  # Ctrl-C is a signal to the processes whose terminal it is
    "import fcntl, signal, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0);"
    "signal.signal(signal.SIGINT, signal.default_int_handler);"  # a shell's `&` has it ignored
    "from lorewright.cli.main import main; main()"
)
LEADER, COLOUR = "Who leads the Tide Office?", "And its badge colour?"


@pytest.fixture(scope="module")
def atlas(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the stored folder."""
    return Path(shutil.copytree(STORED, tmp_path_factory.mktemp("chat") / "atlas"))


@pytest.fixture
def piped(lore: Lore, atlas: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`lore chat` with lines on standard input."""

    def run(*lines: str | bytes, options: str = "--mode closed") -> Ran:
        raw = [line if isinstance(line, bytes) else line.encode() for line in lines]
        stdin = io.TextIOWrapper(io.BytesIO(b"\n".join(raw)), encoding="utf-8")
        monkeypatch.setattr(sys, "stdin", stdin)
        return lore("chat", atlas, *options.split())

    return run


def test_each_line_of_a_pipe_is_answered_with_memory_source_and_sureness(piped: Any) -> None:
    ran = piped(LEADER, "", COLOUR)
    assert ran.code == 0 and ran.err == ""
    first, second = ran.out.strip().split("\n\n")
    assert first.splitlines()[0] == "Maren Oskold" and "memory tide, chosen with p = " in first
    assert "least " in first and f"nearest question of tide: {LEADER}" in first
    assert second.splitlines()[:2] == ["read as: What is the Tide Office's badge colour?", "teal"]


def test_with_json_every_line_is_an_object(piped: Any) -> None:
    ran = piped(
        *(LEADER, COLOUR, "/why", "/memory phones", "Selma Quist:", "/auto", "And the second one?"),
        options="--mode closed --json",
    )
    assert ran.code == 0 and ran.err == ""
    first, second, why, pinned, number, routed, last = map(json.loads, ran.out.splitlines())
    assert (first["text"], first["read_as"], first["memory"]) == ("Maren Oskold", "", "tide")
    assert first["sources"] == [{"memory": "tide", "kind": "question", "text": LEADER}]
    assert (second["question"], second["text"]) == (COLOUR, "teal")
    assert why["why"]["question"] == second["read_as"] and why["why"]["chosen"] == ["tide"]
    assert why["why"]["threshold"]["n"] and why["why"]["replies"] == second["replies"]
    assert (pinned, routed) == ({"memory": "phones"}, {"memory": ""})
    assert number["text"] == "9301661318"
    assert last["declined"] and last["note"].endswith("name what you mean")


def test_a_line_that_fails_is_reported_and_the_next_is_answered(piped: Any) -> None:
    ran = piped(LEADER, b"\xff", COLOUR, "/sing", "/memory x", "/why", "/quit", LEADER)
    assert ran.code == Exit.REFUSED
    wrong, no_command, no_memory = ran.err.strip().splitlines()
    assert wrong.startswith("DataError: line 2 of the questions is not in utf-8")
    assert no_command.startswith("ConfigError: /sing is no command") and "/why" in no_command
    assert no_memory.startswith("UnknownMemory: ") and "phones, tide" in no_memory
    assert ran.out.count("Maren Oskold") == 1, "/quit ends it"
    assert "teal" not in ran.out, "what stood between may be what is meant"
    assert "name what you mean" in ran.out


@pytest.mark.parametrize("end", [b"", b"\n\n"])
def test_no_question_is_no_failure(piped: Any, end: bytes) -> None:
    ran = piped(end)
    assert (ran.code, ran.out, ran.err) == (0, "", "")


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ("--mode loud", "ConfigError", "use one of auto, closed, open, read, hybrid, full"),
        ("--name x", "UnknownMemory", "phones, tide"),
        ("--false-activation 2", "ConfigError", "false-activation rate is 2.0"),
    ],
)
def test_a_wrong_setting_is_refused_before_any_question(
    piped: Any, options: str, kind: str, words: str
) -> None:
    refused(piped(LEADER, options=options), kind, words)


def test_a_folder_without_memory_is_refused(lore: Lore, tmp_path: Path) -> None:
    refused(lore("chat", tmp_path), "UnknownMemory", "lore write SOURCE --into")


DIALOGUE = (
    (f"{LEADER}\n", "Maren Oskold"),
    (f"{COLOUR}\n", "teal"),
    ("/why\n", "Chosen above"),
    ("/memory nobody\n", "UnknownMemory"),
    ("/memory phones\n", "phones> "),
    ("/auto\n", "asking the memories"),
    ("/help\n", "/quit"),
    ("Who leads\x03", "interrupted"),  # at the prompt Ctrl-C drops the line
    ("\n", ""),
    ("/memory tide\n", "tide> "),
    (f"{LEADER}\n", "Maren Oskold"),
    ("\x1b[A\n", LEADER),  # the line before, from the history
)
"""What is typed, and something that is shown before the next prompt."""


def test_at_a_terminal_a_failure_is_shown_and_ctrl_d_ends_the_chat(
    lore: Lore, atlas: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pty = pytest.importorskip("pty", reason="this system has no terminals of this kind")
    ours, theirs = pty.openpty()
    with open(theirs, "r+b", buffering=0) as raw, open(ours, "rb", closefd=True):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(raw, "utf-8"))
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, "utf-8", write_through=True))
        os.write(ours, b"/memory nobody\n/memory tide\n\x04")
        ran = lore("chat", atlas, "--mode", "closed")
        shown = read_until(ours, "tide> \r\n")
    assert ran.code == 0 and ran.err.startswith("UnknownMemory: ")
    assert "/help lists" in shown and "asking tide" in shown


@pytest.mark.slow
def test_at_a_terminal_the_chat_goes_on_until_it_is_ended(atlas: Path) -> None:
    pty = pytest.importorskip("pty", reason="this system has no terminals of this kind")
    pytest.importorskip("readline", reason="this Python has no readline: no history at the prompt")
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "dumb", "COLUMNS": "200"}
    command = [sys.executable, "-c", OWN_TERMINAL, "chat", str(atlas), "--mode", "closed"]
    process = Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, start_new_session=True
    )
    os.close(theirs)
    try:
        read_until(ours, "> ")
        for typed, expected in DIALOGUE:
            type_in(ours, typed)
            shown = read_until(ours, "> ")
            assert expected in shown and "Traceback" not in shown, (typed, shown)
        type_in(ours, f"{LEADER}\n")
        time.sleep(0.1)
        os.write(ours, b"\x03")  # while it answers, or has just answered: the chat goes on
        assert "interrupted" in read_until(ours, "interrupted; Ctrl-D ends the chat\r\ntide> ")
        type_in(ours, f"{LEADER}\n")
        assert "Maren Oskold" in read_until(ours, "> ")
        os.write(ours, b"\x04")
        assert process.wait(10) == Exit.DONE
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def type_in(terminal: int, text: str) -> None:
    """Type, and again where nothing is shown of it: a change of modes discards what was typed."""
    for _ in range(5):  # on a busy machine a change of modes takes its time
        os.write(terminal, text.encode())
        if select.select([terminal], [], [], 8)[0]:
            return
    raise AssertionError(f"the terminal showed nothing of {text!r}")


def read_until(terminal: int, end: str, seconds: float = 60.0) -> str:
    """What a terminal shows until that ends with a prompt, or the like."""
    shown, limit = b"", time.monotonic() + seconds
    while not shown.decode(errors="replace").endswith(end):
        assert time.monotonic() < limit, shown.decode(errors="replace")
        if select.select([terminal], [], [], 0.2)[0]:
            shown += os.read(terminal, 4096)
    return shown.decode(errors="replace")
