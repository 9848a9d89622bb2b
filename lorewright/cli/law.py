"""`lore law`: the Parametric Memory Law, fitted to anybody's measurements and asked for a rank."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lorewright.cli.output import print_json

app = typer.Typer(
    no_args_is_help=True,
    help="Fit the law of what a rank holds, and ask it.\n\n[dim]lore law fit --from cells.csv[/]",
)

Cells = Annotated[
    Path,
    typer.Option(
        "--from",
        help="CSV: rank, n_answer_tokens, loss_drop; optional loss_init, n_parameters, recall, n.",
    ),
]
Size = Annotated[str, typer.Option(help="What a law is in: rank, or parameters.")]
Initial = Annotated[
    float, typer.Option(min=0, help="Loss before training in nats, where the table has none.")
]
Draws = Annotated[int, typer.Option(min=0, help="Bootstrap draws for the intervals.")]
Seed = Annotated[int, typer.Option(help="Of the bootstrap.")]
Form = Annotated[str, typer.Option(help="bounded, paper, paper_without_offset, recall.")]
Json = Annotated[bool, typer.Option("--json", help="Print plain data.")]


@app.command()
def fit(
    cells: Cells,
    size: Size = "rank",
    loss_init: Initial = 0.0,
    above_rank: Annotated[int, typer.Option(min=0, help="Hold out cells above this rank.")] = 0,
    above_length: Annotated[int, typer.Option(min=0, help="Hold out longer texts.")] = 0,
    draws: Draws = 1000,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Fit every form of the law to a table of measurements; constants and scores with intervals.

    [dim]lore law fit --from cells.csv --json[/]
    [dim]lore law fit --from cells.csv --above-rank 6 --above-length 4000[/]
    """
    from lorewright.law.cells import read_cells
    from lorewright.law.law import fit_report, table

    report = fit_report(
        read_cells(cells),
        size=size,
        loss_init=loss_init or None,
        n_draws=draws,
        seed=seed,
        hold_out_above_rank=above_rank or None,
        hold_out_above_length=above_length or None,
    )
    if as_json:
        print_json(report)
        return
    head, *rows = table(report)
    shown = Table(*head, box=None, pad_edge=False)
    for row in rows:
        shown.add_row(*map(Text, row))
    Console().print(shown)


@app.command()
def predict(
    cells: Cells,
    tokens: Annotated[int, typer.Option(min=1, help="Answer tokens to be written.")],
    rank: Annotated[int, typer.Option(min=0, help="Rank; 0 = find it, see --wanted.")] = 0,
    wanted: Annotated[
        float, typer.Option(min=0, help="Loss drop in nats, or share recalled, to be reached.")
    ] = 0.0,
    form: Form = "bounded",
    size: Size = "rank",
    loss_init: Initial = 0.0,
    draws: Draws = 1000,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Say what a rank would come to, or which rank it takes; with an interval.

    [dim]lore law predict --from cells.csv --tokens 3000 --rank 8[/]
    [dim]lore law predict --from cells.csv --tokens 3000 --form recall --wanted 0.95[/]
    """
    from lorewright.errors import ConfigError
    from lorewright.law.cells import read_cells
    from lorewright.law.law import fit as fit_law

    if (rank > 0) == (wanted > 0):
        raise ConfigError(
            f"--rank is {rank} and --wanted {wanted:g}; give one of the two: a rank to be told "
            "what it comes to, or what is wanted to be told a rank."
        )
    law = fit_law(
        read_cells(cells), form, size=size, loss_init=loss_init or None, n_draws=draws, seed=seed
    )
    if rank:
        found = law.predict_interval(rank, tokens)._asdict()
    else:
        found = law.invert(wanted, tokens)._asdict()
    what = {"form": form, "size": size, "n_answer_tokens": tokens, "rank": rank, "wanted": wanted}
    if as_json:
        print_json({"asked": what, **found})
        return
    values = ", ".join(f"{k} {'–' if v is None else format(v, '.4g')}" for k, v in found.items())
    Console().print(Text(values))
