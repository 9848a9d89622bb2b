"""Claims about the benchmark of recipes: what a cell writes, what it is asked, what it costs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.sections import ROW, stored

from lorewright.adapters.config import LoraConfig
from lorewright.bench import exact, recipes
from lorewright.bench.task import load, page, run
from lorewright.errors import ConfigError, DataError
from lorewright.law.plan import shape_of
from lorewright.models.model import Model
from lorewright.reports.page import to_markdown

TWO = [ROW, {**ROW, "id": "terms-teal"}]


def config(tmp_path: Path, **more: Any) -> recipes.Recipes:
    return recipes.Recipes(model="pocket", data=stored(tmp_path, *TWO), left_out=3, **more)


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The text, one wording and two, each of two documents."""
    folder = tmp_path_factory.mktemp("recipes")
    settings = config(folder, wordings=(0, 1, 2), ranks=(4,), patience=0)
    return run(load("recipes"), settings, folder / "out")


def test_every_cell_writes_every_document_and_the_base_is_asked_once(tmp_path: Path) -> None:
    todo = recipes.jobs(config(tmp_path, wordings=(0, 2), dropouts=(0.0, 0.1), seeds=2), "")
    written = [job for job in todo if job["seed"] >= 0]
    assert len(written) == 2 * 2 * 2 * 2
    assert len(todo) - len(written) == 2
    assert len({json.dumps(job, sort_keys=True) for job in todo}) == len(todo)


def test_what_is_asked_is_not_written(tmp_path: Path) -> None:
    for case in recipes.check(config(tmp_path)):
        written = {fact.question for wordings in case.facts for fact in wordings}
        asked = {probe.question for probe in case.probes}
        assert len(written) == 4 and not written & asked
        assert {probe.kind for probe in case.probes} == {"paraphrase", "unknown"}


def test_a_document_may_have_its_facts_and_probes_beside_it() -> None:
    (case,) = recipes.cases_of("examples/kestrel.md", 4)
    assert len(case.facts) >= 30 and {len(wordings) for wordings in case.facts} == {3}
    for wordings in case.facts:
        assert len({fact.answer for fact in wordings}) == 1, "one fact in several wordings"
    few = case.first(2)
    answers = {fact.answer for wordings in few.facts for fact in wordings}
    assert all({*probe.answers} & answers for probe in few.probes if probe.answers)
    assert any(probe.kind == "unknown" for probe in few.probes)


def test_the_text_alone_is_not_answered_from_and_its_wordings_are(swept: dict[str, Any]) -> None:
    recall = {cell["wordings"]: cell["paraphrase"] for cell in swept["cells"]}
    assert {each["n"] for each in recall.values()} == {4}
    assert recall[2]["mean"] > recall[0]["mean"]
    (controls,) = swept["controls"]
    assert controls["full"]["paraphrase"]["mean"] > controls["base"]["paraphrase"]["mean"]
    assert all(each["low"] <= each["mean"] <= each["high"] for each in recall.values())


def test_every_cell_has_its_costs_and_the_page_shows_them(swept: dict[str, Any]) -> None:
    assert all(cell["seconds"] > 0 and cell["n_parameters"] > 0 for cell in swept["cells"])
    one, two = (c["n_examples"] for c in swept["cells"] if c["wordings"])
    assert two > one
    text = to_markdown(page(swept))
    assert "| text |" in text and "document in the prompt" in text and "![" in text


def test_placements_at_equal_parameters_have_the_same_size() -> None:
    model, sizes = Model.load("pocket"), {}
    for name in ("all-linear", "attention", "mlp@early", "mlp@late"):
        job = {"placement": name, "rank": 8, "equal": True, "seed": 0, "lr": 0.0}
        job |= {"dropout": 0.0, "decay": 0.0, "epochs": 1, "patience": 0, "wordings": 1}
        made = recipes.config_of(model, job).lora
        sizes[name] = made.rank * shape_of(model, made).n_values
    assert recipes.equal_rank(model, LoraConfig(8)) == 8
    assert max(sizes.values()) / min(sizes.values()) < 1.1, sizes


def test_thirds_of_the_layers_are_all_of_them_once() -> None:
    model = Model.load("pocket")
    thirds = [exact.placement(model, f"mlp@{name}")[1] or () for name in exact.THIRDS]
    assert sorted(layer for third in thirds for layer in third) == [0, 1, 2, 3, 4]
    assert all(thirds) and max(thirds[0]) < min(thirds[1]) <= max(thirds[1]) < min(thirds[2])


def test_what_cannot_be_swept_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="ranks is empty"):
        config(tmp_path, ranks=())
    with pytest.raises(ConfigError, match="dropout"):
        config(tmp_path, dropouts=(1.5,))
    with pytest.raises(DataError, match="3 wordings of every fact are to be written"):
        recipes.jobs(config(tmp_path, wordings=(3,)), "")
    with pytest.raises(DataError, match="leave another out"):
        recipes.check(replace(config(tmp_path), left_out=4))
