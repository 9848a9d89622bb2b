"""`lore methods`: the ways of writing, what each trains, and what can be done with its states."""

from __future__ import annotations

from lorewright.cli.options import Json
from lorewright.cli.terminal import print_json, show


def methods(as_json: Json = False) -> None:
    """List the ways of writing for `lore write --method`.

    [dim]lore methods[/]
    """
    from lorewright.reports.tables import Table
    from lorewright.training.config import WriteConfig
    from lorewright.writers.methods import WRITERS

    writers = [make(WriteConfig()) for make in WRITERS.values()]
    if as_json:
        keys = ("name", "trains", "reads", "leaves", "exports", "streams", "trained_offline")
        print_json({"methods": [{key: getattr(each, key) for key in keys} for each in writers]})
        return
    cells = tuple(
        (
            writer.name,
            writer.trains,
            writer.reads,
            writer.leaves,
            "yes" if writer.exports else "no",
            "yes" if writer.trained_offline else "no",
        )
        for writer in writers
    )
    head = ("method", "what it trains", "reads", "leaves", "merges, exports, serves", "needs a kit")
    notes = (
        "Every kind of memory is verified, asked, chatted with, superseded, forgotten and copied.",
        "lore write SOURCE --into FOLDER --method NAME",
    )
    show(Table("", head, cells, notes, prose=("what it trains",)))


COMMANDS = (methods,)
