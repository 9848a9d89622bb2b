"""Claims about the types of knowledge."""

from pathlib import Path
from typing import Any

import pytest

from lorewright.errors import DataError
from lorewright.knowledge import data
from lorewright.knowledge.data import Document, Example, Fact, Knowledge, Probe

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
    with pytest.raises(DataError, match="'answer' of type int"):
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
