"""What the commands of `lore bench` share: options, numbers, running a sweep, showing it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from lorewright.cli.terminal import print_json, say, show

if TYPE_CHECKING:
    from lorewright.bench.scale import Step
    from lorewright.bench.task import Task

Ranks = Annotated[str, typer.Option(help="Ranks, like 1,2,4,8.")]
Seeds = Annotated[int, typer.Option(min=1, help="Independent texts, books or sets of every cell.")]
Writes = Annotated[int, typer.Option("--seeds", min=1, help="Writes of every memory.")]
Methods = Annotated[
    list[str] | None,
    typer.Option("--objective", help="sft, threshold, window, curriculum, window+curriculum."),
]
Method = Annotated[
    str,
    typer.Option("--objective", help="sft, threshold, window, curriculum, window+curriculum."),
]
Placement = Annotated[str, typer.Option(help="Adapted layers: TARGET@LAYER, like mlp@middle.")]
Epochs = Annotated[int, typer.Option(min=1, help="Budget in passes, the same for every method.")]
Rate = Annotated[float, typer.Option("--lr", min=0, help="Peak rate; 0 = by the base's width.")]
Data = Annotated[
    str, typer.Option("--data", help="The set: a JSON or JSONL file, hub, or hub:NAME@SPLIT.")
]
Questions = Annotated[int, typer.Option(min=0, help="First questions of each text; 0 = all.")]
Documents = Annotated[int, typer.Option(min=0, help="First texts of the set; 0 = all.")]
Formats = Annotated[
    list[str] | None,
    typer.Option("--format", help="What is trained: raw, qa, summary, rewrite, joined by +."),
]
Tokens = Annotated[int, typer.Option("--answer-tokens", min=1, help="Longest free answer.")]
Sets = Annotated[int, typer.Option(min=1, help="Question sets written on each passage, up to 5.")]
Judge = Annotated[
    str, typer.Option(help="OpenAI-compatible URL, or URL#MODEL, that scores free answers.")
]
Out = Annotated[Path, typer.Option(help="Folder of records; what is there is not done again.")]
On = Annotated[str, typer.Option(help="here, local:K, ray, or ray://host:port.")]
Quick = Annotated[bool, typer.Option("--quick", help="A minute; shows that it works, no result.")]


def numbers(name: str, text: str) -> tuple[int, ...]:
    """``1,2,8`` as (1, 2, 8), each once; raises ConfigError for anything else."""
    from lorewright.errors import ConfigError

    parts = [part.strip() for part in text.split(",")] if text.strip() else []
    if not all(part.isascii() and part.isdecimal() for part in parts):
        raise ConfigError(f"--{name} is {text!r}; give whole numbers with commas, like 1,2,8.")
    return tuple(sorted({int(part) for part in parts}))


def given(**asked: Any) -> dict[str, Any]:
    """The settings that were asked for: those that are not empty."""
    return {name: value for name, value in asked.items() if value}


def sweep(
    task: Task,
    config: Any,
    console: Console,
    *,
    out: Path,
    on: str,
    as_json: bool,
    markdown: bool,
) -> None:
    """Do what is left of a sweep, then print its summary, its tables, or these as Markdown."""
    from lorewright.bench.task import Progress, run
    from lorewright.reports.page import Page, to_markdown

    with _watching(console) as step:
        summary = run(task, config, out, on=on, progress=Progress(step))
    if as_json:
        print_json(summary)
    elif markdown:
        base = summary["base"]
        about = f"Base {base['id']}, digest {base['digest'][:12]}; `{summary['command']}`"
        parts = tuple(task.tables(summary))
        typer.echo(to_markdown(Page(f"lore bench {task.name}", about, parts)))
    else:
        for table in task.tables(summary):
            show(table)
        say(f"records and summary.json in {out}; lore report {out}", "dim")


@contextmanager
def _watching(console: Console) -> Iterator[Any]:
    """A bar on stderr; plain lines where there is no terminal."""
    if not console.is_terminal:
        yield lambda step: console.print(
            f"[dim]{step.n_done} of {step.n_jobs} jobs done, {step.n_stored} stored[/]",
            highlight=False,
        )
        return
    columns = (TextColumn("jobs"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as bar:
        shown = bar.add_task("jobs")

        def show(step: Step) -> None:
            bar.update(shown, total=step.n_jobs, completed=step.n_done)

        yield show
