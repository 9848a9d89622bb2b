"""How long a folder of 10,000 memories takes to open, list, search, route and change, beside one of 10.

    python benchmarks/folder_speed.py
    python benchmarks/folder_speed.py --quick

Every memory has an adapter of its own (rank 1 on one layer of the embedded base), a card, a source of three
facts, a run with settings, lesson and report, as a write leaves them; only memory.json is written once
instead of 10,000 times, and files are not forced to the disk one by one. Seconds are medians over repeats, files in
the page cache, by the clock and of CPU (system calls included), which other processes do not inflate. `open` is
with the base already loaded. `every card` is what a list would cost that read them. `index all` is the
first question ever, timed once; `route, new process` reads what that left on disk, `route` has routed
before, `route, less and more` takes a memory out of memory.json, routes, puts it back and routes. The last line
can be read by a script.
"""

from __future__ import annotations

import io
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

from ratio import machine, options
from rich.console import Console

from lorewright.adapters import adapter as adapters
from lorewright.adapters.config import LoraConfig
from lorewright.adapters.lora import attach
from lorewright.files import dump_jsonl, save_json
from lorewright.knowledge.data import Fact, Knowledge
from lorewright.knowledge.lesson import LessonConfig, prepare
from lorewright.memory.memory import Memory
from lorewright.memory.migrations import brief
from lorewright.memory.removal import plan_removal
from lorewright.memory.route import DERIVED
from lorewright.models.model import Model
from lorewright.reports.results import memories_table
from lorewright.reports.tables import Rendered

CONFIG = LoraConfig(rank=1, targets=("q_proj",), layers=(0,))
SHARE = {"n": 3, "recall": 1.0, "low": 0.44, "high": 1.0}


def build(folder: Path, model: Model, n: int) -> None:
    """A folder of n memories."""
    with attach(model.network, [CONFIG]) as stack:
        stack.reset(0, 0)
        template = adapters.capture(stack, 0, base_id=model.name, base_digest=model.digest)
    memory = Memory.open(folder, model)
    entries = {}
    for i in range(n):
        name = f"memory-{i:05d}"
        facts = tuple(
            Fact(f"f{j}", f"What is the {what} of Project {i}?", f"{what} {i}")
            for j, what in enumerate(("code", "room", "deadline"))
        )
        knowledge = Knowledge(facts=facts)
        tensors = {k: t + (i + 1) * 1e-3 for k, t in template.tensors.items()}
        settings = {"lesson": asdict(LessonConfig()), "metric": "exact_match"}
        card = {
            "name": name,
            "source": knowledge.digest(),
            "reason": "recalled",
            "settings": settings,
            "report": {"recall": {"paraphrase": {"memory": SHARE, "base": SHARE}}},
        }
        adapter = replace(template, tensors=tensors, card=card)
        identity = adapters.content_id(adapter)
        adapters.save(adapter, folder / "adapters" / identity)
        dump_jsonl(facts, folder / "sources" / f"{knowledge.digest()}.jsonl")
        run = folder / "runs" / f"20260101-000000-{name}"
        save_json(
            {"name": name, "key": name, "source": knowledge.digest(), **settings},
            run / "config.json",
        )
        config = LessonConfig(views=("given",), negatives=0)
        lesson = prepare(knowledge, ask_llm=list, closed_book=list, config=config)
        save_json(lesson, run / "lesson.json")
        save_json({"memory": name, "adapter": identity, "recall": {}}, run / "report.json")
        entry = {"adapter": identity, "source": knowledge.digest(), "run": run.name}
        entries[name] = {**entry, "card": brief({**card, "adapter": {"lora": {"rank": 1}}})}
    with memory.writing():
        memory.folder.change(lambda memories: memories.update(entries))


def operations(folder: Path, model: Model, n: int) -> dict[str, Callable[[], object]]:
    """What is timed, by name."""
    last, memory = f"memory-{n - 1:05d}", Memory.open(folder, model)
    own = memory.folder
    entry = own.entry(last)

    def listed() -> None:
        table = memories_table(own.briefs()[:50])
        Console(file=io.StringIO(), width=120).print(Rendered(table))

    def entered() -> None:
        with memory.writing():
            own.enter(last, entry["adapter"], source=entry["source"], run=entry["run"])

    def renamed() -> None:
        own.rename(last, "other")
        own.rename("other", last)

    question = f"Tell me which room Project {n // 2} has."

    def less_and_more() -> None:
        for entries in ({}, {last: entry}):
            with memory.writing():
                own.change(lambda memories, e=entries: (memories.pop(last, 0), memories.update(e)))
            memory.route(question)

    return {
        "route, new process": lambda: Memory.open(folder, model).route(question),
        "route": lambda: memory.route(question),
        "route, less and more": less_and_more,
        "read memory.json": own.index,
        "open": lambda: Memory.open(folder, model),
        "list": listed,
        "every card": own.cards,
        "resolve a name": lambda: own.entry(last),
        "load an adapter": lambda: memory.adapter(last),
        "enter a memory": entered,
        "rename, and back": renamed,
        "find a run to resume": lambda: (
            own.run(last, {"key": "nothing"}).joinpath("config.json").unlink()
        ),
        "plan a removal": lambda: plan_removal(own, last),
    }


def seconds(act: Callable[[], object], repeats: int) -> tuple[float, float]:
    """The median of some runs after one that does not count, by the clock and of CPU."""
    act()
    wall, cpu = [], []
    for _ in range(repeats):
        began, start = time.perf_counter(), time.process_time()
        act()
        wall.append(time.perf_counter() - began)
        cpu.append(time.process_time() - start)
    return statistics.median(wall), statistics.median(cpu)


def main() -> None:
    """Build, time, print."""
    parser = options(__doc__, quick="500 memories, 3 repeats")
    parser.add_argument("--n", type=int, default=10_000, help="memories in the large folder")
    args = parser.parse_args()
    n, repeats = (500, 3) if args.quick else (args.n, 7)
    print(machine(args.threads))
    model = Model.load()
    os.fsync = lambda *_: None  # of the building only in effect: nothing below is about the disk
    seconds_of: dict[int, dict[str, tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as place:
        for size in (10, n):
            folder = Path(place) / f"folder-{size}"
            start = time.perf_counter()
            build(folder, model, size)
            about = f"{size} memories built in {time.perf_counter() - start:.1f} s"
            print(f"{about}; memory.json {(folder / 'memory.json').stat().st_size:,} bytes")
            shutil.rmtree(folder / DERIVED, ignore_errors=True)
            began, start = time.perf_counter(), time.process_time()
            decision = Memory.open(folder, model).route(f"What is the room of Project {size // 2}?")
            all_of_it = time.perf_counter() - began, time.process_time() - start
            assert decision.chosen[0].memory == f"memory-{size // 2:05d}", decision
            acts = operations(folder, model, size)
            seconds_of[size] = {"index all": all_of_it}
            seconds_of[size] |= {name: seconds(act, repeats) for name, act in acts.items()}
    print(f"{'seconds: clock, CPU':24}{'10 memories':>20}{f'{n} memories':>24}")
    for name in seconds_of[n]:
        cells = "".join(
            f"{wall:>14.4f}{cpu:>8.4f}" for wall, cpu in (seconds_of[10][name], seconds_of[n][name])
        )
        print(f"{name:24}{cells}")
    shown = ("open", "list", "resolve a name", "route", "route, new process")
    line = " ".join(
        f"{name.replace(',', '').replace(' ', '_')}={seconds_of[n][name][1]:.4f}" for name in shown
    )
    print(f"folder_speed n={n} {line}")


if __name__ == "__main__":
    main()
