"""Contracts over every way of merging, by name."""

from __future__ import annotations

import pytest
import torch
from support.models import an_adapter
from support.writes import EXAMPLES, tiny

from lorewright.adapters.adapter import HALVES, Adapter
from lorewright.errors import ConfigError
from lorewright.merging.algebra import COMBINATIONS
from lorewright.merging.methods import METHODS, Evidence, named
from lorewright.models.model import Model

WHOLE = {"density": 1.0}
TRIMS = ("ties", "dare", "dare_ties", "magnitude_prune")
BRIEF = {"refine": {"epochs": 1}, "rewrite": {"epochs": 1}}


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny()


def merged(model: Model, adapters: list[Adapter], method: str, **how: object) -> Adapter:
    options = WHOLE if method in TRIMS else BRIEF.get(method, {})
    evidence = Evidence(model, [EXAMPLES] * len(adapters), **{"options": options, **how})  # type: ignore[arg-type]
    return METHODS[method](adapters, evidence)


def change_of(adapter: Adapter, module: str) -> torch.Tensor:
    A_RI, B_OR = (adapter.tensors[module + half] for half in HALVES)
    return adapter.config.scale * B_OR.double() @ A_RI.double()


@pytest.mark.parametrize("method", METHODS)
def test_two_adapters_become_one_plain_adapter_of_the_base(model: Model, method: str) -> None:
    two = [an_adapter(model), an_adapter(model, seed=1)]
    copies = [{key: tensor.clone() for key, tensor in each.tensors.items()} for each in two]
    adapter = merged(model, two, method)
    assert adapter.base_digest == model.digest and adapter.config.variant == "lora"
    assert adapter.config.rank == sum(each.config.rank for each in two)
    record = adapter.card["merge"]
    assert record["method"] == method and len(record["sources"]) == 2
    assert all(isinstance(note, str) for note in record["notes"])
    for each, copy in zip(two, copies, strict=True):
        assert all(torch.equal(each.tensors[key], tensor) for key, tensor in copy.items())


@pytest.mark.parametrize("method", COMBINATIONS)
def test_one_adapter_at_weight_one_is_its_own_merge(model: Model, method: str) -> None:
    one = an_adapter(model)
    adapter = merged(model, [one], method)
    for module in one.modules:
        wanted = change_of(one, module)
        # two products of float32 factors over the rank, each rounded once
        most = 8 * torch.finfo(torch.float32).eps * wanted.abs().max().item() * one.config.rank
        assert (change_of(adapter, module) - wanted).abs().max() <= most


@pytest.mark.parametrize("method", METHODS)
def test_options_that_a_method_lacks_are_refused_by_name(model: Model, method: str) -> None:
    with pytest.raises(ConfigError, match=r"unknown: .'zest'."):
        merged(model, [an_adapter(model)], method, options={"zest": 1.0})


@pytest.mark.parametrize("method", ["refine", "rewrite"])
def test_methods_that_train_take_no_weights(model: Model, method: str) -> None:
    with pytest.raises(ConfigError, match="leave the weights out"):
        merged(model, [an_adapter(model)], method, weights=[0.5])


def test_a_method_is_a_name_or_a_function() -> None:
    def mine(adapters: object, evidence: Evidence) -> Adapter:
        raise NotImplementedError

    assert named("svd") == ("svd", METHODS["svd"]) and named(mine) == ("mine", mine)
    with pytest.raises(ConfigError, match="no method 'tis'; choose one of auto, cat"):
        named("tis")
