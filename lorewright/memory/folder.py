"""A memory folder on disk: its names, cards, sources and runs, and who may write there.

    memory.json            schema, base (id, digest, template), names -> entries
    sources/<digest>.jsonl documents and facts as given
    adapters/<id>/         a state as its kind stores it, and card.json; immutable, named by content
    index/                 what questions are routed by; derived, may be deleted
    runs/<time>-<name>/    config.json, lesson.json, metrics.jsonl, report.json; while it is being
                           written a checkpoint, and in again.jsonl what it was called with

One writer at a time, by a file lock. This module loads no model and no tensors.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorewright.errors import ConfigError, DataError, StorageError, UnknownMemory, WrongBase
from lorewright.files import (
    LOCK_FILE,
    dump_jsonl,
    load_jsonl,
    locked,
    read_object,
    save_json,
    store,
    sweep,
)
from lorewright.knowledge.data import Document, Fact, Knowledge
from lorewright.knowledge.lesson import Lesson
from lorewright.memory.migrations import SCHEMA, brief, migrate

INDEX_FILE = "memory.json"
LESSON_FILE, REPORT_FILE = "lesson.json", "report.json"
CONFIG_FILE, CARD_FILE = "config.json", "card.json"
AGAIN_FILE = "again.jsonl"
"""In a run that can go on: what it was called with, then its documents and facts, one a line."""
DERIVED = "index"
"""In the memory's folder: everything that is derived from sources and lessons for routing."""
JOURNAL = "forgetting.json"
"""There while a removal is under way, and after one that was interrupted."""
LOCK_SECONDS = 2.0
"""How long a writer waits for another one before it gives up."""
BEFORE = "before"
"""`<name>-before` is what a name stood for before it was superseded."""
_ADAPTER_ID = re.compile(r"[0-9a-f]{16}")
RESTORE = "restore it from a copy"
RECALLED_KINDS = ("efficacy", "paraphrase", "verbatim", "reverse", "multihop")
"""Kinds of probes that ask for something that was written."""
RESERVED = ("auto", "pocket")
"""No names of memories: requests use them for whichever memory fits and for the embedded base."""


@dataclass(frozen=True)
class Folder:
    """The place of some memories on one base."""

    path: Path

    # -- reading -----------------------------------------------------------------------------------

    @property
    def started(self) -> bool:
        """Whether memory.json is there."""
        return (self.path / INDEX_FILE).exists()

    def index(self) -> dict[str, Any]:
        """memory.json as data: schema, base (id, digest), memories (name -> entry).

        An entry has adapter, source, run, card (what a list shows of it); after a merge parents,
        and formerly after it was renamed. An older schema is migrated as it is read. Raises
        UnknownMemory without the file, DataError when it is damaged.
        """
        path = self.path / INDEX_FILE
        if not path.is_file():
            raise UnknownMemory(
                f"there is no memory in {self.path} (no {INDEX_FILE}); write one: "
                f"lore write SOURCE --into {self.path}"
            )
        content = read_object(path, f"{RESTORE}; the adapters beside it are whole")
        wrong = _misshapen(content)
        if wrong and content.get("schema") in (None, *range(SCHEMA + 1)):
            raise DataError(f"{path} is damaged ({wrong}); {RESTORE}.")
        return migrate(content, self.path)

    def entries(self) -> dict[str, Any]:
        """Name -> entry; empty for a folder that was not started."""
        return dict(self.index()["memories"]) if self.started else {}

    def entry(self, name: str) -> dict[str, Any]:
        """One memory's entry. Raises UnknownMemory with the names there are."""
        entries = self.entries()
        if name not in entries:
            has = ", ".join(sorted(entries)) or "none yet"
            raise UnknownMemory(f"{self.path} has no memory {name!r}; it has: {has}.")
        return dict(entries[name])

    @property
    def names(self) -> dict[str, str]:
        """Names of the memories and the ids they stand for."""
        return {name: entry["adapter"] for name, entry in self.entries().items()}

    def only(self) -> str:
        """The folder's single memory. Raises UnknownMemory when there are none or several."""
        names = sorted(self.names)
        if not names:
            raise UnknownMemory(
                f"{self.path} has no memories yet; write one: lore write SOURCE --into {self.path}"
            )
        if len(names) > 1:
            listed = ", ".join(names[:6])
            raise UnknownMemory(
                f"{self.path} has {len(names)} memories ({listed}); say which one with --name."
            )
        return names[0]

    def briefs(self) -> list[dict[str, Any]]:
        """What a list shows of every memory, sorted by name, as in `cards`; reads one file.

        Raises UnknownMemory without a memory.
        """
        entries = sorted(self.index()["memories"].items())
        return [
            {**entry.get("card", {}), "name": n, "id": entry["adapter"]} for n, entry in entries
        ]

    def cards(self) -> list[dict[str, Any]]:
        """The card of every memory, sorted by name, with `name` and `id` as memory.json has them.

        Raises UnknownMemory without a memory, DataError for an entry whose card is gone or damaged.
        """
        cards = []
        for name, entry in sorted(self.index()["memories"].items()):
            path = self.state_path(entry["adapter"]) / CARD_FILE
            if not path.is_file():
                raise DataError(
                    f"{self.path} lists {name!r} with adapter {entry['adapter']}, but {path} is "
                    "gone; restore it or write it again."
                )
            card = read_object(path, f"{RESTORE}, or write the memory again")
            cards.append({**card, "name": name, "id": entry["adapter"]})
        return cards

    def card(self, identity: str) -> dict[str, Any]:
        """A state's card as far as it can be read; empty when it is gone or damaged."""
        return readable(self.state_path(identity) / CARD_FILE)

    def knowledge(self, entry: Mapping[str, Any]) -> Knowledge:
        """The documents and facts of a memory's source; none for one that came without.

        Raises DataError for a source that is gone or damaged.
        """
        source = str(entry.get("source") or "")
        if not source:
            return Knowledge()
        path = self.source_path(source)
        try:
            return knowledge_of(load_jsonl(path))
        except TypeError as error:
            raise DataError(f"{path} is damaged ({error}); {RESTORE}.") from error

    def lesson(self, entry: Mapping[str, Any]) -> Lesson:
        """The lesson of a memory; an empty one where its run is gone. Raises DataError."""
        return lesson_in(self.run_path(str(entry.get("run"))))

    def state_path(self, identity: str) -> Path:
        """Where a state lies."""
        return self.path / "adapters" / identity

    def source_path(self, source: str) -> Path:
        """Where a source lies."""
        return self.path / "sources" / f"{source}.jsonl"

    def run_path(self, run: str) -> Path:
        """Where a run lies."""
        return self.path / "runs" / run

    # -- writing -----------------------------------------------------------------------------------

    def refuse_foreign(self) -> None:
        """Raise DataError when a folder without memory.json holds anything but a writer's rests."""
        ours = (LOCK_FILE, f".{INDEX_FILE}.")
        if self.path.is_dir() and not all(p.name.startswith(ours) for p in self.path.iterdir()):
            raise DataError(
                f"{self.path} holds other files and no {INDEX_FILE}; give an empty or new folder."
            )

    def check_base(self, base: Mapping[str, str]) -> None:
        """Raise WrongBase when the folder was written on another base or chat template."""
        own = self.index()["base"]
        if own["digest"] != base["digest"]:
            raise WrongBase(
                f"{self.path} was written on {own['id']!r} (digest {own['digest'][:12]}); "
                f"{base['id']!r} has {base['digest'][:12]}; open it on its own base and dtype, or "
                "write a new folder."
            )
        if own.get("template", base["template"]) != base["template"]:
            raise WrongBase(
                f"{self.path} was written with another chat template than {base['id']!r} has now, "
                "so questions would not look as they were trained; open it on its own base, or "
                "write a new folder."
            )

    @contextmanager
    def writing(self, base: Mapping[str, str]) -> Iterator[None]:
        """Hold the lock of the folder, which is started here or must be on the same base.

        What an interrupted writer left half-written is swept; a removal that was interrupted is
        completed by `removal.writing`. Raises Locked when another process writes, StorageError for
        what the disk refuses inside.
        """
        with locked(self.path, work="writing into", wait_seconds=LOCK_SECONDS):
            if self.started:
                self.check_base(base)
                self._store_migrated()
            else:
                self._save_index({"schema": SCHEMA, "base": dict(base), "memories": {}})
            ours = (self.path / name for name in ("adapters", "index", "runs", "sources"))
            for place in (self.path, *ours, *self.path.glob("runs/*/")):
                sweep(place)
            yield

    def run(self, name: str, settings: Mapping[str, Any]) -> Path:
        """The unfinished run with the same `key` in its settings, or a new one that has them.

        Its config.json has the name as well: what is forgotten takes its runs along.
        """
        for path in sorted(self.path.glob(f"runs/*/{CONFIG_FILE}")):
            finished = (path.parent / REPORT_FILE).exists()
            if not finished and read_object(path, "delete this run").get("key") == settings["key"]:
                return path.parent
        return self.new_run(name, {"name": name, **settings})

    def new_run(self, label: str, config: Mapping[str, Any]) -> Path:
        """A run that is named after the time and a label, with its config.json."""
        stem = f"{time.strftime('%Y%m%d-%H%M%S')}-{label}"
        names = (f"{stem}-{i}" if i else stem for i in range(1000))
        run = next(path for path in map(self.run_path, names) if not path.exists())
        save_json(config, run / CONFIG_FILE)
        return run

    def store_source(self, knowledge: Knowledge) -> str:
        """Store documents and facts; their digest, empty for none."""
        if knowledge == Knowledge():
            return ""
        dump_jsonl([*knowledge.documents, *knowledge.facts], self.source_path(knowledge.digest()))
        return knowledge.digest()

    def enter(
        self,
        name: str,
        identity: str,
        *,
        source: str,
        run: str,
        parents: Sequence[Mapping[str, str]] = (),
    ) -> None:
        """Let a name stand for a state that is stored; whatever it stood for stays stored.

        `parents` are the name and adapter of each memory that it was merged from.
        """
        path = self.state_path(identity) / CARD_FILE
        card = read_object(path, "write the memory again") if path.is_file() else {}
        entry: dict[str, Any] = {"adapter": identity, "source": source, "run": run}
        entry["card"] = brief(card)
        if parents:
            entry["parents"] = [dict(parent) for parent in parents]
        self.change(lambda memories: memories.update({name: entry}))

    def change(self, edit: Callable[[dict[str, Any]], object]) -> None:
        """Edit names and their entries, all or nothing; the caller holds the lock."""
        content = self.index()
        edit(content["memories"])
        self._save_index(content)

    def rename(self, old: str, new: str) -> None:
        """Give a memory another name; its state, source and runs stay what and where they are.

        Raises UnknownMemory for one that is not there, ConfigError for a new name that is in use or
        reserved and while a removal is unfinished, Locked while another process writes.
        """
        base = self.index()["base"]
        check_name(new, base["id"])
        with self.writing(base):
            if (self.path / JOURNAL).exists():
                raise ConfigError(
                    f"rename {old!r}: a removal was interrupted here; complete it first, with the "
                    f"command that lore show {self.path} prints."
                )
            self.entry(old)
            if new in self.entries():
                raise ConfigError(
                    f"rename {old!r} to {new!r}: that name is taken; choose another name."
                )

            def move(memories: dict[str, Any]) -> None:
                entry = memories.pop(old)
                names = dict.fromkeys([*entry.get("formerly", ()), old])
                memories[new] = {**entry, "formerly": [n for n in names if n != new]}
                for other in memories.values():
                    for parent in other.get("parents", ()):
                        parent["name"] = new if parent.get("name") == old else parent.get("name")

            self.change(move)

    def _store_migrated(self) -> None:
        """Write memory.json in the schema of today, a copy of the older one beside it."""
        path = self.path / INDEX_FILE
        before = read_object(path, RESTORE)["schema"]
        if before != SCHEMA:
            content = self.index()
            store(path.read_bytes(), self.path / f"memory.schema-{before}.json")
            self._save_index(content)

    def _save_index(self, content: Mapping[str, Any]) -> None:
        """One memory a line: legible, and quick to write where there are thousands."""
        path = self.path / INDEX_FILE
        try:
            rest = [f"{json.dumps(k)}: {_line(v)}" for k, v in content.items() if k != "memories"]
            rows = [f"{_line(k)}: {_line(v)}" for k, v in sorted(content["memories"].items())]
            inside = ",\n    ".join(rows)
            memories = f'"memories": {{\n    {inside}\n  }}' if rows else '"memories": {}'
            content_bytes = ("{\n  " + ",\n  ".join([*rest, memories]) + "\n}\n").encode()
        except (TypeError, ValueError) as error:
            raise DataError(f"write {path}: an entry cannot be JSON: {error}.") from error
        store(content_bytes, path)


def check_name(name: str, base_id: str) -> None:
    """Raise ConfigError for a name by which a memory could not be requested."""
    if name in (*RESERVED, base_id):
        raise ConfigError(
            f"a memory cannot be named {name!r}, which requests use for the base or for whichever "
            "memory fits; give another name."
        )


def lesson_in(run: Path) -> Lesson:
    """The lesson of a run; an empty one where there is none. Raises DataError for a damaged one."""
    path = run / LESSON_FILE
    if not path.exists():
        return Lesson((), (), "", "", ())
    return Lesson.from_json(read_object(path, "delete its run and write again"))


def knowledge_of(rows: Sequence[Mapping[str, Any]]) -> Knowledge:
    """Documents and facts from rows as stored; raises TypeError for rows of another shape."""
    return Knowledge(
        tuple(Document(**row) for row in rows if "text" in row),
        tuple(Fact(**row) for row in rows if "text" not in row),
    )


def readable(path: Path) -> dict[str, Any]:
    """An object of a JSON file as far as it can be read; empty when it is gone or damaged."""
    try:
        return read_object(path, "delete it") if path.is_file() else {}
    except DataError:
        return {}
    except StorageError:
        if path.is_file():
            raise
        return {}  # gone since


def _misshapen(content: Mapping[str, Any]) -> str:
    """What keeps the content from being an index; empty when nothing does."""
    base, entries = content.get("base"), content.get("memories")
    if not isinstance(base, dict) or not all(
        isinstance(base.get(key, ""), str) for key in ("template", "dtype")
    ):
        return "base must be an object of texts"
    if not all(isinstance(base.get(key), str) for key in ("id", "digest")):
        return "base must have id and digest"
    if not isinstance(entries, dict):
        return "memories must be an object"
    wrong = ((name, _misshapen_entry(entry)) for name, entry in entries.items())
    return next((f"memory {name!r} {why}" for name, why in wrong if why), "")


def _misshapen_entry(entry: Any) -> str:
    if not isinstance(entry, dict) or not _ADAPTER_ID.fullmatch(str(entry.get("adapter"))):
        return "names no adapter"
    if not all(is_name(entry.get(key, "")) for key in ("source", "run")):
        return "must name its source and run"
    if not isinstance(entry.get("card", {}), dict):
        return "must have an object as its card"
    parents, formerly = entry.get("parents", []), entry.get("formerly", [])
    if not isinstance(parents, list) or not all(
        isinstance(each, dict) and all(isinstance(each.get(k), str) for k in ("name", "adapter"))
        for each in parents
    ):
        return "must have parents with name and adapter"
    if not isinstance(formerly, list) or not all(isinstance(each, str) for each in formerly):
        return "must list former names"
    return ""


def is_name(value: Any) -> bool:
    """Whether a value names a file in one folder, or is empty."""
    return isinstance(value, str) and value not in (".", "..") and not {*value} & {"/", "\\", "\0"}


def _line(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
