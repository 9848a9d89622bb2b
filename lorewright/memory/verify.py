"""The verb `verify`: a lesson's probes, put to a memory and to everything it is compared with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from lorewright.errors import AdapterError, ConfigError, DataError, StorageError
from lorewright.files import slug
from lorewright.knowledge.data import Probe, trained_pairs
from lorewright.knowledge.lesson import Lesson
from lorewright.knowledge.negatives import DECLINE
from lorewright.knowledge.scoring import METRICS, normalise
from lorewright.memory.folder import BEFORE, RECALLED_KINDS
from lorewright.memory.opened import OpenFolder
from lorewright.models.catalogue import POCKET
from lorewright.models.model import Model
from lorewright.recall import verify as recall
from lorewright.recall.support import Nearness, by_encoder
from lorewright.recall.verify import Recall, RecallReport
from lorewright.training.watch import Watch
from lorewright.writers.writer import State

ROUTED = "routed"
"""An arm beside those of `recall.verify`, see `routed`."""
NEIGHBOURS = "neighborhood"
N_NEIGHBOURS, N_OF_EACH = 8, 2
"""Questions of other memories in the folder: at most, and of each."""


def verify(
    memory: OpenFolder,
    name: str = "",
    *,
    probes: Sequence[Probe] = (),
    metric: str = "",
    watch: Watch | None = None,
) -> RecallReport:
    """Take the verdict again, with the probes and the metric of the write or with others.

    Without a name the folder's only memory. Raises UnknownMemory, AdapterError for a damaged one,
    ConfigError for one that was written without probes.
    """
    name = slug(name) if name else memory.folder.only()
    entry, state = memory.folder.entry(name), memory.state(name)
    lesson = memory.folder.lesson(entry)
    if probes:
        lesson = replace(lesson, probes=tuple(probes), n_sentences=0, uncovered=())
    if not lesson.probes:
        raise ConfigError(f"{name!r} was written without probes; give some with --probes FILE.")
    metric = metric or metric_of(memory, state.id)
    return verdict(memory, name, state, str(entry.get("source")), lesson, metric, watch)


def verdict(
    memory: OpenFolder,
    name: str,
    state: State,
    source: str,
    lesson: Lesson,
    metric: str,
    watch: Watch | None,
) -> RecallReport:
    """A lesson's probes, put to a state and its controls; the wrong one has another source."""
    step = (watch or Watch()).step
    if lesson.probes:
        texts = [f"{e.prompt} {e.completion}" for e in lesson.examples if e.kind != "unknown"]
        texts += [probe.question for probe in lesson.probes]
        probes = lesson.probes
        if memory.model.phrasing != POCKET and not any(p.kind == NEIGHBOURS for p in probes):
            probes = (*probes, *_neighbours(memory, name, source, texts))
        general = recall.known_beforehand(memory.model, texts, watch)
        report = recall.verify(
            memory.model,
            probes,
            adapter=state,
            full=lesson.full,
            scaffold=lesson.scaffold,
            wrong=_unrelated(memory, name, state.id, source, step),
            metric=metric,
            general=general,
            nearness=_nearness(memory, lesson, step),
            watch=watch,
        )
    else:
        report = RecallReport(metric, {}, ("there are no probes: give some with --probes.",))
    about: dict[str, Any] = {"memory": name, "adapter": state.id}
    about |= {"base": memory.model.name, "base_digest": memory.model.digest}
    if lesson.n_sentences:
        n_covered = lesson.n_sentences - len(lesson.uncovered)
        about |= {"n_sentences": lesson.n_sentences, "n_covered": n_covered}
    return replace(report, notes=(*report.notes, *_over_documents(report, lesson)), context=about)


def routed(memory: OpenFolder, name: str, report: RecallReport) -> tuple[Recall, ...]:
    """What a memory's probes come to where nobody names it: `ask` with `unrouted` base.

    Its reply with support where routing sends the question to it; where not, declining of a
    question that names something of a memory, and the base's reply to all others.
    """
    router = memory.router.current()
    own = report.arms.get(recall.SUPPORTED, report.arms[recall.MEMORY])
    rows = []
    for mine, alone in zip(own, report.arms["base"], strict=True):
        if name in [hit.memory for hit in router.route(mine.question).chosen]:
            rows.append(mine)
        elif router.naming(mine.question):
            rows.append(replace(alone, output=DECLINE, score=float(alone.kind == "unknown")))
        else:
            rows.append(alone)
    return tuple(rows)


def _nearness(memory: OpenFolder, lesson: Lesson, step: Callable[[str], None]) -> Nearness | None:
    """What stands behind replies, where there is an encoder; the embedded base declines itself."""
    pairs = trained_pairs(lesson.examples)
    encoder = memory.router.in_use(step) if pairs and memory.model.phrasing != POCKET else None
    return by_encoder(pairs, encoder) if encoder else None


def _over_documents(report: RecallReport, lesson: Lesson) -> tuple[str, ...]:
    """Recall with the sentences that no question is about as not recalled."""
    kind = next((kind for kind in RECALLED_KINDS[1::-1] if kind in report.kinds), "")
    asked = report.proportion("memory", kind).mean if kind else None
    if not lesson.uncovered or asked is None:
        return ()
    covered = 1 - len(lesson.uncovered) / lesson.n_sentences
    return (
        f"over the documents: {asked * covered:.2f} rather than {asked:.2f} ({kind}), with the "
        f"{len(lesson.uncovered)} of {lesson.n_sentences} sentences that no question is about as "
        "not recalled.",
    )


def _neighbours(memory: OpenFolder, name: str, source: str, about: Sequence[str]) -> list[Probe]:
    """A few questions of each other memory in the folder, which this one is to leave alone."""
    own = {normalise(text) for text in about}
    neighbours: list[Probe] = []
    for other, entry in sorted(memory.folder.entries().items()):
        if len(neighbours) >= N_NEIGHBOURS or other == name or entry.get("source") == source:
            continue
        with suppress(DataError, StorageError):  # a lesson that is gone says nothing of this one
            asked = [p for p in memory.folder.lesson(entry).probes if p.kind == "paraphrase"]
            fresh = [p for p in asked if normalise(p.question) not in own][:N_OF_EACH]
            neighbours += [
                Probe(f"{other}-{p.id}", p.question, (), NEIGHBOURS, other) for p in fresh
            ]
    return neighbours[:N_NEIGHBOURS]


def metric_of(memory: OpenFolder, identity: str) -> str:
    """The metric of a state's own verdict, or the base's usual one."""
    report = memory.folder.card(identity).get("report") or {}
    metric = str(report.get("metric"))
    return metric if metric in METRICS else usual_metric(memory.model)


def usual_metric(model: Model) -> str:
    """What fits the base: the embedded one answers in a few words, others in sentences."""
    return "exact_match" if model.phrasing == POCKET else "contains"


def _unrelated(
    memory: OpenFolder, name: str, identity: str, source: str, step: Callable[[str], None]
) -> State | None:
    """A memory of something else, for the control `wrong`; damaged ones are named and passed."""
    entries = memory.folder.entries()
    parents = _parents(entries.get(name, {}))
    for other, entry in sorted(entries.items()):
        related = {entry["adapter"], *_parents(entry)} & {identity, *parents}
        if related or other in (name, f"{name}-{BEFORE}") or entry.get("source") == source:
            continue
        try:
            return memory.state(other)
        except AdapterError as error:
            step(f"{other} is damaged and cannot be the wrong memory: {error}")
    return None


def _parents(entry: Mapping[str, Any]) -> set[str]:
    """Ids of the states that a memory was merged from: they know what it knows."""
    return {str(parent.get("adapter")) for parent in entry.get("parents", ())}
