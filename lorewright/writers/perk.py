"""PERK: a learnt initialisation from which a few steps on the text itself write it.

    φ_0 → φ_k = φ_{k-1} - α_{k,j} ∇ Σ_t w_t nats_t  → answers under φ_K, the question alone

The text is all that is trained on, and its questions are not known; that a verbatim write then
answers them is what the initialisation, a rate for every step and tensor, and the weight of every
token have learnt. What is left is φ_K, an ordinary adapter.

Paper: PERK, Long-Context Reasoning as Parameter-Efficient Test-Time Learning, arXiv 2507.06415.
Departures: plain gradient steps with learnt rates in the place of AdamW, whose first step hides the
size of a gradient; pieces are user turns of this base; rank and scale as fit its width.

`differentiated` is the number of last steps that gradients of the kit go through: 0 is first order
(the identity stands for all steps), and weights of tokens then learn nothing.

Shape letters: N documents, M rows, T tokens, K steps, J tensors, R rank, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lorewright.adapters.adapter import HALVES, Adapter, short_targets
from lorewright.adapters.config import LoraConfig
from lorewright.adapters.targets import DOWN, sites_named
from lorewright.models.model import Model
from lorewright.writers.adapter import AdapterState
from lorewright.writers.kit import Kit
from lorewright.writers.learned import PIECE, Tensors
from lorewright.writers.pieces import Pieces
from lorewright.writers.stacked import (
    hidden,
    names_of,
    nats_of,
    twice_differentiable,
    with_factors,
)
from lorewright.writers.writer import State

RATES, INNER, OUTER = "rates", "weigh.inner", "weigh.outer"
PACE = 10.0
"""Rates are stored as their logarithm over this, so that they learn as quickly as weights do."""
N_WEIGH = 64
"""Width of the network that weighs tokens."""
SHARPNESS = 3.0
"""Of the softplus whose values are weights: at the start they are all ln 2 / 3."""


@dataclass(frozen=True)
class Perk:
    """A few gradient steps on the text, from a learnt start and at learnt rates."""

    name = "perk"
    trains = "A and B in a few steps on the text alone, from a learnt start"
    leaves = AdapterState.kind
    streams = False

    @property
    def options(self) -> Mapping[str, float]:
        """Rank, steps, how many of them gradients go through, log of the first rate, pieces."""
        return {"rank": 32, "steps": 2, "differentiated": 2, "log_rate": -0.5, PIECE: 32}

    def start(
        self, model: Model, options: Mapping[str, float], generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Random A, zero B, equal rates, equal weights."""
        rank, tensors = int(options["rank"]), dict[str, Tensor]()
        sites = sites_named(model.network, DOWN)
        for site in sites:
            A_RI = torch.randn(rank, site.n_in, generator=generator) / site.n_in**0.5
            tensors |= {site.name + HALVES[0]: A_RI}
            tensors |= {site.name + HALVES[1]: torch.zeros(site.n_out, rank)}
        n_tensors, width = 2 * len(sites), model.network.config.get_text_config().hidden_size
        tensors[RATES] = torch.full((int(options["steps"]), n_tensors), options["log_rate"] / PACE)
        tensors[INNER] = torch.randn(N_WEIGH, width, generator=generator) / width**0.5
        return tensors | {OUTER: torch.zeros(1, N_WEIGH)}

    def states(self, model: Model, kit: Kit, pieces: Pieces) -> dict[str, Tensor]:
        """The factors after the last step, by module, A (N, R, I) and B (N, O, R)."""
        learning = torch.is_grad_enabled()
        first = [name for name in kit.tensors if name.endswith(HALVES)]
        n = pieces.n_documents
        phi = {k: kit.tensors[k][None].expand(n, -1, -1) for k in first}
        n_steps = int(kit.options["steps"])
        for k in range(n_steps):
            through = learning and k >= n_steps - kit.options["differentiated"]
            with torch.enable_grad():
                at = phi if through else {j: w.detach().requires_grad_() for j, w in phi.items()}
                loss = self._loss(model, kit, at, pieces)
                gradients = torch.autograd.grad(loss, list(at.values()), create_graph=through)
            rates_J = (PACE * kit.tensors[RATES][k]).exp()
            phi = {
                name: phi[name] - rate * gradient
                for name, rate, gradient in zip(phi, rates_J, gradients, strict=True)
            }
        return phi

    def _loss(self, model: Model, kit: Kit, phi: Tensors, pieces: Pieces) -> Tensor:
        """Weighted nats of all tokens but the first of every row, summed."""
        real_MT = pieces.mask_MT[:, 1:].bool()
        with with_factors(model, phi, pieces.owner_M), twice_differentiable():
            states_MTD = hidden(model, pieces.ids_MT)[:, :-1]
        states_D = states_MTD[real_MT]
        nats = nats_of(model, states_D, pieces.ids_MT[:, 1:][real_MT])
        inner = F.gelu(F.linear(states_D.detach(), kit.tensors[INNER]))
        weights = F.softplus(F.linear(inner, kit.tensors[OUTER])[:, 0], beta=SHARPNESS)
        return (weights * nats).sum()

    def on(
        self, model: Model, kit: Kit, states: Tensors, owner_B: Tensor
    ) -> AbstractContextManager[object]:
        """Have layers add B A x."""
        return with_factors(model, states, owner_B)

    def leave(
        self, model: Model, kit: Kit, states: Tensors, rank: int
    ) -> tuple[State, dict[str, Any]]:
        """φ_K as an adapter of scale 1; its rank is the kit's."""
        return AdapterState(stacked_adapter(model, states)), {}


def stacked_adapter(model: Model, states: Tensors) -> Adapter:
    """The first document's factors as an adapter of scale 1."""
    names = names_of(states)
    tensors = {name: each[0].detach().cpu().float().clone() for name, each in states.items()}
    rank = tensors[names[0] + HALVES[0]].shape[0]
    targets = tuple(dict.fromkeys(name.rpartition(".")[2] for name in names))
    config = LoraConfig(rank, rank, targets)
    short = short_targets(model.network, tuple(names), None)
    return Adapter(config, tensors, model.name, model.digest, {}, short)
