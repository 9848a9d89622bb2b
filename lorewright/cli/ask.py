"""`lore ask`, `lore route`, `lore modes`: an answer, the memories for a question, the best mode."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lorewright.cli.options import Base, Encoder, Folder, Json, Name, Of, Threads, open_memory
from lorewright.cli.settings import Flag, Group, with_options
from lorewright.cli.terminal import console_for, print_json, say, show, watching
from lorewright.routing.config import AskConfig

if TYPE_CHECKING:
    from lorewright.memory.modes import Comparison
    from lorewright.memory.sides import Sides
    from lorewright.routing.ask import Answer
    from lorewright.routing.gate import Decision

Question = Annotated[str, typer.Argument(help="The question.")]

ASK = Group(AskConfig, {"top": Flag(least=1)})
ROUTE = Group(AskConfig, ASK.flags, without=("mode",))


@with_options(config=ASK)
def ask(
    question: Question,
    memory: Of,
    config: AskConfig,
    name: Name = "",
    side_by_side: Annotated[
        bool, typer.Option("--side-by-side", help="The base, closed, open and hybrid, each alone.")
    ] = False,
    encoder: Encoder = "auto",
    model: Base = "",
    as_json: Json = False,
    threads: Threads = 0,
) -> None:
    """Ask the memories of a folder; they say which one answered, and decline what they do not know.

    [dim]lore ask "Who signs off Project Gannet?" --memory atlas[/]
    [dim]lore ask "Who signs off Project Gannet?" --memory atlas --side-by-side[/]
    [dim]lore ask "Who signs off Project Gannet?" --memory atlas --name handbook --mode closed[/]
    """
    console = console_for(threads)
    opened = open_memory(memory, model, encoder)
    with watching(console) as watch:
        if side_by_side:
            top, rate = config.top, config.false_activation
            sides = opened.sides(question, name, top=top, false_activation=rate, watch=watch)
        else:
            answer = opened.ask(question, name, **asdict(config), watch=watch)
    if as_json:
        print_json(sides.to_json() if side_by_side else asdict(answer))
    elif side_by_side:
        _print_sides(sides)
    else:
        print_answer(answer)


def _print_sides(sides: Sides) -> None:
    from lorewright.reports.tables import NOT_RUN, Table

    rows = tuple(
        (side, reply.text or NOT_RUN, f"{reply.confidence:.2f}", f"{reply.least:.2f}")
        for side, reply in sides.replies.items()
    )
    notes = () if sides.memory else (sides.note or "no memory is for this question.",)
    head = ("", "reply", "mean p", "least p")
    show(Table(sides.question, head, rows, notes, subtitle=sides.memory, prose=("reply",)))


def print_answer(answer: Answer) -> None:
    """Print an answer and what it rests on."""
    say(answer.text, "bold")
    for line in _basis(answer):
        say(line, "dim")


def _basis(answer: Answer) -> Iterator[str]:
    """What an answer rests on, line by line."""
    if answer.memory:
        chosen = "" if answer.probability is None else f", chosen with p = {answer.probability:.2f}"
        sure = f"mean token probability {answer.confidence:.2f}, least {answer.least:.2f}"
        state = "declined, " if answer.declined else ""
        yield f"memory {answer.memory}{chosen}; {answer.way}: {state}{sure}"
    others = [
        f"{reply.memory}, {reply.way}: {reply.text or '(nothing)'} ({reply.confidence:.2f})"
        for reply in answer.replies
        if reply.text != answer.text
    ]
    if others:
        yield f"other replies: {'; '.join(others)}"
    yield from (f"read: {' '.join(text.split())[:300]}" for text in answer.passages[:1])
    if answer.note:
        yield answer.note


@with_options(config=ROUTE)
def route(
    question: Question,
    memory: Of,
    config: AskConfig,
    encoder: Encoder = "auto",
    model: Base = "",
    as_json: Json = False,
    threads: Threads = 0,
) -> None:
    """Show which memories a question is for, with their probabilities, or that none is.

    [dim]lore route "Who signs off Project Gannet?" --memory atlas[/]
    """
    console = console_for(threads)
    opened = open_memory(memory, model, encoder)
    with watching(console) as watch:
        rate = config.false_activation
        routed = opened.route(question, top=config.top, false_activation=rate, watch=watch)
    if as_json:
        print_json(route_json(question, routed))
    else:
        print_route(routed)


def route_json(question: str, routed: Decision) -> dict[str, Any]:
    """Return a decision as plain data."""
    return {
        "question": question,
        "chosen": [hit.memory for hit in routed.chosen],
        "candidates": [asdict(hit) for hit in routed.hits],
        "threshold": asdict(routed.threshold) if routed.threshold else None,
        "note": "" if routed.chosen else routed.why_none,
    }


def print_route(routed: Decision) -> None:
    """Print the candidates with their probabilities, and the threshold."""
    from lorewright.reports.tables import NOT_RUN, Table

    chosen = {hit.memory for hit in routed.chosen}
    rows = tuple(
        (
            hit.memory,
            NOT_RUN if hit.probability is None else f"{hit.probability:.2f}",
            "yes" if hit.memory in chosen else "no",
            hit.key.split("\n")[-1],
        )
        for hit in routed.hits
    )
    notes = []
    if not routed.chosen:
        notes.append(f"{routed.why_none[:1].upper()}{routed.why_none[1:]}.")
    if limit := routed.threshold:
        notes.append(
            f"Chosen above {limit.value:.2f}, which {limit.rate:.0%} [{limit.low:.0%}, "
            f"{limit.high:.0%}] of questions that no memory is for exceed (n={limit.n})."
        )
    key = "nearest key"
    show(Table("", ("memory", "probability", "chosen", key), rows, tuple(notes), prose=(key,)))


def modes(
    folder: Folder,
    n: Annotated[int, typer.Option("--probes", min=1, help="Most probes.")] = 256,
    seed: Annotated[int, typer.Option(help="Of the draw of probes.")] = 0,
    model: Base = "",
    as_json: Json = False,
    threads: Threads = 0,
) -> None:
    """Measure closed, open, read and hybrid on the memories' probes; `ask` goes by it.

    [dim]lore modes atlas[/]
    """
    console = console_for(threads)
    opened = open_memory(folder, model)
    with watching(console) as watch:
        compared = opened.compare(n=n, seed=seed, watch=watch)
    if as_json:
        print_json(compared.to_json())
    else:
        _print_modes(compared)


def _print_modes(compared: Comparison) -> None:
    from lorewright.memory.modes import ALL, MEASURED
    from lorewright.reports.results import spelled
    from lorewright.reports.tables import Table

    modes = [mode for mode in MEASURED if mode in compared.kinds[ALL]]
    rows = tuple(
        (kind, str(by_mode["closed"].n), *(spelled(by_mode[mode]) for mode in modes))
        for kind, by_mode in compared.kinds.items()
    )
    verdict = "worse than" if compared.hybrid_is_worse else "no worse than"
    note = (
        f"Hybrid is {verdict} its better half ({compared.better_half}), p = "
        f"{compared.p_against_half:.3g}; `lore ask` uses {compared.best} here."
    )
    show(Table("", ("probes", "n", *modes), rows, (note,), n_keys=2, stacked=("mode", "recall")))


COMMANDS = (ask, route, modes)
