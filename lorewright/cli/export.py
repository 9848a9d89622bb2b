"""`lore export`: a memory as a file or folder that another engine loads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from lorewright.cli.options import Base, Json, Name, open_memory
from lorewright.cli.output import print_json


def export(
    place: Annotated[str, typer.Argument(help="FOLDER/NAME, or a folder with --name.")] = "",
    to: Annotated[str, typer.Option("--to", help="peft, vllm (and SGLang), gguf.")] = "peft",
    out: Annotated[Path, typer.Option("--out", help="A folder that is not there yet.")] = Path(
        "exported"
    ),
    memory: Annotated[
        Path | None, typer.Option("--memory", help="The memory's folder, instead of the argument.")
    ] = None,
    name: Name = "",
    model: Base = "",
    as_json: Json = False,
) -> None:
    """Write a memory for PEFT, vLLM, SGLang or llama.cpp, and read it back to be sure.

    [dim]lore export atlas/handbook --to gguf --out handbook-gguf[/]
    [dim]lore export --memory atlas --name handbook --to vllm --out handbook-vllm[/]
    """
    from lorewright.errors import ConfigError
    from lorewright.files import slug
    from lorewright.memory.folder import INDEX_FILE
    from lorewright.models.export import export as write

    folder = memory or Path(place)
    if not str(place) and memory is None:
        raise ConfigError("say which memory to export: FOLDER/NAME, or --memory FOLDER.")
    if not (folder / INDEX_FILE).is_file() and (folder.parent / INDEX_FILE).is_file():
        folder, name = folder.parent, name or folder.name
    opened = open_memory(folder, model)
    chosen = slug(name) if name else opened.folder.only()
    found = write(opened.adapter(chosen), opened.model, out, to=to, name=chosen)
    if as_json:
        print_json(found.to_json())
        return
    console = Console(soft_wrap=True)
    said = f"{chosen}, adapter {found.adapter}, {found.n_modules} layers, in {found.path}"
    console.print(escape(said), highlight=False)
    for note in found.notes:
        console.print(f"[dim]{escape(note)}[/]", highlight=False)
    for command in found.commands:
        console.print(escape(command), highlight=False)
