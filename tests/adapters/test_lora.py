"""Claims about adapters on layers: coverage, exactness, float32, stacks that do not leak."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import pytest
import torch
from support.families import FAMILIES, llama, logits, token_ids
from support.losses import answer_loss
from support.numbers import assert_close, depth, rounding
from torch import Tensor, nn

from lorewright.adapters.config import LoraConfig
from lorewright.adapters.lora import LoraLinear, Stack, attach
from lorewright.errors import AdapterError, ConfigError, TargetsNotFound

Build = Callable[[], nn.Module]
family = pytest.mark.parametrize("build", FAMILIES.values(), ids=FAMILIES)


def fill(stack: Stack, seed: int = 0) -> None:
    """Give every B random numbers within its rank, so that adapters differ and do something."""
    for n in range(len(stack)):
        generator = torch.Generator().manual_seed(seed + n)
        tensors = stack.tensors(n)
        for key in tensors:
            if "lora_B" in key:
                tensors[key] = 0.1 * torch.randn(tensors[key].shape, generator=generator)
        stack.load(n, tensors)


def train(model: nn.Module, stack: Stack, batches: Sequence[Tensor], n_steps: int = 3) -> None:
    """A few AdamW steps on rows of `batches[n]` for adapter n."""
    rows = [torch.full((len(ids_BT),), n) for n, ids_BT in enumerate(batches)]
    stack.bind(torch.cat(rows))
    optimizer = torch.optim.AdamW(stack.parameters(), lr=1e-2)
    for _ in range(n_steps):
        optimizer.zero_grad()
        answer_loss(model, torch.cat(list(batches))).backward()
        optimizer.step()


# Configuration


def test_scale_is_alpha_over_rank_and_over_its_root_with_rslora() -> None:
    assert LoraConfig(rank=16).alpha == 16 and LoraConfig(rank=4).scale == 4.0
    assert LoraConfig(rank=16, alpha=8).scale == 0.5
    assert LoraConfig(rank=16, alpha=8, rslora=True).scale == 2.0


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"rank": 0}, "rank must be an integer of at least 1; got 0"),
        ({"rank": 2.5}, "rank must be"),
        ({"alpha": 0.5}, r"alpha must be an integer of at least 1; got 0\.5"),
        ({"seed": -1}, "seed must be"),
        ({"targets": "q_proj"}, "targets must be a tuple"),
        ({"targets": ()}, "targets must be a tuple"),
        ({"layers": (-1,)}, "layers must be"),
        ({"layers": ()}, "layers must be"),
    ],
)
def test_a_bad_setting_is_named_with_its_value(bad: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LoraConfig(**bad)  # type: ignore[arg-type]


# One adapter


@family
def test_detach_restores_base_logits_bit_for_bit(build: Build) -> None:
    model = build()
    modules = dict(model.named_modules())
    before = logits(model)
    stack = attach(model, [LoraConfig(rank=2)])
    assert torch.equal(logits(model), before), "B = 0 must change nothing"
    fill(stack)
    assert not torch.equal(logits(model), before)
    stack.detach()
    stack.detach()
    assert torch.equal(logits(model), before)
    assert dict(model.named_modules()) == modules
    assert all(weight.requires_grad for weight in model.parameters())


def test_leaving_the_with_block_detaches_even_after_an_error() -> None:
    model = llama()
    with pytest.raises(ZeroDivisionError), attach(model, [LoraConfig()]):
        raise ZeroDivisionError
    assert not [m for m in model.modules() if isinstance(m, LoraLinear)]


@family
def test_one_step_moves_every_b_and_no_base_weight(build: Build) -> None:
    model = build()
    base = {name: weight.clone() for name, weight in model.named_parameters()}
    stack = attach(model, [LoraConfig(rank=2)])
    train(model, stack, [token_ids()], n_steps=1)
    assert stack.idle(0) == ()
    for key, tensor in stack.tensors(0).items():
        assert tensor.any(), key
    stack.detach()
    assert all(torch.equal(weight, base[name]) for name, weight in model.named_parameters())


def test_adapters_are_float32_and_learn_small_steps_under_a_bfloat16_base() -> None:
    model = llama().to(torch.bfloat16)
    stack = attach(model, [LoraConfig(rank=2)])
    fill(stack)
    before = stack.tensors(0)
    assert {weight.dtype for weight in stack.parameters()} == {torch.float32}
    assert logits(model).dtype == torch.bfloat16
    optimizer = torch.optim.SGD(stack.parameters(), lr=1e-6)
    answer_loss(model, token_ids()).backward()
    optimizer.step()
    moved = [not torch.equal(tensor, before[key]) for key, tensor in stack.tensors(0).items()]
    assert all(moved), "in bfloat16 such steps round to nothing"


def test_the_formula_is_base_plus_scale_b_a_x() -> None:
    model = llama()
    stack = attach(model, [LoraConfig(rank=3, alpha=5, rslora=True)])
    fill(stack)
    layer = stack.modules["model.layers.1.mlp.up_proj"]
    tensors = stack.tensors(0)
    a_RI, b_OR = (tensors[f"model.layers.1.mlp.up_proj.lora_{half}.weight"] for half in "AB")
    x_BTI = torch.randn(2, 3, 32, generator=torch.Generator().manual_seed(0))
    expected = layer.base(x_BTI) + 5 / 3**0.5 * x_BTI @ a_RI.T @ b_OR.T
    torch.testing.assert_close(layer(x_BTI), expected)


def test_reset_redraws_a_and_zeroes_b_and_learning_goes_on() -> None:
    model = llama()
    before = logits(model)
    stack = attach(model, [LoraConfig(rank=2, seed=7)])
    first = stack.tensors(0)
    train(model, stack, [token_ids()])
    stack.reset(0, seed=8)
    again = stack.tensors(0)
    for key, tensor in again.items():
        if "lora_B" in key:
            assert not tensor.any()
        else:
            assert tensor.any() and not torch.equal(tensor, first[key])
            assert tensor.abs().max() <= tensor.shape[1] ** -0.5
    assert torch.equal(logits(model), before)
    train(model, stack, [token_ids()], n_steps=1)
    assert all(tensor.any() for tensor in stack.tensors(0).values())
    stack.reset(0, seed=7)
    assert all(torch.equal(tensor, first[key]) for key, tensor in stack.tensors(0).items())


def test_first_matrices_differ_between_seeds_and_between_modules() -> None:
    model = llama()
    configs = [LoraConfig(rank=2, seed=seed) for seed in (0, 1, 2**31)]
    stack = attach(model, configs)
    drawn = [t for n in range(3) for k, t in stack.tensors(n).items() if "lora_A" in k]
    drawn = [tensor for tensor in drawn if tensor.shape == (2, 32)]
    assert len({tuple(tensor.flatten().tolist()) for tensor in drawn}) == len(drawn) == 36


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # peft asks for it
def test_a_second_attach_and_foreign_adapters_are_refused() -> None:
    import peft

    model = llama()
    stack = attach(model, [LoraConfig()])
    with pytest.raises(AdapterError, match="already; detach"):
        attach(model, [LoraConfig()])
    stack.detach()
    with pytest.raises(ConfigError, match="at least one"):
        attach(model, [])
    peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(AdapterError, match="another library's adapters"):
        attach(model, [LoraConfig()])


def test_a_refused_attach_leaves_the_model_alone() -> None:
    model = llama()
    with pytest.raises(TargetsNotFound):
        attach(model, [LoraConfig(), LoraConfig(targets=("nope",))])
    assert all(weight.requires_grad for weight in model.parameters())
    attach(model, [LoraConfig()]).detach()


# The stack

MIXED = (
    LoraConfig(rank=2, alpha=4, seed=1),
    LoraConfig(rank=5, alpha=3, targets=("attention",), seed=2),
    LoraConfig(rank=3, alpha=6, layers=(1,), rslora=True, seed=3),
)


@family
def test_a_stack_of_mixed_ranks_trains_as_each_adapter_alone(build: Build) -> None:
    model = build()
    batches = [token_ids(n_rows=n + 1, seed=n) for n in range(3)]
    with attach(model, MIXED) as stack:
        train(model, stack, batches)
        together = [stack.tensors(n) for n in range(3)]
    for n, config in enumerate(MIXED):
        with attach(model, [config]) as stack:
            train(model, stack, [batches[n]])
            alone = stack.tensors(0)
        assert alone.keys() == together[n].keys()
        # Adam's steps are of the size of the rate and as uncertain as the gradient.
        apart = 3 * 1e-2 * rounding(torch.float32, depth(model, batches[n].shape[1]), 8.0)
        for key, tensor in alone.items():
            torch.testing.assert_close(together[n][key], tensor, rtol=0, atol=apart, msg=key)


@pytest.mark.parametrize("rows", [[0, 0, 1, 1, 2, 2], [0, 1, 2, 0, 1, 2], [2, 2, 2, 0, 1, 1]])
def test_gradients_of_a_stack_equal_those_alone(rows: list[int]) -> None:
    model, ids_BT, rows_B = llama(), token_ids(n_rows=6), torch.tensor(rows)
    with attach(model, MIXED) as stack:
        fill(stack)
        tensors = [stack.tensors(n) for n in range(3)]
        stack.bind(rows_B)
        answer_loss(model, ids_BT).backward()
        together = {k: (m.A_NRI.grad, m.B_NOR.grad, m.ranks_N) for k, m in stack.modules.items()}
    for n, config in enumerate(MIXED):
        with attach(model, [config]) as stack:
            stack.load(0, tensors[n])
            answer_loss(model, ids_BT[rows_B == n]).backward()
            for name, layer in stack.modules.items():
                a_NRI, b_NOR, ranks_N = together[name]
                assert a_NRI is not None and b_NOR is not None
                assert layer.A_NRI.grad is not None and layer.B_NOR.grad is not None
                r = ranks_N[n]
                n_terms = depth(model, ids_BT.shape[1]) * len(rows)
                assert_close(a_NRI[n, :r], layer.A_NRI.grad[0], n_terms)
                assert_close(b_NOR[n, :, :r], layer.B_NOR.grad[0], n_terms)
                assert not a_NRI[n, r:].any() and not b_NOR[n, :, r:].any(), "padding is inert"


def test_other_data_for_one_adapter_leaves_the_others_bit_for_bit() -> None:
    model = llama()
    batches = [token_ids(n_rows=2, seed=n) for n in range(3)]
    found = []
    for middle in (batches[1], token_ids(n_rows=2, seed=99)):
        with attach(model, MIXED) as stack:
            train(model, stack, [batches[0], middle, batches[2]])
            found.append([stack.tensors(n) for n in range(3)])
    for n, same in ((0, True), (1, False), (2, True)):
        equal = [torch.equal(found[0][n][key], found[1][n][key]) for key in found[0][n]]
        assert all(equal) if same else not all(equal)


@pytest.mark.parametrize("rows", [[0, 0, 1, 1, 2, 2], [2, -1, 0, 1, 2, 2], [-1, -1, 1, 1, 0, 0]])
def test_each_row_answers_with_its_own_adapter_and_minus_one_is_the_base(rows: list[int]) -> None:
    model, ids_BT = llama(), token_ids(n_rows=6)
    base = logits(model, ids_BT)
    with attach(model, MIXED) as stack:
        fill(stack)
        each = []
        for n in range(3):
            stack.bind(torch.full((6,), n))
            each.append(logits(model, ids_BT))
        stack.bind(torch.tensor(rows))
        mixed = logits(model, ids_BT)
        stack.bind(None)
        assert torch.equal(logits(model, ids_BT), each[0])
        stack.bind(torch.full((6,), -1))
        assert torch.equal(logits(model, ids_BT), base)
    for row, n in enumerate(rows):
        expected = base if n < 0 else each[n]
        assert_close(mixed[row], expected[row], depth(model, ids_BT.shape[1]))
        assert n < 0 or (mixed[row] - base[row]).abs().max() > 1e-3


def test_flattened_activations_follow_the_rows_and_routed_ones_are_refused() -> None:
    with attach(llama(), MIXED) as stack:
        fill(stack)
        layer = stack.modules["model.layers.1.self_attn.q_proj"]
        x_BTI = torch.randn(3, 4, 32, generator=torch.Generator().manual_seed(0))
        stack.bind(torch.tensor([2, 0, 1]))
        assert_close(layer(x_BTI.flatten(0, 1)), layer(x_BTI).flatten(0, 1), 32 + 4)
        with pytest.raises(AdapterError, match=r"3 rows are bound; a layer received \(4, 4, 32\)"):
            layer(torch.zeros(4, 4, 32))
        layer.routed = True
        with pytest.raises(AdapterError, match="from a router; bind one adapter for all rows"):
            layer(x_BTI.flatten(0, 1))
        stack.bind(torch.tensor([1, 1, 1]))
        assert layer(x_BTI.flatten(0, 1)[:5]).shape == (5, 32)


@pytest.mark.parametrize("rows", [[0, 3], [-2], [], [[0, 1]], [0.0], [True]])
def test_rows_that_name_no_adapter_are_refused(rows: list[object]) -> None:
    with attach(llama(), MIXED) as stack, pytest.raises(AdapterError, match="rows must be one"):
        stack.bind(torch.tensor(rows))


def test_drop_keeps_the_others_and_their_rows() -> None:
    model, ids_BT = llama(), token_ids(n_rows=3)
    base = logits(model, ids_BT)
    with attach(model, MIXED) as stack:
        fill(stack)
        others = [stack.tensors(0), stack.tensors(2)]
        stack.bind(torch.tensor([0, 1, 2]))
        before = logits(model, ids_BT)
        stack.drop(1)
        assert len(stack) == 2 and stack.configs == (MIXED[0], MIXED[2])
        for n, tensors in enumerate(others):
            assert all(torch.equal(t, tensors[key]) for key, t in stack.tensors(n).items())
        after = logits(model, ids_BT)
        n_terms = depth(model, ids_BT.shape[1])
        assert_close(after[[0, 2]], before[[0, 2]], n_terms)
        assert_close(after[1], base[1], n_terms)
        assert all(weight.requires_grad for weight in stack.parameters())
        stack.drop(0)
        with pytest.raises(AdapterError, match="detach ends the last one"):
            stack.drop(0)


def test_load_undoes_tensors_and_refuses_anything_that_does_not_fit() -> None:
    with attach(llama(), MIXED) as stack:
        fill(stack)
        tensors = stack.tensors(2)
        stack.reset(2, 0)
        stack.load(2, tensors)
        again = stack.tensors(2)
        assert all(torch.equal(again[key], tensor) for key, tensor in tensors.items())
        key = next(iter(tensors))
        with pytest.raises(AdapterError, match=r"1 of 14 missing.*0 of 13 not expected"):
            stack.load(2, {k: t for k, t in tensors.items() if k != key})
        with pytest.raises(AdapterError, match=r"1 of 15 not expected \(else\)"):
            stack.load(2, {**tensors, "else": tensors[key]})
        with pytest.raises(AdapterError, match=r"is \(4, 32\); adapter 2 .* has \(3, 32\)"):
            stack.load(2, {**tensors, key: torch.zeros(4, 32)})
        with pytest.raises(AdapterError, match="no adapter 3"):
            stack.tensors(3)


def test_same_seed_gives_the_same_adapter_twice() -> None:
    found = []
    for _ in range(2):
        model = llama()
        stack = attach(model, [LoraConfig(rank=2, seed=3)])
        train(model, stack, [token_ids()])
        found.append(stack.tensors(0))
    assert all(torch.equal(found[0][key], found[1][key]) for key in found[0])


def test_generation_with_a_cache_agrees_with_one_forward() -> None:
    model, ids_BT = llama(), token_ids(n_rows=2)
    with attach(model, MIXED) as stack:
        fill(stack)
        stack.bind(torch.tensor([1, 2]))
        mask_BT = torch.ones_like(ids_BT)
        out = model.generate(ids_BT, attention_mask=mask_BT, max_new_tokens=4, do_sample=False)
        assert isinstance(out, Tensor)
        picked = logits(model, out)[:, 6:-1].argmax(-1)
    assert torch.equal(picked, out[:, 7:])


def test_a_copy_of_the_model_is_independent() -> None:
    model = llama()
    other = copy.deepcopy(model)
    with attach(model, [LoraConfig()]) as stack:
        fill(stack)
        assert not torch.equal(logits(model), logits(other))
