"""How long a write that reads text takes, after the kit is loaded: the test documents, one by one.

    python benchmarks/kit_writes.py [--repeats 5] [--model pocket]

Prints, for in-place without a kit and for every method whose kit is here, the median over the
packaged test documents (8 facts each, the page as text) and repeats, and the slowest tenth, in
milliseconds on one core: of the time that `lore write` reports, from text to a state without
loading and verdict, and of the processor's time for it, which other programs on the machine do not
lengthen as much.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator

import torch

from lorewright.errors import ConfigError
from lorewright.files import load_jsonl
from lorewright.kits.stream import TEST_DOCUMENTS
from lorewright.knowledge.data import Document, Knowledge
from lorewright.models.model import Model
from lorewright.training.config import WriteConfig
from lorewright.training.watch import Watch
from lorewright.writers import kit as kits
from lorewright.writers.learned import Learned
from lorewright.writers.methods import LEARNED, writer_of
from lorewright.writers.writer import Material


def pages(n: int) -> Iterator[Knowledge]:
    """The first test documents, as texts."""
    for row in load_jsonl(TEST_DOCUMENTS)[:n]:
        yield Knowledge((Document(row["id"], row["text"], row["title"]),))


def seconds(model: Model, method: str, n: int, repeats: int) -> list[tuple[float, float]]:
    """Wall and processor of every write, the first of all left out."""
    writer = writer_of(method, WriteConfig())
    if isinstance(writer, Learned):
        writer = Learned(writer.method, writer.config, kits.find(model, method))
    taken = []
    for _ in range(repeats):
        for knowledge in pages(n):
            began = time.process_time()
            _, cost = writer.write(model, Material(knowledge), seed=0, run=None, watch=Watch())
            taken.append((cost.seconds, time.process_time() - began))
    return taken[1:]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="pocket")
    parser.add_argument("--documents", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = Model.load(args.model)
    for method in ("in-place", *LEARNED):
        try:
            taken = seconds(model, method, args.documents, args.repeats)
        except ConfigError as error:
            print(f"{method:14s} not measured: {error}")
            continue
        row: dict[str, float] = {"n": len(taken)}
        for name, each in zip(("wall", "processor"), zip(*taken, strict=True), strict=True):
            cuts = statistics.quantiles(each, n=10)
            row |= {
                f"{name} median": round(1e3 * cuts[4], 1),
                f"{name} p90": round(1e3 * cuts[8], 1),
            }
        print(f"{method:14s} {json.dumps(row)}")


if __name__ == "__main__":
    main()
