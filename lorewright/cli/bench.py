"""`lore bench`: one command a benchmark of `bench.task.TASKS`, its options from its settings.

Listing the commands imports no benchmark; using one imports that one.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from inspect import cleandoc
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from typer.core import TyperCommand, TyperGroup

from lorewright.bench.task import TASKS
from lorewright.cli.options import Base, Json, Markdown, Threads
from lorewright.cli.settings import Flag, Group, with_options
from lorewright.cli.terminal import console_for, print_json, say, show, watching

if TYPE_CHECKING:
    from rich.console import Console

    from lorewright.bench.scale import Step
    from lorewright.bench.task import Task

FEW_JOBS = 3
"""Done in this run before the rest is estimated."""
On = Annotated[str, typer.Option(help="here, local:K, ray, or ray://host:port.")]
Quick = Annotated[bool, typer.Option("--quick", help="A minute; shows that it works, no result.")]


class _Listed(TyperCommand):
    """A command whose help is known at once, and whose options are made when they are needed."""

    def make_context(self, info_name: Any, args: Any, parent: Any = None, **extra: Any) -> Any:
        assert self.name
        return command_of(self.name).make_context(info_name, args, parent, **extra)

    @property
    def params(self) -> list[Any]:
        assert self.name
        return command_of(self.name).params

    @params.setter
    def params(self, value: list[Any]) -> None:
        pass  # as click gives none


class _Tasks(TyperGroup):
    """A command a task."""

    def __init__(self, **about: Any) -> None:
        super().__init__(**about)
        self.commands = {
            name: _Listed(name, help=cleandoc(entry.help), rich_markup_mode="rich")
            for name, entry in TASKS.items()
        }


app = typer.Typer(
    cls=_Tasks,
    no_args_is_help=True,
    help="Measure what adapters hold, with seeds and intervals.\n\n"
    "[dim]lore bench longcontext --quick[/]",
)


@app.callback()
def _bench() -> None:
    """Without it typer makes no group of an app that registers no command."""


def command_of(name: str) -> TyperCommand:
    """The command of a task, with an option for every field of its settings."""
    from lorewright.bench.task import load

    task = load(name)
    flags = {each.name: Flag(task.flags.get(each.name, "")) for each in fields(task.config)}
    group = Group(task.config, flags, fixed=task.fixed)
    usual = str(next(each.default for each in fields(task.config) if each.name == "model"))

    def command(
        config: Any,
        model: Base = usual,
        out: Annotated[
            Path, typer.Option(help="Folder of records; what is there is not done again.")
        ] = Path(f"bench-{name}"),
        on: On = "here",
        quick: Quick = False,
        markdown: Markdown = False,
        threads: Threads = 0,
        as_json: Json = False,
    ) -> None:
        console = console_for(threads)
        config = replace(config, model=model)
        config = task.quick(config) if quick else config
        task.check(config)
        _run(task, config, console, out=out, on=on, as_json=as_json, markdown=markdown)

    command.__doc__ = cleandoc(TASKS[name].help)
    one = typer.Typer(rich_markup_mode="rich", add_completion=False)
    one.command(name)(with_options(config=group)(command))
    made = typer.main.get_command(one)
    assert isinstance(made, TyperCommand)
    return made


def _run(
    task: Task,
    config: Any,
    console: Console,
    *,
    out: Path,
    on: str,
    as_json: bool,
    markdown: bool,
) -> None:
    """Do what is left of a benchmark, then print its summary, its tables, or these as Markdown."""
    from lorewright.bench import task as tasks
    from lorewright.reports.page import Page, to_markdown

    with jobs_shown(console) as jobs, watching(console) as watch:
        progress = tasks.Progress(jobs, watch)
        summary = tasks.run(task, config, out, on=on, progress=progress)
    if as_json:
        print_json(summary)
    elif markdown:
        base = summary["base"]
        about = f"Base {base['id']}, digest {base['digest'][:12]}; `{summary['command']}`"
        print(to_markdown(Page(f"lore bench {task.name}", about, (*task.tables(summary),))))
    else:
        for table in task.tables(summary):
            show(table)
        say(f"records and summary in {out}; lore report {out}", "dim")


def time_left(step: Step, seconds: float) -> str:
    """About how long the rest takes if jobs go on as in these seconds; nothing before the third."""
    n_now = step.n_done - step.n_stored
    if n_now < FEW_JOBS or step.n_done == step.n_jobs:
        return ""
    rest = seconds / n_now * (step.n_jobs - step.n_done)
    spelled = f"{rest:.0f} s" if rest < 100 else f"{rest / 60:.0f} min"
    return f", about {spelled} left"


@contextmanager
def jobs_shown(console: Console) -> Iterator[Any]:
    """A bar on stderr; plain lines where there is no terminal; both with the time that is left."""
    if not console.is_terminal:
        began = time.monotonic()
        yield lambda step: console.print(
            f"[dim]{step.n_done} of {step.n_jobs} jobs done, {step.n_stored} stored"
            f"{time_left(step, time.monotonic() - began)}[/]",
            highlight=False,
        )
        return
    columns = (
        *(TextColumn("jobs"), BarColumn(), MofNCompleteColumn()),
        *(TimeElapsedColumn(), TimeRemainingColumn()),
    )
    bar, shown = Progress(*columns, console=console), None

    def show_step(step: Step) -> None:
        nonlocal shown
        if shown is None:  # a benchmark that is no sweep has no bar
            bar.start()
            shown = bar.add_task("jobs")
        bar.update(shown, total=step.n_jobs, completed=step.n_done)

    try:
        yield show_step
    finally:
        bar.stop()
