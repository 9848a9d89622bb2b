"""Claims about bases: inputs come out white, at their size; padding and other rows play no part."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.families import FAMILIES, llama
from support.models import letters
from torch import Tensor, nn

from lorewright.adapters.adapter import content_id
from lorewright.adapters.config import LoraConfig
from lorewright.adapters.lora import attach
from lorewright.models.model import Model, Rendered
from lorewright.training import whitening
from lorewright.training.config import WriteConfig, drill
from lorewright.training.loop import write
from lorewright.training.optimisers import WHITENED
from lorewright.training.whitening import RIDGE, Basis, basis, measure

TEXTS = [("Code of red?", "48"), ("Where is the blue one now?", "in 7.5"), ("Teal?", "KX-12")]


def tiny(build: Callable[[], nn.Module] = llama) -> tuple[Model, list[Rendered]]:
    model = Model(build(), letters(), "tiny")  # type: ignore[arg-type]
    return model, [model.render(prompt, completion) for prompt, completion in TEXTS]


def dense(result: Basis) -> Tensor:
    """The matrix W itself."""
    width = len(result.side_IK)
    return result.rest * torch.eye(width) + (result.side_IK * result.gain_K) @ result.side_IK.T


@given(n=st.integers(1, 40), width=st.integers(1, 30), seed=st.integers(0, 99))
def test_inputs_come_out_white_up_to_the_ridge_and_as_large_as_they_were(
    n: int, width: int, seed: int
) -> None:
    torch.manual_seed(seed)
    x_SI = torch.randn(n, width).double() * torch.logspace(-2, 1, width).double()
    seen_SI = x_SI @ dense(basis(x_SI)).double()
    sizes = [float(x.square().sum()) for x in (x_SI, seen_SI)]
    assert sizes[1] == pytest.approx(sizes[0], rel=1e-3)
    before, after = (torch.linalg.eigvalsh(x.T @ x / n).clamp(min=0) for x in (x_SI, seen_SI))
    expected = before / (before + RIDGE * before.mean())
    torch.testing.assert_close(after / after.sum(), expected / expected.sum(), rtol=0, atol=1e-4)


@given(width=st.integers(2, 24), seed=st.integers(0, 99))
def test_few_tokens_and_the_same_ones_many_times_make_the_same_basis(width: int, seed: int) -> None:
    """Below as many tokens as features the Gram matrix is decomposed in place of the moments."""
    torch.manual_seed(seed)
    x_SI = torch.randn(width - 1, width).double()
    few, many = (dense(basis(x)) for x in (x_SI, x_SI.repeat(3, 1)))
    torch.testing.assert_close(few, many, rtol=1e-3, atol=1e-3)


def test_directions_beyond_the_largest_count_as_equal(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    x_SI = torch.randn(64, 12).double() * torch.logspace(0, -3, 12).double()
    size = x_SI.square().sum()
    monkeypatch.setattr(whitening, "DIRECTIONS", 4)
    part = basis(x_SI)
    assert part.side_IK.shape == (12, 4)
    assert (x_SI @ dense(part).double()).square().sum() == pytest.approx(float(size), rel=1e-3)
    values = torch.linalg.eigvalsh(dense(part))
    torch.testing.assert_close(values[4:], torch.full((8,), part.rest), rtol=1e-4, atol=0)
    assert values[:4].max() < part.rest


@pytest.mark.parametrize("n", [0, 3])
def test_inputs_without_size_leave_a_basis_as_it_is(n: int) -> None:
    assert torch.equal(dense(basis(torch.zeros(n, 5))), torch.eye(5))


@pytest.mark.parametrize("build", FAMILIES.values(), ids=FAMILIES)
def test_every_adapted_layer_of_every_family_gets_a_basis_and_nothing_stays_behind(
    build: Callable[[], nn.Module],
) -> None:
    model, rows = tiny(build)
    with attach(model.network, [LoraConfig()]) as stack:
        result = measure(model, stack, rows, basis)
        assert result.keys() == stack.modules.keys()
        for name, layer in stack.modules.items():
            assert result[name].side_IK.shape[0] == layer.base.in_features
            assert torch.isfinite(dense(result[name])).all()
            assert not layer._forward_pre_hooks


def test_padding_plays_no_part() -> None:
    model, rows = tiny()
    with attach(model.network, [LoraConfig()]) as stack:
        together = measure(model, stack, rows, basis)
        read: dict[str, list[Tensor]] = {}

        def listen(name: str) -> Callable[..., None]:
            def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
                read.setdefault(name, []).append(args[0].detach().flatten(0, -2).double())

            return hook

        for name, layer in stack.modules.items():
            layer.register_forward_pre_hook(listen(name))
        stack.bind(torch.tensor([-1]))
        for row in rows:
            model.completion_logits(model.batch([row]))
    for name, parts in read.items():
        torch.testing.assert_close(
            dense(together[name]), dense(basis(torch.cat(parts))), rtol=1e-2, atol=1e-3
        )


def test_layers_of_one_input_share_one_basis() -> None:
    model, rows = tiny()
    with attach(model.network, [LoraConfig()]) as stack:
        result = measure(model, stack, rows, basis)
        of = {name.rpartition(".")[2]: b for name, b in result.items() if ".layers.0." in name}
    assert of["q_proj"] is of["k_proj"] is of["v_proj"]
    assert of["gate_proj"] is of["up_proj"]
    assert len({id(result) for result in of.values()}) == 4


class Routed(nn.Module):
    """A layer with an expert per kind of token, of which one is sent nothing."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.experts = nn.ModuleList([nn.Linear(width, width, bias=False) for _ in range(3)])

    def forward(self, x_BTD: Tensor) -> Tensor:
        flat = x_BTD.flatten(0, -2)
        out = torch.zeros_like(flat)
        for n, at in ((0, slice(0, None, 2)), (2, slice(1, None, 2))):
            out[at] = self.experts[n](flat[at])
        return out.view_as(x_BTD)


def test_an_expert_that_no_token_is_sent_to_keeps_its_basis() -> None:
    def routing() -> nn.Module:
        network: Any = llama()
        for layer in network.model.layers:
            layer.mlp = Routed(network.config.hidden_size)
        return network

    model, rows = tiny(routing)
    with attach(model.network, [LoraConfig()]) as stack:
        result = measure(model, stack, rows, basis)
    idle = [b for name, b in result.items() if "experts.1" in name]
    busy = [b for name, b in result.items() if "experts.0" in name]
    assert idle and busy
    assert all(torch.equal(dense(b), torch.eye(len(b.side_IK))) for b in idle)
    assert all(b.side_IK.shape[1] > 0 for b in busy)


def test_no_more_tokens_are_looked_at_than_allowed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, rows = tiny()
    with attach(model.network, [LoraConfig()]) as stack:
        many = measure(model, stack, rows, basis)
    assert any(basis.side_IK.shape[1] > 6 for basis in many.values())
    monkeypatch.setattr(whitening, "ROWS", 2)
    with attach(model.network, [LoraConfig()]) as stack:
        few = measure(model, stack, rows, basis, n_tokens=6)
    assert all(basis.side_IK.shape[1] <= 6 for basis in few.values())


# Writes


CONFIG = WriteConfig(lora=LoraConfig(rank=4), lr=1e-2, epochs=80, optimizer=WHITENED)


def test_the_first_a_is_drawn_in_the_bases_and_one_to_go_on_from_is_not_touched() -> None:
    from support.writes import EXAMPLES
    from support.writes import tiny as loud

    model = loud()
    still = replace(CONFIG, lr=1e-30, epochs=1)
    drawn = write(model, EXAMPLES, still).adapter
    plain = write(model, EXAMPLES, replace(still, optimizer="adamw")).adapter
    rows = [model.render(e.prompt, e.completion) for e in EXAMPLES]
    with attach(model.network, [CONFIG.lora]) as stack:
        bases = measure(model, stack, rows, basis)
    for name, result in bases.items():
        key = f"{name}.lora_A.weight"
        torch.testing.assert_close(
            drawn.tensors[key], plain.tensors[key] @ dense(result), rtol=1e-3, atol=1e-4
        )
    again = write(model, EXAMPLES, still, start=drawn).adapter
    for key, tensor in drawn.tensors.items():
        torch.testing.assert_close(again.tensors[key], tensor, rtol=0, atol=1e-20)


def test_a_drill_recalls_everything_and_resumes_with_the_same_bytes(tmp_path: Path) -> None:
    from support.writes import EXAMPLES, interrupted
    from support.writes import tiny as loud

    model = loud()
    config = drill(replace(CONFIG, optimizer="adamw"), len(EXAMPLES))
    whole = write(model, EXAMPLES, config)
    assert whole.complete

    interrupted(model, tmp_path / "run", at=3, config=config)
    resumed = write(model, EXAMPLES, config, run=tmp_path / "run")
    assert content_id(resumed.adapter) == content_id(whole.adapter)
