"""The verb `add`: an adapter that was made elsewhere becomes a memory of the folder.

It is read, checked against this base, proved to move its logits and entered under the id of its
content. What it knows is not known: give the source it was made from, or probes, and the verdict is
taken as after a write; without them it can only be asked by name.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lorewright import __version__
from lorewright.adapters import adapter as adapters
from lorewright.adapters.adapter import Adapter, Proof
from lorewright.errors import ConfigError
from lorewright.files import digest, dump_jsonl, save_json, slug
from lorewright.knowledge.data import Knowledge, Probe
from lorewright.knowledge.lesson import Lesson, LessonConfig, contexts, prepare
from lorewright.knowledge.negatives import unrelated_questions
from lorewright.memory.folder import enter, entries, run_folder, writing
from lorewright.memory.verify import take, usual_metric
from lorewright.memory.write import set_aside_damaged
from lorewright.recall.verify import RecallReport
from lorewright.training.watch import Watch

if TYPE_CHECKING:
    from lorewright.memory.memory import Memory


@dataclass(frozen=True)
class Added:
    """What taking in an adapter came to."""

    name: str
    adapter_id: str
    folder: Path
    proof: Proof
    report: RecallReport
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain data for `--json` and the run's report."""
        norms = self.proof.delta_norms.values()
        return {
            **self.report.to_json(),
            "memory": self.name,
            "adapter": self.adapter_id,
            "folder": str(self.folder),
            "proof": {
                "n_tensors": self.proof.n_tensors,
                "n_modules": len(norms),
                "smallest_change": min(norms),
                "largest_change": max(norms),
                "logits_moved": self.proof.moved,
            },
            "notes": [*self.notes, *self.report.notes],
        }


def add(
    memory: Memory,
    place: Path,
    *,
    name: str = "",
    knowledge: Knowledge | None = None,
    probes: Sequence[Probe] = (),
    metric: str = "",
    watch: Watch | None = None,
) -> Added:
    """Take in an adapter folder; see `Memory.add`."""
    place, watch = Path(place), watch or Watch()
    name = slug(name or place.absolute().name)
    known = knowledge or Knowledge()
    if name in (entries(memory.folder) if memory.folder.is_dir() else ()):
        raise ConfigError(
            f"asked to add {place} as {name!r}; that name is taken; give another with --name."
        )
    found = adapters.load(place)
    made = _lesson(known, probes)
    watch.step("proving that it moves this base")
    proof = prove(memory, found)
    notes = _notes(memory, found)
    adapter = replace(found, base_id=memory.model.name, base_digest=memory.model.digest)
    source = known.digest() if known != Knowledge() else ""
    metric = metric or usual_metric(memory.model)
    with writing(memory.folder, memory.base()):
        identity = adapters.content_id(adapter)
        key = digest([identity, source, name])
        run = run_folder(memory.folder, name, {"key": key, "verb": "add", "source": source})
        save_json(made, run / "lesson.json")
        report = take(memory, name, adapter, source, made, metric, watch)
        folder = memory.folder / "adapters" / identity
        outcome = Added(name, identity, folder, proof, report, tuple(notes))
        set_aside_damaged(folder)
        if not folder.exists():  # the same content may have been written here, with its own card
            card = _card(outcome, found, source)
            adapters.save(replace(adapter, card=card), folder)
        adapters.load(folder)
        if source:
            rows = [*known.documents, *known.facts]
            dump_jsonl(rows, memory.folder / "sources" / f"{source}.jsonl")
        enter(memory.folder, name, identity, source=source, run=run.name)
        save_json(outcome.to_json(), run / "report.json")
        return outcome


def prove(memory: Memory, adapter: Adapter) -> Proof:
    """Show on a question that every tensor is bound and the logits move; raises as `adapter.prove`.

    A few words of a reply are scored as well, so that an adapter on the value path alone shows.
    """
    model = memory.model
    rows = [model.render(q, "I do not know.") for q in unrelated_questions()[:4]]
    batch = model.batch(rows)

    def adapted() -> torch.Tensor:
        with model.using(adapter):
            return model.completion_logits(batch)

    with torch.no_grad():
        return adapters.prove(
            adapter,
            model.network,
            base=lambda: model.completion_logits(batch),
            adapted=adapted,
            base_digest=model.digest,
        )


def _lesson(known: Knowledge, probes: Sequence[Probe]) -> Lesson:
    """What can be asked of it: the probes, or the facts as they are."""
    if probes or not known.facts:
        return Lesson((), tuple(probes), *contexts(known), ())
    config = LessonConfig(views=("given",), negatives=0)
    made = prepare(known, ask_llm=list, closed_book=list, config=config)
    return replace(made, examples=())  # whether these were trained is not known


def _notes(memory: Memory, found: Adapter) -> list[str]:
    if found.base_digest or found.base_id == memory.model.name:
        return []
    named = f"names {found.base_id!r} as its base" if found.base_id else "names no base"
    return [
        f"the adapter {named}, this folder is on {memory.model.name!r}: all shapes fit, which is "
        "all that can be checked."
    ]


def _card(outcome: Added, found: Adapter, source: str) -> dict[str, Any]:
    plain = {k: v for k, v in outcome.to_json().items() if k not in ("outcomes", "folder")}
    packages = ("torch", "transformers", "safetensors")
    versions = {"lorewright": __version__, "python": platform.python_version()}
    return {
        "name": outcome.name,
        "source": source,
        "reason": "added",
        "origin": {"base": found.base_id, "card": found.card},
        "versions": versions | {package: version(package) for package in packages},
        "report": plain,
    }
