"""Pages: tables, figures and commands as one Markdown file or one HTML file that needs no other.

A page is made of plain parts, so that a benchmark, a write and a folder of memories are reported in
one way. HTML carries its figures inside, in colours that follow the reader's light or dark setting.
This room knows Markdown and HTML; it does not know what the numbers mean.
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.table import Table
from rich.text import Text

from lorewright.errors import ConfigError
from lorewright.files import store

FORMATS = (".html", ".md")


@dataclass(frozen=True)
class Sheet:
    """A table of text, with what must be read beside it."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()


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


Part = Sheet | Picture | Listing


@dataclass(frozen=True)
class Page:
    """A report: a title, a sentence on what it is, and its parts in reading order."""

    title: str
    about: str
    parts: tuple[Part, ...]


def sheet_table(sheet: Sheet) -> Table:
    """Return a sheet for a terminal."""
    table = Table(
        title=Text(sheet.title, "bold"),
        title_style="",
        title_justify="left",
        caption=Text("\n".join(sheet.notes)),
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
    )
    for name in sheet.head:
        table.add_column(name, overflow="fold")  # a number cut short would be another number
    for row in sheet.rows:
        table.add_row(*map(Text, row))
    return table


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
        raise ConfigError(f"asked to write {path}; a report ends in {' or '.join(FORMATS)}.")


# -- Markdown ------------------------------------------------------------------------------------


def to_markdown(page: Page, *, stem: str = "report") -> str:
    """Return the page as GitHub-flavoured Markdown, its figures as links to files of that stem."""
    return "\n".join([f"# {page.title}", "", page.about, "", *map(_markdown(stem), page.parts)])


def _markdown(stem: str):  # type: ignore[no-untyped-def]
    def spelt(part: Part) -> str:
        if isinstance(part, Picture):
            return f"![{part.caption}]({stem}-{part.name}.svg)\n\n*{part.caption}*\n"
        if isinstance(part, Listing):
            return f"## {part.title}\n\n```\n" + "\n".join(part.lines) + "\n```\n"
        lines = (part.head, ["---"] * len(part.head), *part.rows)
        table = "".join(f"| {' | '.join(map(_cell, line))} |\n" for line in lines)
        notes = "".join(f"- {note}\n" for note in part.notes)
        return f"## {part.title}\n\n{table}" + (f"\n{notes}" if notes else "")

    return spelt


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("\\", "\\\\").replace("|", "\\|")


# -- HTML ----------------------------------------------------------------------------------------

_STYLE = """
:root { color-scheme: light dark; %s }
@media (prefers-color-scheme: dark) { :root { %s } }
body { margin: 2.5rem auto; max-width: 62rem; padding: 0 1.25rem; background: var(--paper);
  color: var(--text); font: 16px/1.55 system-ui, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin-bottom: .4rem; }
h2 { font-size: 1.1rem; margin: 2.2rem 0 .6rem; }
p.about, figcaption, ul { color: var(--muted); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .3rem .9rem .3rem 0; border-bottom: 1px solid var(--grid);
  white-space: nowrap; vertical-align: top; }
td:last-child { white-space: normal; }
th { color: var(--muted); font-weight: 600; }
ul { font-size: .9rem; padding-left: 1.1rem; }
figure { margin: 1.8rem 0; }
figure svg { width: 100%%; height: auto; }
figure svg * { stroke-linejoin: round; stroke-linecap: butt; }
figcaption { font-size: .9rem; margin-top: .3rem; }
pre { background: var(--grid); padding: .8rem 1rem; overflow-x: auto; font-size: .85rem;
  border-radius: 6px; }
"""


def to_html(page: Page, *, light: Mapping[str, str], dark: Mapping[str, str]) -> str:
    """Return the page as one HTML file: no script, no font and no image from elsewhere."""
    variables = [
        "; ".join(f"--{name}: {colour}" for name, colour in colours.items())
        for colours in (light, dark)
    ]
    style = _STYLE % tuple(variables)
    body = "\n".join(_html(part, n, light) for n, part in enumerate(page.parts))
    title = html.escape(page.title)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{style}</style>\n</head>\n<body>\n<h1>{title}</h1>\n"
        f'<p class="about">{html.escape(page.about)}</p>\n{body}\n</body>\n</html>\n'
    )


def _html(part: Part, n: int, light: Mapping[str, str]) -> str:
    if isinstance(part, Picture):
        caption = html.escape(part.caption)
        drawn = _inline(part.svg, n, light)
        return f"<figure>\n{drawn}\n<figcaption>{caption}</figcaption>\n</figure>"
    title = f"<h2>{html.escape(part.title)}</h2>"
    if isinstance(part, Listing):
        return f"{title}\n<pre>{html.escape(chr(10).join(part.lines))}</pre>"
    head = _row("th", part.head)
    rows = "\n".join(_row("td", row) for row in part.rows)
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in part.notes)
    table = (
        f'<div class="wide"><table>\n<thead>{head}</thead>\n<tbody>\n{rows}\n</tbody></table></div>'
    )
    return f"{title}\n{table}\n" + (f"<ul>{notes}</ul>" if notes else "")


def _row(tag: str, cells: Sequence[str]) -> str:
    return f"<tr>{''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in cells)}</tr>"


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
