"""Records of merged pairs to tables, the page and its figures; needs no model.

A loss is 1 - recall merged / recall alone of a source, on the same probes. Intervals are 95 % bootstrap
intervals over pairs, the two sources of a pair being drawn together.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from draw import losses_figure

from lorewright.files import save_json, store
from lorewright.recall.statistics import Estimate, mean_interval

MARKS = ("<!-- tables: written by run.py -->", "<!-- end of tables -->")
HEADLINE = "paraphrase"
LIMIT = 0.2
"""Share of either source's recall that a merge must not cost, SCIENCE.md §2."""
Scores = Sequence[dict[str, list[int]]]


def share(score: dict[str, list[int]], kind: str) -> float:
    """Recall of one source on one kind of probe."""
    return sum(score[kind]) / len(score[kind])


def lost(alone: Scores, merged: Scores, kind: str = HEADLINE) -> list[float]:
    """Loss of each source of a pair; one that recalls nothing alone has nothing to lose."""
    pairs = [(share(a, kind), share(m, kind)) for a, m in zip(alone, merged, strict=True)]
    return [1 - m / a for a, m in pairs if a > 0]


def over(pairs: Sequence[dict[str, Any]], value: Callable[[dict[str, Any]], float]) -> Estimate:
    """Mean and interval over pairs."""
    return mean_interval([value(each) for each in pairs])


def spelt(estimate: Estimate) -> str:
    """Mean and interval without n."""
    return str(estimate).split(" n=")[0].replace("-0.00", "0.00")


def summary(
    pairs: Sequence[dict[str, Any]], get: Callable[[dict[str, Any]], Scores]
) -> dict[str, Any]:
    """What one way of merging came to over all pairs."""
    merged = {
        kind: over(pairs, lambda p, k=kind: sum(share(s, k) for s in get(p)) / 2)
        for kind in ("paraphrase", "new form", "as trained")
    }
    return {
        "recall": merged,
        "lost": over(pairs, lambda p: sum(lost(p["alone"], get(p))) / 2),
        "worse": over(pairs, lambda p: max(lost(p["alone"], get(p)))),
        "new": over(pairs, lambda p: sum(lost(p["alone"], get(p), "new form")) / 2),
        "n_over": sum(max(lost(p["alone"], get(p))) > LIMIT for p in pairs),
        "each": [lost(p["alone"], get(p)) for p in pairs],
        "n": len(pairs),
    }


def options_of(pairs: Sequence[dict[str, Any]], arm: str) -> str:
    """The options that were taken, most often first."""
    arms = [p["arms"][arm] for p in pairs]
    texts = [" ".join(f"{k} {v:g}" for k, v in each["options"].items()) for each in arms]
    ranked = sorted(set(texts), key=lambda text: (-texts.count(text), text))
    return ", ".join(
        f"{text or '–'}" + (f" ×{texts.count(text)}" if len(ranked) > 1 else "") for text in ranked
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def methods_table(pairs: Sequence[dict[str, Any]]) -> str:
    """Every method: recall merged, losses, and on how many pairs a source lost more than a fifth."""
    controls: list[tuple[str, Callable[[dict[str, Any]], Scores]]] = [
        ("*each memory alone*", lambda p: p["alone"]),
        ("*the pair's other memory*", lambda p: p["other"]),
        ("*base alone*", lambda p: p["plain"]),
    ]
    rows = []
    for name, get in controls:
        summed = summary(pairs, get)
        rows.append(
            [
                name,
                "",
                *(spelt(summed["recall"][k]) for k in ("paraphrase", "new form")),
                "",
                "",
                "",
                "",
            ]
        )
    taken = [p["arms"]["auto"]["method"] for p in pairs]
    favourite = max(taken, key=taken.count)
    arms = [name for name in pairs[0]["arms"] if name != "auto"]
    for arm in sorted(
        arms, key=lambda a: -(summary(pairs, lambda p: p["arms"][a]["scores"])["lost"].mean or 0)
    ):
        summed = summary(pairs, lambda p, a=arm: p["arms"][a]["scores"])
        ranks = sorted({p["arms"][arm]["rank"] for p in pairs})
        cpu = over(pairs, lambda p, a=arm: p["arms"][a]["cpu_seconds"]).mean or 0.0
        name = f"**{arm}**" if arm == favourite else arm
        rows.append(
            [
                f"{name} ({options_of(pairs, arm)})",
                ", ".join(map(str, ranks)),
                spelt(summed["recall"]["paraphrase"]),
                spelt(summed["recall"]["new form"]),
                spelt(summed["lost"]),
                spelt(summed["worse"]),
                f"{summed['n_over']} of {summed['n']}",
                f"{cpu:.1f}",
            ]
        )
    head = [
        "method (options)",
        "rank",
        "held form",
        "form new to the base",
        "lost",
        "lost by the worse-off",
        "a source lost > 20 %",
        "CPU s",
    ]
    return table(head, rows)


def auto_lines(pairs: Sequence[dict[str, Any]]) -> str:
    """What auto took, and what that came to."""
    taken = [f"{p['arms']['auto']['method']}, rank {p['arms']['auto']['rank']}" for p in pairs]
    counts = ", ".join(f"{taken.count(t)} times {t}" for t in dict.fromkeys(taken))
    summed = summary(pairs, lambda p: p["arms"]["auto"]["scores"])
    declined = [
        over(pairs, lambda p, g=get: _declined(g(p)))
        for get in (lambda p: p["alone"], lambda p: p["arms"]["auto"]["scores"])
    ]
    audits = [row for p in pairs for row in (*p["heard"], *p["arms"]["auto"]["heard"])]
    differ, n = (sum(row[key] for row in audits) for key in ("differ", "n"))
    return (
        f"`auto` took: {counts}. On held forms it lost {spelt(summed['lost'])} of the recall (worse-off source "
        f"{spelt(summed['worse'])}), n = {summed['n']} pairs; on forms new to the base {spelt(summed['new'])}. Questions that "
        f"a source does not answer are declined {spelt(declined[0])} by the sources alone, {spelt(declined[1])} merged.\n"
        f"Free-running decoding agreed with the teacher-forced verdict on all but {differ} of {n} probes.\n"
    )


def _declined(scores: Scores) -> float:
    rows = [x for score in scores for x in score["unknown"]]
    return sum(rows) / max(1, len(rows))


def beyond_table(pairs: Sequence[dict[str, Any]]) -> str:
    """Lower ranks, training instead, and imitation without some of its parts."""
    rows = []
    for name in pairs[0]["arms"]:
        summed = summary(pairs, lambda p, a=name: p["arms"][a]["scores"])
        ranks = ", ".join(map(str, sorted({p["arms"][name]["rank"] for p in pairs})))
        shares = [spelt(summed["recall"][kind]) for kind in ("paraphrase", "new form")]
        cpu = over(pairs, lambda p, a=name: p["arms"][a]["cpu_seconds"]).mean or 0.0
        rows.append(
            [name, ranks, *shares, spelt(summed["lost"]), spelt(summed["worse"]), f"{cpu:.1f}"]
        )
    head = [
        "",
        "rank",
        "held form",
        "form new to the base",
        "lost",
        "lost by the worse-off",
        "CPU s",
    ]
    return table(head, rows)


def writes_table(records: Sequence[dict[str, Any]]) -> str:
    """Other ways of writing: recall alone and merged, and how large the memories are."""
    rows = []
    for record in records:
        pairs = record["pairs"]
        norm = over(pairs, lambda p: sum(w["norm"] for w in p["writes"]) / 2).mean or 0.0
        cells = [
            record["how"],
            f"{norm:.0f}",
            spelt(summary(pairs, lambda p: p["alone"])["recall"]["paraphrase"]),
        ]
        for arm in pairs[0]["arms"]:
            cells.append(spelt(summary(pairs, lambda p, a=arm: p["arms"][a]["scores"])["lost"]))
        rows.append(cells)
    head = [
        "written with",
        "norm of ΔW",
        "alone",
        *(f"lost: {arm}" for arm in records[0]["pairs"][0]["arms"]),
    ]
    return table(head, rows)


def write_page(records: Path, page: Path) -> None:
    """Put the tables into README.md between the marks, and draw the figure."""
    pairs = [json.loads(path.read_text()) for path in sorted(records.glob("pair-*.json"))]
    beyond = [json.loads(path.read_text()) for path in sorted(records.glob("beyond-*.json"))]
    writes = [json.loads(path.read_text()) for path in sorted(records.glob("write-*.json"))]
    if not pairs:
        print("there are no records yet")
        return
    n_probes = len(pairs[0]["alone"][0][HEADLINE])
    text = f"{len(pairs)} pairs, {2 * len(pairs)} memories of {pairs[0]['facts']} facts, rank {pairs[0]['rank']} each; {n_probes} held-out questions a memory.\n\n"
    text += methods_table(pairs) + "\n" + auto_lines(pairs)
    if beyond:
        text += f"\n### Lower ranks, training instead, and what imitation owes to its parts\n\n{len(beyond)} of the pairs.\n\n"
        text += beyond_table(beyond)
    if writes:
        writes.sort(key=lambda r: r["how"] != "default")
        text += (
            f"\n### Can writing otherwise help?\n\n{len(writes[0]['pairs'])} of the pairs.\n\n"
            + writes_table(writes)
        )
    _put(text, page / "README.md")
    arms = [name for name in pairs[0]["arms"] if name != "auto"]
    rows = {arm: summary(pairs, lambda p, a=arm: p["arms"][a]["scores"]) for arm in arms}
    save_json({arm: {**_plain(row)} for arm, row in rows.items()}, page / "summary.json")
    for dark in (False, True):
        losses_figure(rows, page / f"losses{'-dark' if dark else ''}.svg", dark=dark)
    print(text)


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    flat = {k: v for k, v in row.items() if k != "recall"}
    flat |= {f"recall, {kind}": share for kind, share in row["recall"].items()}
    return flat


def _put(text: str, path: Path) -> None:
    """Replace what stands between the marks; a page without them gets both at its end."""
    whole = path.read_text(encoding="utf-8") if path.exists() else "\n".join(MARKS) + "\n"
    before, _, rest = whole.partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    store(f"{before}{MARKS[0]}\n\n{text}\n{MARKS[1]}{after}".encode(), path)
