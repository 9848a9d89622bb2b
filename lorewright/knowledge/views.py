"""Views: what a document becomes examples by, and how examples are mixed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from lorewright.knowledge.data import Document, Example, Fact
from lorewright.knowledge.scoring import normalise
from lorewright.knowledge.selfstudy import AskLLM, Pair, _phrasing, _states, texts_of
from lorewright.knowledge.splitting import passages, sentences

# -- views: knowledge to examples ----------------------------------------------------------------


def given(facts: Iterable[Fact]) -> list[Example]:
    """Facts as they are: the question is the prompt, the answer the completion."""
    return [Example(fact.question, fact.answer, "qa", fact.id) for fact in facts]


def qa(pairs: Iterable[Pair], source: str) -> list[Example]:
    """Pairs that a language model wrote."""
    return [Example(pair.question, pair.answer, "qa", source) for pair in pairs]


def verbatim(document: Document, *, max_chars: int = 1200) -> list[Example]:
    """The text itself as next-token prediction: what everyone tries first, and does not answer."""
    return [
        Example("", text, "verbatim", document.id)
        for text in passages(document.text, max_chars=max_chars)
    ]


def rewrite(
    document: Document,
    ask_llm: AskLLM,
    *,
    numbers: Sequence[int] = (1, 2),
    phrasing: str = "general",
) -> list[Example]:
    """The text in other words, as plain next-token prediction."""
    form = _phrasing(phrasing).rewrite
    texts = texts_of(document, phrasing)
    replies = ask_llm(
        [form.format(text=text, number=number) for number in numbers for text in texts]
    )
    return [Example("", reply, "rewrite", document.id) for reply in replies if reply.strip()]


def summary(document: Document, ask_llm: AskLLM, *, phrasing: str = "general") -> list[Example]:
    """Short notes on each passage, as plain next-token prediction."""
    form = _phrasing(phrasing).summary
    replies = ask_llm([form.format(text=text) for text in texts_of(document, phrasing)])
    return [Example("", reply, "summary", document.id) for reply in replies if reply.strip()]


def cloze(pairs: Iterable[Pair], texts: Sequence[str], source: str) -> list[Example]:
    """The sentence that holds an answer, with the answer left out, to be filled in."""
    found = []
    for pair in pairs:
        # Not inside a word: 9 is not the answer that 19 holds.
        whole = re.compile(rf"(?<!\w){re.escape(pair.answer)}(?!\w)", re.IGNORECASE)
        stated = [s for s in sentences(texts[pair.passage]) if _states(s) and whole.search(s)]
        if stated:
            blank = whole.sub("____", stated[0], count=1)
            found.append(Example(f"Fill in: {blank}", pair.answer, "cloze", source))
    return list({(example.prompt, example.completion): example for example in found}.values())


def reverse(pairs: Iterable[Pair], source: str) -> list[Example]:
    """The answer as the key: which question does it answer? In the words of the first set.

    Only for answers to which no set has two questions.
    """
    by_answer: dict[str, list[Pair]] = {}
    for pair in sorted(pairs, key=lambda pair: pair.set_number):
        by_answer.setdefault(normalise(pair.answer), []).append(pair)
    return [
        Example(
            f"Which question has the answer: {group[0].answer}?",
            group[0].question,
            "reverse",
            source,
        )
        for group in by_answer.values()
        if len({pair.set_number for pair in group}) == len(group)
    ]


def mix(parts: Iterable[Sequence[Example]]) -> list[Example]:
    """All examples in order, exact repeats left out."""
    return list({(e.prompt, e.completion): e for part in parts for e in part}.values())


VIEWS = ("qa", "verbatim", "rewrite", "summary", "cloze", "reverse", "given")
"""Views that can be asked for by name; `given` is facts as they are."""
