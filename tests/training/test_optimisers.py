"""Claims about optimisers: AdamW's own numbers, nothing shared between adapters, padding inert."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.families import llama, token_ids
from support.losses import answer_loss
from torch import Tensor

from lorewright.adapters.config import LoraConfig
from lorewright.adapters.lora import Flat, Stack, attach
from lorewright.errors import ConfigError
from lorewright.training.optimisers import (
    OPTIMIZERS,
    WHITENED,
    Optimizer,
    OptimizerConfig,
    State,
    adamw,
    orthogonalised,
)
from lorewright.training.whitening import Basis

MIXED = (LoraConfig(rank=2, seed=1), LoraConfig(rank=5, targets=("attention",), seed=2))
optimizers = pytest.mark.parametrize("name", sorted(OPTIMIZERS))


def optimizer_of(stack: Stack, name: str, **settings: float) -> Optimizer:
    """One for every adapter; `whitened` gets bases drawn at random."""
    made = Optimizer(stack, [OptimizerConfig(name, **settings)] * len(stack))
    generator = torch.Generator().manual_seed(0)
    bases = []
    for _ in range(len(stack)):
        widths = {key: layer.base.in_features for key, layer in stack.modules.items()}
        sides = {key: torch.randn(n, 3, generator=generator) / n for key, n in widths.items()}
        bases.append({key: Basis(side, torch.ones(3), 1.0) for key, side in sides.items()})
    if name == WHITENED:
        made.whiten(bases)
    return made


def one_by_one(stack: Stack, optimizer: Optimizer, rows: Sequence[int]) -> list[Tensor]:
    """Gradients of all parameters."""
    stack.bind(torch.tensor(rows))
    loss = answer_loss(stack.model, token_ids(n_rows=len(rows)))
    return list(torch.autograd.grad(loss, optimizer.parameters))


def gradients(stack: Stack, optimizer: Optimizer, rows: Sequence[int]) -> list[Tensor]:
    """What a step needs."""
    return optimizer.gathered(one_by_one(stack, optimizer, rows))


def state_of(optimizer: Optimizer, n: int) -> dict[str, Tensor]:
    return {name: view.clone() for name, view in optimizer.tensors(n).items()}


def everything(stack: Stack, n: int) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in stack.tensors(n).values()])


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_adamw_takes_the_steps_that_torch_takes(decay: float) -> None:
    config, result = LoraConfig(rank=3), []
    for ours in (True, False):
        model = llama()
        with attach(model, [config]) as stack:
            settings = OptimizerConfig(weight_decay=decay, clip=1e9)
            mine = Optimizer(stack, [settings])
            theirs = torch.optim.AdamW(stack.parameters(), lr=1e-2, weight_decay=decay)
            for _ in range(4):
                grads = one_by_one(stack, mine, [0, 0])
                if ours:
                    mine.step(mine.gathered(grads), [1e-2], torch.tensor([True]))
                else:
                    for weight, grad in zip(mine.parameters, grads, strict=True):
                        weight.grad = grad
                    theirs.step()
            result.append(everything(stack, 0))
    torch.testing.assert_close(result[0], result[1], atol=1e-5, rtol=0)


@optimizers
def test_an_adapter_that_does_not_live_keeps_weights_and_state(name: str) -> None:
    with attach(llama(), MIXED) as stack:
        optimizer = optimizer_of(stack, name)
        optimizer.step(gradients(stack, optimizer, [0, 1]), [1e-2, 1e-2], torch.tensor([1, 1]) > 0)
        before, state = everything(stack, 1), state_of(optimizer, 1)
        moved = everything(stack, 0)
        optimizer.step(gradients(stack, optimizer, [0, 1]), [1e-2, 1e-2], torch.tensor([1, 0]) > 0)
        assert torch.equal(everything(stack, 1), before)
        assert all(torch.equal(state[k], t) for k, t in optimizer.tensors(1).items())
        assert not torch.equal(everything(stack, 0), moved)


@optimizers
def test_padding_of_a_smaller_rank_stays_zero(name: str) -> None:
    with attach(llama(), MIXED) as stack:
        optimizer = optimizer_of(stack, name, weight_decay=0.1)
        for _ in range(3):
            grads = gradients(stack, optimizer, [0, 1])
            optimizer.step(grads, [1e-2, 1e-2], torch.tensor([True, True]))
        for layer in stack.modules.values():
            for n, rank in enumerate(layer.ranks_N):
                assert not layer.A_NRI[n, rank:].any() and not layer.B_NOR[n, :, rank:].any()


def test_gradients_are_clipped_by_each_adapters_own_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two adapters with very different gradients, neither changes the other's step."""
    steps, norms = [], []

    def measured(flat: Flat, grad_NP: Tensor, state: State) -> Tensor:
        norms.append(grad_NP.norm(dim=1))
        return adamw(flat, grad_NP, state)

    monkeypatch.setitem(OPTIMIZERS, "adamw", measured)
    for factor in (1.0, 1e6):
        with attach(llama(), [LoraConfig(rank=2, seed=1), LoraConfig(rank=2, seed=2)]) as stack:
            optimizer = Optimizer(stack, [OptimizerConfig(clip=0.5)] * 2)
            grads = gradients(stack, optimizer, [0, 1])
            for grad in grads:
                grad[1] *= factor
            optimizer.step(grads, [1e-2, 1e-2], torch.tensor([True, True]))
            steps.append([everything(stack, n) for n in range(2)])
    for norm_N in norms:
        torch.testing.assert_close(norm_N, torch.full((2,), 0.5), rtol=1e-5, atol=0)
    assert torch.equal(steps[0][0], steps[1][0])


def test_lora_plus_moves_b_faster_than_a_by_its_ratio() -> None:
    moved = []
    for ratio in (1.0, 8.0):
        with attach(llama(), [LoraConfig(rank=2)]) as stack:
            optimizer = Optimizer(stack, [OptimizerConfig(lr_ratio=ratio)])
            before = stack.tensors(0)
            optimizer.step(gradients(stack, optimizer, [0]), [1e-3], torch.tensor([True]))
            moved.append({k: (t - before[k]).norm() for k, t in stack.tensors(0).items()})
    for key, distance in moved[0].items():
        expected = 8 * distance if key.endswith("lora_B.weight") else distance
        torch.testing.assert_close(moved[1][key], expected, rtol=1e-4, atol=1e-7)


def test_a_whitened_step_is_adams_in_coordinates_of_the_bases() -> None:
    """With A = A' W: Adam moves A' along the gradient that it has there; B moves as under Adam."""
    torch.manual_seed(0)
    with attach(llama(), [LoraConfig(rank=2, targets=("q_proj", "down_proj"))]) as stack:
        optimizer = Optimizer(stack, [OptimizerConfig(WHITENED, clip=1e9)])
        root = {key: torch.randn(x.base.in_features, 4) for key, x in stack.modules.items()}
        dense = {key: 0.5 * torch.eye(len(x)) + x @ x.T for key, x in root.items()}
        optimizer.whiten([{key: Basis(x, torch.ones(4), 0.5) for key, x in root.items()}])
        before, grads = stack.tensors(0), one_by_one(stack, optimizer, [0])
        optimizer.step(optimizer.gathered(grads), [1e-2], torch.tensor([True]))
        after = stack.tensors(0)
    for i, (key, w) in enumerate(dense.items()):
        for part, turned, grad in (("A", w, grads[2 * i][0]), ("B", None, grads[2 * i + 1][0])):
            there = grad if turned is None else grad @ turned
            step = 1e-2 * there / (there.abs() + 1e-8)
            moved = step if turned is None else step @ turned
            name = f"{key}.lora_{part}.weight"
            torch.testing.assert_close(before[name] - after[name], moved, rtol=1e-3, atol=1e-6)


def test_whitened_without_bases_is_refused() -> None:
    with attach(llama(), [LoraConfig(rank=2)]) as stack:
        optimizer = Optimizer(stack, [OptimizerConfig(WHITENED)])
        with pytest.raises(ConfigError, match="no bases to move in; give it some with `whiten`"):
            optimizer.step(gradients(stack, optimizer, [0]), [1e-2], torch.tensor([True]))


def test_bases_move_with_their_adapter_when_another_is_dropped() -> None:
    with attach(llama(), MIXED) as stack:
        optimizer = optimizer_of(stack, WHITENED)
        second = optimizer.bases[1]
        stack.drop(0)
        optimizer.drop(0)
        assert optimizer.bases == [second]
        before = everything(stack, 0)
        optimizer.step(gradients(stack, optimizer, [0]), [1e-2], torch.tensor([True]))
        assert not torch.equal(everything(stack, 0), before)


def test_a_preconditioned_step_does_not_depend_on_the_scale_of_the_factors() -> None:
    """A twice as large and B half as large is the same ΔW; Adam alone steps differently there."""
    angles = {}
    for name in ("preconditioned", "adamw"):
        deltas = []
        for scale in (1.0, 10.0):
            with attach(llama(), [LoraConfig(rank=2, targets=("q_proj",), layers=(0,))]) as stack:
                tensors = stack.tensors(0)
                (a,), (b,) = (
                    [k for k in tensors if k.endswith(end)] for end in ("A.weight", "B.weight")
                )
                torch.manual_seed(0)
                tensors[b] = torch.randn_like(tensors[b]) * 0.1
                stack.load(0, {a: tensors[a] * scale, b: tensors[b] / scale})
                optimizer = Optimizer(stack, [OptimizerConfig(name)])
                (layer,) = stack.modules.values()
                grads = gradients(stack, optimizer, [0])
                optimizer.step(grads, [1e-3], torch.tensor([True]))
                after = stack.tensors(0)
                deltas.append(after[b] @ after[a] - tensors[b] @ tensors[a])
                assert layer.ranks_N == [2]
        angles[name] = torch.cosine_similarity(deltas[0].flatten(), deltas[1].flatten(), dim=0)
    assert angles["preconditioned"] > angles["adamw"]


@given(rows=st.integers(1, 6), columns=st.integers(6, 20), seed=st.integers(0, 99))
def test_orthogonalised_has_singular_values_near_one(rows: int, columns: int, seed: int) -> None:
    torch.manual_seed(seed)
    for shape in ((2, rows, columns), (2, columns, rows)):
        values = torch.linalg.svdvals(orthogonalised(torch.randn(shape)))
        assert values.max() < 1.3
        assert values.mean() > 0.6


def test_state_moves_with_its_adapter_when_another_is_dropped() -> None:
    with attach(llama(), MIXED) as stack:
        optimizer = Optimizer(stack, [OptimizerConfig(clip=1.0), OptimizerConfig(clip=2.0)])
        optimizer.step(gradients(stack, optimizer, [0, 1]), [1e-2] * 2, torch.tensor([True, True]))
        second = state_of(optimizer, 1)
        stack.drop(0)
        optimizer.drop(0)
        assert [config.clip for config in optimizer.configs] == [2.0]
        assert all(torch.equal(second[k], t) for k, t in optimizer.tensors(0).items())
        assert all(t.any() for t in second.values())


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"name": "sgd"}, "optimizer 'sgd' is unknown; use one of adamw, muon, preconditioned"),
        ({"lr_ratio": 0.0}, r"lr_ratio must be above 0; got 0\.0"),
        ({"clip": -1.0}, "clip must be above 0"),
        ({"weight_decay": -0.1}, "weight_decay must be at least 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        OptimizerConfig(**settings)  # type: ignore[arg-type]


def test_one_stack_has_one_kind_of_optimiser() -> None:
    with attach(llama(), MIXED) as stack, pytest.raises(ConfigError, match="separate stacks"):
        Optimizer(stack, [OptimizerConfig("muon"), OptimizerConfig("adamw")])
