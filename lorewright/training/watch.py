"""Progress of a verb, reported to whoever shows it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lorewright.training.config import Epoch

TRAINING = "training"
"""The phase in which epochs are reported besides."""


@dataclass(frozen=True)
class Watch:
    """Functions that are called with progress; by default they do nothing."""

    step: Callable[[str], None] = lambda text: None
    """What a verb does next, in a few words."""
    epoch: Callable[[Epoch], None] = lambda epoch: None
    """The record of a training epoch that is over."""
    advance: Callable[[str, int, int, str], None] = lambda phase, done, total, note: None
    """(phase, done, total, note) of a long phase, called again and again: how much of its work is
    done, in tokens or whatever takes equal time, of how much at most; and what that comes to, as
    `arm base: 12 of 30`. A phase ends when another one begins."""
