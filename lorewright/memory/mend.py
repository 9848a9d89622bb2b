"""The verb `mend`: examine a memory, run the one command that mends it, and examine it again.

The command is that of the first finding that has one, as the diagnosis prints it; it runs in a
process of its own, so that what is mended here is what a user would have typed.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorewright.errors import ConfigError, ModelError
from lorewright.memory.diagnose import diagnose
from lorewright.models.model import Model
from lorewright.recall.diagnose import Diagnosis
from lorewright.recall.tree import tree
from lorewright.training.watch import Watch

LORE = (sys.executable, "-c", "from lorewright.cli.main import main; main()")
"""The command line, whether or not `lore` is on the PATH."""
RUNS = ("write", "merge")
"""Verbs that may be run; other remedies examine further."""
PLACEHOLDERS = {"SOURCE", "SOURCES", "FOLDER", "FILE", "NEW_FOLDER", "ITS_BASE"}
VERDICTS = (0, 1)
"""Exit codes after which a memory is there."""


@dataclass(frozen=True)
class Mended:
    """A memory before and after."""

    command: str
    name: str
    """Of the memory that the command left: the same, or a new one beside it."""
    before: Diagnosis
    after: Diagnosis

    @property
    def healthy(self) -> bool:
        """Whether nothing is wrong any more."""
        return not self.after.findings

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "command": self.command,
            "memory": self.name,
            "healthy": self.healthy,
            "before": account(self.before),
            "after": account(self.after),
        }


def account(diagnosis: Diagnosis) -> dict[str, Any]:
    """A diagnosis with its tree and the command that would mend it, as plain data."""
    branches = [branch.to_json() for branch in tree(diagnosis)]
    return {**diagnosis.to_json(), "tree": branches, "mends": command_of(diagnosis)}


def command_of(diagnosis: Diagnosis) -> str:
    """The command of the first finding that has one; empty where none runs as it stands."""
    for finding in diagnosis.findings:
        words = shlex.split(finding.remedy)
        if len(words) > 2 and words[1] in RUNS and not PLACEHOLDERS & {*words}:
            return finding.remedy
    return ""


def mend(
    place: Path,
    *,
    base: str | Model | None = None,
    run: Callable[[str], None] | None = None,
    watch: Watch | None = None,
) -> Mended:
    """Examine `FOLDER/NAME`, run what mends it, and examine what that left.

    `run` runs a command; by default in a process of its own. Raises ConfigError where nothing is
    wrong or no command is known, ModelError where the command fails, and as `diagnose`.
    """
    watch, run = watch or Watch(), run or run_command
    watch.step("examining it")
    before = diagnose(place, base=base)
    if not before.findings:
        raise ConfigError(f"nothing is wrong with {place}, so there is nothing to mend.")
    command = command_of(before)
    if not command:
        raise ConfigError(
            f"no command mends {place} by itself: {before.findings[0].remedy}; see lore doctor."
        )
    watch.step(command)
    run(command)
    words = shlex.split(command)
    named = next(
        (words[n + 1] for n, word in enumerate(words) if word == "--into-name"), place.name
    )
    watch.step("examining what came of it")
    after = diagnose(place.with_name(named), base=base)
    return Mended(command, named, before, after)


def run_command(command: str) -> None:
    """Run a `lore` command to its end. Raises ModelError with its last line where it failed."""
    _, *words = shlex.split(command)
    done = subprocess.run([*LORE, *words], capture_output=True, text=True, check=False)
    if done.returncode not in VERDICTS:
        last = (done.stderr.strip().splitlines() or ["it printed nothing"])[-1]
        raise ModelError(f"the command that mends ended with {done.returncode}: {last}")
