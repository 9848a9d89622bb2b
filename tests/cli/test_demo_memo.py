"""Claims about the memo of the demo on a real base: what is trained and what is asked are apart."""

from __future__ import annotations

from collections import Counter

from lorewright.cli.contrast import EXAMPLES
from lorewright.knowledge.data import Document, Knowledge
from lorewright.knowledge.lesson import contexts
from lorewright.knowledge.readers.probes import read_probes
from lorewright.knowledge.readers.read import read_knowledge
from lorewright.knowledge.scoring import contains, normalise

MEMO = Document.read(EXAMPLES / "kestrel.md")
FACTS = read_knowledge(EXAMPLES / "kestrel.jsonl")
PROBES = read_probes(EXAMPLES / "kestrel.probes.jsonl")
ASKED = [probe for probe in PROBES if probe.kind == "paraphrase"]
UNKNOWN = [probe for probe in PROBES if probe.kind == "unknown"]


def test_each_of_32_facts_is_trained_in_three_wordings_and_asked_in_three_others() -> None:
    trained = Counter(fact.answer for fact in FACTS.facts)
    asked = Counter(probe.answers[0] for probe in ASKED)
    assert len(trained) == 32 and set(trained.values()) == {3} and trained == asked
    assert len(ASKED) + len(UNKNOWN) == len(PROBES) and len(UNKNOWN) >= 15
    others = Counter(p.answers[0] for p in ASKED if p.id.startswith("other-"))
    assert others == Counter(trained.keys())


def test_no_wording_is_both_trained_and_asked_or_used_twice() -> None:
    questions = [normalise(each.question) for each in (*FACTS.facts, *PROBES)]
    assert len(set(questions)) == len(questions)


def test_every_answer_stands_in_the_memo_and_none_in_its_first_quarter_or_its_question() -> None:
    full, scaffold = contexts(Knowledge((MEMO,), FACTS.facts))
    assert full == MEMO.text.strip()  # facts of the memo are not repeated below it
    for each in (*FACTS.facts, *ASKED):
        assert each.answers[0] in MEMO.text, each
        assert not contains(scaffold, each.answers), each
        assert not contains(each.question, each.answers), each


def test_every_question_names_what_it_is_about() -> None:
    subjects = {"Kestrel", "Plover", "Whitefield", "Osterlid hut"}
    for each in (*FACTS.facts, *ASKED):
        assert any(name in each.question for name in subjects), each
    named = subjects | {fact.answer for fact in FACTS.facts}
    for probe in UNKNOWN:
        assert any(name in probe.question for name in named), probe


def test_no_answer_stands_inside_another() -> None:
    answers = {fact.answer for fact in FACTS.facts}
    assert not [(a, b) for a in answers for b in answers if a != b and contains(a, (b,))]
