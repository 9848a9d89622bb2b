"""Claims about ways of writing in a folder: a writer from outside goes through every verb."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import steering
from support.models import an_adapter
from support.writes import CONFIG, tiny

from lorewright.errors import AdapterError, ConfigError
from lorewright.knowledge.data import Fact, Knowledge
from lorewright.knowledge.lesson import LessonConfig
from lorewright.memory.memory import Memory
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


def test_an_unknown_method_is_refused_before_the_folder_is_touched(memory: Memory) -> None:
    with pytest.raises(ConfigError, match="method 'magic' is unknown; use one of gradient, steer"):
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
