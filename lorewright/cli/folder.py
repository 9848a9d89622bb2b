"""What a folder holds and where adapters go: `lore show`, `rename`, `contradictions`, `targets`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from lorewright.adapters.config import LoraConfig
from lorewright.cli.options import LORA, Folder, Json, Which
from lorewright.cli.settings import Group, with_options
from lorewright.cli.terminal import print_json, say
from lorewright.cli.terminal import show as show_table

if TYPE_CHECKING:
    from lorewright.memory.contradictions import Contradiction

PLACES = Group(LoraConfig, LORA.flags, only=("targets", "layers"))


def show(
    folder: Folder,
    limit: Annotated[int, typer.Option(min=0, help="Memories in the table; 0 = all.")] = 50,
    as_json: Json = False,
) -> None:
    """List the memories of a folder with their verdicts.

    [dim]lore show atlas[/]
    """
    from lorewright.memory.folder import Folder as MemoryFolder
    from lorewright.memory.removal import unfinished
    from lorewright.reports.results import memories_table

    place = MemoryFolder(folder)
    if as_json:
        cards, journal = place.cards(), unfinished(place)
        names = list(journal.removal.names) if journal else []
        print_json({"folder": str(folder), "memories": cards, "forgetting": names})
        return
    listed = place.briefs()
    shown = listed[: limit or None]
    show_table(memories_table(shown, n_more=len(listed) - len(shown)))
    if journal := unfinished(place):
        name = journal.removal.names[0]
        say(
            f"forgetting {name} was interrupted; lore forget {folder} {name} completes and proves "
            "it, and whatever is written next completes it",
            "yellow",
        )


def rename(
    folder: Folder,
    old: Which,
    new: Annotated[str, typer.Argument(help="New name.")],
    as_json: Json = False,
) -> None:
    """Give a memory another name.

    [dim]lore rename atlas handbook staff-handbook[/]
    """
    from lorewright.files import slug
    from lorewright.memory.folder import Folder as MemoryFolder

    MemoryFolder(folder).rename(slug(old), slug(new))
    if as_json:
        print_json({"folder": str(folder), "old": slug(old), "new": slug(new)})
    else:
        say(f"{slug(old)} is now {slug(new)}")


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
    """Where memories disagree: one question, the same, nearly so or reversed, with two answers.

    [dim]lore contradictions atlas[/]
    [dim]lore contradictions atlas --name handbook --near 1 --json[/]
    """
    from lorewright.files import slug
    from lorewright.memory.contradictions import NEAR, contradictions_in
    from lorewright.memory.folder import Folder as MemoryFolder

    only = slug(name) if name else ""
    listed = contradictions_in(MemoryFolder(folder), near=NEAR if near is None else near, only=only)
    if as_json:
        print_json({"folder": str(folder), "contradictions": [c.to_json() for c in listed]})
        return
    for each in listed[: limit or None]:
        print_contradiction(each)
    n_same = sum(c.kind == "same" for c in listed)
    say(f"{n_same} certain, {len(listed) - n_same} to be judged")


def print_contradiction(each: Contradiction) -> None:
    """Print how sure it is, then both questions with their answers."""
    certain = each.kind == "same"
    kind = each.kind if certain else f"{each.kind} {each.score:.2f}"
    say(kind, "red" if certain else "yellow")
    for one in (each.first, each.second):
        say(f"  {one.memory}: {one.question} {' | '.join(one.answers)}")


@with_options(places=PLACES)
def targets(
    places: LoraConfig,
    model: Annotated[str, typer.Argument(help="pocket, a folder, or a hub name.")] = "pocket",
    as_json: Json = False,
) -> None:
    """Show where an adapter would go on a model, and what is left alone and why.

    [dim]lore targets pocket --target q_proj --layers 0-1[/]
    """
    from lorewright.adapters.targets import resolve_targets
    from lorewright.models.model import Model
    from lorewright.reports.results import coverage_table

    coverage = resolve_targets(Model.load(model).network, places.targets, places.layers)
    if as_json:
        skipped = dict(coverage.skipped)
        print_json({"modules": coverage.names, "n_linear": coverage.n_linear, "skipped": skipped})
    else:
        show_table(coverage_table(coverage))


COMMANDS = (show, rename, contradictions, targets)
