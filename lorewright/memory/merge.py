"""The verb `merge`: memories of one folder to a new one, and what that cost each of them.

A method of `merging.methods` makes one adapter of several; `auto` chooses it. Then every source's
own probes are put to the source alone, to the merged memory and to the base: always, and after
the choice, in which they have no part; so are general questions that the base answers. The new
memory's lesson is that of all its parents, so that it can be verified, routed to and merged again.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lorewright.errors import ConfigError, NoEffect
from lorewright.files import digest, save_json, slug
from lorewright.knowledge.data import Knowledge, Probe
from lorewright.knowledge.lesson import Lesson, contexts, texts_of
from lorewright.knowledge.scoring import normalise
from lorewright.memory.commit import commit
from lorewright.memory.folder import LESSON_FILE, check_name
from lorewright.memory.opened import OpenFolder
from lorewright.memory.route import worse_than
from lorewright.memory.verify import metric_of
from lorewright.merging.algebra import check_rank
from lorewright.merging.choosing import AUTO, Trial, best_of, search, spelt
from lorewright.merging.methods import METHODS, Evidence, Merge, Options, named
from lorewright.models.general import Known
from lorewright.recall.statistics import Estimate, paired_difference
from lorewright.recall.verify import (
    RETAINED,
    Recall,
    RecallReport,
    added,
    known_before,
    known_beforehand,
    side_by_side,
    still_known,
)
from lorewright.training.watch import Watch
from lorewright.writers.adapter import AdapterState
from lorewright.writers.writer import State

ALONE, TOGETHER = "alone", "merged"
"""Arms of a part's report: the source by itself, and what it was merged into."""


@dataclass(frozen=True)
class Part:
    """A source before and after."""

    name: str
    adapter_id: str
    report: RecallReport
    """Arms `alone`, `merged` and `base` on the source's own probes and on general questions."""

    def lost(self, kind: str) -> Estimate:
        """Recall alone less recall merged, paired by probe, with its bootstrap interval."""
        pairs = [
            (a.score, b.score)
            for a, b in zip(self.report.arms[ALONE], self.report.arms[TOGETHER], strict=True)
            if a.kind == kind and a.score is not None and b.score is not None
        ]
        return paired_difference([a for a, _ in pairs], [b for _, b in pairs])

    def to_json(self) -> dict[str, Any]:
        """Plain data: by kind and arm n, recall and interval; what was lost; every outcome."""
        lost = {kind: asdict(self.lost(kind)) for kind in self.report.kinds}
        about = {"memory": self.name, "adapter": self.adapter_id}
        return {**about, "lost": lost, **self.report.to_json()}


@dataclass(frozen=True)
class Merged:
    """What a merge came to."""

    name: str
    adapter_id: str
    folder: Path
    method: str
    options: Options
    weights: tuple[float, ...]
    rank: int
    n_bytes: int
    parts: tuple[Part, ...]
    trials: tuple[Trial, ...]
    """What `auto` tried; () when the method was given."""
    moved: float
    """Largest change of any logit, as it came back from disk."""
    seconds: float
    notes: tuple[str, ...]

    @property
    def recalls(self) -> bool | None:
        """Whether it recalls anything of any source; None where no probe asks for knowledge."""
        known = [part.report.recalls_in(TOGETHER) for part in self.parts]
        return any(known) if any(each is not None for each in known) else None

    @property
    def worse_than(self) -> tuple[str, ...]:
        """Sources that it recalls worse than they do; questions then go to the sources."""
        return worse_than(part.to_json() for part in self.parts)

    def to_json(self) -> dict[str, Any]:
        """Plain data for `--json`, the run's report and, without outcomes, the card."""
        plain = ("method", "rank", "n_bytes", "moved", "seconds")
        return {
            "memory": self.name,
            "adapter": self.adapter_id,
            "folder": str(self.folder),
            **{key: vars(self)[key] for key in plain},
            "options": dict(self.options),
            "weights": list(self.weights),
            "parts": [part.to_json() for part in self.parts],
            "worse_than": list(self.worse_than),
            "trials": [trial.to_json() for trial in self.trials],
            "notes": list(self.notes),
        }


def merge(
    memory: OpenFolder,
    names: Sequence[str],
    *,
    method: str | Merge = AUTO,
    weights: Sequence[float] | None = None,
    into: str = "",
    rank: int | None = None,
    options: Options | None = None,
    metric: str = "",
    watch: Watch | None = None,
) -> Merged:
    """Merge memories of this folder into a new one, and measure what that cost each of them.

    `method` is a key of `merging.methods.METHODS`, a function like those in it, or `auto`: the one
    that retains most of held-back trained questions. `weights` are factors on each ΔW, `rank` None
    the sum of the ranks, `options` those of the method. One memory alone is truncated to `rank`.

    Raises ConfigError for names, methods or options that cannot be, UnknownMemory, WrongBase,
    AdapterError for a memory that is no adapter, NoEffect when what was merged cancels out.
    """
    names, watch, options = tuple(slug(name) for name in names), watch or Watch(), options or {}
    into = slug(into or " ".join(names))
    _check_names(memory, names, into, rank)
    label, combine = (AUTO, None) if method == AUTO else named(method)
    _check_settings(label, options, weights, rank, len(names))
    lessons = unopposed([_lesson(memory, name) for name in names])
    own = [memory.adapter(name) for name in names]
    wanted = {"weights": weights, "rank": rank, "options": options, "watch": watch}
    evidence = Evidence.of(memory.model, lessons, **wanted)
    began = time.monotonic()
    with memory.writing():
        knowledge, ids = _knowledge(memory, names), [memory.names[name] for name in names]
        request = {"method": label, "weights": weights, "rank": rank, "options": dict(options)}
        key = digest([ids, request, into, memory.model.digest])
        about = {"key": key, "verb": "merge", "source": knowledge.digest(), "parents": ids}
        run = memory.folder.run(into, {**about, **request})
        lesson = _together(names, lessons, knowledge)
        save_json(lesson, run / LESSON_FILE)
        trials: tuple[Trial, ...] = ()
        if combine is None:
            trials = tuple(search(own, evidence))
            best = best_of(trials)
            label, combine = best.method, METHODS[best.method]
            evidence = replace(evidence, options=best.options, rank=best.rank)
            watch.step(f"chosen: {spelt(label, best.options)}, rank {best.rank}")
        watch.step(f"merging by {label}")
        adapter = combine(own, evidence)

        def judge(stored: State, moved: float) -> tuple[Merged, dict[str, Any]]:
            sources = zip(names, lessons, map(AdapterState, own), strict=True)
            general = known_beforehand(memory.model, texts_of(knowledge, lesson.probes), watch)
            after = still_known(memory.model, stored, general, watch)
            outcome = Merged(
                *(into, stored.id, memory.folder.state_path(stored.id), label, evidence.options),
                tuple(float(w) for w in weights or [1.0] * len(names)),
                *(adapter.config.rank, stored.size_bytes),
                tuple(_part(memory, *s, stored, general, after, metric, watch) for s in sources),
                tuple(replace(trial, adapter=None) for trial in trials),
                moved,
                time.monotonic() - began,
                tuple(adapter.card.get("merge", {}).get("notes", ())),
            )
            report = _report(outcome, memory.model.name)
            return outcome, {**adapter.card, "reason": f"merged by {label}", "report": report}

        parents = [{"name": name, "adapter": i} for name, i in zip(names, ids, strict=True)]
        try:
            return commit(
                *(memory, AdapterState(adapter), lesson, judge),
                name=into,
                run=run,
                knowledge=knowledge,
                parents=parents,
            )
        except NoEffect as error:
            raise NoEffect(
                f"what was merged cancels out: {error} Change the weights, or the method."
            ) from error


# -- what may be merged --------------------------------------------------------------------------


def _check_names(memory: OpenFolder, names: Sequence[str], into: str, rank: int | None) -> None:
    if not names or (len(names) < 2 and rank is None):
        raise ConfigError(
            f"merge {', '.join(names) or 'nothing'}: give at least two memories, or one and the "
            "rank to truncate it to."
        )
    first: dict[str, str] = {}
    for name in names:
        other = first.setdefault(memory.folder.entry(name)["adapter"], name)
        if other != name:
            raise ConfigError(f"{other!r} and {name!r} are the same adapter; name one of them.")
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise ConfigError(f"merge {twice[0]!r} twice: name every memory once.")
    check_name(into, memory.model.name)
    if into in memory.names:
        raise ConfigError(f"merge into {into!r}: that name is taken; give another.")


def _check_settings(
    method: str, options: Options, weights: Sequence[float] | None, rank: int | None, n: int
) -> None:
    if weights is not None and len(weights) != n:
        raise ConfigError(f"{n} memories need {n} weights; there are {list(weights)}.")
    if method == AUTO and options:
        raise ConfigError(
            f"auto chooses its options; {sorted(options)} were given; name the method they are for."
        )
    check_rank(rank)


def _lesson(memory: OpenFolder, name: str) -> Lesson:
    """A memory's examples and probes; raises ConfigError where it has no probes."""
    lesson = memory.folder.lesson(memory.folder.entry(name))
    if not lesson.probes:
        raise ConfigError(
            f"{name!r} has no probes, so what a merge costs it could not be measured; add or write "
            "it again with --probes."
        )
    return lesson


def _knowledge(memory: OpenFolder, names: Sequence[str]) -> Knowledge:
    """The sources of all, in order, each document and fact once."""
    entries = [memory.folder.entry(name) for name in names]
    sources = [memory.folder.knowledge(entry) for entry in entries]
    documents = {digest(d): d for each in sources for d in each.documents}
    facts = {digest(f): f for each in sources for f in each.facts}
    return Knowledge(tuple(documents.values()), tuple(facts.values()))


def unopposed(lessons: Sequence[Lesson]) -> list[Lesson]:
    """The lessons, none declining what another answers."""
    answered = {
        normalise(question)
        for lesson in lessons
        for question in (
            *(row.prompt for row in lesson.examples if row.kind != "unknown"),
            *(probe.question for probe in lesson.probes if probe.answers),
        )
    }

    def stands(kind: str, question: str) -> bool:
        return kind != "unknown" or normalise(question) not in answered

    return [
        replace(
            lesson,
            examples=tuple(row for row in lesson.examples if stands(row.kind, row.prompt)),
            probes=tuple(probe for probe in lesson.probes if stands(probe.kind, probe.question)),
        )
        for lesson in lessons
    ]


def _together(names: Sequence[str], lessons: Sequence[Lesson], knowledge: Knowledge) -> Lesson:
    """The lesson of the merged memory: by it it is routed to, verified and merged again."""
    examples = dict.fromkeys(row for lesson in lessons for row in lesson.examples)
    probes: dict[tuple[str, str], Probe] = {}
    for name, lesson in zip(names, lessons, strict=True):
        for probe in lesson.probes:
            probes.setdefault((probe.kind, probe.question), replace(probe, id=f"{name}/{probe.id}"))
    notes = (f"merged from {', '.join(names)}.",)
    return Lesson(
        *(tuple(examples), tuple(probes.values()), *contexts(knowledge), notes),
        sum(lesson.n_sentences for lesson in lessons),
        tuple(sentence for lesson in lessons for sentence in lesson.uncovered),
    )


# -- the verdict ---------------------------------------------------------------------------------


def _part(
    memory: OpenFolder,
    name: str,
    lesson: Lesson,
    alone: State,
    merged: State,
    general: Sequence[Known],
    after: Sequence[Recall],
    metric: str,
    watch: Watch,
) -> Part:
    """Ask a source's probes of the source alone, of the merged state and of the base.

    `general` are questions that the base answers, `after` what the merged state says to them.
    """
    report = side_by_side(
        memory.model,
        lesson.probes,
        {ALONE: alone, TOGETHER: merged},
        metric=metric or metric_of(memory, alone.id),
        watch=watch,
        title=f"asking what is left of {name}",
    )
    retained = {
        ALONE: still_known(memory.model, alone, general, watch),
        TOGETHER: after,
        "base": known_before(general),
    }
    arms = {**report.arms, **added(report.arms, retained)}
    return Part(name, alone.id, replace(report, arms=arms))


def _report(merged: Merged, base: str) -> dict[str, Any]:
    """A merge's verdict for its card: by kind of probe what all sources' questions came to."""
    arms = {
        arm: tuple(
            row
            for n, part in enumerate(merged.parts)
            for row in part.report.arms[of]
            if n == 0 or row.kind != RETAINED  # the same questions for all parts
        )
        for arm, of in (("memory", TOGETHER), ("base", "base"))
    }
    metric, plain = merged.parts[0].report.metric, merged.to_json()
    parts = [{k: v for k, v in part.items() if k != "outcomes"} for part in plain.pop("parts")]
    recall: Mapping[str, Any] = RecallReport(metric, arms).to_json()["recall"]
    rest = {k: v for k, v in plain.items() if k != "folder"}
    return {"metric": metric, "recall": recall, "base": base, "parts": parts, **rest}
