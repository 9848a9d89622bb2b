"""A memory folder that is open: its base loaded, and what was read of it so far.

The verbs of a memory are functions of an `OpenFolder`, one file a verb; `memory.Memory` has them as
methods. This module knows which base a folder is on and how its states are read.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from lorewright.adapters.adapter import Adapter
from lorewright.adapters.quantise import NF4
from lorewright.errors import AdapterError, ConfigError, DataError
from lorewright.knowledge.data import Document, Fact, Knowledge
from lorewright.knowledge.readers.read import read_knowledge
from lorewright.memory.folder import INDEX_FILE, RESTORE, Folder
from lorewright.memory.removal import writing
from lorewright.memory.route import LiveRouter
from lorewright.models.catalogue import POCKET
from lorewright.models.encoders import AUTO, Encoder
from lorewright.models.model import Model
from lorewright.writers.adapter import AdapterState
from lorewright.writers.methods import load_state
from lorewright.writers.writer import State

DTYPES = ("auto", "float32", "bfloat16", "float16", NF4)
Source = Knowledge | Document | Fact | Path | str | Iterable[Document | Fact]
"""What a verb takes as knowledge; text and paths are paths."""
N_LOADED = 64
"""At most so many states stay loaded between questions."""


@dataclass(frozen=True, eq=False)
class OpenFolder:
    """A folder of memories and the base that they are on."""

    folder: Folder
    model: Model = field(repr=False)
    router: LiveRouter = field(repr=False)
    loaded: dict[str, State] = field(default_factory=dict, repr=False)
    """States by id, for the next question."""

    @classmethod
    def of(cls, folder: Folder, model: Model, encoder: str | Encoder = AUTO) -> Self:
        """A folder and a base that were checked, or need no check."""
        return cls(folder, model, LiveRouter(folder, encoder))

    @classmethod
    def open(
        cls,
        folder: Path | str,
        base: str | Model | None = None,
        *,
        dtype: str = "auto",
        create: bool = True,
        encoder: str | Encoder = AUTO,
    ) -> Self:
        """Open a memory folder, or start one.

        `base` and `dtype` default to the folder's own, or to the embedded model; `encoder` compares
        questions with keys, see `LiveRouter`, and is loaded at the first question. Raises
        UnknownMemory when there is none and `create` is off, WrongBase when the folder was made on
        another base, DataError when memory.json is damaged or the folder is something else.
        """
        place = Folder(Path(folder))
        if dtype not in DTYPES:
            raise ConfigError(f"dtype {dtype!r} is unknown; use one of {', '.join(DTYPES)}.")
        if place.path.exists() and not place.path.is_dir():
            raise DataError(f"{place.path} is a file; a memory is a folder; give another name.")
        started = place.started or not create
        if not started:
            place.refuse_foreign()
        own = place.index()["base"] if started else {"id": POCKET}
        dtype = str(own.get("dtype", "auto")) if dtype == "auto" else dtype
        if dtype not in DTYPES:
            raise DataError(
                f"{place.path / INDEX_FILE} is damaged (base.dtype is {dtype!r}, none of "
                f"{', '.join(DTYPES)}); {RESTORE}."
            )
        model = base if isinstance(base, Model) else Model.load(base or own["id"], dtype=dtype)
        if started:
            place.check_base(base_of(model))
        return cls.of(place, model, encoder)

    @property
    def names(self) -> dict[str, str]:
        """Names of the memories and the ids they stand for."""
        return self.folder.names

    def state(self, name: str) -> State:
        """Read what a name stands for from disk.

        Raises UnknownMemory with the names there are, AdapterError when its files are damaged or
        hold something else than what was written.
        """
        identity = self.folder.entry(name)["adapter"]
        place = self.folder.state_path(identity)
        state = load_state(place)
        if state.id != identity:
            raise AdapterError(
                f"{place} does not hold what was written as {name!r}: content {state.id}; restore "
                "it from a copy, or write it again."
            )
        return state

    def adapter(self, name: str) -> Adapter:
        """A memory's adapter, read from disk. Raises as `state`; AdapterError for another kind."""
        state = self.state(name)
        if not isinstance(state, AdapterState):
            raise AdapterError(
                f"{name!r} is a state of kind {state.kind!r}; this needs an adapter: write it by a "
                "method that leaves one, such as gradient."
            )
        return state.adapter

    def cached(self, name: str, identity: str) -> State:
        """What a name stands for, loaded once: states never change."""
        if identity not in self.loaded:
            while len(self.loaded) >= N_LOADED:
                self.loaded.pop(next(iter(self.loaded)))
            self.loaded[identity] = self.state(name)
        return self.loaded[identity]

    def base(self) -> dict[str, str]:
        """What memory.json says of the base: id, digest, template's digest, dtype."""
        return base_of(self.model)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the folder's lock; raises as `removal.writing`."""
        with writing(self.folder, self.base()):
            yield


def base_of(model: Model) -> dict[str, str]:
    """What memory.json says of a base: id, digest, template's digest, dtype."""
    about = {"id": model.name, "digest": model.digest, "template": model.template_digest}
    return {**about, "dtype": model.loaded_as}


def as_knowledge(source: Source) -> Knowledge:
    """What may be written as knowledge: it, a path, or documents and facts.

    Raises DataError as `read_knowledge`, a question with two answers and an id that comes twice
    included, and for anything else.
    """
    if isinstance(source, str | Path):
        return read_knowledge(source)
    if isinstance(source, Document | Fact):
        source = [source]
    if not isinstance(source, Knowledge):
        rows = tuple(source) if isinstance(source, Iterable) else (source,)
        if strange := [row for row in rows if not isinstance(row, Document | Fact)]:
            raise DataError(
                f"the source holds a {type(strange[0]).__name__}; give a path, Knowledge, or "
                "Documents and Facts."
            )
        documents = tuple(row for row in rows if isinstance(row, Document))
        source = Knowledge(documents, tuple(row for row in rows if isinstance(row, Fact)))
    _check_repetitions(source)
    return source


def _check_repetitions(knowledge: Knowledge) -> None:
    """What readers refuse in files, in knowledge that was made otherwise."""
    ids = [*(each.id for each in knowledge.documents), *(each.id for each in knowledge.facts)]
    if len({*ids}) < len(ids):
        twice = Counter(ids).most_common(1)[0][0]
        raise DataError(f"the id {twice!r} comes twice; give each document and fact its own.")
    by_question = dict[str, Fact]()
    for fact in knowledge.facts:
        question = " ".join(unicodedata.normalize("NFC", fact.question).split())
        first = by_question.setdefault(question, fact)
        if not {*first.answers} & {*fact.answers}:
            raise DataError(
                f"{fact.question!r} has two answers, {first.answer!r} ({first.id}) and "
                f"{fact.answer!r} ({fact.id}); leave one, or make the questions differ."
            )
