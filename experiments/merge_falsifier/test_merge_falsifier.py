"""Claims about the merging experiment: disjoint facts, untrained probes, losses, an honest page."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lorewright.knowledge.lesson import LessonConfig
from lorewright.knowledge.scoring import normalise
from lorewright.merging.choosing import GRID

FOLDER = Path(__file__).resolve().parent
NAMES = ("pairs", "draw", "tables", "run")


@pytest.fixture(scope="module")
def here() -> Iterator[SimpleNamespace]:
    """The experiment's modules, importable while these tests run."""
    before = list(sys.path)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER)
        yield SimpleNamespace(**{name: __import__(name) for name in NAMES})
        for name in NAMES:
            sys.modules.pop(name)
    sys.path[:] = before


def test_the_memories_of_a_pair_share_no_subject_and_no_pair_is_another(
    here: SimpleNamespace,
) -> None:
    drawn = [here.pairs.pair(n) for n in range(10)]
    for one, other in drawn:
        assert len(one) == len(other) == here.pairs.N_FACTS == 24
        subjects = [{normalise(item.subject) for item in items} for items in (one, other)]
        assert not subjects[0] & subjects[1]
        for items in (one, other):
            assert len({(item.subject, item.relation.name) for item in items}) == 24
    assert drawn[0] == here.pairs.pair(0)
    assert len({items[0] for pair in drawn for items in pair}) == 20


def test_probes_are_in_forms_that_no_lesson_trains(here: SimpleNamespace) -> None:
    mute: Any = SimpleNamespace(generate=lambda prompts: ["I do not know."] * len(prompts))
    made = here.pairs.lesson(mute, here.pairs.pair(3)[0], LessonConfig(seed=6))
    trained = {normalise(example.prompt) for example in made.examples}
    by_kind: dict[str, list[Any]] = {kind: [] for kind in here.pairs.KINDS}
    for probe in made.probes:
        by_kind[here.pairs.kind_of(probe)].append(probe)
    for kind in ("paraphrase", "new form", "unknown"):
        assert not {normalise(p.question) for p in by_kind[kind]} & trained, kind
    assert {normalise(p.question) for p in by_kind["as trained"]} <= trained
    assert [len(by_kind[kind]) for kind in ("paraphrase", "new form", "as trained")] == [24] * 3
    answers = {normalise(e.completion) for e in made.examples if e.kind == "qa"}
    assert {normalise(p.answers[0]) for p in by_kind["paraphrase"]} == answers


def pair(alone: tuple[float, float], merged: tuple[float, float]) -> dict[str, Any]:
    """A record of two sources with ten probes of each kind."""

    def scores(share: float) -> dict[str, list[int]]:
        n_right = round(10 * share)
        row = [1] * n_right + [0] * (10 - n_right)
        return {"paraphrase": row, "new form": row, "as trained": row, "unknown": row}

    arm = {"scores": [scores(share) for share in merged], "rank": 16, "options": {}}
    return {"alone": [scores(share) for share in alone], "arms": {"x": arm}}


def test_a_loss_is_a_share_of_what_the_source_recalls_alone(here: SimpleNamespace) -> None:
    pairs = [pair((1.0, 0.8), (0.9, 0.4)), pair((1.0, 1.0), (1.0, 0.9))]
    summed = here.tables.summary(pairs, lambda p: p["arms"]["x"]["scores"])
    assert summed["each"][0] == pytest.approx([0.1, 0.5])
    assert summed["lost"].mean == pytest.approx(((0.1 + 0.5) / 2 + 0.1 / 2) / 2)
    assert summed["worse"].mean == pytest.approx((0.5 + 0.1) / 2)
    assert (summed["n"], summed["n_over"]) == (2, 1)
    assert summed["recall"]["paraphrase"].mean == pytest.approx((0.65 + 0.95) / 2)
    nothing = here.tables.lost(pair((0.0, 1.0), (0, 0))["alone"], pair((1, 1), (0, 1))["alone"])
    assert nothing == [0.0], "who recalls nothing has nothing to lose"


def test_every_method_is_measured_and_every_other_way_of_writing_is_a_write(
    here: SimpleNamespace,
) -> None:
    model: Any = SimpleNamespace(
        network=SimpleNamespace(
            config=SimpleNamespace(get_text_config=lambda: SimpleNamespace(hidden_size=192))
        )
    )
    default = here.run.configs(model, {}, 4, 60)
    assert default[0].lora.seed != default[1].lora.seed, "a first A of its own"
    for how, settings in here.run.WRITES.items():
        made = here.run.configs(model, settings, 4, 60)
        differs = made != default or settings == {"negatives": 0.0}
        assert differs == (how != "default")
    one = here.run.configs(model, here.run.WRITES["one first A for both"], 4, 60)
    assert one[0].lora.seed == one[1].lora.seed
    assert {name for name, _ in GRID} >= {"cat", "ties", "dare", "regmean", "imitate"}


def test_the_page_says_what_the_records_say(here: SimpleNamespace, tmp_path: Path) -> None:
    records = FOLDER / "records"
    if len(list(records.glob("pair-*.json"))) < 10:
        pytest.skip("the experiment is not finished: the page has no tables yet")
    here.tables.write_page(records, tmp_path)
    start, end = here.tables.MARKS
    tables = [
        (folder / "README.md").read_text(encoding="utf-8").split(start)[1].split(end)[0]
        for folder in (FOLDER, tmp_path)
    ]
    assert tables[0] == tables[1]
    for name in ("losses.svg", "losses-dark.svg"):
        assert (FOLDER / name).exists() and (tmp_path / name).exists()
