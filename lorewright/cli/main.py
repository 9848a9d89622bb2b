"""The command line: its verbs put together, and every expected failure as one sentence.

Each verb is a few lines over the same functions that Python calls, in a file of its own or its
family's. What a user can get wrong ends in one sentence and a code of `Exit`, with `--json` in an
object as well. Heavy imports are inside the commands, so that `--help` is quick.
"""

from __future__ import annotations

import errno
import os
import sys
from typing import Annotated

import typer

from lorewright import __version__
from lorewright.cli import (
    ask,
    bench,
    budget,
    chat,
    copies,
    costs,
    demo,
    folder,
    forget,
    kit,
    law,
    merge,
    methods,
    models,
    plan,
    read,
    report,
    reproduce,
    sandbox,
    serve,
    studio,
    verify,
    write,
)
from lorewright.cli.streams import steady_streams
from lorewright.cli.terminal import Exit, print_error, print_failure, say
from lorewright.errors import LorewrightError

USAGE_ERROR: type[Exception] = next(
    kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "UsageError"
)
"""Of the click that typer carries or depends on."""
DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}
"""What a disk refuses with, wherever it happens."""
FAMILIES = (
    write,
    verify,
    ask,
    read,
    chat,
    folder,
    forget,
    copies,
    merge,
    costs,
    plan,
    budget,
    sandbox,
    serve,
    studio,
    report,
    reproduce,
    demo,
    methods,
)

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
app.add_typer(kit.app, name="kit")
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
        say(__version__)
        raise typer.Exit


def main() -> None:
    """Run the command line; exits with a code of `Exit`."""
    with steady_streams() as out:
        code = _run("--json" in sys.argv)
        if out is not None:
            out.flush()
            if isinstance(out.failure, BrokenPipeError):
                code = Exit.UNREAD
            elif out.failure is not None:
                what = out.failure.strerror or out.failure
                text = f"the output could not be written: {what}; what the command did is done."
                code = print_failure("StorageError", text, Exit.STORAGE, as_json=False)
    sys.exit(code)


def _run(as_json: bool) -> int:
    """Run the command and return its exit code, errors printed."""
    try:
        code = app(prog_name="lore", standalone_mode=not as_json) or Exit.DONE
        return _interrupted(as_json) if code == Exit.INTERRUPTED else code
    except LorewrightError as error:
        return print_error(error, as_json)
    except USAGE_ERROR as error:  # with --json; otherwise typer has printed it
        return print_failure("UsageError", str(error), Exit.REFUSED, as_json)
    except (KeyboardInterrupt, typer.Abort):
        return _interrupted(as_json)
    except SystemExit as ending:
        if ending.code == Exit.INTERRUPTED:  # typer caught Ctrl-C inside a command
            return _interrupted(as_json)
        return ending.code if isinstance(ending.code, int) else Exit.DONE
    except Exception as error:  # noqa: BLE001  (shown whole, and no scripts take it for a verdict)
        if isinstance(error, OSError) and error.errno in DISK:
            message = f"{error}; check space and permissions."
            return print_failure("StorageError", message, Exit.STORAGE, as_json)
        sys.excepthook(type(error), error, error.__traceback__)
        return print_failure(
            type(error).__name__, f"{error}: a fault of Lorewright.", Exit.FAULT, as_json
        )


def _interrupted(as_json: bool) -> Exit:
    message = "the same command goes on where a write stopped."
    return print_failure("Interrupted", message, Exit.INTERRUPTED, as_json)
