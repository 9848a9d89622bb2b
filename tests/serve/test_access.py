"""Claims about who may call and how much, on the middleware alone: no model, no folder."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from dataclasses import replace

import pytest
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lorewright.serve.access import (
    REFUSED_BYTES,
    DeniedResponse,
    KeyAuthentication,
    LimitRequests,
    RecordRequests,
)
from lorewright.serve.config import ServeConfig
from lorewright.serve.metrics import Metrics

KEY = "a-key-for-tests"
CONFIG = ServeConfig(keys=(KEY,), seconds=0.3, max_body_bytes=1000)


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """An application that accepts everything."""
    if scope["type"] == "websocket":
        await send({"type": "websocket.accept"})
        return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"ok"})


def guarded(config: ServeConfig = CONFIG, app: ASGIApp = echo) -> ASGIApp:
    """An application behind the server's middleware."""
    metrics = Metrics()
    limited = LimitRequests(app, config, metrics)
    keyed = AuthenticationMiddleware(limited, KeyAuthentication(config), DeniedResponse)
    return RecordRequests(keyed, metrics, config.seconds)


def scope_of(kind: str = "http", key: str = "", length: int | None = None) -> Scope:
    headers = [(b"host", b"localhost")]
    if length is not None:
        headers.append((b"content-length", str(length).encode()))
    if key:
        headers.append((b"authorization", f"Bearer {key}".encode()))
    scope = {"type": kind, "method": "POST", "path": "/v1/models", "headers": headers}
    return {**scope, "query_string": b"", "client": ("10.0.0.9", 1)}


class Client:
    """What one connection sends and receives."""

    def __init__(self, body: Iterable[bytes] = (b"",), pause: float = 0.0) -> None:
        self.body = iter(body)
        self.following = next(self.body, None)
        self.pause = pause
        self.n_read = 0
        self.sent: list[Message] = []

    async def receive(self) -> Message:
        await asyncio.sleep(self.pause)
        part = self.following
        if part is None:  # nothing more until the client leaves
            await asyncio.sleep(60)
        self.following = next(self.body, None)
        self.n_read += len(part or b"")
        return {"type": "http.request", "body": part, "more_body": self.following is not None}

    async def send(self, message: Message) -> None:
        self.sent.append(message)

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"])


def call(app: ASGIApp, client: Client, scope: Scope) -> Client:
    asyncio.run(app(scope, client.receive, client.send))
    return client


def endless() -> Iterable[bytes]:
    while True:
        yield b"a" * 1000


def test_a_caller_without_a_key_is_refused_before_its_body_is_read() -> None:
    for key, length in (("", None), ("wrong-key-altogether", 10**9)):
        client = call(guarded(), Client(endless()), scope_of("http", key, length))
        assert (client.status, client.n_read) == (401, 0)
        assert (b"connection", b"close") in client.sent[0]["headers"]


def test_a_refused_caller_that_sends_slowly_is_answered_soon() -> None:
    async def refused() -> Client:
        client = Client(endless(), pause=0.2)
        async with asyncio.timeout(5):
            await guarded()(scope_of(length=REFUSED_BYTES), client.receive, client.send)
        return client

    assert asyncio.run(refused()).status == 401


def test_a_body_that_is_too_large_is_refused_at_once() -> None:
    async def refused() -> Client:
        client = Client([b"a" * 2000])
        async with asyncio.timeout(0.2):
            await guarded()(scope_of(key=KEY), client.receive, client.send)
        return client

    assert asyncio.run(refused()).status == 413


def test_websockets_need_the_key_as_well() -> None:
    for key, answer in (("", "websocket.close"), (KEY, "websocket.accept")):
        client = call(guarded(), Client(), scope_of("websocket", key))
        assert [message["type"] for message in client.sent] == [answer]


def test_every_refusal_is_logged_with_its_reason_and_caller(
    caplog: pytest.LogCaptureFixture,
) -> None:
    call(guarded(), Client(), scope_of())
    call(guarded(), Client([b"a" * 2000]), scope_of(key=KEY))
    lines = [record.getMessage() for record in caplog.records]
    assert lines[0].startswith("401 POST '/v1/models' from 10.0.0.9: this needs an API key")
    assert lines[1].startswith("413 POST '/v1/models' from 10.0.0.9: the body has more than 1000")


def test_bodies_that_arrive_slowly_hold_no_place_and_end_in_time() -> None:
    async def several() -> list[Client]:
        app = guarded(replace(CONFIG, max_concurrency=1, max_queue=0))
        slow = [Client(endless(), pause=0.2) for _ in range(3)]
        quick = Client()
        calls = [app(scope_of(key=KEY), client.receive, client.send) for client in (*slow, quick)]
        async with asyncio.timeout(5):
            await asyncio.gather(*calls)
        return [*slow, quick]

    assert [client.status for client in asyncio.run(several())] == [408, 408, 408, 200]


def test_requests_beyond_the_limit_are_refused_and_places_are_free_again() -> None:
    started, go_on = asyncio.Event(), asyncio.Event()

    async def busy(scope: Scope, receive: Receive, send: Send) -> None:
        started.set()
        await go_on.wait()
        await echo(scope, receive, send)

    async def several() -> list[int]:
        app = guarded(replace(CONFIG, max_concurrency=1, max_queue=0), busy)
        first, second, third = Client(), Client(), Client()
        running = asyncio.create_task(app(scope_of(key=KEY), first.receive, first.send))
        await started.wait()
        await app(scope_of(key=KEY), second.receive, second.send)
        go_on.set()
        await running
        await app(scope_of(key=KEY), third.receive, third.send)
        return [first.status, second.status, third.status]

    assert asyncio.run(several()) == [200, 429, 200]


def test_a_client_that_reads_nothing_is_let_go_and_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def stuck(message: Message) -> None:
        await asyncio.sleep(60)

    async def served() -> None:
        async with asyncio.timeout(5):
            await guarded()(scope_of(key=KEY), Client().receive, stuck)

    with caplog.at_level(logging.WARNING, "lorewright.serve"):
        asyncio.run(served())
    assert "read nothing for 0.3 s" in caplog.text
