"""Claims about experiments: arms differ in one setting; sentences follow the numbers."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from support.commands import Lore, refused

from lorewright.errors import ConfigError
from lorewright.memory.experiments import EXPERIMENTS, RECORD, Outcome, place_of
from lorewright.recall.statistics import wilson
from lorewright.training.config import Epoch, WriteConfig


def outcome(arm: str, trained: int, held: int, nats: tuple[float, ...] = (1.0, 0.5)) -> Outcome:
    """An arm that recalls so many of 40, with these held-out losses by epoch."""
    epochs = tuple(
        Epoch(i, len(nats), 0.1, trained, 40, False, 1e-3, 1.0, 40, each, held, 40)
        for i, each in enumerate(nats, 1)
    )
    return Outcome(arm, epochs, wilson(trained, 40), wilson(held, 40))


def conclude(name: str, *outcomes: Outcome) -> str:
    return EXPERIMENTS[name].conclude(outcomes)


def test_more_rank_holds_more_or_not_and_either_is_said() -> None:
    low, middle, high = outcome("rank 1", 4, 0), outcome("rank 4", 38, 9), outcome("rank 16", 40, 9)
    text = conclude("rank", low, middle, high)
    assert "More rank holds more" in text and "from rank 4 on" in text
    assert str(low.trained) in text and str(high.held) in text and "recalls more as well" in text
    same = conclude("rank", outcome("rank 1", 39, 20), outcome("rank 16", 40, 20))
    assert "expected effect is not there" in same and "no difference" in same
    reverse = conclude("rank", outcome("rank 1", 40, 30), outcome("rank 16", 40, 5))
    assert "the smaller rank recalls more" in reverse


def test_layers_are_compared_with_all_of_them() -> None:
    arms = [outcome("all layers", 40, 30), outcome("attention", 20, 2), outcome("mlp", 40, 28)]
    text = conclude("layers", *arms)
    assert "worse than all layers: attention." in text
    assert "not there" in conclude("layers", *(outcome(a.arm, 40, 20) for a in arms))


def test_one_wording_is_compared_with_several() -> None:
    text = conclude("forms", outcome("1 wording", 40, 3), outcome("4 wordings", 40, 39))
    assert "becomes part of the key" in text and "0.07" in text and "0.97" in text
    assert "not there" in conclude("forms", outcome("1 wording", 40, 38), outcome("4", 40, 39))


def test_overfitting_is_the_rise_of_the_held_out_loss() -> None:
    short, up, flat = (1.0, 0.8), (1.0, 0.5, 0.9), (1.0, 0.6, 0.6)

    def text(plain: tuple[float, ...], kinder: tuple[float, ...]) -> str:
        arms = [outcome("20 epochs", 5, 1, short), outcome("80 epochs", 40, 5, plain)]
        return conclude("overfitting", *arms, outcome("dropout, decay", 40, 9, kinder))

    assert outcome("x", 1, 1, up).rise_nats == pytest.approx(0.4)
    assert "rises by 0.40" in text(up, flat) and "they keep it down" in text(up, flat)
    assert "do not keep it down" in text(up, up)
    assert "expected effect is not there" in text(flat, flat)


def test_merges_are_compared_with_their_sources_together() -> None:
    alone = [outcome(f"source {n}", 40, 30) for n in (1, 2, 3)]
    text = conclude("merging", *alone, outcome("sum", 39, 30), outcome("mean", 4, 1))
    assert text.startswith("One holds what three held") and "n=120" in text
    text = conclude("merging", *alone, outcome("sum", 12, 8), outcome("mean", 0, 0))
    assert "the way decides" in text and "by sum 0.30" in text and "by mean 0.00" in text
    assert "whichever way" in conclude("merging", *alone, outcome("a", 2, 0), outcome("b", 1, 0))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_arms_differ_in_what_is_compared_and_fit_one_stack(name: str) -> None:
    config = WriteConfig(seed=7)
    arms = EXPERIMENTS[name].arms(config)
    assert len({arm.name for arm in arms}) == len(arms) >= 3
    for arm in arms:
        assert (arm.config.seed, arm.config.lr) == (7, config.lr)
        assert arm.config.optimizer == config.optimizer
    compared: dict[str, Any] = {
        "rank": lambda arm: arm.config.lora.rank,
        "layers": lambda arm: (arm.config.lora.targets, arm.config.lora.layers),
        "forms": lambda arm: arm.forms,
        "overfitting": lambda arm: (
            arm.config.epochs,
            arm.config.dropout,
            arm.config.weight_decay,
        ),
        "merging": lambda arm: arm.body,
    }
    assert len({compared[name](arm) for arm in arms}) == len(arms)
    if name == "rank":
        assert len({replace(a.config, lora=arms[0].config.lora) for a in arms}) == 1
    if name == "forms":  # as many steps for each
        assert len({arm.forms * arm.config.epochs for arm in arms}) == 1


def test_an_unknown_experiment_is_refused(lore: Lore) -> None:
    with pytest.raises(ConfigError, match="no experiment 'magic'"):
        place_of("magic")
    refused(lore("sandbox", "magic", "--json"), "ConfigError", "rank")


@pytest.mark.slow
def test_the_command_runs_one_and_stores_its_record(lore: Lore) -> None:
    ran = lore("sandbox", "forms")
    record = json.loads((place_of("forms") / RECORD).read_text())
    assert ran.code == 0 and record["sentence"] in ran.out and record["expected"] in ran.out
    one, *_, most = record["outcomes"]
    assert most["held"]["recall"] > one["held"]["recall"]
