"""The verb `forget`: a memory and all that came of its source leave the folder, and that is proved.

What goes: its adapters (earlier ones of its name too), its source, its runs with lessons and
checkpoints, what a teacher said of it, its words in the records of others, and what was merged from
it. What another name still uses stays, and is named. Then two questions: does the base, or any
memory that is left, recall what was forgotten better than the base does; and do words of the
source stand in any file?

A removal is noted before it begins; one that was interrupted is completed by the next `forget`.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorewright.adapters.adapter import Adapter
from lorewright.errors import AdapterError, DataError, StorageError
from lorewright.files import digest, dump_jsonl, load_jsonl, read_object, save_json, slug
from lorewright.knowledge.data import Knowledge, Probe
from lorewright.knowledge.lesson import Lesson
from lorewright.knowledge.negatives import unrelated_questions
from lorewright.knowledge.scoring import METRICS
from lorewright.knowledge.selfstudy import prompts_of
from lorewright.knowledge.splitting import sentences
from lorewright.memory.folder import change, entries, stored_knowledge, writing
from lorewright.memory.leftovers import Run, Scan, Wanted, found, scan, wanted, words_of
from lorewright.memory.removal import Removal, plan_removal, record_of
from lorewright.memory.verify import stored_lesson, usual_metric
from lorewright.recall.statistics import Estimate, mean_interval, wilson
from lorewright.recall.verify import answer
from lorewright.training.watch import Watch

if TYPE_CHECKING:
    from lorewright.memory.memory import Memory

JOURNAL = "forgetting.json"
BLANK = "[forgotten]"
N_PROBES = 100
"""At most so many probes are asked again of each memory."""
N_OTHERS = 64
"""At most so many of the remaining memories are asked; the record says how many there were."""
ASKED_KINDS = ("efficacy", "paraphrase", "verbatim", "reverse", "multihop")
DERIVED = ("index",)
"""Folders that are made of sources and lessons again when they are gone."""
OWN_FILES = ("lesson.json", "config.json")
"""Of a run: what it was written from, which no other memory has a part in."""


@dataclass(frozen=True)
class Forgotten:
    """What was removed, and the proof."""

    removal: Removal
    n_blanked: int
    """Records of others in which words of the source stood, and files derived from it."""
    wanted: Wanted
    shared: tuple[str, ...]
    """Runs of words that stand in what others were written from as well; not looked for."""
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

        Not those that it was merged from: they stay by intention, and `removal.kept` says so.
        """
        top = self.base.high if self.base else None
        others = {n: e for n, e in self.others.items() if n not in self.removal.parents}
        means = ((name, each.mean) for name, each in others.items())
        return tuple(n for n, mean in means if None not in (mean, top) and mean > top)  # type: ignore[operator]

    @property
    def holds(self) -> bool:
        """Whether no file holds the text and nothing left recalls it beyond the base's level."""
        return not self.scan.traces and not self.above_base

    def to_json(self) -> dict[str, Any]:
        """Plain data; words that were found are in it, so it is printed, not kept."""
        texts = {"given": self.wanted.n_texts, "too_short": self.wanted.n_short}
        texts |= {"runs_of_words": len(self.wanted.runs), "shared": len(self.shared)}
        traces = [{"file": str(t.path), "words": " ".join(t.words)} for t in self.scan.traces]
        recall = {"before": _plain(self.before), "base": _plain(self.base)}
        others = {name: _plain(each) for name, each in self.others.items()}
        return {
            **asdict(self.removal),
            "blanked": self.n_blanked,
            "texts": texts,
            "files": {"n": self.scan.n_files, "bytes": self.scan.n_bytes, "traces": traces},
            "recall": {**recall, "others": others, "n_others": self.n_others},
            "above_base": list(self.above_base),
            "holds": self.holds,
        }


def _plain(estimate: Estimate | None) -> dict[str, Any] | None:
    if estimate is None:
        return None
    return {"n": estimate.n, "recall": estimate.mean, "low": estimate.low, "high": estimate.high}


def forget(
    memory: Memory, name: str, *, with_merged: bool = False, watch: Watch | None = None
) -> Forgotten:
    """Remove a memory with all that came of it, and prove it gone; see `Memory.forget`."""
    name, step = slug(name), (watch or Watch()).step
    folder = memory.folder
    with writing(folder, memory.base()):
        removal = _unfinished(folder)
        if removal and name not in removal.names:
            step(f"completing the removal of {removal.names[0]}")
            remove(folder, removal)
            removal = None
        removal = removal or plan_removal(folder, name, with_merged=with_merged)
        probes, metric = _probes(folder, removal), _metric(memory, name)
        step("asking what it knows")
        before = _before(memory, name, probes, metric)
        step("removing")
        asked, shared, n_blanked = remove(folder, removal)
        step("looking through every file")
        seen = scan(folder, asked)
        base, others = _ask_those_left(memory, probes, metric, step)
        proof = Forgotten(
            removal,
            n_blanked,
            asked,
            tuple(" ".join(run) for run in sorted(shared)),
            seen,
            before,
            base,
            others,
            len(entries(folder)),
        )
        _record(folder, proof)
        return proof


# -- removing it ---------------------------------------------------------------------------------


def _unfinished(folder: Path) -> Removal | None:
    path = folder / JOURNAL
    if not path.exists():
        return None
    plain = read_object(path, "delete it and forget the memory again")
    try:
        return Removal(**{key: tuple(value) for key, value in plain.items()})
    except TypeError as error:
        raise DataError(
            f"{path} is damaged ({error}); delete it and forget the memory again."
        ) from error


def remove(folder: Path, removal: Removal) -> tuple[Wanted, frozenset[Run], int]:
    """Take a memory out of its folder; the caller holds the lock, and looks whether it is gone.

    Names first, so that nobody is sent to what goes; the source last, so that it can be redone.
    Returns what is to be looked for, what others share, and how many records were blanked.
    """
    asked = wanted(_texts(folder, removal))
    save_json(removal, folder / JOURNAL)
    change(folder, lambda memories: [memories.pop(name, None) for name in removal.names])
    shared = {
        trace.words for trace in scan(folder, asked, files=_of_others(folder, removal)).traces
    }
    shared |= found("\n".join(unrelated_questions()), asked)
    shared |= {run for run in asked.runs if len(run) == 1 and run[0] in _vocabulary()}
    asked = asked.without({*shared, *wanted(removal.names).runs})
    n_blanked = _blank(folder, removal, asked)
    for kind, names in (("adapters", removal.adapters), ("runs", removal.runs)):
        for name in names:
            shutil.rmtree(folder / kind / Path(name).name, ignore_errors=True)
    for source in removal.sources:
        (folder / "sources" / f"{Path(source).name}.jsonl").unlink(missing_ok=True)
    for name in DERIVED:
        shutil.rmtree(folder / name, ignore_errors=True)
    (folder / JOURNAL).unlink(missing_ok=True)
    return asked, frozenset(shared), n_blanked


def _of_others(folder: Path, removal: Removal) -> list[Path]:
    """The sources and lessons that other memories were written from."""
    runs = [p for p in folder.glob("runs/*") if p.name not in removal.runs]
    about = [*entries(folder).values(), *(record_of(run / "config.json") for run in runs)]
    used = {str(each.get("source")) for each in about}
    sources = [p for p in folder.glob("sources/*.jsonl") if p.stem in used]
    return [*sources, *(run / name for run in runs for name in OWN_FILES)]


@cache
def _vocabulary() -> frozenset[str]:
    """Single words that this program itself writes, like `notes`: in a record they say nothing."""
    sources = sorted(Path(__file__).parents[1].rglob("*.py"))
    return frozenset(word for path in sources for word in words_of(path.read_text("utf-8")))


def _blank(folder: Path, removal: Removal, asked: Wanted) -> int:
    """Take the words out of what was recorded elsewhere: replies of a teacher, others' verdicts."""
    n_blanked = 0
    rest = [p for p in folder.glob("runs/*/*.json*") if p.parent.name not in removal.runs]
    for path in [*rest, *folder.glob("*.jsonl")]:
        lines = path.suffix == ".jsonl"
        if path.name in OWN_FILES or not (lines or found(path.read_bytes(), asked)):
            continue
        if lines:
            rows = load_jsonl(path)
            told = _told(folder, removal, {str(row.get("model")) for row in rows})
            kept = [
                row
                for row in rows
                if row.get("key") not in told and not found(json.dumps(row), asked)
            ]
            if len(kept) < len(rows):
                _replace_lines(path, kept)
                n_blanked += len(rows) - len(kept)
        else:
            save_json(_blanked(read_object(path, "delete its run"), asked), path)
            n_blanked += 1
    return n_blanked


def _told(folder: Path, removal: Removal, models: set[str]) -> set[str]:
    """Keys under which a teacher's replies on these sources are kept."""
    return {
        digest([model, prompt])
        for source in removal.sources
        for document in _known(folder, source).documents
        for prompt in prompts_of(document)
        for model in models
    }


def _replace_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    if path.name != "teacher.jsonl":
        dump_jsonl(rows, path)
        return
    # its reader knows its own lines by how they begin, and by their being ASCII
    part = path.with_name(f".{path.name}.part")
    part.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="ascii")
    part.replace(path)


def _blanked(value: Any, asked: Wanted) -> Any:
    if isinstance(value, str):
        return BLANK if found(value, asked) else value
    if isinstance(value, list):
        return [_blanked(each, asked) for each in value]
    if isinstance(value, dict):
        return {key: _blanked(each, asked) for key, each in value.items()}
    return value


# -- the proof -----------------------------------------------------------------------------------


def _texts(folder: Path, removal: Removal) -> Iterator[str]:
    """Everything that the sources say and that was made of it, as far as it is still there."""
    for source in removal.sources:
        known = _known(folder, source)
        for document in known.documents:
            yield document.title
            yield from sentences(document.text)
        for fact in known.facts:
            yield from (fact.question, *fact.answers, *fact.paraphrases)
    for made in _lessons(folder, removal):
        for example in made.examples:
            yield example.prompt
            # to a question that it does not answer, the base's own reply
            yield from () if example.kind == "unknown" else sentences(example.completion)
        for probe in made.probes:
            yield from (probe.question, *probe.answers)


def _known(folder: Path, source: str) -> Knowledge:
    try:
        return stored_knowledge(folder, source)
    except DataError:  # gone or damaged: it goes all the same
        return Knowledge()


def _lessons(folder: Path, removal: Removal) -> Iterator[Lesson]:
    for run in removal.own_runs:
        with suppress(DataError, StorageError):  # gone or damaged: it goes all the same
            yield stored_lesson(folder / "runs" / run / "lesson.json")


def _probes(folder: Path, removal: Removal) -> tuple[Probe, ...]:
    """What it was asked, evenly spread over at most N_PROBES."""
    every = {
        probe.question: probe
        for made in _lessons(folder, removal)
        for probe in made.probes
        if probe.kind in ASKED_KINDS
    }
    step = max(1, -(-len(every) // N_PROBES))
    return tuple(every.values())[::step]


def _metric(memory: Memory, name: str) -> str:
    entry = entries(memory.folder).get(name, {})
    card = record_of(memory.folder / "adapters" / str(entry.get("adapter")) / "card.json")
    told = card.get("report", {}).get("metric")
    return told if told in METRICS else usual_metric(memory.model)


def _before(memory: Memory, name: str, probes: Sequence[Probe], metric: str) -> Estimate | None:
    if not probes or name not in entries(memory.folder):
        return None
    try:
        return _recalled(memory, probes, metric, memory.adapter(name))
    except AdapterError:  # damaged: it is forgotten all the same
        return None


def _ask_those_left(
    memory: Memory, probes: Sequence[Probe], metric: str, step: Callable[[str], None]
) -> tuple[Estimate | None, dict[str, Estimate]]:
    """Recall of the forgotten probes by the base and by what is left, evenly spread."""
    if not probes:
        return None, {}
    step("asking the base")
    base = _recalled(memory, probes, metric, None)
    names = sorted(entries(memory.folder))
    others = {}
    for other in names[:: max(1, -(-len(names) // N_OTHERS))]:
        step(f"asking {other}")
        try:
            others[other] = _recalled(memory, probes, metric, memory.adapter(other))
        except AdapterError as error:
            step(f"{other} is damaged and was not asked: {error}")
    return base, others


def _recalled(
    memory: Memory, probes: Sequence[Probe], metric: str, adapter: Adapter | None
) -> Estimate:
    with memory.model.using(*([adapter] if adapter else [])):
        outputs = answer(memory.model, probes)
    score = METRICS[metric]
    scores = [score(said, p.answers) for said, p in zip(outputs, probes, strict=True)]
    if all(value in (0, 1) for value in scores):
        return wilson(round(sum(scores)), len(scores))
    return mean_interval(scores)


def _record(folder: Path, proof: Forgotten) -> None:
    """Keep that something was forgotten and how that was proved; never what."""
    plain = proof.to_json()
    for trace in plain["files"]["traces"]:
        del trace["words"]
    stem = f"{time.strftime('%Y%m%d-%H%M%S')}-forget"
    names = (f"{stem}-{i}" if i else stem for i in range(1000))
    run = next(p for p in map((folder / "runs").joinpath, names) if not p.exists())
    save_json({"verb": "forget", "name": f"forget {plain['names'][0]}"}, run / "config.json")
    save_json(plain, run / "report.json")
