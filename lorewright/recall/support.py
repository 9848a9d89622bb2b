"""Does a trained question stand behind a reply? The support of what a memory says.

A memory that is asked for what it does not know often gives the answer to another question, and it
declines questions that it knows in other words: on a small base probabilities alone tell neither
apart. What it was trained on does better:

    nearness    the largest cosine between the question and the trained questions whose answer the
                reply gives, less where a question with another answer is nearer: times the one
                cosine over the other; 0 for a reply that is no trained answer
    support     nearness times the geometric mean of the probabilities of the reply's tokens, the
                stop token included

What is weighed is the reply, or where the memory declines, the likeliest one that does not begin as
declining does. It stands with a support of LEAST_SUPPORT; else the question is declined. It takes a
sentence encoder and the lesson beside two short passes. The lesson only judges: every word of a
reply is decoded from the memory.

Departs from selective answering by confidence (Kamath et al. 2020), whose calibrator looks at the
model's own scores only.

Shape letters: B row, C completion token, V vocabulary, N trained question, D number of a vector.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from lorewright.knowledge.negatives import DECLINE
from lorewright.knowledge.scoring import contains, is_declined
from lorewright.models.batching import by_length, pass_tokens
from lorewright.models.encoders import Encoder
from lorewright.models.model import Model
from lorewright.recall.traces import trace

SECOND_TOKENS = 32
"""Most tokens of what is said in place of declining."""
Nearness = Callable[[str, str], float | None]
"""Question and reply to the reply's nearness, in [-1, 1]; None where nothing can be said."""


def nearness(reply: str, cosines: Mapping[str, float], pairs: Sequence[tuple[str, str]]) -> float:
    """How near a question is to the trained ones whose answer the reply gives, whole or in part.

    `cosines` are those of trained questions with the one that was replied to. The largest of them,
    times its share of the largest with another answer where that is larger.
    """
    gives = [(cosines.get(question, 0.0), _gives(reply, answer)) for question, answer in pairs]
    own = max((cosine for cosine, its in gives if its), default=0.0)
    other = max((cosine for cosine, its in gives if not its), default=0.0)
    return own * own / other if 0 < own < other else own


def _gives(reply: str, answer: str) -> bool:
    return bool(contains(reply, (answer,)) or (reply.strip() and contains(answer, (reply,))))


def by_encoder(pairs: Sequence[tuple[str, str]], encoder: Encoder) -> Nearness:
    """The nearness of replies by an encoder's vectors; None for everything without a pair."""
    if not pairs:
        return lambda question, reply: None
    texts = list(dict.fromkeys(question for question, _ in pairs))
    trained_ND = _unit(encoder.embed(texts))

    def of(question: str, reply: str) -> float:
        embed = encoder.embed_question or encoder.embed
        cosine_N = trained_ND @ _unit(embed([question]))[0]
        return nearness(reply, dict(zip(texts, cosine_N.tolist(), strict=True)), pairs)

    return of


class Weighed(NamedTuple):
    """A reply with its support."""

    text: str
    support: float | None
    """In [0, 1]; None where nothing can be said, as without trained questions."""
    p: tuple[float, ...]
    """Probabilities of its tokens, the stop token included."""


@torch.no_grad()
def weigh(
    model: Model, prompts: Sequence[str], outputs: Sequence[str], nearness: Sequence[Nearness]
) -> list[Weighed]:
    """Each output, or what would be said in place of declining, with its support.

    The memory is switched on. `nearness` has one a prompt.
    """
    declining = [i for i, text in enumerate(outputs) if not text.strip() or is_declined(text)]
    replies = list(outputs)
    second = second_replies(model, [prompts[i] for i in declining])
    for i, text in zip(declining, second, strict=True):
        replies[i] = text
    rows = zip(prompts, replies, probabilities(model, prompts, replies), nearness, strict=True)
    return [Weighed(reply, _support(of(prompt, reply), p), p) for prompt, reply, p, of in rows]


def _support(near: float | None, p: Sequence[float]) -> float | None:
    return None if near is None else max(near, 0.0) * geometric_mean(p)


def second_replies(model: Model, prompts: Sequence[str]) -> list[str]:
    """Greedy replies that do not begin with the first token of DECLINE."""
    if not prompts:
        return []
    rows = [model.render(prompt, DECLINE) for prompt in prompts]
    starts: dict[int, list[int]] = {}
    for chosen in by_length([len(row) for row in rows], pass_tokens(model.device)):
        part = [rows[i] for i in chosen]
        logits_BCV = model.completion_logits(model.batch(part), model.sharing(part))
        for i, first_V in zip(chosen, logits_BCV[:, 0], strict=True):
            first_V[rows[i].completion_ids[0]] = -math.inf
            starts[i] = [*rows[i].prompt_ids, int(first_V.argmax())]
    begun = [starts[i] for i in range(len(rows))]
    rest = model.generate_ids(begun, max_new_tokens=SECOND_TOKENS)
    return [model.decode([ids[-1], *more]).strip() for ids, more in zip(begun, rest, strict=True)]


def probabilities(
    model: Model, prompts: Sequence[str], replies: Sequence[str]
) -> list[tuple[float, ...]]:
    """The probabilities of each reply's tokens, the stop token included; () of an empty one."""
    whole = [i for i, reply in enumerate(replies) if reply.strip()]
    traces = trace(model, [model.render(prompts[i], replies[i]) for i in whole])
    by_reply = {i: each.p for i, each in zip(whole, traces, strict=True)}
    return [by_reply.get(i, ()) for i in range(len(replies))]


def geometric_mean(probabilities: Sequence[float]) -> float:
    """The geometric mean of some probabilities, at most 1; 0 of none."""
    logs = [math.log(min(max(p, 1e-30), 1.0)) for p in probabilities]
    return math.exp(sum(logs) / len(logs)) if logs else 0.0


def _unit(vector_ND: NDArray[np.float32]) -> NDArray[np.float32]:
    """Each row at length 1; rows of zeros stay."""
    length_N1 = np.linalg.norm(vector_ND, axis=1, keepdims=True)
    return (vector_ND / np.where(length_N1 > 0, length_N1, 1.0)).astype(np.float32)
