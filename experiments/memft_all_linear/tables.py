"""What the trials came to, as Markdown: pooled by group, then cell by cell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from compare import (
    BASELINE,
    Measured,
    against,
    as_ratio,
    epochs_log,
    epochs_to_whole,
    exact,
    n_whole,
    rate_of,
    recited,
    seconds_log,
    share,
    tokens,
    with_arm,
)

from lorewright.files import store
from lorewright.recall.statistics import Estimate

BEGIN, END = "<!-- tables: written by run.py -->", "<!-- end of tables -->"
Groups = Mapping[str, Sequence[Measured]]


def everything(groups: Groups) -> str:
    """Return the tables of the page."""
    return "\n\n".join([pooled(groups), costs(groups), checks(groups)])


def into_page(groups: Groups, page: Path) -> None:
    """Put the tables between the page's two marks."""
    text = page.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    content = f"{before}{BEGIN}\n\n{everything(groups)}\n\n{END}{after}"
    store(content.encode(), page)


def pooled(groups: Groups) -> str:
    """Return each arm against plain loss, by group."""
    header = (
        "group", "arm", "sets", "recalled all", "epochs to 1.00, ratio", "seconds to 1.00, ratio",
        "exact match, difference", "token accuracy, difference", "recited, difference",
    )  # fmt: skip
    rows = []
    for name, group in groups.items():
        for arm in dict.fromkeys(arm for at in group for arm in at.cell.arms):
            count = "{} of {}".format(*n_whole(arm, group))
            if arm == BASELINE:
                rows.append((name, arm, "", count, "1", "1", *levels(group)))
                continue
            timed = all(arm in at.seconds for at in with_arm(arm, group))
            difference = against(arm, group, epochs_log)
            rows.append(
                (
                    name,
                    arm,
                    str(difference.n),
                    count,
                    shown(as_ratio(difference)),
                    shown(as_ratio(against(arm, group, seconds_log))) if timed else "–",
                    *(shown(against(arm, group, f), signed=True) for f in (exact, tokens, recited)),
                )
            )
    return "### Against plain loss\n\n" + table(header, rows)


def levels(group: Sequence[Measured]) -> list[str]:
    """Plain loss's own level of each share, that the differences are to."""
    cells = []
    for key in ("exact", "tokens", "recited"):
        values = [share(row, key) for at in group for row in at.of(BASELINE)]
        cells.append(f"level {sum(values) / len(values):.2f}")
    return cells


def costs(groups: Groups) -> str:
    """Return what an example costs in every arm, measured alone."""
    header = ("place", "task", "plain, ms an example", "arm", "cost over plain's")
    rows, seen = [], set()
    for group in groups.values():
        for at in group:
            where = (at.cell.place, at.cell.task)
            if not at.seconds or where in seen:
                continue
            seen.add(where)
            plain = at.seconds[BASELINE]
            for arm in at.cell.arms:
                if arm in at.seconds and arm != BASELINE:
                    ratio = f"{at.seconds[arm] / plain:.2f}"
                    rows.append((*where, f"{1000 * plain:.1f}", arm, ratio))
    title = "### Seconds of an example trained, each write alone (processor time, one thread)"
    return f"{title}\n\n{table(header, rows)}"


def cells(groups: Groups) -> str:
    """Return every cell's arms."""
    header = (
        "group", "task", "rank", "arm", "rate", "recalled all", "epochs to 1.00", "ratio",
        "exact match", "token accuracy", "difference",
    )  # fmt: skip
    rows = []
    for name, group in groups.items():
        for at in group:
            for arm in at.cell.arms:
                own = at.of(arm)
                mean = [sum(share(r, key) for r in own) / len(own) for key in ("exact", "tokens")]
                epochs = sum(epochs_to_whole(row, at.cell) for row in own) / len(own)
                versus = arm != BASELINE
                rows.append(
                    (
                        name,
                        at.cell.task,
                        str(at.cell.rank),
                        arm,
                        f"{rate_of(arm, at.rates):g}",
                        "{} of {}".format(*n_whole(arm, [at])),
                        f"{epochs:.1f} of {at.cell.epochs}",
                        shown(as_ratio(against(arm, [at], epochs_log))) if versus else "1",
                        f"{mean[0]:.2f}",
                        f"{mean[1]:.3f}",
                        shown(against(arm, [at], tokens), signed=True) if versus else "",
                    )
                )
    return "### Cell by cell\n\n" + table(header, rows)


def checks(groups: Groups) -> str:
    """Return how often decoding and the certificate differ, and what diverged."""
    rows = [row for group in groups.values() for at in group for row in at.rows]
    decoded = [row for row in rows if row.get("disagreements") is not None]
    n_answers = sum(row["n"] for row in decoded)
    n_differ = sum(row["disagreements"] for row in decoded)
    n_diverged = sum("why" in row for row in rows)
    return (
        f"{len(rows)} writes of fresh seeds, {n_diverged} of them diverged. Of {n_answers} answers "
        f"decoded freely, decoding and the certificate disagree on {n_differ}."
    )


def shown(estimate: Estimate, *, signed: bool = False) -> str:
    """Return a mean and its interval."""
    form = "{:+.3f}" if signed else "{:.2f}"
    if estimate.mean is None or estimate.low is None or estimate.high is None:
        return "–" if estimate.mean is None else form.format(estimate.mean)
    return f"{form} [{form}, {form}]".format(estimate.mean, estimate.low, estimate.high)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines)
