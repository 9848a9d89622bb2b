"""`lore sandbox`: small experiments on a base, arms that differ in one setting."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from lorewright.cli.options import Base, Json, Threads
from lorewright.cli.settings import dict_keys
from lorewright.cli.terminal import console_for, print_json, say, show, watching

if TYPE_CHECKING:
    from collections.abc import Mapping

NAMES = ", ".join(dict_keys("lorewright.memory.experiments.EXPERIMENTS"))


def sandbox(
    experiment: Annotated[str, typer.Argument(help=f"Which one: {NAMES}.")],
    model: Base = "pocket",
    seed: Annotated[int, typer.Option(help="Of all draws.")] = 0,
    as_json: Json = False,
    threads: Threads = 0,
) -> None:
    """Train arms that differ in one setting, in one stack, and say what came of it.

    What a textbook expects is printed before; the closing sentence is computed from what happened.

    [dim]lore sandbox rank[/]
    [dim]lore sandbox overfitting --json[/]
    """
    from lorewright.memory.experiments import experiment as run
    from lorewright.memory.experiments import place_of
    from lorewright.models.model import Model

    console = console_for(threads)
    place_of(experiment)  # a name that is none is refused before a base is loaded
    base = Model.load(model)
    with watching(console) as watch:
        record = run(base, experiment, seed=seed, watch=watch)
    if as_json:
        print_json(record)
    else:
        _print_record(record)


def _print_record(record: Mapping[str, Any]) -> None:
    from lorewright.reports.results import spelled
    from lorewright.reports.tables import NOT_RUN, Table

    rows = tuple(
        (
            each["arm"],
            str(len(each["epochs"])),
            f"{each['epochs'][-1]['loss_nats']:.3f}" if each["epochs"] else NOT_RUN,
            f"{each['epochs'][-1]['held_out_nats']:.3f}" if each["epochs"] else NOT_RUN,
            f"{spelled(each['trained'])} n={each['trained']['n']}",
            f"{spelled(each['held'])} n={each['held']['n']}",
        )
        for each in record["outcomes"]
    )
    head = ("arm", "epochs", "nats", "held out", "as trained", "other words")
    subtitle = f"{record['n_facts']} made-up facts on {record['base']}"
    show(Table(record["question"], head, rows, subtitle=subtitle))
    say(f"expected: {record['expected']}", "dim")
    say(record["sentence"], "bold")


COMMANDS = (sandbox,)
