"""Benchmark `routing`: does a question reach the memory that holds its answer, and no other's?

Each section is a memory, entered without an adapter: routing needs none. A question is put to a
folder whose keys never held its wording: once to one with the section's text, title and the other
wordings of all facts (keys: questions), once to one with texts and titles alone (documents).
Questions that no memory is for are near misses, put to a folder without their section, and general
ones. `alone` is a folder of one section, asked in the last wording, and near misses of all others.

    OUT/<keys>/<folder>/    memory folders, whose index is derived
    OUT/summary.json        shares with n and Wilson's interval
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorewright.bench.sections import Section, sections_of
from lorewright.bench.tables import spelt
from lorewright.bench.task import SUMMARY_FILE, Progress, Summary, Task, versions
from lorewright.errors import ConfigError
from lorewright.files import digest, read_text, save_json
from lorewright.knowledge.data import Example, Knowledge
from lorewright.knowledge.lesson import Lesson, contexts
from lorewright.knowledge.negatives import unrelated_questions
from lorewright.memory.memory import Memory
from lorewright.memory.route import FALSE_ACTIVATION, FolderRouter, LiveRouter
from lorewright.models.encoders import AUTO, NONE, Encoder, encoder_of
from lorewright.models.model import Model
from lorewright.recall.statistics import estimate
from lorewright.reports.tables import Table

KEYS = ("questions", "documents")
"""What a folder's keys are made of, beside texts and titles."""
OUTCOMES = ("nearest", "right", "wrong", "declined", "near misses", "own near misses", "general")


@dataclass(frozen=True)
class Settings:
    """What is measured."""

    model: str = "pocket"
    """The base that the folders name; nothing is generated."""
    data: str = ""
    """JSON list of sections: id, title, text, facts (answer, questions), unanswerable."""
    general: str = ""
    """A file of general questions, one a line up to a tab; empty = packaged ones."""
    encoders: tuple[str, ...] = (NONE, AUTO)
    """How meanings are compared, as `lore ask --encoder`."""
    keys: tuple[str, ...] = KEYS
    """questions, documents, or both."""
    alone: bool = False
    """Also folders of one section each."""
    false_activation: float = FALSE_ACTIVATION
    """Share of questions no memory is for that may reach one."""

    def __post_init__(self) -> None:
        """Raise ConfigError for keys of another kind."""
        if not set(self.keys) <= set(KEYS):
            raise ConfigError(f"keys are {self.keys!r}; give some of {', '.join(KEYS)}.")


def check(settings: Settings) -> list[Section]:
    """Read the questions; raises DataError for files that are missing or of another shape."""
    if not settings.data:
        raise ConfigError("routing is measured on sections of your own; give --data FILE.")
    return list(sections_of(settings.data, "unanswerable"))


def quick(settings: Settings) -> Settings:
    """One kind of keys."""
    return replace(settings, keys=settings.keys[:1], alone=False)


# -- folders -------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Bench:
    """Sections, and where their folders are made."""

    model: Model
    out: Path
    settings: Settings

    def folder(
        self, name: str, keys: str, sections: Iterable[Section], leave: int | None
    ) -> Memory:
        """A folder of sections whose lessons lack one wording, or without lessons."""
        memory = Memory.open(self.out / keys / name, self.model)
        for section in sections:
            knowledge = Knowledge((section.document,))
            examples = tuple(
                Example(question, answer, "qa", section.document.id)
                for answer, questions in section.facts
                for n, question in enumerate(questions)
                if n != leave and keys == "questions"
            )
            self._enter(memory, knowledge, Lesson(examples, (), *contexts(knowledge), ()))
        return memory

    def _enter(self, memory: Memory, knowledge: Knowledge, lesson: Lesson) -> None:
        (document,) = knowledge.documents
        identity = digest([document.id, str(lesson)])[:16]
        if memory.names.get(document.id) == identity:
            return
        with memory.writing():
            about = {"key": identity, "source": knowledge.digest()}
            run = memory.folder.run(document.id, about)
            save_json(lesson, run / "lesson.json")
            memory.folder.store_source(knowledge)
            source = knowledge.digest()
            memory.folder.enter(document.id, identity, source=source, run=run.name)

    def chosen(self, router: FolderRouter, question: str) -> tuple[str, str]:
        """The nearest memory, and the one that the question is sent to; empty = none."""
        rate = self.settings.false_activation
        route = router.route(question, false_activation=rate)
        return tuple(hits[0].memory if hits else "" for hits in (route.hits, route.chosen))  # type: ignore[return-value]


def remembering(encoder: Encoder | None) -> Encoder | None:
    """Return an encoder that computes each text once: the folders hold the same ones."""
    if encoder is None:
        return None

    def once(embed: Any) -> Any:
        known: dict[str, NDArray[Any]] = {}

        def vectors(texts: list[str]) -> NDArray[Any]:
            if new := [text for text in dict.fromkeys(texts) if text not in known]:
                known.update(zip(new, embed(new), strict=True))
            return np.stack([known[text] for text in texts])

        return vectors

    question = encoder.embed_question
    return replace(encoder, embed=once(encoder.embed), embed_question=question and once(question))


# -- what is measured ----------------------------------------------------------------------------


def run(
    settings: Settings,
    out: Path,
    on: str = "here",
    progress: Progress = Progress(),  # noqa: B008
) -> dict[str, Any]:
    """Route every question, and return the summary, which is stored.

    Raises ConfigError for another ``on``, and as `check`.
    """
    if on != "here":
        raise ConfigError(f"routing runs in this process, not on {on!r}; leave --on out.")
    sections = check(settings)
    general = (
        [line.partition("\t")[0] for line in read_text(Path(settings.general)).splitlines()]
        if settings.general
        else unrelated_questions()
    )
    bench = Bench(Model.load(settings.model), out, settings)
    rows = []
    for name in settings.encoders:
        encoder = remembering(encoder_of(name))
        for keys in settings.keys:
            for alone in (False, True)[: 1 + settings.alone]:
                progress.watch.step(f"{keys}, encoder {name}{', alone' * alone}")
                measure = _alone if alone else _together
                outcomes = measure(bench, sections, general, keys, encoder or NONE)
                shares = {key: asdict(estimate(values)) for key, values in outcomes.items()}
                about = {"encoder": encoder.id if encoder else NONE, "keys": keys, "alone": alone}
                rows.append(about | shares)
    summary = {
        "bench": "routing",
        "config": asdict(settings),
        "base": {"id": bench.model.name, "digest": bench.model.digest},
        "command": shlex.join(["lore", *sys.argv[1:]]),
        "versions": versions(),
        "n_jobs": len(rows),
        "seconds": 0.0,
        "n_memories": len(sections),
        "rows": rows,
    }
    save_json(summary, out / SUMMARY_FILE)
    return summary


Outcomes = dict[str, list[float]]


def _together(
    bench: Bench,
    sections: Sequence[Section],
    general: Sequence[str],
    keys: str,
    encoder: str | Encoder,
) -> Outcomes:
    """All sections in one folder, but for the one whose near misses are put."""
    outcomes: Outcomes = {key: [] for key in OUTCOMES}
    for wording in range(max(len(questions) for s in sections for _, questions in s.facts)):
        memory = bench.folder(f"without-wording-{wording + 1}", keys, sections, wording)
        router = LiveRouter(memory.folder, encoder).current()
        for section in sections:
            own = [questions[wording] for _, questions in section.facts if wording < len(questions)]
            _count(bench, router, own, section.document.id, outcomes, f"wording {wording + 1}")
    memory = bench.folder("all", keys, sections, None)
    router = LiveRouter(memory.folder, encoder).current()
    outcomes["general"] += [bool(bench.chosen(router, question)[1]) for question in general]
    for section in sections:
        own = [bench.chosen(router, question)[1] for question in section.unanswerable]
        outcomes["own near misses"] += [bool(name) for name in own]
        others = [other for other in sections if other != section]
        memory = bench.folder(f"without-{section.document.id}", keys, others, None)
        lacking = LiveRouter(memory.folder, encoder).current()
        outcomes["near misses"] += [bool(bench.chosen(lacking, q)[1]) for q in section.unanswerable]
    return outcomes


def _alone(
    bench: Bench,
    sections: Sequence[Section],
    general: Sequence[str],
    keys: str,
    encoder: str | Encoder,
) -> Outcomes:
    """A folder a section."""
    outcomes: Outcomes = {key: [] for key in OUTCOMES}
    for section in sections:
        last = max(len(questions) for _, questions in section.facts) - 1
        memory = bench.folder(f"only-{section.document.id}", keys, [section], last)
        router = LiveRouter(memory.folder, encoder).current()
        own = [questions[last] for _, questions in section.facts if last < len(questions)]
        _count(bench, router, own, section.document.id, outcomes, f"wording {last + 1}")
        others = [other for other in sections if other != section]
        for key, questions in (
            ("near misses", [question for other in others for question in other.unanswerable]),
            ("own near misses", section.unanswerable),
            ("general", general),
        ):
            outcomes[key] += [bool(bench.chosen(router, question)[1]) for question in questions]
    return outcomes


def _count(
    bench: Bench,
    router: FolderRouter,
    questions: Iterable[str],
    name: str,
    outcomes: Outcomes,
    wording: str,
) -> None:
    """Where a section's own questions go."""
    for question in questions:
        nearest, sent = bench.chosen(router, question)
        outcomes["nearest"].append(nearest == name)
        outcomes["right"].append(sent == name)
        outcomes["wrong"].append(sent not in ("", name))
        outcomes["declined"].append(not sent)
        outcomes.setdefault(wording, []).append(sent == name)


# -- how it is shown -----------------------------------------------------------------------------


def tables(summary: Summary) -> Iterator[Table]:
    """One row an encoder, kind of keys and size of folder."""
    rows: list[Mapping[str, Any]] = summary["rows"]
    wordings = list(dict.fromkeys(key for row in rows for key in row if key.startswith("wording")))
    shown = ("nearest", "right", *wordings, "wrong", "near misses", "own near misses", "general")
    head = ("encoder", "keys", "memories", *shown)
    cells = tuple(
        (
            str(row["encoder"]),
            str(row["keys"]),
            "1" if row["alone"] else str(summary["n_memories"]),
            *(spelt(row.get(key)) for key in shown),
        )
        for row in rows
    )
    counts = ", ".join(f"{key} {rows[0][key]['n']}" for key in ("right", "near misses", "general"))
    note = (
        f"Shares with Wilson's interval; n in the first row: {counts}. Nearest: whether chosen or "
        "not. Near misses of sections that the folder lacks, of its own, and general questions: "
        "share that reaches a memory; the memory itself may still decline its own."
    )
    yield Table("Routing", head, cells, (note,), n_keys=3, stacked=("", "share"))


TASK = Task(
    "routing",
    Settings,
    quick,
    run,
    tables,
    check=check,
    flags={"encoders": "--encoder"},
    spreads=False,
)
