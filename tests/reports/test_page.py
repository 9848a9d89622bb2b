"""Claims about pages: whole in one file, in both colour settings, text that stays text."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from lorewright.errors import ConfigError
from lorewright.reports.figures.style import DARK, LIGHT, canvas, style_axes
from lorewright.reports.page import (
    Listing,
    Page,
    Picture,
    save_page,
    to_html,
    to_markdown,
)
from lorewright.reports.tables import Table

COLOURS = {"light": LIGHT.named(), "dark": DARK.named()}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("figure") / "a.svg"
    with canvas(path, "A title", "about it", size=(4, 3), dark=False) as (figure, ink):
        ax = figure.subplots()
        style_axes(ax, ink, "panel", "x", "y")
        ax.plot([0, 1], [0, 1], color=ink.lines[0])
    return path.read_text()


@pytest.fixture
def page(drawn: str) -> Page:
    table = Table("Rows", ("name", "value"), (("a|b", "1 < 2"), ("c", "–")), ("n = 2 & more",))
    picture = Picture("line", "A line.", drawn)
    return Page(
        "A <report>", "About.", (table, picture, picture, Listing("Made by", ("$ lore x",)))
    )


class Tags(HTMLParser):
    """Open tags that must be closed, and what the page asks for from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.elsewhere: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag not in ("meta", "br"):
            self.open.append(tag)
        self.ids += [v for k, v in values.items() if k == "id" and v]
        for name in ("src", "href", "xlink:href"):
            value = values.get(name)
            if value and not value.startswith("#"):
                self.elsewhere.append(value)
        assert tag not in ("script", "link", "img")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if self.open and self.open[-1] == tag:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_html_is_well_formed_and_needs_no_other_file(page: Page) -> None:
    html = to_html(page, **COLOURS)
    tags = Tags()
    tags.feed(html)
    assert tags.open == [] and tags.elsewhere == []
    assert len(tags.ids) == len(set(tags.ids)) > 0
    references = set(re.findall(r'(?:href="#|url\(#)([^")]+)', html))
    assert references and references <= set(tags.ids)


def test_html_has_text_as_text_and_colours_of_both_settings(page: Page) -> None:
    html = to_html(page, **COLOURS)
    assert "A &lt;report&gt;" in html and "1 &lt; 2" in html and "n = 2 &amp; more" in html
    style, body = html.split("</style>")
    assert LIGHT.text in style and DARK.text in style and "prefers-color-scheme: dark" in style
    assert LIGHT.text not in body and "var(--text)" in body and "var(--line-0)" in body


def test_markdown_has_tables_that_stay_tables_and_files_beside_it(
    page: Page, tmp_path: Path
) -> None:
    save_page(page, tmp_path / "out" / "r.md", **COLOURS)
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"r.md", "r-line.svg"}
    text = (tmp_path / "out" / "r.md").read_text()
    assert text == to_markdown(page, stem="r")
    assert "| a\\|b | 1 < 2 |" in text and "![A line.](r-line.svg)" in text and "$ lore x" in text


def test_sentences_of_a_page_are_markdown_and_never_html() -> None:
    note = "run `lore verify`, see <b>x</b> and [here](http://example.org)"
    html = to_html(Page("T", note, (Table("R", ("a",), (("*b*",),), (note,)),)), **COLOURS)
    assert html.count("<code>lore verify</code>") == 2 and "<b>" not in html
    assert "<a " not in html and "*b*" in html  # a cell is no sentence


def test_other_formats_are_refused(page: Page, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"ends in \.html or \.md"):
        save_page(page, tmp_path / "r.pdf", **COLOURS)
    assert list(tmp_path.iterdir()) == []


def test_light_and_dark_have_as_many_colours_and_none_in_common() -> None:
    light, dark = LIGHT.named(), DARK.named()
    assert light.keys() == dark.keys() and not set(light.values()) & set(dark.values())
    assert len(set(light.values())) == len(light)
