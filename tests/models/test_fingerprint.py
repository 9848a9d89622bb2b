"""Claims about fingerprints: equal for equal weights, different for anything that differs."""

from __future__ import annotations

import torch
from support.families import llama, qwen3

from lorewright.models.fingerprint import SAMPLE, fingerprint


def test_equal_weights_have_one_fingerprint() -> None:
    assert fingerprint(llama()) == fingerprint(llama())


def test_another_family_dtype_or_value_has_another() -> None:
    changed = llama()
    changed.get_submodule("lm_head").weight.data[0, 0] += 1  # type: ignore[operator, index]
    found = [fingerprint(n) for n in (llama(), qwen3(), llama().bfloat16(), changed)]
    assert len(set(found)) == 4


def test_of_a_large_tensor_an_even_sample_counts() -> None:
    layer = torch.nn.Linear(4 * SAMPLE, 1, bias=False)
    before = fingerprint(layer)
    layer.weight.data[0, 1] += 1
    assert fingerprint(layer) == before
    layer.weight.data[0, 4] += 1
    assert fingerprint(layer) != before
