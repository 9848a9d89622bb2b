"""`lore demo`: a base learns a document while one watches."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lorewright.cli.options import Base, Json, Threads
from lorewright.cli.terminal import console, console_for, print_json


def demo(
    model: Base = "pocket",
    out: Annotated[
        Path | None,
        typer.Option(
            help="Where memory, record and figure go; a condition finished there is not run again. "
            "Default: demo, or demo-NAME of another base.",
            show_default=False,
        ),
    ] = None,
    source: Annotated[Path | None, typer.Option(help="Another document than the demo's.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Few epochs; shows no result.")] = False,
    jobs: Annotated[
        int,
        typer.Option(
            min=1, max=2, help="2: writes by next-token loss in a process beside the other write."
        ),
    ] = 1,
    threads: Threads = 0,
    as_json: Json = False,
) -> None:
    """Watch a base learn a document: the memo's table, then three questions.

    [dim]lore demo[/]
    [dim]lore demo --model smollm2[/]
    """
    from lorewright.cli.contrast import run
    from lorewright.cli.demos import demo_on
    from lorewright.files import slug
    from lorewright.models.catalogue import POCKET

    folder = out or Path("demo" if model == POCKET else f"demo-{slug(Path(model).name)}")
    about = (demo_on(model), model, console_for(threads), console(quiet=as_json))
    record = run(*about, folder, source, quick=quick, jobs=jobs)
    if as_json:
        print_json(record)


COMMANDS = (demo,)
