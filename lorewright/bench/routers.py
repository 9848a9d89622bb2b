"""Routers compared with the keys that ship: states of the base, directions of adapters.

    keys          the index, of all keys or of one kind
    states        cosine of the base's last state with the mean of each memory's own questions
    projections   how much of what enters a module an adapter's own directions keep

Each ranks memories for the same questions and never abstains; chance is 1 / N. States are those
after the last token of a prompt.

Papers: Arrow, arXiv 2405.11157; SpectR, arXiv 2504.03454. Both choose per token and layer; here one
memory is chosen per question, so that it fits the whole answer.

Shape letters: M memory, T token, H hidden, K direction, R rank, I input, O output.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lorewright.adapters.adapter import HALVES, Adapter
from lorewright.adapters.targets import text_decoder
from lorewright.errors import AdapterError, ConfigError, DataError, NoEffect
from lorewright.models.model import Model
from lorewright.routing.gate import N_CANDIDATES
from lorewright.routing.index import Hit, Index, Part, Retriever

Tensors = Mapping[str, Tensor]
"""Of an adapter: "<module>.lora_A.weight" (R, I), "<module>.lora_B.weight" (O, R)."""
Projection = Callable[[Tensors], dict[str, Tensor]]
"""An adapter's tensors to one map_RI per module; how much of an input it keeps is the score."""
ROUNDING = 1e-6  # of the largest singular value; below it float32 factors hold nothing
N_SAMPLES = 16
"""Trained questions by which a memory's centroid is known."""


def routers(
    model: Model, index: Index, adapters: Mapping[str, Adapter], own: Mapping[str, Sequence[str]]
) -> dict[str, Retriever]:
    """Return the routers by name; `own` are each memory's trained questions, ids as in the index.

    Text keys go by the index; states and projections run the base once a question.
    """
    tensors = {memory: adapter.tensors for memory, adapter in adapters.items()}
    modules = sorted({module for adapter in adapters.values() for module in adapter.modules})
    states = {memory: last_states(model, own[memory][:N_SAMPLES]) for memory in adapters}
    entering = partial(inputs, model, modules=modules)
    by_keys = partial(index.retrieve_memories, k=N_CANDIDATES)
    return {
        "keys": by_keys,
        "keys: questions": partial(by_keys, kinds=("question",)),
        "keys: passages": partial(by_keys, kinds=("passage",)),
        "states": by_states(states, lambda text: last_states(model, [text])[0]),
        **{name: by_projection(tensors, entering, project=name) for name in PROJECTIONS},
    }


def first_right(router: Retriever, pairs: Sequence[tuple[str, str]]) -> list[bool]:
    """Whether the router's first memory is the one beside the question."""
    return [[h.memory for h in router(question)[:1]] == [memory] for question, memory in pairs]


@torch.no_grad()
def last_states(model: Model, texts: Sequence[str]) -> Tensor:
    """Hidden state (N, H) of the base's last layer after the last token of each prompt."""
    decoder = text_decoder(model.network)
    states = []
    for text in texts:
        ids_BT = torch.tensor([model.render(text).prompt_ids], device=model.device)
        hidden_BTH = decoder(input_ids=ids_BT, use_cache=False).last_hidden_state
        states.append(hidden_BTH[0, -1].float().cpu())
    return torch.stack(states)


@torch.no_grad()
def inputs(model: Model, text: str, *, modules: Sequence[str]) -> dict[str, Tensor]:
    """What enters each module of the base on a prompt, (T, I) each."""
    ids_BT = torch.tensor([model.render(text).prompt_ids], device=model.device)
    read: dict[str, Tensor] = {}

    def store(name: str, module: nn.Module, args: tuple[Any, ...]) -> None:
        read[name] = args[0][0].float().cpu()

    handles = [
        model.network.get_submodule(name).register_forward_pre_hook(partial(store, name))
        for name in modules
    ]
    try:
        text_decoder(model.network)(input_ids=ids_BT, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return read


def by_states(
    states: Mapping[str, Tensor], state_of: Callable[[str], Tensor], *, k: int = N_CANDIDATES
) -> Retriever:
    """Return the router that ranks memories by `centroid_scores`; it never abstains.

    `states` as in `state_centroids`; `state_of` gives the state_H of a question, pooled alike.
    """
    centroids = state_centroids(states)
    return lambda question: _ranked(centroid_scores(centroids, state_of(question)), "states", k)


def by_projection(
    adapters: Mapping[str, Tensors],
    hidden_of: Callable[[str], Mapping[str, Tensor]],
    *,
    project: str = "arrow",
    k: int = N_CANDIDATES,
) -> Retriever:
    """Return the router that ranks adapters by `projection_scores`; it never abstains.

    `hidden_of` gives, by module, the hidden_TI that enters it in the base. Raises ConfigError for a
    name that PROJECTIONS does not have.
    """
    if project not in PROJECTIONS:
        raise ConfigError(
            f"there is no projection {project!r}; use one of {', '.join(PROJECTIONS)}."
        )
    maps = {memory: PROJECTIONS[project](tensors) for memory, tensors in adapters.items()}
    return lambda question: _ranked(projection_scores(maps, hidden_of(question)), project, k)


def _ranked(scores: Mapping[str, float], name: str, k: int) -> list[Hit]:
    order = sorted(scores, key=lambda memory: (-scores[memory], memory))
    values = [scores[memory] for memory in order]
    return [
        Hit(memory, "", name, value, n, {name: Part(value, values.index(value) + 1)})
        for n, (memory, value) in enumerate(zip(order, values, strict=True), start=1)
    ][:k]


# --- tensors to scores -------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Centroids:
    """Where each memory's own texts lie among the base's hidden states, centred and whitened."""

    memories: tuple[str, ...]
    mean_H: Tensor
    whiten_HK: Tensor
    centroid_MK: Tensor


def state_centroids(states: Mapping[str, Tensor], *, shrink: float = 0.1) -> Centroids:
    """Average the base's states of each memory's own samples, after centring and whitening.

    `states` maps a memory to state_TH, one row per sample, pooled at the last token. Raw states of
    language models are anisotropic: the mean over all samples is subtracted, and direction k of
    variance v_k divided by √(v_k + shrink · mean v). Directions that no sample has are left out.
    Raises DataError for states that do not differ or do not fit one another.
    """
    shapes = {tuple(state_TH.shape[1:]) for state_TH in states.values()}
    if len(shapes) != 1 or any(s.ndim != 2 or not len(s) for s in states.values()):
        widths = f"states of {len(states)} memories have widths {sorted(shapes)}"
        raise DataError(f"{widths}; give each a matrix of at least one row, all of one width.")
    every_TH = torch.cat([state_TH.double() for state_TH in states.values()])
    mean_H = every_TH.mean(dim=0)
    centred_TH = (every_TH - mean_H) / math.sqrt(len(every_TH))
    _, spread_K, V_KH = torch.linalg.svd(centred_TH, full_matrices=False)
    above = spread_K > ROUNDING * max(float(spread_K[0]), float(every_TH.abs().max()))
    if not above.any():
        raise DataError(f"the {len(every_TH)} states are all alike; give samples that differ.")
    variance_K = spread_K[above] ** 2
    whiten_HK = V_KH[above].T / torch.sqrt(variance_K + shrink * variance_K.mean())
    centroids = [(s.double() - mean_H).mean(dim=0) @ whiten_HK for s in states.values()]
    return Centroids(tuple(states), mean_H, whiten_HK, torch.stack(centroids))


def centroid_scores(centroids: Centroids, state_H: Tensor) -> dict[str, float]:
    """Return the cosine of a whitened state_H with each memory's centroid; 0 at the mean."""
    white_K = (state_H.double() - centroids.mean_H) @ centroids.whiten_HK
    cosine_M = torch.nn.functional.cosine_similarity(centroids.centroid_MK, white_K[None], dim=1)
    return dict(zip(centroids.memories, cosine_M.tolist(), strict=True))


def arrow(tensors: Tensors) -> dict[str, Tensor]:
    """Return per module v₁ᵀ (1, I), the top right singular vector of ΔW: Arrow's prototype."""
    return {module: V_RI[:1] for module, (_, V_RI) in _spectra(tensors).items()}


def spectr(tensors: Tensors) -> dict[str, Tensor]:
    """Return per module Σ Vᵀ / |ΔW|_F (R, I): SpectR with singular values, |map x| = |ΔW x|/|ΔW|.

    Divided by the norm because otherwise adapters with large weight changes win every question.
    """
    spectra = _spectra(tensors).items()
    return {name: (s_R / s_R.norm())[:, None] * V_RI for name, (s_R, V_RI) in spectra}


def spectr_rows(tensors: Tensors) -> dict[str, Tensor]:
    """Return per module Vᵀ (R, I): SpectR without singular values, the part in the row space."""
    return {module: V_RI for module, (_, V_RI) in _spectra(tensors).items()}


def _spectra(tensors: Tensors) -> dict[str, tuple[Tensor, Tensor]]:
    """Singular values and right singular vectors of B A, (R,) and (R, I), without forming B A.

    QR(B) = Q_B R_B, QR(Aᵀ) = Q_A R_A, SVD(R_B R_Aᵀ) = P Σ Qᵀ, so Vᵀ = Qᵀ Q_Aᵀ. No score depends on
    the scale of the adapter, so it is left out.
    """
    spectra = {}
    for module in dict.fromkeys(key.removesuffix(HALVES[0]) for key in tensors if HALVES[0] in key):
        if module + HALVES[1] not in tensors:
            raise AdapterError(f"{module} has A and no B; give both halves of every module.")
        A_RI, B_OR = (tensors[module + half].double() for half in HALVES)
        Q_A, R_A = torch.linalg.qr(A_RI.T)
        _, s_R, Q_RR = torch.linalg.svd(torch.linalg.qr(B_OR).R @ R_A.T, full_matrices=False)
        above = s_R > ROUNDING * s_R[0]
        if not above.any():
            raise NoEffect(f"{module} changes nothing (B A = 0); leave it out or write it again.")
        spectra[module] = (s_R[above], Q_RR[above] @ Q_A.T)
    if not spectra:
        raise AdapterError(f"{len(tensors)} tensors hold no {HALVES[0]}; give an adapter's.")
    return spectra


def projection_scores(
    maps: Mapping[str, Mapping[str, Tensor]], hidden: Mapping[str, Tensor]
) -> dict[str, float]:
    """Return per memory the mean over modules and tokens of |map_RI x_I| / |x_I|, in [0, 1].

    The papers choose per token and layer; this is one choice per question, so that the memory fits
    the whole answer. Inputs are divided by their length, lest the modules with the largest decide.
    Raises ConfigError when the hidden_TI of a module are missing or of another width.
    """
    scores = {}
    for memory, by_module in maps.items():
        shares = []
        for module, map_RI in by_module.items():
            hidden_TI = hidden.get(module)
            if hidden_TI is None or hidden_TI.ndim != 2 or hidden_TI.shape[1] != map_RI.shape[1]:
                shape = "none" if hidden_TI is None else tuple(hidden_TI.shape)
                raise ConfigError(
                    f"memory {memory!r} wants the inputs of {module}, (tokens, {map_RI.shape[1]}); "
                    f"got {shape}; pass those of every adapted module."
                )
            unit_TI = torch.nn.functional.normalize(hidden_TI.double(), dim=1)
            shares.append(float((unit_TI @ map_RI.T).norm(dim=1).mean()))
        scores[memory] = sum(shares) / len(shares)
    return scores


PROJECTIONS: dict[str, Projection] = {"arrow": arrow, "spectr": spectr, "spectr_rows": spectr_rows}
