"""The verb `add`: an adapter that was made elsewhere becomes a memory of the folder.

It is read, checked against this base, proved to move its logits and entered under the id of its
content. What it knows is not known: with the source it was made from, or with probes, the verdict
is taken as after a write; without them it only answers by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lorewright.adapters import adapter as adapters
from lorewright.adapters.adapter import Adapter
from lorewright.adapters.proof import Proof, delta_norms, unchanged
from lorewright.errors import ConfigError
from lorewright.files import digest, save_json, slug
from lorewright.knowledge.data import Knowledge, Probe
from lorewright.knowledge.lesson import Lesson, LessonConfig, contexts, prepare
from lorewright.memory.commit import commit
from lorewright.memory.folder import LESSON_FILE, check_name
from lorewright.memory.opened import OpenFolder
from lorewright.memory.verify import usual_metric, verdict
from lorewright.models.model import Model
from lorewright.recall.verify import RecallReport
from lorewright.training.watch import Watch
from lorewright.writers.adapter import AdapterState
from lorewright.writers.writer import State


@dataclass(frozen=True)
class Added:
    """What adding an adapter came to."""

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
    memory: OpenFolder,
    place: Path | str,
    *,
    name: str = "",
    knowledge: Knowledge | None = None,
    probes: Sequence[Probe] = (),
    metric: str = "",
    watch: Watch | None = None,
) -> Added:
    """Enter an adapter folder that was made elsewhere, once it is proved to move this base.

    `knowledge` is what it was made from, `probes` what it can be asked: without either there is no
    verdict. Raises AdapterError, WrongBase or NoEffect for what cannot be bound or does nothing,
    ConfigError for a name that is taken.
    """
    place, watch = Path(place), watch or Watch()
    name = slug(name or place.absolute().name)
    knowledge = knowledge or Knowledge()
    check_name(name, memory.model.name)
    if name in memory.names:
        raise ConfigError(f"add {place} as {name!r}: that name is taken; give another with --name.")
    original = adapters.load(place)
    lesson = _lesson(knowledge, probes)
    notes = _notes(original, memory.model)
    watch.step("proving that it moves this base")
    AdapterState(original).check(memory.model)
    model = memory.model
    state = AdapterState(replace(original, base_id=model.name, base_digest=model.digest, card={}))
    source = knowledge.digest() if knowledge != Knowledge() else ""
    metric = metric or usual_metric(model)
    with memory.writing():
        key = digest([state.id, source, name])
        run = memory.folder.run(name, {"key": key, "verb": "add", "source": source})
        save_json(lesson, run / LESSON_FILE)

        def judge(stored: State, moved: float) -> tuple[Added, dict[str, Any]]:
            norms = delta_norms(original)
            report = verdict(memory, name, stored, source, lesson, metric, watch)
            outcome = Added(
                name,
                stored.id,
                memory.folder.state_path(stored.id),
                Proof(len(original.tensors), norms, moved),
                report,
                notes,
            )
            origin = {"base": original.base_id, "card": original.card}
            # The same content may have been written here, with a card that says more.
            return outcome, {"reason": "added", "origin": origin, **memory.folder.card(stored.id)}

        return commit(memory, state, lesson, judge, name=name, run=run, knowledge=knowledge)


def _lesson(knowledge: Knowledge, probes: Sequence[Probe]) -> Lesson:
    """The questions that it can answer: the probes, or the facts as they are."""
    if probes or not knowledge.facts:
        return Lesson((), tuple(probes), *contexts(knowledge), ())
    config = LessonConfig(views=("given",), negatives=0)
    lesson = prepare(knowledge, ask_llm=list, closed_book=list, config=config)
    return replace(lesson, examples=())  # whether these were trained is not known


def _notes(adapter: Adapter, model: Model) -> tuple[str, ...]:
    notes = [f"read as plain LoRA of one rank: {note}." for note in adapter.notes]
    if dead := unchanged(adapter):
        notes.append(
            f"{len(dead)} of {len(adapter.modules)} modules change nothing, the first is "
            f"{dead[0]!r}: no gradient reached them."
        )
    if not adapter.base_digest and adapter.base_id != model.name:
        named = f"names {adapter.base_id!r} as its base" if adapter.base_id else "names no base"
        notes.append(
            f"the adapter {named}, this folder is on {model.name!r}: all shapes fit, which is all "
            "that can be checked."
        )
    return tuple(notes)
