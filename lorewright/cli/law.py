"""`lore law`: the Parametric Memory Law, fitted to measurements, and what it predicts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lorewright.cli.options import Json
from lorewright.cli.terminal import print_json, say, show

app = typer.Typer(
    no_args_is_help=True,
    help="Fit the law of what a rank holds, and predict by it.\n\n"
    "[dim]lore law fit --from cells.csv[/]",
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
    from lorewright.reports.tables import Table

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
    references = report["reference_bits_per_parameter"]
    notes = [
        f"Others measured {bits:g} bits a parameter: {name}." for name, bits in references.items()
    ]
    head, *rows = table(report)
    notes += [f"{law}: {why}" for law, quantity, why, _ in rows if quantity == "refused"]
    rows = [row for row in rows if row[1] != "refused" and row[1] not in references]
    show(Table("", head, tuple(rows), tuple(notes), n_keys=2, prose=("value",)))


@app.command()
def predict(
    cells: Cells,
    tokens: Annotated[int, typer.Option(min=1, help="Answer tokens to be written.")],
    rank: Annotated[int, typer.Option(min=0, help="Rank; 0 = that for --wanted.")] = 0,
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
    """Predict what a rank recalls, or the rank for a wanted recall; with an interval.

    [dim]lore law predict --from cells.csv --tokens 3000 --rank 8[/]
    [dim]lore law predict --from cells.csv --tokens 3000 --form recall --wanted 0.95[/]
    """
    from lorewright.errors import ConfigError
    from lorewright.law.cells import read_cells
    from lorewright.law.law import fit as fit_law

    if (rank > 0) == (wanted > 0):
        raise ConfigError(
            f"--rank is {rank} and --wanted {wanted:g}; give one of the two: a rank, to predict "
            "its recall, or a wanted recall, to predict its rank."
        )
    law = fit_law(
        read_cells(cells), form, size=size, loss_init=loss_init or None, n_draws=draws, seed=seed
    )
    prediction = law.predict_interval(rank, tokens) if rank else law.invert(wanted, tokens)
    values = prediction._asdict()
    inputs = {"form": form, "size": size, "n_answer_tokens": tokens, "rank": rank, "wanted": wanted}
    if as_json:
        print_json({"asked": inputs, **values})
        return
    say(", ".join(f"{k} {'–' if v is None else format(v, '.4g')}" for k, v in values.items()))
