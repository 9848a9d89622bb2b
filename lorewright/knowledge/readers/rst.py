"""reStructuredText into Markdown, by docutils; Sphinx's roles leave their text."""

from __future__ import annotations

import re
from pathlib import Path

from lorewright.errors import DataError, Unreadable
from lorewright.files import read_text
from lorewright.knowledge.readers.converted import Converted
from lorewright.knowledge.readers.html import markdown_of
from lorewright.knowledge.readers.items import listed

_ROLE = re.compile(
    r"(?<![\w`]):(?!math:|code:|sub:|sup:|emphasis:|strong:|literal:)[\w+-]+(?::[\w+-]+)*:"
    r"`(?:~|!)?(?P<text>[^`<\n]*?)(?:\s*<[^`>\n]*>)?`"
)
_VERSION = re.compile(
    r"^(?P<indent> *)\.\. (?P<what>versionadded|versionchanged|deprecated):: +(?P<number>\S+)"
    r"(?P<rest>[^\n]*)(?P<more>\n(?P=indent) +\S)?",
    re.MULTILINE,
)
_VERSIONS = {
    "versionadded": "New in version",
    "versionchanged": "Changed in version",
    "deprecated": "Deprecated since version",
}
_UNKNOWN = re.compile(r'Unknown directive type "([^"]+)"')


def rst_to_markdown(path: Path) -> Converted:
    """Return the text of a reStructuredText file; includes and raw parts are not followed.

    Directives that docutils does not know are left out, with a note.
    """
    from docutils.core import publish_doctree, publish_from_doctree
    from docutils.nodes import system_message

    try:
        source = read_text(path)
    except DataError as error:
        raise Unreadable(str(error)) from error
    source = _ROLE.sub(lambda role: f"``{role['text']}``" if role["text"] else "", source)
    source = _VERSION.sub(_admonition, source)
    settings = {
        "file_insertion_enabled": False,
        "raw_enabled": False,
        "_disable_config": True,
        "halt_level": 5,
        "report_level": 2,
        "warning_stream": False,
        "doctitle_xform": False,
        "syntax_highlight": "none",
        "math_output": "LaTeX",
        "embed_stylesheet": False,
        "stylesheet_path": "",
        "initial_header_level": 1,
        "line_length_limit": 1_000_000,
    }
    tree = publish_doctree(source, settings_overrides=settings)
    unknown = list[str]()
    for message in tree.findall(system_message):
        unknown += _UNKNOWN.findall(message.astext())
    settings["report_level"] = 5  # no message goes into the text
    html = publish_from_doctree(tree, writer="html5", settings_overrides=settings).decode("utf-8")
    # Admonitions and footnotes are asides there; elsewhere asides are not what a page is about.
    body = re.sub(r"<(/?)aside\b", r"<\1div", html.partition("<body")[2])
    text, notes, _ = markdown_of(f"<body{body}")
    if unknown:
        names = listed(list(dict.fromkeys(unknown)))
        notes = (*notes, f"directives that docutils does not know are not read: {names}")
    return Converted(text, notes)


def _admonition(directive: re.Match[str]) -> str:
    """Sphinx's notes on versions as what docutils knows."""
    words = f"{_VERSIONS[directive['what']]} {directive['number']}"
    indent, rest, more = directive["indent"], directive["rest"], directive["more"] or ""
    if more and not rest.strip():
        return f"{indent}.. admonition:: {words}\n{more}"
    return f"{indent}{words}:{rest}{more}" if rest.strip() else f"{indent}{words}.{more}"
