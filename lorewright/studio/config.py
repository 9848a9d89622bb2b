"""How a studio is opened: where it listens, who may look, and whether anything may be changed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lorewright.errors import ConfigError
from lorewright.serve.listening import LOOPBACK

MIN_TOKEN_CHARS = 16


@dataclass(frozen=True)
class StudioConfig:
    """How a studio is opened."""

    host: str = "127.0.0.1"
    """Address to listen at; another than this machine's own needs a token file."""
    port: int = 8765
    """Port; 0 = any free one."""
    read_only: bool = False
    """Offer nothing that changes the folder."""
    max_upload_bytes: int = 4 << 20
    """Largest text that may be written, in bytes."""
    records: str = ""
    """Folder of `lore bench` records, whose table of methods the page Compare shows."""

    def __post_init__(self) -> None:
        """Raise ConfigError for values out of range."""
        if not 0 <= self.port < 1 << 16 or self.max_upload_bytes < 1:
            raise ConfigError(
                f"port is {self.port} and max_upload_bytes {self.max_upload_bytes}; give a port "
                "from 0 to 65535 and at least 1 byte."
            )

    @property
    def local(self) -> bool:
        """Whether only this machine can reach it."""
        return self.host in LOOPBACK


def read_token(path: Path) -> str:
    """The token of a file: its first line. Raises ConfigError for one that can be guessed."""
    try:
        token = path.read_text(encoding="utf-8").split("\n")[0].strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"the token file {path} could not be read: {error}; check the path."
        ) from error
    if len(token) < MIN_TOKEN_CHARS or not token.isascii() or not token.isprintable():
        raise ConfigError(
            f"the token in {path} has {len(token)} characters; give at least {MIN_TOKEN_CHARS}, "
            "all of them printable ASCII."
        )
    return token
