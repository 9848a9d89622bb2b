"""Verdicts, lists of memories, merges and the demonstration as tables, from plain records.

A record is what `to_json` gives and what lies on disk, so that a stored result is shown like a
fresh one, without a model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from lorewright.errors import DataError
from lorewright.recall.statistics import Estimate
from lorewright.reports.tables import NOT_RUN, Table

if TYPE_CHECKING:
    from lorewright.adapters.targets import Coverage
    from lorewright.recall.traces import Token

HEADLINE = "paraphrase"
INTERVALS = "95 % intervals"

Record = Mapping[str, Any]


BESIDE = {
    "declined": "questions that the document does not answer",
    "retained": "general questions that the base answers",
}
"""What the demonstration may show beside recall: the share of what."""


@contextmanager
def checked_record() -> Iterator[None]:
    """Raise DataError in place of what a record of another shape raises inside the block."""
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"a stored record cannot be shown; it has another shape ({type(error).__name__}: "
            f"{error}); make it again with this version."
        ) from error


def estimate_of(row: Record) -> Estimate:
    """Return a record's n, recall and interval."""
    return Estimate(row["n"], row["recall"], row["low"], row["high"])


def spelled(row: Record | Estimate | None) -> str:
    """Return mean and interval; n has a column of its own. A dash for what was not run."""
    if row is None:
        return NOT_RUN
    estimate = row if isinstance(row, Estimate) else estimate_of(row)
    return str(estimate).split(" n=")[0]


def recall_table(report: Record, title: str = "") -> Table:
    """Return a verdict: kinds of probe by arms, with n; why an arm is missing stands below.

    Where arms scored different numbers of a kind, n is a range. Raises DataError for a record of
    another shape.
    """
    # here, as figures of a record need no torch
    from lorewright.recall.verify import ARMS, OWN_ARMS, SUPPORTED

    with checked_record():
        rows = []
        measured = {arm for arms in report["recall"].values() for arm in arms}
        shown = tuple(arm for arm in ARMS if arm != SUPPORTED or arm in measured)
        for kind, arms in report["recall"].items():
            ns = sorted({row["n"] for row in arms.values()}) or [0]
            n = f"{ns[0]}–{ns[-1]}" if len(ns) > 1 else f"{ns[0]}"
            rows.append((kind, n, *(spelled(arms.get(arm)) for arm in shown)))
        title = title or f"Recall of {report.get('context', {}).get('memory', 'the probes')}"
        return Table(
            title,
            ("probes", "n", *shown),
            tuple(rows),
            (*report.get("notes", ()), *_unscored(report)),
            subtitle=f"{report['metric']}, {INTERVALS}",
            n_keys=2,
            stacked=("arm", "recall"),
            dim=tuple(arm for arm in shown if arm not in OWN_ARMS),
            bold=tuple(i for i, row in enumerate(rows) if row[0] == HEADLINE),
        )


def _unscored(report: Record) -> Iterator[str]:
    for arm, outcomes in report.get("outcomes", {}).items():
        for kind in report["recall"]:
            scores = [row["score"] for row in outcomes if row["kind"] == kind]
            if n_unscored := scores.count(None):
                yield f"{arm}: {n_unscored} of {len(scores)} {kind} probes unscored."


def _mean(row: Record | None) -> str:
    return NOT_RUN if row is None or row["recall"] is None else f"{row['recall']:.2f}"


def memories_table(cards: Sequence[Record], n_more: int = 0) -> Table:
    """Return a row a card, recall beside the base's; raises DataError for another shape."""
    notes: list[str] = []
    rows: list[tuple[str, ...]] = []
    retained: list[Record | None] = []
    with checked_record():
        for card in cards:
            recall = card["report"]["recall"]
            kind = HEADLINE if HEADLINE in recall else next(iter(recall), "")
            arms = recall.get(kind, {})
            n = str(arms["memory"]["n"]) if "memory" in arms else NOT_RUN
            rank = card["adapter"]["lora"]["rank"]
            shown = [spelled(arms.get(arm)) for arm in ("memory", "base")]
            retained.append(recall.get("retained", {}).get("memory"))
            rank = NOT_RUN if rank is None else str(rank)
            rows.append((card["name"], rank, n, *shown, card["id"]))
            if kind not in ("", HEADLINE):
                notes.append(f"{card['name']}: {kind} probes.")
            if card["reason"] != "recalled":
                notes.append(f"{card['name']}: training ended by {card['reason']}.")
    if n_more:
        notes.append(f"{len(rows)} of {len(rows) + n_more} memories; --limit 0 lists all.")
    head: tuple[str, ...] = ("memory", "rank", "n", "recall", "base alone", "adapter")
    if any(retained):
        head = (*head[:-1], "retained", head[-1])
        both = zip(rows, retained, strict=True)
        rows = [(*row[:-1], spelled(share), row[-1]) for row, share in both]
    subtitle = f"{HEADLINE}s, {INTERVALS}"
    return Table(
        "Memories", head, tuple(rows), tuple(notes), subtitle=subtitle, dim=("base alone",)
    )


def trials_table(record: Record) -> Table:
    """Return the merges that were tried, with every source's recall under each.

    Raises DataError for a record of another shape.
    """
    with checked_record():
        counts = [row["n"] for row in next((t["held"] for t in record["trials"] if t["held"]), [])]
        sources = [
            f"{part['memory']} ({n})" for part, n in zip(record["parts"], counts, strict=False)
        ]
        rows, notes = [], []
        for trial in record["trials"]:
            method = _with_options(trial)
            cells = [spelled(row) for row in trial["held"]]
            if not cells:
                notes.append(f"{method}: {trial['why_not']}")
            cells += [NOT_RUN] * (len(sources) - len(cells))
            rows.append((method, str(trial["rank"]), f"{trial['seconds']:.1f}", *cells))
        return Table(
            "Tried",
            ("method", "rank", "seconds", *sources),
            tuple(rows),
            tuple(notes),
            subtitle=f"recall of trained questions that were set aside, {INTERVALS}",
            n_keys=3,
            stacked=("source", "recall"),
        )


def _with_options(trial: Record) -> str:
    return " ".join([trial["method"], *(f"{k} {v:g}" for k, v in trial["options"].items())])


def merged_table(record: Record) -> Table:
    """Return every source's recall alone and merged, what was lost, and the base's, by kind.

    Raises DataError for a record of another shape.
    """
    rows = []
    with checked_record():
        for part in record["parts"]:
            for kind, arms in part["recall"].items():
                lost = spelled(Estimate(**part["lost"][kind]))
                cells = (spelled(arms["alone"]), spelled(arms["merged"]), lost)
                n = str(arms["merged"]["n"])
                rows.append((part["memory"], kind, n, *cells, spelled(arms["base"])))
    return Table(
        "Recall before and after",
        ("source", "probes", "n", "alone", "merged", "lost", "base"),
        tuple(rows),
        subtitle=INTERVALS,
        n_keys=3,
        stacked=("", "recall"),
        dim=("base",),
        bold=tuple(i for i, row in enumerate(rows) if row[1] == HEADLINE),
    )


def tokens_table(tokens: Sequence[Token]) -> Table:
    """Return a row a token: its piece, its probability, and the likeliest others in its place."""
    rows = tuple(
        (
            repr(each.piece),
            f"{each.p:.3f}",
            "" if each.right else "another is likelier",
            ", ".join(f"{piece!r} {p:.3f}" for piece, p in each.rivals),
        )
        for each in tokens
    )
    return Table(
        "Tokens",
        ("token", "p", "", "others"),
        rows,
        subtitle="teacher-forced",
        dim=("others",),
        prose=("others",),
        bold=tuple(i for i, each in enumerate(tokens) if not each.right),
    )


def coverage_table(coverage: Coverage) -> Table:
    """Return which linear layers carry an adapter, and what does not and why."""
    where = "where, or why not"
    return Table(
        "Targets",
        ("module", "count", where),
        tuple((name, str(n), place) for name, n, place in coverage.table()),
        subtitle=f"{len(coverage.sites)} of {coverage.n_linear} linear layers",
        prose=(where,),
    )


def estimates_table(title: str, arms: Mapping[str, Estimate | None]) -> Table:
    """Return a row an estimate, with its n."""
    rows = tuple(
        (name, NOT_RUN if each is None else str(each.n), spelled(each))
        for name, each in arms.items()
    )
    return Table(title, ("", "n", "recall"), rows)


def contrast_table(record: Record) -> Table:
    """Return the demonstration's arms with n, recall and final training loss.

    Where rows have them, the shares declined and retained stand beside recall, without their
    intervals. Raises DataError for a record of another shape.
    """
    with checked_record():
        listed = [*record["rows"], *record["extra"]]
        beside = [key for key in BESIDE if any(row.get(key) for row in listed)]
        rows = tuple(
            (
                row["name"],
                str(row["n"]),
                spelled(row),
                *(_mean(row.get(key)) for key in beside),
                NOT_RUN if row["final_loss"] is None else f"{row['final_loss']:.3f}",
            )
            for row in listed
        )
        notes = [f"{row['name']}: {row['meaning']}." for row in listed]
        for key in beside:
            n = max(row[key]["n"] for row in listed if row.get(key))
            notes.append(f"{key}: of {n} {BESIDE[key]}; intervals are in the record.")
        notes.append(f"Final loss in nats per trained token. It took {record['seconds']:.0f} s.")
        return Table(
            str(record["title"]),
            ("", "n", "recall", *beside, "loss" if beside else "final loss"),
            rows,
            (*notes, *(f"$ {command}" for command in record["commands"])),
            subtitle=f"{record['n_probes']} probes, {INTERVALS}",
            sections=(len(record["rows"]) - 1,),
        )
