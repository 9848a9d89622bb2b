"""When a write ends: a list of named reasons, each a function of what is known after an epoch.

The first that applies ends it. Two of them are failures, which leave no adapter.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lorewright.training.config import Epoch, WriteConfig


@dataclass(frozen=True)
class Known:
    """What is known of a write when an epoch is over."""

    config: WriteConfig
    epochs: Sequence[Epoch]
    """All so far; the last is the one that is over."""
    n_weighted: int = 1
    """Tokens that had weight in it."""
    finite: bool = True
    """Whether all weights are numbers."""
    idle: Sequence[str] = ()
    """Adapted layers whose B is still zero."""

    @property
    def last(self) -> Epoch:
        """The epoch that is over."""
        return self.epochs[-1]

    @property
    def all_recalled(self) -> bool:
        """Whether every example was recalled when it last ran."""
        return self.last.n_recalled == self.last.n_examples


Stop = Callable[[Known], str]
"""Why a write ends here, in a sentence; empty to go on."""


def diverged(known: Known) -> str:
    """A failure: loss or weights are not finite."""
    lr, last = known.config.lr, known.last
    if not math.isfinite(last.loss_nats):
        return f"the loss is {last.loss_nats} in epoch {last.epoch}; lower lr (it is {lr})."
    return "" if known.finite else f"the weights are no longer finite; lower lr (it is {lr})."


def idle_layers(known: Known) -> str:
    """A failure: a layer that a whole epoch did not move is not reached by the loss."""
    if known.last.epoch > 1 or not known.idle or known.all_recalled:
        return ""
    return (
        f"{len(known.idle)} adapted layers got no gradient in a whole epoch, the first is "
        f"{known.idle[0]!r}; leave them out of targets."
    )


def recalled(known: Known) -> str:
    """Greedy decoding is certain to reproduce every completion, with the weights as they are."""
    return "every example is recalled." if known.last.certified and known.all_recalled else ""


def nothing_left(known: Known) -> str:
    """No token has weight, though not all is recalled: further epochs would not move a thing.

    Tokens may be safe in the batches that train and not in those that check. Examples that rest are
    checked again, so they end nothing.
    """
    stuck = known.n_weighted == 0 and known.config.rest is None and not known.all_recalled
    return "no token has weight any more." if stuck else ""


def budget(known: Known) -> str:
    """All epochs are spent."""
    spent = known.last.epoch >= known.config.epochs
    return f"the budget of {known.config.epochs} epochs is spent." if spent else ""


def seconds(known: Known) -> str:
    """`max_seconds` are spent."""
    limit = known.config.max_seconds
    return f"{limit} seconds are spent." if limit and known.last.seconds >= limit else ""


def patience(known: Known) -> str:
    """The count of recalled examples has not risen for `patience` epochs."""
    best = max(epoch.n_recalled for epoch in known.epochs)
    since = known.last.epoch - next(e.epoch for e in known.epochs if e.n_recalled == best)
    tired = known.config.patience and since >= known.config.patience
    return f"no new example was recalled in {since} epochs." if tired else ""


STOPS: dict[str, Stop] = {
    "diverged": diverged,
    "idle layers": idle_layers,
    "recalled": recalled,
    "nothing left": nothing_left,
    "budget": budget,
    "seconds": seconds,
    "patience": patience,
}
FAILURES = ("diverged", "idle layers")


def stop(known: Known) -> tuple[str, str]:
    """Name and sentence of the first reason to end a write; two empty strings to go on."""
    reasons = ((name, why(known)) for name, why in STOPS.items())
    return next((reason for reason in reasons if reason[1]), ("", ""))
