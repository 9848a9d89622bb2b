"""Frozen weights in bfloat16: the head as training multiplies with it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lorewright.models.backends.reduced import DTYPE, Reduced


def rounding(x_MI: torch.Tensor, weight_OI: torch.Tensor) -> torch.Tensor:
    """How far x W' may be off (M, O) when both and the result are rounded to bfloat16."""
    size_MO = x_MI.abs().double() @ weight_OI.abs().double().t()
    return 3 * torch.finfo(DTYPE).eps * size_MO


def test_logits_and_gradients_are_those_of_the_head_to_rounding() -> None:
    torch.manual_seed(0)
    head = nn.Linear(48, 96, bias=False)
    hidden, change = torch.randn(2, 5, 48, requires_grad=True), torch.randn(2, 5, 96)
    reduced = Reduced().head(head)

    logits = reduced(hidden)
    assert logits.dtype == torch.float32
    flat, weight = hidden.detach().flatten(0, 1), head.weight.detach()
    exact = flat.double() @ weight.double().t()
    assert ((logits.detach().flatten(0, 1) - exact).abs() <= rounding(flat, weight)).all()

    (gradient,) = torch.autograd.grad(logits, hidden, change)
    back = change.flatten(0, 1)
    exact = back.double() @ weight.double()
    assert ((gradient.flatten(0, 1) - exact).abs() <= rounding(back, weight.t())).all()
    assert not any(p.requires_grad for p in reduced.parameters())


def test_frozen_layers_of_a_network_multiply_so_for_a_block_and_no_longer() -> None:
    torch.manual_seed(0)
    names = ("up", "gate", "trained")
    body = nn.ModuleDict({name: nn.Linear(48, 96, bias=name == "up") for name in names})
    body.requires_grad_(False)["trained"].requires_grad_(True)
    x = torch.randn(5, 48)
    exact = {name: body[name](x) for name in names}
    with pytest.raises(ValueError, match="ends it"), Reduced().within(body):
        for name in ("gate", "trained"):  # a rounding would choose another expert; is no copy's
            assert torch.equal(body[name](x), exact[name])
        off = (body["up"](x) - exact["up"]).abs()
        assert off.any() and (off <= rounding(x, body["up"].weight)).all()
        raise ValueError("ends it")
    assert all(torch.equal(body[name](x), exact[name]) for name in names)


def test_a_head_that_adds_a_bias_stays_as_it_is() -> None:
    head = nn.Linear(8, 16)
    assert Reduced().head(head) is head
