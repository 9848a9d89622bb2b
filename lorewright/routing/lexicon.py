"""Terms of texts, BM25 over them, and the same again from one file without computing it anew.

    idf(t)   = ln(1 + (N - df + ½) / (df + ½))          k1 = 1.5, b = 0.75
    share(q) = BM25(q, text) / BM25(q, q)               1 = as good as the question's own words

Lucene's form, by `bm25s`. What the texts are, and whose, is unknown here.

Papers: Robertson and Zaragoza 2009 (BM25); Lù 2024, arXiv 2407.03618 (bm25s).
"""

from __future__ import annotations

import io
import json
import logging
import math
import re
import unicodedata
import zipfile
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import bm25s
import numpy as np
from numpy.typing import NDArray

from lorewright.files import store

Terms = tuple[str, ...]
Tokenise = Callable[[str], Sequence[str]]
"""A text to the terms that BM25 counts."""
K1, B = 1.5, 0.75
SCHEMA = 1
SCORES = ("data", "indices", "indptr")
"""Of the matrix of terms by texts, column by column."""

_LOOKALIKES = str.maketrans("‘’‛ʼ‐‑‒–—−", "''''------")
_WORD = re.compile(r"\w+(?:[.,:'/@+-]\w+)*")
_SIMPLE = re.compile(r"[^\W_]+(?:'[^\W_]+)*")
_POSSESSIVE = re.compile(r"'s?\Z")
# Scripts written without spaces: Thai to Tibetan, Myanmar, Khmer, kana, Han with its extensions.
_UNSPACED = re.compile(
    "[\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff]+"
)

# bm25s sets its logger to DEBUG: every handler of the program would hear of every build
logging.getLogger("bm25s").setLevel(logging.WARNING)


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
    terms: list[str] = []
    for compound in _WORD.finditer(shadow):
        if plain is shadow and compound[0].isalnum():  # most words; the rest costs thrice as much
            terms.append(compound[0])
            continue
        whole = any(c.isdigit() or c == "@" for c in compound[0])
        for word in [compound] if whole else _SIMPLE.finditer(shadow, *compound.span()):
            term = plain[word.start() : word.end()]
            if _UNSPACED.match(term):
                terms += [term[n : n + 2] for n in range(max(1, len(term) - 1))]
            else:
                terms.append(_POSSESSIVE.sub("", term))
    return tuple(terms)


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
        """The terms of text n, in order."""
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
        """Share of the wanted terms that are among those held, by idf."""
        weights = {term: self.idf(term) for term in wanted}
        matched = sum(weight for term, weight in weights.items() if term in held)
        return matched / sum(weights.values()) if weights else 0.0

    # -- on disk

    def save(self, path: Path, mark: str) -> None:
        """Write all of it, whole or not at all, with a mark that `load` must be given.

        Raises StorageError when the disk refuses.
        """
        scores = self.bm25.scores if self.ids else {"data": [], "indices": [], "indptr": [0]}
        about = {"schema": SCHEMA, "mark": mark, "k1": K1, "b": B, "vocabulary": self.vocabulary}
        parts: dict[str, Any] = {key: np.asarray(scores[key]) for key in SCORES}
        parts["about"] = np.frombuffer(json.dumps(about).encode(), dtype=np.uint8)
        content = io.BytesIO()
        np.savez(content, flat=self.flat_L, starts=self.starts_N, **parts)
        store(content.getvalue(), path)

    @classmethod
    def load(cls, path: Path, mark: str) -> Lexicon | None:
        """What `save` wrote with this mark; None where it is missing, damaged or another's.

        It is derived data: the caller computes it then.
        """
        try:
            # By way of memory: of a damaged file numpy would leave a handle open.
            with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
                parts = {key: file[key] for key in file.files}
            about = json.loads(parts["about"].tobytes())
            expected = {"schema": SCHEMA, "mark": mark, "k1": K1, "b": B}
            if any(about[key] != value for key, value in expected.items()):
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
        lexicon = cls.__new__(cls)
        lexicon._set(bm25, vocabulary, flat_L, starts_N)
        return lexicon


class StoredTerms(Sequence[Terms]):
    """The terms of a lexicon's texts as a sequence, each read when it is used."""

    def __init__(self, lexicon: Lexicon) -> None:
        self.lexicon = lexicon

    def __len__(self) -> int:
        return len(self.lexicon)

    def __getitem__(self, n: int | slice) -> Terms | list[Terms]:  # type: ignore[override]
        if isinstance(n, slice):
            return [self.lexicon.terms(i) for i in range(*n.indices(len(self)))]
        return self.lexicon.terms(range(len(self))[n])
