"""`lore kit`: what methods learn once for a base; train one, list them, show what one recalls."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lorewright.cli.options import Base, Json, Threads
from lorewright.cli.settings import Flag, Group, with_options
from lorewright.cli.terminal import console_for, print_json, say, show, watching
from lorewright.errors import ConfigError
from lorewright.kits.config import TrainConfig

if TYPE_CHECKING:
    from lorewright.reports.tables import Table

app = typer.Typer(
    no_args_is_help=True,
    help="What a method learns once for a base, before it writes.\n\n[dim]lore kit list[/]",
)
TRAIN = Group(TrainConfig, {"declines": Flag(parse=lambda share: share)})
Method = Annotated[str, typer.Argument(help="A method that `lore methods` says needs a kit.")]
Out = Annotated[
    Path | None, typer.Option(help="File of the kit; by default where `lore write` looks for it.")
]
Which = Annotated[str, typer.Argument(help="A method, for its kit of the base, or a kit's file.")]
Options = Annotated[
    list[str] | None,
    typer.Option("--option", help="NAME=NUMBER of the method's own, as rank=16; repeated."),
]


@app.command()
@with_options(config=TRAIN)
def train(
    method: Method,
    config: TrainConfig,
    model: Base = "pocket",
    out: Out = None,
    option: Options = None,
    documents: Annotated[
        int, typer.Option(min=0, help="Test documents it is examined on afterwards; 0 = none.")
    ] = 40,
    threads: Threads = 0,
    as_json: Json = False,
) -> None:
    """Train the kit of a method on invented documents; the same command goes on where it stopped.

    [dim]lore kit train perk[/]
    [dim]lore kit train in-place --steps 400 --out in-place.kit.safetensors[/]
    """
    from lorewright.kits.train import trained
    from lorewright.models.model import Model

    console = console_for(threads)
    base = Model.load(model)
    with watching(console) as watch:
        path, kit = trained(
            base,
            _named(method),
            config,
            options=_numbers(option or []),
            out=out,
            n_documents=documents,
            reopen=lambda: Model.load(model),
            watch=watch,
        )
    if as_json:
        print_json({"file": str(path), **kit.card()})
        return
    show(_recalls(kit.card()))
    say(f"kit {kit.id} in {path}")


@app.command("list")
def list_kits(as_json: Json = False) -> None:
    """List the kits that are here: trained on this machine, and shipped.

    [dim]lore kit list[/]
    """
    from lorewright.reports.tables import Table
    from lorewright.writers import kit as kits

    cards = [{"file": str(path), **kits.load(path).card()} for path in kits.paths()]
    if as_json:
        print_json({"kits": cards})
        return
    rows = tuple(
        (
            card["method"],
            card["base_id"],
            f"{card['size_bytes'] / 1e6:.2f}",
            str(card.get("steps", "–")),
            "shipped" if Path(card["file"]).parent == kits.SHIPPED else card["file"],
        )
        for card in cards
    )
    head = ("method", "base", "MB", "steps", "where")
    note = "lore kit show METHOD says what a kit recalls; lore kit train METHOD makes one."
    show(Table("", head, rows, (note,), prose=("where",)))


@app.command("show")
def show_kit(which: Which, model: Base = "pocket", as_json: Json = False) -> None:
    """Show a kit's card: base, recipe, and what its states recall of documents it never saw.

    [dim]lore kit show perk[/]
    """
    from lorewright.models.model import Model
    from lorewright.writers import kit as kits

    path = Path(which)
    if path.is_file():
        kit = kits.load(path)
    else:
        kit = kits.find(Model.load(model), _named(which))
    card = kit.card()
    if as_json:
        print_json(card)
        return
    show(_recalls(card))
    base = f"{card['base_id']} ({card['base_digest'][:12]})"
    say(f"{card['method']} for {base}, {card['size_bytes'] / 1e6:.2f} MB, kit {card['id']}")
    if "steps" in card:
        say(f"{card['steps']} steps in {card['seconds']:.0f} s; recipe {card['training']}")
    say(f"options {card['options']}")


def _named(method: str) -> str:
    """The method's name; in-place means that with a kit here."""
    from lorewright.writers.methods import LEARNED

    name = {"in-place": "in-place-kit"}.get(method, method)
    if name not in LEARNED:
        raise ConfigError(
            f"there is no kit for method {method!r}; use one of {', '.join(LEARNED)}."
        )
    return name


def _numbers(options: list[str]) -> dict[str, float]:
    numbers = {}
    for text in options:
        name, _, value = text.partition("=")
        try:
            numbers[name] = float(value)
        except ValueError:
            raise ConfigError(
                f"--option {text!r} is no NAME=NUMBER; write it like rank=16."
            ) from None
    return numbers


def _recalls(card: dict[str, Any]) -> Table:
    from lorewright.reports.tables import Table

    rows = tuple(
        (
            str(row["n_facts"]),
            row["arm"],
            f"{row['recall']:.2f} [{row['low']:.2f}, {row['high']:.2f}] n={row['n']}",
            f"{row['p']:.2g}" if "p" in row else "",
        )
        for row in card.get("recalls", [])
    )
    notes = (
        "Facts of unseen documents, in a new question form, with nothing in the prompt but the "
        "question; own is the document's state, the others are controls.",
        "p: McNemar's, own against other. Intervals are 95 % (Wilson).",
    )
    return Table("", ("facts", "state", "recall", "p"), rows, notes if rows else ())
