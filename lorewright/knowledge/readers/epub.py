"""EPUB into Markdown: the chapters of a book in the order in which it is read."""

from __future__ import annotations

import posixpath
import zipfile
from pathlib import Path
from urllib.parse import unquote

from lorewright.errors import Unreadable
from lorewright.files import MAX_BYTES
from lorewright.knowledge.readers.converted import Converted, names_in_archive
from lorewright.knowledge.readers.html import markdown_of

_CONTAINER = "META-INF/container.xml"


def epub_to_markdown(path: Path) -> Converted:
    """Return the text of a book; raises Unreadable for one that is protected or no EPUB."""
    from bs4 import BeautifulSoup

    names = names_in_archive(path)
    if "META-INF/rights.xml" in names or "META-INF/license.lcpl" in names:
        raise Unreadable(f"{path} is protected (DRM); give one without.")
    if _CONTAINER not in names:
        raise Unreadable(f"{path} is a ZIP archive and no EPUB: it has no {_CONTAINER}.")
    with zipfile.ZipFile(path) as archive:
        container = BeautifulSoup(archive.read(_CONTAINER), "xml").find("rootfile")
        package = str(container.get("full-path")) if container else ""
        if package not in names:
            raise Unreadable(f"{path} is damaged: its package {package!r} is missing.")
        book = BeautifulSoup(archive.read(package), "xml")
        files = {item.get("id"): item for item in book.find_all("item")}
        title = book.find("title")
        chapters, notes, missing, n_chars = [], dict[str, None](), [], 0
        for reference in book.find_all("itemref"):
            item = files.get(reference.get("idref"))
            if item is None or "nav" in str(item.get("properties") or "").split():
                continue
            name = posixpath.normpath(
                posixpath.join(posixpath.dirname(package), unquote(str(item.get("href"))))
            )
            if name not in names:
                missing.append(name)
                continue
            chapter = markdown_of(archive.read(name).decode("utf-8", errors="replace"))
            chapters.append(chapter.text)
            n_chars += len(chapter.text)
            if n_chars > MAX_BYTES:  # the same part may be named any number of times
                raise Unreadable(f"{path} has more than {MAX_BYTES} characters; split it.")
            notes.update(dict.fromkeys(note.split(" (")[0] for note in chapter.notes))
    if missing:
        raise Unreadable(f"{path} is damaged: its part {missing[0]!r} is missing; fetch it anew.")
    text = "\n\n".join(chapter for chapter in chapters if chapter)
    return Converted(text, tuple(notes), " ".join(title.get_text().split()) if title else "")
