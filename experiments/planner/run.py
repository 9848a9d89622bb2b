"""Is the planner honest? Plans for bodies of knowledge it was not calibrated on, then real writes.

    python experiments/planner/run.py                 # all, then the page; goes on where it stopped
    python experiments/planner/run.py --quick         # three small ones; shows that it works, no result
    python experiments/planner/run.py --page          # the page anew, from the records

For each body: the lesson as a write prepares it, the plan from the base's calibration, and one stacked
write at ranks 1, 2, 4 and the planned one under the same budget, rank 8 where none of these is enough. Recall is the share of answers that
greedy decoding reproduces exactly, by teacher-forced argmax. The plan is made before anything is written.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from corpora import CORPORA, Corpus
from draw import intervals

from lorewright.calibration import Calibration, find, load_of
from lorewright.data import digest
from lorewright.lesson import LessonConfig, prepare
from lorewright.metrics import Proportion, wilson
from lorewright.model import Model
from lorewright.plan import RANKS, make, shape_of
from lorewright.recall import trace
from lorewright.recipe import Job, WriteConfig, Written
from lorewright.report import save_json, store
from lorewright.write import suggested_lr, write_all

HERE = Path(__file__).parent
TRIED = (1, 2, 4)
BEYOND = (8,)
"""Tried too where none of the others comes to the wanted recall."""
QUICK = 3


def measure(model: Model, corpus: Corpus, found: Calibration, seed: int, quick: bool) -> dict[str, Any]:
    """The plan for one body, and what writes at several ranks came to."""
    knowledge, default = corpus.knowledge(), WriteConfig(lr=suggested_lr(model))
    lesson = prepare(knowledge, ask_llm=model.generate, closed_book=model.generate, config=LessonConfig(), phrasing=model.phrasing)
    load, forecast = load_of(model, lesson.examples), found.forecast
    epochs = round(corpus.share * forecast.needs(load, 8)) if corpus.share else default.epochs
    epochs = 2 if quick else max(2, epochs)
    plan = make(load, forecast, shape_of(model, default.lora), epochs=epochs, wanted=corpus.wanted, n_declined=len(lesson.examples) - load.n_examples)
    config, started = replace(default, epochs=epochs, seed=seed), time.monotonic()
    rows = [model.render(e.prompt, e.completion) for e in lesson.examples if e.kind != "unknown"]
    ranks: dict[str, Any] = {}
    for tried in ({*TRIED, plan.rank}, {*BEYOND} - {plan.rank}):
        if any(row["n_exact"] >= corpus.wanted * row["n"] for row in ranks.values()) or not tried:
            break
        jobs = [Job(lesson.examples, replace(config, lora=replace(config.lora, rank=rank, seed=seed))) for rank in sorted(tried)]
        for rank, done in zip(sorted(tried), write_all(model, jobs), strict=True):
            assert isinstance(done, Written), done
            with model.using(done.adapter):
                n_exact = sum(token.exact for token in trace(model, rows))
            ranks[str(rank)] = {
                "n_exact": n_exact,
                "n": len(rows),
                "epochs": len(done.epochs),
                "forecast": forecast.predict(load, rank, epochs)._asdict(),
                "chance": forecast.chance(load, rank, epochs, corpus.wanted),
            }
    return {"name": corpus.name, "share": corpus.share, "plan": plan.to_json(), "ranks": ranks, "seconds": round(time.monotonic() - started, 1)}


def smallest(record: dict[str, Any]) -> int | None:
    """The smallest rank tried that came to the wanted recall; None: none did."""
    wanted = record["plan"]["wanted"]
    return min((int(rank) for rank, row in record["ranks"].items() if row["n_exact"] >= wanted * row["n"]), default=None)


def near(record: dict[str, Any]) -> bool:
    """Whether the planned rank is within one step of the smallest that came to the wanted recall.

    Where none did, whether the plan said so.
    """
    best = smallest(record)
    if best is None:
        return not record["plan"]["reaches"]
    return abs(RANKS.index(best) - RANKS.index(record["plan"]["rank"])) <= 1


def inside(row: dict[str, Any]) -> bool:
    """Whether the recall of a write lies in the interval that was predicted for it."""
    return bool(row["forecast"]["low"] <= row["n_exact"] / row["n"] <= row["forecast"]["high"])


def page(records: Sequence[dict[str, Any]], about: dict[str, Any]) -> str:
    """The result as Markdown."""
    planned = [record["ranks"][str(record["plan"]["rank"])] for record in records]
    cells = [row for record in records for row in record["ranks"].values()]
    tried = [row for row, r in zip(planned, records, strict=True) if 0 < row["n_exact"] < row["n"]]
    widths = sorted(row["forecast"]["high"] - row["forecast"]["low"] for row in planned)
    lines = [
        "# Is the planner honest?",
        "",
        f"`python experiments/planner/run.py` on the embedded base (digest {about['base'][:12]}), calibrated by `python pocket/calibrate.py`:",
        f"{len(records)} bodies of knowledge that the calibration has not seen (`corpora.py`), each planned first and then written at ranks 1, 2, 4 and the planned",
        "one in one stack (and at 8 where none of these was enough), one seed each. Budgets and wanted recall are fixed in `corpora.py`; most budgets are short, so that writes fail.",
        "",
        f"- Recall of the write at the planned rank inside the predicted 90 % interval: **{said([inside(row) for row in planned])}**.",
        f"  Of those with some answers right and some wrong: {said([inside(row) for row in tried])}. At every rank tried: {said([inside(row) for row in cells])}.",
        f"- Planned rank within one step of the smallest that came to the wanted recall: **{said([near(record) for record in records])}**.",
        f"  The wanted recall was reached at the planned rank by {said([r['ranks'][str(r['plan']['rank'])]['n_exact'] >= r['plan']['wanted'] * r['ranks'][str(r['plan']['rank'])]['n'] for r in records if r['plan']['reaches']])} of the plans that promised it (chance 0.8 or more each).",
        f"- Width of the intervals at the planned rank: median {widths[len(widths) // 2]:.2f}, from {widths[0]:.2f} to {widths[-1]:.2f}.",
        "",
        "| knowledge | answers | bits each | epochs | wanted | planned rank | predicted recall | measured | smallest rank | recall by rank |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for record, row in zip(records, planned, strict=True):
        plan, load, found = record["plan"], record["plan"]["load"], row["forecast"]
        shares = ", ".join(f"{rank}: {r['n_exact'] / r['n']:.2f}" for rank, r in record["ranks"].items())
        best, missed = smallest(record), "" if inside(row) else " (outside)"
        lines.append(
            f"| {record['name']} | {load['n_answers']} | {load['bits'] / load['n_answers']:.0f} | {plan['epochs']} | {plan['wanted']:g} | "
            f"{plan['rank']}{'' if plan['reaches'] else ' (not enough)'} | {found['value']:.2f} [{found['low']:.2f}, {found['high']:.2f}] | "
            f"{row['n_exact'] / row['n']:.2f}{missed} | {best or 'none'}{'' if near(record) else ' (missed)'} | {shares} |"
        )
    lines += ["", "![Predicted intervals and measured recall](intervals.svg)", "", "\"Not enough\": the plan says that no rank reaches the wanted recall surely in so many epochs. Records: `records/`."]
    return "\n".join(lines) + "\n"


def said(yes: Sequence[bool]) -> str:
    """x/n with its interval."""
    found: Proportion = wilson(sum(yes), len(yes))
    return f"{sum(yes)}/{len(yes)} = {found.mean:.2f} [{found.low:.2f}, {found.high:.2f}]" if yes else "none"


def main() -> None:
    """Measure what is not measured yet, print the verdict, write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--page", action="store_true", help="only from records")
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    out = args.out / "quick" if args.quick else args.out
    model = Model.load()
    found = find(model, WriteConfig(lr=suggested_lr(model)))
    if found is None:
        raise SystemExit("the embedded base has no calibration for its default recipe: python pocket/calibrate.py --keep")
    records = []
    for i, corpus in enumerate(CORPORA[:QUICK] if args.quick else CORPORA):
        mark = digest([found.to_json(), corpus.name, corpus.share, corpus.wanted, corpus.knowledge().digest(), i])
        path = out / "records" / f"{i:02}.json"
        record = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        if record.get("mark") != mark:
            if args.page:
                continue
            record = {"mark": mark, **measure(model, corpus, found, i, args.quick)}
            save_json(record, path)
        records.append(record)
        row = record["ranks"][str(record["plan"]["rank"])]
        print(
            f"{record['name']}: rank {record['plan']['rank']}, {record['plan']['epochs']} epochs, predicted {row['forecast']['value']:.2f} "
            f"[{row['forecast']['low']:.2f}, {row['forecast']['high']:.2f}], measured {row['n_exact'] / row['n']:.2f}, smallest {smallest(record)}, {record['seconds']:.0f} s",
            flush=True,
        )
    store(page(records, found.about).encode(), out / "README.md")
    planned = [record["ranks"][str(record["plan"]["rank"])] for record in records]
    for dark, name in ((False, "intervals"), (True, "intervals-dark")):
        intervals(records, sum(map(inside, planned)), out / f"{name}.svg", dark=dark)
    print(f"planner n={len(records)} covered={said([inside(row) for row in planned])} rank={said([near(r) for r in records])}")


if __name__ == "__main__":
    main()
