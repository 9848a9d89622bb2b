"""`lore snapshot`, `restore`, `export`: copies of a folder, and of a memory for other engines."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lorewright.cli.options import Base, Folder, Into, Json, Name, open_memory
from lorewright.cli.settings import dict_keys
from lorewright.cli.terminal import print_json, say
from lorewright.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

FORMATS = ", ".join(dict_keys("lorewright.models.export.EXPORTERS"))
Format = Annotated[str, typer.Option("--to", help=f"{FORMATS}; vllm is SGLang's as well.")]


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


def _print_snapshot(record: Mapping[str, object], as_json: bool) -> None:
    if as_json:
        print_json(record)
        return
    text = "{path}: {n_memories} memories, {n_files} files, {n_bytes} bytes, digest {digest}"
    say(text.format(**record))


def export(
    place: Annotated[str, typer.Argument(help="FOLDER/NAME, or a folder with --name.")] = "",
    to: Format = "peft",
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
    from lorewright.files import slug
    from lorewright.memory.folder import INDEX_FILE
    from lorewright.models.export import export as write

    if not place and memory is None:
        raise ConfigError("no memory to export; give FOLDER/NAME, or --memory FOLDER.")
    folder = memory or Path(place)
    if not (folder / INDEX_FILE).is_file() and (folder.parent / INDEX_FILE).is_file():
        folder, name = folder.parent, name or folder.name
    opened = open_memory(folder, model)
    chosen = slug(name) if name else opened.folder.only()
    exported = write(opened.adapter(chosen), opened.model, out, to=to, name=chosen)
    if as_json:
        print_json(exported.to_json())
        return
    say(f"{chosen}, adapter {exported.adapter}, {exported.n_modules} layers, in {exported.path}")
    for note in exported.notes:
        say(note, "dim")
    for command in exported.commands:
        say(command)


COMMANDS = (snapshot, restore, export)
