"""Texts in pieces, as rows of tokens: what the writers with a kit read.

Rows of several documents stand in one batch, so that a kit is trained on many documents at once;
every row says whose it is. A piece is a user's turn, which is how a base reads a text, and it is a
few whole sentences where they fit.

Shape letters: M rows, T tokens, N documents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lorewright.errors import DataError
from lorewright.knowledge.data import Knowledge
from lorewright.knowledge.splitting import sentences
from lorewright.models.model import Model


@dataclass(frozen=True)
class Pieces:
    """Right-padded rows, what of them is real, and of which document each is."""

    ids_MT: Tensor
    mask_MT: Tensor
    """1 on real tokens."""
    owner_M: Tensor
    n_documents: int

    @property
    def n_tokens(self) -> int:
        """Real tokens of all rows."""
        return int(self.mask_MT.sum())


def pieces_of(model: Model, sources: Sequence[Knowledge], size: int) -> Pieces:
    """Every source's documents and facts as rows of about `size` tokens, in order.

    Sentences stay whole, so that one that is longer makes a longer row; facts are lines of question
    and answer. Raises DataError for a source without text, or a sentence that is too long for the
    model.
    """
    rows: list[Sequence[int]] = []
    owners: list[int] = []
    for n, knowledge in enumerate(sources):
        texts = packed(model, _units(knowledge), size)
        if not texts:
            raise DataError("the source has no text to read; give documents or facts.")
        rows += [model.render(text).prompt_ids for text in texts]
        owners += [n] * len(texts)
    width = max(map(len, rows))
    ids, mask = torch.zeros(len(rows), width, dtype=torch.long), torch.zeros(len(rows), width)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        mask[i, : len(row)] = 1
    device = model.device
    owner = torch.tensor(owners)
    return Pieces(ids.to(device), mask.to(device), owner.to(device), len(sources))


def _units(knowledge: Knowledge) -> list[str]:
    """Sentences of the documents, and facts."""
    units = [each for doc in knowledge.documents for each in sentences(doc.text)]
    return units + [f"{fact.question} {fact.answer}" for fact in knowledge.facts]


def packed(model: Model, units: Sequence[str], size: int) -> list[str]:
    """Neighbours joined with spaces as long as they have at most `size` tokens together."""
    if not units:
        return []
    lengths = map(len, model.tokenizer(list(units), add_special_tokens=False)["input_ids"])
    texts: list[str] = []
    n_tokens = 0
    for unit, length in zip(units, lengths, strict=True):
        if texts and n_tokens + length <= size:
            texts[-1] += f" {unit}"
            n_tokens += length
        else:
            texts.append(unit)
            n_tokens = length
    return texts
