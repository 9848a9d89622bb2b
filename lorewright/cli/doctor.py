"""`lore doctor`: why recall failed: the measurement, the cause and the command that mends it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from lorewright.cli.options import Base, Json, Name, Probes, Threads
from lorewright.cli.output import console_for, print_json

if TYPE_CHECKING:
    from lorewright.recall.diagnose import Diagnosis

FOUND = 1
"""Exit code when something is wrong."""


def doctor(
    place: Annotated[str, typer.Argument(help="An adapter folder, a memory's, or FOLDER/NAME.")],
    name: Name = "",
    model: Base = "",
    facts: Annotated[
        Path | None, typer.Option(help="What it should know: facts or documents.")
    ] = None,
    probes: Probes = None,
    as_json: Json = False,
    threads: Threads = 0,
) -> None:
    """Find out why an adapter does not recall: measurement, cause, the one command that mends it.

    Works on any PEFT adapter folder. Exit code 1 when something is found.

    [dim]lore doctor atlas[/]
    [dim]lore doctor atlas/handbook --json[/]
    [dim]lore doctor checkpoints/my-lora --model Qwen/Qwen3-0.6B --facts facts.jsonl[/]
    """
    from lorewright.knowledge.readers import read_knowledge, read_probes
    from lorewright.memory.diagnose import diagnose as examine

    console_for(threads)
    known = read_knowledge(facts) if facts else None
    asked = read_probes(probes) if probes else ()
    found = examine(place, name=name, base=model or None, knowledge=known, probes=asked)
    if as_json:
        print_json(found.to_json())
    else:
        _print(found)
    if found.findings:
        raise typer.Exit(FOUND)


def _print(found: Diagnosis) -> None:
    from lorewright.recall.diagnose import summary

    out = Console(soft_wrap=True)
    for key, value in summary(found.evidence).items():
        if value is not None and value != {}:
            out.print(f"[dim]{key}[/] {escape(_said(value))}", highlight=False)
    for finding in found.findings:
        out.print(
            f"\n[b red]{escape(finding.check)}[/] {escape(finding.measured)}", highlight=False
        )
        out.print(f"  because {escape(finding.cause)}", highlight=False)
        out.print(f"  [b]{escape(finding.remedy)}[/]", highlight=False)
    if not found.findings:
        out.print("\n[b green]nothing found[/]")
        if not found.evidence.answered:
            out.print("[dim]no facts were asked: give some with --facts[/]")


def _said(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_said(each)}" for key, each in value.items())
    return f"{value:.3g}" if isinstance(value, float) else str(value)
