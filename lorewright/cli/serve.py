"""`lore serve`: a folder of memories behind an OpenAI-compatible address."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lorewright.cli.options import Folder, Json, Threads
from lorewright.cli.output import console_for, print_json
from lorewright.errors import ModelError

WHO = "Who may ask, and how much"
ENGINE = "Another server as the engine"

Host = Annotated[str, typer.Option(help="Address to listen at.")]
Port = Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 = any free one.")]
KeyFile = Annotated[
    Path | None, typer.Option(help="File of API keys, one a line.", rich_help_panel=WHO)
]
Key = Annotated[
    str,
    typer.Option(
        envvar="LOREWRIGHT_API_KEY",
        help="One API key; better in the variable than on the command line.",
        rich_help_panel=WHO,
    ),
]
Admin = Annotated[
    bool, typer.Option("--admin", help="Offer admin calls, on their key.", rich_help_panel=WHO)
]
AdminKeyFile = Annotated[
    Path | None, typer.Option(help="File of admin keys, one a line.", rich_help_panel=WHO)
]
AdminKey = Annotated[
    str,
    typer.Option(envvar="LOREWRIGHT_ADMIN_KEY", help="One admin key.", rich_help_panel=WHO),
]
MaxBody = Annotated[
    int, typer.Option(min=1, help="Largest request, in bytes.", rich_help_panel=WHO)
]
MaxTokens = Annotated[
    int, typer.Option(min=1, help="Most tokens generated for one reply.", rich_help_panel=WHO)
]
MaxConcurrency = Annotated[
    int, typer.Option(min=1, help="Replies generated at once, in a batch.", rich_help_panel=WHO)
]
MaxQueue = Annotated[
    int, typer.Option(min=0, help="Requests that may wait; more get 429.", rich_help_panel=WHO)
]
Timeout = Annotated[
    float, typer.Option(min=0.1, help="Seconds for a request, with waiting.", rich_help_panel=WHO)
]
EngineUrl = Annotated[
    str, typer.Option(help="Generate there: vLLM, SGLang or llama.cpp.", rich_help_panel=ENGINE)
]
Engine = Annotated[
    str,
    typer.Option(
        help="vllm, sglang, llamacpp, lorewright, openai; empty = as it reports.",
        rich_help_panel=ENGINE,
    ),
]
EngineKey = Annotated[
    str, typer.Option(envvar="LOREWRIGHT_ENGINE_KEY", help="Its key.", rich_help_panel=ENGINE)
]


def serve(
    folder: Folder,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    api_key_file: KeyFile = None,
    api_key: Key = "",
    admin: Admin = False,
    admin_key_file: AdminKeyFile = None,
    admin_key: AdminKey = "",
    max_body: MaxBody = 1 << 20,
    max_tokens: MaxTokens = 512,
    max_concurrency: MaxConcurrency = 16,
    max_queue: MaxQueue = 256,
    timeout: Timeout = 120.0,
    engine_url: EngineUrl = "",
    engine: Engine = "",
    engine_key: EngineKey = "",
    threads: Threads = 0,
    as_json: Json = False,
) -> None:
    """Serve a folder: OpenAI's API, each memory a model; new memories are there at once.

    [dim]lore serve atlas --port 8000[/]
    [dim]lore serve atlas --api-key-file keys.txt --host 0.0.0.0[/]
    [dim]lore serve atlas --engine-url http://127.0.0.1:8001[/]
    """
    from lorewright.serve.config import ServeConfig, checked_keys, read_keys

    try:
        from lorewright.serve.server import serve as run
    except ImportError as error:
        raise ModelError(
            f"serving needs {error.name}; install it: pip install 'lorewright[serve]'"
        ) from error
    console = console_for(0 if engine_url else threads)
    keys = read_keys(api_key_file) if api_key_file else ()
    admin_keys = read_keys(admin_key_file) if admin_key_file else ()
    config = ServeConfig(
        host=host,
        port=port,
        keys=(*keys, *checked_keys([api_key] if api_key else [])),
        admin=admin,
        admin_keys=(*admin_keys, *checked_keys([admin_key] if admin_key else [])),
        max_body_bytes=max_body,
        max_tokens=max_tokens,
        max_concurrency=max_concurrency,
        max_queue=max_queue,
        seconds=timeout,
        engine_url=engine_url,
        engine=engine,
        engine_key=engine_key,
    )
    if not config.keys and host not in ("127.0.0.1", "::1", "localhost"):
        console.print(f"[yellow]No API key: whoever reaches {host} can ask.[/]", highlight=False)

    def announce(url: str) -> None:
        console.print(f"[dim]{folder} at {url}/v1; Ctrl-C ends it[/]", highlight=False)
        if as_json:
            print_json({"url": url})

    run(folder, config, announce=announce)
