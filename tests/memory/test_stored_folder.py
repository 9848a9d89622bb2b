"""Claims about a folder of the version before: it opens, lists, verifies, answers and forgets.

tests/fixtures/folder-2026-11-28 holds two memories of the embedded base as `lore write` left them;
the JSON files beside it are what `lore verify --json` printed on them.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from lorewright.memory.folder import Folder
from lorewright.memory.memory import Memory
from lorewright.models.model import Model

STORED = Path(__file__).parents[1] / "fixtures" / "folder-2026-11-28"
LEADER = "Who leads the Tide Office?"
NEAR_TIES = 2 / 57
"""Of unrelated questions: so many greedy replies may differ where another processor rounds."""


@pytest.fixture(scope="module")
def model() -> Model:
    return Model.load()


@pytest.fixture
def memory(model: Model, tmp_path: Path) -> Memory:
    """A copy of the stored folder."""
    shutil.copytree(STORED, tmp_path / "atlas")
    return Memory.open(tmp_path / "atlas", model)


def test_it_lists_its_memories_with_ids_ranks_and_reasons() -> None:
    folder = Folder(STORED)
    assert folder.names == {"phones": "a7ca79ebd10db10e", "tide": "ca7eaf16261dca1c"}
    cards = {card["name"]: card for card in folder.cards()}
    for brief in folder.briefs():
        card = cards[brief["name"]]
        assert brief["reason"] == card["reason"] and brief["id"] == card["id"]
        assert brief["adapter"]["lora"]["rank"] == card["adapter"]["lora"]["rank"]
    assert folder.knowledge(folder.entry("tide")).documents
    assert folder.lesson(folder.entry("phones")).probes


@pytest.mark.parametrize("name", ["tide", "phones"])
def test_it_verifies_with_the_numbers_of_then(memory: Memory, name: str) -> None:
    printed = json.loads(STORED.with_name(f"{STORED.name}.{name}.json").read_text("utf-8"))
    report = memory.verify(name).to_json()
    assert report["metric"] == printed["metric"] and report["context"] == printed["context"]
    arms_left_out = [[note.split(":")[0] for note in each["notes"]] for each in (report, printed)]
    assert arms_left_out[0] == arms_left_out[1] and report.keys() == printed.keys()
    assert report["recall"].keys() == printed["recall"].keys()
    for kind, arms in printed["recall"].items():
        assert report["recall"][kind].keys() == arms.keys()
        for arm, share in arms.items():
            again = report["recall"][kind][arm]
            off = NEAR_TIES if kind == "neighborhood" else 0.0
            assert again["n"] == share["n"] and abs(again["recall"] - share["recall"]) <= off


def test_it_routes_and_answers_as_then(memory: Memory) -> None:
    answer = memory.ask(LEADER)
    assert (answer.text, answer.memory, answer.declined) == ("Maren Oskold", "tide", False)
    assert memory.ask("For the Tide Office, what is the badge colour?").text == "teal"
    assert [hit.memory for hit in memory.route("Jorun Hartley:").chosen] == ["phones"]
    stranger = memory.ask("What is the owner of Project Zubkel?")
    assert stranger.declined and not stranger.memory


def test_what_was_derived_then_is_used_as_it_is(memory: Memory) -> None:
    gate = (STORED / "index" / "gate.json").read_bytes()
    memory.route(LEADER)
    assert (memory.folder.path / "index" / "gate.json").read_bytes() == gate


def test_it_forgets_and_proves_it(memory: Memory) -> None:
    proof = memory.forget("tide")
    assert proof.holds and memory.names.keys() == {"phones"}
    assert (proof.removal.adapters, len(proof.removal.runs)) == (("ca7eaf16261dca1c",), 1)
    assert memory.ask("Jorun Hartley:", "phones", mode="closed").text == "6260181590"
