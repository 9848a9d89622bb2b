"""The command line: one command per verb, each a few lines over the same functions.

Results go to stdout, progress to stderr; `--json` prints one object of plain data. Whatever a user
can get wrong ends in one sentence and exit code 2; an interruption in 130, and the same write goes
on. Heavy imports are inside the commands, so that `--help` is quick.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from lorewright import __version__
from lorewright.cli import (
    ask,
    bench,
    bench_memories,
    bench_sets,
    law,
    life,
    merge,
    models,
    plan,
    report,
    serve,
)
from lorewright.cli.options import (
    AUTO,
    FIND,
    Alpha,
    Base,
    BatchSize,
    Decay,
    Dropout,
    Dtype,
    Epochs,
    Folder,
    Into,
    Json,
    Layers,
    Margin,
    Metric,
    Name,
    Objective,
    Optimiser,
    Order,
    Preset,
    Probes,
    Rank,
    Rate,
    Ratio,
    Rest,
    Schedule,
    Seconds,
    Seed,
    Source,
    Targets,
    Teacher,
    Threads,
    Variant,
    Views,
    layers_of,
    lesson_of,
    lora_of,
    open_memory,
    rate_of,
    rated,
    teacher_at,
)
from lorewright.cli.output import console_for, print_json, say_coverage, watching
from lorewright.errors import LorewrightError

if TYPE_CHECKING:
    from lorewright.memory.write import Outcome

REFUSED = 2
"""Exit code when something cannot be done as asked; also typer's own for wrong usage."""
INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""

app = typer.Typer(
    name="lore",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.add_typer(law.app, name="law")
app.add_typer(models.app, name="models")
app.command()(ask.ask)
app.command()(ask.route)
app.command()(ask.modes)
bench.app.command()(bench_memories.memories)
for each in bench_sets.COMMANDS:
    bench.app.command()(each)
app.command()(serve.serve)
app.add_typer(bench.app, name="bench")
app.command()(report.report)
app.command()(plan.plan)
app.command()(merge.merge)
for each in life.COMMANDS:
    app.command()(each)


def main() -> None:
    """Run the command line and turn every expected failure into one sentence."""
    try:
        app(prog_name="lore")
    except LorewrightError as error:
        sentence = escape(" ".join(str(error).split()))
        Console(stderr=True, soft_wrap=True).print(
            f"[red]{type(error).__name__}:[/] {sentence}", highlight=False
        )
        sys.exit(REFUSED)
    except KeyboardInterrupt:
        _say_interrupted()
        sys.exit(INTERRUPTED)
    except SystemExit as ending:
        if ending.code == INTERRUPTED:  # typer caught Ctrl-C inside a command
            _say_interrupted()
        raise


def _say_interrupted() -> None:
    Console(stderr=True, soft_wrap=True).print(
        "Interrupted. The same command goes on where a write stopped."
    )


@app.callback(invoke_without_command=True)
def about(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Write knowledge into LoRA adapters, and prove that it is there.

    [dim]lore write examples/handbook.md --into atlas[/]
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if version:
        typer.echo(__version__)
        raise typer.Exit


@app.command()
def write(
    source: Source,
    into: Into,
    name: Name = "",
    model: Base = "",
    dtype: Dtype = "auto",
    view: Views = None,
    probes: Probes = None,
    metric: Metric = "",
    teacher: Teacher = "",
    rank: Rank = AUTO,
    target: Targets = None,
    layers: Layers = "",
    alpha: Alpha = 0,
    variant: Variant = "lora",
    objective: Objective = "sft",
    lr: Rate = "",
    optimizer: Optimiser = "adamw",
    lr_ratio: Ratio = 1.0,
    weight_decay: Decay = 0.0,
    dropout: Dropout = 0.0,
    preset: Preset = "exact",
    schedule: Schedule = "linear",
    order: Order = "shuffle",
    margin: Margin = 0.6,
    rest: Rest = 0.0,
    epochs: Epochs = 60,
    batch: BatchSize = 8,
    seconds: Seconds = 0.0,
    seed: Seed = 0,
    threads: Threads = 0,
    as_json: Json = False,
) -> None:
    """Write documents or facts into a memory, and end with a verdict.

    [dim]lore write examples/handbook.md --into atlas[/]
    [dim]lore write facts.jsonl --into atlas --name phonebook --rank 16[/]
    """
    from lorewright.knowledge.readers import read_knowledge, read_probes
    from lorewright.memory.memory import Memory
    from lorewright.training.config import WriteConfig

    console = console_for(threads)
    known, asked = read_knowledge(source), read_probes(probes) if probes else ()
    lesson = lesson_of(view)
    config = WriteConfig(
        lora=lora_of(rank, alpha, target, layers, seed, variant),
        objective=objective,
        lr=rate_of(lr),  # 1 stands for one that is found below; all else is checked before that
        optimizer=optimizer,
        lr_ratio=lr_ratio,
        weight_decay=weight_decay,
        dropout=dropout,
        schedule=schedule,
        order=order,
        margin=margin,
        rest=rest or None,
        epochs=epochs,
        batch_size=batch,
        max_seconds=seconds or None,
        seed=seed,
    )
    memory = Memory.open(into, model or None, dtype=dtype)
    config = rated(config, lr, memory.model)
    say_coverage(console, memory.model, config)
    with watching(console) as watch:
        outcome = memory.write(
            known,
            name=name or source.absolute().stem,
            config=config,
            lesson=lesson,
            teacher=teacher_at(teacher, into),
            probes=asked,
            metric=metric,
            find_rate=lr == FIND,
            find_rank=rank == AUTO,
            preset=preset,
            watch=watch,
        )
    _print_outcome(outcome, as_json)


def _print_outcome(outcome: Outcome, as_json: bool) -> None:
    from lorewright.reports.tables import recall_table

    if as_json:
        print_json(outcome.to_json())
        return
    out = Console()
    for note in outcome.notes:
        out.print(f"[dim]{escape(note)}[/]", highlight=False)
    out.print(
        f"[b]{escape(outcome.name)}[/] {outcome.n_examples} examples, {outcome.epochs} epochs in "
        f"{outcome.seconds:.0f} s, ended: {outcome.reason}; as trained, free-running, from disk: "
        f"{outcome.audit.recall}",
        highlight=False,
        soft_wrap=True,
    )
    if outcome.report.arms:
        out.print(recall_table(outcome.report))
    where = f"adapter {outcome.adapter_id} in {escape(str(outcome.folder))}"
    out.print(where, highlight=False, soft_wrap=True)


@app.command()
def verify(
    folder: Folder,
    name: Name = "",
    model: Base = "",
    probes: Probes = None,
    metric: Metric = "",
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a Markdown table.")] = False,
    as_json: Json = False,
    threads: Threads = 0,
) -> None:
    """Take the verdict again: probes in untrained forms, beside controls, with intervals.

    [dim]lore verify atlas[/]
    [dim]lore verify atlas --probes examples/handbook.probes.jsonl --json[/]
    """
    from lorewright.knowledge.readers import read_probes
    from lorewright.reports.tables import recall_markdown, recall_table

    console = console_for(threads)
    asked = read_probes(probes) if probes else ()
    memory = open_memory(folder, model)
    with watching(console) as watch:
        report = memory.verify(name, probes=asked, metric=metric, watch=watch)
    if as_json:
        print_json(report.to_json())
    elif markdown:
        typer.echo(recall_markdown(report))
    else:
        Console().print(recall_table(report))


@app.command()
def show(
    folder: Folder,
    limit: Annotated[int, typer.Option(min=0, help="Memories in the table; 0 = all.")] = 50,
    as_json: Json = False,
) -> None:
    """List the memories of a folder with their verdicts.

    [dim]lore show atlas[/]
    """
    from lorewright.memory.folder import Folder as MemoryFolder
    from lorewright.reports.tables import memories_table

    if as_json:
        print_json({"folder": str(folder), "memories": MemoryFolder(folder).cards()})
        return
    found = MemoryFolder(folder).briefs()
    shown = found[: limit or None]
    table = memories_table(shown)
    if len(shown) < len(found):
        table.caption = f"{len(shown)} of {len(found)} memories; --limit 0 lists all"
    Console().print(table)


@app.command()
def targets(
    model: Annotated[str, typer.Argument(help="pocket, a folder, or a hub name.")] = "pocket",
    target: Targets = None,
    layers: Layers = "",
    as_json: Json = False,
) -> None:
    """Show where an adapter would go on a model, and what is left alone and why.

    [dim]lore targets pocket --target q_proj --layers 0-1[/]
    """
    from lorewright.adapters.config import LoraConfig
    from lorewright.adapters.targets import resolve_targets
    from lorewright.models.model import Model
    from lorewright.reports.tables import coverage_table

    config = LoraConfig(targets=tuple(target or ("all-linear",)), layers=layers_of(layers))
    coverage = resolve_targets(Model.load(model).network, config.targets, config.layers)
    if as_json:
        skipped = dict(coverage.skipped)
        print_json({"modules": coverage.names, "n_linear": coverage.n_linear, "skipped": skipped})
    else:
        Console().print(coverage_table(coverage))


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Where memory, record and figure go.")] = Path("demo"),
    source: Annotated[Path | None, typer.Option(help="Another document than the handbook.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Few epochs; shows no result.")] = False,
    threads: Threads = 0,
    as_json: Json = False,
) -> None:
    """Watch the embedded model learn a document: the memo's table, then three questions.

    [dim]lore demo[/]
    """
    from lorewright.cli.demo import run

    record = run(console_for(threads), Console(quiet=as_json), out, source, quick=quick)
    if as_json:
        print_json(record)
