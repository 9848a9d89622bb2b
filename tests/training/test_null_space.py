"""Claims about null spaces: what is left out, that A never reads it, and that this protects."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.writes import EXAMPLES, interrupted, tiny
from torch import Tensor

from lorewright.adapters.adapter import Adapter, content_id
from lorewright.adapters.config import LoraConfig
from lorewright.adapters.lora import attach
from lorewright.knowledge.data import REHEARSAL, Example
from lorewright.models.model import Model
from lorewright.training.config import Job, WriteConfig, Written, drill
from lorewright.training.loop import write, write_all
from lorewright.training.null_space import complement, null_spaces
from lorewright.training.whitening import Basis

GENERAL = [
    Example(f"What is {i} + {k}?", str(i + k), REHEARSAL) for i in range(4) for k in range(3)
]
CONFIG = WriteConfig(lora=LoraConfig(4, seed=3), lr=0.02, epochs=12, seed=5, null_space=0.9)


def dense(result: Basis) -> Tensor:
    """The matrix itself."""
    eye = torch.eye(len(result.side_IK), dtype=torch.float64)
    side = result.side_IK.double()
    return result.rest * eye + (side * result.gain_K.double()) @ side.T


@given(
    n=st.integers(1, 40),
    width=st.integers(1, 30),
    share=st.sampled_from([0.0, 0.3, 0.9, 0.99, 1.0]),
    seed=st.integers(0, 99),
)
def test_the_fewest_directions_that_hold_the_share_are_taken_out(
    n: int, width: int, share: float, seed: int
) -> None:
    torch.manual_seed(seed)
    x_SI = torch.randn(n, width).double() * torch.logspace(-2, 1, width).double()
    result = complement(x_SI, share)
    outside = dense(result)
    torch.testing.assert_close(outside, outside.T, rtol=0, atol=1e-6)
    torch.testing.assert_close(outside @ outside, outside, rtol=0, atol=1e-5)
    unit = x_SI / x_SI.norm(dim=1, keepdim=True)
    left = float((unit @ outside).square().sum()) / n
    assert left <= 1 - share + 1e-5
    n_out = len(result.gain_K)
    energy = torch.linalg.svdvals(unit).square() / n
    if n_out:  # one fewer would leave too much
        assert float(energy[n_out - 1 :].sum()) > 1 - share - 1e-9


def test_tokens_count_the_same_however_large() -> None:
    small, large = torch.eye(6).double()[:3], torch.eye(6).double()[3:] * 1e4
    one = dense(complement(torch.cat([small, large]), 0.99))
    torch.testing.assert_close(one, torch.zeros(6, 6).double(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("n", [0, 3])
def test_inputs_without_size_leave_all_directions(n: int) -> None:
    result = complement(torch.zeros(n, 5), 0.97)
    torch.testing.assert_close(dense(result), torch.eye(5).double(), rtol=0, atol=0)


def spaces(model: Model, config: WriteConfig) -> Any:
    rows = [model.render(e.prompt, e.completion) for e in GENERAL]
    with attach(model.network, [config.lora]) as stack:
        (bases,) = null_spaces(model, stack, [rows], [config.null_space])
    return bases


def seen(model: Model, adapter: Adapter, config: WriteConfig) -> float:
    """The largest share of an A that lies in what was to be left out."""
    shares = []
    for name, result in spaces(model, config).items():
        A_RI = adapter.tensors[f"{name}.lora_A.weight"].double()
        inside = A_RI - A_RI @ dense(result)
        shares.append(float(inside.norm() / A_RI.norm()))
    return max(shares)


@torch.no_grad()
def moved(model: Model, adapter: Adapter) -> float:
    """How far the adapter moves the base's distributions over replies to general questions."""
    batch = model.batch([model.render(e.prompt, e.completion) for e in GENERAL])
    before = model.completion_logits(batch).log_softmax(-1)
    with model.using(adapter):
        after = model.completion_logits(batch).log_softmax(-1)
    return float(((before.exp() * (before - after)).sum(-1) * batch.mask_BC).sum())


@pytest.mark.parametrize("optimizer", ["adamw", "preconditioned", "muon", "whitened"])
def test_a_never_reads_what_is_left_out_whatever_moves_it(optimizer: str) -> None:
    model, config = tiny(), replace(CONFIG, optimizer=optimizer)
    done = write(model, [*EXAMPLES, *GENERAL], config)
    assert seen(model, done.adapter, config) < 1e-4
    free = write(model, [*EXAMPLES, *GENERAL], replace(config, null_space=0.0))
    assert seen(model, free.adapter, config) > 0.1


def test_facts_are_recalled_and_what_the_base_says_elsewhere_moves_less() -> None:
    model, config = tiny(), replace(CONFIG, epochs=60, lr=0.005, rehearsal=0.0)
    apart, free = (
        write(model, [*EXAMPLES, *GENERAL], replace(config, null_space=share))
        for share in (0.99, 0.0)
    )
    assert apart.complete and free.complete
    assert moved(model, apart.adapter) < 0.5 * moved(model, free.adapter)


def test_writes_together_are_those_alone() -> None:
    model = tiny()
    rows = [*EXAMPLES, *GENERAL]
    jobs = [
        Job(rows, CONFIG),
        Job(EXAMPLES, CONFIG),
        Job(rows, replace(CONFIG, null_space=0.5, epochs=4)),
        Job([*EXAMPLES, *GENERAL[:5]], CONFIG),
    ]
    for job, done in zip(jobs, write_all(model, jobs), strict=True):
        assert isinstance(done, Written)
        alone = write(model, job.examples, job.config)
        assert [e.n_recalled for e in done.epochs] == [e.n_recalled for e in alone.epochs]
        for name, tensor in alone.adapter.tensors.items():
            torch.testing.assert_close(done.adapter.tensors[name], tensor, rtol=1e-3, atol=1e-3)


def test_without_rehearsal_nothing_is_left_out() -> None:
    model = tiny()
    plain, other = (
        write(model, EXAMPLES, replace(CONFIG, null_space=share)) for share in (0.0, 0.99)
    )
    assert content_id(plain.adapter) == content_id(other.adapter)


def test_an_adapter_to_go_on_from_keeps_what_it_reads() -> None:
    model = tiny()
    rows = [*EXAMPLES, *GENERAL]
    start = write(model, rows, replace(CONFIG, null_space=0.0, epochs=2)).adapter
    again = write(model, rows, replace(CONFIG, lr=1e-30, epochs=1), start=start).adapter
    for name, tensor in start.tensors.items():
        torch.testing.assert_close(again.tensors[name], tensor, rtol=0, atol=1e-20)


def test_a_write_resumes_with_the_same_bytes(tmp_path: Path) -> None:
    model, rows = tiny(), [*EXAMPLES, *GENERAL]
    config = drill(CONFIG, len(rows))
    whole = write(model, rows, config)

    interrupted(model, tmp_path / "run", at=2, config=config, examples=rows)
    resumed = write(model, rows, config, run=tmp_path / "run")
    assert content_id(resumed.adapter) == content_id(whole.adapter)
