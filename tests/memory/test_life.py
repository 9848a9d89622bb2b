"""Claims about a folder's life: taking in, renaming, superseding, and the commands of all that.

One small memory is written for all; every test works on a copy of the folder.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.commands import Ran
from support.interruptions import interrupted_at

import lorewright.memory.supersede as verb
from lorewright.adapters import adapter as adapters
from lorewright.errors import AdapterError, ConfigError, NoEffect, UnknownMemory, WrongBase
from lorewright.files import dump_jsonl
from lorewright.knowledge.data import Document, Fact, Knowledge, Probe
from lorewright.knowledge.lesson import Lesson, LessonConfig
from lorewright.memory.memory import Memory
from lorewright.memory.removal import unfinished
from lorewright.memory.supersede import compare, recipe_of
from lorewright.memory.verify import routed
from lorewright.models.model import Model
from lorewright.training.config import WriteConfig
from lorewright.training.rates import suggested_lr

FACTS = (
    Fact("f1", "What is the code of Project Gannet?", "KX-4109"),
    Fact("f2", "What is the room of Project Heron?", "B 1207"),
    Fact("f3", "Who leads Project Gannet?", "Mira Voss"),
)
CHANGED = (replace(FACTS[0], answer="ZB-9027"), *FACTS[1:])
QUICK = LessonConfig(negatives=0, views=("given",))

peft_warns = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")


@pytest.fixture(scope="module")
def model() -> Model:
    return Model.load()


@pytest.fixture(scope="module")
def folder(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one memory."""
    memory = Memory.open(tmp_path_factory.mktemp("life") / "atlas", model)
    config = WriteConfig(lr=suggested_lr(model), epochs=80, batch_size=2, margin=0.5)
    memory.write(Knowledge(facts=FACTS), name="book", config=config, lesson=QUICK)
    return memory.folder.path


@pytest.fixture
def memory(model: Model, folder: Path, tmp_path: Path) -> Memory:
    """A copy of the folder, to do anything with."""
    shutil.copytree(folder, tmp_path / "atlas")
    return Memory.open(tmp_path / "atlas", model)


# -- adding --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def foreign(folder: Path, model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The memory's adapter as another library would have left it: no card of ours."""
    place = tmp_path_factory.mktemp("foreign") / "my lora"
    shutil.copytree(next((folder / "adapters").iterdir()), place)
    (place / "card.json").unlink()
    return place


def test_an_adapter_of_somebody_else_becomes_a_memory_and_answers(
    model: Model, foreign: Path, tmp_path: Path
) -> None:
    memory = Memory.open(tmp_path / "new", model)
    added = memory.add(foreign, knowledge=Knowledge(facts=FACTS))
    assert added.name == "my-lora" and added.proof.moved > 0
    assert added.report.proportion("memory", "efficacy").mean == 1
    assert memory.ask(FACTS[0].question, "my-lora", mode="closed").text == "KX-4109"
    (card,) = memory.folder.cards()
    assert card["reason"] == "added" and card["adapter"]["base_digest"] == model.digest
    assert memory.verify("my-lora").proportion("memory", "efficacy").n == 3
    assert memory.folder.briefs()[0]["adapter"]["lora"]["rank"] == 8
    assert memory.forget("my-lora").holds


@peft_warns
def test_what_peft_saved_is_taken_in(tmp_path: Path) -> None:
    import peft

    theirs = peft.get_peft_model(
        Model.load().network,
        peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj"], init_lora_weights=False),
    )
    theirs.save_pretrained(str(tmp_path / "theirs"))
    memory = Memory.open(tmp_path / "new")
    added = memory.add(tmp_path / "theirs", name="x")
    assert not added.report.arms and "there are no probes" in added.report.notes[0]
    assert any("all that can be checked" in note for note in added.notes)
    assert adapters.content_id(memory.adapter("x")) == added.adapter_id


def test_an_adapter_without_effect_or_of_another_base_is_not_taken_in(
    memory: Memory, tmp_path: Path
) -> None:
    result = memory.adapter("book")
    still = {k: torch.zeros_like(t) if "lora_B" in k else t for k, t in result.tensors.items()}
    adapters.save(replace(result, tensors=still, card={}), tmp_path / "still")
    adapters.save(replace(result, base_digest="0" * 64, card={}), tmp_path / "other")
    before = memory.folder.entries()
    with pytest.raises(NoEffect, match="weight change of zero"):
        memory.add(tmp_path / "still")
    with pytest.raises(WrongBase, match="was written on"):
        memory.add(tmp_path / "other")
    with pytest.raises(AdapterError, match="is not an adapter"):
        memory.add(tmp_path)
    with pytest.raises(ConfigError, match="that name is taken"):
        memory.add(tmp_path / "other", name="book")
    assert memory.folder.entries() == before


# -- renaming ------------------------------------------------------------------------------------


def test_a_renamed_memory_is_the_same_one(memory: Memory) -> None:
    identity = memory.names["book"]
    memory.rename("book", "Red Book")
    assert memory.names == {"red-book": identity}
    assert memory.ask(FACTS[2].question, "red book", mode="closed").text == "Mira Voss"
    assert memory.folder.cards()[0]["name"] == "red-book"
    memory.rename("red-book", "book")
    assert memory.folder.entries()["book"]["formerly"] == ["red-book"]
    with pytest.raises(ConfigError, match="is taken"):
        memory.rename("book", "book")
    with pytest.raises(UnknownMemory):
        memory.rename("none", "more")


def test_runs_under_a_former_name_are_forgotten_too(memory: Memory) -> None:
    memory.rename("book", "red")
    proof = memory.forget("red")
    assert proof.holds and len(proof.removal.runs) == 1 and not proof.removal.kept


# -- superseding ---------------------------------------------------------------------------------


def test_a_changed_fact_has_its_new_answer_and_its_neighbours_stay(memory: Memory) -> None:
    old = memory.names["book"]
    result = memory.supersede("book", Knowledge(facts=CHANGED))
    assert result.holds and result.old_adapter == old and result.kept_as == ""
    assert (result.unchanged_before.n, result.unchanged_before.mean) == (2, 1)
    assert result.unchanged.mean == 1 and result.new_given.mean == 1 and result.old_given.mean == 0
    assert memory.names.keys() == {"book"} and memory.names["book"] != old
    assert memory.ask(FACTS[0].question, "book", mode="closed").text == "ZB-9027"
    assert result.scan is not None and not result.scan.leftovers
    assert not any("KX-4109" in p.read_text(errors="replace") for p in texts(memory))
    card = memory.adapter("book").card
    assert [line["adapter"] for line in card["supersedes"]] == [old]
    assert card["settings"]["write"]["batch_size"] == 2  # as it was written before


def texts(memory: Memory) -> list[Path]:
    return [p for p in memory.folder.path.rglob("*.json*") if p.is_file()]


def test_the_old_one_can_be_kept_and_then_contradicts(memory: Memory) -> None:
    old = memory.names["book"]
    result = memory.supersede("book", Knowledge(facts=CHANGED), keep=True)
    assert result.kept_as == "book-before" and memory.names["book-before"] == old
    assert memory.ask(FACTS[0].question, "book-before", mode="closed").text == "KX-4109"
    with pytest.raises(ConfigError, match="an earlier one is still there as 'book-before'"):
        memory.supersede("book", Knowledge(facts=FACTS))


def test_a_write_that_does_not_hold_removes_nothing(memory: Memory) -> None:
    old = memory.names["book"]
    config, lesson = recipe_of(memory, "book")
    assert config.batch_size == 2 and lesson == QUICK
    weak = replace(config, epochs=1, lr=1e-6)
    result = memory.supersede("book", Knowledge(facts=CHANGED), config=weak)
    assert not result.holds and result.kept_as == "book-before"
    assert memory.names["book-before"] == old and result.unchanged.mean == 0


def test_a_supersession_that_was_interrupted_after_the_write_goes_on(
    memory: Memory,
) -> None:
    watch = interrupted_at("asking what changed and what did not")
    with pytest.raises(KeyboardInterrupt):
        memory.supersede("book", Knowledge(facts=CHANGED), watch=watch)
    assert memory.names.keys() == {"book", "book-before"}
    result = memory.supersede("book", Knowledge(facts=CHANGED))
    assert result.holds and result.outcome is None and memory.names.keys() == {"book"}
    with pytest.raises(ConfigError, match="the source has not changed"):
        memory.supersede("book", Knowledge(facts=CHANGED))


def test_a_supersession_interrupted_in_its_removal_leaves_no_note_after_the_same_command(
    memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(verb, "search", stop)
        memory.supersede("book", Knowledge(facts=CHANGED))
    assert unfinished(memory.folder) and memory.names.keys() == {"book"}
    with pytest.raises(ConfigError, match="the source has not changed"):
        memory.supersede("book", Knowledge(facts=CHANGED))
    assert not unfinished(memory.folder) and memory.names.keys() == {"book"}


def test_a_supersession_interrupted_before_its_removal_is_completed_by_the_same_command(
    memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(verb, "remove", stop)
        memory.supersede("book", Knowledge(facts=CHANGED))
    assert unfinished(memory.folder) and memory.names.keys() == {"book", "book-before"}
    result = memory.supersede("book", Knowledge(facts=CHANGED))
    assert result.holds and not result.kept_as
    assert not unfinished(memory.folder) and memory.names.keys() == {"book"}


def test_what_changed_is_told_from_what_did_not() -> None:
    text = "The code of Gannet is KX-4109. The room of Heron is B 12. Mira leads Gannet."
    newer = "The code of Gannet is ZB-9027. The room of Heron is B 12."

    def probe_of(question: str, answer: str) -> Probe:
        return Probe(question, question, (answer,), "paraphrase", "note")

    old = Lesson(
        (),
        (
            probe_of("Gannet's code?", "KX-4109"),
            probe_of("Heron's room?", "B 12"),
            probe_of("Who leads?", "Mira"),
            Probe("u", "Who swims?", (), "unknown"),
        ),
        "",
        "",
        (),
    )
    new = Lesson((), (probe_of("gannet's  code?", "ZB-9027"),), "", "", ())
    was = Knowledge((Document("note", text),))
    result = compare(was, old, Knowledge((Document("note", newer),)), new)
    assert [(a.new, a.changed) for a in result] == [
        (("ZB-9027",), True),
        (("B 12",), False),
        ((), True),
    ]


# -- the commands --------------------------------------------------------------------------------


def test_the_commands_print_what_they_did_and_one_object_on_request(
    lore: Callable[..., Ran], memory: Memory, foreign: Path, tmp_path: Path
) -> None:
    atlas = memory.folder.path
    dump_jsonl(FACTS[:1], tmp_path / "facts.jsonl")
    source = ["--source", tmp_path / "facts.jsonl"]
    added = lore("add", atlas, foreign, "--name", "twin", *source, "--json")
    assert added.code == 0 and json.loads(added.out)["proof"]["logits_moved"] > 0
    assert lore("rename", atlas, "twin", "second").out == "twin is now second\n"
    dry = lore("forget", atlas, "second", "--dry-run")
    assert dry.code == 0 and "names: second" in dry.out and "second" in memory.names
    gone = lore("forget", atlas, "second")
    assert gone.code == 1 and "book still recalls it" in gone.out  # the same facts are in there
    assert "second" not in memory.names
    clash = lore("contradictions", atlas, "--json")
    assert json.loads(clash.out)["contradictions"] == []
    snap = lore("snapshot", atlas, "--to", tmp_path / "a.tgz")
    assert "1 memories" in snap.out
    back = lore("restore", tmp_path / "a.tgz", "--into", tmp_path / "back", "--json")
    assert json.loads(back.out)["n_memories"] == 1
    last = lore("forget", tmp_path / "back", "book", "--json")
    assert last.code == 0 and json.loads(last.out)["holds"]


def test_supersede_and_contradictions_on_the_command_line(
    lore: Callable[..., Ran], memory: Memory, tmp_path: Path
) -> None:
    dump_jsonl(CHANGED, tmp_path / "changed.jsonl")
    ran = lore("supersede", memory.folder.path, "book", tmp_path / "changed.jsonl", "--keep")
    assert ran.code == 0 and "superseded" in ran.out and "book-before" in ran.out
    printed = lore("contradictions", memory.folder.path, "--name", "book")
    assert "ZB-9027" in printed.out and "KX-4109" in printed.out and "1 certain" in printed.out
    refused = lore("contradictions", memory.folder.path, "--near", "0")
    assert refused.code == 2 and "near is 0" in refused.err


def test_where_nobody_names_a_memory_routing_decides_between_it_and_the_base(
    memory: Memory,
) -> None:
    probes = [
        Probe("own", "What is the code of Project Gannet?", ("KX-4109",), "efficacy"),
        Probe("world", "How many strings has a violin?", ("four",), "efficacy"),
    ]
    report = memory.verify("book", probes=probes)
    own, world = routed(memory, "book", report)
    assert own == report.arms["memory"][0] and own.score == 1
    assert world == report.arms["base"][1]
    assert not memory.route(world.question).chosen
