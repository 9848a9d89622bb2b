"""A prompt of trained vectors, and a prefix of trained keys and values.

Both stand before every row and are seen by every token. A prompt is vectors in the place of token
embeddings, which the network reads once; a prefix is what every layer would have of such a reading,
trained layer by layer. Both start from the first tokens of the source.

Papers: prompt tuning, arXiv 2104.08691; prefix tuning, arXiv 2101.00190; a prefix started from a
document's own keys and values, cartridges, arXiv 2506.06266. Departures: the prefix lies at the
positions before 0, has no network that reparametrises it, and its first position is trained like
the others, for the row behind it begins with a start token of its own.

Shape letters: M vectors or positions, D width, G key heads, E width of a head.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from lorewright.knowledge.data import Knowledge
from lorewright.models.model import Model
from lorewright.models.prefix import KeysValues, behind, written_prefix
from lorewright.writers.text import token_rows

EMBEDDINGS = "embeddings"


@dataclass(frozen=True)
class Prompt:
    """Vectors in the place of the embeddings of tokens before every row."""

    name = "prompt"
    trains = "--size vectors before every row, started from the text's first tokens"
    size = 16

    def start(
        self, model: Model, knowledge: Knowledge, size: int, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Embeddings of the text's first tokens, repeated where it is shorter."""
        with torch.no_grad():
            vectors_1MD = model.network.get_input_embeddings()(_first(model, knowledge, size))
        return {EMBEDDINGS: vectors_1MD[0].float().cpu()}

    def idle(self, tensors: Mapping[str, Tensor]) -> bool:
        """False: any prompt changes what is predicted."""
        return False

    @contextmanager
    def on(self, model: Model, tensors: Mapping[str, Tensor]) -> Iterator[None]:
        """Read the vectors once; every row goes on from there."""
        vectors_MD = tensors[EMBEDDINGS]
        ids_1M = torch.zeros(1, len(vectors_MD), dtype=torch.long, device=model.device)
        prefix = written_prefix(model.network, ids_1M, vectors_MD)
        with behind(model.network, prefix):
            yield


@dataclass(frozen=True)
class Prefix:
    """Keys and values before every row, of every layer."""

    name = "prefix"
    trains = "keys and values of --size positions in every layer, started from the text's own"
    size = 16

    def start(
        self, model: Model, knowledge: Knowledge, size: int, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Keys and values (G, M, E) that the text's first tokens have in every layer."""
        with torch.no_grad():
            prefix = written_prefix(model.network, _first(model, knowledge, size))
        return {
            f"{layer}.{name}": part[0].float().cpu()
            for layer, both in enumerate(prefix)
            for name, part in zip(("keys", "values"), both, strict=True)
        }

    def idle(self, tensors: Mapping[str, Tensor]) -> bool:
        """False: any prefix changes what is predicted."""
        return False

    def on(self, model: Model, tensors: Mapping[str, Tensor]) -> AbstractContextManager[None]:
        """Have every row go on from it."""
        pairs = [
            KeysValues(tensors[f"{layer}.keys"][None], tensors[f"{layer}.values"][None])
            for layer in range(len(tensors) // 2)
        ]
        return behind(model.network, pairs)


def _first(model: Model, knowledge: Knowledge, size: int) -> Tensor:
    """The first tokens of a source, (1, M), from the start again where it has fewer."""
    ids = [token for row in token_rows(model, knowledge) for token in row]
    repeated = ids * -(-size // len(ids))
    return torch.tensor([repeated[:size]], device=model.device)
