"""What each page shows, as plain data: read from the folder's files, no model loaded.

A page is its record drawn by a template, and `PAGE.json` is the record itself.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from lorewright.errors import DataError, StorageError, UnknownMemory
from lorewright.knowledge.markdown import with_tables_as_sentences
from lorewright.knowledge.selfstudy import statements
from lorewright.memory.experiments import ABOUT, EXPERIMENTS, RECORD, place_of
from lorewright.memory.folder import (
    CONFIG_FILE,
    REPORT_FILE,
    Folder,
    readable,
)
from lorewright.memory.stop import can_go_on, current_run, resumable, runs_of
from lorewright.training.filenames import METRICS_FILE, PARTS_FILE

PAGE_ROWS = 50
"""Memories on one page of the list."""
MOST_UNFINISHED = 20
"""Writes that a page offers to go on with."""
HEADLINE = "paraphrase"
SORTS = ("name", "recall", "rank", "written")
PLAN = "plan.json"


def memories(
    folder: Folder, *, query: str = "", sort: str = "name", page: int = 1
) -> dict[str, Any]:
    """The list of memories, of which one page is read in full."""
    started = folder.started
    index: dict[str, Any] = {"base": {"id": ""}, "memories": {}}
    if started:
        index = folder.index()
    entries = index["memories"]
    names = [name for name in sorted(entries) if query.casefold() in name.casefold()]
    if sort == "recall":
        names.sort(key=lambda name: _headline(entries[name].get("card", {}))[0] or -1.0)
    elif sort == "rank":
        names.sort(key=lambda name: _rank(entries[name].get("card", {})) or 0)
    elif sort == "written":
        names.sort(key=lambda name: str(entries[name].get("run", "")), reverse=True)
    n_pages = max(1, math.ceil(len(names) / PAGE_ROWS))
    page = min(max(1, page), n_pages)
    shown = names[(page - 1) * PAGE_ROWS : page * PAGE_ROWS]
    return {
        "folder": folder.path.name or str(folder.path),
        "base": index["base"]["id"],
        "started": started,
        "n": len(entries),
        "n_matching": len(names),
        "query": query,
        "sort": sort if sort in SORTS else "name",
        "page_number": page,
        "n_pages": n_pages,
        "memories": [_row(folder, name, entries[name]) for name in shown],
        "writing": name_of_current(folder),
    }


def _row(folder: Folder, name: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    card = folder.card(entry["adapter"]) or entry.get("card", {})
    recall = card.get("report", {}).get("recall", {})
    _, kind = _headline(card)
    lineage = [str(each.get("name")) for each in entry.get("parents", ())]
    lineage += [f"before: {each.get('adapter')}" for each in card.get("supersedes", ())]
    row: dict[str, Any] = {
        "name": name,
        "id": entry["adapter"],
        "rank": _rank(card),
        "kind": kind,
        "arms": _arms(recall.get(kind, {})),
        "retained": recall.get("retained", {}).get("memory"),
        "reason": str(card.get("reason", "")),
        "bytes": None,
        "written": "",
        "lineage": lineage,
        "trouble": "its adapter is gone from the disk; write it again.",
    }
    with suppress(OSError):
        about = (folder.state_path(entry["adapter"]) / "adapter_model.safetensors").stat()
        row |= {"bytes": about.st_size, "written": _iso(about.st_mtime), "trouble": ""}
    return row


def _arms(arms: Mapping[str, Any]) -> dict[str, Any]:
    """The memory and what a list shows it beside."""
    return {arm: arms.get(arm) for arm in ("memory", "base", "wrong")}


def _headline(card: Mapping[str, Any]) -> tuple[float | None, str]:
    """Recall of the kind of probe that stands first, and the kind."""
    recall = card.get("report", {}).get("recall", {})
    kind = HEADLINE if HEADLINE in recall else next(iter(recall), "")
    return recall.get(kind, {}).get("memory", {}).get("recall"), kind


def _rank(card: Mapping[str, Any]) -> int | None:
    rank = card.get("adapter", {}).get("lora", {}).get("rank")
    return rank if isinstance(rank, int) else None


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")


def name_of_current(folder: Folder) -> str:
    """The run that a process is writing at this moment; empty where none is."""
    run = current_run(folder)
    return run.name if run else ""


# -- a write ----------------------------------------------------------------------------------


def run_path(folder: Folder, name: str) -> Path:
    """A run of a write by its name. Raises UnknownMemory for one that is not there."""
    for path in runs_of(folder):
        if path.name == name:
            return path
    raise UnknownMemory(f"{folder.path} has no run {name!r}; it may have been forgotten.")


def latest_run(folder: Folder) -> str:
    """The run that goes on, or the latest one of a write; empty where there is none."""
    current = current_run(folder)
    begun = [run for run in runs_of(folder) if (run / METRICS_FILE).exists()]
    runs = [current] if current else begun
    return runs[-1].name if runs else ""


def run_of(folder: Folder, memory: str) -> str:
    """The latest run that writes a memory of this name; empty where there is none."""
    runs = [run for run in runs_of(folder) if readable(run / CONFIG_FILE).get("name") == memory]
    return runs[-1].name if runs else ""


def write_run(folder: Folder, name: str) -> dict[str, Any]:
    """A write: its settings, plan and epochs, whether it goes on, and what it came to.

    Raises UnknownMemory for a run that is not there.
    """
    path = run_path(folder, name)
    settings, report = readable(path / CONFIG_FILE), readable(path / REPORT_FILE)
    state = "finished" if report else "interrupted"
    if state == "interrupted" and current_run(folder) == path:
        state = "running"
    write = settings.get("write", {})
    outcome = None
    if report:
        outcome = {key: report.get(key) for key in ("reason", "seconds", "n_examples", "trained")}
        _, kind = _headline({"report": report})
        outcome |= {"kind": kind, "arms": _arms(report.get("recall", {}).get(kind, {}))}
    memory, epochs = str(settings.get("name", name)), epochs_of(path / METRICS_FILE)
    return {
        "run": name,
        "memory": memory,
        "state": state,
        "settings": {
            "rank": write.get("lora", {}).get("rank"),
            "targets": write.get("lora", {}).get("targets"),
            "objective": write.get("objective"),
            "lr": write.get("lr"),
            "epochs": write.get("epochs"),
        },
        "plan": str(readable(path / PLAN).get("note", "")),
        "epochs": epochs,
        "part": part_of(path, epochs) if state == "running" else None,
        "outcome": outcome,
        "resumes": state != "running" and can_go_on(path),
        "there": memory in folder.entries(),
    }


def unfinished(folder: Folder) -> list[dict[str, Any]]:
    """Writes that can go on, newest first: cut off, or stopped and a memory already."""
    return [
        {
            "run": run.name,
            "memory": str(readable(run / CONFIG_FILE).get("name", run.name)),
            "stopped": (run / REPORT_FILE).exists(),
            "n_epochs": len(epochs_of(run / METRICS_FILE)),
        }
        for run in reversed(resumable(folder)[-MOST_UNFINISHED:])
    ]


def epochs_of(path: Path) -> list[dict[str, Any]]:
    """The epochs of a write so far, of the first of several that train together."""
    return [row for row in _metrics(path) if not row.get("job")]


def part_of(run: Path, epochs: Sequence[Mapping[str, Any]], job: int = 0) -> dict[str, Any] | None:
    """How far the epoch is that goes on, where it is a later one than those that are over."""
    rows = readable(run / PARTS_FILE).get("parts", ())
    done = epochs[-1]["epoch"] if epochs else 0
    return next((row for row in rows if row["job"] == job and row["epoch"] > done), None)


def _metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl; none where it is not there or is being replaced."""
    with suppress(OSError, ValueError):
        about = path.stat()
        return list(_lines(path, about.st_mtime_ns, about.st_size))
    return []


@lru_cache(maxsize=8)
def _lines(path: Path, changed: int, size: int) -> tuple[dict[str, Any], ...]:
    """The lines of a file as it was at a time; a page looks several times a second."""
    text = path.read_text(encoding="utf-8")
    return tuple(json.loads(line) for line in text.splitlines() if line)


# -- experiments ------------------------------------------------------------------------------


def sandbox(name: str) -> dict[str, Any]:
    """An experiment: its arms with their epochs so far, and what came of it when it was run.

    Raises ConfigError for a name that is none.
    """
    place, chosen = place_of(name), EXPERIMENTS[name]
    about, record = readable(place / ABOUT), readable(place / RECORD)
    rows = _metrics(place / METRICS_FILE)
    names = about.get("arms", [])
    finished = {each["arm"]: each for each in record.get("outcomes", ())}
    arms = [
        {
            "arm": arm,
            "trains": arm not in chosen.merges,
            "epochs": (own := [row for row in rows if row.get("job", 0) == job]),
            "part": part_of(place, own, job),
            "trained": finished.get(arm, {}).get("trained"),
            "held": finished.get(arm, {}).get("held"),
        }
        for job, arm in enumerate(names)
    ]
    return {
        "experiment": name,
        "question": chosen.question,
        "expected": chosen.expected,
        "n_facts": chosen.n_facts,
        "base": about.get("base", ""),
        "arms": arms,
        "sentence": record.get("sentence", ""),
    }


# -- a verdict --------------------------------------------------------------------------------


def verdict(folder: Folder, name: str, *, kind: str = "", failed: bool = False) -> dict[str, Any]:
    """A memory's verdict: recall by kind and arm, and every probe with what came back.

    `kind` and `failed` choose among the probes. Raises UnknownMemory, DataError.
    """
    entry = folder.entry(name)
    card = folder.card(entry["adapter"])
    run = str(entry.get("run", ""))
    report = readable(folder.run_path(run) / REPORT_FILE)
    if "recall" not in report:  # of a merge, whose report is on its sources
        report = card.get("report", {})
    outcomes = report.get("outcomes", {})
    base = {row["probe_id"]: row["output"] for row in outcomes.get("base", ())}
    probes = [
        {**{key: row[key] for key in ("probe_id", "kind", "question", "output", "score")}}
        | {"answers": list(row["answers"]), "base": base.get(row["probe_id"])}
        for row in outcomes.get("memory", ())
    ]
    chosen = [
        row
        for row in probes
        if (not kind or row["kind"] == kind) and (not failed or not row["score"])
    ]
    spans = _spans(folder, entry, chosen)
    return {
        "memory": name,
        "id": entry["adapter"],
        "run": run if (folder.run_path(run) / METRICS_FILE).exists() else "",
        "rank": _rank(card),
        "reason": str(card.get("reason", "")),
        "metric": report.get("metric", ""),
        "recall": report.get("recall", {}),
        "trained": report.get("trained"),
        "notes": list(report.get("notes", ())),
        "kind": kind,
        "failed": failed,
        "n_probes": len(probes),
        "n_failed": sum(not row["score"] for row in probes if row["score"] is not None),
        "kinds": list(dict.fromkeys(row["kind"] for row in probes)),
        "probes": [{**row, "span": span} for row, span in zip(chosen, spans, strict=True)],
    }


def _spans(
    folder: Folder, entry: Mapping[str, Any], probes: Sequence[Mapping[str, Any]]
) -> list[str]:
    """The sentence of the source that holds each probe's answer; empty where none does."""
    lines: list[str] = []
    with suppress(DataError, StorageError):
        for document in folder.knowledge(entry).documents:
            lines += statements(with_tables_as_sentences(document.text))
    spans = []
    for probe in probes:
        words = {word.strip("?.,").casefold() for word in probe["question"].split()}
        holding = [line for line in lines if any(a and a in line for a in probe["answers"])]
        shared = [len(words & {w.strip(".,").casefold() for w in line.split()}) for line in holding]
        best = max(range(len(holding)), key=shared.__getitem__, default=None)
        spans.append("" if best is None else holding[best])
    return spans
