"""What several test modules share: commands."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from lorewright.cli.main import main


@dataclass(frozen=True)
class Ran:
    """What a command came to."""

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


def refused(ran: Ran, kind: str, *said: str) -> None:
    """Check that a command ended in one sentence of this kind, on stderr, and in exit code 2."""
    assert ran.code == 2 and ran.out == "" and "Traceback" not in ran.err
    *_, last = ran.err.strip().splitlines()
    assert last.startswith(f"{kind}: "), ran.err
    for words in said:
        assert words in last, ran.err
