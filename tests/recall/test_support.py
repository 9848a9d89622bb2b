"""Claims about support: which replies a trained question stands behind, and what is withheld."""

from __future__ import annotations

from copy import copy
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.atlases import known, lesson_of, put
from support.encoders import HASHING

from lorewright.adapters.config import LoraConfig
from lorewright.errors import ConfigError
from lorewright.knowledge.data import Example, trained_pairs
from lorewright.knowledge.negatives import DECLINE
from lorewright.memory.ask import ask, ask_as
from lorewright.memory.opened import OpenFolder
from lorewright.memory.verify import verify
from lorewright.models.model import Model
from lorewright.recall.support import (
    by_encoder,
    geometric_mean,
    nearness,
    probabilities,
    second_replies,
    weigh,
)
from lorewright.recall.verify import MEMORY, SUPPORTED
from lorewright.reports.results import recall_table
from lorewright.routing.ask import Reply, agreed, best
from lorewright.routing.config import AskConfig
from lorewright.training.config import WriteConfig
from lorewright.training.loop import write
from lorewright.training.rates import suggested_lr

PAIRS = [("Who leads the Tide Office?", "Maren Oskold"), ("What opens the Sail Loft?", "KX-41")]


def test_a_reply_is_supported_by_questions_with_its_answer_and_by_no_others() -> None:
    near = {PAIRS[0][0]: 0.9, PAIRS[1][0]: 0.4}
    for text in ("Maren Oskold", "It is Maren Oskold.", "Oskold"):
        assert nearness(text, near, PAIRS) == 0.9, "the whole answer, or a part of it"
    assert nearness("KX-41", near, PAIRS) == pytest.approx(0.4 * 0.4 / 0.9), "another is nearer"
    assert not any(nearness(text, near, PAIRS) for text in ("KX-4", "teal", ""))


@given(st.dictionaries(st.text(min_size=1), st.floats(0, 1), min_size=1), st.text())
def test_nearness_is_one_that_there_is_or_none(near: dict[str, float], reply: str) -> None:
    value = nearness(reply, near, [(question, "teal") for question in near])
    assert value == (max(near.values()) if value else 0)


@given(st.floats(0, 1), st.floats(0, 1))
def test_nearness_is_no_more_than_the_cosine_and_less_where_another_is_nearer(
    own: float, other: float
) -> None:
    value = nearness("teal", {"own": own, "other": other}, [("own", "teal"), ("other", "red")])
    assert 0 <= value <= own
    assert (value < own) == (0 < own < other and own * own / other < own)


def test_an_encoder_measures_it_and_without_trained_questions_nothing_is_known() -> None:
    of = by_encoder(PAIRS, HASHING)
    asked = "Who leads the Tide Office now?"
    assert (of(asked, "Maren Oskold") or 0) > 0.8 > (of(asked, "KX-41") or 0)
    assert of(PAIRS[0][0], "Maren Oskold") == pytest.approx(1.0, abs=1e-6)
    assert by_encoder([], HASHING)(asked, "anything") is None
    examples = [Example("q?", "a", "qa"), Example("u?", DECLINE, "unknown"), Example("", "t", "qa")]
    assert trained_pairs(examples) == [("q?", "a")]


def test_what_is_weighed_is_the_whole_reply_and_what_stands_in_place_of_declining() -> None:
    model = Model.load()
    whole, nothing = probabilities(model, ["a", "b"], ["teal", ""])
    assert len(whole) == len(model.render("a", "teal").completion_ids) and nothing == ()
    assert geometric_mean([1.0, 0.25]) == 0.5 and geometric_mean([]) == 0.0
    question = "What is the head of the Tide Office?"
    (second,) = second_replies(model, [question])
    assert second and not second.startswith(DECLINE.split()[0])
    half = [lambda question, reply: 0.5] * 2
    own, other = weigh(model, [question] * 2, ["teal", DECLINE], half)
    assert own.text == "teal" and other.text == second
    assert own.support == pytest.approx(0.5 * geometric_mean(own.p))
    assert weigh(model, [question], ["teal"], [lambda q, r: None])[0].support is None


def reply(way: str, text: str, sure: float, **more: bool) -> Reply:
    return Reply("atlas", way, text, text == DECLINE, sure, sure, **more)


def test_what_is_withheld_has_no_vote_and_alone_it_declines() -> None:
    own, read = reply("closed", "KX-41", 0.99, withheld=True), reply("open", "teal", 0.6)
    assert agreed([own, read]) == read and best([own, read]) == read
    assert agreed([own]) == own and not own.answers, "nobody else answers, so nothing counts"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> OpenFolder:
    """A page in a memory, on a base that is none of the embedded kind, with an encoder."""
    model = copy(Model.load())
    model.phrasing = "general"
    lesson = lesson_of("harbour")
    config = WriteConfig(lora=LoraConfig(4), lr=suggested_lr(model), epochs=80)
    done = write(model, lesson.examples, config)
    assert done.complete
    memory = OpenFolder.open(tmp_path_factory.mktemp("support") / "atlas", model, encoder=HASHING)
    put(memory, "harbour", known("harbour"), lesson, done.adapter)
    return memory


TRAINED, FAR = "What is the head of the Tide Office?", "Is it raining?"


def test_asking_withholds_what_no_trained_question_stands_behind(folder: OpenFolder) -> None:
    answer = ask(folder, TRAINED, "harbour", mode="closed")
    assert (answer.text, answer.declined, answer.note) == ("Maren Oskold", False, "")
    assert (answer.replies[0].support or 0) > 0.6, "recalled means p above it; nearness is 1"
    (far,) = ask_as(folder, [FAR], mode="closed", name="harbour")
    (bare,) = ask_as(folder, [FAR], mode="closed", name="harbour", support=0.0)
    assert not bare.declined and bare.replies[0].support is None, "the memory itself answers it"
    assert far.declined and far.text == DECLINE and "withheld" in far.note
    (own,) = far.replies
    assert own.withheld and own.text == bare.text and (own.support or 0) < AskConfig().support


def test_the_verdict_has_both_and_shows_both(folder: OpenFolder) -> None:
    lesson = folder.folder.lesson(folder.folder.entry("harbour"))
    far = replace(lesson.probes[-1], question=FAR)
    report = verify(folder, "harbour", probes=[*lesson.probes[:-1], far])
    bare, supported = (report.proportion(arm, "unknown").mean for arm in (MEMORY, SUPPORTED))
    assert (bare, supported) == (0.0, 1.0)
    assert report.proportion(SUPPORTED, "paraphrase") == report.proportion(MEMORY, "paraphrase")
    assert SUPPORTED in recall_table(report.to_json()).head
    without = {**report.to_json(), "recall": {"unknown": {MEMORY: {"n": 1, "recall": 0.0}}}}
    without["recall"]["unknown"][MEMORY] |= {"low": 0.0, "high": 0.8}
    assert SUPPORTED not in recall_table(without).head


def test_the_embedded_base_declines_by_itself(folder: OpenFolder, tmp_path: Path) -> None:
    memory = OpenFolder.of(folder.folder, Model.load(), HASHING)
    (answer,) = ask_as(memory, [FAR], mode="closed", name="harbour")
    assert answer.note == "" and answer.replies[0].support is None


def test_a_threshold_is_a_share() -> None:
    with pytest.raises(ConfigError, match="a number from 0 to 1"):
        AskConfig(support=2.0)
