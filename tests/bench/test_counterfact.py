"""Claims about CounterFact: its scores are ROME's, worked by hand; a small run has every arm."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import lorewright
from lorewright.bench import arms, counterfact, sets, task
from lorewright.bench.counterfact import CounterFact, Reply, harmonic
from lorewright.bench.scale import Step
from lorewright.bench.sets import Edit
from lorewright.errors import ConfigError, DataError
from lorewright.models.model import Model
from lorewright.recall.statistics import wilson
from lorewright.recall.traces import trace

DATA = str(Path(__file__).parents[1] / "fixtures" / "sets" / "counterfact.json")
SMALL = CounterFact(DATA, edits=2, negatives=0, ranks=(2,), seeds=2, epochs=2)
EDIT = Edit("0", "Ann lives in", "Rome", "Oslo", ("Ann's town is",), ("Bo lives in", "Cy lives in"))


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A folder with a sweep that learns next to nothing, and its summary."""
    out = tmp_path_factory.mktemp("counterfact") / "cf"
    return out, task.run(counterfact.TASK, SMALL, out)


# --- by hand


def test_scores_are_romes() -> None:
    shown = [
        Reply(0.1, 2.0, "Rome"),
        Reply(3.0, 1.0, "It is Rome."),
        Reply(2.0, 0.5, "Oslo"),
        Reply(0.2, 0.3, "Rome"),
    ]
    before = [replace(each, reply="Oslo") for each in shown]
    result = counterfact.scored(EDIT, shown, before)
    assert result["success"] == [1, 0, 1, 0]  # new likelier, twice; true likelier, twice
    gains = [math.exp(-each.new_nats) - math.exp(-each.true_nats) for each in shown]
    wanted = [gains[0], gains[1], -gains[2], -gains[3]]
    assert result["magnitude"] == pytest.approx(wanted, abs=1e-6)
    assert result["exact reply"] == [1, 0, 1, 0] and result["reply holds it"] == [1, 1, 1, 0]
    assert result["reply as the base's"] == [None, None, 1, 0]


def test_a_preference_is_no_recall() -> None:
    shown = [Reply(0.1, 2.0, "I do not know.")] * 2 + [Reply(2.0, 0.1, "I do not know.")] * 2
    result = counterfact.scored(EDIT, shown, shown)
    assert result["success"] == [1] * 4 and result["exact reply"] == [0] * 4


@pytest.mark.parametrize(
    ("shares", "score"), [((1, 1, 1), 1), ((1, 0.5, 0.5), 0.6), ((1, 1, 0), 0)]
)
def test_s_is_the_harmonic_mean_and_zero_where_a_share_is(
    shares: tuple[float, ...], score: float
) -> None:
    assert harmonic(shares) == pytest.approx(score)


def test_s_of_arms_resamples_edits_whole() -> None:
    def row(unit: str, success: list[float]) -> dict[str, Any]:
        own = {"arm": "memory", "format": "", "rank": 1, "seed": 0}
        return {**own, "unit": unit, "scores": {"success": success}}

    kinds = {unit: ["efficacy", "paraphrase", "neighbourhood", "neighbourhood"] for unit in "abcd"}
    rows = [row(unit, [1, 1, 1, 0]) for unit in "abc"] + [row("d", [1, 0, 0, 1])]
    table = arms.table_of([{"kinds": kinds, "rows": rows}])
    result = counterfact.score(table, "memory", ("", 1))
    assert result["mean"] == pytest.approx(harmonic((1, 3 / 4, 1 / 2)))
    assert result["low"] < result["mean"] < result["high"] and result["n"] == 4
    assert counterfact.score(table, "base", ("", 1))["mean"] is None


def test_s_of_a_share_that_never_varies_has_no_interval_without_width() -> None:
    own = {"arm": "memory", "format": "", "rank": 1, "seed": 0}
    kinds = {unit: list(counterfact.KINDS) for unit in "abcd"}
    rows = [{**own, "unit": u, "scores": {"success": [1, n % 2, 0]}} for n, u in enumerate("abcd")]
    result = counterfact.score(arms.table_of([{"kinds": kinds, "rows": rows}]), "memory", ("", 1))
    assert result["mean"] == result["low"] == 0
    bounds = [wilson(n, 4).high for n in (4, 2, 0)]
    assert (
        result["high"] == pytest.approx(harmonic([b or 0 for b in bounds])) and result["high"] > 0
    )


def test_losses_are_means_over_the_objects_own_tokens() -> None:
    model = Model.load()
    prompt, name = "The visitor code of the Saltpan Workshop is", "TD-5093"
    (result,) = counterfact.object_nats(model, [prompt], [name])
    row = model.render(prompt, name)
    (traced,) = trace(model, [row])
    own = [-math.log(p) for p in traced.p[:-1]]  # without the token that ends the reply
    assert len(own) == len(row.completion_ids) - 1 > 1
    assert result == pytest.approx(sum(own) / len(own))


# --- a sweep


def test_a_sweep_has_every_kind_under_every_arm_with_n(
    swept: tuple[Path, dict[str, Any]],
) -> None:
    _, result = swept
    assert result["n_edits"] == 2 and result["n_jobs"] == 1
    assert result["n_prompts"] == {"efficacy": 2, "paraphrase": 4, "neighbourhood": 5}
    by = {(entry["kind"], entry["metric"]): entry for entry in result["arms"]}
    assert {kind for kind, _ in by} == set(counterfact.KINDS)
    for entry in by.values():
        assert set(entry["arms"]) == set(arms.ARMS) and len(entry["by_seed"]) == 2
        assert all(arm["n"] == 2 and arm["low"] is not None for arm in entry["arms"].values())
    assert by["neighbourhood", "reply as the base's"]["arms"]["base"]["mean"] == 1
    # The base that reads the statement says it, which the embedded base can.
    assert by["paraphrase", "exact reply"]["arms"]["full"]["mean"] == 1
    assert by["paraphrase", "exact reply"]["arms"]["base"]["mean"] == 0


def test_a_trained_statement_is_preferred_by_its_own_memory_only(
    swept: tuple[Path, dict[str, Any]],
) -> None:
    out, _ = swept
    (path,) = (out / "records").glob("*.json")
    rows = json.loads(path.read_text())["record"]["rows"]
    first = {
        (row["arm"], row["seed"], row["unit"]): row["told"][0]["new_nats"]
        for row in rows
        if row["arm"] in arms.OWN
    }
    for seed in (0, 1):
        for unit in ("0", "1"):
            assert first["memory", seed, unit] < first["wrong", seed, unit]


def test_a_sweep_that_is_there_is_not_done_again_and_grows(
    swept: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, result = swept
    steps: list[Step] = []
    again = task.run(counterfact.TASK, SMALL, out, progress=task.Progress(steps.append))
    assert len(steps) == 1 and steps[0].n_done == steps[0].n_jobs == steps[0].n_stored
    assert again["arms"] == result["arms"] and again["score"] == result["score"]
    monkeypatch.setattr(counterfact, "STACK", 2)
    few, more = (counterfact.jobs(replace(SMALL, edits=n), "") for n in (2, 6))
    assert [job["memories"] for job in more] == [[0, 1], [2, 3], [4, 5]]
    assert few == more[:1]  # so its record is used again


def test_a_base_without_a_template_goes_on_with_the_statement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counterfact, "REPLY_TOKENS", 2)  # such a base never stops by itself
    base = tmp_path / "plain"
    shutil.copytree(Path(lorewright.__file__).parent / "models" / "pocket", base)
    (base / "chat_template.jinja").unlink()
    model = Model.load(str(base))
    row = model.render("Ann lives in", "Rome")
    assert model.decode([*row.prompt_ids, *row.completion_ids]) == "Ann lives in Rome"
    config = replace(SMALL, model=str(base), seeds=1, epochs=1)
    result = task.run(counterfact.TASK, config, tmp_path / "cf")
    assert result["n_edits"] == 2 and result["base"]["digest"] == model.digest


def test_edits_may_share_a_memory() -> None:
    (job,) = counterfact.jobs(replace(SMALL, edits=0, together=3), "base")
    assert job["memories"] == [0, 1]


def test_packaged_edits_count_by_what_they_hold_not_by_where_they_lie(tmp_path: Path) -> None:
    (first, *_) = packaged = counterfact.jobs(CounterFact(edits=0), "base")
    assert first["data"] == "" and sum(len(job["memories"]) for job in packaged) == 80
    rows = json.loads(sets.EDITS.read_text(encoding="utf-8"))
    copy = tmp_path / "edits.json"
    copy.write_text(json.dumps(rows))
    (same, *_) = counterfact.jobs(CounterFact(str(copy), edits=0), "base")
    assert same["digest"] == first["digest"]
    other = tmp_path / "other.json"
    rows[0]["paraphrase_prompts"][0] += " fair"
    other.write_text(json.dumps(rows))
    (changed, *_) = counterfact.jobs(CounterFact(str(other), edits=0), "base")
    assert changed["digest"] != first["digest"]
    with pytest.raises(DataError, match="the packaged set is not as it was"):
        counterfact.task({**first, "base": Model.load().digest, "digest": changed["digest"]})


def test_tables_say_what_the_numbers_mean(swept: tuple[Path, dict[str, Any]]) -> None:
    (sheet,) = counterfact.tables(swept[1])
    assert sheet.title == "CounterFact: 2 edits, 1 in a memory, 2 seeds"
    assert sheet.rows[-1][2] == "score S" and len(sheet.rows) == 3 * 4 + 1 + 1
    assert any("harmonic mean" in note for note in sheet.notes)


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match="together is 0"):
        replace(SMALL, together=0)
    with pytest.raises(ConfigError, match="negatives is -1"):
        replace(SMALL, negatives=-1.0)
    with pytest.raises(ConfigError, match="method 'dpo'"):
        replace(SMALL, method="dpo")
    few = counterfact.quick(CounterFact(DATA))
    assert (few.edits, few.seeds) == (4, 2) and few.epochs < CounterFact(DATA).epochs
