"""`lore bench counterfact`, `paperqa`, `narrativeqa`, `quality`: sets from a file or the hub."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from lorewright.cli.options import Base, Json, Markdown, Teacher, Threads
from lorewright.cli.sweeps import (
    Data,
    Documents,
    Epochs,
    Formats,
    Judge,
    Method,
    On,
    Out,
    Placement,
    Questions,
    Quick,
    Ranks,
    Rate,
    Sets,
    Tokens,
    Writes,
    given,
    numbers,
    sweep,
)
from lorewright.cli.terminal import console_for


def counterfact(
    data: Data,
    model: Base = "pocket",
    edits: Annotated[int, typer.Option(min=0, help="First edits of the set; 0 = all.")] = 100,
    together: Annotated[int, typer.Option(min=1, help="Edits in one memory.")] = 1,
    negatives: Annotated[
        float, typer.Option(min=0, help="Questions not to be answered, by edit trained.")
    ] = 2.0,
    ranks: Ranks = "",
    seeds: Writes = 3,
    objective: Method = "sft",
    placement: Placement = "all-linear",
    epochs: Epochs = 60,
    lr: Rate = 0.0,
    out: Out = Path("bench-counterfact"),
    on: On = "here",
    quick: Quick = False,
    markdown: Markdown = False,
    threads: Threads = 0,
    as_json: Json = False,
) -> None:
    """Write false statements: are they believed, also reworded, and is all else left alone?

    [dim]lore bench counterfact --data counterfact.json --model Qwen/Qwen3-0.6B[/]
    [dim]lore bench counterfact --data hub --edits 500 --together 10 --on local:2[/]
    """
    from lorewright.bench import counterfact as bench
    from lorewright.bench import sets

    console = console_for(threads)
    config = bench.CounterFact(
        data=data,
        model=model,
        edits=edits,
        together=together,
        negatives=negatives,
        seeds=seeds,
        method=objective,
        placement=placement,
        epochs=epochs,
        lr=lr,
        **given(ranks=numbers("ranks", ranks)),
    )
    config = bench.quick(config) if quick else config
    # Refused before a model is loaded.
    sets.edits(sets.located(data), sets.limit_of(data, config.edits))
    sweep(bench.TASK, config, console, out=out, on=on, as_json=as_json, markdown=markdown)


def _closed_book(name: str, about: str) -> Callable[..., None]:
    """The command of a set of texts; all of them have the same options."""

    def command(
        data: Data,
        model: Base = "pocket",
        documents: Documents = 0,
        questions: Questions = 0,
        part: Annotated[
            str, typer.Option(help="Of a NarrativeQA document: summary or text.")
        ] = "summary",
        formats: Formats = None,
        sets: Sets = 5,
        teacher: Teacher = "",
        judge: Judge = "",
        answer_tokens: Tokens = 64,
        ranks: Ranks = "",
        seeds: Writes = 3,
        objective: Method = "sft",
        placement: Placement = "all-linear",
        epochs: Epochs = 60,
        lr: Rate = 0.0,
        out: Out = Path(f"bench-{name}"),
        on: On = "here",
        quick: Quick = False,
        markdown: Markdown = False,
        threads: Threads = 0,
        as_json: Json = False,
    ) -> None:
        from lorewright.bench import closedbook as bench
        from lorewright.bench.sets import limit_of, located, texts
        from lorewright.bench.task import load

        console = console_for(threads)
        config = bench.ClosedBook(
            bench=name,
            data=data,
            model=model,
            documents=documents,
            questions=questions,
            part=part,
            sets=sets,
            teacher=teacher,
            judge=judge,
            answer_tokens=answer_tokens,
            seeds=seeds,
            method=objective,
            placement=placement,
            epochs=epochs,
            lr=lr,
            **given(ranks=numbers("ranks", ranks), formats=tuple(formats or ())),
        )
        config = bench.quick(config) if quick else config
        # Refused before a model is loaded.
        texts(name, located(data), limit_of(data, config.documents), config.part)
        task = load(name)
        sweep(task, config, console, out=out, on=on, as_json=as_json, markdown=markdown)

    command.__name__, command.__doc__ = name, about
    return command


COMMANDS: tuple[Callable[..., None], ...] = (
    counterfact,
    _closed_book(
        "paperqa",
        """Write papers as text, questions, summaries, rewrites or mixtures; ask without the paper.

    [dim]lore bench paperqa --data paperqa.json --model Qwen/Qwen3-0.6B[/]
    [dim]lore bench paperqa --data paperqa.json --format qa --format raw+qa --judge URL[/]
    """,
    ),
    _closed_book(
        "narrativeqa",
        """Write stories, or summaries of them; ask what happened without the story.

    [dim]lore bench narrativeqa --data hub --documents 40 --model Qwen/Qwen3-0.6B[/]
    [dim]lore bench narrativeqa --data test.jsonl --part text[/]
    """,
    ),
    _closed_book(
        "quality",
        """Write articles; choose among answers by their likelihood, and answer freely.

    [dim]lore bench quality --data QuALITY.v1.0.1.htmlstripped.dev --documents 20[/]
    """,
    ),
)
