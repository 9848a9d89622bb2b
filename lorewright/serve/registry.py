"""Which models can be requested now: the base, `auto`, and the memories that the folder names.

memory.json is checked at every request and read again when it has changed, so a memory that another
process wrote, renamed or forgot is there, or gone, at the next request. Names lead to content ids;
requests hold ids. An administrator can add and hide names for as long as the server runs; nothing
here writes to the folder.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorewright.errors import DataError, StorageError, UnknownMemory
from lorewright.memory.folder import INDEX_FILE, Folder
from lorewright.serve.protocol import APIError, redacted, unavailable, unknown_model
from lorewright.serve.replies import Source

AUTO = "auto"
"""The model that is whichever memory a question is for."""
OWNER = "lorewright"
ADAPTER = "adapter"
"""The kind of state that is served."""
ADAPTER_ID = re.compile(r"[0-9a-f]{16}")
NAME = re.compile(r"[\w.-]{1,100}")

Route = Callable[[str], str | None]
"""From a question to the name of the memory that answers it; None = no memory does."""


@dataclass(frozen=True)
class Target:
    """What answers a request."""

    name: str
    """A memory's name, or the base's id."""
    adapter_id: str = ""
    """Content id of the memory's adapter; empty for the base alone."""
    routed: bool = False
    """Whether `auto` was requested."""

    @property
    def source(self) -> Source:
        """What a reply reports of its memory."""
        memory = self.name if self.adapter_id else ""
        return Source(memory=memory, adapter=self.adapter_id, routed=self.routed)


class Registry:
    """The names that the server answers to."""

    def __init__(self, folder: Path, route: Route | None = None) -> None:
        """Read the folder. Raises UnknownMemory or DataError as `folder.index` does."""
        self.folder = folder.resolve()
        self.route = route
        self.version = 0
        """Changes with the names."""
        self._added: dict[str, str] = {}
        self._hidden: set[str] = set()
        self._stamp = self._read_stamp()
        content = Folder(self.folder).index()
        self.base = str(content["base"]["id"])
        self._base_digest = content["base"]["digest"]
        self._use(content)

    # -- requests ------------------------------------------------------------------------------

    @property
    def names(self) -> Mapping[str, str]:
        """Names of the memories that are served, sorted, and their content ids."""
        stamp = self._read_stamp()
        if stamp != self._stamp:
            self._stamp = stamp
            try:
                self._use(Folder(self.folder).index())
            except (DataError, StorageError, UnknownMemory) as error:
                self.trouble = redacted(str(error), self.folder)
        return self._names

    def target(self, model: str) -> Target:
        """Return what answers to a name, the base's id, or a content id that has a name.

        Not for `auto`, which needs a question. Raises APIError 404 for anything else.
        """
        names = self.names
        if model == self.base:
            return Target(model)
        if model in names:
            return Target(model, names[model])
        by_id = {adapter_id: name for name, adapter_id in names.items()}
        if model in by_id:
            return Target(by_id[model], model)
        few = ", ".join([self.base, *list(names)[:5], *(["..."] if len(names) > 5 else [])])
        raise unknown_model(f"there is no model {model[:100]!r} here; there are: {few}.")

    def routed(self, question: str) -> Target:
        """Return what answers a question to `auto`: a memory, or the base where none does.

        Raises APIError 404 without a router, 503 when the folder's index cannot be read.
        """
        if self.route is None:
            raise unknown_model(f"this server does not route; request another model than {AUTO!r}.")
        try:
            name = self.route(question)
        except (DataError, StorageError, UnknownMemory) as error:
            reason = redacted(str(error), self.folder).rstrip(".")
            raise unavailable(
                f"{AUTO!r} cannot choose a memory ({reason}); repair the folder, or request a "
                "memory by name.",
                str(error),
            ) from error
        names = self.names
        if name is None or name not in names:  # or was removed since the router was built
            return Target(self.base, routed=True)
        return Target(name, names[name], routed=True)

    def path(self, adapter_id: str) -> Path:
        """The folder of an adapter."""
        return self.folder / "adapters" / adapter_id

    def listing(self) -> list[dict[str, Any]]:
        """Entries of /v1/models: the base, `auto` where there is a router, every memory.

        A memory whose card has a verdict shows it: recall beside its base's, and what is retained.
        """
        about = {"object": "model", "created": self._stamp[0] // 10**9, "owned_by": OWNER}
        entries = [{"id": self.base, **about, "root": self.base, "parent": None}]
        roots = {AUTO: AUTO} if self.route else {}
        for name, root in (roots | dict(self.names)).items():
            entry = {"id": name, **about, "root": root, "parent": self.base}
            if recall := self._recall.get(root):
                entry["recall"] = recall
            entries.append(entry)
        return entries

    # -- administration ------------------------------------------------------------------------

    def resolve(self, adapter: str) -> str:
        """Return the content id of an adapter of this folder, given by id or by path.

        Raises APIError 400 for a path that leads anywhere else, by whatever detour.
        """
        adapter_id, inside = adapter, True
        if not ADAPTER_ID.fullmatch(adapter):
            try:
                place = (self.folder / adapter).resolve()
                adapter_id, inside = place.name, place.parent == self.path("").resolve()
            except (OSError, ValueError, RuntimeError):
                inside = False
        if not inside or not ADAPTER_ID.fullmatch(adapter_id) or not self.path(adapter_id).is_dir():
            why = f"{adapter[:100]!r} is no adapter of this folder; give a content id."
            raise APIError(400, why, param="adapter")
        return adapter_id

    def add(self, name: str, adapter_id: str, *, replace: bool = False) -> None:
        """Serve an adapter of the folder under a name, until the end or `reload`.

        Raises APIError 400 for a name that is reserved, or is in use for another adapter unless
        `replace`.
        """
        if not NAME.fullmatch(name) or name in (AUTO, self.base):
            why = (
                f"{name[:100]!r} cannot be a memory's name; use letters, digits, '.', '_' and '-', "
                f"and neither {AUTO!r} nor {self.base!r}."
            )
            raise APIError(400, why, param="name")
        if not replace and self.names.get(name, adapter_id) != adapter_id:
            why = f"{name!r} has already been loaded; set replace (load_inplace) to replace it."
            raise APIError(400, why, param="name")
        self._hidden.discard(name)
        self._added[name] = adapter_id
        self._update()

    def hide(self, name: str) -> None:
        """Stop serving a name, until the end or `reload`. Raises APIError for one not served."""
        if name not in self.names:
            raise unknown_model(f"{name[:100]!r} is not served here.", param="name")
        self._added.pop(name, None)
        self._hidden.add(name)
        self._update()

    def reload(self) -> None:
        """Serve what the folder names, and nothing else."""
        self._added, self._hidden = {}, set()
        self._stamp = self._read_stamp()
        self._use(Folder(self.folder).index())

    # -- the folder ----------------------------------------------------------------------------

    def _read_stamp(self) -> tuple[int, int, int]:
        try:
            stat = os.stat(self.folder / INDEX_FILE)
        except OSError:
            return (0, 0, 0)
        return (stat.st_mtime_ns, stat.st_ino, stat.st_size)

    def _use(self, content: Mapping[str, Any]) -> None:
        """Serve the memories of memory.json. Raises DataError when it is of another base now."""
        if content["base"]["digest"] != self._base_digest:
            raise DataError(
                f"{self.folder / INDEX_FILE} is of another base than {self.base!r} as it was when "
                "this server was started; start it again."
            )
        reserved = [name for name in (AUTO, self.base) if name in content["memories"]]
        kinds = {
            n: str(e.get("card", {}).get("kind", ADAPTER)) for n, e in content["memories"].items()
        }
        others = [name for name, kind in kinds.items() if kind != ADAPTER]
        complaints = [
            f"the memory {name!r} has a reserved name and is not served; rename it."
            for name in reserved
        ]
        complaints += [
            f"the memory {name!r} is of kind {kinds[name]!r} and is not served, for only adapters "
            "share a batch; ask it with lore ask, or write it by a method that leaves an adapter."
            for name in others
        ]
        self.trouble = " ".join(complaints)
        """Why the folder, or a part of it, is not served as it is now; empty when all is."""
        entries = content["memories"].items()
        hidden = {*reserved, *others}
        self._folder_names = {n: str(e["adapter"]) for n, e in entries if n not in hidden}
        shown = {str(e["adapter"]): e.get("card", {}).get("report", {}) for _, e in entries}
        self._recall = {adapter: report.get("recall", {}) for adapter, report in shown.items()}
        self._update()

    def _update(self) -> None:
        self.version += 1
        every = {**self._folder_names, **self._added}
        self._names = {name: every[name] for name in sorted(every) if name not in self._hidden}
