"""The server's paths: OpenAI's, health and metrics, and an administrator's.

access ─▶ path ─▶ registry: which model ─▶ backend ─▶ a reply, or server-sent events
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.responses import Response

from lorewright import __version__
from lorewright.errors import LorewrightError
from lorewright.serve import access, protocol
from lorewright.serve.backends import Backend
from lorewright.serve.config import ServeConfig
from lorewright.serve.embeddings import EmbeddingsRequest, Encoder, embeddings
from lorewright.serve.metrics import Metrics
from lorewright.serve.protocol import APIError, api_error
from lorewright.serve.registry import AUTO, Registry
from lorewright.serve.replies import DONE, Completion, event
from lorewright.serve.responses import ResponseFormat, ResponsesRequest

LOOK_SECONDS = 0.5
"""How often the folder is looked at for memories that have gone, between requests as well."""
CLIENT_LEFT = 499
"""Status, as web servers have it, of a reply whose client closed the connection."""

T = TypeVar("T")
Whole = Callable[[Completion], bytes]
"""A reply as the body of a response."""
Events = Callable[[AsyncIterator[Completion | APIError]], AsyncIterator[bytes]]
"""Chunks, and perhaps an error after them, as server-sent events."""


def build(
    registry: Registry,
    backend: Backend,
    config: ServeConfig,
    metrics: Metrics,
    encoder: Encoder = lambda: None,
) -> FastAPI:
    """Return the ASGI application; its lifespan starts and stops the backend."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await backend.start()
        looking = asyncio.create_task(_drop_forgotten(registry, backend))
        try:
            yield
        finally:
            looking.cancel()
            await backend.stop()

    keys = access.KeyAuthentication(config)
    app = FastAPI(
        title="Lorewright",
        version=__version__,
        lifespan=lifespan,
        middleware=[
            Middleware(access.RecordRequests, metrics=metrics, seconds=config.seconds),
            Middleware(
                AuthenticationMiddleware,
                backend=keys,
                on_error=access.DeniedResponse,
            ),
            Middleware(access.LimitRequests, config=config, metrics=metrics),
        ],
        # no pages that load scripts from elsewhere: everything works without a network
        docs_url=None,
        redoc_url=None,
    )
    metrics.watch(backend.gauges)
    _add_error_handlers(app, registry)
    _add_health(app, registry, backend, metrics)
    _add_models(app, registry)
    _add_completions(app, registry, backend, metrics)
    _add_embeddings(app, encoder)
    if config.admin:
        _add_admin(app, registry, backend)
    return app


async def _drop_forgotten(registry: Registry, backend: Backend) -> None:
    """Have the backend drop what another process forgot, whether or not anything is requested."""
    version = registry.version
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        _ = registry.names  # reads the folder if it has changed
        if registry.version != version:
            version = registry.version
            backend.drop_unnamed()


def _add_error_handlers(app: FastAPI, registry: Registry) -> None:
    """Every error leaves as an error object in OpenAI's shape."""

    def handle(kind: type[Exception], convert: Callable[[Any], APIError]) -> None:
        async def handler(request: Request, error: Exception) -> JSONResponse:
            return access.ErrorResponse(request, convert(error))

        app.add_exception_handler(kind, handler)

    handle(LorewrightError, lambda error: api_error(error, registry.folder))
    handle(RequestValidationError, lambda error: protocol.validation_error(error.errors()))
    handle(HTTPException, lambda error: APIError(error.status_code, f"{error.detail}."))
    handle(  # the traceback is logged by whatever runs the application
        Exception,
        lambda error: APIError(500, "an error of the server; its log has the details."),
    )


def _add_health(app: FastAPI, registry: Registry, backend: Backend, metrics: Metrics) -> None:
    @app.get("/health")
    async def health() -> dict[str, Any]:
        """Report that the process lives, and what is wrong with the folder if anything is."""
        _ = registry.names  # reads the folder if it has changed
        return {"status": "ok", "version": __version__, "trouble": registry.trouble}

    @app.get("/ready")
    async def ready() -> JSONResponse:
        """Report whether requests can be answered."""
        why = await backend.trouble()
        body = {"status": "not ready" if why else "ready", "why": why}
        return JSONResponse(body | {"memories": len(registry.names)}, 503 if why else 200)

    @app.get("/metrics")
    async def prometheus() -> Response:
        """Everything that is counted, for Prometheus."""
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _add_models(app: FastAPI, registry: Registry) -> None:
    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        """List the base, `auto`, and every memory."""
        return {"object": "list", "data": registry.listing()}

    @app.get("/v1/models/{model:path}")
    async def model(model: str) -> dict[str, Any]:
        """Describe one of them."""
        name = AUTO if model == AUTO else registry.target(model).name
        for entry in registry.listing():
            if entry["id"] == name:
                return entry
        raise APIError(404, f"this server has no {name!r}.", code="model_not_found")


def _add_completions(app: FastAPI, registry: Registry, backend: Backend, metrics: Metrics) -> None:
    async def reply(
        http: Request, request: protocol.GenerationRequest, whole: Whole, events: Events
    ) -> Response:
        if request.model == AUTO:
            target = await asyncio.to_thread(registry.routed, request.question())
            metrics.count_routed(chosen=bool(target.adapter_id))
        else:
            target = registry.target(request.model)
        if not request.stream:
            completion = await _while_connected(http, backend.complete(request, target))
            return Response(whole(completion), media_type="application/json")
        chunks = backend.stream(request, target)
        # until the first chunk there are no headers yet: an error is a status of its own
        first = await _while_connected(http, _first(chunks))
        return StreamingResponse(
            _closed_at_the_end(_parts(first, chunks, registry), events),
            media_type="text/event-stream",
            headers={"cache-control": "no-cache", "x-accel-buffering": "no"},
        )

    @app.post("/v1/chat/completions")
    async def chat(http: Request, request: protocol.ChatRequest) -> Response:
        """Answer the last message of a conversation."""
        return await reply(http, request, Completion.to_json, _events)

    @app.post("/v1/completions")
    async def completions(http: Request, request: protocol.TextRequest) -> Response:
        """Continue plain text."""
        return await reply(http, request, Completion.to_json, _events)

    @app.post("/v1/responses")
    async def responses(http: Request, request: ResponsesRequest) -> Response:
        """Answer the last message of a conversation, as a list of output items."""
        form = ResponseFormat(request)

        def whole(completion: Completion) -> bytes:
            return json.dumps(form.whole(completion)).encode()

        return await reply(http, request.chat(), whole, form.events)


def _add_embeddings(app: FastAPI, encoder: Encoder) -> None:
    one_at_a_time = asyncio.Lock()

    @app.post("/v1/embeddings")
    async def embed(request: EmbeddingsRequest) -> dict[str, Any]:
        """Vectors of the encoder by which the folder chooses a memory."""
        async with one_at_a_time:
            return await asyncio.to_thread(embeddings, request, encoder)


async def _first(chunks: AsyncIterator[Completion]) -> Completion:
    async for chunk in chunks:
        return chunk
    raise APIError(502, "the stream ended before it began.", code="bad_engine_answer")


async def _parts(
    first: Completion, chunks: Any, registry: Registry
) -> AsyncGenerator[Completion | APIError]:
    """The chunks of a stream; an error on the way is the last part."""
    async with aclosing(chunks):
        yield first
        try:
            async for chunk in chunks:
                yield chunk
        except LorewrightError as error:
            failure = api_error(error, registry.folder)
            access.log.warning("%s in a stream: %s", failure.status, failure.detail or failure)
            yield failure


async def _closed_at_the_end(
    parts: AsyncGenerator[Completion | APIError], events: Events
) -> AsyncIterator[bytes]:
    """The events of the parts, whose generation ends with them: a client may leave midway."""
    async with aclosing(parts):
        async for each in events(parts):
            yield each


async def _events(parts: AsyncIterator[Completion | APIError]) -> AsyncIterator[bytes]:
    """The parts as server-sent events."""
    async for part in parts:
        if isinstance(part, APIError):
            yield event(json.dumps(part.to_json()).encode())
        else:
            yield event(part.to_json())
    yield DONE


async def _while_connected(http: Request, work: Awaitable[T]) -> T:
    """The work's result; it is cancelled when the client closes the connection."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_disconnected(http))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise APIError(CLIENT_LEFT, "the client closed the connection.")
    finally:
        leaving.cancel()
        if not working.done():
            working.cancel()
            await asyncio.wait({working})


async def _disconnected(http: Request) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass


def _add_admin(app: FastAPI, registry: Registry, backend: Backend) -> None:
    async def load(name: str, adapter: str, replace: bool) -> None:
        adapter_id = registry.resolve(adapter)
        await backend.load(adapter_id)
        registry.add(name, adapter_id, replace=replace)

    def listing() -> dict[str, Any]:
        return {"base": registry.base, "memories": dict(registry.names)}

    @app.get("/admin/memories")
    async def memories() -> dict[str, Any]:
        """List the names that are served and their content ids."""
        return listing()

    @app.post("/admin/memories")
    async def add(body: protocol.AddMemory) -> dict[str, Any]:
        """Serve an adapter of the folder under a name, until the end or a reload."""
        await load(body.name, body.adapter, body.replace)
        return listing()

    @app.delete("/admin/memories/{name}")
    async def remove(name: str) -> dict[str, Any]:
        """Stop serving a name, until the end or a reload; the folder keeps the memory."""
        registry.hide(name)
        return listing()

    @app.post("/admin/reload")
    async def reload() -> dict[str, Any]:
        """Read the folder again and serve what it names."""
        registry.reload()
        return listing()

    @app.post("/v1/load_lora_adapter")
    async def load_lora_adapter(body: protocol.LoadAdapter) -> PlainTextResponse:
        """Serve an adapter of the folder under a name, as vLLM has it."""
        await load(body.lora_name, body.lora_path, body.load_inplace)
        return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' added successfully.")

    @app.post("/v1/unload_lora_adapter")
    async def unload_lora_adapter(body: protocol.UnloadAdapter) -> PlainTextResponse:
        """Stop serving a name, as vLLM has it."""
        registry.hide(body.lora_name)
        return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' removed successfully.")
