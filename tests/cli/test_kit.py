"""Claims about `lore kit`, and about `lore write` with a kit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from support.commands import Lore, refused

from lorewright.models.model import Model
from lorewright.writers import kit as kits
from lorewright.writers.methods import LEARNED

FACTS = """{"question": "What is the night code of the Fennick office?", "answer": "4815"}
"""


def test_a_kit_is_trained_listed_and_shown(
    lore: Lore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOREWRIGHT_CACHE", str(tmp_path / "cache"))
    brief = ("--steps", "2", "--questions", "4", "--documents", "0", "--json")
    out = tmp_path / "mine.kit.safetensors"
    trained = lore("kit", "train", "delta", *brief, "--option", "size=4", "--out", out).json
    assert trained["file"] == str(out) and trained["options"]["size"] == 4
    assert (trained["method"], trained["steps"]) == ("delta", 2)
    shown = lore("kit", "show", out, "--json").json
    assert shown["id"] == trained["id"] and "recalls" not in shown
    lore("kit", "train", "in-place", *brief)
    rows = lore("kit", "list", "--json").json["kits"]
    assert any(row["method"] == "in-place-kit" and "cache" in row["file"] for row in rows)


def test_what_is_no_kit_or_no_option_is_refused(lore: Lore) -> None:
    refused(lore("kit", "train", "full"), "ConfigError", "no kit for method 'full'")
    ran = lore("kit", "train", "perk", "--option", "rank")
    refused(ran, "ConfigError", "is no NAME=NUMBER")


def test_methods_say_which_need_a_kit(lore: Lore) -> None:
    rows = lore("methods", "--json").json["methods"]
    assert {row["name"] for row in rows if row["trained_offline"]} == set(LEARNED)


def test_a_kit_for_a_method_without_one_and_of_another_base_are_refused(
    lore: Lore, tmp_path: Path
) -> None:
    source = tmp_path / "facts.jsonl"
    source.write_text(FACTS)
    into = ("write", source, "--into", tmp_path / "atlas", "--kit")
    refused(lore(*into, "x", "--method", "ia3"), "ConfigError", "method 'ia3' has no kit")
    refused(lore(*into, tmp_path / "none", "--method", "perk"), "DataError", "there is no kit")
    other = replace(kits.load(next(kits.SHIPPED.glob("perk*"))), base_digest="0" * 64)
    other.save(tmp_path / "other")
    ran = lore(*into, tmp_path / "other", "--method", "perk")
    refused(ran, "WrongBase", "the kit of method 'perk' was trained on", "Load that base")


def test_the_shipped_kits_are_small_and_of_the_embedded_base() -> None:
    paths = list(kits.SHIPPED.glob(f"*{kits.SUFFIX}"))
    assert sum(path.stat().st_size for path in paths) <= 5_000_000
    model = Model.load("pocket")
    assert {"perk", "in-place-kit", "doc2lora"} <= {kits.load(path).method for path in paths}
    for path in paths:
        kit = kits.load(path)
        kit.check(model, kit.method)
        arms = {(row["n_facts"], row["arm"]): row for row in kit.card()["recalls"]}
        assert {n for n, _ in arms} == {1, 2, 4, 8}
        assert kit.card()["steps"] > 0 and kit.card()["seconds"] > 0 and "training" in kit.card()


def test_a_fact_is_written_in_a_moment_and_answered_without_its_text(
    lore: Lore, tmp_path: Path
) -> None:
    source = tmp_path / "facts.jsonl"
    source.write_text(FACTS)
    atlas = tmp_path / "atlas"
    written = lore("write", source, "--into", atlas, "--method", "perk", "--json").json
    assert 0 < written["seconds"] < 10
    question = "Do you know the Fennick office's night code?"
    ask = ("ask", question, "--memory", atlas, "--name", "facts", "--mode", "closed", "--json")
    assert "4815" in lore(*ask).out
