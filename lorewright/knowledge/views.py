"""Views: the forms in which a document becomes examples; a new one is an entry in VIEWS."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

from lorewright.knowledge.data import Example, Fact
from lorewright.knowledge.questions import Pair
from lorewright.knowledge.scoring import normalise
from lorewright.knowledge.selfstudy import Study, statements
from lorewright.knowledge.splitting import passages

View = Callable[[Study], Iterable[Example]]
"""A document under study to examples of one kind."""
VERBATIM_CHARS = 1200
"""Longest piece of text that is one example of next-token prediction, in characters."""
N_REWRITES = 2


def qa(study: Study) -> list[Example]:
    """The pairs that a language model wrote: question and answer.

    Those whose question is the text with the answer left out are of kind `cloze`.
    """
    return [
        Example(p.question, p.answer, "qa" if p.is_own else "cloze", study.document.id)
        for p in study.trained
    ]


def verbatim(study: Study) -> list[Example]:
    """The text itself as next-token prediction: what everyone tries first, and does not answer."""
    document = study.document
    texts = passages(document.text, max_chars=VERBATIM_CHARS)
    return [Example("", text, "verbatim", document.id) for text in texts]


def rewrite(study: Study) -> list[Example]:
    """The text in other words, as plain next-token prediction."""
    form, numbers = study.phrasing.rewrite, range(1, N_REWRITES + 1)
    return _plain(
        study, "rewrite", [form.format(text=t, number=n) for n in numbers for t in study.passages]
    )


def summary(study: Study) -> list[Example]:
    """Short notes on each passage, as plain next-token prediction."""
    form = study.phrasing.summary
    return _plain(study, "summary", [form.format(text=text) for text in study.passages])


def _plain(study: Study, kind: str, prompts: list[str]) -> list[Example]:
    replies = study.ask_llm(prompts)
    return [Example("", reply, kind, study.document.id) for reply in replies if reply.strip()]


def cloze(study: Study) -> list[Example]:
    """The sentence that holds an answer, with the answer left out, to be filled in."""
    examples = []
    for pair in (pair for pair in study.trained if pair.is_own):
        # Not inside a word: 9 is not the answer that 19 holds.
        whole = re.compile(rf"(?<!\w){re.escape(pair.answer)}(?!\w)", re.IGNORECASE)
        stated = [s for s in statements(study.passages[pair.passage]) if whole.search(s)]
        if stated:
            blank = whole.sub("____", stated[0], count=1)
            examples.append(Example(f"Fill in: {blank}", pair.answer, "cloze", study.document.id))
    return mix([examples])


def reverse(study: Study) -> list[Example]:
    """The answer as the key: which question does it answer? In the words of the first set.

    Only for answers to which no set has two questions.
    """
    by_answer: dict[str, list[Pair]] = {}
    own = (pair for pair in study.trained if pair.is_own)
    for pair in sorted(own, key=lambda pair: pair.set_number):
        by_answer.setdefault(normalise(pair.answer), []).append(pair)
    return [
        Example(
            f"Which question has the answer: {first.answer}?",
            first.question,
            "reverse",
            study.document.id,
        )
        for first, *rest in by_answer.values()
        if len({first.set_number, *(pair.set_number for pair in rest)}) == 1 + len(rest)
    ]


def no_examples(study: Study) -> list[Example]:
    """Nothing: the facts beside a document, which are always trained as they are, are enough."""
    return []


VIEWS: dict[str, View] = {
    "qa": qa,
    "verbatim": verbatim,
    "rewrite": rewrite,
    "summary": summary,
    "cloze": cloze,
    "reverse": reverse,
    "given": no_examples,
}


def fact_examples(facts: Iterable[Fact]) -> list[Example]:
    """Facts as they are: the question is the prompt, the answer the completion."""
    return [Example(fact.question, fact.answer, "qa", fact.id) for fact in facts]


def mix(parts: Iterable[Sequence[Example]]) -> list[Example]:
    """All examples in order, exact repeats left out."""
    return list({(e.prompt, e.completion): e for part in parts for e in part}.values())
