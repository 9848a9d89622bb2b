"""A sweep of `lore bench longcontext` as a table for `lore law`, and what the studio shows beside it.

    lore bench longcontext --part law --part stubborn --noise 100 --seeds 2 --sequences 24 --ranks 1,2,4,8,16 \\
        --lengths 16,32,64,96,128 --out lc
    python docs/law_table.py lc examples/law_pocket_r100

Writes NAME.csv, a row for every document under every adapter, and NAME.json: grid, probabilities by position, first failures.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

from lorewright.files import read_object, save_json

COLUMNS = (
    "rank",
    "n_answer_tokens",
    "loss_drop",
    "loss_init",
    "n_parameters",
    "recall",
    "n",
    "group",
)
KEPT = ("bench", "command", "config", "base", "versions", "grid", "positions", "stubborn")


def main() -> None:
    """Write both files."""
    out, name = Path(sys.argv[1]), Path(sys.argv[2])
    summary = read_object(out / "summary.json", "run the sweep first")
    (noise,) = summary["law"]
    with name.with_suffix(".csv").open("w", newline="") as file:
        rows = csv.DictWriter(file, COLUMNS, extrasaction="ignore", lineterminator="\n")
        rows.writeheader()
        for cell in sorted(
            summary["law"][noise]["cells"],
            key=lambda c: (c["rank"], c["n_answer_tokens"], c["group"]),
        ):
            rows.writerow(
                {key: round(v, 6) if isinstance(v := cell[key], float) else v for key in COLUMNS}
            )
    record = {key: summary[key] for key in KEPT}
    record["command"] = record["command"].replace(str(out), out.name)
    save_json(record, name.with_suffix(".json"))


if __name__ == "__main__":
    main()
