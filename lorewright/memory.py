"""Memory: the façade over a folder. Write knowledge into it, verify it, ask it.

    atlas/memory.json            schema, base id and digest, names -> adapter ids and runs
    atlas/sources/<digest>.jsonl documents and facts as given
    atlas/adapters/<id>/         PEFT's folder and card.json; immutable, addressed by content
    atlas/runs/<time>-<name>/    config.json, lesson.json (examples and probes), metrics.jsonl,
                                 report.json; a checkpoint while it is being written

One writer at a time, kept apart by a file lock. Files are written to a temporary name and renamed;
a write that was interrupted is found again by its settings and goes on where it stopped. This room
puts the others together; it knows nothing of tokens, losses or how questions are made.
"""

from __future__ import annotations

import platform
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from lorewright import __version__
from lorewright import adapter as adapters
from lorewright import ask as asking
from lorewright.adapter import Adapter
from lorewright.checkpoint import CHECKPOINT
from lorewright.data import Document, Example, Knowledge, Probe, digest, dump_jsonl, slug
from lorewright.errors import AdapterError, ConfigError, DataError, UnknownMemory
from lorewright.lesson import Lesson, LessonConfig, grounds, prepare
from lorewright.metrics import METRICS
from lorewright.model import POCKET, Model
from lorewright.recall import Audit, RecallReport, audit, verify
from lorewright.recipe import Epoch, WriteConfig, Written
from lorewright.report import save_json
from lorewright.shelf import (
    INDEX_FILE,
    check_base,
    enter,
    entries,
    entry_of,
    index,
    read_object,
    refuse_foreign,
    run_folder,
    writing,
)
from lorewright.targets import resolve_targets
from lorewright.tune import find_lr
from lorewright.views import AskLLM
from lorewright.write import suggested_lr, write

MAX_QUESTION_TOKENS = 512
"""Longest reply when the base writes questions, in tokens."""
DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Watch:
    """Functions told about progress; by default nobody is."""

    step: Callable[[str], None] = lambda text: None
    epoch: Callable[[Epoch], None] = lambda epoch: None


@dataclass(frozen=True)
class Outcome:
    """What a write came to."""

    name: str
    adapter_id: str
    folder: Path
    reason: str
    """Why training ended: `recalled` when every example was certified."""
    n_examples: int
    epochs: int
    seconds: float
    """Training time alone."""
    audit: Audit
    """Free-running recall of what was trained, after reload from disk."""
    report: RecallReport
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain data for `--json` and the run's report."""
        trained = self.audit.recall
        report = self.report.to_json()
        return {
            **report,
            "memory": self.name,
            "adapter": self.adapter_id,
            "folder": str(self.folder),
            "reason": self.reason,
            "n_examples": self.n_examples,
            "epochs": self.epochs,
            "seconds": self.seconds,
            "trained": {
                "n": trained.n,
                "recall": trained.mean,
                "low": trained.low,
                "high": trained.high,
                "disagreements": len(self.audit.disagreements),
            },
            "notes": [*self.notes, *report["notes"]],
        }


class Memory:
    """A folder of memories on one base model."""

    def __init__(self, folder: Path, model: Model, dtype: str = "auto") -> None:
        """Use `Memory.open`."""
        self.folder = folder
        self.model = model
        self.dtype = dtype

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
        memory = cls(folder, model, dtype)
        if started:
            check_base(folder, memory._base())
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

    # -- write ---------------------------------------------------------------------------------

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
        watch: Watch | None = None,
    ) -> Outcome:
        """Write knowledge into a new adapter, prove it on disk, and take the verdict.

        The adapter is saved, loaded back, proved to move the logits and audited by free-running
        decoding before its name is entered. What cannot work is refused before anything is trained.
        Raises Locked when another writer is at work, StorageError when the disk refuses; either way
        no name changes. Called again with the same arguments it resumes. `find_rate` replaces the
        config's rate by the best of a short search on these examples, kept with the run.
        """
        known = Knowledge((knowledge,)) if isinstance(knowledge, Document) else knowledge
        name = slug(name) if name else _name_of(known)
        config = config or WriteConfig(lr=suggested_lr(self.model))
        lesson = lesson or LessonConfig()
        metric = metric or self._metric()
        watch = watch or Watch()
        self._check(known, config, probes, metric)
        settings = {"write": asdict(config), "lesson": asdict(lesson), "metric": metric}
        asked = [asdict(probe) for probe in probes]
        how = [name, teacher is not None, find_rate]
        key = digest([known.digest(), settings, asked, self.model.digest, *how])
        with writing(self.folder, self._base()):
            run = run_folder(self.folder, name, {"key": key, **settings})
            made = self._lesson(run, known, lesson, teacher, probes, watch)
            contexts = grounds(made.examples, known) if config.objective == "distill" else ()
            if find_rate:
                config = replace(config, lr=self._found_rate(run, made, contexts, config, watch))
                settings["write"] = asdict(config)
            written = write(
                self.model,
                made.examples,
                config,
                contexts=contexts,
                run=run,
                on_epoch=watch.epoch,
            )
            watch.step("proving that it is on disk")
            adapter, checked = self._proved(run, made.examples, written.adapter)
            report = self._verdict(name, adapter, known.digest(), made, metric, watch)
            last = written.epochs[-1]
            outcome = Outcome(
                name,
                report.context["adapter"],
                self.folder / "adapters" / report.context["adapter"],
                written.reason,
                len(made.examples),
                len(written.epochs),
                last.seconds,
                checked,
                report,
                made.notes,
            )
            self._enter(outcome, adapter, run, known, _card(outcome, known, settings, written))
            return outcome

    def _check(
        self, known: Knowledge, config: WriteConfig, probes: Sequence[Probe], metric: str
    ) -> None:
        """Refuse what would fail after minutes of work: metric, targets, texts that do not fit."""
        if metric not in METRICS:
            listed = ", ".join(sorted(METRICS))
            raise ConfigError(f"metric {metric!r} is unknown; use one of {listed}.")
        resolve_targets(self.model.network, config.lora.targets, config.lora.layers)
        for fact in known.facts:
            self.model.render(fact.question, fact.answer)
        for probe in probes:
            self.model.render(f"{probe.context}\n\n{probe.question}".strip())

    def _lesson(
        self,
        run: Path,
        known: Knowledge,
        config: LessonConfig,
        teacher: AskLLM | None,
        probes: Sequence[Probe],
        watch: Watch,
    ) -> Lesson:
        """The run's lesson: as it was prepared before an interruption, or prepared now."""
        path = run / "lesson.json"
        if not path.exists():
            made = prepare(
                known,
                ask_llm=teacher or self._write_questions,
                closed_book=self.model.generate,
                config=config,
                given_probes=probes,
                progress=watch.step,
                phrasing=self.model.phrasing if teacher is None else "general",
            )
            save_json(made, path)
        return _stored_lesson(path)

    def _found_rate(
        self,
        run: Path,
        made: Lesson,
        contexts: Sequence[str],
        config: WriteConfig,
        watch: Watch,
    ) -> float:
        """The rate that a short search prefers: the run's own from before, or searched for now."""
        path = run / "rates.json"
        if not path.exists():
            watch.step("trying rates")
            found = find_lr(self.model, made.examples, config, contexts=contexts)
            if found.at_the_edge:
                watch.step(f"the best rate, {found.best.lr:g}, is at the edge of those tried")
            trials = [asdict(trial) for trial in found.trials]
            about = {"best": found.best.lr, "at_the_edge": found.at_the_edge}
            save_json({**about, "trials": trials}, path)
        return float(read_object(path, "delete its run and write again")["best"])

    def _write_questions(self, prompts: list[str]) -> list[str]:
        return self.model.generate(prompts, max_new_tokens=MAX_QUESTION_TOKENS)

    def _proved(
        self, run: Path, examples: Sequence[Example], written: Adapter
    ) -> tuple[Adapter, Audit]:
        """The adapter as it came back from disk, equal to the one in memory, and its audit."""
        shutil.rmtree(run / "adapter", ignore_errors=True)
        adapters.save(written, run / "adapter")
        adapter = adapters.load(run / "adapter")
        differs = [k for k, t in written.tensors.items() if not torch.equal(t, adapter.tensors[k])]
        if differs:
            raise AdapterError(
                f"{len(differs)} tensors came back from disk changed, the first is {differs[0]!r}; "
                "check the disk."
            )
        batch = self.model.batch([self.model.render(examples[0].prompt, examples[0].completion)])

        def adapted() -> torch.Tensor:
            with self.model.using(adapter):
                return self.model.completion_logits(batch)

        with torch.no_grad():
            adapters.prove(
                adapter,
                self.model.network,
                base=lambda: self.model.completion_logits(batch),
                adapted=adapted,
                base_digest=self.model.digest,
            )
        with self.model.using(adapter):
            checked = audit(self.model, examples)
        shutil.rmtree(run / "adapter", ignore_errors=True)
        return adapter, checked

    def _enter(
        self, outcome: Outcome, adapter: Adapter, run: Path, known: Knowledge, card: dict[str, Any]
    ) -> None:
        """Put adapter and source on the shelf, then the name: everything it needs is there."""
        _set_aside_damaged(outcome.folder)
        adapters.save(replace(adapter, card=card), outcome.folder)
        adapters.load(outcome.folder)
        source = self.folder / "sources" / f"{known.digest()}.jsonl"
        dump_jsonl([*known.documents, *known.facts], source)
        enter(self.folder, outcome.name, outcome.adapter_id, source=known.digest(), run=run.name)
        save_json(outcome.to_json(), run / "report.json")
        (run / CHECKPOINT).unlink(missing_ok=True)

    # -- read ----------------------------------------------------------------------------------

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
        made = _stored_lesson(path) if path.exists() else Lesson((), (), "", "", ())
        if probes:
            made = replace(made, probes=tuple(probes))
        if not made.probes:
            raise ConfigError(f"{name!r} was written without probes; give some with --probes FILE.")
        stored = adapter.card.get("report") or {}
        metric = metric or str(stored.get("metric") or self._metric())
        return self._verdict(name, adapter, str(entry.get("source")), made, metric, watch)

    def ask(self, question: str, name: str = "") -> asking.Answer:
        """Answer closed-book from one memory."""
        name = slug(name) if name else self.only()
        return asking.ask(self.model, question, adapter=self.adapter(name), memory=name)

    def _verdict(
        self,
        name: str,
        adapter: Adapter,
        source: str,
        made: Lesson,
        metric: str,
        watch: Watch | None,
    ) -> RecallReport:
        step = (watch or Watch()).step
        identity = adapters.content_id(adapter)
        if made.probes:
            report = verify(
                self.model,
                made.probes,
                adapter=adapter,
                full=made.full,
                scaffold=made.scaffold,
                wrong=self._another(name, identity, source, step),
                metric=metric,
                progress=lambda arm: step(f"asking: {arm}"),
            )
        else:
            report = RecallReport(metric, {}, ("there are no probes: give some with --probes.",))
        base = {"base": self.model.name, "base_digest": self.model.digest}
        return replace(report, context={"memory": name, "adapter": identity, **base})

    def _another(
        self, name: str, identity: str, source: str, step: Callable[[str], None]
    ) -> Adapter | None:
        """A memory of something else, for the control `wrong`; damaged ones are named and left."""
        for other, entry in sorted(entries(self.folder).items()):
            if other == name or entry["adapter"] == identity or entry.get("source") == source:
                continue
            try:
                return self.adapter(other)
            except AdapterError as error:
                step(f"{other} is damaged and cannot be the wrong memory: {error}")
        return None

    def _base(self) -> dict[str, str]:
        """What memory.json says of the base."""
        model = self.model
        about = {"id": model.name, "digest": model.digest, "template": model.template_digest}
        return {**about, "dtype": self.dtype}

    def _metric(self) -> str:
        """What fits the base: the embedded one answers in a few words, others in sentences."""
        return "exact_match" if self.model.phrasing == POCKET else "contains"


def _name_of(known: Knowledge) -> str:
    if known.documents:
        return slug(known.documents[0].id)
    raise ConfigError("facts need a name for their memory; give one with --name.")


def _stored_lesson(path: Path) -> Lesson:
    return Lesson.from_json(read_object(path, "delete its run and write again"))


def _set_aside_damaged(folder: Path) -> None:
    """Rename an adapter folder that does not hold its content: the write that restores it may."""
    if not folder.exists():
        return
    try:
        whole = adapters.content_id(adapters.load(folder)) == folder.name
    except AdapterError:
        whole = False
    if not whole:
        names = (f"{folder.name}.damaged-{i}" for i in range(1, 1000))
        folder.rename(next(p for p in map(folder.with_name, names) if not p.exists()))


def _card(
    outcome: Outcome, known: Knowledge, settings: dict[str, Any], written: Written
) -> dict[str, Any]:
    report = {k: v for k, v in outcome.to_json().items() if k not in ("outcomes", "folder")}
    packages = ("torch", "transformers", "safetensors")
    versions = {"lorewright": __version__, "python": platform.python_version()}
    return {
        "name": outcome.name,
        "source": known.digest(),
        "settings": settings,
        "training": asdict(written.epochs[-1]),
        "reason": written.reason,
        "versions": versions | {package: version(package) for package in packages},
        "report": report,
    }
