"""Does the demo's write do as well on documents that none of its settings was chosen on?

    python experiments/fresh_documents/run.py            # resumes document by document; then the page
    python experiments/fresh_documents/run.py --quick    # one small document, few epochs; no result
    python experiments/fresh_documents/run.py --page     # the table anew, from records/

Every document is a page of the world of the embedded base, with seeds that its training cannot draw: 48
facts of eight subjects, like the handbook. It is written as `lore demo` writes, with a seed of its own.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "pocket"))

import world  # noqa: E402

from lorewright.cli.demos import LESSON, NEW, questions_config  # noqa: E402
from lorewright.files import (  # noqa: E402
    save_json,
    store,
)
from lorewright.knowledge.data import Document, Probe  # noqa: E402
from lorewright.memory.memory import Memory  # noqa: E402
from lorewright.models.model import Model  # noqa: E402
from lorewright.recall.statistics import clustered_interval  # noqa: E402

RECORDS = HERE / "records"
N_DOCUMENTS, N_SUBJECTS, N_EACH, N_UNKNOWN = 5, 8, 6, 48
UNTRAINED = world.ASK[6:]
"""Question forms that the base knows and that no lesson trains."""
MARKS = ("<!-- table: written by run.py -->\n", "<!-- end of table -->\n")


def page(number: int, n_subjects: int = N_SUBJECTS) -> world.Passage:
    """A document: a section for each subject, its facts in forms drawn at random."""
    rng = random.Random(f"fresh-document-{number}")
    subjects: dict[str, None] = {}
    while len(subjects) < n_subjects:
        subjects[world.subject(rng)] = None
    items, parts = [], [f"# Page {number}"]
    for who in subjects:
        own: dict[str, world.Statement] = {}
        while len(own) < N_EACH:
            about = world.relation(rng)
            own[about.name] = world.Statement(who, about, world.VALUES[about.value](rng))
        items += own.values()
        sentences = " ".join(world.say(rng, item) for item in own.values())
        parts.append(f"## {who[0].upper()}{who[1:]}\n\n{sentences}")
    return world.Passage("\n\n".join(parts) + "\n", tuple(items))


def probes(number: int, passage: world.Passage, n_unknown: int) -> list[Probe]:
    """Every fact in two forms no lesson trains and in one that the base never saw; near misses."""
    rng = random.Random(f"fresh-probes-{number}")
    questions = []
    for i, item in enumerate(passage.statements):
        for k, form in enumerate(rng.sample(UNTRAINED, 2)):
            questions.append(Probe(f"fact-{i}-{k}", item.fill(form), (item.value,), "paraphrase"))
        text = world.held_ask(rng, item)
        questions.append(Probe(f"{NEW}{i}", text, (item.value,), "paraphrase"))
    missing: dict[str, None] = {}
    while len(missing) < n_unknown:
        missing[world.near_miss(rng, passage).fill(rng.choice(UNTRAINED))] = None
    return questions + [
        Probe(f"unknown-{i}", text, (), "unknown") for i, text in enumerate(missing)
    ]


def measure(model: Model, number: int, *, quick: bool) -> dict[str, Any]:
    """Write one document into a folder of its own; every probe's score with the memory and without."""
    passage = page(number, 2 if quick else N_SUBJECTS)
    config = replace(questions_config(model, 2) if quick else questions_config(model), seed=number)
    config = replace(config, lora=replace(config.lora, seed=number))
    started = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        outcome = Memory.open(Path(folder) / "memory", model).write(
            Document(f"page-{number}", passage.text),
            config=config,
            lesson=replace(LESSON, seed=number),
            probes=probes(number, passage, 4 if quick else N_UNKNOWN),
        )
    scores = {
        arm: {row.probe_id: row.score for row in outcome.report.arms.get(arm, ())}
        for arm in ("memory", "base", "full")
    }
    return {
        "number": number,
        "base": model.digest,
        "quick": quick,
        "epochs": outcome.epochs,
        "reason": outcome.reason,
        "n_examples": outcome.n_examples,
        "cpu_seconds": round(time.process_time() - started, 1),
        "notes": list(outcome.notes),
        "scores": scores,
    }


KINDS = {
    "forms the adapter never saw": "fact-",
    "forms new to the base too": NEW,
    "near misses declined": "unknown-",
}


def rows(records: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Per kind of probe: memory, base alone, the whole document in the prompt, and the worst document."""
    rows = []
    for kind, start in KINDS.items():
        line = [kind]
        for arm in ("memory", "base", "full"):
            clusters = [
                [s for i, s in r["scores"][arm].items() if i.startswith(start) and s is not None]
                for r in records
            ]
            line.append(str(clustered_interval(clusters)))
            if arm == "memory":
                each = [sum(own) / len(own) for own in clusters if own]
        rows.append([*line, ", ".join(f"{share:.2f}" for share in sorted(each))])
    return rows


def table(records: Sequence[dict[str, Any]]) -> str:
    """The Markdown table, and what it rests on."""
    head = ["", "memory", "base alone", "document in the prompt", "memory, each document"]
    lines = [head, ["---"] * len(head), *rows(records)]
    digests = sorted({r["base"][:16] for r in records})
    seconds = sum(r["cpu_seconds"] for r in records) / len(records)
    return "".join(f"| {' | '.join(line)} |\n" for line in lines) + (
        f"\n{len(records)} documents; base {', '.join(digests)}; "
        f"{seconds:.0f} CPU seconds a document, verdict included.\n"
    )


def main() -> None:
    """Measure what is missing, print the table, put it on the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--documents", type=int, default=N_DOCUMENTS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--page", action="store_true", help="table from records/, nothing is written"
    )
    parser.add_argument("--quick", action="store_true", help="one small document; shows no result")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.quick:
        print(table([measure(Model.load("pocket"), 0, quick=True)]))
        return
    model = None if args.page else Model.load("pocket")
    records = []
    for number in range(args.documents):
        path = RECORDS / f"{number:02d}.json"
        record = json.loads(path.read_text()) if path.exists() else None
        if model and (record is None or record["base"] != model.digest):
            record = measure(model, number, quick=False)
            save_json(record, path)
            print(f"document {number}: {record['epochs']} epochs, {record['reason']}", flush=True)
        if record:
            records.append(record)
    text = table(records)
    print(text)
    readme = (HERE / "README.md").read_text(encoding="utf-8")
    before, after = readme.split(MARKS[0])[0], readme.split(MARKS[1])[1]
    store(f"{before}{MARKS[0]}\n{text}\n{MARKS[1]}{after}".encode(), HERE / "README.md")


if __name__ == "__main__":
    main()
