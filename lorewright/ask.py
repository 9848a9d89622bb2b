"""Ask one memory, closed-book: the answer, whether it declined, and how sure it was.

It knows models and adapters; not folders, not routing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from lorewright.adapter import Adapter
from lorewright.errors import ConfigError
from lorewright.metrics import is_declined
from lorewright.model import Model, Rendered
from lorewright.recall import MAX_ANSWER_TOKENS, trace


@dataclass(frozen=True)
class Answer:
    """What came back."""

    question: str
    text: str
    memory: str
    """Name of the memory that was attached; empty for the base alone."""
    declined: bool
    """Whether the reply is empty or says that it does not know."""
    confidence: float
    """Geometric mean of the probabilities of the reply's own tokens, in [0, 1]."""
    least: float
    """Smallest of these probabilities: below 1/2, another token was close."""


def ask(
    model: Model,
    question: str,
    *,
    adapter: Adapter | None = None,
    memory: str = "",
    max_new_tokens: int = MAX_ANSWER_TOKENS,
) -> Answer:
    """Answer a question greedily from one adapter, or from the base alone.

    Raises ConfigError for an empty question, DataError for one that leaves no room for a reply.
    """
    if not question.strip():
        raise ConfigError("ask was given an empty question; write one.")
    prompt = model.render(question.strip())
    with model.using(*([adapter] if adapter is not None else [])):
        (ids,) = model.generate_ids([prompt.prompt_ids], max_new_tokens=max_new_tokens)
        said = trace(model, [Rendered(prompt.prompt_ids, tuple(ids))])[0].p if ids else ()
    text = model.decode(ids)
    p = [min(value, 1.0) for value in said]  # rounding of the loss may leave one a hair above
    mean = math.exp(sum(math.log(max(x, 1e-30)) for x in p) / len(p)) if p else 0.0
    declined = not text or is_declined(text)
    return Answer(question, text, memory, declined, min(mean, 1.0), min(p, default=0.0))
