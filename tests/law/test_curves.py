"""Claims about the forms of the law: their bounds, and that fits find constants put in."""

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorewright.errors import ConfigError, DataError
from lorewright.law.cells import Cell
from lorewright.law.curves import FORMS, Array, Columns, bootstrap, columns_of, fixes, spread_of

SIZES = (1, 2, 4, 8, 16, 32, 64)
LENGTHS = (100, 300, 1000, 3000, 10000)
TRUTH = {
    "paper": (240.0, 0.66, 0.56, -0.4),
    "paper_without_offset": (280.0, 0.7, 0.6),
    "bounded": (390.0, 0.75, 0.64, 6.0, 12.5),
    "recall": (1.0, 2.0, 0.6),
}
ANY_SIZE = st.integers(1, 10**6)


def grid(form: str, constants: tuple[float, ...] | None = None, *, noise: float = 0.0) -> Columns:
    """Return cells that lie on a curve, or around it by so many nats."""
    points = np.log(np.array(list(product(SIZES, LENGTHS)), float))
    best = np.array(TRUTH[form] if constants is None else constants)
    y_N = FORMS[form].curve(best, points[:, 0], points[:, 1], None)
    y_N = y_N + noise * np.random.default_rng(0).standard_normal(len(y_N))
    weight_N = np.full(len(y_N), 200.0 if form == "recall" else 1.0)
    return Columns(points[:, 0], points[:, 1], y_N, weight_N, None)


# --- bounds


@given(
    constants=st.tuples(
        st.floats(1e-6, 1e9), st.floats(-3, 3), st.floats(-3, 3), st.floats(0.2, 50)
    ),
    top=st.floats(1e-3, 1e3),
    size=ANY_SIZE,
    length=ANY_SIZE,
)
def test_bounded_form_stays_between_0_and_its_ceiling_whatever_its_constants(
    constants: tuple[float, ...], top: float, size: int, length: int
) -> None:
    curve = FORMS["bounded"].curve
    fitted = curve(np.array([*constants, top]), math.log(size), math.log(length), None)
    given_top = curve(np.array([*constants, 1.0]), math.log(size), math.log(length), top)
    assert 0 <= fitted <= top
    assert fitted == given_top


@given(
    constants=st.tuples(*[st.floats(-1e3, 1e3)] * 3),
    size=ANY_SIZE,
    length=ANY_SIZE,
)
def test_recall_stays_between_0_and_1(constants: tuple[float, ...], size: int, length: int) -> None:
    recall = FORMS["recall"].curve(np.array(constants), math.log(size), math.log(length), None)
    assert 0 <= recall <= 1


def test_far_below_its_ceiling_the_bounded_form_is_the_power() -> None:
    power = FORMS["paper_without_offset"].curve(np.array([5.0, 0.7, 0.6]), 0.0, 7.0, None)
    bounded = FORMS["bounded"].curve(np.array([5.0, 0.7, 0.6, 4.0, 100.0]), 0.0, 7.0, None)
    assert bounded == pytest.approx(power, rel=1e-6)


# --- fits


@pytest.mark.parametrize("form", [name for name in FORMS if name != "recall"])
def test_fit_finds_the_constants_that_were_put_in(form: str) -> None:
    result = FORMS[form].fit(grid(form), None)
    assert result == pytest.approx(np.array(TRUTH[form]), rel=1e-3)


def test_recall_fit_finds_the_constants_but_for_its_ridge() -> None:
    result = FORMS["recall"].fit(grid("recall"), None)
    assert result == pytest.approx(np.array(TRUTH["recall"]), rel=0.02)


@settings(max_examples=15)
@given(
    c=st.floats(0.1, 5000),
    alpha=st.floats(0.1, 1.5),
    beta=st.floats(0.1, 1.2),
)
def test_fit_needs_no_luck_with_its_start(c: float, alpha: float, beta: float) -> None:
    truth = (c, alpha, beta, 5.0, 6.0)
    cells = grid("bounded", truth)
    curve = FORMS["bounded"].curve
    result = FORMS["bounded"].fit(cells, None)
    error_N = curve(result, cells.log_size_N, cells.log_length_N, None) - cells.y_N
    assert np.abs(error_N).max() < 1e-2 * cells.y_N.max()


@pytest.mark.parametrize("scale", [0.4, 2.5])
@pytest.mark.parametrize("form", ["paper", "bounded"])
def test_fit_from_a_far_start_ends_where_the_search_ends(form: str, scale: float) -> None:
    cells = grid(form, noise=0.05)
    best = FORMS[form].fit(cells, None)
    start = best * np.array([scale, 1.1, 0.9, 1.2, 1.1][: len(best)])
    assert FORMS[form].fit(cells, start) == pytest.approx(best, rel=0.02)


def test_given_ceilings_are_kept_and_their_mean_is_reported() -> None:
    ceiling_N = np.full(len(SIZES) * len(LENGTHS), 12.5)
    result = FORMS["bounded"].fit(grid("bounded")._replace(ceiling_N=ceiling_N), None)
    assert result == pytest.approx(np.array(TRUTH["bounded"]), rel=1e-3)
    assert result[4] == 12.5


def test_recall_that_a_rank_separates_has_finite_constants() -> None:
    cells = grid("recall")
    y_N = (cells.log_size_N > math.log(5)).astype(float)
    result = FORMS["recall"].fit(cells._replace(y_N=y_N), None)
    recall_N = FORMS["recall"].curve(result, cells.log_size_N, cells.log_length_N, None)
    assert np.isfinite(result).all()
    assert np.abs(recall_N - y_N).max() < 0.1


# --- cells into arrays, samples


def test_parameters_may_stand_for_ranks() -> None:
    cells = [Cell(1, 100, 1.0, n_parameters=512), Cell(2, 100, 1.0, n_parameters=2048)]
    by_rank = columns_of(cells, "paper", "rank", [None, None])
    by_parameters = columns_of(cells, "paper", "parameters", [None, None])
    assert np.exp(by_rank.log_size_N) == pytest.approx([1, 2])
    assert np.exp(by_parameters.log_size_N) == pytest.approx([512, 2048])


def test_what_only_some_cells_have_is_refused() -> None:
    cells = [Cell(1, 100, 1.0, 3.0, 512, 0.5, 10), Cell(2, 100, 1.0, None, None, 0.6, None)]
    with pytest.raises(DataError, match="1 of 2 cells have no n_parameters"):
        columns_of(cells, "paper", "parameters", [None, None])
    with pytest.raises(DataError, match="1 of 2 cells have no n;"):
        columns_of(cells, "recall", "rank", [None, None])
    with pytest.raises(DataError, match="1 of 2 cells have no loss_init"):
        columns_of(cells, "bounded", "rank", [3.0, None])
    with pytest.raises(ConfigError, match="no size 'bytes'; choose one of rank, parameters"):
        columns_of(cells, "paper", "bytes", [None, None])


def test_one_rank_or_one_length_fixes_nothing() -> None:
    cells = [Cell(1, n, 5.0 / n) for n in LENGTHS]
    assert not fixes(columns_of(cells, "paper", "rank", [None] * 5), 3)
    assert fixes(grid("paper"), 4)


def test_bootstrap_repeats_itself_and_obeys_its_seed() -> None:
    form, cells = FORMS["paper_without_offset"], grid("paper_without_offset", noise=0.1)

    def draw(seed: int) -> Array:
        best = form.fit(cells, None)
        return np.array(bootstrap(form, cells, best, range(35), n_draws=5, seed=seed))

    assert (draw(1) == draw(1)).all()
    assert (draw(1) != draw(2)).any()


def test_bootstrap_keeps_units_together_and_wants_two() -> None:
    form, cells = FORMS["paper_without_offset"], grid("paper_without_offset", noise=0.1)
    best = form.fit(cells, None)
    halves = [n % 2 for n in range(35)]
    draws = bootstrap(form, cells, best, halves, n_draws=30, seed=0)
    # Two units make three samples: one twice, the other twice, or each once.
    assert len({tuple(np.round(draw, 6)) for draw in draws}) == 3
    with pytest.raises(DataError, match="all of one group"):
        bootstrap(form, cells, best, [0] * 35, n_draws=5, seed=0)


def test_bootstrap_gives_up_with_a_reason_when_no_sample_fixes_a_law() -> None:
    form, cells = FORMS["paper_without_offset"], grid("paper_without_offset")
    few = Columns(*(column[:2] for column in cells[:4]), None)
    with pytest.raises(DataError, match="only 0 fix a law"):
        bootstrap(form, few, np.array(TRUTH["paper_without_offset"]), [0, 1], n_draws=2, seed=0)


# --- spread


def test_spread_is_the_relative_scatter_of_runs() -> None:
    form, cells = FORMS["paper_without_offset"], grid("paper_without_offset")
    noise_N = np.random.default_rng(0).standard_normal(35)
    noisy = cells._replace(y_N=cells.y_N * np.exp(0.05 * noise_N))
    truth = np.array(TRUTH["paper_without_offset"])
    assert spread_of(form, noisy, truth) == pytest.approx(0.05, rel=0.3)
    assert spread_of(form, cells, truth) == pytest.approx(0, abs=1e-9)


def test_spread_of_recall_is_the_correlation_of_answers_in_a_run() -> None:
    generator = np.random.default_rng(0)
    form, cells = FORMS["recall"], grid("recall")
    many = Columns(*(np.tile(column, 40) for column in cells[:4]), None)
    truth = np.array(TRUTH["recall"])
    for rho in (0.0, 0.2):
        p_N = generator.beta(many.y_N * 4, (1 - many.y_N) * 4) if rho else many.y_N
        runs = many._replace(y_N=generator.binomial(200, p_N) / 200)
        assert spread_of(form, runs, truth) == pytest.approx(rho, abs=0.03)
