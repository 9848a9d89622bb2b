"""Claims about compiled code: torch's numbers, whatever is beside them; or none, and a reason.

That its passes are plain transformers' is the contract of all backends: test_backends.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.families import gpt_neox, llama, qwen3
from support.numbers import assert_all_close, assert_close, depth, rounding
from support.passes import TEXTS, batch_of, filled, loaded, outcome, plain, rows, running_in, spoil
from torch import Tensor, nn

from lorewright.adapters.config import LoraConfig
from lorewright.adapters.lora import attach
from lorewright.errors import ConfigError
from lorewright.models.backends.backend import AS_BOUND, Pass
from lorewright.models.backends.compiled import backend
from lorewright.models.backends.compiled.backend import Compiled
from lorewright.models.backends.compiled.head import Head
from lorewright.models.backends.compiled.library import (
    CHOICES,
    KERNELS,
    Library,
    build,
    find_compiler,
    load,
)
from lorewright.models.backends.compiled.memory import pack
from lorewright.models.model import Model
from lorewright.models.nats import token_nats
from lorewright.training.optimisers import Optimizer, OptimizerConfig

needs_compiler = pytest.mark.skipif(
    find_compiler() is None, reason="needs a C compiler: gcc, clang, or pip install ziglang"
)


def compiled_library() -> Library:
    found = load().library
    assert found is not None
    return found


def in_c(network: Any) -> Model:
    model = running_in("c", network)
    assert model.backend() is model.backends["c"]
    return model


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process that has loaded nothing yet."""
    build.cache_clear()
    monkeypatch.delenv(KERNELS, raising=False)
    yield
    build.cache_clear()


@pytest.fixture
def quick_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A compiler that does not optimise, and a log of what it is called with first."""
    log, compiler = tmp_path / "log", tmp_path / "cc"
    real = shutil.which((find_compiler() or [""])[0])
    compiler.write_text(f'#!/bin/sh\necho "$1" >> {log}\nexec {real} "$@" -O0\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    return log


# -- products ------------------------------------------------------------------------------------

sizes = st.integers(1, 70)


def product(left: Tensor, right: Tensor) -> Tensor:
    found = torch.full((len(left), right.shape[1]), torch.nan)
    c = compiled_library()
    (m, n), k = found.shape, len(right)
    c.lib.lorewright_product(m, n, k, c.floats(left), c.floats(right), c.floats(found))
    return found


@needs_compiler
@given(m=sizes, n=sizes, k=st.integers(1, 600), seed=st.integers(0, 9))
def test_products_of_any_shape_are_exact_to_rounding(m: int, n: int, k: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    left, right = (torch.randn(shape, generator=generator) for shape in ((m, k), (k, n)))
    most = rounding(torch.float32, k, left) * float(right.abs().max())
    assert (product(left, right) - left.double() @ right.double()).abs().max() <= most


@needs_compiler
def test_columns_a_power_of_two_apart_are_multiplied_like_any_others() -> None:
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(shape, generator=generator) for shape in ((40, 30), (30, 1024)))
    assert_close(product(left, right), left.double() @ right.double(), 30)


@needs_compiler
@given(k=sizes, n=sizes)
def test_a_packed_matrix_holds_every_value_once_and_zeros_behind(k: int, n: int) -> None:
    matrix_KN, c = torch.arange(1.0, k * n + 1).view(k, n), compiled_library()
    packed = pack(c, matrix_KN).view(-1, k, c.lib.lorewright_columns())
    whole_KN = packed.transpose(0, 1).reshape(k, -1)
    assert torch.equal(whole_KN[:, :n], matrix_KN)
    assert not whole_KN[:, n:].any()
    assert torch.equal(pack(c, matrix_KN.t().contiguous(), transposed=True), packed.flatten())


# -- losses --------------------------------------------------------------------------------------


@needs_compiler
@given(m=st.integers(1, 140), v=st.integers(2, 90), seed=st.integers(0, 9))
def test_losses_and_their_gradients_are_those_of_the_logits(m: int, v: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    head = nn.Linear(7, v, bias=False).requires_grad_(False)
    head.weight.copy_(torch.randn(v, 7, generator=generator) * 4)
    hidden_MD = torch.randn(m, 7, generator=generator).requires_grad_()
    ids_M = torch.randint(-1, v, (m,), generator=generator)
    weight_M = torch.rand(m, generator=generator)
    logits = hidden_MD.double() @ head.weight.double().T
    padding = ids_M < 0
    target_M1 = ids_M.clamp(min=0)[:, None]
    expected_M = -logits.log_softmax(-1).gather(-1, target_M1)[:, 0].masked_fill(padding, 0.0)
    (slope,) = torch.autograd.grad((expected_M * weight_M).sum(), hidden_MD)
    loss_M, correct_M = Head(compiled_library(), head).nats(hidden_MD, ids_M)
    (found,) = torch.autograd.grad((loss_M * weight_M).sum(), hidden_MD)
    scale = float(logits.detach().abs().max())
    assert (loss_M - expected_M).abs().max() <= rounding(torch.float32, 7 + v, scale)
    most = rounding(torch.float32, 7 + v, scale) * float(head.weight.abs().max())
    assert (found - slope).abs().max() <= most
    assert torch.equal(correct_M, token_nats(head(hidden_MD), ids_M).correct_BT)


@needs_compiler
def test_equal_logits_count_as_the_first_of_them() -> None:
    head = nn.Linear(2, 3, bias=False).requires_grad_(False)
    head.weight.fill_(1.0)
    ids_M = torch.tensor([0, 1])
    _, correct_M = Head(compiled_library(), head).nats(torch.ones(2, 2), ids_M)
    assert correct_M.tolist() == token_nats(head(torch.ones(2, 2)), ids_M).correct_BT.tolist()


@needs_compiler
def test_what_is_not_a_number_stays_so() -> None:
    model = in_c(llama)
    with filled(attach(model.network, [LoraConfig(rank=2)])) as stack:
        next(iter(stack.modules.values())).B_NOR.data[:, 0, 0] = torch.nan
        loss, grads = outcome(model, stack, batch_of(model))
    assert loss.isnan().any()
    assert all(grad.isnan().any() for grad in grads)


# -- the decoder ---------------------------------------------------------------------------------


@needs_compiler
@pytest.mark.parametrize("adapters", [None, [0, 1, 0], [1, -1, 0]])
def test_threads_change_nothing_but_the_order_of_sums(adapters: list[int] | None) -> None:
    model = in_c(qwen3)
    batch = batch_of(model)
    found = []
    with filled(attach(model.network, [LoraConfig(rank=3), LoraConfig(rank=2, seed=1)])) as stack:
        for n_threads in (1, 2, 5):
            torch.set_num_threads(n_threads)
            found.append(outcome(model, stack, batch, Pass(rows(stack, adapters))))
    # The library that multiplies may cut a product otherwise for another number of threads.
    n_terms = depth(model.network, batch.ids_BT.shape[1])
    for loss, grads in found[1:]:
        assert_close(loss, found[0][0], n_terms)
        assert_all_close(grads, found[0][1], n_terms)


@needs_compiler
def test_rows_do_not_notice_one_another() -> None:
    """Alone, beside others, beside itself: the same bits, though tokens in common are shared."""
    model = in_c(llama)
    texts = [model.render(*text) for text in [*TEXTS, ("Code of blue?", "7")]]
    every = model.completion_nats(model.batch(texts)).loss_BT
    twice = model.completion_nats(model.batch([texts[0], texts[3], texts[0]])).loss_BT
    for i, text in enumerate(texts):
        n = len(text.completion_ids)
        (alone,) = model.completion_nats(model.batch([text])).loss_BT
        assert torch.equal(alone[:n], every[i, :n])
    n = len(texts[0].completion_ids)
    assert torch.equal(twice[0, :n], every[0, :n])
    assert torch.equal(twice[2, :n], every[0, :n])


@needs_compiler
@pytest.mark.parametrize("ranks", [(3,), (2, 20)])
def test_long_texts_attend_in_blocks(ranks: tuple[int, ...]) -> None:
    """More tokens than attend at a time, after a beginning that rows share."""
    model = in_c(lambda: llama(max_position_embeddings=512))
    same = "ab cd " * 15
    texts = [(same + "one", "xy " * 30), (same + "two " * 9, "z"), (same, "yes" * 25)]
    batch = batch_of(model, texts)
    assert batch.ids_BT.shape[1] > 150
    adapters = [0, 0, len(ranks) - 1]
    configs = [LoraConfig(rank=rank, seed=rank) for rank in ranks]
    with filled(attach(model.network, configs)) as stack:
        loss, grads = outcome(model, stack, batch, Pass(rows(stack, adapters)))
        expected = plain(model, stack, batch, adapters)
    n_terms = depth(model.network, batch.ids_BT.shape[1])
    assert_close(loss, expected.loss_BC, n_terms)
    assert_all_close(grads, expected.grads, n_terms)


@needs_compiler
def test_more_positions_than_tokens_may_be_queried() -> None:
    """Padding is position 0 to whom wants every logit, however short the row."""
    model = in_c(lambda: llama(max_position_embeddings=512))
    batch = model.batch([model.render("Say", "ab" * 40), *(model.render(*t) for t in TEXTS[:2])])
    with filled(attach(model.network, [LoraConfig(rank=2), LoraConfig(rank=3, seed=1)])) as stack:
        pass_ = Pass(rows(stack, [0, 1, 1]))
        shape = *batch.position_BC.shape, model.network.config.vocab_size
        weight_BCV = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        found = []
        for key in ("c", "transformers"):
            spoil(model)
            args = batch.ids_BT, batch.position_BC, pass_
            logits = model.network.lm_head(model.backends[key].hidden(*args))
            found.append(torch.autograd.grad((logits * weight_BCV).sum(), stack.parameters()))
    assert_all_close(*found, depth(model.network, batch.ids_BT.shape[1]) + weight_BCV.numel())


@needs_compiler
def test_several_passes_may_go_back_together() -> None:
    model = in_c(lambda: llama(max_position_embeddings=512))
    short = model.batch([model.render(*TEXTS[0])])
    long = model.batch([model.render("Say it all: " * 9, "xy")])
    with filled(attach(model.network, [LoraConfig(rank=2)])) as stack:
        expected = torch.zeros(())
        for batch in (short, long):
            loss = model.completion_nats(batch).loss_BT.sum()
            expected = expected + torch.autograd.grad(loss, stack.parameters())[0]
        both = [model.completion_nats(batch).loss_BT.sum() for batch in (short, long)]
        for module in stack.modules.values():  # what a new description would free
            module.base.weight.data = module.base.weight.data.clone()
        model.completion_nats(long)
        found = torch.autograd.grad(both[0] + both[1], stack.parameters())[0]
    assert_close(found, expected, 2)


@needs_compiler
def test_torch_s_default_dtype_is_not_its_own() -> None:
    expected = in_c(llama)
    batch = batch_of(expected)
    torch.set_default_dtype(torch.float64)
    try:
        model = Model(expected.network, expected.tokenizer, "tiny")
        found = model.completion_nats(batch).loss_BT
    finally:
        torch.set_default_dtype(torch.float32)
    assert model.backend() is model.backends["c"]
    assert torch.equal(found, expected.completion_nats(batch).loss_BT)


@needs_compiler
def test_a_weight_that_was_written_to_is_read_anew() -> None:
    model = in_c(llama)
    batch, network = batch_of(model), model.network
    before = model.completion_nats(batch).loss_BT
    with attach(network, [LoraConfig(rank=2)]) as stack, torch.no_grad():
        network.model.layers[1].mlp.up_proj.base.weight.mul_(1.5)
        network.model.layers[0].input_layernorm.weight.add_(0.1)
        network.lm_head.weight.mul_(0.5)
        after, _ = outcome(model, stack, batch)
        with torch.enable_grad():
            expected = plain(model, stack, batch, None)
    assert not torch.allclose(before, after)
    assert_close(after, expected.loss_BC, depth(network, batch.ids_BT.shape[1]))


@needs_compiler
def test_a_large_base_stays_with_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "MOST_BYTES", 1000)
    assert loaded(llama).runs_in() == "torch, by hand (the base has more than 0 MiB)"


@needs_compiler
def test_code_that_computes_other_numbers_is_not_used() -> None:
    network: Any = llama().requires_grad_(False)
    compiled = Compiled(network.model)
    network.model.layers[1].self_attn.scaling *= 2  # after the form was read
    assert compiled.refusal(AS_BOUND) == "it computed other numbers than torch"
    assert compiled.losses(network.lm_head) is None


@needs_compiler
def test_a_pass_goes_back_once() -> None:
    model = in_c(llama)
    with filled(attach(model.network, [LoraConfig(rank=2)])) as stack:
        loss = model.completion_nats(batch_of(model)).loss_BT.sum()
        torch.autograd.grad(loss, stack.parameters(), retain_graph=True)
        with pytest.raises(AssertionError, match="one backward pass"):
            torch.autograd.grad(loss, stack.parameters())


# -- Adam ----------------------------------------------------------------------------------------


@needs_compiler
@pytest.mark.parametrize("settings", [{}, {"lr_ratio": 4.0, "weight_decay": 0.1, "clip": 0.01}])
def test_steps_are_those_of_the_operations(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, float]
) -> None:
    found = []
    for choice in ("torch", "c"):
        monkeypatch.setenv(KERNELS, choice)
        generator = torch.Generator().manual_seed(1)
        configs = [LoraConfig(rank=3), LoraConfig(rank=2, seed=1)]
        with filled(attach(llama(), configs)) as stack:
            moving = [OptimizerConfig(**settings), OptimizerConfig(clip=0.5)]  # type: ignore[arg-type]
            optimizer = Optimizer(stack, moving)
            for step in range(4):
                grads = [
                    torch.randn(weight.shape, generator=generator) * (step + 1)
                    for weight in optimizer.parameters
                ]
                live_N = torch.tensor([True, step != 2])
                optimizer.step(optimizer.gathered(grads), [1e-2, 3e-3], live_N)
            assert (optimizer.movers is not None) == (choice == "c")
            found.append([weight.detach().clone() for weight in optimizer.parameters])
            for n in (0, 1):
                found[-1] += optimizer.tensors(n).values()
    # The bias correction 1 - 0.999^t is a difference of nearly equal numbers: 1000 times eps of it.
    assert_all_close(found[1], found[0], 1000)


# -- building ------------------------------------------------------------------------------------


@pytest.mark.usefixtures("fresh")
@pytest.mark.skipif(find_spec("ziglang") is not None, reason="there is always Zig")
def test_without_a_compiler_torch_computes_and_the_reason_says_why(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "torch, by hand (there is no C compiler; install gcc" in loaded(llama).runs_in()
    monkeypatch.setenv(KERNELS, "c")
    with pytest.raises(ConfigError, match=r"is c; .*: there is no C compiler; .*it runs in torch"):
        loaded(llama)


@pytest.mark.usefixtures("fresh")
def test_a_compiler_that_fails_is_named_with_what_it_printed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, empty_cache: Path
) -> None:
    compiler = tmp_path / "badcc"
    compiler.write_text("#!/bin/sh\necho 'no space for a heap' >&2\nexit 3\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    found = load()
    assert found.library is None
    assert "badcc" in found.about and "no space for a heap" in found.about
    assert not list(empty_cache.rglob("*.so"))


@pytest.mark.usefixtures("fresh")
def test_a_cc_that_is_no_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", 'cc -DX "')
    assert load() == (None, "CC is 'cc -DX \"': No closing quotation; mend or unset it")


@pytest.mark.usefixtures("fresh")
def test_it_can_be_switched_off_and_insisted_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KERNELS, "torch")
    assert load() == (None, "LOREWRIGHT_KERNELS is torch")
    monkeypatch.setenv(KERNELS, "fast")
    with pytest.raises(ConfigError, match="auto, torch, c; got 'fast'"):
        loaded(llama)
    monkeypatch.setenv(KERNELS, "c")
    with pytest.raises(ConfigError, match="compiled code does not run this base: GPTNeoXModel"):
        loaded(gpt_neox)


@needs_compiler
@pytest.mark.parametrize("choice", CHOICES)
def test_each_choice_runs_what_it_names(monkeypatch: pytest.MonkeyPatch, choice: str) -> None:
    monkeypatch.setenv(KERNELS, choice)
    expected = "torch, by hand" if choice == "torch" else "compiled code ("
    assert loaded(llama).runs_in().startswith(expected)


@needs_compiler
@pytest.mark.usefixtures("fresh")
def test_it_is_compiled_once_and_then_only_loaded(quick_compiler: Path, empty_cache: Path) -> None:
    assert load().library is not None
    log = quick_compiler
    assert log.read_text().split() == ["--version", "-O3"]
    (file,) = empty_cache.rglob("kernels/*.so")
    build.cache_clear()
    assert load().library is not None
    assert log.read_text().split() == ["--version", "-O3", "--version"]
    assert [file] == list(empty_cache.rglob("kernels/*.so"))


@pytest.mark.slow
@needs_compiler
@pytest.mark.usefixtures("fresh", "quick_compiler")
@pytest.mark.parametrize("damage", ["other bytes", "0", "500", "30000", "no checksum", "no number"])
def test_a_damaged_library_is_compiled_again(empty_cache: Path, damage: str) -> None:
    assert load().library is not None
    (file,) = empty_cache.rglob("kernels/*.so")
    whole = file.read_bytes()
    file.unlink()  # this process has it mapped
    left = whole[: int(damage)] if damage.isdecimal() else whole
    file.write_bytes(b"no" if damage == "other bytes" else left)
    if damage == "no checksum":
        file.with_suffix(".sha256").unlink()
    if damage == "no number":
        file.with_suffix(".sha256").write_bytes(b"\xff\xfe")
    build.cache_clear()
    assert load().library is not None
    assert file.read_bytes() == whole


@needs_compiler
@pytest.mark.usefixtures("fresh", "quick_compiler")
def test_a_cache_that_may_not_be_written_is_done_without(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    before = sorted(os.listdir(tmp_path))
    monkeypatch.setenv("LOREWRIGHT_CACHE", str(tmp_path / "file" / "cache"))
    assert load().library is not None
    assert sorted({*os.listdir(tmp_path), "log"}) == sorted({*before, "log"})
