"""Claims about merging: exact on the weight change, whatever the ranks, scalings and gauges are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.families import llama, logits
from support.numbers import rounding
from torch import Tensor, nn

from lorewright.adapters.adapter import HALVES, Adapter, content_id, load, save
from lorewright.adapters.config import LoraConfig
from lorewright.adapters.lora import attach
from lorewright.adapters.lowrank import Factors, truncate
from lorewright.adapters.proof import validate
from lorewright.errors import AdapterError, ConfigError, WrongBase
from lorewright.merging.algebra import COMBINATIONS, Merged, Parts, dare, merge

# peft reads a property that transformers 5 is about to rename
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")

SHAPES = {"m.0": (9, 7), "m.1": (6, 11)}  # (O, I)
DENSE = ("ties", "dare", "dare_ties", "magnitude_prune")
RANDOM = ("dare", "dare_ties")
methods = pytest.mark.parametrize("method", COMBINATIONS)
scalings = st.tuples(st.integers(1, 3), st.integers(1, 9), st.booleans())  # rank, alpha, rslora
seeds = st.integers(0, 2**31)
few = settings(max_examples=8)


def adapter(
    seed: int, rank: int = 2, alpha: int = 3, rslora: bool = False, **changes: Any
) -> Adapter:
    """A random adapter on the modules of `shapes`; other changes are fields of Adapter."""
    generator = torch.Generator().manual_seed(seed)
    shapes = changes.pop("shapes", SHAPES)
    tensors = {}
    for name, (n_out, n_in) in shapes.items():
        tensors[name + HALVES[0]] = torch.randn(rank, n_in, generator=generator)
        tensors[name + HALVES[1]] = torch.randn(n_out, rank, generator=generator)
    config = LoraConfig(rank, alpha, tuple(shapes), rslora=rslora)
    return replace(Adapter(config, tensors, "tiny/base", "d" * 64, {}), **changes)


def of_delta(delta_OI: Sequence[Sequence[float]] | Tensor) -> Adapter:
    """The adapter whose weight change of its one module "m" is this matrix exactly."""
    A_RI = torch.as_tensor(delta_OI, dtype=torch.float32)
    rank = len(A_RI)
    tensors = {"m" + HALVES[0]: A_RI, "m" + HALVES[1]: torch.eye(rank)}
    return Adapter(LoraConfig(rank, rank, ("m",)), tensors, "tiny/base", "d" * 64, {})


def delta(adapter: Adapter, name: str) -> Tensor:
    """scale * B A in float64, zero for a module that it does not cover."""
    if name + HALVES[0] not in adapter.tensors:
        return torch.zeros(SHAPES[name], dtype=torch.float64)
    A_RI, B_OR = (adapter.tensors[name + half].double() for half in HALVES)
    return adapter.config.scale * B_OR @ A_RI


def deltas(adapter: Adapter) -> dict[str, Tensor]:
    return {name: delta(adapter, name) for name in adapter.modules}


def close(result: Adapter, name: str, expected: Tensor, n_roundings: int = 1) -> None:
    """Assert that a module changes by these amounts, but for so many roundings of A and B."""
    A_RI, B_OR = (result.tensors[name + half].double().abs() for half in HALVES)
    most = result.config.scale * (B_OR @ A_RI).max().item()
    atol = rounding(torch.float32, n_roundings, 2 * most) + 1e-12
    torch.testing.assert_close(delta(result, name), expected, rtol=0, atol=atol)


def same(
    result: Adapter | Merged, expected: Adapter | dict[str, Tensor], n_roundings: int = 1
) -> None:
    """Assert that both change the same modules by the same amounts."""
    result = result.adapter if isinstance(result, Merged) else result
    expected = deltas(expected) if isinstance(expected, Adapter) else expected
    assert set(result.modules) == set(expected)
    for name, delta_OI in expected.items():
        close(result, name, delta_OI, n_roundings)


def gram(adapters: Sequence[Adapter], seed: int = 0) -> list[dict[str, Tensor]]:
    """A Gram matrix of random inputs for every adapter and module it covers."""
    generator = torch.Generator().manual_seed(seed)
    result = []
    for each in adapters:
        widths = {name: each.tensors[name + HALVES[0]].shape[1] for name in each.modules}
        inputs = {n: torch.randn(4 * i, i, generator=generator) for n, i in widths.items()}
        result.append({name: X_BI.T @ X_BI for name, X_BI in inputs.items()})
    return result


def options(method: str, adapters: Sequence[Adapter], density: float = 0.5) -> dict[str, Any]:
    """What a method needs beyond adapters."""
    if method == "regmean":
        return {"grams": gram(adapters)}
    return {"density": density} if method in DENSE else {}


# Contracts over COMBINATIONS


@methods
@few
@given(scaling=scalings, seed=seeds)
def test_one_adapter_at_weight_one_is_the_identity(
    method: str, scaling: tuple[int, int, bool], seed: int
) -> None:
    one = adapter(seed, *scaling)
    result = merge([one], method=method, **options(method, [one], density=1.0))
    same(result, one)
    config = result.adapter.config
    assert config.rank == config.alpha == one.config.rank and not config.rslora
    assert result.share == pytest.approx(1.0) and not result.notes


@methods
@few
@given(seed=seeds, weight=st.sampled_from([-2.0, -1.0, 0.5, 3.0]))
def test_a_weight_is_a_factor_on_the_weight_change(method: str, seed: int, weight: float) -> None:
    two = [adapter(seed), adapter(seed + 1, rank=3)]
    tensors = {k: t * (weight if k.endswith(HALVES[1]) else 1) for k, t in two[1].tensors.items()}
    scaled = [two[0], replace(two[1], tensors=tensors)]
    settings = options(method, two)
    same(
        merge(two, [1, weight], method, **settings), merge(scaled, None, method, **settings).adapter
    )
    all_weighted = merge(two, [weight, weight], method, **settings).adapter
    plain = {k: weight * d for k, d in deltas(merge(two, None, method, **settings).adapter).items()}
    same(all_weighted, plain)


@methods
@few
@given(seed=seeds)
def test_the_gauge_of_the_factors_changes_nothing(method: str, seed: int) -> None:
    two = [adapter(seed), adapter(seed + 1, rank=3, rslora=True)]
    turned = []
    for n, each in enumerate(two):
        generator = torch.Generator().manual_seed(seed + n)
        G_RR = torch.eye(each.config.rank) + 0.3 * torch.rand(
            each.config.rank, each.config.rank, generator=generator
        )
        moves = {HALVES[0]: lambda A, G=G_RR: G @ A, HALVES[1]: lambda B, G=G_RR: B @ G.inverse()}
        tensors = {
            name + half: move(each.tensors[name + half])
            for name in each.modules
            for half, move in moves.items()
        }
        turned.append(replace(each, tensors=tensors))
    settings = options(method, two)
    # The gauge rounds A and B too: sums of at most 3 terms, up to 8 times larger by G's inverse.
    same(merge(turned, None, method, **settings), merge(two, None, method, **settings).adapter, 24)


@methods
@few
@given(seed=seeds)
def test_the_order_of_the_adapters_changes_nothing(method: str, seed: int) -> None:
    three = [adapter(seed), adapter(seed + 1, rank=3), adapter(seed + 2, alpha=7)]
    density = 1.0 if method in RANDOM else 0.5  # another order is another draw
    weights, order = [1.0, -0.5, 2.0], [2, 0, 1]
    there = merge(three, weights, method, **options(method, three, density))
    settings = options(method, three, density)
    if "grams" in settings:
        settings["grams"] = [settings["grams"][n] for n in order]
    moved = [three[n] for n in order], [weights[n] for n in order]
    same(merge(*moved, method, **settings), there.adapter)


@methods
@pytest.mark.parametrize("rank", [4, 24])
def test_every_method_gives_the_rank_asked_for_and_says_what_it_kept(
    method: str, rank: int, tmp_path: Path
) -> None:
    two = [adapter(0), adapter(1, rank=3, alpha=9)]
    if method == "cat" and rank < 5:
        with pytest.raises(ConfigError, match=r"needs rank 5.*svd"):
            merge(two, method=method, rank=rank)
        return
    result = merge(two, method=method, rank=rank, **options(method, two))
    assert result.adapter.config.rank == result.adapter.config.alpha == rank
    assert all(t.dtype == torch.float32 for t in result.adapter.tensors.values())
    assert result.share == min(result.shares.values()) == result.adapter.card["merge"]["kept"]
    assert (result.share < 1 - 1e-4) == (rank < 5)
    assert save(result.adapter, tmp_path / "merged") == content_id(load(tmp_path / "merged"))


@methods
def test_a_module_that_one_adapter_lacks_is_zero_there(method: str) -> None:
    both, half = adapter(0), adapter(1, rank=3, shapes={"m.0": SHAPES["m.0"]})
    settings = options(method, [both, half], density=1.0)
    result = merge([both, half], None, method, **settings)
    assert set(result.adapter.modules) == set(SHAPES)
    assert result.notes == ("1 of 2 modules are not in every adapter.",)
    share = 0.5 if method == "mean" else 1.0
    expected = share * delta(both, "m.1")
    close(result.adapter, "m.1", expected)


@methods
def test_copies_of_one_adapter_merge_to_a_multiple_of_it(method: str) -> None:
    copies = [adapter(4)] * 3
    result = merge(copies, None, method, **options(method, copies, density=1.0))
    summed = ("cat", "svd", "task_arithmetic", "dare", "magnitude_prune")
    times = 3 if method in summed else 1
    same(result, {name: times * delta_OI for name, delta_OI in deltas(copies[0]).items()}, 4)


@methods
def test_a_weight_change_and_its_negative_cancel_and_the_notes_say_so(method: str) -> None:
    one = adapter(5)
    settings = {"grams": gram([one]) * 2} if method == "regmean" else options(method, [one], 1.0)
    result = merge([one, one], [1, -1], method, **settings)
    same(result, {name: torch.zeros(shape).double() for name, shape in SHAPES.items()})
    assert result.notes == ("2 of 2 modules change nothing, such as 'm.0'.",)


# Linear methods


@given(
    scalings=st.lists(scalings, min_size=1, max_size=4),
    weights=st.lists(st.floats(-2, 2), min_size=4, max_size=4),
    seed=seeds,
)
@few
def test_cat_is_the_weighted_sum_for_mixed_ranks_and_scalings(
    scalings: list[tuple[int, int, bool]], weights: list[float], seed: int
) -> None:
    several = [adapter(seed + n, *scaling) for n, scaling in enumerate(scalings)]
    weights = weights[: len(several)]
    result = merge(several, weights)
    pairs = list(zip(weights, several, strict=True))
    expected = {name: sum(w * delta(a, name) for w, a in pairs) for name in SHAPES}
    same(result, expected)
    assert (
        result.adapter.config.rank == sum(rank for rank, _, _ in scalings) and result.share == 1.0
    )


def test_mean_divides_by_the_number_and_task_arithmetic_multiplies_by_its_scaling() -> None:
    two = [adapter(0), adapter(1)]
    total = {name: delta(two[0], name) + delta(two[1], name) for name in SHAPES}
    same(merge(two, method="mean"), {name: d / 2 for name, d in total.items()})
    result = merge(two, method="task_arithmetic", scaling=0.3)
    same(result, {name: 0.3 * d for name, d in total.items()})
    assert result.adapter.card["merge"]["options"] == {"scaling": 0.3}


def test_negation_takes_an_adapter_out_of_a_sum() -> None:
    one, other = adapter(0), adapter(1, rank=3)
    joined = merge([one, other]).adapter
    same(merge([joined, other], [1, -1]), one)
    same(merge([one], [-1]), {name: -d for name, d in deltas(one).items()})


def test_disjoint_modules_need_no_more_rank_than_the_wider_adapter() -> None:
    one = adapter(0, rank=2, shapes={"m.0": (9, 7)})
    other = adapter(1, rank=3, shapes={"m.1": (6, 11)})
    result = merge([one, other])
    assert result.adapter.config.rank == 3
    same(result, {**deltas(one), **deltas(other)})


@few
@given(seed=seeds, rank=st.integers(1, 5))
def test_svd_is_the_best_of_its_rank_and_its_error_is_the_tail(seed: int, rank: int) -> None:
    two = [adapter(seed), adapter(seed + 1, rank=3)]
    result = merge(two, [1, -0.5], "svd", rank)
    for name in SHAPES:
        total = delta(two[0], name) - 0.5 * delta(two[1], name)
        U, sigma, Vh = torch.linalg.svd(total, full_matrices=False)
        best = U[:, :rank] * sigma[:rank] @ Vh[:rank]
        close(result.adapter, name, best)
        error = (total - delta(result.adapter, name)).square().sum().item()
        assert error == pytest.approx(sigma[rank:].square().sum().item(), abs=1e-3)
        share = sigma[:rank].square().sum() / sigma.square().sum()
        assert result.shares[name] == pytest.approx(share.item(), abs=1e-6)


@pytest.mark.parametrize("shape", [(40, 12), (12, 40)])
def test_the_dense_and_the_core_route_of_truncation_agree(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    B_OR = torch.randn(shape[0], 6, generator=generator, dtype=torch.float64)
    A_RI = torch.randn(6, shape[1], generator=generator, dtype=torch.float64)
    core, dense = truncate(Factors(B_OR, A_RI), 4), truncate(B_OR @ A_RI, 4)
    torch.testing.assert_close(core.B_OR @ core.A_RI, dense.B_OR @ dense.A_RI)
    assert core.share == pytest.approx(dense.share)
    for result in (core, dense):  # B and A have equal norms, column by row
        torch.testing.assert_close(result.B_OR.norm(dim=0), result.A_RI.norm(dim=1))
    nothing = truncate(torch.zeros(shape, dtype=torch.float64), 4)
    assert nothing.share == 1.0 and not nothing.B_OR.any() and not nothing.A_RI.any()


# TIES, DARE, pruning


def test_ties_on_a_worked_example() -> None:
    one = of_delta([[4.0, -1.0, 0.1], [0.2, 3.0, -5.0], [0.3, 2.0, -0.4]])
    other = of_delta([[-1.0, -3.0, 0.2], [6.0, 0.1, 4.0], [0.3, 2.5, -0.5]])
    # 5 of 9 stay: 4, -1, 3, -5, 2 of the first and -1, -3, 6, 4, 2.5 of the other
    expected = torch.tensor([[4.0, -2.0, 0.0], [6.0, 3.0, -5.0], [0.0, 2.25, 0.0]]).double()
    result = merge([one, other], method="ties", rank=3, density=5 / 9)
    close(result.adapter, "m", expected)
    # the weights come first: the other's -1 becomes -5 and wins the first place from 4
    result = merge([one, other], [1, 5], method="ties", rank=3, density=5 / 9)
    expected = torch.tensor([[-5.0, -8.0, 0.0], [30.0, 3.0, 20.0], [0.0, 7.25, 0.0]]).double()
    close(result.adapter, "m", expected)


def test_ties_elects_nothing_where_the_sum_is_zero() -> None:
    result = merge([of_delta([[2.0, 1.0]]), of_delta([[-2.0, 3.0]])], method="ties", density=1.0)
    torch.testing.assert_close(delta(result.adapter, "m"), torch.tensor([[0.0, 2.0]]).double())


def test_pruning_keeps_the_largest_entries_of_each() -> None:
    one, other = of_delta([[1.0, -4.0], [2.0, 3.0]]), of_delta([[0.1, 0.2], [-0.4, 0.3]])
    result = merge([one, other], method="magnitude_prune", rank=2, density=0.5)
    expected = torch.tensor([[0.0, -4.0], [-0.4, 3.3]]).double()
    close(result.adapter, "m", expected)
    alone = merge([one], method="magnitude_prune", rank=2, density=0.01)
    assert (delta(alone.adapter, "m").abs() > 1e-6).sum() == 1  # at least one entry stays


def test_dare_is_unbiased_and_repeats_with_its_seed() -> None:
    two = [of_delta([[1.0, -2.0], [0.5, 3.0]]), of_delta([[2.0, 1.0], [-1.0, 0.0]])]
    factors = tuple(
        Factors(w * torch.eye(2).double(), delta(a, "m")) for w, a in zip((1, 2), two, strict=True)
    )
    parts = Parts("m", factors, (0, 1), 2, None)
    found_KOI = torch.stack([dare(parts, density=0.3, seed=n) for n in range(2000)])
    expected = delta(two[0], "m") + 2 * delta(two[1], "m")
    error = found_KOI.std(dim=0) / math.sqrt(len(found_KOI))
    assert ((found_KOI.mean(dim=0) - expected).abs() < 4 * error + 1e-6).all()
    draws = [merge(two, [1, 2], "dare", rank=2, density=0.3, seed=n).adapter for n in (7, 7, 9)]
    close(draws[0], "m", found_KOI[7])
    assert content_id(draws[0]) == content_id(draws[1]) != content_id(draws[2])


def test_dare_draws_anew_for_every_module_and_adapter() -> None:
    flat = torch.ones(12, 12)
    one = of_delta(flat)
    tensors = {k.replace("m.", f"{name}.", 1): t for name in "ab" for k, t in one.tensors.items()}
    pair = replace(one, tensors=tensors, config=LoraConfig(12, 12, ("a", "b")))
    first = merge([pair], method="dare").adapter
    assert not torch.equal(delta(first, "a"), delta(first, "b"))
    both = delta(merge([one, one], method="dare").adapter, "m")
    assert ((both - 2).abs() < 1e-5).any()  # 2 = whole in one, dropped in the other


def test_dare_ties_is_dare_followed_by_election() -> None:
    one, other = of_delta([[2.0, -1.0]]), of_delta([[-3.0, -2.0]])
    for seed in range(8):
        alone = [
            delta(merge([a, b], [wa, wb], "dare", seed=seed).adapter, "m")
            for a, b, wa, wb in ((one, other, 1, 0), (one, other, 0, 1))
        ]
        stack = torch.stack(alone)
        agree = (stack.sign() == stack.sum(dim=0).sign()) & (stack != 0)
        expected = (stack * agree).sum(dim=0) / agree.sum(dim=0).clamp(min=1)
        result = merge([one, other], method="dare_ties", seed=seed)
        close(result.adapter, "m", expected)


# RegMean


@few
@given(seed=seeds, ridge=st.sampled_from([0.0, 0.3]), shrink=st.sampled_from([0.0, 0.2]))
def test_regmean_is_the_least_squares_solution(seed: int, ridge: float, shrink: float) -> None:
    two, weights = [adapter(seed), adapter(seed + 1, rank=3)], [1.0, -0.5]
    generator = torch.Generator().manual_seed(seed)
    X = {
        n: [torch.randn(30, i, generator=generator).double() for _ in two]
        for n, (_, i) in SHAPES.items()
    }
    grams = [{name: X[name][n].T @ X[name][n] for name in SHAPES} for n in range(2)]
    result = merge(two, weights, "regmean", grams=grams, ridge=ridge, shrink=shrink)
    assert result.adapter.config.rank == 5 and result.share == 1.0
    for name, (n_out, n_in) in SHAPES.items():
        rows, targets = [], []
        for n, each in enumerate(two):
            level = grams[n][name].diagonal().mean().sqrt()
            eye, target = torch.eye(n_in).double(), weights[n] * delta(each, name).T
            rows += [X[name][n], math.sqrt(ridge) * level * eye, math.sqrt(shrink) * level * eye]
            targets += [X[name][n] @ target, math.sqrt(ridge) * level * target]
            targets += [torch.zeros(n_in, n_out).double()]
        expected = torch.linalg.lstsq(torch.cat(rows), torch.cat(targets)).solution.T
        close(result.adapter, name, expected)


def test_regmean_keeps_both_adapters_where_their_inputs_are_disjoint() -> None:
    one, other = adapter(0), adapter(1)
    first, second = torch.zeros(12, 12), torch.zeros(12, 12)
    first[:5, :5], second[5:, 5:] = torch.eye(5), torch.eye(7)
    grams = [{n: g[:i, :i] for n, (_, i) in SHAPES.items()} for g in (first, second)]
    result = merge([one, other], method="regmean", grams=grams, ridge=1e-6)
    for name in SHAPES:
        ours = delta(result.adapter, name)
        torch.testing.assert_close(ours[:, :5], delta(one, name)[:, :5], rtol=0, atol=1e-4)
        torch.testing.assert_close(ours[:, 5:], delta(other, name)[:, 5:], rtol=0, atol=1e-4)


def test_regmean_counts_the_inputs_of_an_adapter_that_leaves_the_module_alone() -> None:
    both, half = adapter(0), adapter(1, shapes={"m.0": SHAPES["m.0"]})
    grams = gram([both, both])
    result = merge([both, half], method="regmean", grams=grams, ridge=0.0)
    G, H = (each["m.1"].double() for each in grams)
    expected = delta(both, "m.1") @ G @ torch.linalg.inv(G + H)
    close(result.adapter, "m.1", expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grams": []}, "2 mappings, not 0"),
        ({"grams": [{}, {}]}, r"grams\[0\]\['m.0'\] must be \(7, 7\); it is None"),
        ({"grams": [{"m.0": torch.eye(3)}] * 2}, r"it is \(3, 3\)"),
        ({"grams": [{"m.0": torch.eye(7) * math.nan}] * 2}, "symmetric and finite"),
        ({"grams": [{"m.0": torch.ones(7, 7).triu()}] * 2}, "symmetric and finite"),
        ({"grams": [{"m.0": torch.ones(7, 7)}] * 2, "ridge": 0.0}, "singular.*ridge above zero"),
        ({"ridge": -1.0}, "ridge and shrink"),
        ({"shrink": math.nan}, "ridge and shrink"),
    ],
)
def test_regmean_refuses_statistics_that_do_not_fit(change: dict[str, Any], message: str) -> None:
    two = [adapter(0), adapter(1)]
    with pytest.raises(ConfigError, match=message):
        merge(two, method="regmean", **{"grams": gram(two), **change})


# TSV


def test_tsv_by_hand() -> None:
    # u_1 = v_1 = e_1 and u_2 at 60 degrees to it, v_2 = e_2: only the left side is straightened
    one = of_delta([[2.0, 0.0], [0.0, 0.0]])
    other = of_delta([[0.0, 0.5], [0.0, math.sqrt(0.75)]])
    result = merge([one, other], method="tsv")
    # the symmetric pair at 60 degrees opens to 90 about its bisector at 30: -15 and 75 degrees
    near, far = math.radians(-15), math.radians(75)
    u_1, u_2 = ([math.cos(a), math.sin(a)] for a in (near, far))
    expected = torch.tensor([[2 * u_1[0], u_2[0]], [2 * u_1[1], u_2[1]]]).double()
    close(result.adapter, "m", expected)


def test_tsv_in_the_core_is_tsv_on_dense_matrices() -> None:
    two = [adapter(0), adapter(1)]
    result = merge(two, [1.0, 0.5], "tsv")
    for name in SHAPES:
        left, values, right = [], [], []
        for weight, each in zip([1.0, 0.5], two, strict=True):
            U, sigma, Vh = torch.linalg.svd(weight * delta(each, name), full_matrices=False)
            left.append(U[:, :2])
            values.append(sigma[:2])
            right.append(Vh[:2].T)
        polar = []
        for side in (left, right):
            X, _, Yh = torch.linalg.svd(torch.cat(side, dim=1), full_matrices=False)
            polar.append(X @ Yh)
        expected = polar[0] * torch.cat(values) @ polar[1].T
        close(result.adapter, name, expected)


def test_tsv_leaves_orthogonal_adapters_alone_and_shares_the_rank() -> None:
    one, other = of_delta([[3.0, 0, 0, 0], [0, 1.0, 0, 0]]), of_delta([[0, 0, 0.0, 2.0]])
    other = replace(other, tensors={**other.tensors, "m" + HALVES[1]: torch.tensor([[0.0], [0.0]])})
    result = merge([one, other], method="tsv", rank=2)
    expected = torch.tensor([[3.0, 0, 0, 0], [0, 0, 0, 0]]).double()
    torch.testing.assert_close(delta(result.adapter, "m"), expected)
    assert result.share == pytest.approx(0.9) and result.adapter.config.rank == 2
    with pytest.raises(ConfigError, match="rank 2, one per adapter, not 1"):
        merge([one, other], method="tsv", rank=1)


# What is refused


def test_adapters_of_different_bases_are_refused_and_unknown_bases_are_noted() -> None:
    one, other = adapter(0), adapter(1, base_digest="e" * 64, base_id="other/base")
    with pytest.raises(WrongBase, match=r"'tiny/base' \(digest dddd.*'other/base' \(digest eeee"):
        merge([one, other])
    silent = adapter(2, base_digest="", base_id="hub/name")
    result = merge([silent, one])
    assert result.adapter.base_digest == "d" * 64 and result.adapter.base_id == "tiny/base"
    assert "1 of 2 adapters lack" in result.notes[0] and "hub/name" in result.notes[0]
    with pytest.raises(WrongBase, match="several shapes"):
        merge([one, adapter(3, shapes={"m.0": (9, 8), "m.1": (6, 11)})])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"adapters": []}, "at least one adapter"),
        ({"weights": [1.0]}, "2 finite numbers; they"),
        ({"weights": [1.0, math.nan]}, "2 finite numbers"),
        ({"weights": [1.0, math.inf]}, "2 finite numbers"),
        ({"weights": ["1", "2"]}, "2 finite numbers"),
        ({"method": "linear"}, "no method 'linear'; choose one of cat, mean"),
        ({"rank": 0}, "rank must be"),
        ({"rank": 2.0}, "rank must be"),
        ({"density": 0.5}, r"options \[\]; unknown: \['density'\]"),
        ({"method": "regmean"}, r"missing: \['grams'\]"),
        ({"method": "ties", "density": 0.0}, "density must be"),
        ({"method": "dare", "density": 1.5}, "density must be"),
        ({"method": "ties", "density": math.nan}, "density must be"),
        ({"method": "task_arithmetic", "scaling": math.inf}, "scaling must be"),
    ],
)
def test_wrong_arguments_are_refused_with_a_reason(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"adapters": [adapter(0), adapter(1)], **change}
    with pytest.raises(ConfigError, match=message):
        merge(**arguments)


@methods
def test_nan_and_wrong_shapes_are_refused_by_name(method: str) -> None:
    one, other = adapter(0), adapter(1)
    key = "m.1" + HALVES[0]
    for bad, message in (
        (torch.full_like(other.tensors[key], math.nan), r"adapter 1: 'm.1' holds NaN"),
        (torch.zeros(5, 11), r"adapter 1: 'm.1' must have A \(2, in\) and B \(out, 2\)"),
        (torch.zeros(11), r"adapter 1: 'm.1' must have A"),
    ):
        broken = replace(other, tensors={**other.tensors, key: bad})
        with pytest.raises(AdapterError, match=message):
            merge([one, broken], method=method, **options(method, [one, other]))
    with pytest.raises(AdapterError, match="range of float32"):
        merge([one, other], [1e200, 1], method=method, **options(method, [one, other]))


def test_a_method_of_ones_own_is_a_function_of_parts() -> None:
    def largest(parts: Parts, *, power: float = 1.0) -> Tensor:
        return parts.deltas().max(dim=0).values * power

    one, other = of_delta([[1.0, 5.0]]), of_delta([[2.0, -5.0]])
    result = merge([one, other], method=largest, power=2.0)
    torch.testing.assert_close(delta(result.adapter, "m"), torch.tensor([[4.0, 10.0]]).double())
    assert result.adapter.card["merge"]["method"] == "largest"


def test_the_card_tells_where_it_came_from_and_nothing_is_changed_in_place() -> None:
    two = [adapter(0), adapter(1)]
    before = [content_id(each) for each in two]
    card = merge(two, [1, 0.5], "ties", density=0.2).adapter.card["merge"]
    assert before == [content_id(each) for each in two] == card["sources"]
    assert card["weights"] == [1.0, 0.5] and card["options"] == {"density": 0.2}
    assert card["method"] == "ties" and card["rank"] == 4 and 0 < card["kept"] <= 1


# On a model, with PEFT as the referee


def on_llama(seed: int, targets: tuple[str, ...], **settings: Any) -> Adapter:
    """A random adapter of the tiny Llama, as large as a trained one."""
    model = llama()
    with attach(model, [LoraConfig(targets=targets, seed=seed, **settings)]) as stack:
        tensors = stack.tensors(0)
        names, config = stack.coverage[0].names, stack.configs[0]
    generator = torch.Generator().manual_seed(seed)
    for key, tensor in tensors.items():
        if key.endswith(HALVES[1]):
            tensor.copy_(0.1 * torch.randn(tensor.shape, generator=generator))
    assert set(names) == {key.removesuffix(HALVES[0]) for key in tensors if HALVES[0] in key}
    return Adapter(config, tensors, "tiny/llama", "d" * 64, {})


LLAMAS = (
    {"seed": 1, "targets": ("all-linear",), "rank": 2, "alpha": 6},
    {"seed": 2, "targets": ("attention",), "rank": 4, "alpha": 3},
    {"seed": 3, "targets": ("all-linear",), "rank": 3, "rslora": True},
)


def in_peft(adapters: Sequence[Adapter], folder: Path) -> peft.PeftModel:
    """The tiny Llama with all adapters loaded by PEFT under the names "0", "1" ..."""
    for n, each in enumerate(adapters):
        save(each, folder / str(n))
    wrapped = peft.PeftModel.from_pretrained(llama(), folder / "0", adapter_name="0")
    for n in range(1, len(adapters)):
        wrapped.load_adapter(folder / str(n), adapter_name=str(n))
    return wrapped


@pytest.mark.parametrize(
    ("method", "theirs", "rank", "weights", "settings"),
    [
        ("cat", "cat", None, [0.7, -1.3], {}),
        ("svd", "svd", 4, [0.7, -1.3], {}),
        ("ties", "ties_svd", 6, [1.0, 1.0], {"density": 0.5}),
        ("magnitude_prune", "magnitude_prune_svd", 6, [0.7, -1.3], {"density": 0.5}),
    ],
)
def test_pefts_exact_kinds_agree(
    method: str,
    theirs: str,
    rank: int | None,
    weights: list[float],
    settings: dict[str, float],
    tmp_path: Path,
) -> None:
    two = [on_llama(**each) for each in LLAMAS[:2]]  # type: ignore[arg-type]
    ours = merge(two, weights, method, rank, **settings).adapter
    wrapped = in_peft(two, tmp_path)
    wrapped.add_weighted_adapter(
        ["0", "1"], weights, "merged", combination_type=theirs, svd_rank=rank, **settings
    )
    for name in ours.modules:
        layer = wrapped.get_submodule(f"base_model.model.{name}")
        result = layer.get_delta_weight("merged").detach().double()
        A_RI, B_OR = (ours.tensors[name + half].double() for half in HALVES)
        atol = rounding(torch.float32, 64, result)  # PEFT's is a float32 SVD of 64 columns
        torch.testing.assert_close(B_OR @ A_RI, result, rtol=0, atol=atol)


def with_deltas(adapters: Sequence[Adapter], weights: Sequence[float]) -> nn.Module:
    """The tiny Llama with every weighted weight change added to its weights."""
    model = llama()
    for weight, each in zip(weights, adapters, strict=True):
        for name in each.modules:
            model.get_submodule(name).weight.data += (weight * delta(each, name)).float()
    return model


@pytest.mark.parametrize("method", ["cat", "svd", "task_arithmetic"])
def test_the_result_saves_loads_in_peft_and_moves_logits_as_the_sum_would(
    method: str, tmp_path: Path
) -> None:
    several = [on_llama(**each) for each in LLAMAS]  # type: ignore[arg-type]
    weights = [1.0, -0.5, 0.3]
    ours = merge(several, weights, method).adapter
    assert ours.config.targets == ("all-linear",)
    model = llama()
    validate(ours, model, "d" * 64)
    save(ours, tmp_path / "merged")
    expected, base = logits(with_deltas(several, weights)), logits(model)
    wrapped = peft.PeftModel.from_pretrained(llama(), tmp_path / "merged")
    assert (expected - base).abs().max() > 1e-2
    atol = rounding(torch.float32, 32 * 8, expected)  # sums over 32 inputs in 8 matrices
    torch.testing.assert_close(logits(wrapped), expected, rtol=0, atol=atol)
    with attach(model, [ours.config]) as stack:
        stack.load(0, load(tmp_path / "merged").tensors)
        torch.testing.assert_close(logits(model), expected, rtol=0, atol=atol)


def test_adapters_of_different_layers_merge_to_one_that_binds_exactly_their_union() -> None:
    first = on_llama(1, ("attention",), rank=2, layers=(0,))
    second = on_llama(2, ("mlp",), rank=3, layers=(1,))
    merged = merge([first, second]).adapter
    assert set(merged.modules) == {*first.modules, *second.modules}
    validate(merged, llama())
