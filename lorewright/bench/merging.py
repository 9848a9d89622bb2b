"""The falsifier of merging, on documents: does one adapter for two cost a fifth of either?

Documents with facts are written alone, then merged in pairs by every method, each with the options
that retain most of *trained* questions. Losses are 1 - recall merged / recall alone, of one source,
on the same probes: questions in wordings that no write saw, without the document. A pair counts
against a method when its worse-off source loses more than a fifth.

Beside them stand both controls of a source (the pair's other memory, the base alone), what is
declined and retained with the merged adapter, and how long the merge took. Sources are those of
`recipes`. The falsifier is of the review of arXiv 2603.01097.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from lorewright.adapters.adapter import Adapter
from lorewright.adapters.config import LoraConfig
from lorewright.bench import exact, sets
from lorewright.bench.arms import estimated
from lorewright.bench.recipes import Case, cases_of, knowledge_of, rows_of
from lorewright.bench.tables import NOTHING, counted, figure, spelt
from lorewright.bench.task import Done, Figure, Summary, Task, sweep
from lorewright.errors import ConfigError, DataError
from lorewright.knowledge.lesson import Lesson, LessonConfig
from lorewright.memory.verify import usual_metric
from lorewright.memory.write import lesson_for
from lorewright.merging.choosing import GRID, search
from lorewright.merging.methods import METHODS, Evidence
from lorewright.models.model import Model
from lorewright.recall.statistics import mean_interval, wilson
from lorewright.recall.verify import ask, known_beforehand, still_known
from lorewright.reports.figures.methods import arms_figure
from lorewright.reports.tables import Table
from lorewright.training.config import WriteConfig
from lorewright.training.rates import suggested_lr
from lorewright.training.watch import Watch
from lorewright.writers.gradient import Gradient
from lorewright.writers.writer import Material

FALSIFIER = 0.2
"""Share of its recall that neither source may lose."""
USUAL = (*dict.fromkeys(name for name, _ in GRID), "rewrite")
ALONE, OTHER, BASE = "alone", "the other memory", "base alone"
MEANING = (
    "recall: questions in wordings that were not trained; lost: of its recall alone, by the mean "
    "source and by the worse-off one of a pair; declined and retained: with the merged adapter. "
    "Intervals are 95 %, resampled by pair."
)


@dataclass(frozen=True, kw_only=True)
class Merging:
    """A sweep over pairs of memories."""

    model: str = "smollm2"
    """A base: a name that `lore models` lists, a folder, a .gguf file, or a name on the hub."""
    data: str
    """A file of sections, of which neighbours are merged."""
    pairs: int = 0
    """The first so many; 0 = as many as there are."""
    left_out: int = 4
    """The wording, from 1, of sections' facts that is probed and never written."""
    rank: int = 8
    """Of each memory; a merge has the sum of both."""
    methods: tuple[str, ...] = USUAL
    """Methods of `lore merge`."""
    epochs: int = WriteConfig().epochs
    """Longest that a write takes."""
    patience: int = 3
    """Epochs without another example recalled that end a write."""
    lr: float = 0.0
    """Peak rate; 0 = the one that suits the base."""
    seed: int = 0
    """Of the writes."""

    def __post_init__(self) -> None:
        """Refuse what is unknown or out of range."""
        if unknown := [name for name in self.methods if name not in METHODS]:
            raise ConfigError(
                f"method {unknown[0]!r} is unknown; use some of {', '.join(METHODS)}."
            )
        for name, least in {"pairs": 0, "left_out": 1, "rank": 1, "epochs": 1}.items():
            if vars(self)[name] < least:
                raise ConfigError(f"{name} is {vars(self)[name]}; give at least {least}.")


def quick(config: Merging) -> Merging:
    """Return a sweep of a minute that shows that everything works, and no result."""
    return replace(config, pairs=1, epochs=2, methods=("mean", "ties"))


def check(config: Merging) -> tuple[Case, ...]:
    """Read the documents; raises DataError for a file of another shape, or with fewer than two."""
    cases = cases_of(sets.located(config.data), config.left_out)
    if len(cases) < 2:
        raise DataError(f"{config.data} holds {len(cases)} document; a merge needs two.")
    return cases


def jobs(config: Merging, base_digest: str) -> list[dict[str, Any]]:
    """Return a job for every pair of neighbours; no document is in two."""
    cases = check(config)
    pairs = list(zip(cases[::2], cases[1::2], strict=False))[: config.pairs or None]
    shared = ("model", "left_out", "rank", "epochs", "patience", "lr", "seed")
    how = {key: vars(config)[key] for key in shared} | {"methods": list(config.methods)}
    how |= {"data": sets.located(config.data), "base": base_digest}
    return [how | {"pair": [case.document.id for case in pair]} for pair in pairs]


# -- one pair ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Source:
    case: Case
    adapter: Adapter
    lesson: Lesson


def task(job: dict[str, Any]) -> dict[str, Any]:
    """Write both documents of a pair, merge them by every method, and ask both."""
    model = exact.base_model(job["model"], job["base"])
    by_id = {case.document.id: case for case in cases_of(job["data"], job["left_out"])}
    sources = [_write(model, by_id[own], job, job["seed"] + n) for n, own in enumerate(job["pair"])]
    adapters = [source.adapter for source in sources]
    rows: list[dict[str, Any]] = []
    for n, source in enumerate(sources):
        rows += _asked(model, source.case, ALONE, source.adapter)
        rows += _asked(model, source.case, OTHER, adapters[1 - n])
        rows += _asked(model, source.case, BASE, None)
    evidence = Evidence.of(model, [source.lesson for source in sources])
    made: dict[str, dict[str, Any]] = {}
    for method, options in _best_options(adapters, evidence, job["methods"]).items():
        began = time.monotonic()
        adapter = METHODS[method](adapters, replace(evidence, options=options))
        about = {"options": dict(options), "rank": adapter.config.rank}
        made[method] = {**about, "seconds": round(time.monotonic() - began, 2)}
        for source in sources:
            rows += _asked(model, source.case, method, adapter)
    return {"rows": rows, "merges": made}


def _write(model: Model, case: Case, job: dict[str, Any], seed: int) -> _Source:
    knowledge = knowledge_of(case, max(map(len, case.facts)))
    settings = LessonConfig(views=("given",), seed=seed)
    lesson = lesson_for(model, knowledge, settings, probes=case.probes, watch=Watch())
    config = WriteConfig(
        lora=LoraConfig(job["rank"], seed=seed),
        lr=job["lr"] or suggested_lr(model),
        epochs=job["epochs"],
        patience=job["patience"],
        seed=seed,
    )
    material = Material(knowledge, lesson.examples, lesson.rehearsal)
    state, _ = Gradient(config).write(model, material, seed=seed, run=None, watch=Watch())
    return _Source(case, state.adapter, lesson)


def _best_options(
    adapters: Sequence[Adapter], evidence: Evidence, methods: Sequence[str]
) -> dict[str, Mapping[str, Any]]:
    """Of every method the options that retain most of the trained questions that were held back."""
    grid = [(name, options) for name, options in GRID if name in methods]
    several = [name for name in methods if sum(name == each for each, _ in grid) > 1]
    trials = [each for each in grid if each[0] in several]
    best: dict[str, tuple[tuple[Any, ...], Mapping[str, Any]]] = {}
    wide = sum(each.config.rank for each in adapters)
    for trial in search(adapters, evidence, trials) if trials else ():
        if trial.rank == wide and trial.merit > best.get(trial.method, ((-2.0,), {}))[0]:
            best[trial.method] = (trial.merit, trial.options)
    one = dict(grid)
    return {name: best[name][1] if name in best else one.get(name, {}) for name in methods}


def _asked(model: Model, case: Case, arm: str, adapter: Adapter | None) -> list[dict[str, Any]]:
    """What is recalled, declined and retained of a source, by its own probes."""
    outcomes = list(ask(model, case.probes, memory=adapter, metric=usual_metric(model)))
    if adapter is not None and arm != OTHER:
        general = known_beforehand(model, case.texts)
        outcomes += still_known(model, adapter, general)
    return [{"source": case.document.id, **row} for row in rows_of(arm, outcomes)]


# -- summary -------------------------------------------------------------------------------------


def summarise(config: Merging, done: Done) -> dict[str, Any]:
    """By method: recall, what is lost of it, and how often the falsifier holds."""
    arms = (ALONE, OTHER, BASE, *config.methods)
    shares = {arm: _shares(arm, [record for _, record in done]) for arm in arms}
    methods = {}
    for method in config.methods:
        losses = [losses_of(record["rows"], method) for _, record in done]
        counted_ = [each for each in losses if each]
        worst = [max(each) for each in counted_]
        seconds = [record["merges"][method]["seconds"] for _, record in done]
        methods[method] = {
            "lost": asdict(mean_interval([sum(each) / len(each) for each in counted_])),
            "worse_off": asdict(mean_interval(worst)),
            "falsified": wilson(sum(each > FALSIFIER for each in worst), len(worst)).to_json(),
            "seconds": sum(seconds) / len(seconds),
        }
    return {"shares": shares, "methods": methods, "n_pairs": len(done)}


def _shares(arm: str, records: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    kinds: dict[str, dict[str, dict[int, float]]] = {}
    for unit, record in enumerate(records):
        for n, row in enumerate(record["rows"]):
            if row["arm"] == arm and row["score"] is not None:
                kinds.setdefault(row["kind"], {}).setdefault(str(unit), {})[n] = row["score"]
    return {kind: asdict(estimated(items)) for kind, items in kinds.items()}


def losses_of(rows: Iterable[Mapping[str, Any]], method: str) -> list[float]:
    """1 - recall merged / recall alone, of each source that recalls anything alone."""
    recalled: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        if row["kind"] == "paraphrase" and row["arm"] in (ALONE, method):
            recalled.setdefault(row["source"], {}).setdefault(row["arm"], []).append(row["score"])
    both = [(sum(each[method]), sum(each[ALONE])) for each in recalled.values()]
    return [1 - merged / alone for merged, alone in both if alone]


def tables(summary: Summary) -> Iterator[Table]:
    """A row a method, the controls first."""
    config, kinds = summary["config"], ("paraphrase", "unknown", "retained")
    rows = []
    for arm, kind_shares in summary["shares"].items():
        cells = [spelt(kind_shares.get(kind)) for kind in kinds]
        about = summary["methods"].get(arm)
        if about is None:
            rows.append((arm, *cells, *[NOTHING] * 4))
            continue
        broken = about["falsified"]
        held = NOTHING
        if broken["n"]:
            held = f"{round(broken['recall'] * broken['n'])} of {broken['n']}"
        costs = (held, f"{about['seconds']:.0f}")
        rows.append((arm, *cells, spelt(about["lost"]), spelt(about["worse_off"]), *costs))
    head = ("method", "recall", "declined", "retained", "lost", "worse-off", "> 20 % lost", "s")
    name = config["data"].rpartition("/")[2]
    title = f"{counted(summary['n_pairs'], 'pair')} of {name} merged on {config['model']}"
    yield Table(title, head, tuple(rows), (MEANING,), n_keys=1, stacked=("measure", "mean"))


def figures(summary: Summary) -> Iterator[Figure]:
    """Recall and retained knowledge with every method, both sources alone beside them."""
    panels = {"questions in other words": "paraphrase", "general questions": "retained"}
    methods = tuple(summary["methods"])
    shares = {
        what: {arm: summary["shares"][arm].get(kind) for arm in (ALONE, *methods)}
        for what, kind in panels.items()
    }
    name = summary["config"]["data"].rpartition("/")[2]
    about = f"{counted(summary['n_pairs'], 'pair')} of {name}, {summary['config']['model']}"
    title = "What one adapter for two answers and retains"
    draw = functools.partial(arms_figure, own=methods, title=title)
    yield figure("merged", f"{title}.", draw, shares, about=about)


TASK = Task(
    "merging",
    Merging,
    quick,
    sweep("merging", jobs, task, summarise),
    tables,
    figures,
    check=check,
)
