"""What stands in a memory folder, and who may write there; all without loading a model.

This room knows memory.json, cards, runs and the lock. It knows nothing of tensors, training or
questions.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lorewright.errors import (
    ConfigError,
    DataError,
    UnknownMemory,
    WrongBase,
)
from lorewright.files import LOCK_FILE, load_jsonl, locked, read_object, save_json, store
from lorewright.knowledge.data import Document, Fact, Knowledge
from lorewright.memory.migrations import SCHEMA, brief, migrate

INDEX_FILE = "memory.json"
LOCK_SECONDS = 2.0
"""How long a writer waits for another one before it gives up."""
_ADAPTER_ID = re.compile(r"[0-9a-f]{16}")


def index(folder: Path) -> dict[str, Any]:
    """memory.json as data: schema, base (id, digest), memories (name -> entry).

    An entry has adapter, source, run, card (what a list shows of it); after a merge parents, and
    formerly after it was renamed.
    One of an older schema is migrated as it is read. Raises UnknownMemory when there is none,
    DataError when it is damaged.
    """
    path = folder / INDEX_FILE
    if not path.is_file():
        raise UnknownMemory(
            f"there is no memory in {folder} (no {INDEX_FILE}); write one: "
            f"lore write SOURCE --into {folder}"
        )
    found = read_object(path, "restore it from a copy; the adapters beside it are whole")
    wrong = _misshapen(found)
    if wrong and found.get("schema") in (None, *range(SCHEMA + 1)):
        raise DataError(f"{path} is damaged ({wrong}); restore it from a copy.")
    return migrate(found, folder)


def _misshapen(found: Mapping[str, Any]) -> str:
    """What keeps the content from being an index; empty when nothing does."""
    base, entries = found.get("base"), found.get("memories")
    if not isinstance(base, dict) or not all(
        isinstance(base.get(k), str) for k in ("id", "digest")
    ):
        return "base must have id and digest"
    if not isinstance(entries, dict):
        return "memories must be an object"
    for name, entry in entries.items():
        if not isinstance(entry, dict) or not _ADAPTER_ID.fullmatch(str(entry.get("adapter"))):
            return f"memory {name!r} names no adapter"
    return ""


def entries(folder: Path) -> dict[str, Any]:
    """Name -> entry of memory.json; empty for a folder that was not started."""
    found: dict[str, Any] = index(folder)["memories"] if (folder / INDEX_FILE).exists() else {}
    return found


def entry_of(folder: Path, name: str) -> dict[str, Any]:
    """One memory's entry. Raises UnknownMemory with the names there are."""
    found = entries(folder)
    if name not in found:
        has = ", ".join(sorted(found)) or "none yet"
        raise UnknownMemory(f"{folder} has no memory {name!r}; it has: {has}.")
    entry: dict[str, Any] = found[name]
    return entry


def briefs(folder: Path) -> list[dict[str, Any]]:
    """What a list shows of every memory, sorted by name, in the shape of `cards`; reads one file.

    Raises UnknownMemory without a memory.
    """
    found = sorted(index(folder)["memories"].items())
    return [{**entry.get("card", {}), "name": n, "id": entry["adapter"]} for n, entry in found]


def cards(folder: Path) -> list[dict[str, Any]]:
    """The card of every memory, sorted by name, with `name` and `id` as memory.json has them.

    Raises UnknownMemory without a memory, DataError for an entry whose card is gone or damaged.
    """
    found = []
    for name, entry in sorted(index(folder)["memories"].items()):
        path = folder / "adapters" / entry["adapter"] / "card.json"
        if not path.is_file():
            raise DataError(
                f"{folder} lists {name!r} with adapter {entry['adapter']}, but {path} is gone; "
                "restore it or write it again."
            )
        card = read_object(path, "restore it from a copy, or write the memory again")
        found.append({**card, "name": name, "id": entry["adapter"]})
    return found


def stored_knowledge(folder: Path, source: str) -> Knowledge:
    """The documents and facts of a source; none for a memory that came without.

    Raises DataError for a source that is gone or damaged.
    """
    if not source:
        return Knowledge()
    path = folder / "sources" / f"{source}.jsonl"
    rows = load_jsonl(path)
    try:
        return Knowledge(
            tuple(Document(**row) for row in rows if "text" in row),
            tuple(Fact(**row) for row in rows if "text" not in row),
        )
    except TypeError as error:
        raise DataError(f"{path} is damaged ({error}); restore it from a copy.") from error


# -- writing -------------------------------------------------------------------------------------


def refuse_foreign(folder: Path) -> None:
    """Raise DataError when a folder without memory.json holds anything but a writer's traces."""
    ours = (LOCK_FILE, f".{INDEX_FILE}.")
    if folder.is_dir() and not all(path.name.startswith(ours) for path in folder.iterdir()):
        raise DataError(
            f"{folder} holds other files and no {INDEX_FILE}; give an empty or new folder."
        )


def check_base(folder: Path, base: Mapping[str, str]) -> None:
    """Raise WrongBase when the folder was written on another base or chat template than this."""
    own = index(folder)["base"]
    if own["digest"] != base["digest"]:
        raise WrongBase(
            f"{folder} was written on {own['id']!r} (digest {own['digest'][:12]}); "
            f"{base['id']!r} has {base['digest'][:12]}; open it on its own base and dtype, or "
            "write a new folder."
        )
    if own.get("template", base["template"]) != base["template"]:
        raise WrongBase(
            f"{folder} was written with another chat template than {base['id']!r} has now, so "
            "questions would not look as they were trained; open it on its own base, or write a "
            "new folder."
        )


@contextmanager
def writing(folder: Path, base: Mapping[str, str]) -> Iterator[None]:
    """Keep other writers out of a folder, which is started here or must be on the same base.

    Raises Locked when another process writes, StorageError for what the disk refuses inside.
    """
    with locked(folder, work="writing into", wait_seconds=LOCK_SECONDS):
        if (folder / INDEX_FILE).exists():
            check_base(folder, base)
            _keep_migrated(folder)
        else:
            _save_index({"schema": SCHEMA, "base": dict(base), "memories": {}}, folder)
        yield


def run_folder(folder: Path, name: str, settings: Mapping[str, Any]) -> Path:
    """The unfinished run with the same `key` in its settings, or a new one that has them.

    Its config.json says the name as well: what is forgotten takes its runs along.
    """
    runs = folder / "runs"
    for path in sorted(runs.glob("*/config.json")):
        finished = (path.parent / "report.json").exists()
        if not finished and read_object(path, "delete this run").get("key") == settings["key"]:
            return path.parent
    stem = f"{time.strftime('%Y%m%d-%H%M%S')}-{name}"
    names = (f"{stem}-{i}" if i else stem for i in range(1000))
    run = next(path for path in map(runs.joinpath, names) if not path.exists())
    save_json({"name": name, **settings}, run / "config.json")
    return run


def enter(
    folder: Path,
    name: str,
    identity: str,
    *,
    source: str,
    run: str,
    parents: Sequence[Mapping[str, str]] = (),
) -> None:
    """Let a name stand for an adapter that is on the shelf; whatever it stood for stays there.

    `parents` are the name and adapter of each memory that it was merged from.
    """
    path = folder / "adapters" / identity / "card.json"
    card = read_object(path, "write the memory again") if path.is_file() else {}
    entry: dict[str, Any] = {"adapter": identity, "source": source, "run": run}
    entry["card"] = brief(card)
    if parents:
        entry["parents"] = [dict(parent) for parent in parents]
    change(folder, lambda memories: memories.update({name: entry}))


def change(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Edit names and their entries, all or nothing; the caller holds the lock."""
    found = index(folder)
    edit(found["memories"])
    _save_index(found, folder)


def rename(folder: Path, old: str, new: str) -> None:
    """Give a memory another name; its adapter, source and runs stay what and where they are.

    Raises UnknownMemory for one that is not there, ConfigError for a new name that is taken,
    Locked when somebody writes.
    """
    with writing(folder, index(folder)["base"]):
        entry_of(folder, old)
        if new in entries(folder):
            raise ConfigError(f"asked to name {old!r} {new!r}; that name is taken; use another.")

        def move(memories: dict[str, Any]) -> None:
            entry = memories.pop(old)
            formerly = [*entry.get("formerly", ()), old]
            memories[new] = {**entry, "formerly": [n for n in dict.fromkeys(formerly) if n != new]}
            for other in memories.values():
                for parent in other.get("parents", ()):
                    parent["name"] = new if parent.get("name") == old else parent.get("name")

        change(folder, move)


def _keep_migrated(folder: Path) -> None:
    """Write memory.json in the schema of today, a copy of the older one beside it."""
    path = folder / INDEX_FILE
    before = read_object(path, "restore it from a copy")["schema"]
    if before != SCHEMA:
        found = index(folder)
        store(path.read_bytes(), folder / f"memory.schema-{before}.json")
        _save_index(found, folder)


def _save_index(found: Mapping[str, Any], folder: Path) -> None:
    """One memory a line: legible, and quick to write where there are thousands."""
    try:
        rest = [f"{json.dumps(k)}: {_line(v)}" for k, v in found.items() if k != "memories"]
        rows = [f"{_line(k)}: {_line(v)}" for k, v in sorted(found["memories"].items())]
        inside = ",\n    ".join(rows)
        memories = f'"memories": {{\n    {inside}\n  }}' if rows else '"memories": {}'
        content = ("{\n  " + ",\n  ".join([*rest, memories]) + "\n}\n").encode()
    except (TypeError, ValueError) as error:
        raise DataError(
            f"asked to write {folder / INDEX_FILE}; an entry cannot be JSON: {error}."
        ) from error
    store(content, folder / INDEX_FILE)


def _line(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
