"""`lore serve`: a folder of memories behind an OpenAI-compatible address."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from lorewright.cli.options import Folder, Json, Threads
from lorewright.cli.settings import Flag, Group, with_options
from lorewright.cli.terminal import console_for, print_json
from lorewright.errors import ConfigError, ModelError
from lorewright.serve.config import ServeConfig, checked_keys, read_keys
from lorewright.serve.listening import LOOPBACK

ACCESS = "Who may ask, and how much"
ENGINE = "Another engine"
API_KEY, ADMIN_KEY = "LOREWRIGHT_API_KEY", "LOREWRIGHT_ADMIN_KEY"
ENGINE_KEY = "LOREWRIGHT_ENGINE_KEY"

SERVE = Group(
    ServeConfig,
    {
        "port": Flag(least=0, most=65535),
        "max_body_bytes": Flag("--max-body", least=1, panel=ACCESS),
        "max_tokens": Flag(least=1, panel=ACCESS),
        "max_concurrency": Flag(least=1, panel=ACCESS),
        "max_queue": Flag(least=0, panel=ACCESS),
        "seconds": Flag("--timeout", least=0.1, panel=ACCESS),
        "engine_url": Flag(panel=ENGINE),
        "engine": Flag(panel=ENGINE, choices="lorewright.serve.upstream.ENGINES"),
        "engine_key": Flag(panel=ENGINE, environment=ENGINE_KEY),
    },
    without=("keys", "admin_keys", "admin"),
)

KeyFile = Annotated[
    Path | None, typer.Option(help="File of API keys, one a line.", rich_help_panel=ACCESS)
]
Key = Annotated[
    str | None,
    typer.Option(
        envvar=API_KEY,
        help="One API key; better in the variable than on the command line.",
        rich_help_panel=ACCESS,
    ),
]
Admin = Annotated[
    bool, typer.Option("--admin", help="Offer admin calls, on their key.", rich_help_panel=ACCESS)
]
AdminKeyFile = Annotated[
    Path | None, typer.Option(help="File of admin keys, one a line.", rich_help_panel=ACCESS)
]
AdminKey = Annotated[
    str | None,
    typer.Option(envvar=ADMIN_KEY, help="One admin key.", rich_help_panel=ACCESS),
]


@with_options(config=SERVE)
def serve(
    folder: Folder,
    config: ServeConfig,
    api_key_file: KeyFile = None,
    api_key: Key = None,
    admin: Admin = False,
    admin_key_file: AdminKeyFile = None,
    admin_key: AdminKey = None,
    threads: Threads = 0,
    as_json: Json = False,
) -> None:
    """Serve a folder: OpenAI's API, each memory a model; new memories are there at once.

    [dim]lore serve atlas --port 8000[/]
    [dim]lore serve atlas --api-key-file keys.txt --host 0.0.0.0[/]
    [dim]lore serve atlas --engine-url http://127.0.0.1:8001[/]
    [dim]lore serve atlas --engine llamacpp[/]
    """
    try:
        from lorewright.serve.server import serve as run
    except ImportError as error:
        raise ModelError(
            f"serving needs {error.name}; install it: pip install 'lorewright[serve]'"
        ) from error

    for variable in (API_KEY, ADMIN_KEY, ENGINE_KEY):
        if os.environ.get(variable) == "":  # which is no value to click
            raise ConfigError(f"{variable} is set and empty; give it a key, or unset it.")

    def keys_of(file: Path | None, key: str | None) -> tuple[str, ...]:
        given = [] if key is None else [key]
        return (*(read_keys(file) if file else ()), *checked_keys(given))

    console = console_for(0 if config.engine_url else threads)
    keys = keys_of(api_key_file, api_key)
    admin_keys = keys_of(admin_key_file, admin_key)
    config = replace(config, keys=keys, admin=admin, admin_keys=admin_keys)
    if not keys and config.host not in LOOPBACK:
        warning = f"No API key: whoever reaches {config.host} can ask."
        console.print(Text(warning, "yellow"), highlight=False)

    def announce(url: str) -> None:
        console.print(Text(f"{folder} at {url}/v1; Ctrl-C ends it", "dim"), highlight=False)
        if as_json:
            print_json({"url": url})

    try:
        run(folder, config, announce=announce)
    except KeyboardInterrupt:  # its ordinary end
        console.print(Text(f"{folder} is no longer served", "dim"), highlight=False)


COMMANDS = (serve,)
