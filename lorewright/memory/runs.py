"""Writes and memories as pages: verdict beside its controls, how it was written, with what.

Everything is read from the files of a run or a folder; no model is loaded.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lorewright.errors import DataError
from lorewright.files import read_object
from lorewright.memory.folder import CONFIG_FILE, REPORT_FILE, Folder
from lorewright.reports.figures.training import training_figure
from lorewright.reports.page import Listing, Page, Part, Picture
from lorewright.reports.results import (
    checked_record,
    estimate_of,
    memories_table,
    recall_table,
)
from lorewright.reports.tables import NOT_RUN, Table
from lorewright.training.filenames import METRICS_FILE

SHOWN_FAILURES = 20


def write_page(run: Path | str) -> Page:
    """Return the page of a write's run folder; raises DataError for one that is not finished."""
    run = Path(run)
    if not (run / REPORT_FILE).is_file():
        raise DataError(f"{run} has no {REPORT_FILE}; the write is not finished; run it again.")
    report = read_object(run / REPORT_FILE, "write the memory again")
    settings = read_object(run / CONFIG_FILE, "write the memory again")
    with checked_record():
        about = (
            f"{report['n_examples']} examples, {report['epochs']} epochs in "
            f"{report['seconds']:.0f} s, ended: {report['reason']}. As trained, free-running, from "
            f"disk: {estimate_of(report['trained'])}."
        )
        parts: list[Part] = [recall_table(report, "Recall"), *_failures(report)]
        parts += _training(run, report)
        parts.append(Listing("Settings", tuple(_flat(settings))))
        return Page(f"Memory {report['memory']}", about, tuple(parts))


def memory_page(folder: Path | str) -> Page:
    """Return the page of a memory folder: every memory with its verdict, base and versions."""
    listed = Folder(Path(folder)).cards()
    with checked_record():
        parts: list[Part] = [memories_table(listed)]
        parts += [recall_table(card["report"], f"Recall of {card['name']}") for card in listed]
        versions = sorted({line for card in listed for line in _flat(card.get("versions", {}))})
        bases = sorted({card["adapter"]["base_id"] for card in listed})
        parts.append(Listing("Versions", tuple(versions)))
        n = f"{len(listed)} {'memory' if len(listed) == 1 else 'memories'}"
        about = f"{n} on {', '.join(bases) or 'no base'}."
        return Page(f"Memories in {Path(folder).name}", about, tuple(parts))


def _failures(report: Mapping[str, Any]) -> Iterator[Table]:
    """What the memory got wrong, the first of them in full."""
    wrong = [row for row in report.get("outcomes", {}).get("memory", ()) if row["score"] == 0]
    if wrong:
        rows = tuple(
            (row["kind"], row["question"], " / ".join(row["answers"]) or NOT_RUN, row["output"])
            for row in wrong[:SHOWN_FAILURES]
        )
        n_more = len(wrong) - len(rows)
        yield Table(
            f"What it got wrong: {len(wrong)}",
            ("probes", "question", "accepted", "answered"),
            rows,
            (f"{n_more} more are in {REPORT_FILE}.",) if n_more else (),
            prose=("question", "accepted", "answered"),
        )


def _training(run: Path, report: Mapping[str, Any]) -> Iterator[Picture]:
    epochs = _epochs(run / METRICS_FILE)
    if epochs:
        about = f"{report['memory']} · {report['n_examples']} examples · points: certified counts"
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "training.svg"
            training_figure(epochs, path, about=about)
            yield Picture("training", "Loss and recall by epoch.", path.read_text(encoding="utf-8"))


def _epochs(path: Path) -> Sequence[Mapping[str, Any]]:
    if not path.is_file():
        return ()
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
    except ValueError as error:
        raise DataError(f"{path} is damaged ({error}); delete it to report without it.") from error


def _flat(settings: Mapping[str, Any], above: str = "") -> Iterator[str]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{name}.")
        else:
            yield f"{above}{name} = {value}"
