"""Claims about the rate finder: the rate that recalls wins, divergence is survived or reported."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support.writes import CONFIG, EXAMPLES, tiny

from lorewright.errors import ConfigError, ModelError
from lorewright.models.model import Model
from lorewright.training.rates import find_lr, suggested_lr


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny()


def test_the_best_rate_recalls_most_and_loses_least(model: Model) -> None:
    seen: set[float] = set()
    rates = (1e-6, 1e-2, 1e30)
    result = find_lr(model, EXAMPLES, CONFIG, rates=rates, on_epoch=lambda lr, epoch: seen.add(lr))
    assert [trial.lr for trial in result.trials] == sorted(rates)
    assert result.best.lr == 1e-2
    assert not result.at_the_edge
    assert result.trials[0].loss_nats > result.best.loss_nats
    assert result.trials[2].loss_nats == float("inf")
    assert {1e-6, 1e-2} <= seen


def test_rates_around_the_suggested_one_are_tried_by_default(model: Model) -> None:
    result = find_lr(model, EXAMPLES, replace(CONFIG, epochs=8))
    rates = [trial.lr for trial in result.trials]
    assert min(rates) < suggested_lr(model) < max(rates)


def test_the_search_leaves_the_base_as_it_was(model: Model) -> None:
    ids = torch.arange(3, 30)[None]
    with torch.no_grad():
        before = model.network(ids).logits
        find_lr(model, EXAMPLES, replace(CONFIG, epochs=4), rates=(1e-2, 2e-2))
        assert torch.equal(model.network(ids).logits, before)


def test_rates_that_all_diverge_or_are_no_rates_are_refused(model: Model) -> None:
    with pytest.raises(ModelError, match=r"no rate .* worked; .* lower lr"):
        find_lr(model, EXAMPLES, CONFIG, rates=(1e30, 1e31))
    with pytest.raises(ConfigError, match="rates must be above 0"):
        find_lr(model, EXAMPLES, CONFIG, rates=(1e-3, -1.0))
