"""Claims about what a base knows: its own right replies, computed once; nothing for some bases."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.families import llama
from support.models import letters

from lorewright.adapters.adapter import Adapter
from lorewright.adapters.config import LoraConfig
from lorewright.errors import DataError
from lorewright.knowledge.data import Example, Fact, Knowledge, Probe
from lorewright.knowledge.general import general_questions
from lorewright.knowledge.lesson import LessonConfig
from lorewright.memory.write import lesson_for
from lorewright.models.general import CHUNK, Known, known_to, replies_to, whole_answer
from lorewright.models.model import Model
from lorewright.recall.statistics import wilson
from lorewright.recall.verify import RETAINED, verify
from lorewright.training.config import WriteConfig
from lorewright.training.loop import write
from lorewright.training.watch import Watch

N_KNOWN = 2


@pytest.fixture(scope="module")
def plain() -> Model:
    network = llama(max_position_embeddings=192)
    network.lm_head.weight.data.mul_(40)
    return Model(network, letters(), "tiny")


@pytest.fixture(scope="module")
def learned(plain: Model) -> Adapter:
    """Knows the first questions of each half."""
    known = [q for half in ("rehearsed", "held") for q in general_questions(half)[:N_KNOWN]]
    examples = [Example(each.question, each.answers[0]) for each in known]
    config = WriteConfig(lora=LoraConfig(rank=8), lr=1e-2, epochs=200)
    done = write(plain, examples, config)
    assert done.complete
    return done.adapter


@pytest.fixture
def informed(plain: Model, learned: Adapter) -> Iterator[Model]:
    """A base that knows something: the adapter is on all the while."""
    with plain.using(learned):
        yield plain


def test_what_a_base_knows_is_what_it_answers_right_in_a_fixed_order(informed: Model) -> None:
    known = known_to(informed, "held", 99)
    first = general_questions("held")[:N_KNOWN]
    assert [each.question for each in known[:N_KNOWN]] == [each.question for each in first]
    assert all(each.reply in each.answers for each in known[:N_KNOWN])
    assert known_to(informed, "held", 1) == known[:1]
    avoiding = known_to(informed, "held", 99, texts=[first[0].question])
    assert [k.question for k in avoiding] == [k.question for k in known[1:]]
    assert known_to(informed, "held", 0) == []


@pytest.mark.parametrize(
    ("reply", "learnt"),
    [
        ("The capital is Oslo.", "The capital is Oslo."),
        ("Well, yes. It is Oslo. It lies by the sea and has", "Well, yes. It is Oslo."),
        ("The capital of Norway is Oslo, which has been", ""),
        ("It is Bergen.", ""),
        ("Oslo", "Oslo"),
    ],
)
def test_what_was_cut_off_is_not_rehearsed(reply: str, learnt: str) -> None:
    assert whole_answer(reply, ("Oslo",)) == learnt


def test_replies_are_computed_once_for_a_base(informed: Model, own_cache: Path) -> None:
    questions = [each.question for each in general_questions("held")[:3]]
    replies = replies_to(informed, questions)
    (stored,) = (own_cache / "lorewright" / "general").iterdir()
    content = stored.read_bytes()
    assert replies_to(informed, questions[::-1]) == replies[::-1]
    assert stored.read_bytes() == content and len(content.splitlines()) == 3


def test_a_base_that_answers_none_of_the_first_knows_nothing(own_cache: Path) -> None:
    model = Model(llama(max_position_embeddings=192), letters(), "other")
    assert known_to(model, "held", 40) == []
    (stored,) = (own_cache / "lorewright" / "general").iterdir()
    assert len(stored.read_bytes().splitlines()) <= CHUNK


def test_a_base_with_a_short_context_is_passed_over() -> None:
    model = Model(llama(max_position_embeddings=24), letters(), "short")
    with pytest.raises(DataError):
        model.generate([general_questions("held")[0].question])
    assert known_to(model, "held", 40) == []


def test_the_embedded_base_is_not_asked(own_cache: Path) -> None:
    assert known_to(Model.load("pocket"), "held", 40) == []
    assert not (own_cache / "lorewright" / "general").exists()


def test_a_lesson_rehearses_what_the_base_knows_in_place_of_unrelated_questions(
    informed: Model,
) -> None:
    knowledge = Knowledge(facts=(Fact("a", "Code of red?", "48"), Fact("b", "Code of blue?", "7")))
    made = lesson_for(informed, knowledge, LessonConfig(rehearse=3), watch=Watch())
    known = known_to(informed, "rehearsed", len(general_questions("rehearsed")))
    rehearsed = [(e.prompt, e.completion) for e in made.rehearsal]
    assert len(rehearsed) == min(3, len(known))
    assert {*rehearsed} <= {(each.question, each.reply) for each in known}
    assert not any(probe.kind == "neighborhood" for probe in made.probes)
    held = {each.question for each in general_questions("held")}
    assert not held & {e.prompt for e in (*made.examples, *made.rehearsal)}
    without = lesson_for(informed, knowledge, LessonConfig(rehearse=0), watch=Watch())
    assert not without.rehearsal


def test_a_verdict_shows_what_is_retained(plain: Model, learned: Adapter) -> None:
    general = [
        Known(each.question, each.answers, each.answers[0])
        for each in general_questions("held")[: N_KNOWN + 1]
    ]
    probes = [Probe("p", "Code of red?", ("impossible answer",), "paraphrase")]
    report = verify(plain, probes, adapter=learned, general=general)
    rows = [row for row in report.arms["memory"] if row.kind == RETAINED]
    assert [row.question for row in rows] == [each.question for each in general]
    assert report.retained == wilson(N_KNOWN, N_KNOWN + 1)
    assert report.proportion("base", RETAINED).mean == 1
    assert report.to_json()["recall"][RETAINED].keys() == {"memory", "base"}
    assert report.recalls is False, "what the base knew is no recall"
    assert RETAINED not in verify(plain, probes, adapter=None, general=general).kinds
