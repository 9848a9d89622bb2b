"""The verb `write`: knowledge, lesson, state, proof on disk, verdict; the name comes last."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from lorewright.adapters.targets import resolve_targets
from lorewright.errors import ConfigError
from lorewright.files import digest, dump_jsonl, read_object, save_json, slug
from lorewright.knowledge.data import Example, Knowledge, Probe
from lorewright.knowledge.general import general_questions
from lorewright.knowledge.lesson import Lesson, LessonConfig, grounds, prepare, texts_of
from lorewright.knowledge.markdown import with_tables_as_sentences
from lorewright.knowledge.rewording import Reworder
from lorewright.knowledge.scoring import METRICS
from lorewright.knowledge.selfstudy import AskLLM, statements
from lorewright.law import plan as plans
from lorewright.law.calibration import Calibration, find, load_of
from lorewright.memory.commit import commit
from lorewright.memory.folder import AGAIN_FILE, LESSON_FILE, check_name, lesson_in
from lorewright.memory.opened import OpenFolder, Source, as_knowledge
from lorewright.memory.verify import usual_metric, verdict
from lorewright.models.alphabet import unwritable
from lorewright.models.catalogue import POCKET
from lorewright.models.encoders import AUTO, encoder_of
from lorewright.models.general import ASKING_OF_THE_WORLD, known_to
from lorewright.models.model import Model
from lorewright.models.reducing import reduced_for
from lorewright.models.replies import BaseOf, write_about
from lorewright.recall.traces import Audit, audit
from lorewright.recall.verify import RecallReport
from lorewright.training.config import Preset, WriteConfig, preset_of
from lorewright.training.filenames import CHECKPOINT_FILE, OPEN_FILE, STOP_FILE
from lorewright.training.rates import find_lr
from lorewright.training.watch import Watch
from lorewright.writers import kit as kits
from lorewright.writers.methods import LEARNED, usual_lr, writer_of
from lorewright.writers.writer import Cost, Material, State

GRADIENT, STOPPED = "gradient", "stopped"
PLAN_FILE, RATES_FILE = "plan.json", "rates.json"
HELD_OUT = ("paraphrase", "reverse", "multihop")
"""Kinds of probes that are measured while a write goes on: of what is written, in other words."""


@dataclass(frozen=True)
class Outcome:
    """What a write came to."""

    name: str
    adapter_id: str
    folder: Path
    method: str
    reason: str
    """Why it ended: `recalled` when every example was certified."""
    n_examples: int
    epochs: int
    seconds: float
    """Training time alone."""
    audit: Audit
    """Free-running recall of the lesson's examples, after reload from disk."""
    report: RecallReport
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain data for `--json` and the run's report."""
        trained, report = self.audit.recall, self.report.to_json()
        plain = ("method", "reason", "n_examples", "epochs", "seconds")
        return {
            **report,
            "memory": self.name,
            "adapter": self.adapter_id,
            "folder": str(self.folder),
            **{key: vars(self)[key] for key in plain},
            "trained": {**trained.to_json(), "disagreements": len(self.audit.disagreements)},
            "notes": [*self.notes, *report["notes"]],
        }


def write(
    memory: OpenFolder,
    source: Source,
    *,
    name: str = "",
    overwrite: bool = False,
    method: str = GRADIENT,
    config: WriteConfig | None = None,
    lesson: LessonConfig | None = None,
    teacher: AskLLM | None = None,
    probes: Sequence[Probe] = (),
    metric: str = "",
    find_rate: bool = False,
    find_rank: bool = False,
    preset: str = "exact",
    lineage: Sequence[Mapping[str, str]] = (),
    watch: Watch | None = None,
) -> Outcome:
    """Write knowledge into a new state, prove it on disk, and take the verdict.

    `source` is knowledge, documents and facts, or a path, whose name is the memory's unless one is
    given. A name that stands for another source is refused unless `overwrite`. `method` is a key of
    `writers.methods.WRITERS`. The state is stored, loaded back, proved to move the logits and
    audited by free-running decoding before its name is entered. What cannot work is refused before
    anything is trained. Called again with the same arguments it resumes. `find_rate` replaces the
    config's rate by the best of a short search on these examples, stored with the run; `find_rank`
    its rank by the planned one, as happens without a config; `preset`, a key of
    `training.config.PRESETS`, its dropout and weight decay by what fits the number of examples.
    `lineage` is what the card lists as superseded.

    Raises ConfigError, DataError or TargetsNotFound for what cannot work, Locked when another
    process writes, StorageError when the disk refuses; no name changes then.
    """
    if isinstance(source, str | Path):
        name = name or Path(source).absolute().stem
    knowledge = as_knowledge(source)
    name = slug(name) if name else _name_of(knowledge)
    check_name(name, memory.model.name)
    find_rank = find_rank or (config is None and method == GRADIENT)
    config = config or WriteConfig(lr=usual_lr(method, memory.model))
    lesson = lesson or LessonConfig()
    metric = metric or usual_metric(memory.model)
    watch, fitted, model = watch or Watch(), preset_of(preset), memory.model
    _check(model, method, knowledge, config, probes, metric, searches=find_rate or find_rank)
    settings = {"write": config.to_json(), "lesson": asdict(lesson), "metric": metric}
    how = [name, teacher is not None, find_rate, *(["rank"] if find_rank else [])]
    how += [word for word, usual in ((preset, "exact"), (method, GRADIENT)) if word != usual]
    rows = [asdict(probe) for probe in probes]
    key = digest([knowledge.digest(), settings, rows, model.digest, *how])
    with memory.writing():
        _check_free(memory, name, "" if overwrite else knowledge.digest())
        run = memory.folder.run(name, {"key": key, "source": knowledge.digest(), **settings})
        (run / STOP_FILE).unlink(missing_ok=True)  # of a write that was interrupted as well
        if not lineage:  # what supersedes has more to do afterwards
            again = {"method": method, "preset": preset, "probes": rows, "overwrite": overwrite}
            again |= {"find_rate": find_rate, "find_rank": find_rank, "taught": bool(teacher)}
            dump_jsonl([again, *knowledge.documents, *knowledge.facts], run / AGAIN_FILE)
        prepared = _lesson_of(run, model, knowledge, lesson, teacher, probes, watch)
        config, notes = _fitted(fitted, config, len(prepared.examples))
        if find_rank:
            config, note = _rank_for(model, run, prepared, config, watch)
            notes += [note]
        if find_rate:
            config = replace(config, lr=_best_rate(model, run, prepared, knowledge, config, watch))
        prepared = replace(prepared, notes=(*prepared.notes, *notes))
        writer = writer_of(method, config)
        material = Material(knowledge)
        if writer.reads == "lesson":
            held_out = held_out_of(prepared)
            material = Material(knowledge, prepared.examples, prepared.rehearsal, held_out)
        state, cost = writer.write(model, material, seed=config.seed, run=run, watch=watch)
        watch.step("proving that it is on disk")
        settings["write"] = config.to_json()
        about = (memory, name, method, knowledge.digest(), prepared, settings, cost, lineage, watch)
        judge = partial(_judge, *about)
        outcome = commit(memory, state, prepared, judge, name=name, run=run, knowledge=knowledge)
        goes_on = cost.reason == STOPPED and (run / OPEN_FILE).exists()
        for over in (CHECKPOINT_FILE, STOP_FILE, *(() if goes_on else (AGAIN_FILE, OPEN_FILE))):
            (run / over).unlink(missing_ok=True)
        return outcome


def _lesson_of(
    run: Path,
    model: Model,
    knowledge: Knowledge,
    config: LessonConfig,
    teacher: AskLLM | None,
    probes: Sequence[Probe],
    watch: Watch,
) -> Lesson:
    """The lesson of a run: from before an interruption, or prepared now."""
    if not (run / LESSON_FILE).exists():
        prepared = lesson_for(model, knowledge, config, teacher=teacher, probes=probes, watch=watch)
        save_json(prepared, run / LESSON_FILE)
    return lesson_in(run)


def _judge(
    memory: OpenFolder,
    name: str,
    method: str,
    source: str,
    lesson: Lesson,
    settings: Mapping[str, Any],
    cost: Cost,
    lineage: Sequence[Mapping[str, str]],
    watch: Watch,
    stored: State,
    moved: float,
) -> tuple[Outcome, dict[str, Any]]:
    """The verdict on what a write left, and what its card says of it."""
    with stored.on(memory.model):
        checked = audit(memory.model, lesson.examples, watch=watch)
    report = verdict(memory, name, stored, source, lesson, settings["metric"], watch)
    outcome = Outcome(
        *(name, stored.id, memory.folder.state_path(stored.id), method),
        *(cost.reason, len(lesson.examples), cost.n_epochs, cost.seconds),
        *(checked, report, lesson.notes),
    )
    about = {"method": method, "settings": dict(settings), "training": dict(cost.last)}
    about |= {"reason": cost.reason, "engine": cost.engine, **dict(cost.about)}
    earlier = [dict(each) for each in lineage if each["adapter"] != stored.id]
    return outcome, about | ({"supersedes": earlier} if earlier else {})


def _check(
    model: Model,
    method: str,
    knowledge: Knowledge,
    config: WriteConfig,
    probes: Sequence[Probe],
    metric: str,
    *,
    searches: bool,
) -> None:
    """Refuse what would fail after minutes of work: method, kit, metric, targets, long texts."""
    writer = writer_of(method, config)
    if writer.needs_context:
        raise ConfigError(
            f"method {method!r} reads the source again with every question, so there is nothing to "
            "store; choose one that leaves a state."
        )
    if writer.trained_offline:
        kits.find(model, method, config.kit)
    elif config.kit:
        raise ConfigError(
            f"method {method!r} has no kit and {config.kit!r} was given; leave --kit out, or take "
            f"one of {', '.join(LEARNED)}."
        )
    if searches and method != GRADIENT:
        raise ConfigError(
            f"a rate or a rank was to be searched for method {method!r}; only {GRADIENT} has them; "
            "give the settings."
        )
    if metric not in METRICS:
        listed = ", ".join(sorted(METRICS))
        raise ConfigError(f"metric {metric!r} is unknown; use one of {listed}.")
    if writer.exports:
        resolve_targets(model.network, config.lora.targets, config.lora.layers)
    for fact in knowledge.facts:
        model.render(fact.question, fact.answer)
    for probe in probes:
        model.render(f"{probe.context}\n\n{probe.question}".strip())


def _check_free(memory: OpenFolder, name: str, source: str) -> None:
    """Raise ConfigError when a name stands for another source than this; an empty one is any."""
    entry, place = memory.folder.entries().get(name, {}), memory.folder.path
    if source and entry.get("source", source) != source:
        raise ConfigError(
            f"write {name!r}: {place} has a memory of that name from another source; give another "
            f"with --name. If that source has changed: lore supersede {place} {name} SOURCE. To "
            "replace what it knew: --replace."
        )


def _fitted(preset: Preset, before: WriteConfig, n_examples: int) -> tuple[WriteConfig, list[str]]:
    """The settings of a preset, and a sentence on what it changed."""
    config = preset(before, n_examples)
    was, now = asdict(before), asdict(config)
    changes = [f"{key.replace('_', ' ')} {now[key]}" for key in now if now[key] != was[key]]
    about = f"Preset {preset.__name__}: {', '.join(changes)} for {n_examples} examples."
    return config, [about] if changes else []


def lesson_for(
    model: Model,
    knowledge: Knowledge,
    config: LessonConfig,
    *,
    teacher: AskLLM | None = None,
    probes: Sequence[Probe] = (),
    watch: Watch,
) -> Lesson:
    """Examples and probes of some knowledge, its questions written by the base or a teacher."""
    drafts = model.phrasing == "general" and (knowledge.documents or config.rewordings)
    base = BaseOf(model, reduced_for(model)) if drafts else None
    reworder = _reworder(model, base) if config.rewordings else None
    texts = texts_of(knowledge, probes)
    if config.rehearse and model.phrasing != POCKET:
        watch.step(ASKING_OF_THE_WORLD)
    # All that it knows: which of these to rehearse depends on what is declined.
    progress = watch.of(ASKING_OF_THE_WORLD)
    n_known = len(general_questions("rehearsed")) if config.rehearse else 0
    known = known_to(model, "rehearsed", n_known, texts=texts, progress=progress)
    prepared = prepare(
        knowledge,
        ask_llm=teacher or partial(write_about, model, progress=watch.of("reading")),
        base=None if teacher else base,
        reworder=reworder,
        closed_book=partial(model.generate, progress=watch.of("asking about other things")),
        config=config,
        given_probes=probes,
        general=[(each.question, each.reply) for each in known],
        cannot_write=partial(unwritable, model),
        progress=watch.step,
        phrasing=model.phrasing if teacher is None else "general",
    )
    lost = unwritable_notes(model, knowledge, prepared)
    for note in lost:
        watch.step(note)
    return replace(prepared, notes=(*lost, *prepared.notes))


def _reworder(model: Model, base: BaseOf | None) -> Reworder:
    """The base that words questions anew, and MiniLM to compare them; raises ConfigError."""
    encoder = encoder_of(AUTO)
    if base is None or encoder is None:
        why = (
            f"{model.name} words no questions; use a base that does"
            if base is None
            else "there is no encoder to compare them: lore models get minilm"
        )
        raise ConfigError(f"questions were to be worded anew (rewordings) and {why}.")
    return Reworder(base, encoder.embed)


def held_out_of(lesson: Lesson) -> list[Example]:
    """The lesson's probes in untrained words, as examples to measure on the way."""
    trained = {example.prompt for example in lesson.examples}
    return [
        Example(probe.question, probe.answers[0], probe.kind, probe.source)
        for probe in lesson.probes
        if probe.kind in HELD_OUT and not probe.context and probe.question not in trained
    ]


def unwritable_notes(model: Model, knowledge: Knowledge, lesson: Lesson) -> tuple[str, ...]:
    """What cannot be recalled on this base, whatever is trained: answers and sentences by name."""
    answers = [(e.prompt, e.completion) for e in _answers(lesson)]
    lines = [
        (doc.id, line)
        for doc in knowledge.documents
        for line in statements(with_tables_as_sentences(doc.text))
    ]
    notes = []
    for what, pairs in (("answers", answers), ("sentences", lines)):
        marks = unwritable(model, [text for _, text in pairs])
        hit = [(*pair, lost) for pair, lost in zip(pairs, marks, strict=True) if lost]
        if hit:
            where, text, _ = hit[0]
            every = " ".join(dict.fromkeys(c for *_, lost in hit for c in lost))
            notes.append(
                f"{len(hit)} of {len(pairs)} {what} have characters that {model.name!r} cannot "
                f"write ({every}), so they cannot be recalled as they stand, and questions about "
                f"them are declined; the first is {text!r} ({where}). Spell them otherwise, or "
                "take another base."
            )
    return tuple(notes)


def _answers(lesson: Lesson) -> list[Example]:
    """What is to be recalled, whether the base can write it or not."""
    return [*(e for e in lesson.examples if e.kind == "qa"), *lesson.unwritable]


def writable_share(model: Model, lesson: Lesson) -> float:
    """Share of what is to be recalled that the base can write: answers, and sentences unasked."""
    pairs = ((e.source, e.completion) for e in _answers(lesson))
    answers = list(dict.fromkeys(pairs))
    lost = [marks for marks in unwritable(model, [text for _, text in answers]) if marks]
    unasked = [marks for marks in unwritable(model, lesson.uncovered) if marks]
    n = len(answers) + len(unasked)
    return 1 - (len(lost) + len(unasked)) / n if n else 1.0


def _rank_for(
    model: Model, run: Path, lesson: Lesson, config: WriteConfig, watch: Watch
) -> tuple[WriteConfig, str]:
    """A write's settings with the planned rank, and a sentence on it, stored with the run.

    Without a calibration the rank is FIXED_RANK: a write spends no minutes on one by itself.
    """
    stored = _once(run / PLAN_FILE, lambda: _ranked(model, lesson, config, find(model, config)))
    rank, note = int(stored["rank"]), str(stored["note"])
    watch.step(note)
    return replace(config, lora=replace(config.lora, rank=rank)), note


def _ranked(
    model: Model, lesson: Lesson, config: WriteConfig, calibration: Calibration | None
) -> dict[str, object]:
    if calibration is None:
        note = (
            f"Rank {plans.FIXED_RANK}: nothing is known of this base with these settings; "
            "`lore plan` would calibrate it, once."
        )
        return {"rank": plans.FIXED_RANK, "note": note}
    shape, load = plans.shape_of(model, config.lora), load_of(model, lesson.examples)
    ranks = [rank for rank in plans.RANKS if rank >= plans.LEAST_WRITTEN] or [shape.largest]
    planned = plans.make(
        load,
        calibration.forecast,
        shape,
        epochs=config.epochs,
        wanted=plans.WANTED_OF_WRITE,
        ranks=ranks if min(ranks) <= shape.largest else [shape.largest],
        enough=plans.ENOUGH_TO_WRITE,
        writable=writable_share(model, lesson),
    )
    advice = " ".join(planned.notes[:-1])
    note = f"Planned: {planned}. {advice}".strip()
    return {"rank": planned.rank, "note": note, "plan": planned.to_json()}


def _best_rate(
    model: Model, run: Path, lesson: Lesson, knowledge: Knowledge, config: WriteConfig, watch: Watch
) -> float:
    """The rate that a short search prefers, stored with the run."""

    def search() -> dict[str, object]:
        watch.step("trying rates")
        contexts = grounds(lesson.examples, knowledge) if config.build_objective().teacher else ()
        trials = find_lr(model, lesson.examples, config, contexts=contexts)
        if trials.at_the_edge:
            watch.step(f"the best rate, {trials.best.lr:g}, is at the edge of those tried")
        about = {"best": trials.best.lr, "at_the_edge": trials.at_the_edge}
        return {**about, "trials": [asdict(trial) for trial in trials.trials]}

    return float(_once(run / RATES_FILE, search)["best"])


def _once(path: Path, compute: Callable[[], dict[str, object]]) -> dict[str, Any]:
    """What a file of the run holds: from before an interruption, or computed now."""
    if not path.exists():
        save_json(compute(), path)
    return read_object(path, "delete its run and write again")


def _name_of(knowledge: Knowledge) -> str:
    if knowledge.documents:
        return slug(knowledge.documents[0].id)
    raise ConfigError("facts need a name for their memory; give one with --name.")
