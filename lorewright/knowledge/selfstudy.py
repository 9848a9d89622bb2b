"""Self-study: a language model reads each passage and writes questions and answers about it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from lorewright.errors import ConfigError
from lorewright.knowledge.data import Document
from lorewright.knowledge.scoring import contains, is_declined, normalise
from lorewright.knowledge.splitting import passages, sentences

AskLLM = Callable[[list[str]], list[str]]
N_PAIR_SETS = 6
"""Sets of question forms that can be asked for; one that is not trained on can serve as probes."""


@dataclass(frozen=True)
class Phrasing:
    """The words that ask a language model to write; `{text}` and `{number}` are filled in."""

    pairs: str
    rewrite: str
    summary: str
    passage_chars: int
    """Longest passage put before the model at once, in characters."""


PHRASINGS = {
    # The embedded base was trained on exactly these words (pocket/world.py).
    "pocket": Phrasing(
        pairs="{text}\n\nWrite questions and answers, set {number}.",
        rewrite="{text}\n\nRewrite the text, style {number}.",
        summary="{text}\n\nSummarise the text.",
        passage_chars=120,  # a sentence or two: what it reads most reliably
    ),
    "general": Phrasing(
        pairs="{text}\n\n"
        "Write a question and a short answer for every fact stated in the text above, in its "
        "order. Name the subject in each question; take the answer from the text word for word. "
        "One pair a line, as\nQ: question? A: answer\n"
        "Word the questions differently each time you are asked; this is round {number}.",
        rewrite="{text}\n\n"
        "Say everything in the text above in other words, version {number}. Keep every name and "
        "number. Reply with the text only.",
        summary="{text}\n\n"
        "List every fact in the text above as short notes, one subject a line. Reply with the "
        "notes only.",
        passage_chars=420,
    ),
}


@dataclass(frozen=True)
class Pair:
    """A question and answer that a language model wrote for a passage."""

    question: str
    answer: str
    set_number: int
    passage: int
    """Index of the passage it was written for."""


@dataclass(frozen=True)
class Pairs:
    """What a language model wrote for a document, and what was dropped."""

    kept: tuple[Pair, ...]
    n_ungrounded: int
    """Pairs dropped because the answer does not stand in the passage."""
    n_contradictory: int
    """Pairs dropped because the same question was given another answer before."""
    n_repeated: int
    uncovered: tuple[str, ...]
    """Sentences none of whose words was an answer: what the memory will not be asked for."""

    def of(self, numbers: Sequence[int]) -> tuple[Pair, ...]:
        """The pairs of these sets."""
        return tuple(pair for pair in self.kept if pair.set_number in numbers)


_MARK = re.compile(r"\*{0,2}\b([QA]):")


def parse_pairs(reply: str) -> list[tuple[str, str]]:
    """Questions and answers in a reply of the form `Q: … A: …`, one or two lines each.

    Marks in bold or numbered are read too. A question without an answer, or either of several
    lines, is passed over: the text around a pair is not part of it.
    """
    _, *parts = _MARK.split(reply)
    marked = list(zip(parts[::2], parts[1::2], strict=True))
    pairs = []
    for (mark, question), (next_mark, rest) in pairwise(marked):
        asked, answer = _bare(question), _bare(_bare(rest).split("\n")[0])
        if (mark, next_mark) == ("Q", "A") and asked and answer and "\n" not in asked:
            pairs.append((asked, answer))
    return pairs


def _bare(text: str) -> str:
    """The text without the space and the marks of bold around it."""
    return text.strip().strip("*").strip()


def write_pairs(
    document: Document,
    ask_llm: AskLLM,
    *,
    numbers: Sequence[int] = (1, 2, 3),
    phrasing: str = "general",
) -> Pairs:
    """Have a language model write question–answer pairs for every passage, set after set.

    Sentences from which no set took an answer are put before it once more, alone. Raises
    ConfigError for an unknown phrasing.
    """
    words = _phrasing(phrasing)
    texts = list(texts_of(document, phrasing))
    jobs = [
        (i, number, words.pairs.format(text=text, number=number))
        for number in numbers
        for i, text in enumerate(texts)
    ]
    found = _collect(jobs, ask_llm)
    lonely = [
        (i, s)
        for i, text in enumerate(texts)
        for s in sentences(text)
        if _states(s) and not any(p.passage == i and contains(s, (p.answer,)) for p in found)
    ]
    again = [
        (i, number, words.pairs.format(text=text, number=number))
        for number in numbers
        for i, text in lonely
    ]
    found += _collect(again, ask_llm)
    return _checked(found, texts)


def texts_of(document: Document, phrasing: str) -> tuple[str, ...]:
    """The passages that are put before the language model, as short as its phrasing wants them."""
    return passages(document.text, max_chars=_phrasing(phrasing).passage_chars)


def prompts_of(document: Document, phrasing: str = "general") -> Iterator[str]:
    """Every prompt that a view puts before a language model for a document, in any set or style."""
    words, texts = _phrasing(phrasing), texts_of(document, phrasing)
    alone = (s for text in texts for s in sentences(text))
    for text in dict.fromkeys([*texts, *alone]):
        yield words.summary.format(text=text)
        for number in range(1, N_PAIR_SETS + 1):
            yield words.pairs.format(text=text, number=number)
            yield words.rewrite.format(text=text, number=number)


def _collect(jobs: Sequence[tuple[int, int, str]], ask_llm: AskLLM) -> list[Pair]:
    replies = ask_llm([prompt for _, _, prompt in jobs]) if jobs else []
    return [
        Pair(question, answer, number, i)
        for (i, number, _), reply in zip(jobs, replies, strict=True)
        for question, answer in parse_pairs(reply)
    ]


def _states(sentence: str) -> bool:
    """Whether a sentence is more than a heading."""
    return not sentence.lstrip().startswith("#") and len(sentence.split()) > 2


def _checked(found: Sequence[Pair], texts: Sequence[str]) -> Pairs:
    kept: list[Pair] = []
    answers: dict[str, str] = {}
    dropped = {"ungrounded": 0, "contradictory": 0, "repeated": 0}
    for pair in found:
        key, value = normalise(pair.question), normalise(pair.answer)
        if not contains(texts[pair.passage], (pair.answer,)) or is_declined(pair.answer):
            dropped["ungrounded"] += 1
        elif answers.get(key, value) != value:
            dropped["contradictory"] += 1
        elif key in answers:
            dropped["repeated"] += 1
        else:
            answers[key] = value
            kept.append(pair)
    said: dict[int, list[str]] = {}
    for pair in kept:
        said.setdefault(pair.passage, []).append(pair.answer)
    uncovered = tuple(
        s
        for i, text in enumerate(texts)
        for s in sentences(text)
        if _states(s) and not any(contains(s, (answer,)) for answer in said.get(i, ()))
    )
    return Pairs(
        tuple(kept), dropped["ungrounded"], dropped["contradictory"], dropped["repeated"], uncovered
    )


def _phrasing(name: str) -> Phrasing:
    if name not in PHRASINGS:
        raise ConfigError(
            f"phrasing {name!r} is unknown; use one of {', '.join(sorted(PHRASINGS))}."
        )
    return PHRASINGS[name]
