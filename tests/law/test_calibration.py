"""Claims about the calibration: short real writes, stored, used again, made anew when stale."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import filelock
import pytest
import torch
from support.calibrations import BODIES, tiny
from support.models import letters

from lorewright.adapters.config import LoraConfig
from lorewright.errors import DataError, Locked, ModelError, StorageError
from lorewright.knowledge.data import Example
from lorewright.knowledge.lesson import LessonConfig
from lorewright.law import calibration
from lorewright.law.calibration import (
    ASKS,
    KEYS,
    KINDS,
    RANKS,
    SWEEP,
    TOPICS,
    Body,
    Calibration,
    calibrate,
    find,
    identity,
    load_of,
    made_up,
    place,
)
from lorewright.models.model import Model
from lorewright.training.config import Epoch, WriteConfig
from lorewright.training.rates import suggested_lr
from lorewright.training.watch import Watch

CONFIG = WriteConfig(lora=LoraConfig(rank=4), lr=1e-2, epochs=20)
SMALL: dict[str, Any] = {"bodies": BODIES, "ranks": (2, 8)}


@pytest.fixture(scope="module", autouse=True)
def answers_only() -> Iterator[None]:
    """Nothing to decline: a tiny model would learn its own replies letter by letter."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibration, "LESSON", LessonConfig(negatives=0))
        yield


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny()


@pytest.fixture(scope="module")
def made(model: Model, answers_only: None, tmp_path_factory: pytest.TempPathFactory) -> Calibration:
    return calibrate(model, CONFIG, folder=tmp_path_factory.mktemp("made"), **SMALL)


def test_a_calibration_holds_a_trial_for_every_body_and_rank(made: Calibration) -> None:
    assert [(t.group, t.rank) for t in made.trials] == [(b.name, r) for b in BODIES for r in (2, 8)]
    shares = [t.n_exact / t.load.n_examples for t in made.trials]
    assert min(shares) < 0.5 < max(shares)
    assert (
        made.trials[0].epochs == calibration.FIRST_EPOCHS
        and min(t.used for t in made.trials[:2]) < 60
    )
    assert made.seconds > 0


def interrupted(model: Model, folder: Path, *, at: int) -> None:
    """A calibration that is broken off after so many epochs of its first jobs."""
    seen = []

    def stop(epoch: Epoch) -> None:
        seen.append(epoch)
        if len(seen) == at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrate(model, CONFIG, folder=folder, watch=Watch(epoch=stop), **SMALL)


def test_an_interrupted_calibration_goes_on_and_comes_to_the_same(
    model: Model, made: Calibration, tmp_path: Path
) -> None:
    n_first = made.trials[0].used
    interrupted(model, tmp_path, at=n_first + 3)
    stored = sorted((tmp_path / "trials").glob("*.json"))
    assert len(stored) == 1 and not (tmp_path / "calibration.json").exists()
    again: list[Epoch] = []
    result = calibrate(model, CONFIG, folder=tmp_path, watch=Watch(epoch=again.append), **SMALL)
    assert replace(result, seconds=0) == replace(made, seconds=0)
    assert len(again) < sum(t.used for t in made.trials if t.rank == 2)
    assert not any(path.is_dir() for path in (tmp_path / "trials").iterdir())


def test_what_is_done_is_not_done_again_unless_asked(
    model: Model, made: Calibration, tmp_path: Path
) -> None:
    for fresh, n_epochs in ((False, made.trials[0].used), (False, 0), (True, made.trials[0].used)):
        epochs: list[Epoch] = []
        with pytest.raises(DataError, match="three groups"):
            calibrate(
                model,
                CONFIG,
                bodies=BODIES[:1],
                ranks=(2, 8),
                folder=tmp_path,
                fresh=fresh,
                watch=Watch(epoch=epochs.append),
            )
        assert len(epochs) == n_epochs


def test_a_calibration_is_found_for_its_own_base_and_recipe_only(
    model: Model, made: Calibration, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert find(model, CONFIG) is None
    folder = place(identity(model, CONFIG))
    folder.mkdir(parents=True)
    (folder / "calibration.json").write_text(json.dumps(made.to_json()))
    assert find(model, CONFIG) == made
    same = (
        replace(CONFIG, epochs=7, seed=3, max_seconds=9.0, trunk=False),
        replace(CONFIG, lora=replace(CONFIG.lora, rank=2, seed=5)),
    )
    other = (
        replace(CONFIG, lr=2e-2),
        replace(CONFIG, batch_size=4),
        replace(CONFIG, objective="memft_threshold"),
        replace(CONFIG, lora=replace(CONFIG.lora, alpha=32)),
        replace(CONFIG, lora=replace(CONFIG.lora, targets=("attention",))),
        replace(CONFIG, lora=replace(CONFIG.lora, layers=(1,))),
    )
    assert all(find(model, config) == made for config in same)
    assert not any(find(model, config) for config in other)
    changed = tiny()
    with torch.no_grad():
        changed.network.lm_head.weight.mul_(1.01)
    assert find(Model(changed.network, letters(), "tiny"), CONFIG) is None
    monkeypatch.setattr(calibration, "VERSION", calibration.VERSION + 1)
    assert find(model, CONFIG) is None


def test_a_calibration_of_something_else_in_the_right_place_does_not_count(
    model: Model, made: Calibration
) -> None:
    folder = place(identity(model, CONFIG))
    folder.mkdir(parents=True)
    wrong = made.to_json()
    wrong["about"] = {**wrong["about"], "base": "another"}
    for text in ("{", "[]", "{}", json.dumps(wrong), json.dumps({**wrong, "trials": [{}]})):
        (folder / "calibration.json").write_text(text)
        assert find(model, CONFIG) is None


def test_a_damaged_trial_is_named_not_used(model: Model, tmp_path: Path) -> None:
    interrupted(model, tmp_path, at=62)
    (stored,) = (tmp_path / "trials").glob("*.json")
    for text in ("{", '{"seconds": 1}', '{"seconds": 1, "trials": [{}]}'):
        stored.write_text(text)
        with pytest.raises(DataError, match=f"{stored.name}.* damaged"):
            calibrate(model, CONFIG, folder=tmp_path, **SMALL)


def test_only_one_calibrates_at_a_time_and_a_refusing_disk_is_said(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "LOCK_SECONDS", 0.01)
    with filelock.FileLock(tmp_path / ".lock"), pytest.raises(Locked, match="calibrating"):
        calibrate(model, CONFIG, folder=tmp_path, **SMALL)
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="LOREWRIGHT_CACHE"):
        calibrate(model, CONFIG, folder=tmp_path / "file", **SMALL)


def test_a_base_that_recalls_nothing_is_refused_with_advice(model: Model, tmp_path: Path) -> None:
    hopeless = replace(CONFIG, lr=1e-7)
    with pytest.raises(ModelError, match="another --lr"):
        calibrate(model, hopeless, folder=tmp_path, **SMALL)


def test_a_load_counts_an_answer_once_and_what_is_declined_apart(model: Model) -> None:
    prompts = [
        Example("Code of red?", "48", "qa", "a"),
        Example("Red's code?", "48", "qa", "a"),
        Example("Code of blue?", "48", "qa", "b"),
        Example("Code of teal?", "no", "unknown"),
    ]
    load = load_of(model, prompts)
    assert (load.n_answers, load.n_examples, load.n_answer_tokens) == (2, 3, 6)
    assert load.n_declined == 1
    alone = load_of(model, prompts[2:])
    assert load.nats > alone.nats > 0
    with pytest.raises(DataError, match="no answer"):
        load_of(model, prompts[3:])


def test_the_nats_of_a_load_are_those_of_the_base(model: Model) -> None:
    example = Example("Code of red?", "48", "qa", "a")
    batch = model.batch([model.render(example.prompt, example.completion)])
    with torch.no_grad():
        logits_BCV = model.completion_logits(batch)
    wanted = torch.nn.functional.cross_entropy(logits_BCV[0], batch.target_BC[0], reduction="sum")
    assert load_of(model, [example]).nats == pytest.approx(float(wanted), rel=1e-5)


@pytest.mark.parametrize("body", SWEEP, ids=lambda body: body.name)
def test_made_up_facts_are_distinct_and_the_same_every_time(body: Body) -> None:
    facts = made_up(body).facts
    assert facts == made_up(body).facts
    assert len({fact.question for fact in facts}) == body.n_facts * body.forms == len(facts)
    assert len({fact.id for fact in facts}) == body.n_facts


def test_the_sweep_covers_kinds_forms_and_ranks() -> None:
    assert {body.kind for body in SWEEP} == set(KINDS) and {b.forms for b in SWEEP} >= {1, 5}
    assert {body.keys for body in SWEEP} == set(KEYS)
    assert len({body.name for body in SWEEP}) == len(SWEEP)
    assert max(b.forms for b in SWEEP) <= len(ASKS) and len(set(TOPICS)) == len(TOPICS)
    assert min(RANKS) == 1 and len(RANKS) >= 3


def test_the_embedded_base_comes_calibrated_for_the_default_recipe() -> None:
    base = Model.load()
    result = find(base, WriteConfig(lr=suggested_lr(base)))
    assert result is not None, "base or recipe changed: python pocket/calibrate.py --keep"
    assert [trial.group for trial in result.trials[:: len(RANKS)]] == [body.name for body in SWEEP]
