"""What several test modules share: writes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lorewright.adapters.config import LoraConfig
from lorewright.knowledge.data import Example
from lorewright.models.model import Model
from lorewright.training.config import Epoch, WriteConfig, Written
from lorewright.training.loop import write
from support.families import llama
from support.models import letters
from support.numbers import depth, rounding

EXAMPLES = [
    Example(f"Code of {who}?", code)
    for who, code in (("red", "48"), ("blue", "7.5"), ("teal", "KX"), ("grey", "a-1"))
]


CONFIG = WriteConfig(lora=LoraConfig(rank=4), lr=1e-2, epochs=80)


BRIEF = replace(CONFIG, epochs=6)


def tiny(**changes: Any) -> Model:
    """A random model whose head is loud enough for adapters to make it sure of something."""
    network = llama(max_position_embeddings=128, **changes)
    network.lm_head.weight.data.mul_(40)
    return Model(network, letters(), "tiny")


def logits(model: Model) -> Tensor:
    with torch.no_grad():
        found: Tensor = model.network(torch.arange(3, 60)[None]).logits
    return found


def apart(model: Model, config: WriteConfig, n_examples: int = len(EXAMPLES)) -> float:
    """How far rounding may move a weight in a write.

    Adam's steps are of the size of the rate and as uncertain as the gradient, relatively: those an
    eighth as large as the largest are eight times as uncertain, and smaller ones come near Adam's
    epsilon (the fixture `calm`), which damps them.
    """
    n_steps = config.epochs * -(-n_examples // config.batch_size)
    return n_steps * config.lr * rounding(torch.float32, depth(model.network, model.context), 8.0)


def same_adapter(a: Written, b: Written) -> bool:
    pairs = zip(a.adapter.tensors.items(), b.adapter.tensors.items(), strict=True)
    return all(x == y and torch.equal(s, t) for (x, s), (y, t) in pairs)


def interrupted(
    model: Model,
    run: Path,
    *,
    at: int,
    config: WriteConfig = BRIEF,
    examples: Sequence[Example] = EXAMPLES,
    **settings: Any,
) -> None:
    """A write that Ctrl-C ends after epoch `at`."""

    def stop(epoch: Epoch) -> None:
        if epoch.epoch == at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(model, examples, config, run=run, on_epoch=stop, **settings)
