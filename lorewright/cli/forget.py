"""`lore forget` and `lore supersede`: what a memory held is gone, or replaced, and it is proved."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated

import typer

from lorewright.cli.folder import print_contradiction
from lorewright.cli.options import (
    Base,
    Folder,
    Json,
    Metric,
    Source,
    Teacher,
    Threads,
    Which,
    open_memory,
    teacher_at,
)
from lorewright.cli.terminal import Exit, console_for, print_json, say, show, watching

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lorewright.memory.forget import Forgotten
    from lorewright.memory.supersede import Superseded


def forget(
    folder: Folder,
    name: Which,
    with_merged: Annotated[
        bool, typer.Option("--with-merged", help="Forget what was merged from it as well.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List what would go; touch nothing.")
    ] = False,
    model: Base = "",
    as_json: Json = False,
    threads: Threads = 0,
) -> None:
    """Remove a memory with all that came of its source, and prove it gone.

    The proof: the base and every memory left recall what was forgotten no better than the base
    does, and no file of the folder holds words of the source. Exit code 1 when it does not hold.
    Snapshots and other copies are not touched.

    [dim]lore forget atlas handbook[/]
    [dim]lore forget atlas handbook --with-merged --json[/]
    """
    from lorewright.files import slug
    from lorewright.memory.folder import Folder as MemoryFolder
    from lorewright.memory.removal import plan_removal

    if dry_run:
        plan = asdict(plan_removal(MemoryFolder(folder), slug(name), with_merged=with_merged))
        if as_json:
            print_json(plan)
        else:
            _print_removal(plan)
        return
    console = console_for(threads)
    with watching(console) as watch:
        forgotten = open_memory(folder, model).forget(name, with_merged=with_merged, watch=watch)
    if as_json:
        print_json(forgotten.to_json())
    else:
        _print_forgotten(forgotten)
    if not forgotten.holds:
        raise typer.Exit(Exit.FAILED)


def _print_removal(plan: Mapping[str, tuple[str, ...]]) -> None:
    for what in ("names", "adapters", "sources", "runs", "kept"):
        say(f"{what}: {', '.join(plan[what]) or 'none'}")


def _print_forgotten(forgotten: Forgotten) -> None:
    from lorewright.reports.results import estimates_table

    gone = forgotten.removal
    say(
        f"{', '.join(gone.names)} removed: adapters {len(gone.adapters)}, sources "
        f"{len(gone.sources)}, runs {len(gone.runs)}; blanked in records of others: "
        f"{forgotten.n_blanked}"
    )
    for line in gone.kept:
        say(line, "yellow")
    if forgotten.base is not None:
        arms = {"itself, before": forgotten.before, "base alone": forgotten.base}
        show(estimates_table("Recall of what was forgotten", arms | dict(forgotten.others)))
    wanted, scan = forgotten.wanted, forgotten.scan
    say(
        f"{scan.n_files} files, {scan.n_bytes:,} bytes, searched for {len(wanted.runs)} runs of "
        f"words from {wanted.n_texts} texts ({wanted.n_short} too short; {len(forgotten.shared)} "
        f"runs more stand in the sources of others): {len(scan.leftovers)} left"
    )
    for trace in scan.leftovers[:10]:
        say(f"{trace.path}: {' '.join(trace.words) or 'the weights of its adapter'}", "red")
    for name in forgotten.above_base:
        say(f"{name} still recalls it", "red")
    _print_verdict("forgotten" if forgotten.holds else "not forgotten", forgotten.holds)


def _print_verdict(text: str, holds: bool) -> None:
    say(text, "bold green" if holds else "bold red")


def supersede(
    folder: Folder,
    name: Which,
    source: Source,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the old one as NAME-before.")] = False,
    rank: Annotated[int, typer.Option(min=0, help="Rank; 0 = as before.")] = 0,
    epochs: Annotated[int, typer.Option(min=0, help="Budget; 0 = as before.")] = 0,
    lr: Annotated[float, typer.Option(min=0, help="Peak rate; 0 = as before.")] = 0.0,
    metric: Metric = "",
    teacher: Teacher = "",
    model: Base = "",
    as_json: Json = False,
    threads: Threads = 0,
) -> None:
    """Facts change: write the changed source under the same name, and ask its neighbours again.

    What did not change must still be recalled, what changed must have its new answer and no longer
    the old one; then the old adapter goes. Exit code 1 when that does not hold, and nothing goes.

    [dim]lore supersede atlas handbook handbook-2027.md[/]
    [dim]lore supersede atlas phones phones.jsonl --keep[/]
    """
    from lorewright.knowledge.readers.read import read_knowledge
    from lorewright.memory.supersede import recipe_of

    console, knowledge = console_for(threads), read_knowledge(source)
    memory = open_memory(folder, model)
    config, lesson = recipe_of(memory, name)
    config = replace(
        config,
        lora=replace(config.lora, rank=rank or config.lora.rank),
        epochs=epochs or config.epochs,
        lr=lr or config.lr,
    )
    with watching(console) as watch:
        superseded = memory.supersede(
            name,
            knowledge,
            keep=keep,
            config=config,
            lesson=lesson,
            teacher=teacher_at(teacher, folder),
            metric=metric,
            watch=watch,
        )
    if as_json:
        print_json(superseded.to_json())
    else:
        _print_superseded(superseded)
    if not superseded.holds:
        raise typer.Exit(Exit.FAILED)


def _print_superseded(superseded: Superseded) -> None:
    from lorewright.reports.results import estimates_table

    arms = {
        "unchanged facts, old memory": superseded.unchanged_before,
        "unchanged facts, new memory": superseded.unchanged,
        "changed facts, new answer": superseded.new_given,
        "changed facts, still the old answer": superseded.old_given,
    }
    change = f"{superseded.old_adapter} → {superseded.new_adapter}"
    show(estimates_table(f"{superseded.name}: {change}", arms))
    for each in superseded.contradictions:
        print_contradiction(each)
    for name in superseded.stale:
        say(f"{name} was merged from the old one; merge it again", "yellow")
    if superseded.kept_as:
        say(f"the old one is kept as {superseded.kept_as}")
    elif superseded.scan is not None:
        n = len(superseded.scan.leftovers)
        say(f"the old one is gone; files that hold what only it held: {n}")
    _print_verdict("superseded" if superseded.holds else "not as it should be", superseded.holds)


COMMANDS = (forget, supersede)
