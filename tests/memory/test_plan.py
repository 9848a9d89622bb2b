"""Claims about the verb `plan`, and about the rank that a write takes when nobody says one."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.calibrations import BODIES, tiny
from support.forecasts import FORECAST

import lorewright.law.calibration as room
from lorewright.adapters.config import LoraConfig
from lorewright.cli.main import main
from lorewright.errors import ConfigError
from lorewright.files import dump_jsonl, save_json
from lorewright.knowledge.data import Fact, Knowledge
from lorewright.knowledge.lesson import LessonConfig
from lorewright.law.calibration import Calibration, find, identity, place
from lorewright.law.forecast import Load, Trial
from lorewright.law.plan import FIXED_RANK
from lorewright.memory.memory import Memory
from lorewright.models.model import Model
from lorewright.training.config import Epoch, WriteConfig
from lorewright.training.rates import suggested_lr
from lorewright.training.watch import Watch

FACTS = Knowledge(
    facts=tuple(
        Fact(f"f{i}", f"Code of {who}?", code)
        for i, (who, code) in enumerate((("red", "48"), ("blue", "7.5"), ("teal", "KX")))
    )
)
CONFIG = WriteConfig(lora=LoraConfig(rank=4), lr=1e-2, epochs=12)
ANSWERS = LessonConfig(negatives=0)


@pytest.fixture(scope="module", autouse=True)
def small_sweep() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(room, "LESSON", ANSWERS)
        patch.setattr(room, "SWEEP", BODIES)
        patch.setattr(room, "RANKS", (2, 8))
        yield


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny()


@pytest.fixture
def memory(model: Model, tmp_path: Path) -> Memory:
    return Memory.open(tmp_path / "atlas", model)


def known(model: Model, config: WriteConfig) -> None:
    """Put a calibration into the cache as if it had been measured."""
    about = identity(model, config)
    trials = [
        Trial(Load(n, n, 6 * n, 50.0 * n), rank, 30, right, 30, str(n))
        for n, right in ((10, 10), (20, 12), (40, 3))
        for rank in (1, 8)
    ]
    made = Calibration(about, tuple(trials), FORECAST, 1.0)
    save_json(made.to_json(), place(about) / "calibration.json")


def run_of(memory: Memory) -> Path:
    (run,) = (memory.folder.path / "runs").iterdir()
    return run


def test_the_first_plan_calibrates_and_the_next_does_not_unless_asked(memory: Memory) -> None:
    def plan(**how: Any) -> int:
        epochs: list[Epoch] = []
        watch = Watch(epoch=epochs.append)
        plans.append(memory.plan(FACTS, config=CONFIG, lesson=ANSWERS, watch=watch, **how))
        return len(epochs)

    plans: list[Any] = []
    assert plan() > 60 and plan() == 0 and plan(recalibrate=True) > 60
    assert find(memory.model, CONFIG) is not None
    first, second, third = (replace(p, seconds=0.0, most_seconds=0.0) for p in plans)
    assert first == second == third
    assert first.load.n_answers == 3 and first.load.n_declined == 0
    assert plans[0].seconds > 0 and not memory.folder.path.exists()


def test_a_plan_for_a_share_that_is_none_is_refused_before_anything_is_done(
    memory: Memory,
) -> None:
    def never(text: str) -> None:
        raise AssertionError(text)

    with pytest.raises(ConfigError, match="between 0 and 1"):
        memory.plan(FACTS, wanted=1.5, watch=Watch(never))


def test_a_write_plans_its_rank_where_the_base_is_calibrated(memory: Memory) -> None:
    known(memory.model, CONFIG)
    outcome = memory.write(FACTS, name="a", config=CONFIG, lesson=ANSWERS, find_rank=True)
    about = json.loads((run_of(memory) / "plan.json").read_text())
    assert about["plan"]["wanted"] == 0.99 and about["rank"] >= 8
    assert memory.adapter("a").config.rank == about["rank"]
    assert any(note.startswith("Planned: rank") for note in outcome.notes)
    card = json.loads((outcome.folder / "card.json").read_text())
    assert card["settings"]["write"]["lora"]["rank"] == about["rank"]


def test_a_write_does_not_calibrate_unasked_but_says_who_would(memory: Memory) -> None:
    steps: list[str] = []
    config = replace(CONFIG, epochs=2)
    outcome = memory.write(
        FACTS, name="a", config=config, lesson=ANSWERS, find_rank=True, watch=Watch(steps.append)
    )
    assert memory.adapter("a").config.rank == FIXED_RANK == 8
    assert any("lore plan" in note for note in outcome.notes)
    assert any("lore plan" in step for step in steps)
    assert not any("calibrating" in step for step in steps)
    assert find(memory.model, config) is None


def test_a_rank_that_was_asked_for_is_taken(memory: Memory) -> None:
    known(memory.model, CONFIG)
    memory.write(FACTS, name="a", config=replace(CONFIG, epochs=2), lesson=ANSWERS)
    assert memory.adapter("a").config.rank == 4
    assert not (run_of(memory) / "plan.json").exists()


def test_a_write_without_settings_plans(memory: Memory) -> None:
    known(memory.model, WriteConfig(lr=suggested_lr(memory.model)))
    memory.write(FACTS, name="a", lesson=ANSWERS)
    assert (run_of(memory) / "plan.json").exists()


def test_an_interrupted_write_keeps_the_rank_it_was_planned_with(memory: Memory) -> None:
    known(memory.model, CONFIG)

    def stop(epoch: Epoch) -> None:
        raise KeyboardInterrupt

    how: dict[str, Any] = {"config": CONFIG, "lesson": ANSWERS, "find_rank": True}
    with pytest.raises(KeyboardInterrupt):
        memory.write(FACTS, name="a", watch=Watch(epoch=stop), **how)
    planned = json.loads((run_of(memory) / "plan.json").read_text())["rank"]
    place(identity(memory.model, CONFIG)).joinpath("calibration.json").unlink()
    memory.write(FACTS, name="a", **how)
    assert memory.adapter("a").config.rank == planned
    assert len(list((memory.folder.path / "runs").iterdir())) == 1


# -- the command ---------------------------------------------------------------------------------


@pytest.fixture
def facts(tmp_path: Path) -> Path:
    path = tmp_path / "codes.jsonl"
    dump_jsonl(list(FACTS.facts), path)
    return path


def lore(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["lore", *map(str, arguments)])
    try:
        main()
    except SystemExit as ending:
        return int(ending.code or 0)
    return 0


def test_the_command_prints_a_plan_as_text_and_as_data(
    facts: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    base = Model.load()
    known(base, WriteConfig(lr=suggested_lr(base)))
    assert lore(monkeypatch, "plan", facts, "--recall", "0.9", "--epochs", "30", "--json") == 0
    plain = json.loads(capsys.readouterr().out)
    assert plain["wanted"] == 0.9 and plain["epochs"] == 30 and plain["engines"] == {"vllm": 8}
    assert plain["load"]["n_answers"] == 3 and plain["load"]["bits"] > 0
    assert 0 <= plain["recall"]["low"] <= plain["recall"]["value"] <= plain["recall"]["high"] <= 1
    assert 0 < plain["seconds"] <= plain["most_seconds"]
    assert lore(monkeypatch, "plan", facts, "--recall", "0.9", "--epochs", "30") == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "3 answers" in out and f"rank {plain['rank']}, 1 memory" in out and "vllm" in out
    assert "verified by the write" in out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("plan codes.jsonl --recall 1.5", "between 0 and 1"),
        ("plan codes.jsonl --target nowhere", "nowhere"),
        ("plan nothing.jsonl", "nothing.jsonl"),
        ("plan codes.jsonl --model no-such-folder", "no-such-folder"),
        ("plan codes.jsonl --epochs 0", "epochs"),
        ("write codes.jsonl --into a --rank most", "whole number such as 8, or `auto`"),
    ],
)
def test_what_cannot_be_planned_ends_in_a_sentence_and_code_2(
    words: str,
    says: str,
    facts: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(facts.parent)
    assert lore(monkeypatch, *words.split()) == 2
    assert says in " ".join(capsys.readouterr().err.split())
