"""Which of a folder's memories a question is for: keys, their probability, and when none is.

    atlas/index/keys.jsonl    passages, titles, names and trained questions of every memory
    atlas/index/terms.npz     their terms and BM25 of them, so that a new process need not count
    atlas/index/gate.json     what turns their scores into a probability; the marks of strangers

All are made from sources and lessons at the first question after a change, and may be deleted at
any time. Keys hang on adapter ids: a memory that is renamed keeps them, one that is gone loses
them. The probability is fitted on the lessons' own trained questions, each asked of an index that
lacks it, and on questions that no memory is for: packaged ones, and the folder's own topics asked
of subjects that nobody wrote. Both get up to two words that no key has, because questions in other
words do; without them such questions look like ones about other things. Probes have no part in
it. A memory that came without source and lesson has no keys and is asked by name only.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bm25s.stopwords import STOPWORDS_EN_PLUS

from lorewright.errors import ConfigError, DataError, StorageError
from lorewright.files import read_object, save_json
from lorewright.knowledge.lesson import Lesson, contexts
from lorewright.knowledge.negatives import strangers, unrelated_questions
from lorewright.knowledge.scoring import normalise
from lorewright.memory.folder import INDEX_FILE, entries, stored_knowledge
from lorewright.memory.verify import stored_lesson
from lorewright.routing.gate import (
    N_CANDIDATES,
    RATE,
    WITHIN,
    Decision,
    Gate,
    HeldOut,
    decide,
    fit_gate,
)
from lorewright.routing.index import KEYS_FILE, Hit, Index, Key, Part, Retriever, keys_of, tokens
from lorewright.training.watch import Watch

if TYPE_CHECKING:
    from lorewright.memory.memory import Memory

FOLDER = "index"
"""In the memory's folder: everything that is derived from sources and lessons to find them by."""
GATE_FILE = "gate.json"
SCHEMA = 1
PASSAGE_CHARS = 420
"""Longest passage that is found and read, in characters."""
N_ASKED = 400
"""At most so many trained questions are asked for the calibration."""
N_STRANGERS = 400
"""At most so many questions that no memory is for are asked."""
FALSE_ACTIVATION = RATE
"""Share of questions that no memory is for which one may be attached to all the same."""
STALE = 0.1
"""The probability is fitted again when more than this share of the memories has changed."""
N_FOREIGN = 2
"""At most so many words that no key has are put into a question of the calibration."""
ASKING = frozenset(
    (
        *("tell", "say", "says", "know", "give", "please", "remind", "look", "looking", "find"),
        *("need", "want", "would", "could", "might", "may", "show", "explain", "describe"),
        *("name", "state", "thanks", "thank", "let", "get", "wonder", "wondering", "hello"),
        *("hi", "kindly", "also"),
    )
)
"""English words that people ask with; they say nothing of what is asked for."""
_NAME = re.compile(r"\b[A-Z][\w'-]*(?: [A-Z][\w'-]*)+|(?<=[a-z,;:] )[A-Z][\w'-]*\w")


@dataclass(frozen=True, eq=False)
class Finder:
    """Keys of a folder's memories and what makes a probability of their scores."""

    index: Index
    ids: Mapping[str, str]
    """Name -> adapter id."""
    gate: Gate | None
    """None = the folder has no trained question to fit one on; then the nearest is chosen."""
    keyless: tuple[str, ...]
    """Names of memories that no question leads to."""
    notes: tuple[str, ...] = ()

    def find(
        self,
        question: str,
        *,
        top: int = 3,
        false_activation: float = FALSE_ACTIVATION,
        within: float = WITHIN,
    ) -> Decision:
        """Say which memories a question is for, at most `top` of them, or none; see `decide`.

        Raises ConfigError for an empty question, a share outside (0, 1) or `top` below 1.
        """
        hits = self.index.retrieve_memories(question, k=max(top, 3))
        named = [replace(hit, memory=self._names[hit.memory]) for hit in hits]
        return decide(named, self.gate, rate=false_activation, within=within, most=top)

    def passages(self, question: str, identity: str, n: int) -> tuple[str, ...]:
        """Return the n passages of a memory nearest to a question, best first, others after."""
        texts = self._texts.get(identity, [])
        if len(texts) <= 1:
            return tuple(texts[:n])
        found = self.index.retrieve(question, k=len(self.index.keys), memories=[identity])
        near = [hit.key for hit in found if hit.kind == "passage"]
        return tuple(dict.fromkeys([*near, *texts]))[:n]

    @cached_property
    def _names(self) -> dict[str, str]:
        """Adapter id -> name; of several names the first."""
        return {identity: name for name, identity in sorted(self.ids.items(), reverse=True)}

    @cached_property
    def _texts(self) -> dict[str, list[str]]:
        """Passages of each memory."""
        found: dict[str, list[str]] = {}
        for key in self.index.keys:
            if key.kind == "passage":
                found.setdefault(key.memory, []).append(key.text)
        return found


# -- making it -----------------------------------------------------------------------------------


def finder(memory: Memory, watch: Watch | None = None) -> Finder:
    """The folder's finder: as it was a moment ago, as it is on disk, or brought up to date.

    What the disk refuses to take is used all the same, and made again next time.
    """
    mark = _mark(memory.folder / INDEX_FILE)
    if memory.found is None or memory.found[0] != mark:
        memory.found = (mark, _up_to_date(memory.folder, (watch or Watch()).step))
    return memory.found[1]


def _mark(path: Path) -> tuple[int, ...]:
    """What tells one state of a file from another without reading it."""
    if not path.exists():
        return ()
    about = path.stat()
    return (about.st_mtime_ns, about.st_size, about.st_ino)


def drop(folder: Path) -> None:
    """Delete everything that was derived here; it is made again at the next question."""
    for path in (folder / FOLDER).glob("*"):
        path.unlink(missing_ok=True)


def _up_to_date(folder: Path, step: Callable[[str], None]) -> Finder:
    known = entries(folder)
    ids = {name: entry["adapter"] for name, entry in known.items()}
    by_id = {entry["adapter"]: entry for entry in known.values()}
    place = folder / FOLDER
    index, gate = _stored(place)
    held = set(gate.get("memories", ()))
    gone, new = held - set(by_id), sorted(set(by_id) - held)
    notes: list[str] = []
    if gone or new:
        step(f"indexing {len(new)} memories" if new else "leaving out memories that are gone")
        for one in gone & set(index.memories):
            index = index.without(one)
        index = index.with_keys(key for one in new for key in _keys(folder, one, by_id[one], notes))
    fitted = set(gate.get("fitted", ()))
    changed = len(fitted ^ set(by_id))
    if gone or new or "calibration" not in gate:
        if "calibration" not in gate or changed > STALE * max(len(fitted), len(by_id)):
            step("fitting the probability")
            gate = {**_fitted(folder, by_id, index), "fitted": sorted(by_id)}
        gate |= {"schema": SCHEMA, "memories": sorted(by_id)}
        with suppress(StorageError):  # a folder that cannot be written can be asked
            index.save(place)
            save_json({**gate, "keys": _digest(place)}, place / GATE_FILE)
    fitted_gate = Gate.from_json(gate) if gate["calibration"] else None
    keyed = set(index.memories)
    keyless = sorted(name for name, identity in ids.items() if identity not in keyed)
    return Finder(index, ids, fitted_gate, tuple(keyless), tuple(notes))


def _stored(place: Path) -> tuple[Index, dict[str, Any]]:
    """What is on disk, if both files are whole and belong together; else nothing."""
    try:
        gate = read_object(place / GATE_FILE, "delete it; it is made again")
        index = Index.load(place, tokenise=words)
        wanted = {"schema", "memories", "keys", "calibration", "strangers", "fitted"}
        if wanted <= gate.keys() and gate["schema"] == SCHEMA and gate["keys"] == _digest(place):
            return index, gate
    except (DataError, StorageError, ConfigError):
        pass  # derived data: what is missing or damaged is made again
    return Index.build(tokenise=words), {}


def _digest(place: Path) -> str:
    """The digest that stands at the head of the keys on disk."""
    with (place / KEYS_FILE).open(encoding="utf-8") as file:
        return str(json.loads(file.readline())["digest"])


def _keys(folder: Path, identity: str, entry: Mapping[str, Any], notes: list[str]) -> list[Key]:
    """Keys of one memory; none, and a note, where its source is gone or damaged."""
    try:
        knowledge = stored_knowledge(folder, str(entry.get("source") or ""))
        found = keys_of(knowledge, identity, max_chars=PASSAGE_CHARS, entities=names_in)
        asked = [question for question, _ in _trained(folder, entry)]
    except DataError as error:
        notes.append(f"a memory cannot be found by questions: {error}")
        return []
    return [*found, *(Key(identity, question, "question") for question in asked)]


def words(text: str) -> tuple[str, ...]:
    """Return the terms of a text that say what it is about; all of them where none does."""
    found = tokens(text)
    return tuple(term for term in found if term not in _function_words()) or found


@cache
def _function_words() -> frozenset[str]:
    return ASKING.union(term for word in STOPWORDS_EN_PLUS for term in tokens(word))


def names_in(text: str) -> Iterator[str]:
    """Yield what is written with capitals inside a sentence, once each."""
    yield from dict.fromkeys(match[0] for match in _NAME.finditer(text))


def _trained(folder: Path, entry: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Questions that a memory was trained to answer, with the answers."""
    path = folder / "runs" / str(entry.get("run")) / "lesson.json"
    made = stored_lesson(path) if path.exists() else Lesson((), (), "", "", ())
    return [(e.prompt, e.completion) for e in made.examples if e.kind == "qa" and e.prompt.strip()]


def source_of(folder: Path, entry: Mapping[str, Any]) -> str:
    """All that a memory was written from, as text; empty where it came without."""
    return contexts(stored_knowledge(folder, str(entry.get("source") or "")))[0]


# -- the probability -----------------------------------------------------------------------------


def _fitted(folder: Path, by_id: Mapping[str, Any], index: Index) -> dict[str, Any]:
    """Calibration and strangers' best probabilities; both empty where there is nothing to fit."""
    asked = list(_held_out(folder, by_id, index))
    questions = [item.question for item in asked]
    packaged = unrelated_questions()
    packaged = packaged[: len(packaged) * 3 // 4]  # the rest are probes of every memory
    theirs = strangers(questions, packaged, n=N_STRANGERS - len(packaged), seed=0)
    unrelated = [*packaged, *theirs]
    random.Random("unrelated").shuffle(unrelated)
    left = {(item.question, memory) for item in asked for memory in item.memories}
    kept = (key for key in index.keys if (key.text, key.memory) not in left)
    without = Index.build(kept, tokenise=words)
    retriever = _never_empty(partial(without.retrieve_memories, k=N_CANDIDATES))
    rng = random.Random("foreign words")
    told = [replace(item, question=_foreign(item.question, rng)) for item in asked]
    unrelated = [_foreign(question, rng) for question in unrelated]
    try:
        return fit_gate(retriever, told, unrelated).to_json()
    except DataError:  # no trained question at all: texts written by next-token loss only
        return {"calibration": None, "strangers": []}


def _foreign(question: str, rng: random.Random) -> str:
    """The question with words before it that no key has."""
    added = (f"zz{rng.randrange(10**9)}" for _ in range(rng.randint(0, N_FOREIGN)))
    return " ".join([*added, question])


def _never_empty(retriever: Retriever) -> Retriever:
    """A question without any common word is as good as one with a wrong candidate that has none."""
    nobody = [Hit("", "", "question", 0.0, 1, {"bm25": Part(0.0, 1)})]
    return lambda question: retriever(question) or nobody


def _held_out(folder: Path, by_id: Mapping[str, Any], index: Index) -> Iterator[HeldOut]:
    """Trained questions, one of several with the same answer, and the memories that have each.

    Where an answer has one question only, that is asked although the index keeps the words of it in
    other keys: the folder then knows no other way to ask.
    """
    rng = random.Random("calibration")
    ids = sorted(index.memories)
    rng.shuffle(ids)
    share = -(-N_ASKED // max(1, len(ids)))
    having: dict[str, list[str]] = {}
    for key in index.keys:
        if key.kind == "question":
            having.setdefault(normalise(key.text), []).append(key.memory)
    for identity in ids[:N_ASKED]:
        groups: dict[str, list[str]] = {}
        with suppress(DataError):
            for question, answer in _trained(folder, by_id[identity]):
                groups.setdefault(answer, []).append(question)
        picked = rng.sample(sorted(groups), min(share, len(groups)))
        for answer in picked:
            question = rng.choice(groups[answer])
            yield HeldOut(question, tuple(dict.fromkeys(having[normalise(question)])))
