"""Is the planner honest? Plans for bodies of knowledge it was not calibrated on, then real writes.

    python experiments/planner/run.py                 # all, then the page; goes on where it stopped
    python experiments/planner/run.py --quick         # three small ones; shows that it works, no result

Each body is written with the default recipe at ranks 1, 2, 4 and 8 in one stack, under its budget of epochs.
Recall is the share of answers that greedy decoding reproduces exactly, by teacher-forced argmax. Then the
planner, which knows the base's calibration and not these writes, plans each body; a planned rank that is
none of these is written too. Records hold the writes only, so a new calibration needs no new ones.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from corpora import CORPORA, Corpus
from draw import intervals

from lorewright.calibration import find, identity, load_of
from lorewright.data import digest
from lorewright.forecast import Forecast, Load
from lorewright.lesson import LessonConfig, prepare
from lorewright.metrics import Proportion, wilson
from lorewright.model import Model
from lorewright.plan import RANKS, make, shape_of
from lorewright.recall import trace
from lorewright.recipe import Job, WriteConfig, Written
from lorewright.report import save_json, store
from lorewright.write import suggested_lr, write_all

HERE = Path(__file__).parent
TRIED = (1, 2, 4, 8)
QUICK = 3


def written(
    model: Model, corpus: Corpus, ranks: Sequence[int], seed: int, epochs: int
) -> dict[str, Any]:
    """What writes of one body at several ranks came to: its load, and the answers that came back."""
    lesson = prepare(
        corpus.knowledge(),
        ask_llm=model.generate,
        closed_book=model.generate,
        config=LessonConfig(),
        phrasing=model.phrasing,
    )
    config = replace(WriteConfig(lr=suggested_lr(model)), epochs=epochs, seed=seed)
    jobs = [
        Job(lesson.examples, replace(config, lora=replace(config.lora, rank=rank, seed=seed)))
        for rank in ranks
    ]
    started = time.monotonic()
    rows = [model.render(e.prompt, e.completion) for e in lesson.examples if e.kind != "unknown"]
    found = {}
    for rank, done in zip(ranks, write_all(model, jobs), strict=True):
        assert isinstance(done, Written), done
        with model.using(done.adapter):
            n_exact = sum(token.exact for token in trace(model, rows))
        found[str(rank)] = {"n_exact": n_exact, "n": len(rows), "used": len(done.epochs)}
    return {
        "name": corpus.name,
        "epochs": epochs,
        "load": asdict(load_of(model, lesson.examples)),
        "n_declined": len(lesson.examples) - len(rows),
        "ranks": found,
        "seconds": round(time.monotonic() - started, 1),
    }


def planned(
    model: Model, record: dict[str, Any], wanted: float, forecast: Forecast
) -> dict[str, Any]:
    """The plan for a body, which knows nothing of its writes, and a forecast for every rank written."""
    load, config = Load(**record["load"]), WriteConfig(lr=suggested_lr(model))
    plan = make(
        load,
        forecast,
        shape_of(model, config.lora),
        epochs=record["epochs"],
        wanted=wanted,
        n_declined=record["n_declined"],
    )
    ranks = {
        r: row | {"forecast": forecast.predict(load, int(r), record["epochs"])._asdict()}
        for r, row in record["ranks"].items()
    }
    return record | {"plan": plan.to_json(), "ranks": ranks}


def smallest(record: dict[str, Any]) -> int | None:
    """The smallest rank tried that came to the wanted recall; None: none did."""
    wanted = record["plan"]["wanted"]
    return min(
        (int(rank) for rank, row in record["ranks"].items() if row["n_exact"] >= wanted * row["n"]),
        default=None,
    )


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
        f"{len(records)} bodies of knowledge that the calibration has not seen (`corpora.py`), each written with the default recipe at ranks 1, 2, 4, 8 and",
        "the planned one, one seed each. Plans know the calibration and nothing of these writes. Budgets were raised and bodies made smaller after the first three were seen; most budgets are",
        "short, so that writes fail.",
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
        shares = ", ".join(
            f"{rank}: {r['n_exact'] / r['n']:.2f}" for rank, r in record["ranks"].items()
        )
        best, missed = smallest(record), "" if inside(row) else " (outside)"
        lines.append(
            f"| {record['name']} | {load['n_answers']} | {load['bits'] / load['n_answers']:.0f} | {plan['epochs']} | {plan['wanted']:g} | "
            f"{plan['rank']}{'' if plan['reaches'] else ' (not enough)'} | {found['value']:.2f} [{found['low']:.2f}, {found['high']:.2f}] | "
            f"{row['n_exact'] / row['n']:.2f}{missed} | {best or 'none'}{'' if near(record) else ' (missed)'} | {shares} |"
        )
    lines += [
        "",
        "![Predicted intervals and measured recall](intervals.svg)",
        "",
        '"Not enough": the plan says that no rank reaches the wanted recall surely in so many epochs. Records: `records/`.',
    ]
    return "\n".join(lines) + "\n"


def said(yes: Sequence[bool]) -> str:
    """x/n with its interval."""
    found: Proportion = wilson(sum(yes), len(yes))
    return (
        f"{sum(yes)}/{len(yes)} = {found.mean:.2f} [{found.low:.2f}, {found.high:.2f}]"
        if yes
        else "none"
    )


def kept(path: Path, mark: str) -> dict[str, Any] | None:
    """A record from before, if it is of the same writes."""
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found if found.get("mark") == mark else None


def main() -> None:
    """Write what is not written yet, then plan, print the verdict, draw the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--backwards",
        action="store_true",
        help="the last body first: a second process shares the work",
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    out = args.out / "quick" if args.quick else args.out
    model = Model.load()
    default = WriteConfig(lr=suggested_lr(model))
    bodies = list(enumerate(CORPORA[:QUICK] if args.quick else CORPORA))
    done: dict[int, dict[str, Any]] = {}
    for i, corpus in reversed(bodies) if args.backwards else bodies:
        epochs = 2 if args.quick else corpus.epochs
        path, mark = (
            out / "records" / f"{i:02}.json",
            digest([identity(model, default), corpus.name, epochs, corpus.knowledge().digest(), i]),
        )
        record = kept(path, mark)
        if record is None:
            record = {"mark": mark, **written(model, corpus, TRIED, i, epochs)}
            save_json(record, path)
            shares = ", ".join(
                f"rank {r} {row['n_exact']}/{row['n']}" for r, row in record["ranks"].items()
            )
            print(
                f"{corpus.name}: {epochs} epochs, {shares}, {record['seconds']:.0f} s", flush=True
            )
        done[i] = record
    records = [done[i] for i, _ in bodies]
    found = find(model, default)
    if found is None:
        raise SystemExit(
            "all is written; the base has no calibration to plan with: python pocket/calibrate.py --keep"
        )
    for i, (corpus, record) in enumerate(zip(CORPORA, records, strict=False)):
        with_plan = planned(model, record, corpus.wanted, found.forecast)
        rank = str(with_plan["plan"]["rank"])
        if rank not in record["ranks"]:
            more = written(model, corpus, [int(rank)], i, record["epochs"])
            record["ranks"] |= more["ranks"]
            record["seconds"] += more["seconds"]
            save_json(record, out / "records" / f"{i:02}.json")
            with_plan = planned(model, record, corpus.wanted, found.forecast)
        records[i] = with_plan
        row, best = with_plan["ranks"][rank], smallest(with_plan)
        told = row["forecast"]
        print(
            f"{corpus.name}: planned rank {rank}, predicted {told['value']:.2f} [{told['low']:.2f}, {told['high']:.2f}], "
            f"measured {row['n_exact'] / row['n']:.2f}; wanted {corpus.wanted:g}, smallest rank {best}",
            flush=True,
        )
    store(page(records, found.about).encode(), out / "README.md")
    rows = [record["ranks"][str(record["plan"]["rank"])] for record in records]
    for dark, name in ((False, "intervals"), (True, "intervals-dark")):
        intervals(records, sum(map(inside, rows)), out / f"{name}.svg", dark=dark)
    print(
        f"planner n={len(records)} covered={said([inside(row) for row in rows])} rank={said([near(r) for r in records])}"
    )


if __name__ == "__main__":
    main()
