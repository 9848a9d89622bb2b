"""Self-study: a language model reads each passage and writes questions and answers about it.

A model that learns how a document goes on has not learned to answer questions about it. A language
model that writes pairs on request (a teacher, or the embedded base) is a function from prompts to
replies; an answer that does not stand in the passage is dropped and counted. Another base is worth
more when it words questions for values that are there: see `questions`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

from lorewright.errors import ConfigError
from lorewright.knowledge.data import Document
from lorewright.knowledge.markdown import with_tables_as_sentences
from lorewright.knowledge.questions import Base, Pair, Progress, questions_about
from lorewright.knowledge.scoring import contains, is_declined, normalise
from lorewright.knowledge.splitting import headed_passages, passages, sentences

AskLLM = Callable[[list[str]], list[str]]
"""Prompts to replies, in the same order."""
N_PAIR_SETS = 6
"""Sets of question forms that can be requested; one that is not trained can serve as probes."""


@dataclass(frozen=True)
class Phrasing:
    """The words that request writing; `{text}` and `{number}` are filled in."""

    pairs: str
    rewrite: str
    summary: str
    passage_chars: int
    """Longest passage put before the model at once, in characters."""
    with_headings: bool = True
    """Whether a passage is read with the headings under which it stands."""


PHRASINGS = {
    # The embedded base was trained on exactly these words (pocket/world.py).
    "pocket": Phrasing(
        pairs="{text}\n\nWrite questions and answers, set {number}.",
        rewrite="{text}\n\nRewrite the text, style {number}.",
        summary="{text}\n\nSummarise the text.",
        passage_chars=120,  # a sentence or two: what it reads most reliably
        with_headings=False,
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


def phrasing_named(name: str) -> Phrasing:
    """The phrasing of this name; raises ConfigError for a name that PHRASINGS lacks."""
    if name not in PHRASINGS:
        raise ConfigError(
            f"phrasing {name!r} is unknown; use one of {', '.join(sorted(PHRASINGS))}."
        )
    return PHRASINGS[name]


def passages_for(document: Document, phrasing: Phrasing) -> tuple[str, ...]:
    """The passages that are put before the language model, as short as its phrasing wants them."""
    text, max_chars = with_tables_as_sentences(document.text), phrasing.passage_chars
    if phrasing.with_headings:
        return headed_passages(text, title=document.title, max_chars=max_chars)
    return passages(text, max_chars=max_chars)


def prompts_of(document: Document, phrasing: str = "general") -> Iterator[str]:
    """Every prompt that a view puts before a language model for a document, in any set or style."""
    words = phrasing_named(phrasing)
    texts = passages_for(document, words)
    alone = (s for text in texts for s in sentences(text))
    for text in dict.fromkeys([*texts, *alone]):
        yield words.summary.format(text=text)
        for number in range(1, N_PAIR_SETS + 1):
            yield words.pairs.format(text=text, number=number)
            yield words.rewrite.format(text=text, number=number)


# --- question–answer pairs ---------------------------------------------------------------------


@dataclass(frozen=True)
class Pairs:
    """The pairs of a document that passed the checks, and what was dropped."""

    grounded: tuple[Pair, ...] = ()
    ungrounded: tuple[Pair, ...] = ()
    """Pairs dropped because the answer does not stand in the passage."""
    n_contradictory: int = 0
    """Pairs dropped because an earlier pair answers the same question otherwise."""
    n_repeated: int = 0
    uncovered: tuple[str, ...] = ()
    """Sentences none of whose words was an answer: no question will be about them."""
    n_values: int = 0
    """Values that the document states, where the base was to word questions about them."""
    n_worded: int = 0
    """Those for which it worded a question that it answers when it reads the passage."""

    @property
    def n_ungrounded(self) -> int:
        """Number of pairs dropped because the answer does not stand in the passage."""
        return len(self.ungrounded)

    def of(self, numbers: Sequence[int]) -> tuple[Pair, ...]:
        """The pairs of these sets."""
        return tuple(pair for pair in self.grounded if pair.set_number in numbers)


@dataclass(frozen=True)
class Study:
    """A document under study: what every view may read; the pairs are written when first used."""

    document: Document
    ask_llm: AskLLM
    phrasing: Phrasing
    train_sets: Sequence[int] = (1, 2, 3)
    probe_sets: Sequence[int] = ()
    base: Base | None = None
    """Words questions about the document, in place of writing pairs on request."""
    progress: Progress = lambda done, total, question: None

    @cached_property
    def passages(self) -> tuple[str, ...]:
        """What is put before the language model, piece by piece."""
        return passages_for(self.document, self.phrasing)

    @cached_property
    def pairs(self) -> Pairs:
        """The pairs of all sets, trained and held out."""
        return write_pairs(self, (*self.train_sets, *self.probe_sets))

    @property
    def trained(self) -> tuple[Pair, ...]:
        """The pairs of the sets that are trained."""
        return self.pairs.of(self.train_sets)

    @property
    def wrote_pairs(self) -> bool:
        """Whether any view has used the pairs."""
        return "pairs" in vars(self)


_MARK = re.compile(
    r"\*{0,2}\b(?P<mark>[QA]|Question|Answer)(?: ?\d{1,3})?[*_]{0,2}:", re.IGNORECASE
)
_JSON = re.compile(
    r'"q(?:uestion)?"\s*:\s*("(?:[^"\\\n]|\\.)*")\s*,\s*"a(?:nswer)?"\s*:\s*("(?:[^"\\\n]|\\.)*")',
    re.IGNORECASE,
)


def parse_pairs(reply: str) -> list[tuple[str, str]]:
    """Questions and answers in a reply, marked `Q: … A: …` or `Question: … Answer: …`, or as JSON.

    Pairs take one or two lines each; marks may be bold or numbered. A question without an answer,
    or either of several lines, is passed over: the text around a pair is not part of it.
    """
    objects = [match.groups() for match in _JSON.finditer(reply)]
    if objects:
        texts = [(_unquoted(question), _unquoted(answer)) for question, answer in objects]
        return [(q, a) for q, a in texts if q and a and "\n" not in q + a]
    marks = list(_MARK.finditer(reply))
    ends = [*(mark.start() for mark in marks[1:]), len(reply)]
    parts = [
        (mark["mark"][0].upper(), reply[mark.end() : end])
        for mark, end in zip(marks, ends, strict=False)
    ]
    pairs = []
    for (mark, first), (next_mark, second) in pairwise(parts):
        question, answer = _unmarked(first), _unmarked(_unmarked(second).split("\n")[0])
        if (mark, next_mark) == ("Q", "A") and question and answer and "\n" not in question:
            pairs.append((question, answer))
    return pairs


def _unquoted(text: str) -> str:
    """A JSON string's text; empty for one that is none."""
    try:
        return str(json.loads(text)).strip()
    except ValueError:
        return ""


def _unmarked(text: str) -> str:
    """The text without the space and the marks of bold around it."""
    return text.strip().strip("*").strip()


def write_pairs(study: Study, numbers: Sequence[int]) -> Pairs:
    """Have a language model write question–answer pairs for every passage, set after set.

    Sentences from which no set took an answer are put before it once more, alone. With a base that
    words questions, the pairs are those of all values instead.
    """
    texts = study.passages
    if study.base is not None:
        return _pairs_of_values(study, study.base, numbers)
    written = _written(study, list(enumerate(texts)), numbers)
    answered = _answers_by_passage(written)
    lonely = [
        (i, s)
        for i, text in enumerate(texts)
        for s in statements(text)
        if not any(contains(s, (answer,)) for answer in answered.get(i, ()))
    ]
    return _checked([*written, *_written(study, lonely, numbers)], texts)


def _answers_by_passage(pairs: Iterable[Pair]) -> dict[int, dict[str, None]]:
    """The distinct answers about each passage."""
    answers: dict[int, dict[str, None]] = {}
    for pair in pairs:
        answers.setdefault(pair.passage, {})[pair.answer] = None
    return answers


def _pairs_of_values(study: Study, base: Base, numbers: Sequence[int]) -> Pairs:
    """The pairs in which a base words questions about the document, in some of the sets."""
    texts = study.passages
    made = questions_about(texts, study.document.title, base, progress=study.progress)
    pairs = [pair for pair in made.pairs if pair.set_number in numbers]
    checked = _checked(pairs, [" ".join(text.split()) for text in texts])
    return replace(checked, n_values=made.n_values, n_worded=made.n_worded)


def _written(study: Study, texts: Sequence[tuple[int, str]], numbers: Sequence[int]) -> list[Pair]:
    """The pairs in the replies to all texts in all sets; each text has the index of its passage."""
    jobs = [(i, number, text) for number in numbers for i, text in texts]
    form = study.phrasing.pairs
    replies = study.ask_llm([form.format(text=t, number=n) for _, n, t in jobs]) if jobs else []
    return [
        Pair(question, _whole_name(answer, text), number, i)
        for (i, number, text), reply in zip(jobs, replies, strict=True)
        for question, answer in parse_pairs(reply)
    ]


_TITLE_OR_INITIAL = re.compile(
    r"(?:.*\s)?(?:(?P<title>Dr|Mr|Mrs|Ms|Prof|Rev|St|Hon|Capt|Col|Gen|Lt|Sgt)|[A-Z](?:\.\s?[A-Z])*)"
)


def _whole_name(answer: str, text: str) -> str:
    """The answer, and where it is cut behind a title or an initial the name that goes on there."""
    bare = answer.rstrip(".")
    cut = _TITLE_OR_INITIAL.fullmatch(bare)
    if not cut:
        return _whole_first_name(answer, text)
    # Behind a single letter a sentence may end: "The grade is B. The next one is C."
    end = "" if cut["title"] else r"(?=\s*(?:[.,;:!?)]|$))"
    name = rf"(?<!\w){re.escape(bare)}\.(?:\s*[A-Z]\.)*(?:\s+[A-Z][\w'’-]+)+{end}"
    whole = re.search(name, text)
    return whole[0] if whole else answer


_FIRST_NAME = re.compile(r"[A-Z][a-zà-öø-ÿ'’]+(?:-[A-Z][a-zà-öø-ÿ]+)?")
_FAMILY_NAME = (
    r"((?: (?:van|von|de|der|den|di|da|la|le))* [A-Z][\w'’-]*[a-z](?<!'s)(?<!’s))"
    r"(?= [a-z]|[,.;:!?)'’\n]|$)"
)
_NO_NAME = re.compile(
    r"(?:(?:Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day|January|February|March|April|May|June|July"
    r"|August|September|October|November|December|The|This|That|It|Its|He|She|They|Yes|No)"
)


def _whole_first_name(answer: str, text: str) -> str:
    """The answer; where it is one capitalised word that a family name always follows, both.

    A word behind `in` or `at` is a place, and one that stands alone anywhere is whole as it is.
    """
    if not _FIRST_NAME.fullmatch(answer) or _NO_NAME.fullmatch(answer):
        return answer
    mentions = re.findall(rf"(?<![\w'’-]){re.escape(answer)}(?![\w'’-])", text)
    before = r"(?<!\b[Ii]n )(?<!\b[AaOo][tn] )(?<![\w'’-])"
    whole = re.findall(rf"{before}{re.escape(answer)}{_FAMILY_NAME}", text)
    one = len(mentions) == len(whole) and len({*whole}) == 1
    return answer + whole[0] if one else answer


def statements(text: str) -> list[str]:
    """The sentences of a text that are more than a heading."""
    return [s for s in sentences(text) if not s.lstrip().startswith("#") and len(s.split()) > 2]


def _checked(pairs: Iterable[Pair], texts: Sequence[str]) -> Pairs:
    grounded: list[Pair] = []
    answers: dict[str, str] = {}
    ungrounded: list[Pair] = []
    n_contradictory = n_repeated = 0
    for pair in pairs:
        question, answer = normalise(pair.question), normalise(pair.answer)
        if not contains(texts[pair.passage], (pair.answer,)) or is_declined(pair.answer):
            ungrounded.append(pair)
        elif answers.get(question, answer) != answer:
            n_contradictory += 1
        elif question in answers:
            n_repeated += 1
        else:
            answers[question] = answer
            grounded.append(pair)
    answered = _answers_by_passage(grounded)
    uncovered = tuple(
        s
        for i, text in enumerate(texts)
        for s in statements(text)
        if not any(contains(s, (answer,)) for answer in answered.get(i, ()))
    )
    return Pairs(tuple(grounded), tuple(ungrounded), n_contradictory, n_repeated, uncovered)
