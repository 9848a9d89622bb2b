"""`lore bench memories`: many documents, a memory each, asked without saying which one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lorewright.cli.options import Base, Json, Markdown, Threads
from lorewright.cli.sweeps import Quick
from lorewright.cli.terminal import console_for, print_json, show, watching

Out = Annotated[Path, typer.Option(help="Folder of memories and replies; goes on where it was.")]


def memories(
    model: Base = "pocket",
    documents: Annotated[int, typer.Option(min=2, help="Documents, a memory each.")] = 64,
    rank: Annotated[int, typer.Option(min=1, help="Rank of each memory.")] = 4,
    epochs: Annotated[int, typer.Option(min=1, help="Budget of every write.")] = 60,
    false_activation: Annotated[
        float, typer.Option(help="Share of strangers' questions that may be let through.")
    ] = 0.05,
    merge_method: Annotated[str, typer.Option(help="As in `lore merge`, or auto.")] = "imitate",
    arm: Annotated[list[str] | None, typer.Option(help="Some of the arms; all by default.")] = None,
    source: Annotated[
        Path | None, typer.Option("--from", help="Your documents as JSON lines, with questions.")
    ] = None,
    strangers: Annotated[
        Path | None, typer.Option(help="Questions about other things, one a line.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of writes and draws.")] = 0,
    out: Out = Path("bench-memories"),
    quick: Quick = False,
    markdown: Markdown = False,
    threads: Threads = 0,
    as_json: Json = False,
) -> None:
    """Ask many memories without saying which: oracle, routed, wrong, one adapter, merged, hybrid …

    [dim]lore bench memories --quick[/]
    [dim]lore bench memories --out mem --markdown[/]
    """
    from lorewright.bench import memories as bench
    from lorewright.bench import memories_record as record
    from lorewright.errors import ConfigError
    from lorewright.models.model import Model
    from lorewright.reports.tables import Table

    console = console_for(threads)
    arms = tuple(arm or bench.ARMS)
    unknown = sorted({*arms} - {*bench.ARMS})
    if unknown:
        listed = ", ".join(bench.ARMS)
        raise ConfigError(f"--arm {unknown[0]!r} is unknown; use some of {listed}.")
    settings = bench.Settings(
        n_documents=documents,
        rank=rank,
        epochs=epochs,
        false_activation=false_activation,
        merge_method=merge_method,
        seed=seed,
        documents=str(source or ""),
        strangers=str(strangers or ""),
    )
    if quick:
        settings = bench.quick(settings)
    with watching(console) as watch:
        found = record.run(out, Model.load(model), settings, arms=arms, watch=watch)
    if as_json:
        print_json(found)
    elif markdown:
        typer.echo(record.markdown(found))
    else:
        head, *body = record.rows(found)
        show(Table("", tuple(head), tuple(map(tuple, body)), tuple(record.sentences(found))))
