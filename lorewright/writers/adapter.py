"""A LoRA adapter as a `State`: the form that merges, exports and serves.

Knows the adapter's folder and how a model uses it; knows nothing of how it was written.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lorewright.adapters import adapter as adapters
from lorewright.adapters.adapter import Adapter
from lorewright.adapters.proof import check_effect, validate
from lorewright.models.model import Model


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
