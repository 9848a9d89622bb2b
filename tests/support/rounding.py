"""How far apart two numbers may lie that are equal but for rounding."""

from __future__ import annotations

import torch


def rounding(n_terms: int, scale: float = 1.0, dtype: torch.dtype = torch.float32) -> float:
    """The largest error of a sum of so many products, none above `scale`: n eps scale.

    Sums in another order, as processors take them, differ by twice that at most.
    """
    return 2 * n_terms * torch.finfo(dtype).eps * scale
