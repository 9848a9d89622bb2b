"""Texts in pieces: sentences, and passages that fit a reader. Markdown's blocks stay whole.

Splitting is by character positions, so that every piece is an exact substring of the text it came
from and only white space lies between pieces.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from lorewright.errors import ConfigError


class _Span(NamedTuple):
    """Text between two positions: a heading, list, table, code or paragraph, or a part of one."""

    start: int
    end: int
    heading: bool = False
    code: bool = False


_FENCE = re.compile(r" {0,3}(```|~~~)")

_HEADING = re.compile(r" {0,3}#{1,6}(?:[ \t]|$)")

_UNDERLINE = re.compile(r" {0,3}(?:={3,}|-{3,})[ \t]*$")

_ITEM = re.compile(r"\s*(?:[-*+•][ \t]|\d{1,3}[.)][ \t]|\|)")

_SENTENCE_END = re.compile(r"(?<![.!?…؟।])[.!?…؟।]+[\"'”’»)\]*_]*(?=\s)|[。！？]+[」』”’）]*")

_NEVER_LAST = re.compile(
    r"(?:m(?:rs?|s|x)|dr|prof|st|rev|hon|gen|col|capt|lt|sgt|e\.?g|i\.?e|vs|cf|viz|approx"
    r"|jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec)",
    re.IGNORECASE,
)

_BEFORE_NUMBER = re.compile(
    r"(?:nos?|figs?|eqs?|sec|ch|vol|art|pp?|para|tab|ref|ext)", re.IGNORECASE
)

_INITIALS = re.compile(r"[^\W\d_](?:\.[^\W\d_])*")


def sentences(text: str) -> tuple[str, ...]:
    """Return the sentences in order; headings, list items, table rows and code stay whole.

    Each is an exact substring without outer whitespace. Abbreviations, initials and decimals do not
    end a sentence; where a full stop is ambiguous, the text stays together.
    """
    return tuple(text[s.start : s.end] for block in _blocks(text) for s in _parts(text, block))


def first_heading(text: str) -> str:
    """Return the words of the first heading; empty where there is none."""
    first = next((block for block in _blocks(text) if block.heading), None)
    return text[first.start : first.end].split("\n")[0].strip(" \t#") if first else ""


def passages(text: str, *, max_chars: int = 1200) -> tuple[str, ...]:
    """Return the text in pieces of at most ``max_chars`` characters, in order.

    A heading begins a passage and stays with what follows it. Paragraphs are cut only when too long
    alone: between sentences, else between words, else anywhere. Each passage is an exact substring;
    only whitespace lies between two of them. Raises ConfigError when ``max_chars`` is below 1.
    """
    if max_chars < 1:
        raise ConfigError(f"max_chars is {max_chars}; give at least 1.")
    passed: list[_Span] = []
    for span in _fitting(text, max_chars):
        last = passed[-1] if passed else None
        fits = last is not None and span.end - last.start <= max_chars
        if last and fits and (last.heading or not span.heading):
            passed[-1] = _Span(last.start, span.end, heading=last.heading and span.heading)
        else:
            passed.append(span)
    return tuple(text[span.start : span.end] for span in passed)


def headed_passages(text: str, *, title: str = "", max_chars: int = 1200) -> tuple[str, ...]:
    """Return the passages, each with the headings under which it stands, as one line before it.

    "## Backups" below "# Handbook" becomes "# Handbook — Backups"; a title stands first where the
    text does not begin with it. At most ``max_chars`` characters each, the line included; outer
    headings are left out where the line would take more than a third. Raises ConfigError as
    passages.
    """
    above = [(0, title.strip())] if title.strip() else []
    headed = []
    for passage in passages(text, max_chars=max_chars):
        blocks = list(_blocks(passage))
        n_first = next((n for n, block in enumerate(blocks) if not block.heading), len(blocks))
        above = _below(above, passage, blocks[:n_first])
        line = _heading_line([words for _, words in above], max_chars // 3)
        rest = passage[blocks[n_first].start :] if n_first < len(blocks) else ""
        above = _below(above, passage, blocks[n_first:])
        if not rest or not line:
            headed.append(passage)
            continue
        pieces = passages(rest, max_chars=max(1, max_chars - len(line) - 2))
        headed += [f"{line}\n\n{piece}" for piece in pieces]
    return tuple(headed)


def _below(above: list[tuple[int, str]], text: str, blocks: list[_Span]) -> list[tuple[int, str]]:
    """The headings, level and words, under which stands what follows these blocks."""
    for block in blocks:
        if block.heading:
            level, words = _heading(text[block.start : block.end])
            above = [outer for outer in above if outer[0] < level and outer[1] != words]
            above += [(level, words)] if words else []
    return above


def _heading(text: str) -> tuple[int, str]:
    """The level of a heading, from 1, and its words without marks."""
    first, *underline = text.strip().split("\n")
    marks = len(first) - len(first.lstrip("#"))
    level = marks or (1 if underline and underline[-1].lstrip().startswith("=") else 2)
    return level, first.strip(" \t#").replace("*", "").replace("`", "")


def _heading_line(words: list[str], max_chars: int) -> str:
    while words and len(line := "# " + " — ".join(words)) > max_chars:
        words = words[1:]
    return line if words else ""


def _fitting(text: str, max_chars: int) -> Iterator[_Span]:
    """Yield blocks that fit, the sentences of those that do not, and words of those."""
    for block in _blocks(text):
        if block.end - block.start <= max_chars:
            yield block
            continue
        for part in _parts(text, block):
            start = part.start
            while part.end - start > max_chars:
                cut = start + max_chars
                while cut > start and not (text[cut].isspace() or text[cut - 1].isspace()):
                    cut -= 1
                cut = cut if cut > start else start + max_chars
                yield _Span(*_trim(text, start, cut), heading=part.heading)
                start = _trim(text, cut, part.end)[0]
            yield _Span(start, part.end, heading=part.heading)


def _blocks(text: str) -> Iterator[_Span]:
    """Yield headings, fenced code and paragraphs (with lists and tables), without blank lines."""
    start: int | None = None
    fence = ""
    position = end = 0
    for line in text.split("\n"):
        opened = _FENCE.match(line)
        begin, position = position, position + len(line) + 1
        stop = begin + len(line.rstrip())
        if fence:
            end = max(end, stop) if line.strip() else end
            if opened and opened[1] == fence:
                yield _Span(start or 0, end, code=True)
                start, fence = None, ""
            continue
        underline = _UNDERLINE.match(line) and start is not None and "\n" not in text[start:end]
        if start is not None and underline:
            yield _Span(start, stop, heading=True)
            start = None
            continue
        if start is not None and (opened or not line.strip() or _HEADING.match(line)):
            yield _Span(start, end)
            start = None
        if opened:
            start, fence = begin, opened[1]
        elif _HEADING.match(line):
            yield _Span(begin, stop, heading=True)
        elif line.strip() and start is None:
            start = begin
        end = stop
    if start is not None:
        yield _Span(start, end, code=bool(fence))


def _parts(text: str, block: _Span) -> Iterator[_Span]:
    """Yield the sentences, list items and table rows of a block; headings and code stay whole."""
    if block.heading or block.code:
        yield _Span(*_trim(text, block.start, block.end), heading=block.heading)
        return
    start = position = block.start
    for line in text[block.start : block.end].split("\n"):
        if _ITEM.match(line) and position > start:
            yield from _sentences(text, start, position)
            start = position
        position += len(line) + 1
    yield from _sentences(text, start, block.end)


def _sentences(text: str, start: int, end: int) -> Iterator[_Span]:
    start, end = _trim(text, start, end)
    if not _ITEM.match(text, start, end):
        for stop in _SENTENCE_END.finditer(text, start, end):
            if stop.end() < end and _ends_sentence(text, start, stop, end):
                yield _Span(*_trim(text, start, stop.end()))
                start = _trim(text, stop.end(), end)[0]
    yield _Span(start, end)


def _ends_sentence(text: str, start: int, stop: re.Match[str], end: int) -> bool:
    following = text[stop.end() : min(end, stop.end() + 40)].lstrip().lstrip("\"'“‘«([*_¿¡")[:1]
    if following.islower():
        return False
    if stop[0][0] != ".":
        return True
    words = text[max(start, stop.start() - 40) : stop.start()].split()
    word = words[-1].lstrip("\"'“‘«([*_") if words else ""
    if _NEVER_LAST.fullmatch(word):
        return False
    if _BEFORE_NUMBER.fullmatch(word) and following.isdigit():
        return False
    return not (_INITIALS.fullmatch(word) and word.isupper())


def _trim(text: str, start: int, end: int) -> tuple[int, int]:
    """Return the span without outer white space; by steps, as slices would make long texts slow."""
    while start < end and text[start].isspace():
        start += 1
    while start < end and text[end - 1].isspace():
        end -= 1
    return start, end
