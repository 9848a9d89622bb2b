"""`lore budget`: what training a base takes, in bytes, and which GPUs hold it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from lorewright.cli.options import Json
from lorewright.cli.settings import dict_keys
from lorewright.cli.terminal import print_json, show

if TYPE_CHECKING:
    from lorewright.law.budget import Account

METHODS = ", ".join(dict_keys("lorewright.law.budget.METHODS"))


def budget(
    base: Annotated[
        str, typer.Argument(help="A base by name, a folder, a config.json, or llama-65b.")
    ] = "pocket",
    method: Annotated[str, typer.Option(help=f"How it is trained: {METHODS}.")] = "lora",
    rank: Annotated[int, typer.Option(min=1, help="Rank of the adapter.")] = 8,
    target: Annotated[
        list[str] | None, typer.Option(help="What is adapted: all-linear, attention, mlp, names.")
    ] = None,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens of a batch.")] = 2048,
    checkpointing: Annotated[
        bool, typer.Option(help="Compute activations again in the backward pass.")
    ] = True,
    float32: Annotated[
        bool, typer.Option("--float32", help="Trained values in float32, as `lore write` has them.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Count what training takes, term by term: weights, gradients, optimiser, activations.

    Of a base only its config.json is read. llama-65b is shown beside what others state for it.

    [dim]lore budget Qwen/Qwen3-0.6B --method qlora --rank 16[/]
    [dim]lore budget llama-65b --method qlora --rank 64[/]
    """
    from lorewright.law.budget import account

    counted = account(
        base,
        method,
        rank=rank,
        targets=tuple(target or ("all-linear",)),
        n_tokens=tokens,
        checkpointing=checkpointing,
        float32=float32,
    )
    if as_json:
        print_json(counted.to_json())
    else:
        _print_account(counted)


def _print_account(account: Account) -> None:
    from lorewright.law.budget import METHODS
    from lorewright.reports.tables import NOT_RUN, Table

    chosen = account.chosen
    rows = [(t.what, t.formula, f"{t.n_bytes / 1e9:.3f}") for t in chosen.terms]
    rows.append(("all", "", f"{chosen.n_bytes / 1e9:.3f}"))
    subtitle = f"{chosen.method}, rank {chosen.rank}, {chosen.n_tokens:,} tokens a batch"
    title = f"{chosen.base}: {chosen.n_parameters:,} parameters, {chosen.n_trained:,} trained"
    show(Table(title, ("part", "reckoned", "GB"), tuple(rows), subtitle=subtitle))
    published = {each.method: each for each in account.published}
    others = tuple(
        (
            each.method,
            METHODS[each.method],
            f"{each.n_bytes / 1e9:.2f}",
            f"{published[each.method].n_bytes / 1e9:.0f}" if each.method in published else NOT_RUN,
            next((f"{n} × {gpu}" for gpu, n in each.gpus.items() if n == 1), NOT_RUN),
        )
        for each in account.every
    )
    head = ("method", "what it trains", "GB", "published", "smallest GPU that holds it")
    notes = tuple(f"{each.method}: {each.source}." for each in account.published)
    show(Table("Every method", head, others, notes, prose=("what it trains",)))


COMMANDS = (budget,)
