"""`lore verify` and `lore doctor`: what a memory recalls, and why it does not."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lorewright.cli.options import (
    Base,
    Folder,
    Json,
    Markdown,
    Metric,
    Name,
    Probes,
    Threads,
    open_memory,
    probes_in,
)
from lorewright.cli.settings import dict_keys
from lorewright.cli.terminal import Exit, console_for, print_json, say, show, watching
from lorewright.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

    from lorewright.recall.diagnose import Diagnosis

FAILURES = ", ".join(dict_keys("lorewright.memory.failures.FAILURES"))


def verify(
    folder: Folder,
    name: Name = "",
    model: Base = "",
    probes: Probes = None,
    metric: Metric = "",
    markdown: Markdown = False,
    as_json: Json = False,
    threads: Threads = 0,
) -> None:
    """Take the verdict again: probes in untrained forms, beside controls, with intervals.

    Exit code 1 when it recalls nothing.

    [dim]lore verify atlas[/]
    [dim]lore verify atlas --probes examples/handbook.probes.jsonl --json[/]
    """
    from lorewright.reports.results import recall_table
    from lorewright.reports.tables import to_markdown

    console, questions = console_for(threads), probes_in(probes)
    memory = open_memory(folder, model)
    with watching(console) as watch:
        report = memory.verify(name, probes=questions, metric=metric, watch=watch)
    record = report.to_json()
    if as_json:
        print_json(record)
    elif markdown:
        table = recall_table(record)
        print(f"{table.title} ({table.subtitle})\n\n{to_markdown(table)}")
    else:
        show(recall_table(record))
    if report.recalls is False:
        raise typer.Exit(Exit.FAILED)


def doctor(
    place: Annotated[str, typer.Argument(help="An adapter folder, a memory's, or FOLDER/NAME.")],
    name: Name = "",
    model: Base = "",
    facts: Annotated[
        Path | None, typer.Option(help="What it should know: facts or documents.")
    ] = None,
    probes: Probes = None,
    template: Annotated[
        Path | None, typer.Option(help="A prompt format to try: a text file with {prompt} in it.")
    ] = None,
    mend: Annotated[
        bool, typer.Option("--mend", help="Run the command that mends it, and examine it again.")
    ] = False,
    as_json: Json = False,
    threads: Threads = 0,
) -> None:
    """Diagnose why an adapter does not recall: measurement, cause, the one command that mends it.

    Works on any PEFT adapter folder. Exit code 1 when something is wrong.

    [dim]lore doctor atlas[/]
    [dim]lore doctor atlas/handbook --json[/]
    [dim]lore doctor atlas/handbook --mend[/]
    [dim]lore doctor checkpoints/my-lora --model Qwen/Qwen3-0.6B --facts facts.jsonl[/]
    """
    from lorewright.files import read_text
    from lorewright.knowledge.readers.read import read_knowledge
    from lorewright.memory.diagnose import diagnose as examine
    from lorewright.memory.mend import account

    console = console_for(threads)
    if mend:
        if facts or probes or template or name:
            raise ConfigError("--mend goes by what the folder knows; give FOLDER/NAME and no more.")
        _mend(console, Path(place), model, as_json)
        return
    diagnosis = examine(
        place,
        name=name,
        base=model or None,
        knowledge=read_knowledge(facts) if facts else None,
        probes=probes_in(probes),
        templates={f"the template in {template}": read_text(template)} if template else {},
    )
    if as_json:
        print_json(account(diagnosis))
    else:
        _print_diagnosis(diagnosis)
    if diagnosis.findings:
        raise typer.Exit(Exit.FAILED)


def _mend(console: Console, place: Path, model: str, as_json: bool) -> None:
    from lorewright.memory.mend import mend

    with watching(console) as watch:
        mended = mend(place, base=model or None, watch=watch)
    if as_json:
        print_json(mended.to_json())
    else:
        say(mended.command, "bold")
        _print_diagnosis(mended.after)
    if not mended.healthy:
        raise typer.Exit(Exit.FAILED)


def failure(
    folder: Folder,
    which: Annotated[str, typer.Argument(help=f"Which one: {FAILURES}.")],
    model: Base = "",
    as_json: Json = False,
    threads: Threads = 0,
) -> None:
    """Write a page so that it fails in a known way, and diagnose it: how failures come about.

    Exit code 1 when it fails, as it should.

    [dim]lore failure atlas wording[/]
    [dim]lore doctor atlas/failure-wording --mend[/]
    """
    from lorewright.memory.diagnose import diagnose as examine
    from lorewright.memory.failures import fail
    from lorewright.memory.memory import Memory
    from lorewright.memory.mend import account

    console = console_for(threads)
    memory = Memory.open(folder, model or None)
    with watching(console) as watch:
        outcome = fail(memory, which, watch=watch)
    diagnosis = examine(folder / outcome.name, base=memory.model)
    if as_json:
        print_json({"memory": outcome.name, **account(diagnosis)})
    else:
        say(f"{outcome.name}: ended by {outcome.reason} after {outcome.epochs} epochs", "bold")
        _print_diagnosis(diagnosis)
    if diagnosis.findings:
        raise typer.Exit(Exit.FAILED)


def _print_diagnosis(diagnosis: Diagnosis) -> None:
    from lorewright.recall.diagnose import summary
    from lorewright.recall.tree import FAILED, PASSED, tree

    signs = {PASSED: ("✓", ""), FAILED: ("✗", "bold red")}
    for branch in tree(diagnosis):
        sign, style = signs.get(branch.outcome, ("·", "dim"))
        shown = branch.measured if branch.outcome != FAILED else "no, see below"
        say(f"{sign} {branch.question:<42}{shown or 'not measured'}", style)
    say("")
    for key, value in summary(diagnosis.evidence).items():
        if value is not None and value != {}:
            say(f"{key} {_plain(value)}", "dim")
    for finding in diagnosis.findings:
        say(f"\n{finding.check}: {finding.measured}", "bold red")
        say(f"  because {finding.cause}")
        say(f"  {finding.remedy}", "bold")
    if not diagnosis.findings:
        if diagnosis.evidence.answered:
            say("\nnothing is wrong", "bold green")
        else:
            say("\nthe adapter is sound; recall was not checked: give facts with --facts", "bold")


def _plain(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_plain(each)}" for key, each in value.items())
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def trace(
    folder: Folder,
    question: Annotated[str, typer.Argument(help="The question.")],
    answer: Annotated[str, typer.Argument(help="The answer that is wanted.")],
    name: Name = "",
    model: Base = "",
    as_json: Json = False,
    threads: Threads = 0,
) -> None:
    """Show an answer token by token: probability, and the likeliest others in its place.

    Exit code 1 when greedy decoding would leave it.

    [dim]lore trace atlas "Who signs off Project Gannet?" "Ilka Brandwen"[/]
    """
    from lorewright.reports.results import tokens_table

    console_for(threads)
    tokens = open_memory(folder, model).trace(question, answer, name)
    if as_json:
        rows = [asdict(token) for token in tokens]
        print_json({"question": question, "answer": answer, "tokens": rows})
    else:
        show(tokens_table(tokens))
    if not all(token.right for token in tokens):
        raise typer.Exit(Exit.FAILED)


def ranks(
    folder: Folder,
    name: Name = "",
    model: Base = "",
    as_json: Json = False,
    threads: Threads = 0,
) -> None:
    """Cut a memory to smaller ranks and measure what comes back at each.

    [dim]lore ranks atlas --name handbook[/]
    """
    from lorewright.reports.results import spelled
    from lorewright.reports.tables import Table

    console = console_for(threads)
    with watching(console) as watch:
        cut = open_memory(folder, model).ranks(name, watch=watch)
    if as_json:
        print_json(cut.to_json())
        return
    rows = tuple(
        (
            str(each.rank),
            f"{each.n_parameters:,}",
            f"{each.energy:.3f}",
            f"{spelled(each.trained)} n={each.trained.n}",
            f"{spelled(each.held)} n={each.held.n}",
        )
        for each in cut.at
    )
    head = ("rank", "parameters", "energy", "as trained", "other words")
    subtitle = f"written at rank {cut.rank}; energy: share of the squared norm of all ΔW"
    show(Table(f"{cut.memory}, cut", head, rows, subtitle=subtitle))


def layer(
    folder: Folder,
    name: Name = "",
    module: Annotated[str, typer.Option(help="Which layer; else the first.")] = "",
    rank: Annotated[int, typer.Option(min=0, help="Cut to this rank; 0 = its own.")] = 0,
    model: Base = "",
    as_json: Json = False,
    threads: Threads = 0,
) -> None:
    """Show one layer of a memory by hand: W, A, B and BA at a rank, and what the rank holds.

    [dim]lore layer atlas --name handbook --rank 2[/]
    """
    from lorewright.reports.tables import Table

    console_for(threads)
    shown = open_memory(folder, model).layer(name, module=module, rank=rank)
    if as_json:
        print_json(shown.to_json())
        return
    rows = tuple((p.name, f"{p.shape[0]} × {p.shape[1]}", f"{p.norm:.3f}") for p in shown.pictures)
    held = ", ".join(f"rank {n} {share:.3f}" for n, share in enumerate(shown.energies, 1))
    title = f"{shown.memory}, {shown.module}, rank {shown.rank} of {shown.own}"
    show(Table(title, ("matrix", "shape", "norm"), rows, (f"Squared norm of BA held: {held}.",)))


COMMANDS = (verify, doctor, failure, trace, ranks, layer)
