"""Claims about running layers one at a time: the same states in every family, honest refusals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.families import FAMILIES, llama, logits, token_ids
from support.models import letters
from torch import Tensor, nn

from lorewright.errors import ModelError
from lorewright.merging.layerwise import Layers, tapping
from lorewright.models.model import Model

Build = Callable[[], nn.Module]
family = pytest.mark.parametrize("build", FAMILIES.values(), ids=FAMILIES)


def tiny(build: Build) -> Model:
    return Model(build(), letters(), "tiny")  # type: ignore[arg-type]


@torch.no_grad()
def through(layers: Layers, ids_BT: Tensor) -> Tensor:
    start = layers.enter(ids_BT)
    hidden_BTD = start.hidden_BTD
    for at in range(len(layers)):
        hidden_BTD = layers.run(at, start, hidden_BTD)
    return hidden_BTD


@family
def test_layers_run_one_at_a_time_give_the_states_of_the_whole_network(build: Build) -> None:
    model = tiny(build)
    before, ids_BT = logits(model.network), token_ids()
    layers, real_BT = Layers(model), torch.ones(3, 7, dtype=torch.bool)
    last_BTD = through(layers, ids_BT)
    layers.check(ids_BT, last_BTD, real_BT)
    with pytest.raises(ModelError, match="one at a time differ from the whole network by"):
        layers.check(ids_BT, last_BTD + 1.0, real_BT)
    assert torch.equal(before, logits(model.network)), "afterwards it is as before"


def test_other_layers_are_not_run_and_states_that_are_fed_are_used() -> None:
    model, ids_BT = tiny(lambda: llama(num_hidden_layers=3)), token_ids()
    layers, ran = Layers(model), []
    with torch.no_grad():
        start = layers.enter(ids_BT)
    hooks = [
        layers.layers[at].mlp.register_forward_hook(lambda *_, at=at: ran.append(at))  # type: ignore[union-attr,misc]
        for at in range(3)
    ]
    with torch.no_grad():
        once = layers.run(1, start, start.hidden_BTD)
        other = layers.run(1, start, 2 * start.hidden_BTD)
    assert ran == [1, 1] and not torch.allclose(once, other)
    for hook in hooks:
        hook.remove()


def test_an_error_inside_a_layer_leaves_the_network_as_it_was() -> None:
    model, ids_BT = tiny(llama), token_ids()
    before, layers = logits(model.network), Layers(model)
    start = layers.enter(ids_BT)

    def fail(*_: Any) -> None:
        raise ValueError("no")

    hook = layers.layers[1].register_forward_pre_hook(fail)
    with pytest.raises(ValueError, match="no"), torch.no_grad():
        layers.run(1, start, torch.zeros(3, 7, 32))
    hook.remove()
    assert torch.equal(before, logits(model.network))
    assert not any("forward" in vars(layer) for layer in layers.layers)


def test_what_is_tapped_comes_in_the_order_of_calls_and_nothing_stays_hooked() -> None:
    model = tiny(llama)
    start = "model.layers.1.self_attn."
    names = [start + part for part in ("o_proj", "v_proj", "q_proj")]
    with tapping(model.network, names) as tap:
        logits(model.network)
    assert list(tap) == [start + "q_proj", start + "v_proj", start + "o_proj"]
    x_BTI, y_BTO = tap[start + "q_proj"]
    layer = model.network.get_submodule(start + "q_proj")
    torch.testing.assert_close(layer(x_BTI), y_BTO)
    assert tap[start + "v_proj"][0] is x_BTI
    tap.clear()
    logits(model.network)
    assert not tap
