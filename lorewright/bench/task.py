"""A benchmark as a whole: its settings, how it is run into a folder, how its summary is shown.

Most are sweeps: settings to jobs, jobs to records, records to a summary.

    OUT/config.json       which benchmark, with which settings, on which base, with which versions
    OUT/records/*.json    one file a job; what is there is not done again
    OUT/summary.json      everything that tables, figures and reports show, made from the records

Knows sweeps, folders and summaries; nothing of what is measured. A new benchmark is a module with a
`Task` and an entry in `TASKS`.
"""

from __future__ import annotations

import os
import platform
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from lorewright import __version__
from lorewright.bench import scale
from lorewright.errors import ConfigError, DataError
from lorewright.files import read_object, save_json
from lorewright.reports.page import Listing, Page, Part, Picture
from lorewright.reports.tables import Table
from lorewright.training.watch import Watch

CONFIG_FILE = "config.json"
SUMMARY_FILE = "summary.json"
RECORDS = "records"

Summary = Mapping[str, Any]
"""Plain JSON; ``bench`` names the task."""
Done = Sequence[tuple[dict[str, Any], dict[str, Any]]]
"""Jobs with their records."""


class Progress(NamedTuple):
    """Who hears of progress: of a sweep's jobs, or of a write's steps and epochs."""

    jobs: Callable[[scale.Step], None] = lambda step: None
    watch: Watch = Watch()


Run = Callable[[Any, Path, str, Progress], dict[str, Any]]
"""(settings, folder, where jobs run, progress) -> summary, stored in the folder as well."""


class Figure(NamedTuple):
    """A figure that can be drawn into a file."""

    name: str
    caption: str
    draw: Callable[..., None]
    """(path, dark=…) -> None."""


@dataclass(frozen=True)
class Task:
    """A benchmark."""

    name: str
    config: type[Any]
    """A frozen dataclass with a field ``model``; its fields are options of `lore bench NAME`."""
    quick: Callable[[Any], Any]
    """Settings to those of a minute, which show that everything works, and no result."""
    run: Run
    tables: Callable[[Summary], Iterable[Table]]
    figures: Callable[[Summary], Iterable[Figure]] = lambda summary: ()
    check: Callable[[Any], object] = lambda settings: None
    """Refuses data that cannot be read, before a model is loaded."""
    flags: Mapping[str, str] = field(default_factory=dict)
    """Options that are not called as their field: field to option."""
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """Fields that are no options, with their values."""
    spreads: bool = True
    """Whether its jobs may run in other processes (`--on`)."""


class Entry(NamedTuple):
    """Where a task is defined, and the help of its command; so that listing tasks imports none."""

    place: str
    """``module:NAME``."""
    help: str


TASKS = {
    "longcontext": Entry(
        "lorewright.bench.longcontext:TASK",
        """Recite long texts: the law of rank and length, first failures, methods, placements.

        [dim]lore bench longcontext --out lc --on local:2[/]
        [dim]lore bench longcontext --model Qwen/Qwen3-0.6B --lengths 500,2000 --ranks 1,4,16[/]
        """,
    ),
    "phonebook": Entry(
        "lorewright.bench.phonebook:TASK",
        """Remember numbers of ten digits: methods at the same budget, by rank, over several books.

        [dim]lore bench phonebook --out pb --on local:2[/]
        """,
    ),
    "linear-rule": Entry(
        "lorewright.bench.linear_rule:TASK",
        """Learn 3x + 5y + 7 from pairs: what is remembered, and what is generalised.

        [dim]lore bench linear-rule --out lr --on local:2[/]
        """,
    ),
    "sections": Entry(
        "lorewright.bench.sections:TASK",
        """Write sections of real manuals as facts or documents; ask in other words, without them.

        [dim]lore bench sections --data sections.json --out sec --on local:2[/]
        [dim]lore bench sections --data sections.json --source documents --model gemma3-270m[/]
        """,
    ),
    "recipes": Entry(
        "lorewright.bench.recipes:TASK",
        """Write facts by rank, layers, wordings, dropout and decay: what comes back, at what cost?

        [dim]lore bench recipes --data sections.json --ranks 4,16,64 --wordings 0,1,3[/]
        [dim]lore bench recipes --data memo.md --placements attention@early,mlp@late --equal[/]
        """,
    ),
    "merging": Entry(
        "lorewright.bench.merging:TASK",
        """Merge memories of documents in pairs by every method: does either lose a fifth?

        [dim]lore bench merging --data sections.json --out merge --on local:2[/]
        """,
    ),
    "memories": Entry(
        "lorewright.bench.memories:TASK",
        """Ask many memories without naming one: oracle, routed, wrong, merged, hybrid …

        [dim]lore bench memories --quick[/]
        [dim]lore bench memories --out mem --markdown[/]
        """,
    ),
    "methods": Entry(
        "lorewright.bench.methods:TASK",
        """Write the same facts in every way there is: recall by facts, bytes and seconds, controls.

        [dim]lore bench methods --quick[/]
        [dim]lore bench methods --facts 1,8,24 --questions 96 --out methods --on local:2[/]
        """,
    ),
    "routing": Entry(
        "lorewright.bench.routing:TASK",
        """Ask sections of real prose without naming one, in wordings that no key has.

        [dim]lore bench routing --data sections.json --general questions.txt[/]
        """,
    ),
    "counterfact": Entry(
        "lorewright.bench.counterfact:TASK",
        """Write false statements: are they believed, also reworded, and is all else left alone?

        [dim]lore bench counterfact --model smollm2[/]
        [dim]lore bench counterfact --data counterfact.json --model Qwen/Qwen3-0.6B[/]
        [dim]lore bench counterfact --data hub --edits 500 --together 10 --on local:2[/]
        """,
    ),
    "paperqa": Entry(
        "lorewright.bench.closedbook:PAPERQA",
        """Write papers as text, questions, summaries, rewrites or mixtures; ask without the paper.

        [dim]lore bench paperqa --data paperqa.json --model Qwen/Qwen3-0.6B[/]
        [dim]lore bench paperqa --data paperqa.json --format qa --format raw+qa --judge URL[/]
        """,
    ),
    "narrativeqa": Entry(
        "lorewright.bench.closedbook:NARRATIVEQA",
        """Write stories, or summaries of them; ask what happened without the story.

        [dim]lore bench narrativeqa --data hub --documents 40 --model Qwen/Qwen3-0.6B[/]
        [dim]lore bench narrativeqa --data test.jsonl --part text[/]
        """,
    ),
    "quality": Entry(
        "lorewright.bench.closedbook:QUALITY",
        """Write articles; choose among answers by their likelihood, and answer freely.

        [dim]lore bench quality --data QuALITY.v1.0.1.htmlstripped.dev --documents 20[/]
        """,
    ),
}


def load(name: str) -> Task:
    """Import a task. Raises ConfigError for a name that TASKS lacks."""
    if name not in TASKS:
        raise ConfigError(f"there is no benchmark {name!r}; choose one of {', '.join(TASKS)}.")
    module, _, attribute = TASKS[name].place.partition(":")
    task: Task = getattr(import_module(module), attribute)
    return task


def run(
    task: Task,
    settings: Any,
    out: Path,
    *,
    on: str = "here",
    progress: Progress = Progress(),  # noqa: B008 - immutable
) -> dict[str, Any]:
    """Do what is left of a benchmark in a folder, and return its summary, which is stored there."""
    return task.run(settings, out, on, progress)


# -- sweeps --------------------------------------------------------------------------------------


def sweep(
    name: str,
    jobs: Callable[[Any, str], list[dict[str, Any]]],
    do: scale.Do,
    summarise: Callable[[Any, Done], dict[str, Any]],
    complete: Callable[[Any, Done, Path], Done] = lambda settings, done, out: done,
) -> Run:
    """Return a `Run` that does what is left of a sweep and summarises its records.

    ``jobs`` turns settings and the base's digest into jobs, ``do`` a job into a record, both plain
    JSON; ``complete`` may add to the records in the end, such as a judge's scores. The run raises
    DataError when the folder holds another benchmark, and as `scale.run`.
    """

    def run_sweep(settings: Any, out: Path, on: str, progress: Progress) -> dict[str, Any]:
        from lorewright.models.model import Model

        # Jobs load the base themselves; held here as well, it would be in memory twice.
        base_digest = Model.load(settings.model).digest
        about = {
            "bench": name,
            "config": asdict(settings),
            "base": {"id": settings.model, "digest": base_digest},
            "command": shlex.join(["lore", *sys.argv[1:]]),
            "versions": versions(),
        }
        todo = jobs(settings, base_digest)  # refuses data that cannot be read; nothing is begun
        _begin(out, about)
        records = scale.run(do, todo, out / RECORDS, on=on, progress=progress.jobs)
        done = complete(settings, list(zip(todo, records, strict=True)), out)
        paths = {scale.record_path(out / RECORDS, do, job) for job in todo}
        runs = [read_object(path, scale.REMEDY).get("run", {}) for path in paths]
        seconds = round(sum(float(run.get("seconds", 0.0)) for run in runs), 1)
        summary = {**about, "n_jobs": len(todo), "seconds": seconds} | summarise(settings, done)
        save_json(summary, out / SUMMARY_FILE)
        return summary

    return run_sweep


def _begin(out: Path, about: Mapping[str, Any]) -> None:
    path = out / CONFIG_FILE
    if path.exists():
        before = read_object(path, "use another folder").get("bench")
        if before != about["bench"]:
            raise DataError(
                f"{out} holds a sweep of {before!r}; give {about['bench']} another folder."
            )
    elif out.is_dir() and any(out.iterdir()):
        raise DataError(f"{out} holds other files and no {CONFIG_FILE}; give an empty folder.")
    save_json(about, path)


def versions() -> dict[str, str]:
    """The versions and the machine that a result may depend on."""
    import torch

    packages = {name: version(name) for name in ("torch", "transformers", "numpy")}
    cores, capability = os.cpu_count(), torch.backends.cpu.get_cpu_capability()
    machine = f"{platform.machine()}, {cores} cores, {capability}"
    return {
        "lorewright": __version__,
        **packages,
        "python": platform.python_version(),
        "machine": machine,
    }


# -- the page ------------------------------------------------------------------------------------


def page(summary: Summary) -> Page:
    """The whole report of a sweep: tables, figures, command and versions."""
    task, base = load(summary["bench"]), summary["base"]
    about = f"{summary['n_jobs']} jobs on {base['id']} (digest {base['digest'][:12]}), "
    about += f"{summary['seconds']:.0f} seconds of work."
    drawn: list[Part] = []
    with tempfile.TemporaryDirectory() as folder:
        for figure in task.figures(summary):
            path = Path(folder) / f"{figure.name}.svg"
            figure.draw(path)
            drawn.append(Picture(figure.name, figure.caption, path.read_text(encoding="utf-8")))
    settings = tuple(f"{name} = {value}" for name, value in summary["config"].items())
    numbers = "  ".join(f"{name} {number}" for name, number in summary["versions"].items())
    made = Listing("How it was made", (f"$ {summary['command']}", "", *settings, "", numbers))
    return Page(f"lore bench {summary['bench']}", about, (*task.tables(summary), *drawn, made))
