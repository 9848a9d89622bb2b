"""Which router finds the memory: keys of several kinds, states of the base, directions of adapters.

Each is asked for its first memory on the same questions, never abstaining; chance is 1 / N. States
are those of the base after the last token of a prompt; directions are those that an adapter's
modules react to, on what enters these modules in the base.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lorewright.adapters.adapter import Adapter
from lorewright.adapters.targets import text_decoder
from lorewright.bench.baselines import PROJECTIONS, by_projection, by_states
from lorewright.models.model import Model
from lorewright.routing.gate import N_CANDIDATES
from lorewright.routing.index import Hit, Index, Retriever

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


def first_right(router: Retriever, asked: Sequence[tuple[str, str]]) -> list[bool]:
    """Whether the router's first memory is the one beside the question."""

    def first(hits: Sequence[Hit]) -> str:
        return hits[0].memory if hits else ""

    return [first(router(question)) == memory for question, memory in asked]


@torch.no_grad()
def last_states(model: Model, texts: Sequence[str]) -> Tensor:
    """Hidden state (N, H) of the base's last layer after the last token of each prompt."""
    decoder = text_decoder(model.network)
    found = []
    for text in texts:
        ids_BT = torch.tensor([model.render(text).prompt_ids], device=model.device)
        hidden_BTH = decoder(input_ids=ids_BT, use_cache=False).last_hidden_state
        found.append(hidden_BTH[0, -1].float().cpu())
    return torch.stack(found)


@torch.no_grad()
def inputs(model: Model, text: str, *, modules: Sequence[str]) -> dict[str, Tensor]:
    """What enters each module of the base on a prompt, (T, I) each."""
    ids_BT = torch.tensor([model.render(text).prompt_ids], device=model.device)
    with _heard(model.network, modules) as heard:
        text_decoder(model.network)(input_ids=ids_BT, use_cache=False)
    return heard


@contextmanager
def _heard(network: nn.Module, modules: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Inputs of modules by name, for the length of a block."""
    heard: dict[str, Tensor] = {}

    def hook(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hear(module: nn.Module, given: tuple[Any, ...]) -> None:
            heard[name] = given[0][0].float().cpu()

        return hear

    handles = [
        network.get_submodule(name).register_forward_pre_hook(hook(name)) for name in modules
    ]
    try:
        yield heard
    finally:
        for handle in handles:
            handle.remove()
