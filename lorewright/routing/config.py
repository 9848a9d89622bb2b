"""How questions are put to a folder of memories: the settings of `lore ask`, `route` and `chat`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lorewright.errors import ConfigError
from lorewright.knowledge.scoring import LEAST_SUPPORT


@dataclass(frozen=True)
class AskConfig:
    """Who may answer a question, from what, and how easily a question is declined."""

    mode: str = "auto"
    """closed: the memory alone; open: passages, the base; read: the base reads them, the memory
    answers; hybrid: what closed and open agree on; full: the whole source; auto: what was measured
    best, else hybrid."""
    top: int = 3
    """At most so many memories for one question."""
    false_activation: float = 0.05
    """Share of questions no memory is for that may be answered from one all the same."""
    unrouted: Literal["decline", "base"] = "decline"
    """A question that no memory is for: decline it, or let the base answer unless it names
    something that a memory names, as near misses do."""
    support: float = LEAST_SUPPORT
    """Least nearness to a question that was trained with the answer, times confidence in it, with
    which a memory's reply stands; 0 = any does. Needs an encoder; pocket declines by itself."""

    def __post_init__(self) -> None:
        """Refuse what no reply can have."""
        if not 0 <= self.support <= 1:
            raise ConfigError(f"support is {self.support}; give a number from 0 to 1.")
        if self.unrouted not in ("decline", "base"):
            raise ConfigError(f"unrouted is {self.unrouted!r}; use decline or base.")
