"""Continuous batching: one thread, one base, jobs that join and leave between two tokens.

    waiting ──admit: a pass over the prompts──▶ rows ──step, step, ...──▶ delivered

Each job names the adapter it runs on by content id and holds it, so a memory that is written anew,
renamed or removed meanwhile changes nothing for it. A row has keys and values of its own; nothing
is shared between jobs, not even of the same memory and prompt.

This room knows token ids. It knows nothing of text, HTTP, names of memories or files.

Shape letters: B row, V vocabulary.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from lorewright.adapters.adapter import Adapter
from lorewright.errors import ConfigError, LorewrightError, ModelError
from lorewright.models.model import Model
from lorewright.serve.bank import NO_SLOT, Bank
from lorewright.serve.rows import rows_for

PROMPTS_A_TURN = 8
"""Most jobs that join between two steps, so that those which run are not kept waiting."""
NEVER_NATS = -9999.0
"""Log-probability of a token that cannot come: JSON has no infinity. OpenAI's own number."""


class Token(NamedTuple):
    """One generated token."""

    id: int
    logprob: float | None = None
    """In nats, of the base with its adapter at temperature 1; None = not asked for."""
    top: tuple[tuple[int, float], ...] = ()
    """The most probable ids with their log-probabilities, best first."""


class Piece(NamedTuple):
    """What a job is told: tokens since the last piece, and how it ended if it has."""

    tokens: tuple[Token, ...]
    finish: str = ""
    """`stop` at a stop token, `length` at the budget, `failed`; empty while it goes on."""
    error: LorewrightError | None = None


@dataclass(eq=False)
class Job:
    """A prompt to be continued."""

    prompt: Sequence[int]
    max_tokens: int
    deliver: Callable[[Piece], None]
    """Called from the engine's thread; must return at once and never raise."""
    adapter: Adapter | None = None
    identity: str = ""
    """Content id of the adapter; empty for the base alone."""
    temperature: float = 0.0
    """0 = greedy."""
    top_p: float = 1.0
    seed: int | None = None
    """None = drawn by the system."""
    n_top: int | None = None
    """How many alternatives to list for each token; None = no log-probabilities at all."""
    ignore_stop: bool = False
    """Go on to the budget whatever is generated: for measuring."""
    every: bool = True
    """Deliver each token as it comes, or all at the end."""
    cancelled: bool = field(default=False, init=False)
    n_done: int = field(default=0, init=False)


class Engine:
    """The thread that generates, from `start` to `stop`."""

    def __init__(self, model: Model, *, max_rows: int = 16, max_waiting: int = 1024) -> None:
        """Put a bank on the base; until `stop` the network belongs to the engine."""
        if max_rows < 1 or max_waiting < 1:
            raise ConfigError(f"{max_rows} rows, {max_waiting} waiting; give at least 1 of each.")
        self.model = model
        self.max_rows = max_rows
        self.max_waiting = max_waiting
        self.bank = Bank(model, max_rows)
        self.rows = rows_for(model, self.bank)
        self.n_steps = 0
        generation = model.network.generation_config
        assert generation is not None
        self._stops = frozenset(generation.eos_token_id)
        self._waiting: deque[Job] = deque()
        self._running: list[_Running] = []
        self._news = threading.Condition()
        self._retained: frozenset[str] | None = None
        self._stopping = self._dead = False
        self._thread = threading.Thread(target=self._live, name="engine", daemon=True)

    # -- from any thread -------------------------------------------------------------------------

    @property
    def n_waiting(self) -> int:
        """Jobs that no row has been found for."""
        return len(self._waiting)

    @property
    def n_running(self) -> int:
        """Rows that are being decoded."""
        return len(self._running)

    @property
    def alive(self) -> bool:
        """Whether jobs are taken."""
        return self._thread.is_alive() and not self._stopping and not self._dead

    def start(self) -> None:
        """Begin to take jobs."""
        self._thread.start()

    def submit(self, jobs: Sequence[Job]) -> bool:
        """Queue jobs, all or none; False when too many wait already.

        Raises ModelError after the end, ConfigError for a job that cannot be run.
        """
        for job in jobs:
            room = self.model.context - len(job.prompt)
            if not job.prompt or not 1 <= job.max_tokens <= room:
                raise ConfigError(
                    f"{len(job.prompt)} prompt tokens and {job.max_tokens} new ones do not fit "
                    f"{self.model.context}; shorten one of them."
                )
        with self._news:
            if self._stopping or self._dead:
                raise ModelError("the engine has ended; start the server again.")
            if len(self._waiting) + len(jobs) > self.max_waiting:
                return False
            self._waiting.extend(jobs)
            self._news.notify()
        return True

    def cancel(self, job: Job) -> None:
        """Stop working on a job; it gets no further piece."""
        job.cancelled = True

    def retain(self, identities: Collection[str]) -> None:
        """Leave nothing of other adapters in memory, once no job runs on them."""
        with self._news:
            self._retained = frozenset(identities)
            self._news.notify()

    def stop(self) -> None:
        """Finish what was taken, take nothing more, give the network back."""
        with self._news:
            self._stopping = True
            self._news.notify()
        if self._thread.is_alive():
            self._thread.join()
        self.bank.close()

    # -- the engine's own thread -----------------------------------------------------------------

    def _live(self) -> None:
        try:
            while self._wait():
                try:
                    self._turn()
                except RuntimeError as error:  # torch's: out of memory, a broken device
                    self._fail_all(error)
        finally:
            self._dead = True
            self._fail_all(None)

    def _wait(self) -> bool:
        """Sleep until there is work; False when it is time to end."""
        with self._news:
            while not self._waiting and not self._running and not self._stopping:
                self._tidy()
                self._news.wait()
            return bool(self._waiting or self._running)

    def _tidy(self) -> None:
        """Do as `retain` said, while no job runs."""
        if self._retained is not None:
            self.bank.retain(self._retained)
            self._retained = None

    def _turn(self) -> None:
        """Drop who left, let others in, and give every row one token."""
        self._leave([i for i, row in enumerate(self._running) if row.job.cancelled])
        joined = self._admit()
        if joined:
            first = len(self._running)
            self._running += joined
            slots = [row.slot for row in joined]
            logits_BV = self.rows.add([row.job.prompt for row in joined], slots)
            self._take(logits_BV, first)
        elif self._running:
            self.n_steps += 1
            self._take(self.rows.step([row.last for row in self._running]), 0)

    def _admit(self) -> list[_Running]:
        joined: list[_Running] = []
        while self._waiting and len(self._running) + len(joined) < self.max_rows:
            if len(joined) == PROMPTS_A_TURN:
                break
            job = self._waiting.popleft()
            if job.cancelled:
                continue
            slot = NO_SLOT
            if job.adapter is not None:
                try:
                    slot = self.bank.take(job.identity, job.adapter)
                except LorewrightError as error:
                    job.deliver(Piece((), "failed", error))
                    continue
            joined.append(_Running(job, slot))
        return joined

    def _take(self, logits_BV: Tensor, first: int) -> None:
        """Choose a token for each row from `first` on; deliver; let go of those that ended."""
        rows = self._running[first:]
        greedy_B = logits_BV.argmax(dim=-1).tolist()
        ended = []
        for i, (row, greedy) in enumerate(zip(rows, greedy_B, strict=True)):
            job, token = row.job, greedy
            if job.temperature > 0:
                token = draw(logits_BV[i], job.temperature, job.top_p, row.generator)
            stops = token in self._stops and not job.ignore_stop
            if not stops:
                row.last = token
                row.said.append(told(logits_BV[i], token, job.n_top))
                job.n_done += 1
            finish = "stop" if stops else "length" if job.n_done == job.max_tokens else ""
            if finish:
                ended.append(first + i)
            if (finish or job.every) and not job.cancelled:
                job.deliver(Piece(tuple(row.said), finish))
                row.said = []
        self._leave(ended)

    def _leave(self, rows: Sequence[int]) -> None:
        if not rows:
            return
        gone = set(rows)
        for i in gone:
            self._release(self._running[i])
        kept = self.rows.keep([i for i in range(len(self._running)) if i not in gone])
        self._running = [self._running[i] for i in kept]

    def _release(self, row: _Running) -> None:
        if row.slot != NO_SLOT:
            self.bank.release(row.job.identity)

    def _fail_all(self, cause: Exception | None) -> None:
        """Tell everybody that it went wrong, and start afresh."""
        why = f"generation failed ({cause}); ask again" if cause else "the engine has ended"
        error = ModelError(f"{why}.")
        with self._news:
            failed = [row.job for row in self._running]
            if cause is None:
                failed += self._waiting
                self._waiting.clear()
        for row in self._running:
            self._release(row)
        self._running = []
        self.rows.keep([])
        for job in failed:
            if not job.cancelled:
                job.deliver(Piece((), "failed", error))


class _Running:
    """A job that has a row."""

    def __init__(self, job: Job, slot: int) -> None:
        self.job = job
        self.slot = slot
        self.last = 0
        self.said: list[Token] = []
        self.generator = torch.Generator()
        if job.seed is None:
            self.generator.seed()
        else:
            self.generator.manual_seed(job.seed)


def draw(logits_V: Tensor, temperature: float, top_p: float, generator: torch.Generator) -> int:
    """Draw a token from the smallest set of the most probable ones that holds mass `top_p`.

    On the CPU in float64, so that a seed gives the same draw on every device.
    """
    p_V = torch.softmax(logits_V.double().cpu() / temperature, dim=-1)
    if top_p < 1:
        sorted_V, order_V = p_V.sort(descending=True)
        sorted_V[sorted_V.cumsum(0) - sorted_V > top_p] = 0
        p_V = torch.zeros_like(p_V).scatter(0, order_V, sorted_V)
    return int(torch.multinomial(p_V, 1, generator=generator))


def told(logits_V: Tensor, token: int, n_top: int | None) -> Token:
    """The token with its log-probability and the n best alternatives, if asked for."""
    if n_top is None:
        return Token(token)
    nats_V = torch.log_softmax(logits_V.double(), dim=-1)
    nats_V = nats_V.clamp(min=NEVER_NATS)
    best, ids = nats_V.topk(min(n_top, len(nats_V)))
    top = tuple(zip(ids.tolist(), best.tolist(), strict=True))
    return Token(token, float(nats_V[token]), top)
