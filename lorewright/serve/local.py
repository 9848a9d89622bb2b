"""Replies from an engine of our own: adapters found and checked, jobs submitted, text put together.

Everything here runs in the server's event loop, except the engine's thread and the reading of
adapters. Tokenizers are used in the loop only: they do not like two threads at once.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from lorewright.adapters.adapter import Adapter, content_id, load
from lorewright.errors import AdapterError, LorewrightError, StorageError
from lorewright.models.model import Model
from lorewright.serve.bank import check
from lorewright.serve.engine import Engine, Job, Piece
from lorewright.serve.meters import Meters
from lorewright.serve.reply import Delta, Reply, usage
from lorewright.serve.roster import Roster, Target
from lorewright.serve.wire import Asked, ChatAsked, Refused, TextAsked, refusal_of
from lorewright.serve.words import Speaker, budget, chat_ids, spell, text_ids

KEPT_ADAPTERS = 64
"""Adapters held in memory, in use or not, least recently used out first."""


@dataclass(frozen=True)
class Limits:
    """What one request may cost."""

    max_tokens: int = 512
    """Most tokens generated for one reply."""
    seconds: float = 120.0
    """Most time from the arrival of a request to the end of its reply."""


class Local:
    """Answers from a base and adapters in this process."""

    def __init__(
        self, roster: Roster, model: Model, engine: Engine, limits: Limits, meters: Meters
    ) -> None:
        """Put them together; the engine is started and stopped with the server."""
        self.meters = meters
        self.roster = roster
        self.model = model
        self.engine = engine
        self.limits = limits
        self._adapters: OrderedDict[str, asyncio.Task[Adapter]] = OrderedDict()
        self._version = roster.version

    # -- what a server asks of whoever answers ---------------------------------------------------

    async def start(self) -> None:
        """Start the engine."""
        self.engine.start()

    async def stop(self) -> None:
        """Finish what was begun; give the network back."""
        await asyncio.to_thread(self.engine.stop)

    def ready(self) -> str:
        """Return why no request can be answered now; empty when one can."""
        return "" if self.engine.alive else "the engine has ended; start the server again"

    def gauges(self) -> dict[str, float]:
        """Numbers for /metrics."""
        engine = self.engine
        return {
            "rows_running": engine.n_running,
            "jobs_waiting": engine.n_waiting,
            "adapters_resident": len(engine.bank.slots),
            "engine_steps": engine.n_steps,
        }

    async def prove(self, identity: str) -> None:
        """Load an adapter and check it against the base. Raises AdapterError or StorageError."""
        await self._adapter(identity)

    async def whole(self, asked: Asked, target: Target) -> dict[str, Any]:
        """Return a reply in one piece."""
        spoken = await self._speak(asked, target, every=bool(asked.stops))
        deltas = [delta async for delta in spoken]
        return spoken.reply.whole(deltas, spoken.usage)

    async def stream(self, asked: Asked, target: Target) -> AsyncIterator[dict[str, Any]]:
        """Yield a reply part by part."""
        spoken = await self._speak(asked, target, every=True)
        try:
            opened = False
            async for delta in spoken:
                if not opened:  # not before the first token: until then a refusal can be a status
                    for part in spoken.reply.opening(len(spoken.jobs)):
                        yield part
                    opened = True
                yield spoken.reply.chunk(delta)
            if asked.with_usage:
                yield spoken.reply.ending(spoken.usage)
        finally:
            spoken.leave()

    # -- on the way there --------------------------------------------------------------------------

    async def _speak(self, asked: Asked, target: Target, *, every: bool) -> _Spoken:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.limits.seconds
        prompts = self._prompts(asked)
        adapter, target = await self._adapter_of(target)
        reply = Reply(
            target.name,
            target.to_json(),
            chat=isinstance(asked, ChatAsked),
            spells=asked.n_top is not None,
        )
        spoken = _Spoken(self, asked, reply, deadline)
        for prompt in prompts:
            n_tokens = budget(self.model, len(prompt), asked.budget, self.limits.max_tokens)
            for choice in range(asked.n_choices):
                seed = None if asked.seed is None else (asked.seed + choice) % 2**63
                index = len(spoken.jobs)
                job = Job(
                    prompt,
                    n_tokens,
                    spoken.ear(loop, index),
                    adapter=adapter,
                    identity=target.identity,
                    temperature=asked.temperature or 0.0,
                    top_p=1.0 if asked.top_p is None else asked.top_p,
                    seed=seed,
                    n_top=asked.n_top,
                    ignore_stop=bool(asked.ignore_eos),
                    every=every,
                )
                spoken.jobs.append(job)
        if not self.engine.submit(spoken.jobs):
            raise Refused(
                429,
                f"{self.engine.n_waiting} replies wait already; ask again later.",
                code="rate_limit_exceeded",
                retry_after_seconds=1,
            )
        return spoken

    def _prompts(self, asked: Asked) -> list[tuple[int, ...]]:
        if isinstance(asked, ChatAsked):
            return [chat_ids(self.model, asked.messages)]
        assert isinstance(asked, TextAsked)
        return [text_ids(self.model, prompt) for prompt in asked.prompts]

    async def _adapter_of(self, target: Target) -> tuple[Adapter | None, Target]:
        """The target's adapter; of what its name stands for now, if it went away meanwhile."""
        if self.roster.version != self._version:
            self._version = self.roster.version
            self._forget()
        if not target.identity:
            return None, target
        try:
            return await self._adapter(target.identity), target
        except (AdapterError, StorageError):
            now = self.roster.target(target.name)
            if now.identity in ("", target.identity):
                raise
            return await self._adapter(now.identity), now

    async def _adapter(self, identity: str) -> Adapter:
        """An adapter by content id, read and checked once however many ask for it at once."""
        task = self._adapters.get(identity)
        if task is None:
            task = asyncio.create_task(asyncio.to_thread(self._read, identity))
            self._adapters[identity] = task
            self._forget()
        self._adapters.move_to_end(identity)
        try:
            return await asyncio.shield(task)  # one who leaves must not take it from the others
        except LorewrightError:
            self._adapters.pop(identity, None)  # it may be repaired
            raise

    def _forget(self) -> None:
        """Let go of what no name stands for any more, and of the least recently used."""
        named = set(self.roster.names.values())
        self.engine.retain(named)
        for identity in list(self._adapters):
            done = self._adapters[identity].done()
            if done and (identity not in named or len(self._adapters) > KEPT_ADAPTERS):
                del self._adapters[identity]

    def _read(self, identity: str) -> Adapter:
        adapter = load(self.roster.path(identity))
        if content_id(adapter) != identity:
            raise AdapterError(
                f"{self.roster.path(identity)} does not hold what its name says; restore it from "
                "a copy, or write it again."
            )
        check(adapter, self.model)
        return adapter


class _Spoken:
    """The jobs of one request, their pieces turned into text as they come."""

    def __init__(self, local: Local, asked: Asked, reply: Reply, deadline: float) -> None:
        self.local = local
        self.asked = asked
        self.reply = reply
        self.deadline = deadline
        self.jobs: list[Job] = []
        self._speakers: list[Speaker] = []
        self._n_tokens = 0
        self._pieces: asyncio.Queue[tuple[int, Piece]] = asyncio.Queue()

    def ear(self, loop: asyncio.AbstractEventLoop, index: int) -> Any:
        """What the engine's thread calls with pieces of one job."""
        self._speakers.append(
            Speaker(self.local.model, self.asked.stops, strip=isinstance(self.asked, ChatAsked))
        )

        def deliver(piece: Piece) -> None:
            with suppress(RuntimeError):  # the loop was closed: nobody listens any more
                loop.call_soon_threadsafe(self._pieces.put_nowait, (index, piece))

        return deliver

    @property
    def usage(self) -> dict[str, int]:
        """Tokens read, once for each choice of a prompt only, and generated so far."""
        n_prompt = sum(len(job.prompt) for job in self.jobs[:: self.asked.n_choices])
        return usage(n_prompt, self._n_tokens)

    async def __aiter__(self) -> AsyncIterator[Delta]:
        going = set(range(len(self.jobs)))
        try:
            while going:
                index, piece = await self._next()
                if piece.error is not None:
                    raise refusal_of(piece.error)
                if index not in going:
                    continue  # it was cancelled at a stop text; the engine was one step ahead
                delta = self._hear(index, piece)
                if delta.finish:
                    going.discard(index)
                    self.local.engine.cancel(self.jobs[index])
                if delta.finish or delta.text or delta.spelled:
                    yield delta
        finally:
            self.local.meters.used(self.usage)
            self.leave()

    def leave(self) -> None:
        """Stop whatever still runs."""
        for job in self.jobs:
            self.local.engine.cancel(job)

    async def _next(self) -> tuple[int, Piece]:
        left = self.deadline - asyncio.get_running_loop().time()
        try:
            return await asyncio.wait_for(self._pieces.get(), max(left, 0.001))
        except TimeoutError as error:
            raise Refused(
                504,
                f"no reply within {self.local.limits.seconds:g} s; ask for fewer tokens, or later.",
                code="timeout",
            ) from error

    def _hear(self, index: int, piece: Piece) -> Delta:
        speaker = self._speakers[index]
        text, n_heard = "", len(piece.tokens)
        if self.asked.stops:  # token by token, to know at which one it stopped
            for n, token in enumerate(piece.tokens, start=1):
                text += speaker.hear([token.id])
                if speaker.stopped:
                    n_heard = n
                    break
        else:
            text = speaker.hear([token.id for token in piece.tokens])
        finish = "stop" if speaker.stopped else piece.finish
        text += speaker.end() if finish else ""
        finish = "stop" if speaker.stopped else finish
        self._n_tokens += n_heard
        spelled: Sequence[Any] = ()
        if self.asked.n_top is not None:
            spelled = [spell(self.local.model, token) for token in piece.tokens[:n_heard]]
        return Delta(index, text, tuple(spelled), finish or None)
