"""Pages: tables, figures and listings as one Markdown file, or one HTML file that needs no other.

A page is plain data, so that a benchmark, a write and a folder of memories are reported alike. HTML
is filled in from `templates/`, its figures inline, in colours that follow the reader's light or
dark setting; sentences of a page are Markdown and may hold `code`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from lorewright.errors import ConfigError
from lorewright.files import store
from lorewright.reports.tables import Table
from lorewright.reports.tables import to_markdown as table_markdown

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATES = Path(__file__).parent / "templates"
FORMATS = (".html", ".md")


@dataclass(frozen=True)
class Picture:
    """A figure, as the text of an SVG file in light colours."""

    name: str
    """Of its file, without suffix."""
    caption: str
    svg: str


@dataclass(frozen=True)
class Listing:
    """Lines that a reader may want to copy: commands, settings, versions."""

    title: str
    lines: tuple[str, ...]


Part = Table | Picture | Listing


@dataclass(frozen=True)
class Page:
    """A report: a title, a sentence on what it is, and its parts in reading order."""

    title: str
    about: str
    parts: tuple[Part, ...]


def save_page(
    page: Page, path: Path | str, *, light: Mapping[str, str], dark: Mapping[str, str]
) -> None:
    """Write a page whole or not at all; Markdown has its figures in files beside it.

    ``light`` and ``dark`` name the colours of figures, so that one drawing serves both settings.
    Raises ConfigError for another suffix than .html and .md, StorageError.
    """
    path = Path(path)
    if path.suffix == ".html":
        store(to_html(page, light=light, dark=dark).encode(), path)
    elif path.suffix == ".md":
        for part in page.parts:
            if isinstance(part, Picture):
                store(part.svg.encode(), path.with_name(f"{path.stem}-{part.name}.svg"))
        store(to_markdown(page, stem=path.stem).encode(), path)
    else:
        raise ConfigError(f"{path} is no report's name; a report ends in {' or '.join(FORMATS)}.")


def to_markdown(page: Page, *, stem: str = "report") -> str:
    """Return the page as GitHub-flavoured Markdown, its figures as links to files of that stem."""
    parts = [_markdown(part, stem) for part in page.parts]
    return "\n".join([f"# {page.title}", "", page.about, "", *parts])


def _markdown(part: Part, stem: str) -> str:
    if isinstance(part, Picture):
        return f"![{part.caption}]({stem}-{part.name}.svg)\n\n*{part.caption}*\n"
    body = table_markdown(part) if isinstance(part, Table) else _fenced(part.lines)
    return f"## {part.title}\n\n{body}"


def _fenced(lines: tuple[str, ...]) -> str:
    return "\n".join(["```", *lines, "```", ""])


def to_html(page: Page, *, light: Mapping[str, str], dark: Mapping[str, str]) -> str:
    """Return the page as one HTML file: no script, no font and no image from elsewhere."""
    parts = [
        (
            type(part).__name__,
            part,
            _inline(part.svg, n, light) if isinstance(part, Picture) else "",
        )
        for n, part in enumerate(page.parts)
    ]
    return (
        environment()
        .get_template("page.html")
        .render(page=page, parts=parts, light=light, dark=dark)
    )


@cache
def environment() -> Environment:
    """Return the jinja2 environment of all pages: text is escaped, a missing name is an error."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markdown_it import MarkdownIt

    markdown = MarkdownIt("commonmark", {"html": False}).disable(["image", "link", "autolink"])
    made = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters["markdown"] = markdown.renderInline
    return made


def _inline(svg: str, n: int, light: Mapping[str, str]) -> str:
    """An SVG as part of a page: names of its own, colours that are the page's variables."""
    drawn = svg[svg.index("<svg") :]
    drawn = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>f{n}-", drawn)
    # A style inside would hold for the whole page, and is in the page's own.
    for tag in ("metadata", "style"):
        drawn = re.sub(rf"<{tag}\b.*?</{tag}>", "", drawn, flags=re.DOTALL)
    for name, colour in light.items():
        drawn = re.sub(rf"{re.escape(colour)}\b", f"var(--{name})", drawn, flags=re.IGNORECASE)
    return drawn
