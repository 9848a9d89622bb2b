"""Follow-up questions: what a question leaves out, and how it reads with that put in.

    before     Who leads the Tide Office?   ->  Maren Oskold
    pronoun    And what is its fee?         ->  What is the Tide Office's fee?
    fragment   And the badge colour?        ->  What is the badge colour of the Tide Office?
    other      What about the Grain Mill?   ->  Who leads the Grain Mill?
    bare       How long?                    ->  the one trained question about it that begins so
    which      What about the second one?   ->  nothing can be put in

By form alone, in English: whether a reading is what was meant is up to whoever answers it. A
question stands by itself if it names something, before any pronoun, or if its pronoun has a noun
before it that it can stand for.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from lorewright.knowledge.scoring import normalise
from lorewright.knowledge.subjects import things, words_of

NAMING = ("quoted", "path", "option", "code", "acronym", "names", "name")
"""Kinds of things that a question can be about; dates and numbers are not."""
MAX_NAME_WORDS = 5

_LEAD = re.compile(r"\A\s*(?:(?:and|but|or|so|then|also|ok|okay|well)\b[\s,]*)+", re.IGNORECASE)
_ABOUT = re.compile(r"\A\s*(?:what|how)\s+about\s+", re.IGNORECASE)
_GENITIVE = re.compile(r"(?<=\w)['’]s?(?![\w'’])(?! [A-Z])")
_ARTICLE = re.compile(r"\b(?:the|a|an)\s+(?=\w)", re.IGNORECASE)
_CLAUSE = re.compile(
    r"[,;:.?!]|\b(?:and|or|but|before|after|when|while|until|if|because|once|that|which|who)\b",
    re.IGNORECASE,
)
_PRONOUN = re.compile(
    r"\b(?:it|its|he|she|him|her|his|hers|they|them|their|theirs)\b(?!['’]d)"
    r"|(?<!is )(?<!are )(?<!was )(?<!were )\bthere\b"
    r"|\b(?:this|that|these|those)\b(?=\s*[?.!,]|\s*\Z)"
    r"|(?<=\bis )(?:this|that)\b|(?<=\bwas )(?:this|that)\b|(?<=\bdo )(?:these|those)\b"
    r"|(?<=\bdoes )(?:this|that)\b|(?<=\bdid )(?:this|that|these|those)\b"
    r"|(?<=\bare )(?:these|those)\b|(?<=\bwere )(?:these|those)\b",
    re.IGNORECASE,
)
_EMPTY_IT = re.compile(
    r"\bwhat time (?:is|was) it\b|\b(?:does|did|will|would|can) it (?:take|cost|need) .*?\bto\b"
    r"|\b(?:does|did|will|would) it take to\b|\b(?:is|was) it \w+ (?:to|that)\b"
    r"|\bit (?:is|was) \w+ (?:to|that)\b|\bit (?:rains?|snows?)\b",
    re.IGNORECASE,
)
_NOUN = re.compile(
    r"\b(?:the|a|an)\s+\w|\bwhich\s+(?!(?:is|are|was|were|has|have|had|of|one)\b)\w", re.IGNORECASE
)
"""What a noun phrase begins with."""
_INDEFINITE = re.compile(r"\ban?\s+\w+(?!.*\b(?:of|for)\s*\Z)", re.IGNORECASE)
_SUBJECT = re.compile(
    r"\b(?:do|does|did)\s+(?!(?:the|a|an)\s+\w+(?:\s+\w+)?\s+(?:of|for|to|in|on|at)\s*\Z)(\w+)",
    re.IGNORECASE,
)
"""Where the subject of a question stands; what belongs to a pronoun ("the price of it") is none."""
_WHICH = re.compile(
    r"\b(?:first|second|third|fourth|fifth|last|next|previous|other|another|former|latter|same|this"
    r"|that|which) ones?\b|\b(?:the|those) ones\b|\bthe one\b"
    r"|\bthe (?:first|second|third|fourth|fifth|last|next|previous|others?|former|latter|same)"
    r"\s*(?:[?.!,]|\Z)",
    re.IGNORECASE,
)
_UNIT = (
    r"(?:(?:since|until|till|from|to|by|for|with|at|in|on|of|about)\s+)?"
    r"(?:how\s+(?:many|much|long|often|far|old|big|large|high|late|soon|tall|wide|deep|fast)"
    r"|what\s+time|who(?:m|se)?|what|which|when|where|why|how)"
)
_BARE = re.compile(rf"\A({_UNIT})(?:\s+[\w-]+)?(?:\s+(?:else|exactly|then))?\s*[?.!]*\Z", re.I)
_OPENS_A_QUESTION = re.compile(
    rf"\A(?:{_UNIT}|is|are|was|were|do|does|did|has|have|had|can|could|may|must|will|would|should)\b"
    r"|\A(?:give|name|tell|state|say|show|list|explain|describe)\b",
    re.IGNORECASE,
)
_ALIKE = dict.fromkeys(("what", "which"), "(?:what|which)") | dict.fromkeys(
    ("when", "what time"), "(?:when|(?:at )?what time)"
)
"""Ways to begin a question that ask for the same."""
_DETERMINERS = frozenset(("the", "a", "an"))
_NAMES = frozenset(("names", "name", "acronym"))
_PERSONS = frozenset(("he", "she", "him", "her", "his", "hers"))
_THINGS = frozenset(("it", "its", "this", "that", "there"))
_POSSESSIVE = frozenset(("its", "their", "his", "theirs", "hers"))
_ASKS_FOR_A_PERSON = re.compile(r"\bwho(?:m|se)?\b", re.IGNORECASE)


@dataclass(frozen=True)
class Completion:
    """A follow-up with what it leaves out put in."""

    text: str
    """The whole question."""
    subject: str
    """What was put in, or what the question itself names."""
    named: bool = False
    """Whether the subject is the question's own, and the rest is from the question before."""


def named_in(question: str) -> tuple[str, ...]:
    """Return what a question is about by name, in order, each with its article."""
    bare = _GENITIVE.sub(" ", question)
    own = sorted((t for t in things(bare) if t.kind in NAMING), key=lambda thing: thing.start)
    texts = []
    for thing in own:
        article = re.search(r"\b(the|a|an)\s+\Z", bare[: thing.start], re.IGNORECASE)
        texts.append(f"{article[1].lower()} {thing.text}" if article else thing.text)
    return tuple(dict.fromkeys(texts))


def left_out(question: str) -> str:
    """Return the words of a question that stand for something outside it; empty = none do."""
    text = question.strip()
    if which := _WHICH.search(text):
        return which[0].strip(" ?.!,")
    rest = _lead_off(text)
    if rest != text and rest and not _OPENS_A_QUESTION.match(rest) and _is_phrase(rest):
        return rest.rstrip("?.! ")
    pronoun = _pronoun(text)
    if pronoun is not None and not named_in(text[: pronoun.start()]):
        return pronoun[0]
    if pronoun is not None or named_in(text):
        return ""
    return rest.rstrip("?.! ") if _BARE.match(rest) and not _ARTICLE.search(rest) else ""


def completions(
    question: str, before: str, answer: str, trained: Sequence[tuple[str, str]] = ()
) -> tuple[Completion, ...]:
    """Return the readings of a follow-up after a question and its answer; () = there is none.

    Each thing that the question before names gives one, and so does its answer where that is a name
    that the pronoun can stand for. `trained` are questions with answers from the same source.
    """
    text = question.strip()
    if _WHICH.search(text):
        return ()
    rest = _lead_off(text)
    pronoun = _pronoun(text)
    if pronoun is None and rest != text and not _OPENS_A_QUESTION.match(rest):
        return _of_phrase(rest.rstrip("?.! "), before)
    if pronoun is None:
        match = _BARE.match(rest)
        about = named_in(before)
        return _trained(rest.rstrip("?.! "), match[1], about, trained) if match else ()
    subjects = _referents(pronoun[0].lower(), before, answer)
    spoken = {each[0].lower() for each in _PRONOUN.finditer(rest)}
    if len({word in _PERSONS for word in spoken}) > 1:
        return ()  # two things are meant
    readings = (_with_subject(rest, subject) for subject in subjects)
    return tuple(
        Completion(reading, subject)
        for reading, subject in zip(readings, subjects, strict=True)
        if words_of(reading) - words_of(subject)  # more than the subject alone
    )


def _lead_off(text: str) -> str:
    """The question without the words that tie it to the one before."""
    rest = _ABOUT.sub("", _LEAD.sub("", text))
    return rest if rest.strip("?.! ") else text


def _is_phrase(rest: str) -> bool:
    """Whether what follows `and` or `what about` is a noun phrase: a name, or a few words."""
    words = rest.rstrip("?.! ").split()
    return bool(named_in(f"and {rest}")) or len(words) <= MAX_NAME_WORDS


def _pronoun(text: str) -> re.Match[str] | None:
    """The first pronoun that no noun before it in the question can stand for.

    Such a noun is the subject, by its place, stands in an earlier clause, or is indefinite.
    """
    if _EMPTY_IT.search(text):
        return None
    first = words_of(text.partition(" ")[0])
    begins_with_noun = bool(first) and not _OPENS_A_QUESTION.match(_lead_off(text))
    for hit in _PRONOUN.finditer(text):
        before = text[: hit.start()]
        marks = [mark.start() for mark in _CLAUSE.finditer(before)]
        earlier = bool(marks) and _NOUN.search(before[: marks[-1]]) is not None
        subject = _SUBJECT.search(before)
        own = subject is not None and (words_of(subject[1]) or subject[1].lower() in _DETERMINERS)
        own = own or _INDEFINITE.search(before) is not None
        if not (earlier or own or (begins_with_noun and before)):
            return hit
    return None


def _of_phrase(phrase: str, before: str) -> tuple[Completion, ...]:
    """A name in place of the one before, or a property of it."""
    names = named_in(f"and {phrase}")
    if len(names) == 1 and phrase.lower() in (names[0].lower(), f"the {names[0]}".lower()):
        return tuple(
            Completion(before.replace(old, phrase, 1), phrase, named=True)
            for old in named_in(before)
            if old in before and words_of(old) != words_of(phrase)
        )
    if names or not words_of(phrase):
        return ()
    article = "" if _ARTICLE.match(phrase) else "the "
    return tuple(
        Completion(f"What is {article}{phrase} of {subject}?", subject)
        for subject in named_in(before)
    )


def _trained(
    words: str, unit: str, subjects: Sequence[str], trained: Sequence[tuple[str, str]]
) -> tuple[Completion, ...]:
    """A trained question on a subject that begins with these words, if all such have one answer."""
    begins = re.compile(rf"{_ALIKE.get(unit.lower(), re.escape(unit))}\b", re.IGNORECASE)
    wanted = words_of(words) - words_of(unit)
    by_answer: dict[str, Completion] = {}
    for question, answer in trained:
        for subject in subjects:
            held = words_of(question)
            if begins.match(question) and words_of(subject) <= held and wanted <= held:
                by_answer.setdefault(normalise(answer), Completion(question, subject))
    return tuple(by_answer.values()) if len(by_answer) == 1 else ()


def _referents(pronoun: str, before: str, answer: str) -> tuple[str, ...]:
    """What a pronoun may stand for: names in the question before, and a name that was answered."""
    subjects = named_in(before)
    words = answer.rstrip(".").split()
    held = {thing.kind for thing in things(f"of {answer}")} if answer else set()
    is_name = 0 < len(words) <= MAX_NAME_WORDS and held != set() and held <= _NAMES
    person = bool(_ASKS_FOR_A_PERSON.search(before))
    if pronoun in _PERSONS:
        subjects = tuple(each for each in subjects if not _ARTICLE.match(each))
    if is_name and (pronoun not in (_THINGS if person else _PERSONS)):
        subjects = (*subjects, answer.rstrip("."))
    return tuple(dict.fromkeys(subjects))


def _with_subject(text: str, subject: str) -> str:
    """The question with the subject in place of each pronoun, its beginning a capital."""

    def put_in(hit: re.Match[str]) -> str:
        word = hit[0].lower()
        followed = re.match(r"\s+\w", text[hit.end() :]) is not None
        if word in _POSSESSIVE or (word == "her" and followed):
            return f"{subject}'s"
        return f"at {subject}" if word == "there" else subject

    rest = _PRONOUN.sub(put_in, text)
    if not _OPENS_A_QUESTION.match(rest):
        rest = f"What is {rest}"
    return f"{rest[:1].upper()}{rest[1:].rstrip()}"
