"""Markdown as people write it: what in it is no knowledge, the questions it answers, its tables."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

MAX_UNBROKEN = 400
"""Longest run of ASCII without a space that is read: longer ones are data, not words."""
MAX_MINIFIED = 1000
"""Longest line of ASCII that is read with hardly a space in it: longer ones are minified code."""
MAX_ANSWER_CHARS = 300
"""Longest paragraph below a question that is learnt as its answer."""

_FENCED = re.compile(r"(^ {0,3}(?:```|~~~).*?(?:^ {0,3}(?:```|~~~)[ \t]*$|\Z))", re.M | re.S)
_FRONT_MATTER = re.compile(
    r"\A\s*---[ \t]*\n(?=[ \t]*[\w-]+[ \t]*:)(?:.*\n)*?(?:---|\.\.\.)[ \t]*(?:\n|\Z)"
)
_IMAGE = re.compile(r"!\[([^\[\]]*)\]\(\s*<?data:[^()]*\)")
_UNBROKEN = re.compile(rf"(?<![!-~])[!-~]{{{MAX_UNBROKEN + 1}}}")
_QUESTION = re.compile(
    r"^(?:#{1,6}[ \t]+(?=[^ \t])(?P<heading>.*?\?)[ \t#]*|\*\*(?P<bold>[^*\n]+\?)\*\*[ \t]*)\n"
    r"\s*(?P<answer>[^\s#|>`~*-].*(?:\n.*\S.*)*)(?=(?P<rest>\s*[^\n]*))",
    re.MULTILINE,
)
_TABLE = re.compile(
    r"^(?P<head>(?=[^\n]*\|)[^\n]*)\n(?=[^\n]*-)(?=[^\n]*\|)[ \t:|-]+\n"
    r"(?P<rows>(?:(?=[^\n]*\|)[^\n]*(?:\n|\Z))+)",
    re.MULTILINE,
)


def without_markup(text: str) -> tuple[str, list[str]]:
    """The text without front matter, comments, embedded images and data; and a note on each kind.

    The notes are sentences without a full stop; the line numbers in them are those of the text.
    """
    notes = []
    if front := _FRONT_MATTER.match(text):
        notes.append("the front matter is not read")
        text = "\n" * front[0].count("\n") + text[front.end() :]
    pieces = _FENCED.split(text)
    bare = [
        piece if i % 2 or "<!--" not in piece else _without_comments(piece)
        for i, piece in enumerate(pieces)
    ]
    if bare != pieces:
        notes.append("comments are not read")
    lines = "".join(bare).split("\n")
    for n, line in enumerate(lines):
        for image in _IMAGE.finditer(line):
            notes.append(
                f"the image {image[1]!r} embedded in line {n + 1} is not read "
                f"({len(image[0])} characters)"
            )
        lines[n] = line = _IMAGE.sub(lambda image: image[1], line)
        if _is_data(line):
            notes.append(
                f"line {n + 1} is not read: {len(line)} characters without words, beginning "
                f"{line.strip()[:40]!r}"
            )
            lines[n] = ""
    return ("\n".join(lines).lstrip("\n") if notes else text), notes


def _without_comments(text: str) -> str:
    """The text without comments but with their line ends, in time proportional to its length."""
    parts, position = [], 0
    while (start := text.find("<!--", position)) >= 0 and (end := text.find("-->", start)) >= 0:
        parts += [text[position:start], "\n" * text.count("\n", start, end)]
        position = end + 3
    return "".join([*parts, text[position:]])


def _is_data(line: str) -> bool:
    if _UNBROKEN.search(line):
        return True
    return len(line) > MAX_MINIFIED and line.isascii() and len(line.split()) < len(line) // 15


def questions_and_answers(text: str) -> Iterator[tuple[str, str]]:
    """The questions that are headings or bold lines, each with the one paragraph below it."""
    for i, piece in enumerate(_FENCED.split(text)):
        for match in () if i % 2 else _QUESTION.finditer(piece):
            rest = match["rest"].strip()
            answer = " ".join(match["answer"].split())
            alone = not rest or rest.startswith(("#", "**"))
            if alone and len(answer) <= MAX_ANSWER_CHARS and "\n|" not in match["answer"]:
                yield (match["heading"] or match["bold"]).strip(), answer


def with_tables_as_sentences(text: str) -> str:
    """The text with every row of a table as sentences: "The price of Small is 20 EUR."."""
    pieces = _FENCED.split(text)
    return "".join(
        piece if i % 2 or "|" not in piece else _TABLE.sub(_sentences, piece)
        for i, piece in enumerate(pieces)
    )


def _sentences(table: re.Match[str]) -> str:
    _, *columns = _cells(table["head"])
    lines = []
    for row in table["rows"].rstrip("\n").split("\n"):
        subject, *cells = _cells(row)
        stated = [
            f"The {column[:1].lower() + column[1:] if column[1:].islower() else column} "
            f"of {subject} is {cell}."
            for column, cell in zip(columns, cells, strict=False)
            if column and cell
        ]
        lines.append(" ".join(stated) if subject and stated else row)
    return "\n\n".join(lines) + "\n\n"


def _cells(row: str) -> list[str]:
    bare = row.strip().removeprefix("|").removesuffix("|")
    cells = re.split(r"(?<!\\)\|", bare)
    return [cell.strip().strip("*`").strip().replace("\\|", "|") for cell in cells]


def table(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table of these rows, the first of which is its head; short ones are filled up."""
    width = max(map(len, rows))
    lines = [
        "| " + " | ".join(_cell(cell) for cell in (*row, *[""] * (width - len(row)))) + " |"
        for row in rows
    ]
    return "\n".join([lines[0], "|" + "---|" * width, *lines[1:]])


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
