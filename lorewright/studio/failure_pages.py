"""Three failures, made before your eyes over a sound write, and what the doctor says of each."""

from __future__ import annotations

from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from lorewright.errors import ConfigError, UnknownMemory
from lorewright.memory.failures import FAILURES, SOUND, name_of
from lorewright.studio import charts, records
from lorewright.studio.app import Studio


class FailurePages:
    """Handlers of /doctor and /failure."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio

    async def failures(self, request: Request) -> Response:
        """What can be examined, and what can be made to fail."""
        names = await run_in_threadpool(lambda: sorted(self.studio.folder.names))
        listed = [
            {
                "name": key,
                "about": each.about,
                "options": each.options,
                "made": name_of(key) in names,
            }
            for key, each in FAILURES.items()
        ]
        record = {"names": names[: records.PAGE_ROWS], "failures": listed}
        return self.studio.answer(request, "doctor", record)

    def record(self, name: str) -> dict[str, Any]:
        """A failure as it is made, over the sound write, and whether its memory is there."""
        if name not in FAILURES:
            raise UnknownMemory(f"there is no failure {name!r}; take one of {', '.join(FAILURES)}.")
        folder, order = self.studio.folder, self.studio.worker.last("fail")
        about = None
        if order is not None and order.arguments["failure"] == name and order.state != "done":
            about = {key: getattr(order, key) for key in ("state", "step", "error")}
        runs = {which: records.run_of(folder, name_of(which)) for which in (SOUND, name)}
        written = {
            which: records.write_run(folder, run) if run else None for which, run in runs.items()
        }
        sound = written[SOUND]
        return {
            "failure": name,
            "memory": name_of(name),
            "about": FAILURES[name].about,
            "options": FAILURES[name].options,
            "order": about,
            "written": written[name],
            "sound": [] if sound is None or name == SOUND else sound["epochs"],
            "there": name_of(name) in folder.names and about is None,
        }

    async def failure(self, request: Request) -> Response:
        """One of them."""
        record = await run_in_threadpool(self.record, request.path_params["name"])
        return self.studio.answer(request, "failure", record)

    async def failure_events(self, request: Request) -> Response:
        """One of them as it goes on."""
        name = request.path_params["name"]
        await run_in_threadpool(self.record, name)

        def fragments() -> dict[str, str]:
            record = self.record(name)
            epochs = record["written"]["epochs"] if record["written"] else []
            step = record["order"]["step"] if record["order"] else ""
            return {
                "failing": self.studio.render("_failure.html", **record),
                "verdict": self.studio.render("_failure_verdict.html", **record),
                "spoken": f"{step} {charts.learning_sentence(epochs)}".strip(),
            }

        return self.studio.events(fragments, lambda: self.studio.worker.busy)

    async def start(self, request: Request) -> Response:
        """Order one; first the sound write, where it is not there."""
        await self.studio.form(request)
        name = request.path_params["name"]
        await run_in_threadpool(self.record, name)
        last = self.studio.worker.last("fail")
        if last is not None and last.state in ("waiting", "running"):
            raise ConfigError(
                f"{last.arguments['failure']!r} is being made; wait until it is done."
            )
        if name != SOUND and SOUND not in self.studio.folder.names:
            self.studio.worker.submit("fail", failure=SOUND)
        self.studio.worker.submit("fail", failure=name)
        return RedirectResponse(f"/failure/{name}", 303)
