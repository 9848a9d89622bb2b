"""Claims about the data of kits, and about their training: resumed as uninterrupted, examined."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch

from lorewright.errors import ConfigError, ModelError
from lorewright.files import load_jsonl
from lorewright.kits import world
from lorewright.kits.config import TrainConfig
from lorewright.kits.examine import NEUTRAL, examined, on_card, permuted, sources_of
from lorewright.kits.stream import TEST_DOCUMENTS, is_reserved, lesson, lessons, reserved
from lorewright.kits.train import Training, train, trained
from lorewright.knowledge.scoring import normalise
from lorewright.models.model import Model
from lorewright.training.watch import Watch
from lorewright.writers import kit as kits
from lorewright.writers.methods import LEARNED

BRIEF = TrainConfig(steps=4, questions=4, facts=2, master=0.01)


@pytest.fixture(scope="module")
def pocket() -> Model:
    return Model.load("pocket")


def test_training_shares_no_value_no_subject_and_no_question_form_with_the_tests() -> None:
    rows = load_jsonl(TEST_DOCUMENTS)
    answers = {normalise(f["answer"]) for row in rows for f in row["facts"]}
    assert answers == reserved() and len(answers) > 300
    tested = " ".join(f" {normalise(row['text'])} " for row in rows)
    held = {form.format(s="", r="", v="").strip(" ?.'s") for form in world.HELD_ASK}
    for step in range(40):
        for each in lessons(0, step, 4, 4):
            for question, answer in each.answered:
                assert normalise(answer) not in answers
                assert not any(part and part in question for part in held)
    rng = random.Random(0)
    items = world.statements(rng, 300)
    assert any(map(is_reserved, items)), "without the filter the two would meet"
    clean = [item for item in items if not is_reserved(item)]
    assert not any(f" {normalise(item.subject)} " in tested for item in clean)


def test_a_steps_documents_depend_on_seed_and_step_alone() -> None:
    assert lessons(1, 7, 3, 4) == lessons(1, 7, 3, 4)
    assert lessons(1, 7, 3, 4) != lessons(1, 8, 3, 4) != lessons(2, 8, 3, 4)


def test_a_document_states_its_facts_and_not_what_is_declined() -> None:
    rng = random.Random(3)
    for _ in range(30):
        each = lesson(rng, 3)
        knowledge = each.knowledge
        text = " ".join([d.text for d in knowledge.documents] + [f.answer for f in knowledge.facts])
        assert len(each.answered) == 3 and all(answer in text for _, answer in each.answered)
        assert len(each.declined) == 1 and each.declined[0] not in dict(each.answered)


@pytest.mark.parametrize("name", LEARNED)
def test_an_interrupted_training_goes_on_to_the_same_kit(
    pocket: Model, name: str, tmp_path: Path
) -> None:
    whole = train(pocket, LEARNED[name], BRIEF)
    first = Training(pocket, LEARNED[name], BRIEF, {}, tmp_path)
    for _ in range(2):
        first.step()
    first.save()
    rest = train(pocket, LEARNED[name], BRIEF, run=tmp_path)
    assert rest.id == whole.id and rest.about["steps"] == 4
    start = Training(pocket, LEARNED[name], BRIEF, {}, None).kit()
    assert start.id != whole.id


def test_a_checkpoint_of_other_settings_is_refused(pocket: Model, tmp_path: Path) -> None:
    training = Training(pocket, LEARNED["delta"], BRIEF, {}, tmp_path)
    training.save()
    with pytest.raises(ModelError, match="a training with other settings"):
        Training(pocket, LEARNED["delta"], BRIEF, {"size": 4}, tmp_path)


def test_settings_that_cannot_be_are_refused(pocket: Model) -> None:
    with pytest.raises(ConfigError, match="option 'width' is unknown to method 'delta'"):
        Training(pocket, LEARNED["delta"], BRIEF, {"width": 4}, None)
    with pytest.raises(ConfigError, match="steps must be a whole number from 1"):
        TrainConfig(steps=0)
    with pytest.raises(ConfigError, match="lr 0"):
        TrainConfig(lr=0)


def test_controls_have_the_same_questions_and_other_answers() -> None:
    (source, *_) = sources_of(4, 2)
    moved = permuted(source, "x")
    before, after = source.knowledge.facts, moved.facts
    assert [f.question for f in after] == [f.question for f in before]
    assert sorted(f.answer for f in after) == sorted(f.answer for f in before)
    assert [f.answer for f in after] != [f.answer for f in before]
    assert NEUTRAL.documents and all(q not in str(NEUTRAL) for q in source.questions)


@pytest.mark.slow
def test_a_kit_is_trained_examined_and_stored_with_its_card(
    pocket: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOREWRIGHT_CACHE", str(tmp_path))
    phases: set[str] = set()
    watch = Watch(advance=lambda phase, done, total, note: phases.add(phase))
    path, kit = trained(
        pocket,
        "in-place-kit",
        BRIEF,
        n_documents=2,
        reopen=lambda: Model.load("pocket"),
        watch=watch,
    )
    assert phases == {"training", "writing", "asking"}
    assert kits.find(pocket, "in-place-kit").id == kit.id and path.parent == tmp_path / "kits"
    card = json.loads(json.dumps(kits.load(path).card()))
    assert card["base_digest"] == pocket.digest and card["training"]["seed"] == 0
    assert card["steps"] == 4 and card["seconds"] > 0
    arms = {(row["n_facts"], row["arm"]) for row in card["recalls"]}
    assert len(arms) == 19, "four sizes, five arms, and nothing to permute in one fact"
    assert all(0 <= row["low"] <= row["recall"] <= row["high"] <= 1 for row in card["recalls"])


def test_examining_an_untrained_kit_recalls_nothing(pocket: Model) -> None:
    kit = Training(pocket, LEARNED["delta"], BRIEF, {}, None).kit()
    rows = on_card(examined(pocket, kit, lambda: Model.load("pocket"), n_documents=2, sizes=(1,)))
    assert {row["arm"]: row["recall"] for row in rows} == dict.fromkeys(
        ("own", "other", "blank", "untrained"), 0.0
    )
    assert torch.is_grad_enabled()
