"""Claims about questions closed-book: formats, controls, choices, a judge, what is left out."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from support.endpoints import Server, completion

from lorewright.bench import arms, closedbook, sets, task
from lorewright.bench.closedbook import ClosedBook
from lorewright.bench.judge import REPLIES_FILE
from lorewright.bench.scale import Step
from lorewright.errors import ConfigError, JobFailed
from lorewright.models.model import Model
from lorewright.recall.traces import trace

SETS = Path(__file__).parents[1] / "fixtures" / "sets"
SMALL = ClosedBook(
    bench="quality",
    data=str(SETS / "quality.jsonl"),
    documents=2,
    questions=2,
    formats=("qa", "raw"),
    ranks=(4,),
    seeds=2,
    epochs=4,
    sets=1,
    answer_tokens=12,
)


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A folder with a small sweep in two formats, and its summary."""
    out = tmp_path_factory.mktemp("closedbook") / "q"
    return out, task.run(closedbook.QUALITY, SMALL, out)


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    yield Model.load()


def by(result: dict[str, Any], kind: str = arms.ALL) -> dict[tuple[str, str], dict[str, Any]]:
    return {(e["format"], e["metric"]): e for e in result["arms"] if e["kind"] == kind}


# --- a sweep


def test_every_format_stands_beside_its_controls(swept: tuple[Path, dict[str, Any]]) -> None:
    _, result = swept
    assert (result["n_texts"], result["n_questions"], result["n_jobs"]) == (2, 4, 1)
    for entry in by(result).values():
        assert set(entry["arms"]) == set(arms.ARMS) and len(entry["by_seed"]) == 2
        assert all(arm["n"] == 4 and arm["low"] is not None for arm in entry["arms"].values())
    qa, raw = by(result)["qa", "choice"]["arms"], by(result)["raw", "choice"]["arms"]
    assert qa["base"] == raw["base"] and qa["full"] == raw["full"]  # once, for all formats
    assert qa["full"]["mean"] == 1  # the embedded base reads
    assert qa["memory"]["mean"] > qa["base"]["mean"]
    assert result["chance"] == 0.25 and result["n_examples"]["raw"] == 2


def test_what_was_dropped_of_a_lesson_is_said() -> None:
    about = {"qa": {"n_examples": {"qa": 1}, "n_seen": 0, "notes": ["a: 2 of 3 were dropped."]}}
    record = {"kinds": {}, "rows": [], "asked": {}, "lessons": {"a": about}}
    result = closedbook.summarise(replace(SMALL, formats=("qa",)), [({}, record)])
    assert result["lesson_notes"] == ["a: 2 of 3 were dropped."]
    (sheet, *_) = closedbook.tables({**result, "bench": "quality", "config": asdict(SMALL)})
    assert any("2 of 3 were dropped" in note for note in sheet.notes)


def test_kinds_of_question_are_told_apart(swept: tuple[Path, dict[str, Any]]) -> None:
    _, result = swept
    ns = {k: by(result, k)["qa", "choice"]["arms"]["memory"]["n"] for k in (sets.EASY, sets.HARD)}
    assert ns == {"easy": 2, "hard": 2}
    assert by(result, "easy")["qa", "choice"]["n_units"] == 2


def test_the_sets_questions_are_never_trained(swept: tuple[Path, dict[str, Any]]) -> None:
    out, result = swept
    assert result["n_seen"] == {"qa": 0, "raw": 0}
    (path,) = (out / "records").glob("*.json")
    record = json.loads(path.read_text())["record"]
    assert record["lessons"]["100"]["qa"]["n_examples"]["qa"] > 0
    text = sets.texts("quality", SMALL.data)[0]
    model_lesson = closedbook.lessons_of(Model.load(), text, {**asdict(SMALL), "formats": ["qa"]})
    lesson = model_lesson["qa"]
    assert not isinstance(lesson, str)
    prompts = {example.prompt for example in lesson.examples}
    assert prompts.isdisjoint(question.text for question in text.questions)


def test_a_sweep_goes_on_job_by_job(
    swept: tuple[Path, dict[str, Any]],
) -> None:
    out, result = swept
    steps: list[Step] = []
    again = task.run(closedbook.QUALITY, SMALL, out, progress=task.Progress(steps.append))
    assert steps == [Step(n_done=1, n_jobs=1, n_stored=1)]
    assert again["arms"] == result["arms"]
    whole = closedbook.jobs(replace(SMALL, documents=0), "")
    assert [job["texts"] for job in whole] == [[0, 1, 2]]  # the third is not alone
    assert closedbook.jobs(SMALL, "")[0]["texts"] == [0, 1]


def test_data_that_changed_meanwhile_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text((SETS / "quality.jsonl").read_text())
    config = replace(SMALL, data=str(path), formats=("raw",))
    (job,) = closedbook.jobs(config, "")
    path.write_text((SETS / "quality.jsonl").read_text().replace("teal", "grey"))
    sets.texts.cache_clear()
    with pytest.raises(ValueError, match="begin a new one"):
        closedbook.task(job)


def test_tables_have_all_metrics_and_the_headline_by_kind(
    swept: tuple[Path, dict[str, Any]],
) -> None:
    whole, parts = closedbook.tables(swept[1])
    assert whole.title == "QuALITY: 2 texts, 4 questions, 2 seeds"
    assert len(whole.rows) == 2 * 6 and {row[1] for row in parts.rows} == {"easy", "hard"}
    assert "chance is 0.25" in " ".join(whole.notes) and parts.title.startswith("choice")


# --- its parts


def test_the_choice_is_the_likeliest_option_and_a_tie_is_none(model: Model) -> None:
    text = sets.texts("quality", SMALL.data)[0]
    result = closedbook.chosen(model, text.questions, text.text)
    assert result["choice"] == [1, 1, 1]
    question = text.questions[0]
    rows = [model.render(f"{text.text}\n\n{question.text}", o) for o in question.options]
    losses = [[-math.log(p) for p in t.p[:-1]] for t in trace(model, rows)]
    means = [sum(own) / len(own) for own in losses]
    assert min(range(4), key=means.__getitem__) == question.right
    same = replace(question, options=("teal", "teal"), right=0)
    assert closedbook.chosen(model, [same], "")["choice"] == [0]


def test_a_text_that_does_not_fit_is_left_out_of_full(model: Model) -> None:
    text = sets.texts("quality", SMALL.data)[0]
    assert closedbook.fits(model, text, 64)
    long = replace(text, text=text.text * 30)
    assert not closedbook.fits(model, long, 64) and not closedbook.fits(model, text, 1000)
    rows = list(closedbook.base_rows(model, long, {"answer_tokens": 4}))
    assert [row["arm"] for row in rows] == ["base", "full"]
    assert "does not fit" in rows[1]["why"] and "scores" not in rows[1]


def test_each_prompt_is_put_to_the_writer_once() -> None:
    seen: list[str] = []

    def says(prompts: list[str]) -> list[str]:
        seen.extend(prompts)
        return [prompt.upper() for prompt in prompts]

    once = closedbook.each_once(says)
    assert once(["a", "b", "a"]) == ["A", "B", "A"] and once(["b", "c"]) == ["B", "C"]
    assert seen == ["a", "b", "c"]


def test_a_judges_scores_stand_beside_the_others(
    swept: tuple[Path, dict[str, Any]], server: Server
) -> None:
    out, result = swept
    replies = iter(["no number"])

    def verdict(prompt: str, n: int) -> Any:
        message = next(replies, None)
        return completion(message or ("9" if "Answer: teal" in prompt else "1"))

    server.reply = verdict
    config = replace(SMALL, judge=server.url)
    judged = task.run(closedbook.QUALITY, config, out)
    scores = by(judged)["qa", "judge"]["arms"]["full"]
    assert 1 <= scores["mean"] <= 9 and judged["n_unjudged"] >= 1
    assert judged["n_judged"] == 4 * (2 + 2 * 2 * 2)
    assert by(judged)["qa", "token_f1"] == by(result)["qa", "token_f1"]
    n_asked = len(server.requests)
    again = task.run(closedbook.QUALITY, config, out)
    assert again["arms"] == judged["arms"] and len(server.requests) == n_asked
    assert (out / REPLIES_FILE).is_file()
    assert "judge, 0–10" in {row[1] for row in next(closedbook.tables(judged)).rows}


def test_a_text_on_which_nothing_is_written_is_counted_and_not_zero(
    tmp_path: Path, server: Server
) -> None:
    server.reply = lambda prompt, n: completion("Nothing comes to mind.")
    config = replace(SMALL, formats=("qa",), seeds=1, epochs=1, teacher=server.url)
    result = task.run(closedbook.QUALITY, config, tmp_path / "q")
    assert result["not_written"]["n"] == {"qa": 2}
    assert "nothing came out to learn" in result["not_written"]["first"]
    entry = by(result)["qa", "choice"]
    assert set(entry["arms"]) == {"base", "full"} and entry["over_base"]["n"] == 0
    assert "qa 2" in " ".join(next(closedbook.tables(result)).notes)


def test_a_job_that_fails_says_why(tmp_path: Path) -> None:
    broken = replace(SMALL, formats=("raw",), teacher="ftp://nowhere")
    with pytest.raises(JobFailed, match="quality"):
        task.run(closedbook.QUALITY, broken, tmp_path / "q")


# --- settings


def test_formats_are_parts_joined_by_plus() -> None:
    assert closedbook.views_of("raw+qa+summary+rewrite") == (
        *("verbatim", "qa", "summary", "rewrite"),
    )
    for name in ("", "qa+", "poem", "qa+qa"):
        with pytest.raises(ConfigError, match="join some of raw, qa, summary, rewrite"):
            closedbook.views_of(name)
    paper = ClosedBook(bench="paperqa", data="x.json")
    assert paper.formats == closedbook.FORMATS["paperqa"] and "raw" in paper.formats


def test_settings_out_of_range_are_refused() -> None:
    for changes, message in (
        ({"bench": "squad"}, "set 'squad' is unknown"),
        ({"part": "text"}, "quality has no parts"),
        ({"seeds": 0}, "seeds is 0"),
        ({"method": "dpo"}, "method 'dpo'"),
    ):
        with pytest.raises(ConfigError, match=message):
            replace(SMALL, **changes)
    few = closedbook.quick(ClosedBook(bench="paperqa", data="x.json"))
    assert len(few.formats) == few.documents == few.seeds == 2
