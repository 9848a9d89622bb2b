"""Keys of memories, and the ones nearest to a question: BM25, optionally vectors, fused by rank.

    score(k) = Σ over scorers 1 / (60 + rank of k by that scorer)

SCORERS says how keys are scored; an index may have more. BM25 is a share of what the question
would score against itself, so that scores of different questions compare; words that no key holds
count below, and a question about other things stays low. The dense score is the cosine of vectors
from a function that is passed in. Equal scores share a rank; what is still tied stands in the order
of memory, text, kind, so an index answers alike however its keys came into it.

Whether any memory may answer is up to the gate.

Paper: Cormack, Clarke and Büttcher 2009 (reciprocal rank fusion and its 60).

Shape letters: N key, M memory, D number of a vector.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lorewright.errors import ConfigError, DataError, StorageError, UnknownMemory
from lorewright.files import jsonl, store
from lorewright.knowledge.data import Knowledge
from lorewright.knowledge.splitting import headed_passages
from lorewright.routing.lexicon import Lexicon, StoredTerms, Terms, Tokenise, tokens

Embed = Callable[[list[str]], Any]
"""Texts to vectors: n texts give an array of n rows; where prefixes matter, it adds them."""
Chosen = Collection[str] | None
"""Which ones; None = all."""
Vectors = NDArray[np.float32] | None

KINDS = ("passage", "question", "title", "entity")
BY_MEANING = ("passage", "question", "title")
"""Kinds that get vectors: a name alone is near to whatever names it."""
SCHEMA = 2
KEYS_FILE, TERMS_FILE = "keys.jsonl", "terms.npz"
PASSAGE_CHARS = 1000
"""Longest passage that becomes one key, in characters: about 256 tokens."""
RRF, EMBED_BATCH = 60, 256
N_COMPARED = 50
"""Of so many stored keys the terms are computed again, to see whether the function is the same."""
SAME_VECTOR = 0.02  # in any number; a stored vector that differs more is of another function

# --- keys --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Key:
    """A text by which a memory is retrieved."""

    memory: str
    """Id of the memory it belongs to."""
    text: str
    kind: str = "passage"

    def __post_init__(self) -> None:
        for value in (self.memory, self.text):
            if not isinstance(value, str) or not value.strip():
                raise DataError(f"{self} has an empty part or one that is no text; give both.")
        if self.kind not in KINDS:
            raise DataError(
                f"a key of {self.memory!r} has kind {self.kind!r}; use one of {', '.join(KINDS)}."
            )


def keys_of(
    knowledge: Knowledge,
    memory: str,
    *,
    max_chars: int = PASSAGE_CHARS,
    entities: Callable[[str], Iterable[str]] = lambda text: (),
) -> tuple[Key, ...]:
    """Return the keys of one memory's knowledge: passages, titles, entities, training questions.

    `entities` yields the names in a document's text. A fact without a document here gives a passage
    as well, its question and answer. Paraphrases of facts give none: routing is measured with them.
    """
    keys: list[Key] = []
    for document in knowledge.documents:
        if document.title.strip():
            keys.append(Key(memory, document.title, "title"))
        texts = headed_passages(document.text, title=document.title, max_chars=max_chars)
        keys += [Key(memory, text) for text in texts]
        keys += [Key(memory, text, "entity") for text in entities(document.text)]
    documents = {document.id for document in knowledge.documents}
    for fact in knowledge.facts:
        keys.append(Key(memory, fact.question, "question"))
        if fact.source not in documents:
            keys.append(Key(memory, f"{fact.question} {fact.answer}"))
    return tuple(dict.fromkeys(keys))


class Part(NamedTuple):
    """A hit by one scorer."""

    score: float
    """bm25: share of the question's score against itself; dense: cosine."""
    rank: int
    """From 1; equal scores share it."""


@dataclass(frozen=True)
class Hit:
    """A memory, or one of its keys, that answers to a question."""

    memory: str
    key: str
    """The text that matched; of a memory, its best one."""
    kind: str
    score: float
    """By which the list is ordered: fused ranks here, the probability after the gate."""
    rank: int
    """Place in the list, from 1."""
    parts: Mapping[str, Part] = field(default_factory=dict, hash=False)
    """By scorer; one by which it scored nothing is missing."""
    matched: float = 0.0
    """Share of the question's terms that the key (of a memory: any of its keys) holds, by idf."""
    probability: float | None = None
    """Calibrated probability that this memory holds the answer; None = not calibrated."""


Retriever = Callable[[str], list[Hit]]
"""A question to memories, best first; [] where nothing matches, or to abstain."""


# --- the index ---------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Index:
    """Keys of any number of memories, searched together; see `Index.build` and `Index.load`.

    It never changes: `with_keys` and `without` return another one and reuse vectors and terms. BM25
    is computed at the first question after a change, or when the index is saved.
    """

    keys: tuple[Key, ...]
    """In order of memory, text, kind; none twice."""
    terms: Sequence[Terms] = field(repr=False)
    """Of each key."""
    vectors_ND: Vectors = field(repr=False)
    """Of each key, of length 1 (or 0); None = words only."""
    tokenise: Tokenise = tokens
    embed: Embed | None = None
    embed_question: Embed | None = None
    more_scorers: Mapping[str, Scorer] = field(default_factory=dict, repr=False)
    """Beside those of SCORERS."""

    def __post_init__(self) -> None:
        if self.embed_question is not None and self.embed is None:
            raise ConfigError("embed_question was given without embed; give both, or embed alone.")

    @classmethod
    def build(
        cls,
        rows: Iterable[Key | Mapping[str, Any]] = (),
        *,
        tokenise: Tokenise = tokens,
        embed: Embed | None = None,
        embed_question: Embed | None = None,
        more_scorers: Mapping[str, Scorer] | None = None,
    ) -> Index:
        """Index keys, or rows with memory, text and kind (default passage).

        `embed` adds the dense score; `embed_question` is for encoders that want questions prefixed;
        `more_scorers` are used beside SCORERS. Raises DataError for unusable rows or vectors,
        ConfigError for `embed_question` alone.
        """
        empty = cls((), (), None, tokenise, embed, embed_question, more_scorers or {})
        return empty.with_keys(rows)

    @property
    def memories(self) -> tuple[str, ...]:
        """Ids of the memories that have keys, sorted."""
        return tuple(self._slices)

    def with_keys(self, rows: Iterable[Key | Mapping[str, Any]]) -> Index:
        """Return an index that holds these keys as well; those it has already count once."""
        old = set(self.keys)
        new = [key for key in dict.fromkeys(map(_as_key, rows)) if key not in old]
        keys = (*self.keys, *new)
        order = sorted(range(len(keys)), key=lambda n: (keys[n].memory, keys[n].text, keys[n].kind))
        terms = (*self.terms, *(tuple(self.tokenise(key.text)) for key in new))
        vectors = self.vectors_ND
        if self.embed is not None and new:
            more = _key_vectors(self.embed, new)
            vectors = more if vectors is None else np.concatenate([vectors, _like(more, vectors)])
        return self._picked(keys, terms, vectors, order)

    def without(self, memory: str) -> Index:
        """Return an index without the keys of a memory. Raises UnknownMemory if it has none."""
        gone = self._slice(memory)
        return self.picked([n for n in range(len(self.keys)) if not gone.start <= n < gone.stop])

    def picked(self, order: Sequence[int]) -> Index:
        """Return an index of some keys, by their places, ascending."""
        return self._picked(self.keys, self.terms, self.vectors_ND, order)

    def keys_of(self, memory: str) -> tuple[Key, ...]:
        """Return the keys of a memory. Raises UnknownMemory if it has none."""
        return self.keys[self._slice(memory)]

    def nearness(self, question: str, memory: str) -> dict[str, float] | None:
        """Cosines of a question with the trained ones among a memory's keys; None without vectors.

        Empty for a memory without keys.
        """
        cosine_N = dense_scores(self, question)
        if cosine_N is None:
            return None
        own = self._slices.get(memory, slice(0, 0))
        pairs = zip(self.keys[own], cosine_N[own].tolist(), strict=True)
        return {key.text: cosine for key, cosine in pairs if key.kind == "question"}

    def _picked(
        self, keys: Sequence[Key], terms: Sequence[Terms], vectors: Vectors, order: Sequence[int]
    ) -> Index:
        return replace(
            self,
            keys=tuple(keys[n] for n in order),
            terms=tuple(terms[n] for n in order),
            vectors_ND=vectors[list(order)] if vectors is not None and order else None,
        )

    @cached_property
    def lexicon(self) -> Lexicon:
        """BM25 over the terms of the keys."""
        return self.terms.lexicon if isinstance(self.terms, StoredTerms) else Lexicon(self.terms)

    @cached_property
    def last_vector(self) -> dict[str, NDArray[np.float32]]:
        """The question that was scored last, and its vector."""
        return {}

    @cached_property
    def are_texts(self) -> NDArray[np.bool_]:
        """Whether each key is a passage or a title."""
        return np.array([key.kind in ("passage", "title") for key in self.keys], dtype=bool)

    @cached_property
    def _slices(self) -> dict[str, slice]:
        """Where each memory's keys stand."""
        slices, start = {}, 0
        for memory, run in groupby(self.keys, key=lambda key: key.memory):
            stop = start + len(list(run))
            slices[memory] = slice(start, stop)
            start = stop
        return slices

    def _slice(self, memory: str) -> slice:
        if memory not in self._slices:
            n = len(self._slices)
            raise UnknownMemory(f"the index has no memory {memory!r}; it holds {n} others.")
        return self._slices[memory]

    def retrieve(
        self, question: str, *, k: int = 10, kinds: Chosen = None, memories: Chosen = None
    ) -> list[Hit]:
        """Return the k best keys, best first, of these kinds and memories.

        A key without any positive score (no common word, no positive cosine) is not returned.
        Raises ConfigError for an empty question, k below 1 or an unknown kind, UnknownMemory.
        """
        starts_M = np.arange(len(self.keys))
        return self._hits(question, k, self._scores(question, k, kinds, memories), starts_M)

    def retrieve_memories(
        self, question: str, *, k: int = 10, kinds: Chosen = None, memories: Chosen = None
    ) -> list[Hit]:
        """Return the k best memories, best first.

        Each scorer ranks memories by their best key, and these ranks are fused. The text of a hit
        is the best key by the scorer that ranks the memory higher. Raises as `retrieve`.
        """
        starts_M = np.array([each.start for each in self._slices.values()], dtype=np.int64)
        return self._hits(question, k, self._scores(question, k, kinds, memories), starts_M)

    def _hits(
        self, question: str, k: int, scores: dict[str, NDArray[Any]], starts_M: NDArray[np.int64]
    ) -> list[Hit]:
        """The k best groups of keys; group m begins at key starts_M[m] and ends before the next."""
        if not self.keys:
            return []
        stops_M = np.append(starts_M[1:], len(self.keys))
        best = {name: np.maximum.reduceat(score_N, starts_M) for name, score_N in scores.items()}
        ranks = {name: _ranks(score_M) for name, score_M in best.items()}
        fused_M = np.sum([np.where(r > 0, 1 / (RRF + r), 0.0) for r in ranks.values()], axis=0)
        positive = np.flatnonzero(fused_M > 0)
        wanted = dict.fromkeys(self.tokenise(question))
        hits: list[Hit] = []
        for m in positive[np.argsort(-fused_M[positive], kind="stable")[:k]]:
            placed = {name: int(rank_M[m]) for name, rank_M in ranks.items() if rank_M[m]}
            parts = {name: Part(float(best[name][m]), rank) for name, rank in placed.items()}
            group = slice(starts_M[m], stops_M[m])
            leading = min(placed, key=lambda name: placed[name])
            key = self.keys[group.start + int(np.argmax(scores[leading][group]))]
            terms = {term for each in self.terms[group] for term in each}
            matched, score = self.lexicon.matched(wanted, terms), float(fused_M[m])
            hits.append(Hit(key.memory, key.text, key.kind, score, len(hits) + 1, parts, matched))
        return hits

    def _scores(
        self, question: str, k: int, kinds: Chosen, memories: Chosen
    ) -> dict[str, NDArray[Any]]:
        """Scores of all keys by scorer; 0 for keys of other kinds or memories."""
        if not question.strip():
            raise ConfigError("retrieve was given an empty question; write one.")
        if k < 1:
            raise ConfigError(f"k is {k}; give the number of best keys, at least 1.")
        if kinds is not None and (isinstance(kinds, str) or not set(kinds) <= set(KINDS)):
            raise ConfigError(f"kinds are {kinds!r}; give some of {', '.join(KINDS)}.")
        allowed_N = np.full(len(self.keys), memories is None)
        for memory in memories or ():
            allowed_N[self._slice(memory)] = True
        if kinds is not None:
            allowed_N &= np.array([key.kind in kinds for key in self.keys], dtype=bool)
        scorers = [*SCORERS.items(), *self.more_scorers.items()]
        scores = ((name, scorer(self, question)) for name, scorer in scorers)
        return {name: np.where(allowed_N, x_N, 0.0) for name, x_N in scores if x_N is not None}

    def save(self, folder: Path) -> None:
        """Write keys.jsonl (a header, then one key a line), their terms and, if dense, vectors.

        The vectors come first, under the name of their digest; keys.jsonl names them and is
        replaced whole; terms.npz is derived and may be deleted. Raises StorageError when the disk
        refuses; the index on disk is then as before.
        """
        folder, rows = Path(folder), jsonl(self.keys)
        vectors_file = "" if self.vectors_ND is None else _write_vectors(folder, self.vectors_ND)
        mark = hashlib.sha256(rows).hexdigest()
        header = {"schema": SCHEMA, "n_keys": len(self.keys), "digest": mark}
        store(jsonl([header | {"vectors": vectors_file}]) + rows, folder / KEYS_FILE)
        self.lexicon.save(folder / TERMS_FILE, mark)
        for old in set(folder.glob("vectors-*.npy")) - {folder / vectors_file}:
            old.unlink(missing_ok=True)

    @classmethod
    def load(
        cls,
        folder: Path,
        *,
        tokenise: Tokenise = tokens,
        embed: Embed | None = None,
        embed_question: Embed | None = None,
    ) -> Index:
        """Read an index; the functions are not on disk and must be passed.

        Raises DataError for a folder that holds no whole index, ConfigError when it has vectors and
        `embed` is missing or returns another one for the first key.
        """
        header, keys = _stored_keys(Path(folder) / KEYS_FILE)
        terms = _stored_terms(Path(folder) / TERMS_FILE, str(header["digest"]), keys, tokenise)
        if not header.get("vectors"):
            vectors = _key_vectors(embed, keys) if embed and keys else None
            return cls(keys, terms, vectors, tokenise, embed, embed_question)
        if embed is None:
            raise ConfigError(f"{folder} holds vectors; pass the embed that computed them.")
        vectors_ND = _read_vectors(Path(folder), str(header["vectors"]), len(keys))
        n = next((n for n, key in enumerate(keys) if key.kind in BY_MEANING), 0)
        first_D = _like(_key_vectors(embed, keys[n : n + 1]), vectors_ND)[0]
        if np.abs(first_D - vectors_ND[n]).max() > SAME_VECTOR:
            raise ConfigError(f"the vectors in {folder} are not of this embed; build it again.")
        return cls(keys, terms, vectors_ND, tokenise, embed, embed_question)


def _stored_keys(path: Path) -> tuple[dict[str, Any], tuple[Key, ...]]:
    """The header and the keys of a file that `save` wrote; raises DataError for any other."""
    try:
        first, _, rows = path.read_bytes().partition(b"\n")
    except FileNotFoundError as error:
        raise DataError(f"{path} cannot be read: there is no such file; check the path.") from error
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error}; check the disk.") from error
    try:
        header = json.loads(first)
        whole = header["schema"] == SCHEMA and header["digest"] == hashlib.sha256(rows).hexdigest()
    except (ValueError, KeyError, TypeError, RecursionError):
        whole = False
    if not whole:
        raise DataError(
            f"{path} is not whole, or not of schema {SCHEMA}, which is read; build it again."
        )
    # What has its digest is what was written: all rows are parsed at once.
    return header, tuple(
        Key(**row) for row in json.loads(b"[" + b",".join(rows.splitlines()) + b"]")
    )


def _stored_terms(
    path: Path, mark: str, keys: Sequence[Key], tokenise: Tokenise
) -> Sequence[Terms]:
    """Terms of the keys from disk where `tokenise` gives the same, else computed again."""
    lexicon = Lexicon.load(path, mark)
    some = range(0, len(keys), max(1, len(keys) // N_COMPARED))
    if (
        lexicon is not None
        and len(lexicon) == len(keys)
        and all(lexicon.terms(n) == tuple(tokenise(keys[n].text)) for n in some)
    ):
        return StoredTerms(lexicon)
    return tuple(tuple(tokenise(key.text)) for key in keys)


def _as_key(row: Key | Mapping[str, Any]) -> Key:
    try:
        return row if isinstance(row, Key) else Key(**row)
    except TypeError as error:
        wrong = f"a row of the index is {str(row)[:80]}; give memory, text and perhaps kind."
        raise DataError(wrong) from error


# --- scores ------------------------------------------------------------------------------------

Scorer = Callable[[Index, str], NDArray[Any] | None]
"""An index and a question to a score_N of every key, 0 for none; None where the index lacks what
this scorer needs."""


def bm25_scores(index: Index, question: str) -> NDArray[Any]:
    """BM25 as a share of what the question scores against itself."""
    # rounded, so that equal texts tie whatever the order of additions was
    return np.round(index.lexicon.scores(index.tokenise(question)), 12)


def dense_scores(index: Index, question: str) -> NDArray[Any] | None:
    """Cosine with the question's vector, negative ones as 0; None for an index without vectors."""
    if index.embed is None or index.vectors_ND is None:
        return None
    last = index.last_vector
    if question not in last:  # several scorers ask for the same one
        last.clear()
        last[question] = _embedded(index.embed_question or index.embed, [question])
    vector_D = _like(last[question], index.vectors_ND)[0]
    return np.round(np.maximum(index.vectors_ND @ vector_D, 0.0), 6)


def passage_scores(index: Index, question: str) -> NDArray[Any] | None:
    """The dense score of passages and titles, 0 for other keys: the form of a question is not in
    it, which makes questions of one form near to each other whatever they are about."""
    score_N = dense_scores(index, question)
    return None if score_N is None else np.where(index.are_texts, score_N, 0.0)


SCORERS: dict[str, Scorer] = {"bm25": bm25_scores, "dense": dense_scores}


def _ranks(score_N: NDArray[Any]) -> NDArray[np.int64]:
    """Rank of each positive score, from 1, equal ones sharing it; 0 for the others."""
    rank_N = np.zeros(len(score_N), dtype=np.int64)
    positive = np.flatnonzero(score_N > 0)
    _, inverse, counts = np.unique(-score_N[positive], return_inverse=True, return_counts=True)
    rank_N[positive] = (np.cumsum(counts) - counts)[inverse] + 1
    return rank_N


def _embedded(embed: Embed, texts: list[str]) -> NDArray[np.float32]:
    """Vectors of length 1, a batch of texts at a time; a vector of zeros stays."""
    vectors = []
    for batch in (texts[n : n + EMBED_BATCH] for n in range(0, len(texts), EMBED_BATCH)):
        vector_ND = np.asarray(embed(batch), dtype=np.float64)
        one_row_each = vector_ND.ndim == 2 and len(vector_ND) == len(batch) and vector_ND.shape[1]
        if not one_row_each or not np.isfinite(vector_ND).all():
            raise DataError(
                f"embed was given {len(batch)} texts and returned an array of shape "
                f"{vector_ND.shape}; return one row of finite numbers for each."
            )
        length_N1 = np.linalg.norm(vector_ND, axis=1, keepdims=True)
        vectors.append(vector_ND / np.where(length_N1 > 0, length_N1, 1.0))
    return np.concatenate(vectors).astype(np.float32)


def _key_vectors(embed: Embed, keys: Sequence[Key]) -> NDArray[np.float32]:
    """Vectors of keys; zeros for those of kinds that get none."""
    rows = [n for n, key in enumerate(keys) if key.kind in BY_MEANING]
    vectors = _embedded(embed, [keys[n].text for n in rows or [0]])
    vector_ND = np.zeros((len(keys), vectors.shape[1]), dtype=np.float32)
    vector_ND[rows] = vectors[: len(rows)]
    return vector_ND


def _like(new_ND: NDArray[np.float32], old_ND: NDArray[np.float32]) -> NDArray[np.float32]:
    if new_ND.shape[1] != old_ND.shape[1]:
        sizes = f"{new_ND.shape[1]} numbers, those of the index have {old_ND.shape[1]}"
        raise DataError(f"embed gave a vector of {sizes}; use one encoder.")
    return new_ND


def _write_vectors(folder: Path, vectors_ND: NDArray[np.float32]) -> str:
    buffer = io.BytesIO()
    np.save(buffer, vectors_ND, allow_pickle=False)
    content = buffer.getvalue()
    name = f"vectors-{hashlib.sha256(content).hexdigest()[:16]}.npy"
    store(content, folder / name)
    return name


def _read_vectors(folder: Path, name: str, n_keys: int) -> NDArray[np.float32]:
    path = folder / Path(name).name  # a name only: an index must not point out of its folder
    content = path.read_bytes() if path.is_file() else b""
    vectors_ND = np.zeros((0, 0))
    if name == f"vectors-{hashlib.sha256(content).hexdigest()[:16]}.npy":
        vectors_ND = np.load(io.BytesIO(content), allow_pickle=False)
    if vectors_ND.ndim != 2 or len(vectors_ND) != n_keys:
        raise DataError(f"{path} is not what was written for {n_keys} keys; build it again.")
    return np.asarray(vectors_ND, dtype=np.float32)
