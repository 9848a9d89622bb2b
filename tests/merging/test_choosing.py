"""Claims about choosing a way of merging: what is held back, tried, and what decides."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from support.atlases import written_pages

from lorewright.adapters.adapter import Adapter, content_id
from lorewright.errors import ConfigError
from lorewright.knowledge.data import Example
from lorewright.merging.choosing import GRID, Trial, held_back, merged_by, search
from lorewright.merging.imitate import Source
from lorewright.merging.methods import METHODS, Evidence
from lorewright.models.model import Model
from lorewright.recall.statistics import wilson

SMALL = (("tsv", {}), ("regmean", {"ridge": 1e-3}), ("imitate", {"ridge": 1e-3}))


@pytest.fixture(scope="module")
def model() -> Model:
    return Model.load()


@pytest.fixture(scope="module")
def sources() -> list[Source]:
    """Both memories, written at once."""
    return list(written_pages())


def evidence_of(model: Model, sources: list[Source], **how: Any) -> Evidence:
    return Evidence(model, [source.examples for source in sources], **how)


def make(model: Model, sources: list[Source], method: str, **how: Any) -> tuple[Adapter, list[str]]:
    adapter = METHODS[method]([s.adapter for s in sources], evidence_of(model, sources, **how))
    return adapter, adapter.card["merge"]["notes"]


def tried(model: Model, sources: list[Source], grid: Any = GRID, **how: Any) -> list[Trial]:
    own = [source.adapter for source in sources]
    return list(search(own, evidence_of(model, sources, **how), grid))


def test_rewrite_says_that_it_is_training_and_learns_both(
    model: Model, sources: list[Source]
) -> None:
    adapter, notes = make(model, sources, "rewrite", options={"epochs": 2})
    assert "trains" in notes[0] and adapter.config.rank == 8
    assert adapter.card["merge"]["method"] == "rewrite"


def test_refine_goes_on_from_what_imitates_both_at_the_scale_of_a_fresh_adapter(
    model: Model, sources: list[Source]
) -> None:
    copy, _ = make(model, sources, "imitate")
    still, _ = make(model, sources, "refine", options={"epochs": 1, "lr": 1e-30})
    assert still.config.alpha == 16 and still.config.rank == copy.config.rank == 8
    for name in copy.modules:
        (a, b), (A, B) = (
            (each.tensors[f"{name}.lora_A.weight"], each.tensors[f"{name}.lora_B.weight"])
            for each in (copy, still)
        )
        torch.testing.assert_close(still.config.scale * B @ A, copy.config.scale * b @ a)
    trained, notes = make(model, sources, "refine", options={"epochs": 2})
    assert "trains" in notes[0] and trained.card["merge"]["epochs"] <= 2
    assert any((trained.tensors[key] != still.tensors[key]).any() for key in still.tensors)


def test_every_method_is_in_the_grid_but_training_anew() -> None:
    assert {name for name, _ in GRID} == {*METHODS} - {"rewrite"}


def test_a_lower_rank_is_taken_only_where_it_keeps_more() -> None:
    def trial(rank: int, n: int, sure: float) -> Trial:
        return Trial("tsv", {}, rank, (wilson(n, 4), wilson(4, 4)), sure, 0.0, None)

    wide, narrow, better = trial(16, 3, 0.5), trial(8, 3, 0.9), trial(8, 4, 0.1)
    assert max(wide, narrow, key=lambda each: each.merit) is wide
    assert max(wide, better, key=lambda each: each.merit) is better


def test_weights_keep_auto_from_training(model: Model, sources: list[Source]) -> None:
    grid = (("tsv", {}), ("refine", {}))
    trials = list(tried(model, sources, weights=[1.0, 0.5], rank=8, grid=grid))
    assert [each.method for each in trials] == ["tsv", "refine"]
    assert trials[1].adapter is None and "leave the weights out" in trials[1].why_not


def test_a_search_holds_back_the_same_questions_for_all_and_tries_half_the_rank(
    model: Model, sources: list[Source]
) -> None:
    trials = list(tried(model, sources, grid=SMALL))
    assert [trial.method for trial in trials] == ["tsv", "regmean", "imitate", trials[-1].method]
    assert [trial.rank for trial in trials] == [8, 8, 8, 4]
    assert [[share.n for share in trial.held] for trial in trials] == [[3, 3]] * 4
    fixed = list(tried(model, sources, rank=5, grid=SMALL[:1]))
    assert [trial.rank for trial in fixed] == [5]


def test_one_adapter_is_made_by_the_method_or_by_the_best_that_auto_tries(
    model: Model, sources: list[Source]
) -> None:
    grid, own = SMALL[:1], [source.adapter for source in sources]
    best = max(tried(model, sources, grid=grid), key=lambda trial: trial.merit)
    again, _ = make(model, sources, "tsv", rank=best.rank)
    assert content_id(merged_by("auto", own, evidence_of(model, sources), grid)) == content_id(
        again
    )
    summed, _ = make(model, sources, "cat")
    assert content_id(merged_by("cat", own, evidence_of(model, sources))) == content_id(summed)


def test_a_way_that_cannot_be_had_is_a_trial_that_says_why(
    model: Model, sources: list[Source]
) -> None:
    (trial, *_) = tried(model, sources, rank=3, grid=(("cat", {}),))
    assert trial.adapter is None and "needs rank 8" in trial.why_not
    assert trial.merit < Trial("x", {}, 1, (wilson(0, 3), wilson(0, 3)), 0.0, 0.0, None).merit


def test_the_worse_off_source_decides_then_the_mean_then_how_sure() -> None:
    def merit(one: int, other: int, sure: float) -> tuple[float, float, float]:
        held = (wilson(one, 4), wilson(other, 4))
        return Trial("x", {}, 8, held, sure, 0.0, None).merit

    ranked = [merit(4, 0, 0.9), merit(1, 1, 0.2), merit(1, 2, 0.1), merit(1, 2, 0.2)]
    assert ranked == sorted(ranked)


def test_a_source_without_examples_does_not_decide_and_without_any_auto_is_refused(
    model: Model, sources: list[Source]
) -> None:
    mute = replace(sources[1], examples=())
    trials = list(tried(model, [sources[0], mute], grid=SMALL[1:] + SMALL[:1]))
    assert [trial.method for trial in trials] == ["regmean", "imitate", "tsv", "tsv"]
    assert "source 1 has none" in trials[1].why_not and trials[2].adapter is not None
    assert max(trials, key=lambda trial: trial.merit).method == "tsv"
    with pytest.raises(ConfigError, match="name a method"):
        list(tried(model, [mute, mute]))


def test_one_form_of_every_answer_is_held_back_where_answers_have_several() -> None:
    rows = [Example(f"{form} {n}?", f"answer {n}") for n in range(4) for form in "abc"]
    nothing = Example("what?", "I do not know.", "unknown")
    rest, held = held_back([*rows, nothing])
    assert len(held) == 4 and {row.completion for row in held} == {f"answer {n}" for n in range(4)}
    assert nothing in rest and {*rest} | {*held} == {*rows, nothing} and not {*rest} & {*held}
    single = rows[::3]
    assert held_back(single)[0] == single and {*held_back(single)[1]} == {*single}
    many = [Example(f"question {n}?", f"answer {n}") for n in range(300)]
    assert len(held_back(many)[1]) == 200
