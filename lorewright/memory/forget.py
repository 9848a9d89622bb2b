"""The verb `forget`: a memory and all that came of its source leave the folder, and that is proved.

What goes: its states (earlier ones of its name too), its source, its runs with lessons and
checkpoints, a teacher's replies on it, its words in the records of others, and what was merged from
it. What another name still uses stays, and is listed. Then two questions: does the base, or any
memory that is left, recall what was forgotten better than the base does; and do words of the source
stand in any file?

A removal is noted before it begins; one that was interrupted is completed by the next `forget`.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from lorewright.errors import AdapterError, ConfigError, DataError, StorageError
from lorewright.files import digest, dump_jsonl, load_jsonl, read_object, save_json, slug
from lorewright.knowledge.data import Knowledge, Probe
from lorewright.knowledge.lesson import Lesson
from lorewright.knowledge.negatives import unrelated_questions
from lorewright.knowledge.scoring import METRICS
from lorewright.knowledge.selfstudy import prompts_of
from lorewright.knowledge.splitting import sentences
from lorewright.memory.compare import estimate
from lorewright.memory.folder import (
    CARD_FILE,
    CONFIG_FILE,
    LESSON_FILE,
    REPORT_FILE,
    Folder,
    readable,
)
from lorewright.memory.leftovers import Run, Scan, Wanted, runs_in, scan, wanted, words_of
from lorewright.memory.opened import OpenFolder
from lorewright.memory.route import DERIVED
from lorewright.memory.verify import metric_of
from lorewright.recall.statistics import Estimate
from lorewright.recall.verify import answer
from lorewright.training.watch import Watch

JOURNAL = "forgetting.json"
BLANK = "[forgotten]"
TEACHER_FILE = "teacher.jsonl"
N_PROBES = 100
"""At most so many probes are asked again of each memory."""
N_OTHERS = 64
"""At most so many of the remaining memories are asked; the record says how many there were."""
RECALLED_KINDS = ("efficacy", "paraphrase", "verbatim", "reverse", "multihop")
OWN_FILES = (LESSON_FILE, CONFIG_FILE)
"""Of a run: what it was written from, which no other memory has a part in."""
_STAMP = re.compile(r"\d{8}-\d{6}-")


@dataclass(frozen=True)
class Removal:
    """What goes when a name is forgotten."""

    names: tuple[str, ...]
    """The name itself first, then what was merged from it."""
    adapters: tuple[str, ...]
    """Folders of states: ids, and damaged ones set aside."""
    sources: tuple[str, ...]
    runs: tuple[str, ...]
    own_runs: tuple[str, ...]
    """The runs of the name itself, also those that stay; a merge's has other memories' probes."""
    kept: tuple[str, ...]
    """What stays and why, in sentences."""
    parents: tuple[str, ...] = ()
    """Memories that it was merged from; they stay, and go on knowing it."""


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
    if share is None:
        return None
    return {"n": share.n, "recall": share.mean, "low": share.low, "high": share.high}


def forget(
    memory: OpenFolder, name: str, *, with_merged: bool = False, watch: Watch | None = None
) -> Forgotten:
    """Remove a memory with all that came of its source, and prove it gone.

    States, sources, runs, a teacher's replies, its words in records of others, and what was merged
    from it; what another name still uses stays. The proof: the base and every memory left recall
    what was forgotten no better than the base does, and no file holds its words. Raises
    UnknownMemory, and ConfigError when memories were merged from it and `with_merged` is off.
    """
    name, step, folder = slug(name), (watch or Watch()).step, memory.folder
    with memory.writing():
        removal = _unfinished(folder)
        if removal and name not in removal.names:
            step(f"completing the removal of {removal.names[0]}")
            remove(folder, removal)
            removal = None
        removal = removal or plan_removal(folder, name, with_merged=with_merged)
        probes = _probes(folder, removal)
        metric = metric_of(memory, memory.names.get(name, ""))
        step("asking what it knows")
        before = _before(memory, name, probes, metric)
        step("removing")
        sought, shared, n_blanked = remove(folder, removal)
        step("searching every file")
        seen = scan(folder.path, sought)
        base, others = _ask_those_left(memory, probes, metric, step)
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
    for identity in removal.adapters:
        memory.loaded.pop(identity, None)
    return proof


# -- what goes -----------------------------------------------------------------------------------


def plan_removal(folder: Folder, name: str, *, with_merged: bool = False) -> Removal:
    """Return what forgetting a name would remove; nothing is touched.

    Raises UnknownMemory, and ConfigError when memories were merged from it and `with_merged` is
    off.
    """
    folder.entry(name)
    merged = descendants(folder.entries(), name)
    if merged and not with_merged:
        were = "memory was" if len(merged) == 1 else "memories were"
        raise ConfigError(
            f"forget {name!r}: {len(merged)} {were} merged from it ({', '.join(merged[:6])}) and "
            "hold it too; forget them with it (--with-merged), or keep all."
        )
    return removal_of(folder, (name, *merged))


def removal_of(folder: Folder, names: tuple[str, ...]) -> Removal:
    """What goes with these names, of which those after the first were merged from it."""
    entries, (name, *merged) = folder.entries(), names
    going = [entries[n] for n in names]
    staying = {n: entry for n, entry in entries.items() if n not in names}
    aliases = {*names, *(old for entry in going for old in entry.get("formerly", ()))} - {*staying}
    used = {
        key: {str(e.get(key)) for e in staying.values()} for key in ("adapter", "source", "run")
    }
    named = {entry["adapter"] for entry in entries.values()}
    states = [p for p in folder.path.glob("adapters/*") if p.name not in named]
    unnamed = _records(states, CARD_FILE)
    unused = [p for p in folder.path.glob("runs/*") if p.name not in used["run"]]
    runs = _records(unused, CONFIG_FILE)

    def sources_of(entries: Iterable[Mapping[str, Any]], of: set[str]) -> set[str]:
        """Sources of some entries, and of what was written under some names before."""
        before = (a for a in (*unnamed.values(), *runs.values()) if a["name"] in of)
        sources = {str(about.get("source")) for about in (*entries, *before)}
        return {source for source in sources if folder.source_path(source).is_file()}

    def among(
        places: Mapping[str, Mapping[str, Any]], names: set[str], sources: set[str]
    ) -> set[str]:
        return {
            place
            for place, about in places.items()
            if about["name"] in names or about.get("source") in sources
        }

    own = aliases - {*merged}
    sources = sources_of(going, aliases)
    free, own_free = sources - used["source"], sources_of([entries[name]], own) - used["source"]
    gone = {entry["adapter"] for entry in going}
    parents = tuple(p["name"] for p in entries[name].get("parents", ()) if p["name"] in staying)
    going_runs = {str(entry.get("run")) for entry in going} & {*runs}
    own_runs = {str(entries[name].get("run"))} - {"", "None"}
    return Removal(
        names,
        tuple(sorted((gone - used["adapter"]) | among(unnamed, aliases, free))),
        tuple(sorted(free)),
        tuple(sorted(among(runs, aliases, free) | going_runs)),
        tuple(sorted(among(runs, own, own_free) | own_runs)),
        (
            *_reasons(staying, "adapter", gone & used["adapter"]),
            *_reasons(staying, "source", sources & used["source"]),
            *(f"{parent} stays: {name} was merged from it." for parent in parents),
        ),
        parents,
    )


def descendants(entries: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """What was merged from a memory, from what was merged from it, and so on."""
    names, states = [name], {entries[name]["adapter"]}

    def is_child(entry: Mapping[str, Any]) -> bool:
        parents = entry.get("parents", ())
        return any(p.get("name") in names or p.get("adapter") in states for p in parents)

    while more := sorted(n for n, entry in entries.items() if n not in names and is_child(entry)):
        names += more
        states |= {entries[other]["adapter"] for other in more}
    return tuple(names[1:])


def _records(places: Iterable[Path], file: str) -> dict[str, dict[str, Any]]:
    """What each folder's record says, with a name: the record's own, or else the folder's."""
    return {p.name: {"name": _STAMP.sub("", p.name), **readable(p / file)} for p in places}


def _reasons(staying: Mapping[str, Any], key: str, values: Iterable[str]) -> Iterator[str]:
    for value in sorted(values):
        users = sorted(name for name, entry in staying.items() if entry.get(key) == value)
        yield f"{key} {value[:16]} stays: {', '.join(users)} still uses it."


# -- removing it ---------------------------------------------------------------------------------


def _unfinished(folder: Folder) -> Removal | None:
    path = folder.path / JOURNAL
    if not path.exists():
        return None
    remedy = "delete it and forget the memory again"
    plain = read_object(path, remedy)
    try:
        return Removal(**{key: tuple(value) for key, value in plain.items()})
    except TypeError as error:
        raise DataError(f"{path} is damaged ({error}); {remedy}.") from error


def remove(folder: Folder, removal: Removal) -> tuple[Wanted, frozenset[Run], int]:
    """Take a memory out of its folder; the caller holds the lock, and searches what is left.

    Names first, so that no question is routed to what goes; the source last, so that it can be
    redone. Returns what to search for, what others share, and how many records were blanked.
    """
    sought = wanted(_texts(folder, removal))
    save_json(removal, folder.path / JOURNAL)
    folder.change(lambda memories: [memories.pop(name, None) for name in removal.names])
    theirs = scan(folder.path, sought, files=_of_others(folder, removal)).leftovers
    shared = {each.words for each in theirs}
    shared |= runs_in("\n".join(unrelated_questions()), sought)
    shared |= {run for run in sought.runs if len(run) == 1 and run[0] in _vocabulary()}
    sought = sought.without({*shared, *wanted(removal.names).runs})
    n_blanked = _blank(folder, removal, sought)
    for kind, names in (("adapters", removal.adapters), ("runs", removal.runs)):
        for name in names:
            shutil.rmtree(folder.path / kind / Path(name).name, ignore_errors=True)
    for source in removal.sources:
        folder.source_path(Path(source).name).unlink(missing_ok=True)
    shutil.rmtree(folder.path / DERIVED, ignore_errors=True)
    (folder.path / JOURNAL).unlink(missing_ok=True)
    return sought, frozenset(shared), n_blanked


def _of_others(folder: Folder, removal: Removal) -> list[Path]:
    """The sources and lessons that other memories were written from."""
    runs = [p for p in folder.path.glob("runs/*") if p.name not in removal.runs]
    about = [*folder.entries().values(), *(readable(run / CONFIG_FILE) for run in runs)]
    used = {str(each.get("source")) for each in about}
    sources = [p for p in folder.path.glob("sources/*.jsonl") if p.stem in used]
    return [*sources, *(run / name for run in runs for name in OWN_FILES)]


@cache
def _vocabulary() -> frozenset[str]:
    """Single words that this program writes itself, like `notes`: they prove nothing."""
    sources = sorted(Path(__file__).parents[1].rglob("*.py"))
    return frozenset(word for path in sources for word in words_of(path.read_text("utf-8")))


def _blank(folder: Folder, removal: Removal, sought: Wanted) -> int:
    """Take the words out of what was recorded elsewhere: a teacher's replies, others' verdicts."""
    n_blanked = 0
    rest = [p for p in folder.path.glob("runs/*/*.json*") if p.parent.name not in removal.runs]
    for path in [*rest, *folder.path.glob("*.jsonl")]:
        if path.name in OWN_FILES:
            continue
        if path.suffix == ".jsonl":
            rows = load_jsonl(path)
            replies = _replies_on(folder, removal, {str(row.get("model")) for row in rows})
            clean = [
                row
                for row in rows
                if row.get("key") not in replies and not runs_in(json.dumps(row), sought)
            ]
            if len(clean) < len(rows):
                _replace_lines(path, clean)
                n_blanked += len(rows) - len(clean)
        elif runs_in(path.read_bytes(), sought):
            save_json(_blanked(read_object(path, "delete its run"), sought), path)
            n_blanked += 1
    return n_blanked


def _replies_on(folder: Folder, removal: Removal, models: set[str]) -> set[str]:
    """Keys of a teacher's replies on these sources."""
    return {
        digest([model, prompt])
        for source in removal.sources
        for document in _known(folder, source).documents
        for prompt in prompts_of(document)
        for model in models
    }


def _replace_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    if path.name != TEACHER_FILE:
        dump_jsonl(rows, path)
        return
    # its reader knows its own lines by how they begin, and by their being ASCII
    part = path.with_name(f".{path.name}.part")
    part.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="ascii")
    part.replace(path)


def _blanked(value: Any, sought: Wanted) -> Any:
    if isinstance(value, str):
        return BLANK if runs_in(value, sought) else value
    if isinstance(value, list):
        return [_blanked(each, sought) for each in value]
    if isinstance(value, dict):
        return {key: _blanked(each, sought) for key, each in value.items()}
    return value


# -- the proof -----------------------------------------------------------------------------------


def _texts(folder: Folder, removal: Removal) -> Iterator[str]:
    """Every text of the sources and of what was made of them, as far as it is still there."""
    for source in removal.sources:
        known = _known(folder, source)
        for document in known.documents:
            yield document.title
            yield from sentences(document.text)
        for fact in known.facts:
            yield from (fact.question, *fact.answers, *fact.paraphrases)
    for lesson in _lessons(folder, removal):
        for example in lesson.examples:
            yield example.prompt
            # to a question that it does not answer, the base's own reply
            yield from () if example.kind == "unknown" else sentences(example.completion)
        for probe in lesson.probes:
            yield from (probe.question, *probe.answers)


def _known(folder: Folder, source: str) -> Knowledge:
    try:
        return folder.knowledge(source)
    except DataError:  # gone or damaged: it goes all the same
        return Knowledge()


def _lessons(folder: Folder, removal: Removal) -> Iterator[Lesson]:
    for run in removal.own_runs:
        with suppress(DataError, StorageError):  # gone or damaged: it goes all the same
            yield folder.lesson({"run": run})


def _probes(folder: Folder, removal: Removal) -> tuple[Probe, ...]:
    """The probes of the memory, evenly spread over at most N_PROBES."""
    probes = {
        probe.question: probe
        for lesson in _lessons(folder, removal)
        for probe in lesson.probes
        if probe.kind in RECALLED_KINDS
    }
    return tuple(probes.values())[:: max(1, -(-len(probes) // N_PROBES))]


def _before(memory: OpenFolder, name: str, probes: Sequence[Probe], metric: str) -> Estimate | None:
    if not probes or name not in memory.names:
        return None
    try:
        return _recall(memory, probes, metric, name)
    except AdapterError:  # damaged: it is forgotten all the same
        return None


def _ask_those_left(
    memory: OpenFolder, probes: Sequence[Probe], metric: str, step: Callable[[str], None]
) -> tuple[Estimate | None, dict[str, Estimate]]:
    """Recall of the forgotten probes by the base and by what is left, evenly spread."""
    if not probes:
        return None, {}
    step("asking the base")
    base, others, names = _recall(memory, probes, metric), {}, sorted(memory.names)
    for other in names[:: max(1, -(-len(names) // N_OTHERS))]:
        step(f"asking {other}")
        try:
            others[other] = _recall(memory, probes, metric, other)
        except AdapterError as error:
            step(f"{other} is damaged and was left out: {error}")
    return base, others


def _recall(memory: OpenFolder, probes: Sequence[Probe], metric: str, name: str = "") -> Estimate:
    """The share of probes that a memory answers, or the base alone."""
    with memory.state(name).on(memory.model) if name else nullcontext():
        outputs = answer(memory.model, probes)
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
