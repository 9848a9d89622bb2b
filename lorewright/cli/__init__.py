"""The command line: one command per verb, each a few lines over the same functions.

Results go to stdout, progress to stderr; `--json` prints one object of plain data. Whatever a user
can get wrong ends in one sentence and exit code 2; an interruption in 130, and the same write goes
on. Heavy imports are inside the commands, so that `--help` is quick.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from lorewright import __version__
from lorewright.cli import law
from lorewright.cli.output import print_json
from lorewright.errors import LorewrightError

if TYPE_CHECKING:
    from lorewright.lesson import LessonConfig
    from lorewright.memory import Memory, Outcome, Watch
    from lorewright.model import Model
    from lorewright.recipe import WriteConfig
    from lorewright.views import AskLLM

REFUSED = 2
"""Exit code when something cannot be done as asked; also typer's own for wrong usage."""
INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""
MAX_LAYER = 9999
"""Highest layer that --layers takes."""

app = typer.Typer(
    name="lore",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.add_typer(law.app, name="law")

Folder = Annotated[Path, typer.Argument(help="The memory's folder.")]
Source = Annotated[Path, typer.Argument(help="Markdown, text, JSONL, JSON, CSV, or a folder.")]
Into = Annotated[Path, typer.Option("--into", help="The memory's folder; made if it is not there.")]
Of = Annotated[Path, typer.Option("--memory", help="The memory's folder.")]
Base = Annotated[str, typer.Option("--model", "-m", help="Base: pocket, a folder, or a hub name.")]
Dtype = Annotated[str, typer.Option(help="Base in auto, float32, bfloat16 or float16.")]
Name = Annotated[str, typer.Option("--name", "-n", help="Which memory of the folder.")]
Views = Annotated[
    list[str] | None,
    typer.Option(help="What is trained: qa, verbatim, rewrite, summary, cloze, reverse."),
]
Probes = Annotated[Path | None, typer.Option(help="Your own questions, as JSON lines.")]
Teacher = Annotated[str, typer.Option(help="OpenAI-compatible address that writes the questions.")]
Targets = Annotated[
    list[str] | None, typer.Option(help="all-linear, attention, mlp, or names of layers.")
]
Layers = Annotated[str, typer.Option(help="Layers to adapt, like 0-3,7; all by default.")]
Metric = Annotated[
    str, typer.Option(help="exact_match, contains, token_f1 or rouge_l; by default as fits.")
]
TRAINING = "How it is trained"
FIND = "find"
Objective = Annotated[
    str,
    typer.Option(
        help="What is minimised: sft, memft_threshold, memft_window, distill.",
        rich_help_panel=TRAINING,
    ),
]
Rank = Annotated[int, typer.Option(help="Rank of the adapter.")]
Alpha = Annotated[
    int, typer.Option(min=0, help="Scale is alpha / rank; 0 = 16.", rich_help_panel=TRAINING)
]
Rate = Annotated[
    str,
    typer.Option(
        help="Peak learning rate; empty = by the base's width, `find` = by a short search.",
        rich_help_panel=TRAINING,
    ),
]
Optimiser = Annotated[
    str, typer.Option(help="adamw, preconditioned, muon.", rich_help_panel=TRAINING)
]
Ratio = Annotated[
    float, typer.Option(help="Rate of B over that of A (LoRA+).", rich_help_panel=TRAINING)
]
Decay = Annotated[float, typer.Option(help="Weight decay.", rich_help_panel=TRAINING)]
Schedule = Annotated[
    str, typer.Option(help="linear, cosine, constant, wsd.", rich_help_panel=TRAINING)
]
Order = Annotated[
    str, typer.Option(help="shuffle, or curriculum: easy first.", rich_help_panel=TRAINING)
]
Margin = Annotated[
    float,
    typer.Option(help="Recalled means p above this at every token.", rich_help_panel=TRAINING),
]
Rest = Annotated[
    float,
    typer.Option(
        min=0,
        max=1,
        help="Leave out examples with every p above this until the next check; 0 = never.",
        rich_help_panel=TRAINING,
    ),
]
Epochs = Annotated[int, typer.Option(help="Budget; training stops sooner when all is recalled.")]
BatchSize = Annotated[int, typer.Option(help="Examples a step.")]
Seconds = Annotated[float, typer.Option(min=0, help="Budget of training time; 0 = none.")]
Seed = Annotated[int, typer.Option(help="Same seed, same machine, same bytes.")]
Threads = Annotated[int, typer.Option(min=0, help="CPU threads; 0 = as the environment says.")]
Json = Annotated[bool, typer.Option("--json", help="Print plain data.")]


def main() -> None:
    """Run the command line and turn every expected failure into one sentence."""
    try:
        app(prog_name="lore")
    except LorewrightError as error:
        sentence = escape(" ".join(str(error).split()))
        _stderr().print(f"[red]{type(error).__name__}:[/] {sentence}", highlight=False)
        sys.exit(REFUSED)
    except KeyboardInterrupt:
        _say_interrupted()
        sys.exit(INTERRUPTED)
    except SystemExit as ending:
        if ending.code == INTERRUPTED:  # typer caught Ctrl-C inside a command
            _say_interrupted()
        raise


def _say_interrupted() -> None:
    _stderr().print("Interrupted. The same command goes on where a write stopped.")


def _stderr() -> Console:
    return Console(stderr=True, soft_wrap=True)


@app.callback(invoke_without_command=True)
def about(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Write knowledge into LoRA adapters, and prove that it is there.

    [dim]lore write examples/handbook.md --into atlas[/]
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if version:
        typer.echo(__version__)
        raise typer.Exit


@app.command()
def write(
    source: Source,
    into: Into,
    name: Name = "",
    model: Base = "",
    dtype: Dtype = "auto",
    view: Views = None,
    probes: Probes = None,
    metric: Metric = "",
    teacher: Teacher = "",
    rank: Rank = 8,
    target: Targets = None,
    layers: Layers = "",
    alpha: Alpha = 0,
    objective: Objective = "sft",
    lr: Rate = "",
    optimizer: Optimiser = "adamw",
    lr_ratio: Ratio = 1.0,
    weight_decay: Decay = 0.0,
    schedule: Schedule = "linear",
    order: Order = "shuffle",
    margin: Margin = 0.6,
    rest: Rest = 0.0,
    epochs: Epochs = 60,
    batch: BatchSize = 8,
    seconds: Seconds = 0.0,
    seed: Seed = 0,
    threads: Threads = 0,
    as_json: Json = False,
) -> None:
    """Write documents or facts into a memory, and end with a verdict.

    [dim]lore write examples/handbook.md --into atlas[/]
    [dim]lore write facts.jsonl --into atlas --name phonebook --rank 16[/]
    """
    from lorewright.lora import LoraConfig
    from lorewright.memory import Memory
    from lorewright.readers import read_knowledge, read_probes
    from lorewright.recipe import WriteConfig
    from lorewright.write import suggested_lr

    console = _console(threads)
    known = read_knowledge(source)
    asked = read_probes(probes) if probes else ()
    lesson, chosen = _lesson(view), tuple(target or ("all-linear",))
    config = WriteConfig(
        lora=LoraConfig(rank, alpha or None, chosen, _layers(layers), seed=seed),
        objective=objective,
        lr=_rate(lr),  # 1 stands for one that is found below; all else is checked before that
        optimizer=optimizer,
        lr_ratio=lr_ratio,
        weight_decay=weight_decay,
        schedule=schedule,
        order=order,
        margin=margin,
        rest=rest or None,
        epochs=epochs,
        batch_size=batch,
        max_seconds=seconds or None,
        seed=seed,
    )
    memory = Memory.open(into, model or None, dtype=dtype)
    config = config if lr else replace(config, lr=suggested_lr(memory.model))
    _say_coverage(console, memory.model, config)
    with _watch(console) as watch:
        outcome = memory.write(
            known,
            name=name or source.absolute().stem,
            config=config,
            lesson=lesson,
            teacher=_teacher(teacher, into),
            probes=asked,
            metric=metric,
            find_rate=lr == FIND,
            watch=watch,
        )
    if as_json:
        print_json(outcome.to_json())
    else:
        _print_outcome(outcome)


def _rate(text: str) -> float:
    """The rate that was asked for; 1 for one that is yet to be found."""
    from lorewright.errors import ConfigError

    try:
        return 1.0 if text in ("", FIND) else float(text)
    except ValueError:
        raise ConfigError(
            f"--lr is {text!r}; give a number, `{FIND}`, or nothing for the base's own."
        ) from None


def _print_outcome(outcome: Outcome) -> None:
    from lorewright.report import recall_table

    out = Console()
    for note in outcome.notes:
        out.print(f"[dim]{escape(note)}[/]", highlight=False)
    out.print(
        f"[b]{escape(outcome.name)}[/] {outcome.n_examples} examples, {outcome.epochs} epochs in "
        f"{outcome.seconds:.0f} s, ended: {outcome.reason}; as trained, free-running, from disk: "
        f"{outcome.audit.recall}",
        highlight=False,
        soft_wrap=True,
    )
    if outcome.report.arms:
        out.print(recall_table(outcome.report))
    where = f"adapter {outcome.adapter_id} in {escape(str(outcome.folder))}"
    out.print(where, highlight=False, soft_wrap=True)


@app.command()
def ask(
    question: Annotated[str, typer.Argument(help="The question.")],
    memory: Of,
    name: Name = "",
    model: Base = "",
    as_json: Json = False,
    threads: Threads = 0,
) -> None:
    """Ask a memory, closed-book; it declines what it does not know.

    [dim]lore ask "Who signs off Project Gannet?" --memory atlas[/]
    """
    _console(threads)
    answer = _open(memory, model).ask(question, name)
    if as_json:
        print_json(asdict(answer))
        return
    sure = f"memory {answer.memory}, {'declined, ' if answer.declined else ''}mean token "
    sure += f"probability {answer.confidence:.2f}, least {answer.least:.2f}"
    Console().print(f"{escape(answer.text)}\n[dim]{escape(sure)}[/]", highlight=False)


@app.command()
def verify(
    folder: Folder,
    name: Name = "",
    model: Base = "",
    probes: Probes = None,
    metric: Metric = "",
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a Markdown table.")] = False,
    as_json: Json = False,
    threads: Threads = 0,
) -> None:
    """Take the verdict again: probes in untrained forms, beside controls, with intervals.

    [dim]lore verify atlas[/]
    [dim]lore verify atlas --probes examples/handbook.probes.jsonl --json[/]
    """
    from lorewright.readers import read_probes
    from lorewright.report import recall_markdown, recall_table

    console = _console(threads)
    asked = read_probes(probes) if probes else ()
    memory = _open(folder, model)
    with _watch(console) as watch:
        report = memory.verify(name, probes=asked, metric=metric, watch=watch)
    if as_json:
        print_json(report.to_json())
    elif markdown:
        typer.echo(recall_markdown(report))
    else:
        Console().print(recall_table(report))


@app.command()
def show(folder: Folder, as_json: Json = False) -> None:
    """List the memories of a folder with their verdicts.

    [dim]lore show atlas[/]
    """
    from lorewright.report import memories_table
    from lorewright.shelf import cards

    found = cards(folder)
    if as_json:
        print_json({"folder": str(folder), "memories": found})
    else:
        Console().print(memories_table(found))


@app.command()
def targets(
    model: Annotated[str, typer.Argument(help="pocket, a folder, or a hub name.")] = "pocket",
    target: Targets = None,
    layers: Layers = "",
    as_json: Json = False,
) -> None:
    """Show where an adapter would go on a model, and what is left alone and why.

    [dim]lore targets pocket --target q_proj --layers 0-1[/]
    """
    from lorewright.lora import LoraConfig
    from lorewright.model import Model
    from lorewright.report import coverage_table
    from lorewright.targets import resolve_targets

    config = LoraConfig(targets=tuple(target or ("all-linear",)), layers=_layers(layers))
    coverage = resolve_targets(Model.load(model).network, config.targets, config.layers)
    if as_json:
        skipped = dict(coverage.skipped)
        print_json({"modules": coverage.names, "n_linear": coverage.n_linear, "skipped": skipped})
    else:
        Console().print(coverage_table(coverage))


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Where memory, record and figure go.")] = Path("demo"),
    source: Annotated[Path | None, typer.Option(help="Another document than the handbook.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Few epochs; shows no result.")] = False,
    threads: Threads = 0,
    as_json: Json = False,
) -> None:
    """Watch the embedded model learn a document: the memo's table, then three questions.

    [dim]lore demo[/]
    """
    from lorewright.demo import run

    record = run(_console(threads), Console(quiet=as_json), out, source, quick=quick)
    if as_json:
        print_json(record)


# -- helpers of the commands ---------------------------------------------------------------------


def _console(threads: int) -> Console:
    """Stderr for progress; sets the thread count first."""
    if threads:
        import torch

        torch.set_num_threads(threads)
    return Console(stderr=True)


@contextmanager
def _watch(console: Console) -> Iterator[Watch]:
    from lorewright.memory import Watch
    from lorewright.report import write_progress

    def step(text: str) -> None:
        console.print(f"[dim]{escape(text)}[/]", highlight=False)

    with write_progress(console) as epoch:
        yield Watch(step, epoch)


def _open(folder: Path, model: str) -> Memory:
    from lorewright.memory import Memory

    return Memory.open(folder, model or None, create=False)


def _lesson(view: list[str] | None) -> LessonConfig:
    from lorewright.lesson import LessonConfig

    return LessonConfig(views=tuple(view)) if view else LessonConfig()


def _teacher(url: str, folder: Path) -> AskLLM | None:
    if not url:
        return None
    from lorewright.teacher import connect

    return connect(url, cache=folder / "teacher.jsonl")


def _layers(text: str) -> tuple[int, ...] | None:
    """`0-3,7` as (0, 1, 2, 3, 7)."""
    if not text:
        return None
    from lorewright.errors import ConfigError

    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        ends = (first, last) if dash else (first, first)
        if not all(end.isascii() and end.isdecimal() for end in ends):
            raise ConfigError(f"--layers {text!r} is not a list of layers; write it like 0-3,7.")
        low, high = map(int, ends)
        if not low <= high <= MAX_LAYER:
            raise ConfigError(
                f"--layers {text!r} holds {low} to {high}; write the lower one first, and none "
                f"above {MAX_LAYER}."
            )
        found += range(low, high + 1)
    return tuple(found)


def _say_coverage(console: Console, model: Model, config: WriteConfig) -> None:
    """Say which layers are adapted, before anything is trained."""
    from lorewright.targets import resolve_targets

    coverage = resolve_targets(model.network, config.lora.targets, config.lora.layers)
    kinds = Counter(site.projection.split(".")[-1] for site in coverage.sites)
    where = ", ".join(f"{kind} ×{n}" for kind, n in kinds.items())
    about = f"{model.name}: adapter on {len(coverage.sites)} of {coverage.n_linear} linear layers"
    console.print(f"[dim]{escape(about)} ({where})[/]", highlight=False)
