"""What is left of several memories when all are merged into one adapter, by method.

    python benchmarks/merge_many.py --out many
    python benchmarks/merge_many.py --quick --out some

The first documents of `lore bench memories`, a memory each, written as there; then its arms `oracle` (the
right memory) and `merged` by each method, on its questions, in forms that no lesson trains. Memories stay
in the folder and are not written again. Seconds are of CPU and for the merge with its questions. The last line can be
read by a script.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from ratio import machine, options

from lorewright.bench.memories import (
    ARMS,
    DOCUMENTS,
    Bench,
    Settings,
    read_pages,
    scores,
    written,
)
from lorewright.memory.verify import usual_metric
from lorewright.models.model import Model
from lorewright.recall.statistics import paired_difference, wilson
from lorewright.training.watch import Watch


def main() -> None:
    """Write, merge, ask, print."""
    parser = options(__doc__, quick="two documents, two epochs, tsv")
    parser.add_argument("--documents", type=int, default=6)
    parser.add_argument("--epochs", type=int, default=60, help="budget of every write")
    parser.add_argument("--method", nargs="+", default=["tsv", "imitate", "auto"])
    parser.add_argument("--out", type=Path, required=True, help="folder of the memories")
    args = parser.parse_args()
    settings = Settings(n_documents=args.documents, epochs=args.epochs)
    methods = args.method
    if args.quick:
        settings, methods = replace(settings, n_documents=2, epochs=2), ["tsv"]
    print(machine(args.threads))
    model, watch = Model.load(), Watch()
    pages = read_pages(DOCUMENTS, settings.n_documents)
    memory = written(args.out, model, pages, settings, watch)
    by_name = {page.document.id: page for page in pages}
    questions = [q for page in pages for q in page.questions]
    metric, right = usual_metric(model), {}
    print(f"{len(pages)} memories of rank {settings.rank}, {len(questions)} questions, {metric}")
    for name in ("oracle", *methods):
        bench = Bench(memory, args.out, by_name, replace(settings, merge_method=name), watch, {})
        began = time.process_time()
        answers = ARMS["oracle" if name == "oracle" else "merged"].answers(bench, questions)
        spent = time.process_time() - began
        right[name] = scores(questions, answers, metric)
        kinds = sorted({q.kind for q in questions})
        shares = {
            kind: [
                s for q, s in zip(questions, right[name], strict=True) if kind in ("all", q.kind)
            ]
            for kind in ("all", *kinds)
        }
        shown = ", ".join(
            f"{kind} {wilson(round(sum(own)), len(own))}" for kind, own in shares.items()
        )
        print(f"{name}: {shown}; {spent:.0f} s", flush=True)
    first = methods[0]
    for other in methods[1:]:
        print(f"{other} less {first}: {paired_difference(right[other], right[first])}")
    line = " ".join(f"{name}={sum(own) / len(own):.3f}" for name, own in right.items())
    print(f"merge_many documents={len(pages)} {line}")


if __name__ == "__main__":
    main()
