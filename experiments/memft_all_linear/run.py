"""Does MemFT beat plain loss at matched tokens and matched seconds, on one layer and on all?

    python experiments/memft_all_linear/run.py            # about half an hour of one core
    python experiments/memft_all_linear/run.py --quick    # a minute; shows that it works, no result
    python experiments/memft_all_linear/run.py --on local:2

Every arm's rate is chosen on seed 0, on a grid that is common to the arms of a cell and is extended
where the best rate lies at its edge; then fresh seeds are written at that rate. What was measured
lies in records/ and is not measured again; tables and figures are made of it each time. The tables
are printed and, but for --quick, put into README.md and cells.md, and the figures are drawn.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))  # where workers, too, find the tasks
os.environ.setdefault("OMP_NUM_THREADS", "1")

import draw  # noqa: E402
import tables  # noqa: E402
import trials  # noqa: E402
from compare import Measured, best_rates, beyond, rate_of  # noqa: E402
from trials import ARMS, TASKS, Cell, Member  # noqa: E402

from lorewright.bench import scale  # noqa: E402
from lorewright.files import store  # noqa: E402
from lorewright.models.model import Model  # noqa: E402

GRIDS = {
    "all-linear": (2.5e-3, 5e-3, 1e-2, 2e-2),
    "down_proj@middle": (4e-2, 8e-2, 0.16, 0.32),
}
EXTENSIONS = 3
SHORT = 0.4  # of the budget
RUNGS = {"all-linear": (1, 4, 16), "down_proj@middle": (8, 16)}
MIDDLE = {"all-linear": 4, "down_proj@middle": 8}
"""Ranks at which all arms are compared and each is timed alone."""
MAIN = ("plain", "threshold", "window")
MARGIN = ("plain", "threshold")
MANY = ("plain", "threshold", "plain, resting", "threshold, resting")


def all_cells() -> dict[str, list[Cell]]:
    """Return the cells of the comparison, by the group that they are pooled in."""
    many = "10 digits, many"
    tasks = {name: task for name, task in TASKS.items() if name != many}

    def arms(place: str, rank: int, n_facts: int) -> tuple[str, ...]:
        """A task of one fact has no order, and nobody to rest."""
        return tuple(ARMS) if rank == MIDDLE[place] and n_facts > 1 else MAIN

    full = {
        place: [
            Cell(place, rank, name, task.epochs, arms=arms(place, rank, task.n_facts))
            for name, task in tasks.items()
            for rank in ranks
        ]
        for place, ranks in RUNGS.items()
    }
    short = [
        Cell("all-linear", 4, name, round(SHORT * task.epochs), arms=MAIN)
        for name, task in tasks.items()
    ]
    return {
        "all linear layers": full["all-linear"],
        "one layer's projection": full["down_proj@middle"],
        "all linear layers, 40 facts": [Cell("all-linear", 4, many, TASKS[many].epochs, arms=MANY)],
        "all linear layers, two fifths of the budget": short,
        "all linear layers, safe is p > 0.9": [
            Cell("all-linear", 4, "10 digits", TASKS["10 digits"].epochs, 0.9, MARGIN)
        ],
    }


def quick_cells() -> dict[str, list[Cell]]:
    """Return two small cells that take a minute."""
    return {
        "all linear layers": [Cell("all-linear", 4, "10 digits", 6)],
        "one layer's projection": [Cell("down_proj@middle", 8, "40 tokens", 6)],
    }


class Sweep:
    """Trials into records: cells to what they came to."""

    def __init__(self, model: str, records: Path, on: str, seeds: Sequence[int]) -> None:
        self.about = {"model": model, "base": Model.load(model).digest}
        self.records, self.on, self.seeds = records, on, seeds

    def _run(self, task: scale.Task, jobs: Sequence[dict[str, Any]]) -> list[list[Any]]:
        def say(step: scale.Step) -> None:
            name = task.__name__
            print(f"  {name}: {step.n_done} of {step.n_jobs} jobs", file=sys.stderr, flush=True)

        records = scale.run(task, jobs, self.records, on=self.on, progress=say)
        return [record["rows"] for record in records]

    def _stacks(self, cells: Sequence[Cell], members: Sequence[Sequence[Member]]) -> list[Any]:
        decoded = self.seeds[0]
        pairs = zip(cells, members, strict=True)
        jobs = [trials.job_of(cell, each, decoded=decoded, **self.about) for cell, each in pairs]
        return self._run(trials.stack, jobs)

    def rates(self, cells: Sequence[Cell]) -> list[dict[str, float]]:
        """Choose every arm's rate on seed 0; grids are extended until the best is inside."""
        tuned = [[arm for arm in cell.arms if not ARMS[arm].tuned_as] for cell in cells]
        grids = [
            [Member(arm, lr, 0) for arm in arms for lr in GRIDS[cell.place]]
            for cell, arms in zip(cells, tuned, strict=True)
        ]
        rows = self._stacks(cells, grids)
        for _ in range(EXTENSIONS):
            more = [beyond(measured, cell) for measured, cell in zip(rows, cells, strict=True)]
            open_cells = [i for i, members in enumerate(more) if members]
            if not open_cells:
                break
            extra = self._stacks([cells[i] for i in open_cells], [more[i] for i in open_cells])
            for i, measured in zip(open_cells, extra, strict=True):
                rows[i] = [*rows[i], *measured]
        return [best_rates(measured, cell) for measured, cell in zip(rows, cells, strict=True)]

    def fresh(self, cells: Sequence[Cell], rates: Sequence[dict[str, float]]) -> list[Any]:
        """Write the fresh seeds at the chosen rates."""
        members = [
            [Member(arm, rate_of(arm, chosen), seed) for seed in self.seeds for arm in cell.arms]
            for cell, chosen in zip(cells, rates, strict=True)
        ]
        return self._stacks(cells, members)

    def costs(self, cells: Sequence[Cell], rates: Sequence[dict[str, float]]) -> list[Any]:
        """Write the arms of some cells one after the other, and time them."""
        jobs = [
            trials.job_of(
                cell,
                [Member(arm, rate_of(arm, chosen), self.seeds[0]) for arm in cell.arms],
                **self.about,
            )
            for cell, chosen in zip(cells, rates, strict=True)
        ]
        return self._run(trials.solo, jobs)

    def measure(self, groups: dict[str, list[Cell]]) -> dict[str, list[Measured]]:
        """Do all trials that have no record yet, group by group, and return what they came to."""
        seconds: dict[tuple[str, str], dict[str, float]] = {}
        rates = {}
        for name, cells in groups.items():
            print(name, file=sys.stderr)
            rates = self.rates(cells)
            rows = self.fresh(cells, rates)
            timed = {
                (cell.place, cell.task): i
                for i, cell in enumerate(cells)
                if cell.rank == MIDDLE[cell.place] and (cell.place, cell.task) not in seconds
            }
            alone = timed.values()
            solos = self.costs([cells[i] for i in alone], [rates[i] for i in alone])
            seconds |= {where: cost_of(each) for where, each in zip(timed, solos, strict=True)}
            rates[name] = [
                Measured(cell, chosen, each, seconds[cell.place, cell.task])
                for cell, chosen, each in zip(cells, rates, rows, strict=True)
            ]
        return rates


def cost_of(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Return an arm's processor seconds for an example trained, its checks and all else included."""
    arms = {row["arm"] for row in rows}
    own = {arm: [row for row in rows if row["arm"] == arm] for arm in arms}
    return {
        arm: sum(row["seconds"] for row in rows) / sum(sum(row["trained"]) for row in rows)
        for arm, rows in own.items()
    }


def main() -> None:
    """Measure what is missing, then print tables and draw figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--model", default="pocket")
    parser.add_argument("--seeds", type=int, default=5, help="fresh ones, beside the tuning seed 0")
    parser.add_argument("--on", default="here", help="here, or local:K for K processes")
    parser.add_argument("--records", type=Path, help="default: records/ beside this file")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        records = args.records or (Path(temporary) if args.quick else HERE / "records")
        seeds = range(1, 1 + (2 if args.quick else args.seeds))
        sweep = Sweep(args.model, records, args.on, seeds)
        measured = sweep.measure(quick_cells() if args.quick else all_cells())
    print(tables.everything(measured), tables.cells(measured), sep="\n\n")
    if not args.quick:
        tables.into_page(measured, HERE / "README.md")
        store(f"{tables.cells(measured)}\n".encode(), HERE / "cells.md")
        for dark in (False, True):
            suffix = "-dark" if dark else ""
            draw.curves(measured, HERE / f"curves{suffix}.svg", dark=dark)
            draw.effects(measured, HERE / f"effects{suffix}.svg", dark=dark)


if __name__ == "__main__":
    main()
