"""The server's paths: OpenAI's, health and metrics, and an administrator's.

    gate ─▶ path ─▶ roster: who answers ─▶ answerer: Local or Upstream ─▶ one object, or events

This room knows FastAPI and what each path does. Whoever answers is passed in.
"""

# Without `from __future__ import annotations`: FastAPI reads the annotations of functions that are
# defined inside functions, where names in strings could not be found.

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from lorewright import __version__
from lorewright.errors import LorewrightError
from lorewright.serve.gate import App, Doors, Gate
from lorewright.serve.meters import Meters
from lorewright.serve.reply import DONE, event
from lorewright.serve.roster import AUTO, Roster, Target
from lorewright.serve.wire import Asked, ChatAsked, Refused, TextAsked, refusal_of

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.requests import Request

CLIENT_LEFT = 499
"""Status, as web servers have it, of an answer that nobody waits for any more."""

Found = TypeVar("Found")


class Answerer(Protocol):
    """Whoever makes the replies."""

    async def start(self) -> None:
        """Begin to take requests."""

    async def stop(self) -> None:
        """Finish what was begun."""

    def ready(self) -> str:
        """Return why no request can be answered now; empty when one can."""

    def gauges(self) -> dict[str, float]:
        """Return numbers for /metrics."""

    async def prove(self, identity: str) -> None:
        """Make sure that an adapter can be served. Raises a LorewrightError otherwise."""

    async def whole(self, asked: Asked, target: Target) -> dict[str, Any]:
        """Return a reply in one piece."""

    def stream(self, asked: Asked, target: Target) -> AsyncIterator[dict[str, Any]]:
        """Yield a reply part by part."""


@dataclass(frozen=True)
class NamedAdapter:
    """A memory to be served: its name, and a content id or a path inside the folder."""

    name: str
    adapter: str


@dataclass(frozen=True)
class LoadAsked:
    """The body of vLLM's /v1/load_lora_adapter."""

    lora_name: str
    lora_path: str


@dataclass(frozen=True)
class UnloadAsked:
    """The body of vLLM's /v1/unload_lora_adapter."""

    lora_name: str


def build(
    roster: Roster, answerer: Answerer, doors: Doors, meters: Meters, *, admin: bool = False
) -> App:
    """Return the ASGI application, gate included; `admin` adds the administrator's paths."""
    from fastapi import FastAPI

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await answerer.start()
        try:
            yield
        finally:
            await answerer.stop()

    # no pages that fetch scripts from elsewhere: everything works without a network
    app = FastAPI(
        title="Lorewright", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None
    )
    meters.watch(answerer.gauges)
    _add_refusals(app)
    _add_health(app, roster, answerer, meters)
    _add_models(app, roster)
    _add_completions(app, roster, answerer, meters)
    if admin:
        _add_admin(app, roster, answerer)
    return Gate(app, doors, meters)


def _add_refusals(app: "FastAPI") -> None:
    """Every refusal leaves as an error object in OpenAI's shape."""
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse
    from starlette.exceptions import HTTPException

    def said(refused: Refused) -> JSONResponse:
        return JSONResponse(refused.to_json(), refused.status, refused.headers)

    async def of_ours(_: Any, error: Any) -> JSONResponse:
        return said(refusal_of(error))

    async def of_validation(_: Any, error: Any) -> JSONResponse:
        first = error.errors()[0]
        cause = first.get("ctx", {}).get("error")
        where = ".".join(str(part) for part in first["loc"] if part != "body")
        message = str(cause) if isinstance(cause, LorewrightError) else f"{where}: {first['msg']}."
        param = vars(cause).get("param", where) if isinstance(cause, Exception) else where
        return said(Refused(400, message.lstrip(": "), code=None, param=param or None))

    async def of_routing(_: Any, error: Any) -> JSONResponse:
        return said(Refused(error.status_code, f"{error.detail}."))

    async def of_anything(_: Any, __: Any) -> JSONResponse:  # the traceback goes to the log
        return said(Refused(500, "something went wrong here; the server's log says what."))

    app.add_exception_handler(LorewrightError, of_ours)
    app.add_exception_handler(RequestValidationError, of_validation)
    app.add_exception_handler(HTTPException, of_routing)
    app.add_exception_handler(Exception, of_anything)


def _add_health(app: "FastAPI", roster: Roster, answerer: Answerer, meters: Meters) -> None:
    from fastapi.responses import JSONResponse
    from starlette.responses import Response

    @app.get("/health")
    async def health() -> dict[str, Any]:
        """Say that the process lives, and what is wrong with the folder if anything is."""
        return {"status": "ok", "version": __version__, "trouble": roster.trouble}

    @app.get("/ready")
    async def ready() -> JSONResponse:
        """Say whether requests can be answered."""
        why = answerer.ready()
        said = {"status": "not ready" if why else "ready", "why": why}
        return JSONResponse(said | {"memories": len(roster.names)}, 503 if why else 200)

    @app.get("/metrics")
    async def metrics() -> Response:
        """Everything that is counted, for Prometheus."""
        return Response(meters.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _add_models(app: "FastAPI", roster: Roster) -> None:
    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        """List the base, `auto`, and every memory."""
        return {"object": "list", "data": roster.listing()}

    @app.get("/v1/models/{model:path}")
    async def model(model: str) -> dict[str, Any]:
        """Describe one of them."""
        name = AUTO if model == AUTO else roster.target(model).name
        found = next((each for each in roster.listing() if each["id"] == name), None)
        if found is None:
            raise Refused(404, f"this server has no {name!r}.", code="model_not_found")
        return found


def _add_completions(app: "FastAPI", roster: Roster, answerer: Answerer, meters: Meters) -> None:
    from fastapi import Request
    from fastapi.responses import JSONResponse, StreamingResponse
    from starlette.responses import Response

    async def answer(http: Request, asked: Asked) -> Response:
        if asked.model == AUTO:
            target = await asyncio.to_thread(roster.routed, asked.question())
            meters.routed(found=bool(target.identity))
        else:
            target = roster.target(asked.model)
        if not asked.stream:
            return JSONResponse(await _while_there(http, answerer.whole(asked, target)))
        parts = answerer.stream(asked, target)
        # until the first part there are no headers yet: what goes wrong is a status of its own
        first = await _while_there(http, _first_of(parts))
        return StreamingResponse(
            _events(first, parts),
            media_type="text/event-stream",
            headers={"cache-control": "no-cache", "x-accel-buffering": "no"},
        )

    @app.post("/v1/chat/completions")
    async def chat(http: Request, asked: ChatAsked) -> Response:
        """Answer the last turn of a conversation."""
        return await answer(http, asked)

    @app.post("/v1/completions")
    async def completions(http: Request, asked: TextAsked) -> Response:
        """Continue plain text."""
        return await answer(http, asked)


async def _first_of(parts: AsyncIterator[dict[str, Any]]) -> dict[str, Any]:
    async for part in parts:
        return part
    raise Refused(502, "the stream ended before it began.", code="bad_engine_answer")


async def _events(first: dict[str, Any], parts: Any) -> AsyncIterator[bytes]:
    """The parts as server-sent events; what goes wrong on the way is one as well."""
    async with aclosing(parts):
        yield event(first)
        try:
            async for part in parts:
                yield event(part)
        except LorewrightError as error:
            yield event(refusal_of(error).to_json())
        yield DONE


async def _while_there(http: "Request", work: Awaitable[Found]) -> Found:
    """The work's result; it is cancelled when the client leaves."""
    doing = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_left(http))
    try:
        await asyncio.wait({doing, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if doing.done():
            return doing.result()
        raise Refused(CLIENT_LEFT, "the client left.")
    finally:
        leaving.cancel()
        if not doing.done():
            doing.cancel()
            await asyncio.wait({doing})


async def _left(http: "Request") -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass


def _add_admin(app: "FastAPI", roster: Roster, answerer: Answerer) -> None:
    from fastapi.responses import PlainTextResponse

    async def load(name: str, path: str) -> str:
        identity = roster.adapter_at(path)
        await answerer.prove(identity)
        roster.add(name, identity)
        return identity

    def listed() -> dict[str, Any]:
        return {"base": roster.base, "memories": dict(roster.names)}

    @app.get("/admin/memories")
    async def memories() -> dict[str, Any]:
        """List the names that are served and their content ids."""
        return listed()

    @app.post("/admin/memories")
    async def add(asked: NamedAdapter) -> dict[str, Any]:
        """Serve an adapter of the folder under a name, until the end or a reload."""
        await load(asked.name, asked.adapter)
        return listed()

    @app.delete("/admin/memories/{name}")
    async def remove(name: str) -> dict[str, Any]:
        """Stop serving a name, until the end or a reload; the folder keeps the memory."""
        roster.hide(name)
        return listed()

    @app.post("/admin/reload")
    async def reload() -> dict[str, Any]:
        """Read the folder again and serve what it says."""
        roster.reload()
        return listed()

    @app.post("/v1/load_lora_adapter")
    async def load_lora_adapter(asked: LoadAsked) -> PlainTextResponse:
        """Serve an adapter of the folder under a name, as vLLM has it."""
        await load(asked.lora_name, asked.lora_path)
        return PlainTextResponse(f"Success: LoRA adapter '{asked.lora_name}' added successfully.")

    @app.post("/v1/unload_lora_adapter")
    async def unload_lora_adapter(asked: UnloadAsked) -> PlainTextResponse:
        """Stop serving a name, as vLLM has it."""
        roster.hide(asked.lora_name)
        return PlainTextResponse(f"Success: LoRA adapter '{asked.lora_name}' removed successfully.")
