"""Bfloat16 beside float32 on a real base of any family: an epoch of training, and self-study.

    python benchmarks/reduced_speed.py                          # SmolLM2: 80 questions, a memo read
    python benchmarks/reduced_speed.py --model gemma3-270m      # a family that runs in transformers
    python benchmarks/reduced_speed.py --quick                  # 24 questions, one repeat

An epoch is the first of a write, its optimiser steps and all, without certificates. Self-study is
what `lore write` does with a document before it trains: the base words questions and reads them
back. Both arms of each, one after the other, again and again; seconds are of CPU, which other
processes inflate less than the clock. The last lines can be read by a script.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path

from ratio import machine, options, verdict
from real_speed import epoch_seconds
from write_speed import pairs

from lorewright.knowledge.data import Document
from lorewright.knowledge.questions import questions_about
from lorewright.knowledge.splitting import passages
from lorewright.models.backends.reduced import Reduced
from lorewright.models.model import Model
from lorewright.models.replies import BaseOf
from lorewright.training.config import BFLOAT16, FLOAT32

MEMO = Path(__file__).parents[1] / "examples" / "kestrel.md"


def study_seconds(model: Model, document: Document, reduced: Reduced | None) -> float:
    """CPU seconds of questions about a document."""
    started = time.process_time()
    questions_about(passages(document.text), document.title, BaseOf(model, reduced))
    return time.process_time() - started


def main() -> None:
    """Print the seconds of both arms, and their ratio, of an epoch and of self-study."""
    parser = options(__doc__, quick="24 questions, one repeat")
    parser.add_argument("--model", default="smollm2")
    args = parser.parse_args()
    print(machine(args.threads))
    model = Model.load(args.model)
    examples = pairs(24 if args.quick else 80)
    document = Document.read(MEMO)
    seconds: dict[tuple[str, str], list[float]] = {}
    for _ in range(1 if args.quick else 3):
        for arithmetic, reduced in ((FLOAT32, None), (BFLOAT16, Reduced())):
            epoch = epoch_seconds(model, examples, arithmetic)
            study = study_seconds(model, document, reduced)
            seconds.setdefault(("epoch", arithmetic), []).append(epoch)
            seconds.setdefault(("self-study", arithmetic), []).append(study)
    print(f"# {model.name}, {model.runs_in()}, {len(examples)} questions, {MEMO.name}")
    for (what, arithmetic), times in seconds.items():
        print(f"{what} {arithmetic}: {statistics.median(times):.2f} s of CPU")
    for what in ("epoch", "self-study"):
        slow, fast = seconds[what, FLOAT32], seconds[what, BFLOAT16]
        print(verdict(f"reduced_{what.replace('-', '')}", slow, fast))


if __name__ == "__main__":
    main()
