"""A LoRA adapter as a `State`: the form that merges, exports and serves.

Knows the adapter's folder, how a model uses it, and how weight changes become one; knows nothing of
what changed them.

Shape letters: O out-features, I in-features.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from lorewright.adapters import adapter as adapters
from lorewright.adapters.adapter import HALVES, Adapter, short_targets
from lorewright.adapters.config import LoraConfig
from lorewright.adapters.lowrank import Factors, decomposed, halves
from lorewright.adapters.proof import check_effect, validate
from lorewright.models.model import Model

MANY = 2
"""Factors whose inner side, times this, is as long as the smaller side of their product are
multiplied: the eigenvectors of a Gram matrix are then cheaper than two QR decompositions and an SVD
(192 x 512, one core)."""
RANKS = (1, 2, 4, 8, 16, 32, 64)
"""Ranks whose share of a weight change is reported."""


@dataclass(frozen=True)
class AdapterState:
    """An adapter with the means to store it and to switch it on."""

    adapter: Adapter

    kind = "adapter"

    @property
    def id(self) -> str:
        """The adapter's content id."""
        return adapters.content_id(self.adapter)

    @property
    def base_digest(self) -> str:
        """Digest of the base's weights; empty if unknown, as in folders that others wrote."""
        return self.adapter.base_digest

    @property
    def size_bytes(self) -> int:
        """Bytes of its matrices in float32."""
        return sum(4 * tensor.numel() for tensor in self.adapter.tensors.values())

    def save(self, folder: Path, card: Mapping[str, Any]) -> str:
        """Write PEFT's two files, a README and the card; see `adapters.adapter.save`."""
        return adapters.save(replace(self.adapter, card=card), folder)

    def check(self, model: Model) -> None:
        """Raise unless it fits the model and changes some weight matrix of it."""
        validate(self.adapter, model.network, model.digest)
        check_effect(self.adapter)

    def on(self, model: Model) -> AbstractContextManager[object]:
        """Attach it for the length of a block."""
        return model.using(self.adapter)


def load(folder: Path) -> AdapterState:
    """Read an adapter's folder; see `adapters.adapter.load`."""
    return AdapterState(adapters.load(folder))


def reduced(
    model: Model, changes: Mapping[str, Factors | Tensor], lora: LoraConfig
) -> tuple[Adapter, list[dict[str, float]]]:
    """The adapter of a rank that is nearest to weight changes, and what each rank holds of them.

    Changes by module, as factors or dense (O, I), in float64, or in float32 where that is what a
    text left; `lora` names the rank and exactly
    these modules. The second value is, by rank, the least share of the squared Frobenius norm of
    any module. The adapter's scale is 1.
    """
    names, rank = tuple(changes), lora.rank
    cut = {name: decomposed(_cheaper(change), rank) for name, change in changes.items()}
    tensors = {
        name + half: each
        for name, (change, _) in cut.items()
        for half, each in zip(HALVES, halves(change, rank), strict=True)
    }
    shares = [share for _, share in cut.values()]
    ranks = sorted({*RANKS, rank} & {*range(1, 1 + max(map(len, shares)))})
    held = [
        {"rank": r, "share": round(min(share[min(r, len(share)) - 1] for share in shares), 6)}
        for r in ranks
    ]
    short = short_targets(model.network, names, lora.layers)
    config = LoraConfig(rank, rank, lora.targets, lora.layers)
    return Adapter(config, tensors, model.name, model.digest, {}, short), held


def _cheaper(change: Factors | Tensor) -> Factors | Tensor:
    """A change in the form that is decomposed sooner: factors of many columns as their product."""
    if isinstance(change, Tensor) or MANY * len(change.A_RI) < min(_shape(change)):
        return change
    return change.B_OR @ change.A_RI


def _shape(change: Factors) -> tuple[int, int]:
    return change.B_OR.shape[0], change.A_RI.shape[1]
