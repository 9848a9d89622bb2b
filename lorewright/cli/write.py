"""`lore write`, `stop` and `add`: a source into a memory with a verdict; an adapter of others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lorewright.adapters.config import LoraConfig
from lorewright.cli.options import (
    AUTO,
    FIND,
    LESSON,
    LORA,
    TRAINING,
    WRITE,
    Base,
    Dtype,
    Folder,
    Into,
    Json,
    Metric,
    Name,
    Probes,
    Rank,
    Rate,
    Source,
    Teacher,
    Threads,
    probes_in,
    rank_of,
    rate_of,
    rated,
    teacher_at,
)
from lorewright.cli.settings import dict_keys, with_options
from lorewright.cli.terminal import (
    Exit,
    console_for,
    print_coverage,
    print_json,
    say,
    show,
    watching,
)
from lorewright.knowledge.lesson import LessonConfig
from lorewright.training.config import WriteConfig

if TYPE_CHECKING:
    from lorewright.memory.add import Added
    from lorewright.memory.write import Outcome

GRADIENT = "gradient"
METHODS = ", ".join(dict_keys("lorewright.writers.methods.WRITERS"))
PRESETS = ", ".join(dict_keys("lorewright.training.config.PRESETS"))
Method = Annotated[str, typer.Option(help=f"Way of writing, see `lore methods`: {METHODS}.")]
Preset = Annotated[
    str,
    typer.Option(
        help=f"{PRESETS}: settings as given; facts by heart in the least time; dropout and "
        "weight decay by the number of examples.",
        rich_help_panel=TRAINING,
    ),
]


@with_options(lora=LORA, config=WRITE, lesson=LESSON)
def write(
    source: Source,
    into: Into,
    lesson: LessonConfig,
    lora: LoraConfig,
    config: WriteConfig,
    name: Name = "",
    replace_other: Annotated[
        bool, typer.Option("--replace", help="Take a name that stands for another source.")
    ] = False,
    method: Method = GRADIENT,
    model: Base = "",
    dtype: Dtype = "auto",
    probes: Probes = None,
    metric: Metric = "",
    teacher: Teacher = "",
    rank: Rank = AUTO,
    lr: Rate = "",
    preset: Preset = "exact",
    threads: Threads = 0,
    as_json: Json = False,
) -> None:
    """Write documents or facts into a memory, and end with a verdict.

    Exit code 1 when it recalls nothing, or nothing could be asked.

    [dim]lore write examples/handbook.md --into atlas[/]
    [dim]lore write facts.jsonl --into atlas --name phonebook --rank 16[/]
    """
    from lorewright.knowledge.readers.read import read_knowledge
    from lorewright.memory.memory import Memory
    from lorewright.writers.methods import writer_of

    console = console_for(threads)
    knowledge, questions = read_knowledge(source), probes_in(probes)
    lora = replace(lora, rank=rank_of(rank), seed=config.seed)
    # A rate of 1 stands for one that is determined below; everything else is checked before that.
    config = replace(config, lora=lora, lr=rate_of(lr))
    memory = Memory.open(into, model or None, dtype=dtype)
    config = rated(config, lr, memory.model, method)
    writer = writer_of(method, config)
    if writer.exports and writer.reads == "lesson":  # others have their own layers
        print_coverage(console, memory.model, config)
    with watching(console) as watch:
        outcome = memory.write(
            knowledge,
            name=name or source.absolute().stem,
            overwrite=replace_other,
            method=method,
            config=config,
            lesson=lesson,
            teacher=teacher_at(teacher, into),
            probes=questions,
            metric=metric,
            find_rate=lr == FIND,
            find_rank=rank == AUTO and method == GRADIENT,
            preset=preset,
            watch=watch,
        )
    _end(outcome, as_json=as_json)


def _end(outcome: Outcome, *, as_json: bool) -> None:
    """Print what a write came to; exit code 1 when nothing is recalled."""
    if as_json:
        print_json(outcome.to_json())
    else:
        _print_outcome(outcome)
    if not outcome.report.recalls:
        raise typer.Exit(Exit.FAILED)


def _print_outcome(outcome: Outcome) -> None:
    from lorewright.reports.results import recall_table

    for note in outcome.notes:
        say(note, "dim")
    say(
        f"{outcome.name} {outcome.n_examples} examples, {outcome.epochs} epochs in "
        f"{outcome.seconds:.0f} s, ended: {outcome.reason}; as trained, free-running, from disk: "
        f"{outcome.audit.recall}"
    )
    if outcome.report.arms:
        show(recall_table(outcome.report.to_json()))
    if outcome.report.recalls is None:
        say("no probe asks for what was written; give questions with --probes", "bold red")
    elif not outcome.report.recalls:
        say(
            f"it recalls nothing; lore doctor {outcome.folder.parents[1]}/{outcome.name}",
            "bold red",
        )
    say(f"adapter {outcome.adapter_id} in {outcome.folder}")


def add(
    folder: Folder,
    adapter: Annotated[Path, typer.Argument(help="An adapter folder as PEFT saves it.")],
    name: Annotated[
        str, typer.Option("--name", "-n", help="Its name; by default the folder's.")
    ] = "",
    source: Annotated[Path | None, typer.Option(help="What it was trained on.")] = None,
    probes: Probes = None,
    metric: Metric = "",
    model: Base = "",
    as_json: Json = False,
    threads: Threads = 0,
) -> None:
    """Take in an adapter that was trained elsewhere, checked and proved to move this base.

    [dim]lore add atlas checkpoints/my-lora --name handbook --source handbook.jsonl[/]
    """
    from lorewright.knowledge.readers.read import read_knowledge
    from lorewright.memory.memory import Memory

    console = console_for(threads)
    knowledge, questions = read_knowledge(source) if source else None, probes_in(probes)
    memory = Memory.open(folder, model or None)
    with watching(console) as watch:
        added = memory.add(
            adapter, name=name, knowledge=knowledge, probes=questions, metric=metric, watch=watch
        )
    if as_json:
        print_json(added.to_json())
    else:
        _print_added(added)
    if added.report.recalls is False:
        raise typer.Exit(Exit.FAILED)


def _print_added(added: Added) -> None:
    from lorewright.reports.results import recall_table

    for note in added.notes:
        say(note, "dim")
    proof = added.proof
    say(
        f"{added.name} {proof.n_tensors} tensors bound to {len(proof.delta_norms)} layers, "
        f"logits moved by up to {proof.moved:.3g}"
    )
    if added.report.arms:
        show(recall_table(added.report.to_json()))
    else:
        say("no verdict: give --source or --probes to ask what it knows", "dim")
    say(f"adapter {added.adapter_id} in {added.folder}")


def stop(folder: Folder, as_json: Json = False) -> None:
    """End the write that goes on in a folder, in any process: after its epoch, with its verdict.

    What it has learnt by then becomes the memory, and what it recalls is measured as ever.

    [dim]lore stop atlas[/]
    """
    from lorewright.memory.folder import Folder as MemoryFolder
    from lorewright.memory.stop import stop as request

    run = request(MemoryFolder(folder))
    if as_json:
        print_json({"folder": str(folder), "run": run})
    else:
        say(f"{run} ends after its epoch")


def resume(
    folder: Folder,
    run: Annotated[str, typer.Argument(help="Which run; by default the latest.")] = "",
    model: Base = "",
    as_json: Json = False,
    threads: Threads = 0,
) -> None:
    """Go on with a write that was cut off or stopped, as it was called, from where it was.

    Ends in the same bytes as a write that nothing came between. Exit code as of `lore write`.

    [dim]lore resume atlas[/]
    """
    from lorewright.memory.memory import Memory

    console = console_for(threads)
    memory = Memory.open(folder, model or None, create=False)
    with watching(console) as watch:
        outcome = memory.resume(run, watch=watch)
    _end(outcome, as_json=as_json)


COMMANDS = (write, add, stop, resume)
