"""Studies, run into a folder and shown as pages: a question, its benchmarks, the paper beside it.

    OUT/NAME/PART/      the sweep of one benchmark, which resumes
    OUT/NAME/study.json what was measured, without its rows: enough to draw the page anew
    OUT/NAME.md         the page, its figures beside it
    OUT/index.md        every page by its sentence

Knows studies and sweeps; nothing of models.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from lorewright.bench import task as tasks
from lorewright.bench.studies import STUDIES, Part, Study
from lorewright.bench.task import Progress, Task
from lorewright.errors import DataError
from lorewright.files import read_object, save_json, store
from lorewright.knowledge.examples import EXAMPLES
from lorewright.reports.page import Listing, Page, Picture
from lorewright.reports.page import Part as PagePart
from lorewright.reports.tables import Table

STUDY_FILE = "study.json"
QUICK = "A quick run: it shows that everything works, and is no result."
MEMO = "kestrel.md"


def missing(name: str, data: Path | None) -> list[str]:
    """The files that a study reads and the data's folder does not have."""
    wanted = {part.data for part in STUDIES[name].parts.values() if part.data}
    return sorted(file for file in wanted if data is None or not (data / file).is_file())


def settings_of(part: Part, task: Task, model: str, data: Path | None, quick: bool) -> Any:
    """The settings of a part's benchmark. Raises DataError for a file that is not there."""
    given: dict[str, Any] = {"model": model, **part.settings, **dict(task.fixed)}
    if part.data is not None:
        path = EXAMPLES / MEMO if not part.data else (data or Path()) / part.data
        if not path.is_file():
            raise DataError(
                f"the benchmark {part.task!r} reads {path.name}, and there is no {path}; give the "
                "folder that holds it with --data."
            )
        given[part.reads] = str(path)
    if not quick:
        return task.config(**given)
    short = {f.name: v for f in fields(task.config) if (v := part.quick.get(f.name)) is not None}
    return _with(task.quick(task.config(**given)), short)


def _with(config: Any, changes: Mapping[str, Any]) -> Any:
    return type(config)(**{**_plain(config), **changes})


def _plain(config: Any) -> dict[str, Any]:
    return {f.name: getattr(config, f.name) for f in fields(config)}


def run(
    name: str,
    out: Path,
    *,
    model: str,
    data: Path | None = None,
    quick: bool = False,
    on: str = "here",
    progress: Progress = Progress(),  # noqa: B008 - immutable
) -> dict[str, Any]:
    """Do what is left of a study, store its record and its page, and return the record.

    Raises DataError for files that are missing, and as its benchmarks.
    """
    study = STUDIES[name]
    summaries: dict[str, Any] = {}
    began = time.monotonic()
    for own, part in study.parts.items():
        task = tasks.load(part.task)
        settings = settings_of(part, task, model, data, quick)
        progress.watch.step(f"{name}: {own}")
        here = on if task.spreads else "here"
        summary = tasks.run(task, settings, out / name / own, on=here, progress=progress)
        summaries[own] = {"config": asdict(settings), **summary}
    record = {
        "study": name,
        "answer": study.answer(summaries),
        "quick": quick,
        "made": time.strftime("%Y-%m-%d"),
        "seconds": round(time.monotonic() - began, 1),
        "versions": tasks.versions(),
        "parts": summaries,
    }
    save_json(record, out / name / STUDY_FILE)
    record = read_object(out / name / STUDY_FILE, "run the study again")  # as pages are drawn anew
    publish(record, out)
    return record


def stored(out: Path) -> list[dict[str, Any]]:
    """The records of the studies that a folder holds, in the order of `STUDIES`."""
    paths = [out / name / STUDY_FILE for name in STUDIES]
    return [read_object(path, "run the study again") for path in paths if path.is_file()]


# -- pages ---------------------------------------------------------------------------------------


def publish(record: Mapping[str, Any], out: Path) -> Path:
    """Write a study's page and the index anew; the path of the page."""
    from lorewright.reports.figures.style import DARK, LIGHT
    from lorewright.reports.page import save_page

    path = out / f"{record['study']}.md"
    save_page(page(record), path, light=LIGHT.named(), dark=DARK.named())
    store(index(stored(out)).encode(), out / "index.md")
    return path


def page(record: Mapping[str, Any]) -> Page:
    """A study's page: its sentence, tables and figures, the source beside it, how it was made."""
    study: Study = STUDIES[record["study"]]
    parts: list[PagePart] = []
    for own, summary in record["parts"].items():
        task = tasks.load(summary["bench"])
        parts += list(task.tables(summary))
        parts += _pictures(task, summary, own)
    if study.published:
        rows = tuple((each.what, each.value, each.where) for each in study.published)
        notes = (f"Source: {study.source}.", f"What differs: {study.differs}")
        parts.append(Table("Published", ("what", "figure", "where"), rows, notes))
    parts.append(_made(record))
    about = f"{study.question} {QUICK if record['quick'] else ''}".strip()
    return Page(record["answer"], about, tuple(parts))


def _pictures(task: Task, summary: Mapping[str, Any], own: str) -> list[Picture]:
    drawn = []
    with tempfile.TemporaryDirectory() as folder:
        for figure in task.figures(summary):
            path = Path(folder) / f"{figure.name}.svg"
            figure.draw(path)
            name = f"{own.replace(' ', '-')}-{figure.name}"
            drawn.append(Picture(name, figure.caption, path.read_text(encoding="utf-8")))
    return drawn


def _made(record: Mapping[str, Any]) -> Listing:
    """Command, bases, settings and versions."""
    lines = [_command(record)]
    for own, summary in record["parts"].items():
        base = summary["base"]
        lines += ["", f"{own}: lore bench {summary['bench']}"]
        lines.append(f"base {base['id']}, digest {base['digest'][:12]}")
        config = summary.get("config", {})
        lines += [f"{key} = {_shown(value)}" for key, value in config.items()]
    numbers = "  ".join(f"{name} {number}" for name, number in record["versions"].items())
    work = [part["seconds"] for part in record["parts"].values()]
    spent = sum(each for each in work if isinstance(each, int | float))
    lines += ["", f"{record['made']}, {spent:.0f} s of work" if spent else record["made"], numbers]
    return Listing("How it was made", tuple(lines))


def _command(record: Mapping[str, Any]) -> str:
    """What to type for a study again, on the base that it was made on."""
    (model, *_) = [part["base"]["id"] for part in record["parts"].values()]
    reads = any(part.data for part in STUDIES[record["study"]].parts.values())
    options = ["--data FOLDER" if reads else "", "--quick" if record["quick"] else ""]
    return " ".join(
        filter(None, [f"$ lore reproduce {record['study']} --model {_shown(model)}", *options])
    )


def _shown(value: Any) -> str:
    """A setting; of a file its name, for its place is nobody else's."""
    text = str(value)
    return Path(text).name if isinstance(value, str) and "/" in text else text


def index(records: Sequence[Mapping[str, Any]]) -> str:
    """A page that lists studies by their sentence."""
    lines = ["# Studies", ""]
    for record in records:
        mark = " *(quick, no result)*" if record["quick"] else ""
        lines.append(f"- [{STUDIES[record['study']].question}]({record['study']}.md){mark}")
        lines.append(f"  {record['answer']}")
    return "\n".join([*lines, ""])
