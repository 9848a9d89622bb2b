"""Continuous batching: one thread, one base, jobs that join and leave between two tokens.

    waiting ──admit: a pass over the prompts──▶ rows ──step, step, ...──▶ delivered

Each job names its adapter by content id and holds it, so a memory that is written anew, renamed or
removed meanwhile changes nothing for it. A row has keys and values of its own; nothing is shared
between jobs, not even of the same memory and prompt, and a row that fails does so alone.

Token ids only: no text, HTTP, names of memories or files.

Shape letters: B row, V vocabulary.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from lorewright.adapters.adapter import Adapter
from lorewright.errors import AdapterError, LorewrightError, ModelError
from lorewright.models.loading import stop_ids
from lorewright.models.model import Model
from lorewright.serve.adapter_cache import NO_SLOT, AdapterCache
from lorewright.serve.batch import batch_for

log = logging.getLogger("lorewright.serve")

PREFILLS_PER_STEP = 8
"""Most jobs that join between two steps, so that running ones are not delayed for long."""
GREEDY_BELOW = 1e-3
"""Temperatures under this are greedy: logits divided by less may overflow."""
MIN_LOGPROB = -9999.0
"""Log-probability, in nats, of an impossible token: JSON has no infinity. OpenAI's own number."""


class Token(NamedTuple):
    """One generated token."""

    id: int
    logprob: float | None = None
    """In nats, of the base with its adapter at temperature 1; None = not requested."""
    top: tuple[tuple[int, float], ...] = ()
    """The most probable ids with their log-probabilities, best first."""


class Output(NamedTuple):
    """Tokens of a job since its last output, and how it ended if it has."""

    tokens: tuple[Token, ...]
    finish: str = ""
    """`stop` at a stop token, `length` at the limit, `failed`; empty while it goes on."""
    error: LorewrightError | None = None


@dataclass(eq=False)
class Job:
    """A prompt to be continued."""

    prompt: Sequence[int]
    max_tokens: int
    deliver: Callable[[Output], None]
    """Called from the scheduler's thread; must return at once and never raise."""
    adapter: Adapter | None = None
    adapter_id: str = ""
    """Content id of the adapter; empty for the base alone."""
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    """None = drawn by the system."""
    n_top: int | None = None
    """How many alternatives to list for each token; None = no log-probabilities at all."""
    ignore_stop: bool = False
    """Generate max_tokens tokens whatever they are: for measuring."""
    stream: bool = True
    """Deliver each token as it comes, or all at the end."""
    cancelled: bool = field(default=False, init=False)
    n_done: int = field(default=0, init=False)


class Scheduler:
    """The thread that generates, from `start` to `stop`."""

    def __init__(self, model: Model, *, max_rows: int = 16, max_waiting: int = 1024) -> None:
        """Put an adapter cache on the base; until `stop` the network belongs to the scheduler."""
        self.model = model
        self.max_rows = max_rows
        self.max_waiting = max_waiting
        self.cache = AdapterCache(model, max_rows)
        self.batch = batch_for(model, self.cache)
        self.n_steps = 0
        self._stops = frozenset(stop_ids(model.network, model.tokenizer, model.name))
        self._waiting: deque[Job] = deque()
        self._running: list[_Row] = []
        self._changed = threading.Condition()
        self._retained: frozenset[str] | None = None
        self._stopping = self._dead = False
        self._thread = threading.Thread(target=self._run, name="scheduler", daemon=True)

    # -- from any thread -------------------------------------------------------------------------

    def gauges(self) -> dict[str, float]:
        """Return rows that are decoded, jobs that wait for one, adapters in slots, and steps."""
        return {
            "rows_running": len(self._running),
            "jobs_waiting": len(self._waiting),
            "adapters_resident": len(self.cache.slots),
            "engine_steps": self.n_steps,
        }

    @property
    def alive(self) -> bool:
        """Whether jobs are accepted."""
        return self._thread.is_alive() and not self._stopping and not self._dead

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def submit(self, jobs: Sequence[Job]) -> bool:
        """Queue jobs that fit the context, all or none; False when too many wait already.

        Raises ModelError after the end.
        """
        n_tokens = [len(job.prompt) + job.max_tokens for job in jobs if job.prompt]
        assert len(n_tokens) == len(jobs) and max(n_tokens) <= self.model.context
        with self._changed:
            if self._stopping or self._dead:
                raise ModelError("generation has ended; start the server again.")
            if len(self._waiting) + len(jobs) > self.max_waiting:
                return False
            self._waiting.extend(jobs)
            self._changed.notify()
        return True

    def cancel(self, job: Job) -> None:
        """Stop working on a job; it gets no further output."""
        job.cancelled = True

    def retain(self, adapter_ids: Collection[str]) -> None:
        """Leave nothing of other adapters in memory from now on, while no job runs on them."""
        with self._changed:
            self._retained = frozenset(adapter_ids)
            self._changed.notify()

    def stop(self) -> None:
        """Finish what was accepted, accept nothing more, give the network back."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join()
        self.cache.close()

    # -- the scheduler's own thread --------------------------------------------------------------

    def _run(self) -> None:
        try:
            while self._wait():
                try:
                    self._step()
                except RuntimeError as error:  # torch's: out of memory, a broken device
                    log.exception("a pass failed, and with it %d replies", len(self._running))
                    self._fail_all(ModelError(f"generation failed ({error}); try again."))
        finally:
            self._dead = True
            self._fail_all(ModelError("generation has ended."), waiting=True)

    def _wait(self) -> bool:
        """Sleep until there is work; False when it is time to end."""
        with self._changed:
            while True:
                if self._retained is not None:  # at every step: rows on other adapters end
                    self.cache.retain(self._retained)
                if self._waiting or self._running or self._stopping:
                    break
                self._changed.wait()
            return bool(self._waiting or self._running)

    def _step(self) -> None:
        """Drop cancelled rows; prefill those that join, or else give every row one token."""
        self._drop([i for i, row in enumerate(self._running) if row.job.cancelled])
        joined = self._admit()
        if joined:
            first = len(self._running)
            self._running += joined
            slots = [row.slot for row in joined]
            logits_BV = self.batch.add([row.job.prompt for row in joined], slots)
            self._append(logits_BV, first)
        elif self._running:
            self.n_steps += 1
            self._append(self.batch.step([row.last for row in self._running]), 0)

    def _admit(self) -> list[_Row]:
        joined: list[_Row] = []
        n_free = min(PREFILLS_PER_STEP, self.max_rows - len(self._running))
        while self._waiting and len(joined) < n_free:
            job = self._waiting.popleft()
            if job.cancelled:
                continue
            slot = NO_SLOT
            if job.adapter is not None:
                try:
                    slot = self.cache.acquire(job.adapter_id, job.adapter)
                except LorewrightError as error:
                    job.deliver(Output((), "failed", error))
                    continue
            joined.append(_Row(job, slot))
        return joined

    def _append(self, logits_BV: Tensor, first: int) -> None:
        """Choose a token for each row from `first` on; deliver; drop those that ended."""
        rows = self._running[first:]
        greedy_B = logits_BV.argmax(dim=-1).tolist()
        finite_B = logits_BV.isfinite().all(dim=-1).tolist()
        ended = []
        for i, (row, token, finite) in enumerate(zip(rows, greedy_B, finite_B, strict=True)):
            job = row.job
            if not finite:
                ended.append(first + i)
                job.deliver(Output((), "failed", _not_finite(job)))
                continue
            if job.temperature >= GREEDY_BELOW:
                token = draw(logits_BV[i], job.temperature, job.top_p, row.generator)
            stops = token in self._stops and not job.ignore_stop
            if not stops:
                row.last = token
                row.undelivered.append(token_of(logits_BV[i], token, job.n_top))
                job.n_done += 1
            finish = "stop" if stops else "length" if job.n_done == job.max_tokens else ""
            if finish:
                ended.append(first + i)
            if (finish or job.stream) and not job.cancelled:
                job.deliver(Output(tuple(row.undelivered), finish))
                row.undelivered = []
        self._drop(ended)

    def _drop(self, rows: Collection[int]) -> None:
        if not rows:
            return
        for i in rows:
            self._release(self._running[i])
        order = self.batch.keep([i for i in range(len(self._running)) if i not in rows])
        self._running = [self._running[i] for i in order]

    def _release(self, row: _Row) -> None:
        if row.slot != NO_SLOT:
            self.cache.release(row.job.adapter_id)

    def _fail_all(self, error: ModelError, *, waiting: bool = False) -> None:
        """End every running job with an error, and with `waiting` the others too."""
        failed = [row.job for row in self._running]
        if waiting:
            with self._changed:
                failed += self._waiting
                self._waiting.clear()
        for row in self._running:
            self._release(row)
        self._running = []
        self.batch.keep([])
        for job in failed:
            if not job.cancelled:
                job.deliver(Output((), "failed", error))


class _Row:
    """A job that is being decoded."""

    def __init__(self, job: Job, slot: int) -> None:
        self.job = job
        self.slot = slot
        self.last = 0
        self.undelivered: list[Token] = []
        self.generator = torch.Generator()
        if job.seed is None:
            self.generator.seed()
        else:
            self.generator.manual_seed(job.seed)


def _not_finite(job: Job) -> LorewrightError:
    if job.adapter is None:
        return ModelError("the base's logits are not finite for this prompt; shorten or change it.")
    return AdapterError(
        f"with adapter {job.adapter_id} the logits are not finite for this prompt; verify the "
        "memory and write it again."
    )


def draw(logits_V: Tensor, temperature: float, top_p: float, generator: torch.Generator) -> int:
    """Draw a token from the smallest set of the most probable ones that holds mass `top_p`.

    On the CPU in float64, so that a seed gives the same draw on every device.
    Paper: The Curious Case of Neural Text Degeneration, arXiv 1904.09751.
    """
    p_V = torch.softmax(logits_V.double().cpu() / temperature, dim=-1)
    if top_p < 1:
        sorted_V, order_V = p_V.sort(descending=True)
        sorted_V[sorted_V.cumsum(0) - sorted_V > top_p] = 0
        p_V = torch.zeros_like(p_V).scatter(0, order_V, sorted_V)
    return int(torch.multinomial(p_V, 1, generator=generator))


def token_of(logits_V: Tensor, token: int, n_top: int | None) -> Token:
    """The token with its log-probability and the n best alternatives; the id alone for None."""
    if n_top is None:
        return Token(token)
    nats_V = torch.log_softmax(logits_V.double(), dim=-1).clamp(min=MIN_LOGPROB)
    best, ids = nats_V.topk(min(n_top, len(nats_V)))
    top = tuple(zip(ids.tolist(), best.tolist(), strict=True))
    return Token(token, float(nats_V[token]), top)
