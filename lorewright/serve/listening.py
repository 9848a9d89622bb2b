"""Where a server listens: an address that is open, or a sentence that says why not.

Needs neither torch nor an extra.
"""

from __future__ import annotations

import socket

from lorewright.errors import ConfigError

LOOPBACK = ("127.0.0.1", "::1", "localhost")
"""Hosts that only this machine reaches."""


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 = any free one. Raises ConfigError when it cannot be opened."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        server = socket.create_server((host, port), family=family, backlog=128)
    except OSError as error:
        raise ConfigError(
            f"{host}:{port} cannot be opened ({error.strerror or error}); give another --port or "
            "--host."
        ) from error
    # opened anew, it knows its protocol, and asyncio turns off Nagle's algorithm: 40 ms a reply
    return socket.socket(fileno=server.detach())


def address(host: str, listener: socket.socket) -> str:
    """What a browser or client opens."""
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{listener.getsockname()[1]}"
