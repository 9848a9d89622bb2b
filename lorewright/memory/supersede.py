"""The verb `supersede`: facts change, so a new memory takes the name, and is compared with the old.

The changed source is written under the same name; until that is done the name stands for the old
memory. Then the old memory's questions are put again: what did not change must still be recalled,
what changed must have its new answer and no longer the old one. Only then the old state goes, with
its source and runs, unless it is to stay; it waits under `<name>-before`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lorewright.adapters.config import LoraConfig
from lorewright.errors import ConfigError
from lorewright.files import slug
from lorewright.knowledge.data import Document, Knowledge, Probe
from lorewright.knowledge.lesson import Lesson, LessonConfig
from lorewright.knowledge.scoring import METRICS, normalise
from lorewright.knowledge.selfstudy import AskLLM
from lorewright.knowledge.splitting import sentences
from lorewright.memory.contradictions import Contradiction, contradictions_in
from lorewright.memory.folder import BEFORE, RECALLED_KINDS
from lorewright.memory.leftovers import Scan
from lorewright.memory.opened import OpenFolder, Source, as_knowledge
from lorewright.memory.removal import (
    begin,
    descendants,
    finish,
    removal_of,
    remove,
    search,
    unfinished,
)
from lorewright.memory.write import GRADIENT, Outcome, write
from lorewright.recall.statistics import Proportion, mcnemar, wilson
from lorewright.recall.verify import answer, reported
from lorewright.training.config import WriteConfig
from lorewright.training.rates import suggested_lr
from lorewright.training.watch import Watch

ALPHA = 0.05
"""Level of McNemar's test below which unchanged facts count as recalled worse than before."""
HALF = 0.5
"""Share of the changed facts of which the new answer must be given."""


@dataclass(frozen=True)
class Change:
    """A question of the old memory, and what has become of its answer."""

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
    """Whether words that only the old source has stand anywhere; None when it stays."""

    @property
    def holds(self) -> bool:
        """Whether unchanged facts are recalled as before, and changed ones as they are now."""
        worse = self.p_worse < ALPHA and (self.unchanged.mean or 0) < (
            self.unchanged_before.mean or 0
        )
        answered = self.new_given.mean is None or self.new_given.mean >= HALF
        return not worse and answered and not self.old_given.mean

    def to_json(self) -> dict[str, Any]:
        """Plain data for `--json`."""
        shares = ("unchanged_before", "unchanged", "new_given", "old_given")
        return {
            "memory": self.name,
            "supersedes": self.old_adapter,
            "adapter": self.new_adapter,
            **{name: _plain(vars(self)[name]) for name in shares},
            "p_worse": self.p_worse,
            "contradictions": [each.to_json() for each in self.contradictions],
            "stale": list(self.stale),
            "kept_as": self.kept_as,
            "traces": [str(e.path) for e in self.scan.leftovers] if self.scan else [],
            "holds": self.holds,
            "write": self.outcome.to_json() if self.outcome else None,
        }


def _plain(share: Proportion) -> dict[str, Any]:
    return {"n": share.n, "share": share.mean, "low": share.low, "high": share.high}


def supersede(
    memory: OpenFolder,
    name: str,
    source: Source,
    *,
    keep: bool = False,
    config: WriteConfig | None = None,
    lesson: LessonConfig | None = None,
    teacher: AskLLM | None = None,
    metric: str = "",
    watch: Watch | None = None,
) -> Superseded:
    """Write a changed source under the same name, and ask what changed and what did not.

    The old state, source and runs go when what did not change is still recalled and what did has
    its new answer only; otherwise, or with `keep`, they stay as `<name>-before`. The new card has
    the lineage. Raises as `write`, and ConfigError for a source that is the same.
    """
    name, watch = slug(name), watch or Watch()
    step = watch.step
    knowledge, folder, before = as_knowledge(source), memory.folder, f"{slug(name)}-{BEFORE}"
    entry = folder.entry(name)
    finished = entry.get("source") == knowledge.digest()
    if finished and before not in memory.names:
        if unfinished(folder):  # it was interrupted when all but this was done
            with memory.writing():
                step("completed the removal of what it was before")
        raise ConfigError(f"supersede {name!r}: the source has not changed; give the new one.")
    outcome = None
    if not finished:
        own_config, own_lesson = recipe_of(memory, name)
        with memory.writing():
            _set_aside(memory, name, before)
        earlier = folder.card(entry["adapter"]).get("supersedes", [])
        outcome = write(
            memory,
            knowledge,
            name=name,
            overwrite=True,
            method=str(folder.card(entry["adapter"]).get("method", GRADIENT)),
            config=config or own_config,
            lesson=lesson or own_lesson,
            teacher=teacher,
            metric=metric,
            lineage=[{"adapter": entry["adapter"], "source": entry.get("source", "")}, *earlier],
            watch=watch,
        )
    old, new = folder.entry(before), folder.entry(name)
    was = folder.knowledge(old)
    changes = compare(was, folder.lesson(old), knowledge, folder.lesson(new))
    step("asking what changed and what did not")
    clashes = contradictions_in(folder, only=name, near=1)
    result = Superseded(
        outcome,
        name,
        old["adapter"],
        new["adapter"],
        **_compared(memory, changes, before, name, watch),
        contradictions=tuple(c for c in clashes if before not in (c.first.memory, c.second.memory)),
        stale=descendants(folder.entries(), before),
        kept_as=before,
        scan=None,
    )
    if keep or not result.holds:
        return result
    step("removing what it was before")
    with memory.writing():
        if before not in memory.names:  # a removal that was interrupted has been completed
            return replace(result, kept_as="")
        gone, _, _ = remove(folder, begin(folder, removal_of(folder, (before,))))
        seen = search(folder, gone)
        finish(folder)
        return replace(result, kept_as="", scan=seen)


def recipe_of(memory: OpenFolder, name: str) -> tuple[WriteConfig, LessonConfig]:
    """How a memory was written, so that its successor is written alike; defaults if unknown."""
    card = memory.folder.card(memory.folder.entry(slug(name))["adapter"])
    settings = card.get("settings", {})
    try:
        write_settings = _tuples(settings["write"])
        write_settings["lora"] = LoraConfig(**_tuples(settings["write"]["lora"]))
        return WriteConfig(**write_settings), LessonConfig(**_tuples(settings["lesson"]))
    except (KeyError, TypeError, AttributeError, ConfigError):
        return WriteConfig(lr=suggested_lr(memory.model)), LessonConfig()


def _tuples(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}


def _set_aside(memory: OpenFolder, name: str, before: str) -> None:
    """Give the old memory another name while the new one is written."""
    entries = memory.folder.entries()
    entry = entries[name]
    if entries.get(before, entry)["adapter"] != entry["adapter"]:
        raise ConfigError(
            f"supersede {name!r}: an earlier one is still there as {before!r}; rename or forget "
            "that first."
        )
    memory.folder.change(lambda names: names.update({before: {**entry, "formerly": []}}))


# -- what changed --------------------------------------------------------------------------------


def compare(was: Knowledge, old: Lesson, now: Knowledge, new: Lesson) -> list[Change]:
    """For every question of an old lesson, what a new source answers.

    A given fact is identified by its id or its question, other questions by their words in the new
    lesson; a question that the new lesson lacks is unchanged if the sentence that answered it still
    stands in the new text, and else without an answer.
    """
    facts = {fact.id: fact for fact in was.facts}
    by_id = {fact.id: fact for fact in now.facts}
    by_question = {normalise(fact.question): fact for fact in now.facts}
    answers: dict[str, tuple[str, ...]] = {}
    for probe in new.probes:
        if probe.kind in RECALLED_KINDS:
            answers.setdefault(normalise(probe.question), probe.answers)
    for example in new.examples:
        if example.kind == "qa":
            answers.setdefault(normalise(example.prompt), (example.completion,))
    text = "\n".join(document.text for document in now.documents)
    changes = []
    for probe in {p.question: p for p in old.probes if p.kind in RECALLED_KINDS}.values():
        fact = facts.get(probe.source)
        if fact is not None:
            same = by_id.get(fact.id) or by_question.get(normalise(fact.question))
            current = same.answers if same else ()
        else:
            current = answers.get(normalise(probe.question), ())
            current = current or (probe.answers if _stands(probe, was.documents, text) else ())
        changes.append(Change(probe, probe.answers, current))
    return changes


def _stands(probe: Probe, documents: Iterable[Document], text: str) -> bool:
    """Whether the old sentence nearest to the question and its answer stands in the new text."""
    words = {*normalise(f"{probe.question} {' '.join(probe.answers)}").split()}
    every = [s for document in documents for s in sentences(document.text)]
    answering = [s for s in every if any(answer in s for answer in probe.answers)]
    best = max(answering, key=lambda s: len(words & {*normalise(s).split()}), default="")
    return bool(best) and best in text


def _compared(
    memory: OpenFolder, changes: Sequence[Change], before: str, name: str, watch: Watch
) -> dict[str, Any]:
    """Both memories on the same questions."""
    metric = str(memory.folder.card(memory.names[name]).get("report", {}).get("metric"))
    score = METRICS[metric if metric in METRICS else "contains"]
    probes = [each.probe for each in changes]
    outputs: dict[str, list[str]] = {}
    for each in (before, name):
        with memory.state(each).on(memory.model):
            progress = reported(watch, f"asking {each}", len(probes))
            outputs[each] = answer(memory.model, probes, progress=progress) if probes else []
    rows = list(zip(changes, outputs[before], outputs[name], strict=True))
    same = [
        (score(old, change.old) == 1, score(new, change.old) == 1)
        for change, old, new in rows
        if not change.changed
    ]
    changed = [(change, new) for change, _, new in rows if change.changed]
    new_given = [score(text, change.new) == 1 for change, text in changed if change.new]
    old_given = [score(text, change.old) == 1 for change, text in changed]
    lost, won = sum(a and not b for a, b in same), sum(b and not a for a, b in same)
    return {
        "unchanged_before": wilson(sum(a for a, _ in same), len(same)),
        "unchanged": wilson(sum(b for _, b in same), len(same)),
        "p_worse": mcnemar(lost, won),
        "new_given": wilson(sum(new_given), len(new_given)),
        "old_given": wilson(sum(old_given), len(old_given)),
    }
