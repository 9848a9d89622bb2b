"""What goes when a name is forgotten, and taking it out of the folder.

Its states, earlier ones of its name too; its sources; its runs; a teacher's replies on it; its
words in the records of others; and all that was merged from it. What another name still uses
stays, and is listed. A removal is noted before it begins, with all that its proof needs, so that
one that was interrupted can be completed: by the next `forget`, or by whoever writes next. What
cannot be removed is an error. This module loads no model.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

from lorewright.errors import ConfigError, DataError, StorageError
from lorewright.files import (
    cache_folder,
    digest,
    dump_jsonl,
    load_jsonl,
    read_object,
    save_json,
    store,
    sync_folder,
)
from lorewright.knowledge.data import Knowledge, Probe
from lorewright.knowledge.lesson import Lesson
from lorewright.knowledge.negatives import unrelated_questions
from lorewright.knowledge.selfstudy import prompts_of
from lorewright.knowledge.splitting import sentences
from lorewright.knowledge.teacher import ReplyCache
from lorewright.memory.folder import (
    CARD_FILE,
    CONFIG_FILE,
    DERIVED,
    JOURNAL,
    LESSON_FILE,
    RECALLED_KINDS,
    Folder,
    is_name,
    readable,
)
from lorewright.memory.leftovers import (
    Run,
    Scan,
    Wanted,
    files_in,
    runs_in,
    scan,
    wanted,
    words_of,
)

BLANK = "[forgotten]"
TEACHER_FILE = "teacher.jsonl"
OWN_FILES = (LESSON_FILE, CONFIG_FILE)
"""Of a run: what it was written from, which no other memory has a part in."""
KINDS = {"adapters": "adapter", "sources": "source", "runs": "run"}
"""Where what goes lies, as a removal names it, and by which key an entry does."""
_STAMP = re.compile(r"\d{8}-\d{6}-")


@dataclass(frozen=True)
class Removal:
    """What goes when a name is forgotten."""

    names: tuple[str, ...]
    """The name itself first, then what was merged from it."""
    adapters: tuple[str, ...]
    """Folders of states: ids, and damaged ones set aside."""
    sources: tuple[str, ...]
    runs: tuple[str, ...]
    own_runs: tuple[str, ...]
    """The runs of the name itself, also those that stay; a merge's has other memories' probes."""
    kept: tuple[str, ...]
    """What stays and why, in sentences."""
    parents: tuple[str, ...] = ()
    """Memories that it was merged from; they stay, and go on knowing it."""


def plan_removal(folder: Folder, name: str, *, with_merged: bool = False) -> Removal:
    """Return what forgetting a name would remove; nothing is touched.

    Raises UnknownMemory, and ConfigError when memories were merged from it and `with_merged` is
    off.
    """
    folder.entry(name)
    merged = descendants(folder.entries(), name)
    if merged and not with_merged:
        were = "memory was" if len(merged) == 1 else "memories were"
        raise ConfigError(
            f"forget {name!r}: {len(merged)} {were} merged from it ({', '.join(merged[:6])}) and "
            "hold it too; forget them with it (--with-merged), or keep all."
        )
    return removal_of(folder, (name, *merged))


def removal_of(folder: Folder, names: tuple[str, ...]) -> Removal:
    """What goes with these names, of which those after the first were merged from it."""
    entries, (name, *merged) = folder.entries(), names
    going = [entries[n] for n in names]
    staying = {n: entry for n, entry in entries.items() if n not in names}
    aliases = {*names, *(old for entry in going for old in entry.get("formerly", ()))} - {*staying}
    used = {
        key: {str(e.get(key)) for e in staying.values()} for key in ("adapter", "source", "run")
    }
    named = {entry["adapter"] for entry in entries.values()}
    states = [p for p in folder.path.glob("adapters/*") if p.name not in named]
    unnamed = _records(states, CARD_FILE)
    unused = [p for p in folder.path.glob("runs/*") if p.name not in used["run"]]
    runs = _records(unused, CONFIG_FILE)

    def sources_of(entries: Iterable[Mapping[str, Any]], of: set[str]) -> set[str]:
        """Sources of some entries, and of what was written under some names before."""
        before = (a for a in (*unnamed.values(), *runs.values()) if a["name"] in of)
        sources = {str(about.get("source")) for about in (*entries, *before)}
        return {source for source in sources if folder.source_path(source).is_file()}

    def among(
        places: Mapping[str, Mapping[str, Any]], names: set[str], sources: set[str]
    ) -> set[str]:
        return {
            place
            for place, about in places.items()
            if about["name"] in names or about.get("source") in sources
        }

    own = aliases - {*merged}
    sources = sources_of(going, aliases)
    free, own_free = sources - used["source"], sources_of([entries[name]], own) - used["source"]
    gone = {entry["adapter"] for entry in going}
    parents = tuple(p["name"] for p in entries[name].get("parents", ()) if p["name"] in staying)
    going_runs = {str(entry.get("run")) for entry in going} & {*runs}
    own_runs = {str(entries[name].get("run"))} - {"", "None"}
    return Removal(
        names,
        tuple(sorted((gone - used["adapter"]) | among(unnamed, aliases, free))),
        tuple(sorted(free)),
        tuple(sorted(among(runs, aliases, free) | going_runs)),
        tuple(sorted(among(runs, own, own_free) | own_runs)),
        (
            *_reasons(staying, "adapter", gone & used["adapter"]),
            *_reasons(staying, "source", sources & used["source"]),
            *(f"{parent} stays: {name} was merged from it." for parent in parents),
        ),
        parents,
    )


def descendants(entries: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """What was merged from a memory, from what was merged from it, and so on."""
    names, states = [name], {entries[name]["adapter"]}

    def is_child(entry: Mapping[str, Any]) -> bool:
        parents = entry.get("parents", ())
        return any(p.get("name") in names or p.get("adapter") in states for p in parents)

    while more := sorted(n for n, entry in entries.items() if n not in names and is_child(entry)):
        names += more
        states |= {entries[other]["adapter"] for other in more}
    return tuple(names[1:])


def _records(places: Iterable[Path], file: str) -> dict[str, dict[str, Any]]:
    """What each folder's record says, with a name: the record's own, or else the folder's."""
    return {p.name: {"name": _STAMP.sub("", p.name), **readable(p / file)} for p in places}


def _reasons(staying: Mapping[str, Any], key: str, values: Iterable[str]) -> Iterator[str]:
    for value in sorted(values):
        users = sorted(name for name, entry in staying.items() if entry.get(key) == value)
        yield f"{key} {value[:16]} stays: {', '.join(users)} still uses it."


# -- removing it ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Journal:
    """A removal under way and what its proof needs, from before anything was touched."""

    removal: Removal
    texts: tuple[str, ...]
    """What was in the sources and what was made of them."""
    probes: tuple[Probe, ...]
    """Questions that it answered."""
    weights: tuple[str, ...]
    """SHA-256 of the files of tensors that go."""


@contextmanager
def writing(folder: Folder, base: Mapping[str, str]) -> Iterator[None]:
    """Hold the folder's lock, as `Folder.writing`, once an interrupted removal is completed."""
    with folder.writing(base):
        if journal := unfinished(folder):
            remove(folder, journal)
            finish(folder)
        yield


def unfinished(folder: Folder) -> Journal | None:
    """The removal that was interrupted, if one was.

    Raises DataError for a note that is damaged, or names what no removal would have.
    """
    path = folder.path / JOURNAL
    if not path.exists():
        return None
    remedy = "delete it and forget the memory again"
    plain = read_object(path, remedy)
    try:
        parts = {key: tuple(map(str, plain[key])) for key in ("texts", "weights")}
        lists = {each.name: tuple(plain["removal"][each.name]) for each in fields(Removal)}
        probes = tuple(Probe(**probe) for probe in plain["probes"])
        journal = Journal(Removal(**lists), probes=probes, **parts)
        wrong = _impossible(journal.removal, folder.entries())
    except (KeyError, TypeError, AttributeError, DataError) as error:
        raise DataError(f"{path} is damaged ({error!r}); {remedy}.") from error
    if wrong:
        raise DataError(f"{path} names {wrong}; {remedy}.")
    return journal


def _impossible(removal: Removal, entries: Mapping[str, Any]) -> str:
    """What a note names that no removal would, or empty: places elsewhere, and what others use."""
    staying = [entry for name, entry in entries.items() if name not in removal.names]
    if not removal.names:
        return "no memory"
    for kind, key in KINDS.items():
        used = {entry.get(key) for entry in staying}
        for name in getattr(removal, kind):
            if not name or not is_name(name):
                return f"{key} {name!r}, which is no name of one"
            if name in used:
                return f"{key} {name!r}, which a memory still uses"
    return ""


def begin(folder: Folder, removal: Removal) -> Journal:
    """Note a removal; the caller holds the lock, then calls `remove` and `finish`.

    Raises DataError for links among what goes: what they point to would stay.
    """
    gone = [path for path in map(folder.path.joinpath, KINDS) if not path.exists()]
    inside = (path for place in _places(folder, removal) for path in (place, *place.rglob("*")))
    if link := next((path for path in (*gone, *inside) if path.is_symlink()), None):
        raise DataError(
            f"forget {removal.names[0]!r}: {link} is a link to {os.readlink(link)}, which would "
            "stay; put that in its place, then forget again."
        )
    tensors = (
        p for name in removal.adapters for p in folder.state_path(name).rglob("*.safetensors")
    )
    weights = tuple(hashlib.sha256(path.read_bytes()).hexdigest() for path in tensors)
    probes = {
        probe.question: probe
        for lesson in _lessons_of(folder, removal)
        for probe in lesson.probes
        if probe.kind in RECALLED_KINDS
    }
    texts = tuple(dict.fromkeys(_texts(folder, removal)))
    journal = Journal(removal, texts, tuple(probes.values()), weights)
    save_json(journal, folder.path / JOURNAL)
    return journal


def finish(folder: Folder) -> None:
    """Drop the note: the removal is complete, and proved as far as the caller proves it."""
    (folder.path / JOURNAL).unlink(missing_ok=True)
    sync_folder(folder.path)


def remove(folder: Folder, journal: Journal) -> tuple[Wanted, frozenset[Run], int]:
    """Take a memory out of its folder; the caller holds the lock, and searches what is left.

    Names first, so that no question is routed to what goes. Returns what to search for, what others
    share, and how many records were blanked. Raises StorageError for what the disk does not let go;
    the rest is gone then, and the note stays.
    """
    removal, sought = journal.removal, wanted(journal.texts)
    folder.change(lambda memories: [memories.pop(name, None) for name in removal.names])
    theirs = scan(folder.path, sought, files=_of_others(folder, removal)).leftovers
    shared = {each.words for each in theirs}
    shared |= runs_in("\n".join(unrelated_questions()), sought)
    shared |= {run for run in sought.runs if len(run) == 1 and run[0] in _vocabulary()}
    sought = sought.without({*shared, *wanted(removal.names).runs})
    n_blanked = _blank(folder, removal, sought)
    places, refusals = [*_places(folder, removal), folder.path / DERIVED], dict[Path, str]()
    for place in places:
        try:
            if os.path.lexists(place):
                shutil.rmtree(place) if place.is_dir() else place.unlink()
        except OSError as error:
            refusals[place] = str(error)
    if left := [place for place in places if os.path.lexists(place)]:
        raise StorageError(
            f"{left[0]} could not be removed ({refusals.get(left[0], 'it is still there')}), so "
            f"{removal.names[0]!r} is not forgotten; make it removable, then: lore forget "
            f"{folder.path} {removal.names[0]}"
        )
    for kind in KINDS:
        sync_folder(folder.path / kind)
    return replace(sought, contents=frozenset(journal.weights)), frozenset(shared), n_blanked


def search(folder: Folder, sought: Wanted) -> Scan:
    """Search the folder, except the note of the removal, and the replies to the user's plans."""
    files = (path for path in files_in(folder.path) if path != folder.path / JOURNAL)
    return scan(folder.path, sought, files=[*files, cache_folder() / TEACHER_FILE])


def _places(folder: Folder, removal: Removal) -> list[Path]:
    """Where what goes lies."""
    return [
        *map(folder.state_path, removal.adapters),
        *map(folder.run_path, removal.runs),
        *map(folder.source_path, removal.sources),
    ]


def _of_others(folder: Folder, removal: Removal) -> list[Path]:
    """The sources and lessons that other memories were written from."""
    runs = [p for p in folder.path.glob("runs/*") if p.name not in removal.runs]
    about = [*folder.entries().values(), *(readable(run / CONFIG_FILE) for run in runs)]
    used = {str(each.get("source")) for each in about}
    sources = [p for p in folder.path.glob("sources/*.jsonl") if p.stem in used]
    return [*sources, *(run / name for run in runs for name in OWN_FILES)]


@cache
def _vocabulary() -> frozenset[str]:
    """Single words that this program writes itself, like `notes`: they prove nothing."""
    sources = sorted(Path(__file__).parents[1].rglob("*.py"))
    return frozenset(word for path in sources for word in words_of(path.read_text("utf-8")))


def _blank(folder: Folder, removal: Removal, sought: Wanted) -> int:
    """Take the words out of what was recorded elsewhere: a teacher's replies, others' verdicts."""
    n_blanked = 0
    rest = [p for p in folder.path.glob("runs/*/*.json*") if p.parent.name not in removal.runs]
    replies_to_plans = cache_folder() / TEACHER_FILE
    cached = [replies_to_plans] if replies_to_plans.exists() else []
    for path in [*rest, *folder.path.glob("*.jsonl"), *cached]:
        if path.name in OWN_FILES:
            continue
        if path.name == TEACHER_FILE:
            ReplyCache(path)  # drops a line that was cut off
        if path.suffix == ".jsonl":
            rows = load_jsonl(path)
            replies = _replies_on(folder, removal, {str(row.get("model")) for row in rows})
            clean = [
                row
                for row in rows
                if row.get("key") not in replies and not runs_in(json.dumps(row), sought)
            ]
            if len(clean) < len(rows):
                _replace_lines(path, clean)
                n_blanked += len(rows) - len(clean)
        elif runs_in(path.read_bytes(), sought):
            save_json(_blanked(read_object(path, "delete its run"), sought), path)
            n_blanked += 1
    return n_blanked


def _replies_on(folder: Folder, removal: Removal, models: set[str]) -> set[str]:
    """Keys of a teacher's replies on these sources."""
    return {
        digest([model, prompt])
        for source in removal.sources
        for document in _knowledge(folder, source).documents
        for prompt in prompts_of(document)
        for model in models
    }


def _replace_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    if path.name != TEACHER_FILE:
        dump_jsonl(rows, path)
        return
    # its reader knows its own lines by how they begin, and by their being ASCII
    store("".join(json.dumps(row) + "\n" for row in rows).encode("ascii"), path)


def _blanked(value: Any, sought: Wanted) -> Any:
    if isinstance(value, str):
        return BLANK if runs_in(value, sought) else value
    if isinstance(value, list):
        return [_blanked(each, sought) for each in value]
    if isinstance(value, dict):
        return {key: _blanked(each, sought) for key, each in value.items()}
    return value


def _texts(folder: Folder, removal: Removal) -> Iterator[str]:
    """Every text of the sources and of what was made of them, as far as it is still there."""
    for source in removal.sources:
        knowledge = _knowledge(folder, source)
        for document in knowledge.documents:
            yield document.title
            yield from sentences(document.text)
        for fact in knowledge.facts:
            yield from (fact.question, *fact.answers, *fact.paraphrases)
    for lesson in _lessons_of(folder, removal):
        for example in lesson.examples:
            yield example.prompt
            # to a question that it does not answer, the base's own reply
            yield from () if example.kind == "unknown" else sentences(example.completion)
        for probe in lesson.probes:
            yield from (probe.question, *probe.answers)


def _knowledge(folder: Folder, source: str) -> Knowledge:
    try:
        return folder.knowledge({"source": source})
    except DataError:  # gone or damaged: it goes all the same
        return Knowledge()


def _lessons_of(folder: Folder, removal: Removal) -> Iterator[Lesson]:
    """The lessons of the name itself, as far as they are still there."""
    for run in removal.own_runs:
        with suppress(DataError, StorageError):  # gone or damaged: it goes all the same
            yield folder.lesson({"run": run})
