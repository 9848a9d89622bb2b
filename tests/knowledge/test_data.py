"""Claims about knowledge types, text in, JSON lines and splitting."""

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lorewright import files
from lorewright.errors import ConfigError, DataError, StorageError
from lorewright.knowledge import data, splitting
from lorewright.knowledge.data import Document, Example, Fact, Knowledge, Probe

HANDBOOK = """# Handbook

Dr. Denise Bell opens the office at 8.45 a.m. on Mondays. The KX-4.2 is kept by J. Smith.
It costs 3.50 EUR. "Why?" she asked. See fig. 3 for more, e.g. Table 2.

## Rules

- Knock first. Then wait.
- Be kind
12) Leave by 17:30.

| room | key |
|------|-----|
| 4.2  | B   |

```
# not a heading

x = 1. Y = 2
```

Closing
=======
Ask Mr. Roger at ext. 12! Then go. No. He left.
"""

TEXTS = st.text(
    st.one_of(st.sampled_from(list("aB1 .\n#-=`|!?\t。")), st.characters(codec="utf-8")),
    max_size=200,
)
JSON_VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.just("k"), inner),
    max_leaves=4,
)


def gaps(pieces: tuple[str, ...], text: str) -> list[str]:
    """Return what lies before, between and after the pieces, found in order."""
    position, between = 0, []
    for piece in pieces:
        start = text.index(piece, position)
        between.append(text[position:start])
        position = start + len(piece)
    return [*between, text[position:]]


# --- types


def test_document_reads_markdown_with_title_and_slug(tmp_path: Path) -> None:
    path = tmp_path / "Staff Handbook.md"
    path.write_bytes(b"\xef\xbb\xbf# Leave & pay #\r\n\r\nAsk first.\r\n")
    assert Document.read(path) == Document(
        "staff-handbook", "# Leave & pay #\n\nAsk first.\n", title="Leave & pay"
    )


def test_document_without_heading_has_no_title(tmp_path: Path) -> None:
    path = tmp_path / "note.txt"
    path.write_text("Plain.\n```\n# code\n```\n")
    assert Document.read(str(path)).title == ""


def test_document_refuses_other_suffixes(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"ends in '\.pdf'.*use one of \.md"):
        Document.read(tmp_path / "a.pdf")


@pytest.mark.parametrize("field", ["id", "question", "answer"])
def test_fact_refuses_an_empty_field(field: str) -> None:
    fields: dict[str, Any] = {"id": "a", "question": "q", "answer": "x", field: " \n"}
    with pytest.raises(DataError, match=f"empty {field}"):
        Fact(**fields)


def test_fact_refuses_what_is_not_text() -> None:
    with pytest.raises(DataError, match="answer of type int"):
        Fact("a", "q", 4)  # type: ignore[arg-type]


def test_fact_answers_are_the_answer_then_aliases() -> None:
    assert Fact("a", "q", "x", aliases=("y", "z")).answers == ("x", "y", "z")


def test_example_refuses_an_empty_completion() -> None:
    assert Example("", "text").kind == "qa"
    with pytest.raises(DataError, match="empty completion"):
        Example("prompt", "")


def test_probe_refuses_an_unknown_kind_and_lists_the_known() -> None:
    with pytest.raises(DataError, match=r"'recall'.*efficacy, paraphrase.*unknown"):
        Probe("p", "q", ("a",), "recall")


@pytest.mark.parametrize("kind", data.PROBE_KINDS)
def test_only_open_kinds_do_without_answers(kind: str) -> None:
    assert Probe("p", "q", ("a",), kind).answers == ("a",)
    if kind in data.OPEN_KINDS:
        assert Probe("p", "q", (), kind).answers == ()
    else:
        with pytest.raises(DataError, match="no answers"):
            Probe("p", "q", (), kind)


def test_types_can_be_hashed() -> None:
    assert len({Document("a", "t"), Document("a", "t"), Document("b", "t")}) == 2
    assert len({Fact("a", "q", "x"), Fact("a", "q", "x")}) == 1


def test_knowledge_digest_sees_content_and_order() -> None:
    a, b = Fact("a", "q", "x"), Fact("b", "r", "y")
    digests = [
        Knowledge(facts=(a, b)).digest(),
        Knowledge(facts=(b, a)).digest(),
        Knowledge(facts=(a,)).digest(),
        Knowledge((Document("a", "t"),), (a,)).digest(),
    ]
    assert len(set(digests)) == 4
    assert Knowledge(facts=(a, b)).digest() == digests[0]
    assert len(digests[0]) == 64


# --- text in


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\xef\xbb\xbf \n", "is empty"),
        (b"abc\x00def", "is binary"),
        (b"\x01\x02\x03\x04a", "is binary"),
        (b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR", "is binary"),
        (b"caf\xe9 au lait", r"byte 0xe9 at offset 3"),
        (b"\xef\xbb\xbfcaf\xe9", r"byte 0xe9 at offset 6"),
        ("Grüße an alle".encode("utf-16"), "UTF-16"),
        ("Plain letters".encode("utf-16-le"), "UTF-16"),
        ("Plain letters".encode("utf-16-be"), "UTF-16"),
    ],
)
def test_read_text_refuses(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        files.read_text(path)


def test_read_text_refuses_missing_folders_and_large_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        files.read_text(tmp_path / "none.txt")
    with pytest.raises(DataError, match="not a regular file"):
        files.read_text(tmp_path)
    large = tmp_path / "large.txt"
    with large.open("wb") as file:
        file.truncate(files.MAX_BYTES + 1)
    with pytest.raises(DataError, match=r"64 MiB"):
        files.read_text(large)


def test_read_text_makes_line_ends_alike(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"a\r\nb\rc\n")
    assert files.read_text(path) == "a\nb\nc\n"


# --- JSON lines


@given(st.lists(st.dictionaries(st.sampled_from("aé"), JSON_VALUES, max_size=2), max_size=3))
@example([{"a": "line\u2028and\x85break\r\n", "b": "\x00\x7f"}])
def test_jsonl_round_trip(tmp_path_factory: pytest.TempPathFactory, rows: list[Any]) -> None:
    path = tmp_path_factory.mktemp("jsonl") / "rows.jsonl"
    files.dump_jsonl(rows, path)
    assert files.load_jsonl(path) == rows


def test_dataclasses_survive_json_lines(tmp_path: Path) -> None:
    fact = Fact("a", "q", "x", aliases=("y",), paraphrases=("r",), source="s")
    document = Document("d", "t", "title", {"page": 4, "tags": ["x"]})
    files.dump_jsonl([fact, document], tmp_path / "new" / "a.jsonl")
    first, second = files.load_jsonl(tmp_path / "new" / "a.jsonl")
    assert Fact(**first) == fact
    assert Document(**second) == document


@pytest.mark.parametrize("line", ['{"a": 1', "[1]", "nothing", '"text"', "[" * 100_000])
def test_load_jsonl_names_the_bad_line(tmp_path: Path, line: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n\n' + line)
    with pytest.raises(DataError, match=r"a\.jsonl line 3"):
        files.load_jsonl(path)


def test_load_jsonl_refuses_missing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        files.load_jsonl(tmp_path / "none.jsonl")


@pytest.mark.parametrize("value", [float("nan"), "\ud800"])
def test_dump_jsonl_leaves_the_old_file_when_a_row_is_bad(tmp_path: Path, value: object) -> None:
    path = tmp_path / "a.jsonl"
    files.dump_jsonl([{"a": 1}], path)
    with pytest.raises(DataError, match="cannot be stored"):
        files.dump_jsonl([{"a": 2}, {"a": value}], path)
    assert files.load_jsonl(path) == [{"a": 1}]


def test_dump_jsonl_leaves_nothing_behind_when_the_disk_refuses(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "inside").touch()
    with pytest.raises(StorageError, match="could not be written"):
        files.dump_jsonl([{"a": 1}], tmp_path / "taken")
    assert os.listdir(tmp_path) == ["taken"]


# --- names


@given(st.text())
def test_slug_is_a_safe_name_and_stable(text: str) -> None:
    name = files.slug(text)
    assert 0 < len(name) <= files.SLUG_CHARS
    assert not set(name) & set('/\\ .:*?"<>|\n\0_')
    assert files.slug(name) == name


def test_slug_keeps_letters_of_every_script() -> None:
    assert files.slug("  Staff_Handbook (v2).md ") == "staff-handbook-v2-md"
    assert files.slug("Größe 日本語 हिन्दी") == "grösse-日本語-हिन्दी"


def test_slug_keeps_long_and_letterless_names_apart() -> None:
    assert files.slug("x" * 200) != files.slug("x" * 201)
    assert files.slug("!!!") != files.slug("???")


def test_digest_ignores_key_order_and_sees_values() -> None:
    assert files.digest({"a": 1, "b": (2,)}) == files.digest({"b": [2], "a": 1})
    assert files.digest({"a": 1}) != files.digest({"a": 2})
    with pytest.raises(TypeError, match="object"):
        files.digest(object())


# --- splitting


@given(TEXTS)
@example(HANDBOOK)
def test_sentences_lose_nothing_but_white_space(text: str) -> None:
    pieces = splitting.sentences(text)
    assert all(not gap.strip() for gap in gaps(pieces, text))
    assert all(piece and piece == piece.strip() for piece in pieces)


@given(TEXTS.filter(str.strip), st.integers(1, 80))
@example(HANDBOOK, 60)
def test_passages_lose_nothing_but_white_space(text: str, max_chars: int) -> None:
    pieces = splitting.passages(text, max_chars=max_chars)
    assert all(not gap.strip() for gap in gaps(pieces, text))
    assert all(piece.strip() and len(piece) <= max_chars for piece in pieces)


def test_sentences_of_a_handbook() -> None:
    assert splitting.sentences(HANDBOOK) == (
        "# Handbook",
        "Dr. Denise Bell opens the office at 8.45 a.m. on Mondays.",
        "The KX-4.2 is kept by J. Smith.",
        "It costs 3.50 EUR.",
        '"Why?" she asked.',
        "See fig. 3 for more, e.g. Table 2.",
        "## Rules",
        "- Knock first. Then wait.",
        "- Be kind",
        "12) Leave by 17:30.",
        "| room | key |",
        "|------|-----|",
        "| 4.2  | B   |",
        "```\n# not a heading\n\nx = 1. Y = 2\n```",
        "Closing\n=======",
        "Ask Mr. Roger at ext. 12!",
        "Then go.",
        "No.",
        "He left.",
    )


@pytest.mark.parametrize(
    ("text", "n"),
    [
        ("Open until 5 p.m. The door locks.", 2),
        ("Open until 5 p.m. on Monday.", 1),
        ("The U.S. Army and J. R. Smith.", 1),
        ("Version 3.10 came. 45 people saw it.", 2),
        ("他来了。我走了！好", 3),
        ("She said “Go.” He went.", 2),
        ("Wait... Fine… Ok", 3),
        ("wrapped\nline. Next\none.", 2),
    ],
)
def test_sentence_ends(text: str, n: int) -> None:
    assert len(splitting.sentences(text)) == n


def test_a_heading_begins_a_passage_and_is_not_left_alone() -> None:
    text = "# A\n\n## B\n\nOne two.\n\nThree.\n\n## C\n\nFour."
    assert splitting.passages(text) == (
        "# A\n\n## B\n\nOne two.\n\nThree.",
        "## C\n\nFour.",
    )


def test_a_long_paragraph_is_cut_between_sentences_then_words() -> None:
    document = Document("d", "One two three. Four five six seven eight. Abcdefghijklmnopqrstuvwxyz")
    assert splitting.passages(document.text, max_chars=16) == (
        "One two three.",
        "Four five six",
        "seven eight.",
        "Abcdefghijklmnop",
        "qrstuvwxyz",
    )


def test_passages_refuse_no_room() -> None:
    with pytest.raises(ConfigError, match="max_chars is 0"):
        splitting.passages("text", max_chars=0)


def test_splitting_takes_linear_time() -> None:
    for text in ("A sentence that ends. " * 50_000, "A line that ends.\n" * 50_000):
        assert len(splitting.sentences(text)) == 50_000
        assert len(splitting.passages(text)) > 700
