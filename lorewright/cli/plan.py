"""`lore plan`: the rank a source needs, its cost and the recall to expect, before training."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from lorewright.adapters.config import LoraConfig
from lorewright.cli.folder import PLACES
from lorewright.cli.options import LESSON, Base, Dtype, Json, Source, Teacher, Threads
from lorewright.cli.settings import Group, with_options
from lorewright.cli.terminal import console_for, print_json, say, show, watching
from lorewright.knowledge.lesson import LessonConfig
from lorewright.training.config import WriteConfig

if TYPE_CHECKING:
    from lorewright.law.plan import Plan


@with_options(lesson=LESSON, lora=PLACES, config=Group(WriteConfig, only=("epochs",)))
def plan(
    source: Source,
    lesson: LessonConfig,
    lora: LoraConfig,
    config: WriteConfig,
    model: Base = "pocket",
    dtype: Dtype = "auto",
    teacher: Teacher = "",
    recall: Annotated[
        float, typer.Option(help="Share of the answers that must come back exactly.")
    ] = 0.95,
    recalibrate: Annotated[
        bool, typer.Option("--recalibrate", help="Measure the base anew, whatever is cached.")
    ] = False,
    threads: Threads = 0,
    as_json: Json = False,
) -> None:
    """Plan a write: rank, memories, megabytes, minutes and predicted recall, before training.

    The first plan for a base and targets measures it by short writes of made-up facts, and stores
    that in the user's cache; the embedded base comes measured.

    [dim]lore plan examples/handbook.md[/]
    [dim]lore plan facts.jsonl --recall 0.99 --epochs 30 --json[/]
    """
    from lorewright.files import cache_folder
    from lorewright.knowledge.readers.read import read_knowledge
    from lorewright.knowledge.teacher import connect
    from lorewright.memory.plan import plan as predict
    from lorewright.models.model import Model
    from lorewright.training.rates import suggested_lr

    console, knowledge = console_for(threads), read_knowledge(source)
    base = Model.load(model, dtype=dtype)
    with watching(console) as watch:
        planned = predict(
            base,
            knowledge,
            wanted=recall,
            config=replace(config, lora=lora, lr=suggested_lr(base)),
            lesson=lesson,
            teacher=connect(teacher, cache=cache_folder() / "teacher.jsonl") if teacher else None,
            recalibrate=recalibrate,
            watch=watch,
        )
    if as_json:
        print_json(planned.to_json() | {"reading": list(knowledge.notes)})
    else:
        for note in knowledge.notes:
            say(note, "dim")
        _print_plan(source.name, planned)


def _print_plan(name: str, planned: Plan) -> None:
    from lorewright.law.plan import table
    from lorewright.reports.tables import Table

    load = planned.load
    say(
        f"{name}: {load.n_answers} answers ({load.n_examples} questions, {load.n_declined} more "
        f"beside them), {load.n_answer_tokens} tokens, {load.bits:.0f} bits that the base lacks"
    )
    say(str(planned), "bold")
    head, *rows = table(planned)
    engines = [
        f"{engine}: {f'start it for rank {rank}' if rank else 'takes no adapter as large'}"
        for engine, rank in planned.engines.items()
    ]
    show(Table("", head, tuple(rows), (*engines, *planned.notes)))


COMMANDS = (plan,)
