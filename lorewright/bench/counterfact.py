"""CounterFact: false statements are written; are they believed, also reworded, and nothing else?

    efficacy       as trained: the statement's own beginning
    paraphrase     the same in other words, never trained
    neighbourhood  other subjects, of which the true object holds and must go on holding

A prompt is a success when the new object is likelier than the true one (for neighbours: the other
way round), by the mean loss per token of the object; magnitude is the difference of exp(-loss). The
score S is the harmonic mean of the three shares. All that is preference between two, and can be
perfect where nothing is recalled; so free-running greedy replies are scored beside it. Every edit
counts alike.

An edit has a memory of its own, or ``together`` edits share one. No memory is edited twice.

Papers: ROME (Meng et al. 2022), whose definitions these are, as its released code computes them.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from lorewright.bench import arms, exact, sets
from lorewright.bench.tables import HEAD, MEANING, NOTHING, arm_cells, counted, figure, spelt
from lorewright.bench.task import Done, Figure, Summary, Task, sweep
from lorewright.errors import ConfigError, DataError
from lorewright.knowledge.data import Example, Fact, Knowledge, Probe
from lorewright.knowledge.lesson import LessonConfig
from lorewright.knowledge.scoring import contains, exact_match
from lorewright.memory.write import lesson_for
from lorewright.models.model import Model
from lorewright.recall.statistics import Estimate
from lorewright.recall.traces import trace
from lorewright.reports.figures.methods import arms_figure
from lorewright.reports.tables import Table
from lorewright.training.config import Diverged, Job
from lorewright.training.loop import write_all
from lorewright.training.watch import Watch

KINDS = ("efficacy", "paraphrase", "neighbourhood")
STACK = 8
"""Edits of a job, so that memories of one edit are written together."""
REPLY_TOKENS = 16
"""Longest free-running reply; objects are short, and a base without a template never stops."""
N_DRAWS = 2000


@dataclass(frozen=True)
class CounterFact(exact.Recipe):
    """A sweep over edits."""

    data: str = ""
    """A file, or hub, hub:NAME, hub:NAME@SPLIT; empty = 80 packaged statements of our own."""
    edits: int = 100
    """The first so many; 0 = all."""
    together: int = 1
    """Edits in one memory."""
    negatives: float = 2.0
    """Questions to decline or to answer as the base does, by fact written; as `lore write` has."""
    ranks: tuple[int, ...] = (8,)
    """Ranks of the adapters."""
    seeds: int = 3
    """Writes of every memory."""
    method: str = "sft"
    """sft, threshold, window, curriculum, window+curriculum."""

    def __post_init__(self) -> None:
        """Refuse unknown methods and numbers out of range."""
        exact.settings(self.ranks, (self.method,), (0,))
        LessonConfig(negatives=self.negatives)
        for name, bound in {"together": 1, "seeds": 1, "edits": 0}.items():
            if vars(self)[name] < bound:
                raise ConfigError(f"{name} is {vars(self)[name]}; give at least {bound}.")


def quick(config: CounterFact) -> CounterFact:
    """Return a sweep of a minute that shows that everything works, and no result."""
    return replace(config, edits=min(config.edits or 4, 4), seeds=2, epochs=min(config.epochs, 10))


def jobs(config: CounterFact, base_digest: str) -> list[dict[str, Any]]:
    """Return jobs of several memories each, so that every one has another to be compared with."""
    memories = _memories(check(config)[: config.edits or None], config.together)
    size = max(2, STACK // config.together)
    return sets.jobs(config, base_digest, memories, counted="edits", called="memories", size=size)


def _memories(edits: Sequence[sets.Edit], together: int) -> list[list[sets.Edit]]:
    return [list(edits[start : start + together]) for start in range(0, len(edits), together)]


def task(job: dict[str, Any]) -> dict[str, Any]:
    """Write the memories of a job; put every prompt to its memory, to the next, and to the base."""
    model = exact.base_model(job["model"], job["base"])
    every = _memories(sets.edits(job["data"], job["edits"]), job["together"])
    memories: list[list[sets.Edit]] = sets.units_of(job, every, "memories")
    examples = [_examples(model, own, job["negatives"]) for own in memories]
    alone = [put(model, own) for own in memories]
    rows = []
    for own, replies in zip(memories, alone, strict=True):
        rows += _rows(own, replies, replies, {"arm": "base", "format": "", "rank": 0, "seed": 0})
        rows += _full_rows(model, own, replies)
    for setting in exact.settings(job["ranks"], (job["method"],), range(job["seeds"])):
        config = exact.config_of(model, job, setting)
        about = {"format": "", "rank": setting.rank, "seed": setting.seed}
        written = write_all(model, [Job(own, config) for own in examples])
        n = len(written)
        for i, (own, replies) in enumerate(zip(memories, alone, strict=True)):
            for arm, which in (("memory", i), *([("wrong", (i + 1) % n)] if n > 1 else [])):
                made = written[which]
                if isinstance(made, Diverged):
                    rows += [about | {"arm": arm, "unit": e.id, "why": made.why} for e in own]
                    continue
                with model.using(made.adapter):
                    rows += _rows(own, put(model, own), replies, about | {"arm": arm})
    kinds = {edit.id: _kinds(edit) for own in memories for edit in own}
    return {"kinds": kinds, "rows": rows}


def _examples(model: Model, edits: Sequence[sets.Edit], negatives: float) -> list[Example]:
    """What a memory of the edits is trained on: as `lore write` does with facts."""
    facts = tuple(Fact(edit.id, edit.prompt, edit.new) for edit in edits)
    held = [
        Probe(f"{edit.id}-{n}", prompt, (edit.new,), "paraphrase", edit.id)
        for edit in edits
        for n, prompt in enumerate((*edit.paraphrases, *edit.neighbours))
    ]
    config = LessonConfig(negatives=negatives)
    lesson = lesson_for(model, Knowledge(facts=facts), config, probes=held, watch=Watch())
    return [*lesson.examples, *lesson.rehearsal]


# -- prompts and their scores --------------------------------------------------------------------


@dataclass(frozen=True)
class Reply:
    """What one prompt came to."""

    new_nats: float
    """Mean loss per token of the new object."""
    true_nats: float
    reply: str


def prompts(edit: sets.Edit) -> list[str]:
    """Return all prompts of an edit; `_kinds` says what each is."""
    return [edit.prompt, *edit.paraphrases, *edit.neighbours]


def _kinds(edit: sets.Edit) -> list[str]:
    counts = (1, len(edit.paraphrases), len(edit.neighbours))
    return [kind for kind, n in zip(KINDS, counts, strict=True) for _ in range(n)]


def put(model: Model, edits: Sequence[sets.Edit], *, before: str = "") -> list[list[Reply]]:
    """Put every prompt of the edits to whoever is attached; ``before`` stands before each."""
    flat = [(edit, prompt) for edit in edits for prompt in prompts(edit)]
    texts = [f"{before}\n\n{prompt}" if before else prompt for _, prompt in flat]
    replies = model.generate(texts, max_new_tokens=REPLY_TOKENS)
    new = object_nats(model, texts, [edit.new for edit, _ in flat])
    true = object_nats(model, texts, [edit.true for edit, _ in flat])
    outcomes = iter([Reply(*each) for each in zip(new, true, replies, strict=True)])
    return [list(itertools.islice(outcomes, len(prompts(edit)))) for edit in edits]


def object_nats(model: Model, texts: Sequence[str], objects: Sequence[str]) -> list[float]:
    """Return each object's mean loss per token after its text; the stop token is left out."""
    rows = [model.render(text, name) for text, name in zip(texts, objects, strict=True)]
    return [exact.nats([each]) for each in trace(model, rows)]


def scored(
    edit: sets.Edit, outcomes: Sequence[Reply], alone: Sequence[Reply]
) -> dict[str, list[Any]]:
    """Return the scores of all prompts of an edit; ``alone`` holds the base's replies."""
    scores: dict[str, list[Any]] = {name: [] for name in METRICS}
    for kind, now, before in zip(_kinds(edit), outcomes, alone, strict=True):
        stays = kind == "neighbourhood"
        gain = math.exp(-now.new_nats) - math.exp(-now.true_nats)
        wanted = edit.true if stays else edit.new
        better = now.true_nats < now.new_nats if stays else now.new_nats < now.true_nats
        scores["success"].append(float(better))
        scores["magnitude"].append(round(-gain if stays else gain, 6))
        scores["exact reply"].append(exact_match(now.reply, (wanted,)))
        scores["reply holds it"].append(contains(now.reply, (wanted,)))
        scores["reply as the base's"].append(float(now.reply == before.reply) if stays else None)
    return scores


def _full_rows(
    model: Model, edits: Sequence[sets.Edit], alone: Sequence[Sequence[Reply]]
) -> list[dict[str, Any]]:
    """What the base says with all of a memory's statements in its prompt, if they fit."""
    about = {"arm": "full", "format": "", "rank": 0, "seed": 0}
    try:
        outcomes = put(model, edits, before=" ".join(f"{e.prompt} {e.new}." for e in edits))
    except DataError as error:
        return [{**about, "unit": edit.id, "why": str(error)} for edit in edits]
    return _rows(edits, outcomes, alone, about)


def _rows(
    edits: Sequence[sets.Edit],
    outcomes: Sequence[Sequence[Reply]],
    alone: Sequence[Sequence[Reply]],
    about: Mapping[str, Any],
) -> list[dict[str, Any]]:
    return [
        {**about, "unit": edit.id, "scores": scored(edit, own, base)}
        | {"told": [asdict(each) for each in own]}
        for edit, own, base in zip(edits, outcomes, alone, strict=True)
    ]


# -- the summary ---------------------------------------------------------------------------------


def harmonic(shares: Sequence[float]) -> float:
    """Return the harmonic mean; 0 where any share is 0."""
    return len(shares) / sum(1 / share for share in shares) if all(shares) else 0.0


def score(table: arms.Table, arm: str, setting: tuple[str, int]) -> dict[str, Any]:
    """Return S of an arm with its interval: edits are resampled with all their prompts.

    Where a share is alike for all edits, resampling says too little: S of the shares' bounds.
    """
    shares = [arms.by_unit(table.items(arm, "success", kind, setting)) for kind in KINDS]
    units = sorted(set.intersection(*(set(own) for own in shares)))
    if not units:
        return {"n": 0, "mean": None, "low": None, "high": None}
    share_KU = np.array([[own[unit][0] for unit in units] for own in shares])
    mean = harmonic(share_KU.mean(axis=1).tolist())
    same = [len(set(share_U.tolist())) == 1 for share_U in share_KU]
    if any(same):
        estimates = [arms.estimated(own) for own in shares]
        low, high = (harmonic([b or 0.0 for b in ends]) for ends in _ends(estimates))
        return {"n": len(units), "mean": mean, "low": min(mean, low), "high": max(mean, high)}
    drawn_DU = np.random.default_rng(0).integers(len(units), size=(N_DRAWS, len(units)))
    draws = [harmonic(row) for row in share_KU[:, drawn_DU].mean(axis=2).T.tolist()]
    low, high = map(float, np.quantile(draws, [0.025, 0.975]))
    return {"n": len(units), "mean": mean, "low": min(mean, low), "high": max(mean, high)}


def _ends(estimates: Sequence[Estimate]) -> tuple[list[float | None], list[float | None]]:
    return [each.low for each in estimates], [each.high for each in estimates]


def summarise(config: CounterFact, done: Done) -> dict[str, Any]:
    """Return every score by kind and arm, S by arm, and what is missing."""
    table = arms.table_of(record for _, record in done)
    rows = [row for _, record in done for row in record["rows"]]
    return {
        "arms": [
            entry
            for entry in arms.compared(table, each_unit_alike=METRICS)
            if entry["kind"] != arms.ALL  # neighbours are to stay: no mean with what is to change
        ],
        "score": [
            {
                "format": setting[0],
                "rank": setting[1],
                "arms": {arm: score(table, arm, setting) for arm in arms.ARMS},
            }
            for setting in table.settings
        ],
        "n_edits": len(table.kinds),
        "n_prompts": {kind: sum(own.count(kind) for own in table.kinds.values()) for kind in KINDS},
        "n_without_full": sum("why" in row and row["arm"] == "full" for row in rows),
        "n_diverged": sum("why" in row and row["arm"] == "memory" for row in rows),
    }


METRICS = ("success", "magnitude", "exact reply", "reply holds it", "reply as the base's")
# -- how it is shown -----------------------------------------------------------------------------


def tables(summary: Summary) -> Iterator[Table]:
    """Yield the shares by kind of prompt, and S."""
    config, rows = summary["config"], []
    for entry in summary["arms"]:
        rows.append((str(entry["rank"]), entry["kind"], entry["metric"], *arm_cells(entry)))
    for entry in summary["score"]:
        by_arm = entry["arms"]
        n = str(by_arm["memory"]["n"])
        cells = (n, *(spelt(by_arm[arm]) for arm in arms.ARMS), NOTHING, NOTHING)
        rows.append((str(entry["rank"]), arms.ALL, "score S", *cells))
    together = config["together"]
    packaged = config["data"] == sets.PACKAGED
    name = "Packaged statements" if packaged else "CounterFact"
    title = f"{name}: {counted(summary['n_edits'], 'edit')}, {together} in a memory, "
    title += counted(config["seeds"], "seed")
    prompts = ", ".join(f"{n} {kind}" for kind, n in summary["n_prompts"].items())
    notes = [
        f"Prompts: {prompts}. Every edit counts alike; n is edits.",
        "Success: the new object likelier than the true one; for neighbours the other way round. "
        "Magnitude: difference of exp(-mean loss per token). S: harmonic mean of the successes. "
        "Replies: greedy; for neighbours the true object is right.",
        f"{MEANING} 95 % intervals: Wilson's, or bootstrap over edits.",
    ]
    if packaged:
        notes.append("Statements of our own in CounterFact's shape, not CounterFact's.")
    head, notes = ("rank", "prompts", "metric", *HEAD), [*notes, *_lost(summary)]
    yield Table(title, head, tuple(rows), tuple(notes), n_keys=4, stacked=("arm", "mean"))


def _lost(summary: Mapping[str, Any]) -> list[str]:
    notes = []
    if summary["n_without_full"]:
        n = summary["n_without_full"]
        notes.append(
            f"The statements of {n} edits do not fit into the prompt: full leaves them out."
        )
    if summary["n_diverged"]:
        notes.append(f"{summary['n_diverged']} writes of edits diverged and are left out.")
    return notes


def check(config: CounterFact) -> Sequence[sets.Edit]:
    """Read the edits. Raises as `sets.edits`."""
    return sets.edits(sets.located(config.data), sets.limit_of(config.data, config.edits))


def figures(summary: Summary) -> Iterator[Figure]:
    """The successes of every kind of prompt, an arm beside the other, at the largest rank."""
    rank = max(entry["rank"] for entry in summary["arms"])
    shares = {
        entry["kind"]: entry["arms"]
        for entry in summary["arms"]
        if (entry["metric"], entry["rank"]) == ("success", rank)
    }
    config = summary["config"]
    about = f"{counted(summary['n_edits'], 'edit')}, rank {rank}, {config['model']}"
    title = "What is believed, and what is left alone"
    draw = functools.partial(arms_figure, own=("memory",), title=title)
    yield figure("successes", f"{title}: successes by kind of prompt.", draw, shares, about=about)


TASK = Task(
    "counterfact",
    CounterFact,
    quick,
    sweep("counterfact", jobs, task, summarise),
    tables,
    figures,
    check=check,
    flags={"method": "--objective"},
)
