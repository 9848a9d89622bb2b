"""PDF into Markdown: paragraphs, headings by the size and weight of letters, tables by columns.

A PDF has letters at places and little else. Lines that stand close are a paragraph; short lines in
larger or bold letters are headings; lines whose words stand in the same columns are a table; what
nearly every page begins or ends with belongs to no page. Reading is by PDFium.
"""

from __future__ import annotations

import ctypes
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from lorewright.errors import Unreadable, first_line
from lorewright.files import kind_of
from lorewright.knowledge.markdown import table
from lorewright.knowledge.readers.converted import Converted
from lorewright.knowledge.readers.items import counted, listed

if TYPE_CHECKING:
    from pypdfium2 import PdfDocument, PdfPage, PdfTextPage

HEADING_SIZE = 1.12
"""Letters so many times as large as most are a heading's."""
MAX_HEADING_CHARS = 120
COLUMN_GAP = 1.2
"""White space of so many letter sizes separates two columns."""
PARAGRAPH_GAP = 0.75
"""White space of so many letter sizes between two lines begins a paragraph."""
N_PAGES_OF_HEADERS = 3
"""From so many pages on, lines that most begin or end with are headers and footers."""
MIN_CHARS_A_PAGE = 3

_BULLET = re.compile(r"[•◦▪‣●○■·–-]\s+")
_NUMBERED = re.compile(r"\d{1,3}[.)]\s+\S")
_MARKDOWN = re.compile(r"^(?=[#>|]|```|~~~|---|===)")
_HYPHEN = re.compile(r"[\ufffe\x02]")


class Line(NamedTuple):
    """A line of a page, in points from its lower left corner."""

    cells: tuple[str, ...]
    """Its words, apart where there is room for a column between them."""
    lefts: tuple[float, ...]
    """Where each cell begins."""
    size: float
    """Of its letters."""
    bold: bool
    top: float
    bottom: float

    @property
    def text(self) -> str:
        """The whole line."""
        return " ".join(self.cells)


def pdf_to_markdown(path: Path) -> Converted:
    """Return the text of a PDF.

    Raises Unreadable for one that is encrypted with a password, damaged, or a scan without text.
    Pages without text and what is left out as headers and footers are notes.
    """
    import pypdfium2

    with path.open("rb") as file:
        start = file.read(1024)
    if b"%PDF-" not in start:
        kind = kind_of(start) or "no PDF"
        raise Unreadable(f"{path} is {kind}, whatever its name; give it the ending of what it is.")
    try:
        document = pypdfium2.PdfDocument(path)
    except pypdfium2.PdfiumError as error:
        if "assword" in str(error):
            raise Unreadable(f"{path} is encrypted with a password; save it without.") from error
        raise Unreadable(
            f"{path} is damaged or cut off ({first_line(error)}); fetch or save it anew."
        ) from error
    try:
        pages = [list(_lines(document[n])) for n in range(len(document))]
        title = document.get_metadata_dict().get("Title", "").strip()
        n_pictures = _n_pictures(document) if any(not page for page in pages) else 0
    finally:
        document.close()
    blank = [str(n) for n, lines in enumerate(pages, start=1) if not lines]
    if len(blank) == len(pages):
        what = "pictures only, as from a scanner" if n_pictures else "no text"
        raise Unreadable(
            f"{path} has {counted(len(pages), 'page')} and {what}; have its text recognised first "
            "(such as `ocrmypdf IN OUT`)."
        )
    notes = [f"no text is on page {listed(blank)}"] if blank else []
    written, n_left_out = _without_headers([page for page in pages if page])
    if n_left_out:
        notes.append("lines that its pages begin or end with are not read")
    return Converted(_markdown([line for page in written for line in page]), tuple(notes), title)


def _n_pictures(document: PdfDocument) -> int:
    from pypdfium2.raw import FPDF_PAGEOBJ_IMAGE

    return sum(1 for page in document for _ in page.get_objects((FPDF_PAGEOBJ_IMAGE,)))


# --- lines of a page ---------------------------------------------------------------------------


def _lines(page: PdfPage) -> Iterator[Line]:
    letters = page.get_textpage()
    text = letters.get_text_range()
    if len(text.strip()) < MIN_CHARS_A_PAGE:
        return
    start = 0
    for piece in re.split(r"(\r\n|\r|\n)", text):
        if piece.strip():
            yield _line(letters, piece, start)
        start += len(piece)


def _line(letters: PdfTextPage, text: str, start: int) -> Line:
    from pypdfium2.raw import FPDFText_GetFontSize

    first = start + len(text) - len(text.lstrip())
    left, bottom, _, top = letters.get_charbox(first, loose=True)
    size = max(top - bottom, FPDFText_GetFontSize(letters, first), 1.0)
    cells, lefts = [""], [left]
    for n, char in enumerate(text):
        before = cells[-1]
        if char.isspace() and before:
            # Only white space can be the room between columns.
            cells[-1] = before + " "
        elif not char.isspace():
            if before.endswith(" "):
                right = letters.get_charbox(start + n - 2)[2] if n > 1 else left
                here = letters.get_charbox(start + n)[0]
                if here - right > COLUMN_GAP * size:
                    cells.append("")
                    lefts.append(here)
            cells[-1] += char
    cells = [_HYPHEN.sub("", cell).strip() for cell in cells]
    return Line(tuple(cells), tuple(lefts), round(size, 1), _is_bold(letters, first), top, bottom)


def _is_bold(letters: PdfTextPage, n: int) -> bool:
    from pypdfium2.raw import FPDFText_GetFontInfo

    name, flags = ctypes.create_string_buffer(128), ctypes.c_int()
    FPDFText_GetFontInfo(letters, n, name, len(name), flags)
    return b"bold" in name.value.lower() or b"black" in name.value.lower()


def _without_headers(pages: Sequence[Sequence[Line]]) -> tuple[list[Sequence[Line]], int]:
    """The pages without lines that most begin or end with, and how many lines that are."""
    if len(pages) < N_PAGES_OF_HEADERS:
        return list(pages), 0
    counts = Counter(key for page in pages for key in {_key(page[0]), _key(page[-1])})
    repeated = {key for key, n in counts.items() if n * 2 > len(pages) and n >= N_PAGES_OF_HEADERS}
    trimmed = []
    for page in pages:
        start, end = 0, len(page)
        while start < end and _key(page[start]) in repeated:
            start += 1
        while end > start and _key(page[end - 1]) in repeated:
            end -= 1
        trimmed.append(page[start:end])
    return trimmed, sum(map(len, pages)) - sum(map(len, trimmed))


def _key(line: Line) -> str:
    """A line without its numbers, which may be those of pages."""
    return re.sub(r"\d+", "#", line.text.casefold())


# --- lines to Markdown -------------------------------------------------------------------------


def _markdown(lines: Sequence[Line]) -> str:
    sizes = Counter[float]()
    for line in lines:
        sizes[line.size] += len(line.text)
    body = sizes.most_common(1)[0][0] if sizes else 0.0
    larger = sorted({line.size for line in lines if line.size > body * HEADING_SIZE}, reverse=True)
    blocks: list[str] = []
    for block in _blocks(lines, body):
        first, text = block[0], _joined(block)
        if len(block) > 1 and all(len(line.cells) > 1 for line in block):
            blocks.append(table([line.cells for line in block]))
        elif len(text) <= MAX_HEADING_CHARS and first.size in larger:
            blocks.append(f"{'#' * min(1 + larger.index(first.size), 4)} {text}")
        elif _is_bold_heading(block):
            blocks.append(f"{'#' * min(1 + len(larger), 5)} {text}")
        else:
            item = _BULLET.match(text)
            blocks.append(f"- {text[item.end() :]}" if item else _MARKDOWN.sub(r"\\", text))
    text = "\n\n".join(blocks)
    return re.sub(r"(?m)^(- .*)\n\n(?=- )", r"\1\n", text)


def _is_bold_heading(block: Sequence[Line]) -> bool:
    text = block[0].text
    return len(block) == 1 and block[0].bold and len(text) <= 80 and text[-1] not in ".,;:"


def _blocks(lines: Sequence[Line], body: float) -> Iterator[list[Line]]:
    """Lines that belong together: a paragraph, a heading, an item, a table."""
    block: list[Line] = []
    for line in lines:
        if block and not _continues(block, line, body):
            yield block
            block = []
        block.append(line)
    if block:
        yield block


def _continues(block: Sequence[Line], line: Line, body: float) -> bool:
    last = block[-1]
    in_columns = len(line.cells) == len(last.cells) > 1
    if in_columns:
        starts = zip(line.lefts, last.lefts, strict=True)
        return all(abs(here - above) < 3 * body for here, above in starts)
    if len(line.cells) > 1 or len(last.cells) > 1:
        return False
    gap = last.bottom - line.top
    if line.size != last.size or (line.bold != last.bold and not last.text[-1].isalpha()):
        return False
    if not -line.size < gap < PARAGRAPH_GAP * line.size and gap > -body * 20:
        return False
    if gap <= -body * 20:  # a new page or column: only an unfinished sentence goes on
        return last.text[-1] not in ".!?:" and line.text[:1].islower()
    return not (_BULLET.match(line.text) or _NUMBERED.match(line.text))


def _joined(block: Sequence[Line]) -> str:
    text = block[0].text
    for last, line in pairwise(block):
        cut = last.text.endswith("-") and line.text[:1].islower()
        text = text[:-1] + line.text if cut else f"{text} {line.text}"
    return text
