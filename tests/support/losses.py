"""What several test modules share: losses."""

from __future__ import annotations

from torch import Tensor, nn


def answer_loss(model: nn.Module, ids_BT: Tensor) -> Tensor:
    """Next-token loss summed over rows, so that rows of one adapter do not depend on others."""
    found: Tensor = model(ids_BT).logits.log_softmax(-1)
    return -found[:, :-1].gather(-1, ids_BT[:, 1:, None]).sum()
