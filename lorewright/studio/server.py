"""A studio put together and run: gate ─▶ pages ─▶ records of the folder, orders to the worker."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from pathlib import Path

import uvicorn

from lorewright.errors import ConfigError, DataError
from lorewright.memory.folder import Folder
from lorewright.serve.listening import address, listen
from lorewright.studio.access import Gate
from lorewright.studio.config import StudioConfig
from lorewright.studio.routes import build
from lorewright.studio.worker import Worker

DRAIN_SECONDS = 1
"""Longest time that a studio that ends waits for its pages, which follow it without end."""


def serve(
    folder: Path,
    config: StudioConfig,
    *,
    base: str = "",
    token: str = "",
    announce: Callable[[str], None] = lambda url: None,
) -> None:
    """Open a studio on a folder until SIGINT or SIGTERM; the base is loaded behind the pages.

    `token` is that of a token file; without one a token is drawn that works once. `announce` gets
    the address with it. Raises ConfigError for an address that cannot be opened, or that others
    could reach without a token file; DataError for a folder that is something else.
    """
    if not config.local and not token:
        raise ConfigError(
            f"{config.host} can be reached from other machines; give --token-file, or leave --host."
        )
    place = Folder(folder)
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder} is a file; a memory is a folder; give another name.")
    if not place.started:
        place.refuse_foreign()
    else:
        place.index()
    listener = listen(config.host, config.port)
    worker = Worker(folder, base)
    worker.submit("warm")
    secret = token or secrets.token_urlsafe(24)
    app = Gate(build(place, worker, config), config, secret, once=not token)
    shown = "" if token else f"/?token={secret}"
    announce(f"{address(config.host, listener)}{shown}")
    settings = uvicorn.Config(
        app,
        log_level="error",
        ws="auto",
        server_header=False,
        timeout_graceful_shutdown=DRAIN_SECONDS,
    )
    try:
        uvicorn.Server(settings).run(sockets=[listener])
    finally:
        worker.close()
