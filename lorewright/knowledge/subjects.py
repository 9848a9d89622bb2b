"""What questions are about: the subjects that they share, and the things that they name.

No tagger: a subject is the longest run of content words that several questions have in common, or
a name; a thing is found by its form (quoted, path, code, date, number, name).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

MAX_SUBJECT_WORDS = 6
_FUNCTION_WORDS_LISTED = """
a an the of and or nor but not no if then than as at by for from in into on onto off out over
under up down to with within without about after again against before behind between during
through until upon via per while because so such both each every either neither all any some
many much more most few less least other another same own only very too also just still yet ever
never always often already now here there where when why how what which who whom whose that this
these those it its itself he she his her him they them their theirs we us our you your i me my
mine one ones be is are was were been being am do does did done doing have has had having can
could may might must shall should will would let lets s t
"""
_FUNCTION_WORDS = frozenset(_FUNCTION_WORDS_LISTED.split())
_VERBS_LISTED = """
give name tell state say show list explain describe find identify specify mention read reads get
gets go goes take takes make makes use uses used using put puts set sets become becomes call
called come comes need needs needed mean means stand stands happen happens carry carries bear
bears hold holds hear hears receive receives require requires required allow allows allowed form
formed add adds added adding mark marks recognise recognises know known suppose appear appears
result results see sees want wants begin begins start starts started end ends ended contain
contains belong belongs run runs ran write writes wrote written decide decides last lasts lead
leads follow follows return returns returned please exactly first next likely
"""
_VERBS = frozenset(_VERBS_LISTED.split())
_DETERMINERS = ("the", "a", "an")
_BEFORE_NOUNS = frozenset(
    ("the", "a", "an", "which", "what", "whose", "how", "this", "that", "its", "their", "at", "as")
)
_INNER = frozenset(("of", "the", "a", "an", "and"))
_TOKEN = re.compile(r"[^\s,;:?!()\"“”«»]+|[,;:?!()\"“”«»]")
_GENITIVE = re.compile(r"['’]s?\Z")
_CLAUSE_MARKS = frozenset(',;:?!()"“”«»')

_MONTHS = "January|February|March|April|May|June|July|August|September|October|November|December"
_NAME = r"(?:[A-Z][\w-]*(?:['’]s(?= [A-Z]))?)"
THINGS: dict[str, re.Pattern[str]] = {
    "quoted": re.compile(r"\"[^\"]+\"|“[^”]+”|`[^`]+`"),
    "path": re.compile(r"(?<![\w/])(?:/[\w.+-]+)+/?|\b[\w-]+(?:/[\w.-]+)+"),
    "option": re.compile(r"(?<!\w)--?[a-zA-Z][\w-]*"),
    "date": re.compile(
        r"\b\d{4}-\d\d-\d\d\b|\b\d{1,2} [A-Z][a-z]+ \d{4}\b|\b[A-Z][a-z]+ \d{1,2}, \d{4}\b"
        rf"|\b(?:{_MONTHS})(?: (?:1[5-9]|20)\d\d)?\b|\b(?:1[5-9]|20)\d\d\b"
    ),
    "code": re.compile(r"\b(?=[\w.+~:-]*\d)(?=[\w.+~:-]*[a-zA-Z.+~:-])\w+(?:[.+~:-]\w+)*\b"),
    "number": re.compile(r"\b\d+\b"),
    "acronym": re.compile(r"\b[A-Z]{2,}s?\b(?! [A-Z])"),
    "names": re.compile(rf"\b{_NAME}(?: (?:of |the )*{_NAME}(?!['’]))+"),
    "name": re.compile(rf"\b{_NAME}"),
}
"""Kinds of things in the order in which they claim a place in a question."""


@dataclass(frozen=True)
class Thing:
    """Something that a question names, of a kind in THINGS, and where it stands."""

    kind: str
    text: str
    start: int
    end: int


def words_of(text: str) -> set[str]:
    """The content words of a text for comparison: lower case, letters cut to a stem of five."""
    words = re.findall(r"\w+(?:[.+:/@~-]\w+)*", text.lower().replace("’", "'"))
    return {w[:5] if w.isalpha() else w for w in words if w not in _FUNCTION_WORDS}


def things(question: str) -> list[Thing]:
    """What a question names, in the order of THINGS, none inside another.

    A capital at the beginning names nothing.
    """
    claimed: list[Thing] = []
    first = question.partition(" ")[0].lower()
    opens = first in _FUNCTION_WORDS or first in _VERBS
    text = question[:1].lower() + question[1:] if opens else question
    for kind, pattern in THINGS.items():
        for hit in pattern.finditer(text):
            start, end = hit.span()
            free = all(end <= other.start or other.end <= start for other in claimed)
            if free and (start > 0 or kind != "name"):
                claimed.append(Thing(kind, hit[0], start, end))
    return claimed


def subjects(questions: Sequence[str], titles: Sequence[str] = ()) -> list[str]:
    """What the questions are about, most frequent and longest first, each with its article.

    Runs of content words that at least two questions share, names of several words, and titles;
    none that only shortens a longer one of as many questions.
    """
    counts: Counter[tuple[str, ...]] = Counter()
    alone: Counter[tuple[str, ...]] = Counter()
    spelled: dict[tuple[str, ...], Counter[str]] = {}
    for question in dict.fromkeys(questions):
        own: set[tuple[str, ...]] = set()
        for article, words, bare in _runs(question):
            key = tuple(word.lower() for word in words)
            own.add(key)
            alone[key] += bare
            written = f"{article} {' '.join(words)}".strip()
            spelled.setdefault(key, Counter())[written] += 1
        counts.update(own)
    shared = {
        key: n
        for key, n in counts.items()
        if n > 1 and (_names_something(spelled[key], key) or 2 * alone[key] >= max(4, n))
    }
    longest = [
        key
        for key, n in shared.items()
        if not any(
            len(other) > len(key) and shared[other] >= n and _within(key, other) for other in shared
        )
    ]
    ranked = sorted(longest, key=lambda key: (-counts[key] * len(key), key))
    chosen = [spelled[key].most_common(1)[0][0] for key in ranked]
    names = [thing.text for q in questions for thing in things(q) if thing.kind == "names"]
    return list({text.lower(): text for text in reversed([*chosen, *titles, *names])}.values())[
        ::-1
    ]


def _names_something(spelled: Counter[str], key: tuple[str, ...]) -> bool:
    """Whether a run is more than one plain word."""
    text = spelled.most_common(1)[0][0]
    content = [word for word in key if word not in _INNER]
    return len(content) > 1 or any(c.isupper() or c.isdigit() for c in text)


def _within(inner: tuple[str, ...], outer: tuple[str, ...]) -> bool:
    n = len(inner)
    return any(outer[i : i + n] == inner for i in range(len(outer) - n + 1))


def _runs(question: str) -> Iterator[tuple[str, list[str], bool]]:
    """Runs of at most MAX_SUBJECT_WORDS words from one content word to another, with their article.

    They cross `of` and articles, no other function word, verb or mark. Last comes whether the run
    stands where a plain noun would need an article, as names do.
    """
    tokens = _TOKEN.findall(question)
    tokens = [t.rstrip(".") or t for t in tokens]
    content = [
        t not in _CLAUSE_MARKS and t.lower() not in _FUNCTION_WORDS and t.lower() not in _VERBS
        for t in tokens
    ]
    named = [has and t[:1].isupper() for has, t in zip(content, tokens, strict=True)]
    for i, begins in enumerate(content):
        if not begins or (i and named[i - 1] and named[i]):
            continue  # a name is not cut in two
        before = tokens[i - 1].lower() if i else ""
        article = before if before in _DETERMINERS else ""
        for j in range(i, min(len(tokens), i + MAX_SUBJECT_WORDS)):
            goes_on = j + 1 < len(tokens) and content[j + 1]
            cut = goes_on and (bool(_GENITIVE.search(tokens[j])) or (named[j] and named[j + 1]))
            if content[j] and not cut:
                bare = not goes_on and before not in _BEFORE_NOUNS and not (i and content[i - 1])
                yield "" if goes_on else article, _plain(tokens[i : j + 1]), bare
            elif not content[j] and tokens[j].lower() not in _INNER:
                break


def _plain(tokens: Sequence[str]) -> list[str]:
    """The words, the last without its genitive."""
    return [*tokens[:-1], _GENITIVE.sub("", tokens[-1])]
