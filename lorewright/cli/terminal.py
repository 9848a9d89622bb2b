"""What every command does with its result and its progress, and the exit codes.

Results go to stdout, progress to stderr; `--json` prints one object of plain data.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import IntEnum
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from lorewright.errors import Locked, LorewrightError, StorageError

if TYPE_CHECKING:
    from lorewright.models.model import Model
    from lorewright.training.config import WriteConfig
    from lorewright.training.watch import Watch


class Exit(IntEnum):
    """Exit codes of every command."""

    DONE = 0
    FAILED = 1
    """Everything ran, and the verdict is bad: it recalls nothing, or the claim does not hold."""
    REFUSED = 2
    """It cannot be done as requested; also typer's own code for wrong usage."""
    LOCKED = 3
    """Another process is writing; the same command may succeed later."""
    STORAGE = 4
    """The disk refused: full, read-only, not permitted."""
    FAULT = 70
    """A fault of Lorewright, as sysexits.h has it."""
    INTERRUPTED = 130
    """Ctrl-C, as shells have it."""
    UNREAD = 141
    """It ran, and nobody read the output: a broken pipe, as shells have it."""


def exit_of(error: LorewrightError) -> Exit:
    """Return the exit code of an error of the family."""
    if isinstance(error, Locked):
        return Exit.LOCKED
    return Exit.STORAGE if isinstance(error, StorageError) else Exit.REFUSED


def print_json(data: Mapping[str, Any]) -> None:
    """Print one object on stdout, as JSON."""
    print(json.dumps(data))


def print_failure(kind: str, message: str, code: Exit, as_json: bool) -> Exit:
    """Print a failure as one sentence on stderr, as JSON also on stdout; return its exit code."""
    line = Text.assemble((f"{kind}:", "red"), f" {message}")
    console(stderr=True, soft_wrap=True).print(line, highlight=False)
    if as_json:
        print_json({"error": {"kind": kind, "message": message, "exit": int(code)}})
    return code


def print_error(error: LorewrightError, as_json: bool) -> Exit:
    """Print an error of the family as `print_failure` does; return its exit code."""
    message = " ".join(str(error).split())
    return print_failure(type(error).__name__, message, exit_of(error), as_json)


def console(*, stderr: bool = False, soft_wrap: bool = False, quiet: bool = False) -> Console:
    """Return a console on stdout or stderr that knows the stream's encoding."""
    stream = sys.stderr if stderr else sys.stdout
    return Console(file=stream, stderr=stderr, soft_wrap=soft_wrap, quiet=quiet)


def say(text: str, style: str = "") -> None:
    """Print a line on stdout as it is: no markup, no wrapping, no colours for numbers."""
    console(soft_wrap=True).print(Text(text, style), highlight=False)


def show(table: Any) -> None:
    """Print a table on stdout, as wide as the terminal."""
    from lorewright.reports.tables import Rendered

    console().print(Rendered(table))


def console_for(threads: int) -> Console:
    """Return stderr for progress; sets the number of threads first."""
    if threads:
        import torch

        torch.set_num_threads(threads)
    return console(stderr=True)


@contextmanager
def watching(console: Console) -> Iterator[Watch]:
    """Show progress on the console while a verb is at work."""
    from lorewright.reports.progress import shown

    with shown(console) as watch:
        yield watch


def print_coverage(console: Console, model: Model, config: WriteConfig) -> None:
    """Print which layers are adapted, before anything is trained."""
    from lorewright.adapters.targets import resolve_targets

    coverage = resolve_targets(model.network, config.lora.targets, config.lora.layers)
    kinds = Counter(site.projection.split(".")[-1] for site in coverage.sites)
    where = ", ".join(f"{kind} ×{n}" for kind, n in kinds.items())
    text = f"{model.name}: adapter on {len(coverage.sites)} of {coverage.n_linear} linear layers"
    console.print(Text(f"{text} ({where})", "dim"), highlight=False)
