"""Claims about studies: every one can be run, answers in a sentence, and is shown as a page."""

from __future__ import annotations

from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import pytest
from support.commands import Lore, refused
from support.sections import section, stored

from lorewright.bench import reproduce, studies, task
from lorewright.errors import ConfigError
from lorewright.files import read_object
from lorewright.knowledge.examples import EXAMPLES


@pytest.fixture
def sets(tmp_path: Path) -> Path:
    """A folder with sections that the embedded base reads."""
    names = {"Teal Office": "Ada Lund", "Gorse Ferry": "Tom Reed"}
    rows = [section(f"prose-{n[:4]}", n, head, "KX-42") for n, head in names.items()]
    for row in rows:
        for fact in row["facts"]:
            fact["questions"].append(f"Tell me, {fact['questions'][0].lower()}")
    stored(tmp_path, *rows)
    (tmp_path / "sections.json").rename(tmp_path / studies.SECTIONS)
    return tmp_path


@pytest.mark.parametrize("name", studies.STUDIES)
def test_a_study_names_benchmarks_and_settings_that_there_are(name: str) -> None:
    for part in studies.STUDIES[name].parts.values():
        every = fields(task.load(part.task).config)
        assert {*part.settings, *part.quick, part.reads} <= {"data", *(e.name for e in every)}
        fixed = {*task.load(part.task).fixed}
        needed = {each.name for each in every if each.default is MISSING} - fixed
        assert needed <= ({part.reads} if part.data is not None else set())


@pytest.mark.parametrize("name", ["placement", "merging", "sections"])
def test_a_study_of_sections_answers_in_a_sentence_and_resumes(
    name: str, sets: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    record = reproduce.run(name, out, model="pocket", data=sets, quick=True)
    page = (out / f"{name}.md").read_text()
    assert record["answer"] in page and reproduce.QUICK in page
    assert page.count("## ") >= 2 and "$ lore reproduce" in page and str(tmp_path) not in page
    assert record["answer"] in (out / "index.md").read_text()
    before = sorted((out / name).rglob("records/*.json"))
    stamps = [path.stat().st_mtime_ns for path in before]
    again = reproduce.run(name, out, model="pocket", data=sets, quick=True)
    assert again["answer"] == record["answer"]
    assert [path.stat().st_mtime_ns for path in before] == stamps, "nothing is done again"


def test_a_page_is_drawn_anew_from_its_record(sets: Path, tmp_path: Path, lore: Lore) -> None:
    out = tmp_path / "out"
    reproduce.run("rank", out, model="pocket", data=sets, quick=True)
    assert lore("report", out / "rank", "--to", tmp_path / "again.md").code == 0
    again = (tmp_path / "again.md").read_text().replace("again-", "rank-")
    assert again == (out / "rank.md").read_text()


def cell(mean: float, n: int = 40, **more: Any) -> dict[str, Any]:
    share = {"n": n, "mean": mean, "low": mean - 0.05, "high": mean + 0.05}
    about = {"rank": 8, "placement": "all-linear", "wordings": 3, "dropout": 0.0, "decay": 0.0}
    return {**about, "facts": 0, "paraphrase": share, "retained": share, **more}


def test_a_sentence_follows_from_what_was_measured_also_when_it_is_no() -> None:
    def said(answer: Any, *cells: dict[str, Any]) -> str:
        return str(answer({"recipes": {"cells": cells}}))

    flat = [cell(0.5, rank=rank) for rank in (1, 8, 64)]
    assert "No rank beats" in said(studies.is_one_rank_enough, *flat)
    steep = [cell(0.2, rank=1), cell(0.4, rank=8), cell(0.8, rank=64)]
    assert "The rank matters" in said(studies.is_one_rank_enough, *steep)
    words = [cell(0.1, wordings=0), cell(0.7, wordings=3), cell(0.65, wordings=3, rank=64)]
    assert "recall is the number of wordings" in said(studies.what_recovers, *words)
    ranks = [cell(0.1, rank=1), cell(0.7, rank=64), cell(0.65, rank=64, wordings=0)]
    assert "recall is the rank" in said(studies.what_recovers, *ranks)
    places = [cell(0.5, placement="mlp"), cell(0.52, placement="attention")]
    assert "within their intervals" in said(studies.where_to_adapt, *places)
    harm = [cell(0.6), cell(0.3, dropout=0.15)]
    assert "0.60 without, at best 0.30" in said(studies.does_regularising_help, *harm)


def test_a_merge_is_free_only_where_the_worse_off_source_loses_at_most_a_fifth() -> None:
    def lost(mean: float) -> dict[str, Any]:
        return {"worse_off": {"n": 6, "mean": mean, "low": mean - 0.1, "high": mean + 0.1}}

    def said(**methods: float) -> str:
        both = {name: lost(mean) for name, mean in methods.items()}
        return studies.is_a_merge_free({"merging": {"methods": both}})

    assert "Every way" in said(mean=0.8, ties=0.7)
    one = said(mean=0.8, refine=0.1)
    assert "a fifth with refine" in one and "with mean it loses more" in one


def test_a_law_of_texts_that_were_all_learnt_whole_is_no_result() -> None:
    def law(n_open: int) -> str:
        bounded: dict[str, Any] = {"scores": {"n": 50, "r2": 0.999, "mape": 0.01}}
        bounded |= {"unsaturated": {"n": n_open}} if n_open else {}
        summary = {"law": {"100": {"report": {"laws": {"bounded": bounded}}}}}
        return studies.how_good_is_the_law({"longcontext": summary})

    assert "0 of 50 runs were not learnt whole" in law(0) and "R²" not in law(3)
    assert "R² 0.999, error 1.0%" in law(40)


def test_the_study_of_edits_needs_no_data_and_says_whose_statements_they_are(
    tmp_path: Path,
) -> None:
    assert reproduce.missing("edits", None) == []
    record = reproduce.run("edits", tmp_path, model="pocket", quick=True)
    assert record["answer"].startswith("False statements: efficacy ")
    assert record["parts"]["counterfact"]["config"]["data"] == ""
    page = (tmp_path / "edits.md").read_text()
    assert "Packaged statements: 4 edits" in page and "not CounterFact's; four in a memory" in page


def test_without_its_file_a_study_is_refused_and_all_leaves_it_out(
    sets: Path, tmp_path: Path, lore: Lore
) -> None:
    ran = lore("reproduce", "formats", "--data", sets, "--model", "pocket")
    refused(ran, "DataError", studies.PAPERS)
    refused(lore("reproduce", "nothing"), "ConfigError", "memo")
    with pytest.raises(ConfigError):
        studies.named(["all", "nothing"])
    listed = lore("reproduce", "--data", sets, "--json").json["studies"]
    missing = {row["study"]: row["missing"] for row in listed if row["missing"]}
    assert missing == {"formats": [studies.PAPERS]}
    assert len(listed) == len(studies.STUDIES) == 14


@pytest.mark.slow
def test_all_studies_run_quickly(sets: Path, tmp_path: Path, lore: Lore) -> None:
    out = tmp_path / "out"
    ran = lore("reproduce", "all", "--quick", "--data", sets, "--model", "pocket", "--out", out)
    assert ran.code == 0, ran.err
    done = {name for name in studies.STUDIES if (out / name / reproduce.STUDY_FILE).is_file()}
    assert set(studies.STUDIES) - done == {"formats"}, "whose set is not there"
    for name in done:
        assert (out / f"{name}.md").is_file()
        assert read_object(out / name / reproduce.STUDY_FILE, "")["answer"]


def test_the_memo_comes_along() -> None:
    assert (EXAMPLES / reproduce.MEMO).is_file()
