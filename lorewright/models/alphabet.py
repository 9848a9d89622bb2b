"""Characters that a base cannot write: tokens whose output embeddings are nearly one vector.

An adapter changes what reaches the head, never the head: of tokens with one direction there only
one can ever be the likeliest, so what needs another of them cannot be learnt. Typical are bytes
that a small base never saw.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from lorewright.models.model import Model

SAME = 0.999
"""Cosine of two output embeddings from which no hidden state tells the tokens apart."""
ROWS = 512
"""Tokens that are compared with the vocabulary at a time."""


def indistinct(model: Model, ids: Iterable[int]) -> set[int]:
    """Those of the token ids whose output embedding is nearly that of another token."""
    weights = dict(model.network.get_output_embeddings().named_parameters())
    weight_VD = weights.get("weight")
    wanted = torch.tensor(sorted(set(ids)), dtype=torch.long)
    if not isinstance(weight_VD, Tensor) or not weight_VD.is_floating_point() or not len(wanted):
        return set()
    unit_VD = torch.nn.functional.normalize(weight_VD.detach().float().cpu(), dim=1)
    near: set[int] = set()
    for ids_N in wanted.split(ROWS):
        cosine_NV = unit_VD[ids_N] @ unit_VD.T
        cosine_NV[torch.arange(len(ids_N)), ids_N] = 0
        near |= set(ids_N[cosine_NV.amax(1) > SAME].tolist())
    return near


def unwritable(model: Model, texts: Sequence[str]) -> list[str]:
    """Of each text the characters that the base cannot write; empty where there are none.

    Whole words whose token is one of several alike are none: they have other spellings.
    """
    characters = sorted({c for text in texts for c in text if not c.isalnum() or not c.isascii()})
    spelt = {c: _ids(model, c) for c in characters}
    near = indistinct(model, (i for ids in spelt.values() for i in ids))
    lost = {c for c, ids in spelt.items() if not near.isdisjoint(ids)}
    return ["".join(dict.fromkeys(c for c in text if c in lost)) for text in texts]


def _ids(model: Model, character: str) -> list[int]:
    return list(model.tokenizer(character, add_special_tokens=False)["input_ids"])
