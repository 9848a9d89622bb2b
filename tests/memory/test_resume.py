"""Claims about going on: a write that was cut off or stopped ends as if nothing had happened."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.commands import Lore, refused

from lorewright.errors import ConfigError, UnknownMemory
from lorewright.files import load_jsonl
from lorewright.knowledge.data import Fact, Knowledge
from lorewright.knowledge.lesson import LessonConfig
from lorewright.memory.memory import Memory
from lorewright.memory.stop import resumable, stop
from lorewright.models.model import Model
from lorewright.training.config import Epoch, WriteConfig
from lorewright.training.rates import suggested_lr
from lorewright.training.watch import Watch

FACTS = tuple(
    Fact(f"f{n}", f"What is the code of room {n}?", f"{n * 7919 % 9973:04}") for n in range(8)
)
HANDBOOK = Path(__file__).parents[2] / "examples" / "handbook.md"
LESSON = LessonConfig(views=("given",), negatives=0)


class CutOff(Exception):
    """What ends a write in the middle."""


@pytest.fixture(scope="module")
def model() -> Model:
    return Model.load()


def begin(place: Path, model: Model, watch: Watch | None = None) -> Memory:
    """A folder in which the facts are written, in one way."""
    memory = Memory.open(place, model)
    config = WriteConfig(lr=suggested_lr(model), epochs=8, batch_size=4)
    settings = {"name": "book", "config": config, "lesson": LESSON, "preset": "generalise"}
    memory.write(Knowledge((), FACTS), **settings, watch=watch or Watch())  # type: ignore[arg-type]
    return memory


def cut_off(place: Path, model: Model, at: int = 3) -> Memory:
    """The same, cut off after an epoch."""

    def cut(epoch: Epoch) -> None:
        if epoch.epoch == at:
            raise CutOff

    with pytest.raises(CutOff):
        begin(place, model, Watch(epoch=cut))
    return Memory.open(place, model)


def stopped(place: Path, model: Model, at: int = 3) -> Memory:
    """The same, stopped after an epoch."""
    folder = Memory.open(place, model).folder

    def request(epoch: Epoch) -> None:
        if epoch.epoch == at:
            stop(folder)

    return begin(place, model, Watch(epoch=request))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, model: Model) -> str:
    """The adapter of a write that nothing came between."""
    memory = begin(tmp_path_factory.mktemp("whole") / "atlas", model)
    assert resumable(memory.folder) == []
    (run,) = memory.folder.path.glob("runs/*")
    assert sorted(path.name for path in run.iterdir()) == [
        *("config.json", "lesson.json", "metrics.jsonl", "report.json")
    ]
    return memory.names["book"]


def test_a_write_that_was_cut_off_goes_on_to_the_same_bytes(
    tmp_path: Path, model: Model, whole: str
) -> None:
    memory = cut_off(tmp_path / "atlas", model)
    (run,) = resumable(memory.folder)
    outcome = memory.resume()
    assert outcome.adapter_id == memory.names["book"] == whole
    assert resumable(memory.folder) == [] and list(memory.folder.path.glob("runs/*")) == [run]
    assert any("Preset generalise" in note for note in outcome.notes)
    with pytest.raises(UnknownMemory, match="no write to go on with"):
        memory.resume()


def test_a_write_that_was_stopped_is_a_memory_and_goes_on_to_the_same_bytes(
    tmp_path: Path, model: Model, whole: str
) -> None:
    memory = stopped(tmp_path / "atlas", model)
    before = memory.names["book"]
    (run,) = resumable(memory.folder)
    assert before != whole and (run / "report.json").exists()
    outcome = memory.resume(run.name)
    assert outcome.adapter_id == memory.names["book"] == whole and outcome.reason != "stopped"
    assert resumable(memory.folder) == []
    new = memory.folder.run_path(memory.folder.entry("book")["run"])
    assert new != run and len(load_jsonl(new / "metrics.jsonl")) == outcome.epochs
    assert not (run / "stopped.safetensors").exists()


def test_one_that_is_cut_off_again_goes_on_again(tmp_path: Path, model: Model, whole: str) -> None:
    memory = stopped(tmp_path / "atlas", model)

    def cut(epoch: Epoch) -> None:
        if epoch.epoch == 5:
            raise CutOff

    before = memory.names["book"]
    with pytest.raises(CutOff):
        memory.resume(watch=Watch(epoch=cut))
    assert memory.names["book"] == before and len(resumable(memory.folder)) == 1
    assert memory.resume().adapter_id == whole


def test_the_command_goes_on_and_refuses_what_cannot(
    tmp_path: Path, model: Model, whole: str, lore: Lore
) -> None:
    memory = cut_off(tmp_path / "atlas", model)
    refused(lore("resume", tmp_path / "atlas", "no-such-run"), "UnknownMemory", "it has:")
    refused(lore("resume", tmp_path / "nowhere"), "UnknownMemory")
    assert lore("resume", tmp_path / "atlas", "--json").json["adapter"] == whole
    assert memory.names["book"] == whole
    refused(lore("resume", tmp_path / "atlas"), "UnknownMemory", "write the same text again")


def test_without_its_teacher_a_lesson_that_is_not_there_cannot_be_prepared(
    tmp_path: Path, model: Model
) -> None:
    memory = Memory.open(tmp_path / "atlas", model)

    def gone(prompts: object) -> list[str]:
        raise CutOff

    with pytest.raises(CutOff):
        memory.write(HANDBOOK, teacher=gone, config=WriteConfig(epochs=2))
    with pytest.raises(ConfigError, match="with it"):
        memory.resume()
