"""Who may come in: keys, the size of a body, how many at once; and what is counted of it.

A plain ASGI middleware around the whole server. Keys are compared as digests in constant time,
against all of them. A body is read here, up to the limit and within the time-out, before anything
else happens with it. This room knows HTTP. It knows nothing of models.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import re
import time
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorewright.errors import ConfigError, StorageError
from lorewright.serve.meters import Meters
from lorewright.serve.wire import Refused

Scope = MutableMapping[str, Any]
Event = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN_PATHS = ("/health", "/ready", "/metrics")
"""Paths that need no key: what machines look at."""
ADMIN_PATHS = ("/admin/", "/v1/load_lora_adapter", "/v1/unload_lora_adapter")
"""Paths that need an administrator's key."""
LOCAL_HOSTS = ("localhost", "127.0.0.1", "[::1]")
MIN_KEY_CHARS = 8
DRAINED_BODIES = 16
"""How many times the limit of a refused body is read off, so that the client hears the refusal."""


@dataclass(frozen=True)
class Doors:
    """What the gate lets in."""

    keys: tuple[str, ...] = ()
    """Any of these opens the API; () = everybody may."""
    admin_keys: tuple[str, ...] = ()
    """Any of these opens the admin calls as well."""
    max_body_bytes: int = 1 << 20
    max_requests: int = 256
    """Requests under way at once, those that wait included."""
    seconds: float = 120.0
    """Longest time that a body may take to arrive."""
    local_only: bool = False
    """Whether the Host must be this machine: without keys, a page that a browser here has open
    could otherwise ask, under a name that leads here."""


def read_keys(path: Path) -> tuple[str, ...]:
    """Return the keys of a file, one a line; empty lines and those that begin with # do not count.

    Raises ConfigError for a file without keys or with one that is too short to be one.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise StorageError(f"the key file {path} could not be read: {error}.") from error
    keys = tuple(line.strip() for line in lines if line.strip() and not line.startswith("#"))
    if not keys:
        raise ConfigError(f"{path} holds no key; write one a line.")
    return checked_keys(keys)


def checked_keys(keys: Sequence[str]) -> tuple[str, ...]:
    """Return the keys. Raises ConfigError for one that is short or could not be sent."""
    for key in keys:
        if len(key) < MIN_KEY_CHARS or not key.isascii() or not key.isprintable():
            raise ConfigError(
                f"a key has {len(key)} characters; give at least {MIN_KEY_CHARS}, all of them "
                "printable ASCII."
            )
    return tuple(keys)


def _digests(keys: Sequence[str]) -> list[bytes]:
    return [hashlib.sha256(key.encode()).digest() for key in keys]


class Gate:
    """The middleware."""

    def __init__(self, app: App, doors: Doors, meters: Meters) -> None:
        """Stand before an ASGI application."""
        self.app = app
        self.doors = doors
        self.meters = meters
        self._keys = _digests([*doors.keys, *doors.admin_keys])
        self._admin_keys = _digests(doors.admin_keys)
        self._n_inside = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request in, or answer with an error object."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status = time.perf_counter(), 500

        async def counted(message: Event) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        path = str(scope["path"])
        try:
            await self._admit(path, scope, receive, counted)
        except Refused as refused:
            await _answer(refused, counted)
        finally:
            self.meters.answered(path, status, time.perf_counter() - began)

    async def _admit(self, path: str, scope: Scope, receive: Receive, send: Send) -> None:
        if path in OPEN_PATHS:
            await self.app(scope, receive, send)
            return
        headers = {bytes(name).lower(): bytes(value) for name, value in scope["headers"]}
        try:
            self._check_host(headers)
            self._check_key(path, headers)
            if self._n_inside >= self.doors.max_requests:
                raise Refused(
                    429,
                    f"{self._n_inside} requests are under way; ask again later.",
                    code="rate_limit_exceeded",
                    retry_after_seconds=1,
                )
        except Refused:
            await self._drain(receive)
            raise
        self._n_inside += 1
        self.meters.inside(self._n_inside)
        try:
            body = await self._read(headers, receive)
            await self.app(scope, _replayed(body, receive), send)
        finally:
            self._n_inside -= 1
            self.meters.inside(self._n_inside)

    def _check_host(self, headers: dict[bytes, bytes]) -> None:
        host = headers.get(b"host", b"localhost").decode("latin-1").lower()
        name = host.rpartition(":")[0] if re.search(r":\d*\Z", host) else host
        if self.doors.local_only and name not in LOCAL_HOSTS:
            raise Refused(
                403,
                f"this server answers to this machine only, not as {name[:100]!r}; ask for "
                "localhost, or start it with an API key.",
            )

    def _check_key(self, path: str, headers: dict[bytes, bytes]) -> None:
        admin = path.startswith(ADMIN_PATHS)
        keys = self._admin_keys if admin else self._keys
        if not keys and not admin:
            return
        scheme, _, key = headers.get(b"authorization", b"").partition(b" ")
        given = hashlib.sha256(key.strip()).digest()
        # every comparison is made, so that time does not tell which key was nearly right
        fits = [hmac.compare_digest(given, each) for each in keys]
        if scheme.lower() != b"bearer" or not any(fits):
            raise Refused(
                401,
                f"this needs {'an administrator' if admin else 'an API'} key; send one as "
                "Authorization: Bearer KEY.",
                code="invalid_api_key",
            )

    async def _read(self, headers: dict[bytes, bytes], receive: Receive) -> bytes:
        """The body. Raises Refused when it is too large or does not come."""
        limit = self.doors.max_body_bytes
        length = headers.get(b"content-length", b"0")
        try:
            if length.isdigit() and int(length) > limit:
                raise _too_large(limit)
            body = bytearray()
            async with asyncio.timeout(self.doors.seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        break
                    body += message.get("body", b"")
                    if len(body) > limit:
                        raise _too_large(limit)
                    if not message.get("more_body", False):
                        break
            return bytes(body)
        except TimeoutError as error:
            raise Refused(
                408, f"the body did not arrive within {self.doors.seconds:g} s.", code="timeout"
            ) from error
        except Refused:
            await self._drain(receive)
            raise

    async def _drain(self, receive: Receive) -> None:
        """Read off what the client still sends; one that is cut short never sees the answer."""
        n_left = DRAINED_BODIES * self.doors.max_body_bytes
        try:
            async with asyncio.timeout(min(5.0, self.doors.seconds)):
                while n_left > 0:
                    message = await receive()
                    n_left -= len(message.get("body", b""))
                    if message["type"] == "http.disconnect" or not message.get("more_body", False):
                        return
        except TimeoutError:
            return


def _too_large(limit: int) -> Refused:
    return Refused(413, f"the body has more than {limit} bytes; send less.", code="body_too_large")


def _replayed(body: bytes, receive: Receive) -> Receive:
    """A receive that gives a body that was read already, then whatever comes."""
    given = False

    async def replay() -> Event:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


async def _answer(refused: Refused, send: Send) -> None:
    content = json.dumps(refused.to_json()).encode()
    headers = {
        "content-type": "application/json",
        "content-length": str(len(content)),
        **refused.headers,
    }
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": refused.status, "headers": raw})
    await send({"type": "http.response.body", "body": content})
