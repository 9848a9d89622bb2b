"""Long context: one key, one long text, verbatim; the law, stubborn tokens, methods, placements.

Four parts, each a set of jobs whose records are enough for every table and figure:

    law        ranks × lengths × documents × noise; every cell its own document
    stubborn   many sequences, each with its own document and adapter: where does recall first fail?
    methods    plain loss against MemFT's weightings on the same documents, at the same steps
    placement  which layers and projections hold most

Documents are passages of an invented world or of a file, with a share of random tokens.

Paper: "How LoRA Remembers? A Parametric Memory Law for LLM Finetuning", arXiv 2605.30260, which has
one document, and 155 sequences that are one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lorewright.bench import exact, summary
from lorewright.bench.passages import passage
from lorewright.bench.task import Done, Task
from lorewright.errors import ConfigError
from lorewright.files import digest, read_text
from lorewright.models.model import Model

PARTS = ("law", "stubborn", "methods", "placement")
STACK = 12
"""Sequences of a job of the part stubborn."""


@dataclass(frozen=True)
class LongContext:
    """A sweep over long texts."""

    model: str = "pocket"
    parts: tuple[str, ...] = PARTS
    ranks: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    lengths: tuple[int, ...] = (16, 32, 64, 96, 128, 160)
    """Answer tokens."""
    noise: tuple[int, ...] = (0, 50, 100)
    """Per cent of random tokens."""
    documents: int = 3
    """Of every cell; each is another text, another first A."""
    text: str = ""
    """A file of natural text; empty: an invented world's."""
    placement: str = "down_proj@middle"
    placements: tuple[str, ...] = (
        *("attention@0", "attention@middle", "attention@last", "mlp@0", "mlp@middle", "mlp@last"),
        *("down_proj@middle", "all-linear"),
    )
    methods: tuple[str, ...] = ("sft", "threshold", "window")
    failing_ranks: tuple[int, ...] = (1, 2, 3, 4, 6)
    """Of the part stubborn: ranks at which texts of that length are not recalled whole."""
    sequences: int = 192
    """Of the part stubborn."""
    paired: int = 6
    """Documents on which methods are compared."""
    compared: int = 64
    """Length of the texts of all parts but the law."""
    steps: int = 500
    """Budget of optimiser steps of the part law; a write that recalls all ends sooner.

    At 200 the longest random texts were still being learnt, and the law of 100 % noise missed them.
    """
    compared_steps: int = 200
    """Budget of the other parts: short, so that there are failures to tell apart."""
    lr: float = 0.0
    """Peak rate; 0 = the one that suits base and placement, see `exact.NARROW_RATE`."""
    margin: float = exact.MARGIN

    def __post_init__(self) -> None:
        """Check what no job checks before hours have passed."""
        unknown = [part for part in self.parts if part not in PARTS]
        if unknown:
            raise ConfigError(f"part {unknown[0]!r} is unknown; use {', '.join(PARTS)}.")
        exact.settings(self.ranks, self.methods, (0,))
        for name in ("ranks", "lengths", "noise", "parts"):
            if not getattr(self, name):
                raise ConfigError(f"{name} is empty; give at least one.")


def quick(config: LongContext) -> LongContext:
    """Return a sweep of a minute that shows that everything works, and no result."""
    return replace(
        config,
        ranks=(1, 2, 4),
        lengths=(8, 16, 32),
        noise=(0, 100),
        documents=2,
        placements=("down_proj@middle", "mlp@0"),
        sequences=24,
        paired=3,
        compared=24,
        steps=60,
        compared_steps=60,
    )


# -- jobs ----------------------------------------------------------------------------------------


def jobs(config: LongContext, base_digest: str) -> list[dict[str, Any]]:
    """Return all jobs of a sweep, the longest texts first, so that no process ends late alone."""
    text = {"text": config.text, "text_digest": digest(_content(config.text))}
    shared = {"model": config.model, "base": base_digest, **text, "lr": config.lr, "batch": 1}
    shared["margin"] = config.margin
    found: list[dict[str, Any]] = []
    for part in config.parts:
        found += [shared | {"part": part} | job for job in _JOBS[part](config)]
    return sorted(found, key=lambda job: -job["length"])


def _content(text: str) -> str:
    return read_text(Path(text)) if text else ""


def _law(config: LongContext) -> list[dict[str, Any]]:
    how = _how(config, config.placement, config.ranks, ("sft",), repeats=10, steps=config.steps)
    return [
        how | {"length": length, "noise": noise, "document": document}
        for length in config.lengths
        for noise in config.noise
        for document in range(config.documents)
    ]


def _methods(config: LongContext) -> list[dict[str, Any]]:
    # An epoch is one step here, so that a text's history, which widens windows, is not split.
    how = _how(config, config.placement, config.ranks, config.methods, repeats=1)
    return [job | {"margin": exact.SAFE_MARGIN} for job in _compared(config, how)]


def _placement(config: LongContext) -> list[dict[str, Any]]:
    found = []
    for name in config.placements:
        how = _how(config, name, config.ranks[:2], ("sft",), repeats=10)
        found += _compared(replace(config, paired=config.documents), how)
    return found


def _compared(config: LongContext, how: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The same documents for whatever is compared, all of the highest noise."""
    same = {"length": config.compared, "noise": max(config.noise)}
    return [{**how, **same, "document": document} for document in range(config.paired)]


def _stubborn(config: LongContext) -> list[dict[str, Any]]:
    """Stacks of sequences; ranks and noise take turns, so that failures come early and late."""
    how = _how(config, config.placement, config.failing_ranks, ("sft",), repeats=10)
    starts = range(0, config.sequences, STACK)
    return [
        how
        | {"length": config.compared, "noise": config.noise[i % len(config.noise)]}
        | {"first": start, "n": min(STACK, config.sequences - start)}
        for i, start in enumerate(starts)
    ]


def _how(
    config: LongContext,
    placement: str,
    ranks: Sequence[int],
    methods: Sequence[str],
    *,
    repeats: int,
    steps: int = 0,
) -> dict[str, Any]:
    """How a job's texts are written; `steps` optimiser steps, 0 = as many as what is compared."""
    return {
        "placement": placement,
        "ranks": list(ranks),
        "methods": list(methods),
        "repeats": repeats,
        "epochs": max(1, (steps or config.compared_steps) // repeats),
    }


_JOBS = {"law": _law, "stubborn": _stubborn, "methods": _methods, "placement": _placement}


# -- tasks ---------------------------------------------------------------------------------------


def task(job: dict[str, Any]) -> dict[str, Any]:
    """Write the texts of a job and measure every token; the rows of all its members."""
    model = exact.base_model(job["model"], job["base"])
    if job["part"] == "stubborn":
        return {"rows": _sequences(model, job)}
    seed = job["document"]
    name = f"{job['part'] if job['part'] == 'law' else 'compared'}/{seed}"
    text = passage(model, job["length"], job["noise"], name, text=job["text"])
    members = exact.settings(job["ranks"], job["methods"], (seed,))
    rows = exact.rows_of(
        model, job, [(m, [text.example]) for m in members], positions=job["part"] == "law"
    )
    return {"rows": rows, "document": text.digest, "n_random": text.n_random}


def _sequences(model: Model, job: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A stack in which every member has a text of its own."""
    ranks, (method, *_) = job["ranks"], job["methods"]
    members = []
    for i in range(job["first"], job["first"] + job["n"]):
        text = passage(model, job["length"], job["noise"], f"sequence/{i}", text=job["text"])
        members.append((exact.Setting(ranks[i % len(ranks)], method, i), [text.example]))
    return exact.rows_of(model, job, members)


# -- what the records say ------------------------------------------------------------------------


def summarise(config: LongContext, done: Done) -> dict[str, Any]:
    """Return laws, grids and capacities by noise, failures, comparisons; for the parts that ran."""
    rows = summary.rows_of(done)
    parts = {part: [row for row in rows if row["part"] == part] for part in config.parts}
    found: dict[str, Any] = {}
    if law := parts.get("law"):
        by_noise = {str(n): [row for row in law if row["noise"] == n] for n in config.noise}
        found["law"] = summary.laws(law, config.ranks, config.lengths)
        found["grid"] = {noise: summary.grid(own) for noise, own in by_noise.items()}
        found["capacity"] = {noise: summary.capacities(own) for noise, own in by_noise.items()}
        found["positions"] = {noise: _positions(own) for noise, own in by_noise.items()}
    if stubborn := parts.get("stubborn"):
        found["stubborn"] = summary.failures(stubborn)
    if methods := parts.get("methods"):
        found["methods"] = summary.compared(methods, METRICS, unit="document")
    if placement := parts.get("placement"):
        against = config.placement if config.placement in config.placements else ""
        found["placement"] = summary.compared(
            placement, PLACED, by="placement", unit="document", against=against
        )
        found["parameters"] = {
            row["placement"]: _per_rank(row) for row in placement if "loss" in row
        }
    found["n_diverged"] = sum("why" in row for row in rows)
    found["n_flipped"] = sum(row.get("n_flipped", 0) for row in rows)
    return found


def _positions(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Probabilities by position of the first document of every cell."""
    return [
        {
            "rank": row["rank"],
            "length": row["length"],
            "p": row["p"][0],
            "first_failure": row["first_failure"][0],
        }
        for row in rows
        if row["document"] == 0 and "p" in row
    ]


def _per_rank(row: Mapping[str, Any]) -> int:
    return int(row["n_parameters"]) // int(row["rank"])


def _bits(row: summary.Row) -> float:
    return summary.loss_drop(row) * float(row["n_answer_tokens"]) / math.log(2)


def _until_failure(row: summary.Row) -> float:
    """Share of the text before the first failure."""
    first = row["first_failure"][0]
    return 1.0 if first is None else min(1.0, first / row["n_answer_tokens"])


METRICS: dict[str, Callable[[summary.Row], float]] = {
    "exact": lambda row: row["exact"] / row["n"],
    "share before the first failure": _until_failure,
    "loss drop": summary.loss_drop,
    "steps": lambda row: float(row["steps"]),
}
PLACED: dict[str, Callable[[summary.Row], float]] = {
    "bits": _bits,
    "bits per parameter": lambda row: _bits(row) / row["n_parameters"],
    "loss drop": summary.loss_drop,
}
TASK = Task("longcontext", jobs, task, summarise)
