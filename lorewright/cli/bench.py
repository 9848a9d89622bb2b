"""`lore bench`: what can be written into an adapter on a base, measured, in a folder of records."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from lorewright.cli.options import Json, Threads
from lorewright.cli.output import console_for, print_json

if TYPE_CHECKING:
    from lorewright.bench.task import Task
    from lorewright.scale import Step

app = typer.Typer(
    no_args_is_help=True,
    help="Measure what adapters hold, with seeds and intervals.\n\n"
    "[dim]lore bench longcontext --quick[/]",
)

Base = Annotated[str, typer.Option("--model", "-m", help="Base: pocket, a folder, or a hub name.")]
Ranks = Annotated[str, typer.Option(help="Ranks, like 1,2,4,8.")]
Lengths = Annotated[str, typer.Option(help="Answer tokens of a text, like 16,64,256.")]
Sizes = Annotated[str, typer.Option(help="Answer tokens of a book, like 500,1000.")]
Noise = Annotated[str, typer.Option(help="Per cent of random tokens, like 0,50,100.")]
Seeds = Annotated[int, typer.Option(min=1, help="Independent texts, books or sets of every cell.")]
Method = Annotated[
    list[str] | None,
    typer.Option("--objective", help="sft, threshold, window, curriculum, window+curriculum."),
]
Placement = Annotated[str, typer.Option(help="Adapted layers: TARGET@LAYER, like mlp@middle.")]
Epochs = Annotated[int, typer.Option(min=1, help="Budget in passes, the same for every method.")]
Rate = Annotated[float, typer.Option("--lr", min=0, help="Peak rate; 0 = by the base's width.")]
Out = Annotated[Path, typer.Option(help="Folder of records; what is there is not done again.")]
On = Annotated[str, typer.Option(help="here, local:K, ray, or ray://host:port.")]
Quick = Annotated[bool, typer.Option("--quick", help="A minute; shows that it works, no result.")]


@app.command()
def longcontext(
    model: Base = "pocket",
    ranks: Ranks = "",
    lengths: Lengths = "",
    noise: Noise = "",
    seeds: Seeds = 3,
    part: Annotated[
        list[str] | None, typer.Option(help="law, stubborn, methods, placement; all by default.")
    ] = None,
    objective: Method = None,
    placement: Placement = "down_proj@middle",
    text: Annotated[Path | None, typer.Option(help="Natural text of your own.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Budget of steps a write.")] = 200,
    lr: Rate = 0.0,
    out: Out = Path("bench-longcontext"),
    on: On = "here",
    quick: Quick = False,
    threads: Threads = 0,
    as_json: Json = False,
) -> None:
    """Recite long texts: the law of rank and length, first failures, methods, placements.

    [dim]lore bench longcontext --out lc --on local:2[/]
    [dim]lore bench longcontext --model Qwen/Qwen3-0.6B --lengths 500,2000 --ranks 1,4,16[/]
    """
    from lorewright.bench import longcontext as bench

    console = console_for(threads)
    asked: dict[str, Any] = {
        "ranks": numbers("ranks", ranks),
        "lengths": numbers("lengths", lengths),
        "noise": numbers("noise", noise),
        "parts": tuple(part or ()),
        "methods": tuple(objective or ()),
        "text": str(text or ""),
    }
    given = {key: value for key, value in asked.items() if value}
    config = bench.LongContext(
        model=model, documents=seeds, placement=placement, steps=steps, lr=lr, **given
    )
    if quick:
        config = bench.quick(config)
    _run(bench.TASK, config, out, on, console, as_json)


@app.command()
def phonebook(
    model: Base = "pocket",
    ranks: Ranks = "",
    sizes: Sizes = "",
    seeds: Seeds = 5,
    objective: Method = None,
    placement: Placement = "all-linear",
    epochs: Epochs = 40,
    lr: Rate = 0.0,
    out: Out = Path("bench-phonebook"),
    on: On = "here",
    quick: Quick = False,
    threads: Threads = 0,
    as_json: Json = False,
) -> None:
    """Remember numbers of ten digits: methods at the same budget, by rank, over several books.

    [dim]lore bench phonebook --out pb --on local:2[/]
    """
    from lorewright.bench import phonebook as bench

    console = console_for(threads)
    asked: dict[str, Any] = {
        "ranks": numbers("ranks", ranks),
        "sizes": numbers("sizes", sizes),
        "methods": tuple(objective or ()),
    }
    given = {key: value for key, value in asked.items() if value}
    config = bench.PhoneBook(
        model=model, seeds=seeds, placement=placement, epochs=epochs, lr=lr, **given
    )
    if quick:
        config = bench.quick(config)
    _run(bench.TASK, config, out, on, console, as_json)


@app.command()
def linear_rule(
    model: Base = "pocket",
    ranks: Ranks = "",
    pairs: Annotated[int, typer.Option(min=1, help="Pairs trained; as many others asked.")] = 500,
    seeds: Seeds = 5,
    objective: Method = None,
    placement: Placement = "all-linear",
    epochs: Epochs = 40,
    lr: Rate = 0.0,
    out: Out = Path("bench-linear-rule"),
    on: On = "here",
    quick: Quick = False,
    threads: Threads = 0,
    as_json: Json = False,
) -> None:
    """Learn 3x + 5y + 7 from pairs: what is remembered, and what is generalised.

    [dim]lore bench linear-rule --out lr --on local:2[/]
    """
    from lorewright.bench import linear_rule as bench

    console = console_for(threads)
    asked: dict[str, Any] = {
        "ranks": numbers("ranks", ranks),
        "methods": tuple(objective or ()),
    }
    given = {key: value for key, value in asked.items() if value}
    config = bench.LinearRule(
        model=model, pairs=pairs, seeds=seeds, placement=placement, epochs=epochs, lr=lr, **given
    )
    if quick:
        config = bench.quick(config)
    _run(bench.TASK, config, out, on, console, as_json)


def numbers(name: str, text: str) -> tuple[int, ...]:
    """``1,2,8`` as (1, 2, 8), each once; raises ConfigError for anything else."""
    from lorewright.errors import ConfigError

    parts = [part.strip() for part in text.split(",")] if text.strip() else []
    if not all(part.isascii() and part.isdecimal() for part in parts):
        raise ConfigError(f"--{name} is {text!r}; give whole numbers with commas, like 1,2,8.")
    return tuple(sorted({int(part) for part in parts}))


def _run(task: Task, config: Any, out: Path, on: str, console: Console, as_json: bool) -> None:
    from lorewright.bench.pages import sheets
    from lorewright.bench.task import run
    from lorewright.page import sheet_table

    with _watching(console) as step:
        summary = run(task, config, out, on=on, progress=step)
    if as_json:
        print_json(summary)
        return
    screen = Console()
    for sheet in sheets(summary):
        screen.print(sheet_table(sheet))
    screen.print(f"[dim]records and summary.json in {out}; lore report {out}[/]", highlight=False)


@contextmanager
def _watching(console: Console) -> Iterator[Any]:
    """A bar on stderr; plain lines where there is no terminal."""
    if not console.is_terminal:
        yield lambda step: console.print(
            f"[dim]{step.n_done} of {step.n_jobs} jobs done, {step.n_found} found[/]",
            highlight=False,
        )
        return
    columns = (TextColumn("jobs"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as bar:
        shown = bar.add_task("jobs")

        def show(step: Step) -> None:
            bar.update(shown, total=step.n_jobs, completed=step.n_done)

        yield show
