"""Jupyter notebooks into Markdown: texts, code in fences, and what the code printed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lorewright.errors import DataError, Unreadable
from lorewright.files import read_text
from lorewright.knowledge.readers.converted import Converted

MAX_OUTPUT_CHARS = 2000
"""Longer outputs of a cell are not read: they are logs."""

_COLOURS = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


def notebook_to_markdown(path: Path) -> Converted:
    """Return the cells of a notebook, of format 3 or 4.

    Raises Unreadable for what is no notebook. Pictures, errors and long outputs are left out, with
    a note.
    """
    try:
        content = json.loads(read_text(path))
    except DataError as error:
        raise Unreadable(str(error)) from error
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"{path} is no valid JSON ({error}); it may be cut off.") from error
    sheets = content.get("worksheets") if isinstance(content, dict) else None
    whole = sheets[0] if isinstance(sheets, list) and sheets else content
    cells = whole.get("cells") if isinstance(whole, dict) else None
    if not isinstance(cells, list) or not all(isinstance(cell, dict) for cell in cells):
        raise Unreadable(f"{path} is no notebook: it has no list of cells; save it in Jupyter.")
    metadata = content.get("metadata")
    language = ""
    if isinstance(metadata, dict) and isinstance(info := metadata.get("language_info"), dict):
        language = re.sub(r"\W", "", str(info.get("name") or ""))
    n_left = 0
    parts = []
    for cell in cells:
        source = _text(cell.get("source", cell.get("input")))
        if cell.get("cell_type") == "code":
            parts.append(_fenced(source, language))
            outputs = cell.get("outputs")
            for output in outputs if isinstance(outputs, list) else ():
                texts = list(_printed(output)) if isinstance(output, dict) else []
                parts += [_fenced(text, "") for text in texts]
                n_left += not texts
        elif cell.get("cell_type") == "heading":
            parts.append(f"{'#' * min(max(int(cell.get('level') or 1), 1), 6)} {source}")
        else:
            parts.append(source)
    text = "\n\n".join(part for part in parts if part.strip())
    note = f"pictures, errors and long outputs of cells are not read ({n_left})"
    return Converted(text, (note,) if n_left else ())


def _printed(output: Mapping[str, Any]) -> Iterator[str]:
    """The text of an output; nothing for one of another kind, or for one that is long."""
    if output.get("name", output.get("stream")) == "stderr":
        return
    data = output.get("data", output)
    text = output.get("text")
    if text is None and isinstance(data, dict):
        text = data.get("text/markdown", data.get("text/plain"))
        if {"image/png", "image/jpeg", "image/svg+xml"} & data.keys():
            return
    printed = _COLOURS.sub("", _text(text)).strip()
    if printed and len(printed) <= MAX_OUTPUT_CHARS:
        yield printed


def _text(value: object) -> str:
    """A text, or the lines of one, as notebooks have both."""
    return "".join(map(str, value)) if isinstance(value, list) else str(value or "")


def _fenced(text: str, language: str) -> str:
    fence = "~~~" if "```" in text else "```"
    return f"{fence}{language}\n{text.strip()}\n{fence}" if text.strip() else ""
