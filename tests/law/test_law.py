"""Claims about the Parametric Memory Law: the paper's figures, bounds, intervals, the way back."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorewright.errors import ConfigError, DataError
from lorewright.knowledge.scoring import SAFE_NATS
from lorewright.law.cells import Cell, by_group, read_cells
from lorewright.law.curves import FORMS
from lorewright.law.law import fit, fit_report, score, table

QWEN = read_cells(Path(__file__).parents[2] / "examples" / "law_qwen_r100.csv")
SMALL = tuple(cell for cell in QWEN if cell.rank <= 6 and cell.n_answer_tokens <= 4000)
LARGE = tuple(cell for cell in QWEN if cell not in SMALL)
RANKS = (1, 2, 4, 8, 16, 32)
LENGTHS = (200, 500, 1000, 3000, 8000)
ANY_SIZE = st.integers(1, 10**6)

PAPER = fit(QWEN, "paper", n_draws=200)
BOUNDED = fit(QWEN, "bounded", n_draws=200)


def _runs(seed: int = 0, *, noise: float = 0.04, n: int = 50, rho: float = 0.0) -> list[Cell]:
    """Return runs that obey the bounded law and the law of recall, saturated ones among them."""
    generator = np.random.default_rng(seed)
    cells = []
    for rank, length in product(RANKS, LENGTHS):
        x = (60 * rank**0.7 * length**-0.5 / 8.0) ** 4
        drop = 8.0 * (x / (1 + x)) ** 0.25 * math.exp(noise * generator.standard_normal())
        p = 1 / (1 + math.exp(-(3.0 + 2.0 * math.log(rank) - 1.0 * math.log(length))))
        if rho:
            p = generator.beta(p * (1 - rho) / rho, (1 - p) * (1 - rho) / rho)
        recall = generator.binomial(n, p) / n
        cells.append(Cell(rank, length, min(drop, 7.999), 8.0, 1024 * rank, recall, n))
    return cells


RUNS = _runs()
RECALL = fit(RUNS, "recall", n_draws=200)


# --- the paper's figure


def test_paper_form_gives_the_papers_constants_and_scores() -> None:
    assert PAPER.constants["C"] == pytest.approx(237, abs=3)
    assert PAPER.constants["alpha"] == pytest.approx(0.658, abs=0.005)
    assert PAPER.constants["beta"] == pytest.approx(0.559, abs=0.005)
    assert PAPER.constants["b"] == pytest.approx(-0.39, abs=0.02)
    result = score(PAPER, QWEN)
    assert result.r2 is not None and result.r2 >= 0.9955
    assert result.mape == pytest.approx(0.0347, abs=0.0005)
    assert (result.n, PAPER.n_used, PAPER.n_dropped) == (70, 70, 0)


@pytest.mark.parametrize("loss_init", [None, 12.5, 12.9])
def test_bounded_form_is_closer_and_predicts_what_it_has_not_seen(loss_init: float | None) -> None:
    everything = score(fit(QWEN, loss_init=loss_init, n_draws=0), QWEN)
    assert everything.r2 is not None and everything.r2 >= 0.998
    ahead = score(fit(SMALL, loss_init=loss_init, n_draws=0), LARGE)
    assert ahead.n == 52
    assert ahead.mape is not None and ahead.mape <= 0.029


def test_papers_offset_costs_it_what_it_has_not_seen() -> None:
    ahead = score(fit(SMALL, "paper", n_draws=0), LARGE)
    assert ahead.mape == pytest.approx(0.050, abs=0.001)
    assert ahead.worst_relative == pytest.approx(0.42, abs=0.01)
    without = score(fit(SMALL, "paper_without_offset", n_draws=0), LARGE)
    assert without.mape == pytest.approx(0.030, abs=0.001)
    assert without.worst_relative == pytest.approx(0.12, abs=0.005)


@given(size=ANY_SIZE, length=ANY_SIZE)
def test_bounded_law_never_promises_more_than_there_is_nor_less_than_nothing(
    size: int, length: int
) -> None:
    assert 0 <= BOUNDED.predict(size, length) <= BOUNDED.constants["L0"]
    assert 0 <= BOUNDED.predict(size, length, loss_init=3.0) <= 3.0


@given(size=ANY_SIZE, length=ANY_SIZE)
def test_recall_is_promised_between_none_and_all(size: int, length: int) -> None:
    run = RECALL.predict_interval(size, length)
    assert 0 <= run.low <= run.value <= run.high <= 1


# --- what is fitted on


def test_saturated_runs_are_dropped_by_the_paper_and_counted() -> None:
    n_saturated = sum(cell.is_saturated for cell in RUNS)
    law = fit(RUNS, "paper", n_draws=0)
    assert 0 < n_saturated == law.n_dropped
    assert law.n_used + law.n_dropped == len(RUNS)
    assert fit(RUNS, "bounded", n_draws=0).n_dropped == 0


def test_one_loss_init_given_for_all_decides_on_saturation_too() -> None:
    law = fit(QWEN, "paper", loss_init=12.5, n_draws=0)
    assert law.n_dropped == sum(12.5 - cell.loss_drop <= SAFE_NATS for cell in QWEN) == 1


def test_bounded_form_finds_the_constants_of_runs_that_saturate() -> None:
    law = fit(_runs(noise=0.005), n_draws=0)
    assert law.constants["C"] == pytest.approx(60, rel=0.05)
    assert law.constants["alpha"] == pytest.approx(0.7, rel=0.03)
    assert law.constants["beta"] == pytest.approx(0.5, rel=0.03)
    assert law.constants["L0"] == 8.0


def test_recall_law_finds_the_constants_behind_the_answers() -> None:
    truth = {"a": 3.0, "k": 2.0, "g": 1.0}
    assert fit(_runs(n=10**5), "recall", n_draws=0).constants == pytest.approx(truth, rel=0.02)
    for name, result in RECALL.intervals().items():
        assert result.low < truth[name] < result.high


def test_parameters_make_one_law_of_two_target_sets() -> None:
    # The same parameters at half the rank, as on twice as many layers.
    half = [replace(cell, rank=cell.rank // 2) for cell in RUNS if cell.rank > 1]
    both = fit([*RUNS, *half], size="parameters", n_draws=0)
    alone = fit(RUNS, n_draws=0)
    assert both.predict(8 * 1024, 1000) == pytest.approx(alone.predict(8, 1000), rel=0.02)
    assert score(both, half).mape == pytest.approx(score(alone, RUNS).mape, abs=0.01)
    assert (score(fit([*RUNS, *half], n_draws=0), half).mape or 0) > 0.1


@pytest.mark.parametrize(
    ("cells", "form", "message"),
    [
        ([], "paper", "0 of 0 cells"),
        (QWEN[:4], "paper", "give 5 or more, of at least two sizes and two lengths"),
        ([cell for cell in QWEN if cell.rank == 1], "bounded", "two sizes"),
        ([cell for cell in QWEN if cell.n_answer_tokens == 5000], "paper", "two lengths"),
        (QWEN, "recall", "0 of 70 cells"),
        ([replace(cell, recall=1.0) for cell in QWEN], "recall", "differ in what was learnt"),
        (
            [QWEN[0], replace(QWEN[1], loss_init=12.5), *QWEN[2:]],
            "bounded",
            "69 of 70 cells have no",
        ),
    ],
)
def test_cells_that_fix_no_law_are_refused(cells: list[Cell], form: str, message: str) -> None:
    with pytest.raises(DataError) as refusal:
        fit(cells, form)
    assert message in str(refusal.value)


def test_unknown_form_and_size_list_those_there_are() -> None:
    with pytest.raises(ConfigError, match="no law 'cubic'; choose one of paper, "):
        fit(QWEN, "cubic")
    with pytest.raises(ConfigError, match="choose one of rank, parameters"):
        fit(QWEN, size="bytes")
    with pytest.raises(DataError, match="70 of 70 cells have no n_parameters"):
        fit(QWEN, size="parameters")


# --- intervals


def test_intervals_hold_their_values_and_widen_with_confidence() -> None:
    for name, narrow in PAPER.intervals(confidence=0.5).items():
        wide = PAPER.intervals(confidence=0.95)[name]
        assert wide.low < narrow.low < narrow.value < narrow.high < wide.high


def test_same_seed_same_draws() -> None:
    first, again, other = (fit(SMALL, "paper", n_draws=5, seed=seed) for seed in (1, 1, 2))
    assert first == again != other


def test_intervals_of_the_curve_cover_the_truth_about_as_often_as_they_say() -> None:
    truth = (60 * 4**0.7 * 1000**-0.5 / 8.0) ** 4
    wanted = 8.0 * (truth / (1 + truth)) ** 0.25
    hits = 0
    for seed in range(20):
        law = fit(_runs(seed), n_draws=40, seed=seed)
        result = law.predict_interval(4, 1000, confidence=0.9)
        hits += result.low <= wanted <= result.high
    assert 14 <= hits <= 20


def test_whole_groups_can_be_drawn() -> None:
    seeds = [replace(cell, group=f"seed {n}") for n in range(4) for cell in _runs(n)]
    by_cell, grouped = (
        fit(seeds, "paper_without_offset", unit=unit, n_draws=50) for unit in (None, by_group)
    )
    assert by_cell.constants == grouped.constants
    assert by_cell.draws != grouped.draws
    with pytest.raises(DataError, match="has none; fill the column group"):
        fit(QWEN, unit=by_group)


def test_law_without_draws_predicts_and_refuses_intervals() -> None:
    law = fit(QWEN, "paper", n_draws=0)
    assert law.predict(8, 4000) == PAPER.predict(8, 4000)
    for ask in (law.intervals, lambda: law.predict_interval(8, 4000), lambda: law.invert(2, 4000)):
        with pytest.raises(ConfigError, match="n_draws=0"):
            ask()


# --- the way back


@given(length=st.integers(100, 10**5), wanted=st.floats(0.05, 0.95))
def test_invert_undoes_predict(length: int, wanted: float) -> None:
    for law, value in ((PAPER, 10 * wanted), (BOUNDED, 10 * wanted), (RECALL, wanted)):
        needed = law.invert(value, length, up_to=10**9)
        assert law.predict(needed.size, length) >= value
        assert needed.size == 1 or law.predict(needed.size - 1, length) < value
        assert needed.low <= needed.size
        assert needed.high is None or needed.size <= needed.high


def test_invert_says_what_the_reach_gives_where_it_is_not_enough() -> None:
    with pytest.raises(DataError, match=r"no rank up to 128 reaches a recall of 0\.9"):
        RECALL.invert(0.9, 10**6)
    with pytest.raises(DataError, match=r"a fall of the loss of 20 .* look further"):
        BOUNDED.invert(20, 1000, up_to=10**12)


def test_interval_of_the_size_needed_is_open_where_too_many_draws_fail() -> None:
    size = RECALL.invert(0.9, 8000).size
    tight = RECALL.invert(0.9, 8000, up_to=size)
    assert (tight.size, tight.high) == (size, None)


@pytest.mark.parametrize(
    "ask",
    [
        lambda: PAPER.predict(0, 1000),
        lambda: PAPER.predict(8, 0),
        lambda: PAPER.predict(math.inf, 1000),
        lambda: PAPER.predict(8, math.nan),
        lambda: PAPER.predict(8, 1000, loss_init=3.0),
        lambda: BOUNDED.predict(8, 1000, loss_init=-1.0),
        lambda: BOUNDED.predict_interval(8, 1000, confidence=95),
        lambda: BOUNDED.invert(3.0, 1000, up_to=0),
    ],
)
def test_questions_that_make_no_sense_are_refused(ask: Callable[[], object]) -> None:
    with pytest.raises(ConfigError):
        ask()


# --- scores


def test_score_is_perfect_on_cells_from_the_law_itself() -> None:
    own = [replace(c, loss_drop=PAPER.predict(c.rank, c.n_answer_tokens)) for c in QWEN]
    result = score(PAPER, own)
    assert result.r2 == pytest.approx(1)
    assert result.mape == pytest.approx(0, abs=1e-9)


def test_score_counts_what_it_cannot_score() -> None:
    result = score(RECALL, [*RUNS, Cell(1, 200, 2.0)])
    assert (result.n, result.n_unscored, result.mape) == (len(RUNS), 1, None)
    with pytest.raises(DataError, match="no cells to score"):
        score(RECALL, QWEN)


def test_run_that_learnt_nothing_is_fitted_and_scored_but_has_no_relative_error() -> None:
    cells = [*RUNS[1:], replace(RUNS[0], loss_drop=0.0)]
    for form in FORMS:
        result = score(fit(cells, form, n_draws=5), cells)
        assert result.n == len(RUNS)
        assert result.worst_relative is None or math.isfinite(result.worst_relative)


def test_score_of_one_cell_has_no_r2_and_a_signed_error() -> None:
    result = score(PAPER, [Cell(8, 4000, 1.0)])
    assert result.r2 is None
    assert result.mean_error == pytest.approx(PAPER.predict(8, 4000) - 1.0)


# --- the report


def test_report_holds_constants_intervals_scores_and_what_was_held_out() -> None:
    report = fit_report(QWEN, n_draws=30, hold_out_above_rank=6, hold_out_above_length=4000)
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert list(report["laws"]) == ["paper", "paper_without_offset", "bounded"]
    assert report["held_out"] == {"n": 52, "above_rank": 6, "above_length": 4000}
    bounded = report["laws"]["bounded"]
    assert bounded["held_out"]["mape"] <= 0.029
    assert bounded["scores"]["r2"] >= 0.998
    low, value, high = (bounded["constants"]["alpha"][key] for key in ("low", "value", "high"))
    assert low < value < high
    assert (report["n_cells"], report["loss_init"], bounded["n_used"]) == (70, "fitted", 70)


def test_report_has_the_law_of_recall_where_recall_is_known() -> None:
    report = fit_report(RUNS, n_draws=10, hold_out_above_rank=16)
    assert list(report["laws"]) == list(FORMS)
    assert report["loss_init"] == "of the cells"
    assert report["laws"]["recall"]["held_out"]["n"] == len(LENGTHS)
    assert report["capacity"][0]["bits_per_parameter"] > 0


def test_form_that_cannot_be_fitted_is_in_the_report_with_its_reason() -> None:
    learnt = [replace(cell, loss_init=cell.loss_drop + 0.1 * cell.rank) for cell in RUNS]
    report = fit_report([c for c in learnt if c.rank <= 8], n_draws=0)
    assert "saturated" in report["laws"]["paper"]["refused"]
    assert "refused" not in report["laws"]["bounded"]
    with pytest.raises(DataError, match="give 5 or more"):
        fit_report(QWEN[:3])


@pytest.mark.parametrize("rank", [0, 24])
def test_holding_out_everything_or_nothing_is_refused(rank: int) -> None:
    with pytest.raises(DataError, match="of 70 cells; give a rank or a length"):
        fit_report(QWEN, n_draws=0, hold_out_above_rank=rank)


def test_table_shows_the_report_row_by_row() -> None:
    rows = table(fit_report(RUNS, n_draws=10, hold_out_above_rank=16))
    assert rows[0] == ("law", "quantity", "value", "95% interval")
    assert {len(row) for row in rows} == {4}
    shown = {(row[0], row[1]) for row in rows}
    assert {("paper", "alpha"), ("bounded", "L0"), ("recall", "held out")} <= shown
    assert any(row[0] == "bits a parameter" and row[2] == "3.6" for row in rows)
    without = table(fit_report(QWEN, n_draws=0))
    assert ("paper", "C", "237", "") in without
