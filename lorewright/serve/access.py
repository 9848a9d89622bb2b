"""Who may call, and how much: ASGI middleware around the application.

    RecordRequests ─▶ AuthenticationMiddleware(KeyAuthentication) ─▶ LimitRequests ─▶ routes

Keys are compared as digests in constant time, against all of them. The body of a caller without a
key is not read, unless it is short: then the caller sees the refusal. Every refusal is logged.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import re
import time
from collections.abc import Sequence

from starlette.authentication import AuthenticationBackend, AuthenticationError
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, HTTPConnection
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lorewright.serve.config import ServeConfig
from lorewright.serve.listening import LOOPBACK
from lorewright.serve.metrics import Metrics
from lorewright.serve.protocol import APIError, too_many

log = logging.getLogger("lorewright.serve")

OPEN_PATHS = ("/health", "/ready", "/metrics")
"""Paths without a key: for probes and monitoring."""
ADMIN_PATHS = ("/admin/", "/v1/load_lora_adapter", "/v1/unload_lora_adapter")
"""Paths that need an administrator's key."""
REFUSED_BYTES = 64 << 10
"""Longest body of a refused caller that is read; one cut off while it sends sees no reply."""
REFUSED_SECONDS = 1.0
LARGE_BODIES = 16
"""How many times the limit of a body is read of one that is too large, with a valid key."""


class ErrorResponse(JSONResponse):
    """An error object, logged with its reason as it is made."""

    def __init__(self, connection: HTTPConnection, error: Exception) -> None:
        assert isinstance(error, APIError)
        super().__init__(error.to_json(), error.status, error.headers)
        method, path = connection.scope.get("method", "WS"), connection.scope["path"]
        client = connection.client.host if connection.client else "unknown"
        reason = error.detail or str(error)
        log.warning("%s %s %r from %s: %s", error.status, method, path[:200], client, reason)


class AccessDenied(APIError, AuthenticationError):
    """A connection from a host or with a key that is not accepted."""


class DeniedResponse(ErrorResponse):
    """The reply to a caller without access; the connection is closed after it."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it; a short body of a declared length is read first."""
        length = Headers(scope=scope).get("content-length", "")
        if length.isdigit() and 0 < int(length) <= REFUSED_BYTES:
            await _drain(receive, REFUSED_BYTES, REFUSED_SECONDS)
        self.headers["connection"] = "close"
        await super().__call__(scope, receive, send)


class KeyAuthentication(AuthenticationBackend):
    """API keys, administrators' keys, and the Host of servers that have neither."""

    def __init__(self, config: ServeConfig) -> None:
        """Without keys, a server at a loopback address answers to the names of this machine only:
        a page in a browser here could otherwise reach it under a name that resolves to it.
        """
        admin_keys = config.admin_keys if config.admin else ()
        self._keys = _digests([*config.keys, *admin_keys])
        self._admin_keys = _digests(admin_keys)
        self._needs_key = bool(config.keys)
        self._local_only = not config.keys and config.host in LOOPBACK

    async def authenticate(self, conn: HTTPConnection) -> None:
        """Raise AccessDenied unless the connection may go on."""
        path = conn.scope["path"]
        if path in OPEN_PATHS:
            return
        host = re.sub(r":\d*\Z", "", conn.headers.get("host", "localhost")).strip("[]").lower()
        if self._local_only and host not in LOOPBACK:
            why = f"{host[:100]!r} is not this machine; use localhost, or serve with an API key."
            raise AccessDenied(403, why)
        admin = path.startswith(ADMIN_PATHS)
        scheme, _, key = conn.headers.get("authorization", "").partition(" ")
        digest = hashlib.sha256(key.strip().encode("latin-1")).digest()
        # every comparison is made, so that the time taken does not depend on which one matches
        keys = self._admin_keys if admin else self._keys
        matches = [hmac.compare_digest(digest, each) for each in keys]
        if (admin or self._needs_key) and not (scheme.lower() == "bearer" and any(matches)):
            kind = "an administrator" if admin else "an API"
            why = f"this needs {kind} key; send one as Authorization: Bearer KEY."
            raise AccessDenied(401, why, code="invalid_api_key")


def _digests(keys: Sequence[str]) -> list[bytes]:
    return [hashlib.sha256(key.encode()).digest() for key in keys]


class RecordRequests:
    """Counts requests, and ends those whose client stops reading."""

    def __init__(self, app: ASGIApp, metrics: Metrics, seconds: float) -> None:
        """`seconds` is the longest time that a client may take to read what is sent."""
        self.app = app
        self.metrics = metrics
        self.seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status, stalled = time.perf_counter(), 500, False

        async def recorded(message: Message) -> None:
            nonlocal status, stalled
            status = message.get("status", status)
            try:
                async with asyncio.timeout(self.seconds):
                    await send(message)
            except TimeoutError:
                stalled = True
                raise

        try:
            await self.app(scope, receive, recorded)
        except (TimeoutError, ClientDisconnect):
            if not stalled:
                raise
            log.warning("%r: the client read nothing for %g s", scope["path"], self.seconds)
        finally:
            route = scope.get("route")
            path = "other" if route is None else route.path
            self.metrics.count_request(path, status, time.perf_counter() - began)


class LimitRequests:
    """Reads bodies up to a size and within a time; refuses requests beyond a number at once."""

    def __init__(self, app: ASGIApp, config: ServeConfig, metrics: Metrics) -> None:
        """Take the limits from the configuration."""
        self.app = app
        self.max_body_bytes = config.max_body_bytes
        self.seconds = config.seconds
        self.max_requests = config.max_concurrency + config.max_queue
        self.metrics = metrics
        self._n_requests = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection; it counts as a request from when its body has arrived."""
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS:
            await self.app(scope, receive, send)
            return
        connection = HTTPConnection(scope)
        try:
            body = await self._read(connection, receive)
            if self._n_requests >= self.max_requests:
                raise too_many(f"{self._n_requests} requests are under way")
        except APIError as error:
            await ErrorResponse(connection, error)(scope, receive, send)
            return
        self._n_requests += 1
        self.metrics.in_flight.set(self._n_requests)
        try:
            await self.app(scope, _replayed(body, receive), send)
        finally:
            self._n_requests -= 1
            self.metrics.in_flight.set(self._n_requests)

    async def _read(self, connection: HTTPConnection, receive: Receive) -> bytes:
        limit, body, more = self.max_body_bytes, bytearray(), True
        length = connection.headers.get("content-length", "")
        fits = not (length.isdigit() and int(length) > limit)
        try:
            async with asyncio.timeout(self.seconds):
                while more and fits:
                    message = await receive()
                    body += message.get("body", b"")
                    more, fits = message.get("more_body", False), len(body) <= limit
        except TimeoutError as error:
            why = f"the body did not arrive within {self.seconds:g} s."
            raise APIError(408, why, code="timeout") from error
        if not fits:
            if more:
                await _drain(receive, LARGE_BODIES * limit, min(5.0, self.seconds))
            why = f"the body has more than {limit} bytes; send less."
            raise APIError(413, why, code="body_too_large")
        return bytes(body)


async def _drain(receive: Receive, n_bytes: int, seconds: float) -> None:
    """Read off up to n bytes of what the client still sends."""
    try:
        async with asyncio.timeout(seconds):
            while n_bytes > 0:
                message = await receive()
                n_bytes -= len(message.get("body", b""))
                if not message.get("more_body", False):
                    return
    except TimeoutError:
        return


def _replayed(body: bytes, receive: Receive) -> Receive:
    """A receive that returns a body that was read already, then what comes."""
    unread = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return unread.pop() if unread else await receive()

    return replay
