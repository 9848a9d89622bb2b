"""The verb `forget`: a memory and all that came of its source leave the folder, and that is proved.

What goes is worked out and taken away by `removal`. Then two questions: does the base, or any
memory that is left, recall what was forgotten better than the base does; and do words of the source
stand in any file, or its weights? A removal that was interrupted is completed by the next `forget`
of it, with the whole proof.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any

from lorewright.errors import AdapterError
from lorewright.files import save_json, slug
from lorewright.knowledge.data import Probe
from lorewright.knowledge.scoring import METRICS
from lorewright.memory.folder import REPORT_FILE, Folder
from lorewright.memory.leftovers import Scan, Wanted
from lorewright.memory.opened import OpenFolder
from lorewright.memory.removal import (
    Removal,
    begin,
    finish,
    plan_removal,
    remove,
    search,
    unfinished,
)
from lorewright.memory.verify import metric_of
from lorewright.recall.statistics import Estimate, estimate
from lorewright.recall.verify import answer, reported
from lorewright.training.watch import Watch

N_PROBES = 100
"""At most so many probes are put to each memory again."""
N_OTHERS = 64
"""At most so many of the remaining memories; the record says how many there were."""


@dataclass(frozen=True)
class Forgotten:
    """What was removed, and the proof."""

    removal: Removal
    n_blanked: int
    """Records of others in which words of the source stood, and files derived from it."""
    wanted: Wanted
    shared: tuple[str, ...]
    """Runs of words that others were written from as well; not searched for."""
    scan: Scan
    before: Estimate | None
    """Recall of the forgotten probes by the memory itself, before; None where it had none."""
    base: Estimate | None
    others: Mapping[str, Estimate]
    n_others: int
    """Memories that are left; `others` has all of them, or N_OTHERS."""

    @property
    def above_base(self) -> tuple[str, ...]:
        """Memories that recall the forgotten better than the base's interval allows.

        Not those that it was merged from: they stay by intention, and `removal.kept` lists them.
        """
        top = self.base.high if self.base else None
        others = {n: e for n, e in self.others.items() if n not in self.removal.parents}
        means = ((name, each.mean) for name, each in others.items())
        return tuple(n for n, mean in means if None not in (mean, top) and mean > top)  # type: ignore[operator]

    @property
    def holds(self) -> bool:
        """Whether no file holds the text and nothing left recalls it beyond the base's level."""
        return not self.scan.leftovers and not self.above_base

    def to_json(self) -> dict[str, Any]:
        """Plain data; words of the source may be in it, so it is printed, not stored."""
        texts = {"given": self.wanted.n_texts, "too_short": self.wanted.n_short}
        texts |= {"runs_of_words": len(self.wanted.runs), "shared": len(self.shared)}
        left = [{"file": str(e.path), "words": " ".join(e.words)} for e in self.scan.leftovers]
        recall = {"before": _plain(self.before), "base": _plain(self.base)}
        others = {name: _plain(each) for name, each in self.others.items()}
        return {
            **asdict(self.removal),
            "blanked": self.n_blanked,
            "texts": texts,
            "files": {"n": self.scan.n_files, "bytes": self.scan.n_bytes, "traces": left},
            "recall": {**recall, "others": others, "n_others": self.n_others},
            "above_base": list(self.above_base),
            "holds": self.holds,
        }


def _plain(share: Estimate | None) -> dict[str, Any] | None:
    return None if share is None else share.to_json()


def forget(
    memory: OpenFolder, name: str, *, with_merged: bool = False, watch: Watch | None = None
) -> Forgotten:
    """Remove a memory with all that came of its source, and prove it gone.

    States, sources, runs, a teacher's replies, its words in records of others, and what was merged
    from it; what another name still uses stays. The proof: the base and every memory left recall
    what was forgotten no better than the base does, and no file holds its words or its weights.
    Raises UnknownMemory, ConfigError when memories were merged from it and `with_merged` is off,
    DataError for links among what goes, StorageError for what the disk does not let go.
    """
    name, watch, folder = slug(name), watch or Watch(), memory.folder
    step = watch.step
    with folder.writing(memory.base()):
        journal = unfinished(folder)
        if journal and name not in journal.removal.names:
            step(f"completing the removal of {journal.removal.names[0]}")
            remove(folder, journal)
            finish(folder)
            journal = None
        journal = journal or begin(folder, plan_removal(folder, name, with_merged=with_merged))
        removal = journal.removal
        probes = journal.probes[:: max(1, -(-len(journal.probes) // N_PROBES))]
        metric = metric_of(memory, memory.names.get(name, ""))
        step("asking what it knows")
        before = _before(memory, name, probes, metric, watch)
        step("removing")
        sought, shared, n_blanked = remove(folder, journal)
        step("searching every file")
        seen = search(folder, sought)
        base, others = _ask_those_left(memory, probes, metric, watch)
        proof = Forgotten(
            removal,
            n_blanked,
            sought,
            tuple(" ".join(run) for run in sorted(shared)),
            seen,
            before,
            base,
            others,
            len(folder.entries()),
        )
        _record(folder, proof)
        finish(folder)
    for identity in removal.adapters:
        memory.loaded.pop(identity, None)
    return proof


# -- the proof -----------------------------------------------------------------------------------


def _before(
    memory: OpenFolder, name: str, probes: Sequence[Probe], metric: str, watch: Watch
) -> Estimate | None:
    if not probes or name not in memory.names:
        return None
    try:
        return _recall(memory, probes, metric, watch, name)
    except AdapterError:  # damaged: it is forgotten all the same
        return None


def _ask_those_left(
    memory: OpenFolder, probes: Sequence[Probe], metric: str, watch: Watch
) -> tuple[Estimate | None, dict[str, Estimate]]:
    """Recall of the forgotten probes by the base and by what is left, evenly spread."""
    if not probes:
        return None, {}
    step = watch.step
    step("asking the base")
    base, others, names = _recall(memory, probes, metric, watch), {}, sorted(memory.names)
    for other in names[:: max(1, -(-len(names) // N_OTHERS))]:
        step(f"asking {other}")
        try:
            others[other] = _recall(memory, probes, metric, watch, other)
        except AdapterError as error:
            step(f"{other} is damaged and was left out: {error}")
    return base, others


def _recall(
    memory: OpenFolder, probes: Sequence[Probe], metric: str, watch: Watch, name: str = ""
) -> Estimate:
    """The share of probes that a memory answers, or the base alone."""
    with memory.state(name).on(memory.model) if name else nullcontext():
        phase = f"asking {name or 'the base'}"
        progress = reported(watch, phase, len(probes))
        outputs = answer(memory.model, probes, metric=metric, progress=progress)
    return estimate(
        [METRICS[metric](text, probe.answers) for text, probe in zip(outputs, probes, strict=True)]
    )


def _record(folder: Folder, proof: Forgotten) -> None:
    """Store that something was forgotten and how that was proved; never what."""
    plain = proof.to_json()
    for trace in plain["files"]["traces"]:
        del trace["words"]
    about = {"verb": "forget", "name": f"forget {plain['names'][0]}"}
    save_json(plain, folder.new_run("forget", about) / REPORT_FILE)
