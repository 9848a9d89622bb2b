"""Writes and memories as pages: verdict beside its controls, how it was written, with what.

Everything is read from the files of a run or a folder. This room knows how they are laid out; it
loads no model.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lorewright.errors import DataError
from lorewright.files import read_object
from lorewright.memory.folder import Folder
from lorewright.recall.statistics import Estimate
from lorewright.reports.figures.training import training_figure
from lorewright.reports.page import Listing, Page, Part, Picture, Sheet
from lorewright.reports.tables import NOT_RUN, checked_record, estimate_of

REPORT_FILE = "report.json"
CONFIG_FILE = "config.json"
METRICS_FILE = "metrics.jsonl"
SHOWN_FAILURES = 20


def write_page(run: Path | str) -> Page:
    """Return the page of a write's run folder; raises DataError for one that is not finished."""
    run = Path(run)
    if not (run / REPORT_FILE).is_file():
        raise DataError(f"{run} has no {REPORT_FILE}; the write is not finished; run it again.")
    report = read_object(run / REPORT_FILE, "write the memory again")
    settings = read_object(run / CONFIG_FILE, "write the memory again")
    with checked_record():
        trained = estimate_of(report["trained"])
        about = f"{report['n_examples']} examples, {report['epochs']} epochs in "
        about += f"{report['seconds']:.0f} s, ended: {report['reason']}. As trained, free-running, "
        about += f"from disk: {trained}."
        parts: list[Part] = [_verdict(report)]
        parts += _failed(report)
        parts += _training(run, report)
        parts.append(Listing("Settings", tuple(_flat(settings))))
        return Page(f"Memory {report['memory']}", about, tuple(parts))


def memory_page(folder: Path | str) -> Page:
    """Return the page of a memory folder: every memory with its verdict, base and versions."""
    found = Folder(Path(folder)).cards()
    with checked_record():
        rows = tuple(_card_row(card) for card in found)
        head = ("memory", "adapter", "rank", "probes", "recall", "base alone", "training ended")
        notes = ("Paraphrases where there are any, with 95 % intervals.",)
        parts: list[Part] = [Sheet("Memories", head, rows, notes)]
        parts += [_verdict(card["report"], card["name"]) for card in found]
        versions = sorted({line for card in found for line in _flat(card.get("versions", {}))})
        bases = sorted({card["adapter"]["base_id"] for card in found})
        parts.append(Listing("Versions", tuple(versions)))
        n = f"{len(found)} {'memory' if len(found) == 1 else 'memories'}"
        about = f"{n} on {', '.join(bases) or 'no base'}."
        return Page(f"Memories in {Path(folder).name}", about, tuple(parts))


def _card_row(card: Mapping[str, Any]) -> tuple[str, ...]:
    recall = card["report"]["recall"]
    kind = "paraphrase" if "paraphrase" in recall else next(iter(recall), "")
    arms = {arm: estimate_of(row) for arm, row in recall.get(kind, {}).items()}
    rank = str(card["adapter"]["lora"]["rank"])
    shown = [_spelt(arms.get(arm)) for arm in ("memory", "base")]
    return (card["name"], card["id"], rank, kind or NOT_RUN, *shown, card["reason"])


def _verdict(report: Mapping[str, Any], name: str = "") -> Sheet:
    from lorewright.recall.verify import ARMS  # here, since it brings torch

    rows = []
    for kind, arms in report["recall"].items():
        found = {arm: estimate_of(row) for arm, row in arms.items()}
        n = max((estimate.n for estimate in found.values()), default=0)
        rows.append((kind, str(n), *(_spelt(found.get(arm)) for arm in ARMS)))
    title = f"Recall of {name}" if name else f"Recall, {report['metric']}"
    notes = ("95 % intervals.", *report.get("notes", ()))
    return Sheet(title, ("probes", "n", *ARMS), tuple(rows), notes)


def _failed(report: Mapping[str, Any]) -> Iterator[Sheet]:
    """What the memory got wrong, the first of them in full."""
    wrong = [row for row in report.get("outcomes", {}).get("memory", ()) if row["score"] == 0]
    if wrong:
        shown = tuple(
            (row["kind"], row["question"], " / ".join(row["answers"]) or NOT_RUN, row["output"])
            for row in wrong[:SHOWN_FAILURES]
        )
        more = len(wrong) - len(shown)
        notes = (f"{more} more are in {REPORT_FILE}.",) if more else ()
        head = ("probes", "question", "accepted", "said")
        yield Sheet(f"What it got wrong: {len(wrong)}", head, shown, notes)


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


def _spelt(estimate: Estimate | None) -> str:
    return NOT_RUN if estimate is None else str(estimate).split(" n=")[0]
