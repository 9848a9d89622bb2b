"""Markdown and plain text: a document a file, and the questions that its headings ask."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lorewright.knowledge.data import Document, Fact
from lorewright.knowledge.markdown import questions_and_answers, without_markup
from lorewright.knowledge.readers.items import Item, repaired, text_of
from lorewright.knowledge.splitting import first_heading


def read_document(path: Path, name: str) -> Iterator[Item]:
    """A Markdown or text file: one document, and a fact for each question that it answers."""
    whole, notes = text_of(path)
    yield from notes
    whole, note = repaired(whole)
    if note:
        yield Item(note, str(path))
    yield from items_of_markdown(whole, path, name)


def items_of_markdown(whole: str, path: Path, name: str, *, title: str = "") -> Iterator[Item]:
    """The document that a Markdown text is, notes on what is left out of it, and its facts.

    The title is the first heading, or the one given where there is none.
    """
    text, left_out = without_markup(whole)
    yield from (Item(note, str(path)) for note in left_out)
    if not text.strip():
        return
    yield Item(Document(name, text, first_heading(text) or title), str(path))
    for n, (question, answer) in enumerate(questions_and_answers(text), start=1):
        fact = Fact(f"{name}-question-{n}", question, answer, source=name)
        yield Item(fact, str(path), if_unique=True)
