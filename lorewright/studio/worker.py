"""One process that holds the base and does the work, an order at a time; pages only look.

The process is started anew and shares nothing with the server but a pipe of plain data. A page may
close, the server may die: a write goes on to its end, for its files are all that anybody needs. If
the process itself dies, its order fails, the next one starts another, and the same write resumes.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import multiprocessing
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from lorewright.errors import ConfigError, LorewrightError

NICE = 10
"""How much the work gives way to what else the processors have to do, where they are short."""
MOST_WAITING = 16
"""Orders that may wait; further ones are refused."""


class OrderFailed(LorewrightError, RuntimeError):
    """An order came to nothing; the message is the library's own sentence."""


@dataclass
class Order:
    """Something to do, and how far it is."""

    number: int
    verb: str
    """A key of `verbs.VERBS`."""
    arguments: Mapping[str, Any]
    state: str = "waiting"
    """waiting, running, done or failed."""
    step: str = "waiting for the work before it"
    """What it does, in a few words."""
    since: float = field(default_factory=time.time)
    future: Future[dict[str, Any]] = field(default_factory=Future)
    """Its record; fails with OrderFailed."""

    @property
    def error(self) -> str:
        """Why it failed; empty otherwise."""
        if self.state != "failed" or self.future.cancelled():
            return ""
        return str(self.future.exception())


class Worker:
    """Orders go in, records come out; the process behind is started when it is needed."""

    def __init__(self, folder: Path, base: str = "") -> None:
        """`base` is the folder's own if it is empty; nothing is started yet."""
        self.folder, self.base = folder, base
        self.orders: list[Order] = []
        """Those that are not over, in their order, and the last one that is."""
        self._numbers = itertools.count(1)
        self._queue: queue.Queue[Order | None] = queue.Queue()
        self._process: BaseProcess | None = None
        self._pipe: Connection | None = None
        self._listeners: list[Callable[[], None]] = []
        self._thread = threading.Thread(target=self._run, daemon=True, name="studio-orders")
        self._thread.start()

    @property
    def busy(self) -> bool:
        """Whether an order is being done."""
        return any(order.state == "running" for order in self.orders)

    def last(self, *verbs: str) -> Order | None:
        """The latest order of some verbs, over or not."""
        return max(
            (order for order in self.orders if order.verb in verbs),
            key=lambda order: order.number,
            default=None,
        )

    @property
    def process_id(self) -> int | None:
        """Of the process that works; None before it is needed."""
        return self._process.pid if self._process else None

    def submit(self, verb: str, **arguments: Any) -> Order:
        """Put an order behind those that wait. Raises ConfigError when too many do."""
        waiting = sum(order.state == "waiting" for order in self.orders)
        if waiting >= MOST_WAITING:
            raise ConfigError(f"{waiting} orders wait already; try again when some are done.")
        order = Order(next(self._numbers), verb, arguments)
        alive = [each for each in self.orders if each.state in ("waiting", "running")]
        over = {each.verb: each for each in self.orders if each not in alive}
        self.orders = [*over.values(), *alive, order]
        self._queue.put(order)
        self._tell()
        return order

    @contextlib.contextmanager
    def heard(self) -> Iterator[asyncio.Event]:
        """An event of the running loop that is set whenever an order is further."""
        loop, event = asyncio.get_running_loop(), asyncio.Event()

        def tell() -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed, and nobody listens
                loop.call_soon_threadsafe(event.set)

        self._listeners.append(tell)
        try:
            yield event
        finally:
            self._listeners.remove(tell)

    def close(self) -> None:
        """End the process; a write that it was at resumes when it is ordered again."""
        self._queue.put(None)
        if self._process is not None and self._process.is_alive():
            self._process.terminate()
            self._process.join(5)

    # -- in a thread -----------------------------------------------------------------------------

    def _tell(self) -> None:
        for tell in [*self._listeners]:
            tell()

    def _run(self) -> None:
        while (order := self._queue.get()) is not None:
            if not order.future.set_running_or_notify_cancel():  # nobody waits for it any more
                order.state = "failed"
                continue
            order.state, order.step, order.since = "running", "starting", time.time()
            try:
                record = self._do(order)
            except Exception as error:  # noqa: BLE001  (the thread goes on; the page shows it)
                order.state, order.step = "failed", ""
                order.future.set_exception(error)
            else:
                order.state, order.step = "done", ""
                order.future.set_result(record)
            self._tell()

    def _do(self, order: Order) -> dict[str, Any]:
        try:
            pipe = self._connected()
            pipe.send((order.verb, dict(order.arguments)))
            while True:
                kind, content = pipe.recv()
                if kind == "done":
                    return dict(content)
                if kind == "failed":
                    raise OrderFailed(str(content))
                order.step = str(content)
                self._tell()
        except (EOFError, OSError) as error:
            ended = self._process.exitcode if self._process else None
            self._process = self._pipe = None
            raise OrderFailed(
                f"the process that did it ended (exit {ended}); nothing half-written is left "
                "behind. Start it again: a write goes on where it was."
            ) from error

    def _connected(self) -> Connection:
        if self._pipe is None or self._process is None or not self._process.is_alive():
            context = multiprocessing.get_context("spawn")
            self._pipe, other = context.Pipe()
            arguments = (str(self.folder), self.base, other)
            self._process = context.Process(target=work, args=arguments, daemon=True)
            self._process.start()
            other.close()
        return self._pipe


def work(folder: str, base: str, pipe: Connection) -> None:
    """Do orders until the pipe closes; runs in the process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the server's, which ends this one
    if hasattr(os, "nice"):
        os.nice(NICE)  # pages and browser come first: they need little, and somebody waits
    from lorewright.studio.verbs import VERBS, Bench

    def report(kind: str, content: object) -> None:
        with contextlib.suppress(OSError):  # nobody listens any more; the work goes on
            pipe.send((kind, content))

    bench = Bench(Path(folder), base)
    while True:
        try:
            verb, arguments = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            report("done", VERBS[verb](bench, arguments, lambda text: report("step", text)))
        except LorewrightError as error:
            report("failed", " ".join(str(error).split()))
        except Exception as error:  # noqa: BLE001  (the process goes on, the page shows what it is)
            report("failed", f"a fault of Lorewright: {type(error).__name__}: {error}")
