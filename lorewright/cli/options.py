"""Arguments and options that several commands share, and where an option is not as its field is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lorewright.adapters.config import LoraConfig
from lorewright.cli.settings import Flag, Group
from lorewright.errors import ConfigError
from lorewright.knowledge.lesson import LessonConfig
from lorewright.training.config import WriteConfig

if TYPE_CHECKING:
    from lorewright.knowledge.data import Probe
    from lorewright.knowledge.selfstudy import AskLLM
    from lorewright.memory.memory import Memory
    from lorewright.models.model import Model

Folder = Annotated[Path, typer.Argument(help="The memory's folder.")]
Source = Annotated[Path, typer.Argument(help="Markdown, text, JSONL, JSON, CSV, or a folder.")]
Which = Annotated[str, typer.Argument(help="Name of the memory.")]
Into = Annotated[Path, typer.Option("--into", help="The memory's folder; created if missing.")]
Of = Annotated[Path, typer.Option("--memory", help="The memory's folder.")]
Base = Annotated[
    str,
    typer.Option(
        "--model", "-m", help="Base: a name of `lore models`, a folder, a .gguf file, a hub name."
    ),
]
Encoder = Annotated[
    str,
    typer.Option(
        help="How meanings are compared: none, minilm, a folder or a hub name; the folder goes on "
        "with it. auto: minilm if it was fetched."
    ),
]
Dtype = Annotated[str, typer.Option(help="Base in auto, float32, bfloat16, float16 or nf4.")]
Name = Annotated[str, typer.Option("--name", "-n", help="Which memory of the folder.")]
Probes = Annotated[Path | None, typer.Option(help="Your own questions, as JSON lines.")]
Teacher = Annotated[
    str, typer.Option(help="OpenAI-compatible URL, or URL#MODEL, that writes the questions.")
]
Metric = Annotated[
    str, typer.Option(help="exact_match, contains, token_f1 or rouge_l; by default as fits.")
]
Threads = Annotated[int, typer.Option(min=0, help="CPU threads; 0 = as the environment says.")]
Json = Annotated[bool, typer.Option("--json", help="Print plain data.")]
Markdown = Annotated[bool, typer.Option("--markdown", help="Print Markdown tables.")]

FIND, AUTO = "find", "auto"
Rank = Annotated[
    str,
    typer.Option(help="Rank of the adapter; `auto` = as planned, 8 where nothing is calibrated."),
]
TRAINING = "How it is trained"
Rate = Annotated[
    str,
    typer.Option(
        help="Peak learning rate; empty = by the base's width and the method, `find` = by a short "
        "search.",
        rich_help_panel=TRAINING,
    ),
]

WRITE = Group(
    WriteConfig,
    {
        "objective": Flag(choices="lorewright.training.objectives.OBJECTIVES"),
        "schedule": Flag(choices="lorewright.training.schedules.SCHEDULES"),
        "order": Flag(choices="lorewright.models.batching.ORDERS"),
        "optimizer": Flag(choices="lorewright.training.optimisers.OPTIMIZERS"),
        "batch_size": Flag("--batch"),
        "max_seconds": Flag("--seconds", least=0),
        "size": Flag(least=0),
        "rest": Flag(least=0, most=1),
    },
    without=("lora", "trunk", "arithmetic"),
    panel=TRAINING,
)
LORA = Group(
    LoraConfig,
    {"alpha": Flag(least=0, panel=TRAINING), "targets": Flag("--target")},
    without=("seed",),
)
LESSON = Group(
    LessonConfig,
    {
        "views": Flag("--view", choices="lorewright.knowledge.views.VIEWS"),
        "negatives": Flag(parse=lambda share: share),  # 0 is none, not the usual number
    },
    without=("seed",),
    panel="How the lesson is built",
)


def open_memory(folder: Path, model: str = "", encoder: str = "auto") -> Memory:
    """Open a memory that must be there already, on the base it names or on the given one."""
    from lorewright.memory.memory import Memory

    return Memory.open(folder, model or None, create=False, encoder=encoder)


def probes_in(path: Path | None) -> tuple[Probe, ...]:
    """Read a file of questions, where there is one."""
    from lorewright.knowledge.readers.probes import read_probes

    return read_probes(path) if path else ()


def teacher_at(url: str, folder: Path) -> AskLLM | None:
    """Return the endpoint that writes questions, its replies cached in the folder."""
    if not url:
        return None
    from lorewright.knowledge.teacher import connect

    return connect(url, cache=folder / "teacher.jsonl")


def rate_of(text: str) -> float:
    """Return the rate of --lr; 1 for one that is determined later."""
    try:
        return 1.0 if text in ("", FIND) else float(text)
    except ValueError:
        raise ConfigError(
            f"--lr is {text!r}; give a number, `{FIND}`, or nothing for the base's own."
        ) from None


def rank_of(text: str) -> int:
    """Return the rank of --rank; FIXED_RANK for one that is planned later."""
    from lorewright.law.plan import FIXED_RANK

    if text == AUTO:
        return FIXED_RANK
    if not (text.isascii() and text.isdecimal()):
        raise ConfigError(f"--rank is {text!r}; give a whole number such as 8, or `{AUTO}`.")
    return int(text)


def rated(config: WriteConfig, lr: str, model: Model, method: str) -> WriteConfig:
    """Return the settings with the method's rate on this base where --lr is empty."""
    from lorewright.writers.methods import usual_lr

    return config if lr else replace(config, lr=usual_lr(method, model))
