"""Claims about rewordings: whatever a base says, what is trained asks for its own answer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from support.encoders import hashing
from support.real import link_models, needs

from lorewright.errors import ConfigError
from lorewright.knowledge.data import Example, Fact, Knowledge, Probe
from lorewright.knowledge.lesson import LessonConfig, prepare
from lorewright.knowledge.rewording import Reworder, farthest_first, to_reword, turns
from lorewright.knowledge.scoring import contains, normalise
from lorewright.memory.write import lesson_for
from lorewright.models.model import Model
from lorewright.training.watch import Watch

GIVEN = (
    Example("After how many days are old copies of backups removed?", "14 days", "qa", "a"),
    Example("How long does the archive keep old copies of backups?", "14 days", "qa", "a"),
    Example("Who keeps the key of the red door of the archive?", "Tomas Reyna", "qa", "b"),
)
SAME = "After how long are the old copies of backups removed?"


def unit(texts: list[str]) -> NDArray[np.float32]:
    """Vectors of words, of length 1."""
    vector_ND = hashing(texts)
    length_N1 = np.linalg.norm(vector_ND, axis=1, keepdims=True)
    return np.asarray(vector_ND / np.maximum(length_N1, 1e-9), dtype=np.float32)


class Saying:
    """A base that words every question in the same set replies."""

    def __init__(self, *replies: str) -> None:
        self.replies = replies
        self.asked: list[str] = []

    def continue_turns(
        self, turns: Sequence[tuple[str, str]], prompts: Sequence[str], n_samples: int
    ) -> list[list[str]]:
        self.asked += prompts
        return [list(self.replies) for _ in prompts]

    def least_probabilities(
        self, turns: Sequence[tuple[str, str]], prompts: Sequence[str], answers: Sequence[str]
    ) -> list[float]:
        raise AssertionError("a rewording is not read back")


def reworded(*replies: str, n: int = 9, taken: Sequence[str] = ()) -> list[Example]:
    return Reworder(Saying(*replies), unit).reword(GIVEN, n, {*map(normalise, taken)})


def test_what_asks_the_same_is_kept_with_the_answer_and_source_of_its_question() -> None:
    (made,) = reworded(SAME)
    assert (made.prompt, made.completion, made.source, made.kind) == (SAME, "14 days", "a", "qa")


@pytest.mark.parametrize(
    "reply",
    [
        "After how many days are old copies of backups removed?",  # as given
        "Are old copies of backups removed after 14 days?",  # tells the answer
        "After how many days does Oslo remove old copies of backups?",  # a name of its own
        "After how many of 30 days are old copies of backups removed?",  # a number of its own
        "What is the colour of the sea?",  # another question
        "I do not know.",  # none
        "",
    ],
)
def test_what_does_not_ask_the_same_is_left_out(reply: str) -> None:
    assert not reworded(reply)


def test_what_is_as_near_to_another_answer_is_left_out() -> None:
    alike = Example("After how many days are new copies of backups removed?", "3 days", "qa", "c")
    base = Saying("After how many days are copies of backups removed?")
    assert [e.completion for e in Reworder(base, unit).reword(GIVEN, 9)] == ["14 days"]
    assert not Reworder(base, unit).reword((*GIVEN, alike), 9)


def test_a_probe_is_never_among_them_and_no_answer_gets_more_than_asked_for() -> None:
    other = "After how long are all old copies of backups removed?"
    assert {e.prompt for e in reworded(SAME, other)} == {SAME, other}
    assert [e.prompt for e in reworded(SAME, other, taken=[SAME.upper()])] == [other]
    assert len(reworded(SAME, other, n=1)) == 1 and not reworded(SAME, other, n=0)


WORDS = [*normalise(GIVEN[0].prompt).split(), "14", "Oslo", "who"]
replies = st.lists(
    st.lists(
        st.sampled_from(WORDS),
        max_size=12,
    ).map(lambda words: " ".join(words).capitalize() + "?"),
    max_size=6,
)


@given(replies, st.integers(0, 4))
def test_no_reply_makes_an_example_that_a_lesson_could_not_have(said: list[str], n: int) -> None:
    made = reworded(*said, n=n)
    given_ = {normalise(example.prompt) for example in GIVEN}
    plain = [normalise(example.prompt) for example in made]
    assert len({*plain}) == len(plain) and not given_ & {*plain}
    assert all(sum(e.completion == a for e in made) <= n for a in ("14 days", "Tomas Reyna"))
    assert not any(contains(e.prompt, (e.completion,)) or "Oslo" in e.prompt for e in made)


@given(st.integers(1, 8), st.integers(1, 4), st.integers(0, 9), st.integers(0, 99))
def test_each_choice_is_the_one_farthest_from_all_before(
    n_drafts: int, n_given: int, n: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    vector_ND = rng.normal(size=(n_drafts + n_given, 5)).astype(np.float32)
    vector_ND /= np.linalg.norm(vector_ND, axis=1, keepdims=True)
    drafts_DH, known_QH = vector_ND[:n_drafts], vector_ND[n_drafts:]
    chosen = list(farthest_first(drafts_DH, known_QH, n))
    assert len({*chosen}) == len(chosen) == min(n, n_drafts)
    for i in chosen:
        left = [k for k in range(n_drafts) if k == i or k not in chosen[: chosen.index(i)]]
        nearest = {k: float((known_QH @ drafts_DH[k]).max()) for k in left}
        assert nearest[i] == pytest.approx(min(nearest.values()), abs=1e-6)
        known_QH = np.vstack([known_QH, drafts_DH[i]])


def test_the_worked_examples_are_questions_in_two_wordings() -> None:
    for prompt, other in turns():
        question = prompt.removeprefix(to_reword(""))
        assert question.endswith("?") and other.endswith("?") and question != other


def test_a_lesson_trains_them_beside_what_is_given_and_declines_no_more_for_it() -> None:
    known = Knowledge((), tuple(Fact(str(i), e.prompt, e.completion) for i, e in enumerate(GIVEN)))
    probe = Probe(
        "p", "After how long does the archive remove old copies?", ("14 days",), "paraphrase"
    )
    base = Saying(SAME, probe.question)

    def lesson(n: int) -> tuple[list[str], int, tuple[str, ...]]:
        made = prepare(
            known,
            ask_llm=lambda prompts: ["" for _ in prompts],
            closed_book=lambda prompts: ["" for _ in prompts],
            reworder=Reworder(base, unit),
            given_probes=[probe],
            config=LessonConfig(rewordings=n, negatives=1.0),
        )
        asked = [e.prompt for e in made.examples if e.kind == "qa"]
        return asked, sum(e.kind == "unknown" for e in made.examples), made.notes

    plain, n_declined, _ = lesson(0)
    assert not base.asked
    more, n_declined_then, notes = lesson(2)
    assert {*more} - {*plain} == {SAME} and n_declined_then == n_declined
    assert "worded 1 of the questions anew, for 1 of 2 answers" in " ".join(notes)


def test_a_base_that_words_no_questions_is_refused_before_any_work() -> None:
    facts = Knowledge((), (Fact("1", "What is the colour of the door?", "red"),))
    with pytest.raises(ConfigError, match=r"worded anew .* pocket words no questions"):
        lesson_for(Model.load(), facts, LessonConfig(rewordings=2), watch=Watch())


@pytest.mark.slow
@needs("smollm2")
@needs("minilm")
def test_a_real_base_words_most_questions_anew_and_none_is_a_probes(own_cache: Path) -> None:
    link_models(own_cache)
    facts = tuple(Fact(str(i), e.prompt, e.completion) for i, e in enumerate(GIVEN))
    made = lesson_for(
        Model.load("smollm2"),
        Knowledge((), facts),
        LessonConfig(rewordings=3, negatives=0, rehearse=0),
        watch=Watch(),
    )
    asked = [e for e in made.examples if e.kind == "qa"]
    own = [e for e in asked if normalise(e.prompt) not in {normalise(g.prompt) for g in GIVEN}]
    assert {e.completion for e in own} == {"14 days", "Tomas Reyna"}
    assert len(own) <= 6 and any("anew" in note for note in made.notes)
