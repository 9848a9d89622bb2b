"""Replies generated in this process: adapters loaded and checked, jobs submitted, text joined.

All of it runs in the server's event loop, except for the scheduler's thread, the loading of
adapters, and the tokenising of prompts, which has a thread of its own.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial

from lorewright.adapters.adapter import Adapter, content_id, load
from lorewright.errors import AdapterError, ConfigError, StorageError
from lorewright.memory.memory import Memory
from lorewright.models.model import Model
from lorewright.serve.adapter_cache import check
from lorewright.serve.config import ServeConfig
from lorewright.serve.loads import Loads
from lorewright.serve.metrics import Metrics
from lorewright.serve.protocol import (
    MAX_CHOICES,
    APIError,
    ChatRequest,
    GenerationRequest,
    too_many,
)
from lorewright.serve.registry import Registry, Target
from lorewright.serve.replies import Completion, Delta, ReplyFormat, TokenText, Usage
from lorewright.serve.scheduler import Job, Output, Scheduler
from lorewright.serve.text import Detokenizer, Tokenization, token_text

MAX_ADAPTERS = 64
"""Adapters held in memory, in use or not, least recently used out first."""


class LocalBackend:
    """Replies of a base and adapters in this process."""

    def __init__(
        self, registry: Registry, config: ServeConfig, metrics: Metrics, model: Model | None = None
    ) -> None:
        """Put the scheduler on the folder's base, loaded unless given; raises as `Memory.open`."""
        if config.engine_url:
            raise ConfigError("engine local generates in this process; leave --engine-url out.")
        model = Memory.open(registry.folder, model, create=False).model
        self.registry = registry
        self.model = model
        self.metrics = metrics
        self.seconds = config.seconds
        self.scheduler = Scheduler(
            model, max_rows=config.max_concurrency, max_waiting=config.max_queue + MAX_CHOICES
        )
        self._tokenization = Tokenization(model, config.max_tokens)
        self._tokenizer_thread = ThreadPoolExecutor(1, "tokenizer")
        # tokenizers are not made for two threads at once: replies have a copy
        self.reply_tokenizer = copy.deepcopy(model.tokenizer)
        self._adapters: Loads[Adapter] = Loads()
        self._version = registry.version

    async def start(self) -> None:
        """Start the scheduler."""
        self.scheduler.start()

    async def stop(self) -> None:
        """Finish what was begun; give the network back."""
        await asyncio.to_thread(self.scheduler.stop)
        self._tokenizer_thread.shutdown()

    async def trouble(self) -> str:
        """Return why no request can be answered now; empty when one can."""
        return "" if self.scheduler.alive else "generation has ended; start the server again"

    def gauges(self) -> dict[str, float]:
        """Return rows, jobs, adapters and steps of the scheduler."""
        return self.scheduler.gauges()

    def drop_unnamed(self) -> None:
        """Leave nothing in memory of adapters without a name, once no row uses them."""
        self._version = self.registry.version
        self._evict()

    async def load(self, adapter_id: str) -> None:
        """Load an adapter and check it against the base. Raises AdapterError or StorageError."""
        await self._adapter(adapter_id)

    async def complete(self, request: GenerationRequest, target: Target) -> Completion:
        """Return a reply in one piece."""
        generation = await self._generate(request, target, stream=bool(request.stop))
        deltas = [delta async for delta in generation.deltas()]
        return generation.format.whole(deltas, generation.usage)

    async def stream(self, request: GenerationRequest, target: Target) -> AsyncIterator[Completion]:
        """Yield a reply in chunks, none before the first token: until then, errors are statuses."""
        generation = await self._generate(request, target, stream=True)
        try:
            async for delta in generation.deltas():
                yield generation.format.chunk(delta)
            if request.include_usage:
                yield generation.format.ending(generation.usage)
        finally:
            generation.cancel()

    async def _generate(
        self, request: GenerationRequest, target: Target, *, stream: bool
    ) -> _Generation:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.seconds
        prompts = await loop.run_in_executor(
            self._tokenizer_thread, self._tokenization.prompts, request
        )
        adapter, target = await self._adapter_of(target)
        generation = _Generation(self, request, target, deadline)
        for prompt, max_tokens in prompts:
            for choice in range(request.n):
                seed = None if request.seed is None else (request.seed + choice) % 2**63
                job = Job(
                    prompt,
                    max_tokens,
                    generation.receiver(len(generation.jobs)),
                    adapter=adapter,
                    adapter_id=target.adapter_id,
                    temperature=request.temperature,
                    top_p=request.top_p,
                    seed=seed,
                    n_top=request.n_top,
                    ignore_stop=request.ignore_eos,
                    stream=stream,
                )
                generation.jobs.append(job)
        if not self.scheduler.submit(generation.jobs):
            raise too_many("the queue of replies is full")
        return generation

    async def _adapter_of(self, target: Target) -> tuple[Adapter | None, Target]:
        """The target's adapter; of what its name stands for now, if that one is gone."""
        if self.registry.version != self._version:
            self.drop_unnamed()
        if not target.adapter_id:
            return None, target
        try:
            return await self._adapter(target.adapter_id), target
        except (AdapterError, StorageError):
            now = self.registry.target(target.name)
            if now.adapter_id in ("", target.adapter_id):
                raise
            return await self._adapter(now.adapter_id), now

    async def _adapter(self, adapter_id: str) -> Adapter:
        """An adapter by content id, read and checked once for all who wait for it."""
        read = partial(asyncio.to_thread, self._read, adapter_id)
        adapter = await self._adapters.load(adapter_id, read)
        if len(self._adapters) > MAX_ADAPTERS:
            self._evict()
        return adapter

    def _evict(self) -> None:
        """Drop adapters without a name, and the least recently used."""
        named = set(self.registry.names.values())
        self.scheduler.retain(named)
        for adapter_id in list(self._adapters):
            done = self._adapters[adapter_id].done()
            if done and (adapter_id not in named or len(self._adapters) > MAX_ADAPTERS):
                del self._adapters[adapter_id]

    def _read(self, adapter_id: str) -> Adapter:
        path = self.registry.path(adapter_id)
        remedy = "restore it from a copy, or write it again"
        try:
            adapter = load(path)
        except RecursionError as error:  # of a parser, at JSON that is nested too deeply
            raise AdapterError(f"{path} cannot be read ({error}); {remedy}.") from error
        if content_id(adapter) != adapter_id:
            raise AdapterError(f"{path} does not hold the adapter of its name; {remedy}.")
        check(adapter, self.model)
        return adapter


class _Generation:
    """The jobs of one request, and their outputs as text."""

    def __init__(
        self, backend: LocalBackend, request: GenerationRequest, target: Target, deadline: float
    ) -> None:
        self.backend = backend
        self.request = request
        self.deadline = deadline
        self.format = ReplyFormat(
            target.name,
            target.source,
            chat=isinstance(request, ChatRequest),
            logprobs=request.n_top is not None,
        )
        self.jobs: list[Job] = []
        self._texts: list[Detokenizer] = []
        self._tokenizer = backend.reply_tokenizer
        self._n_tokens = 0
        self._outputs: asyncio.Queue[tuple[int, Output]] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()

    def receiver(self, index: int) -> Callable[[Output], None]:
        """What the scheduler's thread calls with the outputs of one job."""
        self._texts.append(Detokenizer(self._tokenizer, self.request.stop, strip=self.format.chat))

        def deliver(output: Output) -> None:
            with suppress(RuntimeError):  # the loop was closed: nothing waits any more
                self._loop.call_soon_threadsafe(self._outputs.put_nowait, (index, output))

        return deliver

    @property
    def usage(self) -> Usage:
        """Tokens read, once for each prompt, and tokens generated so far."""
        n_prompt = sum(len(job.prompt) for job in self.jobs[:: self.request.n])
        return Usage(
            prompt_tokens=n_prompt,
            completion_tokens=self._n_tokens,
            total_tokens=n_prompt + self._n_tokens,
        )

    async def deltas(self) -> AsyncIterator[Delta]:
        """Yield what the choices gain, until all have ended."""
        running, begun = set(range(len(self.jobs))), set[int]()
        try:
            while running:
                index, output = await self._next()
                if index not in running:
                    continue  # cancelled at a stop text; the scheduler was one step ahead
                if output.error is not None:
                    raise output.error
                delta = self._delta(index, output)
                if delta.finish_reason:
                    running.discard(index)
                    self.backend.scheduler.cancel(self.jobs[index])
                if delta.finish_reason or delta.text or delta.tokens:
                    yield replace(delta, first=index not in begun)
                    begun.add(index)
        finally:
            self.backend.metrics.count_tokens(self.usage)
            self.cancel()

    def cancel(self) -> None:
        """Stop whatever still runs."""
        for job in self.jobs:
            self.backend.scheduler.cancel(job)

    async def _next(self) -> tuple[int, Output]:
        seconds_left = self.deadline - self._loop.time()
        try:
            return await asyncio.wait_for(self._outputs.get(), max(seconds_left, 0.001))
        except TimeoutError as error:
            why = f"no reply within {self.backend.seconds:g} s; request fewer tokens, or try later."
            raise APIError(504, why, code="timeout") from error

    def _delta(self, index: int, output: Output) -> Delta:
        text, n_used = self._texts[index], len(output.tokens)
        if self.request.stop:  # token by token, to know at which one it stopped
            added = ""
            for n, token in enumerate(output.tokens, start=1):
                added += text.push([token.id])
                if text.stopped:
                    n_used = n
                    break
        else:
            added = text.push([token.id for token in output.tokens])
        if output.finish or text.stopped:
            added += text.finish()
        self._n_tokens += n_used
        tokens: tuple[TokenText, ...] = ()
        if self.request.n_top is not None:
            tokens = tuple(token_text(self._tokenizer, token) for token in output.tokens[:n_used])
        return Delta(index, added, tokens, "stop" if text.stopped else output.finish or None)
