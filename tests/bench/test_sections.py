"""Claims about the benchmark of sections: what is written, what is asked, and how it is counted."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.sections import ROW, stored

from lorewright.bench import sections
from lorewright.bench.task import load, run
from lorewright.errors import ConfigError, DataError


def test_the_wording_that_is_left_out_is_asked_and_never_written(tmp_path: Path) -> None:
    (section,) = sections.sections_of(stored(tmp_path, ROW))
    knowledge, probes = sections.knowledge_of(section, sections.FACTS, 2)
    written = {fact.question for fact in knowledge.facts}
    asked = {probe.question for probe in probes if probe.kind == "paraphrase"}
    assert not knowledge.documents and len(written) == 4
    assert asked == {"Who leads the Teal Office?", "Which code does the Teal Office have?"}
    assert not written & asked
    kinds = [probe.kind for probe in probes]
    assert (kinds.count("unknown"), kinds.count("multihop")) == (1, 1)


def test_as_a_document_every_wording_is_asked(tmp_path: Path) -> None:
    (section,) = sections.sections_of(stored(tmp_path, ROW))
    knowledge, probes = sections.knowledge_of(section, sections.DOCUMENTS, 0)
    assert [document.text for document in knowledge.documents] == [ROW["text"]]
    assert not knowledge.facts
    assert sum(probe.kind == "paraphrase" for probe in probes) == 6


@pytest.mark.parametrize("source", [sections.FACTS, sections.DOCUMENTS])
def test_a_section_is_written_and_counted(tmp_path: Path, source: str) -> None:
    task = load("sections")
    data = stored(tmp_path, ROW)
    config = sections.Sections(model="pocket", data=data, source=source, left_out=(2,), epochs=2)
    summary = run(task, config, tmp_path / "out")
    recall = summary["groups"]["all"]["paraphrase"]
    # of a document four of the six are worded as the base words them, and count as trained
    assert recall["memory"]["n"] == recall["full"]["n"] == 2
    assert summary["coverage"]["n_facts"] == 2
    if source == sections.FACTS:
        assert summary["coverage"]["n_worded"] == 2
    for arm in ("read", "together"):  # the section is in the prompt, the memory answers
        assert recall[arm]["n"] == 2
        assert 0 <= recall[arm]["mean"] <= 1
    table, kept = task.tables(summary)
    assert {"full", "read", "together"} < {*table.head}
    assert [row[0] for row in table.rows] == ["all", "prose sections", "altered"]
    assert ("all", "declined") in {row[:2] for row in kept.rows}
    (drawn,) = task.figures(summary)
    drawn.draw(tmp_path / "arms.svg")
    assert "near misses declined" in (tmp_path / "arms.svg").read_text()
    assert len(list((tmp_path / "out" / "records").glob("*.json"))) == 1


def test_what_cannot_be_asked_is_refused(tmp_path: Path) -> None:
    data = stored(tmp_path, ROW)
    with pytest.raises(DataError, match=r"wordings \[4\] are to be left out, and some fact has 3"):
        sections.jobs(sections.Sections(data=data), "")
    with pytest.raises(ConfigError, match="source is 'pages'"):
        sections.Sections(data=data, source="pages")
    with pytest.raises(ConfigError, match="left_out"):
        sections.Sections(data=data, left_out=(0,))
    (tmp_path / "other").mkdir()
    with pytest.raises(DataError, match="no list of sections"):
        sections.sections_of(stored(tmp_path / "other", {"id": "x"}))
    plain = {key: value for key, value in ROW.items() if key != sections.ALTERED}
    (tmp_path / "plain").mkdir()
    assert sections.sections_of(stored(tmp_path / "plain", plain), "unanswerable")
    with pytest.raises(DataError, match="KeyError: 'altered'"):
        sections.sections_of(stored(tmp_path / "plain", plain), sections.ALTERED)
