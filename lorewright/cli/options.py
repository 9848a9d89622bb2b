"""Arguments and options that several commands share, and what their texts stand for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from lorewright.adapters.config import LoraConfig
    from lorewright.knowledge.lesson import LessonConfig
    from lorewright.knowledge.selfstudy import AskLLM
    from lorewright.memory.memory import Memory
    from lorewright.models.model import Model
    from lorewright.training.config import WriteConfig

MAX_LAYER = 9999
"""Highest layer that --layers takes."""

Folder = Annotated[Path, typer.Argument(help="The memory's folder.")]
Source = Annotated[Path, typer.Argument(help="Markdown, text, JSONL, JSON, CSV, or a folder.")]
Into = Annotated[Path, typer.Option("--into", help="The memory's folder; made if it is not there.")]
Of = Annotated[Path, typer.Option("--memory", help="The memory's folder.")]
Base = Annotated[
    str,
    typer.Option(
        "--model", "-m", help="Base: a name of `lore models`, a folder, a .gguf file, a hub name."
    ),
]
Dtype = Annotated[str, typer.Option(help="Base in auto, float32, bfloat16, float16 or nf4.")]
Name = Annotated[str, typer.Option("--name", "-n", help="Which memory of the folder.")]
Views = Annotated[
    list[str] | None,
    typer.Option(help="What is trained: qa, verbatim, rewrite, summary, cloze, reverse."),
]
Probes = Annotated[Path | None, typer.Option(help="Your own questions, as JSON lines.")]
Teacher = Annotated[
    str, typer.Option(help="OpenAI-compatible URL, or URL#MODEL, that writes the questions.")
]
Targets = Annotated[
    list[str] | None, typer.Option(help="all-linear, attention, mlp, or names of layers.")
]
Layers = Annotated[str, typer.Option(help="Layers to adapt, like 0-3,7; all by default.")]
Metric = Annotated[
    str, typer.Option(help="exact_match, contains, token_f1 or rouge_l; by default as fits.")
]
TRAINING = "How it is trained"
FIND, AUTO = "find", "auto"
Objective = Annotated[
    str,
    typer.Option(
        help="What is minimised: sft, memft_threshold, memft_window, distill.",
        rich_help_panel=TRAINING,
    ),
]
Rank = Annotated[
    str,
    typer.Option(help="Rank of the adapter; `auto` = as planned, 8 where nothing is calibrated."),
]
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
    str, typer.Option(help="adamw, preconditioned, muon, whitened.", rich_help_panel=TRAINING)
]
Ratio = Annotated[
    float, typer.Option(help="Rate of B over that of A (LoRA+).", rich_help_panel=TRAINING)
]
Decay = Annotated[float, typer.Option(help="Weight decay.", rich_help_panel=TRAINING)]
Variant = Annotated[
    str,
    typer.Option(
        help="lora, or dora: magnitude and direction (needs peft).", rich_help_panel=TRAINING
    ),
]
Dropout = Annotated[
    float,
    typer.Option(help="Share of what A reads that a step hides.", rich_help_panel=TRAINING),
]
Preset = Annotated[
    str,
    typer.Option(
        help="exact; drill: facts by heart in the least time; generalise: dropout and weight decay "
        "by the number of examples.",
        rich_help_panel=TRAINING,
    ),
]
Schedule = Annotated[
    str, typer.Option(help="linear, cosine, constant, wsd, restart.", rich_help_panel=TRAINING)
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


def open_memory(folder: Path, model: str = "") -> Memory:
    """A memory that must be there already, on the base it names or on the given one."""
    from lorewright.memory.memory import Memory

    return Memory.open(folder, model or None, create=False)


def lesson_of(view: list[str] | None) -> LessonConfig:
    """The lesson of the views that were named."""
    from lorewright.knowledge.lesson import LessonConfig

    return LessonConfig(views=tuple(view)) if view else LessonConfig()


def teacher_at(url: str, folder: Path) -> AskLLM | None:
    """The endpoint that writes questions, its replies kept in the folder; None: no address."""
    if not url:
        return None
    from lorewright.knowledge.teacher import connect

    return connect(url, cache=folder / "teacher.jsonl")


def layers_of(text: str) -> tuple[int, ...] | None:
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


def rate_of(text: str) -> float:
    """The rate that was asked for; 1 for one that is yet to be found."""
    from lorewright.errors import ConfigError

    try:
        return 1.0 if text in ("", FIND) else float(text)
    except ValueError:
        raise ConfigError(
            f"--lr is {text!r}; give a number, `{FIND}`, or nothing for the base's own."
        ) from None


def rank_of(text: str) -> int:
    """The rank that was asked for; FIXED_RANK for one that is yet to be planned."""
    from lorewright.errors import ConfigError
    from lorewright.law.plan import FIXED_RANK

    if text == AUTO:
        return FIXED_RANK
    if not (text.isascii() and text.isdecimal()):
        raise ConfigError(f"--rank is {text!r}; give a whole number such as 8, or `{AUTO}`.")
    return int(text)


def lora_of(
    rank: str, alpha: int, target: list[str] | None, layers: str, seed: int, variant: str
) -> LoraConfig:
    """The adapter that was asked for."""
    from lorewright.adapters.config import LoraConfig

    targets = tuple(target or ("all-linear",))
    return LoraConfig(
        rank_of(rank), alpha or None, targets, layers_of(layers), seed=seed, variant=variant
    )


def rated(config: WriteConfig, lr: str, model: Model) -> WriteConfig:
    """The settings with the base's own rate where none was asked for."""
    from lorewright.training.rates import suggested_lr

    return config if lr else replace(config, lr=suggested_lr(model))
