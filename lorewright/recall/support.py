"""Does a trained question stand behind a reply? The support of what a memory says.

A memory that is asked for what it does not know often gives the answer to another question, and is
as sure of it as of its own: on a small base the probability of the reply does not tell the two
apart. What it was trained on does. The support of a reply is the largest cosine between the
question and the trained questions whose answer the reply gives; with less than LEAST_SUPPORT it is
withheld. It needs a sentence encoder and the lesson, no pass of the model.

Departs from selective answering by confidence (Kamath et al. 2020), whose calibrator looks at the
model's own scores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from lorewright.knowledge.data import Example
from lorewright.knowledge.scoring import contains
from lorewright.models.encoders import Encoder

Support = Callable[[str, str], float | None]
"""Question and reply to the reply's support, in [0, 1]; None where nothing can be said."""


def trained_pairs(examples: Iterable[Example]) -> list[tuple[str, str]]:
    """The questions that a lesson trains to be answered, with the answers."""
    return [(e.prompt, e.completion) for e in examples if e.kind == "qa" and e.prompt.strip()]


def support(reply: str, nearness: Mapping[str, float], pairs: Sequence[tuple[str, str]]) -> float:
    """The largest nearness of a trained question whose answer the reply gives, whole or in part.

    `nearness` is the cosine of trained questions with the one that was replied to. 0 for a reply
    that is no trained answer.
    """
    return max((nearness.get(q, 0.0) for q, answer in pairs if _gives(reply, answer)), default=0.0)


def _gives(reply: str, answer: str) -> bool:
    return bool(contains(reply, (answer,)) or (reply.strip() and contains(answer, (reply,))))


def by_encoder(pairs: Sequence[tuple[str, str]], encoder: Encoder) -> Support:
    """The support of replies by an encoder's vectors; None for everything without a pair.

    Shape letters: N trained question, D number of a vector.
    """
    if not pairs:
        return lambda question, reply: None
    texts = list(dict.fromkeys(question for question, _ in pairs))
    trained_ND = _unit(encoder.embed(texts))

    def of(question: str, reply: str) -> float:
        embed = encoder.embed_question or encoder.embed
        cosine_N = trained_ND @ _unit(embed([question]))[0]
        return support(reply, dict(zip(texts, cosine_N.tolist(), strict=True)), pairs)

    return of


def _unit(vector_ND: NDArray[np.float32]) -> NDArray[np.float32]:
    """Each row at length 1; rows of zeros stay."""
    length_N1 = np.linalg.norm(vector_ND, axis=1, keepdims=True)
    return (vector_ND / np.where(length_N1 > 0, length_N1, 1.0)).astype(np.float32)
