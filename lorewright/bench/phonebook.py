"""PhoneBook: many keys, each with ten digits that nothing predicts; which method holds how many?

Keys are ``First Last:``, values ten digits without separators of which the first is not 0; both
occur once. A book of size L holds L answer tokens, so that books of different tokenizers compare.
Every seed is another book, another first A and another order.

Paper: "How LoRA Remembers? A Parametric Memory Law for LLM Finetuning", arXiv 2605.30260, PhoneBook
PB1000 and the like; there with one book and more epochs for some methods than for others.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from lorewright.bench import exact, summary
from lorewright.bench.passages import digits, person
from lorewright.bench.tables import methods_figure, methods_table
from lorewright.bench.task import Done, Figure, Summary, Task, sweep
from lorewright.knowledge.data import Example
from lorewright.models.model import Model
from lorewright.reports.tables import Table

N_DIGITS = 10


@dataclass(frozen=True)
class PhoneBook(exact.Comparison):
    """A sweep over phone books."""

    sizes: tuple[int, ...] = (500,)
    """Answer tokens of a book."""
    seeds: int = 5
    """Books."""


def quick(config: PhoneBook) -> PhoneBook:
    """Return a sweep of a minute that shows that everything works, and no result."""
    return replace(config, ranks=(1, 4), sizes=(80,), seeds=2, epochs=20)


def book(model: Model, n_tokens: int, seed: int) -> list[Example]:
    """Return entries until their numbers have n_tokens tokens, or as near as whole numbers come."""
    rng = random.Random(f"book/{seed}")
    entries: dict[str, str] = {}
    taken: set[str] = set()
    while n_tokens > 0:
        key, value = f"{person(rng)}:", digits(rng, N_DIGITS)
        if key in entries or value in taken:
            continue
        length = len(model.render(key, value).completion_ids) - 1
        if entries and 2 * n_tokens < length:
            break
        entries[key] = value
        taken.add(value)
        n_tokens -= length
    return [Example(key, value) for key, value in entries.items()]


def jobs(config: PhoneBook, base_digest: str) -> list[dict[str, Any]]:
    """Return a job for every book; all ranks and methods of it are one stack."""
    return [
        config.job(base_digest) | {"length": size, "seed": seed}
        for size in config.sizes
        for seed in range(config.seeds)
    ]


def task(job: dict[str, Any]) -> dict[str, Any]:
    """Write a book with every method at every rank, and ask for every number."""
    model = exact.base_model(job["model"], job["base"])
    return exact.stack_of(model, job, book(model, job["length"], job["seed"]))


def summarise(config: PhoneBook, done: Done) -> dict[str, Any]:
    """Return, for every size, methods by rank with paired differences over books."""
    rows = summary.rows_of(done)
    by_size = {size: [row for row in rows if row["length"] == size] for size in config.sizes}
    return {
        "methods": {str(size): summary.compared(own, METRICS) for size, own in by_size.items()},
        "n_entries": {str(size): own[0].get("n") for size, own in by_size.items()},
        **summary.caveats(rows),
    }


METRICS: dict[str, summary.Metric] = {
    "exact": summary.exact_share,
    "token accuracy": lambda row: float(row["token_accuracy"]),
    **summary.EFFORT,
}


def tables(summary: Summary) -> Iterator[Table]:
    """A table of methods by rank for every size."""
    for size, rows in summary["methods"].items():
        n = summary["n_entries"][size]
        title = f"PhoneBook, {size} answer tokens, {n} entries, {summary['config']['seeds']} books"
        yield methods_table(title, rows, summary)


def figures(summary: Summary) -> Iterator[Figure]:
    """Methods by rank, with differences."""
    config = summary["config"]
    for size, rows in summary["methods"].items():
        about = f"{summary['base']['id']}, {config['placement']} · {summary['n_entries'][size]} "
        about += f"numbers · bars: 95 % over {config['seeds']} books"
        yield methods_figure(rows, "exact", about, name=f"exact-{size}")


TASK = Task(
    "phonebook",
    PhoneBook,
    quick,
    sweep("phonebook", jobs, task, summarise),
    tables,
    figures,
    flags={"methods": "--objective"},
)
