"""The verb `write`: knowledge, lesson, adapter, proof on disk, verdict; the name comes last."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lorewright import __version__
from lorewright.adapters import adapter as adapters
from lorewright.adapters.adapter import Adapter
from lorewright.adapters.targets import resolve_targets
from lorewright.errors import AdapterError, ConfigError
from lorewright.files import digest, dump_jsonl, read_object, save_json, slug
from lorewright.knowledge.data import Document, Example, Knowledge, Probe
from lorewright.knowledge.lesson import Lesson, LessonConfig, grounds, prepare
from lorewright.knowledge.scoring import METRICS
from lorewright.knowledge.selfstudy import AskLLM
from lorewright.memory.folder import enter, run_folder, writing
from lorewright.memory.outcome import Outcome
from lorewright.memory.plan import rank_for
from lorewright.memory.verify import stored_lesson, take, usual_metric
from lorewright.models.backends.fused import engine
from lorewright.models.questions import write_about
from lorewright.recall.traces import Audit, audit
from lorewright.training import loop as training
from lorewright.training.checkpoint import CHECKPOINT
from lorewright.training.config import WriteConfig, Written, preset_of
from lorewright.training.rates import find_lr, suggested_lr
from lorewright.training.watch import Watch

if TYPE_CHECKING:
    from lorewright.memory.memory import Memory


def write(
    memory: Memory,
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
    """Write knowledge into a new adapter; see `Memory.write`."""
    known = Knowledge((knowledge,)) if isinstance(knowledge, Document) else knowledge
    name = slug(name) if name else _name_of(known)
    find_rank = find_rank or config is None
    config = config or WriteConfig(lr=suggested_lr(memory.model))
    lesson = lesson or LessonConfig()
    metric = metric or usual_metric(memory.model)
    watch = watch or Watch()
    fitted = preset_of(preset)
    _check(memory, known, config, probes, metric)
    settings = {"write": config.to_json(), "lesson": asdict(lesson), "metric": metric}
    asked = [asdict(probe) for probe in probes]
    how = [name, teacher is not None, find_rate, *(["rank"] if find_rank else [])]
    how += [] if preset == "exact" else [preset]
    key = digest([known.digest(), settings, asked, memory.model.digest, *how])
    with writing(memory.folder, memory.base()):
        told = {"key": key, "source": known.digest(), **settings}
        run = run_folder(memory.folder, name, told)
        made = _lesson(memory, run, known, lesson, teacher, probes, watch)
        contexts = grounds(made.examples, known) if config.objective == "distill" else ()
        before, config = config, fitted(config, len(made.examples))
        if config != before:
            note = _fitted(preset, before, config, len(made.examples))
            watch.step(note)
            settings["write"] = config.to_json()
            made = replace(made, notes=(*made.notes, note))
        if find_rank:
            config, note = rank_for(memory.model, run, made.examples, config, watch)
            settings["write"] = config.to_json()
            made = replace(made, notes=(*made.notes, note))
        if find_rate:
            config = replace(config, lr=_found_rate(memory, run, made, contexts, config, watch))
            settings["write"] = config.to_json()
        runs_in = engine(memory.model.fused)
        watch.step(f"training in {runs_in}")
        written = training.write(
            memory.model,
            made.examples,
            config,
            contexts=contexts,
            run=run,
            on_epoch=watch.epoch,
        )
        watch.step("proving that it is on disk")
        adapter, checked = _proved(memory, run, made.examples, written.adapter)
        report = take(memory, name, adapter, known.digest(), made, metric, watch)
        last = written.epochs[-1]
        outcome = Outcome(
            name,
            report.context["adapter"],
            memory.folder / "adapters" / report.context["adapter"],
            written.reason,
            len(made.examples),
            len(written.epochs),
            last.seconds,
            checked,
            report,
            made.notes,
        )
        card = _card(outcome, known, settings, written) | {"engine": runs_in}
        _enter(memory, outcome, adapter, run, known, card)
        return outcome


def _fitted(preset: str, before: WriteConfig, config: WriteConfig, n_examples: int) -> str:
    """A sentence on what a preset came to."""
    was, now = asdict(before), asdict(config)
    changes = [f"{key.replace('_', ' ')} {now[key]}" for key in now if now[key] != was[key]]
    return f"Preset {preset}: {', '.join(changes)} for {n_examples} examples."


def _check(
    memory: Memory, known: Knowledge, config: WriteConfig, probes: Sequence[Probe], metric: str
) -> None:
    """Refuse what would fail after minutes of work: metric, targets, texts that do not fit."""
    if metric not in METRICS:
        listed = ", ".join(sorted(METRICS))
        raise ConfigError(f"metric {metric!r} is unknown; use one of {listed}.")
    resolve_targets(memory.model.network, config.lora.targets, config.lora.layers)
    for fact in known.facts:
        memory.model.render(fact.question, fact.answer)
    for probe in probes:
        memory.model.render(f"{probe.context}\n\n{probe.question}".strip())


def _lesson(
    memory: Memory,
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
            ask_llm=teacher or partial(write_about, memory.model),
            closed_book=memory.model.generate,
            config=config,
            given_probes=probes,
            progress=watch.step,
            phrasing=memory.model.phrasing if teacher is None else "general",
        )
        save_json(made, path)
    return stored_lesson(path)


def _found_rate(
    memory: Memory,
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
        found = find_lr(memory.model, made.examples, config, contexts=contexts)
        if found.at_the_edge:
            watch.step(f"the best rate, {found.best.lr:g}, is at the edge of those tried")
        trials = [asdict(trial) for trial in found.trials]
        about = {"best": found.best.lr, "at_the_edge": found.at_the_edge}
        save_json({**about, "trials": trials}, path)
    return float(read_object(path, "delete its run and write again")["best"])


def _proved(
    memory: Memory, run: Path, examples: Sequence[Example], written: Adapter
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
    batch = memory.model.batch([memory.model.render(examples[0].prompt, examples[0].completion)])

    def adapted() -> torch.Tensor:
        with memory.model.using(adapter):
            return memory.model.completion_logits(batch)

    with torch.no_grad():
        adapters.prove(
            adapter,
            memory.model.network,
            base=lambda: memory.model.completion_logits(batch),
            adapted=adapted,
            base_digest=memory.model.digest,
        )
    with memory.model.using(adapter):
        checked = audit(memory.model, examples)
    shutil.rmtree(run / "adapter", ignore_errors=True)
    return adapter, checked


def _enter(
    memory: Memory,
    outcome: Outcome,
    adapter: Adapter,
    run: Path,
    known: Knowledge,
    card: dict[str, Any],
) -> None:
    """Put adapter and source on the shelf, then the name: everything it needs is there."""
    set_aside_damaged(outcome.folder)
    adapters.save(replace(adapter, card=card), outcome.folder)
    adapters.load(outcome.folder)
    source = memory.folder / "sources" / f"{known.digest()}.jsonl"
    dump_jsonl([*known.documents, *known.facts], source)
    enter(memory.folder, outcome.name, outcome.adapter_id, source=known.digest(), run=run.name)
    save_json(outcome.to_json(), run / "report.json")
    (run / CHECKPOINT).unlink(missing_ok=True)


def _name_of(known: Knowledge) -> str:
    if known.documents:
        return slug(known.documents[0].id)
    raise ConfigError("facts need a name for their memory; give one with --name.")


def set_aside_damaged(folder: Path) -> None:
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
