"""Claims about characters that a base cannot write."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lorewright.knowledge.data import Document, Fact, Knowledge
from lorewright.knowledge.lesson import LessonConfig
from lorewright.knowledge.negatives import DECLINE
from lorewright.memory.write import lesson_for, writable_share
from lorewright.models.alphabet import indistinct, unwritable
from lorewright.models.model import Model
from lorewright.recall.diagnose import diagnose
from lorewright.recall.evidence import Evidence
from lorewright.training.watch import Watch


@pytest.fixture(scope="module")
def model() -> Model:
    return Model.load()


@pytest.mark.parametrize(
    ("text", "lost"),
    [
        ("René Gräf", "éä"),
        ("$20", "$"),
        ("15%", "%"),
        ("https://a.example/?v=2&lang=en", "&"),
        ("田中", "田中"),
        ("Gannet's quay, no. 4-B (north): KX-41", ""),
        ("O’Hara – “the quay” … ", ""),
    ],
)
def test_pocket_writes_its_own_alphabet_and_straight_marks(
    model: Model, text: str, lost: str
) -> None:
    assert unwritable(model, [text]) == [lost]


def test_typographic_marks_are_read_as_straight_ones(model: Model) -> None:
    curly, straight = "Who’s at O‘Hara – now…?", "Who's at O'Hara - now...?"
    assert model.render(curly, curly) == model.render(straight, straight)


def test_alike_are_the_tokens_whose_output_vectors_have_one_direction(model: Model) -> None:
    weight_VD = model.network.get_output_embeddings().weight
    unit_VD = torch.nn.functional.normalize(weight_VD.detach(), dim=1)
    near = indistinct(model, range(len(unit_VD)))
    (one, *_) = sorted(near)
    assert 200 < len(near) < len(unit_VD) // 4
    assert sorted((unit_VD @ unit_VD[one]).tolist())[-2] > 0.99
    assert indistinct(model, []) == set()


def test_a_write_names_what_cannot_be_recalled_before_it_trains(model: Model) -> None:
    facts = (Fact("a", "Who is the head?", "René Gräf"), Fact("b", "Who pays?", "Ada"))
    known = Knowledge((Document("page", "The price of the Cliff Bakery is $20."),), facts)
    steps: list[str] = []
    watch = Watch(step=steps.append)
    made = lesson_for(model, known, LessonConfig(views=("given",)), watch=watch)
    answers, sentences = made.notes[:2]
    assert "1 of 2 answers" in answers and "'René Gräf' (Who is the head?)" in answers
    assert "1 of 1 sentences" in sentences and "($)" in sentences
    assert steps[-2:] == [answers, sentences]
    assert writable_share(model, made) == 1 / 2, "of the two answers"
    table = "| item | price |\n|---|---|\n| small barge | 14 crowns |\n| tug | $9 |\n"
    page = Knowledge((Document("page", table),), facts)
    _, in_rows = lesson_for(model, page, LessonConfig(views=("given",)), watch=watch).notes[:2]
    assert "1 of 2 sentences have characters that 'pocket' cannot write ($)" in in_rows
    unasked = replace(made, n_sentences=2, uncovered=("It costs $20.", "It is open."))
    assert writable_share(model, unasked) == pytest.approx(1 / 3)


def test_questions_about_what_cannot_be_written_are_declined(model: Model) -> None:
    text = "The price of the Cliff Bakery is $20. The price of the Pine Bakery is 14 crowns."
    fact = Fact("a", "Who is the head?", "René Gräf")
    known = Knowledge((Document("page", text),), (fact,))
    made = lesson_for(model, known, LessonConfig(), watch=Watch())
    learnt = {e.prompt: e.completion for e in made.examples}
    for question in ("What is the price of the Cliff Bakery?", fact.question):
        assert learnt[question] == DECLINE, "a neighbour's answer would be given"
    assert learnt["What is the price of the Pine Bakery?"] == "14 crowns"
    assert [p.answers for p in made.probes if p.source == "a"] == [("René Gräf",)], "not recalled"


def test_the_doctor_names_it_and_advises_no_longer_training() -> None:
    evidence = Evidence("a", "pocket", answered=(False, True), unwritable={"$20": "$"}, moved=1.0)
    (finding,) = diagnose(evidence).findings
    assert finding.check == "unwritable" and "'$20'" in finding.measured
    assert "--model" in finding.remedy and "--epochs" not in finding.remedy
