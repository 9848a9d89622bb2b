"""The verb `merge`: memories of one folder to a new one, and what that cost each of them.

A method makes one adapter of several; `auto` chooses it. Then the adapter is read back from disk
and proved, and every source's own probes are asked of the source alone, of the merged memory and of
the base: always, and after the choice, in which they have no part. The new memory's lesson is that
of all its parents, so that it can be verified, found and merged again.

This module puts the ways of merging together with the folder; the algebra is in `merge` and
`imitate`, the choice in `choosing`.
"""

from __future__ import annotations

import platform
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorewright import __version__
from lorewright.adapters import adapter as adapters
from lorewright.adapters.adapter import Adapter
from lorewright.errors import AdapterError, ConfigError, NoEffect
from lorewright.files import digest, dump_jsonl, save_json, slug
from lorewright.knowledge.data import Knowledge, Probe
from lorewright.knowledge.lesson import Lesson, contexts
from lorewright.knowledge.scoring import normalise
from lorewright.memory.add import prove
from lorewright.memory.folder import enter, entries, entry_of, run_folder, stored_knowledge, writing
from lorewright.memory.verify import stored_lesson, usual_metric
from lorewright.memory.write import set_aside_damaged
from lorewright.merging.choosing import AUTO, NAMES, TRAINING, Options, Trial, make, search, spelt
from lorewright.merging.imitate import Source
from lorewright.recall.statistics import Estimate, paired_difference
from lorewright.recall.verify import RecallReport, side_by_side
from lorewright.training.watch import Watch

if TYPE_CHECKING:
    from lorewright.memory.memory import Memory

ALONE, TOGETHER = "alone", "merged"
"""Arms of a part's report: the source by itself, and what it was merged into."""


@dataclass(frozen=True)
class Part:
    """A source before and after."""

    name: str
    adapter_id: str
    report: RecallReport
    """Arms `alone`, `merged` and `base` on the source's own probes."""

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
            "trials": [trial.to_json() for trial in self.trials],
            "notes": list(self.notes),
        }


def merge(
    memory: Memory,
    names: Sequence[str],
    *,
    method: str = AUTO,
    weights: Sequence[float] | None = None,
    into: str = "",
    rank: int | None = None,
    options: Options | None = None,
    metric: str = "",
    watch: Watch | None = None,
) -> Merged:
    """Merge memories into a new one; see `Memory.merge`."""
    names, watch = tuple(slug(name) for name in names), watch or Watch()
    into = slug(into or " ".join(names))
    _check_names(memory, names, into, rank)
    _check_method(method, options or {}, weights, rank, len(names))
    lessons = unopposed([_lesson(memory, name) for name in names])
    sources = [
        Source(memory.adapter(name), lesson.examples)
        for name, lesson in zip(names, lessons, strict=True)
    ]
    began = time.monotonic()
    with writing(memory.folder, memory.base()):
        known = _known(memory, names)
        ids = [entry_of(memory.folder, name)["adapter"] for name in names]
        asked = {"method": method, "weights": weights, "rank": rank, "options": dict(options or {})}
        key = digest([ids, asked, into, memory.model.digest])
        about = {"key": key, "verb": "merge", "source": known.digest(), "parents": ids, **asked}
        run = run_folder(memory.folder, into, about)
        save_json(_together(names, lessons, known), run / "lesson.json")
        trials: tuple[Trial, ...] = ()
        if method == AUTO:
            trials = tuple(search(memory.model, sources, weights, rank, watch))
            best = max(trials, key=lambda trial: trial.merit)
            if best.adapter is None:
                raise ConfigError(f"no way of merging is left; the last said: {best.why_not}")
            method, options, rank = best.method, best.options, best.rank
            watch.step(f"chosen: {spelt(method, options)}, rank {rank}")
        watch.step(f"merging by {method}")
        made, notes = make(memory.model, sources, method, weights, rank, options or {}, watch)
        adapter, moved = _proved(memory, run, made)
        parts = tuple(
            _part(memory, name, lesson, source.adapter, adapter, metric, watch)
            for name, lesson, source in zip(names, lessons, sources, strict=True)
        )
        identity = adapters.content_id(adapter)
        found = Merged(
            into,
            identity,
            memory.folder / "adapters" / identity,
            method,
            options or {},
            tuple(float(w) for w in weights or [1.0] * len(names)),
            adapter.config.rank,
            sum(tensor.nbytes for tensor in adapter.tensors.values()),
            parts,
            tuple(replace(trial, adapter=None) for trial in trials),
            moved,
            time.monotonic() - began,
            tuple(notes),
        )
        _enter(memory, found, adapter, run, known, names, ids)
        return found


# -- what may be merged --------------------------------------------------------------------------


def _check_names(memory: Memory, names: Sequence[str], into: str, rank: int | None) -> None:
    known = entries(memory.folder)
    if not names or (len(names) < 2 and rank is None):
        raise ConfigError(
            f"asked to merge {', '.join(names) or 'nothing'}; give at least two memories, or one "
            "and the rank to truncate it to."
        )
    for name in names:
        entry_of(memory.folder, name)
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise ConfigError(f"asked to merge {twice[0]!r} twice; name every memory once.")
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(known[name]["adapter"], name)
        if other != name:
            raise ConfigError(f"{other!r} and {name!r} are the same adapter; name one of them.")
    if into in known:
        raise ConfigError(f"asked to merge into {into!r}; that name is taken; give another.")


def _check_method(
    method: str,
    options: Options,
    weights: Sequence[float] | None,
    rank: int | None,
    n: int,
) -> None:
    if method not in NAMES:
        raise ConfigError(f"there is no method {method!r}; choose one of {', '.join(NAMES)}.")
    if weights is not None and len(weights) != n:
        raise ConfigError(f"{n} memories need {n} weights; found {list(weights)}.")
    if method == AUTO and options:
        raise ConfigError(
            f"auto chooses its options; found {sorted(options)}; name the method they are for."
        )
    if method in TRAINING and weights is not None:
        raise ConfigError(f"{method} trains on all examples alike; leave the weights out.")
    if rank is not None and (type(rank) is not int or rank < 1):
        raise ConfigError(f"rank must be an integer of at least 1; found {rank!r}.")


def _lesson(memory: Memory, name: str) -> Lesson:
    """What a memory was trained on and is asked; raises ConfigError where nothing can be asked."""
    path = memory.folder / "runs" / str(entry_of(memory.folder, name).get("run")) / "lesson.json"
    made = stored_lesson(path) if path.exists() else Lesson((), (), "", "", ())
    if not made.probes:
        raise ConfigError(
            f"{name!r} has no probes, so what a merge costs it could not be told; add or write it "
            "again with --probes."
        )
    return made


def _known(memory: Memory, names: Sequence[str]) -> Knowledge:
    """The sources of all, in order, each document and fact once."""
    found = [
        stored_knowledge(memory.folder, str(entry_of(memory.folder, name).get("source") or ""))
        for name in names
    ]
    documents = {digest(d): d for each in found for d in each.documents}
    facts = {digest(f): f for each in found for f in each.facts}
    return Knowledge(tuple(documents.values()), tuple(facts.values()))


def unopposed(lessons: Sequence[Lesson]) -> list[Lesson]:
    """The lessons, none declining what another answers."""
    rows = [row for lesson in lessons for row in lesson.examples if row.kind != "unknown"]
    answered = {normalise(row.prompt) for row in rows}
    answered |= {normalise(p.question) for lesson in lessons for p in lesson.probes if p.answers}
    return [
        replace(
            lesson,
            examples=tuple(
                row
                for row in lesson.examples
                if row.kind != "unknown" or normalise(row.prompt) not in answered
            ),
            probes=tuple(
                probe
                for probe in lesson.probes
                if probe.kind != "unknown" or normalise(probe.question) not in answered
            ),
        )
        for lesson in lessons
    ]


def _together(names: Sequence[str], lessons: Sequence[Lesson], known: Knowledge) -> Lesson:
    """The lesson of the merged memory: by it it is found, verified and merged again."""
    examples = dict.fromkeys(row for lesson in lessons for row in lesson.examples)
    probes: dict[tuple[str, str], Probe] = {}
    for name, lesson in zip(names, lessons, strict=True):
        for probe in lesson.probes:
            probes.setdefault((probe.kind, probe.question), replace(probe, id=f"{name}/{probe.id}"))
    notes = (f"merged from {', '.join(names)}.",)
    return Lesson(tuple(examples), tuple(probes.values()), *contexts(known), notes)


# -- proof, verdict, entry -----------------------------------------------------------------------


def _proved(memory: Memory, run: Path, made: Adapter) -> tuple[Adapter, float]:
    """The adapter as it came back from disk, the same and at work; and how far it moves logits."""
    place = run / "adapter"
    shutil.rmtree(place, ignore_errors=True)
    adapters.save(made, place)
    adapter = adapters.load(place)
    shutil.rmtree(place, ignore_errors=True)
    if adapters.content_id(adapter) != adapters.content_id(made):
        raise AdapterError("the merged adapter came back from disk changed; check the disk.")
    try:
        return adapter, prove(memory, adapter).moved
    except NoEffect as error:
        raise NoEffect(
            f"what was merged cancels out: {error} Change the weights, or the method."
        ) from error


def _part(
    memory: Memory,
    name: str,
    lesson: Lesson,
    alone: Adapter,
    merged: Adapter,
    metric: str,
    watch: Watch,
) -> Part:
    """Ask a source's probes of the source alone, of the merged adapter and of the base."""
    stored = alone.card.get("report") or {}
    report = side_by_side(
        memory.model,
        lesson.probes,
        {ALONE: alone, TOGETHER: merged},
        metric=metric or str(stored.get("metric") or usual_metric(memory.model)),
        progress=lambda arm: watch.step(f"asking what is left of {name}: {arm}"),
    )
    return Part(name, adapters.content_id(alone), report)


def _enter(
    memory: Memory,
    found: Merged,
    adapter: Adapter,
    run: Path,
    known: Knowledge,
    names: Sequence[str],
    ids: Sequence[str],
) -> None:
    """Put adapter and source on the shelf, then the name with its parents."""
    parents = [{"name": name, "adapter": i} for name, i in zip(names, ids, strict=True)]
    source = known.digest() if known != Knowledge() else ""
    set_aside_damaged(found.folder)
    card = _card(memory, found, adapter, parents, source)
    adapters.save(replace(adapter, card=card), found.folder)
    adapters.load(found.folder)
    if source:
        rows = [*known.documents, *known.facts]
        dump_jsonl(rows, memory.folder / "sources" / f"{source}.jsonl")
    enter(memory.folder, found.name, found.adapter_id, source=source, run=run.name, parents=parents)
    save_json(found.to_json(), run / "report.json")


def _card(
    memory: Memory,
    found: Merged,
    adapter: Adapter,
    parents: Sequence[Mapping[str, str]],
    source: str,
) -> dict[str, Any]:
    plain = found.to_json()
    parts = [{k: v for k, v in part.items() if k != "outcomes"} for part in plain.pop("parts")]
    packages = ("torch", "transformers", "safetensors")
    versions = {"lorewright": __version__, "python": platform.python_version()}
    return {
        **adapter.card,
        "name": found.name,
        "source": source,
        "reason": f"merged by {found.method}",
        "parents": list(parents),
        "versions": versions | {package: version(package) for package in packages},
        "report": {
            "metric": found.parts[0].report.metric,
            "recall": _recall(found.parts),
            "base": memory.model.name,
            "parts": parts,
            **{k: v for k, v in plain.items() if k != "folder"},
        },
    }


def _recall(parts: Sequence[Part]) -> dict[str, dict[str, Any]]:
    """By kind what the merged memory and the base recall of all sources together."""
    arms = {
        arm: tuple(row for part in parts for row in part.report.arms[of])
        for arm, of in (("memory", TOGETHER), ("base", "base"))
    }
    both = RecallReport(parts[0].report.metric, arms)
    plain: dict[str, dict[str, Any]] = both.to_json()["recall"]
    return plain
