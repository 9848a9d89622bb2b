"""Who may look: one gate for requests and for sockets, before anything else sees them.

    Host ─▶ Origin ─▶ cookie, or the token that becomes one ─▶ the pages

A page of another site can send a browser here. So a request must name this studio as its host, may
come from no other origin, and carries a cookie that such a page cannot have: HttpOnly, same site
only, set in exchange for the token of the printed address. Without a token file that token works
once. There are no sockets; whoever opens one is refused like any other connection, or closed.
"""

from __future__ import annotations

import hmac
import re
import secrets
from urllib.parse import parse_qs

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import HTTPConnection
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lorewright.serve.listening import LOOPBACK
from lorewright.studio.config import StudioConfig

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
ENTER = (
    '<!doctype html><html lang="en"><meta charset="utf-8"><title>Lorewright studio</title>'
    '<meta http-equiv="refresh" content="0; url=/"><p><a href="/">Open the studio</a></p></html>'
)


class Gate:
    """ASGI middleware that lets in who belongs here, and adds the headers that protect pages."""

    def __init__(self, app: ASGIApp, config: StudioConfig, token: str, *, once: bool) -> None:
        """`once`: the token is exchanged for a cookie a single time."""
        self.app, self.config, self.token, self.once = app, config, token, once
        self.session = secrets.token_urlsafe(32)
        self.cookie = f"lorewright-studio-{secrets.token_hex(4)}"
        # cookies do not know ports: two studios of one machine would overwrite each other's

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection, or refuse it."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        connection = HTTPConnection(scope)
        why = self._refusal(connection.headers)
        if scope["type"] != "http":
            await _close(receive, send)
            return
        if why:
            await self._answer(PlainTextResponse(f"{why}\n", 403), scope, receive, send)
        elif self._known(connection):
            await self.app(scope, receive, self._protected(send))
        elif (given := self._token_in(scope)) and self._accepts(given):
            entered = HTMLResponse(ENTER)
            entered.set_cookie(self.cookie, self.session, httponly=True, samesite="strict")
            await self._answer(entered, scope, receive, send)
        else:
            why = "Open the studio by the address that it printed; its token works once.\n"
            await self._answer(PlainTextResponse(why, 401), scope, receive, send)

    def _refusal(self, headers: Headers) -> str:
        """Why host or origin are not accepted; empty when they are."""
        host = headers.get("host", "")
        name = re.sub(r":\d*\Z", "", host).strip("[]").lower()
        if self.config.local and name not in LOOPBACK:
            return f"{name[:100]!r} is not this machine; use localhost."
        origin = headers.get("origin")
        if origin is not None and origin not in (f"http://{host}", f"https://{host}"):
            return "This request comes from another site."
        return ""

    def _known(self, connection: HTTPConnection) -> bool:
        given = connection.cookies.get(self.cookie, "")
        return hmac.compare_digest(given.encode(), self.session.encode())

    def _token_in(self, scope: Scope) -> str:
        return parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]

    def _accepts(self, given: str) -> bool:
        if not self.token or not hmac.compare_digest(given.encode(), self.token.encode()):
            return False
        if self.once:
            self.token = ""
        return True

    async def _answer(self, response: Response, scope: Scope, receive: Receive, send: Send) -> None:
        await response(scope, receive, self._protected(send))

    def _protected(self, send: Send) -> Send:
        async def protected(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                headers.setdefault("cache-control", "no-store")
            await send(message)

        return protected


async def _close(receive: Receive, send: Send) -> None:
    """Refuse a socket before it is open: the client sees status 403."""
    await receive()
    await send({"type": "websocket.close", "code": 1008})
