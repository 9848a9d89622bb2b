"""What every command does with its result and its progress."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.markup import escape

if TYPE_CHECKING:
    from lorewright.models.model import Model
    from lorewright.training.config import WriteConfig
    from lorewright.training.watch import Watch


def print_json(obj: Mapping[str, Any]) -> None:
    """One object on stdout, as JSON."""
    typer.echo(json.dumps(obj))


def console_for(threads: int) -> Console:
    """Stderr for progress; sets the thread count first."""
    if threads:
        import torch

        torch.set_num_threads(threads)
    return Console(stderr=True)


@contextmanager
def watching(console: Console) -> Iterator[Watch]:
    """Progress on the console while a verb is at work."""
    from lorewright.reports.tables import write_progress
    from lorewright.training.watch import Watch

    def step(text: str) -> None:
        console.print(f"[dim]{escape(text)}[/]", highlight=False)

    with write_progress(console) as epoch:
        yield Watch(step, epoch)


def say_coverage(console: Console, model: Model, config: WriteConfig) -> None:
    """Say which layers are adapted, before anything is trained."""
    from lorewright.adapters.targets import resolve_targets

    coverage = resolve_targets(model.network, config.lora.targets, config.lora.layers)
    kinds = Counter(site.projection.split(".")[-1] for site in coverage.sites)
    where = ", ".join(f"{kind} ×{n}" for kind, n in kinds.items())
    about = f"{model.name}: adapter on {len(coverage.sites)} of {coverage.n_linear} linear layers"
    console.print(f"[dim]{escape(about)} ({where})[/]", highlight=False)
