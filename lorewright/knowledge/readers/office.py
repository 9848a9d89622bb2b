"""Word's and PowerPoint's files into Markdown: DOCX and PPTX."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorewright.errors import Unreadable
from lorewright.knowledge.markdown import table
from lorewright.knowledge.readers.converted import Converted, left_in_archive, names_in_archive
from lorewright.knowledge.readers.html import markdown_of

if TYPE_CHECKING:
    from pptx.slide import Slide

_STYLES = """
p[style-name='Title'] => div.title:fresh
p[style-name='Subtitle'] => p:fresh
p[style-name='Code'] => pre:separator('\\n')
p[style-name='HTML Preformatted'] => pre:separator('\\n')
"""
_TITLE = re.compile(r'<div class="title">(.*?)</div>', re.DOTALL)
_HEADING = re.compile(r"<(/?)h([1-5])>")


def docx_to_markdown(path: Path) -> Converted:
    """Return the text of a Word document, with tracked changes accepted.

    Raises Unreadable for one that is encrypted, damaged, or of another kind.
    """
    import mammoth

    names = names_in_archive(path)
    if "word/document.xml" not in names:
        raise Unreadable(f"{path} is an archive and no Word document: it has no word/document.xml.")
    with path.open("rb") as file:
        html = mammoth.convert_to_html(
            file, style_map=_STYLES, convert_image=mammoth.images.img_element(lambda image: {})
        ).value
    if _TITLE.search(html):  # which stands above headings of the first level
        html = _HEADING.sub(lambda tag: f"<{tag[1]}h{int(tag[2]) + 1}>", html)
        html = _TITLE.sub(r"<h1>\1</h1>", html)
    text, notes, _ = markdown_of(html)
    left = [note for note in notes if not note.startswith("pictures")]
    return Converted(text, (*left, *left_in_archive(names)))


def pptx_to_markdown(path: Path) -> Converted:
    """Return the slides of a presentation, each below its title, with the speaker's notes.

    Hidden slides and charts are left out, with a note. Raises Unreadable as docx_to_markdown.
    """
    from pptx import Presentation

    names = names_in_archive(path)
    if "ppt/presentation.xml" not in names:
        raise Unreadable(
            f"{path} is an archive and no presentation: it has no ppt/presentation.xml."
        )
    with path.open("rb") as file:
        presentation = Presentation(file)
    parts, hidden = [], []
    for n, slide in enumerate(presentation.slides, start=1):
        if slide.element.get("show") == "0":
            hidden.append(n)
            continue
        parts.append("\n\n".join(_slide(slide)))
    notes = list(left_in_archive(names))
    if hidden:
        notes.append(f"hidden slides are not read ({', '.join(map(str, hidden))})")
    text = "\n\n".join(part for part in parts if part)
    return Converted(text, tuple(notes), str(presentation.core_properties.title or "").strip())


def _slide(slide: Slide) -> Iterator[str]:
    title = slide.shapes.title
    if title is not None and title.has_text_frame and title.text_frame.text.strip():
        yield f"## {' '.join(title.text_frame.text.split())}"
    for shape in _flat(slide.shapes):
        if title is not None and shape.shape_id == title.shape_id:
            continue
        if shape.has_table:
            yield table([[cell.text for cell in row.cells] for row in shape.table.rows])
        elif shape.has_text_frame:
            yield from _paragraphs(shape.text_frame, in_list=shape.is_placeholder)
    if slide.has_notes_slide and (frame := slide.notes_slide.notes_text_frame) is not None:
        yield from _paragraphs(frame, in_list=False)


def _flat(shapes: Iterable[Any]) -> Iterator[Any]:
    """The shapes, and those of groups, in their order."""
    for shape in shapes:
        if hasattr(shape, "shapes"):
            yield from _flat(shape.shapes)
        else:
            yield shape


def _paragraphs(frame: Any, *, in_list: bool) -> Iterator[str]:
    """The paragraphs of a frame: several of a placeholder are a list."""
    stated = [(p.level, " ".join(p.text.split())) for p in frame.paragraphs if p.text.strip()]
    if in_list and len(stated) > 1:
        yield "\n".join(f"{'  ' * level}- {text}" for level, text in stated)
    else:
        yield from (text for _, text in stated)
