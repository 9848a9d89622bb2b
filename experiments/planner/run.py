"""Is the planner honest? Plans for bodies of knowledge it was not calibrated on, then real writes.

    python experiments/planner/run.py                     # the test; goes on where it stopped
    python experiments/planner/run.py --set development   # what the settings were chosen on
    python experiments/planner/run.py --plans             # only the plans; nothing is written
    python experiments/planner/run.py --quick             # three small ones; no result

Each body is written with the default recipe at ranks 1, 2, 4 and 8 in one stack, under its budget
of epochs; recall is the share of answers that one teacher-forced pass reproduces exactly. The
planner knows the base's calibration and not these writes; a planned rank that is none of the four
is written too. Records hold the writes only, so that a new calibration needs no new ones.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import tables
import torch
from corpora import SETS, Corpus
from draw import curve, intervals

from lorewright.files import digest, save_json, store
from lorewright.knowledge.data import Example
from lorewright.knowledge.lesson import LessonConfig, prepare
from lorewright.law.calibration import Calibration, find, identity, load_of
from lorewright.law.forecast import Load
from lorewright.law.plan import make, shape_of
from lorewright.models.model import Model
from lorewright.recall.traces import trace
from lorewright.training.config import Job, WriteConfig, Written
from lorewright.training.loop import write_all
from lorewright.training.rates import suggested_lr

HERE = Path(__file__).parent
TRIED = (1, 2, 4, 8)
QUICK = 3
MARKS = ("<!-- tables: written by run.py -->\n", "<!-- end of tables -->\n")


def lesson(model: Model, corpus: Corpus) -> tuple[Example, ...]:
    """The examples that a write of a body would train."""
    ask = model.generate
    made = prepare(
        corpus.knowledge(),
        ask_llm=ask,
        closed_book=ask,
        config=LessonConfig(),
        phrasing=model.phrasing,
    )
    return made.examples


def written(
    model: Model, corpus: Corpus, ranks: Sequence[int], seed: int, epochs: int
) -> dict[str, Any]:
    """What writes of a body at several ranks came to: its load, and the answers that came back."""
    examples = lesson(model, corpus)
    config = replace(WriteConfig(lr=suggested_lr(model)), epochs=epochs, seed=seed)
    jobs = [
        Job(examples, replace(config, lora=replace(config.lora, rank=rank, seed=seed)))
        for rank in ranks
    ]
    started = time.process_time()
    rows = [model.render(e.prompt, e.completion) for e in examples if e.kind != "unknown"]
    outcomes = {}
    for rank, done in zip(ranks, write_all(model, jobs), strict=True):
        assert isinstance(done, Written), done
        with model.using(done.adapter):
            n_exact = sum(token.exact for token in trace(model, rows))
        outcomes[str(rank)] = {"n_exact": n_exact, "n": len(rows), "used": len(done.epochs)}
    return {
        "name": corpus.name,
        "base": model.digest,
        "epochs": epochs,
        "seed": seed,
        "load": asdict(load_of(model, examples)),
        "ranks": outcomes,
        "cpu_seconds": round(time.process_time() - started, 1),
    }


def planned(
    model: Model, record: dict[str, Any], wanted: float, known: Calibration
) -> dict[str, Any]:
    """The plan for a body, which knows nothing of its writes, and a forecast for every rank."""
    load, config = Load(**record["load"]), WriteConfig(lr=suggested_lr(model))
    shape, forecast = shape_of(model, config.lora), known.forecast
    plan = make(load, forecast, shape, epochs=record["epochs"], wanted=wanted)
    ranks = {
        r: row
        | {"forecast": forecast.predict(load, int(r), record["epochs"])._asdict()}
        | {"needs": forecast.needs(load, int(r))}
        for r, row in record["ranks"].items()
    }
    return record | {"plan": plan.to_json(), "ranks": ranks}


def stored(path: Path, mark: str) -> dict[str, Any] | None:
    """A record from before, if it is of the same writes."""
    record = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return record if record.get("mark") == mark else None


def written_or_stored(
    model: Model, bodies: Sequence[tuple[int, Corpus]], folder: Path, quick: bool
) -> dict[int, dict[str, Any]]:
    """A record of every body: stored before, or written now."""
    about = identity(model, WriteConfig(lr=suggested_lr(model)))
    about.pop("version")  # of the calibration's sweep, which these writes do not depend on
    done: dict[int, dict[str, Any]] = {}
    for i, corpus in bodies:
        epochs = 2 if quick else corpus.epochs
        path = folder / f"{i:02}.json"
        mark = digest([about, corpus.name, epochs, corpus.knowledge().digest(), corpus.seed, i])
        record = stored(path, mark)
        if record is None:
            # No seed of the calibration: those count from 0.
            record = {"mark": mark, **written(model, corpus, TRIED, 1000 + i, epochs)}
            save_json(record, path)
            rows = record["ranks"].items()
            shares = ", ".join(f"rank {r} {row['n_exact']}/{row['n']}" for r, row in rows)
            print(
                f"{corpus.name}: {epochs} epochs, {shares}, {record['cpu_seconds']:.0f} s",
                flush=True,
            )
        done[i] = record
    return done


def with_plans(
    model: Model,
    bodies: Sequence[tuple[int, Corpus]],
    done: dict[int, dict[str, Any]],
    known: Calibration,
    folder: Path,
) -> list[dict[str, Any]]:
    """Every record with its plan; planned ranks that were not written are written now."""
    records = []
    for i, corpus in bodies:
        record = done[i]
        with_plan = planned(model, record, corpus.wanted, known)
        rank = with_plan["plan"]["rank"]
        if str(rank) not in record["ranks"]:
            more = written(model, corpus, [rank], 1000 + i, record["epochs"])
            record["ranks"] |= more["ranks"]
            record["cpu_seconds"] += more["cpu_seconds"]
            save_json(record, folder / f"{i:02}.json")
            with_plan = planned(model, record, corpus.wanted, known)
        records.append(with_plan)
    return records


def print_plans(model: Model, bodies: Sequence[tuple[int, Corpus]], known: Calibration) -> None:
    """Print only the plans; nothing is written."""
    shape = shape_of(model, WriteConfig().lora)
    for _, corpus in bodies:
        load = load_of(model, lesson(model, corpus))
        plan = make(load, known.forecast, shape, epochs=corpus.epochs, wanted=corpus.wanted)
        needs = ", ".join(f"{known.forecast.needs(load, rank):.1f}" for rank in TRIED)
        print(
            f"{corpus.name}: {load.n_answers} answers, {load.n_examples}+{load.n_declined} "
            f"examples, half of them in {needs} epochs; {corpus.epochs} epochs, wanted "
            f"{corpus.wanted:g}: {plan}, chance {plan.chance:.2f}"
        )


def into_page(text: str, path: Path) -> None:
    """Put tables between the marks of a page."""
    page = path.read_text(encoding="utf-8") if path.exists() else "".join(MARKS)
    before, rest = page.split(MARKS[0])
    after = rest.split(MARKS[1])[1]
    store((before + MARKS[0] + "\n" + text + "\n" + MARKS[1] + after).encode(), path)


def main() -> None:
    """Write what is not written yet, then plan, print the verdict, draw the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--set", choices=sorted(SETS), default="fresh")
    parser.add_argument("--plans", action="store_true")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument(
        "--backwards", action="store_true", help="last body first: two processes share the work"
    )
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = Model.load()
    bodies = list(enumerate(SETS[args.set]))[: QUICK if args.quick else None]
    out = args.out / "quick" if args.quick else args.out
    folder = out / "records" / args.set
    order = bodies[::-1] if args.backwards else bodies
    done = {} if args.plans else written_or_stored(model, order, folder, args.quick)
    known = find(model, WriteConfig(lr=suggested_lr(model)))
    if known is None:
        raise SystemExit("the base is not calibrated: python pocket/calibrate.py --keep")
    if args.plans:
        return print_plans(model, bodies, known)
    records = with_plans(model, bodies, done, known, folder)
    verdict = tables.verdict(records, known)
    print(verdict)
    if args.set == "fresh":
        into_page(tables.page(records, known), out / "README.md")
        for dark, suffix in ((False, ""), (True, "-dark")):
            intervals(records, out / f"intervals{suffix}.svg", dark=dark)
            curve(records, known.forecast, out / f"curve{suffix}.svg", dark=dark)


if __name__ == "__main__":
    main()
