"""When a write ends: a list of named reasons, each a function of where the write stands.

They are tried after every epoch, in order; the first that applies ends it. Two of them are
failures, which leave no adapter.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lorewright.training.config import Epoch, WriteConfig


@dataclass(frozen=True)
class Status:
    """Where a write stands when an epoch is over."""

    config: WriteConfig
    epochs: Sequence[Epoch]
    """All so far; the last is the one that is over."""
    n_weighted: int = 1
    """Tokens that had weight in it."""
    finite: bool = True
    """Whether all weights are numbers."""
    idle: Sequence[str] = ()
    """Adapted layers whose B is still zero."""
    requested: bool = False
    """Whether somebody wants it to end here."""

    @property
    def last(self) -> Epoch:
        """The epoch that is over."""
        return self.epochs[-1]

    @property
    def all_recalled(self) -> bool:
        """Whether every example was recalled when it last ran."""
        return self.last.n_recalled == self.last.n_examples


Stop = Callable[[Status], str]
"""Why a write ends here, in a sentence; empty to go on."""


def diverged(status: Status) -> str:
    """A failure: loss or weights are not finite."""
    lr, last = status.config.lr, status.last
    if not math.isfinite(last.loss_nats):
        return f"the loss is {last.loss_nats} in epoch {last.epoch}; lower lr (it is {lr})."
    return "" if status.finite else f"the weights are no longer finite; lower lr (it is {lr})."


def idle_layers(status: Status) -> str:
    """A failure: a layer that a whole epoch did not move is not reached by the loss."""
    if status.last.epoch > 1 or not status.idle or status.all_recalled:
        return ""
    return (
        f"{len(status.idle)} adapted layers got no gradient in a whole epoch, the first is "
        f"{status.idle[0]!r}; leave them out of targets."
    )


def recalled(status: Status) -> str:
    """Greedy decoding is certain to reproduce every completion, with the weights as they are."""
    return "every example is recalled." if status.last.certified and status.all_recalled else ""


def nothing_left(status: Status) -> str:
    """No token has weight, though not all is recalled: further epochs would change nothing.

    Tokens may be safe in the batches that train and not in those that check. Examples that rest
    wait for their next check.
    """
    stuck = status.n_weighted == 0 and status.config.rest is None and not status.all_recalled
    return "no token has weight any more." if stuck else ""


def stopped(status: Status) -> str:
    """Somebody had it end; what it has learnt by then stays."""
    return "it was stopped on request." if status.requested else ""


def budget(status: Status) -> str:
    """All epochs are spent."""
    spent = status.last.epoch >= status.config.epochs
    return f"the budget of {status.config.epochs} epochs is spent." if spent else ""


def seconds(status: Status) -> str:
    """`max_seconds` are spent."""
    limit = status.config.max_seconds
    return f"{limit} seconds are spent." if limit and status.last.seconds >= limit else ""


def patience(status: Status) -> str:
    """For `patience` epochs no further example was recalled, and no further token became likely.

    Before the first examples are whole, only tokens show that something is learnt.
    """
    best = max(epoch.n_recalled for epoch in status.epochs)
    gained = next(e.epoch for e in status.epochs if e.n_recalled == best)
    doubtful = [(e.n_doubtful, e.epoch) for e in status.epochs if e.n_doubtful is not None]
    since = status.last.epoch - max(gained, min(doubtful, default=(0, gained))[1])
    tired = status.config.patience and since >= status.config.patience
    return f"no new example was recalled in {since} epochs." if tired else ""


STOPS: dict[str, Stop] = {
    "diverged": diverged,
    "idle layers": idle_layers,
    "recalled": recalled,
    "nothing left": nothing_left,
    "stopped": stopped,
    "budget": budget,
    "seconds": seconds,
    "patience": patience,
}
FAILURES = ("diverged", "idle layers")


def stop(status: Status) -> tuple[str, str]:
    """Name and sentence of the first reason to end a write; two empty strings to go on."""
    reasons = ((name, why(status)) for name, why in STOPS.items())
    return next((reason for reason in reasons if reason[1]), ("", ""))
