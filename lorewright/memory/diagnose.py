"""The verb `doctor`: an adapter folder or a memory, with all that is known about it, diagnosed.

Of a memory the source, the trained examples and the probes are known; of any other adapter what the
caller gives. The folder is read only, and need not be on the base that it is looked at with: that
it is not may be the finding.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from lorewright.adapters.adapter import CONFIG_FILE
from lorewright.errors import DataError, StorageError, UnknownMemory
from lorewright.files import slug
from lorewright.knowledge.data import Example, Fact, Knowledge, Probe
from lorewright.knowledge.lesson import Lesson
from lorewright.memory.folder import INDEX_FILE, entries, entry_of, index, stored_knowledge
from lorewright.memory.verify import stored_lesson
from lorewright.models.catalogue import POCKET
from lorewright.models.model import Model
from lorewright.recall.diagnose import WRITE, Diagnosis, diagnose
from lorewright.recall.evidence import Known, gather


def doctor(
    place: Path | str,
    *,
    name: str = "",
    base: str | Model | None = None,
    knowledge: Knowledge | None = None,
    probes: tuple[Probe, ...] = (),
) -> Diagnosis:
    """Diagnose an adapter folder, a memory folder with one memory, or `FOLDER/NAME`.

    `base` defaults to the one it names; `knowledge` and `probes` stand in for what the folder says.
    Raises UnknownMemory for a place that is neither, or several memories and no name.
    """
    at = Path(place)
    folder, name = _memory_at(at, slug(name) if name else "")
    if folder is None:
        known, write = Known(), WRITE
        model = base if isinstance(base, Model) else Model.load(base or _named_base(at))
    else:
        entry = entry_of(folder, name)
        own = index(folder)["base"]
        dtype = str(own.get("dtype", "auto"))
        model = base if isinstance(base, Model) else Model.load(base or own["id"], dtype=dtype)
        known, write = known_of(folder, name), f"lore write SOURCE --into {folder} --name {name}"
        at = folder / "adapters" / entry["adapter"]
    if knowledge is not None:
        texts = [document.text for document in knowledge.documents]
        known = replace(known, facts=knowledge.facts or known.facts, texts=texts or known.texts)
    if probes:
        known = replace(known, probes=probes)
    return diagnose(gather(model, at, known), write=write)


def known_of(folder: Path, name: str) -> Known:
    """What a memory was written from, trained on and asked; less where files are gone."""
    entry = entry_of(folder, name)
    source, made = Knowledge(), Lesson((), (), "", "", ())
    with suppress(DataError, StorageError):  # a damaged folder is what a doctor is called for
        source = stored_knowledge(folder, str(entry.get("source") or ""))
    with suppress(DataError, StorageError):
        made = stored_lesson(folder / "runs" / str(entry.get("run")) / "lesson.json")
    trained = [e for e in made.examples if e.kind == "qa"]
    facts = source.facts or tuple(_as_fact(e, n) for n, e in enumerate(trained))
    if not facts:
        facts = tuple(
            Fact(p.id, p.question, p.answers[0], p.answers[1:]) for p in made.probes if p.answers
        )
    texts = [document.text for document in source.documents]
    return Known(facts, made.examples, made.probes, texts)


def _as_fact(example: Example, n: int) -> Fact:
    return Fact(f"{example.source}-{n}", example.prompt, example.completion, source=example.source)


def _memory_at(place: Path, name: str) -> tuple[Path | None, str]:
    """The memory folder and the name that are meant; no folder for a plain adapter."""
    if (place / INDEX_FILE).is_file():
        names = sorted(entries(place))
        if not name and len(names) != 1:
            raise UnknownMemory(
                f"{place} has {len(names)} memories ({', '.join(names[:6]) or 'none'}); say which "
                "one with --name."
            )
        return place, name or names[0]
    if not place.exists() and (place.parent / INDEX_FILE).is_file():
        return place.parent, slug(place.name)
    if not place.is_dir():
        raise UnknownMemory(f"there is no adapter and no memory at {place}; check the path.")
    return None, ""


def _named_base(place: Path) -> str:
    """The base that the adapter's settings name; the embedded one if they cannot be read."""
    try:
        found = json.loads((place / CONFIG_FILE).read_text(encoding="utf-8"))
        return str(found.get("base_model_name_or_path") or POCKET)
    except (OSError, ValueError, AttributeError):
        return POCKET
