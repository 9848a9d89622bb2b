"""The command line: its verbs put together, and every expected failure as one sentence.

Each verb is a few lines over the same functions that Python calls, in a file of its own or its
family's. What a user can get wrong ends in one sentence and `Exit.REFUSED`, with `--json` in an
object; an interruption in `Exit.INTERRUPTED`, and the same write goes on. Heavy imports are inside
the commands, so that `--help` is quick.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated, NoReturn

import typer

from lorewright import __version__
from lorewright.cli import (
    ask,
    bench,
    copies,
    demo,
    folder,
    forget,
    law,
    merge,
    models,
    plan,
    report,
    serve,
    verify,
    write,
)
from lorewright.cli.terminal import Exit, print_json
from lorewright.errors import LorewrightError

USAGE_ERROR: type[Exception] = next(
    kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "UsageError"
)
"""Of the click that typer carries or depends on."""
FAMILIES = (write, verify, ask, folder, forget, copies, merge, plan, serve, report, demo)

app = typer.Typer(
    name="lore",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
for family in FAMILIES:
    for command in family.COMMANDS:
        app.command()(command)
app.add_typer(models.app, name="models")
app.add_typer(law.app, name="law")
app.add_typer(bench.app, name="bench")


@app.callback(invoke_without_command=True)
def about(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Write knowledge into LoRA adapters, and prove that it is there.

    [dim]lore write examples/handbook.md --into atlas[/]
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if version:
        typer.echo(__version__)
        raise typer.Exit


def main() -> None:
    """Run the command line; exits with a code of `Exit`."""
    as_json = "--json" in sys.argv
    try:
        sys.exit(app(prog_name="lore", standalone_mode=not as_json) or Exit.DONE)
    except LorewrightError as error:
        _refuse(type(error).__name__, " ".join(str(error).split()), as_json)
    except USAGE_ERROR as error:  # with --json; otherwise typer has printed it
        _refuse("UsageError", str(error), as_json)
    except (KeyboardInterrupt, typer.Abort):
        _interrupted()
    except SystemExit as ending:
        if ending.code == Exit.INTERRUPTED:  # typer caught Ctrl-C inside a command
            _interrupted()
        raise


def _refuse(kind: str, message: str, as_json: bool) -> NoReturn:
    from rich.console import Console
    from rich.text import Text

    line = Text.assemble((f"{kind}:", "red"), f" {message}")
    Console(stderr=True, soft_wrap=True).print(line, highlight=False)
    if as_json:
        print_json({"error": {"kind": kind, "message": message}})
    sys.exit(Exit.REFUSED)


def _interrupted() -> NoReturn:
    typer.echo("Interrupted. The same command goes on where a write stopped.", err=True)
    sys.exit(Exit.INTERRUPTED)
