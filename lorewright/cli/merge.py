"""`lore merge`: several memories to one, and what that cost each of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from lorewright.cli.options import Base, Folder, Json, Metric, Threads, open_memory
from lorewright.cli.settings import dict_keys
from lorewright.cli.terminal import Exit, console_for, print_json, say, show, watching
from lorewright.errors import ConfigError

if TYPE_CHECKING:
    from lorewright.memory.merge import Merged
    from lorewright.merging.plane import Plane

Names = Annotated[list[str], typer.Argument(help="Memories to merge: two, or one and --rank.")]
METHODS = [
    *("auto", *dict_keys("lorewright.merging.algebra.COMBINATIONS")),
    *dict_keys("lorewright.merging.methods.METHODS"),
]
Method = Annotated[str, typer.Option(help=f"{', '.join(METHODS)}.")]
COMBINED = dict_keys("lorewright.merging.algebra.COMBINATIONS")
PLANAR = [name for name in COMBINED if name != "regmean"]
Into = Annotated[str, typer.Option("--into-name", help="Name of the new memory; else all joined.")]
Rank = Annotated[int, typer.Option(min=0, help="Rank; 0 = the sum of the ranks.")]
Weights = Annotated[
    str, typer.Option(help="Factors on each memory's weight change, like 1,0.5; 1 by default.")
]
Settings = Annotated[
    list[str] | None, typer.Option("--option", help="Of the method, like density=0.2; repeatable.")
]


def merge(
    folder: Folder,
    names: Names,
    method: Method = "auto",
    into_name: Into = "",
    rank: Rank = 0,
    weights: Weights = "",
    option: Settings = None,
    metric: Metric = "",
    model: Base = "",
    as_json: Json = False,
    threads: Threads = 0,
) -> None:
    """Merge memories of a folder into a new one; recall of each, before and after.

    Exit code 1 when the new one recalls nothing of any.

    [dim]lore merge atlas handbook phones[/]
    [dim]lore merge atlas a b --method ties --option density=0.2 --into-name ab --rank 16[/]
    """
    console = console_for(threads)
    factors, settings = weights_of(weights), options_of(option or [])
    memory = open_memory(folder, model)
    with watching(console) as watch:
        merged = memory.merge(
            names,
            method=method,
            weights=factors,
            into=into_name,
            rank=rank or None,
            options=settings,
            metric=metric,
            watch=watch,
        )
    if as_json:
        print_json(merged.to_json())
    else:
        _print_merged(merged)
    if merged.recalls is False:
        raise typer.Exit(Exit.FAILED)


def plane(
    folder: Folder,
    names: Names,
    weights: Weights = "",
    method: Annotated[
        list[str] | None, typer.Option(help=f"{', '.join(PLANAR)}; repeatable, all by default.")
    ] = None,
    model: Base = "",
    as_json: Json = False,
    threads: Threads = 0,
) -> None:
    """Show memories as arrows in their common plane, and where each way of merging lands.

    Nothing is written; what a merge recalls is measured by `lore merge`.

    [dim]lore plane atlas a b c --weights 1,0.8,-0.5[/]
    """
    from lorewright.merging.plane import PLANAR as KNOWN

    console_for(threads)
    drawn = open_memory(folder, model).plane(
        names, weights=weights_of(weights), methods=tuple(method or KNOWN)
    )
    if as_json:
        print_json(drawn.to_json())
    else:
        _print_plane(drawn)


def _print_plane(drawn: Plane) -> None:
    from lorewright.reports.tables import Table

    sources = zip(drawn.names, drawn.weights, drawn.norms, drawn.at, drawn.in_plane, strict=True)
    rows = [
        (name, f"{weight:g}", f"{norm:.3f}", f"{x:.3f}, {y:.3f}", f"{share:.0%}", "")
        for name, weight, norm, (x, y), share in sources
    ]
    rows += [
        (
            each.method,
            "",
            f"{each.norm:.3f}",
            f"{each.at[0]:.3f}, {each.at[1]:.3f}",
            f"{each.in_plane:.0%}",
            f"{each.in_span:.0%}",
        )
        for each in drawn.landings
    ]
    head = ("arrow", "weight", "norm", "at", "in the plane", "a sum of the sources")
    show(Table("", head, tuple(rows), sections=(len(drawn.names) - 1,)))


def sketch(
    vectors: Annotated[list[str], typer.Argument(help="Vectors of two numbers, like 1,0.5.")],
    weights: Weights = "",
    as_json: Json = False,
) -> None:
    """Merge free vectors by every combination of weight changes: what TIES does to two arrows.

    [dim]lore sketch 1,0.2 0.3,1 -- -0.5,0.4[/]
    """
    from lorewright.merging.plane import sketch as draw

    points = draw([weights_of(text) or [] for text in vectors], weights=weights_of(weights))
    if as_json:
        print_json({"points": points})
        return
    for method, (x, y) in points.items():
        say(f"{method:<18}{x:.4f}, {y:.4f}")


def weights_of(text: str) -> list[float] | None:
    """`1,0.5` as [1.0, 0.5]; None for nothing."""
    try:
        return [float(part) for part in text.split(",")] if text else None
    except ValueError:
        raise ConfigError(
            f"--weights is {text!r}; give one number for each memory, like 1,0.5."
        ) from None


def options_of(texts: list[str]) -> dict[str, Any]:
    """Return `density=0.2` as {"density": 0.2}; whole numbers stay whole."""
    options: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        try:
            options[name] = int(value) if value.lstrip("-").isdecimal() else float(value)
        except ValueError:
            equals = ""
        if not (name and equals):
            raise ConfigError(f"--option is {text!r}; write a name and a number, like density=0.2.")
    return options


def _print_merged(merged: Merged) -> None:
    from lorewright.reports.results import merged_table, trials_table

    record = merged.to_json()
    if merged.trials:
        show(trials_table(record))
    for note in merged.notes:
        say(note, "dim")
    show(merged_table(record))
    how = " ".join([merged.method, *(f"{k} {v:g}" for k, v in merged.options.items())])
    say(
        f"{merged.name} by {how}, rank {merged.rank}, {merged.n_bytes / 1e6:.2f} MB, in "
        f"{merged.seconds:.0f} s; read back from disk it moves logits by up to {merged.moved:.3g}"
    )
    if merged.recalls is False:
        say(
            f"{merged.name} recalls nothing of its sources; lore doctor "
            f"{merged.folder.parents[1]}/{merged.name}",
            "bold red",
        )
    elif merged.worse_than:
        say(
            f"{merged.name} recalls less than {', '.join(merged.worse_than)} alone: as long as its "
            f"sources are there, questions go to them, and to {merged.name} by name only",
            "yellow",
        )
    say(f"adapter {merged.adapter_id} in {merged.folder}")


COMMANDS = (merge, plane, sketch)
