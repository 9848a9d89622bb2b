"""Claims about readers, which have the text in the prompt and write nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from support.commands import Lore

from lorewright.errors import ConfigError, DataError
from lorewright.models.model import Model
from lorewright.writers.queries import Tuning
from lorewright.writers.reading import (
    READERS,
    answering,
    first_logits,
    plain,
    prefilled,
    qttt,
    read,
    reader_of,
    reply,
    tuned_queries,
    using_queries,
)

TEXT = (
    "The chief password of the Quartz Theatre is sage. Candle Unit is approved by Tara Thorski. "
    "The form level of Zeburn Shop is 6044."
)
QUESTION = "What is the form level of Zeburn Shop?"
PROMPT = f"{TEXT}\n\n{QUESTION}"
TUNING = Tuning(steps=3, span=16, lr=1e-2)


@pytest.fixture(scope="module")
def model() -> Model:
    return Model.load("pocket")


def test_reading_plainly_is_the_base_with_the_text_in_its_prompt(model: Model) -> None:
    (expected,) = model.generate([PROMPT], max_new_tokens=16)
    plainly = reader_of("plain", Tuning())
    assert read(model, PROMPT, plainly, max_new_tokens=16) == expected == "6044"


def test_without_a_step_qttt_is_reading_plainly_bit_for_bit(model: Model) -> None:
    prefill = prefilled(model, model.render(PROMPT).prompt_ids)
    with plain(model, prefill):
        expected = first_logits(model, prefill)
    with qttt(model, prefill, Tuning(steps=0)):
        assert torch.equal(first_logits(model, prefill), expected)
        assert reply(model, prefill, 16) == "6044"


def test_tuning_moves_logits_and_leaves_keys_values_and_base_as_they_were(model: Model) -> None:
    prefill = prefilled(model, model.render(PROMPT).prompt_ids)
    stored = [tensor.clone() for pair in prefill.layers for tensor in pair]
    weights = {name: p.clone() for name, p in model.network.named_parameters()}
    before = first_logits(model, prefill)
    with qttt(model, prefill, TUNING):
        assert not torch.equal(first_logits(model, prefill), before)
    assert torch.equal(first_logits(model, prefill), before)
    now = [tensor for pair in prefill.layers for tensor in pair]
    assert all(torch.equal(a, b) for a, b in zip(stored, now, strict=True))
    assert all(torch.equal(p, weights[name]) for name, p in model.network.named_parameters())


def test_with_the_text_gone_tuned_queries_answer_as_the_base_does(model: Model) -> None:
    whole, alone = (prefilled(model, model.render(p).prompt_ids) for p in (PROMPT, QUESTION))
    base = reply(model, alone, 16)
    with using_queries(model, tuned_queries(model, whole, Tuning(steps=8))):
        assert "6044" in reply(model, whole, 16)
        assert reply(model, prefilled(model, alone.prompt_ids), 16) == base != "6044"


def test_a_span_behind_stored_keys_has_the_loss_of_the_plain_pass(model: Model) -> None:
    ids = model.render(PROMPT).prompt_ids
    with torch.no_grad():
        logits = model.network(input_ids=torch.tensor([ids])).logits[0]
        prefill = prefilled(model, ids)
        assert (first_logits(model, prefill) - logits[-1]).abs().max() < 1e-4


def test_equal_seeds_are_equal_queries(model: Model) -> None:
    prefill = prefilled(model, model.render(PROMPT).prompt_ids)
    first, again, other = (
        tuned_queries(model, prefill, Tuning(steps=2, span=8, lr=1e-3, seed=seed))
        for seed in (0, 0, 1)
    )
    name = next(iter(first))
    assert torch.equal(first[name], again[name]) and not torch.equal(first[name], other[name])


def test_what_cannot_be_read_is_refused(model: Model) -> None:
    with pytest.raises(ConfigError, match="a rate above 0"):
        Tuning(lr=0)
    with pytest.raises(DataError, match="nothing to read"):
        prefilled(model, [1])
    with pytest.raises(ConfigError, match="use one of plain, qttt"):
        reader_of("magic", Tuning())
    with pytest.raises(DataError, match="tokens"):
        read(model, "Candle Unit. " * 400, plain)


@pytest.mark.parametrize("name", READERS)
def test_every_reader_reads(model: Model, name: str) -> None:
    assert read(model, PROMPT, reader_of(name, TUNING), max_new_tokens=16) == "6044"


def test_a_state_for_the_answer_alone_changes_nothing_of_what_was_read(model: Model) -> None:
    seen = []

    @contextmanager
    def on(model: Model) -> Iterator[None]:
        seen.append(model)
        yield

    assert read(model, PROMPT, answering(on), max_new_tokens=16) == "6044" and seen == [model]


def test_lore_read_answers_from_the_text_and_says_how(tmp_path: Path, lore: Lore) -> None:
    (tmp_path / "page.md").write_text(TEXT)
    ran = lore("read", tmp_path / "page.md", QUESTION, "--reader", "qttt", "--steps", 1, "--json")
    assert ran.code == 0 and ran.json["answer"] == "6044" and ran.json["reader"] == "qttt"
    plainly = lore("read", tmp_path / "page.md", QUESTION)
    assert "6044" in plainly.out and "nothing was written" in plainly.out
    wrong = lore("read", tmp_path / "page.md", QUESTION, "--reader", "magic")
    assert wrong.code == 2 and "use one of plain, qttt" in wrong.err
