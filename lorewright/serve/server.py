"""An OpenAI-compatible server over a folder: each memory is a model, `auto` finds the right one.

    wire, reply     the protocol: questions, refusals, answers
    gate, meters    keys, limits, counts
    roster          names to content ids, as the folder has them at this moment
    app             the paths
    local           replies from our own engine: words, engine, rows, bank
    upstream        replies from vLLM, SGLang or llama.cpp's server

The folder is read; of it only index/ is written, by which `auto` finds a memory. This room puts the
others together and runs them.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from lorewright.errors import ConfigError, ModelError
from lorewright.serve.app import Answerer, build
from lorewright.serve.gate import App, Doors
from lorewright.serve.meters import Meters
from lorewright.serve.roster import Roster, Route

if TYPE_CHECKING:
    from lorewright.memory.memory import Memory
    from lorewright.models.model import Model

DRAIN_SECONDS = 30
"""Longest time that a stopping server waits for requests to end."""


@dataclass(frozen=True)
class ServeConfig:
    """How a folder is served."""

    host: str = "127.0.0.1"
    port: int = 8000
    """0 = any free one."""
    keys: tuple[str, ...] = ()
    """API keys; () = no key is asked for."""
    admin_keys: tuple[str, ...] = ()
    admin: bool = False
    """Whether there are admin calls; they need a key of their own."""
    max_body_bytes: int = 1 << 20
    max_tokens: int = 512
    """Most tokens generated for one reply."""
    max_concurrency: int = 16
    """Replies generated at once: the rows of a batch."""
    max_queue: int = 256
    """Requests that may wait; further ones get status 429."""
    seconds: float = 120.0
    """Most time for one request, waiting included."""
    engine_url: str = ""
    """Another server that generates; empty = the engine of our own."""
    engine: str = ""
    """What it is: vllm, sglang, llamacpp, lorewright, openai; empty = as it says itself."""
    engine_key: str = ""

    def __post_init__(self) -> None:
        """Raise ConfigError for values that cannot be."""
        for name in ("max_body_bytes", "max_tokens", "max_concurrency", "seconds"):
            if not vars(self)[name] > 0:
                raise ConfigError(f"{name} is {vars(self)[name]}; give more than 0.")
        if self.max_queue < 0 or not 0 <= self.port < 1 << 16:
            raise ConfigError(f"queue {self.max_queue}, port {self.port}; neither can be so.")
        if self.admin and not self.admin_keys:
            raise ConfigError(
                "admin calls need a key of their own; set LOREWRIGHT_ADMIN_KEY or give "
                "--admin-key-file, or leave --admin out."
            )
        if self.admin and set(self.admin_keys) & set(self.keys):
            raise ConfigError("an admin key is an API key as well; give admin calls their own.")


def application(
    folder: Path | str,
    config: ServeConfig | None = None,
    *,
    model: Model | None = None,
    route: Route | None = None,
) -> App:
    """Return the ASGI application that serves a folder; its lifespan starts and stops the engine.

    `model` is the folder's base, loaded if it is not given; with an engine_url none is needed.
    `route` answers for `auto`; without it `finding` does. Raises what `Memory.open` raises, and
    ConfigError for an unknown engine.
    """
    config = config or ServeConfig()
    from lorewright.memory.memory import Memory

    roster, meters = Roster(Path(folder)), Meters()
    doors = Doors(
        config.keys,
        config.admin_keys if config.admin else (),
        config.max_body_bytes,
        config.max_concurrency + config.max_queue,
        config.seconds,
        local_only=not config.keys and config.host in ("127.0.0.1", "::1", "localhost"),
    )
    if config.engine_url:
        # whom a question is for is found by the folder's keys; no base is read for it
        memory = Memory(roster.folder, cast("Model", model))
        answerer = _upstream(roster, config, meters)
    else:
        memory = Memory.open(roster.folder, model, create=False)
        answerer = _local(roster, memory, config, meters)
    roster.route = route or finding(memory)
    return build(roster, answerer, doors, meters, admin=config.admin)


def finding(memory: Memory) -> Route:
    """Return the route of a folder's own: its keys, calibrated, None for what no memory is for.

    Keys and calibration lie in the folder's index/, which is made at the first question.
    """
    alone = threading.Lock()  # many questions at once must not all make the index

    def route(question: str) -> str | None:
        with alone:
            chosen = memory.route(question, top=1).chosen
        return chosen[0].memory if chosen else None

    return route


def _local(roster: Roster, memory: Memory, config: ServeConfig, meters: Meters) -> Answerer:
    from lorewright.serve.engine import Engine
    from lorewright.serve.local import Limits, Local

    engine = Engine(memory.model, max_rows=config.max_concurrency, max_waiting=config.max_queue + 8)
    return Local(roster, memory.model, engine, Limits(config.max_tokens, config.seconds), meters)


def _upstream(roster: Roster, config: ServeConfig, meters: Meters) -> Answerer:
    from lorewright.serve.upstream import Upstream

    return Upstream(
        roster,
        config.engine_url,
        meters,
        engine=config.engine,
        key=config.engine_key,
        max_tokens=config.max_tokens,
        seconds=config.seconds,
    )


def serve(
    folder: Path | str,
    config: ServeConfig,
    *,
    route: Route | None = None,
    announce: Callable[[str], None] = lambda url: None,
) -> None:
    """Serve a folder until SIGINT or SIGTERM, then finish what was begun.

    `announce` is told the address once it is open. Raises ConfigError when it cannot be opened,
    ModelError without the `serve` extra, and as `application` does.
    """
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn
    except ImportError as error:
        raise ModelError(
            f"serving needs {error.name}; install it: pip install 'lorewright[serve]'"
        ) from error
    app = application(folder, config, route=route)
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    # with the protocol named, asyncio turns off Nagle's algorithm, which would cost 40 ms a reply
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((config.host, config.port))
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"{config.host}:{config.port} cannot be opened ({error.strerror or error}); "
            "give another --port or --host."
        ) from error
    listener.listen(128)
    host = f"[{config.host}]" if ":" in config.host else config.host
    announce(f"http://{host}:{listener.getsockname()[1]}")
    settings = uvicorn.Config(
        app,
        log_level="warning",
        ws="none",
        server_header=False,
        timeout_graceful_shutdown=DRAIN_SECONDS,
    )
    uvicorn.Server(settings).run(sockets=[listener])
