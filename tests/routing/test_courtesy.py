"""Claims about words of courtesy: they are left out around a question, and nothing else is."""

from __future__ import annotations

import pytest

from lorewright.routing.courtesy import without_courtesy


@pytest.mark.parametrize(
    "polite",
    [
        "Hi! What is the price of the Osprey Kiln? Thanks 🙂",
        "Hi! Could you tell me what the price of the Osprey Kiln is? Thanks",
        "Hello there, do you know what the price of the Osprey Kiln is?",
        "Good morning. What is the price of the Osprey Kiln, please?",
        "Please tell me what the price of the Osprey Kiln is. Thank you very much!",
        "I would like to know what the price of the Osprey Kiln is.",
        "What is the price of the Osprey Kiln? Many thanks in advance.",
    ],
)
def test_a_greeting_a_request_and_thanks_are_left_out(polite: str) -> None:
    assert without_courtesy(polite) == "What is the price of the Osprey Kiln?"


def test_a_request_for_a_thing_stays_a_request() -> None:
    asked = "Hi, could you please give the price of the Osprey Kiln? Thanks!"
    assert without_courtesy(asked) == "Give the price of the Osprey Kiln."
    assert without_courtesy("hi, who signs the log? thanks") == "who signs the log?"
    assert without_courtesy("Can you tell me who signs the log?") == "Who signs the log?"


@pytest.mark.parametrize(
    "plain",
    [
        "What is the price of the Osprey Kiln?",
        "Tell me the owner of the Grain Mill.",
        "Who signs the kiln log",
        "Hi!",
        "Thanks",
        "Hi, thanks!",
        "Which greeting follows Hi!",
        "Could you lift the Osprey Kiln?",
        "What is the cost in €",
        "Is it 50%",
        "Where is the Hello Inn?",
        "Which file is ~/.config/lore*",
    ],
)
def test_a_text_without_courtesy_or_without_a_question_stays_as_it_is(plain: str) -> None:
    assert without_courtesy(plain) == plain
