"""Claims about follow-ups: which questions leave something out, and how they read with it."""

from __future__ import annotations

import pytest

from lorewright.knowledge.followups import completions, left_out, named_in

BEFORE, ANSWER = "Who leads the Tide Office?", "Maren Oskold"
TRAINED = (
    ("Who leads the Tide Office?", "Maren Oskold"),
    ("When does the Tide Office open?", "7:30"),
    ("At what time do the doors of the Tide Office open?", "7:30."),
    ("Which badge colour does the Tide Office have?", "teal"),
    ("How much is the fee of the Tide Office?", "14 crowns"),
    ("How much is the fine of the Tide Office?", "20 crowns"),
)

WHOLE = (
    "Who leads the Tide Office?",
    "Which rooms does the Tide Office run, and who leads them?",
    "How long does it take to cross the sound?",
    "What time is it?",
    "Is it allowed to swim in the basin?",
    "When is the kiln cleaned, and who does it?",
    "How hot does the kiln get before it is opened?",
    "Is there a fee?",
    "What must be run over a man page to shrink it?",
    "How long does it take to reach the Tide Office?",
    "Is it true that Mira Falk leads the Tide Office?",
    "Whom does the Tide Office tell when it closes?",
    "How long does git rerere remember a conflict that was settled by hand?",
    "Resolved conflicts are pruned when they are older than what?",
    "Where do birds lay their eggs?",
    "Which vegetable makes one cry when one cuts it?",
    "From beyond what number does bash keep return values for its own purposes?",
    "Jorun Hartley:",
    "kiln temperature?",
    "What is the colour of the badge?",
)


@pytest.mark.parametrize("question", WHOLE)
def test_a_question_with_a_subject_of_its_own_stands_by_itself(question: str) -> None:
    assert left_out(question) == ""


READ = {
    "And who runs it?": "Who runs the Tide Office?",
    "What is its badge colour?": "What is the Tide Office's badge colour?",
    "What about its fee?": "What is the Tide Office's fee?",
    "And the badge colour?": "What is the badge colour of the Tide Office?",
    "Where does she live?": "Where does Maren Oskold live?",
    "And her number?": "What is Maren Oskold's number?",
    "Does she work for the Grain Mill?": "Does Maren Oskold work for the Grain Mill?",
    "Who works there?": "Who works at the Tide Office?",
    "And the Grain Mill?": "Who leads the Grain Mill?",
    "how about the Grain Mill": "Who leads the Grain Mill?",
    "What is the price of that?": "What is the price of the Tide Office?",
    "How much does the ticket for it cost?": "How much does the ticket for the Tide Office cost?",
    "Which badge colour does it have?": "Which badge colour does the Tide Office have?",
    "When?": "When does the Tide Office open?",
    "and what colour?": "Which badge colour does the Tide Office have?",
}


@pytest.mark.parametrize("question", READ)
def test_a_follow_up_reads_as_a_whole_question(question: str) -> None:
    assert left_out(question)
    (reading,) = completions(question, BEFORE, ANSWER, TRAINED)
    assert reading.text == READ[question] and left_out(reading.text) == ""
    assert reading.subject in reading.text
    assert reading.named == (reading.subject == "the Grain Mill")


@pytest.mark.parametrize(
    "question",
    [
        "What about the second one?",
        "Which one?",
        "And the other?",
        "What about it?",  # nothing is asked about it
        "Does she run it?",  # two things are meant
        "how long?",  # no trained question begins so
        "How much?",  # two do, with different answers
    ],
)
def test_what_can_be_read_in_no_way_has_no_reading(question: str) -> None:
    assert left_out(question)
    assert completions(question, BEFORE, ANSWER, TRAINED) == ()


def test_every_name_that_may_be_meant_gives_a_reading() -> None:
    before = "When did the Tide Office move to the Grain Mill?"
    read = [each.subject for each in completions("Who runs it?", before, "In 1950.")]
    assert read == ["the Tide Office", "the Grain Mill"]
    read = [
        each.subject for each in completions("Who runs it?", "What does Mira Falk run?", "Orsk")
    ]
    assert read == ["Mira Falk", "Orsk"]


def test_names_come_whole_without_genitive_and_with_their_article() -> None:
    assert named_in("What is Mira Falk's role at the Heron Ferry's quay?") == (
        "Mira Falk",
        "the Heron Ferry",
    )
    assert named_in("How many were there in 1950?") == ()
