"""Claims about the kernels: each is what torch makes of it, and so is its gradient."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from support.numbers import assert_close
from torch import Tensor, nn

import lorewright.models.backends.kernels
from lorewright.adapters.lora import Binding, LoraLinear, Rows
from lorewright.errors import AdapterError
from lorewright.models.backends.kernels import (
    Blocks,
    Grads,
    Linears,
    attend,
    attend_backward,
    heads,
    rms_norm,
    rms_norm_backward,
    rotate,
)

EPS = 1e-6
TERMS = 6 * 5 * 4 * 12  # in, out, ranks and tokens that are summed over


class Norm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = torch.rand(width, dtype=torch.float64) + 0.5
        self.variance_epsilon = EPS


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


exactly = partial(drawn, dtype=torch.float64)
"""In float64, whose rounding no test here could take for an error."""


def layer(ranks: list[int], binding: Binding, n_in: int = 6, n_out: int = 5) -> LoraLinear:
    base = nn.Linear(n_in, n_out).requires_grad_(False)
    found = LoraLinear(base, ranks, [0.5 + n for n in range(len(ranks))], binding)
    for n, rank in enumerate(ranks):
        found.A_NRI.data[n, :rank] = drawn(rank, n_in, seed=n + 1)
        found.B_NOR.data[n, :, :rank] = drawn(n_out, rank, seed=n + 7)
    return found


@pytest.mark.parametrize("shape", [(4, 6), (4, 3, 6)])
def test_norm_and_its_gradient_are_those_of_autograd(shape: tuple[int, ...]) -> None:
    x, norm, grad = exactly(*shape).requires_grad_(), Norm(6), exactly(*shape, seed=1)
    expected = x * (x.square().mean(-1, keepdim=True) + EPS).rsqrt() * norm.weight
    (expected_grad,) = torch.autograd.grad(expected, x, grad)
    found, saved = rms_norm(x.detach(), norm)
    torch.testing.assert_close(found, expected.detach())
    torch.testing.assert_close(rms_norm_backward(grad, saved), expected_grad)


@pytest.mark.parametrize(
    "bound",
    [None, [0, 0, 1, 1], [1, 1, 1, 1], [1, 0, -1, 0]],
    ids=["first", "in order", "second", "mixed and none"],
)
@pytest.mark.parametrize("onto", [False, True], ids=["alone", "added to a residual"])
def test_adapted_layers_and_gradients_are_those_of_the_module(
    bound: list[int] | None, onto: bool
) -> None:
    binding = Binding()
    modules = [layer([3, 1], binding), layer([2, 4], binding)][: 1 if onto else 2]
    binding.rows = Rows(None if bound is None else torch.tensor(bound), 2)
    x_BTI = drawn(4, 3, 6).requires_grad_()
    residual = drawn(12, 5, seed=3) if onto else None
    grads = [drawn(12, 5, seed=4 + i) for i in range(len(modules))]
    outputs = [module(x_BTI).flatten(0, 1) for module in modules]
    weights = [w for module in modules for w in (module.A_NRI, module.B_NOR)]
    expected = torch.autograd.grad(outputs, [x_BTI, *weights], grads)

    grads_of: Grads = {}
    group = Linears(Blocks(binding.rows, modules[0].scale_N, 4), None, modules)
    with torch.no_grad():
        ys = group.forward(x_BTI.detach().flatten(0, 1), residual, save=True)
        back = group.backward(grads, grads_of)
    assert back is not None
    for y, output in zip(ys, outputs, strict=True):
        assert_close(y, output.detach() + (0 if residual is None else residual), TERMS)
    assert_close(back.view_as(x_BTI), expected[0], TERMS)
    mine = [grad for module in modules for grad in grads_of[module]]
    for grad, other in zip(mine, expected[1:], strict=True):
        assert_close(grad, other, TERMS)


def test_a_plain_layer_has_no_gradients_and_no_input_gradient_unless_it_is_needed() -> None:
    plain, grads_of = nn.Linear(6, 5).requires_grad_(False), {}
    group = Linears(None, None, [plain])
    (y,) = group.forward(drawn(4, 6), save=True)
    assert_close(y, plain(drawn(4, 6)), TERMS)
    assert group.backward([drawn(4, 5)], grads_of, needed=False) is None
    assert not grads_of


def test_rows_of_another_batch_are_refused() -> None:
    binding = Binding()
    module = layer([1, 1], binding)
    binding.rows = Rows(torch.tensor([0, 1]), 2)
    with pytest.raises(AdapterError, match=r"2 rows are bound; the batch has 3; bind"):
        Blocks(binding.rows, module.scale_N, 3)


@pytest.mark.parametrize("score_bytes", [1 << 20, 0], ids=["by hand", "torch's own"])
def test_attention_and_its_gradients_are_those_of_autograd(
    score_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lorewright.models.backends.kernels, "SCORE_BYTES", score_bytes)
    q, k, v = (exactly(2, 3, 5, 4, seed=i).requires_grad_() for i in range(3))
    mask, grad = (
        torch.full((5, 5), -torch.inf, dtype=torch.float64).triu(1),
        exactly(2, 3, 5, 4, seed=9),
    )
    expected = (q @ k.mT + mask).softmax(-1) @ v
    grads = torch.autograd.grad(expected, (q, k, v), grad)
    with torch.no_grad():
        parts = [part.detach() for part in (q, k, v)]
        found, scores = attend(*parts, mask, save=True)
        back = attend_backward(grad, *parts, scores)
    torch.testing.assert_close(found, expected.detach())
    for mine, other in zip(back, grads, strict=True):
        torch.testing.assert_close(mine, other)


def test_the_inverse_undoes_a_rotation() -> None:
    angle = exactly(5, 2)
    table = angle.cos(), angle.sin()
    x = exactly(2, 3, 5, 4)
    there, back = torch.empty_like(x), torch.empty_like(x)
    rotate(x, table, there)
    rotate(there, table, back, inverse=True)
    torch.testing.assert_close(back, x)
    assert not torch.allclose(there, x)


def test_heads_are_a_view() -> None:
    x = exactly(6, 2, 4)
    seen = heads(x, 3)
    assert seen.shape == (2, 3, 2, 4)
    assert seen.data_ptr() == x.data_ptr()
