"""The studio's pages and their addresses: a record, drawn by a template, or as it is.

    /                    memories          /memory/NAME          verdict
    /write               write live        /memory/NAME/doctor   why it fails
    /ask                 side by side      /budget               does it fit?
    /sandbox             what if?          /memory/NAME/ranks    what is a rank?
    /merge               does one hold both?
    /law                 which rank?       /compare              which method?
    /doctor              three failures    /failure/NAME         one of them, made

PAGE.json is the record itself.

What changes is drawn here too and sent to the page as it changes, as server-sent events: pieces of
HTML by the id of the element that they fill. So a reload, a second page and a server that was
started anew show the same, and a page without scripts is whole.
"""

from __future__ import annotations

import asyncio
import json
import math
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import (
    FileResponse,
    HTMLResponse,
    JSONResponse,
    RedirectResponse,
    Response,
    StreamingResponse,
)

from lorewright.errors import ConfigError, Locked, LorewrightError, UnknownMemory
from lorewright.files import slug
from lorewright.law.budget import METHODS, REFERENCE
from lorewright.memory.experiments import EXPERIMENTS
from lorewright.memory.folder import Folder
from lorewright.memory.snapshot import take
from lorewright.memory.stop import stop
from lorewright.models.catalogue import POCKET
from lorewright.studio import bench_charts, charts, law_charts, records
from lorewright.studio.config import StudioConfig
from lorewright.studio.sources import HANDBOOK, SUFFIXES, THREE, WORKED
from lorewright.studio.worker import Order, Worker
from lorewright.training.config import PRESETS

HERE = Path(__file__).parent
BUSY_SECONDS, IDLE_SECONDS = 0.25, 1.0
"""Between two looks at the files while something goes on, and while nothing does."""
LEAST_SECONDS = 0.2
"""Between two looks at least, however much happens here."""
OBJECTIVES = ("sft", "memft_threshold", "memft_window", "distill")
TARGETS = ("all-linear", "attention", "mlp")
MERGES = ("auto", "cat", "mean", "task_arithmetic", "ties", "tsv", "dare_ties", "rewrite")
"""Ways to merge that the page offers; `lore merge` knows more."""
MOST_ARROWS = 6
"""Memories in one plane."""
SKETCH = "0.9,0.25 -0.2,0.8 -0.55,-0.6"
"""Vectors that a sketch begins with."""
MOST_PROBES = 100
"""Probes on one page."""

Handler = Callable[[Request], Awaitable[Response]]
Fragments = Callable[[], dict[str, str]]


class Studio:
    """A folder, its worker and the pages on them."""

    def __init__(self, folder: Folder, worker: Worker, config: StudioConfig) -> None:
        self.folder, self.worker, self.config = folder, worker, config
        self.pages = Environment(
            loader=FileSystemLoader(HERE / "templates"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self.pages.globals |= {
            "learning_chart": charts.learning_chart,
            "interval_chart": charts.interval_chart,
            "token_strip": charts.token_strip,
            "bar_chart": charts.bar_chart,
            "ranks_chart": charts.ranks_chart,
            "arms_axes": charts.arms_axes,
            "arm_chart": charts.arm_chart,
            "learning_sentence": charts.learning_sentence,
            "families_chart": law_charts.families_chart,
            "plane_chart": law_charts.plane_chart,
            "predicted_chart": law_charts.predicted_chart,
            "prediction_chart": law_charts.prediction_chart,
            "heat_chart": law_charts.heat_chart,
            "tokens_chart": law_charts.tokens_chart,
            "failures_chart": law_charts.failures_chart,
            "points_chart": bench_charts.points_chart,
            "timeline": bench_charts.timeline,
            "arrows": bench_charts.arrows,
            "matrix": bench_charts.matrix,
            "sketch_arrows": bench_charts.sketch_arrows,
            "read_only": config.read_only,
            "most_bytes": config.max_upload_bytes,
            "folder_name": folder.path.name or str(folder.path),
        }
        self.pages.filters |= {
            "mean": _mean,
            "estimate": _estimate,
            "bytes": _bytes,
            "query": urlencode,
        }

    # -- how an answer leaves --------------------------------------------------------------------

    def render(self, template: str, **values: Any) -> str:
        """A template filled in."""
        return self.pages.get_template(template).render(**values)

    def answer(self, request: Request, page: str, record: Mapping[str, Any]) -> Response:
        """A record as the request wants it: as JSON, as a piece of a page, or as a page."""
        if request.url.path.endswith(".json"):
            return JSONResponse(record)
        template = f"_{page}.html" if request.headers.get("x-fragment") else f"{page}.html"
        return HTMLResponse(self.render(template, page=page, **record))

    def fail(self, request: Request, error: Exception) -> Response:
        """A failure in the library's own sentence."""
        status = 500
        if isinstance(error, HTTPException):
            status, text = error.status_code, f"{error.detail}."
        else:
            text = " ".join(str(error).split())
            if isinstance(error, UnknownMemory):
                status = 404
            elif isinstance(error, LorewrightError):
                status = 409 if isinstance(error, Locked) else 400
        kind, path = type(error).__name__, request.url.path
        back = path if request.method == "GET" else _sent_from(request)
        if path.endswith(".json"):
            return JSONResponse({"error": {"kind": kind, "message": text}}, status)
        template = "_error.html" if request.headers.get("x-fragment") else "error.html"
        html = self.render(
            template, page="error", kind=kind, message=text, back=back, retried=back == path
        )
        return HTMLResponse(html, status)

    async def done(self, order: Order) -> dict[str, Any]:
        """An order's record once it is done. Raises OrderFailed."""
        return await asyncio.wrap_future(order.future)

    # -- memories --------------------------------------------------------------------------------

    def memories_record(self, query: Mapping[str, str]) -> dict[str, Any]:
        """The list, what goes on, and what is offered to a folder without memories."""
        page = query.get("page", "1")
        record = records.memories(
            self.folder,
            query=query.get("q", "")[:200],
            sort=query.get("sort", "name"),
            page=int(page) if page.isascii() and page.isdigit() else 1,
        )
        offered = {"name": HANDBOOK.name, "about": HANDBOOK.about, "text": HANDBOOK.text}
        return record | {"offered": None if record["n"] else offered}

    async def memories(self, request: Request) -> Response:
        """The list of memories."""
        record = await run_in_threadpool(self.memories_record, dict(request.query_params))
        return self.answer(request, "memories", record)

    async def contradictions(self, request: Request) -> Response:
        """Where memories disagree."""
        from lorewright.memory.contradictions import contradictions_in  # slow to import

        listed = await run_in_threadpool(contradictions_in, self.folder)
        shown = [each.to_json() for each in listed[:MOST_PROBES]]
        record = {"contradictions": shown, "n": len(listed)}
        return self.answer(request, "contradictions", record)

    async def memories_events(self, request: Request) -> Response:
        """The list as it changes."""
        query = dict(request.query_params)

        def fragments() -> dict[str, str]:
            return {"list": self.render("_memories.html", **self.memories_record(query))}

        return self.events(fragments)

    # -- a write ---------------------------------------------------------------------------------

    def write_record(self, run: str = "") -> dict[str, Any]:
        """A write: the one that is named, the one that goes on, or the latest."""
        order = self.worker.last("write", "resume")
        active = order is not None and order.state in ("waiting", "running")
        if not run:
            current = records.name_of_current(self.folder)
            run = current if active else records.latest_run(self.folder)
        written = records.write_run(self.folder, run) if run else None
        about = None
        if order is not None and (active or order.state == "failed"):
            keys = ("verb", "state", "step", "error")
            about = {key: getattr(order, key) for key in keys}
            about["name"] = str(order.arguments["name"])
        warm, base = self.worker.last("warm"), None
        if warm is not None and warm.state != "done":
            base = {key: getattr(warm, key) for key in ("state", "error")}
        unfinished = [] if active else records.unfinished(self.folder)
        others = [each for each in unfinished if each["run"] != run]
        return {"order": about, "written": written, "unfinished": others, "base": base}

    async def write(self, request: Request) -> Response:
        """The form, and the write that goes on or was the latest."""
        run = request.path_params.get("run", "")
        record = await run_in_threadpool(self.write_record, run)
        form = {
            "presets": [*PRESETS],
            "objectives": OBJECTIVES,
            "targets": TARGETS,
            "suffixes": SUFFIXES,
            "worked": [{"name": each.name, "about": each.about} for each in WORKED.values()],
            "into": str(self.folder.path),
        }
        return self.answer(request, "write", record | {"form": form, "run": run})

    async def write_events(self, request: Request) -> Response:
        """A write as it goes on."""
        run = request.path_params.get("run", "")

        drawn: dict[str, str] = {}
        of: tuple[Any, ...] = ()

        def fragments() -> dict[str, str]:
            nonlocal drawn, of
            record = self.write_record(run)
            written = record["written"] or {"run": "", "epochs": [], "part": None}
            epochs, part = written["epochs"], written["part"]
            now = (written["run"], len(epochs), part)
            parts = ["state", "controls", "unfinished"]
            if now != of:  # curves are drawn when there is another point, not at every look
                parts += ["chart", "points"]
            of = now
            drawn = drawn | {part: self.render(f"_write_{part}.html", **record) for part in parts}
            step = record["order"]["step"] if record["order"] else ""
            spoken = f"{step} {charts.learning_sentence(epochs, part)}"
            return drawn | {"spoken": spoken.strip()}

        def busy() -> bool:
            return self.worker.busy or bool(records.name_of_current(self.folder))

        return self.events(fragments, busy)

    async def resume_write(self, request: Request) -> Response:
        """Have a write go on that was cut off or stopped."""
        form = await self.form(request)
        listed = await run_in_threadpool(records.unfinished, self.folder)
        chosen = [each for each in listed if each["run"] == form.get("run", "")]
        if not chosen:
            raise ConfigError("there is no such write to go on with; write the same text again.")
        order = self.worker.last("write", "resume")
        if order is not None and order.state in ("waiting", "running"):
            raise ConfigError(f"{order.arguments['name']!r} is being written; wait until it is.")
        self.worker.submit("resume", run=chosen[0]["run"], name=chosen[0]["memory"])
        return RedirectResponse("/write", 303)

    async def snapshot(self, request: Request) -> Response:
        """The folder in one file, as `lore snapshot` packs it."""
        place = Path(tempfile.mkdtemp(prefix="lorewright-"))
        path = place / f"{self.folder.path.name or 'atlas'}.tar.gz"
        try:
            await run_in_threadpool(take, self.folder.path, path)
        except BaseException:
            shutil.rmtree(place, ignore_errors=True)
            raise
        return FileResponse(
            path,
            filename=path.name,
            media_type="application/gzip",
            background=BackgroundTask(shutil.rmtree, place, ignore_errors=True),
        )

    async def start_write(self, request: Request) -> Response:
        """Order a write."""
        form = await self.form(request)
        arguments, last = write_arguments(form), self.worker.last("write")
        again = last is not None and last.state in ("waiting", "running")
        if last is None or not again or last.arguments != arguments:  # a click that came twice
            self.worker.submit("write", **arguments)
        return RedirectResponse("/write", 303)

    async def stop_write(self, request: Request) -> Response:
        """Have the write that goes on end after its epoch."""
        await self.form(request)
        await run_in_threadpool(stop, self.folder)
        return RedirectResponse("/write", 303)

    # -- a memory --------------------------------------------------------------------------------

    async def memory(self, request: Request) -> Response:
        """A memory's verdict."""
        query = request.query_params
        record = await run_in_threadpool(
            records.verdict,
            self.folder,
            request.path_params["name"],
            kind=query.get("kind", ""),
            failed=query.get("failed", "") == "1",
        )
        n_more = max(0, len(record["probes"]) - MOST_PROBES)
        shown = record | {"probes": record["probes"][:MOST_PROBES], "n_more": n_more}
        return self.answer(request, "memory", shown)

    async def trace(self, request: Request) -> Response:
        """An answer of a memory, token by token."""
        query = request.query_params
        order = self.worker.submit(
            "trace",
            name=self.name_in(request),
            question=query.get("question", ""),
            answer=query.get("answer", ""),
        )
        record = await self.done(order)
        return self.answer(request, "trace", record | {"number": order.number})

    async def verify(self, request: Request) -> Response:
        """A memory's verdict, taken again."""
        await self.form(request)
        name = self.name_in(request)
        record = await self.done(self.worker.submit("verify", name=name))
        return self.answer(request, "verified", {"memory": name, "report": record})

    async def rename(self, request: Request) -> Response:
        """Give a memory another name."""
        form, name = await self.form(request), self.name_in(request)
        new = slug(str(form.get("name", "")))
        await run_in_threadpool(self.folder.rename, name, new)
        return RedirectResponse(f"/memory/{new}", 303)

    async def forget(self, request: Request) -> Response:
        """Remove a memory whose name was typed."""
        form, name = await self.form(request), self.name_in(request)
        if form.get("typed") != name:
            raise ConfigError(f"forgetting cannot be undone; type the name, {name}, to confirm.")
        record = await self.done(self.worker.submit("forget", name=name))
        return self.answer(request, "forgotten", {"memory": name, "forgotten": record})

    def name_in(self, request: Request) -> str:
        """The memory that an address names. Raises UnknownMemory."""
        name = str(request.path_params["name"])
        self.folder.entry(name)
        return name

    # -- ask, diagnose ---------------------------------------------------------------------------

    async def ask(self, request: Request) -> Response:
        """A question, and who answers it."""
        query = request.query_params
        question = query.get("question", "").strip()
        names = await run_in_threadpool(lambda: sorted(self.folder.names))
        record: dict[str, Any] = {
            "question": question,
            "memory": query.get("memory", ""),
            "false_activation": query.get("false_activation", "0.05"),
            "names": names[: records.PAGE_ROWS],
            "suggested": _suggested(names),
            "sides": None,
        }
        wanted = request.headers.get("x-fragment") or request.url.path.endswith(".json")
        if question and (wanted or query.get("wait")):
            order = self.worker.submit(
                "ask",
                question=question,
                memory=record["memory"],
                false_activation=number("share", record["false_activation"]),
            )
            record["sides"] = await self.done(order)
        return self.answer(request, "ask", record)

    async def doctor(self, request: Request) -> Response:
        """Why a memory does not recall."""
        record: dict[str, Any] = {"memory": self.name_in(request), "diagnosis": None}
        wanted = request.headers.get("x-fragment") or request.url.path.endswith(".json")
        if wanted or request.query_params.get("wait"):
            order = self.worker.submit("doctor", name=record["memory"])
            record["diagnosis"] = await self.done(order)
        return self.answer(request, "examined", record)

    async def mend(self, request: Request) -> Response:
        """Run the command that mends a memory, and examine it again."""
        await self.form(request)
        order = self.worker.submit("mend", name=self.name_in(request))
        return self.answer(request, "mended", {"mended": await self.done(order)})

    async def budget(self, request: Request) -> Response:
        """What training a base takes; counted when the form was sent."""
        query = request.query_params
        own = self.folder.index()["base"]["id"] if self.folder.started else POCKET
        bases = list(dict.fromkeys((own, POCKET, REFERENCE)))
        record: dict[str, Any] = {
            "bases": bases,
            "methods": METHODS,
            "targets_known": TARGETS,
            "base": query.get("base", REFERENCE),
            "config": query.get("config", ""),
            "method": query.get("method", "qlora"),
            "rank": whole("rank", query.get("rank", "64")),
            "tokens": whole("tokens", query.get("tokens", "2048"), most=10**9),
            "targets": query.get("targets", "all-linear"),
            "checkpointing": query.get("checkpointing", "" if "base" in query else "1"),
            "float32": query.get("float32", ""),
            "account": None,
        }
        if record["base"] not in bases:
            raise ConfigError(
                f"the page knows {', '.join(bases)}; paste another base's config.json, or use "
                "lore budget."
            )
        wanted = request.headers.get("x-fragment") or request.url.path.endswith(".json")
        if wanted or query.get("wait"):
            keys = ("base", "config", "method", "rank", "tokens", "targets", "checkpointing")
            chosen = {key: record[key] for key in (*keys, "float32")}
            record["account"] = await self.done(self.worker.submit("count", **chosen))
        return self.answer(request, "budget", record)

    async def ranks(self, request: Request) -> Response:
        """A memory cut to smaller ranks."""
        record: dict[str, Any] = {"memory": self.name_in(request), "cut": None}
        wanted = request.headers.get("x-fragment") or request.url.path.endswith(".json")
        if wanted or request.query_params.get("wait"):
            record["cut"] = await self.done(self.worker.submit("ranks", name=record["memory"]))
        return self.answer(request, "ranks", record)

    async def layer(self, request: Request) -> Response:
        """One layer of a memory by hand."""
        query, rank = request.query_params, request.query_params.get("rank", "")
        order = self.worker.submit(
            "layer",
            name=self.name_in(request),
            module=query.get("module", ""),
            rank=whole("rank", rank) if rank else 0,
        )
        return self.answer(request, "layer", {"layer": await self.done(order)})

    # -- merging ---------------------------------------------------------------------------------

    async def merge(self, request: Request) -> Response:
        """What can be merged, and how."""
        listed = await run_in_threadpool(lambda: sorted(self.folder.names))
        shown = listed[: records.PAGE_ROWS]
        order = self.worker.last("three")
        three = [name for name in THREE if name in listed]
        about = None
        if order is not None and order.state in ("waiting", "running", "failed"):
            about = {key: getattr(order, key) for key in ("state", "step", "error")}
        record = {
            "names": shown,
            "taken": three if len(three) == len(THREE) else shown[:3],
            "n_more": len(listed) - len(shown),
            "methods": MERGES,
            "three": about,
        }
        return self.answer(request, "merge", record)

    async def merge_events(self, request: Request) -> Response:
        """Whether the three are being written."""

        def fragments() -> dict[str, str]:
            order = self.worker.last("three")
            step = order.step if order is not None and order.state != "done" else ""
            done = order is not None and order.state == "done"
            html = self.render("_three.html", step=step, done=done)
            return {"three": html, "spoken": step}

        return self.events(fragments, lambda: self.worker.busy)

    async def start_three(self, request: Request) -> Response:
        """Write three short texts, to be merged."""
        await self.form(request)
        self.worker.submit("three")
        return RedirectResponse("/merge", 303)

    async def plane(self, request: Request) -> Response:
        """Memories as arrows in their plane, and where merges of them are."""
        names = [name for name in request.query_params.get("names", "").split(",") if name]
        for name in names:
            self.folder.entry(name)
        if not 2 <= len(names) <= MOST_ARROWS:
            raise ConfigError(
                f"{len(names)} memories were chosen; a plane is drawn of 2 to {MOST_ARROWS}."
            )
        weights = numbers(request.query_params.get("weights", ""), len(names))
        record = await self.done(self.worker.submit("plane", names=names, weights=weights))
        return self.answer(request, "plane", {"plane": record})

    async def sketch(self, request: Request) -> Response:
        """Free vectors, merged by the same algebra."""
        query = request.query_params
        vectors = [numbers(each, 2) for each in query.get("vectors", SKETCH).split(" ") if each]
        if not 2 <= len(vectors) <= MOST_ARROWS:
            raise ConfigError(f"{len(vectors)} vectors were given; give 2 to {MOST_ARROWS}.")
        weights = numbers(query.get("weights", ""), len(vectors))
        order = self.worker.submit("sketch", vectors=vectors, weights=weights)
        return self.answer(request, "sketch", {"sketch": await self.done(order)})

    async def start_merge(self, request: Request) -> Response:
        """Merge memories into a new one, and show what that cost each of them."""
        form = await self.form(request)
        names = [name for name in sorted(self.folder.names) if form.get(f"take {name}")]
        if len(names) < 2:
            raise ConfigError(f"{len(names)} memories were chosen; choose two at least.")
        rank = form.get("rank", "").strip()
        order = self.worker.submit(
            "merge",
            names=names,
            weights=[number("weight", form.get(f"weight {name}", "1")) for name in names],
            method=form.get("method", "auto"),
            into=form.get("into", ""),
            rank=whole("rank", rank) if rank else None,
        )
        return self.answer(request, "merged", {"merged": await self.done(order)})

    # -- experiments -----------------------------------------------------------------------------

    def sandbox_record(self, name: str) -> dict[str, Any]:
        """An experiment, and whether it is being run here."""
        order = self.worker.last("sandbox")
        about = None
        if order is not None and order.arguments["name"] == name and order.state != "done":
            about = {key: getattr(order, key) for key in ("state", "step", "error")}
        return records.sandbox(name) | {"order": about}

    async def sandbox(self, request: Request) -> Response:
        """The experiments that there are, or one of them."""
        name = request.path_params.get("name", "")
        listed = [
            {"name": key, "question": each.question, "expected": each.expected}
            for key, each in EXPERIMENTS.items()
        ]
        chosen = await run_in_threadpool(self.sandbox_record, name) if name else None
        return self.answer(request, "sandbox", {"experiments": listed, "chosen": chosen})

    async def start_sandbox(self, request: Request) -> Response:
        """Order an experiment."""
        await self.form(request)
        name = request.path_params["name"]
        await run_in_threadpool(records.sandbox, name)
        self.worker.submit("sandbox", name=name)
        return RedirectResponse(f"/sandbox/{name}", 303)

    async def sandbox_events(self, request: Request) -> Response:
        """An experiment as it goes on."""
        name = request.path_params["name"]
        await run_in_threadpool(records.sandbox, name)

        def fragments() -> dict[str, str]:
            chosen = self.sandbox_record(name)
            step = chosen["order"]["step"] if chosen["order"] else chosen["sentence"]
            return {"arms": self.render("_sandbox.html", chosen=chosen), "spoken": step}

        return self.events(fragments, lambda: self.worker.busy)

    # -- forms and events ------------------------------------------------------------------------

    async def form(self, request: Request) -> dict[str, str]:
        """The fields of a form that changes something. Raises ConfigError where nothing may."""
        if self.config.read_only:
            raise ConfigError("this studio was opened with --read-only; it changes nothing.")
        most, body, n = self.config.max_upload_bytes, bytearray(), 0
        async for part in request.stream():
            n += len(part)
            if n <= 4 * most:  # a byte of text may take three, as %xx; the rest is not held
                body += part
        fields = dict(parse_qsl(body.decode("utf-8", "replace"), keep_blank_values=True))
        if n > 4 * most or any(len(text.encode()) > most for text in fields.values()):
            raise ConfigError(f"the text has more than {most:,} bytes; use lore write.")
        return fields

    def events(self, fragments: Fragments, busy: Callable[[], bool] | None = None) -> Response:
        """The fragments that have changed: with `busy`, as soon as the worker is further."""

        async def stream() -> AsyncIterator[bytes]:
            shown: dict[str, str] = {}
            with self.worker.heard() as changes:
                while True:
                    changes.clear()
                    try:
                        drawn = await run_in_threadpool(fragments) | {"trouble": ""}
                    except LorewrightError as error:  # the folder was removed, or a file of it
                        trouble = self.render("_error.html", message=" ".join(str(error).split()))
                        drawn = shown | {"trouble": trouble}
                    changed = {key: html for key, html in drawn.items() if shown.get(key) != html}
                    if changed or not shown:
                        yield f"data: {json.dumps(changed)}\n\n".encode()
                    else:
                        yield b": \n\n"  # so that a page that has gone is noticed
                    shown = drawn
                    if busy is None:
                        await asyncio.sleep(IDLE_SECONDS)
                        continue
                    await asyncio.sleep(LEAST_SECONDS)
                    longest = BUSY_SECONDS if busy() else IDLE_SECONDS
                    with suppress(TimeoutError):
                        await asyncio.wait_for(changes.wait(), longest - LEAST_SECONDS)

        return StreamingResponse(stream(), media_type="text/event-stream")


def write_arguments(form: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `verbs.write` from a form. Raises ConfigError for what cannot be."""
    example, text = str(form.get("example", "")), str(form.get("text", ""))
    suffix = str(form.get("suffix") or ".md")
    name = str(form.get("name", ""))
    if example:
        if example not in WORKED:
            raise ConfigError(f"there is no example {example!r}; take one of {', '.join(WORKED)}.")
        worked = WORKED[example]
        text, suffix, name = worked.text, worked.suffix, name or worked.name
    if not text.strip():
        raise ConfigError("there is no text to write; paste one, open a file, or take an example.")
    if "\0" in text:
        raise ConfigError("the text holds NUL characters, as files do that are no text.")
    if not name.strip():
        raise ConfigError("a memory needs a name; give it one.")
    rank, epochs = str(form.get("rank", "")).strip(), str(form.get("epochs", "60")).strip()
    for what, given in (("rank", rank or "1"), ("epochs", epochs)):
        whole(what, given)
    chosen = {
        "preset": (str(form.get("preset", "exact")), tuple(PRESETS)),
        "objective": (str(form.get("objective", "sft")), OBJECTIVES),
        "targets": (str(form.get("targets", "all-linear")), TARGETS),
    }
    for what, (given, known) in chosen.items():
        if given not in known:
            raise ConfigError(f"{what} {given!r} is unknown; use one of {', '.join(known)}.")
    return {
        "name": slug(name),
        "text": text,
        "suffix": suffix,
        "rank": rank,
        "epochs": epochs,
        "targets": [chosen["targets"][0]],
        "preset": chosen["preset"][0],
        "objective": chosen["objective"][0],
    }


def _sent_from(request: Request) -> str:
    """The page from which a form was sent: its address here, without the host."""
    sent = urlsplit(request.headers.get("referer", ""))
    return f"{sent.path}?{sent.query}" if sent.query else sent.path or "/"


def whole(what: str, given: str, most: int = 4096) -> int:
    """A whole number of a form. Raises ConfigError for anything else."""
    if not (given.isascii() and given.isdigit() and 0 < int(given[:12]) <= most):
        raise ConfigError(f"{what} is {given!r}; give a whole number from 1 to {most:,}.")
    return int(given)


def numbers(text: str, n: int) -> list[float] | None:
    """Numbers with commas between, or nothing. Raises ConfigError for others than n of them."""
    if not text:
        return None
    try:
        listed = [float(each) for each in text.split(",")]
    except ValueError:
        listed = []
    if len(listed) != n or not all(map(math.isfinite, listed)):
        raise ConfigError(f"{text!r} was given; give {n} numbers with commas between.")
    return listed


def _suggested(names: list[str]) -> list[str]:
    """Questions to click on, where a worked example was written."""
    return [question for name in names if name in WORKED for question in WORKED[name].questions]


def number(what: str, text: str) -> float:
    """A number of a form. Raises ConfigError for anything else."""
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"{what} is {text!r}; give a number such as 0.5.") from None


def _estimate(row: Mapping[str, Any] | None) -> str:
    """Mean, interval and n; a dash for what was not run."""
    if row is None or row.get("recall") is None:
        return "–"
    return f"{row['recall']:.2f} [{row['low']:.2f}, {row['high']:.2f}] n={row['n']}"


def _mean(row: Mapping[str, Any] | None) -> str:
    """The same of a record of a benchmark, which calls it a mean."""
    if row is None or row.get("mean") is None:
        return "–"
    low, high = row.get("low"), row.get("high")
    around = "" if low is None or high is None else f" [{low:.2f}, {high:.2f}]"
    return f"{row['mean']:.2f}{around} n={row['n']}"


def _bytes(number: int | None) -> str:
    return "–" if number is None else f"{number / 1e6:.2f} MB"
