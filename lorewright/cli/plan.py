"""`lore plan`: which rank a source takes, what it costs and how much will come back, beforehand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lorewright.cli.options import (
    Base,
    Dtype,
    Epochs,
    Json,
    Layers,
    Source,
    Targets,
    Teacher,
    Threads,
    Views,
    layers_of,
    lesson_of,
)
from lorewright.cli.output import console_for, print_json, watching

if TYPE_CHECKING:
    from lorewright.law.plan import Plan


def plan(
    source: Source,
    model: Base = "pocket",
    dtype: Dtype = "auto",
    view: Views = None,
    teacher: Teacher = "",
    target: Targets = None,
    layers: Layers = "",
    recall: Annotated[
        float, typer.Option(help="Share of the answers that must come back exactly.")
    ] = 0.95,
    epochs: Epochs = 60,
    recalibrate: Annotated[
        bool, typer.Option("--recalibrate", help="Measure the base anew, whatever is cached.")
    ] = False,
    threads: Threads = 0,
    as_json: Json = False,
) -> None:
    """Plan a write: rank, memories, megabytes, minutes and predicted recall, before training.

    The first plan for a base and targets measures it by short writes of made-up facts, and keeps
    that in the user's cache; the embedded base comes measured.

    [dim]lore plan examples/handbook.md[/]
    [dim]lore plan facts.jsonl --recall 0.99 --epochs 30 --json[/]
    """
    from lorewright.adapters.config import LoraConfig
    from lorewright.files import cache_folder
    from lorewright.knowledge.readers import read_knowledge
    from lorewright.knowledge.teacher import connect
    from lorewright.memory.plan import plan as make_plan
    from lorewright.models.model import Model
    from lorewright.training.config import WriteConfig
    from lorewright.training.rates import suggested_lr

    console = console_for(threads)
    known = read_knowledge(source)
    lora = LoraConfig(targets=tuple(target or ("all-linear",)), layers=layers_of(layers))
    base = Model.load(model, dtype=dtype)
    with watching(console) as watch:
        planned = make_plan(
            base,
            known,
            wanted=recall,
            config=WriteConfig(lora=lora, lr=suggested_lr(base), epochs=epochs),
            lesson=lesson_of(view),
            teacher=connect(teacher, cache=cache_folder() / "teacher.jsonl") if teacher else None,
            recalibrate=recalibrate,
            watch=watch,
        )
    if as_json:
        print_json(planned.to_json())
    else:
        _print_plan(source.name, planned)


def _print_plan(name: str, planned: Plan) -> None:
    from lorewright.law.plan import table

    out = Console()
    load = planned.load
    about = f"{name}: {load.n_answers} answers ({load.n_examples} questions, "
    about += f"{load.n_declined} more beside them), {load.n_answer_tokens} tokens, "
    about += f"{load.bits:.0f} bits that the base lacks"
    out.print(Text(about), soft_wrap=True)
    out.print(Text(str(planned), style="bold"), soft_wrap=True)
    head, *rows = table(planned)
    shown = Table(*head, box=None, pad_edge=False)
    for row in rows:
        shown.add_row(*map(Text, row))
    out.print(shown)
    for engine, rank in planned.engines.items():
        takes = f"start it for rank {rank}" if rank else "takes no adapter as large"
        out.print(Text(f"{engine}: {takes}", style="dim"), soft_wrap=True)
    for note in planned.notes:
        out.print(Text(note, style="dim"), soft_wrap=True)
