"""Which address is answered by what: every page at its own and, as data, at the same with .json."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from lorewright.errors import LorewrightError
from lorewright.memory.folder import Folder
from lorewright.studio.app import HERE, Handler, Studio
from lorewright.studio.compare_pages import ComparePages
from lorewright.studio.config import StudioConfig
from lorewright.studio.failure_pages import FailurePages
from lorewright.studio.law_pages import LawPages
from lorewright.studio.worker import Worker


def build(folder: Folder, worker: Worker, config: StudioConfig) -> Starlette:
    """The application, without its gate."""
    studio = Studio(folder, worker, config)
    law, compare, failures = LawPages(studio), ComparePages(studio), FailurePages(studio)
    routes: list[Route | Mount] = [Mount("/static", StaticFiles(directory=HERE / "static"))]
    twins: dict[str, Handler] = {
        "/write": studio.write,
        "/write/{run}": studio.write,
        "/ask": studio.ask,
        "/budget": studio.budget,
        "/merge": studio.merge,
        "/contradictions": studio.contradictions,
        "/sandbox": studio.sandbox,
        "/sandbox/{name}": studio.sandbox,
        "/memory/{name}": studio.memory,
        "/memory/{name}/trace": studio.trace,
        "/memory/{name}/doctor": studio.doctor,
        "/memory/{name}/ranks": studio.ranks,
        "/memory/{name}/layer": studio.layer,
        "/merge/plane": studio.plane,
        "/merge/sketch": studio.sketch,
        "/law": law.law,
        "/law/predict": law.predict,
        "/compare": compare.compare,
        "/doctor": failures.failures,
        "/failure/{name}": failures.failure,
    }
    gets: dict[str, Handler] = {
        "/": studio.memories,
        "/memories.json": studio.memories,
        "/memories/events": studio.memories_events,
        "/write/events": studio.write_events,
        "/sandbox/{name}/events": studio.sandbox_events,
        "/write/{run}/events": studio.write_events,
        "/merge/events": studio.merge_events,
        "/failure/{name}/events": failures.failure_events,
        "/snapshot": studio.snapshot,
    }
    posts: dict[str, Handler] = {
        "/write": studio.start_write,
        "/write/stop": studio.stop_write,
        "/write/resume": studio.resume_write,
        "/merge/three": studio.start_three,
        "/law": law.own,
        "/law/plan": law.plan,
        "/compare/measure": compare.measure,
        "/failure/{name}": failures.start,
        "/memory/{name}/mend": studio.mend,
        "/merge": studio.start_merge,
        "/sandbox/{name}": studio.start_sandbox,
        "/memory/{name}/verify": studio.verify,
        "/memory/{name}/rename": studio.rename,
        "/memory/{name}/forget": studio.forget,
    }
    routes += [Route(path, handler) for path, handler in gets.items()]
    routes += [Route(path, handler, methods=["POST"]) for path, handler in posts.items()]
    for path, handler in twins.items():
        routes += [Route(f"{path}.json", handler), Route(path, handler)]

    async def failed(request: Request, error: Exception) -> Response:
        return studio.fail(request, error)

    kinds: tuple[type[Exception], ...] = (LorewrightError, HTTPException)
    return Starlette(routes=routes, exception_handlers=dict.fromkeys(kinds, failed))
