"""An OpenAI-compatible server over a folder: the parts put together, and run.

    protocol, replies   what clients send and get
    responses           the same as OpenAI's newer /v1/responses
    embeddings          vectors of the folder's encoder
    access, metrics     keys, limits, logs, counts
    registry            names to content ids, as the folder has them at this moment
    app                 the paths
    backends            the seam: local or upstream
    local               replies of this process: text, scheduler, batch, adapter_cache
    upstream            replies of vLLM, SGLang or llama.cpp's server

The folder is read; of it only index/ is written, by which `auto` chooses a memory.
"""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import uvicorn
from fastapi import FastAPI

from lorewright.serve.app import build
from lorewright.serve.backends import open_backend
from lorewright.serve.config import ServeConfig
from lorewright.serve.embeddings import Embed, Encoder
from lorewright.serve.listening import address, listen
from lorewright.serve.metrics import Metrics
from lorewright.serve.registry import Registry, Route

if TYPE_CHECKING:
    from lorewright.models.model import Model

DRAIN_SECONDS = 30
"""Longest time that a stopping server waits for requests to end."""


def application(
    folder: Path | str,
    config: ServeConfig | None = None,
    *,
    model: Model | None = None,
    route: Route | None = None,
) -> FastAPI:
    """Return the ASGI application that serves a folder; its lifespan starts and stops the backend.

    `model` is the folder's base, loaded if it is not given and needed. `route` answers for `auto`;
    without it `folder_route` does. Raises what `Memory.open` raises, and ConfigError for an unknown
    engine.
    """
    config = config or ServeConfig()
    registry, metrics = Registry(Path(folder)), Metrics()
    backend = open_backend(registry, config, metrics, model)
    own_route, encoder = folder_route(registry.folder, config.encoder)
    registry.route = route or own_route
    return build(registry, backend, config, metrics, encoder)


def folder_route(folder: Path, encoder: str = "auto") -> tuple[Route, Encoder]:
    """Return the route of a folder's own keys, calibrated, and the encoder that it goes by.

    The route gives None for what no memory is for. Keys and calibration lie in the folder's index/,
    which is written at the first question.
    """
    from lorewright.memory.folder import Folder
    from lorewright.memory.route import LiveRouter

    router = LiveRouter(Folder(folder), encoder)
    lock = threading.Lock()  # simultaneous questions must not all write the index

    def route(question: str) -> str | None:
        with lock:
            chosen = router.route(question, top=1).chosen
        return chosen[0].memory if chosen else None

    def embed() -> Embed | None:
        with lock:
            return router.current().index.embed

    return route, embed


def serve(
    folder: Path | str,
    config: ServeConfig,
    *,
    route: Route | None = None,
    announce: Callable[[str], None] = lambda url: None,
) -> None:
    """Serve a folder until SIGINT or SIGTERM, then finish what was begun.

    `announce` gets the address once it is open. Raises ConfigError when it cannot be opened, and as
    `application` does.
    """
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s")
    app = application(folder, config, route=route)
    listener = _listen(config)
    announce(address(config.host, listener))
    settings = uvicorn.Config(
        app,
        log_level="warning",
        ws="none",
        server_header=False,
        timeout_graceful_shutdown=DRAIN_SECONDS,
    )
    uvicorn.Server(settings).run(sockets=[listener])


def _listen(config: ServeConfig) -> socket.socket:
    listener = listen(config.host, config.port)
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux: drop clients that take nothing of a reply
        milliseconds = int(config.seconds * 1000)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
    return listener
