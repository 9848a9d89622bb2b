"""`lore costs`: what every memory took and recalls, beside what papers say of its method."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from lorewright.cli.options import Folder, Json
from lorewright.cli.terminal import print_json, show

if TYPE_CHECKING:
    from lorewright.memory.costs import Costs


def costs(
    folder: Folder,
    small: Annotated[
        float, typer.Option(min=0, max=1, help="How much smallness counts beside recall.")
    ] = 0.0,
    as_json: Json = False,
) -> None:
    """Compare the memories of a folder: share of parameters, seconds, recall, what is retained.

    [dim]lore costs atlas[/]
    [dim]lore costs atlas --small 0.5 --json[/]
    """
    from lorewright.memory.costs import costs as measured
    from lorewright.memory.costs import parameters_of
    from lorewright.memory.folder import Folder as MemoryFolder

    place = MemoryFolder(folder)
    compared = measured(place, small=small, n_base=parameters_of(place))
    if as_json:
        print_json(compared.to_json())
    else:
        _print(compared)


def _print(compared: Costs) -> None:
    from lorewright.memory.costs import CLAIMS
    from lorewright.reports.results import spelled
    from lorewright.reports.tables import NOT_RUN, Table

    rows = tuple(
        (
            each.memory,
            each.method,
            NOT_RUN if each.share is None else f"{each.share:.3%}",
            NOT_RUN if each.seconds is None else f"{each.seconds:.1f}",
            spelled(each.recall),
            spelled(each.retained),
        )
        for each in compared.points
    )
    head = ("memory", "method", "of the base", "seconds", "recall", "retained")
    notes = tuple(f"{each.called}: {each.says} ({each.source})." for each in CLAIMS if each.source)
    show(Table("", head, rows, notes, n_keys=2))


COMMANDS = (costs,)
