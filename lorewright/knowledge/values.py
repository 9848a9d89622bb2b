"""Values that a text states: what a question about it can have as its answer.

Quoted terms, code, numbers with what they count, versions, dates, options, paths, names; and where
a sentence has none of these its last words. No language model: the same text gives the same values.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

MAX_VALUES = 4
"""At most so many values of one sentence, and a further one for every WORDS_A_VALUE words."""
WORDS_A_VALUE = 6
MAX_WORDS = 6
"""Longest value, in words."""

_QUOTED = re.compile(
    r'"([^"\n]{1,60})"|“([^”\n]{1,60})”|`([^`\n]{1,60})`|(?<!\w)\'([^\'\n]{2,60})\'(?!\w)'
)
_WORD = re.compile(r"\S+")
_OUTER = ".,;:!?()[]{}\"“”'`*|"
_CODE = re.compile(r"\d|[a-z][A-Z]|[_/@=+\\]|^--?\w|\w[.:]\w|^[A-Z]{2,}s?$|\w-\w|^[$%&~^<>#]+\S")
_NAME = re.compile(
    r"[A-Z][\w'’.-]*(?:\s+(?:(?:of|the|de|van|von|der|di|da)\s+){0,2}[A-Z0-9][\w'’.-]*)*"
)
_COUNT = re.compile(
    r"(?:\d[\d.,]*|half|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|thirteen|"
    r"fourteen|fifteen|sixteen|seventeen|eighteen|nineteen|twenty|thirty|forty|fifty|sixty|"
    r"seventy|eighty|ninety|hundred|thousand)(?:-\w+)?",
    re.IGNORECASE,
)
_UNIT = re.compile(r"[a-z]{2,}(?<!ly)|[A-Za-z]{1,3}|[A-Z]?[a-z]?[A-Z][a-z]*/?s")
_RANGE = re.compile(r"(?<![\w.])\d[\d.,]*\d*(?: ?[–-] ?| to )\d+(?:[.,]\d+)*(?![\w-])")
_HEAD = re.compile(r"[-*+•\s]*[\"'`*]*(\w[\w.-]*)[\"'`*]*: ")
_SMALL = frozenset(
    re.findall(
        r"\w+",
        """a an the of to in on at by for with from and or as is are was were be been it its this
        that these those which who what when where how if then than into not no but can may
        must should will would has have had do does did you your we our they their he she his
        her i""",
    )
)
_STATED = re.compile(r"\b(?:is|are|was|were|be|by|in|as|called|named|using|with|to|at)\s+(?=\S)")


@dataclass(frozen=True)
class Value:
    """A part of a sentence that a question can ask for."""

    text: str
    start: int
    """Where it stands in the sentence; quotes around it belong to the sentence."""

    @property
    def end(self) -> int:
        """The position behind it."""
        return self.start + len(self.text)


def values_of(sentence: str) -> list[Value]:
    """The values of a sentence in the order of the text, the most telling ones where many stand.

    None lies inside another. A sentence of words alone has its last words as its value.
    """
    sources = (
        *(_quoted, _headed, _ranged, _named_at_length),
        *(_counted, _coded, _named, _stated),
    )
    chosen: list[Value] = []
    for value in (value for source in sources for value in source(sentence)):
        free = all(value.end <= other.start or other.end <= value.start for other in chosen)
        words = value.text.split()
        if free and len(words) <= MAX_WORDS and not {w.lower() for w in words} <= _SMALL:
            chosen.append(value)
    if not chosen:
        chosen = list(_last_words(sentence))
    at_most = max(MAX_VALUES, len(sentence.split()) // WORDS_A_VALUE)
    return sorted(chosen[:at_most], key=lambda value: value.start)


def _quoted(sentence: str) -> Iterator[Value]:
    for match in _QUOTED.finditer(sentence):
        group = next(i for i in range(1, 5) if match[i] is not None)
        text = match[group].strip(" .,;:!?*") or match[group].strip()
        if text:
            yield Value(text, match.start(group) + match[group].index(text))


def _words(sentence: str) -> list[Value]:
    words = []
    for match in _WORD.finditer(sentence):
        bare = match[0].strip(_OUTER)
        if bare:
            words.append(Value(bare, match.start() + match[0].index(bare)))
    return words


def _coded(sentence: str) -> Iterator[Value]:
    """Words that are no plain words, except plain numbers; "gzip -9" goes with what it follows."""
    words = _words(sentence)
    for before, word in zip([None, *words], words, strict=False):
        if _COUNT.fullmatch(word.text) or not _CODE.search(word.text):
            continue
        if word.text.startswith("-") and before and before.end + 1 == word.start:
            yield Value(sentence[before.start : word.end], before.start)
        else:
            yield word


def _headed(sentence: str) -> Iterator[Value]:
    """The one word that an entry explains: "forget: resets what …"."""
    head = _HEAD.match(sentence)
    if head:
        yield Value(head[1], head.start(1))


def _ranged(sentence: str) -> Iterator[Value]:
    """From one number to another."""
    for match in _RANGE.finditer(sentence):
        yield Value(match[0], match.start())


def _counted(sentence: str) -> Iterator[Value]:
    """Numbers, with the plain word or the unit that says what they count."""
    words = _words(sentence)
    for word, following in zip(words, [*words[1:], None], strict=False):
        if not _COUNT.fullmatch(word.text):
            continue
        adjoins = following is not None and following.start == word.end + 1
        unit = following.text if following and adjoins and following.text not in _SMALL else ""
        end = word.end + 1 + len(unit) if _UNIT.fullmatch(unit) else word.end
        yield Value(sentence[word.start : end], word.start)


def _named_at_length(sentence: str) -> Iterator[Value]:
    """Names of several words, a version behind them included."""
    return (value for value in _named(sentence) if " " in value.text)


def _named(sentence: str) -> Iterator[Value]:
    """Capitalised names; a capital that begins a sentence counts with another behind it only."""
    entry = _HEAD.match(sentence)
    words = (word.start for word in _words(sentence))
    first = {next(words, 0), entry.end() if entry else 0}
    for match in _NAME.finditer(sentence):
        text, start = match[0].rstrip(_OUTER + "-’"), match.start()
        head, _, rest = text.partition(" ")
        is_command = start in first and head.istitle() and rest.isupper()  # "Set LANG"
        if rest and (is_command or head.lower() in _SMALL):
            text, start = rest, start + text.index(rest)
        if text and (start not in first or " " in text) and text[0].isupper():
            yield Value(text, start)


def _stated(sentence: str) -> Iterator[Value]:
    """The one or two words behind a last "is", "by", "in" …: "was created by dracut"."""
    bare = sentence.rstrip(_OUTER + " ")
    heads = [match.end() for match in _STATED.finditer(bare)]
    tail = bare[heads[-1] :] if heads else ""
    small = [word.lower() in _SMALL for word in tail.split()]
    if 1 <= len(small) <= 2 and not any(small):
        yield Value(tail, heads[-1])


def _last_words(sentence: str) -> Iterator[Value]:
    """The last word and the two before it, up to a small one."""
    words = _words(sentence)[-3:]
    small = [n for n, word in enumerate(words) if word.text.lower() in _SMALL]
    words = words[small[-1] + 1 if small and small[-1] + 1 < len(words) else 0 :]
    if words:
        yield Value(sentence[words[0].start : words[-1].end], words[0].start)


def lines_of(sentence: str) -> list[str]:
    """A sentence as one line; code, of which every line states something, line by line."""
    lines = [line.strip() for line in sentence.split("\n") if line.strip()]
    code = any(re.match(r"\s{2,}\S|\t", line) for line in sentence.split("\n")[1:])
    code = code or any(line[-1] in "{};" for line in lines)
    if not code:
        return [" ".join(lines)] if lines else []
    return [line for line in lines if any(c.isalnum() for c in line)]
