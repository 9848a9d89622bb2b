"""experiments/fresh_documents: pages nobody tuned on, questions no lesson holds, honest means."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from lorewright.knowledge.data import Document, Knowledge
from lorewright.knowledge.lesson import prepare
from lorewright.models.model import Model

PATH = Path(__file__).parent / "run.py"


@pytest.fixture(scope="module")
def run() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fresh_documents_run", PATH)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    before = list(sys.path)
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path[:] = before
    return module


def test_a_page_says_each_of_its_facts_and_depends_on_its_number_alone(run: ModuleType) -> None:
    page = run.page(3)
    assert page == run.page(3) != run.page(4)
    assert len(page.statements) == 48
    assert all(item.value in page.text for item in page.statements)


def test_near_misses_are_said_nowhere_and_no_probe_is_trained(run: ModuleType) -> None:
    pocket = Model.load("pocket")
    page = run.page(0, 2)
    probes = run.probes(0, page, 6)
    stated = {item.fill(form) for item in page.statements for form in run.UNTRAINED}
    unknown = [p for p in probes if p.kind == "unknown"]
    assert len(unknown) == 6
    assert len(probes) == 3 * len(page.statements) + 6
    assert not stated & {p.question for p in unknown}
    made = prepare(
        Knowledge((Document("page-0", page.text),)),
        ask_llm=pocket.generate,
        closed_book=pocket.generate,
        config=run.LESSON,
        phrasing=pocket.phrasing,
        given_probes=probes,
    )
    trained = {example.prompt for example in made.examples}
    assert trained
    assert not trained & {p.question for p in probes}


def test_the_table_pools_questions_and_names_the_worst_document(run: ModuleType) -> None:
    def record(number: int, right: float) -> dict[str, object]:
        scores = {"fact-0-0": right, "new-0": 1.0, "unknown-0": 1.0}
        arms = {"memory": scores, "base": dict.fromkeys(scores, 0.0), "full": scores}
        return {"number": number, "base": "b" * 64, "cpu_seconds": 60.0, "scores": arms}

    held, new, unknown = run.rows([record(0, 1.0), record(1, 0.0)])
    assert held[1].startswith("0.50 [") and held[2].startswith("0.00")
    assert held[-1] == "0.00, 1.00"
    assert new[1].startswith("1.00") and unknown[1].startswith("1.00")
    assert "2 documents; base bbbbbbbbbbbbbbbb; 60 CPU seconds" in run.table(
        [record(0, 1.0), record(1, 0.0)]
    )
