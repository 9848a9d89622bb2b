"""Memory: the façade over a folder. Write knowledge into it, verify it, ask it.

    atlas/memory.json            schema, base id and digest, names -> adapter ids and runs
    atlas/sources/<digest>.jsonl documents and facts as given
    atlas/adapters/<id>/         PEFT's folder and card.json; immutable, addressed by content
    atlas/index/                 what questions are routed by; derived, may be deleted
    atlas/runs/<time>-<name>/    config.json, lesson.json (examples and probes), metrics.jsonl,
                                 report.json; a checkpoint while it is being written

One writer at a time, kept apart by a file lock. Files are written to a temporary name and renamed;
a write that was interrupted is found again by its settings and goes on where it stopped. This room
puts the others together; it knows nothing of tokens, losses or how questions are made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lorewright.adapters import adapter as adapters
from lorewright.adapters.adapter import Adapter
from lorewright.adapters.quantise import NF4
from lorewright.errors import AdapterError, ConfigError, DataError, UnknownMemory
from lorewright.files import slug
from lorewright.knowledge.data import Document, Knowledge, Probe
from lorewright.knowledge.lesson import Lesson, LessonConfig
from lorewright.knowledge.selfstudy import AskLLM
from lorewright.law.plan import WANTED, Plan
from lorewright.memory import (
    add as adding,
)
from lorewright.memory import (
    ask as asking,
)
from lorewright.memory import (
    compare as comparing,
)
from lorewright.memory import (
    forget as forgetting,
)
from lorewright.memory import (
    merge as merging,
)
from lorewright.memory import (
    modes as standing,
)
from lorewright.memory import (
    plan as planning,
)
from lorewright.memory import (
    route as finding,
)
from lorewright.memory import (
    supersede as superseding,
)
from lorewright.memory import (
    verify as verdict,
)
from lorewright.memory import (
    write as writing,
)
from lorewright.memory.folder import (
    INDEX_FILE,
    check_base,
    entries,
    entry_of,
    index,
    refuse_foreign,
    rename,
)
from lorewright.memory.outcome import Outcome
from lorewright.models.catalogue import POCKET
from lorewright.models.model import Model
from lorewright.recall.verify import RecallReport
from lorewright.routing.ask import Answer
from lorewright.routing.gate import Decision
from lorewright.training.config import WriteConfig
from lorewright.training.watch import Watch

__all__ = ["Memory", "Outcome", "Watch"]

DTYPES = ("auto", "float32", "bfloat16", "float16", NF4)


class Memory:
    """A folder of memories on one base model."""

    def __init__(self, folder: Path, model: Model, dtype: str = "auto") -> None:
        """Use `Memory.open`."""
        self.folder = folder
        self.model = model
        self.dtype = dtype
        self.found: tuple[tuple[int, ...], finding.Finder] | None = None
        """What questions are routed with, and the state of memory.json it was made for."""
        self.loaded: dict[str, Adapter] = {}
        """Adapters by id, kept after a question."""

    @classmethod
    def open(
        cls,
        folder: Path | str,
        base: str | Model | None = None,
        *,
        dtype: str = "auto",
        create: bool = True,
    ) -> Memory:
        """Open a memory folder, or start one.

        `base` and `dtype` default to the folder's own, or to the embedded model. Raises
        UnknownMemory when there is none and `create` is off, WrongBase when the folder was made on
        another base, DataError when memory.json is damaged or the folder is something else.
        """
        folder = Path(folder)
        if dtype not in DTYPES:
            raise ConfigError(f"dtype {dtype!r} is unknown; use one of {', '.join(DTYPES)}.")
        if folder.exists() and not folder.is_dir():
            raise DataError(f"{folder} is a file; a memory is a folder; give another name.")
        started = (folder / INDEX_FILE).exists() or not create
        if not started:
            refuse_foreign(folder)
        own = index(folder)["base"] if started else {"id": POCKET}
        dtype = str(own.get("dtype", "auto")) if dtype == "auto" else dtype
        model = base if isinstance(base, Model) else Model.load(base or own["id"], dtype=dtype)
        memory = cls(folder, model, model.loaded_as if dtype == "auto" else dtype)
        if started:
            check_base(folder, memory.base())
        return memory

    @property
    def names(self) -> dict[str, str]:
        """Names of the memories and the adapter ids they stand for."""
        return {name: entry["adapter"] for name, entry in entries(self.folder).items()}

    def adapter(self, name: str) -> Adapter:
        """Load a memory's adapter from disk.

        Raises UnknownMemory with the names there are, AdapterError when the folder is damaged or
        holds something else than what was written.
        """
        identity = entry_of(self.folder, name)["adapter"]
        folder = self.folder / "adapters" / identity
        found = adapters.load(folder)
        if adapters.content_id(found) != identity:
            raise AdapterError(
                f"{folder} does not hold what was written as {name!r}: content "
                f"{adapters.content_id(found)}; restore it from a copy, or write it again."
            )
        return found

    def only(self) -> str:
        """The folder's single memory. Raises UnknownMemory when there are none or several."""
        names = sorted(self.names)
        if not names:
            raise UnknownMemory(
                f"{self.folder} has no memories yet; write one: "
                f"lore write SOURCE --into {self.folder}"
            )
        if len(names) > 1:
            listed = ", ".join(names[:6])
            raise UnknownMemory(
                f"{self.folder} has {len(names)} memories ({listed}); say which one with --name."
            )
        return names[0]

    def write(
        self,
        knowledge: Knowledge | Document,
        *,
        name: str = "",
        config: WriteConfig | None = None,
        lesson: LessonConfig | None = None,
        teacher: AskLLM | None = None,
        probes: Sequence[Probe] = (),
        metric: str = "",
        find_rate: bool = False,
        find_rank: bool = False,
        preset: str = "exact",
        watch: Watch | None = None,
    ) -> Outcome:
        """Write knowledge into a new adapter, prove it on disk, and take the verdict.

        The adapter is saved, loaded back, proved to move the logits and audited by free-running
        decoding before its name is entered. What cannot work is refused before anything is trained.
        Raises Locked when another writer is at work, StorageError when the disk refuses; either way
        no name changes. Called again with the same arguments it resumes. `find_rate` replaces the
        config's rate by the best of a short search on these examples, kept with the run;
        `find_rank` its rank by the planned one, as happens without a config; `preset`, a key of
        recipe.PRESETS, its dropout and weight decay by what fits the number of examples.
        """
        return writing.write(
            self,
            knowledge,
            name=name,
            config=config,
            lesson=lesson,
            teacher=teacher,
            probes=probes,
            metric=metric,
            find_rate=find_rate,
            find_rank=find_rank,
            preset=preset,
            watch=watch,
        )

    def plan(
        self,
        knowledge: Knowledge | Document,
        *,
        wanted: float = WANTED,
        config: WriteConfig | None = None,
        lesson: LessonConfig | None = None,
        teacher: AskLLM | None = None,
        recalibrate: bool = False,
        watch: Watch | None = None,
    ) -> Plan:
        """Say before training which rank recalls the wanted share, and what it will cost.

        The base writes the questions as for a write, and is calibrated first where neither the
        user's cache nor the package knows it with these settings. Nothing is written into the
        folder. Raises as `lesson.prepare` and `calibration.calibrate`, ConfigError for no share.
        """
        return planning.plan(
            self.model,
            knowledge,
            wanted=wanted,
            config=config,
            lesson=lesson,
            teacher=teacher,
            recalibrate=recalibrate,
            watch=watch,
        )

    def verify(
        self,
        name: str = "",
        *,
        probes: Sequence[Probe] = (),
        metric: str = "",
        watch: Watch | None = None,
    ) -> RecallReport:
        """Take the verdict again, with the probes and the metric of the write or with others."""
        name = slug(name) if name else self.only()
        entry, adapter = entry_of(self.folder, name), self.adapter(name)
        path = self.folder / "runs" / str(entry.get("run")) / "lesson.json"
        made = verdict.stored_lesson(path) if path.exists() else Lesson((), (), "", "", ())
        if probes:
            made = replace(made, probes=tuple(probes))
        if not made.probes:
            raise ConfigError(f"{name!r} was written without probes; give some with --probes FILE.")
        stored = adapter.card.get("report") or {}
        metric = metric or str(stored.get("metric") or verdict.usual_metric(self.model))
        return verdict.take(self, name, adapter, str(entry.get("source")), made, metric, watch)

    def merge(
        self,
        names: Sequence[str],
        *,
        method: str = "auto",
        weights: Sequence[float] | None = None,
        into: str = "",
        rank: int | None = None,
        options: Mapping[str, Any] | None = None,
        metric: str = "",
        watch: Watch | None = None,
    ) -> merging.Merged:
        """Merge memories of this folder into a new one, and measure what that cost each of them.

        `method` is a key of `merge.METHODS`, `imitate`, `refine` (that, then a few passes of
        training), `rewrite` (training anew), or `auto`: the one that keeps most of held-back
        trained questions. `weights` are factors on each ΔW, `rank` None the sum of the ranks,
        `options` those of the method. One memory alone is truncated to `rank`. Every source's own
        probes are asked of it before and after. Raises ConfigError for names, methods or options
        that cannot be, UnknownMemory, WrongBase, NoEffect when what was merged cancels out.
        """
        return merging.merge(
            self,
            names,
            method=method,
            weights=weights,
            into=into,
            rank=rank,
            options=options,
            metric=metric,
            watch=watch,
        )

    def forget(
        self, name: str, *, with_merged: bool = False, watch: Watch | None = None
    ) -> forgetting.Forgotten:
        """Remove a memory with all that came of its source, and prove it gone.

        Adapters, sources, runs, a teacher's replies, its words in records of others, and what was
        merged from it; what another name still uses stays. The proof: the base and every memory
        left recall what was forgotten no better than the base does, and no file holds its words.
        Raises UnknownMemory, and ConfigError when memories were merged from it and `with_merged`
        is off.
        """
        found = forgetting.forget(self, name, with_merged=with_merged, watch=watch)
        for identity in found.removal.adapters:
            self.loaded.pop(identity, None)
        return found

    def add(
        self,
        place: Path | str,
        *,
        name: str = "",
        knowledge: Knowledge | None = None,
        probes: Sequence[Probe] = (),
        metric: str = "",
        watch: Watch | None = None,
    ) -> adding.Added:
        """Take in an adapter that was made elsewhere, once it is proved to move this base.

        `knowledge` is what it was made from, `probes` what it can be asked: without either there is
        no verdict. Raises AdapterError, WrongBase or NoEffect for what cannot be bound or does
        nothing, ConfigError for a name that is taken.
        """
        return adding.add(
            self,
            Path(place),
            name=name,
            knowledge=knowledge,
            probes=probes,
            metric=metric,
            watch=watch,
        )

    def supersede(
        self,
        name: str,
        knowledge: Knowledge | Document,
        *,
        keep: bool = False,
        config: WriteConfig | None = None,
        lesson: LessonConfig | None = None,
        teacher: AskLLM | None = None,
        metric: str = "",
        watch: Watch | None = None,
    ) -> superseding.Superseded:
        """Write a changed source under the same name, and ask what changed and what did not.

        The old adapter, source and runs go when what did not change is still recalled and what did
        has its new answer only; otherwise, or with `keep`, they stay as `<name>-before`. The new
        card tells the lineage. Raises as `write`, and ConfigError for a source that is the same.
        """
        return superseding.supersede(
            self,
            name,
            knowledge,
            keep=keep,
            config=config,
            lesson=lesson,
            teacher=teacher,
            metric=metric,
            watch=watch,
        )

    def rename(self, old: str, new: str) -> None:
        """Give a memory another name; raises UnknownMemory, and ConfigError for one in use."""
        rename(self.folder, slug(old), slug(new))

    def ask(
        self,
        question: str,
        name: str = "",
        *,
        mode: str = asking.AUTO,
        top: int = asking.TOP,
        false_activation: float = finding.FALSE_ACTIVATION,
        watch: Watch | None = None,
    ) -> Answer:
        """Answer from the memory that was named, or from those that the question is for.

        `closed` attaches the memory, `open` puts its passages before the question and asks the base
        alone, `hybrid` takes what both and both together agree on, `full` puts the whole source
        before it; `auto` is what was measured best here, else hybrid. Without a name a question
        that no memory is for is declined; at most `top` are asked. Raises ConfigError for an empty
        question or an unknown mode, UnknownMemory, DataError for what does not fit the context.
        """
        (answer,) = asking.ask_all(
            self,
            [question],
            name=name,
            mode=mode,
            top=top,
            false_activation=false_activation,
            watch=watch,
        )
        return answer

    def route(
        self,
        question: str,
        *,
        top: int = asking.TOP,
        false_activation: float = finding.FALSE_ACTIVATION,
        watch: Watch | None = None,
    ) -> Decision:
        """Say which memories a question is for, with what probability, or that none is."""
        found = finding.finder(self, watch)
        return found.find(question, top=top, false_activation=false_activation)

    def compare(
        self, *, n: int = comparing.N_PROBES, seed: int = 0, watch: Watch | None = None
    ) -> standing.Standing:
        """Measure closed, open and hybrid on the memories' probes; `ask` goes by it from then on.

        Raises ConfigError when no memory was written with probes.
        """
        return comparing.compare(self, n=n, seed=seed, watch=watch)

    def base(self) -> dict[str, str]:
        """What memory.json says of the base: id, digest, template's digest, dtype."""
        model = self.model
        about = {"id": model.name, "digest": model.digest, "template": model.template_digest}
        return {**about, "dtype": self.dtype}
