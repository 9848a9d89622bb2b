"""The verb `route`: which of a folder's memories a question is for, with what probability, or none.

    atlas/index/keys.jsonl    passages, titles, names and trained questions of every memory
    atlas/index/terms.npz     their terms and BM25 of them, so that a new process need not count
    atlas/index/gate.json     what turns their scores into a probability; scores of strangers

    atlas/index/vectors-*.npy their vectors, where there is an encoder

All are made from sources and lessons at the first question after a change, and may be deleted at
any time. Keys hang on adapter ids: a memory that is renamed keeps them, one that is gone loses
them. An index knows which encoder it was made with, and is made anew for another. With one, terms
are all words, and what they are worth is how rare they are; without, words that say nothing of what
a question is about are left out by lists of English. What the probability is fitted on is up to
`calibration`. A merged memory that was measured as worse than a source of it gives way to its
sources as long as they are there. A memory that came without source and lesson has no keys and is
reached by name only.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache, cached_property, reduce
from pathlib import Path
from typing import Any

from lorewright.errors import ConfigError, DataError, Locked, StorageError
from lorewright.files import locked, read_object, save_json
from lorewright.knowledge.lesson import contexts
from lorewright.knowledge.scoring import normalise
from lorewright.knowledge.subjects import things
from lorewright.memory.calibration import fitted_gate, trained_questions
from lorewright.memory.folder import DERIVED, INDEX_FILE, RECALLED_KINDS, Folder
from lorewright.models.encoders import AUTO, Encoder, encoder_of
from lorewright.routing.gate import N_CANDIDATES, RATE, Decision, Gate, decide
from lorewright.routing.index import KEYS_FILE, Hit, Index, Key, keys_of, passage_scores
from lorewright.routing.lexicon import tokens
from lorewright.training.watch import Watch

GATE_FILE = "gate.json"
SCHEMA = 1
NO_GATE: dict[str, Any] = {"calibration": None, "strangers": []}
"""What stands for a gate where there was nothing to fit one on."""
PASSAGE_CHARS = 420
"""Longest passage that is retrieved and read, in characters."""
TOP = N_CANDIDATES
"""At most so many memories for one question."""
FALSE_ACTIVATION = RATE
"""Share of questions that no memory is for which may be sent to one all the same."""
LIKELY = 0.9
"""A memory less likely than this to hold the answer is passed over where the question names
something that none of its texts names."""
NAMES = ("names", "name", "acronym")
"""Kinds of things that are called by a name."""
STALE = 0.1
"""The probability is fitted again when more than this share of the memories has changed."""
_ASKING = """
    tell say says know give please remind look looking find need want would could might may show
    explain describe name state thanks thank let get wonder wondering hello hi kindly also
"""
ASKING = frozenset(_ASKING.split())
"""English words that people ask with; they say nothing of what the question is about."""
_NAME = re.compile(r"\b[A-Z][\w'-]*(?: [A-Z][\w'-]*)+|(?<=[a-z,;:] )[A-Z][\w'-]*\w")


@dataclass(frozen=True, eq=False)
class FolderRouter:
    """Keys of a folder's memories, and the gate that makes a probability of their scores."""

    index: Index
    ids: Mapping[str, str]
    """Name -> id."""
    gate: Gate | None
    """None = the folder has no trained question to fit one on; then the nearest is chosen."""
    keyless: tuple[str, ...]
    """Names of memories that no question leads to."""
    notes: tuple[str, ...] = ()
    yielding: frozenset[str] = frozenset()
    """Ids of merged memories whose sources answer instead; see `worse_than`."""

    def route(
        self,
        question: str,
        *,
        top: int = TOP,
        false_activation: float = FALSE_ACTIVATION,
    ) -> Decision:
        """Return the memories that a question is for, at most `top` of them, or none; see `decide`.

        One that is unlikely to hold the answer, and names nothing of what the question names, is
        left out. Raises ConfigError for an empty question, a share outside (0, 1) or `top` below 1.
        """
        free = [one for one in self.index.memories if one not in self.yielding]
        hits = self.index.retrieve_memories(
            question, k=max(top, N_CANDIDATES), memories=free if self.yielding else None
        )
        named = [replace(hit, memory=self._names[hit.memory]) for hit in hits]
        decision = decide(named, self.gate, rate=false_activation, most=top)
        lacking = {hit.memory: self._lacks(question, hit) for hit in decision.chosen}
        chosen = tuple(hit for hit in decision.chosen if not lacking[hit.memory])
        return replace(
            decision,
            chosen=chosen,
            unnamed=tuple(dict.fromkeys(w for words in lacking.values() for w in words)),
        )

    def _lacks(self, question: str, hit: Hit) -> list[str]:
        """What the question names and an unlikely memory does not, word by word."""
        if hit.probability is None or hit.probability >= LIKELY:
            return []
        texts = self._wording[self.ids[hit.memory]]
        return [word for word in names_of(question) if _stem(word) not in texts]

    def naming(self, question: str) -> tuple[str, ...]:
        """Names of the memories whose texts name something that the question names."""
        stems = [re.compile(rf"\b{re.escape(_stem(word))}s?\b") for word in names_of(question)]
        return tuple(
            name
            for name, identity in sorted(self.ids.items())
            if any(stem.search(self._wording.get(identity, "")) for stem in stems)
        )

    def was_trained(self, question: str, identity: str) -> bool:
        """Return whether a memory was trained to answer this question, word for word."""
        return normalise(question) in self._trained.get(identity, ())

    def passages(self, question: str, identity: str, n: int) -> tuple[str, ...]:
        """Return the n passages of a memory nearest to a question, best first, others after."""
        texts = self._texts.get(identity, [])
        if len(texts) <= 1:
            return tuple(texts[:n])
        hits = self.index.retrieve(question, k=len(self.index.keys), memories=[identity])
        near = [hit.key for hit in hits if hit.kind == "passage"]
        return tuple(dict.fromkeys([*near, *texts]))[:n]

    @cached_property
    def _names(self) -> dict[str, str]:
        """Id -> name; of several names the first."""
        return {identity: name for name, identity in sorted(self.ids.items(), reverse=True)}

    @cached_property
    def _wording(self) -> dict[str, str]:
        """All keys of each memory as one text in lower case."""
        texts: dict[str, list[str]] = {}
        for key in self.index.keys:
            texts.setdefault(key.memory, []).append(key.text.lower())
        return {memory: "\n".join(own) for memory, own in texts.items()}

    @cached_property
    def _trained(self) -> dict[str, set[str]]:
        """Questions that each memory was trained to answer, normalised."""
        own: dict[str, set[str]] = {}
        for key in self.index.keys:
            if key.kind == "question":
                own.setdefault(key.memory, set()).add(normalise(key.text))
        return own

    @cached_property
    def _texts(self) -> dict[str, list[str]]:
        """Passages of each memory."""
        texts: dict[str, list[str]] = {}
        for key in self.index.keys:
            if key.kind == "passage":
                texts.setdefault(key.memory, []).append(key.text)
        return texts


def worse_than(parts: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """Names of the sources that a merge was measured as recalling worse than they do themselves.

    `parts` are those of its report: what was lost of each source's own probes, by kind.
    """
    return tuple(
        str(part["memory"])
        for part in parts
        if sum(
            lost["n"] * lost["mean"]
            for kind, lost in part["lost"].items()
            if kind in RECALLED_KINDS and lost["mean"] is not None
        )
        > 0
    )


def _yielding(folder: Folder, by_id: Mapping[str, Any]) -> frozenset[str]:
    """Merged memories that recall less than a source, while all that they are from is there."""
    merged = {i: entry["parents"] for i, entry in by_id.items() if entry.get("parents")}
    whole = [i for i, parents in merged.items() if {p["adapter"] for p in parents} <= {*by_id}]
    worse = set()
    for identity in whole:
        report = folder.card(identity).get("report", {})
        with suppress(KeyError, TypeError, AttributeError):  # a damaged card: it cannot be asked
            worse |= {identity} if worse_than(report.get("parts", ())) else set()
    return frozenset(worse)


class LiveRouter:
    """A folder's router, brought up to date whenever memory.json has changed. Needs no model."""

    def __init__(self, folder: Folder, encoder: str | Encoder = AUTO) -> None:
        """`encoder` as in `encoder_of`; `auto` is what the index was made with on request, if any.

        Nothing is loaded before the first question.
        """
        self.folder, self.encoder = folder, encoder
        self._state: tuple[tuple[int, ...], FolderRouter] | None = None
        self._encoders: dict[str, Encoder | None] = {}

    def current(self, watch: Watch | None = None) -> FolderRouter:
        """The router as it was a moment ago, as it is on disk, or made anew.

        What the disk refuses to store is used all the same, and made again next time.
        """
        stamp = _stamp(self.folder.path / INDEX_FILE)
        if self._state is None or self._state[0] != stamp:
            step = (watch or Watch()).step
            name, encoder = self._encoder(step)
            self._state = (stamp, _up_to_date(self.folder, stamp, name, encoder, step))
        return self._state[1]

    def in_use(self, step: Callable[[str], None] = lambda text: None) -> Encoder | None:
        """What questions are compared by, loaded now; None = by their words alone."""
        return self._encoder(step)[1]

    def _encoder(self, step: Callable[[str], None]) -> tuple[str, Encoder | None]:
        """The encoder, and the name by which it was requested; empty for `auto`."""
        if isinstance(self.encoder, Encoder):
            return self.encoder.id, self.encoder
        name = self.encoder
        if name == AUTO:
            name = _requested(self.folder.path / DERIVED) or AUTO
        elif (place := Path(name).expanduser()).is_dir():
            name = str(place.resolve())  # it is read from anywhere the next time
        if name not in self._encoders:
            self._encoders[name] = encoder_of(name, step)
        return "" if name == AUTO else name, self._encoders[name]

    def route(
        self,
        question: str,
        *,
        top: int = TOP,
        false_activation: float = FALSE_ACTIVATION,
        watch: Watch | None = None,
    ) -> Decision:
        """The memories that a question is for, with their probabilities; see FolderRouter.route."""
        router = self.current(watch)
        return router.route(question, top=top, false_activation=false_activation)


def _stamp(path: Path) -> tuple[int, ...]:
    """What tells one state of a file from another without reading it."""
    if not path.exists():
        return ()
    about = path.stat()
    return (about.st_mtime_ns, about.st_size, about.st_ino)


# -- making it -----------------------------------------------------------------------------------


def _up_to_date(
    folder: Folder,
    stamp: tuple[int, ...],
    requested: str,
    encoder: Encoder | None,
    step: Callable[[str], None],
) -> FolderRouter:
    """The router of a folder whose memory.json had this stamp a moment ago."""
    entries = folder.entries()
    ids = {name: entry["adapter"] for name, entry in entries.items()}
    by_id = {entry["adapter"]: entry for entry in entries.values()}
    yielding = _yielding(folder, by_id)
    place = folder.path / DERIVED
    index, gate = _stored(place, encoder)
    indexed = set(gate.get("memories", ()))
    gone, new = indexed - set(by_id), sorted(set(by_id) - indexed)
    notes: list[str] = []
    if gone or new:
        step(f"indexing {len(new)} memories" if new else "leaving out memories that are gone")
        for one in gone & set(index.memories):
            index = index.without(one)
        index = index.with_keys(key for one in new for key in _keys(folder, one, by_id[one], notes))
    fitted = set(gate.get("fitted", ()))
    changed = len(fitted ^ set(by_id))
    if gone or new or "calibration" not in gate or gate.get("requested", "") != requested:
        if "calibration" not in gate or changed > STALE * max(len(fitted), len(by_id)):
            step("fitting the probability")
            asked = reduce(Index.without, yielding & set(index.memories), index)
            fitted_now = fitted_gate(folder, by_id, asked)
            gate = {**(fitted_now.to_json() if fitted_now else NO_GATE), "fitted": sorted(by_id)}
        gate |= {"schema": SCHEMA, "memories": sorted(by_id), "requested": requested}
        gate |= {"encoder": encoder.id if encoder else ""}
        # A folder that cannot be written, or is being written, can be asked; and what was forgotten
        # in the meantime must not be stored again.
        with suppress(StorageError, Locked), locked(folder.path, work="writing into"):
            if stamp and _stamp(folder.path / INDEX_FILE) == stamp:
                index.save(place)
                save_json({**gate, "keys": _digest(place)}, place / GATE_FILE)
    probable = Gate.from_json(gate) if gate["calibration"] else None
    keyed = set(index.memories)
    keyless = tuple(sorted(name for name, identity in ids.items() if identity not in keyed))
    return FolderRouter(index, ids, probable, keyless, tuple(notes), yielding)


def _stored(place: Path, encoder: Encoder | None) -> tuple[Index, dict[str, Any]]:
    """What is on disk, if all is whole, belongs together and is of this encoder; else nothing."""
    functions, more = _functions(encoder), {"passages": passage_scores} if encoder else {}
    try:
        gate = read_object(place / GATE_FILE, "delete it; it is made again")
        wanted = {"schema", "memories", "keys", "calibration", "strangers", "fitted"}
        same = gate.get("encoder", "") == (encoder.id if encoder else "")
        if same and wanted <= gate.keys() and gate["schema"] == SCHEMA:
            if gate["calibration"]:
                Gate.from_json(gate)
            {*gate["memories"], *gate["fitted"]}  # not of another shape either
            if gate["keys"] == _digest(place):
                return replace(Index.load(place, **functions), more_scorers=more), gate
    except (DataError, StorageError, ConfigError, TypeError, OSError, ValueError, KeyError):
        pass  # derived data: what is missing or damaged is made again
    return Index.build(**functions, more_scorers=more), {}


def _functions(encoder: Encoder | None) -> dict[str, Any]:
    """How an index counts words and, with an encoder, compares meanings."""
    if encoder is None:
        return {"tokenise": words}
    more = {"embed": encoder.embed, "embed_question": encoder.embed_question}
    return {"tokenise": tokens, **more}


def _requested(place: Path) -> str:
    """The encoder that a folder's index was made with on request; empty = none was requested."""
    try:
        return str(read_object(place / GATE_FILE, "delete it").get("requested", ""))
    except (DataError, StorageError):
        return ""


def _digest(place: Path) -> str:
    """The digest that stands at the head of the keys on disk."""
    with (place / KEYS_FILE).open(encoding="utf-8") as file:
        return str(json.loads(file.readline())["digest"])


def _keys(folder: Folder, identity: str, entry: Mapping[str, Any], notes: list[str]) -> list[Key]:
    """Keys of one memory; none, and a note, where its source is gone or damaged."""
    try:
        knowledge = folder.knowledge(entry)
        keys = keys_of(knowledge, identity, max_chars=PASSAGE_CHARS, entities=names_in)
        trained = [question for question, _ in trained_questions(folder, entry)]
    except DataError as error:
        notes.append(f"no question leads to a memory: {error}")
        return []
    return [*keys, *(Key(identity, question, "question") for question in trained)]


def words(text: str) -> tuple[str, ...]:
    """Return the terms of a text that say what it is about; all of them where none does."""
    terms = tokens(text)
    return tuple(term for term in terms if term not in _function_words()) or terms


@cache
def _function_words() -> frozenset[str]:
    from bm25s.stopwords import STOPWORDS_EN_PLUS

    return ASKING.union(term for word in STOPWORDS_EN_PLUS for term in tokens(word))


def names_of(question: str) -> list[str]:
    """What a question names, word by word."""
    named = (each.text for each in things(question) if each.kind in NAMES)
    return [word for text in named for word in re.findall(r"[A-Z]\w+", text)]


def _stem(word: str) -> str:
    return word.lower().removesuffix("s")


def names_in(text: str) -> Iterator[str]:
    """Yield what is written with capitals inside a sentence, once each."""
    yield from dict.fromkeys(match[0] for match in _NAME.finditer(text))


def source_text(folder: Folder, entry: Mapping[str, Any]) -> str:
    """All that a memory was written from, as text; empty where it came without."""
    return contexts(folder.knowledge(entry))[0]
