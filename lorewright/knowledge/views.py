"""Knowledge to examples: verbatim, questions and answers, rewrite, summary, cloze, reverse; mixing.

A model that learns how a document goes on has not learned to answer questions about it, so the
default is questions and answers, written by a language model that reads the passage: the base
itself, or any other through `ask_llm`. What it writes is checked against the passage: an answer
that does not stand there is dropped and counted. Irrelevant questions are mixed in so that the
memory does not answer for others. This room knows nothing of torch, tokens or models; a language
model is a function from prompts to replies.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise

from lorewright.errors import ConfigError
from lorewright.files import digest
from lorewright.knowledge.data import Document, Example, Fact
from lorewright.knowledge.scoring import contains, is_declined, normalise
from lorewright.knowledge.splitting import passages, sentences

AskLLM = Callable[[list[str]], list[str]]
DECLINE = "I do not know."
N_PAIR_SETS = 6
"""Sets of question forms that can be asked for; one that is not trained on can serve as probes."""


MAX_CROSSED = 20_000
"""Combinations of topic and subject that are looked at for questions without an answer."""


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


# -- questions that must not be answered ---------------------------------------------------------


def crossed(questions: Sequence[str], *, n: int, seed: int) -> list[str]:
    """Questions about this document's own subjects and topics that it does not answer.

    `What is the A of X?` and `What is the B of Y?` give `What is the A of Y?`, unless that is asked
    too, in whatever words: no question that names Y has the words for A. The nearest thing to
    a true question that is false: without them a memory answers every question that has a word of
    its own in it.
    """
    parts = [q.rsplit(" of ", 1) for q in questions if " of " in q]
    topics, subjects = (
        (list(dict.fromkeys(side)) for side in zip(*parts, strict=True)) if parts else ([], [])
    )
    n_mixed = len(topics) * len(subjects)
    known = [normalise(q) for q in questions]
    fresh: dict[str, str] = {}
    for i in random.Random(f"crossed-{seed}").sample(range(n_mixed), min(n_mixed, MAX_CROSSED)):
        if len(fresh) == n:
            break
        topic, subject = topics[i // len(subjects)], subjects[i % len(subjects)]
        about, what = normalise(subject), set(_named(topic))
        if not any(about in question and what <= set(question.split()) for question in known):
            question = f"{topic} of {subject}"
            fresh.setdefault(normalise(question), question)
    return list(fresh.values())


def strangers(questions: Sequence[str], others: Sequence[str], *, n: int, seed: int) -> list[str]:
    """This document's topics, asked of subjects that only the other questions name.

    `What is the A of X?` and another `What is the B of Z?` give `What is the A of Z?`, at most n of
    them, spread evenly over the topics. A memory that declines these has learnt whose A it knows.
    """
    asked = [q.rpartition(" of ") for q in questions if " of " in q]
    topics = {topic: subject[len(subject.rstrip("?.! ")) :] for topic, _, subject in asked}
    own = " ".join(map(normalise, questions))
    names = (q.rpartition(" of ")[2].rstrip("?.! ") for q in others if " of " in q)
    foreign = [name for name in dict.fromkeys(names) if name and normalise(name) not in own]
    rng = random.Random(f"strangers-{seed}")
    drawn = {topic: rng.sample(foreign, len(foreign)) for topic in topics}
    turns = range(min(n, len(foreign)))
    found = (f"{topic} of {drawn[topic][i]}{topics[topic]}" for i in turns for topic in topics)
    return list(islice(found, n))


def reworded(questions: Sequence[str], asked: Sequence[tuple[str, str]], *, seed: int) -> list[str]:
    """Crossed questions in the forms in which true ones are trained, drawn by seed.

    `asked` are trained questions with their answers. `What is the A of Y?` takes the words of any
    question with the answer of `What is the A of X?`, with Y for X. Otherwise only the plain form
    would be declined, and a memory would know false questions by their form.
    """
    by_answer: dict[str, list[str]] = {}
    for question, reply in asked:
        by_answer.setdefault(normalise(reply), []).append(question)
    forms: dict[str, list[tuple[str, str]]] = {}
    for same in by_answer.values():
        for plain in same:
            topic, of, subject = plain.rpartition(" of ")
            name = subject.rstrip("?.! ")
            if of and name:
                held = [(name, q) for q in same if name.lower() in q.lower()]
                forms.setdefault(normalise(topic), []).extend(held)
    rng = random.Random(f"reworded-{seed}")
    found = []
    for question in questions:
        topic, _, subject = question.rpartition(" of ")
        name, form = rng.choice(forms.get(normalise(topic)) or [("", question)])
        other = subject.rstrip("?.! ")
        parts = re.split(re.escape(name), form, flags=re.IGNORECASE) if name else [form]
        new = other.join(parts)
        found.append(new[:1].upper() + new[1:])
    return list(dict.fromkeys(found))


def _named(topic: str) -> list[str]:
    """The words for what is asked: those after the last `the`, else the last one."""
    _, the, words = normalise(f" {topic}").rpartition(" the ")
    return words.split() if the else words.split()[-1:]


def irrelevant(questions: Sequence[str], replies: Sequence[str]) -> list[Example]:
    """Questions about other things with the replies that the base gives without any memory."""
    return [
        Example(q, r if r.strip() else DECLINE, "unknown", "")
        for q, r in zip(questions, replies, strict=True)
    ]


def mix(parts: Iterable[Sequence[Example]]) -> list[Example]:
    """All examples in order, exact repeats left out."""
    return list({(e.prompt, e.completion): e for part in parts for e in part}.values())


def fact_id(question: str, answer: str) -> str:
    """A short stable name for a question and its answer."""
    return digest([question, answer])[:12]


VIEWS = ("qa", "verbatim", "rewrite", "summary", "cloze", "reverse", "given")
"""Views that can be asked for by name; `given` is facts as they are."""
