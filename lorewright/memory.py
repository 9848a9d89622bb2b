"""Memory: the façade over a folder. Write knowledge into it, verify it, ask it.

    atlas/memory.json                schema, base id and digest, names -> adapter ids
    atlas/sources/<digest>.jsonl     documents and facts as given
    atlas/adapters/<id>/             PEFT's folder and card.json; immutable, addressed by content
    atlas/lessons/<id>.json          the probes and contexts the verdict was taken with
    atlas/runs/<time>-<name>/        settings, lesson, metrics.jsonl, checkpoint, report.json

One writer at a time, kept apart by a file lock. Files are written to a temporary name and renamed;
a write that was interrupted is found again by its settings and goes on where it stopped.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import filelock
import torch

from lorewright import adapter as adapters
from lorewright import ask as asking
from lorewright.adapter import Adapter
from lorewright.data import Document, Example, Knowledge, Probe, digest, dump_jsonl, slug
from lorewright.errors import AdapterError, ConfigError, DataError, Locked, StorageError, UnknownMemory, WrongBase
from lorewright.lesson import Lesson, LessonConfig, prepare
from lorewright.model import POCKET, Model
from lorewright.recall import Audit, RecallReport, audit, verify
from lorewright.views import AskLLM
from lorewright.write import CHECKPOINT, Epoch, WriteConfig, Written, suggested_lr, write

SCHEMA = 1
LOCK_SECONDS = 2.0
"""How long a writer waits for another one before it gives up."""


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
        return {
            "memory": self.name, "adapter": self.adapter_id, "folder": str(self.folder), "reason": self.reason,
            "n_examples": self.n_examples, "epochs": self.epochs, "seconds": self.seconds,
            "trained": {"n": trained.n, "recall": trained.mean, "low": trained.low, "high": trained.high,
                        "disagreements": len(self.audit.disagreements)},
            "notes": list(self.notes), **self.report.to_json(),
        }


class Memory:
    """A folder of memories on one base model."""

    def __init__(self, folder: Path, model: Model) -> None:
        """Use `Memory.open`."""
        self.folder = folder
        self.model = model

    @classmethod
    def open(cls, folder: Path | str, base: str | Model | None = None, *, create: bool = True) -> Memory:
        """Open a memory folder, or start one; `base` defaults to the folder's own, or to the embedded model.

        Raises UnknownMemory when there is none and `create` is off, WrongBase when the folder was made on
        another base, DataError when memory.json is damaged.
        """
        folder = Path(folder)
        if folder.exists() and not folder.is_dir():
            raise DataError(f"{folder} is a file; a memory is a folder; give another name.")
        known = _index(folder) if (folder / "memory.json").exists() else None
        if known is None and not create:
            raise UnknownMemory(f"there is no memory in {folder} (no memory.json); write one: lore write SOURCE --into {folder}")
        if known is None and folder.is_dir() and any(p.name != ".lock" for p in folder.iterdir()):
            raise DataError(f"{folder} holds other files and no memory.json; give an empty or new folder.")
        model = base if isinstance(base, Model) else Model.load(base or (known["base"]["id"] if known else POCKET))
        if known is not None and known["base"]["digest"] != model.digest:
            raise WrongBase(
                f"{folder} was written on {known['base']['id']!r} (digest {known['base']['digest'][:12]}); "
                f"{model.name!r} has {model.digest[:12]}; open it on its own base, or write a new folder."
            )
        return cls(folder, model)

    @property
    def names(self) -> dict[str, str]:
        """Names of the memories and the adapter ids they stand for."""
        if not (self.folder / "memory.json").exists():
            return {}
        return {name: entry["adapter"] for name, entry in _index(self.folder)["memories"].items()}

    def adapter(self, name: str) -> Adapter:
        """Load a memory's adapter from disk. Raises UnknownMemory with the names there are."""
        names = self.names
        if name not in names:
            has = ", ".join(sorted(names)) or "none yet"
            raise UnknownMemory(f"{self.folder} has no memory {name!r}; it has: {has}.")
        return adapters.load(self.folder / "adapters" / names[name])

    def only(self) -> str:
        """The name of the folder's single memory. Raises UnknownMemory when there are none or several."""
        names = sorted(self.names)
        if len(names) != 1:
            found = "no memories" if not names else f"{len(names)} memories ({', '.join(names[:6])})"
            raise UnknownMemory(f"{self.folder} has {found}; say which one with --name.")
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
        watch: Watch | None = None,
    ) -> Outcome:
        """Write knowledge into a new adapter, prove it on disk, and take the verdict.

        The adapter is saved, loaded back, proved to move the logits and audited by free-running decoding
        before its name is entered. Raises Locked when another writer is at work, StorageError when the disk
        refuses; either way no name changes. Called again with the same arguments it resumes.
        """
        known = Knowledge((knowledge,)) if isinstance(knowledge, Document) else knowledge
        name = slug(name) if name else _name_of(known)
        config = config or WriteConfig(lr=suggested_lr(self.model))
        lesson_config = lesson or LessonConfig()
        metric = metric or ("exact_match" if self.model.phrasing == POCKET else "contains")
        watch = watch or Watch()
        with self._locked():
            key = digest([known.digest(), asdict(config), asdict(lesson_config), [asdict(p) for p in probes],
                          self.model.digest, name, teacher is not None])
            run = self._run(name, key)
            made = self._lesson(run, known, lesson_config, teacher, probes, watch)
            (run / "config.json").write_text(json.dumps({"write": asdict(config), "lesson": asdict(lesson_config)}, indent=2))
            written = write(self.model, made.examples, config, run=run, on_epoch=watch.epoch)
            return self._enter(name, run, known, made, written, metric, watch)

    def _lesson(
        self, run: Path, known: Knowledge, config: LessonConfig, teacher: AskLLM | None,
        probes: Sequence[Probe], watch: Watch,
    ) -> Lesson:
        path = run / "lesson.json"
        if path.exists():
            return _lesson_from(json.loads(path.read_text()))
        made = prepare(
            known,
            ask_llm=teacher or (lambda prompts: self.model.generate(prompts, max_new_tokens=512)),
            closed_book=lambda prompts: self.model.generate(prompts),
            config=config, given_probes=probes, progress=watch.step,
            phrasing=self.model.phrasing if teacher is None else "general",
        )
        _replace(path, json.dumps(asdict(made)))
        return made

    def _enter(
        self, name: str, run: Path, known: Knowledge, made: Lesson, written: Written, metric: str, watch: Watch
    ) -> Outcome:
        """Save, reload, prove, audit, verify; enter the name last."""
        watch.step("proving that it is on disk")
        adapter, checked = self._proved(run, made.examples, written.adapter)
        report = verify(
            self.model, made.probes, adapter=adapter, full=made.full, scaffold=made.scaffold,
            wrong=self._another(name), metric=metric, progress=lambda arm: watch.step(f"asking: {arm}"),
        ) if made.probes else RecallReport(metric, {}, ("there are no probes: give some with --probes.",))
        last = written.epochs[-1]
        identity = adapters.content_id(adapter)
        report = replace(report, context={"memory": name, "adapter": identity, "base": self.model.name,
                                          "base_digest": self.model.digest})
        outcome = Outcome(name, identity, self.folder / "adapters" / identity, written.reason, len(made.examples),
                          len(written.epochs), last.seconds, checked, report, made.notes)
        card = {"name": name, "source": known.digest(), "training": asdict(last), "reason": written.reason,
                "settings": json.loads((run / "config.json").read_text()), "versions": _versions(),
                "report": {k: v for k, v in outcome.to_json().items() if k not in ("outcomes", "folder")}}
        adapters.save(replace(adapter, card=card), outcome.folder)
        for folder in ("sources", "lessons"):
            (self.folder / folder).mkdir(exist_ok=True)
        dump_jsonl([*known.documents, *known.facts], self.folder / "sources" / f"{known.digest()}.jsonl")
        _replace(self.folder / "lessons" / f"{identity}.json", (run / "lesson.json").read_text())
        _replace(run / "report.json", json.dumps(outcome.to_json(), indent=2))
        index = _index(self.folder)
        index["memories"][name] = {"adapter": identity, "source": known.digest(), "run": run.name}
        _replace(self.folder / "memory.json", json.dumps(index, indent=2))
        (run / CHECKPOINT).unlink(missing_ok=True)
        return outcome

    def _proved(self, run: Path, examples: Sequence[Example], written: Adapter) -> tuple[Adapter, Audit]:
        """The adapter as it came back from disk, equal to the one in memory, and its free-running audit."""
        shutil.rmtree(run / "adapter", ignore_errors=True)
        adapters.save(written, run / "adapter")
        adapter = adapters.load(run / "adapter")
        differs = [k for k, tensor in written.tensors.items() if not torch.equal(tensor, adapter.tensors[k])]
        if differs:
            raise AdapterError(f"{len(differs)} tensors came back from disk changed, the first is {differs[0]!r}; check the disk.")
        batch = self.model.batch([self.model.render(examples[0].prompt, examples[0].completion)])

        def adapted() -> torch.Tensor:
            with self.model.using(adapter), torch.no_grad():
                return self.model.completion_logits(batch)

        with torch.no_grad():
            adapters.prove(adapter, self.model.network, base=lambda: self.model.completion_logits(batch), adapted=adapted)
        with self.model.using(adapter):
            checked = audit(self.model, examples)
        shutil.rmtree(run / "adapter", ignore_errors=True)
        return adapter, checked

    def _another(self, name: str) -> Adapter | None:
        other = next((n for n in sorted(self.names) if n != name), None)
        return None if other is None else self.adapter(other)

    # -- read ----------------------------------------------------------------------------------

    def verify(self, name: str = "", *, probes: Sequence[Probe] = (), metric: str = "", watch: Watch | None = None) -> RecallReport:
        """Take the verdict again, with the probes of the write or with others."""
        name = name or self.only()
        adapter = self.adapter(name)
        identity = self.names[name]
        path = self.folder / "lessons" / f"{identity}.json"
        made = _lesson_from(json.loads(path.read_text())) if path.exists() else Lesson((), (), "", "", ())
        step = (watch or Watch()).step
        report = verify(
            self.model, list(probes) or made.probes, adapter=adapter, full=made.full, scaffold=made.scaffold,
            wrong=self._another(name), metric=metric or ("exact_match" if self.model.phrasing == POCKET else "contains"),
            progress=lambda arm: step(f"asking: {arm}"),
        )
        return replace(report, context={"memory": name, "adapter": identity, "base": self.model.name})

    def ask(self, question: str, name: str = "") -> asking.Answer:
        """Answer closed-book from one memory."""
        name = name or self.only()
        return asking.ask(self.model, question, adapter=self.adapter(name), memory=name)

    # -- the folder ----------------------------------------------------------------------------

    @contextmanager
    def _locked(self) -> Iterator[None]:
        lock = filelock.FileLock(self.folder / ".lock", timeout=LOCK_SECONDS)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with lock:
                if not (self.folder / "memory.json").exists():
                    base = {"id": self.model.name, "digest": self.model.digest, "template": self.model.template_digest}
                    _replace(self.folder / "memory.json", json.dumps({"schema": SCHEMA, "base": base, "memories": {}}, indent=2))
                yield
        except filelock.Timeout as error:
            raise Locked(
                f"another process is writing into {self.folder}; wait for it to end, or write into another folder."
            ) from error
        except OSError as error:
            if isinstance(error, (StorageError, Locked)):
                raise
            raise StorageError(f"{self.folder} could not be written: {error}; check space and permissions.") from error

    def _run(self, name: str, key: str) -> Path:
        """The unfinished run with the same settings, or a new one."""
        runs = self.folder / "runs"
        for old in sorted(runs.glob("*/key")):
            if old.read_text() == key and not (old.parent / "report.json").exists():
                return old.parent
        stamp = time.strftime("%Y%m%d-%H%M%S")
        run = next(p for i in range(1000) if not (p := runs / f"{stamp}-{name}{f'-{i}' if i else ''}").exists())
        run.mkdir(parents=True)
        _replace(run / "key", key)
        return run


def _name_of(known: Knowledge) -> str:
    if known.documents:
        return slug(known.documents[0].id)
    raise ConfigError("facts need a name for their memory; give one with --name.")


def _index(folder: Path) -> dict[str, Any]:
    """memory.json. Raises DataError when it is damaged or of another schema."""
    path = folder / "memory.json"
    try:
        index: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        schema = index["schema"]
        assert isinstance(index["memories"], dict) and index["base"]["digest"]
    except (ValueError, KeyError, TypeError, AssertionError) as error:
        raise DataError(f"{path} is damaged ({error!r}); restore it from a copy; the adapters beside it are whole.") from error
    if schema != SCHEMA:
        raise DataError(f"{path} has schema {schema}; this version reads {SCHEMA}; use a matching version of lorewright.")
    return index


def _lesson_from(plain: dict[str, Any]) -> Lesson:
    return Lesson(
        tuple(Example(**row) for row in plain["examples"]), tuple(Probe(**row) for row in plain["probes"]),
        plain["full"], plain["scaffold"], tuple(plain["notes"]),
    )


def _replace(path: Path, text: str) -> None:
    """Write the text under a temporary name and rename it."""
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_text(text, encoding="utf-8")
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise StorageError(f"{path} could not be written: {error}; free some space.") from error


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("torch", "transformers", "safetensors")}


