"""`lore report`: a finished run as one page that can be sent to somebody."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lorewright.cli.options import Json
from lorewright.cli.terminal import print_json, say
from lorewright.errors import ConfigError, DataError

if TYPE_CHECKING:
    from lorewright.reports.page import Page

Run = Annotated[
    Path, typer.Argument(metavar="RUN", help="Folder of a benchmark, study, write or memory.")
]
To = Annotated[
    Path | None, typer.Option("--to", help="The file, .html or .md; RUN/report.html by default.")
]
Figures = Annotated[
    bool,
    typer.Option(
        "--figures", help="Also every figure of a benchmark, light and dark, SVG and PNG."
    ),
]


def report(run: Run, to: To = None, figures: Figures = False, as_json: Json = False) -> None:
    """Write one self-contained page of a run: tables, figures, commands and versions.

    [dim]lore report bench-longcontext[/]
    [dim]lore report atlas --to atlas.md[/]
    """
    from lorewright.reports.figures.style import DARK, LIGHT
    from lorewright.reports.page import save_page

    page = page_of(run)
    path = to or run / "report.html"
    save_page(page, path, light=LIGHT.named(), dark=DARK.named())
    drawn = _draw(run, path.parent / "figures") if figures else []
    if as_json:
        print_json({"page": str(path), "figures": list(map(str, drawn))})
        return
    for each in (path, *drawn):
        say(str(each))


def page_of(run: Path) -> Page:
    """Return the page of whatever lies in a folder; raises DataError where nothing is finished."""
    from lorewright.bench import reproduce
    from lorewright.bench.task import SUMMARY_FILE, page
    from lorewright.files import read_object
    from lorewright.memory.folder import INDEX_FILE, REPORT_FILE
    from lorewright.memory.runs import memory_page, write_page

    if (run / SUMMARY_FILE).is_file():
        return page(read_object(run / SUMMARY_FILE, "run the benchmark again"))
    if (run / reproduce.STUDY_FILE).is_file():
        return reproduce.page(read_object(run / reproduce.STUDY_FILE, "run the study again"))
    if (run / REPORT_FILE).is_file():
        return write_page(run)
    if (run / INDEX_FILE).is_file():
        return memory_page(run)
    raise DataError(
        f"{run} holds no finished run: no {SUMMARY_FILE} of a benchmark, no "
        f"{reproduce.STUDY_FILE} of a study, no {REPORT_FILE} of a write, no {INDEX_FILE} of a "
        "memory; give the folder of one."
    )


def _draw(run: Path, folder: Path) -> list[Path]:
    """Draw every figure of a benchmark, light and dark, as SVG and PNG."""
    from lorewright.bench.task import SUMMARY_FILE, load
    from lorewright.files import read_object

    if not (run / SUMMARY_FILE).is_file():
        raise ConfigError(f"--figures draws those of a benchmark; {run} is none; leave it out.")
    paths = []
    summary = read_object(run / SUMMARY_FILE, "run the benchmark again")
    for figure in load(summary["bench"]).figures(summary):
        for dark in (False, True):
            for kind in ("svg", "png"):
                path = folder / f"{figure.name}{'-dark' if dark else ''}.{kind}"
                figure.draw(path, dark=dark)
                paths.append(path)
    return paths


COMMANDS = (report,)
