"""GradMem: a few vectors before every question, written by gradient steps on the text itself.

    M ← M - η_k ∇_M Σ_t nats_t(text behind M, through a head of its own)

M are vectors in the place of token embeddings, and the text is gone when a question is read behind
them. A kit has the start of M, a rate for every step and the head through which a text is written.

Paper: GradMem, arXiv 2603.13875, which trains the base as well. Departure: the base is frozen;
rates are learnt.

Shape letters: N documents, M rows (and memory vectors), T tokens, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lorewright.models.model import Model
from lorewright.models.prefix import KeysValues, behind, written_prefix
from lorewright.writers.kit import Kit
from lorewright.writers.learned import PIECE, Tensors
from lorewright.writers.pieces import Pieces
from lorewright.writers.prefix import EMBEDDINGS, Prompt
from lorewright.writers.stacked import hidden, nats_of, twice_differentiable
from lorewright.writers.tensors import TensorState
from lorewright.writers.writer import State

FORM = Prompt()
RATES, HEAD = "rates", "head"
BEGINNING = "The number of the first place is 10."
"""The text from whose embeddings the vectors start: what a base reads is what it copies from."""
NOISE = 0.1
"""Of the first vectors, over the spread of the embeddings."""
PACE = 10.0
"""Rates are stored as their logarithm over this, as those of PERK are."""


@dataclass(frozen=True)
class GradMem:
    """Gradient steps on the text write a few vectors that stand before a question."""

    name = "gradmem"
    trains = "vectors before every row, in a few steps on the text alone, from a learnt start"
    leaves = FORM.name
    streams = False

    @property
    def options(self) -> Mapping[str, float]:
        """Vectors, steps, how many of them gradients go through, log of the first rate, pieces."""
        return {"vectors": 12, "steps": 2, "differentiated": 2, "log_rate": -2.0, PIECE: 64}

    def start(
        self, model: Model, options: Mapping[str, float], generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Embeddings of a text without meaning, the base's head, equal rates."""
        table_VD = model.network.get_input_embeddings().weight.detach().float()
        ids, size = model.render(BEGINNING).prompt_ids, int(options["vectors"])
        vectors = table_VD[torch.tensor((ids * -(-size // len(ids)))[:size])].clone()
        vectors += NOISE * table_VD.std() * torch.randn(vectors.shape, generator=generator)
        head_VD = model.network.get_output_embeddings().weight.detach().float().clone()
        rates = torch.full((int(options["steps"]),), options["log_rate"] / PACE)
        return {EMBEDDINGS: vectors, HEAD: head_VD, RATES: rates}

    def states(self, model: Model, kit: Kit, pieces: Pieces) -> dict[str, Tensor]:
        """The vectors (N, M, D) after the last step."""
        learning, n_steps = torch.is_grad_enabled(), int(kit.options["steps"])
        memory_NMD = kit.tensors[EMBEDDINGS].expand(pieces.n_documents, -1, -1)
        for k in range(n_steps):
            through = learning and k >= n_steps - kit.options["differentiated"]
            with torch.enable_grad():
                at = memory_NMD if through else memory_NMD.detach().requires_grad_()
                loss = self._loss(model, kit, at, pieces)
                (gradient,) = torch.autograd.grad(loss, [at], create_graph=through)
            memory_NMD = memory_NMD - (PACE * kit.tensors[RATES][k]).exp() * gradient
        return {EMBEDDINGS: memory_NMD}

    def _loss(self, model: Model, kit: Kit, memory_NMD: Tensor, pieces: Pieces) -> Tensor:
        """Nats of all tokens but the first of every row, summed, through the head for writing."""
        real_MT = pieces.mask_MT[:, 1:].bool()
        with self._behind(model, memory_NMD, pieces.owner_M):
            states_MTD = hidden(model, pieces.ids_MT)[:, :-1]
        targets = pieces.ids_MT[:, 1:][real_MT]
        return nats_of(model, states_MTD[real_MT], targets, kit.tensors[HEAD]).sum()

    @contextmanager
    def _behind(self, model: Model, memory_NMD: Tensor, owner_B: Tensor) -> Iterator[None]:
        shape = memory_NMD.shape[:2]
        ids_NM = torch.zeros(shape, dtype=torch.long, device=memory_NMD.device)
        with twice_differentiable():
            prefix = written_prefix(model.network, ids_NM, memory_NMD)
            rows = [KeysValues(each[0][owner_B], each[1][owner_B]) for each in prefix]
            with behind(model.network, rows):
                yield

    @contextmanager
    def on(self, model: Model, kit: Kit, states: Tensors, owner_B: Tensor) -> Iterator[None]:
        """Have rows go on behind their document's vectors."""
        with self._behind(model, states[EMBEDDINGS], owner_B):
            yield

    def leave(
        self, model: Model, kit: Kit, states: Tensors, rank: int
    ) -> tuple[State, dict[str, Any]]:
        """The vectors as a prompt."""
        tensors = {EMBEDDINGS: states[EMBEDDINGS][0].detach().cpu().float().clone()}
        size = int(kit.options["vectors"])
        return TensorState(FORM, tensors, size, model.name, model.digest), {}
