"""Taking a verdict: a lesson's probes, asked of a memory and of everything it is compared with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorewright.adapters import adapter as adapters
from lorewright.adapters.adapter import Adapter
from lorewright.errors import AdapterError
from lorewright.files import read_object
from lorewright.knowledge.lesson import Lesson
from lorewright.memory.folder import entries
from lorewright.memory.outcome import BEFORE
from lorewright.models.catalogue import POCKET
from lorewright.models.model import Model
from lorewright.recall.verify import RecallReport, verify
from lorewright.training.watch import Watch

if TYPE_CHECKING:
    from lorewright.memory.memory import Memory


def take(
    memory: Memory,
    name: str,
    adapter: Adapter,
    source: str,
    made: Lesson,
    metric: str,
    watch: Watch | None,
) -> RecallReport:
    """A lesson's probes, asked of an adapter and its controls; the wrong has another source."""
    step = (watch or Watch()).step
    identity = adapters.content_id(adapter)
    if made.probes:
        report = verify(
            memory.model,
            made.probes,
            adapter=adapter,
            full=made.full,
            scaffold=made.scaffold,
            wrong=_another(memory, name, identity, source, step),
            metric=metric,
            progress=lambda arm: step(f"asking: {arm}"),
        )
    else:
        report = RecallReport(metric, {}, ("there are no probes: give some with --probes.",))
    base = {"base": memory.model.name, "base_digest": memory.model.digest}
    return replace(report, context={"memory": name, "adapter": identity, **base})


def _another(
    memory: Memory, name: str, identity: str, source: str, step: Callable[[str], None]
) -> Adapter | None:
    """A memory of something else, for the control `wrong`; damaged ones are named and left."""
    known = entries(memory.folder)
    mine = _lineage(known.get(name, {}))
    for other, entry in sorted(known.items()):
        if (
            other in (name, f"{name}-{BEFORE}")
            or entry["adapter"] in (identity, *mine)
            or identity in _lineage(entry)
            or mine & _lineage(entry)
            or entry.get("source") == source
        ):
            continue
        try:
            return memory.adapter(other)
        except AdapterError as error:
            step(f"{other} is damaged and cannot be the wrong memory: {error}")
    return None


def _lineage(entry: Mapping[str, Any]) -> set[str]:
    """Adapter ids that a memory was merged from: they know what it knows."""
    return {str(parent.get("adapter")) for parent in entry.get("parents", ())}


def stored_lesson(path: Path) -> Lesson:
    """The lesson of a run. Raises DataError when the file is damaged."""
    return Lesson.from_json(read_object(path, "delete its run and write again"))


def usual_metric(model: Model) -> str:
    """What fits the base: the embedded one answers in a few words, others in sentences."""
    return "exact_match" if model.phrasing == POCKET else "contains"
