"""`lore bench`: what can be written into an adapter on a base, measured, in a folder of records."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lorewright.cli.options import Base, Json, Markdown, Threads
from lorewright.cli.sweeps import (
    Epochs,
    Methods,
    On,
    Out,
    Placement,
    Quick,
    Ranks,
    Rate,
    Seeds,
    given,
    numbers,
    sweep,
)
from lorewright.cli.terminal import console_for

app = typer.Typer(
    no_args_is_help=True,
    help="Measure what adapters hold, with seeds and intervals.\n\n"
    "[dim]lore bench longcontext --quick[/]",
)

Lengths = Annotated[str, typer.Option(help="Answer tokens of a text, like 16,64,256.")]
Sizes = Annotated[str, typer.Option(help="Answer tokens of a book, like 500,1000.")]
Noise = Annotated[str, typer.Option(help="Per cent of random tokens, like 0,50,100.")]


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
    objective: Methods = None,
    placement: Placement = "down_proj@middle",
    text: Annotated[Path | None, typer.Option(help="Natural text of your own.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Budget of steps a write; the law.")] = 500,
    compared_steps: Annotated[int, typer.Option(min=1, help="And of the other parts.")] = 200,
    lr: Rate = 0.0,
    out: Out = Path("bench-longcontext"),
    on: On = "here",
    quick: Quick = False,
    markdown: Markdown = False,
    threads: Threads = 0,
    as_json: Json = False,
) -> None:
    """Recite long texts: the law of rank and length, first failures, methods, placements.

    [dim]lore bench longcontext --out lc --on local:2[/]
    [dim]lore bench longcontext --model Qwen/Qwen3-0.6B --lengths 500,2000 --ranks 1,4,16[/]
    """
    from lorewright.bench import longcontext as bench

    console = console_for(threads)
    asked = given(
        ranks=numbers("ranks", ranks),
        lengths=numbers("lengths", lengths),
        noise=numbers("noise", noise),
        parts=tuple(part or ()),
        methods=tuple(objective or ()),
        text=str(text or ""),
    )
    config = bench.LongContext(
        model=model,
        documents=seeds,
        placement=placement,
        steps=steps,
        compared_steps=compared_steps,
        lr=lr,
        **asked,
    )
    config = bench.quick(config) if quick else config
    sweep(bench.TASK, config, console, out=out, on=on, as_json=as_json, markdown=markdown)


@app.command()
def phonebook(
    model: Base = "pocket",
    ranks: Ranks = "",
    sizes: Sizes = "",
    seeds: Seeds = 5,
    objective: Methods = None,
    placement: Placement = "all-linear",
    epochs: Epochs = 40,
    lr: Rate = 0.0,
    out: Out = Path("bench-phonebook"),
    on: On = "here",
    quick: Quick = False,
    markdown: Markdown = False,
    threads: Threads = 0,
    as_json: Json = False,
) -> None:
    """Remember numbers of ten digits: methods at the same budget, by rank, over several books.

    [dim]lore bench phonebook --out pb --on local:2[/]
    """
    from lorewright.bench import phonebook as bench

    console = console_for(threads)
    asked = given(
        ranks=numbers("ranks", ranks),
        sizes=numbers("sizes", sizes),
        methods=tuple(objective or ()),
    )
    config = bench.PhoneBook(
        model=model, seeds=seeds, placement=placement, epochs=epochs, lr=lr, **asked
    )
    config = bench.quick(config) if quick else config
    sweep(bench.TASK, config, console, out=out, on=on, as_json=as_json, markdown=markdown)


@app.command()
def linear_rule(
    model: Base = "pocket",
    ranks: Ranks = "",
    pairs: Annotated[int, typer.Option(min=1, help="Pairs trained; as many others asked.")] = 500,
    seeds: Seeds = 5,
    objective: Methods = None,
    placement: Placement = "all-linear",
    epochs: Epochs = 40,
    lr: Rate = 0.0,
    out: Out = Path("bench-linear-rule"),
    on: On = "here",
    quick: Quick = False,
    markdown: Markdown = False,
    threads: Threads = 0,
    as_json: Json = False,
) -> None:
    """Learn 3x + 5y + 7 from pairs: what is remembered, and what is generalised.

    [dim]lore bench linear-rule --out lr --on local:2[/]
    """
    from lorewright.bench import linear_rule as bench

    console = console_for(threads)
    asked = given(ranks=numbers("ranks", ranks), methods=tuple(objective or ()))
    config = bench.LinearRule(
        model=model, pairs=pairs, seeds=seeds, placement=placement, epochs=epochs, lr=lr, **asked
    )
    config = bench.quick(config) if quick else config
    sweep(bench.TASK, config, console, out=out, on=on, as_json=as_json, markdown=markdown)
