"""Claims about ways of writing in a folder: a writer from outside goes through every verb."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from support import steering
from support.models import an_adapter
from support.writes import CONFIG, tiny

from lorewright.adapters.config import LoraConfig
from lorewright.errors import AdapterError, ConfigError
from lorewright.knowledge.data import Fact, Knowledge
from lorewright.knowledge.lesson import LessonConfig
from lorewright.memory.diagnose import diagnose
from lorewright.memory.memory import Memory
from lorewright.memory.snapshot import restore, take
from lorewright.reports.results import memories_table
from lorewright.writers.adapter import AdapterState
from lorewright.writers.methods import STATES, WRITERS
from lorewright.writers.writer import Cost

CODES = Knowledge(facts=(Fact("red", "Code of red?", "48"),))
OTHER = Knowledge(facts=(Fact("teal", "Code of teal?", "KX"),))
AS_GIVEN = LessonConfig(negatives=0, views=("given",))


@pytest.fixture
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Memory:
    """A folder in which one more way of writing is known."""
    monkeypatch.setitem(WRITERS, "steering", lambda config: steering.Steering())
    monkeypatch.setitem(STATES, "steering", steering.load)
    return Memory.open(tmp_path / "atlas", tiny())


def test_a_writer_from_outside_is_written_verified_asked_and_forgotten(memory: Memory) -> None:
    outcome = memory.write(CODES, name="codes", method="steering", lesson=AS_GIVEN)
    assert (outcome.method, outcome.reason, outcome.epochs) == ("steering", "written", 0)
    assert outcome.audit.n_exact == 1 and outcome.adapter_id == memory.names["codes"]
    (card,) = memory.folder.cards()
    assert (card["method"], card["kind"], card["engine"]) == ("steering", "steering", "hooks")
    assert len(memories_table(memory.folder.briefs()).rows) == 1
    again = Memory.open(memory.folder.path, memory.model)
    assert again.verify("codes").proportion("memory", "efficacy").mean == 1
    for fact in CODES.facts:
        for mode in ("closed", "hybrid"):
            answer = again.ask(fact.question, "codes", mode=mode)
            assert (answer.text, answer.memory) == (fact.answer, "codes")
    plain = again.write(OTHER, name="plain", config=CONFIG, lesson=AS_GIVEN)
    assert "wrong" in plain.report.arms, "a state of any kind is a control"
    proof = again.forget("codes")
    assert proof.holds and proof.before is not None and proof.before.mean == 1
    assert again.names.keys() == {"plain"}


def test_a_successor_is_written_by_the_method_of_its_predecessor(memory: Memory) -> None:
    memory.write(CODES, name="codes", method="steering", lesson=AS_GIVEN)
    changed = Knowledge(facts=(Fact("red", "Code of red?", "9-1"),))
    result = memory.supersede("codes", changed)
    assert result.outcome is not None and result.outcome.method == "steering"
    assert memory.ask("Code of red?", "codes", mode="closed").text == "9-1"


def test_a_state_that_comes_back_from_disk_changed_is_given_no_name(
    memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(folder: Path) -> steering.Steered:
        stored = steering.load(folder)
        return steering.Steered(stored.offset_VD / 2, stored.base_digest)

    monkeypatch.setitem(STATES, "steering", half)
    with pytest.raises(AdapterError, match="came back from disk with content"):
        memory.write(CODES, name="codes", method="steering", lesson=AS_GIVEN)
    assert memory.names == {} and not (memory.folder.path / "adapters").exists()


def test_what_needs_an_adapter_refuses_a_state_of_another_kind(memory: Memory) -> None:
    memory.write(CODES, name="codes", method="steering", lesson=AS_GIVEN)
    memory.write(OTHER, name="plain", config=CONFIG, lesson=AS_GIVEN)
    with pytest.raises(AdapterError, match="'codes' is a state of kind 'steering'; this needs an"):
        memory.merge(["codes", "plain"], method="svd")
    assert memory.names.keys() == {"codes", "plain"}


def test_whole_weights_go_through_every_verb_as_an_adapter(tmp_path: Path) -> None:
    """What is written whole is stored as an adapter: it merges, and nothing tells it from one."""
    memory = Memory.open(tmp_path / "atlas", tiny())
    rank = LoraConfig(rank=32)
    whole = replace(CONFIG, lora=rank, lr=1e-3)
    outcome = memory.write(CODES, name="codes", method="full", config=whole, lesson=AS_GIVEN)
    assert (outcome.method, outcome.audit.n_exact) == ("full", 1)
    (card,) = memory.folder.cards()
    assert (card["method"], card["kind"]) == ("full", "adapter")
    assert card["energy_by_rank"][-1] == {"rank": 32, "share": 1.0}
    memory.write(OTHER, name="plain", config=CONFIG, lesson=AS_GIVEN)
    memory.merge(["codes", "plain"], method="cat", into="both")
    assert memory.adapter("both").config.rank == 36, "cat is exact: its rank is the sum"
    take(memory.folder.path, tmp_path / "copy.tar.gz")
    restore(tmp_path / "copy.tar.gz", tmp_path / "copy")
    copy = Memory.open(tmp_path / "copy", memory.model)
    assert copy.ask("Code of red?", "codes", mode="closed").text == "48"
    assert memory.forget("both").holds and memory.forget("codes").holds


def test_a_prefix_goes_through_every_verb_but_those_of_adapters(tmp_path: Path) -> None:
    memory = Memory.open(tmp_path / "atlas", tiny())
    config = replace(CONFIG, lora=LoraConfig(), lr=0.1)
    outcome = memory.write(CODES, name="codes", method="prefix", config=config, lesson=AS_GIVEN)
    assert (outcome.method, outcome.audit.n_exact) == ("prefix", 1)
    (card,) = memory.folder.cards()
    assert (card["method"], card["kind"], card["state"]["size"]) == ("prefix", "prefix", 16)
    again = Memory.open(memory.folder.path, memory.model)
    assert again.verify("codes").proportion("memory", "efficacy").mean == 1
    assert again.ask("Code of red?", "codes", mode="closed").text == "48"
    take(memory.folder.path, tmp_path / "copy.tar.gz")
    restore(tmp_path / "copy.tar.gz", tmp_path / "copy")
    copy = Memory.open(tmp_path / "copy", memory.model)
    assert copy.ask("Code of red?", "codes", mode="closed").text == "48"
    with pytest.raises(AdapterError, match="'codes' is a state of kind 'prefix'; this needs an"):
        memory.adapter("codes")
    with pytest.raises(AdapterError, match="a diagnosis looks into adapters"):
        diagnose(memory.folder.path, base=memory.model)
    changed = Knowledge(facts=(Fact("red", "Code of red?", "9-1"),))
    result = memory.supersede("codes", changed)
    assert result.outcome is not None and result.outcome.method == "prefix"
    assert memory.ask("Code of red?", "codes", mode="closed").text == "9-1"
    assert memory.forget("codes").holds and memory.names == {}


def test_an_unknown_method_is_refused_before_the_folder_is_touched(memory: Memory) -> None:
    with pytest.raises(ConfigError, match=r"method 'magic' is unknown; use one of .*gradient, "):
        memory.write(CODES, name="codes", method="magic")
    with pytest.raises(ConfigError, match="only gradient has them"):
        memory.write(CODES, name="codes", method="steering", find_rate=True)
    assert not memory.folder.path.exists()


def test_a_method_that_keeps_the_context_leaves_no_memory(
    memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = type("Reader", (steering.Steering,), {"needs_context": True})
    monkeypatch.setitem(WRITERS, "reader", lambda config: reader())
    with pytest.raises(ConfigError, match="reads the source again with every question"):
        memory.write(CODES, name="codes", method="reader")


def test_text_writers_get_the_source_alone_and_the_verdict_all_the_same(
    memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    class FromText(steering.Steering):
        def write(self, model, material, **how):  # type: ignore[no-untyped-def]
            seen.append(len(material.examples))
            return AdapterState(an_adapter(model)), Cost("written", 0.0, "none")

    monkeypatch.setitem(WRITERS, "text", lambda config: FromText(reads="text"))
    outcome = memory.write(CODES, name="codes", method="text", lesson=AS_GIVEN)
    assert seen == [0] and outcome.n_examples == 1
    assert outcome.report.proportion("memory", "efficacy").n == 1
