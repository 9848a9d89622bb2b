"""Claims about budgets: rows add up to the published arithmetic, and count real networks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.commands import Lore, refused

from lorewright.adapters.config import LoraConfig
from lorewright.errors import ConfigError, DataError
from lorewright.law.budget import (
    GPUS,
    LLAMA_65B,
    LORA,
    METHODS,
    PUBLISHED,
    QDORA,
    QLORA,
    USABLE,
    account,
    budget,
)
from lorewright.law.plan import shape_of
from lorewright.models.model import Model
from lorewright.models.sizes import Sizes, sizes_in, sizes_of


@pytest.fixture(scope="module")
def llama() -> Sizes:
    return sizes_in(LLAMA_65B)


def test_the_rows_of_llama_65b_add_up(llama: Sizes) -> None:
    # derived by hand: P = 65.3e9, T = 0.8e9 at rank 64, 2,048 tokens at 2 MB
    assert llama.n_parameters == pytest.approx(65.3e9, rel=1e-3)
    by_hand = {"full": 787, "lora": 144, "qlora": 48, "dora": 145, "qdora": 49}
    for method, expected in by_hand.items():
        counted = budget(llama, method, rank=64)
        assert counted.n_bytes / 1e9 == pytest.approx(expected, abs=0.7), method
        assert counted.n_bytes == sum(term.n_bytes for term in counted.terms)
    trained = {t.what: t for t in budget(llama, "full").terms}
    moving = sum(t.n_bytes for what, t in trained.items() if "activations" not in what)
    assert moving == 12 * llama.n_parameters


def test_published_figures_are_reached_at_the_batches_that_the_page_states(llama: Sizes) -> None:
    published = {each.method: each.n_bytes for each in PUBLISHED}
    for method, n_tokens in ((LORA, 10_000), (QDORA, 3_600)):
        ours = budget(llama, method, rank=64, n_tokens=n_tokens).n_bytes
        assert ours == pytest.approx(published[method], rel=0.01)
    assert budget(llama, QLORA, rank=64).n_bytes == pytest.approx(published[QLORA], rel=0.01)


def test_sizes_are_those_of_the_network_itself() -> None:
    model, sizes = Model.load(), sizes_of("pocket")
    assert sizes.n_parameters == sum(p.numel() for p in model.network.parameters())
    for targets in (("all-linear",), ("attention",), ("q_proj", "v_proj")):
        shape = shape_of(model, LoraConfig(rank=1, targets=targets))
        assert sizes_of("pocket", targets).n_values == shape.n_values


def test_gpus_hold_what_they_are_said_to_hold(llama: Sizes) -> None:
    for method in METHODS:
        counted = budget(llama, method, rank=64)
        for name, n in counted.gpus.items():
            assert (n - 1) * USABLE * GPUS[name] < counted.n_bytes <= n * USABLE * GPUS[name]


def test_more_costs_more_and_float32_costs_more_of_everything(llama: Sizes) -> None:
    plain = budget(llama, LORA, rank=64)
    assert budget(llama, LORA, rank=65).n_bytes > plain.n_bytes
    assert budget(llama, LORA, rank=64, n_tokens=2049).n_bytes > plain.n_bytes
    assert budget(llama, LORA, rank=64, checkpointing=False).n_bytes > plain.n_bytes
    wide = {t.what: t.n_bytes for t in budget(llama, LORA, rank=64, bytes_trained=16).terms}
    narrow = {term.what: term.n_bytes for term in plain.terms}
    for what in ("weights, frozen", "trained", "their gradients"):
        assert wide[what] == 2 * narrow[what]
    assert wide["Adam's moments"] == narrow["Adam's moments"] == 8 * plain.n_trained
    assert wide["logits"] == 3 * 4 * 128 * llama.n_vocab


def test_what_cannot_be_counted_is_refused(llama: Sizes, tmp_path: Path, lore: Lore) -> None:
    with pytest.raises(ConfigError, match="method 'magic' is unknown"):
        budget(llama, "magic")
    with pytest.raises(ConfigError, match="rank is 0"):
        budget(llama, LORA, rank=0)
    with pytest.raises(DataError, match="no config"):
        sizes_in({"model_type": "no such thing"})
    with pytest.raises(DataError, match="layers"):
        sizes_in({**LLAMA_65B, "num_hidden_layers": 10**6})
    (tmp_path / "config.json").write_text("[]")
    refused(lore("budget", tmp_path / "config.json"), "DataError")
    (tmp_path / "config.json").write_text('{"a": 1}')
    ran = lore("budget", tmp_path / "config.json")
    refused(ran, "DataError", "model_type is None")
    assert len(ran.err) < 300, "no list of all families"
    refused(lore("budget", "pocket", "--target", "nowhere"), "TargetsNotFound")


def test_the_command_prints_the_account(tmp_path: Path, lore: Lore) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_65B))
    ran = lore("budget", tmp_path / "config.json", "--method", "qlora", "--rank", "64", "--json")
    printed = json.loads(ran.out)
    expected = account("llama-65b", "qlora", rank=64).to_json()
    assert printed["chosen"]["n_bytes"] == expected["chosen"]["n_bytes"]
    assert expected["published"] and not printed["published"]
    shown = lore("budget", "llama-65b", "--method", "qlora", "--rank", "64").out
    assert "48.209" in shown and "780" in shown and "QLoRA" in shown
