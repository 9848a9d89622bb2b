"""Sections of real manuals and dictionaries, written as facts or as documents, asked without them.

Every section is a memory of its own, written by the verb that users call, verdict included:

    facts       each fact in all of its wordings but one, asked in the one that is left out
    documents   the text alone; whatever is asked of it was worded by the base (or nobody)

Beside recall stand the questions that the text does not answer, which are to be declined, those
that join two statements, general questions that the base answered before, and the section in the
prompt: read and answered by the base (full), read by the base and answered by the memory (read),
both by the memory (together). Sections are altered in their values or not; what a base knew shows
in its own arm.

A file is a JSON list of objects with id, title, text, altered, facts [{answer, questions}],
unanswerable [text], multihop [{question, answer}]; the first word of an id is the kind of section.
"""

from __future__ import annotations

import functools
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lorewright.adapters.config import LoraConfig
from lorewright.bench import exact, sets
from lorewright.bench.tables import NOTHING, figure, spelt
from lorewright.bench.task import Done, Figure, Summary, Task, sweep
from lorewright.errors import ConfigError, DataError
from lorewright.files import read_text
from lorewright.knowledge.data import Document, Fact, Knowledge, Probe
from lorewright.knowledge.lesson import Lesson, LessonConfig
from lorewright.knowledge.scoring import contains, normalise
from lorewright.memory.opened import OpenFolder
from lorewright.memory.verify import ROUTED, routed
from lorewright.memory.write import write
from lorewright.models.model import Model
from lorewright.recall.statistics import estimate
from lorewright.recall.verify import MEMORY, OWN_ARMS
from lorewright.reports.figures.methods import arms_figure
from lorewright.reports.tables import Table
from lorewright.routing.ask import Reading, read
from lorewright.training.config import WriteConfig
from lorewright.training.rates import suggested_lr
from lorewright.writers.writer import State

FACTS, DOCUMENTS = "facts", "documents"
ALTERED = "altered"
"""Key that sections of this benchmark have beside the usual ones."""
KINDS = ("paraphrase", "unknown", "multihop", "retained")
KEPT = {
    "unknown": "declined",
    "multihop": "two steps",
    "retained": "retained",
}
"""What a kind of question besides those in other words counts."""
PANELS = {
    "paraphrase": "questions in other words",
    "unknown": "near misses declined",
    "retained": "general questions retained",
}
"""Panels of the figure, by kind of question."""
PROMPTED = ("full", "read", "together")
"""Arms with the section in the prompt."""
MEANING = (
    "asked: questions in a wording that was not trained; supported: without replies behind which "
    "no trained question stands; routed: the same where routing sends the question to the memory, "
    "declining where it only names something of it, else the base; declined: questions that the "
    "section does not answer; two steps: questions that join two statements; retained: general "
    "questions that the base answers, which the memory alone withholds where it asks for support. "
    "With the section in the prompt, full: the base; read: the "
    "base reads, the memory answers; together: the memory does both."
)


@dataclass(frozen=True)
class Section:
    """A section with what is asked of it."""

    document: Document
    altered: bool
    """Whether its values were changed, so that no base can know them."""
    facts: tuple[tuple[str, tuple[str, ...]], ...]
    """Answer and wordings of its question."""
    unanswerable: tuple[str, ...]
    multihop: tuple[tuple[str, str], ...]
    """Question and answer."""

    @property
    def id(self) -> str:
        """That of its document."""
        return self.document.id

    @property
    def kind(self) -> str:
        """The kind of text that it is from."""
        return self.id.partition("-")[0]


@dataclass(frozen=True, kw_only=True)
class Sections:
    """A sweep over sections."""

    model: str = "smollm2"
    """A base: a name that `lore models` lists, a folder, a .gguf file, or a name on the hub."""
    data: str
    """A file of sections."""
    source: str = FACTS
    """facts or documents."""
    left_out: tuple[int, ...] = (4,)
    """Wordings, from 1, that are left out one after another and asked; for facts."""
    sections: int = 0
    """The first so many; 0 = all."""
    rank: int = 8
    """Of the adapters."""
    epochs: int = WriteConfig().epochs
    """Longest that a write takes."""
    lr: float = 0.0
    """Peak rate; 0 = the one that suits the base."""
    rehearsal: float = WriteConfig().rehearsal
    """Largest share of an epoch's tokens that are rehearsed."""
    null_space: float = WriteConfig().null_space
    """Share of what the base reads of these that the adapter does not see."""
    negatives: float | None = None
    """Questions to be declined, at most, as a share of those trained; by default what is usual."""
    rewordings: int = 0
    """Questions in further words that the base makes, for an answer, at most."""
    patience: int = WriteConfig().patience
    """Epochs without a newly recalled example after which training gives up; 0 = never."""
    seeds: int = 1
    """Writes of every memory."""

    def __post_init__(self) -> None:
        """Refuse what is unknown or out of range."""
        if self.source not in (FACTS, DOCUMENTS):
            raise ConfigError(f"source is {self.source!r}; use {FACTS} or {DOCUMENTS}.")
        if not self.left_out or min(self.left_out) < 1:
            raise ConfigError(
                f"left_out is {list(self.left_out)}; give numbers of wordings, from 1."
            )
        for name, least in {"sections": 0, "rank": 1, "epochs": 1, "seeds": 1}.items():
            if vars(self)[name] < least:
                raise ConfigError(f"{name} is {vars(self)[name]}; give at least {least}.")
        WriteConfig(  # checks them
            rehearsal=self.rehearsal, null_space=self.null_space, patience=self.patience
        )
        LessonConfig(negatives=self.negatives, rewordings=self.rewordings)


def quick(config: Sections) -> Sections:
    """Return a sweep of a few minutes that shows that everything works, and no result."""
    return replace(config, sections=1, left_out=config.left_out[:1], epochs=2, seeds=1)


@functools.lru_cache(maxsize=2)
def sections_of(data: str, *needed: str) -> tuple[Section, ...]:
    """The sections of a file, each of which has some needed keys beside the usual ones.

    Raises DataError for what has another shape.
    """
    text = read_text(Path(data))
    try:
        rows = json.loads(text)
        for key in needed:
            [row[key] for row in rows]
        return tuple(
            Section(
                Document(row["id"], row["text"], row["title"]),
                bool(row.get("altered", False)),
                tuple((str(f["answer"]), tuple(map(str, f["questions"]))) for f in row["facts"]),
                tuple(map(str, row.get("unanswerable", ()))),
                tuple((str(m["question"]), str(m["answer"])) for m in row.get("multihop", ())),
            )
            for row in rows
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{data} is no list of sections ({type(error).__name__}: {error}); each needs id, "
            f"title, text, facts with an answer and questions, and {' and '.join(needed)}."
        ) from error


def check(settings: Sections) -> tuple[Section, ...]:
    """Read the sections; raises DataError for a file that is missing or of another shape."""
    return sections_of(sets.located(settings.data), ALTERED)


def jobs(config: Sections, base_digest: str) -> list[dict[str, Any]]:
    """Return a job for every section, wording that is left out, and seed."""
    every = check(config)
    least = min(len(questions) for section in every for _, questions in section.facts)
    if config.source == FACTS and (least < 2 or max(config.left_out) > least):
        raise DataError(
            f"wordings {list(config.left_out)} are to be left out, and some fact has {least}; "
            "leave one of those out that all facts have, and keep one."
        )
    left_out = config.left_out if config.source == FACTS else (0,)
    how = {k: v for k, v in asdict(config).items() if k not in ("sections", "left_out", "seeds")}
    how |= {"data": sets.located(config.data), "base": base_digest}
    chosen = every[: config.sections or None]
    return [
        how | {"section": section.id, "left_out": number, "seed": seed}
        for seed in range(config.seeds)
        for number in left_out
        for section in chosen
    ]


def knowledge_of(section: Section, source: str, left_out: int) -> tuple[Knowledge, list[Probe]]:
    """What is written of a section, and what is asked afterwards."""
    own, numbered = section.id, list(enumerate(section.facts, 1))
    facts: list[Fact] = []
    probes: list[Probe] = []
    for n, (answer, questions) in numbered:
        for k, question in enumerate(questions, 1):
            if source == FACTS and k != left_out:
                facts.append(Fact(f"{own}-{n}-{k}", question, answer, source=own))
            else:
                probes.append(Probe(f"{own}-{n}-{k}", question, (answer,), "paraphrase", own))
    probes += [
        Probe(f"{own}-u{n}", q, (), "unknown", own) for n, q in enumerate(section.unanswerable, 1)
    ]
    probes += [
        Probe(f"{own}-m{n}", q, (a,), "multihop", own)
        for n, (q, a) in enumerate(section.multihop, 1)
    ]
    documents = (section.document,) if source == DOCUMENTS else ()
    return Knowledge(documents, tuple(facts)), probes


def task(job: dict[str, Any]) -> dict[str, Any]:
    """Write a section and take the verdict."""
    model = exact.base_model(job["model"], job["base"])
    section = next(s for s in sections_of(job["data"], ALTERED) if s.id == job["section"])
    knowledge, probes = knowledge_of(section, job["source"], job["left_out"])
    lora = LoraConfig(job["rank"], seed=job["seed"])
    lr = job["lr"] or suggested_lr(model)
    config = WriteConfig(
        lora=lora,
        lr=lr,
        epochs=job["epochs"],
        seed=job["seed"],
        rehearsal=job["rehearsal"],
        null_space=job["null_space"],
        patience=job["patience"],
    )
    with tempfile.TemporaryDirectory() as folder:
        memory = OpenFolder.open(folder, model)
        outcome = write(
            memory,
            knowledge,
            name=section.id,
            config=config,
            lesson=LessonConfig(
                seed=job["seed"], negatives=job["negatives"], rewordings=job["rewordings"]
            ),
            probes=probes,
            metric="contains",
        )
        lesson = memory.folder.lesson(memory.folder.entry(outcome.name))
        state = memory.state(outcome.name)
        prompted = rows_with_text(model, state, section, lesson.probes)
        arms = {**outcome.report.arms, ROUTED: routed(memory, outcome.name, outcome.report)}
    rows = [
        {"arm": arm, "kind": r.kind, "score": r.score, "question": r.question, "output": r.output}
        for arm, outcomes in arms.items()
        for r in outcomes
    ] + prompted
    about = {"kind": section.kind, "altered": section.altered, **covered(section, lesson)}
    about |= {"reason": outcome.reason, "epochs": outcome.epochs, "n_examples": outcome.n_examples}
    return {**about, "seconds": outcome.seconds, "rows": rows, "notes": list(outcome.notes)}


def rows_with_text(
    model: Model, state: State, section: Section, probes: Sequence[Probe]
) -> list[dict[str, Any]]:
    """What the memory answers with the section in the prompt, read by the base and by itself."""
    chosen = [probe for probe in probes if probe.kind in KINDS]
    ways = [(arm, probe) for arm in PROMPTED[1:] for probe in chosen]
    text = (section.document.text,)
    readings = [Reading(probe.question, section.id, arm, text) for arm, probe in ways]
    replies = read(model, readings, lambda name: state)
    return [
        {
            "arm": arm,
            "kind": probe.kind,
            "score": float(
                reply.declined if probe.kind == "unknown" else contains(reply.text, probe.answers)
            ),
            "question": probe.question,
            "output": reply.text,
        }
        for (arm, probe), reply in zip(ways, replies, strict=True)
    ]


def covered(section: Section, lesson: Lesson) -> dict[str, int]:
    """For how many facts a question is trained whose answer holds theirs, in a wording of its own
    too."""
    pairs = [e for e in lesson.examples if e.kind in ("qa", "cloze")]
    n_words = {answer: len(normalise(answer).split()) for answer, _ in section.facts}

    def fits(answer: str, completion: str) -> bool:
        short = len(normalise(completion).split()) <= n_words[answer] + 2
        return short and bool(contains(completion, (answer,)))

    any_form = [any(fits(a, e.completion) for e in pairs) for a, _ in section.facts]
    own = [any(fits(a, e.completion) for e in pairs if e.kind == "qa") for a, _ in section.facts]
    return {"n_facts": len(section.facts), "n_covered": sum(any_form), "n_worded": sum(own)}


# -- summary -------------------------------------------------------------------------------------


def summarise(config: Sections, done: Done) -> dict[str, Any]:
    """Recall by arm and kind of question: together, by kind of section, by wording left out."""
    groups: dict[str, list[Mapping[str, Any]]] = {"all": []}
    for job, record in done:
        names = ["all", f"{record['kind']} sections"]
        names.append("altered" if record["altered"] else "unaltered")
        names += [f"wording {job['left_out']}"] if len(config.left_out) > 1 else []
        for name in names:
            groups.setdefault(name, []).append(record)
    counts = ("n_facts", "n_covered", "n_worded")
    return {
        "groups": {name: _counted(records) for name, records in groups.items()},
        "coverage": {key: sum(record[key] for _, record in done) for key in counts},
        "writing": {
            "seconds": sum(record["seconds"] for _, record in done),
            "n_recalled": sum(record["reason"] == "recalled" for _, record in done),
            "n": len(done),
        },
    }


def _counted(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    arms: dict[str, dict[str, list[float]]] = {}
    for row in (row for record in records for row in record["rows"]):
        if row["kind"] in KINDS and row["score"] is not None:
            arms.setdefault(row["kind"], {}).setdefault(row["arm"], []).append(row["score"])
    return {
        kind: {arm: asdict(estimate(scores)) for arm, scores in by_arm.items()}
        for kind, by_arm in arms.items()
    }


def tables(summary: Summary) -> Iterator[Table]:
    """Recall by group and arm; then what else is to hold."""
    config, groups = summary["config"], summary["groups"]
    title = f"{_written(config)} on {config['model']}"
    own, prompted = _measured(summary)
    coverage, writing = summary["coverage"], summary["writing"]
    notes = (
        MEANING,
        f"Of {coverage['n_facts']} facts {coverage['n_covered']} have a trained question with "
        f"their answer, {coverage['n_worded']} one in the words of the base or the user.",
        f"{writing['n']} writes took {writing['seconds']:.0f} s together; {writing['n_recalled']} "
        "ended with every example recalled.",
    )
    arms = (*own, "base", *prompted)
    head = ("sections", "n", "asked", *arms[1:])
    rows = tuple(_cells(name, kinds, "paraphrase", arms) for name, kinds in groups.items())
    yield Table(title, head, rows, notes, n_keys=2, stacked=("arm", "recall"))
    others = [
        (name, what, *_cells(name, kinds, kind, own)[1:])
        for name, kinds in groups.items()
        for kind, what in KEPT.items()
        if kind in kinds
    ]
    head = ("sections", "what", "n", *own)
    about = f"what else is to hold, {title}"
    yield Table(about, head, tuple(others), n_keys=3, stacked=("arm", "share"))


def _written(config: Mapping[str, Any]) -> str:
    """What was written of which file."""
    reworded = "reworded " if config.get("rewordings") else ""  # records of before have none
    return f"{reworded}{config['source']} of {config['data'].rpartition('/')[2]}"


def _measured(summary: Summary) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Arms of the memory alone, and those with the section in the prompt."""
    measured = {arm for kinds in summary["groups"].values() for arm in kinds.get("unknown", ())}
    own = tuple(arm for arm in (*OWN_ARMS, ROUTED) if arm == MEMORY or arm in measured)
    return own, tuple(arm for arm in PROMPTED if arm in measured)


def _cells(
    name: str, kinds: Mapping[str, Mapping[str, Any]], kind: str, arms: Sequence[str]
) -> tuple[str, ...]:
    """A row: what is shown of a kind of question under some arms."""
    shares = kinds.get(kind, {})
    n = str(shares.get(MEMORY, {}).get("n", 0))
    return (name, n, *(spelt(shares.get(arm)) if shares else NOTHING for arm in arms))


def figures(summary: Summary) -> Iterator[Figure]:
    """What is answered, declined and retained under every arm."""
    kinds = summary["groups"]["all"]
    own, prompted = _measured(summary)
    arms = ("base", *prompted, *own)
    shares = {
        what: {arm: kinds[kind].get(arm) for arm in arms}
        for kind, what in PANELS.items()
        if kind in kinds
    }
    config = summary["config"]
    about = f"{_written(config)}, {config['model']}"
    caption = "What is answered, declined and retained under every arm."
    yield figure("arms", caption, functools.partial(arms_figure, own=own), shares, about=about)


TASK = Task(
    "sections",
    Sections,
    quick,
    sweep("sections", jobs, task, summarise),
    tables,
    figures,
    check=check,
)
