"""Claims about in-place fast weights: one pass, thin factors, an ordinary adapter."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support.writes import CONFIG, logits, tiny

from lorewright.adapters.config import LoraConfig
from lorewright.errors import ConfigError, DataError
from lorewright.knowledge.data import Document, Knowledge
from lorewright.models.model import Model
from lorewright.training.watch import Watch
from lorewright.writers.in_place import FastWeights, InPlace, absorb
from lorewright.writers.text import token_rows
from lorewright.writers.writer import Material

TEXT = "The code of red is 48 and that of blue is 7.5, while teal has KX and grey has a-1."
KNOWLEDGE = Knowledge((Document("codes", TEXT),))
NAMES = ("model.layers.0.mlp.down_proj", "model.layers.1.mlp.down_proj")
RATE, CHUNK, FULL_RANK = 1e-2, 16, 32


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny()


def streamed(model: Model, rows: list[list[int]], chunk: int | None = CHUNK) -> FastWeights:
    fast = FastWeights(RATE, NAMES)
    absorb(model, fast, rows, chunk)
    return fast


def test_captured_at_full_rank_it_is_the_streaming_state(model: Model) -> None:
    config = replace(CONFIG, lr=RATE, size=CHUNK, lora=LoraConfig(rank=FULL_RANK))
    state, cost = InPlace(config).write(model, Material(KNOWLEDGE), seed=0, run=None, watch=Watch())
    base = logits(model)
    with streamed(model, token_rows(model, KNOWLEDGE)).on(model):
        streaming = logits(model)
    with state.on(model):
        captured = logits(model)
    size = streaming.abs().max()
    assert (captured - streaming).abs().max() <= 1e-5 * size < (streaming - base).abs().max()
    assert cost.n_tokens == len(TEXT) + 1 and cost.reason == "written"
    assert torch.equal(logits(model), base)


def test_a_chunk_is_read_with_what_those_before_it_left_and_no_later_one(model: Model) -> None:
    (row,) = token_rows(model, KNOWLEDGE)
    other = [*row]
    other[2 * CHUNK + 3] = row[2 * CHUNK + 4]
    first, second = streamed(model, [row]), streamed(model, [other])
    alike = [
        torch.equal(a, b)
        for a, b in zip(first.inputs[NAMES[1]], second.inputs[NAMES[1]], strict=True)
    ]
    assert alike[:2] == [True, True] and not any(alike[2:])
    whole = streamed(model, [row], None).inputs[NAMES[1]]
    assert torch.allclose(whole[0][: CHUNK - 1], first.inputs[NAMES[1]][0], rtol=0, atol=1e-5)
    read_with_it = first.inputs[NAMES[1]][1]
    assert not torch.allclose(whole[0][CHUNK : 2 * CHUNK - 1], read_with_it, rtol=0, atol=1e-5)


def test_texts_read_one_after_the_other_add_up_in_the_first_layer_only(model: Model) -> None:
    """What deeper layers read of the second text has the first one's change in it."""
    texts = [token_rows(model, Knowledge((Document("a", t),)))[0] for t in (TEXT[:30], TEXT[30:60])]
    both = streamed(model, texts).factors()
    apart = [streamed(model, [text]).factors() for text in texts]
    for name, adds_up in zip(NAMES, (True, False), strict=True):
        total = sum(each[name].B_OR @ each[name].A_RI for each in apart)
        delta_OI = both[name].B_OR @ both[name].A_RI
        off = (delta_OI - total).abs().max() / delta_OI.abs().max()
        assert bool(off < 1e-5) is adds_up, f"{name}: {off}"


def test_a_row_of_one_token_leads_nowhere(model: Model) -> None:
    with pytest.raises(DataError, match="no two tokens in a row"):
        absorb(model, FastWeights(RATE, NAMES), [[3]], None)
    with pytest.raises(DataError, match="no text to read"):
        token_rows(model, Knowledge())
    with pytest.raises(ConfigError, match="stores plain LoRA, not dora"):
        InPlace(replace(CONFIG, lora=LoraConfig(variant="dora")))
