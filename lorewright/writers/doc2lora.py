"""A document's adapter from one forward pass: a hypernetwork that reads what every layer gave.

    E_l (T, D): the stream behind layer l → R latents look at it, block after block → rows of A and
    columns of B of the layer's down projection

The same network serves all layers, which are rows of its batch; the heads are each layer's own.
Latents are at length 1 before the heads; A's rows have learnt scales from 1, B's from 0, so that
nothing is written before training. Pieces of a text make adapters of their own, which add up: their
factors stand side by side.

Paper: Doc-to-LoRA, arXiv 2602.15902. Departures: a toy of its network (fewer, narrower blocks, one
set of latents for all layers, no bias adapter), answers in the place of a teacher's distribution,
scale 1.

Shape letters: N documents, M rows, T tokens, L layers, R latents of a piece, H width of latents, D
width, I in-features and O out-features of a down projection.
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
from lorewright.adapters.targets import DOWN, sites_named
from lorewright.models.model import Model
from lorewright.writers.adapter import AdapterState
from lorewright.writers.in_place_kit import noting, unit
from lorewright.writers.kit import Kit
from lorewright.writers.learned import PIECE, Tensors
from lorewright.writers.perk import stacked_adapter
from lorewright.writers.pieces import Pieces
from lorewright.writers.stacked import hidden, with_factors
from lorewright.writers.writer import State

N_HEADS, GROWTH = 4, 2
"""Heads of the cross attention; width of a block's inner layer over that of the latents."""
EPS = 1e-6


@dataclass(frozen=True)
class DocToLora:
    """A hypernetwork makes the adapter from one pass over the text."""

    name = "doc2lora"
    trains = "nothing: a hypernetwork makes A and B from one pass over the text"
    leaves = AdapterState.kind
    streams = False

    @property
    def options(self) -> Mapping[str, float]:
        """Latents of a piece (its rank), their width, blocks, tokens of a piece."""
        return {"rank": 8, "width": 96, "blocks": 2, PIECE: 128}

    def start(
        self, model: Model, options: Mapping[str, float], generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Random matrices and latents; B's scales are zero."""
        H, R = int(options["width"]), int(options["rank"])
        sites = sites_named(model.network, DOWN)
        D = model.network.config.get_text_config().hidden_size

        def drawn(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator) / shape[-1] ** 0.5

        tensors = {"latents": drawn(R, H) * H**0.5, "enter": drawn(H, D)}
        tensors["layers"] = drawn(len(sites), H)
        for k in range(int(options["blocks"])):
            for part in ("query", "key", "value", "output"):
                tensors[f"{k}.{part}"] = drawn(H, H)
            tensors[f"{k}.up"] = drawn(GROWTH * H, H)
            tensors[f"{k}.down"] = drawn(H, GROWTH * H)
        tensors |= {"look.query": drawn(H, H), "look.key": drawn(H, H)}
        for site in sites:
            for part, width in (("A", site.n_in), ("B", site.n_out)):
                tensors[f"{site.name}.enter_{part}"] = drawn(H, width)
                tensors[f"{site.name}.head_{part}"] = torch.zeros(width, H)
                tensors[f"{site.name}.copy_{part}"] = torch.ones(width)
            tensors[site.name + ".scale_A"] = torch.ones(R)
            tensors[site.name + ".scale_B"] = torch.zeros(R)
        return tensors

    def states(self, model: Model, kit: Kit, pieces: Pieces) -> dict[str, Tensor]:
        """A (N, R, I) and B (N, O, R) of every down projection, pieces side by side."""
        names = tuple(site.name for site in sites_named(model.network, DOWN))
        with torch.no_grad(), noting(model, names) as noted, _streams(model, names) as streams:
            hidden(model, pieces.ids_MT)
        E_LMTD = torch.stack([streams[name] for name in names])
        z_LMRH, look_LMRT = latents(kit, E_LMTD, pieces.mask_MT)
        place_M, size = _order(pieces)
        n, R = pieces.n_documents, z_LMRH.shape[2]
        factors: dict[str, Tensor] = {}
        for z_MRH, look_MRT, name in zip(z_LMRH, look_LMRT, names, strict=True):
            x_MTD, h_MTI = noted[name]
            for half, part, read in zip(HALVES, "AB", (unit(h_MTI), x_MTD), strict=True):
                own = {
                    k: kit.tensors[f"{name}.{k}_{part}"] for k in ("enter", "head", "copy", "scale")
                }
                taken_MRX = look_MRT @ read
                z = F.silu(z_MRH + F.linear(_normed(taken_MRX), own["enter"]))
                rows_MRX = taken_MRX * own["copy"] + F.linear(z, own["head"])
                rows_MRX = rows_MRX * own["scale"][:, None]
                out = rows_MRX.new_zeros(n, size, R, rows_MRX.shape[-1])
                out = out.index_put((pieces.owner_M, place_M), rows_MRX).flatten(1, 2)
                factors[name + half] = out if part == "A" else out.mT
        return factors

    def on(
        self, model: Model, kit: Kit, states: Tensors, owner_B: Tensor
    ) -> AbstractContextManager[object]:
        """Have down projections add B A h."""
        return with_factors(model, states, owner_B)

    def leave(
        self, model: Model, kit: Kit, states: Tensors, rank: int
    ) -> tuple[State, dict[str, Any]]:
        """The factors as an adapter of scale 1; its rank is the kit's, times the pieces."""
        return AdapterState(stacked_adapter(model, states)), {}


def latents(kit: Kit, E_LMTD: Tensor, mask_MT: Tensor) -> tuple[Tensor, Tensor]:
    """What R latents take from the streams (L, M, R, H), and where they look (L, M, R, T)."""
    weights, n_blocks = kit.tensors, int(kit.options["blocks"])
    L, M, T, _ = E_LMTD.shape
    e_LMTH = _normed(F.linear(_normed(E_LMTD), weights["enter"]))
    e_LMTH = e_LMTH + weights["layers"][:, None, None]
    R, H = weights["latents"].shape
    z = (weights["latents"] + weights["layers"][:, None, None]).expand(L, M, R, H)
    see = mask_MT.bool()[None, :, None, None].expand(L, M, 1, 1, T).flatten(0, 1)

    def split(x: Tensor) -> Tensor:
        return x.unflatten(-1, (N_HEADS, -1)).transpose(-2, -3).flatten(0, 1)

    for k in range(n_blocks):
        q = split(F.linear(_normed(z), weights[f"{k}.query"]))
        key, value = (split(F.linear(e_LMTH, weights[f"{k}.{p}"])) for p in ("key", "value"))
        taken = F.scaled_dot_product_attention(q, key, value, attn_mask=see)
        taken = taken.transpose(-2, -3).flatten(-2).unflatten(0, (L, M))
        z = z + F.linear(taken, weights[f"{k}.output"])
        inner = F.silu(F.linear(_normed(z), weights[f"{k}.up"]))
        z = z + F.linear(inner, weights[f"{k}.down"])
    q, key = F.linear(_normed(z), weights["look.query"]), F.linear(e_LMTH, weights["look.key"])
    scores_LMRT = q @ key.mT / H**0.5
    look = scores_LMRT.masked_fill(~mask_MT.bool()[None, :, None], -torch.inf).softmax(-1)
    return z, look


def _normed(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPS)


def _order(pieces: Pieces) -> tuple[Tensor, int]:
    """The number of every row in its document (M), and the most that one has."""
    seen: dict[int, int] = {}
    order = []
    for n in pieces.owner_M.tolist():
        order.append(seen.get(n, 0))
        seen[n] = order[-1] + 1
    return torch.tensor(order, device=pieces.owner_M.device), max(seen.values())


@contextmanager
def _streams(model: Model, names: tuple[str, ...]) -> Iterator[dict[str, Tensor]]:
    """What leaves the layer of every down projection in the next pass, by the projection's name."""
    noted: dict[str, Tensor] = {}

    def note(name: str, layer: nn.Module, args: Any, output: Any) -> None:
        x = output[0] if isinstance(output, tuple) else output
        noted[name] = x.detach().float()

    with ExitStack() as hooks:
        for name in names:
            layer = model.network.get_submodule(name.rpartition(".")[0].rpartition(".")[0])
            hooks.callback(layer.register_forward_hook(partial(note, name)).remove)
        yield noted
