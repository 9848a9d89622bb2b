"""δ-mem: a small matrix a layer, written by a delta rule, that steers attention.

    q, k = unit(tanh(W x))    v = W_v x    β = σ(W_β x - 1.5)
    S ← S + diag(β) (v - S k) kᵀ
    query += 2 W'_q S q       attention's output += 2 W'_o S q

S is 8 x 8; that is all that is left of a text, beside the kit's matrices that read it. A token
reads before it writes. Questions read and do not write, so that a state stays what it is.

Paper: δ-mem, arXiv 2605.12357; its figures keep the text in the context. Departures: the base is
questioned with the text gone; nothing decays but what is overwritten (there, S times 1 - β at every
token, which leaves little of a text's beginning); W' starts at zero, so that an untrained kit
changes nothing; x is what the attention's projections read.

Shape letters: N documents, M rows, T tokens, L layers, K keys of a state (and its values).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lorewright.adapters.targets import resolve_targets
from lorewright.knowledge.data import Knowledge
from lorewright.models.model import Model
from lorewright.writers.in_place_kit import gathered, places, unit
from lorewright.writers.kit import Kit
from lorewright.writers.learned import PIECE, Tensors
from lorewright.writers.pieces import Pieces
from lorewright.writers.stacked import hidden
from lorewright.writers.tensors import TensorState
from lorewright.writers.writer import State

GAIN = 2.0
"""The paper's α / r, 16 / 8."""
BIAS = -1.5
"""Of β before the sigmoid: a token overwrites about a fifth at the start."""
SIZE = 8
QUERY, OUTPUT = "q_proj", "o_proj"
STATE = "state"
READING = ("query", "to_query", "to_output")
"""Matrices of a layer's kit that read; they are stored with a state."""
WRITING = ("key", "value", "beta")


CHUNK = 64
"""Tokens that are written by one solution of a triangular system."""


def delta_rule(S_NKK: Tensor, k_NTK: Tensor, v_NTK: Tensor, beta_NTK: Tensor) -> Tensor:
    """The state after all tokens of a row, as if they were written one after the other.

    A row of S takes from token t a multiple u_t of its key, u_t = β_t (v_t - s k_t - Σ_{i<t} u_i
    k_iᵀ k_t): a triangular system for every value of every chunk. A token with β 0 writes nothing.
    """
    for start in range(0, k_NTK.shape[1], CHUNK):
        k, v, beta = (x[:, start : start + CHUNK] for x in (k_NTK, v_NTK, beta_NTK))
        overlap_N1TT = (k @ k.mT).tril(-1)[:, None]
        beta_NKT1, one = beta.mT[..., None], torch.eye(k.shape[1], dtype=k.dtype, device=k.device)
        off_NKT1 = (v - k @ S_NKK.mT).mT[..., None]
        u_NKT1 = torch.linalg.solve_triangular(
            one + beta_NKT1 * overlap_N1TT, beta_NKT1 * off_NKT1, upper=False, unitriangular=True
        )
        S_NKK = S_NKK + u_NKT1[..., 0] @ k
    return S_NKK


@dataclass(frozen=True)
class DeltaForm:
    """States of δ-mem as tensors: S and the matrices that read it."""

    name = "delta"
    trains = "a matrix of 8 x 8 a layer that steers attention"
    size = SIZE

    def start(
        self, model: Model, knowledge: Knowledge, size: int, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Zeros of the shapes that a state of this size has."""
        tensors: dict[str, Tensor] = {}
        for name in attentions(model):
            shapes = _shapes(model, name, size)
            tensors[f"{name}.{STATE}"] = torch.zeros(size, size)
            tensors |= {f"{name}.{part}": torch.zeros(shapes[part]) for part in READING}
        return tensors

    def idle(self, tensors: Tensors) -> bool:
        """Whether every state is zero."""
        return not any(bool(t.any()) for k, t in tensors.items() if k.endswith(f".{STATE}"))

    @contextmanager
    def on(self, model: Model, tensors: Tensors) -> Iterator[None]:
        """Have attention read the state, for every row of a block."""
        names = [k.removesuffix(f".{STATE}") for k in tensors if k.endswith(f".{STATE}")]
        with ExitStack() as hooks:
            for name in names:
                own = {part: tensors[f"{name}.{part}"] for part in READING}
                steered(model, name, own, tensors[f"{name}.{STATE}"][None], hooks)
            yield


FORM = DeltaForm()


def attentions(model: Model) -> list[str]:
    """Names of the attention of every layer. Raises TargetsNotFound where q and o are not apart."""
    names = resolve_targets(model.network, (QUERY, OUTPUT)).names
    return list(dict.fromkeys(name.rpartition(".")[0] for name in names))


def _shapes(model: Model, name: str, size: int) -> dict[str, tuple[int, int]]:
    query, output = (model.network.get_submodule(f"{name}.{p}") for p in (QUERY, OUTPUT))
    n_query, width = query.get_parameter("weight").shape
    into = dict.fromkeys(("query", *WRITING), (size, width))
    n_output = output.get_parameter("weight").shape[0]
    return {**into, "to_query": (n_query, size), "to_output": (n_output, size)}


def steered(model: Model, name: str, own: Tensors, S_BKK: Tensor, hooks: ExitStack) -> None:
    """Add what the state gives to a layer's queries and to its attention's output."""
    read: dict[str, Tensor] = {}

    def at_query(layer: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> Tensor:
        q_BTK = unit(torch.tanh(F.linear(args[0].float(), own["query"])))
        read["r"] = q_BTK @ S_BKK.mT
        return y + GAIN * F.linear(read["r"], own["to_query"]).to(y.dtype)

    def at_output(layer: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> Tensor:
        return y + GAIN * F.linear(read["r"], own["to_output"]).to(y.dtype)

    for part, hook in ((QUERY, at_query), (OUTPUT, at_output)):
        module = model.network.get_submodule(f"{name}.{part}")
        hooks.callback(module.register_forward_hook(hook).remove)


@dataclass(frozen=True)
class Delta:
    """Writes a text's tokens into a small matrix a layer by a delta rule."""

    name = "delta"
    trains = "nothing: a delta rule writes every token into a small matrix a layer (δ-mem)"
    leaves = FORM.name
    streams = True

    @property
    def options(self) -> Mapping[str, float]:
        """Keys of a state, how many tokens ahead of its key a value stands, tokens of a piece."""
        return {"size": SIZE, "ahead": 1, PIECE: 128}

    def start(
        self, model: Model, options: Mapping[str, float], generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Random matrices into the state, zero out of it; keys as queries, β alike everywhere."""
        tensors: dict[str, Tensor] = {}
        for name in attentions(model):
            for part, shape in _shapes(model, name, int(options["size"])).items():
                drawn = torch.randn(shape, generator=generator) / shape[-1] ** 0.5
                zero = part in ("to_query", "to_output", "beta")
                tensors[f"{name}.{part}"] = torch.zeros(shape) if zero else drawn
            tensors[f"{name}.key"] = tensors[f"{name}.query"].clone()
        return tensors

    def states(self, model: Model, kit: Kit, pieces: Pieces) -> dict[str, Tensor]:
        """S (N, K, K) of every layer, after all pieces of a document in order."""
        names, size = attentions(model), int(kit.options["size"])
        with torch.no_grad(), _noting(model, names) as noted:
            hidden(model, pieces.ids_MT)
        place = places(pieces)
        ones = torch.ones_like(pieces.mask_MT)[..., None]
        mask_NS, ahead = gathered(ones, pieces, place)[..., 0], int(kit.options["ahead"])
        if ahead:  # behind the last key there is no value
            mask_NS = mask_NS * F.pad(mask_NS[:, ahead:], (0, ahead))
        N = pieces.n_documents
        parts: dict[str, list[Tensor]] = {part: [] for part in WRITING}
        for name in names:
            x_NSD = gathered(noted[name], pieces, place)
            for part in WRITING:
                read_NSD = x_NSD.roll(-ahead, 1) if part == "value" else x_NSD
                parts[part].append(F.linear(read_NSD, kit.tensors[f"{name}.{part}"]))
        k, v, beta = (torch.cat(parts[part]) for part in WRITING)
        start = k.new_zeros(len(k), size, size)
        k, beta = unit(torch.tanh(k)), torch.sigmoid(beta + BIAS)
        S = delta_rule(start, k, v, beta * mask_NS.repeat(len(names), 1)[..., None])
        return {f"{name}.{STATE}": each for name, each in zip(names, S.split(N), strict=True)}

    @contextmanager
    def on(self, model: Model, kit: Kit, states: Tensors, owner_B: Tensor) -> Iterator[None]:
        """Have attention read every row's document's state."""
        with ExitStack() as hooks:
            for name in attentions(model):
                own = {part: kit.tensors[f"{name}.{part}"] for part in READING}
                steered(model, name, own, states[f"{name}.{STATE}"][owner_B], hooks)
            yield

    def leave(
        self, model: Model, kit: Kit, states: Tensors, rank: int
    ) -> tuple[State, dict[str, Any]]:
        """S of every layer and the matrices that read it."""
        tensors = {name: each[0].cpu().clone() for name, each in states.items()}
        n_bytes = sum(4 * each.numel() for each in tensors.values())
        for name in attentions(model):
            tensors |= {f"{name}.{part}": kit.tensors[f"{name}.{part}"].clone() for part in READING}
        state = TensorState(FORM, tensors, int(kit.options["size"]), model.name, model.digest)
        return state, {"state_bytes": n_bytes}


@contextmanager
def _noting(model: Model, names: list[str]) -> Iterator[dict[str, Tensor]]:
    """What every layer's attention reads in the next pass, by name."""
    noted: dict[str, Tensor] = {}

    def note(name: str, layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        noted[name] = args[0].detach().float()

    with ExitStack() as hooks:
        for name in names:
            layer = model.network.get_submodule(f"{name}.{QUERY}")
            hooks.callback(layer.register_forward_pre_hook(partial(note, name)).remove)
        yield noted
