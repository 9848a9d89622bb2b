"""The folder's life: take in, rename, forget, supersede, compare, copy away and back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from lorewright.cli.doctor import doctor
from lorewright.cli.export import export
from lorewright.cli.options import (
    Base,
    Folder,
    Into,
    Json,
    Metric,
    Probes,
    Source,
    Teacher,
    Threads,
    open_memory,
    teacher_at,
)
from lorewright.cli.output import console_for, print_json, watching

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lorewright.memory.contradictions import Contradiction
    from lorewright.memory.forget import Forgotten
    from lorewright.memory.supersede import Superseded
    from lorewright.recall.statistics import Estimate

FAILED = 1
"""Exit code when a proof does not hold."""

Which = Annotated[str, typer.Argument(help="Name of the memory.")]


def add(
    folder: Folder,
    adapter: Annotated[Path, typer.Argument(help="An adapter folder as PEFT saves it.")],
    name: Annotated[
        str, typer.Option("--name", "-n", help="Its name; by default the folder's.")
    ] = "",
    source: Annotated[Path | None, typer.Option(help="What it was made from.")] = None,
    probes: Probes = None,
    metric: Metric = "",
    model: Base = "",
    as_json: Json = False,
    threads: Threads = 0,
) -> None:
    """Take in an adapter that was made elsewhere, checked against the base and proved to move it.

    [dim]lore add atlas checkpoints/my-lora --name handbook --source handbook.jsonl[/]
    """
    from lorewright.knowledge.readers import read_knowledge, read_probes
    from lorewright.memory.memory import Memory
    from lorewright.reports.tables import recall_table

    console = console_for(threads)
    known = read_knowledge(source) if source else None
    asked = read_probes(probes) if probes else ()
    memory = Memory.open(folder, model or None)
    with watching(console) as watch:
        found = memory.add(
            adapter, name=name, knowledge=known, probes=asked, metric=metric, watch=watch
        )
    if as_json:
        print_json(found.to_json())
        return
    out = Console(soft_wrap=True)
    for note in found.notes:
        out.print(f"[dim]{escape(note)}[/]", highlight=False)
    proof = found.proof
    out.print(
        f"[b]{escape(found.name)}[/] {proof.n_tensors} tensors bound to {len(proof.delta_norms)} "
        f"layers, no weight change is zero, logits moved by up to {proof.moved:.3g}",
        highlight=False,
    )
    if found.report.arms:
        out.print(recall_table(found.report))
    else:
        out.print("[dim]no verdict: give --source or --probes to ask what it knows[/]")
    out.print(f"adapter {found.adapter_id} in {escape(str(found.folder))}", highlight=False)


def rename(
    folder: Folder, old: Which, new: Annotated[str, typer.Argument(help="New name.")]
) -> None:
    """Give a memory another name.

    [dim]lore rename atlas handbook staff-handbook[/]
    """
    from lorewright.files import slug
    from lorewright.memory.folder import Folder as MemoryFolder

    MemoryFolder(folder).rename(slug(old), slug(new))
    Console(soft_wrap=True).print(
        f"{escape(slug(old))} is now {escape(slug(new))}", highlight=False
    )


def forget(
    folder: Folder,
    name: Which,
    with_merged: Annotated[
        bool, typer.Option("--with-merged", help="Forget what was merged from it as well.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would go; touch nothing.")
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
    from dataclasses import asdict

    from lorewright.files import slug
    from lorewright.memory.folder import Folder as MemoryFolder
    from lorewright.memory.forget import plan_removal

    if dry_run:
        plan = asdict(plan_removal(MemoryFolder(folder), slug(name), with_merged=with_merged))
        if as_json:
            print_json(plan)
        else:
            _print_plan(plan)
        return
    console = console_for(threads)
    with watching(console) as watch:
        found = open_memory(folder, model).forget(name, with_merged=with_merged, watch=watch)
    if as_json:
        print_json(found.to_json())
    else:
        _print_forgotten(found)
    if not found.holds:
        raise typer.Exit(FAILED)


def _print_plan(plan: Mapping[str, tuple[str, ...]]) -> None:
    out = Console(soft_wrap=True)
    for what in ("names", "adapters", "sources", "runs", "kept"):
        listed = ", ".join(plan[what]) or "none"
        out.print(f"{what}: {escape(listed)}", highlight=False)


def _print_forgotten(found: Forgotten) -> None:
    out = Console(soft_wrap=True)
    gone = found.removal
    counts = (len(gone.adapters), len(gone.sources), len(gone.runs))
    out.print(
        f"[b]{escape(', '.join(gone.names))}[/] removed: adapters {counts[0]}, sources "
        f"{counts[1]}, runs {counts[2]}; blanked in records of others: {found.n_blanked}",
        highlight=False,
    )
    for line in gone.kept:
        out.print(f"[yellow]{escape(line)}[/]", highlight=False)
    if found.base is not None:
        arms = {"itself, before": found.before, "base alone": found.base, **found.others}
        out.print(_estimates("Recall of what was forgotten", arms, found.above_base))
    asked, seen = found.wanted, found.scan
    out.print(
        f"{seen.n_files} files, {seen.n_bytes:,} bytes, searched for {len(asked.runs)} runs of "
        f"words from {asked.n_texts} texts ({asked.n_short} too short; {len(found.shared)} runs "
        f"more stand in what others were written from): {len(seen.leftovers)} found",
        highlight=False,
    )
    for trace in seen.leftovers[:10]:
        said = escape(f"{trace.path}: {' '.join(trace.words)}")
        out.print(f"[red]{said}[/]", highlight=False)
    for name in found.above_base:
        out.print(f"[red]{escape(name)} still recalls it[/]", highlight=False)
    out.print("[b green]forgotten[/]" if found.holds else "[b red]not forgotten[/]")


def _estimates(
    title: str, arms: Mapping[str, Estimate | None], high: tuple[str, ...] = ()
) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("")
    table.add_column("recall")
    for who, estimate in arms.items():
        said = "not asked" if estimate is None else str(estimate)
        table.add_row(Text(who), Text(said), style="red" if who in high else "")
    return table


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
    from dataclasses import replace

    from lorewright.knowledge.readers import read_knowledge
    from lorewright.memory.supersede import recipe_of

    console = console_for(threads)
    known = read_knowledge(source)
    memory = open_memory(folder, model)
    config, lesson = recipe_of(memory, name)
    config = replace(
        config,
        lora=replace(config.lora, rank=rank or config.lora.rank),
        epochs=epochs or config.epochs,
        lr=lr or config.lr,
    )
    with watching(console) as watch:
        found = memory.supersede(
            name,
            known,
            keep=keep,
            config=config,
            lesson=lesson,
            teacher=teacher_at(teacher, folder),
            metric=metric,
            watch=watch,
        )
    if as_json:
        print_json(found.to_json())
    else:
        _print_superseded(found)
    if not found.holds:
        raise typer.Exit(FAILED)


def _print_superseded(found: Superseded) -> None:
    out = Console(soft_wrap=True)
    arms = {
        "unchanged facts, old memory": found.unchanged_before,
        "unchanged facts, new memory": found.unchanged,
        "changed facts, new answer": found.new_given,
        "changed facts, still the old answer": found.old_given,
    }
    out.print(_estimates(f"{found.name}: {found.old_adapter} → {found.new_adapter}", arms))
    for each in found.contradictions:
        out.print(_said(each), highlight=False)
    for name in found.stale:
        said = f"{name} was merged from the old one; merge it again"
        out.print(f"[yellow]{escape(said)}[/]", highlight=False)
    if found.kept_as:
        out.print(f"the old one is kept as {escape(found.kept_as)}", highlight=False)
    elif found.scan is not None:
        n = len(found.scan.leftovers)
        out.print(f"the old one is gone; files that hold what only it said: {n}", highlight=False)
    out.print("[b green]superseded[/]" if found.holds else "[b red]not as it should be[/]")


def contradictions(
    folder: Folder,
    name: Annotated[str, typer.Option("--name", "-n", help="Only those of this memory.")] = "",
    near: Annotated[
        float | None,
        typer.Option(help="Least share of terms of nearly equal questions; 1 = equal ones only."),
    ] = None,
    limit: Annotated[int, typer.Option(min=0, help="Shown at most; 0 = all.")] = 50,
    as_json: Json = False,
) -> None:
    """Where memories disagree: the same question, asked alike, nearly so or reversed, two answers.

    [dim]lore contradictions atlas[/]
    [dim]lore contradictions atlas --name handbook --near 1 --json[/]
    """
    from lorewright.files import slug
    from lorewright.memory.contradictions import NEAR, contradictions_in
    from lorewright.memory.folder import Folder as MemoryFolder

    only = slug(name) if name else ""
    found = contradictions_in(MemoryFolder(folder), near=NEAR if near is None else near, only=only)
    if as_json:
        print_json({"folder": str(folder), "contradictions": [c.to_json() for c in found]})
        return
    out = Console(soft_wrap=True)
    for each in found[: limit or None]:
        out.print(_said(each), highlight=False)
    n_same = sum(c.kind == "same" for c in found)
    out.print(f"{n_same} certain, {len(found) - n_same} to be judged", highlight=False)


def _said(each: Contradiction) -> Text:
    sure = each.kind if each.kind == "same" else f"{each.kind} {each.score:.2f}"
    parts = [Text(sure, style="red" if each.kind == "same" else "yellow")]
    for one in (each.first, each.second):
        parts.append(Text(f"  {one.memory}: {one.question} {' | '.join(one.answers)}"))
    return Text("\n").join(parts)


def snapshot(
    folder: Folder,
    to: Annotated[Path, typer.Option("--to", help="File: .tar, .tar.gz or .tgz.")],
    as_json: Json = False,
) -> None:
    """Copy a folder into one file, with a digest of everything in it.

    [dim]lore snapshot atlas --to atlas.tar.gz[/]
    """
    from lorewright.memory.snapshot import take

    _print_snapshot(take(folder, to).to_json(), as_json)


def restore(
    file: Annotated[Path, typer.Argument(help="A snapshot.")],
    into: Into,
    as_json: Json = False,
) -> None:
    """Unpack a snapshot into a new or empty folder, every byte checked first.

    [dim]lore restore atlas.tar.gz --into atlas[/]
    """
    from lorewright.memory.snapshot import restore as unpack

    _print_snapshot(unpack(file, into).to_json(), as_json)


def _print_snapshot(found: Mapping[str, object], as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    said = "{path}: {n_memories} memories, {n_files} files, {n_bytes} bytes, digest {digest}"
    Console(soft_wrap=True).print(escape(said.format(**found)), highlight=False)


COMMANDS = (add, rename, forget, supersede, contradictions, snapshot, restore, doctor, export)
