"""`lore studio`: pages on a memory folder in a browser of this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from lorewright.cli.options import Base, Json
from lorewright.cli.settings import Flag, Group, with_options
from lorewright.cli.terminal import console_for, print_json
from lorewright.errors import ModelError
from lorewright.studio.config import StudioConfig, read_token

STUDIO = Group(
    StudioConfig,
    {
        "port": Flag(least=0, most=65535),
        "max_upload_bytes": Flag("--max-upload", least=1),
    },
)


@with_options(config=STUDIO)
def studio(
    config: StudioConfig,
    folder: Annotated[
        Path, typer.Argument(help="The memory's folder; a new one is offered an example.")
    ] = Path("atlas"),
    token_file: Annotated[
        Path | None, typer.Option(help="File with the token of --host, in its first line.")
    ] = None,
    model: Base = "",
    as_json: Json = False,
) -> None:
    """Open a folder in the browser: look, write and watch it learn, verify, ask, diagnose.

    [dim]lore studio[/]
    [dim]lore studio atlas --port 8765 --read-only[/]
    """
    try:
        from lorewright.studio.server import serve
    except ImportError as error:
        raise ModelError(
            f"the studio needs {error.name}; install it: pip install 'lorewright[studio]'"
        ) from error

    console = console_for(0)

    def announce(url: str) -> None:
        console.print(Text(f"{folder} at {url}", "bold"), highlight=False, soft_wrap=True)
        console.print(Text("open it in a browser; Ctrl-C ends it", "dim"), highlight=False)
        if as_json:
            print_json({"url": url})

    token = read_token(token_file) if token_file else ""
    try:
        serve(folder, config, base=model, token=token, announce=announce)
    except KeyboardInterrupt:  # its ordinary end
        console.print(Text(f"{folder} is closed", "dim"), highlight=False)


COMMANDS = (studio,)
