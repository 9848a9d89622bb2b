"""Claims about questions: whatever a base words, only what the text states is learnt from it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorewright.knowledge.data import Document
from lorewright.knowledge.questions import (
    HELD_OUT,
    echo,
    places_of,
    question_in,
    questions_about,
    worked_examples,
)
from lorewright.knowledge.scoring import contains, normalise
from lorewright.knowledge.selfstudy import Study, phrasing_named

TEXT = """# Backups

Old copies are removed after 14 days. The key lies in "vault 7".

Nobody may open the red door.
"""


class Scripted:
    """A base with set replies, which reads a value back where the question has a word of its line.

    What it does with a question depends on the text alone, as in a base that is sure of itself.
    """

    def __init__(self, *replies: str) -> None:
        self.replies = replies
        self.n_read = 0

    def continue_turns(
        self, turns: Sequence[tuple[str, str]], prompts: Sequence[str], n_samples: int
    ) -> list[list[str]]:
        return [[self.replies[i % len(self.replies)] for i in range(n_samples)] for _ in prompts]

    def least_probabilities(
        self, turns: Sequence[tuple[str, str]], prompts: Sequence[str], answers: Sequence[str]
    ) -> list[float]:
        self.n_read += len(prompts)
        questions = [prompt.rpartition(":")[2] for prompt in prompts]
        given = [a == "14 days" and "copies" in q for q, a in zip(questions, answers, strict=True)]
        return [0.9 if back else 0.0 for back in given]


def test_every_value_is_asked_for_though_the_base_words_nothing() -> None:
    made = questions_about([TEXT], "Handbook", Scripted("", "hm", "no question here"))
    assert {w.answer for w in made.pairs} == {"14 days", "vault 7", "red door"}
    assert (made.n_values, made.n_worded) == (3, 0)
    assert not any(w.is_own for w in made.pairs)
    held_out = [w for w in made.pairs if w.set_number == HELD_OUT]
    assert sorted(w.answer for w in held_out) == ["14 days", "red door", "vault 7"]


STATES = """Every proposal is in a state.

State A: more is required. The tag is needsdetail.

State B: it is worded. The tag is wording.

    keep 27
    fortnightly
    squeeze
"""


def test_lines_that_read_alike_are_told_apart_by_what_stands_before_them() -> None:
    asked = {echo(place): place.value.text for place in places_of([STATES], "Proposals")}
    assert asked["Proposals. State A: more is required: The tag is what?"] == "needsdetail"
    assert asked["Proposals. State B: it is worded: The tag is what?"] == "wording"
    assert asked["Proposals. keep 27: what?"] == "fortnightly"
    assert asked["Proposals. fortnightly: what?"] == "squeeze"
    assert asked["Proposals: keep what?"] == "27"


@given(st.lists(st.sampled_from(["The tag is a7.", "The tag is b8.", "It is c9."]), max_size=6))
def test_no_line_is_lost_or_asked_for_two_values_where_lines_before_differ(
    stated: list[str],
) -> None:
    paragraphs = [f"State {n}: {line}" for n, line in enumerate(stated)]
    places = places_of(["\n\n".join(paragraphs)], "Proposals")
    assert sum(place.value.text in ("a7", "b8", "c9") for place in places) == len(stated)
    answers: dict[str, set[str]] = {}
    for place in places:
        answers.setdefault(normalise(echo(place)), set()).add(place.value.text)
    assert all(len(values) == 1 for values in answers.values())


def test_a_question_that_is_read_back_has_the_value_and_any_other_the_sentence() -> None:
    base = Scripted("After how long are old copies removed?", "When are the copies gone?")
    made = questions_about([TEXT], "Handbook", base)
    own = {(w.question, w.answer) for w in made.pairs if w.is_own}
    assert ("After how long are old copies removed?", "14 days") in own
    assert ("After how long are old copies removed?", "Nobody may open the red door.") in own
    assert made.n_worded == 1
    of_days = [w for w in made.pairs if w.answer == "14 days"]
    probes = {normalise(w.question) for w in of_days if w.set_number == HELD_OUT}
    trained = {normalise(w.question) for w in of_days if w.set_number != HELD_OUT}
    assert probes and not trained & probes


def test_a_question_that_holds_its_answer_is_not_asked_for_it() -> None:
    base = Scripted("Are copies removed after 14 days?")
    made = questions_about([TEXT], "", base)
    assert not any(w.is_own and w.answer == "14 days" for w in made.pairs)


@pytest.mark.parametrize(
    ("reply", "question"),
    [
        ("After how long are copies removed?", "After how long are copies removed?"),
        ("Question: When is it?\nAnswer: now", "When is it?"),
        ("**Q:** What is in vault 7?", "What is in vault 7?"),
        ("Which copies went to the Lyon museum?", ""),
        ("What happens after 15 days?", ""),
        ("It is removed.", ""),
        ("?", ""),
        ("", ""),
    ],
)
def test_questions_are_read_and_those_about_something_else_are_not(
    reply: str, question: str
) -> None:
    assert question_in(reply, TEXT) == question


def test_a_heading_says_what_a_sentence_is_about_unless_it_says_so_itself() -> None:
    text = "# Harbour permits\n\nThey cost 12 euros. A harbour permit lasts 2 weeks."
    places = places_of([text], "")
    assert [echo(place) for place in places] == [
        "Harbour permits: They cost what?",
        "A harbour permit lasts what?",
    ]


def test_worked_examples_ask_for_what_their_text_states() -> None:
    for text, answer, question in worked_examples():
        assert contains(text, (answer,)) and question.endswith("?")
        assert normalise(answer) not in normalise(question)


@given(st.lists(st.text(max_size=80), min_size=1, max_size=4), st.text(max_size=200))
def test_no_reply_and_no_text_lead_to_what_the_text_does_not_say(
    replies: list[str], text: str
) -> None:
    document = Document("page", text + " The end is near.")
    words = phrasing_named("general")
    pairs = Study(document, list, words, (1, 2, 3, 5, 6), (4,), Scripted(*replies)).pairs
    whole = " ".join(document.text.split())
    assert all(contains(whole, (pair.answer,)) for pair in pairs.grounded)
