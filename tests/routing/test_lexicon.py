"""Claims about BM25 on disk: the same scores, and nothing from a file that is not its own."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorewright.errors import StorageError
from lorewright.routing.lexicon import Lexicon, StoredTerms

TERM = st.sampled_from(["leave", "form", "AX-17", "mara", "寿司", "\u2028", "two\nlines", "é"])
TEXTS = st.lists(st.lists(TERM, max_size=5).map(tuple), max_size=8)
ROWS = [("who", "signs", "leave"), ("leave", "leave", "mara"), (), ("AX-17",)]


@given(TEXTS, st.lists(TERM, min_size=1, max_size=4))
def test_what_comes_back_scores_like_what_was_saved(
    tmp_path_factory: pytest.TempPathFactory, texts: list[tuple[str, ...]], question: list[str]
) -> None:
    path = tmp_path_factory.mktemp("lexicon") / "terms.npz"
    made = Lexicon(texts)
    made.save(path, "mark")
    loaded = Lexicon.load(path, "mark")
    assert loaded is not None and len(loaded) == len(texts)
    assert list(StoredTerms(loaded)) == texts == list(StoredTerms(made)[:])
    np.testing.assert_array_equal(loaded.scores(question), made.scores(question))
    assert [loaded.idf(term) for term in question] == [made.idf(term) for term in question]


def test_the_same_texts_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        Lexicon(ROWS).save(tmp_path / name, "mark")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert len(list(tmp_path.iterdir())) == 2, "nothing temporary is left"


@pytest.mark.parametrize("damage", ["gone", "empty", "cut", "changed", "text", "other mark"])
def test_a_file_that_is_not_its_own_gives_nothing(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "terms.npz"
    Lexicon(ROWS).save(path, "mark")
    content = path.read_bytes()
    if damage == "gone":
        path.unlink()
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "cut":
        path.write_bytes(content[:-50])
    elif damage == "changed":
        at = content.index(b"signs")
        path.write_bytes(content[:at] + b"sings" + content[at + 5 :])
    elif damage == "text":
        path.write_text(json.dumps({"mark": "mark"}))
    assert Lexicon.load(path, "other" if damage == "other mark" else "mark") is None


def test_parts_that_do_not_fit_one_another_give_nothing(tmp_path: Path) -> None:
    path = tmp_path / "terms.npz"
    Lexicon(ROWS).save(path, "mark")
    with np.load(path) as file:
        parts = {key: file[key] for key in file.files}
    np.savez(path, **{**parts, "flat": parts["flat"][:-1]})
    assert Lexicon.load(path, "mark") is None


def test_a_place_that_cannot_be_written_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="could not be written"):
        Lexicon(ROWS).save(tmp_path / "file" / "terms.npz", "mark")
