"""The verb `diagnose`: an adapter folder or a memory, with all that is known about it, checked.

Of a memory the source, the trained examples and the probes are known; of any other adapter what the
caller gives. The folder is read only, and need not be on the base that it is examined with: that it
is not may be the diagnosis.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from lorewright.adapters.adapter import CONFIG_FILE, inside
from lorewright.errors import AdapterError, DataError, StorageError, UnknownMemory
from lorewright.files import load_jsonl, slug
from lorewright.knowledge.data import Example, Fact, Knowledge, Probe
from lorewright.knowledge.lesson import Lesson
from lorewright.memory.folder import Folder, readable
from lorewright.models.catalogue import POCKET
from lorewright.models.model import Model
from lorewright.recall import diagnose as checks
from lorewright.recall.diagnose import MERGE, SOURCE, WRITE, Diagnosis
from lorewright.recall.evidence import Known, gather
from lorewright.training.filenames import METRICS_FILE


def diagnose(
    place: Path | str,
    *,
    name: str = "",
    base: str | Model | None = None,
    knowledge: Knowledge | None = None,
    probes: tuple[Probe, ...] = (),
    templates: Mapping[str, str] | None = None,
) -> Diagnosis:
    """Diagnose an adapter folder, a memory folder with one memory, or `FOLDER/NAME`.

    `base` defaults to the one it names; `knowledge` and `probes` stand in for the folder's own.
    `templates` are prompt formats to try beside the usual ones: texts with {prompt} in them.
    Raises UnknownMemory for a place that is neither, or several memories and no name.
    """
    at = Path(place)
    folder, name = _memory_at(at, slug(name) if name else "")
    if folder is None:
        known, write, merge, source, dtype = Known(), WRITE, MERGE, SOURCE, "auto"
        base = base or str(readable(at / CONFIG_FILE).get("base_model_name_or_path") or POCKET)
    else:
        _check_kind(folder, name)
        own = folder.index()["base"]
        base, dtype = base or own["id"], str(own.get("dtype", "auto"))
        known = known_of(folder, name)
        source = _source_of(folder, name)
        write = f"lore write {source} --into {shlex.quote(str(folder.path))} --name {name}"
        sources = " ".join(str(each["name"]) for each in folder.entry(name).get("parents", ()))
        merge = f"lore merge {folder.path} {sources} --method rewrite --into-name {name}-again"
        at = folder.state_path(folder.entry(name)["adapter"])
    model = base if isinstance(base, Model) else Model.load(base, dtype=dtype)
    if knowledge is not None:
        texts = [document.text for document in knowledge.documents]
        known = replace(known, facts=knowledge.facts or known.facts, texts=texts or known.texts)
    if probes:
        known = replace(known, probes=probes)
    known = replace(known, templates=templates or {})
    return checks.diagnose(gather(model, at, known), write=write, merge=merge, source=source)


def _check_kind(folder: Folder, name: str) -> None:
    """Raise AdapterError for a memory that has no A and B to look into."""
    kind = folder.card(folder.entry(name)["adapter"]).get("kind", "adapter")
    if kind != "adapter":
        raise AdapterError(
            f"{name!r} is a state of kind {kind!r}; a diagnosis looks into adapters. What it "
            f"recalls: lore verify {folder.path} --name {name}"
        )


def _source_of(folder: Folder, name: str) -> str:
    """The stored source of a memory, as a word of a command; SOURCE where it is gone."""
    stored = folder.source_path(str(folder.entry(name).get("source", "")))
    return shlex.quote(str(stored)) if stored.is_file() else SOURCE


def known_of(folder: Folder, name: str) -> Known:
    """What a memory was written from and trained on, and its probes; less where files are gone."""
    entry = folder.entry(name)
    source, lesson = Knowledge(), Lesson((), (), "", "", ())
    with suppress(DataError, StorageError):  # damage is what a diagnosis is for
        source = folder.knowledge(entry)
    with suppress(DataError, StorageError):
        lesson = folder.lesson(entry)
    trained = [e for e in lesson.examples if e.kind == "qa"]
    facts = source.facts or tuple(_as_fact(e, n) for n, e in enumerate(trained))
    if not facts:
        answered = [p for p in lesson.probes if p.answers]
        facts = tuple(Fact(p.id, p.question, p.answers[0], p.answers[1:]) for p in answered)
    texts = [document.text for document in source.documents]
    nats: list[float] = []
    with suppress(DataError, StorageError, KeyError):  # runs of before measured none
        rows = load_jsonl(folder.run_path(str(entry.get("run"))) / METRICS_FILE)
        nats = [row["held_out_nats"] for row in rows if row.get("held_out_nats") is not None]
    return Known(facts, lesson.examples, lesson.probes, texts, nats)


def _as_fact(example: Example, n: int) -> Fact:
    return Fact(f"{example.source}-{n}", example.prompt, example.completion, source=example.source)


def _memory_at(place: Path, name: str) -> tuple[Folder | None, str]:
    """The memory folder and the name that are meant; no folder for a plain adapter."""
    folder, above = Folder(place), Folder(place.parent)
    if folder.started:
        return folder, name or folder.only()
    if not place.exists() and above.started:
        return above, slug(place.name)
    if place.is_file() and (place.parent / CONFIG_FILE).exists():
        raise UnknownMemory(f"{place} is one file of an adapter; give its folder, {place.parent}.")
    if place.is_dir() and not (place / CONFIG_FILE).exists() and (within := inside(place)):
        listed = ", ".join(map(str, within[:5]))
        raise UnknownMemory(
            f"{place} is no adapter, and holds {len(within)}: {listed}; give one of them."
        )
    if not place.is_dir():
        raise UnknownMemory(f"there is no adapter and no memory at {place}; check the path.")
    return None, ""
