"""Running the command line in this process."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from lorewright.cli.main import main
from lorewright.cli.terminal import Exit


@dataclass(frozen=True)
class Ran:
    """A command's exit code and what it printed."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one object on stdout."""
        return json.loads(self.out)


Lore = Callable[..., Ran]


@pytest.fixture
def lore(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Lore:
    """Run the command line as `lore ARGUMENTS`."""

    def run(*arguments: object) -> Ran:
        monkeypatch.setattr(sys, "argv", ["lore", *map(str, arguments)])
        capsys.readouterr()
        try:
            main()
            code: Any = 0
        except SystemExit as ending:
            code = ending.code or 0
        return Ran(code, *capsys.readouterr())

    return run


def refused(ran: Ran, kind: str, *words: str) -> None:
    """Check that a command ended in one sentence of this kind and in its exit code.

    The sentence is on stderr; with --json it is in an object on stdout as well.
    """
    code = {"Locked": Exit.LOCKED, "StorageError": Exit.STORAGE}.get(kind, Exit.REFUSED)
    assert ran.code == code and "Traceback" not in ran.err
    *_, last = ran.err.strip().splitlines()
    assert last.startswith(f"{kind}: "), ran.err
    if ran.out:
        message = last.split(": ", 1)[1]
        assert ran.json["error"] == {"kind": kind, "message": message, "exit": code}
    for each in words:
        assert each in last, ran.err
