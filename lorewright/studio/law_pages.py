"""The law page: tables of runs, laws on them, what they predict, and plans of writes.

Laws are fitted in the server, once a table and form, so that a slider need not wait for the process
that trains; a plan needs the base and is ordered from that process.
"""

from __future__ import annotations

from urllib.parse import urlencode

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from lorewright.errors import ConfigError
from lorewright.law.curves import FORMS
from lorewright.studio import laws
from lorewright.studio.app import Studio, number, whole
from lorewright.studio.laws import Tables
from lorewright.studio.sources import SUFFIXES, three_texts


class LawPages:
    """Handlers of /law and below it."""

    def __init__(self, studio: Studio) -> None:
        self.studio, self.tables = studio, Tables()

    async def law(self, request: Request) -> Response:
        """A table, its law and its predictions; fitted when the page asks for the piece."""
        query = dict(request.query_params)
        wanted = request.headers.get("x-fragment") or request.url.path.endswith(".json")
        if wanted or query.get("wait") or await run_in_threadpool(self._ready, query):
            record = await run_in_threadpool(laws.page, self.tables, query)
        else:
            chosen = await run_in_threadpool(laws.chosen, self.tables, query)
            record = {"chosen": chosen, "tables": self.tables.names, "forms": [*FORMS]}
            record |= {"about": None, "predicted": None, "refused": ""}
        texts = {"sample": next(iter(three_texts().values())), "suffixes": SUFFIXES}
        return self.studio.answer(request, "law", record | texts)

    def _ready(self, query: dict[str, str]) -> bool:
        """Whether all laws that a page needs are fitted already."""
        chosen = laws.chosen(self.tables, query)
        above = chosen["above_rank"]
        keys = {(chosen["data"], chosen["form"], n) for n in (0, above)}
        return keys <= self.tables.fitted.keys()

    async def predict(self, request: Request) -> Response:
        """A prediction, for a slider."""
        chosen = await run_in_threadpool(laws.chosen, self.tables, dict(request.query_params))
        record = await run_in_threadpool(laws.predict_chosen, self.tables, chosen)
        return self.studio.answer(request, "predicted", {"predicted": record})

    async def own(self, request: Request) -> Response:
        """A table that was pasted."""
        form = await self.studio.form(request)
        if not form.get("csv", "").strip():
            raise ConfigError("there is no table; paste a CSV, or open one.")
        name = await run_in_threadpool(self.tables.add, form["csv"])
        return RedirectResponse(f"/law?{urlencode({'data': name})}", 303)

    async def plan(self, request: Request) -> Response:
        """The rank for a text."""
        form = await self.studio.form(request)
        if not form.get("text", "").strip():
            raise ConfigError("there is no text to plan for; paste one.")
        order = self.studio.worker.submit(
            "plan",
            text=form["text"],
            suffix=form.get("suffix") or SUFFIXES[0],
            wanted=number("wanted", form.get("wanted", "0.95")),
            epochs=whole("epochs", form.get("epochs", "60")),
        )
        return self.studio.answer(request, "plan", {"plan": await self.studio.done(order)})
