"""Claims about self-study: what a language model's replies become, and what is dropped."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.studies import PAGE, SAYS, TEXT, reader, saying, study

from lorewright.errors import ConfigError
from lorewright.knowledge.data import Document
from lorewright.knowledge.scoring import contains, normalise
from lorewright.knowledge.selfstudy import PHRASINGS, Pairs, parse_pairs, phrasing_named

GARBAGE = st.text(st.sampled_from("QA:? \n*ab1"), max_size=60)


# --- reading replies


@pytest.mark.parametrize(
    ("reply", "pairs"),
    [
        ("Q: Who leads it? A: Ada Lund", [("Who leads it?", "Ada Lund")]),
        ("Q: Who? A: Ada\nQ: When? A: 9:30\n", [("Who?", "Ada"), ("When?", "9:30")]),
        (
            "Q: Who leads it?\nA: Ada Lund\n\nQ: When?\nA: 9",
            [("Who leads it?", "Ada Lund"), ("When?", "9")],
        ),
        (
            "Sure! Here they are:\n\n1. Q: Who?\n   A: Ada\n2. Q: When? A: 9",
            [("Who?", "Ada"), ("When?", "9")],
        ),
        ("**Q:** Who? **A:** Ada\n**Q: When?**\n**A: 9**", [("Who?", "Ada"), ("When?", "9")]),
        ("Q: Who? A: Ada\nI hope this helps.", [("Who?", "Ada")]),
        ("Q: Who? Q: When? A: 9", [("When?", "9")]),
        ("Q: Who?\nA:\nQ: When? A: 9", [("When?", "9")]),
        ("Q: Who? A: Ada Q: When? A: 9", [("Who?", "Ada"), ("When?", "9")]),
        ("FAQ: Who? A: Ada", []),
        ("A: Ada", []),
        ("", []),
    ],
)
def test_pairs_are_read_from_one_and_two_lines(reply: str, pairs: list[tuple[str, str]]) -> None:
    assert parse_pairs(reply) == pairs


@given(st.one_of(st.text(), GARBAGE))
def test_no_reply_makes_the_parser_fail_or_give_empty_pairs(reply: str) -> None:
    for question, answer in parse_pairs(reply):
        assert question.strip() and answer.strip()
        assert "\n" not in question + answer
        assert question in reply and answer in reply


def test_a_reply_that_runs_on_is_read_in_no_time() -> None:
    assert parse_pairs("Q:" + " \n" * 50_000) == []
    assert parse_pairs("Q: a " * 20_000) == []


@given(replies=st.lists(st.one_of(st.text(), GARBAGE), min_size=12, max_size=12))
def test_no_reply_makes_write_pairs_fail_or_keep_what_the_text_does_not_say(
    replies: list[str],
) -> None:
    made = study(ask_llm=saying(*replies)).pairs
    assert all(contains(TEXT, (pair.answer,)) for pair in made.grounded)


# --- checking them


def test_every_stated_fact_is_asked_once_per_set() -> None:
    made = study().pairs
    assert [pair.answer for pair in made.of((2,))] == [value for _, value in SAYS.values()]
    assert len(made.grounded) == 3 * len(SAYS)
    assert (made.n_ungrounded, made.n_contradictory, made.n_repeated) == (0, 0, 0)
    assert made.uncovered == ()


def test_ungrounded_contradictory_and_repeated_pairs_are_dropped_and_counted() -> None:
    reply = """Q: What is the head of the Teal Office? A: Ada Lund
Q: What is the head of the Teal Office? A: KX-42
Q: what is the head of the teal office A: ada lund
Q: Who pays the Teal Office? A: the King
Q: Who else? A: I do not know."""
    made = study(ask_llm=saying(reply), sets=(1,)).pairs
    assert [(pair.question, pair.answer) for pair in made.grounded] == [
        ("What is the head of the Teal Office?", "Ada Lund")
    ]
    assert (made.n_ungrounded, made.n_contradictory, made.n_repeated) == (2, 1, 1)


def test_an_answer_must_stand_in_its_own_passage_as_whole_words() -> None:
    page = Document("two", "The age of Ann is 19. " * 19 + "\n\n" + "The age of Bob is 7.")
    made = study(page, saying("Q: The age of Ann? A: 9", "Q: Age of Bob? A: 19"), sets=(1,)).pairs
    assert made.grounded == ()
    assert made.n_ungrounded == 2


def test_uncovered_sentences_are_asked_again_alone_and_then_named() -> None:
    prompts_seen: list[str] = []

    def forgetful(prompts: list[str]) -> list[str]:
        prompts_seen.extend(prompts)
        return ["Q: Who heads the Teal Office? A: Ada Lund" if "KX" in p else "" for p in prompts]

    one = study(PAGE, forgetful, sets=(1, 2), phrasing="pocket")
    assert one.pairs.grounded
    lines = TEXT.split("\n")[2:]
    again = [
        f"{line}\n\nWrite questions and answers, set {n}." for n in (1, 2) for line in lines[:3]
    ]
    n_first = 2 * len(one.passages)
    assert prompts_seen[n_first:] == again
    assert one.pairs.uncovered == tuple(lines[:3])


def test_nothing_is_asked_again_when_every_sentence_is_covered() -> None:
    prompts_seen: list[str] = []
    assert study(
        PAGE, lambda prompts: prompts_seen.extend(prompts) or reader(prompts)
    ).pairs.grounded
    assert len(prompts_seen) == 3


def test_pairs_know_their_passage() -> None:
    page = Document(
        "long", "\n\n".join(f"The code of box {i} is K-{i}{'x' * 150}." for i in range(6))
    )
    made = study(page, sets=(1,)).pairs
    assert len({pair.passage for pair in made.grounded}) > 1
    assert len(made.grounded) == 6


@pytest.mark.parametrize("name", PHRASINGS)
def test_every_phrasing_carries_text_and_number_braces_and_all(name: str) -> None:
    prompts_seen: list[str] = []
    page = Document("code", "The {number} of {text} is {0}.")
    assert study(
        page, lambda prompts: prompts_seen.extend(prompts) or [""] * len(prompts), phrasing=name
    ).pairs == Pairs(uncovered=(page.text,))
    assert all(prompt.startswith(page.text + "\n\n") for prompt in prompts_seen)
    assert len(set(prompts_seen)) == 3


def test_an_unknown_phrasing_is_refused() -> None:
    with pytest.raises(ConfigError, match="'royal' is unknown; use one of general, pocket"):
        phrasing_named("royal")


def test_no_question_is_written_before_a_view_reads_them() -> None:
    def unused(prompts: list[str]) -> list[str]:
        raise AssertionError(prompts)

    quiet = study(ask_llm=unused)
    assert quiet.passages and not quiet.wrote_pairs


# --- training and asking never meet


@given(seed=st.randoms(use_true_random=False))
def test_questions_of_sets_1_to_3_and_of_set_4_never_overlap(seed: object) -> None:
    def careless(prompts: list[str]) -> list[str]:  # the words of any set, whatever was requested
        numbers = [seed.randint(1, 4) for _ in prompts]
        changed = [
            re.sub(r"round \d", f"round {n}", p) for p, n in zip(prompts, numbers, strict=True)
        ]
        return reader(changed)

    made = study(ask_llm=careless, sets=(1, 2, 3, 4)).pairs
    trained = {normalise(pair.question) for pair in made.of((1, 2, 3))}
    held = {normalise(pair.question) for pair in made.of((4,))}
    assert not trained & held
    assert len(trained | held) == len(made.grounded)
