"""`lore reproduce`: the papers' questions, answered on a base by one command each."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lorewright.cli.bench import On, jobs_shown
from lorewright.cli.options import Base, Json, Threads
from lorewright.cli.terminal import console_for, print_json, say, show, watching

Names = Annotated[
    list[str] | None,
    typer.Argument(metavar="[STUDY]...", help="Studies, or all; none lists them."),
]
Data = Annotated[
    Path | None,
    typer.Option("--data", help="Folder with the sets that studies read; a study says which."),
]
Out = Annotated[
    Path, typer.Option("--out", help="Folder of records and pages; what is there stays.")
]
Quick = Annotated[
    bool, typer.Option("--quick", help="A minute or two each; shows that it works, no result.")
]


def reproduce(
    names: Names = None,
    data: Data = None,
    model: Base = "smollm2",
    out: Out = Path("studies"),
    quick: Quick = False,
    on: On = "here",
    threads: Threads = 0,
    as_json: Json = False,
) -> None:
    """Answer the papers' questions on a base: law, MemFT, placement, formats, merging and more.

    [dim]lore reproduce[/]
    [dim]lore reproduce memo placement --data sets --on local:2[/]
    [dim]lore reproduce all --quick --data sets[/]
    """
    from lorewright.bench import reproduce as studies
    from lorewright.bench.studies import named
    from lorewright.bench.task import Progress
    from lorewright.errors import DataError

    console = console_for(threads)
    if not names:
        _list(data, as_json)
        return
    wanted = named(names)
    lacking = {name: files for name in wanted if (files := studies.missing(name, data))}
    if lacking and "all" not in names:
        name, files = next(iter(lacking.items()))
        raise DataError(
            f"study {name!r} reads {' and '.join(files)}, and there is no such file in "
            f"{data or 'the data folder, for none was given'}; name the folder with --data."
        )
    records = []
    for name in wanted:
        if name in lacking:
            say(f"{name}: left out, for there is no {' and no '.join(lacking[name])}", "yellow")
            continue
        with jobs_shown(console) as jobs, watching(console) as watch:
            record = studies.run(
                name,
                out,
                model=model,
                data=data,
                quick=quick,
                on=on,
                progress=Progress(jobs, watch),
            )
        records.append(record)
        if not as_json:
            say(f"{name}: {record['answer']}")
    if as_json:
        left = [{"study": name, "missing": files} for name, files in lacking.items()]
        print_json({"studies": records, "left_out": left})
    else:
        say(f"pages in {out}; begin with {out / 'index.md'}", "dim")


def _list(data: Path | None, as_json: bool) -> None:
    """What can be answered, and what it needs."""
    from lorewright.bench import reproduce as studies
    from lorewright.bench.studies import STUDIES
    from lorewright.reports.tables import Table

    rows = []
    for name, study in STUDIES.items():
        benches = ", ".join(dict.fromkeys(part.task for part in study.parts.values()))
        files = [part.data for part in study.parts.values() if part.data]
        rows.append((name, study.question, benches, ", ".join(files) or "–"))
    if as_json:
        keys = ("study", "question", "benchmarks", "reads")
        lacking = [studies.missing(name, data) for name in STUDIES]
        print_json(
            {
                "studies": [
                    {**dict(zip(keys, row, strict=True)), "missing": files}
                    for row, files in zip(rows, lacking, strict=True)
                ]
            }
        )
        return
    notes = ("lore reproduce STUDY --data FOLDER; all of them: lore reproduce all --data FOLDER",)
    show(Table("Studies", ("study", "question", "benchmarks", "reads"), tuple(rows), notes))


COMMANDS = (reproduce,)
