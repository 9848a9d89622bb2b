"""What goes when a name is forgotten, worked out before anything is touched.

Its adapters, earlier ones of its name too; its sources; its runs; and all that was merged from it.
What another name still uses stays, and is named. This module reads memory.json, cards and settings
of runs; it removes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorewright.errors import ConfigError, DataError
from lorewright.files import read_object
from lorewright.memory.folder import entries, entry_of

_STAMP = re.compile(r"\d{8}-\d{6}-")


@dataclass(frozen=True)
class Removal:
    """What goes when a name is forgotten."""

    names: tuple[str, ...]
    """The name itself first, then what was merged from it."""
    adapters: tuple[str, ...]
    """Folders of adapters: ids, and damaged ones set aside."""
    sources: tuple[str, ...]
    runs: tuple[str, ...]
    own_runs: tuple[str, ...]
    """Those of the name itself, that stay ones too; a merge's asks about other memories as well."""
    kept: tuple[str, ...]
    """What stays and why, in sentences."""
    parents: tuple[str, ...] = ()
    """Memories that it was merged from; they stay, and go on knowing it."""


def plan_removal(folder: Path, name: str, *, with_merged: bool = False) -> Removal:
    """Say what forgetting a name would remove; nothing is touched.

    Raises UnknownMemory, and ConfigError when memories were merged from it and `with_merged` is
    off.
    """
    entry_of(folder, name)
    known = entries(folder)
    merged = descendants(known, name)
    if merged and not with_merged:
        were = "memory was" if len(merged) == 1 else "memories were"
        raise ConfigError(
            f"asked to forget {name!r}; {len(merged)} {were} merged from it "
            f"({', '.join(merged[:6])}) and hold it too; forget them with it (--with-merged), or "
            "keep all."
        )
    return removal_of(folder, (name, *merged))


def removal_of(folder: Path, names: tuple[str, ...]) -> Removal:
    """What goes with these names, of which those after the first were merged from it."""
    known, (name, *merged) = entries(folder), names
    going = [known[n] for n in names]
    staying = {n: entry for n, entry in known.items() if n not in names}
    aliases = {*names, *(old for entry in going for old in entry.get("formerly", ()))} - {*staying}
    used = {
        key: {str(e.get(key)) for e in staying.values()} for key in ("adapter", "source", "run")
    }

    shelved = _shelved(folder, {entry["adapter"] for entry in known.values()})
    runs = {run: about for run, about in _runs(folder).items() if run not in used["run"]}

    def sources_of(entries: Iterable[Mapping[str, Any]], of: set[str]) -> set[str]:
        """Those of some entries, and of what was written under some names before."""
        before = (a for a in (*shelved.values(), *runs.values()) if a["name"] in of)
        found = {str(about.get("source")) for about in (*entries, *before)}
        return {s for s in found if (folder / "sources" / f"{s}.jsonl").is_file()}

    own = aliases - {*merged}
    sources = sources_of(going, aliases)
    free, own_free = sources - used["source"], sources_of([known[name]], own) - used["source"]
    mine = {
        run
        for run, about in runs.items()
        if about["name"] in own or about.get("source") in own_free
    }
    every = {
        run
        for run, about in runs.items()
        if about["name"] in aliases or about.get("source") in free
    }
    adapters = {entry["adapter"] for entry in going}
    left = {
        place
        for place, about in shelved.items()
        if about["name"] in aliases or about.get("source") in free
    }
    parents = tuple(p["name"] for p in known[name].get("parents", ()) if p["name"] in staying)
    return Removal(
        names,
        tuple(sorted((adapters - used["adapter"]) | left)),
        tuple(sorted(free)),
        tuple(sorted(every | ({str(entry.get("run")) for entry in going} & {*runs}))),
        tuple(sorted(mine | {str(known[name].get("run"))} - {"", "None"})),
        (
            *_kept(staying, adapters & used["adapter"], sources & used["source"]),
            *(f"{parent} stays: {name} was merged from it." for parent in parents),
        ),
        parents,
    )


def descendants(known: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """What was merged from a memory, from what was merged from it, and so on."""
    names, adapters = [name], {known[name]["adapter"]}

    def is_child(entry: Mapping[str, Any]) -> bool:
        parents = entry.get("parents", ())
        return any(p.get("name") in names or p.get("adapter") in adapters for p in parents)

    while more := sorted(n for n, entry in known.items() if n not in names and is_child(entry)):
        names += more
        adapters |= {known[other]["adapter"] for other in more}
    return tuple(names[1:])


def record_of(path: Path) -> dict[str, Any]:
    """A record that may be gone or damaged, as far as it can be read."""
    try:
        return read_object(path, "delete it") if path.is_file() else {}
    except DataError:
        return {}


def _shelved(folder: Path, used: set[str]) -> dict[str, dict[str, Any]]:
    """Folders of adapters that no name stands for, with what their cards say."""
    places = [p for p in sorted((folder / "adapters").glob("*")) if p.name not in used]
    return {p.name: {"name": None, **record_of(p / "card.json")} for p in places}


def _runs(folder: Path) -> dict[str, dict[str, Any]]:
    """Every run with its name and source; of older ones the name is that of the folder."""
    places = sorted((folder / "runs").glob("*"))
    named = {p.name: {"name": _STAMP.sub("", p.name)} for p in places}
    return {p.name: {**named[p.name], **record_of(p / "config.json")} for p in places}


def _kept(
    staying: Mapping[str, Any], adapters: Iterable[str], sources: Iterable[str]
) -> Iterator[str]:
    for key, values in (("adapter", adapters), ("source", sources)):
        for value in sorted(values):
            users = sorted(name for name, entry in staying.items() if entry.get(key) == value)
            yield f"{key} {value[:16]} stays: {', '.join(users)} still uses it."
