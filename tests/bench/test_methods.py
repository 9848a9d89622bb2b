"""Claims about the benchmark of methods: sources, controls, rows that cannot go missing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lorewright.bench import methods, overwriting, reading
from lorewright.bench.methods import BASE, FULL, TASK, Methods, share
from lorewright.bench.sources import shuffled, sources
from lorewright.bench.task import run
from lorewright.bench.written import OWN, SHUFFLED, Spec
from lorewright.errors import ConfigError, DataError
from lorewright.models.model import Model
from lorewright.writers import kit as kits
from lorewright.writers.kit import SHIPPED, SUFFIX
from lorewright.writers.methods import LEARNED, WRITERS

SMALL = Methods(
    methods=("gradient@2", "in-place@2", "prompt@2"),
    facts=(1,),
    control_facts=(1,),
    sources=2,
    quick_sources=2,
    epochs=1,
    parts=("write",),
)


def own(summary: Any) -> dict[str, Any]:
    return {e["method"]: e for e in summary["entries"] if e["control"] == OWN}


def test_a_source_states_each_of_its_facts_once_and_shares_none_with_another() -> None:
    for n in (1, 8):
        every = sources("", n)
        assert all(source.text.count(a) >= 1 for source in every for a in source.answers)
        questions = [fact.forms[0] for source in every for fact in source.facts]
        assert len({*questions}) == len(questions) and len(every) == 503 // n
    for source in sources("", 8):
        for fact in source.facts:
            assert fact.held not in fact.forms and fact.held not in source.text


def test_the_shuffled_control_really_permutes_in_the_lesson_and_in_the_text() -> None:
    every = sources("", 4)
    for number in (0, 1, len(every) - 1):
        before, after = every[number], shuffled(every, number)
        moved = [a != b for a, b in zip(before.answers, after.answers, strict=True)]
        assert sum(moved) >= 3, "values that are equal by chance aside, every one moves"
        assert after.answers[:-1] == before.answers[1:]
        assert [fact.held for fact in after.facts] == [fact.held for fact in before.facts]
        assert after.text != before.text and all(a in after.text for a in after.answers)
        assert {f.answer for f in after.taught.facts} == {*after.answers}


def test_values_of_a_text_are_exchanged_at_once_and_not_one_after_another() -> None:
    (source, *_) = sources("", 2)
    a, b = source.answers
    assert source.with_answers((b, a)).with_answers((a, b)).text == source.text


def test_a_section_is_a_source_whose_last_wording_is_left_for_the_questions(tmp_path: Path) -> None:
    facts = [{"answer": f"{n} m", "questions": [f"{n} a?", f"{n} b?", f"{n} c?"]} for n in (4, 5)]
    row: dict[str, Any] = {
        "id": "prose-x",
        "title": "X",
        "text": "It is 4 m, then 5 m.",
        "facts": facts,
    }
    row["unanswerable"] = ["Why?"]
    path = tmp_path / "sections.json"
    path.write_text(json.dumps([row, {**row, "id": "prose-y", "facts": facts[:1]}]))
    (only,) = sources(str(path), 2)
    assert [(fact.forms, fact.held) for fact in only.facts] == [
        (("4 a?", "4 b?"), "4 c?"),
        (("5 a?", "5 b?"), "5 c?"),
    ]
    moved = only.with_answers(("5 m", "4 m"))
    assert moved.text == "It is 5 m, then 4 m." and moved.unanswerable == ("Why?",)
    assert len(sources(str(path), 1)) == 2


def test_a_spec_is_read_whole_or_refused() -> None:
    spec = Spec.of("gradient@1/down_proj*0.5:2s")
    assert spec == Spec("gradient", 1, ("down_proj",), 0.5, 2.0)
    config = spec.config()
    assert (config.lora.rank, config.lora.targets) == (1, ("down_proj",))
    assert config.max_seconds == 2 and config.size is None
    assert Spec.of("prompt@5").config().size == 5
    for wrong in ("gradient@0", "gradient@", "gradient*0", "gradient:1", "Gradient"):
        with pytest.raises(ConfigError, match="gradient"):
            Spec.of(wrong)
    with pytest.raises(ConfigError, match="'magic' is unknown"):
        Spec.of("magic@8")


def test_by_default_every_method_there_is_has_a_row_in_every_part() -> None:
    config = Methods()
    names = {Spec.of(spec).name for spec in config.specs}
    assert names == {*WRITERS}
    todo = methods.jobs(replace(config, sources=2), "")
    for part in ("write", "overwrite"):
        assert {Spec.of(job["method"]).name for job in todo if _writes(job, part)} == {*WRITERS}
    assert {job["facts"] for job in todo if job["part"] == "write"} == {*config.facts}


def test_kits_stands_for_every_method_with_one_and_for_lora_near_them() -> None:
    assert Methods(methods=("kits",)).specs == (*LEARNED, *methods.NEAR_KITS)
    assert Methods(methods=("ia3", "kits", "perk")).specs[:3] == ("ia3", "perk", "gradmem")


def test_what_reads_text_is_written_of_more_sources_than_what_trains() -> None:
    config = Methods(sources=3, questions=16, quick_sources=40, quick_questions=64)
    assert [config.n_sources(n) for n in (1, 4, 8, 24)] == [3, 3, 2, 2]
    assert [config.n_quick(n) for n in (1, 4, 8, 24)] == [40, 16, 8, 3]
    assert replace(config, quick_questions=960).n_quick(24) == 20, "the file has no more"
    todo = methods.jobs(replace(config, facts=(4,), control_facts=(4,), parts=("write",)), "")
    n = {name: sum(job["method"] == name for job in todo) for name in ("in-place@8", "prompt@16")}
    assert n == {"in-place@8": 16 * 3, "prompt@16": 3 * 2}, "own, shuffled, and blank for text"


def _writes(job: dict[str, Any], part: str) -> bool:
    return job["part"] == part and job["method"] not in (BASE, FULL)


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("methods") / "out"
    return out, run(TASK, SMALL, out)


def test_every_row_has_n_and_an_interval(swept: tuple[Path, dict[str, Any]]) -> None:
    entries = own(swept[1])
    assert list(entries) == [BASE, FULL, *SMALL.methods]
    for entry in entries.values():
        for part in ("held", "trained", "other", "declined"):
            assert entry[part]["n"] > 0 and entry[part]["low"] is not None, (entry["method"], part)
    assert entries[BASE]["held"]["mean"] == 0 and entries[BASE]["declined"]["n"] == 16
    assert (entries["in-place@2"]["reads"], entries["prompt@2"]["reads"]) == ("text", "lesson")
    controls = {(e["method"], e["control"]) for e in swept[1]["entries"]}
    assert {(name, SHUFFLED) for name in SMALL.methods} < controls
    assert ("in-place@2", "blank") in controls and ("prompt@2", "blank") not in controls
    rival = entries["prompt@2"]["compared"]["bytes"]
    assert rival["with"] == "gradient@2" and rival["n"] == 2


@pytest.fixture(scope="module")
def with_kits(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("kits")
    own = kits.load(SHIPPED / kits.cached_path("perk", Model.load("pocket").digest).name)
    for seed in (1, 2):
        own.save(folder / f"perk-{seed}{SUFFIX}")
    config = replace(
        SMALL,
        methods=("perk", "delta", "gradmem", "gradient@2"),
        kits=(str(folder),),
        quick_sources=4,
    )
    return run(TASK, config, folder / "out")


def test_a_method_has_a_row_for_every_kit_and_its_controls(with_kits: dict[str, Any]) -> None:
    entries = own(with_kits)
    named = ["perk", "perk (perk-1)", "perk (perk-2)"]
    assert [*entries] == [BASE, FULL, *named, "delta", "gradmem", "gradient@2"]
    assert [entries[name]["held"]["n"] for name in (*named, "delta")] == [4] * 4
    assert entries["gradient@2"]["held"]["n"] == 2 == entries["perk"]["compared"]["bytes"]["n"]
    assert entries[named[1]]["kit_id"] == entries["perk"]["kit_id"] != entries["delta"]["kit_id"]
    assert entries[named[1]]["held"] == entries["perk"]["held"]
    held = {(e["method"], e["control"]): e["held"] for e in with_kits["entries"]}
    assert held["perk", OWN]["mean"] > held["perk", "plain start"]["mean"] == 0
    assert held["perk", "untrained"]["mean"] == held["delta", "untrained"]["mean"] == 0
    assert ("delta", "plain start") not in held, "it has no first A and B"
    assert held["delta", "blank"]["n"] == held["delta", SHUFFLED]["n"] == 4


def test_a_method_without_a_kit_has_a_row_that_says_why(with_kits: dict[str, Any]) -> None:
    entry = own(with_kits)["gradmem"]
    assert (entry["n_writes"], entry["n_failed"], entry["held"]["mean"]) == (1, 1, None)
    overview, *_ = TASK.tables(with_kits)
    assert any(row[0] == "gradmem" for row in overview.rows)
    (note,) = [note for note in overview.notes if "gradmem" in note]
    assert "None ships, for trainings of up to 200 steps recalled nothing" in note


def test_controls_and_the_spread_between_kits_have_tables(with_kits: dict[str, Any]) -> None:
    tables = {table.title: table for table in TASK.tables(with_kits)}
    controls = tables["Recall with a kit beside its controls"]
    assert [row[0] for row in controls.rows] == ["perk", "perk (perk-1)", "perk (perk-2)", "delta"]
    (row,) = tables["Between kits of one method"].rows
    assert row[:2] == ("perk", "2")
    mean, low, high = row[2].replace(", ", " to ").split(" to ")
    assert mean == low == high, "the same kit twice"


def test_a_kit_that_is_not_there_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / f"none{SUFFIX}"):
        with pytest.raises(ConfigError, match="is no kit and no folder of kits"):
            Methods(kits=(str(path),))


def test_its_tables_name_every_method_and_its_figure_is_drawn(
    swept: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    overview, one = TASK.tables(swept[1])
    for table in (overview, one):
        assert [row[0] for row in table.rows] == [BASE, FULL, *SMALL.methods]
    assert one.title == "1 fact, 2 sources, on pocket"
    (figure,) = TASK.figures(swept[1])
    for dark in (False, True):
        figure.draw(tmp_path / f"{dark}.svg", dark=dark)
    light, night = ((tmp_path / f"{dark}.svg").read_text() for dark in (False, True))
    assert "<svg" in light and light != night


def test_a_swept_folder_again_does_nothing_and_gives_the_same(
    swept: tuple[Path, dict[str, Any]],
) -> None:
    out, first = swept
    records = sorted((out / "records").glob("*.json"))
    before = {path: path.stat().st_mtime_ns for path in records}
    again = run(TASK, SMALL, out)
    assert {path: path.stat().st_mtime_ns for path in records} == before
    assert again["entries"] == first["entries"]


def test_an_interrupted_sweep_goes_on_to_the_same_scores(
    swept: tuple[Path, dict[str, Any]],
) -> None:
    out, first = swept
    for path in sorted((out / "records").glob("*.json"))[::3]:
        path.unlink()
    resumed = run(TASK, SMALL, out)
    scores = ("method", "control", "held", "trained", "other", "declined", "retained", "bytes")
    for a, b in zip(first["entries"], resumed["entries"], strict=True):
        assert [a[key] for key in scores] == [b[key] for key in scores]


def test_a_write_that_comes_to_nothing_is_named_below_its_table(tmp_path: Path) -> None:
    done = [
        ({**job, "part": "write"}, {"failed": "method 'x' needs a kit."})
        for job in methods.jobs(SMALL, "")
        if job["method"] == "in-place@2" and job["control"] == OWN
    ]
    summary: dict[str, Any] = methods.summarise(SMALL, done)
    (entry,) = summary["entries"]
    assert entry["held"]["mean"] is None and entry["n_failed"] == 2
    shown = methods._table({"config": {"model": "pocket"}}, [entry], 1)
    assert any("needs a kit" in note and "2 of 2" in note for note in shown.notes)


def test_answers_that_are_all_alike_have_an_interval_all_the_same() -> None:
    none = share([[0.0, 0.0], [0.0]])
    assert none["mean"] == 0 and none["high"] > 0.3
    some = share([[1.0, 0.0], [0.0, 1.0], [1.0]])
    assert some["low"] < some["mean"] == 0.6 < some["high"]


def test_what_cannot_be_measured_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="parts are"):
        Methods(parts=("magic",))
    with pytest.raises(ConfigError, match="'blink' is unknown"):
        Methods(controls=("blink",))
    with pytest.raises(ConfigError, match="sources is 0"):
        Methods(sources=0)
    with pytest.raises(DataError, match="two are needed"):
        methods.check(Methods(facts=(400,)))
    (tmp_path / "facts.jsonl").write_text(json.dumps({"text": "A.", "facts": [{}]}) + "\n")
    with pytest.raises(DataError, match="each needs text and facts"):
        sources(str(tmp_path / "facts.jsonl"), 1)


def test_each_way_of_overwriting_is_for_the_states_that_can() -> None:
    assert overwriting.ways_of("gradient@8") == ("sum", "continued")
    assert overwriting.ways_of("in-place@8") == ("stream", "sum")
    assert overwriting.ways_of("prompt") == ("anew",)


@pytest.mark.slow
def test_the_other_parts_have_their_tables(tmp_path: Path) -> None:
    config = methods.quick(Methods(parts=("overwrite", "cut", "read"), methods=("gradient@8",)))
    summary = run(TASK, replace(config, epochs=25), tmp_path / "out")
    titles = [table.title for table in TASK.tables(summary)]
    assert titles == [
        "X is A, then X is B; 2 facts",
        "Cut to a rank",
        "With the source in the prompt",
    ]
    by_way = {entry["way"]: entry for entry in summary["overwrite"]}
    assert by_way["continued"]["second"]["mean"] > by_way["continued"]["first"]["mean"]
    readings = {entry["reading"]: entry["held"] for entry in summary["read"]}
    assert [*readings] == [*reading.READINGS]
    assert readings["qttt, text gone"]["mean"] == 0 < readings["plain"]["mean"]
    energies = [entry["energy"] for entry in summary["cut"]]
    assert energies == sorted(energies) and energies[-1] == pytest.approx(1)
    for figure in TASK.figures(summary):
        figure.draw(tmp_path / f"{figure.name}.svg", dark=True)
        assert "<svg" in (tmp_path / f"{figure.name}.svg").read_text()
