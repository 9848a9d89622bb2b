"""Tables and figures that several benchmarks share, made from summaries.

Knows how summaries are laid out; nothing of models or records.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from lorewright.bench.arms import ARMS
from lorewright.bench.task import Figure
from lorewright.reports.tables import Table

Entry = Mapping[str, Any]
NOTHING = "–"
NAMES = {
    "token_f1": "token F1",
    "rouge_l": "ROUGE-L",
    "exact_match": "exact",
    "judge": "judge, 0–10",
}
HEAD = ("n", *ARMS, "gain", "seeds")
MEANING = (
    "memory: closed-book; base: nothing written, nothing in the prompt; wrong: another memory "
    "of the same kind; full: the base with the text in its prompt; gain: memory less base."
)


def spelt(estimate: Entry | None, form: str = "{:.2f}", *, n: int | None = None) -> str:
    """Return mean and interval; with n where it is another than the row's; else a dash."""
    if not estimate or estimate["mean"] is None:
        return NOTHING
    text = form.format(estimate["mean"])
    if estimate["low"] is not None:
        text += f" [{form.format(estimate['low'])}, {form.format(estimate['high'])}]"
    return f"{text} n={estimate['n']}" if n is not None and estimate["n"] != n else text


def number_form(mean: float | None) -> str:
    """The format of a mean: whole numbers from 20 up, else two decimals."""
    return "{:.0f}" if abs(mean or 0) >= 20 else "{:.2f}"


def counted(n: int, what: str) -> str:
    """``1 text``, ``2 texts``."""
    return f"{n} {what}{'' if n == 1 else 's'}"


def named(metric: str) -> str:
    """A metric as readers know it."""
    return NAMES.get(metric, metric)


# -- methods against a baseline ------------------------------------------------------------------


def methods_table(title: str, rows: Sequence[Entry], summary: Entry) -> Table:
    """A row a metric and rank: the baseline's mean, and for every other method the difference."""
    cells: dict[tuple[str, int | None], dict[str, Entry]] = {}
    for row in rows:
        cells.setdefault((row["metric"], row["rank"]), {})[row["method"]] = row
    names = list(dict.fromkeys(row["method"] for row in rows))
    shown = []
    for (metric, rank), by_method in cells.items():
        n = str(max(row["n"] for row in by_method.values()))
        where = "all" if rank is None else str(rank)
        shown.append((metric, where, n, *(_against(by_method.get(name)) for name in names)))
    notes = [
        "Others: mean and paired difference to sft, 95 % bootstrap interval over n documents, "
        "books or sets. Same rate and budget of steps for all; steps are those taken."
    ]
    if summary["n_diverged"]:
        notes.append(f"{summary['n_diverged']} writes diverged and are left out of their means.")
    if summary["n_flipped"]:
        notes.append(
            f"Of {summary['n_flipped']} texts decoding and the certificate disagree (near-ties)."
        )
    head = ("metric", "rank", "n", *names)
    stacked = ("method", "mean")
    return Table(title, head, tuple(shown), tuple(notes), n_keys=3, stacked=stacked)


def _against(row: Entry | None) -> str:
    if row is None:
        return NOTHING
    form = number_form(row["mean"])
    if row["difference"] is None:
        return spelt(row, form)
    return f"{form.format(row['mean'])} ({spelt(row['difference'], form.replace(':', ':+'))})"


def methods_figure(rows: Sequence[Entry], metric: str, about: str, name: str = "") -> Figure:
    """Means of a metric by rank and method, beside paired differences to the baseline."""
    from lorewright.reports.figures import methods

    caption = f"{metric[0].upper()}{metric[1:]} by rank and method, and paired differences to sft."
    draw = partial(methods.compared_figure, metric=metric)
    return figure(name or metric.replace(" ", "-"), caption, draw, rows, about=about)


def figure(name: str, caption: str, draw: Callable[..., None], data: Any, *, about: str) -> Figure:
    """A figure that ``draw`` makes of data."""

    def into(path: Path, *, dark: bool = False) -> None:
        draw(data, path=path, about=about, dark=dark)

    return Figure(name, caption, into)


# -- arms beside each other ----------------------------------------------------------------------


def arm_cells(entry: Entry) -> tuple[str, ...]:
    """An entry of `arms.compared` under HEAD."""
    arms = entry["arms"]
    n = arms.get("memory", next(iter(arms.values())))["n"]
    seeds = [mean for mean in entry["by_seed"] if mean is not None]
    spread = f"{min(seeds):.2f} to {max(seeds):.2f}" if len(seeds) > 1 else NOTHING
    gain = spelt(entry["over_base"], "{:+.2f}")
    return (str(n), *(spelt(arms.get(arm), n=n) for arm in ARMS), gain, spread)
