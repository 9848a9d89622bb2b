"""Keys of memories, and the ones nearest to a question: BM25, optionally vectors, fused by rank.

    share(q, k) = BM25(q, k) / BM25(q, q)          1 = as good as the question's own words
    score(k)    = Σ over parts 1 / (60 + rank of k in that part)

BM25 is that of `lexicon`. Dividing makes scores of different questions comparable; words that no
key holds count below, so a question about other things stays low. The dense part is the cosine of
vectors from a function that is passed in. Equal scores share a rank; what is still tied keeps the
order of memory, text, kind, so an index answers alike however its keys came into it.

This room knows words and vectors of texts. It knows nothing of adapters, of probabilities or of
when to abstain: that is `route`.

Paper: Cormack, Clarke and Büttcher 2009 (reciprocal rank fusion and its 60).
"""

import hashlib
import io
import json
import re
import unicodedata
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
from lorewright.knowledge.splitting import passages
from lorewright.routing.lexicon import Lexicon, Stored, Terms

Embed = Callable[[list[str]], Any]
"""Texts to vectors: n texts give an array of n rows; where prefixes matter, it adds them."""
Tokenise = Callable[[str], Sequence[str]]
"""A text to the terms that BM25 counts."""
Chosen = Collection[str] | None
"""Which ones; None = all."""
Vectors = NDArray[np.float32] | None

KINDS = ("passage", "question", "title", "entity")
SCHEMA = 2
KEYS_FILE, TERMS_FILE = "keys.jsonl", "terms.npz"
PASSAGE_CHARS = 1000
"""Longest passage that becomes one key, in characters: about 256 tokens."""
RRF, EMBED_BATCH = 60, 256
N_COMPARED = 50
"""Of so many stored keys the terms are made again, to see whether the function is the same."""
SAME_VECTOR = 0.02  # in any number; a stored vector that differs more is of another function

_LOOKALIKES = str.maketrans("‘’‛ʼ‐‑‒–—−", "''''------")
_WORD = re.compile(r"\w+(?:[.,:'/@+-]\w+)*")
_SIMPLE = re.compile(r"[^\W_]+(?:'[^\W_]+)*")
_POSSESSIVE = re.compile(r"'s?\Z")
# Scripts written without spaces: Thai to Tibetan, Myanmar, Khmer, kana, Han with its extensions.
_UNSPACED = re.compile(
    "[\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff]+"
)


# --- words -------------------------------------------------------------------------------------


def tokens(text: str) -> tuple[str, ...]:
    """Return the terms of a text: lower case, without accents, numbers and codes whole.

    What holds a digit or an @ stays one term (603-556-7631, AX-17/b, a@b.de); other compounds are
    split, possessives dropped. Scripts without spaces give overlapping pairs of characters.
    """
    if text.isascii():
        plain = shadow = text.lower()
    else:
        folded = unicodedata.normalize("NFKD", unicodedata.normalize("NFKC", text).casefold())
        bare = "".join(c for c in folded if not "\u0300" <= c <= "\u036f")
        plain = unicodedata.normalize("NFKC", bare).casefold().translate(_LOOKALIKES)
        plain = _UNSPACED.sub(r" \g<0> ", plain)
        # \w leaves out the vowel signs of Indic scripts, which are parts of words
        shadow = "".join("a" if unicodedata.category(c)[0] == "M" else c for c in plain)
    found: list[str] = []
    for compound in _WORD.finditer(shadow):
        if plain is shadow and compound[0].isalnum():  # most words; the rest costs thrice as much
            found.append(compound[0])
            continue
        whole = any(c.isdigit() or c == "@" for c in compound[0])
        for word in [compound] if whole else _SIMPLE.finditer(shadow, *compound.span()):
            term = plain[word.start() : word.end()]
            if _UNSPACED.match(term):
                found += [term[n : n + 2] for n in range(max(1, len(term) - 1))]
            else:
                found.append(_POSSESSIVE.sub("", term))
    return tuple(found)


# --- keys --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Key:
    """A text under which a memory can be found."""

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

    `entities` finds names in a document's text. A fact without a document here gives a passage as
    well, its question and answer. Paraphrases of facts give none: routing is measured with them.
    """
    found: list[Key] = []
    for document in knowledge.documents:
        if document.title.strip():
            found.append(Key(memory, document.title, "title"))
        found += [Key(memory, text) for text in passages(document.text, max_chars=max_chars)]
        found += [Key(memory, text, "entity") for text in entities(document.text)]
    held = {document.id for document in knowledge.documents}
    for fact in knowledge.facts:
        found.append(Key(memory, fact.question, "question"))
        if fact.source not in held:
            found.append(Key(memory, f"{fact.question} {fact.answer}"))
    return tuple(dict.fromkeys(found))


class Part(NamedTuple):
    """What one way of searching said of a hit."""

    score: float
    """bm25: share of the question's score against itself; dense: cosine."""
    rank: int
    """From 1; equal scores share it."""


@dataclass(frozen=True)
class Hit:
    """A memory, or one of its keys, that answers to a question."""

    memory: str
    key: str
    """The text that was found; of a memory, its best one."""
    kind: str
    score: float
    """The order of the list: fused ranks here; routers say what theirs is."""
    rank: int
    """Place in the list, from 1."""
    parts: Mapping[str, Part] = field(default_factory=dict, hash=False)
    """By way of searching; one that did not find it is missing."""
    matched: float = 0.0
    """Share of the question's terms that the key (of a memory: any of its keys) holds, by idf."""
    probability: float | None = None
    """Calibrated probability that this memory holds the answer; None = not calibrated."""


Retriever = Callable[[str], list[Hit]]
"""A question to memories, best first; [] where nothing matches, or to abstain."""


# --- the index ---------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Index:
    """Keys of any number of memories, searched together; made by `Index.build` or `Index.load`.

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
    ) -> "Index":
        """Index keys, or rows with memory, text and kind (default passage).

        `embed` adds the dense part; `embed_question` is for encoders that want questions prefixed.
        Raises DataError for unusable rows or vectors, ConfigError for `embed_question` alone.
        """
        return cls((), (), None, tokenise, embed, embed_question).with_keys(rows)

    @property
    def memories(self) -> tuple[str, ...]:
        """Ids of the memories that have keys, sorted."""
        return tuple(self._slices)

    def with_keys(self, rows: Iterable[Key | Mapping[str, Any]]) -> "Index":
        """Return an index that holds these keys as well; those it has already count once."""
        have = set(self.keys)
        new = [key for key in dict.fromkeys(map(_as_key, rows)) if key not in have]
        keys = (*self.keys, *new)
        order = sorted(range(len(keys)), key=lambda n: (keys[n].memory, keys[n].text, keys[n].kind))
        terms = (*self.terms, *(tuple(self.tokenise(key.text)) for key in new))
        vectors = self.vectors_ND
        if self.embed is not None and new:
            more = _embedded(self.embed, [key.text for key in new])
            vectors = more if vectors is None else np.concatenate([vectors, _like(more, vectors)])
        return self._picked(keys, terms, vectors, order)

    def without(self, memory: str) -> "Index":
        """Return an index without the keys of a memory. Raises UnknownMemory if it has none."""
        gone = self._slice(memory)
        order = [n for n in range(len(self.keys)) if not gone.start <= n < gone.stop]
        return self._picked(self.keys, self.terms, self.vectors_ND, order)

    def _picked(
        self, keys: Sequence[Key], terms: Sequence[Terms], vectors: Vectors, order: Sequence[int]
    ) -> "Index":
        return replace(
            self,
            keys=tuple(keys[n] for n in order),
            terms=tuple(terms[n] for n in order),
            vectors_ND=vectors[list(order)] if vectors is not None and order else None,
        )

    @cached_property
    def _lexicon(self) -> Lexicon:
        return self.terms.lexicon if isinstance(self.terms, Stored) else Lexicon(self.terms)

    @cached_property
    def _slices(self) -> dict[str, slice]:
        """Where each memory's keys stand."""
        found, start = {}, 0
        for memory, run in groupby(self.keys, key=lambda key: key.memory):
            stop = start + len(list(run))
            found[memory] = slice(start, stop)
            start = stop
        return found

    def _slice(self, memory: str) -> slice:
        if memory not in self._slices:
            n = len(self._slices)
            raise UnknownMemory(f"asked for memory {memory!r}; the index holds {n} others only.")
        return self._slices[memory]

    def retrieve(
        self, question: str, *, k: int = 10, kinds: Chosen = None, memories: Chosen = None
    ) -> list[Hit]:
        """Return the k best keys, best first, of these kinds and memories.

        A key that no part finds (no common word, no positive cosine) is not returned. Raises
        ConfigError for an empty question, k below 1 or an unknown kind, UnknownMemory.
        """
        starts_M = np.arange(len(self.keys))
        return self._hits(question, k, self._scores(question, k, kinds, memories), starts_M)

    def retrieve_memories(
        self, question: str, *, k: int = 10, kinds: Chosen = None, memories: Chosen = None
    ) -> list[Hit]:
        """Return the k best memories, best first.

        Each part ranks memories by their best key, and these ranks are fused. The text of a hit is
        the best key in the part that ranks the memory higher. Raises as `retrieve`.
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
        found = np.flatnonzero(fused_M > 0)
        wanted = dict.fromkeys(self.tokenise(question))
        hits: list[Hit] = []
        for m in found[np.argsort(-fused_M[found], kind="stable")[:k]]:
            placed = {name: int(rank_M[m]) for name, rank_M in ranks.items() if rank_M[m]}
            parts = {name: Part(float(best[name][m]), rank) for name, rank in placed.items()}
            group = slice(starts_M[m], stops_M[m])
            leading = min(placed, key=lambda name: placed[name])
            key = self.keys[group.start + int(np.argmax(scores[leading][group]))]
            held = {term for each in self.terms[group] for term in each}
            matched, score = self._lexicon.matched(wanted, held), float(fused_M[m])
            hits.append(Hit(key.memory, key.text, key.kind, score, len(hits) + 1, parts, matched))
        return hits

    def _scores(
        self, question: str, k: int, kinds: Chosen, memories: Chosen
    ) -> dict[str, NDArray[Any]]:
        """Scores of all keys by part; 0 = not found, or not asked for."""
        if not question.strip():
            raise ConfigError("retrieve was given an empty question; write one.")
        if k < 1:
            raise ConfigError(f"asked for the {k} best keys; give k of at least 1.")
        if kinds is not None and (isinstance(kinds, str) or not set(kinds) <= set(KINDS)):
            raise ConfigError(f"asked for kinds {kinds!r}; give some of {', '.join(KINDS)}.")
        # rounded, so that equal texts tie whatever the order of additions was
        found = {"bm25": np.round(self._lexicon.scores(self.tokenise(question)), 12)}
        if self.embed is not None and self.vectors_ND is not None:
            vector_1D = _embedded(self.embed_question or self.embed, [question])
            vector_D = _like(vector_1D, self.vectors_ND)[0]
            found["dense"] = np.round(np.maximum(self.vectors_ND @ vector_D, 0.0), 6)
        allowed_N = np.full(len(self.keys), memories is None)
        for memory in memories or ():
            allowed_N[self._slice(memory)] = True
        if kinds is not None:
            allowed_N &= np.array([key.kind in kinds for key in self.keys], dtype=bool)
        return {name: np.where(allowed_N, score_N, 0.0) for name, score_N in found.items()}

    def save(self, folder: Path) -> None:
        """Write keys.jsonl (a header, then one key a line), their terms and, if dense, vectors.

        The vectors come first, under the name of their digest; keys.jsonl names them and is
        replaced whole; terms.npz is derived and may be deleted. Raises StorageError when the disk
        refuses; the index that was there is then intact.
        """
        folder, rows = Path(folder), jsonl(self.keys)
        vectors_file = "" if self.vectors_ND is None else _write_vectors(folder, self.vectors_ND)
        mark = hashlib.sha256(rows).hexdigest()
        header = {"schema": SCHEMA, "n_keys": len(self.keys), "digest": mark}
        store(jsonl([header | {"vectors": vectors_file}]) + rows, folder / KEYS_FILE)
        self._lexicon.save(folder / TERMS_FILE, mark)
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
    ) -> "Index":
        """Read an index; the functions are not on disk and are given again.

        Raises DataError for a folder that holds no whole index, ConfigError when it has vectors and
        `embed` is missing or gives another one for the first key.
        """
        header, keys = _stored_keys(Path(folder) / KEYS_FILE)
        terms = _stored_terms(Path(folder) / TERMS_FILE, str(header["digest"]), keys, tokenise)
        if not header.get("vectors"):
            vectors = _embedded(embed, [key.text for key in keys]) if embed and keys else None
            return cls(keys, terms, vectors, tokenise, embed, embed_question)
        if embed is None:
            raise ConfigError(f"{folder} holds vectors; give load the embed that made them.")
        vectors_ND = _read_vectors(Path(folder), str(header["vectors"]), len(keys))
        first_D = _like(_embedded(embed, [keys[0].text]), vectors_ND)[0]
        if np.abs(first_D - vectors_ND[0]).max() > SAME_VECTOR:
            raise ConfigError(f"the vectors in {folder} are not of this embed; build it again.")
        return cls(keys, terms, vectors_ND, tokenise, embed, embed_question)


def _stored_keys(path: Path) -> tuple[dict[str, Any], tuple[Key, ...]]:
    """The header and the keys of a file that `save` wrote; raises DataError for any other."""
    try:
        first, _, rows = path.read_bytes().partition(b"\n")
    except FileNotFoundError as error:
        raise DataError(f"asked to load {path}; there is no such file; check the path.") from error
    except OSError as error:
        raise StorageError(f"asked to load {path}; the disk said: {error}.") from error
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
    """Terms of the keys from disk where they are what this function gives; else made again."""
    held = Lexicon.load(path, mark)
    some = range(0, len(keys), max(1, len(keys) // N_COMPARED))
    if (
        held is not None
        and len(held) == len(keys)
        and all(held.terms(n) == tuple(tokenise(keys[n].text)) for n in some)
    ):
        return Stored(held)
    return tuple(tuple(tokenise(key.text)) for key in keys)


def _as_key(row: Key | Mapping[str, Any]) -> Key:
    try:
        return row if isinstance(row, Key) else Key(**row)
    except TypeError as error:
        wrong = f"a row of the index is {str(row)[:80]}; give memory, text and perhaps kind."
        raise DataError(wrong) from error


# --- scores ------------------------------------------------------------------------------------


def _ranks(score_N: NDArray[Any]) -> NDArray[np.int64]:
    """Rank of each positive score, from 1, equal ones sharing it; 0 = not found."""
    rank_N = np.zeros(len(score_N), dtype=np.int64)
    found = np.flatnonzero(score_N > 0)
    _, inverse, counts = np.unique(-score_N[found], return_inverse=True, return_counts=True)
    rank_N[found] = (np.cumsum(counts) - counts)[inverse] + 1
    return rank_N


def _embedded(embed: Embed, texts: list[str]) -> NDArray[np.float32]:
    """Vectors of length 1, a batch of texts at a time; a vector of zeros stays."""
    found = []
    for batch in (texts[n : n + EMBED_BATCH] for n in range(0, len(texts), EMBED_BATCH)):
        vector_ND = np.asarray(embed(batch), dtype=np.float64)
        one_row_each = vector_ND.ndim == 2 and len(vector_ND) == len(batch) and vector_ND.shape[1]
        if not one_row_each or not np.isfinite(vector_ND).all():
            raise DataError(
                f"embed was given {len(batch)} texts and returned an array of shape "
                f"{vector_ND.shape}; return one row of finite numbers for each."
            )
        length_N1 = np.linalg.norm(vector_ND, axis=1, keepdims=True)
        found.append(vector_ND / np.where(length_N1 > 0, length_N1, 1.0))
    return np.concatenate(found).astype(np.float32)


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
