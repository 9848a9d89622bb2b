"""Progress of a verb, reported to whoever shows it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lorewright.training.config import Epoch


@dataclass(frozen=True)
class Watch:
    """Functions that are called with progress; by default they do nothing."""

    step: Callable[[str], None] = lambda text: None
    """What a verb does next, in a few words."""
    epoch: Callable[[Epoch], None] = lambda epoch: None
    """The record of a training epoch that is over."""
