"""Questions about what a document states, worded by a base: generated, grounded, read back.

A base is shown one sentence at a time and words questions that it answers, several samples each.
The base then reads the passage and answers: where it gives a value of the sentence back, the value
is the answer; where it gives none, the whole sentence is. So no answer is the base's own word. Two
forms need no base: the sentence with "what" in a value's place, and with a blank. They cover every
value, also on a base that cannot word questions, and the notes say how many it could.

The worked examples are turns of a conversation that every request goes on: one prefix for all.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from itertools import pairwise
from typing import Any, Protocol

from lorewright.knowledge.scoring import normalise
from lorewright.knowledge.splitting import first_heading, sentences
from lorewright.knowledge.values import Value, lines_of, values_of

N_SAMPLES = 4
"""Questions that are drawn for each sentence."""
LEAST_PROBABILITY = 0.2
"""A base gives a value back where every token of it has at least this probability."""
FIRST_LINES, LINES_AT_ONCE = 2, 8
"""The first few are soon done, so that it shows what a base can word; then more share a batch."""
LONG_CHARS = 260
"""A sentence longer than this is cut around its value when the value is left out of it."""
ECHO, BLANK, HELD_OUT = 1, 2, 4
OWN = (3, HELD_OUT, 5, 6)
"""Set numbers of a base's questions for a value, the surest first."""

Progress = Callable[[int, int, str], None]
"""(sentences that are done, sentences in all, the newest question)."""


class Base(Protocol):
    """What is wanted of a language model that words questions and reads them back."""

    def continue_turns(
        self, turns: Sequence[tuple[str, str]], prompts: Sequence[str], n_samples: int
    ) -> list[list[str]]:
        """Replies to each prompt behind the turns of a conversation, up to the end of a line.

        They are drawn with a fixed seed.
        """
        ...

    def least_probabilities(
        self, turns: Sequence[tuple[str, str]], prompts: Sequence[str], answers: Sequence[str]
    ) -> list[float]:
        """For each prompt behind some turns, and answer, the probability of the answer's least
        likely token."""
        ...


@dataclass(frozen=True)
class Place:
    """A value and where it stands."""

    value: Value
    line: str
    passage: int
    subject: str
    """Heading or title that says what the line is about; empty where the line says it."""

    @property
    def text(self) -> str:
        """The line as it is read, its subject in front."""
        return f"{self.subject}. {self.line}" if self.subject else self.line


@dataclass(frozen=True)
class Pair:
    """A question and answer that were written for a passage."""

    question: str
    answer: str
    set_number: int
    passage: int
    """Index of the passage it was written for."""
    is_own: bool = True
    """Whether a language model worded it; else it is the text with the answer left out."""


@dataclass(frozen=True)
class Questions:
    """All questions about a document, and how many values they are about."""

    pairs: tuple[Pair, ...]
    n_values: int
    n_worded: int
    """Values for which the base worded a question that it answers when it reads the passage."""


def places_of(passages: Sequence[str], title: str) -> list[Place]:
    """The values of all passages, in order, each once a line.

    Lines that read alike but for their values ("The tag is …" of every state) are told apart by the
    line that opens their paragraph, or else by the line before them.
    """
    places: list[Place] = []
    openings: list[str] = []
    befores: list[str] = []
    heading = title
    for i, passage in enumerate(passages):
        heading = first_heading(passage) or heading
        before = ""
        for opening, line in _lines(passage):
            about = "" if _names(line, heading) else heading.strip(" .:")
            values = list(values_of(line))
            places += [Place(value, line, i, about) for value in values]
            openings += [opening] * len(values)
            befores += [before] * len(values)
            before = line
    opened = _told_apart(places, openings)
    left = _alike(opened)
    behind = _told_apart(places, befores)
    return [
        two if n in left else one for n, (one, two) in enumerate(zip(opened, behind, strict=True))
    ]


def _lines(passage: str) -> Iterator[tuple[str, str]]:
    """The lines of a passage, headings aside, each behind the one that opens its paragraph."""
    end, opening = 0, ""
    for sentence in sentences(passage):
        start = max(passage.find(sentence, end), end)
        if "\n\n" in passage[max(0, end - 2) : start]:
            opening = ""
        end = start + len(sentence)
        if not sentence.lstrip().startswith("#"):
            for line in lines_of(sentence):
                opening = opening or line
                yield opening, line


def _alike(places: Sequence[Place]) -> set[int]:
    """The places whose question without any language model has another value as well."""
    forms = [normalise(echo(place)) for place in places]
    values: dict[str, set[str]] = {}
    for place, form in zip(places, forms, strict=True):
        values.setdefault(form, set()).add(normalise(place.value.text))
    return {n for n, form in enumerate(forms) if len(values[form]) > 1}


def _told_apart(places: Sequence[Place], lines: Sequence[str]) -> list[Place]:
    """The places, those that read alike behind another line each."""
    alike = _alike(places)
    return [
        replace(place, subject=f"{place.subject}. {line}".strip(" .:"))
        if n in alike and line and line != place.line
        else place
        for n, (place, line) in enumerate(zip(places, lines, strict=True))
    ]


def _names(line: str, heading: str) -> bool:
    """Whether a line names what its heading is about, by at least half of the heading's words."""
    words = {word for word in normalise(heading).split() if len(word) > 3}
    return len(words & set(normalise(line).split())) * 2 >= len(words)


# --- forms that need no language model ----------------------------------------------------------


BLANK_FORM = "Fill in the blank. "


def echo(place: Place) -> str:
    """The line with "what" in the value's place, as a question."""
    body = _with(place, "what").rstrip(" .:;!?")
    return f"{place.subject}: {body}?" if place.subject else f"{body}?"


def blank(place: Place) -> str:
    """The line with a blank in the value's place."""
    about = f"{place.subject}: " if place.subject else ""
    return f"{BLANK_FORM}{about}{_with(place, '____')}"


def _with(place: Place, word: str) -> str:
    """The line, a part of it where it is long, with a word in place of the value and its quotes."""
    line, start, end = place.line, place.value.start, place.value.end
    while start > 0 and end < len(line) and line[start - 1] in "\"“'`" and line[end] in "\"”'`":
        start, end = start - 1, end + 1
    before, after = line[:start], line[end:]
    if len(line) > LONG_CHARS:
        half = LONG_CHARS // 2
        if len(before) > half:
            before = "… " + before[-half:].split(" ", 1)[-1]
        if len(after) > half:
            after = after[:half].rsplit(" ", 1)[0] + " …"
    return f"{before}{word}{after}"


# --- questions of the base ----------------------------------------------------------------------


@cache
def worked_examples() -> tuple[tuple[str, str, str], ...]:
    """Text, answer and question of each example that a base is shown."""
    text = (files("lorewright.knowledge") / "worked_examples.txt").read_text(encoding="utf-8")
    examples = []
    for example in text.strip().split("\n\n"):
        about, answer, question = (line.partition(": ")[2] for line in example.split("\n"))
        examples.append((about, answer, question))
    return tuple(examples)


def to_word(text: str) -> str:
    """What a base is told when it is to word a question."""
    return f"Text: {text}\nWrite a question that this text answers."


def to_answer(text: str, question: str) -> str:
    """What a base is told when it is to answer one, in as few words as the examples."""
    return f"Text: {text}\nAnswer in the words of the text: {question}"


_QUESTION = re.compile(r"[^?\n]{8,200}\?")
_MARKED = re.compile(r"\A\W*(?:question|q)\W*:\s*", re.IGNORECASE)
_NAME = re.compile(r"(?<=\s)[A-Z][\w'’-]+|\S*\d\S*")


def question_in(reply: str, known: str) -> str:
    """The question that a reply consists of; empty where there is none.

    Nor may it hold a name or a number that the known text does not have: worked examples leak.
    """
    match = _QUESTION.match(_MARKED.sub("", reply).strip().strip('*"“”'))
    question = match[0].strip() if match else ""
    names = (m[0].strip(".,;:?'\"’").casefold() for m in _NAME.finditer(question))
    folded = known.casefold()
    return question if all(name in folded for name in names) else ""


def questions_about(
    passages: Sequence[str],
    title: str,
    base: Base,
    *,
    n_samples: int = N_SAMPLES,
    progress: Progress = lambda done, total, question: None,
) -> Questions:
    """Questions for every value of the passages: two plain forms each, and the base's own.

    A value with two questions of the base is trained in one of them and both plain forms, and
    probed in the second surest. Another is probed in the form with a blank.
    """
    by_line: dict[tuple[int, str, str], list[Place]] = {}
    for place in places_of(passages, title):
        by_line.setdefault((place.passage, place.subject, place.line), []).append(place)
    lines = list(by_line.values())
    made: list[Pair] = []
    n_worded = 0
    starts = [0, *range(FIRST_LINES, len(lines), LINES_AT_ONCE)]
    for start, end in pairwise([*starts, len(lines)]):
        part = lines[start:end]
        for places, own in zip(part, _own(part, passages, base, n_samples), strict=True):
            made += _in_sets(places, own)
            n_worded += len({value for _, value in own if value is not None})
        newest = next((pair.question for pair in reversed(made) if pair.is_own), "")
        progress(end, len(lines), newest)
    return Questions(tuple(made), sum(map(len, lines)), n_worded)


Own = list[tuple[str, Value | None]]
"""Questions of the base about a sentence, the surest first, with the value that answers each."""


def _own(
    lines: Sequence[Sequence[Place]], passages: Sequence[str], base: Base, n_samples: int
) -> list[Own]:
    """The base's questions about some sentences, read back."""
    examples = worked_examples()
    turns = [(to_word(text), question) for text, _, question in examples]
    replies = base.continue_turns(turns, [to_word(places[0].text) for places in lines], n_samples)
    rows = []
    for n, (places, each) in enumerate(zip(lines, replies, strict=True)):
        passage = passages[places[0].passage]
        known = f"{places[0].text} {passage}"
        for question in filter(None, dict.fromkeys(question_in(r, known) for r in each)):
            fit = [p for p in places if normalise(p.value.text) not in normalise(question)]
            rows.append((n, question, to_answer(passage, question), [p.value for p in fit]))
    turns = [(to_answer(text, question), answer) for text, answer, question in examples]
    pairs = [(prompt, value.text) for _, _, prompt, values in rows for value in values]
    sure = iter(base.least_probabilities(turns, *zip(*pairs, strict=True)) if pairs else ())
    read: list[list[tuple[float, str, Value | None]]] = [[] for _ in lines]
    for n, question, _, values in rows:
        p, best = max(((next(sure), value) for value in values), key=_first, default=(0.0, None))
        read[n].append((p, question, best if p >= LEAST_PROBABILITY else None))
    return [
        [(question, value) for _, question, value in sorted(each, key=_first, reverse=True)]
        for each in read
    ]


def _first(row: tuple[Any, ...]) -> float:
    return float(row[0])


def _in_sets(places: Sequence[Place], own: Own) -> list[Pair]:
    """The questions about a sentence with their set numbers."""
    made = []
    for place in places:
        questions = [question for question, value in own if value == place.value]
        blank_set = BLANK if len(questions) >= 2 else HELD_OUT
        answer, at = place.value.text, place.passage
        made += [
            Pair(echo(place), answer, ECHO, at, is_own=False),
            Pair(blank(place), answer, blank_set, at, is_own=False),
            *(
                Pair(question, answer, number, at)
                for number, question in zip(OWN, questions, strict=False)
            ),
        ]
    first = places[0]
    open_ended = [question for question, value in own if value is None]
    trained = [number for number in OWN if number != HELD_OUT]
    return made + [
        Pair(question, first.line, number, first.passage)
        for number, question in zip(trained, open_ended, strict=False)
    ]
