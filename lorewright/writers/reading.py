"""Reading with the text in the prompt: no memory, for the text is there whenever it answers.

    prefill    keys and values of the prompt, but of its last token, by the base as it is
    prepare    what a reader does with them before it answers
    answer     the last token and then the reply, greedily, from the same keys and values

Readers differ in what is switched on while they answer:

    plain       nothing: the base with the text in its prompt
    qttt        query projections tuned on spans of the prompt, whose keys and values stay
    (a state)   what a write left, for the answer alone: `answering(state.on)`

Paper: qTTT, arXiv 2512.13898. N times a span of k tokens starts anywhere in the prompt; its
next-token loss, seen from the stored keys and values before it, moves the query projections alone
(AdamW, clip 1). Departures: rates are for narrower bases, see `queries`; the span's own keys and
values are computed anew, as the lower layers' queries change what enters.

Knows a prompt of tokens; nothing of where the text comes from, or whether the reply is right.

Shape letters: T tokens of the prompt, M of a span.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lorewright.adapters.targets import resolve_targets, text_decoder
from lorewright.errors import ConfigError, DataError
from lorewright.models.model import Model
from lorewright.models.plain import cache_for
from lorewright.training.config import WriteConfig
from lorewright.training.descent import AdamW
from lorewright.writers.queries import Tuning

QUERIES = ("q_proj",)
DECAY = 0.01


class Prefill(NamedTuple):
    """What the base has of a prompt: keys and values of every token but the last, layer by layer.

    A pass starts from copies, so that many can.
    """

    prompt_ids: tuple[int, ...]
    layers: tuple[tuple[Tensor, Tensor], ...]

    def cache(self, model: Model, n: int) -> Any:
        """A new cache with the first n tokens."""
        cache: Any = cache_for(model.network.config)
        for at, (keys, values) in enumerate(self.layers):
            cache.update(keys[:, :, :n].clone(), values[:, :, :n].clone(), at)
        return cache


Answering = Callable[[Model, Prefill], AbstractContextManager[object]]
"""What is on while a reply is made, given what the base has of the prompt."""


@torch.no_grad()
def prefilled(model: Model, prompt_ids: Sequence[int]) -> Prefill:
    """Read a prompt but for its last token. Raises DataError for fewer than two tokens."""
    if len(prompt_ids) < 2:
        raise DataError(f"a prompt of {len(prompt_ids)} tokens has nothing to read; give a text.")
    cache: Any = cache_for(model.network.config)
    _pass(model, prompt_ids[:-1], cache)
    layers = tuple((layer.keys.detach(), layer.values.detach()) for layer in cache.layers)
    return Prefill(tuple(prompt_ids), layers)


def _pass(model: Model, ids: Sequence[int], cache: Any) -> Tensor:
    """States (1, M, D) of tokens that go on from a cache."""
    start = cache.get_seq_length()
    states: Tensor = text_decoder(model.network)(
        input_ids=torch.tensor([list(ids)], device=model.device),
        position_ids=torch.arange(start, start + len(ids), device=model.device)[None],
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state
    return states


def _logits(model: Model, states_1MD: Tensor) -> Tensor:
    head = model.network.get_output_embeddings()
    logits_1MV: Tensor = head(states_1MD)
    return logits_1MV


@torch.no_grad()
def first_logits(model: Model, prefill: Prefill) -> Tensor:
    """Logits (V) after the prompt's last token, read from the stored keys and values."""
    cache = prefill.cache(model, len(prefill.prompt_ids) - 1)
    return _logits(model, _pass(model, prefill.prompt_ids[-1:], cache))[0, -1]


class Spoken(NamedTuple):
    """The tokens of a greedy reply, without the stop token, and the probability of each."""

    ids: tuple[int, ...]
    p: tuple[float, ...]


@torch.no_grad()
def spoken(model: Model, prefill: Prefill, max_new_tokens: int) -> Spoken:
    """The greedy reply to a prompt from its stored keys and values, by whatever is on."""
    cache = prefill.cache(model, len(prefill.prompt_ids) - 1)
    ids, reply_ids, p = prefill.prompt_ids[-1:], list[int](), list[float]()
    while len(reply_ids) < max_new_tokens:
        logits_V = _logits(model, _pass(model, ids, cache))[0, -1].float()
        token = int(logits_V.argmax())
        if token in model.stop_ids:
            break
        reply_ids.append(token)
        p.append(float((logits_V[token] - logits_V.logsumexp(-1)).exp()))
        ids = (token,)
    return Spoken(tuple(reply_ids), tuple(p))


def reply(model: Model, prefill: Prefill, max_new_tokens: int) -> str:
    """The greedy reply to a prompt from its stored keys and values, as text."""
    return model.decode(list(spoken(model, prefill, max_new_tokens).ids))


# -- readers -------------------------------------------------------------------------------------


def plain(model: Model, prefill: Prefill) -> AbstractContextManager[object]:
    """Nothing is on."""
    return nullcontext()


def qttt(
    model: Model, prefill: Prefill, tuning: Tuning | None = None
) -> AbstractContextManager[object]:
    """Query projections that were tuned on the prompt; the base's own come back afterwards."""
    return using_queries(model, tuned_queries(model, prefill, tuning or Tuning()))


def answering(on: Callable[[Model], AbstractContextManager[object]]) -> Answering:
    """A state for the answer alone: the prompt was read by the base, the reply is the state's."""
    return lambda model, prefill: on(model)


READERS: dict[str, Callable[[Tuning], Answering]] = {
    "plain": lambda tuning: plain,
    "qttt": lambda tuning: partial(qttt, tuning=tuning),
}
"""By name: settings, of which each takes what it has a use for, to what is on for a reply."""


def reader_of(name: str, tuning: Tuning) -> Answering:
    """A built-in reader with settings. Raises ConfigError with the names there are."""
    if name not in READERS:
        raise ConfigError(f"reader {name!r} is unknown; use one of {', '.join(READERS)}.")
    return READERS[name](tuning)


def read(model: Model, prompt: str, answers_with: Answering, *, max_new_tokens: int = 64) -> str:
    """Answer a prompt with the text in it, by a reader.

    Raises DataError for one that leaves no space for a reply.
    """
    prefill = prefilled(model, model.render(prompt).prompt_ids)
    if (n_left := model.context - len(prefill.prompt_ids)) < 1:
        raise DataError(
            f"the prompt has {len(prefill.prompt_ids)} tokens and {model.name!r} reads at most "
            f"{model.context}; give a shorter text, or write it into a memory: lore write."
        )
    max_new_tokens = min(max_new_tokens, n_left)
    with answers_with(model, prefill):
        return reply(model, prefill, max_new_tokens)


def tuned_queries(model: Model, prefill: Prefill, tuning: Tuning) -> dict[str, Tensor]:
    """Query projections (O, I) after so many steps on spans of a prompt, by module.

    The network is as before. Raises TargetsNotFound where queries have no projection of their own.
    """
    names = resolve_targets(model.network, QUERIES).names
    weights = {
        name: nn.Parameter(model.network.get_parameter(f"{name}.weight").detach().float().clone())
        for name in names
    }
    ids = prefill.prompt_ids[:-1]
    span = min(tuning.span, len(ids) - 1)
    if span < 1:
        return {name: weight.detach() for name, weight in weights.items()}
    generator = torch.Generator().manual_seed(tuning.seed)
    config = WriteConfig(weight_decay=DECAY)
    optimizer = AdamW(list(weights.values()), config)
    for _ in range(tuning.steps):
        start = int(torch.randint(len(ids) - span, (1,), generator=generator))
        with torch.enable_grad(), using_queries(model, weights):
            states = _pass(model, ids[start : start + span], prefill.cache(model, start))
            targets = torch.tensor(ids[start + 1 : start + span + 1], device=model.device)
            loss = F.cross_entropy(_logits(model, states)[0].float(), targets)
            gradients = torch.autograd.grad(loss, optimizer.weights)
        optimizer.step(gradients, tuning.lr)
    return {name: weight.detach() for name, weight in weights.items()}


@contextmanager
def using_queries(model: Model, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Other query projections for the length of a block; afterwards the base's own, bit for bit."""
    layers = {name: model.network.get_submodule(name) for name in weights}
    own = {name: layer.get_parameter("weight") for name, layer in layers.items()}

    def projected(name: str) -> Callable[..., Tensor]:
        def project(layer: nn.Module, args: tuple[Tensor, ...], given: Tensor) -> Tensor:
            bias = layer.bias if isinstance(layer.bias, Tensor) else None
            return F.linear(args[0], weights[name].to(own[name].dtype), bias)

        return project

    handles = [layer.register_forward_hook(projected(name)) for name, layer in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
