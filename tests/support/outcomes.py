"""Random predictions for property tests."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor


@st.composite
def outcomes(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (B, T, V), target ids (B, T) and a mask (B, T) with padding on the right."""
    n_rows, n_tokens, n_words = draw(st.integers(1, 4)), draw(st.integers(1, 60)), 5
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    sharpness = draw(st.sampled_from([0.0, 0.3, 3.0, 30.0]))
    logits_BTV = sharpness * torch.randn(n_rows, n_tokens, n_words, generator=generator)
    ids_BT = torch.randint(n_words, (n_rows, n_tokens), generator=generator)
    if draw(st.booleans()):  # mostly recalled
        kept_BT = torch.rand(ids_BT.shape, generator=generator) < 0.9
        ids_BT = torch.where(kept_BT, logits_BTV.argmax(-1), ids_BT)
    length_B = torch.randint(0, n_tokens + 1, (n_rows,), generator=generator)
    return logits_BTV, ids_BT, torch.arange(n_tokens) < length_B[:, None]
