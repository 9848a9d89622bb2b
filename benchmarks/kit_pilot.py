"""The first steps of a kit's training, 25 at a time: whether a recipe learns, before it is trained.

    python benchmarks/kit_pilot.py perk --steps 125 --option differentiated=0

Prints, after every 25 steps, the most facts of a document, the mean loss, and the shares of answers
and of refusals that are right (teacher-forced, every token), all on documents never seen before.
Nothing is stored.
"""

from __future__ import annotations

import argparse
import math
import time

import torch

from lorewright.kits.config import TrainConfig
from lorewright.kits.train import Training
from lorewright.models.model import Model
from lorewright.writers.methods import LEARNED

EVERY = 25


def mean(values: list[float]) -> float:
    """Of those that are numbers; a step without refusals has none."""
    real = [value for value in values if not math.isnan(value)]
    return sum(real) / len(real) if real else math.nan


def main() -> None:
    """Train for a while and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("method", choices=LEARNED)
    parser.add_argument("--steps", type=int, default=125)
    parser.add_argument("--of", type=int, default=600, help="steps of the whole schedule")
    parser.add_argument("--lr", type=float, default=TrainConfig().lr)
    parser.add_argument("--questions", type=int, default=TrainConfig().questions)
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--option", action="append", default=[], help="NAME=NUMBER")
    args = parser.parse_args()
    torch.set_num_threads(1)
    options = {name: float(value) for name, _, value in (o.partition("=") for o in args.option)}
    config = TrainConfig(steps=args.of, lr=args.lr, questions=args.questions, first=args.first)
    training = Training(Model.load("pocket"), LEARNED[args.method], config, options, None)
    began = time.monotonic()
    for _ in range(0, args.steps, EVERY):
        rows = [training.step() for _ in range(EVERY)]
        loss, answers, refusals = (mean(list(column)) for column in zip(*rows, strict=True))
        print(
            f"{training.progress.step:5d} steps, {training.progress.facts} facts: loss {loss:.3f}, "
            f"right {answers:.3f}, declined {refusals:.3f}, {time.monotonic() - began:.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
