"""Claims about why a write ends: each reason by name, and which comes first."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from lorewright.training.config import Epoch, WriteConfig
from lorewright.training.stopping import FAILURES, STOPS, Status, stop

CONFIG = WriteConfig(epochs=50)


def epochs(*recalled: int, **last: Any) -> list[Epoch]:
    """Of 9 examples, so many recalled after each epoch; `last` changes the last record."""
    records = [Epoch(i, 50, 1.0, n, 9, False, 0.0, 0.0) for i, n in enumerate(recalled, start=1)]
    return [*records[:-1], replace(records[-1], **last)]


@pytest.mark.parametrize(
    ("records", "settings", "more", "reason"),
    [
        (epochs(1, 9), {}, {}, ""),
        (epochs(1, 9, certified=True), {}, {}, "recalled"),
        (epochs(1, 8, certified=True), {}, {}, ""),
        (epochs(1, 2, 3), {"epochs": 3}, {}, "budget"),
        (epochs(1, 2, seconds=5.0), {"max_seconds": 5}, {}, "seconds"),
        (epochs(1, 2, seconds=4.9), {"max_seconds": 5}, {}, ""),
        (epochs(3, 2, 3, 3), {"patience": 3}, {}, "patience"),
        (epochs(3, 2, 3, 4), {"patience": 3}, {}, ""),
        (epochs(3, 2, 3, 3), {"patience": 0}, {}, ""),
        (epochs(1, 8), {}, {"n_weighted": 0}, "nothing left"),
        (epochs(1, 8), {"rest": 0.9}, {"n_weighted": 0}, ""),
        (epochs(1, 9), {}, {"n_weighted": 0}, ""),
        (epochs(0), {}, {"idle": ["q"]}, "idle layers"),
        (epochs(9), {}, {"idle": ["q"]}, ""),
        (epochs(0, 0), {}, {"idle": ["q"]}, ""),
        (epochs(0, loss_nats=math.nan), {}, {}, "diverged"),
        (epochs(0, 0, 0), {"epochs": 3}, {"finite": False}, "diverged"),
        (epochs(0, 9, certified=True), {"epochs": 2}, {}, "recalled"),
    ],
)
def test_why_a_write_ends(
    records: Sequence[Epoch], settings: dict[str, Any], more: dict[str, Any], reason: str
) -> None:
    name, why = stop(Status(replace(CONFIG, **settings), records, **more))
    assert name == reason
    assert bool(why) == bool(reason)


def test_patience_waits_while_further_tokens_become_likely() -> None:
    """Before the first example is whole, and when nothing new is, tokens show what is learnt."""
    early = [
        replace(e, n_doubtful=n) for e, n in zip(epochs(0, 0, 0, 0), (99, 84, 61, 41), strict=True)
    ]
    config = replace(CONFIG, patience=3)
    assert stop(Status(config, early)) == ("", "")
    late = [replace(e, n_doubtful=n) for e, n in zip(epochs(2, 2, 2, 2), (5, 7, 5, 6), strict=True)]
    assert stop(Status(config, late))[0] == "patience"


def test_failures_say_what_to_do() -> None:
    for status, remedy in (
        (Status(CONFIG, epochs(0, loss_nats=math.inf)), "the loss is inf in epoch 1; lower lr (it"),
        (Status(CONFIG, epochs(0), finite=False), "weights are no longer finite; lower lr (it is"),
        (Status(CONFIG, epochs(0), idle=["a", "b"]), "2 adapted layers got no gradient"),
    ):
        name, why = stop(status)
        assert name in FAILURES and remedy in why
    assert set(FAILURES) < STOPS.keys()
