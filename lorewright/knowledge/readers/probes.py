"""Files of probes: questions to ask afterwards."""

from __future__ import annotations

from pathlib import Path

from lorewright.errors import DataError
from lorewright.files import read_text, slug
from lorewright.knowledge.data import Probe
from lorewright.knowledge.readers.cells import (
    Row,
    jsonl,
    naming,
    optional_text,
    text_in,
    texts_in,
)


def read_probes(path: Path | str) -> tuple[Probe, ...]:
    """Return the probes of a JSON-lines file.

    Columns: question, answers or answer, kind; if present id, source and context. A probe without
    an id is named after the file and its line. Raises DataError as read_knowledge.
    """
    path = Path(path)
    seen: dict[str, str] = {}
    probes = []
    for row in jsonl(read_text(path), path, slug(path.stem)):
        probe = _probe(row)
        if probe.id in seen:
            raise DataError(
                f"{row.where}: the id {probe.id!r} also stands at {seen[probe.id]}; "
                "give each probe its own."
            )
        seen[probe.id] = row.where
        probes.append(probe)
    return tuple(probes)


def _probe(row: Row) -> Probe:
    if not {"question", "kind"} <= row.values.keys():
        keys = ", ".join(row.values)
        raise DataError(f"{row.where} has keys {keys}; a probe needs question, answers and kind.")
    with naming(row):
        return Probe(
            id=optional_text(row, "id") or row.name,
            question=text_in(row, "question"),
            answers=texts_in(row, "answers") or texts_in(row, "answer"),
            kind=text_in(row, "kind"),
            source=optional_text(row, "source"),
            context=optional_text(row, "context"),
        )
