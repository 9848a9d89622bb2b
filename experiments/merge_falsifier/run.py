"""Does merging two memories of disjoint facts cost more than a fifth of either? SCIENCE's falsifier.

    python experiments/merge_falsifier/run.py             # resumes pair by pair; then the page
    python experiments/merge_falsifier/run.py --quick     # one pair, few epochs; shows that it works
    python experiments/merge_falsifier/run.py --page      # table and figure anew, from the records

Every pair: two memories of 24 facts are written, then merged by every method, each with the options of
its own that did best on trained questions held back for that (probes have no part in it), and by `auto`.
All answer the same probes. Then, on some of the pairs: lower ranks, training on both instead, what
imitation owes to each of its parts, and memories written in other ways. One adapter of at most the summed
rank each time.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from pairs import KINDS, N_FACTS, kind_of, lesson, pair
from tables import write_page

from lorewright.adapters.adapter import Adapter, load, save
from lorewright.adapters.config import LoraConfig
from lorewright.adapters.proof import delta_norms
from lorewright.files import save_json
from lorewright.knowledge.data import Example
from lorewright.knowledge.lesson import Lesson, LessonConfig
from lorewright.knowledge.negatives import DECLINE
from lorewright.merging import imitate as imitation
from lorewright.merging.choosing import GRID, best_of, search
from lorewright.merging.imitate import Source
from lorewright.merging.methods import METHODS, Evidence
from lorewright.models.model import Model
from lorewright.recall.traces import audit, trace
from lorewright.training.config import Job, WriteConfig, Written
from lorewright.training.loop import write_all
from lorewright.training.rates import suggested_lr

HERE = Path(__file__).parent
RECORDS = HERE / "records"
WORK = Path("runs/merge_falsifier")
"""Adapters and checkpoints, to resume by; may be deleted."""
RANK, EPOCHS, STACK = 8, 60, 2
"""Rank and budget of a memory; pairs whose memories are written in one stack."""

WRITES: dict[str, dict[str, Any]] = {
    "default": {},
    "weight decay 1": {"weight_decay": 1.0},
    "a third of the rate": {"lr": 1 / 3},
    "upper layers only": {"layers": (3, 4)},
    "one first A for both": {"seed": 0},
    "no questions to decline": {"negatives": 0.0},
}
"""What can be done at the time of writing so that memories merge better, or worse."""
N_BEYOND, N_WRITES = 4, 3
"""Pairs of which lower ranks, parts and rewriting are measured; that are written in other ways."""


def configs(model: Model, how: dict[str, Any], number: int, epochs: int) -> list[WriteConfig]:
    """Settings of a pair's two writes: every memory has a first A of its own, unless given."""
    plain = {key: value for key, value in how.items() if key == "weight_decay"}
    return [
        WriteConfig(
            lora=LoraConfig(RANK, layers=how.get("layers"), seed=how.get("seed", 2 * number + n)),
            lr=suggested_lr(model) * how.get("lr", 1.0),
            epochs=epochs,
            seed=2 * number + n,
            **plain,
        )
        for n in (0, 1)
    ]


def written(
    model: Model, numbers: Sequence[int], how: str, epochs: int
) -> dict[int, list[tuple[Lesson, Adapter, dict[str, Any]]]]:
    """The pairs' memories, from the work folder or written now, all in one stack."""
    settings, jobs, lessons = WRITES[how], [], []
    for number in numbers:
        negatives = settings.get("negatives", LessonConfig().negatives)
        for items, config in zip(
            pair(number), configs(model, settings, number, epochs), strict=True
        ):
            taught = LessonConfig(negatives=negatives, seed=config.seed)
            lessons.append(lesson(model, items, taught))
            jobs.append(Job(lessons[-1].examples, config))
    name = f"{how.replace(' ', '-')}-{numbers[0]}-{len(numbers)}-{epochs}-{model.digest[:8]}"
    places = [WORK / name / f"adapter-{i}" for i in range(len(jobs))]
    about = WORK / name / "about.json"
    if not about.exists():
        done = write_all(model, jobs, run=WORK / name / "run")
        for each, place in zip(done, places, strict=True):
            assert isinstance(each, Written), each
            save(each.adapter, place)
        rows = [
            {
                "reason": each.reason,
                "epochs": len(each.epochs),
                "examples": len(job.examples),
                "norm": sum(v**2 for v in delta_norms(each.adapter).values()) ** 0.5,
            }
            for each, job in zip(done, jobs, strict=True)
            if isinstance(each, Written)
        ]
        save_json({"writes": rows, "configs": [asdict(job.config) for job in jobs]}, about)
    writes = json.loads(about.read_text())["writes"]
    sources = list(zip(lessons, map(load, places), writes, strict=True))
    return {number: sources[2 * i : 2 * i + 2] for i, number in enumerate(numbers)}


def rows_of(taught: Lesson) -> list[Example]:
    """Every probe with its reply."""
    return [Example(p.question, p.answers[0] if p.answers else DECLINE) for p in taught.probes]


def scores_of(model: Model, adapter: Adapter | None, taught: Lesson) -> dict[str, list[int]]:
    """By kind of probe, which are answered right (of kind unknown: declined), word for word.

    By one teacher-forced pass: greedy decoding gives an answer exactly when each of its tokens is
    the likeliest after those before it. `heard` says whether it did.
    """
    with model.using(*([adapter] if adapter else [])):
        traces = trace(model, [model.render(row.prompt, row.completion) for row in rows_of(taught)])
    scores: dict[str, list[int]] = {kind: [] for kind in KINDS}
    for probe, each in zip(taught.probes, traces, strict=True):
        scores[kind_of(probe)].append(int(each.exact))
    return scores


def heard(model: Model, adapter: Adapter, taught: Lesson) -> dict[str, int]:
    """The same by free-running greedy decoding, and how many probes differ."""
    with model.using(adapter):
        audited = audit(model, rows_of(taught))
    return {"n": audited.n, "exact": audited.n_exact, "differ": len(audited.disagreements)}


def adapters_of(sources: Sequence[Source]) -> list[Adapter]:
    """The adapters alone."""
    return [source.adapter for source in sources]


def evidence_of(model: Model, sources: Sequence[Source], **how: Any) -> Evidence:
    """What a method may look at."""
    return Evidence(model, [source.examples for source in sources], **how)


def measured(
    model: Model, sources: Sequence[Source], lessons: Sequence[Lesson], method: str, **how: Any
) -> dict[str, Any]:
    """One merged adapter: how it was made, its rank, seconds, and what both sources' probes say."""
    began, cpu = time.monotonic(), time.process_time()
    adapter = METHODS[method](adapters_of(sources), evidence_of(model, sources, **how))
    cost = {"seconds": time.monotonic() - began, "cpu_seconds": time.process_time() - cpu}
    scores = [scores_of(model, adapter, taught) for taught in lessons]
    about = {"method": method, "options": how.get("options", {}), "rank": adapter.config.rank}
    return {**about, **cost, "scores": scores}


def every_method(
    model: Model, sources: Sequence[Source], lessons: Sequence[Lesson]
) -> dict[str, Any]:
    """Every method with its best options, and what `auto` takes."""
    trials = list(search(adapters_of(sources), evidence_of(model, sources)))
    wide = sum(source.adapter.config.rank for source in sources)
    arms: dict[str, Any] = {}
    for method in dict.fromkeys(name for name, _ in GRID):
        own = [trial for trial in trials if trial.method == method and trial.rank == wide]
        best = max(own, key=lambda trial: trial.merit)
        arms[method] = measured(model, sources, lessons, method, options=best.options)
    best = best_of(trials)
    evidence = evidence_of(model, sources, options=best.options, rank=best.rank)
    adapter = METHODS[best.method](adapters_of(sources), evidence)
    about = {"method": best.method, "options": best.options, "rank": best.rank}
    scores = [scores_of(model, adapter, taught) for taught in lessons]
    arms["auto"] = {**about, "scores": scores, "heard": [heard(model, adapter, t) for t in lessons]}
    return {"arms": arms, "trials": [trial.to_json() for trial in trials]}


def beyond(model: Model, sources: Sequence[Source], lessons: Sequence[Lesson]) -> dict[str, Any]:
    """Imitation at lower ranks, training on both instead, and imitation without some of its parts."""
    results: dict[str, Any] = {}
    for rank in (RANK // 2, RANK, RANK * 3 // 2):
        results[f"imitate, rank {rank}"] = measured(model, sources, lessons, "imitate", rank=rank)
    results["rewrite"] = measured(model, sources, lessons, "rewrite", options={"epochs": EPOCHS})
    for name, options in PARTS.items():
        results[name] = measured(model, sources, lessons, "imitate", options=options)
    with no_stream():
        results["streams not followed"] = measured(model, sources, lessons, "imitate")
        results["nor weights"] = measured(
            model, sources, lessons, "imitate", options=PARTS["both alike"]
        )
    return results


PARTS: dict[str, dict[str, float]] = {
    "all tokens alike": {"floor": 1e9},
    "all outputs alike": {"damping": 1e9},
    "both alike": {"floor": 1e9, "damping": 1e9},
}
"""Settings that take a part of imitation away: weights of tokens, the metric of outputs."""


@contextmanager
def no_stream() -> Iterator[None]:
    """Imitation that does not make up for how far the stream is off."""
    own = imitation._Run._own

    def blind(self: Any, at: int, names: Sequence[str]) -> Any:
        return own(self, at, names)[0], None

    with mock.patch.object(imitation._Run, "_own", blind):
        yield


def keep(record: dict[str, Any], path: Path, base: str) -> None:
    save_json({**record, "base": base, "facts": N_FACTS, "rank": RANK}, path)


def is_done(path: Path, base: str) -> bool:
    """Whether a record is there and of this base."""
    return path.exists() and json.loads(path.read_text())["base"] == base


def run_pairs(model: Model, n_pairs: int, epochs: int, out: Path) -> None:
    """Write and merge every pair that has no record yet."""
    base = model.digest[:16]
    for first in range(0, n_pairs, STACK):
        numbers = range(first, min(first + STACK, n_pairs))
        left = [n for n in numbers if not is_done(out / f"pair-{n:02}.json", base)]
        memories = written(model, numbers, "default", epochs) if left else {}
        for number in left:
            began = time.process_time()
            lessons, own, sources = of_pair(memories[number])
            record = {
                "pair": number,
                "writes": [about for _, _, about in memories[number]],
                "alone": [
                    scores_of(model, a, taught) for a, taught in zip(own, lessons, strict=True)
                ],
                "heard": [heard(model, a, taught) for a, taught in zip(own, lessons, strict=True)],
                "other": [scores_of(model, a, t) for a, t in zip(own[::-1], lessons, strict=True)],
                "plain": [scores_of(model, None, taught) for taught in lessons],
                **every_method(model, sources, lessons),
            }
            record["cpu_seconds"] = time.process_time() - began
            keep(record, out / f"pair-{number:02}.json", base)
            print(
                f"pair {number}: {described(record)} ({record['cpu_seconds']:.0f} s of CPU)",
                flush=True,
            )


def run_beyond(model: Model, n_pairs: int, n_all: int, epochs: int, out: Path) -> None:
    """What is measured on some of the pairs only."""
    base = model.digest[:16]
    for number in range(n_pairs):
        path, first = out / f"beyond-{number:02}.json", number // STACK * STACK
        if is_done(path, base):
            continue
        memories = written(model, range(first, min(first + STACK, n_all)), "default", epochs)
        lessons, own, sources = of_pair(memories[number])
        alone = [scores_of(model, a, taught) for a, taught in zip(own, lessons, strict=True)]
        keep({"pair": number, "alone": alone, "arms": beyond(model, sources, lessons)}, path, base)
        print(f"pair {number}: ranks, parts and rewriting done", flush=True)


def of_pair(
    writes: Sequence[tuple[Lesson, Adapter, dict[str, Any]]],
) -> tuple[list[Lesson], list[Adapter], list[Source]]:
    """Lessons, adapters and sources of a pair."""
    lessons, own = [taught for taught, _, _ in writes], [adapter for _, adapter, _ in writes]
    return lessons, own, [Source(a, t.examples) for a, t in zip(own, lessons, strict=True)]


def run_writes(model: Model, n_pairs: int, epochs: int, out: Path) -> None:
    """The other ways of writing, on some of the pairs, merged in three ways each."""
    base = model.digest[:16]
    for how in WRITES:
        path = out / f"write-{how.replace(' ', '-')}.json"
        if is_done(path, base):
            continue
        memories = written(model, range(n_pairs), how, epochs)
        rows = []
        for number in range(n_pairs):
            lessons, own, sources = of_pair(memories[number])
            rows.append(
                {
                    "pair": number,
                    "writes": [about for _, _, about in memories[number]],
                    "alone": [scores_of(model, a, t) for a, t in zip(own, lessons, strict=True)],
                    "other": [
                        scores_of(model, a, t) for a, t in zip(own[::-1], lessons, strict=True)
                    ],
                    "arms": {
                        method: measured(model, sources, lessons, method)
                        for method in ("cat", "tsv", "regmean", "imitate")
                    },
                }
            )
        keep({"how": how, "settings": WRITES[how], "pairs": rows}, path, base)
        print(f"{how}: done", flush=True)


def described(record: dict[str, Any]) -> str:
    """A pair's recall of held forms: alone, and under some methods."""

    def share(scores: list[dict[str, list[int]]]) -> str:
        rows = [score["paraphrase"] for score in scores]
        return "/".join(f"{sum(row) / len(row):.2f}" for row in rows)

    arms = record["arms"]
    some = ", ".join(
        f"{name} {share(arms[name]['scores'])}"
        for name in ("cat", "tsv", "regmean", "imitate", "refine")
    )
    return f"alone {share(record['alone'])}, {some}, auto = {arms['auto']['method']}"


def main() -> None:
    """Measure what has no record yet, then write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--quick", action="store_true", help="one pair, few epochs; no result")
    parser.add_argument("--page", action="store_true", help="only the page, from the records")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.quick:
        out, epochs, n_pairs, n_beyond, n_writes = WORK / "quick", 4, 1, 1, 1
    else:
        out, epochs, n_pairs, n_beyond, n_writes = RECORDS, EPOCHS, args.pairs, N_BEYOND, N_WRITES
    if not args.page:
        model = Model.load()
        run_pairs(model, n_pairs, epochs, out)
        run_beyond(model, n_beyond, n_pairs, epochs, out)
        run_writes(model, n_writes, epochs, out)
    write_page(out, out if args.quick else HERE)


if __name__ == "__main__":
    main()
