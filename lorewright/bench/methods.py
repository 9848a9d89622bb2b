"""Benchmark `methods`: ways of writing beside each other, by how much there is to hold.

Some facts are a source; every way of writing writes it, and answers with nothing but the question
in the prompt. Who reads text gets the facts as prose, who trains the lesson, which the table says.

    own        the facts as they are
    shuffled   the same write with values moved among the questions: what a format earns, without
               the binding of value to question
    blank      a write of a page without facts, for who reads text; who trains has nothing to
               train then and is the base
    other      the facts' own write under the questions of another source
    untrained, plain start      for methods with a kit, see `kitted`

Beside recall stand the questions that are to be declined, what the base answers and still shall,
the seconds of the write and the bytes of the state. Every method is compared on the same questions
with the LoRA adapters nearest to it in bytes and in seconds. A method that needs a kit and has
none, and a write that comes to nothing, has a row that says so. What is written in milliseconds, by
a kit above all, is written of more sources than what trains.

Sources of one size share no fact, so that they are independent; intervals resample sources first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any

from lorewright.bench import cutting, exact, kitted, overwriting, reading
from lorewright.bench.sets import located
from lorewright.bench.sources import sources
from lorewright.bench.tables import NOTHING, counted, figure, spelt
from lorewright.bench.task import Done, Figure, Summary, Task, sweep
from lorewright.bench.written import (
    BLANK,
    OWN,
    PARTS,
    SHUFFLED,
    Spec,
    attempt,
    marked,
    sheet_of,
)
from lorewright.errors import ConfigError, DataError
from lorewright.models.model import Model
from lorewright.recall.statistics import clustered_interval, mcnemar, wilson
from lorewright.reports.tables import Table
from lorewright.training.config import WriteConfig
from lorewright.writers import queries
from lorewright.writers.methods import LEARNED, WRITERS, writer_of

LORA = "gradient"
BASE, FULL = "base", "text in the prompt"
"""Rows without a write: nothing known, and the source read with every question."""
USUAL: dict[str, tuple[str, ...]] = {
    LORA: (
        *("gradient@8", "gradient@64", "gradient@1", "gradient@1/down_proj"),
        *("gradient@8:1s", "gradient@8:0.1s"),
    ),
    "full": ("full@64",),
    "in-place": ("in-place@8",),
    "prompt": ("prompt@16",),
    "prefix": ("prefix@8",),
    "bottleneck": ("bottleneck@4",),
}
"""How a method is written where nobody says; LoRA at several budgets, as what is compared with.

Sizes are such that most have a LoRA row of about as many bytes.
"""
KITS = "kits"
"""Stands for every method with a kit, and the LoRA rows that are near to them."""
NEAR_KITS = ("gradient@8", "gradient@1", "gradient@8:0.1s")
"""Of about as many bytes as what a kit leaves, and of about as many seconds."""
WRITE, OVERWRITE, CUT, READ = "write", "overwrite", "cut", "read"
PART_NAMES = (WRITE, OVERWRITE, CUT, READ)
MEANING = (
    "recall: questions in a form that was not trained; as trained: in one that was; shuffled, "
    "blank, other: the controls (values moved among the facts, a page without facts, the questions "
    "of another source); declined: questions that the facts do not answer; retained: what the base "
    "answers. Nothing but the question is in the prompt. Intervals are 95 %, resampled by source."
)
COMPARED = (
    "like bytes, like seconds: recall less that of the LoRA row nearest in bytes or in seconds, "
    "and McNemar's p on the same questions, whose number stands behind it where it is less than n."
)


def usual_methods() -> tuple[str, ...]:
    """Every way of writing there is, and LoRA at several budgets first."""
    names = sorted(WRITERS, key=lambda name: name != LORA)
    return tuple(spec for name in names for spec in USUAL.get(name, (name,)))


@dataclass(frozen=True, kw_only=True)
class Methods:
    """A sweep over ways of writing."""

    model: str = "pocket"
    """A base: pocket, a folder, a .gguf file, or a name on the hub."""
    methods: tuple[str, ...] = ()
    """NAME, NAME@SIZE, NAME@RANK/TARGET, each with *FACTOR of the usual rate or :SECONDSs behind
    it; kits = all that need one, and LoRA near them; empty = every one there is, with LoRA at
    several budgets."""
    facts: tuple[int, ...] = (1, 2, 4, 8, 16, 24)
    """Facts of a source."""
    sources: int = 40
    """Sources of each size, at most."""
    questions: int = 960
    """Facts of each size in all, at most, two sources at least: large sources are fewer."""
    quick_sources: int = 40
    """Sources of each size for what is written at once, because it reads text."""
    quick_questions: int = 960
    """Facts of each size in all, at most, for these."""
    kits: tuple[str, ...] = ()
    """Files or folders of kits that have rows of their own beside the base's."""
    controls: tuple[str, ...] = (SHUFFLED, BLANK, *kitted.CONTROLS)
    """Writes beside the facts' own: shuffled, blank, and with a kit untrained, plain start."""
    control_facts: tuple[int, ...] = (1, 4)
    """Sizes of source at which the controls are written."""
    epochs: int = 40
    """Longest that a training takes."""
    seeds: int = 1
    """Writes of every source."""
    skip: int = 0
    """Facts of the file that are passed over, such as those that rates were chosen on."""
    parts: tuple[str, ...] = PART_NAMES
    """What is measured: write, the table; overwrite, X is A and then B; cut, recall by rank of the
    weight changes; read, with the source in the prompt."""
    overwrite_facts: int = 2
    """Facts of a source that is written twice."""
    cut: tuple[str, ...] = ("full@192", "gradient@8", "in-place@192")
    """Ways of writing whose weight changes are cut to every rank."""
    cut_facts: tuple[int, ...] = (1, 8, 24)
    """Facts of the sources that these are of."""
    read_facts: int = 24
    """Facts of a source that stays in the prompt."""
    read_steps: int = queries.STEPS
    """Spans that query projections are tuned on."""
    read_lr: float = queries.RATE
    """Rate of that tuning."""
    data: str = ""
    """A file of documents with facts, or of sections; empty = the packaged one."""

    def __post_init__(self) -> None:
        """Refuse what is unknown or out of range before anything is written."""
        for name in ("facts", "cut_facts"):
            if not vars(self)[name] or min(vars(self)[name]) < 1:
                raise ConfigError(f"{name} are {list(vars(self)[name])}; give numbers from 1.")
        for text in (*self.specs, *self.cut):
            Spec.of(text)
        if not self.parts or not {*self.parts} <= {*PART_NAMES}:
            raise ConfigError(f"parts are {list(self.parts)}; use some of {', '.join(PART_NAMES)}.")
        queries.Tuning(self.read_steps, lr=self.read_lr)  # checks them
        possible = (SHUFFLED, BLANK, *kitted.CONTROLS)
        if unknown := [name for name in self.controls if name not in possible]:
            raise ConfigError(
                f"control {unknown[0]!r} is unknown; use some of {', '.join(possible)}."
            )
        kitted.files_in(self.kits)
        least = {"sources": 1, "questions": 1, "epochs": 1, "seeds": 1, "skip": 0}
        least |= {"quick_sources": 1, "quick_questions": 1}
        least |= {"overwrite_facts": 1, "read_facts": 1}
        for name, lowest in least.items():
            if vars(self)[name] < lowest:
                raise ConfigError(f"{name} is {vars(self)[name]}; give at least {lowest}.")

    @property
    def specs(self) -> tuple[str, ...]:
        """The ways of writing, in the order of the table."""
        given = self.methods or usual_methods()
        if KITS not in given:
            return given
        wanted = (*(each for each in given if each != KITS), *LEARNED, *NEAR_KITS)
        return tuple(dict.fromkeys(wanted))

    def n_sources(self, n_facts: int) -> int:
        """Sources of a size: as many as are wanted, the questions allow and the file has."""
        allowed = max(2, -(-self.questions // n_facts))
        return min(self.sources, allowed, self._n_there(n_facts))

    def n_quick(self, n_facts: int) -> int:
        """Sources of a size for what is written at once."""
        allowed = min(self.quick_sources, -(-self.quick_questions // n_facts))
        return max(self.n_sources(n_facts), min(allowed, self._n_there(n_facts)))

    def _n_there(self, n_facts: int) -> int:
        data = located(self.data) if self.data else ""
        return len(sources(data, n_facts, self.skip))


def quick(config: Methods) -> Methods:
    """Return a sweep of a minute that shows that everything works, and no result."""
    return replace(
        config,
        facts=(2,),
        control_facts=(2,),
        cut_facts=(2,),
        overwrite_facts=2,
        read_facts=2,
        read_steps=2,
        cut=("gradient@8",),
        sources=2,
        quick_sources=2,
        epochs=3,
    )


def check(settings: Methods) -> None:
    """Read the facts; raises DataError for too few."""
    for n in sorted({n for part in settings.parts for n in SIZES[part](settings)}):
        if settings.n_sources(n) < 2:
            raise DataError(
                f"sources of {n} facts are wanted and the file has {settings.n_sources(n)} after "
                f"the first {settings.skip} facts; two are needed: give a larger file or fewer "
                "facts."
            )


def jobs(config: Methods, base_digest: str) -> list[dict[str, Any]]:
    """Return a job for every source, method, control and seed, and for what needs no write.

    All sizes go forward together, so that what an interrupted sweep has done is a smaller one.
    Writes with a kit do not depend on a seed.
    """
    check(config)
    how = {"model": config.model, "base": base_digest, "epochs": config.epochs}
    how |= {"data": located(config.data) if config.data else "", "skip": config.skip}
    return [
        how | {"part": part, "facts": n, "source": number, "seed": seed} | own
        for part in config.parts
        for n, number, own in _placed(config, part, base_digest)
        for seed in range(config.seeds)
        if seed == 0 or not (own.get("method") in (BASE, FULL) or "kit_id" in own)
    ]


def _placed(
    config: Methods, part: str, base_digest: str
) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """Size, number of a source and what distinguishes a job, all jobs of a source together."""
    rows = {n: list(ROWS[part](config, n, base_digest)) for n in SIZES[part](config)}
    most = {n: max((each for _, each in own), default=0) for n, own in rows.items()}
    places = sorted((k / m, size, k) for size, m in most.items() for k in range(m))
    for _, n, number in places:
        for own, n_sources in rows[n]:
            if number < n_sources:
                yield n, number, own


Own = Iterator[tuple[dict[str, Any], int]]
"""What distinguishes the jobs of one source, and how many sources have such a job."""


def _writes(config: Methods, n_facts: int, base_digest: str) -> Own:
    for method in (BASE, FULL):
        yield {"method": method, "control": OWN}, config.n_sources(n_facts)
    for method in config.specs:
        reads = writer_of(Spec.of(method).name, WriteConfig()).reads
        for how, n_sources, possible in _variants(config, method, n_facts, base_digest):
            yield {"method": method, "control": OWN} | how, n_sources
            for control in config.controls if n_facts in config.control_facts else ():
                if control in possible and (control != BLANK or reads == "text"):
                    yield {"method": method, "control": control} | how, n_sources


def _variants(
    config: Methods, method: str, n_facts: int, base_digest: str
) -> Iterator[tuple[dict[str, Any], int, tuple[str, ...]]]:
    """What a method is written with, of how many sources, and the controls it may have.

    Without a kit, where one is needed, a single write says so.
    """
    spec = Spec.of(method)
    writer = writer_of(spec.name, WriteConfig())
    if writer.trained_offline:
        own = kitted.kits_of(spec.name, base_digest, config.kits)
        for kit in own:
            controls = kitted.CONTROLS if kit.starts else (kitted.UNTRAINED,)
            yield dict(kit.job), config.n_quick(n_facts), (SHUFFLED, BLANK, *controls)
        if not own:
            yield {}, 1, ()
        return
    quick = writer.reads == "text"
    n_sources = config.n_quick(n_facts) if quick else config.n_sources(n_facts)
    yield {}, n_sources, (SHUFFLED, BLANK)


def _overwrites(config: Methods, n_facts: int, base_digest: str) -> Own:
    for method in config.specs:
        if Spec.of(method).seconds is None:
            for how, n_sources, _ in _variants(config, method, n_facts, base_digest):
                for way in overwriting.ways_of(method):
                    yield {"method": method, "way": way} | how, n_sources


def _cuts(config: Methods, n_facts: int, base_digest: str) -> Own:
    for method in config.cut:
        yield {"method": method}, config.n_sources(n_facts)


def _reads(config: Methods, n_facts: int, base_digest: str) -> Own:
    yield {"steps": config.read_steps, "lr": config.read_lr}, config.n_sources(n_facts)


SIZES: dict[str, Callable[[Methods], Sequence[int]]] = {
    WRITE: lambda config: config.facts,
    OVERWRITE: lambda config: (config.overwrite_facts,),
    CUT: lambda config: config.cut_facts,
    READ: lambda config: (config.read_facts,),
}
ROWS: dict[str, Callable[[Methods, int, str], Own]] = {
    WRITE: _writes,
    OVERWRITE: _overwrites,
    CUT: _cuts,
    READ: _reads,
}
ATTEMPTS: dict[str, Callable[[Model, Mapping[str, Any]], dict[str, Any]]] = {
    WRITE: attempt,
    OVERWRITE: overwriting.attempt,
    CUT: cutting.attempt,
    READ: reading.attempt,
}
"""By part: sizes of sources, jobs of one, and a job to its record."""


def task(job: dict[str, Any]) -> dict[str, Any]:
    """Do a job of any part; a write that comes to nothing is a record, too."""
    model = exact.base_model(job["model"], job["base"])
    if job.get("method") in (BASE, FULL):
        return _unwritten(model, job)
    return ATTEMPTS[job["part"]](model, job)


def _unwritten(model: Model, job: Mapping[str, Any]) -> dict[str, Any]:
    """The base's answers, with nothing or with the source before the question."""
    where = (job["data"], job["facts"], job["source"], job["skip"])
    text = sources(job["data"], job["facts"], job["skip"])[job["source"]].text
    before = text if job["method"] == FULL else ""
    return {"bytes": None, "seconds": None, **marked(model, sheet_of(model, *where), None, before)}


# -- summary -------------------------------------------------------------------------------------

Pairs = Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]


def summarise(config: Methods, done: Done) -> dict[str, Any]:
    """An entry for every method, number of facts and control; none is left out."""
    by_part: dict[str, Done] = {
        part: [pair for pair in done if pair[0]["part"] == part] for part in config.parts
    }
    groups = grouped(by_part.get(WRITE, ()), "method", "facts", "control")
    entries = []
    for (method, n, control), own in groups.items():
        entry: dict[str, Any] = {"method": method, "facts": n, "control": control}
        about = _about(own[0][0])
        entries.append(entry | about | measured([record for _, record in own]))
    for entry in entries:
        if entry["control"] == OWN and entry["method"] not in (BASE, FULL):
            entry["compared"] = _compared(entry, entries, groups)
    twice = grouped(by_part.get(OVERWRITE, ()), "method", "way")
    cut = grouped(by_part.get(CUT, ()), "method", "facts")
    return {
        "entries": entries,
        OVERWRITE: [
            overwriting.entry_of(method, way, [record for _, record in own], share)
            for (method, way), own in twice.items()
        ],
        CUT: [
            entry
            for (method, n), own in cut.items()
            for entry in cutting.entries_of(method, n, [record for _, record in own], share)
        ],
        READ: _read_entries(by_part.get(READ, ())),
        "n_failed": sum("failed" in record for _, record in done),
    }


def grouped(done: Done, *keys: str) -> dict[tuple[Any, ...], Pairs]:
    """Jobs with their records by some fields of the job, in order of appearance.

    A method is named with its kit, where one was given.
    """
    groups: dict[tuple[Any, ...], list[tuple[dict[str, Any], dict[str, Any]]]] = {}
    for job, record in done:
        named = {**job, "method": kitted.row_of(job)} if "method" in job else job
        groups.setdefault(tuple(named[key] for key in keys), []).append((job, record))
    return {key: tuple(own) for key, own in groups.items()}


def _read_entries(done: Done) -> list[dict[str, Any]]:
    """An entry for every reading, compared with reading plainly and with the memory alone."""
    entries = []
    for (n_facts,), own in grouped(done, "facts").items():
        by_name = {
            name: [(job, {"held": record[name]}) for job, record in own]
            for name in reading.READINGS
        }
        for name, pairs in by_name.items():
            compared = {
                other: against(pairs, by_name[other])
                for other in (reading.PLAIN, reading.MEMORY)
                if other != name
            }
            shared = {"reading": name, "facts": n_facts, "compared": compared}
            entries.append(shared | {"held": share([record["held"] for _, record in pairs])})
    return entries


def _about(job: Mapping[str, Any]) -> dict[str, Any]:
    """What a job's method reads and leaves, whether that merges and exports, and its kit."""
    method = job["method"]
    if method in (BASE, FULL):
        return {"reads": NOTHING if method == BASE else "text", "leaves": NOTHING, "merges": False}
    writer = writer_of(Spec.of(method).name, WriteConfig())
    about = {"reads": writer.reads, "leaves": writer.leaves, "merges": writer.exports}
    return about | {"kit": writer.trained_offline, "kit_id": job.get("kit_id")}


def measured(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Shares with intervals, the medians of what a write takes, and why some came to nothing."""
    whole = [record for record in records if "failed" not in record]
    shares = {part: share([record.get(part, ()) for record in whole]) for part in PARTS}
    medians = {
        key: median(values) if (values := [r[key] for r in whole if r[key] is not None]) else None
        for key in ("seconds", "bytes")
    }
    why = sorted({record["failed"] for record in records if "failed" in record})
    failed = {"n_writes": len(records), "n_failed": len(records) - len(whole), "why": why}
    return {**failed, **shares, **medians}


def share(clusters: Sequence[Sequence[float]]) -> dict[str, Any]:
    """A share over sources: resampled by source, or Wilson's where all answers are alike.

    Resampling would say nothing there.
    """
    flat = [score for cluster in clusters for score in cluster]
    if len(set(flat)) == 1 and flat[0] in (0.0, 1.0):
        return asdict(wilson(int(sum(flat)), len(flat)))
    return asdict(clustered_interval([cluster for cluster in clusters if cluster]))


def _compared(
    entry: Mapping[str, Any],
    entries: Sequence[Mapping[str, Any]],
    groups: Mapping[tuple[Any, ...], Pairs],
) -> dict[str, Any]:
    """The LoRA rows nearest in bytes and in seconds, and McNemar's test against each."""
    n = entry["facts"]
    rivals = [
        each
        for each in entries
        if each["facts"] == n and each["control"] == OWN and each["method"] != entry["method"]
        if each["method"].startswith(LORA) and each["seconds"] is not None
    ]
    against_lora = {}
    for key in ("bytes", "seconds"):
        own = entry[key]
        if not own or not rivals:
            continue
        rival = min(rivals, key=lambda each: abs(math.log(max(each[key], 1e-3) / max(own, 1e-3))))
        pair = (groups[name, n, OWN] for name in (entry["method"], rival["method"]))
        against_lora[key] = {"with": rival["method"], key: rival[key], **against(*pair)}
    return against_lora


def against(own: Pairs, other: Pairs) -> dict[str, Any]:
    """McNemar's test on the questions that both answered, each question of each write once."""
    first, second = _right(own), _right(other)
    both = first.keys() & second.keys()
    gained = sum(first[key] > second[key] for key in both)
    lost = sum(second[key] > first[key] for key in both)
    mean = (gained - lost) / len(both) if both else None
    counts = {"gained": gained, "lost": lost, "n": len(both), "difference": mean}
    return {**counts, "p": mcnemar(gained, lost)}


def _right(pairs: Pairs) -> dict[tuple[int, int, int], float]:
    return {
        (job["source"], job["seed"], i): score
        for job, record in pairs
        for i, score in enumerate(record.get("held", ()))
    }


# -- tables and figures --------------------------------------------------------------------------


def tables(summary: Summary) -> Iterator[Table]:
    """Recall by facts in one; a table for every number of facts; then those of the other parts."""
    entries, config = summary["entries"], summary["config"]
    if entries:
        yield _overview(summary)
        if any(entry["control"] in kitted.CONTROLS for entry in entries):
            yield kitted.controls_table(entries, config["controls"])
        if spread := kitted.spread_table(entries, config["facts"]):
            yield spread
        for n in config["facts"]:
            yield _table(summary, [entry for entry in entries if entry["facts"] == n], n)
    if summary[OVERWRITE]:
        yield overwriting.table(summary[OVERWRITE], config["overwrite_facts"])
    if summary[CUT]:
        yield cutting.table(summary[CUT])
    if summary[READ]:
        yield reading.table(summary[READ])


def _table(summary: Summary, entries: Sequence[Mapping[str, Any]], n_facts: int) -> Table:
    own = [entry for entry in entries if entry["control"] == OWN]
    by_control = {(entry["method"], entry["control"]): entry for entry in entries}
    rows = []
    for entry in own:
        method = entry["method"]
        shuffled, blank = (by_control.get((method, name)) for name in (SHUFFLED, BLANK))
        rows.append(
            (
                *(method, entry["reads"], str(entry["held"]["n"])),
                *(spelt(entry[part]) for part in ("held", "trained")),
                *(spelt(each and each["held"]) for each in (shuffled, blank)),
                *(spelt(entry[part]) for part in ("other", "declined", "retained")),
                *(_spent(entry, "seconds", 1), _spent(entry, "bytes", 1000)),
                *(_against(entry, key, entry["held"]["n"]) for key in ("bytes", "seconds")),
            )
        )
    head = (
        *("method", "reads", "n", "recall", "as trained", SHUFFLED, BLANK, "other", "declined"),
        *("retained", "seconds", "kB", "like bytes", "like seconds"),
    )
    n_sources = max(entry["n_writes"] for entry in own)
    title = f"{counted(n_facts, 'fact')}, {n_sources} sources, on {summary['config']['model']}"
    notes = (MEANING, COMPARED, *_missing(entries))
    return Table(title, head, tuple(rows), notes, n_keys=3, stacked=("", "share"))


def _spent(entry: Mapping[str, Any], key: str, unit: float) -> str:
    """Seconds, or bytes in thousands, to three digits."""
    value = entry[key]
    return (
        NOTHING
        if value is None
        else f"{value / unit:.3g}"
        if value < 1e6
        else f"{value / unit:.0f}"
    )


def _against(entry: Mapping[str, Any], key: str, n: int) -> str:
    rival = entry.get("compared", {}).get(key)
    if not rival or rival["difference"] is None:
        return NOTHING
    fewer = f" n={rival['n']}" if rival["n"] < n else ""
    return f"{rival['difference']:+.2f}, p {rival['p']:.2g} ({rival['with']}){fewer}"


def _missing(entries: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for entry in entries:
        if entry["n_failed"]:
            what = f"{entry['method']}, {entry['control']}"
            yield (
                f"{what}: {entry['n_failed']} of {entry['n_writes']} writes came to nothing and "
                f"are left out. {entry['why'][0]}"
            )


def _overview(summary: Summary) -> Table:
    """Recall of every method by the number of facts."""
    sizes = summary["config"]["facts"]
    own = [entry for entry in summary["entries"] if entry["control"] == OWN]
    names = list(dict.fromkeys(entry["method"] for entry in own))
    by_size = {(entry["method"], entry["facts"]): entry for entry in own}
    rows = []
    for name in names:
        cells = [by_size.get((name, n)) for n in sizes]
        first = next(each for each in cells if each)
        spent = (_spent(each, "bytes", 1000) for each in cells[-1:] if each)
        rows.append((name, first["reads"], *(spelt(e and e["held"]) for e in cells), *spent))
    n = ", ".join(
        f"{size}: {max(e['held']['n'] for e in own if e['facts'] == size)}" for size in sizes
    )
    head = ("method", "reads", *(f"{n}" for n in sizes), "kB")
    trained = [e for e in own if e["method"] not in (BASE, FULL) and e["reads"] == "lesson"]
    fewer = ", ".join(
        f"{size}: {max((e['held']['n'] for e in trained if e['facts'] == size), default=0)}"
        for size in sizes
    )
    notes = [f"Questions by number of facts: {n}. Intervals are 95 %, resampled by source."]
    if trained and fewer != n:
        notes.append(f"Those of what trains on a lesson: {fewer}.")
    notes += [*kitted.identities(own), *dict.fromkeys(_missing(own))]
    return Table(
        *("Recall by the number of facts", head, tuple(rows), tuple(notes)),
        n_keys=2,
        stacked=("facts", ""),
    )


def figures(summary: Summary) -> Iterator[Figure]:
    """Recall by facts, by bytes and by seconds; recall by rank of the weight changes."""
    from lorewright.reports.figures.writers import rank_figure, recall_figure

    base = summary["base"]["id"]
    about = f"{base}; the question alone in the prompt; intervals: 95 %, resampled by source"
    own = [e for e in summary["entries"] if e["control"] == OWN and e["held"]["mean"] is not None]
    if own:
        shown = [{**entry, "recall": entry["held"]} for entry in own]
        caption = "Recall in forms that were not trained, by facts, bytes of the state and seconds."
        yield figure("recall", caption, recall_figure, shown, about=about)
    if cut := [entry for entry in summary[CUT] if "rank" in entry]:
        caption = "Recall and the share of the norm by the rank that weight changes are cut to."
        yield figure("ranks", caption, rank_figure, cut, about=about)


TASK = Task(
    "methods",
    Methods,
    quick,
    sweep("methods", jobs, task, summarise),
    tables,
    figures,
    check=check,
    flags={"methods": "--method", "controls": "--control", "parts": "--part", "kits": "--kit"},
)
