"""How a folder is served: addresses, keys and limits. Needs neither torch nor the `serve` extra."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lorewright.errors import ConfigError

MIN_KEY_CHARS = 8


@dataclass(frozen=True)
class ServeConfig:
    """How a folder is served."""

    host: str = "127.0.0.1"
    """Address to listen at."""
    port: int = 8000
    """Port; 0 = any free one."""
    keys: tuple[str, ...] = ()
    """API keys; () = no key is needed."""
    admin_keys: tuple[str, ...] = ()
    admin: bool = False
    """Whether there are admin calls; they need a key of their own."""
    max_body_bytes: int = 1 << 20
    """Largest request, in bytes."""
    max_tokens: int = 512
    """Most tokens generated for one reply."""
    max_concurrency: int = 16
    """Replies generated at once, in a batch."""
    max_queue: int = 256
    """Requests that may wait; further ones get status 429."""
    seconds: float = 120.0
    """Most seconds for one request, waiting included; also for its body to arrive."""
    engine_url: str = ""
    """Generate there: vLLM, SGLang or llama.cpp; empty = in this process."""
    engine: str = ""
    """What generates; empty = local, or at the engine's URL what it reports. llamacpp without a
    URL is llama.cpp in this process.

    A key of `backends.BACKENDS`.
    """
    engine_key: str = ""
    """API key of the engine."""
    encoder: str = "auto"
    """How meanings are compared to choose a memory: none, minilm, a folder or a hub name.

    `auto` is what the folder's index was made with on request, else minilm if it was fetched.
    """

    def __post_init__(self) -> None:
        """Raise ConfigError for values out of range and for admin calls without their own key."""
        for name in ("max_body_bytes", "max_tokens", "max_concurrency", "seconds"):
            if not vars(self)[name] > 0:
                raise ConfigError(f"{name} is {vars(self)[name]}; give more than 0.")
        if self.max_queue < 0 or not 0 <= self.port < 1 << 16:
            raise ConfigError(
                f"max_queue is {self.max_queue} and port {self.port}; give a queue of 0 or more "
                "and a port from 0 to 65535."
            )
        if self.admin and not self.admin_keys:
            raise ConfigError(
                "admin calls need a key of their own; set LOREWRIGHT_ADMIN_KEY or give "
                "--admin-key-file, or leave --admin out."
            )
        if self.admin and set(self.admin_keys) & set(self.keys):
            raise ConfigError("an admin key is an API key as well; give admin calls their own.")


def read_keys(path: Path) -> tuple[str, ...]:
    """Return the keys of a file, one a line; empty lines and lines that begin with # are skipped.

    Raises ConfigError for a file that cannot be read, has no keys or an invalid one.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"the key file {path} could not be read: {error}; check the path."
        ) from error
    keys = tuple(line.strip() for line in lines if line.strip() and not line.startswith("#"))
    if not keys:
        raise ConfigError(f"{path} holds no key; write one a line.")
    return checked_keys(keys)


def checked_keys(keys: Sequence[str]) -> tuple[str, ...]:
    """Return the keys. Raises ConfigError for one that is short or cannot stand in a header."""
    for key in keys:
        if len(key) < MIN_KEY_CHARS or not key.isascii() or not key.isprintable():
            raise ConfigError(
                f"a key has {len(key)} characters; give at least {MIN_KEY_CHARS}, all of them "
                "printable ASCII."
            )
    return tuple(keys)
