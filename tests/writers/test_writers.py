"""Claims about every writer and every kind of state, the built-in ones and one from outside."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from support import steering
from support.kits import random_kit
from support.models import an_adapter
from support.writes import CONFIG, EXAMPLES, logits, tiny

from lorewright.adapters import adapter as adapters
from lorewright.adapters.config import LoraConfig
from lorewright.errors import AdapterError, ConfigError, ModelError, NoEffect, WrongBase
from lorewright.knowledge.data import Document, Knowledge
from lorewright.models.model import Model
from lorewright.training.config import Epoch, WriteConfig
from lorewright.training.watch import Watch
from lorewright.writers.adapter import AdapterState
from lorewright.writers.kit import cached_path
from lorewright.writers.methods import LEARNED, STATES, WRITERS, load_state, writer_of
from lorewright.writers.tensors import CARD_FILE
from lorewright.writers.writer import Cost, Material, State, Writer, prove

MATERIAL = Material(Knowledge((Document("codes", "Red is 48. Blue is 7.5."),)), EXAMPLES[:1])

LR = {"full": 1e-3, "in-place": 1e-4, "prefix": 0.1, "ia3": 0.1}
"""Rates for so small a base, where they are not the adapter's."""
UNPROMPTED = ("prompt",)
"""A random network can be trained by what is inside it; no embeddings before a row move it far."""


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny()


@pytest.fixture(scope="module")
def cache(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's cache with a kit of this base for every method that needs one."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOREWRIGHT_CACHE", str(folder))
        for name in LEARNED:
            random_kit(model, name).save(cached_path(name, model.digest))
    return folder


@pytest.fixture(autouse=True)
def outside(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    """Kits in the cache, and one writer and one kind of state beside the built-in ones."""
    monkeypatch.setenv("LOREWRIGHT_CACHE", str(cache))
    monkeypatch.setitem(WRITERS, "steering", lambda config: steering.Steering())
    monkeypatch.setitem(STATES, "steering", steering.load)


def written(model: Model, name: str, watch: Watch | None = None) -> tuple[Writer, State, Cost]:
    lora = CONFIG.lora if WRITERS[name](WriteConfig()).exports else LoraConfig()
    writer = writer_of(name, replace(CONFIG, lr=LR.get(name, CONFIG.lr), lora=lora))
    state, cost = writer.write(model, MATERIAL, seed=0, run=None, watch=watch or Watch())
    return writer, state, cost


@pytest.mark.parametrize("name", [*WRITERS, "steering"])
def test_what_a_writer_leaves_is_stored_read_and_answers(
    model: Model, name: str, tmp_path: Path
) -> None:
    before = logits(model)
    writer, state, cost = written(model, name)
    assert writer.name == name and state.kind == writer.leaves
    assert torch.equal(logits(model), before), "the base is as it was"
    assert state.save(tmp_path / "state", {"about": "codes"}) == state.id
    again = load_state(tmp_path / "state")
    assert (again.kind, again.id, again.base_digest) == (state.kind, state.id, model.digest)
    assert json.loads((tmp_path / "state" / "card.json").read_text())["about"] == "codes"
    with state.on(model):
        wanted = logits(model)
    with again.on(model):
        assert torch.equal(logits(model), wanted) and not torch.equal(wanted, before)
        if writer.reads == "lesson" and name not in UNPROMPTED:
            assert model.generate([EXAMPLES[0].prompt]) == [EXAMPLES[0].completion]
    assert torch.equal(logits(model), before)
    assert 0 < state.size_bytes <= sum(p.stat().st_size for p in (tmp_path / "state").iterdir())
    n_examples = 1 if writer.reads == "lesson" else 0
    assert cost.reason and cost.engine and cost.n_examples == n_examples and cost.n_tokens > 10
    assert prove(again, model, EXAMPLES[0].prompt, EXAMPLES[0].completion) > 0


@pytest.mark.parametrize("name", [*WRITERS, "steering"])
def test_a_writer_reports_progress_and_what_it_is(model: Model, name: str) -> None:
    steps: list[str] = []
    writer, _, _ = written(model, name, Watch(step=steps.append))
    assert steps
    assert writer.reads in ("text", "lesson")
    assert {type(x) for x in (writer.needs_context, writer.exports, writer.streams)} == {bool}
    assert writer.trains and writer.leaves in STATES
    assert writer.exports is (writer.leaves == AdapterState.kind)


def test_the_gradient_writer_goes_by_its_settings_and_seed(model: Model) -> None:
    epochs: list[Epoch] = []
    brief = writer_of("gradient", replace(CONFIG, epochs=2, batch_size=1))
    material = replace(MATERIAL, examples=EXAMPLES)
    result = [
        brief.write(model, material, seed=seed, run=None, watch=Watch(epoch=epochs.append))
        for seed in (0, 0, 1)
    ]
    ids = [state.id for state, _ in result]
    assert ids[0] == ids[1] != ids[2]
    cost = result[0][1]
    assert (cost.reason, cost.n_epochs, cost.n_examples, len(epochs)) == ("budget", 2, 4, 6)
    assert set(cost.last) == {field.name for field in fields(Epoch)}


def test_distilling_reads_the_source_itself(model: Model) -> None:
    writer = writer_of("gradient", replace(CONFIG, objective="distill", epochs=2))
    _, cost = writer.write(model, MATERIAL, seed=0, run=None, watch=Watch())
    assert cost.n_epochs == 2


def zero(model: Model) -> State:
    drawn = an_adapter(model)
    return AdapterState(replace(drawn, tensors={k: t * 0 for k, t in drawn.tensors.items()}))


def nothing(model: Model) -> State:
    return steering.Steered(torch.zeros(100, 32), model.digest)


@pytest.mark.parametrize("made", [zero, nothing])
def test_a_state_that_changes_nothing_is_no_proof(
    model: Model, made: Callable[[Model], State]
) -> None:
    with pytest.raises(NoEffect, match="zero"):
        prove(made(model), model, "Code of red?", "48")


def test_a_state_of_another_base_is_refused(model: Model) -> None:
    other = AdapterState(an_adapter(model, base_digest="0" * 64))
    with pytest.raises(WrongBase, match="Load that base"):
        prove(other, model, "Code of red?", "48")


class Leaking(steering.Steered):
    """Does not undo itself."""

    def on(self, model: Model):  # type: ignore[no-untyped-def]
        model.network.get_output_embeddings().weight.data.mul_(1.5)
        return super().on(model)


def test_a_state_that_leaks_into_the_base_is_refused() -> None:
    model = tiny()
    with pytest.raises(ModelError, match="changed the base for good"):
        prove(Leaking(torch.ones(100, 32), model.digest), model, "Code of red?", "48")


def test_an_unknown_method_or_kind_is_refused_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"method 'magic' is unknown; use one of .*gradient, .*stee"
    ):
        writer_of("magic", WriteConfig())
    (tmp_path / CARD_FILE).write_text(json.dumps({"kind": "spell"}))
    with pytest.raises(AdapterError, match=r"'spell'; this version reads adapter, .*steering"):
        load_state(tmp_path)


def test_a_folder_without_a_kind_is_an_adapter(model: Model, tmp_path: Path) -> None:
    identity = adapters.save(an_adapter(model), tmp_path / "a")
    assert load_state(tmp_path / "a").id == identity
    with pytest.raises(AdapterError, match="is not an adapter"):
        load_state(tmp_path / "missing")
