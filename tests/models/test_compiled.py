"""Claims about compiled code: torch's numbers, whatever is beside them; or torch, and a reason."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.families import llama, qwen3
from support.passes import TEXTS, batch_of, filled, loaded, outcome
from torch import nn

from lorewright.adapters.config import LoraConfig
from lorewright.adapters.lora import attach
from lorewright.errors import ConfigError
from lorewright.models.backends import compiled
from lorewright.models.backends.compiled import build, decoder, layout
from lorewright.models.backends.compiled.buffers import Spare, panels
from lorewright.models.model import Model
from lorewright.models.nats import token_nats
from lorewright.training.optimisers import Optimizer, OptimizerConfig

needs_compiler = pytest.mark.skipif(
    build.find_compiler() is None, reason="needs a C compiler: gcc, clang, or pip install ziglang"
)


@pytest.fixture(autouse=True)
def used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is full of what is no number: what is read must have been written."""
    take = Spare.take
    monkeypatch.setattr(Spare, "take", lambda self, n: take(self, n).fill_(torch.nan))


def library() -> ctypes.CDLL:
    found = compiled.load().library
    assert found is not None
    return found


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process that has loaded nothing yet."""
    build._loaded.cache_clear()
    monkeypatch.delenv(build.KERNELS, raising=False)
    yield
    build._loaded.cache_clear()


# -- products ------------------------------------------------------------------------------------

sizes = st.integers(1, 70)


@needs_compiler
@given(m=sizes, n=sizes, k=st.integers(1, 600), seed=st.integers(0, 9))
def test_products_of_any_shape_are_numpy_s(m: int, n: int, k: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    left, right = (rng.standard_normal(shape, np.float32) for shape in ((m, k), (k, n)))
    found = np.full((m, n), np.nan, np.float32)
    at = (array.ctypes.data for array in (left, right, found))
    library().lorewright_product(m, n, k, *at)
    np.testing.assert_allclose(found, left @ right, rtol=1e-4, atol=1e-4 * k**0.5)


@needs_compiler
def test_columns_a_power_of_two_apart_are_multiplied_like_any_others() -> None:
    rng = np.random.default_rng(0)
    left, right = (rng.standard_normal(shape, np.float32) for shape in ((40, 30), (30, 1024)))
    found = np.empty((40, 1024), np.float32)
    library().lorewright_product(40, 1024, 30, *(a.ctypes.data for a in (left, right, found)))
    np.testing.assert_allclose(found, left @ right, rtol=1e-4, atol=1e-4)


@needs_compiler
@given(k=sizes, n=sizes)
def test_panels_hold_every_value_once_and_zeros_behind(k: int, n: int) -> None:
    matrix_KN = torch.arange(1.0, k * n + 1).view(k, n)
    width = library().lorewright_columns()
    found = panels(library(), matrix_KN).view(-1, k, width)
    whole_KN = found.transpose(0, 1).reshape(k, -1)
    assert torch.equal(whole_KN[:, :n], matrix_KN)
    assert not whole_KN[:, n:].any()
    assert torch.equal(panels(library(), matrix_KN.t().contiguous(), turned=True), found.flatten())


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
    expected = token_nats(head(hidden_MD), ids_M)
    (slope,) = torch.autograd.grad((expected.loss_BT * weight_M).sum(), hidden_MD)
    loss_M, correct_M = compiled.Head(library(), head).nats(hidden_MD, ids_M)
    (found,) = torch.autograd.grad((loss_M * weight_M).sum(), hidden_MD)
    torch.testing.assert_close(loss_M, expected.loss_BT, rtol=1e-4, atol=2e-5)
    torch.testing.assert_close(found, slope, rtol=1e-3, atol=1e-4)
    assert torch.equal(correct_M, expected.correct_BT)


@needs_compiler
def test_equal_logits_count_as_the_first_of_them() -> None:
    head = nn.Linear(2, 3, bias=False).requires_grad_(False)
    head.weight.fill_(1.0)
    ids_M = torch.tensor([0, 1])
    _, correct_M = compiled.Head(library(), head).nats(torch.ones(2, 2), ids_M)
    assert correct_M.tolist() == token_nats(head(torch.ones(2, 2)), ids_M).correct_BT.tolist()


@needs_compiler
def test_what_is_not_a_number_stays_so() -> None:
    model = loaded(llama)
    assert model.fused is not None and model.fused.compiled is not None
    with filled(attach(model.network, [LoraConfig(rank=2)])) as stack:
        next(iter(stack.modules.values())).B_NOR.data[:, 0, 0] = torch.nan
        loss, grads = outcome(model, stack, batch_of(model))
    assert loss.isnan().any()
    assert all(grad is not None and grad.isnan().any() for grad in grads)


# -- the decoder ---------------------------------------------------------------------------------


@needs_compiler
@pytest.mark.parametrize("rows", [None, [0, 1, 0], [1, -1, 0]])
def test_threads_change_nothing_but_the_order_of_sums(rows: list[int] | None) -> None:
    model = loaded(qwen3)
    batch = batch_of(model)
    found = []
    with filled(attach(model.network, [LoraConfig(rank=3), LoraConfig(rank=2, seed=1)])) as stack:
        stack.bind(None if rows is None else torch.tensor(rows))
        for n_threads in (1, 2, 5):
            torch.set_num_threads(n_threads)
            found.append(outcome(model, stack, batch))
    for loss, grads in found[1:]:
        assert torch.equal(loss, found[0][0])
        for grad, other in zip(grads, found[0][1], strict=True):
            torch.testing.assert_close(grad, other, rtol=1e-4, atol=1e-6)


@needs_compiler
def test_rows_do_not_notice_one_another() -> None:
    """Alone, beside others, beside itself: the same bits, though tokens in common are shared."""
    model = loaded(llama)
    rows = [model.render(*text) for text in [*TEXTS, ("Code of blue?", "7")]]
    every = model.completion_nats(model.batch(rows)).loss_BT
    twice = model.completion_nats(model.batch([rows[0], rows[3], rows[0]])).loss_BT
    for i, row in enumerate(rows):
        n = len(row.completion_ids)
        (alone,) = model.completion_nats(model.batch([row])).loss_BT
        assert torch.equal(alone[:n], every[i, :n])
    n = len(rows[0].completion_ids)
    assert torch.equal(twice[0, :n], every[0, :n])
    assert torch.equal(twice[2, :n], every[0, :n])


@needs_compiler
@pytest.mark.parametrize("ranks", [(3,), (2, 20)])
def test_long_texts_attend_in_blocks(ranks: tuple[int, ...]) -> None:
    """More tokens than attend at a time, after a beginning that rows share."""
    model = loaded(lambda: llama(max_position_embeddings=512))
    same = "ab cd " * 15
    texts = [(same + "one", "xy " * 30), (same + "two " * 9, "z"), (same, "yes" * 25)]
    batch = model.batch([model.render(*text) for text in texts])
    assert batch.ids_BT.shape[1] > 150
    configs = [LoraConfig(rank=rank, seed=rank) for rank in ranks]
    with filled(attach(model.network, configs)) as stack:
        stack.bind(torch.tensor([0, 0, len(ranks) - 1]))
        loss, grads = outcome(model, stack, batch)
        model.fused = None
        expected, others = outcome(model, stack, batch)
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-4)
    for mine, other in zip(grads, others, strict=True):
        assert mine is not None and other is not None
        torch.testing.assert_close(mine, other, rtol=2e-3, atol=1e-3 * float(other.abs().max()))


@needs_compiler
def test_more_positions_than_tokens_may_be_asked_for() -> None:
    """Padding is position 0 to whom wants every logit, however short the row."""
    model = loaded(lambda: llama(max_position_embeddings=512))
    batch = model.batch([model.render("Say", "ab" * 40), *(model.render(*t) for t in TEXTS[:2])])
    with filled(attach(model.network, [LoraConfig(rank=2), LoraConfig(rank=3, seed=1)])) as stack:
        stack.bind(torch.tensor([0, 1, 1]))
        shape = *batch.position_BC.shape, model.network.config.vocab_size
        weight_BCV = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        found = []
        for fused in (model.fused, None):
            model.fused = fused
            loss = (model.completion_logits(batch) * weight_BCV).sum()
            found.append(torch.autograd.grad(loss, stack.parameters()))
    for mine, other in zip(*found, strict=True):
        torch.testing.assert_close(mine, other, rtol=2e-3, atol=1e-3 * float(other.abs().max()))


@needs_compiler
def test_several_passes_may_go_back_together() -> None:
    model = loaded(lambda: llama(max_position_embeddings=512))
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
    torch.testing.assert_close(found, expected)


@needs_compiler
def test_torch_s_default_dtype_is_not_its_own() -> None:
    expected = loaded(llama)
    batch = batch_of(expected)
    torch.set_default_dtype(torch.float64)
    try:
        model = Model(expected.network, expected.tokenizer, "tiny")
        found = model.completion_nats(batch).loss_BT
    finally:
        torch.set_default_dtype(torch.float32)
    assert model.fused is not None and model.fused.compiled is not None
    assert torch.equal(found, expected.completion_nats(batch).loss_BT)


@needs_compiler
@pytest.mark.usefixtures("fresh")
def test_a_damaged_library_is_made_anew(empty_cache: Path) -> None:
    assert compiled.load().library is not None
    (kept,) = empty_cache.rglob("kernels/*")
    kept.unlink()
    kept.write_bytes(b"not a library")
    build._loaded.cache_clear()
    assert compiled.load().library is not None


@needs_compiler
def test_a_weight_that_was_written_to_is_read_anew() -> None:
    model = loaded(llama)
    batch, network = batch_of(model), model.network
    before = model.completion_nats(batch).loss_BT
    with torch.no_grad():
        network.model.layers[1].mlp.up_proj.weight.mul_(1.5)
        network.model.layers[0].input_layernorm.weight.add_(0.1)
        network.lm_head.weight.mul_(0.5)
    found = model.completion_nats(batch).loss_BT
    model.fused = None
    assert not torch.allclose(before, found)
    torch.testing.assert_close(found, model.completion_nats(batch).loss_BT, rtol=1e-4, atol=1e-4)


@needs_compiler
def test_a_large_base_stays_with_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder, "MOST_BYTES", 1000)
    fused = loaded(llama).fused
    assert fused is not None and fused.compiled is None
    assert "more than 0 MiB" in fused.says


@needs_compiler
def test_code_that_computes_other_numbers_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    forward = compiled.Run.forward
    monkeypatch.setattr(compiled.Run, "forward", lambda *a, **k: forward(*a, **k) + 1)
    fused = loaded(llama).fused
    assert fused is not None and fused.compiled is None and fused.ready()
    assert fused.says == "it computed other numbers than torch"


@needs_compiler
def test_a_pass_goes_back_once() -> None:
    model = loaded(llama)
    with filled(attach(model.network, [LoraConfig(rank=2)])) as stack:
        loss = model.completion_nats(batch_of(model)).loss_BT.sum()
        torch.autograd.grad(loss, stack.parameters(), retain_graph=True)
        with pytest.raises(AssertionError, match="one way back"):
            torch.autograd.grad(loss, stack.parameters())


# -- Adam ----------------------------------------------------------------------------------------


@needs_compiler
@pytest.mark.parametrize("settings", [{}, {"lr_ratio": 4.0, "weight_decay": 0.1, "clip": 0.01}])
def test_steps_are_those_of_the_operations(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, float]
) -> None:
    found = []
    for choice in build.CHOICES:
        monkeypatch.setenv(build.KERNELS, choice)
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
            assert (optimizer.movers is not None) == (choice == "auto")
            found.append([weight.detach().clone() for weight in optimizer.parameters])
            for n in (0, 1):
                found[-1] += optimizer.tensors(n).values()
    for mine, other in zip(*found, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)  # 1 - 0.999^t in float32


# -- building ------------------------------------------------------------------------------------


@pytest.mark.usefixtures("fresh")
def test_without_a_compiler_torch_computes_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(build.shutil, "which", lambda name: None)
    monkeypatch.setattr(build, "find_spec", lambda name: None)
    model = loaded(llama)
    assert model.fused is not None and model.fused.compiled is None and model.fused.ready()
    assert "pip install ziglang" in model.fused.says


@pytest.mark.usefixtures("fresh")
def test_a_compiler_that_fails_is_named_with_what_it_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    compiler = tmp_path / "badcc"
    compiler.write_text("#!/bin/sh\necho 'no space for a heap' >&2\nexit 3\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    found = compiled.load()
    assert found.library is None
    assert "badcc" in found.says and "no space for a heap" in found.says
    assert not list((tmp_path / "lorewright").rglob("*.so"))


@pytest.mark.usefixtures("fresh")
def test_it_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(build.KERNELS, "torch")
    assert compiled.load() == (None, "LOREWRIGHT_KERNELS is torch")
    monkeypatch.setenv(build.KERNELS, "fast")
    with pytest.raises(ConfigError, match="auto, torch; found 'fast'"):
        compiled.load()


@needs_compiler
@pytest.mark.usefixtures("fresh")
def test_it_is_compiled_once_and_then_only_loaded(
    monkeypatch: pytest.MonkeyPatch, empty_cache: Path
) -> None:
    ran: list[Any] = []
    run = subprocess.run
    noted = lambda *a, **k: (ran.append(a[0]), run(*a, **k))[1]  # noqa: E731
    monkeypatch.setattr(build.subprocess, "run", noted)
    assert compiled.load().library is not None
    assert ["--version" in command for command in ran] == [True, False]
    (kept,) = empty_cache.rglob("kernels/*")
    build._loaded.cache_clear()
    assert compiled.load().library is not None
    assert ["--version" in command for command in ran] == [True, False, True]
    assert [kept] == list(empty_cache.rglob("kernels/*"))


@needs_compiler
@pytest.mark.usefixtures("fresh")
def test_a_cache_that_may_not_be_written_is_done_without(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise PermissionError("read-only")

    monkeypatch.setattr(Path, "mkdir", refuse)
    assert compiled.load().library is not None


@needs_compiler
def test_structures_of_another_size_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    here = library()
    monkeypatch.setattr(layout, "STRUCTURES", layout.STRUCTURES[::-1])
    with pytest.raises(OSError, match="bytes in C"):
        layout.declare(here)


@pytest.mark.slow
def test_a_base_is_read_and_written_to_without_it_in_a_process_of_its_own() -> None:
    code = (
        "from lorewright.models.model import Model; m = Model.load();"
        "print(m.fused.compiled, m.fused.says, m.fused.ready())"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**__import__("os").environ, build.KERNELS: "torch"},
    )
    assert ran.stdout.strip() == "None LOREWRIGHT_KERNELS is torch True"


def test_a_base_that_is_no_such_decoder_has_none() -> None:
    from support.families import FAMILIES
    from support.models import letters

    model = Model(FAMILIES["gpt_neox"](), letters(), "tiny")  # type: ignore[arg-type]
    assert model.fused is None
