"""Progress of a verb, reported to whoever shows it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lorewright.training.config import Epoch

Advance = Callable[[str, int, int, str], None]
"""(phase, done, total, note): how much of a long phase's work is done, in tokens or whatever takes
equal time, of how much at most; and what that comes to, as `12 of 30 answered`."""
TRAINING = "training"
"""The phase in which epochs are reported besides."""


@dataclass(frozen=True)
class Watch:
    """Functions that are called with progress; by default they do nothing."""

    step: Callable[[str], None] = lambda text: None
    """What a verb does next, in a few words."""
    epoch: Callable[[Epoch], None] = lambda epoch: None
    """The record of a training epoch that is over."""
    advance: Advance = lambda phase, done, total, note: None
    """Called again and again in a long phase; the phase ends when another one begins."""
    closely: bool = False
    """Whether held-out questions are measured after every epoch, whatever that takes."""

    def of(self, phase: str) -> Callable[[int, int], None]:
        """What is called with (done, total) of one phase."""
        return lambda done, total: self.advance(phase, done, total, "")
