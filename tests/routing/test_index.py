"""Claims about the index: what comes first, what ties, what survives change and disk."""

import json
import math
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorewright.errors import ConfigError, DataError, UnknownMemory
from lorewright.knowledge.data import Document, Fact, Knowledge
from lorewright.routing.gate import HeldOut, decide, fit_gate
from lorewright.routing.index import (
    BY_MEANING,
    KEYS_FILE,
    KINDS,
    SCORERS,
    TERMS_FILE,
    Index,
    Key,
    keys_of,
)
from lorewright.routing.lexicon import K1, B, tokens

WORDS = ("leave", "form", "badge", "floor", "AX-17", "603-556-7631", "mara", "the", "of", "signs")
TEXT = st.lists(st.sampled_from(WORDS), min_size=1, max_size=6).map(" ".join)
KEY = st.builds(Key, st.sampled_from(["a", "b", "c"]), TEXT, st.sampled_from(KINDS))
TEXTS = st.text(min_size=1).filter(str.strip)
KEYS = st.lists(KEY, min_size=1, max_size=12)
SMALL = [
    Key("handbook", "Who signs off leave?", "question"),
    Key("handbook", "Leave is signed off by Mara Lindqvist."),
    Key("phones", "The number of Mara Lindqvist is 603-556-7631."),
    Key("phones", "Phone list", "title"),
]


def hashed(texts: list[str]) -> Any:
    """Return a bag of characters as a vector: the dense part of a test."""
    return [[1.0 + text.lower().count(c) for c in "abcdefghijklmnop"] for text in texts]


def bm25(question: str, texts: list[str], n: int) -> float:
    """Return the formula, written down once more; for texts[n]."""
    rows = [tokens(text) for text in texts]
    mean = sum(map(len, rows)) / len(rows)

    def against(row: tuple[str, ...]) -> float:
        total = 0.0
        for term in tokens(question):
            n_with = sum(term in other for other in rows)
            idf = math.log(1 + (len(rows) - n_with + 0.5) / (n_with + 0.5))
            tf = Counter(row)[term]
            total += idf * tf / (tf + K1 * (1 - B + B * len(row) / mean))
        return total

    return against(rows[n]) / against(tokens(question))


# --- words


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("Call 603-556-7631 by 10:30!", ["call", "603-556-7631", "by", "10:30"]),
        ("AX-17/b, v1.2.3 and ref_12.", ["ax-17/b", "v1.2.3", "and", "ref_12"]),
        ("well-known and/or e.g.", ["well", "known", "and", "or", "e", "g"]),
        ("Mara's, Mara’s, O'Brien", ["mara", "mara", "o'brien"]),
        ("a.b@c.de", ["a.b@c.de"]),
        ("Café MÜLLER straße ﬁn", ["cafe", "muller", "strasse", "fin"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("東京都は2021年", ["東京", "京都", "都は", "2021", "年"]),
        ("Ελλάδα Йод", ["ελλαδα", "иод"]),
        ("?! —", []),
    ],
)
def test_terms_are_lower_case_and_codes_whole(text: str, terms: list[str]) -> None:
    assert list(tokens(text)) == terms


@given(st.text())
def test_terms_hold_no_space_and_do_not_depend_on_case_or_on_what_is_around(text: str) -> None:
    terms = tokens(text)
    assert all(term and not any(c.isspace() for c in term) for term in terms)
    assert tokens(f"  {text} ") == terms
    assert tokens(f"x {text} y") == ("x", *terms, "y")


@given(st.text(alphabet="abcXYZ019-@_'. ,", max_size=30))
def test_case_does_not_matter(text: str) -> None:
    assert tokens(text.upper()) == tokens(text.lower()) == tokens(text)


# --- what is retrieved


@settings(max_examples=50)
@given(KEYS, TEXT)
def test_scores_are_the_formula_as_a_share_of_the_questions_own(
    keys: list[Key], question: str
) -> None:
    index = Index.build(keys)
    texts = [key.text for key in index.keys]
    hits = {(hit.memory, hit.key, hit.kind): hit for hit in index.retrieve(question, k=99)}
    for n, key in enumerate(index.keys):
        expected = bm25(question, texts, n)
        hit = hits.get((key.memory, key.text, key.kind))
        assert (hit is None) == (expected == 0)
        assert hit is None or hit.parts["bm25"].score == pytest.approx(expected, rel=1e-9)


@settings(max_examples=50)
@given(KEYS)
def test_a_key_that_is_the_question_scores_one_and_matches_all(keys: list[Key]) -> None:
    index = Index.build(keys)
    for key in keys:
        hits = [hit for hit in index.retrieve(key.text, k=99) if hit.key == key.text]
        assert hits and all(hit.parts["bm25"].score == pytest.approx(1) for hit in hits)
        assert all(hit.matched == pytest.approx(1) for hit in hits)


@settings(max_examples=50)
@given(KEYS, TEXT, st.integers(1, 5), st.sampled_from([None, hashed]))
def test_lists_are_ordered_ranked_and_fewer_are_a_beginning(
    keys: list[Key], question: str, k: int, embed: Any
) -> None:
    index = Index.build(keys, embed=embed)
    for retrieve in (index.retrieve, index.retrieve_memories):
        hits = retrieve(question, k=99)
        assert retrieve(question, k=k) == hits[:k]
        assert [hit.rank for hit in hits] == list(range(1, len(hits) + 1))
        assert [hit.score for hit in hits] == sorted((h.score for h in hits), reverse=True)
        for hit in hits:
            assert hit.score == pytest.approx(sum(1 / (60 + p.rank) for p in hit.parts.values()))
            assert 0 <= hit.matched <= 1 + 1e-9 and hit.probability is None


@settings(max_examples=50)
@given(KEYS, TEXT)
def test_a_memory_scores_as_its_best_key(keys: list[Key], question: str) -> None:
    index = Index.build(keys)
    best: dict[str, float] = {}
    for hit in index.retrieve(question, k=99):
        best.setdefault(hit.memory, hit.parts["bm25"].score)
    hits = index.retrieve_memories(question, k=99)
    assert {hit.memory: hit.parts["bm25"].score for hit in hits} == best


@settings(max_examples=50)
@given(KEYS, TEXT, st.randoms(use_true_random=False), st.sampled_from([None, hashed]))
def test_answers_do_not_depend_on_how_keys_came_in(
    keys: list[Key], question: str, random: Any, embed: Any
) -> None:
    index = Index.build(keys, embed=embed)
    other = [*keys, Key("gone", "the badge of mara")]
    random.shuffle(other)
    grown = Index.build(other[:3], embed=embed).with_keys(other[2:]).without("gone")
    assert grown.keys == index.keys and grown.terms == index.terms
    assert grown.retrieve(question) == index.retrieve(question)
    assert grown.retrieve_memories(question) == index.retrieve_memories(question)


def test_equal_scores_share_a_rank_and_stand_in_order() -> None:
    index = Index.build([Key(name, "one two") for name in "cab"])
    hits = index.retrieve("two")
    assert [hit.memory for hit in hits] == ["a", "b", "c"]
    assert {hit.parts["bm25"].rank for hit in hits} == {1}


def test_codes_names_and_questions_retrieve_their_memory() -> None:
    index = Index.build(SMALL)
    for question, memory in [
        ("whose is 603-556-7631", "phones"),
        ("Whose signature does leave need?", "handbook"),
        ("phone", "phones"),
    ]:
        assert index.retrieve_memories(question)[0].memory == memory
    assert index.retrieve("Quantum chromodynamics") == []
    assert index.memories == ("handbook", "phones")


def test_words_that_no_key_holds_lower_the_share_matched() -> None:
    index = Index.build(SMALL)
    (plain, *_), (strange, *_) = (
        index.retrieve_memories(q) for q in ("leave", "leave quantum chromodynamics")
    )
    assert plain.matched == pytest.approx(1)
    assert strange.matched < 0.3
    assert strange.parts["bm25"].score < plain.parts["bm25"].score


def test_dense_scores_reach_what_shares_no_word_and_fusion_knows_both() -> None:
    index = Index.build(SMALL, embed=hashed)
    hit = index.retrieve("leaves", k=1)[0]
    assert set(hit.parts) == {"dense"}
    both = index.retrieve_memories("Who signs off leave?")[0]
    assert set(both.parts) == {"bm25", "dense"}
    assert both.parts["dense"].score == pytest.approx(1, abs=1e-5)
    assert both.score == pytest.approx(2 / 61)


def test_questions_use_their_own_encoder() -> None:
    encoded: list[str] = []

    def prefixed(texts: list[str]) -> Any:
        encoded.extend(texts)
        return hashed(texts)

    Index.build(SMALL, embed=hashed, embed_question=prefixed).retrieve("leave")
    assert encoded == ["leave"]


def test_kinds_and_memories_narrow_the_search() -> None:
    index = Index.build(SMALL)
    assert {h.kind for h in index.retrieve("mara leave list", kinds=("title",))} == {"title"}
    assert {h.memory for h in index.retrieve("mara", memories=("phones",))} == {"phones"}
    assert index.retrieve("mara", memories=()) == []


# --- the seam: how keys are scored


@pytest.mark.parametrize("name", SCORERS)
@settings(max_examples=30)
@given(keys=KEYS, question=TEXT)
def test_every_scorer_scores_each_key_once_and_the_question_itself_highest(
    name: str, keys: list[Key], question: str
) -> None:
    index = Index.build([*keys, Key("z", question)], embed=hashed)
    score_N = SCORERS[name](index, question)
    assert score_N is not None and score_N.shape == (len(index.keys),) and (score_N >= 0).all()
    kinds = BY_MEANING if name == "dense" else KINDS
    own = [n for n, k in enumerate(index.keys) if k.text == question and k.kind in kinds]
    assert score_N[own] == pytest.approx(score_N.max(), rel=1e-5)  # vectors are float32
    assert score_N[own] == pytest.approx(1, rel=1e-5)


def test_a_scorer_without_its_data_has_no_part() -> None:
    assert SCORERS["dense"](Index.build(SMALL), "leave") is None
    assert {part for hit in Index.build(SMALL).retrieve("leave") for part in hit.parts} == {"bm25"}


def test_a_scorer_from_outside_is_fused_and_reaches_the_gate() -> None:
    def prefix(index: Index, question: str) -> Any:
        return np.array([float(key.text[:4].lower() == question[:4].lower()) for key in index.keys])

    index = Index.build(SMALL, more_scorers={"prefix": prefix})
    first = index.retrieve_memories("Phones of whom?")[0]
    assert first.memory == "phones" and first.parts["prefix"] == (1.0, 1)
    grown = index.without("handbook").with_keys([Key("z", "Phonograph")])
    assert grown.more_scorers == index.more_scorers
    questions = [HeldOut("Phones?", ("phones",)), HeldOut("Whoever?", ("handbook",))]
    retrieve = partial(index.retrieve_memories, k=3)
    gate = fit_gate(retrieve, [*questions, HeldOut("Mara?")], ["Who signs?"] * 200)
    assert gate.calibration.parts == ("bm25", "prefix")
    assert decide(retrieve("Phones?"), gate).hits[0].memory == "phones"


# --- keys of knowledge


def test_knowledge_gives_passages_titles_questions_and_never_paraphrases() -> None:
    document = Document("d", "# Leave\n\nMara signs.", "Leave")
    own = Fact("f", "Who signs?", "Mara", paraphrases=("Whose signature?",), source="d")
    loose = Fact("g", "Which floor?", "Third", aliases=("3rd",), source="elsewhere")
    keys = keys_of(Knowledge((document,), (own, loose)), "m", entities=lambda text: ["Mara"])
    assert {(key.kind, key.text) for key in keys} == {
        ("title", "Leave"),
        ("passage", "# Leave\n\nMara signs."),
        ("entity", "Mara"),
        ("question", "Who signs?"),
        ("question", "Which floor?"),
        ("passage", "Which floor? Third"),
    }


# --- change and disk


def test_an_index_is_unchanged_by_what_is_made_of_it() -> None:
    index = Index.build(SMALL)
    before = index.retrieve("mara")
    index.with_keys([{"memory": "new", "text": "Mara"}])
    index.without("phones")
    assert index.retrieve("mara") == before
    assert "phones" not in {h.memory for h in index.without("phones").retrieve("mara")}


@settings(max_examples=20)
@given(rows=st.lists(st.builds(Key, st.sampled_from("ab"), TEXTS), max_size=5))
def test_rows_of_any_text_come_back_from_disk(
    tmp_path_factory: pytest.TempPathFactory, rows: Any
) -> None:
    folder = tmp_path_factory.mktemp("index")
    index = Index.build(rows)
    index.save(folder)
    assert Index.load(folder).keys == index.keys


def test_a_dense_index_comes_back_from_disk_without_embedding_again(tmp_path: Path) -> None:
    index = Index.build(SMALL, embed=hashed)
    index.save(tmp_path)
    n_texts = 0

    def counting(texts: list[str]) -> Any:
        nonlocal n_texts
        n_texts += len(texts)
        return hashed(texts)

    loaded = Index.load(tmp_path, embed=counting)
    assert n_texts == 1
    assert loaded.retrieve("leave") == index.retrieve("leave")
    assert {path.suffix for path in tmp_path.iterdir()} == {".jsonl", ".npz", ".npy"}
    index.without("phones").save(tmp_path)
    assert len(list(tmp_path.iterdir())) == 3
    Index.build(SMALL).save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {KEYS_FILE, TERMS_FILE}


def test_same_keys_give_the_same_bytes(tmp_path: Path) -> None:
    for name, keys in (("one", SMALL), ("two", SMALL[::-1])):
        Index.build(keys, embed=hashed).save(tmp_path / name)
    one, two = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
        for name in ("one", "two")
    )
    assert one == two


def test_terms_on_disk_spare_the_counting_and_are_made_again_for_another_function(
    tmp_path: Path,
) -> None:
    index = Index.build(SMALL)
    index.save(tmp_path)
    counted: list[str] = []

    def counting(text: str) -> tuple[str, ...]:
        counted.append(text)
        return tokens(text)

    loaded = Index.load(tmp_path, tokenise=counting)
    assert len(counted) == len(SMALL), "of a small index all are compared"
    assert loaded.retrieve("leave") == index.retrieve("leave")
    assert list(loaded.terms) == list(index.terms)
    letters = Index.load(tmp_path, tokenise=tuple)
    assert letters.retrieve("x") == Index.build(SMALL, tokenise=tuple).retrieve("x")
    assert loaded.without("phones").retrieve("leave") == index.without("phones").retrieve("leave")
    (tmp_path / TERMS_FILE).unlink()
    assert Index.load(tmp_path).retrieve("leave") == index.retrieve("leave")
    dense = Index.load(tmp_path, embed=hashed)
    assert dense.retrieve("leave") == Index.build(SMALL, embed=hashed).retrieve("leave")
    with pytest.raises(ConfigError, match="without embed"):
        Index.load(tmp_path, embed_question=hashed)


def cut_off(folder: Path) -> None:
    """Leave out the last key."""
    path = folder / KEYS_FILE
    path.write_text("\n".join(path.read_text().splitlines()[:-1]) + "\n")


def edit_a_key(folder: Path) -> None:
    """Change a word by hand."""
    path = folder / KEYS_FILE
    path.write_text(path.read_text().replace("Lindqvist", "Lindgren"))


def point_outside(folder: Path) -> None:
    """Name vectors in another folder."""
    path = folder / KEYS_FILE
    header, *rest = path.read_text().splitlines()
    header = json.dumps(json.loads(header) | {"vectors": "../vectors-0.npy"})
    path.write_text("\n".join([header, *rest]) + "\n")


def spoil_vectors(folder: Path) -> None:
    """Change the last byte of the vectors."""
    (path,) = folder.glob("*.npy")
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def lose_vectors(folder: Path) -> None:
    """Remove the vectors."""
    next(folder.glob("*.npy")).unlink()


@pytest.mark.parametrize(
    "damage", [cut_off, edit_a_key, point_outside, spoil_vectors, lose_vectors]
)
def test_a_damaged_index_is_refused(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    Index.build(SMALL, embed=hashed).save(tmp_path)
    damage(tmp_path)
    with pytest.raises(DataError, match="build it again"):
        Index.load(tmp_path, embed=hashed)


def test_vectors_of_another_function_are_refused(tmp_path: Path) -> None:
    Index.build(SMALL, embed=hashed).save(tmp_path)
    with pytest.raises(ConfigError, match="not of this embed"):
        Index.load(tmp_path, embed=lambda texts: [[1.0] + [0.0] * 15 for _ in texts])
    with pytest.raises(DataError, match="2 numbers, those of the index have 16"):
        Index.load(tmp_path, embed=lambda texts: [[1.0, 0.0] for _ in texts])
    with pytest.raises(ConfigError, match="pass the embed"):
        Index.load(tmp_path)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"memory": "a"}, "give memory, text"),
        ({"memory": "a", "text": "b", "colour": "red"}, "give memory, text"),
        ({"memory": "a", "text": " "}, "empty part"),
        ({"memory": 3, "text": "b"}, "no text"),
        ({"memory": "a", "text": "b", "kind": "verse"}, "one of passage"),
    ],
)
def test_rows_that_are_no_keys_are_refused(row: dict[str, Any], says: str) -> None:
    with pytest.raises(DataError, match=says):
        Index.build([row])


def test_queries_that_make_no_sense_are_refused() -> None:
    index = Index.build(SMALL)
    with pytest.raises(ConfigError, match="empty question"):
        index.retrieve(" ")
    with pytest.raises(ConfigError, match="at least 1"):
        index.retrieve("leave", k=0)
    with pytest.raises(ConfigError, match="some of passage"):
        index.retrieve("leave", kinds="title")
    with pytest.raises(UnknownMemory, match="'attic'"):
        index.retrieve("leave", memories=("attic",))
    with pytest.raises(UnknownMemory, match="2 others"):
        index.without("attic")
    with pytest.raises(ConfigError, match="without embed"):
        Index.build(SMALL, embed_question=hashed)


@pytest.mark.parametrize("vectors", [[[1.0]], [1.0] * 4, [[]] * 4, [[math.nan]] * 4])
def test_vectors_that_are_not_one_finite_row_each_are_refused(vectors: Any) -> None:
    with pytest.raises(DataError, match="one row of finite numbers"):
        Index.build(SMALL, embed=lambda texts: np.array(vectors))


def test_an_empty_index_retrieves_nothing_and_texts_without_words_are_no_error() -> None:
    assert Index.build().retrieve("leave") == Index.build().retrieve_memories("leave") == []
    assert Index.build([Key("a", "?!")]).retrieve("leave") == []
    assert Index.build(SMALL).retrieve("?!") == []
    empty = Index.build(SMALL).without("phones").without("handbook")
    assert empty.retrieve("leave") == [] and empty.memories == ()
