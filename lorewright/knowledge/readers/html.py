"""HTML into Markdown: what a page says, without what surrounds it.

Read is `<main>`, or the one `<article>`, or the body. Scripts, styles, navigation, forms and what
is hidden are not; pictures leave the words that describe them, links their text. DOCX, EPUB and
reStructuredText come through here as well.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lorewright.errors import DataError, Unreadable
from lorewright.files import MAX_BYTES, check_size, kind_of, read_encoded
from lorewright.knowledge.markdown import table
from lorewright.knowledge.readers.converted import Converted

if TYPE_CHECKING:
    from bs4 import BeautifulSoup, Tag

MAX_SPAN = 1000
"""A cell spans at most so many rows or columns, as browsers have it."""

_NEVER_READ = (
    *("script", "style", "noscript", "template", "svg", "iframe", "object", "canvas", "audio"),
    *("video", "form", "button", "select", "input", "dialog", "math annotation"),
)
_NAVIGATION = (
    *("nav", "aside", "[role=navigation]", "[role=search]", "[role=complementary]"),
    *("[role=banner]", "[role=contentinfo]", "[role=doc-toc]", "[hidden]", "[aria-hidden=true]"),
    *(".navbar", ".breadcrumb", ".breadcrumbs", ".sidebar", ".sphinxsidebar", ".related", ".toc"),
    *(".pagination", ".cookie-banner", ".headerlink", ".skip-link", ".mw-editsection", ".navbox"),
)
_UNSEEN = re.compile(r"display\s*:\s*none|visibility\s*:\s*hidden")
_PRIVATE_USE = re.compile("[\ue000-\uf8ff¶]")


def html_to_markdown(path: Path) -> Converted:
    """Return what a web page says; raises Unreadable for one without words."""
    check_size(path, MAX_BYTES)
    return markdown_of(_decoded(path))


def _decoded(path: Path) -> str:
    """The text, by the encoding that the page itself declares if it is of that."""
    from bs4.dammit import EncodingDetector

    content = path.read_bytes()
    kind = kind_of(content)
    if kind and kind != "an HTML page":
        raise Unreadable(f"{path} is {kind}, whatever its name; give it the ending of what it is.")
    declared = EncodingDetector.find_declared_encoding(content, is_html=True)
    if declared and not content.startswith((b"\xff\xfe", b"\xfe\xff", b"\xef\xbb\xbf")):
        try:
            return content.decode(declared)
        except (LookupError, UnicodeDecodeError):
            pass  # it declares what it is not
    try:
        return read_encoded(path, markup=True).content
    except DataError as error:
        raise Unreadable(str(error)) from error


def markdown_of(html: str) -> Converted:
    """Return the Markdown of HTML text, with notes on what is left out."""
    from bs4 import BeautifulSoup

    soup = BeautifulSoup(_PRIVATE_USE.sub("", html), "lxml")
    title = " ".join(soup.title.get_text().split()) if soup.title else ""
    notes = []
    root = _content_of(soup)
    if n := _remove(root, _NEVER_READ) + _remove_others(soup, root):
        notes.append(f"scripts, forms, navigation and the like are not read ({n} elements)")
    pictures = root.find_all("img")
    for picture in pictures:
        picture.replace_with(str(picture.get("alt") or ""))
    if pictures:
        notes.append(f"pictures are not read ({len(pictures)})")
    n_links = _flatten_links(root)
    if n_links:
        notes.append(f"addresses of links are not read ({n_links})")
    _simplify(root, soup)
    text = _converter()().convert_soup(root)
    text = re.sub(r"\n{3,}", "\n\n", text.replace("\xa0", " ")).strip()
    if title and text and not re.search(r"^# ", text, re.MULTILINE):
        text = f"# {title}\n\n{text}"
    return Converted(text, tuple(notes), title)


def _content_of(soup: BeautifulSoup) -> Tag:
    """The element that holds what the page is about."""
    mains = soup.select("main, [role=main]")
    articles = soup.find_all("article")
    if len(mains) == 1 and mains[0].get_text(strip=True):
        return mains[0]
    if len(articles) == 1 and articles[0].get_text(strip=True):
        return articles[0]
    return soup.body or soup


def _remove_others(soup: BeautifulSoup, root: Tag) -> int:
    n = _remove(root, _NAVIGATION)
    for element in root.find_all(style=_UNSEEN):
        if not element.decomposed:
            element.decompose()
            n += 1
    if root is soup.body:  # a page's own header and footer; an article's belong to it
        for element in root.find_all(["header", "footer"]):
            if element.decomposed or element.find_parent(["article", "section"]):
                continue
            headings = element.find_all("h1")
            for heading in reversed(headings):
                element.insert_after(heading.extract())
            element.decompose()
            n += 1
    return n


def _remove(root: Tag, selectors: Sequence[str]) -> int:
    elements = [each for each in root.select(", ".join(selectors)) if each is not root]
    n = 0
    for element in elements:
        if not element.decomposed:
            element.decompose()
            n += 1
    return n


def _flatten_links(root: Tag) -> int:
    """Leave the text of links; return how many had an address elsewhere."""
    n = 0
    for link in root.find_all("a"):
        target = str(link.get("href") or "")
        text = link.get_text(strip=True)
        n += target.startswith(("http:", "https:", "mailto:")) and text not in target
        if target.startswith("#") and (text in ("↑", "↩", "#", "") or link.find_parent("sup")):
            link.decompose()
        else:
            link.unwrap()
    return n


def _simplify(root: Tag, soup: BeautifulSoup) -> None:
    """Definition lists as lines; what folds up, and questions in bold, with a heading."""
    for term in root.find_all("dt"):
        meanings = []
        for following in term.find_next_siblings(["dt", "dd"]):
            if following.name == "dt":
                break
            meanings.append(following)
        words = " ".join(term.get_text(" ", strip=True).split()).rstrip(" :")
        item = soup.new_tag("p")
        item.string = f"{words}: " + " ".join(m.get_text(" ", strip=True) for m in meanings)
        if meanings and not any(m.find(["dl", "pre", "table", "ul", "ol"]) for m in meanings):
            term.replace_with(item)
            for meaning in meanings:
                meaning.decompose()
    for summary in root.find_all("summary"):
        summary.name = "h4"
    for paragraph in root.find_all("p"):
        bold = paragraph.find(["b", "strong"])
        text = paragraph.get_text(strip=True)
        if bold and text.endswith("?") and bold.get_text(strip=True) == text:
            paragraph.name = "h4"


# --- tables ------------------------------------------------------------------------------------


class _Cell(NamedTuple):
    text: str
    head: bool


def _table(element: Tag) -> str:
    """A table as Markdown; one with a head at the left only, and one of layout, as lines."""
    rows = [row for row in _grid(element) if any(cell.text for cell in row)]
    caption = element.find("caption")
    above = f"{caption.get_text(' ', strip=True)}\n\n" if caption else ""
    if not rows:
        return above
    if all(len(row) == 1 for row in rows):
        return above + "\n\n".join(row[0].text for row in rows)
    n_heads = 0
    while n_heads < len(rows) - 1 and all(cell.head for cell in rows[n_heads]):
        n_heads += 1
    pairs = all(len(row) == 2 and row[0].head and not row[1].head for row in rows)
    if n_heads == 0 and (pairs or len(rows) == 1):
        return above + "\n".join(
            f"- {row[0].text}: " + ", ".join(cell.text for cell in row[1:]) for row in rows
        )
    heads = list(zip(*rows[:n_heads], strict=False)) if n_heads > 1 else []
    head = [" ".join(dict.fromkeys(cell.text for cell in column)) for column in heads]
    head = head or [cell.text for cell in rows[0]]
    return above + table([head, *([c.text for c in row] for row in rows[max(n_heads, 1) :])])


def _grid(element: Tag) -> Iterator[list[_Cell]]:
    """The rows of a table; a cell that spans several rows or columns stands in each."""
    hanging: dict[int, tuple[int, _Cell]] = {}
    for row in element.find_all("tr"):
        if row.find_parent("table") is not element:
            continue
        cells: list[_Cell] = []
        own = iter(row.find_all(["td", "th"], recursive=False))
        while True:
            n_left, above = hanging.get(len(cells), (0, None))
            if above and n_left:
                hanging[len(cells)] = (n_left - 1, above)
                cells.append(above)
                continue
            tag = next(own, None)
            if tag is None:
                break
            cell = _Cell(" ".join(tag.get_text(" ", strip=True).split()), tag.name == "th")
            n_rows, n_columns = _span(tag, "rowspan"), _span(tag, "colspan")
            for _ in range(n_columns):
                if n_rows > 1:
                    hanging[len(cells)] = (n_rows - 1, cell)
                cells.append(cell)
        yield cells


def _span(tag: Tag, name: str) -> int:
    value = str(tag.get(name) or "1")
    return min(max(int(value), 1), MAX_SPAN) if value.isdecimal() else 1


@cache
def _converter() -> Any:
    """The converter class; markdownify is imported when it is first needed."""
    from markdownify import ATX, MarkdownConverter

    class Converter(MarkdownConverter):
        """Markdownify's, with tables whose cells are whole and code in fences."""

        class Options(MarkdownConverter.DefaultOptions):  # type: ignore[name-defined]
            """Headings with marks, no escapes that a reader would stumble over."""

            heading_style = ATX
            bullets = "-"
            escape_asterisks = False
            escape_underscores = False
            escape_misc = False
            strip = ("b", "strong", "i", "em", "u", "s", "del", "sup", "sub", "kbd", "samp")

        def convert_table(self, el: Tag, text: str, parent_tags: set[str]) -> str:
            """A table by its own cells, whatever markdownify made of them."""
            return f"\n\n{_table(el)}\n\n"

    return Converter
