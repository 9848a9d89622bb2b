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

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from lorewright.bench import exact, summary
from lorewright.bench.passages import passage
from lorewright.bench.tables import NOTHING, figure, methods_figure, methods_table, spelt
from lorewright.bench.task import Done, Figure, Summary, Task, sweep
from lorewright.errors import ConfigError
from lorewright.files import digest, read_text
from lorewright.law.cells import REFERENCE_BITS
from lorewright.models.model import Model
from lorewright.reports.tables import Table

PARTS = ("law", "stubborn", "methods", "placement")
STACK = 12
"""Sequences of a job of the part stubborn."""


@dataclass(frozen=True)
class LongContext:
    """A sweep over long texts."""

    model: str = "pocket"
    """A base: pocket, a folder, a .gguf file, or a name on the hub."""
    parts: tuple[str, ...] = PARTS
    """law, stubborn, methods, placement."""
    ranks: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    """Ranks of the adapters."""
    lengths: tuple[int, ...] = (16, 32, 64, 96, 128, 160)
    """Answer tokens."""
    noise: tuple[int, ...] = (0, 50, 100)
    """Per cent of random tokens."""
    documents: int = 3
    """Of every cell; each is another text, another first A."""
    text: str = ""
    """A file of natural text; empty: an invented world's."""
    placement: str = "down_proj@middle"
    """Adapted layers: TARGET@LAYER, like mlp@middle, or TARGET for all layers."""
    placements: tuple[str, ...] = (
        *("attention@0", "attention@middle", "attention@last", "mlp@0", "mlp@middle", "mlp@last"),
        *("down_proj@middle", "all-linear"),
    )
    """Of the part placement."""
    methods: tuple[str, ...] = ("sft", "threshold", "window")
    """sft, threshold, window, curriculum, window+curriculum."""
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
    """Peak rate; 0 = the one that suits base and placement."""
    margin: float = exact.MARGIN
    """A write ends early when every p exceeds this."""

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
    listed: list[dict[str, Any]] = []
    for part in config.parts:
        listed += [shared | {"part": part} | job for job in _JOBS[part](config)]
    return sorted(listed, key=lambda job: -job["length"])


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
    listed = []
    for name in config.placements:
        how = _how(config, name, config.ranks[:2], ("sft",), repeats=10)
        listed += _compared(replace(config, paired=config.documents), how)
    return listed


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
    result: dict[str, Any] = {}
    if law := parts.get("law"):
        by_noise = {str(n): [row for row in law if row["noise"] == n] for n in config.noise}
        result["law"] = summary.laws(law, config.ranks, config.lengths)
        result["grid"] = {noise: summary.grid(own) for noise, own in by_noise.items()}
        result["capacity"] = {noise: summary.capacities(own) for noise, own in by_noise.items()}
        result["positions"] = {noise: _positions(own) for noise, own in by_noise.items()}
    if stubborn := parts.get("stubborn"):
        result["stubborn"] = summary.failures(stubborn)
    if methods := parts.get("methods"):
        result["methods"] = summary.compared(methods, METRICS, unit="document")
    if placement := parts.get("placement"):
        against = config.placement if config.placement in config.placements else ""
        result["placement"] = summary.compared(
            placement, PLACED, by="placement", unit="document", against=against
        )
        result["parameters"] = {
            row["placement"]: _per_rank(row) for row in placement if "loss" in row
        }
    return result | summary.caveats(rows)


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


def _until_failure(row: summary.Row) -> float:
    """Share of the text before the first failure."""
    first = row["first_failure"][0]
    return 1.0 if first is None else min(1.0, first / row["n_answer_tokens"])


METRICS: dict[str, summary.Metric] = {
    "exact": summary.exact_share,
    "share before the first failure": _until_failure,
    **summary.EFFORT,
}
PLACED: dict[str, summary.Metric] = {
    "bits": summary.bits,
    "bits per parameter": lambda row: summary.bits(row) / row["n_parameters"],
    "loss drop": summary.loss_drop,
}


# -- how it is shown -----------------------------------------------------------------------------


def tables(summary: Summary) -> Iterator[Table]:
    """The law, capacities, failures, methods and placements, as far as they were measured."""
    if "law" in summary:
        yield from _laws(summary["law"])
        yield _capacities(summary["capacity"])
    if "stubborn" in summary:
        yield _failures(summary["stubborn"])
    if "methods" in summary:
        config = summary["config"]
        title = f"Methods on {config['compared']} tokens, {config['paired']} documents"
        yield methods_table(title, summary["methods"], summary)
    if "placement" in summary:
        yield _placements(summary)


def _laws(laws: Mapping[str, Any]) -> Iterator[Table]:
    rows: list[tuple[str, ...]] = []
    constants: list[tuple[str, ...]] = []
    notes = [
        "Error: mean of |predicted − measured| / measured, over runs of single documents. "
        "Held out: fitted again without them. Intervals: bootstrap over documents.",
    ]
    for noise, law in laws.items():
        report = law["report"]
        if "refused" in report:
            notes.append(f"{noise} % random: {report['refused']}")
            continue
        held = report["held_out"]
        notes.append(
            f"{noise} % random, held out: {held['n']} cells above rank {held['above_rank']} or "
            f"{held['above_length']} tokens."
        )
        for form, one in report["laws"].items():
            if "refused" in one:
                rows.append((f"{noise} %", form, *[NOTHING] * 4))
                notes.append(f"{noise} % random, {form}: {one['refused']}")
                continue
            constants += [
                (f"{noise} %", form, name, *_constant(c)) for name, c in one["constants"].items()
            ]
            n = f"{one['n_used']} of {one['n_used'] + one['n_dropped']}"
            beyond = _scored(one["held_out"]) if "held_out" in one else NOTHING
            part = one.get("unsaturated")
            where = f"{_scored(part)}, n={part['n']}" if part else NOTHING
            rows.append((f"{noise} %", form, n, _scored(one["scores"]), where, beyond))
    head = ("random", "law", "cells", "fit", "of these unsaturated", "held out")
    yield Table("The law", head, tuple(rows), tuple(notes), n_keys=3)
    columns = ("random", "law", "constant", "value", "95 % interval")
    yield Table("Constants of the laws", columns, tuple(constants))


def _constant(estimate: Mapping[str, Any]) -> tuple[str, str]:
    if estimate["low"] is None:
        return f"{estimate['value']:.3g}", NOTHING
    return f"{estimate['value']:.3g}", f"[{estimate['low']:.3g}, {estimate['high']:.3g}]"


def _scored(scores: Mapping[str, Any]) -> str:
    r2 = "" if scores["r2"] is None else f"R² {scores['r2']:.3f}, "
    if scores["mape"] is None:
        return f"{r2}error {scores['mean_absolute_error']:.3f}"
    return f"{r2}error {scores['mape']:.1%}"


def _capacities(by_noise: Mapping[str, Sequence[Mapping[str, Any]]]) -> Table:
    rows = [
        (
            f"{noise} %",
            str(row["rank"]),
            f"{row['n_parameters']:,}",
            spelt(row["bits"], "{:.0f}") + ("+" if row["at_the_longest"] else ""),
            spelt(row["bits_per_parameter"]),
            str(row["tokens_recalled"] or NOTHING),
        )
        for noise, by_rank in by_noise.items()
        for row in by_rank
    ]
    head = ("random", "rank", "parameters", "bits", "bits per parameter", "longest text recalled")
    others = "; ".join(f"{bits:g} {name}" for name, bits in REFERENCE_BITS.items())
    notes = (
        "Bits: ΔL × tokens / ln 2, the most at any length; + where longer texts may hold more.",
        "The longest text of which most documents come back exactly, in answer tokens.",
        f"Others measured, bits per parameter: {others}.",
    )
    return Table("Capacity and efficiency", head, tuple(rows), notes, n_keys=2)


def _failures(failures: Mapping[str, Any]) -> Table:
    n, rho = failures["n_failed"], failures["spearman"]
    rows = (
        ("sequences, each its own text and adapter", str(failures["n_sequences"])),
        ("of these not recalled whole", str(n)),
        (
            "Spearman of first stubborn token and first failure",
            f"{spelt(rho)} n={rho['n']}",
        ),
        ("first failure is the first stubborn token", f"{failures['n_same']} of {n}"),
        ("first failure comes before it", f"{failures['n_before']} of {n}"),
        ("most failures at one position", f"{failures['largest_share_at_one_position']:.0%}"),
    )
    return Table("Where recitation fails", ("", ""), rows)


def _placements(summary: Summary) -> Table:
    of = {(r["metric"], r["placement"], r["rank"]): r for r in summary["placement"]}
    keys = [key[1:] for key in of if key[0] == "bits" and key[2] is not None]
    rows = tuple(
        (
            placement,
            str(rank),
            f"{summary['parameters'][placement] * rank:,}",
            spelt(of["loss drop", placement, rank]),
            spelt(of["bits", placement, rank], "{:.0f}"),
            spelt(of["bits per parameter", placement, rank]),
        )
        for placement, rank in sorted(keys, key=lambda key: (key[0], key[1] or 0))
    )
    head = ("placement", "rank", "parameters", "ΔL", "bits", "bits per parameter")
    config = summary["config"]
    about = f"{config['compared']} tokens, {config['documents']} documents, the same for all"
    return Table(f"Placements: {about}", head, rows, n_keys=3)


def figures(summary: Summary) -> Iterator[Figure]:
    """The figures of the parts that were measured."""
    from lorewright.reports.figures import laws, methods, tokens

    config = summary["config"]
    base = f"{summary['base']['id']}, {config['placement']}"
    for noise, law in summary.get("law", {}).items():
        about = f"{base} · {noise} % random tokens · points: {config['documents']} documents a cell"
        caption = f"What a rank keeps of a text with {noise} % random tokens: runs and law."
        yield figure(f"law-{noise}", caption, laws.law_figure, law, about=about)
        caption = f"The same as a plane over rank and length, {noise} % random tokens."
        yield figure(f"plane-{noise}", caption, laws.plane_figure, law, about=about)
    if "law" in summary:
        about = f"{base} · a point is one document under one adapter"
        caption = "Predicted against measured, with what the law was not fitted on."
        law = summary["law"]
        yield figure("predicted", caption, laws.predicted_figure, law, about=about)
        caption = "Final loss and token accuracy, free-running, by rank and length."
        about = f"{base} · means over {config['documents']} documents"
        yield figure("heat", caption, laws.heat_figure, summary["grid"], about=about)
        caption = "Capacity and efficiency by rank, with 95 % intervals over documents."
        about = f"{base} · bars: 95 % intervals over {config['documents']} documents"
        draw = partial(laws.capacity_figure, references=REFERENCE_BITS)
        yield figure("capacity", caption, draw, summary["capacity"], about=about)
        for noise, cells in summary["positions"].items():
            caption = f"Every token of one text a cell, {noise} % random; line: the first failure."
            about = f"{base} · {noise} % random tokens · one text a cell · line: first failure"
            name = f"positions-{noise}"
            yield figure(name, caption, tokens.positions_figure, cells, about=about)
    if "stubborn" in summary:
        failures = summary["stubborn"]
        about = f"{base} · {failures['n_failed']} of {failures['n_sequences']} texts of "
        about += f"{config['compared']} tokens are not recalled whole"
        caption = "First failure against the first token below ½, and where failures are."
        yield figure("failures", caption, tokens.failures_figure, failures, about=about)
    if "methods" in summary:
        about = (
            f"{base} · {config['compared']} tokens · bars: 95 % over {config['paired']} documents"
        )
        for metric in ("loss drop", "share before the first failure"):
            yield methods_figure(summary["methods"], metric, about)
    if "placement" in summary:
        about = f"{summary['base']['id']} · {config['compared']} tokens · bars: 95 % over documents"
        draw = partial(methods.placement_figure, parameters=summary["parameters"])
        caption = "Bits held by placement against parameters."
        yield figure("placement", caption, draw, summary["placement"], about=about)


TASK = Task(
    "longcontext",
    LongContext,
    quick,
    sweep("longcontext", jobs, task, summarise),
    tables,
    figures,
    flags={"documents": "--seeds", "parts": "--part", "methods": "--objective"},
)
