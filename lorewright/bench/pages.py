"""Summaries of benchmarks as tables and figures, for a terminal and for a page.

What is said here is read from a summary, never measured. This room knows how summaries are laid
out; it knows no model and no record.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from lorewright.bench import tables
from lorewright.law.cells import REFERENCE_BITS
from lorewright.reports.figures import laws, methods, tokens
from lorewright.reports.page import Listing, Page, Part, Picture, Sheet

Summary = Mapping[str, Any]
NOTHING = "–"


class Figure(NamedTuple):
    """A figure that can be drawn into a file."""

    name: str
    caption: str
    draw: Callable[..., None]
    """(path, dark=…) -> None."""


# -- tables --------------------------------------------------------------------------------------


def sheets(summary: Summary) -> list[Sheet]:
    """Return the tables of a benchmark's summary; raises KeyError for one of no benchmark."""
    return list(_SHEETS[summary["bench"]](summary))


def _longcontext(summary: Summary) -> Iterator[Sheet]:
    if "law" in summary:
        yield _laws(summary["law"])
        yield _capacities(summary["capacity"])
    if "stubborn" in summary:
        yield _stubborn(summary["stubborn"])
    if "methods" in summary:
        config = summary["config"]
        title = f"Methods on {config['compared']} tokens, {config['paired']} documents"
        yield _compared(title, summary["methods"], _lost(summary))
    if "placement" in summary:
        yield _placements(summary)


def _phonebook(summary: Summary) -> Iterator[Sheet]:
    for size, rows in summary["methods"].items():
        n = summary["n_entries"][size]
        title = f"PhoneBook, {size} answer tokens, {n} entries, {summary['config']['seeds']} books"
        yield _compared(title, rows, _lost(summary))


def _linear_rule(summary: Summary) -> Iterator[Sheet]:
    config = summary["config"]
    title = f"3x + 5y + 7 from {config['pairs']} pairs, {config['seeds']} sets"
    yield _compared(title, summary["methods"], _lost(summary))


def _lost(summary: Summary) -> tuple[str, ...]:
    notes = []
    if summary["n_diverged"]:
        notes.append(f"{summary['n_diverged']} writes diverged and are left out of their means.")
    if summary["n_flipped"]:
        notes.append(
            f"Of {summary['n_flipped']} texts decoding and the certificate disagree (near-ties)."
        )
    return tuple(notes)


def _laws(found: Mapping[str, Any]) -> Sheet:
    rows = []
    notes = [
        "Error: mean of |predicted − measured| / measured, over runs of single documents. "
        "Held out: fitted again without them. Intervals: bootstrap over documents.",
    ]
    for noise, law in found.items():
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
                rows.append((f"{noise} %", form, *[NOTHING] * 4, one["refused"]))
                continue
            constants = ", ".join(_constant(name, c) for name, c in one["constants"].items())
            n = f"{one['n_used']} of {one['n_used'] + one['n_dropped']}"
            beyond = _scored(one["held_out"]) if "held_out" in one else NOTHING
            part = one.get("unsaturated")
            where = f"{_scored(part)}, n={part['n']}" if part else NOTHING
            rows.append((f"{noise} %", form, n, _scored(one["scores"]), where, beyond, constants))
    head = ("random", "law", "cells", "fit", "of these unsaturated", "held out", "constants")
    return Sheet("The law", head, tuple(rows), tuple(notes))


def _constant(name: str, found: Mapping[str, Any]) -> str:
    if found["low"] is None:
        return f"{name} {found['value']:.3g}"
    return f"{name} {found['value']:.3g} [{found['low']:.3g}, {found['high']:.3g}]"


def _scored(scores: Mapping[str, Any]) -> str:
    r2 = "" if scores["r2"] is None else f"R² {scores['r2']:.3f}, "
    if scores["mape"] is None:
        return f"{r2}error {scores['mean_absolute_error']:.3f}"
    return f"{r2}error {scores['mape']:.1%}"


def _capacities(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> Sheet:
    rows = [
        (
            f"{noise} %",
            str(row["rank"]),
            f"{row['n_parameters']:,}",
            spelt(row["bits"], "{:.0f}") + ("+" if row["at_the_longest"] else ""),
            spelt(row["bits_per_parameter"]),
            str(row["tokens_recalled"] or NOTHING),
        )
        for noise, by_rank in found.items()
        for row in by_rank
    ]
    head = ("random", "rank", "parameters", "bits", "bits per parameter", "longest text recalled")
    others = "; ".join(f"{bits:g} {name}" for name, bits in REFERENCE_BITS.items())
    notes = (
        "Bits: ΔL × tokens / ln 2, the most at any length; + where longer texts may hold more.",
        "The longest text of which most documents come back exactly, in answer tokens.",
        f"Others measured, bits per parameter: {others}.",
    )
    return Sheet("Capacity and efficiency", head, tuple(rows), notes)


def _stubborn(found: Mapping[str, Any]) -> Sheet:
    n = found["n_failed"]
    rows = (
        ("sequences, each its own text and adapter", str(found["n_sequences"])),
        ("of these not recalled whole", str(n)),
        ("Spearman of first stubborn token and first failure", spelt(found["spearman"], n=True)),
        ("first failure is the first stubborn token", f"{found['n_same']} of {n}"),
        ("first failure comes before it", f"{found['n_before']} of {n}"),
        ("most failures at one position", f"{found['largest_share_at_one_position']:.0%}"),
    )
    return Sheet("Where recitation fails", ("", ""), rows)


def _compared(title: str, rows: Sequence[Mapping[str, Any]], notes: Sequence[str]) -> Sheet:
    """A row a metric and rank: the baseline's mean, and for every other method the difference."""
    cells: dict[tuple[str, int | None], dict[str, Mapping[str, Any]]] = {}
    for row in rows:
        cells.setdefault((row["metric"], row["rank"]), {})[row["method"]] = row
    names = list(dict.fromkeys(row["method"] for row in rows))
    shown = []
    for (metric, rank), found in cells.items():
        n = str(max(row["n"] for row in found.values()))
        where = "all" if rank is None else str(rank)
        shown.append((metric, where, n, *(_against(found.get(name)) for name in names)))
    said = "Others: mean and paired difference to sft, 95 % bootstrap interval over n documents, "
    said += "books or sets. Same rate and budget of steps for all; steps are those taken."
    return Sheet(title, ("metric", "rank", "n", *names), tuple(shown), (said, *notes))


def _against(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return NOTHING
    if row["difference"] is None:
        return spelt(row, _form(row))
    form = _form(row)
    return f"{form.format(row['mean'])} ({spelt(row['difference'], form.replace(':', ':+'))})"


def _form(row: Mapping[str, Any]) -> str:
    return "{:.0f}" if abs(row["mean"] or 0) >= 20 else "{:.2f}"


def _placements(summary: Summary) -> Sheet:
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
    return Sheet(f"Placements: {about}", head, rows)


def spelt(found: Mapping[str, Any], form: str = "{:.2f}", *, n: bool = False) -> str:
    """Return mean and interval of a plain estimate, with n if asked; a dash where there is none."""
    if found["mean"] is None:
        return NOTHING
    text = form.format(found["mean"])
    if found["low"] is not None:
        text += f" [{form.format(found['low'])}, {form.format(found['high'])}]"
    return f"{text} n={found['n']}" if n else text


# -- figures -------------------------------------------------------------------------------------


def figures(summary: Summary) -> list[Figure]:
    """Return the figures of a summary, drawn when asked; some benchmarks have tables only."""
    draw = _FIGURES.get(summary["bench"])
    return list(draw(summary)) if draw else []


def _longcontext_figures(summary: Summary) -> Iterator[Figure]:
    config = summary["config"]
    base = f"{summary['base']['id']}, {config['placement']}"
    for noise, law in summary.get("law", {}).items():
        about = f"{base} · {noise} % random tokens · points: {config['documents']} documents a cell"
        caption = f"What a rank keeps of a text with {noise} % random tokens: runs and law."
        yield _figure(f"law-{noise}", caption, laws.law_figure, law, about=about)
        caption = f"The same as a plane over rank and length, {noise} % random tokens."
        yield _figure(f"plane-{noise}", caption, laws.plane_figure, law, about=about)
    if "law" in summary:
        about = f"{base} · a point is one document under one adapter"
        caption = "Predicted against measured, with what the law was not fitted on."
        law = summary["law"]
        yield _figure("predicted", caption, laws.predicted_figure, law, about=about)
        caption = "Final loss and token accuracy, free-running, by rank and length."
        about = f"{base} · means over {config['documents']} documents"
        yield _figure("heat", caption, laws.heat_figure, summary["grid"], about=about)
        caption = "Capacity and efficiency by rank, with 95 % intervals over documents."
        about = f"{base} · bars: 95 % intervals over {config['documents']} documents"
        draw = partial(laws.capacity_figure, references=REFERENCE_BITS)
        yield _figure("capacity", caption, draw, summary["capacity"], about=about)
        for noise, cells in summary["positions"].items():
            caption = f"Every token of one text a cell, {noise} % random; line: the first failure."
            about = f"{base} · {noise} % random tokens · one text a cell · line: first failure"
            name = f"positions-{noise}"
            yield _figure(name, caption, tokens.positions_figure, cells, about=about)
    if "stubborn" in summary:
        found = summary["stubborn"]
        about = f"{base} · {found['n_failed']} of {found['n_sequences']} texts of "
        about += f"{config['compared']} tokens are not recalled whole"
        caption = "First failure against the first token below ½, and where failures are."
        yield _figure("failures", caption, tokens.failures_figure, found, about=about)
    if "methods" in summary:
        about = (
            f"{base} · {config['compared']} tokens · bars: 95 % over {config['paired']} documents"
        )
        for metric in ("loss drop", "share before the first failure"):
            yield _methods_figure(summary["methods"], metric, about)
    if "placement" in summary:
        about = f"{summary['base']['id']} · {config['compared']} tokens · bars: 95 % over documents"
        draw = partial(methods.placement_figure, parameters=summary["parameters"])
        caption = "Bits held by placement against parameters."
        yield _figure("placement", caption, draw, summary["placement"], about=about)


def _phonebook_figures(summary: Summary) -> Iterator[Figure]:
    config = summary["config"]
    for size, rows in summary["methods"].items():
        about = f"{summary['base']['id']}, {config['placement']} · {summary['n_entries'][size]} "
        about += f"numbers · bars: 95 % over {config['seeds']} books"
        yield _methods_figure(rows, "exact", about, name=f"exact-{size}")


def _linear_rule_figures(summary: Summary) -> Iterator[Figure]:
    config = summary["config"]
    about = f"{summary['base']['id']}, {config['placement']} · {config['pairs']} pairs · "
    about += f"bars: 95 % over {config['seeds']} sets"
    for metric in ("memory", "generalisation"):
        yield _methods_figure(summary["methods"], metric, about)


def _methods_figure(
    rows: Sequence[Mapping[str, Any]], metric: str, about: str, name: str = ""
) -> Figure:
    caption = f"{metric[0].upper()}{metric[1:]} by rank and method, and paired differences to sft."
    draw = partial(methods.compared_figure, metric=metric)
    return _figure(name or metric.replace(" ", "-"), caption, draw, rows, about=about)


def _figure(name: str, caption: str, draw: Callable[..., None], data: Any, *, about: str) -> Figure:
    def into(path: Path, *, dark: bool = False) -> None:
        draw(data, path=path, about=about, dark=dark)

    return Figure(name, caption, into)


# -- the page ------------------------------------------------------------------------------------


def page(summary: Summary) -> Page:
    """Return the whole report of a benchmark: tables, figures, command and versions."""
    versions = "  ".join(f"{name} {number}" for name, number in summary["versions"].items())
    base = summary["base"]
    about = f"{summary['n_jobs']} jobs on {base['id']} (digest {base['digest'][:12]}), "
    about += f"{summary['seconds']:.0f} seconds of work."
    drawn: list[Part] = []
    with tempfile.TemporaryDirectory() as folder:
        for figure in figures(summary):
            path = Path(folder) / f"{figure.name}.svg"
            figure.draw(path)
            drawn.append(Picture(figure.name, figure.caption, path.read_text(encoding="utf-8")))
    settings = tuple(f"{name} = {value}" for name, value in summary["config"].items())
    made = Listing("How it was made", (f"$ {summary['command']}", "", *settings, "", versions))
    return Page(f"lore bench {summary['bench']}", about, (*sheets(summary), *drawn, made))


_SHEETS: dict[str, Callable[[Summary], Iterator[Sheet]]] = {
    "longcontext": _longcontext,
    "phonebook": _phonebook,
    "linear-rule": _linear_rule,
    **tables.SHEETS,
}
_FIGURES: dict[str, Callable[[Summary], Iterator[Figure]]] = {
    "longcontext": _longcontext_figures,
    "phonebook": _phonebook_figures,
    "linear-rule": _linear_rule_figures,
}
