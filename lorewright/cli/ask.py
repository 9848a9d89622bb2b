"""`lore ask`, `lore route`, `lore modes`: who a question is for, what they say, what suits."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lorewright.cli.options import Base, Folder, Json, Name, Of, Threads, open_memory
from lorewright.cli.output import console_for, print_json, watching

if TYPE_CHECKING:
    from lorewright.memory.modes import Comparison
    from lorewright.routing.ask import Answer
    from lorewright.routing.gate import Decision

Question = Annotated[str, typer.Argument(help="The question.")]
Rate = Annotated[
    float,
    typer.Option(
        "--false-activation",
        help="Share of questions no memory is for that may be answered from one all the same.",
    ),
]
Top = Annotated[int, typer.Option(min=1, help="At most so many memories for one question.")]


def ask(
    question: Question,
    memory: Of,
    name: Name = "",
    mode: Annotated[
        str,
        typer.Option(
            help="closed: the memory alone; open: passages, the base; hybrid: what both agree on; "
            "full: the whole source; auto: what was measured best, else hybrid."
        ),
    ] = "auto",
    top: Top = 3,
    false_activation: Rate = 0.05,
    model: Base = "",
    as_json: Json = False,
    threads: Threads = 0,
) -> None:
    """Ask the memories of a folder; they say which one answered, and decline what they do not know.

    [dim]lore ask "Who signs off Project Gannet?" --memory atlas[/]
    [dim]lore ask "Who signs off Project Gannet?" --memory atlas --name handbook --mode closed[/]
    """
    console = console_for(threads)
    opened = open_memory(memory, model)
    with watching(console) as watch:
        answer = opened.ask(
            question, name, mode=mode, top=top, false_activation=false_activation, watch=watch
        )
    if as_json:
        print_json(asdict(answer))
    else:
        _print_answer(answer)


def _print_answer(answer: Answer) -> None:
    out = Console()
    out.print(Text(answer.text, style="bold"), soft_wrap=True)
    for line in _about(answer):
        out.print(Text(line, style="dim"), soft_wrap=True)


def _about(answer: Answer) -> list[str]:
    """What an answer rests on, line by line."""
    lines = []
    if answer.memory:
        found = "" if answer.probability is None else f", found with p = {answer.probability:.2f}"
        sure = f"mean token probability {answer.confidence:.2f}, least {answer.least:.2f}"
        state = "declined, " if answer.declined else ""
        lines.append(f"memory {answer.memory}{found}; {answer.way}: {state}{sure}")
    others = [
        f"{reply.memory}, {reply.way}: {reply.text or '(nothing)'} ({reply.confidence:.2f})"
        for reply in answer.replies
        if reply.text != answer.text
    ]
    lines += [f"also said: {'; '.join(others)}"] if others else []
    lines += [f"read: {' '.join(text.split())[:300]}" for text in answer.passages[:1]]
    lines += [answer.note] if answer.note else []
    return lines


def route(
    question: Question,
    memory: Of,
    top: Top = 3,
    false_activation: Rate = 0.05,
    model: Base = "",
    as_json: Json = False,
    threads: Threads = 0,
) -> None:
    """Show which memories a question is for, with their probabilities, or that none is.

    [dim]lore route "Who signs off Project Gannet?" --memory atlas[/]
    """
    console = console_for(threads)
    opened = open_memory(memory, model)
    with watching(console) as watch:
        found = opened.route(question, top=top, false_activation=false_activation, watch=watch)
    if as_json:
        print_json(
            {
                "question": question,
                "chosen": [hit.memory for hit in found.chosen],
                "candidates": [asdict(hit) for hit in found.hits],
                "threshold": asdict(found.threshold) if found.threshold else None,
                "note": "" if found.chosen else found.why_none,
            }
        )
    else:
        _print_finding(found)


def _print_finding(found: Decision) -> None:
    out = Console()
    shown = Table("memory", "probability", "chosen", "nearest key", box=None, pad_edge=False)
    chosen = {hit.memory for hit in found.chosen}
    for hit in found.hits:
        sure = "–" if hit.probability is None else f"{hit.probability:.2f}"
        mark = "yes" if hit.memory in chosen else "no"
        shown.add_row(*map(Text, (hit.memory, sure, mark, hit.key.split("\n")[-1][:80])))
    out.print(shown)
    if not found.chosen:
        out.print(Text(f"{found.why_none[:1].upper()}{found.why_none[1:]}."), soft_wrap=True)
    if found.threshold:
        limit = found.threshold
        out.print(
            Text(
                f"Chosen above {limit.value:.2f}, which {limit.rate:.0%} [{limit.low:.0%}, "
                f"{limit.high:.0%}] of questions that no memory is for exceed (n={limit.n}).",
                style="dim",
            ),
            soft_wrap=True,
        )


def modes(
    folder: Folder,
    n: Annotated[int, typer.Option("--probes", min=1, help="Probes asked, at most.")] = 256,
    seed: Annotated[int, typer.Option(help="Of the draw of probes.")] = 0,
    model: Base = "",
    as_json: Json = False,
    threads: Threads = 0,
) -> None:
    """Measure closed book, open book and hybrid on the memories' probes; `ask` goes by it.

    [dim]lore modes atlas[/]
    """
    console = console_for(threads)
    opened = open_memory(folder, model)
    with watching(console) as watch:
        comparison = opened.compare(n=n, seed=seed, watch=watch)
    if as_json:
        print_json(comparison.to_json())
    else:
        _print_comparison(comparison)


def _print_comparison(comparison: Comparison) -> None:
    shown = Table("probes", "closed", "open", "hybrid", box=None, pad_edge=False)
    for kind, by_mode in comparison.kinds.items():
        shown.add_row(*map(Text, (kind, *(str(by_mode[m]) for m in ("closed", "open", "hybrid")))))
    out = Console()
    out.print(shown)
    verdict = "worse than" if comparison.hybrid_is_worse else "no worse than"
    out.print(
        Text(
            f"Hybrid is {verdict} its better half ({comparison.better_half}), p = "
            f"{comparison.p_against_half:.3g}; `lore ask` uses {comparison.best} here."
        ),
        soft_wrap=True,
    )
