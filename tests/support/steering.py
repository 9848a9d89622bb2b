"""A writer from outside the package: trained offsets of the token embeddings."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lorewright.errors import NoEffect, WrongBase
from lorewright.models.model import Model
from lorewright.training.watch import Watch
from lorewright.writers.writer import Cost, Material


@dataclass(frozen=True, eq=False)
class Steered:
    """Offsets (V, D), by token."""

    offset_VD: Tensor
    base_digest: str

    kind = "steering"

    @property
    def id(self) -> str:
        return hashlib.sha256(self.offset_VD.numpy().tobytes()).hexdigest()[:16]

    @property
    def size_bytes(self) -> int:
        return self.offset_VD.nbytes

    def save(self, folder: Path, card: Mapping[str, Any]) -> str:
        folder.mkdir(parents=True, exist_ok=True)
        save_file({"offset": self.offset_VD}, folder / "state.safetensors")
        about = {**card, "kind": self.kind, "id": self.id, "base_digest": self.base_digest}
        (folder / "card.json").write_text(json.dumps(about))
        return self.id

    def check(self, model: Model) -> None:
        if self.base_digest != model.digest:
            raise WrongBase("the offsets were trained on another base.")
        if not self.offset_VD.any():
            raise NoEffect("the offsets are zero.")

    @contextmanager
    def on(self, model: Model) -> Iterator[None]:
        embedding = model.network.get_input_embeddings()
        handle = embedding.register_forward_hook(
            lambda module, args, x: x + self.offset_VD[args[0]]
        )
        try:
            yield
        finally:
            handle.remove()


def load(folder: Path) -> Steered:
    card = json.loads((folder / "card.json").read_text())
    return Steered(load_file(folder / "state.safetensors")["offset"], card["base_digest"])


@dataclass(frozen=True)
class Steering:
    """Trains the offsets with Adam on all examples at once."""

    n_steps: int = 60
    lr: float = 0.3

    name = "steering"
    trains = "offsets of the embeddings"
    leaves = "steering"
    reads: Literal["text", "lesson"] = "lesson"
    needs_context = False
    exports = False
    streams = False
    trained_offline = False

    def write(
        self, model: Model, material: Material, *, seed: int, run: Path | None, watch: Watch
    ) -> tuple[Steered, Cost]:
        rows = [model.render(e.prompt, e.completion) for e in material.examples]
        batch = model.batch(rows)
        weight_VD = model.network.get_input_embeddings().weight
        offset_VD = torch.zeros_like(weight_VD, requires_grad=True)
        optimizer = torch.optim.Adam([offset_VD], self.lr)
        for step in range(self.n_steps):
            with Steered(offset_VD, model.digest).on(model), torch.enable_grad():
                loss = (model.completion_nats(batch).loss_BT * batch.mask_BC).sum()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            watch.step(f"step {step + 1} of {self.n_steps}")
        state = Steered(offset_VD.detach(), model.digest)
        return state, Cost("written", 0.0, "hooks", len(rows), n_tokens=sum(map(len, rows)))
