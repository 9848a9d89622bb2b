"""Summaries of benchmarks with arms as tables: edits, and texts asked about closed-book.

This room knows how such summaries are laid out; it knows no model and no record.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from lorewright.bench.arms import ALL, ARMS
from lorewright.reports.page import Sheet

Entry = Mapping[str, Any]
NOTHING = "–"
NAMES = {
    "token_f1": "token F1",
    "rouge_l": "ROUGE-L",
    "exact_match": "exact",
    "judge": "judge, 0–10",
}
TITLES = {"paperqa": "PaperQA", "narrativeqa": "NarrativeQA", "quality": "QuALITY"}
HEADLINES = {"paperqa": "token_f1", "narrativeqa": "rouge_l", "quality": "choice"}
"""What is shown by kind of question."""
MEANING = (
    "memory: closed-book; base: nothing written, nothing in the prompt; wrong: another memory "
    "of the same kind; full: the base with the text in its prompt; gain: memory less base."
)


def spelt(found: Mapping[str, Any] | None, form: str = "{:.2f}", *, n: int | None = None) -> str:
    """Return mean and interval; with n where it is another than the row's; else a dash."""
    if not found or found["mean"] is None:
        return NOTHING
    text = form.format(found["mean"])
    if found["low"] is not None:
        text += f" [{form.format(found['low'])}, {form.format(found['high'])}]"
    return f"{text} n={found['n']}" if n is not None and found["n"] != n else text


def _cells(entry: Entry) -> tuple[str, ...]:
    arms = entry["arms"]
    n = arms.get("memory", next(iter(arms.values())))["n"]
    seeds = [mean for mean in entry["by_seed"] if mean is not None]
    spread = f"{min(seeds):.2f} to {max(seeds):.2f}" if len(seeds) > 1 else NOTHING
    less_base = spelt(entry["over_base"], "{:+.2f}")
    return (str(n), *(spelt(arms.get(arm), n=n) for arm in ARMS), less_base, spread)


HEAD = ("n", *ARMS, "gain", "seeds")


# -- edits ---------------------------------------------------------------------------------------


def counterfact(summary: Mapping[str, Any]) -> Iterator[Sheet]:
    """Yield the shares by kind of prompt, and S."""
    config, rows = summary["config"], []
    for entry in summary["arms"]:
        rows.append((str(entry["rank"]), entry["kind"], entry["metric"], *_cells(entry)))
    for entry in summary["score"]:
        arms = entry["arms"]
        n = str(arms["memory"]["n"])
        cells = (n, *(spelt(arms[arm]) for arm in ARMS), NOTHING, NOTHING)
        rows.append((str(entry["rank"]), ALL, "score S", *cells))
    together = config["together"]
    title = f"CounterFact: {_counted(summary['n_edits'], 'edit')}, {together} in a memory, "
    title += _counted(config["seeds"], "seed")
    prompts = ", ".join(f"{n} {kind}" for kind, n in summary["n_prompts"].items())
    notes = [
        f"Prompts: {prompts}. Every edit counts alike; n is edits.",
        "Success: the new object likelier than the true one; for neighbours the other way round. "
        "Magnitude: difference of exp(-mean loss per token). S: harmonic mean of the successes. "
        "Replies: greedy; for neighbours the true object is right.",
        f"{MEANING} 95 % intervals: Wilson's, or bootstrap over edits.",
    ]
    yield Sheet(title, ("rank", "prompts", "metric", *HEAD), tuple(rows), (*notes, *_lost(summary)))


def _lost(summary: Mapping[str, Any]) -> list[str]:
    told = []
    if summary["n_without_full"]:
        n = summary["n_without_full"]
        told.append(
            f"The statements of {n} edits do not fit into the prompt: full leaves them out."
        )
    if summary["n_diverged"]:
        told.append(f"{summary['n_diverged']} writes of edits diverged and are left out.")
    return told


# -- texts ---------------------------------------------------------------------------------------


def closedbook(summary: Mapping[str, Any]) -> Iterator[Sheet]:
    """Yield all metrics, then the first of them by kind of question."""
    name, config = summary["bench"], summary["config"]
    title = f"{TITLES[name]}: {_counted(summary['n_texts'], 'text')}, "
    title += f"{_counted(summary['n_questions'], 'question')}, {_counted(config['seeds'], 'seed')}"
    whole = [entry for entry in summary["arms"] if entry["kind"] == ALL]
    head = ("written", "metric", *HEAD)
    yield Sheet(title, head, _rows(whole, "metric"), tuple(_notes(summary)))
    first = "judge" if config["judge"] else HEADLINES[name]
    parts = [e for e in summary["arms"] if e["kind"] != ALL and e["metric"] == first]
    if len({entry["kind"] for entry in parts}) > 1:
        title = f"{_named(first)}, by kind of question"
        yield Sheet(title, ("written", "questions", *HEAD), _rows(parts, "kind"))


def _rows(entries: Sequence[Entry], by: str) -> tuple[tuple[str, ...], ...]:
    return tuple(
        (f"{entry['format']}, rank {entry['rank']}", _named(entry[by]), *_cells(entry))
        for entry in entries
    )


def _named(metric: str) -> str:
    return NAMES.get(metric, metric)


def _counted(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"


def _notes(summary: Mapping[str, Any]) -> Iterator[str]:
    yield MEANING
    yield (
        "n is questions; 95 % intervals: bootstrap over texts, then questions, of means over "
        "seeds; Wilson's where all are right or none. Seeds: lowest and highest mean."
    )
    if summary["chance"]:
        yield f"Choice: the option with the least loss; chance is {summary['chance']:.2f}."
    trained = ", ".join(f"{name} {n}" for name, n in summary["n_examples"].items())
    yield f"Examples trained: {trained}."
    notes = summary["lesson_notes"]
    if notes:
        yield f"On what was written for training, the first of {len(notes)} notes: {notes[0]}"
    seen = {name: n for name, n in summary["n_seen"].items() if n}
    if seen:
        told = ", ".join(f"{name} {n}" for name, n in seen.items())
        yield f"Questions that came to be trained in the same words: {told}."
    if summary["n_without_full"]:
        yield f"{summary['n_without_full']} texts do not fit into the prompt: full leaves them out."
    lost = summary["not_written"]
    if lost["n"]:
        told = ", ".join(f"{name} {n}" for name, n in lost["n"].items())
        yield f"Memories that came to nothing, left out: {told}. The first: {lost['first']}"
    if summary["n_unjudged"]:
        yield (
            f"The judge gave no number to {summary['n_unjudged']} of {summary['n_judged']} "
            "answers: unscored."
        )


SHEETS: dict[str, Callable[[Mapping[str, Any]], Iterator[Sheet]]] = {
    "counterfact": counterfact,
    **dict.fromkeys(TITLES, closedbook),
}
