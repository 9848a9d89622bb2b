"""`lore read`: an answer from a text that is in the prompt, with nothing written."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from lorewright.cli.options import Base, Json, Name, Source, Threads, open_memory
from lorewright.cli.settings import Flag, Group, with_options
from lorewright.cli.terminal import console_for, print_json, say
from lorewright.writers.queries import Tuning

Question = Annotated[str, typer.Argument(help="The question.")]
TUNING = Group(
    Tuning, {"steps": Flag(least=0), "span": Flag(least=2)}, panel="How qttt tunes its queries"
)


@with_options(tuning=TUNING)
def read(
    source: Source,
    question: Question,
    tuning: Tuning,
    reader: Annotated[
        str,
        typer.Option(help="plain: the base; qttt: its query projections tuned on the prompt."),
    ] = "plain",
    memory: Annotated[
        Path | None,
        typer.Option(help="A memory's folder: the base reads, a memory of it answers."),
    ] = None,
    name: Name = "",
    model: Base = "pocket",
    as_json: Json = False,
    threads: Threads = 0,
) -> None:
    """Answer from a text in the prompt: no memory, for the text is read with every question.

    [dim]lore read examples/handbook.md "Who signs off Project Gannet?"[/]
    [dim]lore read examples/handbook.md "Who signs off Project Gannet?" --reader qttt[/]
    """
    from lorewright.errors import ConfigError
    from lorewright.knowledge.lesson import contexts
    from lorewright.knowledge.readers.read import read_knowledge
    from lorewright.models.model import Model
    from lorewright.writers import reading

    console_for(threads)
    answers_with = reading.reader_of(reader, tuning)
    if memory is not None:
        if reader != "plain":
            raise ConfigError(f"--reader {reader} and --memory are two ways to answer; give one.")
        opened = open_memory(memory)
        base, name = opened.model, name or opened.folder.only()
        answers_with, reader = reading.answering(opened.state(name).on), f"memory {name}"
    else:
        base = Model.load(model)
    text, _ = contexts(read_knowledge(source))
    started = time.monotonic()
    answer = reading.read(base, f"{text}\n\n{question}", answers_with)
    seconds = time.monotonic() - started
    if as_json:
        print_json({"answer": answer, "reader": reader, "seconds": seconds, "source": str(source)})
        return
    say(answer, "bold")
    say(f"{reader}, {source} in the prompt, {seconds:.1f} s; nothing was written.", "dim")


COMMANDS = (read,)
