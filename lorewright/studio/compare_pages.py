"""The page that compares: memories as points, what papers claim, and a button that measures one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from lorewright.errors import ConfigError
from lorewright.files import slug
from lorewright.memory.costs import costs
from lorewright.memory.folder import readable
from lorewright.studio.app import Studio, number

METHODS = ("gradient", "full", "in-place", "prompt", "prefix", "ia3", "bottleneck")
"""Ways of writing that the page offers; all that leave a state which a folder holds."""
RECORD = "summary.json"


class ComparePages:
    """Handlers of /compare and below it."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio

    def record(self, small: float) -> dict[str, Any]:
        """All points, what can be measured beside them, and a benchmark's table if there is one."""
        warm = self.studio.worker.last("warm")
        n_base = None
        if warm is not None and warm.state == "done":
            n_base = warm.future.result().get("n_base")
        compared = costs(self.studio.folder, small=small, n_base=n_base).to_json()
        names = [p["memory"] for p in compared["points"] if p["source"]]
        bench = methods_record(self.studio.config.records)
        return {**compared, "sources": sorted(names), "methods": METHODS, "bench": bench}

    async def compare(self, request: Request) -> Response:
        """The points, best first."""
        small = number("small", request.query_params.get("small", "0"))
        record = await run_in_threadpool(self.record, small)
        return self.studio.answer(request, "compare", record)

    async def measure(self, request: Request) -> Response:
        """Write a memory's source by another method, and show the points with the new one."""
        form = await self.studio.form(request)
        source, method = form.get("source", ""), form.get("method", "")
        if method not in METHODS:
            raise ConfigError(f"method {method!r} is unknown; use one of {', '.join(METHODS)}.")
        if not self.studio.folder.entry(source).get("source"):
            raise ConfigError(
                f"{source!r} came without a source; choose one that was written here."
            )
        name = slug(form.get("name") or f"{source}-{method}")
        if name in self.studio.folder.names:
            raise ConfigError(f"{name!r} is measured already; forget it first, or give a name.")
        order = self.studio.worker.submit("measure", source=source, method=method, name=name)
        await self.studio.done(order)
        record = await run_in_threadpool(self.record, 0.0)
        return self.studio.answer(request, "compare", record | {"new": name})


def methods_record(records: str) -> dict[str, Any] | None:
    """The summary of `lore bench methods` in a folder of records; None where there is none."""
    if not records:
        return None
    place = Path(records)
    for path in sorted({*place.glob(RECORD), *place.glob(f"*/{RECORD}")}):
        summary = readable(path)
        if summary.get("bench") == "methods":
            keys = ("command", "entries", "base")
            return {key: summary.get(key) for key in keys}
    return None
