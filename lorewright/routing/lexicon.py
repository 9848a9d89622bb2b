"""BM25 over the terms of many texts, and the same again from one file without computing it anew.

    idf(t)   = ln(1 + (N - df + ½) / (df + ½))          k1 = 1.5, b = 0.75
    share(q) = BM25(q, text) / BM25(q, q)               1 = as good as the question's own words

Lucene's form, by `bm25s`. This room knows terms; it knows nothing of what the texts are, or whose.

Papers: Robertson and Zaragoza 2009 (BM25); Lù 2024, arXiv 2407.03618 (bm25s).
"""

from __future__ import annotations

import io
import json
import logging
import math
import zipfile
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import bm25s
import numpy as np
from numpy.typing import NDArray

from lorewright.files import store

Terms = tuple[str, ...]
K1, B = 1.5, 0.75
SCHEMA = 1
SCORES = ("data", "indices", "indptr")
"""Of the matrix of terms by texts, column by column."""

# bm25s sets its logger to DEBUG: every handler of the program would hear of every build
logging.getLogger("bm25s").setLevel(logging.WARNING)


class Lexicon:
    """The terms of N texts, in order, with the score of every term in every text."""

    def __init__(self, texts: Iterable[Sequence[str]]) -> None:
        ids: dict[str, int] = {}
        rows = [[ids.setdefault(term, len(ids)) for term in terms] for terms in texts]
        bm25 = bm25s.BM25(method="lucene", k1=K1, b=B, dtype="float64")
        if ids:
            bm25.index((rows, ids), create_empty_token=False, show_progress=False)
        starts_N = np.cumsum([0, *map(len, rows)])
        flat = [i for row in rows for i in row]
        self._set(bm25, list(ids), np.array(flat, dtype=np.int32), starts_N)

    def _set(
        self,
        bm25: bm25s.BM25,
        vocabulary: list[str],
        flat_L: NDArray[np.int32],
        starts_N: NDArray[np.int64],
    ) -> None:
        self.bm25, self.vocabulary, self.flat_L, self.starts_N = bm25, vocabulary, flat_L, starts_N
        self.ids = {term: i for i, term in enumerate(vocabulary)}
        self.mean_length = len(flat_L) / len(self) if len(self) else 0.0

    def __len__(self) -> int:
        return len(self.starts_N) - 1

    def terms(self, n: int) -> Terms:
        """The terms of a text, as they were given."""
        row = self.flat_L[self.starts_N[n] : self.starts_N[n + 1]]
        return tuple(self.vocabulary[i] for i in row)

    def idf(self, term: str) -> float:
        """Rarity of a term; largest for one that no text holds."""
        n_with = 0
        if term in self.ids:
            n_with = int(np.diff(self.bm25.scores["indptr"][self.ids[term] :][:2])[0])
        return math.log(1 + (len(self) - n_with + 0.5) / (n_with + 0.5))

    def scores(self, question: Sequence[str]) -> NDArray[np.float64]:
        """BM25 of every text, over that of a text which is the question itself."""
        known = [self.ids[term] for term in question if term in self.ids]
        if not known:
            return np.zeros(len(self))
        length = K1 * ((1 - B) + B * len(question) / self.mean_length)
        own = sum(self.idf(term) * n * n / (length + n) for term, n in Counter(question).items())
        return np.asarray(self.bm25.get_scores_from_ids(known) / own)

    def matched(self, wanted: Collection[str], held: set[str]) -> float:
        """Share of the wanted terms that are held, by idf."""
        weights = {term: self.idf(term) for term in wanted}
        found = sum(weight for term, weight in weights.items() if term in held)
        return found / sum(weights.values()) if weights else 0.0

    # -- on disk

    def save(self, path: Path, mark: str) -> None:
        """Write all of it, whole or not at all, with a mark by which `load` knows it again.

        Raises StorageError when the disk refuses.
        """
        held = self.bm25.scores if self.ids else {"data": [], "indices": [], "indptr": [0]}
        about = {"schema": SCHEMA, "mark": mark, "k1": K1, "b": B, "vocabulary": self.vocabulary}
        parts: dict[str, Any] = {key: np.asarray(held[key]) for key in SCORES}
        parts["about"] = np.frombuffer(json.dumps(about).encode(), dtype=np.uint8)
        content = io.BytesIO()
        np.savez(content, flat=self.flat_L, starts=self.starts_N, **parts)
        store(content.getvalue(), path)

    @classmethod
    def load(cls, path: Path, mark: str) -> Lexicon | None:
        """What `save` wrote with this mark; None where it is missing, damaged or another's.

        It is derived data: whoever gets None computes it.
        """
        try:
            # By way of memory: of a damaged file numpy would leave a handle open.
            with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
                parts = {key: file[key] for key in file.files}
            about = json.loads(parts["about"].tobytes())
            asked = {"schema": SCHEMA, "mark": mark, "k1": K1, "b": B}
            if any(about[key] != value for key, value in asked.items()):
                return None
            starts_N, flat_L, indptr = parts["starts"], parts["flat"], parts["indptr"]
            n_texts, vocabulary = len(starts_N) - 1, about["vocabulary"]
            whole = starts_N[-1] == len(flat_L) and len(indptr) == len(vocabulary) + 1
            if not whole or indptr[-1] != len(parts["data"]) or n_texts < 0:
                return None
        except (OSError, ValueError, KeyError, IndexError, EOFError, zipfile.BadZipFile):
            return None
        bm25 = bm25s.BM25(method="lucene", k1=K1, b=B, dtype="float64")
        bm25.scores = {key: parts[key] for key in SCORES}
        bm25.scores["num_docs"] = n_texts
        bm25.nonoccurrence_array = None  # Lucene's form has none
        found = cls.__new__(cls)
        found._set(bm25, vocabulary, flat_L, starts_N)
        return found


class Stored(Sequence[Terms]):
    """The terms of a lexicon's texts as a sequence, each read when it is asked for."""

    def __init__(self, lexicon: Lexicon) -> None:
        self.lexicon = lexicon

    def __len__(self) -> int:
        return len(self.lexicon)

    def __getitem__(self, n: int | slice) -> Terms | list[Terms]:  # type: ignore[override]
        if isinstance(n, slice):
            return [self.lexicon.terms(i) for i in range(*n.indices(len(self)))]
        return self.lexicon.terms(range(len(self))[n])
