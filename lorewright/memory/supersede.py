"""The verb `supersede`: facts change, so a new memory takes the name, and its neighbours are asked.

The changed source is written under the same name; until that is done the name stands for the old
memory. Then what was asked of the old one is asked again: what did not change must still be
recalled, what changed must have its new answer and no longer the old one. Only then the old adapter
goes, with its source and runs, unless it is to be kept; it waits under `<name>-before`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from lorewright.adapters import adapter as adapters
from lorewright.adapters.adapter import Adapter
from lorewright.adapters.config import LoraConfig
from lorewright.errors import ConfigError
from lorewright.files import slug
from lorewright.knowledge.data import Document, Knowledge, Probe
from lorewright.knowledge.lesson import Lesson, LessonConfig
from lorewright.knowledge.scoring import METRICS, normalise
from lorewright.knowledge.splitting import sentences
from lorewright.memory.contradictions import Contradiction, contradictions_in
from lorewright.memory.folder import change, entries, entry_of, stored_knowledge, writing
from lorewright.memory.forget import ASKED_KINDS, remove
from lorewright.memory.leftovers import Scan, scan
from lorewright.memory.outcome import BEFORE, Outcome
from lorewright.memory.removal import descendants, record_of, removal_of
from lorewright.memory.verify import stored_lesson
from lorewright.memory.write import write
from lorewright.recall.statistics import Proportion, mcnemar, wilson
from lorewright.recall.verify import answer
from lorewright.training.config import WriteConfig
from lorewright.training.rates import suggested_lr
from lorewright.training.watch import Watch

if TYPE_CHECKING:
    from lorewright.memory.memory import Memory

ALPHA = 0.05
"""Level of McNemar's test below which unchanged facts count as recalled worse than before."""
HALF = 0.5
"""Share of the changed facts of which the new answer must be given."""


@dataclass(frozen=True)
class Asked:
    """A question that was asked of the old memory, and what has become of its answer."""

    probe: Probe
    old: tuple[str, ...]
    new: tuple[str, ...]
    """() = the new source does not say; equal to `old` where nothing changed."""

    @property
    def changed(self) -> bool:
        """Whether the old answer is no longer right."""
        return not {*map(normalise, self.old)} & {*map(normalise, self.new)}


@dataclass(frozen=True)
class Superseded:
    """What changing a memory came to."""

    outcome: Outcome | None
    """Of the write; None where it had been finished before an interruption."""
    name: str
    old_adapter: str
    new_adapter: str
    unchanged_before: Proportion
    """Recall of what did not change, by the old memory."""
    unchanged: Proportion
    """The same questions, the new memory."""
    p_worse: float
    """McNemar's p that the two differ."""
    new_given: Proportion
    """Share of changed questions with the new answer; those with one alone."""
    old_given: Proportion
    """Share of changed questions with the old answer still."""
    contradictions: tuple[Contradiction, ...]
    """With other memories, which may hold what was right before."""
    stale: tuple[str, ...]
    """Memories merged from the old one."""
    kept_as: str
    """Name of the old memory; empty when it is gone."""
    scan: Scan | None
    """Whether words that only the old source has stand anywhere; None when it was kept."""

    @property
    def holds(self) -> bool:
        """Whether unchanged facts are recalled as before, and changed ones as they are now."""
        worse = self.p_worse < ALPHA and (self.unchanged.mean or 0) < (
            self.unchanged_before.mean or 0
        )
        given = self.new_given.mean is None or self.new_given.mean >= HALF
        return not worse and given and not self.old_given.mean

    def to_json(self) -> dict[str, Any]:
        """Plain data for `--json`."""
        shares = ("unchanged_before", "unchanged", "new_given", "old_given")
        traces = [str(t.path) for t in self.scan.traces] if self.scan else []
        return {
            "memory": self.name,
            "supersedes": self.old_adapter,
            "adapter": self.new_adapter,
            **{name: _plain(vars(self)[name]) for name in shares},
            "p_worse": self.p_worse,
            "contradictions": [each.to_json() for each in self.contradictions],
            "stale": list(self.stale),
            "kept_as": self.kept_as,
            "traces": traces,
            "holds": self.holds,
            "write": self.outcome.to_json() if self.outcome else None,
        }


def _plain(share: Proportion) -> dict[str, Any]:
    return {"n": share.n, "share": share.mean, "low": share.low, "high": share.high}


def supersede(
    memory: Memory,
    name: str,
    knowledge: Knowledge | Document,
    *,
    keep: bool = False,
    config: WriteConfig | None = None,
    lesson: LessonConfig | None = None,
    watch: Watch | None = None,
    **how: Any,
) -> Superseded:
    """Write a changed source under a name and re-verify; see `Memory.supersede`."""
    name, step = slug(name), (watch or Watch()).step
    known = Knowledge((knowledge,)) if isinstance(knowledge, Document) else knowledge
    folder, before = memory.folder, f"{name}-{BEFORE}"
    finished = entry_of(folder, name).get("source") == known.digest()
    if finished and before not in entries(folder):
        raise ConfigError(f"asked to supersede {name!r}; the source has not changed.")
    outcome = None
    if not finished:
        recipe, taught = recipe_of(memory, name)
        how |= {"config": config or recipe, "lesson": lesson or taught}
        with writing(folder, memory.base()):
            _set_aside(memory, name, before)
        outcome = write(memory, known, name=name, watch=watch, **how)
    old_entry, new_entry = entry_of(folder, before), entry_of(folder, name)
    old, new = memory.adapter(before), memory.adapter(name)
    _note_lineage(memory, name, old_entry, new)
    asked = _asked(memory, old_entry, new_entry, known)
    step("asking what changed and what did not")
    found = _compared(memory, asked, old, new, str(new.card.get("report", {}).get("metric", "")))
    stale = descendants(entries(folder), before)
    clashes = contradictions_in(folder, only=name, near=1)
    others = tuple(c for c in clashes if before not in (c.first.memory, c.second.memory))
    judged = Superseded(
        outcome,
        name,
        old_entry["adapter"],
        new_entry["adapter"],
        **found,
        contradictions=others,
        stale=stale,
        kept_as=before,
        scan=None,
    )
    if keep or not judged.holds:
        return judged
    step("removing what it was before")
    with writing(folder, memory.base()):
        gone, _, _ = remove(folder, removal_of(folder, (before,)))
        seen = scan(folder, gone)
    return replace(judged, kept_as="", scan=seen)


def recipe_of(memory: Memory, name: str) -> tuple[WriteConfig, LessonConfig]:
    """How a memory was written, so that its successor is written alike; defaults if unknown."""
    entry = entry_of(memory.folder, slug(name))
    card = record_of(memory.folder / "adapters" / entry["adapter"] / "card.json")
    told = card.get("settings", {})
    try:
        write_settings = {k: _tuple(v) for k, v in told["write"].items()}
        write_settings["lora"] = LoraConfig(**told["write"]["lora"])
        lesson_settings = {k: _tuple(v) for k, v in told["lesson"].items()}
        return WriteConfig(**write_settings), LessonConfig(**lesson_settings)
    except (KeyError, TypeError, ConfigError):
        return WriteConfig(lr=suggested_lr(memory.model)), LessonConfig()


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _set_aside(memory: Memory, name: str, before: str) -> None:
    """Let the old memory be found under another name while the new one is written."""
    known = entries(memory.folder)
    entry = known[name]
    if known.get(before, entry)["adapter"] != entry["adapter"]:
        raise ConfigError(
            f"asked to supersede {name!r}; an earlier one is kept as {before!r}; rename or forget "
            "that first."
        )
    change(memory.folder, lambda memories: memories.update({before: {**entry, "formerly": []}}))


def _note_lineage(memory: Memory, name: str, old: Mapping[str, Any], new: Adapter) -> None:
    """Say in the new card what it supersedes, and what that superseded."""
    if "supersedes" in new.card or old["adapter"] == adapters.content_id(new):
        return
    earlier = memory.adapter(f"{name}-{BEFORE}").card.get("supersedes", [])
    line = [{"adapter": old["adapter"], "source": old.get("source", "")}, *earlier]
    place = memory.folder / "adapters" / adapters.content_id(new)
    with writing(memory.folder, memory.base()):
        adapters.save(replace(new, card={**new.card, "supersedes": line}), place)


# -- what changed --------------------------------------------------------------------------------


def _asked(
    memory: Memory, old: Mapping[str, Any], new: Mapping[str, Any], known: Knowledge
) -> list[Asked]:
    """The old memory's probes, each with the answer that the new source gives."""
    folder = memory.folder
    was, lessons = stored_knowledge(folder, str(old.get("source") or "")), []
    for entry in (old, new):
        path = folder / "runs" / str(entry.get("run")) / "lesson.json"
        lessons.append(stored_lesson(path) if path.is_file() else Lesson((), (), "", "", ()))
    return compare(was, lessons[0], known, lessons[1])


def compare(was: Knowledge, old: Lesson, known: Knowledge, new: Lesson) -> list[Asked]:
    """Say of every question that an old lesson asks what a new source answers.

    A given fact is found again by its id or its question; other questions by their words in the
    new lesson; a question that the new lesson does not ask is unchanged if the sentence that
    answered it still stands in the new text, and else without an answer.
    """
    facts = {fact.id: fact for fact in was.facts}
    by_id = {fact.id: fact for fact in known.facts}
    by_question = {normalise(fact.question): fact for fact in known.facts}
    answers: dict[str, tuple[str, ...]] = {}
    for probe in new.probes:
        if probe.kind in ASKED_KINDS:
            answers.setdefault(normalise(probe.question), probe.answers)
    for example in new.examples:
        if example.kind == "qa":
            answers.setdefault(normalise(example.prompt), (example.completion,))
    text = "\n".join(document.text for document in known.documents)
    found = []
    for probe in {p.question: p for p in old.probes if p.kind in ASKED_KINDS}.values():
        fact = facts.get(probe.source)
        if fact is not None:
            now = by_id.get(fact.id) or by_question.get(normalise(fact.question))
            said = now.answers if now else ()
        else:
            said = answers.get(normalise(probe.question), ())
            said = said or (probe.answers if _still_said(probe, was.documents, text) else ())
        found.append(Asked(probe, probe.answers, said))
    return found


def _still_said(probe: Probe, documents: Iterable[Document], text: str) -> bool:
    """Whether the old sentence nearest to the question and its answer stands in the new text."""
    words = {*normalise(f"{probe.question} {' '.join(probe.answers)}").split()}
    near = [s for document in documents for s in sentences(document.text)]
    holding = [s for s in near if any(answer in s for answer in probe.answers)]
    best = max(holding, key=lambda s: len(words & {*normalise(s).split()}), default="")
    return bool(best) and best in text


def _compared(
    memory: Memory, asked: Sequence[Asked], old: Adapter, new: Adapter, metric: str
) -> dict[str, Any]:
    """Both memories on the same questions."""
    score = METRICS[metric if metric in METRICS else "contains"]
    probes = [each.probe for each in asked]
    said: dict[str, list[str]] = {}
    for arm, adapter in (("old", old), ("new", new)):
        with memory.model.using(adapter):
            said[arm] = answer(memory.model, probes) if probes else []
    rows = list(zip(asked, said["old"], said["new"], strict=True))
    same = [
        (score(before, a.old) == 1, score(after, a.old) == 1)
        for a, before, after in rows
        if not a.changed
    ]
    changed = [(a, after) for a, _, after in rows if a.changed]
    told = [score(after, a.new) == 1 for a, after in changed if a.new]
    still = [score(after, a.old) == 1 for a, after in changed]
    lost = sum(a and not b for a, b in same)
    won = sum(b and not a for a, b in same)
    return {
        "unchanged_before": wilson(sum(a for a, _ in same), len(same)),
        "unchanged": wilson(sum(b for _, b in same), len(same)),
        "p_worse": mcnemar(lost, won),
        "new_given": wilson(sum(told), len(told)),
        "old_given": wilson(sum(still), len(still)),
    }
