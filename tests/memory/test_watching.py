"""Claims about looking at a memory: tokens with rivals, replies side by side, ending a write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.commands import Lore, refused

from lorewright.errors import ConfigError
from lorewright.files import load_jsonl
from lorewright.knowledge.data import Fact, Knowledge
from lorewright.knowledge.lesson import LessonConfig
from lorewright.memory.diagnose import known_of
from lorewright.memory.folder import Folder, readable
from lorewright.memory.memory import Memory
from lorewright.memory.stop import current_run, stop
from lorewright.models.model import Model
from lorewright.recall.traces import trace
from lorewright.training.config import Epoch, WriteConfig
from lorewright.training.rates import suggested_lr
from lorewright.training.watch import Watch

FACTS = tuple(
    Fact(f"f{n}", f"What is the {what} of {whom}?", answer, (), (f"Which {what} has {whom}?",))
    for n, (what, whom, answer) in enumerate(
        [
            ("code", "Project Gannet", "KX-41"),
            ("room", "Project Heron", "B 1207"),
            ("owner", "the Grain Mill", "Bram Vell"),
            ("fee", "the Flour Shop", "14 crowns"),
        ]
    )
)
LESSON = LessonConfig(views=("given",), negatives=0)


@pytest.fixture(scope="module")
def memory(tmp_path_factory: pytest.TempPathFactory) -> Memory:
    """A folder with one memory that was stopped after its third epoch."""
    memory = Memory.open(tmp_path_factory.mktemp("watching") / "atlas", Model.load())

    def request(epoch: Epoch) -> None:
        if epoch.epoch == 2:
            assert stop(memory.folder) == current_run(memory.folder).name  # type: ignore[union-attr]

    config = WriteConfig(lr=suggested_lr(memory.model), epochs=100, batch_size=4)
    watch = Watch(epoch=request, closely=True)
    outcome = memory.write(
        Knowledge((), FACTS), name="book", config=config, lesson=LESSON, watch=watch
    )
    assert (outcome.reason, outcome.epochs) == ("stopped", 3)
    return memory


def test_a_stopped_write_is_a_memory_with_a_verdict_and_its_held_out_curve(memory: Memory) -> None:
    (run,) = memory.folder.path.glob("runs/*")
    rows = load_jsonl(run / "metrics.jsonl")
    assert [row["n_held_out"] for row in rows] == [len(FACTS)] * 3
    assert all(row["held_out_nats"] > 0 for row in rows)
    assert memory.folder.card(memory.names["book"])["reason"] == "stopped"
    assert not (run / "stop").exists()


def test_the_doctor_reads_the_held_out_curve_of_the_run(memory: Memory) -> None:
    (run,) = memory.folder.path.glob("runs/*")
    rows = load_jsonl(run / "metrics.jsonl")
    known = known_of(memory.folder, "book")
    assert list(known.held_out_nats) == [row["held_out_nats"] for row in rows]


def test_without_a_write_there_is_nothing_to_stop(memory: Memory, lore: Lore) -> None:
    assert current_run(memory.folder) is None
    with pytest.raises(ConfigError, match="nothing is being written"):
        stop(memory.folder)
    refused(lore("stop", memory.folder.path, "--json"), "ConfigError")
    refused(lore("stop", memory.folder.path / "nowhere"), "UnknownMemory")
    with memory.folder.writing(memory.base()), pytest.raises(ConfigError):
        stop(memory.folder)  # somebody writes, and it is no write that could be stopped


def test_tokens_joined_give_the_completion_and_agree_with_the_trace(memory: Memory) -> None:
    fact = FACTS[2]
    tokens = memory.trace(fact.question, fact.answer)
    assert "".join(token.piece for token in tokens[:-1]).strip() == fact.answer
    with memory.state("book").on(memory.model):
        (whole,) = trace(memory.model, [memory.model.render(fact.question, fact.answer)])
    assert [token.right for token in tokens] == list(whole.right)
    assert [token.p for token in tokens] == pytest.approx(whole.p, abs=1e-4)
    for token in tokens:
        ps = [p for _, p in token.rivals]
        assert len(ps) == 3 and ps == sorted(ps, reverse=True)
        assert token.right == (token.p >= ps[0]) and sum(ps) + token.p <= 1 + 1e-6


def test_trace_on_the_command_line_prints_the_same_tokens(memory: Memory, lore: Lore) -> None:
    fact = FACTS[0]
    tokens = memory.trace(fact.question, fact.answer)
    ran = lore("trace", memory.folder.path, fact.question, fact.answer, "--json")
    rows = json.loads(ran.out)["tokens"]
    assert [row["piece"] for row in rows] == [token.piece for token in tokens]
    assert ran.code == (0 if all(token.right for token in tokens) else 1)
    refused(lore("trace", memory.folder.path, fact.question, " "), "ConfigError")


def test_the_base_column_has_no_adapter(memory: Memory) -> None:
    sides = memory.sides(FACTS[0].question)
    (alone,) = memory.model.generate([FACTS[0].question], max_new_tokens=[64])
    assert sides.replies["base"].text == alone and sides.replies["base"].memory == ""
    closed = memory.ask(FACTS[0].question, "book", mode="closed")
    assert sides.memory == "book" and sides.replies["closed"].text == closed.text


def test_a_question_for_nobody_leaves_the_base_alone(memory: Memory, lore: Lore) -> None:
    sides = memory.sides("Which whale is the largest?")
    assert sides.memory == "" and list(sides.replies) == ["base"] and sides.note
    ran = lore(
        "ask", "Which whale is the largest?", "--memory", memory.folder.path, "--side-by-side"
    )
    assert ran.code == 0 and "base" in ran.out and sides.note in ran.out


def test_a_run_that_nobody_writes_is_not_the_current_one(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "other")
    folder.new_run("left", {"name": "left"})
    assert current_run(folder) is None


BASE = {"id": "pocket", "digest": "d"}


def test_files_that_are_replaced_meanwhile_do_not_hide_the_run(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "other")
    run = folder.new_run("busy", {"name": "busy"})
    (run / ".part.json.tmp").symlink_to(run / "gone")  # listed, and no more there when looked at
    with folder.writing(BASE):
        assert current_run(folder) == run
    assert readable(run / ".part.json.tmp") == {}


def test_a_file_that_goes_while_it_is_read_is_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "part.json"
    path.write_text("{}")

    def read(path: Path, **about: Any) -> str:
        path.unlink()
        raise FileNotFoundError(path)

    monkeypatch.setattr(Path, "read_text", read)
    assert readable(path) == {}
