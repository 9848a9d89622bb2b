"""Linear rule: f(x, y) = 3x + 5y + 7 from examples; is it remembered, or understood?

Memory is the share of trained pairs that come back exactly, generalisation the share of pairs that
were never trained. Every seed draws other pairs.

Paper: "How LoRA Remembers? A Parametric Memory Law for LLM Finetuning", arXiv 2605.30260, with 500
training pairs.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lorewright.bench import exact, summary
from lorewright.bench.tables import methods_figure, methods_table
from lorewright.bench.task import Done, Figure, Summary, Task, sweep
from lorewright.errors import ConfigError
from lorewright.knowledge.data import Example
from lorewright.reports.tables import Table

LARGEST = 99


@dataclass(frozen=True)
class LinearRule(exact.Comparison):
    """A sweep over sets of pairs."""

    ranks: tuple[int, ...] = (2, 8)
    """Ranks of the adapters."""
    pairs: int = 500
    """Pairs trained; as many others are tested."""
    seeds: int = 5
    """Sets of pairs."""
    batch: int = 10
    """Examples of a step."""

    def __post_init__(self) -> None:
        """Refuse unknown methods, and more pairs than there are."""
        super().__post_init__()
        if not 0 < 2 * self.pairs <= (LARGEST + 1) ** 2:
            raise ConfigError(
                f"pairs is {self.pairs}; with as many unseen there are {(LARGEST + 1) ** 2 // 2}."
            )


def quick(config: LinearRule) -> LinearRule:
    """Return a sweep of a minute that shows that everything works, and no result."""
    return replace(config, ranks=(1, 4), pairs=50, seeds=2, epochs=10)


def rule(x: int, y: int) -> int:
    """Return 3x + 5y + 7."""
    return 3 * x + 5 * y + 7


def examples(n: int, seed: int) -> tuple[list[Example], list[Example]]:
    """Return n pairs to be trained and n others; no pair is in both, or twice in one."""
    every = [(x, y) for x in range(LARGEST + 1) for y in range(LARGEST + 1)]
    drawn = random.Random(f"rule/{seed}").sample(every, 2 * n)
    pairs: Sequence[Example] = [Example(f"f({x}, {y}) =", str(rule(x, y))) for x, y in drawn]
    return list(pairs[:n]), list(pairs[n:])


def jobs(config: LinearRule, base_digest: str) -> list[dict[str, Any]]:
    """Return a job for every set of pairs; all ranks and methods of it are one stack."""
    how = config.job(base_digest) | {"pairs": config.pairs}
    return [how | {"seed": seed} for seed in range(config.seeds)]


def task(job: dict[str, Any]) -> dict[str, Any]:
    """Write the pairs with every method at every rank; test them, and others."""
    model = exact.base_model(job["model"], job["base"])
    trained, unseen = examples(job["pairs"], job["seed"])
    return exact.stack_of(model, job, trained, unseen=unseen)


def summarise(config: LinearRule, done: Done) -> dict[str, Any]:
    """Return memory and generalisation of methods by rank, with paired differences over sets."""
    rows = summary.rows_of(done)
    return {"methods": summary.compared(rows, METRICS), **summary.caveats(rows)}


METRICS: dict[str, summary.Metric] = {
    "memory": summary.exact_share,
    "generalisation": lambda row: summary.exact_share(row["unseen"]),
    **summary.EFFORT,
}


def tables(summary: Summary) -> Iterator[Table]:
    """A table of methods by rank."""
    config = summary["config"]
    title = f"3x + 5y + 7 from {config['pairs']} pairs, {config['seeds']} sets"
    yield methods_table(title, summary["methods"], summary)


def figures(summary: Summary) -> Iterator[Figure]:
    """Methods by rank, with differences."""
    config = summary["config"]
    about = f"{summary['base']['id']}, {config['placement']} · {config['pairs']} pairs · "
    about += f"bars: 95 % over {config['seeds']} sets"
    for metric in ("memory", "generalisation"):
        yield methods_figure(summary["methods"], metric, about)


TASK = Task(
    "linear-rule",
    LinearRule,
    quick,
    sweep("linear-rule", jobs, task, summarise),
    tables,
    figures,
    flags={"methods": "--objective"},
)
