"""The types of knowledge: documents and facts, examples to learn, probes to ask afterwards."""

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lorewright.errors import DataError
from lorewright.files import digest, read_text, slug
from lorewright.knowledge.markdown import without_markup
from lorewright.knowledge.splitting import first_heading

PROBE_KINDS = (
    *("efficacy", "paraphrase", "neighborhood", "verbatim", "reverse", "multihop", "unknown"),
)
REHEARSAL = "rehearsal"
"""Kind of examples that are general questions with the base's own replies: trained a few at a time,
and never counted as learnt."""
OPEN_KINDS = ("neighborhood", "unknown")
"""Probe kinds judged without a list of answers: unchanged behaviour, or declining."""

DOCUMENT_SUFFIXES = (".md", ".markdown", ".txt")


@dataclasses.dataclass(frozen=True)
class Document:
    """A text to be remembered."""

    id: str
    text: str
    title: str = ""
    meta: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        _require("document", self.id, id=self.id, text=self.text)

    @classmethod
    def read(cls, path: Path | str) -> "Document":
        """Return the Markdown or text file as one document whose id is the slug of its name.

        The title is the first heading, if there is one. Raises DataError for other suffixes and for
        files that are empty, binary or not UTF-8.
        """
        path = Path(path)
        if path.suffix.lower() not in DOCUMENT_SUFFIXES:
            raise DataError(
                f"{path} is no document: its name ends in {path.suffix or 'nothing'!r}; use one of "
                f"{', '.join(DOCUMENT_SUFFIXES)}."
            )
        text, _ = without_markup(read_text(path))
        return cls(id=slug(path.stem), text=text, title=first_heading(text))


@dataclasses.dataclass(frozen=True)
class Fact:
    """One checkable piece of knowledge: a question and its answer."""

    id: str
    question: str
    answer: str
    aliases: tuple[str, ...] = ()
    """Other spellings of the answer that count as right."""
    paraphrases: tuple[str, ...] = ()
    """Other ways to ask; for probes only, never trained on."""
    source: str = ""
    """Id of the document or file that the fact came from."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "aliases", tuple(self.aliases))
        object.__setattr__(self, "paraphrases", tuple(self.paraphrases))
        _require("fact", self.id, id=self.id, question=self.question, answer=self.answer)
        for text in self.aliases:
            _require("fact", self.id, alias=text)
        for text in self.paraphrases:
            _require("fact", self.id, paraphrase=text)

    @property
    def answers(self) -> tuple[str, ...]:
        """The answer and its aliases: everything that counts as right."""
        return (self.answer, *self.aliases)


@dataclasses.dataclass(frozen=True)
class Example:
    """A prompt and the completion to learn; the loss is on the completion only."""

    prompt: str
    completion: str
    kind: str = "qa"
    source: str = ""
    """Id of the fact or document that the example came from."""

    def __post_init__(self) -> None:
        _require("example", self.source or self.prompt[:40], completion=self.completion)


@dataclasses.dataclass(frozen=True)
class Probe:
    """A question for after the write, with acceptable answers and a kind."""

    id: str
    question: str
    answers: tuple[str, ...]
    kind: str
    source: str = ""
    context: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "answers", tuple(self.answers))
        if self.kind not in PROBE_KINDS:
            raise DataError(
                f"probe {self.id!r} has kind {self.kind!r}; use one of {', '.join(PROBE_KINDS)}."
            )
        _require("probe", self.id, id=self.id, question=self.question)
        if not self.answers and self.kind not in OPEN_KINDS:
            raise DataError(
                f"probe {self.id!r} of kind {self.kind!r} has no answers; give at least one, or "
                f"use a kind that needs none ({', '.join(OPEN_KINDS)})."
            )
        for text in self.answers:
            _require("probe", self.id, answer=text)


@dataclasses.dataclass(frozen=True)
class Knowledge:
    """Documents and facts, in reading order."""

    documents: tuple[Document, ...] = ()
    facts: tuple[Fact, ...] = ()
    notes: tuple[str, ...] = dataclasses.field(default=(), compare=False)
    """What was read otherwise than as it stands, or left out, in sentences."""

    def digest(self) -> str:
        """Return the sha256 of its documents and facts, order included, as 64 hex digits."""
        return digest({"documents": self.documents, "facts": self.facts})


def _require(what: str, name: str, **fields: str) -> None:
    for field, value in fields.items():
        if not isinstance(value, str):
            raise DataError(
                f"{what} {name!r} has {field!r} of type {type(value).__name__}; give a string."
            )
        if not value.strip():
            raise DataError(f"{what} {name!r} has an empty {field}; give a text or leave it out.")


def trained_pairs(examples: Iterable[Example]) -> list[tuple[str, str]]:
    """The questions that a lesson trains to be answered, with the answers."""
    return [(e.prompt, e.completion) for e in examples if e.kind == "qa" and e.prompt.strip()]
