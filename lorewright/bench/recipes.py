"""How facts are best written: recall by rank, layers, wordings, dropout and decay, and its cost.

Documents with facts, each in several wordings. Every combination of settings writes every
document, and answers questions in wordings that no write saw, without it:

    wordings    0 = the document's text by next-token loss; k = k questions a fact
    placements  TARGET, or TARGET@LAYERS such as attention@early: a third of the layers
    equal       ranks are those of all linear layers; elsewhere as many as give an adapter of
                the same size, so that placements are compared at equal parameters

Beside recall stand questions to be declined and general questions that the base answered before;
and the base alone and with the document in its prompt, once a document. Sources are a file of
sections (`sections`), or a document with FILE.jsonl and FILE.probes.jsonl beside it.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from lorewright.adapters.config import LoraConfig
from lorewright.bench import exact, sets
from lorewright.bench.arms import estimated
from lorewright.bench.sections import ALTERED, sections_of
from lorewright.bench.tables import NOTHING, counted, spelt
from lorewright.bench.task import Done, Figure, Summary, Task, sweep
from lorewright.errors import ConfigError, DataError
from lorewright.knowledge.data import Document, Fact, Knowledge, Probe
from lorewright.knowledge.lesson import Lesson, LessonConfig, texts_of
from lorewright.knowledge.readers.probes import read_probes
from lorewright.knowledge.readers.read import read_knowledge
from lorewright.law.plan import shape_of
from lorewright.memory.verify import usual_metric
from lorewright.memory.write import lesson_for
from lorewright.models.model import Model
from lorewright.recall.traces import reproduced
from lorewright.recall.verify import Recall, ask, known_before, known_beforehand, still_known
from lorewright.reports.figures.methods import compared_figure
from lorewright.reports.tables import Table
from lorewright.training.config import WriteConfig
from lorewright.training.rates import suggested_lr
from lorewright.training.watch import Watch
from lorewright.writers.gradient import Gradient
from lorewright.writers.writer import Material

SETTINGS = ("rank", "placement", "wordings", "dropout", "decay", "facts")
"""What a cell consists of."""
KINDS = ("paraphrase", "unknown", "retained")
NAMES = {"paraphrase": "recall", "unknown": "declined", "retained": "retained"}
MEANING = (
    "recall: questions in wordings that were not trained, without the document; declined: "
    "questions that it does not answer; retained: general questions that the base answered "
    "before; trained: examples that come back as trained. Intervals are 95 %, resampled by "
    "document and then by question."
)
BASE, FULL = "base", "full"
TEXT_BATCH = 64
"""Rows of a step over a text alone: all of it, so that an epoch is one step, as in the report."""


@dataclass(frozen=True, kw_only=True)
class Recipes:
    """A sweep over settings of a write."""

    model: str = "smollm2"
    """A base: a name that `lore models` lists, a folder, a .gguf file, or a name on the hub."""
    data: str
    """A file of sections, or a document with facts and probes beside it."""
    documents: int = 0
    """The first so many; 0 = all."""
    left_out: int = 4
    """The wording, from 1, of sections' facts that is probed and never written."""
    ranks: tuple[int, ...] = (8,)
    """Ranks of the adapters."""
    placements: tuple[str, ...] = ("all-linear",)
    """Adapted layers: TARGET or TARGETS joined by +, @early, @centre, @late or @LAYER."""
    equal: bool = False
    """Give every placement the rank at which it is as large as all linear layers at this rank."""
    wordings: tuple[int, ...] = (3,)
    """Questions a fact; 0 = the text by next-token loss."""
    dropouts: tuple[float, ...] = (0.0,)
    """Shares of an adapter's input that are dropped in training."""
    decays: tuple[float, ...] = (0.0,)
    """Weight decays."""
    facts: tuple[int, ...] = (0,)
    """Facts of a document that are written and probed, the first so many; 0 = all."""
    epochs: int = WriteConfig().epochs
    """Longest that a write takes."""
    patience: int = 3
    """Epochs without another example recalled that end a write; 0 = none do."""
    lr: float = 0.0
    """Peak rate; 0 = the one that suits base and placement."""
    seeds: int = 1
    """Writes of every cell."""

    def __post_init__(self) -> None:
        """Refuse what is empty or out of range."""
        for name in ("ranks", "placements", "wordings", "dropouts", "decays", "facts"):
            if not getattr(self, name):
                raise ConfigError(f"{name} is empty; give at least one.")
        for name, least in {"documents": 0, "left_out": 1, "epochs": 1, "seeds": 1}.items():
            if vars(self)[name] < least:
                raise ConfigError(f"{name} is {vars(self)[name]}; give at least {least}.")
        if min(self.wordings) < 0 or min(self.facts) < 0:
            raise ConfigError("wordings and facts are counts; give 0 or more.")
        for rank, dropout, decay in itertools.product(self.ranks, self.dropouts, self.decays):
            WriteConfig(lora=LoraConfig(rank), dropout=dropout, weight_decay=decay)  # checks them


@dataclass(frozen=True)
class Case:
    """A document, the wordings of its facts, and its probes."""

    document: Document
    facts: tuple[tuple[Fact, ...], ...]
    """Of each fact its wordings."""
    probes: tuple[Probe, ...]

    @property
    def texts(self) -> list[str]:
        """What its facts and probes say, which is no general knowledge."""
        return texts_of(Knowledge((), tuple(itertools.chain(*self.facts))), self.probes)

    def first(self, n: int) -> Case:
        """The first n facts, and the probes that ask for them or for what is not there."""
        if not n or n >= len(self.facts):
            return self
        facts = self.facts[:n]
        answers = {fact.answer for wordings in facts for fact in wordings}
        probes = (p for p in self.probes if not p.answers or answers & {*p.answers})
        return Case(self.document, facts, tuple(probes))


def quick(config: Recipes) -> Recipes:
    """Return a sweep of a minute that shows that everything works, and no result."""
    first = {f.name: getattr(config, f.name)[:2] for f in fields(config) if f.name in _SWEPT}
    return replace(config, documents=1, epochs=2, seeds=1, **{**first, "facts": (2,)})


_SWEPT = ("ranks", "placements", "wordings", "dropouts", "decays")


# -- cases ---------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=2)
def cases_of(data: str, left_out: int) -> tuple[Case, ...]:
    """The documents of a file with their facts and probes; raises DataError for other shapes."""
    if Path(data).suffix != ".json":
        return (_beside(Path(data)),)
    cases = []
    for section in sections_of(data, ALTERED):
        own = section.id
        facts, probes = [], []
        for n, (answer, questions) in enumerate(section.facts, 1):
            if not 1 <= left_out <= len(questions) or len(questions) < 2:
                raise DataError(
                    f"fact {n} of {own!r} has {len(questions)} wordings and wording {left_out} is "
                    "to be probed and not written; leave another out, or give it more."
                )
            rows = [
                Fact(f"{own}-{n}-{k}", q, answer, source=own) for k, q in enumerate(questions, 1)
            ]
            probe = rows.pop(left_out - 1)
            facts.append(tuple(rows))
            probes.append(Probe(probe.id, probe.question, (answer,), "paraphrase", own))
        probes += [
            Probe(f"{own}-u{n}", q, (), "unknown", own)
            for n, q in enumerate(section.unanswerable, 1)
        ]
        cases.append(Case(section.document, tuple(facts), tuple(probes)))
    return tuple(cases)


def _beside(path: Path) -> Case:
    """A document with its facts and probes in files of its own name."""
    document = Document.read(path)
    stem = path.with_suffix("")
    facts = read_knowledge(stem.with_suffix(".jsonl")).facts
    wordings: dict[str, list[Fact]] = {}
    for fact in facts:
        same = fact.id.rpartition("-")[0] or fact.id
        wordings.setdefault(same, []).append(replace(fact, source=document.id))
    probes = tuple(p for p in read_probes(stem.with_suffix(".probes.jsonl")) if p.kind in KINDS)
    return Case(document, tuple(map(tuple, wordings.values())), probes)


def check(config: Recipes) -> tuple[Case, ...]:
    """Read the cases; raises DataError for a file that is missing or of another shape."""
    return cases_of(sets.located(config.data), config.left_out)


def jobs(config: Recipes, base_digest: str) -> list[dict[str, Any]]:
    """Return a job for every document, cell and seed, and one a document for the base."""
    every = check(config)
    chosen = every[: config.documents or None]
    shared = {"model": config.model, "base": base_digest, "left_out": config.left_out}
    shared |= {"data": sets.located(config.data)}
    how = shared | {key: vars(config)[key] for key in ("equal", "epochs", "patience", "lr")}
    swept = (config.ranks, config.placements, config.wordings, config.dropouts, config.decays)
    cells = [
        dict(zip(SETTINGS, cell, strict=True)) for cell in itertools.product(*swept, config.facts)
    ]
    most = max(config.wordings)
    for case in chosen:
        if (least := min(map(len, case.facts), default=0)) < most:
            raise DataError(
                f"{most} wordings of every fact are to be written, and some fact of "
                f"{case.document.id!r} has {least}; give fewer wordings."
            )
    return [
        shared | {"document": case.document.id, "facts": n, "seed": -1}
        for n in config.facts
        for case in chosen
    ] + [
        how | cell | {"document": case.document.id, "seed": seed}
        for seed in range(config.seeds)
        for cell in cells
        for case in chosen
    ]


# -- one job -------------------------------------------------------------------------------------


def task(job: dict[str, Any]) -> dict[str, Any]:
    """Write a document in one way and ask; or, for a seed of -1, ask the base."""
    model = exact.base_model(job["model"], job["base"])
    every = cases_of(job["data"], job["left_out"])
    case = next(c for c in every if c.document.id == job["document"]).first(job["facts"])
    metric = usual_metric(model)
    general = known_beforehand(model, case.texts)
    if job["seed"] < 0:
        context = case.document.text
        alone = [*ask(model, case.probes, metric=metric), *known_before(general)]
        reading = ask(model, case.probes, context=context, metric=metric)
        return {"rows": [*rows_of(BASE, alone), *rows_of(FULL, reading)]}
    knowledge = knowledge_of(case, job["wordings"])
    views = ("given",) if job["wordings"] else ("verbatim",)
    lesson = lesson_for(
        model,
        knowledge,
        LessonConfig(views=views, seed=job["seed"]),
        probes=case.probes,
        watch=Watch(),
    )
    config = config_of(model, job)
    material = Material(knowledge, lesson.examples, lesson.rehearsal)
    state, cost = Gradient(config).write(model, material, seed=job["seed"], run=None, watch=Watch())
    with state.on(model):
        trained = reproduced(model, lesson.examples)
    outcomes = [
        *ask(model, case.probes, memory=state, metric=metric),
        *still_known(model, state, general),
    ]
    return {
        "rows": rows_of("memory", outcomes),
        "rank": config.lora.rank,
        "n_parameters": state.size_bytes // 4,
        "trained": trained.mean,
        "reason": cost.reason,
        "epochs": cost.n_epochs,
        "seconds": round(cost.seconds, 2),
        "n_examples": cost.n_examples,
        "n_declined": _n_declined(lesson),
    }


def knowledge_of(case: Case, wordings: int) -> Knowledge:
    """The text alone, or so many wordings of every fact."""
    if not wordings:
        return Knowledge((case.document,))
    return Knowledge((), tuple(fact for each in case.facts for fact in each[:wordings]))


def _n_declined(lesson: Lesson) -> int:
    return sum(example.kind == "unknown" for example in lesson.examples)


def rows_of(arm: str, outcomes: Iterable[Recall]) -> list[dict[str, Any]]:
    """Outcomes under an arm as plain JSON."""
    shown = ("kind", "score", "question", "output")
    return [{"arm": arm, **{key: vars(r)[key] for key in shown}} for r in outcomes]


def config_of(model: Model, job: Mapping[str, Any]) -> WriteConfig:
    """The settings of a write: a cell's, with the rank that its placement has at equal size."""
    targets, layers = exact.placement(model, job["placement"])
    lora = LoraConfig(job["rank"], targets=targets, layers=layers, seed=job["seed"])
    if job["equal"]:
        lora = replace(lora, rank=equal_rank(model, lora))
    return WriteConfig(
        lora=lora,
        lr=job["lr"] or suggested_lr(model),
        dropout=job["dropout"],
        weight_decay=job["decay"],
        epochs=job["epochs"],
        batch_size=WriteConfig().batch_size if job["wordings"] else TEXT_BATCH,
        patience=job["patience"],
        seed=job["seed"],
    )


def equal_rank(model: Model, lora: LoraConfig) -> int:
    """The rank at which an adapter of these layers is as large as one of all linear layers.

    Rounded to the nearest whole rank, at least 1, at most the largest that adds something.
    """
    every, own = shape_of(model, LoraConfig(lora.rank)), shape_of(model, lora)
    return max(1, min(own.largest, round(lora.rank * every.n_values / own.n_values)))


# -- summary -------------------------------------------------------------------------------------


def summarise(config: Recipes, done: Done) -> dict[str, Any]:
    """Shares by cell and kind with intervals over documents, and what every cell cost."""
    cells: dict[tuple[Any, ...], list[tuple[Mapping[str, Any], Mapping[str, Any]]]] = {}
    read: dict[int, list[tuple[Mapping[str, Any], Mapping[str, Any]]]] = {}
    for job, record in done:
        if job["seed"] < 0:
            read.setdefault(job["facts"], []).append((job, record))
        else:
            cells.setdefault(tuple(job[key] for key in SETTINGS), []).append((job, record))
    written = [_cell(dict(zip(SETTINGS, key, strict=True)), own) for key, own in cells.items()]
    return {
        "cells": written,
        "controls": [
            {"facts": n, **{arm: _shares(own, arm) for arm in (BASE, FULL)}}
            for n, own in read.items()
        ],
        "n_documents": len({job["document"] for job, _ in done}),
    }


def _cell(
    cell: dict[str, Any], own: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]
) -> dict[str, Any]:
    records = [record for _, record in own]
    mean = {
        key: sum(record[key] for record in records) / len(records)
        for key in ("n_parameters", "trained", "epochs", "seconds", "n_examples")
    }
    ended = {record["reason"]: 0 for record in records}
    for record in records:
        ended[record["reason"]] += 1
    shares = _shares(own, "memory")
    return {**cell, "rank_used": records[0]["rank"], **shares, **mean, "ended": ended}


def _shares(
    own: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]], arm: str
) -> dict[str, dict[str, Any]]:
    """Mean and interval of every kind; a question's score is its mean over seeds."""
    scores: dict[str, dict[str, dict[int, list[float]]]] = {}
    for job, record in own:
        for n, row in enumerate(row for row in record["rows"] if row["arm"] == arm):
            if row["score"] is not None:
                by_unit = scores.setdefault(row["kind"], {})
                by_unit.setdefault(job["document"], {}).setdefault(n, []).append(row["score"])
    return {
        kind: asdict(
            estimated(
                {
                    unit: {n: sum(each) / len(each) for n, each in items.items()}
                    for unit, items in scores[kind].items()
                }
            )
        )
        for kind in KINDS
        if kind in scores
    }


def tables(summary: Summary) -> Iterator[Table]:
    """A row a cell: what was written how, what came back, and what it cost."""
    config = summary["config"]
    name = config["data"].rpartition("/")[2]
    varied = [key for key in SETTINGS if len({cell[key] for cell in summary["cells"]}) > 1]
    varied = varied or ["rank"]
    rows = []
    for about in summary["controls"]:
        for arm, label in ((BASE, "base alone"), (FULL, "document in the prompt")):
            shares = [spelt(about[arm].get(kind)) for kind in KINDS]
            where = [str(about["facts"] or "all") if key == "facts" else NOTHING for key in varied]
            where[0] = label
            rows.append((*where, str(about[arm]["paraphrase"]["n"]), *shares, *[NOTHING] * 4))
    for cell in summary["cells"]:
        where = [_label(key, cell) for key in varied]
        shares = [spelt(cell.get(kind)) for kind in KINDS]
        costs = (f"{cell['trained']:.2f}", f"{cell['n_parameters'] / 1e6:.2f}")
        times = (f"{cell['epochs']:.0f}", f"{cell['seconds']:.0f}")
        rows.append((*where, str(cell["paraphrase"]["n"]), *shares, *costs, *times))
    title = f"{name} on {config['model']}: {counted(summary['n_documents'], 'document')}"
    fixed = {key: summary["cells"][0][key] for key in SETTINGS if key not in varied}
    notes = (MEANING, "The same for all: " + ", ".join(f"{k} {v}" for k, v in fixed.items()) + ".")
    head = (*varied, "n", *(NAMES[kind] for kind in KINDS), "trained", "10⁶ params", "epochs", "s")
    yield Table(title, head, tuple(rows), notes, n_keys=len(varied), stacked=("measure", "mean"))


def _label(key: str, cell: Mapping[str, Any]) -> str:
    if key == "wordings" and not cell[key]:
        return "text"
    if key == "facts" and not cell[key]:
        return "all"
    if key == "rank" and cell["rank_used"] != cell["rank"]:
        return f"{cell['rank']} ({cell['rank_used']})"
    return str(cell[key])


def _named(key: str, cell: Mapping[str, Any]) -> str:
    """A setting of a cell, its key before it where it is a number."""
    label = _label(key, cell)
    return label if label[:1].isalpha() else f"{key} {label}"


def figures(summary: Summary) -> Iterator[Figure]:
    """Recall and retained knowledge by rank, a line for everything else that varies."""
    cells = summary["cells"]
    ranks = {cell["rank"] for cell in cells}
    others = [key for key in SETTINGS[1:] if len({cell[key] for cell in cells}) > 1]
    if len(ranks) < 2 and not others:
        return
    about = f"{summary['config']['model']}, {counted(summary['n_documents'], 'document')}"
    by = others[0] if len(others) == 1 else "recipe"
    what = " and ".join([*(["rank"] if len(ranks) > 1 else []), *others])
    rows = [
        {
            "metric": NAMES[kind],
            "rank": cell["rank"],
            by: ", ".join(_named(key, cell) for key in others) or "rank",
            **{key: cell[kind][key] for key in ("n", "mean", "low", "high")},
            "difference": None,
        }
        for cell in cells
        for kind in KINDS
        if kind in cell
    ]
    for kind in ("paraphrase", "retained"):
        name = NAMES[kind]
        if not any(row["metric"] == name for row in rows):
            continue
        yield Figure(
            f"{summary['bench']}-{name}",
            f"{name[0].upper()}{name[1:]} by {what}.",
            functools.partial(
                compared_figure,
                rows,
                metric=name,
                about=about,
                by=by,
                title=f"{name[0].upper()}{name[1:]} by {what}",
            ),
        )


TASK = Task(
    "recipes",
    Recipes,
    quick,
    sweep("recipes", jobs, task, summarise),
    tables,
    figures,
    check=check,
)
