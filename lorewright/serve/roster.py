"""Which models can be asked for now: the base, `auto`, and what the folder's names stand for.

memory.json is looked at again for every request, and read again when it has changed, so a memory
that was written, renamed or forgotten by another process is there, or gone, at the next request.
Names lead to content ids; requests hold ids. An administrator can add or hide names for as long as
the server runs; nothing here writes to the folder.

This room knows names, ids and paths. It knows nothing of tensors.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorewright.errors import DataError, StorageError, UnknownMemory
from lorewright.memory.folder import INDEX_FILE, index
from lorewright.serve.wire import Refused

AUTO = "auto"
"""The model that is whichever memory a question is for."""
OWNER = "lorewright"
ADAPTER_ID = re.compile(r"[0-9a-f]{16}")
NAME = re.compile(r"[\w.-]{1,100}")

Route = Callable[[str], str | None]
"""A question to the name of the memory that answers it; None = no memory does."""


@dataclass(frozen=True)
class Target:
    """Who answers a request."""

    name: str
    """A memory's name, or the base's id."""
    identity: str = ""
    """Content id of the memory's adapter; empty for the base alone."""
    routed: bool = False
    """Whether `auto` was asked for."""

    def to_json(self) -> dict[str, Any]:
        """What a reply says of it."""
        memory = self.name if self.identity else ""
        return {"memory": memory, "adapter": self.identity, "routed": self.routed}


class Roster:
    """Names that the server answers to."""

    def __init__(self, folder: Path, route: Route | None = None) -> None:
        """Read the folder. Raises UnknownMemory or DataError as `shelf.index` does."""
        self.folder = folder.resolve()
        self.route = route
        self.trouble = ""
        """Why memory.json could not be read lately; the last state that could is served on."""
        self.version = 0
        """Changes with the names."""
        self._added: dict[str, str] = {}
        self._hidden: set[str] = set()
        self._read()

    # -- asked ---------------------------------------------------------------------------------

    @property
    def base(self) -> str:
        """The base's id."""
        return self._base

    @property
    def names(self) -> Mapping[str, str]:
        """Names of the memories that are served, sorted, and their content ids."""
        self._look()
        return self._names

    def target(self, model: str) -> Target:
        """Return who answers to a name, the base's id, or a content id that has a name.

        Not for `auto`, which needs a question. Raises Refused for anything else.
        """
        names = self.names
        if model == self._base:
            return Target(model)
        if model in names:
            return Target(model, names[model])
        if model in self._by_id:
            return Target(self._by_id[model], model)
        few = ", ".join([self._base, *list(names)[:5], *(["..."] if len(names) > 5 else [])])
        raise Refused(
            404,
            f"there is no model {model[:100]!r} here; there are: {few}.",
            code="model_not_found",
            param="model",
        )

    def routed(self, question: str) -> Target:
        """Return who answers a question that was put to `auto`; the base where no memory does."""
        if self.route is None:
            raise Refused(
                404,
                f"this server does not route; ask for one of its models instead of {AUTO!r}.",
                code="model_not_found",
                param="model",
            )
        name = self.route(question)
        names = self.names
        if name is None or name not in names:  # or was removed since the router was made
            return Target(self._base, routed=True)
        return Target(name, names[name], routed=True)

    def path(self, identity: str) -> Path:
        """Where an adapter lies."""
        return self.folder / "adapters" / identity

    def listing(self) -> list[dict[str, Any]]:
        """Entries of /v1/models: the base, `auto` where there is a router, every memory."""
        names = self.names
        about = {"object": "model", "created": self._created, "owned_by": OWNER}
        base = {"id": self._base, **about, "root": self._base, "parent": None}
        auto = [{"id": AUTO, **about, "root": AUTO, "parent": self._base}] if self.route else []
        memories = [
            {"id": name, **about, "root": identity, "parent": self._base}
            for name, identity in names.items()
        ]
        return [base, *auto, *memories]

    # -- changed by an administrator --------------------------------------------------------------

    def adapter_at(self, path: str) -> str:
        """Return the content id of an adapter of this folder, given by id or by path.

        Raises Refused for a path that leads anywhere else, by whatever detour.
        """
        identity = path
        if not ADAPTER_ID.fullmatch(path):
            try:
                place = (self.folder / path).resolve()
            except (OSError, ValueError, RuntimeError) as error:
                raise self._outside(path) from error
            identity = place.name
            if place.parent != (self.folder / "adapters").resolve():
                raise self._outside(path)
        if not ADAPTER_ID.fullmatch(identity) or not self.path(identity).is_dir():
            raise self._outside(path)
        return identity

    def add(self, name: str, identity: str) -> None:
        """Serve an adapter of the folder under a name, until the end or `reload`."""
        if not NAME.fullmatch(name) or name in (AUTO, self._base):
            raise Refused(
                400,
                f"{name[:100]!r} cannot be a memory's name; use letters, digits, '.', '_' and '-'.",
                param="name",
            )
        self._hidden.discard(name)
        self._added[name] = identity
        self._settle()

    def hide(self, name: str) -> None:
        """Stop serving a name, until the end or `reload`. Raises Refused for one that is not."""
        if name not in self.names:
            raise self._unknown(name)
        self._added.pop(name, None)
        self._hidden.add(name)
        self._settle()

    def reload(self) -> None:
        """Serve what the folder says, and nothing else."""
        self._added, self._hidden = {}, set()
        self._read()

    # -- the folder ----------------------------------------------------------------------------

    def _look(self) -> None:
        """Read memory.json again if it is another file than last time."""
        if self._stamp() != self._seen:
            try:
                self._read()
            except (DataError, StorageError, UnknownMemory) as error:
                self.trouble = str(error)

    def _stamp(self) -> tuple[int, int, int]:
        try:
            found = os.stat(self.folder / INDEX_FILE)
        except OSError:
            return (0, 0, 0)
        return (found.st_mtime_ns, found.st_ino, found.st_size)

    def _read(self) -> None:
        self._seen = self._stamp()
        found = index(self.folder)
        self._base = str(found["base"]["id"])
        self._created = self._seen[0] // 10**9
        entries = found["memories"].items()
        self._folder_names = {name: str(entry["adapter"]) for name, entry in entries}
        self.trouble = ""
        self._settle()

    def _settle(self) -> None:
        self.version += 1
        every = {**self._folder_names, **self._added}
        self._names = {name: every[name] for name in sorted(every) if name not in self._hidden}
        self._by_id = {identity: name for name, identity in self._names.items()}

    def _outside(self, path: str) -> Refused:
        return Refused(
            400,
            f"{path[:100]!r} is no adapter of this folder; give a content id of one in adapters/.",
            param="adapter",
        )

    def _unknown(self, name: str) -> Refused:
        return Refused(
            404, f"{name[:100]!r} is not served here.", code="model_not_found", param="name"
        )
