"""Claims about settings: ranges, presets by the size of the data, and what cards have."""

from __future__ import annotations

import math
from dataclasses import asdict
from itertools import pairwise
from typing import Any

import pytest

from lorewright.adapters.config import LoraConfig
from lorewright.errors import ConfigError
from lorewright.training.config import PRESETS, WriteConfig, drill, generalise, preset_of
from lorewright.training.optimisers import WHITENED

SIZES = (1, 30, 100, 400, 999, 1_000, 3_000, 10_000, 40_000, 100_000, 2_000_000)
RANGES = (
    (1_000, (0.1, 0.15), (0.05, 0.1)),
    (10_000, (0.05, 0.1), (0.01, 0.05)),
    (100_000, (0.0, 0.05), (0.01, 0.01)),
    (10**9, (0.0, 0.0), (0.01, 0.01)),
)


def test_exact_memory_is_the_default_and_has_neither() -> None:
    assert WriteConfig().dropout == WriteConfig().weight_decay == 0
    for n in SIZES:
        assert PRESETS["exact"](WriteConfig(), n) == WriteConfig()


@pytest.mark.parametrize("n", SIZES)
def test_generalise_stays_in_the_published_ranges(n: int) -> None:
    dropouts, decays = next((a, b) for below, a, b in RANGES if n <= below)
    result = generalise(WriteConfig(), n)
    assert dropouts[0] <= result.dropout <= dropouts[1]
    assert decays[0] <= result.weight_decay <= decays[1]


def test_more_data_never_asks_for_more_of_either() -> None:
    result = [generalise(WriteConfig(), n) for n in SIZES]
    for less, more in pairwise(result):
        assert less.dropout >= more.dropout and less.weight_decay >= more.weight_decay


def test_one_example_more_makes_no_jump() -> None:
    for n in (100, 1_000, 10_000, 100_000):
        a, b = generalise(WriteConfig(), n), generalise(WriteConfig(), n + 1)
        assert abs(a.dropout - b.dropout) < 1e-3 and abs(a.weight_decay - b.weight_decay) < 1e-3


def test_what_is_set_stays_beside_a_preset() -> None:
    result = generalise(WriteConfig(dropout=0.3, lr=1e-4), 500)
    assert result.dropout == 0.3 and result.weight_decay > 0 and result.lr == 1e-4
    assert generalise(WriteConfig(weight_decay=0.2), 500).weight_decay == 0.2


def test_drill_lets_rest_what_is_safe_and_leaves_a_rest_that_is_set() -> None:
    result = drill(WriteConfig(lr=1e-4, margin=0.95), 10)
    assert (result.optimizer, result.rest, result.lr) == (WHITENED, 0.95, 1e-4)
    assert drill(WriteConfig(rest=0.7), 10).rest == 0.7


def test_an_unknown_preset_and_no_examples_are_refused() -> None:
    with pytest.raises(ConfigError, match="'luck' is unknown; use one of exact, drill, generalise"):
        preset_of("luck")
    with pytest.raises(ConfigError, match="at least one example; got 0"):
        generalise(WriteConfig(), 0)


@pytest.mark.parametrize("dropout", [-0.1, 1.0, float("nan")])
def test_a_dropout_that_is_no_share_is_refused(dropout: float) -> None:
    with pytest.raises(ConfigError, match=r"dropout must lie in \[0, 1\)"):
        WriteConfig(dropout=dropout)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("objective", "magic", "'magic' is unknown; use one of distill, memft_threshold, memft_w"),
        ("order", "sorted", "'sorted' is unknown; use one of shuffle, curriculum"),
        ("schedule", "up", "'up' is unknown; use one of linear, constant, cosine, wsd, restart"),
        ("optimizer", "sgd", "'sgd' is unknown; use one of adamw, muon, preconditioned, whitened"),
        ("margin", 0.4, r"margin must lie in \[0.5, 1\); got 0.4"),
        ("margin", 1.0, r"margin must lie in \[0.5, 1\)"),
        ("lr", 0.0, "lr must be above 0; got 0.0"),
        ("lr", math.nan, "lr must be above 0"),
        ("epochs", 0, "epochs must be a whole number from 1"),
        ("batch_size", -1, "batch_size must be a whole number from 1"),
        ("max_seconds", 0, "max_seconds must be above 0; got 0"),
        ("rest", 0.5, r"rest must lie in \[margin, 1\), where margin is 0.6; got 0.5"),
        ("clip", -1.0, "clip must be above 0"),
    ],
)
def test_settings_out_of_range_are_refused(field: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        WriteConfig(**{field: value})


def test_fields_that_came_later_are_left_out_at_their_default() -> None:
    plain = asdict(WriteConfig())
    for later in ("dropout", "rehearsal", "null_space", "size", "arithmetic", "kit"):
        plain.pop(later)
    plain["lora"].pop("variant")
    assert WriteConfig().to_json() == plain
    assert WriteConfig(dropout=0.1).to_json()["dropout"] == 0.1
    assert WriteConfig(lora=LoraConfig(variant="dora")).to_json()["lora"]["variant"] == "dora"
