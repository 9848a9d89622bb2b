"""Claims about what a base knew of the world: every verdict says what is left of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from support.families import llama
from support.models import letters

from lorewright.adapters.config import LoraConfig
from lorewright.knowledge.data import REHEARSAL, Example, Fact, Knowledge
from lorewright.knowledge.general import general_questions
from lorewright.knowledge.lesson import LessonConfig
from lorewright.memory.memory import Memory
from lorewright.models.model import Model
from lorewright.recall.verify import RETAINED
from lorewright.training.config import WriteConfig, Written
from lorewright.training.loop import write
from lorewright.training.watch import Watch

N_KNOWN = 2
CONFIG = WriteConfig(lora=LoraConfig(rank=4), lr=5e-3, epochs=80)


@pytest.fixture(scope="module")
def model() -> Model:
    """A tiny base that knows the first questions of each half by its own weights."""
    network = llama(max_position_embeddings=192)
    network.lm_head.weight.data.mul_(40)
    model = Model(network, letters(), "tiny")
    known = [q for half in ("rehearsed", "held") for q in general_questions(half)[:N_KNOWN]]
    examples = [Example(each.question, each.answers[0]) for each in known]
    done = write(model, examples, WriteConfig(lora=LoraConfig(rank=8), lr=1e-2, epochs=200))
    assert done.complete
    for name in done.adapter.modules:
        A, B = (done.adapter.tensors[f"{name}.lora_{half}.weight"] for half in "AB")
        weight = network.get_submodule(name).weight
        with torch.no_grad():
            weight += (done.adapter.config.scale * B @ A).to(weight.dtype)
    return Model(network, letters(), "tiny")


def knowledge(colour: str, code: str) -> Knowledge:
    return Knowledge(
        facts=(Fact(colour, f"Code of {colour}?", code, (), (f"Which code has {colour}?",)),)
    )


def test_a_merge_shows_what_is_retained_of_each_source_and_counts_it_once(
    model: Model, tmp_path: Path
) -> None:
    memory = Memory.open(tmp_path / "atlas", model)
    steps: list[str] = []
    for colour, code in (("red", "48"), ("blue", "KX")):
        memory.write(
            knowledge(colour, code), name=colour, config=CONFIG, lesson=LessonConfig(rehearse=2)
        )
    merged = memory.merge(["red", "blue"], into="both", watch=Watch(step=steps.append))
    n = merged.parts[0].report.proportion("base", RETAINED).n
    assert n >= N_KNOWN
    for part in merged.parts:
        for arm in ("alone", "merged", "base"):
            assert part.report.proportion(arm, RETAINED).n == n
        assert part.report.proportion("base", RETAINED).mean == 1
        assert RETAINED in part.to_json()["lost"]
    together = [part.report.proportion("merged", RETAINED) for part in merged.parts]
    assert together[0] == together[1], "one memory was asked"
    assert steps.count("asking: retained") == 3
    card = json.loads((merged.folder / "card.json").read_text(encoding="utf-8"))
    assert card["report"]["recall"][RETAINED]["memory"]["n"] == n


@pytest.mark.parametrize("method", ["refine", "rewrite"])
def test_a_merge_that_trains_goes_over_what_its_sources_rehearsed(
    method: str, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = Memory.open(tmp_path / "atlas", model)
    for colour, code in (("red", "48"), ("blue", "KX")):
        memory.write(
            knowledge(colour, code), name=colour, config=CONFIG, lesson=LessonConfig(rehearse=2)
        )
    trained: list[Sequence[Example]] = []

    def noting(base: Model, examples: Sequence[Example], *args: Any, **options: Any) -> Written:
        trained.append(examples)
        return write(base, examples, *args, **options)

    monkeypatch.setattr("lorewright.merging.methods.loop.write", noting)
    memory.merge(["red", "blue"], into="both", method=method)
    own = [memory.folder.lesson(memory.folder.entry(name)) for name in ("red", "blue")]
    rehearsed = {example.prompt for lesson in own for example in lesson.rehearsal}
    assert len(rehearsed) >= N_KNOWN
    assert rehearsed <= {example.prompt for example in trained[-1] if example.kind == REHEARSAL}
