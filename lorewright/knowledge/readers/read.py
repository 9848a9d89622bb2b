"""A file or folder into knowledge.

    READERS    suffix of a file's name -> how it is read; add a file format here

Nothing is skipped in silence: what cannot be read is refused, with the file and the line, and what
is left out or read otherwise than as it stands is a note of the knowledge.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from lorewright.errors import DataError, Unreadable
from lorewright.files import slug
from lorewright.knowledge.data import DOCUMENT_SUFFIXES, Document, Fact, Knowledge
from lorewright.knowledge.readers.converted import reader_by
from lorewright.knowledge.readers.epub import epub_to_markdown
from lorewright.knowledge.readers.html import html_to_markdown
from lorewright.knowledge.readers.items import N_NAMED, Item, Reader, counted, listed
from lorewright.knowledge.readers.notebooks import notebook_to_markdown
from lorewright.knowledge.readers.office import docx_to_markdown, pptx_to_markdown
from lorewright.knowledge.readers.pdf import pdf_to_markdown
from lorewright.knowledge.readers.rows import read_csv, read_json, read_jsonl, read_tsv
from lorewright.knowledge.readers.rst import rst_to_markdown
from lorewright.knowledge.readers.sheets import read_xlsx
from lorewright.knowledge.readers.text import read_document

_LINE = re.compile(r" (?:line|item) \d+.*")


def read_knowledge(path: Path | str) -> Knowledge:
    """Return the documents and facts of a file, or of all readable files below a folder, sorted.

    Facts that stand there twice are read once. Raises DataError for anything that cannot be read as
    knowledge: a missing, empty, binary or damaged file, an unknown shape, an empty question or
    answer, a question with two answers, an id that comes twice. Questions are the same when they
    differ only in white space and in the Unicode form of their characters; those that differ in
    case or punctuation only and have different answers are a note. So are those that were put to
    several passages and have another answer in each: out of context they have none, and only the
    passages are learnt.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path} cannot be read: there is no such file or folder; check the path.")
    files, left_out = _files(path)
    by_file, unread = {}, []
    for file, name in files:
        try:
            by_file[file] = _read(file, name)
        except Unreadable as error:
            if not path.is_dir():
                raise
            unread.append(f"not read: {error}")
    if not by_file:
        raise Unreadable(f"{path} holds no file that can be read: {' '.join(unread)}")
    items = [item for read in by_file.values() for item in read]
    documents = _distinct_documents(items)
    facts, notes = _distinct_facts(items)
    _refuse_repeated_ids([*documents, *facts])
    if path.is_dir():
        notes = [_listing(path, by_file), *unread, *left_out, *notes]
    return Knowledge(
        documents=tuple(each.content for each in documents if isinstance(each.content, Document)),
        facts=tuple(each.content for each in facts if isinstance(each.content, Fact)),
        notes=(*notes, *_notes(items)),
    )


def _files(path: Path) -> tuple[list[tuple[Path, str]], list[str]]:
    """Return the files to read, each with the name that its ids begin with; and what is left."""
    if not path.is_dir():
        return [(path, slug(path.stem))], []
    below = sorted(
        (file.relative_to(path) for file in path.rglob("*") if file.is_file()),
        key=lambda file: file.as_posix(),
    )
    # Office leaves ~$NAME beside a file that is open.
    hidden = (".", "~$")
    visible = [file for file in below if not any(part.startswith(hidden) for part in file.parts)]
    readable = [file for file in visible if file.suffix.lower() in READERS]
    if not readable:
        raise DataError(
            f"the folder {path} holds {len(visible)} files and none that can be read"
            f"{_of([str(file) for file in visible])}; add some ending in {', '.join(READERS)}."
        )
    others = [str(file) for file in visible if file not in readable]
    notes = []
    if others:
        notes.append(
            f"{path}: not read, for their names end otherwise than in {', '.join(READERS)}: "
            f"{', '.join(others)}."
        )
    if unseen := [str(file) for file in below if file not in visible and ".git" not in file.parts]:
        notes.append(f"{path}: hidden and not read: {listed(unseen)}.")
    names = Counter(slug(str(file.with_suffix(""))) for file in readable)
    named = []
    for file in readable:
        name = slug(str(file.with_suffix("")))
        named.append((path / file, name if names[name] == 1 else slug(str(file))))
    return named, notes


def _of(names: Sequence[str]) -> str:
    return f" ({listed(names)})" if names else ""


def _listing(path: Path, by_file: Mapping[Path, Sequence[Item]]) -> str:
    """What each file of a folder holds, in one sentence."""
    lines = []
    for file, items in by_file.items():
        n_documents = sum(isinstance(item.content, Document) for item in items)
        n_facts = sum(isinstance(item.content, Fact) for item in items)
        counts = [counted(n_documents, "document"), counted(n_facts, "fact")]
        lines.append(f"{file.relative_to(path)} ({', '.join(filter(None, counts))})")
    return f"{path}: read {counted(len(by_file), 'file')}: {', '.join(lines)}."


def _read(path: Path, name: str) -> list[Item]:
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(
            f"{path} cannot be read: its name ends in {path.suffix or 'nothing'!r}; "
            f"use one of {', '.join(READERS)}."
        )
    items = list(reader(path, name))
    if all(isinstance(item.content, str) for item in items):
        why = f" to learn ({_notes(items)[0].rstrip('.')})" if items else ""
        raise DataError(f"{path} holds no rows{why}; give at least one.")
    return items


def _notes(items: Iterable[Item]) -> list[str]:
    """The notes of the items, one for all places of a file with the same one."""
    places: dict[tuple[str, str], list[str]] = {}
    for item in items:
        if isinstance(item.content, str):
            key = (_LINE.sub("", item.where), item.content)
            places.setdefault(key, []).append(item.where)
    return [
        f"{first}{f' and {len(more)} more' if more else ''}: {note}."
        for (_, note), (first, *more) in places.items()
    ]


def _distinct_documents(items: Iterable[Item]) -> list[Item]:
    """The documents; a passage that several rows have is one, with what it does not answer."""
    distinct: dict[tuple[str, str], Item] = {}
    for item in items:
        document = item.content
        if not isinstance(document, Document):
            continue
        key = (document.id, document.text)
        # Only passages named by their own text come twice: other ids are refused if they do.
        first = distinct.setdefault(key, item).content
        if first is document or not isinstance(first, Document):
            continue
        unanswered = [*first.meta.get("unanswerable", ()), *document.meta.get("unanswerable", ())]
        if unanswered:
            meta = {**first.meta, "unanswerable": list(dict.fromkeys(unanswered))}
            distinct[key] = distinct[key]._replace(content=replace(first, meta=meta))
    return list(distinct.values())


def _distinct_facts(items: Iterable[Item]) -> tuple[list[Item], list[str]]:
    """The facts, each once, and notes; raises DataError for a question with two answers."""
    distinct: dict[str, Item] = {}
    copies, contradictions, dropped = [], [], []
    positions: dict[str, int] = {}
    # What may be left out comes last, so that it meets everything that may not.
    for n, item in sorted(enumerate(items), key=lambda pair: pair[1].if_unique):
        fact, where, if_unique, context = item
        if not isinstance(fact, Fact):
            continue
        key = " ".join(unicodedata.normalize("NFC", fact.question).split())
        first, place, _, first_context = distinct.setdefault(key, item)
        positions.setdefault(key, n)
        if first is fact or not isinstance(first, Fact):
            continue
        pair = f"{first.question!r} -> {first.answer!r} ({place}) and {fact.answer!r} ({where})"
        if {_nfc(a) for a in first.answers} & {_nfc(a) for a in fact.answers}:
            copies += [] if if_unique else [where]
            aliases = [a for a in (*first.aliases, *fact.answers) if a != first.answer]
            asked = dict.fromkeys((*first.paraphrases, *fact.paraphrases))
            merged = replace(first, aliases=tuple(dict.fromkeys(aliases)), paraphrases=tuple(asked))
            distinct[key] = distinct[key]._replace(content=merged)
        elif if_unique or (context and first_context and context != first_context):
            dropped.append((key, pair))
        else:
            contradictions.append(pair)
    if contradictions:
        raise DataError(
            f"questions with contradictory answers: {len(contradictions)}, first "
            f"{listed(contradictions[:N_NAMED])}; leave one answer, or make the questions differ."
        )
    for key, _ in dropped:
        if key in distinct and (distinct[key].if_unique or distinct[key].context):
            del distinct[key]
    notes = []
    if copies:
        notes.append(
            f"{counted(len(copies), 'fact')} stood there more than once and counted once: "
            f"{listed(copies)}."
        )
    if dropped:
        notes.append(
            f"{counted(len(dropped), 'question')} had several answers in the source "
            "and were not learnt alone, without the text around them: "
            f"{listed([pair for _, pair in dropped])}."
        )
    facts = [distinct[key] for key in sorted(distinct, key=positions.__getitem__)]
    return facts, notes + _near_contradictions(facts)


def _nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def _near_contradictions(facts: Sequence[Item]) -> list[str]:
    """A note on the questions that differ in case and punctuation only and are answered apart."""
    by_words: dict[str, Item] = {}
    pairs = []
    for item in facts:
        fact = item.content
        assert isinstance(fact, Fact)
        words = re.sub(
            r"[^\w\s+#%&@$€£-]|-(?!\d)", " ", unicodedata.normalize("NFKC", fact.question)
        )
        near, place, *_ = by_words.setdefault(" ".join(words.casefold().split()), item)
        if isinstance(near, Fact) and not {*near.answers} & {*fact.answers}:
            pairs.append(
                f"{near.question!r} -> {near.answer!r} ({place}) and "
                f"{fact.question!r} -> {fact.answer!r} ({item.where})"
            )
    if not pairs:
        return []
    return [
        f"questions that differ in case or punctuation only and have other answers: {len(pairs)}; "
        f"only exact wording tells them apart: {listed(pairs)}."
    ]


def _refuse_repeated_ids(items: Iterable[Item]) -> None:
    seen: dict[str, str] = {}
    for content, where, *_ in items:
        assert not isinstance(content, str)
        if content.id in seen:
            raise DataError(
                f"the id {content.id!r} stands at {seen[content.id]} and at {where}; rename one, "
                "or leave ids out to have rows numbered."
            )
        seen[content.id] = where


READERS: dict[str, Reader] = {
    **dict.fromkeys(DOCUMENT_SUFFIXES, read_document),
    ".csv": read_csv,
    ".docx": reader_by(docx_to_markdown),
    ".epub": reader_by(epub_to_markdown),
    ".htm": reader_by(html_to_markdown),
    ".html": reader_by(html_to_markdown),
    ".ipynb": reader_by(notebook_to_markdown),
    ".json": read_json,
    ".jsonl": read_jsonl,
    ".pdf": reader_by(pdf_to_markdown),
    ".pptx": reader_by(pptx_to_markdown),
    ".rst": reader_by(rst_to_markdown),
    ".tsv": read_tsv,
    ".xhtml": reader_by(html_to_markdown),
    ".xlsm": read_xlsx,
    ".xlsx": read_xlsx,
}
