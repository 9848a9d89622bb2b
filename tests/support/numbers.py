"""How far apart two ways of computing one number may be, from the arithmetic."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor


def rounding(dtype: torch.dtype, n_terms: int, scale: float | Tensor = 1.0) -> float:
    """How far two sums of the same terms in different orders may be apart.

    Rounding errors have either sign, so that a sum of n terms is off by less than c sqrt(n) eps
    times the terms' size, with a small c (Higham and Mary, SIAM J. Sci. Comput. 41, 2019). `scale`:
    that size, or a tensor whose largest value is.
    """
    size = float(scale.detach().abs().max()) if isinstance(scale, Tensor) else scale
    return 32 * torch.finfo(dtype).eps * math.sqrt(n_terms) * size


def depth(network: torch.nn.Module, n_tokens: int) -> int:
    """Terms that are summed one after another from a token to its loss and back to a weight."""
    config = network.config.get_text_config()  # type: ignore[operator, union-attr]
    width, inner = int(config.hidden_size), int(config.intermediate_size)
    layer = 3 * width + inner + n_tokens + width // int(config.num_attention_heads)
    return 2 * (int(config.num_hidden_layers) * layer + int(config.vocab_size)) + n_tokens


def assert_close(result: Tensor, expected: Tensor, n_terms: int) -> None:
    """Equal but for the rounding of sums of so many terms of the expected tensor's size."""
    most = rounding(result.dtype, n_terms, expected)
    difference = result.detach().double() - expected.detach().double()
    off = float(difference.abs().max()) if result.numel() else 0.0
    assert math.isfinite(off) and off <= most, f"off by {off:.3g}; rounding allows {most:.3g}"


def assert_all_close(results: Iterable[Tensor], expected: Iterable[Tensor], n_terms: int) -> None:
    """The same for tensors side by side; each by its own size."""
    for one, other in zip(results, expected, strict=True):
        assert_close(one, other, n_terms)
