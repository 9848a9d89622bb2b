"""`lore demo`: the embedded model learns a document while one watches."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lorewright.cli.options import Json, Threads
from lorewright.cli.terminal import console, console_for, print_json


def demo(
    out: Annotated[Path, typer.Option(help="Where memory, record and figure go.")] = Path("demo"),
    source: Annotated[Path | None, typer.Option(help="Another document than the handbook.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Few epochs; shows no result.")] = False,
    threads: Threads = 0,
    as_json: Json = False,
) -> None:
    """Watch the embedded model learn a document: the memo's table, then three questions.

    [dim]lore demo[/]
    """
    from lorewright.cli.contrast import run

    record = run(console_for(threads), console(quiet=as_json), out, source, quick=quick)
    if as_json:
        print_json(record)


COMMANDS = (demo,)
