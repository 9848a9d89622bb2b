"""In-place fast weights with a kit: what a text adds to every down projection is learnt.

    t_i = P conv(x)_i        k_i = K h_i        ΔW_down = Σ_i t_i k_iᵀ

x are a layer's states behind its second norm, conv a convolution along the text with five taps a
channel, centred, h what the down projection reads, P and K matrices of the layer's kit. The sum of
outer products is taken over all tokens of a text in one pass without gradients, and stored as the
LoRA adapter that is nearest (`in_place`), so that it merges, exports and serves.

Paper: In-Place Test-Time Training, arXiv 2604.06169, which trains the whole network with it, keeps
the text in the context and has no K. Departures: the base is frozen, the kit is trained on answers
with the text gone, and K, which starts at the identity, decides what is looked up by what.

Shape letters: N documents, M rows, T tokens of a row, R real tokens of all rows, S tokens of a
document, D width (and out-features), I in-features of a down projection.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lorewright.adapters.adapter import HALVES
from lorewright.adapters.config import LoraConfig
from lorewright.adapters.lowrank import Factors
from lorewright.adapters.targets import DOWN, sites_named
from lorewright.models.model import Model
from lorewright.writers.adapter import AdapterState, reduced
from lorewright.writers.kit import Kit
from lorewright.writers.learned import PIECE, Tensors
from lorewright.writers.pieces import Pieces
from lorewright.writers.stacked import hidden, names_of, with_factors
from lorewright.writers.writer import State

TAPS = 5
CONV, VALUES, KEYS = ".conv", ".values", ".keys"


@dataclass(frozen=True)
class InPlaceKit:
    """Adds learnt outer products to every down projection, in one pass."""

    name = "in-place-kit"
    trains = "nothing: one pass adds learnt outer products to the down projections"
    leaves = AdapterState.kind
    streams = False

    @property
    def options(self) -> Mapping[str, float]:
        """Whether keys are learnt, and the tokens of a piece."""
        return {"keys": 1, PIECE: 128}

    def start(
        self, model: Model, options: Mapping[str, float], generator: torch.Generator
    ) -> dict[str, Tensor]:
        """No convolution, so that nothing is written; P drawn, K the identity."""
        tensors: dict[str, Tensor] = {}
        for name in _names(model):
            weight = model.network.get_submodule(name).get_parameter("weight")
            width, inner = weight.shape
            P_DD = torch.eye(width) + torch.randn(width, width, generator=generator) / width
            tensors |= {name + CONV: torch.zeros(width, TAPS), name + VALUES: P_DD}
            if options["keys"]:
                tensors[name + KEYS] = torch.eye(inner)
        return tensors

    def states(self, model: Model, kit: Kit, pieces: Pieces) -> dict[str, Tensor]:
        """Keys (N, S, I) as A and values (N, D, S) as B of every down projection."""
        names = _names(model)
        with torch.no_grad(), noting(model, names) as noted:
            hidden(model, pieces.ids_MT)
        place, real_MT = places(pieces), pieces.mask_MT.bool()
        factors: dict[str, Tensor] = {}
        for name in names:
            x_MTD, h_MTI = noted[name]
            mask_MT1 = pieces.mask_MT[..., None]
            conv_DT = kit.tensors[name + CONV]
            c_MDT = F.conv1d(
                (x_MTD * mask_MT1).mT, conv_DT[:, None], padding=TAPS // 2, groups=len(conv_DT)
            )
            t_RD = F.linear(c_MDT.mT[real_MT], kit.tensors[name + VALUES])
            k_RI = centred(unit(h_MTI), pieces)[real_MT]
            if name + KEYS in kit.tensors:
                k_RI = F.linear(k_RI, kit.tensors[name + KEYS])
            factors[name + HALVES[0]] = in_order(k_RI, pieces, place)
            factors[name + HALVES[1]] = in_order(t_RD, pieces, place).mT
        return factors

    def on(
        self, model: Model, kit: Kit, states: Tensors, owner_B: Tensor
    ) -> AbstractContextManager[object]:
        """Have down projections add ΔW h."""
        return with_factors(model, states, owner_B)

    def leave(
        self, model: Model, kit: Kit, states: Tensors, rank: int
    ) -> tuple[State, dict[str, Any]]:
        """ΔW at the rank nearest to it, see `reduced`."""
        changes = {
            name: Factors(states[name + HALVES[1]][0], states[name + HALVES[0]][0])
            for name in names_of(states)
        }
        targets = tuple(dict.fromkeys(name.rpartition(".")[2] for name in changes))
        lora = LoraConfig(rank, targets=targets)
        adapter, held = reduced(model, changes, lora)
        return AdapterState(adapter), {"energy_by_rank": held}


def _names(model: Model) -> tuple[str, ...]:
    return tuple(site.name for site in sites_named(model.network, DOWN))


def centred(values_MTX: Tensor, pieces: Pieces) -> Tensor:
    """Values of tokens less their document's mean: what all tokens share finds nothing."""
    values_MTX = values_MTX * pieces.mask_MT[..., None]
    n_MT = pieces.mask_MT.sum(1)
    shape = pieces.n_documents, values_MTX.shape[-1]
    sums_NX = values_MTX.new_zeros(shape).index_add(0, pieces.owner_M, values_MTX.sum(1))
    counts_N = values_MTX.new_zeros(shape[0]).index_add(0, pieces.owner_M, n_MT)
    return values_MTX - (sums_NX / counts_N[:, None])[pieces.owner_M][:, None]


def unit(x: Tensor) -> Tensor:
    """Vectors at length 1."""
    return F.normalize(x.float(), dim=-1)


@contextmanager
def noting(model: Model, names: tuple[str, ...]) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
    """What a layer's feed-forward part and its down projection read in the next pass, by name."""
    noted: dict[str, tuple[Tensor, Tensor]] = {}
    entering: dict[str, Tensor] = {}

    def enters(name: str, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        entering[name] = args[0].detach().float()

    def read(name: str, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        noted[name] = entering[name], args[0].detach().float()

    with ExitStack() as hooks:
        for name in names:
            part = model.network.get_submodule(name.rpartition(".")[0])
            down = model.network.get_submodule(name)
            hooks.callback(part.register_forward_pre_hook(partial(enters, name)).remove)
            hooks.callback(down.register_forward_pre_hook(partial(read, name)).remove)
        yield noted


def places(pieces: Pieces) -> Tensor:
    """Where the tokens of every row stand in their document (M, T), rows one after the other."""
    lengths_M = pieces.mask_MT.sum(1).long()
    start_M = torch.zeros_like(lengths_M)
    for n in range(pieces.n_documents):
        own = pieces.owner_M == n
        start_M[own] = lengths_M[own].cumsum(0) - lengths_M[own]
    return start_M[:, None] + torch.arange(pieces.ids_MT.shape[1], device=start_M.device)


def gathered(values_MTX: Tensor, pieces: Pieces, place_MT: Tensor) -> Tensor:
    """Values of the documents' tokens in order (N, S, X), zero behind the last."""
    return in_order(values_MTX[pieces.mask_MT.bool()], pieces, place_MT)


def in_order(values_RX: Tensor, pieces: Pieces, place_MT: Tensor) -> Tensor:
    """Values of the real tokens, row after row, by document and place (N, S, X)."""
    real_MT = pieces.mask_MT.bool()
    size = int(place_MT[real_MT].max()) + 1
    out = values_RX.new_zeros(pieces.n_documents, size, values_RX.shape[-1])
    owner_MT = pieces.owner_M[:, None].expand_as(place_MT)
    return out.index_put((owner_MT[real_MT], place_MT[real_MT]), values_RX)
