"""What the working process can do: the memory's verbs, plain data in, plain data out.

No logic of its own: each calls what the command line calls, with the same settings.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

from lorewright.adapters.config import LoraConfig
from lorewright.errors import DataError, LorewrightError
from lorewright.knowledge.data import Document, Knowledge
from lorewright.knowledge.readers.read import read_knowledge
from lorewright.law.budget import account as budgeted
from lorewright.law.plan import FIXED_RANK
from lorewright.memory.diagnose import diagnose
from lorewright.memory.experiments import experiment
from lorewright.memory.memory import Memory
from lorewright.memory.mend import account
from lorewright.memory.mend import mend as mended_by
from lorewright.memory.plan import plan as planned
from lorewright.merging.plane import LINEAR
from lorewright.merging.plane import sketch as sketched
from lorewright.models.sizes import sizes_of
from lorewright.studio.sources import DRAWN, THREE, THREE_RANK, as_file, three_texts
from lorewright.training.config import WriteConfig
from lorewright.training.rates import suggested_lr
from lorewright.training.watch import Watch
from lorewright.writers.methods import usual_lr

Report = Callable[[str], None]
"""Called with what is done next, in a few words."""


class Bench:
    """The folder and its base, loaded when first needed and then again and again used."""

    def __init__(self, folder: Path, base: str) -> None:
        self.folder, self.base = folder, base

    @cached_property
    def memory(self) -> Memory:
        """The open folder."""
        return Memory.open(self.folder, self.base or None)


Verb = Callable[[Bench, Mapping[str, Any], Report], dict[str, Any]]


def warm(bench: Bench, arguments: Mapping[str, Any], report: Report) -> dict[str, Any]:
    """Load the base, so that the next order need not wait for it."""
    report("loading the base")
    model = bench.memory.model
    n_base = None
    with suppress(LorewrightError):  # of no known family: shares of it stay open
        n_base = sizes_of(model.name).n_parameters
    return {"base": model.name, "runs_in": model.runs_in(), "n_base": n_base}


def write(bench: Bench, arguments: Mapping[str, Any], report: Report) -> dict[str, Any]:
    """Write a text into a memory, as `lore write` does, with held-out questions each epoch."""
    report("loading the base")
    memory, planned = bench.memory, not arguments["rank"]
    rank = int(arguments["rank"] or FIXED_RANK)
    lora = LoraConfig(rank=rank, targets=tuple(arguments["targets"]))
    config = WriteConfig(
        lora=lora,
        lr=suggested_lr(memory.model),
        objective=arguments["objective"],
        epochs=int(arguments["epochs"]),
    )
    knowledge = _read(arguments["name"], arguments)
    outcome = memory.write(
        knowledge,
        name=arguments["name"],
        config=config,
        find_rank=planned,
        preset=arguments["preset"],
        watch=Watch(step=report, advance=_phase(report), closely=True),
    )
    return outcome.to_json()


def resume(bench: Bench, arguments: Mapping[str, Any], report: Report) -> dict[str, Any]:
    """Go on with a write that was cut off or stopped, as `lore resume` does."""
    report("loading the base")
    watch = Watch(step=report, advance=_phase(report), closely=True)
    return bench.memory.resume(arguments["run"], watch=watch).to_json()


def verify(bench: Bench, arguments: Mapping[str, Any], report: Report) -> dict[str, Any]:
    """Take a memory's verdict again, as `lore verify` does."""
    watch = Watch(step=report, advance=_phase(report))
    return bench.memory.verify(arguments["name"], watch=watch).to_json()


def ask(bench: Bench, arguments: Mapping[str, Any], report: Report) -> dict[str, Any]:
    """One question side by side, as `lore ask --side-by-side` has it."""
    rate = float(arguments["false_activation"])
    sides = bench.memory.sides(
        arguments["question"],
        arguments["memory"],
        false_activation=rate,
        watch=Watch(step=report),
    )
    return sides.to_json()


def trace(bench: Bench, arguments: Mapping[str, Any], report: Report) -> dict[str, Any]:
    """An answer token by token, as `lore trace` has it."""
    tokens = bench.memory.trace(arguments["question"], arguments["answer"], arguments["name"])
    about = {key: arguments[key] for key in ("question", "answer", "name")}
    return about | {"tokens": [asdict(token) for token in tokens]}


def doctor(bench: Bench, arguments: Mapping[str, Any], report: Report) -> dict[str, Any]:
    """Why a memory does not recall, as `lore doctor` has it."""
    report("measuring the memory and what it does")
    diagnosis = diagnose(bench.folder / arguments["name"], base=bench.memory.model)
    return {"memory": arguments["name"], **account(diagnosis)}


def mend(bench: Bench, arguments: Mapping[str, Any], report: Report) -> dict[str, Any]:
    """Run what mends a memory and examine it again, as `lore doctor --mend` does."""
    place, base = bench.folder / arguments["name"], bench.memory.model
    mended = mended_by(place, base=base, watch=Watch(step=report))
    bench.memory.loaded.clear()
    return mended.to_json()


def fail(bench: Bench, arguments: Mapping[str, Any], report: Report) -> dict[str, Any]:
    """Write a page so that it fails, as `lore failure` does."""
    report("loading the base")
    watch = Watch(step=report, advance=_phase(report), closely=True)
    return bench.memory.fail(arguments["failure"], watch=watch).to_json()


def measure(bench: Bench, arguments: Mapping[str, Any], report: Report) -> dict[str, Any]:
    """Write a memory's source by another method and take the verdict, as `lore write` does."""
    report("loading the base")
    memory, method = bench.memory, arguments["method"]
    knowledge = memory.folder.knowledge(memory.folder.entry(arguments["source"]))
    config = WriteConfig(lr=usual_lr(method, memory.model))
    outcome = memory.write(
        knowledge,
        name=arguments["name"],
        method=method,
        config=config,
        watch=Watch(step=report, advance=_phase(report)),
    )
    return outcome.to_json()


def three(bench: Bench, arguments: Mapping[str, Any], report: Report) -> dict[str, Any]:
    """Write three short texts, a memory each, to be merged: `lore write` three times."""
    report("loading the base")
    memory = bench.memory
    written = []
    for number, (name, text) in enumerate(three_texts().items(), 1):
        if name in memory.names:
            continue
        config = WriteConfig(lora=LoraConfig(rank=THREE_RANK), lr=suggested_lr(memory.model))
        watch = Watch(step=_numbered(report, number), closely=True)
        source = Knowledge((Document(name, text),))
        memory.write(source, name=name, config=config, watch=watch)
        written.append(name)
    return {"written": written}


def plane(bench: Bench, arguments: Mapping[str, Any], report: Report) -> dict[str, Any]:
    """Memories in their common plane, as `lore plane` has them."""
    names, weights = arguments["names"], arguments["weights"]
    return bench.memory.plane(names, weights=weights, methods=DRAWN).to_json()


def sketch(bench: Bench, arguments: Mapping[str, Any], report: Report) -> dict[str, Any]:
    """Free vectors merged by the same algebra, as `lore sketch` has it."""
    vectors, weights = arguments["vectors"], arguments["weights"]
    points = sketched(vectors, weights=weights, methods=DRAWN)
    return {"vectors": vectors, "weights": weights, "points": points, "linear": dict(LINEAR)}


def plan(bench: Bench, arguments: Mapping[str, Any], report: Report) -> dict[str, Any]:
    """The rank for a text, as `lore plan` has it."""
    report("loading the base")
    model = bench.memory.model
    config = WriteConfig(lr=suggested_lr(model), epochs=int(arguments["epochs"]))
    knowledge = _read("source", arguments)
    watch = Watch(step=report, advance=_phase(report))
    return planned(
        model, knowledge, wanted=float(arguments["wanted"]), config=config, watch=watch
    ).to_json()


def forget(bench: Bench, arguments: Mapping[str, Any], report: Report) -> dict[str, Any]:
    """A memory and all that came of its source, gone, with the proof."""
    forgotten = bench.memory.forget(arguments["name"], watch=Watch(step=report))
    bench.memory.loaded.clear()
    return forgotten.to_json()


def count(bench: Bench, arguments: Mapping[str, Any], report: Report) -> dict[str, Any]:
    """What training a base takes, as `lore budget` has it."""
    report("counting the base's layers")
    text, config = arguments["config"].strip(), None
    if text:
        try:
            config = json.loads(text)
        except ValueError as error:
            raise DataError(f"the config.json is no JSON: {error}; give the whole file.") from error
        if not isinstance(config, dict):
            raise DataError("a config.json holds one object; give the whole file.")
    return budgeted(
        "config.json" if config else arguments["base"],
        arguments["method"],
        rank=int(arguments["rank"]),
        targets=(arguments["targets"],),
        n_tokens=int(arguments["tokens"]),
        checkpointing=bool(arguments["checkpointing"]),
        float32=bool(arguments["float32"]),
        config=config,
    ).to_json()


def sandbox(bench: Bench, arguments: Mapping[str, Any], report: Report) -> dict[str, Any]:
    """An experiment, as `lore sandbox` runs it."""
    report("loading the base")
    watch = Watch(step=report, advance=_phase(report))
    return experiment(bench.memory.model, arguments["name"], watch=watch)


def ranks(bench: Bench, arguments: Mapping[str, Any], report: Report) -> dict[str, Any]:
    """A memory cut to smaller ranks, as `lore ranks` has it."""
    return bench.memory.ranks(arguments["name"], watch=Watch(step=report)).to_json()


def layer(bench: Bench, arguments: Mapping[str, Any], report: Report) -> dict[str, Any]:
    """One layer of a memory by hand, as `lore layer` has it."""
    rank = int(arguments["rank"])
    return bench.memory.layer(arguments["name"], module=arguments["module"], rank=rank).to_json()


def merge(bench: Bench, arguments: Mapping[str, Any], report: Report) -> dict[str, Any]:
    """Several memories in a new one, as `lore merge` makes it, and what that costs each."""
    merged = bench.memory.merge(
        arguments["names"],
        method=arguments["method"],
        weights=arguments["weights"],
        into=arguments["into"],
        rank=arguments["rank"],
        watch=Watch(step=report, advance=_phase(report)),
    ).to_json()
    parts = [{k: v for k, v in part.items() if k != "outcomes"} for part in merged["parts"]]
    return {**merged, "parts": parts}


VERBS: dict[str, Verb] = {
    "warm": warm,
    "write": write,
    "resume": resume,
    "verify": verify,
    "ask": ask,
    "trace": trace,
    "doctor": doctor,
    "count": count,
    "sandbox": sandbox,
    "ranks": ranks,
    "layer": layer,
    "merge": merge,
    "forget": forget,
    "mend": mend,
    "fail": fail,
    "measure": measure,
    "three": three,
    "plane": plane,
    "sketch": sketch,
    "plan": plan,
}


def _read(name: str, arguments: Mapping[str, Any]) -> Knowledge:
    """What a text says that was sent from a page; errors name no file, for there is none."""
    with tempfile.TemporaryDirectory() as place:
        try:
            return read_knowledge(
                as_file(Path(place), name, arguments["suffix"], arguments["text"])
            )
        except DataError as error:
            raise DataError(str(error).replace(f"{place}/", "")) from error


def _numbered(report: Report, number: int) -> Report:
    return lambda text: report(f"{number} of {len(THREE)}: {text}")


def _phase(report: Report) -> Callable[[str, int, int, str], None]:
    """Progress of a long phase in a few words, at most one report a hundredth."""
    last: dict[str, int] = {}

    def advance(phase: str, done: int, total: int, note: str) -> None:
        percent = 100 * done // max(1, total)
        if last.get(phase) != percent:
            last.clear()
            last[phase] = percent
            report(f"{phase}, {percent} %" + (f", {note}" if note else ""))

    return advance
