"""How the learning rate of a write goes on: functions of its progress, by name.

Knows numbers only, so a resumed write agrees with itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

FIRST_CYCLE, SECOND_PEAK = 0.6, 0.5
"""Of `restart`: share of the budget after which the rate begins anew, and at which share of it."""


@dataclass(frozen=True)
class Elapsed:
    """How far a write has come, in passes over its examples."""

    epochs: float
    budget: int
    nearly_recalled: float = math.inf
    """The epoch after which nearly all examples were recalled for the first time."""

    @property
    def share(self) -> float:
        """Of the budget, at most 1."""
        return min(1.0, self.epochs / self.budget)


Schedule = Callable[[float, Elapsed], float]
"""(peak rate, elapsed) -> rate."""


def constant(peak: float, at: Elapsed) -> float:
    """The peak throughout."""
    return peak


def linear(peak: float, at: Elapsed) -> float:
    """To zero over the budget."""
    return peak * (1 - at.share)


def cosine(peak: float, at: Elapsed) -> float:
    """To zero over the budget along half a cosine."""
    return peak * (1 + math.cos(math.pi * at.share)) / 2


def restart(peak: float, at: Elapsed) -> float:
    """To zero over three fifths of the budget, then from half the peak to zero over the rest.

    As SGDR, arXiv 1608.03983, for what is left when the rate is gone.
    """
    if at.share < FIRST_CYCLE:
        return peak * (1 - at.share / FIRST_CYCLE)
    return peak * SECOND_PEAK * (1 - at.share) / (1 - FIRST_CYCLE)


def wsd(peak: float, at: Elapsed) -> float:
    """Warm, stable, decay: the peak until nearly all is recalled or two thirds are spent.

    Then linear to a tenth over a third of the epochs that it was held.
    """
    held = min(at.nearly_recalled, at.budget * 2 / 3)
    fallen = (at.epochs - held) / max(2.0, held / 3)
    return peak * min(1.0, max(0.1, 1 - 0.9 * fallen))


SCHEDULES: dict[str, Schedule] = {
    "linear": linear,
    "constant": constant,
    "cosine": cosine,
    "wsd": wsd,
    "restart": restart,
}
