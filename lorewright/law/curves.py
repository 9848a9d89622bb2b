"""Curves: the forms that a memory law may have, and how each finds its constants.

Over size s and length ℓ, with ΔL in nats per answer token:

    paper      ΔL = C s^α ℓ^(-β) + b, also with b = 0
    bounded    ΔL = L0 (x / (1 + x))^(1/n), x = (C s^α ℓ^(-β) / L0)^n
    recall     logit(recall) = a + k ln s - g ln ℓ

Everything is worked out in logarithms, so that no size or length overflows. Knows cells as
arrays; nothing of what is done with the constants.

Paper: "How LoRA Remembers? A Parametric Memory Law for LLM Finetuning", arXiv 2605.30260, for the
first; the other two are ours.
"""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lorewright.errors import ConfigError, DataError
from lorewright.law.cells import Cell

Array = NDArray[np.float64]

SIZES = ("rank", "parameters")
LARGEST_EXPONENT = 300.0  # e^300 and its square are finite
SHARPNESS = (0.2, 50.0)  # the bounded form's n is sought here; at 50 it is a straight line, cut off
CEILINGS = (1.0, 10.0)  # times the largest ΔL: an unknown L0 is sought here
RIDGE = 0.1  # on the logistic constants: keeps them finite where recall is 0 or 1 in every cell


class Columns(NamedTuple):
    """Cells as arrays over N.

    ``y_N`` is ΔL or recall, ``ceiling_N`` L_init, None where it is to be fitted; weights count for
    recall only.
    """

    log_size_N: Array
    log_length_N: Array
    y_N: Array
    weight_N: Array
    ceiling_N: Array | None


@dataclass(frozen=True)
class Form:
    """A kind of law: its curve, and how its constants are fitted."""

    equation: str
    constants: tuple[str, ...]
    curve: Callable[[Array, Any, Any, Any], Any]
    """(constants (..., P), ln s, ln ℓ, ceiling or None) -> ΔL in nats, or recall."""
    fit: Callable[[Columns, Array | None], Array]
    """(cells, constants to start from, None to search) -> constants (P,)."""
    keeps: Callable[[Cell], bool]
    """Whether a cell is fitted on; the others are counted as dropped."""


# --- cells into arrays -------------------------------------------------------------------------


def columns_of(
    cells: Sequence[Cell], form: str, size: str, ceilings: Sequence[float | None]
) -> Columns:
    """Return the cells as arrays; size is one of SIZES, a ceiling bounds a cell's ΔL.

    Raises ConfigError for an unknown size, DataError where only some cells have what is needed.
    """
    if size not in SIZES:
        raise ConfigError(f"there is no size {size!r}; choose one of {', '.join(SIZES)}.")
    sizes = [cell.rank if size == "rank" else cell.n_parameters for cell in cells]
    weights = [cell.n if form == "recall" else None for cell in cells]
    tops = ceilings if form == "bounded" else [None] * len(cells)
    needed = {"n_parameters": sizes, "n": weights, "loss_init": tops}
    for name, column in needed.items():
        n_missing = sum(value is None for value in column)
        if n_missing and (name == "n_parameters" or n_missing < len(column)):
            raise DataError(
                f"{n_missing} of {len(cells)} cells have no {name}; give it to all of them."
            )
    values = [cell.recall if form == "recall" else cell.loss_drop for cell in cells]
    return Columns(
        log_size_N=np.log(np.array(sizes, float)),
        log_length_N=np.log(np.array([cell.n_answer_tokens for cell in cells], float)),
        y_N=np.array(values, float),
        weight_N=np.array([weight or 1 for weight in weights], float),
        ceiling_N=None if None in tops else np.array(tops, float),
    )


def fixes(columns: Columns, n_cells: int) -> bool:
    """Say whether there are so many different cells, and two sizes, lengths and values."""
    cells = set(zip(columns.log_size_N, columns.log_length_N, columns.y_N, strict=True))
    varied = all(len(set(column.tolist())) > 1 for column in columns[:3] if column is not None)
    return varied and len(cells) >= n_cells and float(columns.y_N.max()) > 0


def bootstrap(
    form: Form,
    columns: Columns,
    best: Array,
    units: Sequence[Hashable],
    *,
    n_draws: int,
    seed: int,
) -> list[Array]:
    """Return the constants of so many samples with replacement; cells of one unit stay together.

    A sample that fixes no law is drawn again. Raises DataError when too many are.
    """
    names = list(dict.fromkeys(units))
    members = [np.flatnonzero([unit == name for unit in units]) for name in names]
    if len(members) < 2:
        raise DataError("the cells are all of one group; give two or more, or resample cells.")
    generator = np.random.default_rng(seed)
    draws: list[Array] = []
    for _ in range(20 * n_draws):
        chosen = generator.integers(len(members), size=len(members))
        sample = _rows(columns, np.concatenate([members[i] for i in chosen]))
        if fixes(sample, len(form.constants)):
            constants = form.fit(sample, best)
            draws += [constants] if np.isfinite(constants).all() else []
        if len(draws) == n_draws:
            return draws
    raise DataError(
        f"of {20 * n_draws} samples of {len(members)} groups or cells only {len(draws)} fix a law; "
        "give more of them, over several sizes and lengths."
    )


def _rows(columns: Columns, rows: NDArray[np.intp]) -> Columns:
    ceiling_N = columns.ceiling_N
    return Columns(
        columns.log_size_N[rows],
        columns.log_length_N[rows],
        columns.y_N[rows],
        columns.weight_N[rows],
        None if ceiling_N is None else ceiling_N[rows],
    )


# --- curves ------------------------------------------------------------------------------------


def _power_curve(constants: Array, log_size: Any, log_length: Any, ceiling: Any) -> Any:
    offset = constants[..., 3] if constants.shape[-1] > 3 else 0.0
    return (
        np.exp(np.minimum(_log_power(constants, log_size, log_length), LARGEST_EXPONENT)) + offset
    )


def _bounded_curve(constants: Array, log_size: Any, log_length: Any, ceiling: Any) -> Any:
    n, top = constants[..., 3], constants[..., 4] if ceiling is None else ceiling
    log_x = n * (_log_power(constants, log_size, log_length) - np.log(top))
    return top * np.exp(-np.logaddexp(0.0, -log_x) / n)


def _recall_curve(constants: Array, log_size: Any, log_length: Any, ceiling: Any) -> Any:
    a, k, g = constants[..., 0], constants[..., 1], constants[..., 2]
    return np.exp(-np.logaddexp(0.0, -(a + k * log_size - g * log_length)))


def _log_power(constants: Array, log_size: Any, log_length: Any) -> Any:
    c, alpha, beta = constants[..., 0], constants[..., 1], constants[..., 2]
    return np.log(c) + alpha * log_size - beta * log_length


# --- fits --------------------------------------------------------------------------------------


def _fit_without_offset(cells: Columns, start: Array | None) -> Array:
    return _least_squares(_power_curve, cells, [_loglinear(cells)] if start is None else [start])


def _fit_paper(cells: Columns, start: Array | None) -> Array:
    if start is not None:
        return _least_squares(_power_curve, cells, [start])
    offsets = (0.0, 0.5 * cells.y_N.min(), -0.1 * cells.y_N.max())
    shifted = [_loglinear(cells._replace(y_N=cells.y_N - offset)) for offset in offsets]
    starts = [np.append(line, offset) for line, offset in zip(shifted, offsets, strict=True)]
    return _least_squares(_power_curve, cells, starts)


def _fit_bounded(cells: Columns, start: Array | None) -> Array:
    largest = float(cells.y_N.max())
    limits = {3: SHARPNESS, 4: (CEILINGS[0] * largest, CEILINGS[1] * largest)}
    if start is not None:
        starts = [start]
    elif cells.ceiling_N is None:
        tops = (1.02 * largest, 1.2 * largest, 2.0 * largest)
        starts = [np.append(_bent(cells, top, n), top) for top in tops for n in (1.0, 3.0, 9.0)]
    else:
        starts = [_bent(cells, cells.ceiling_N, n) for n in (1.0, 3.0, 9.0)]
    if cells.ceiling_N is None:
        return _least_squares(_bounded_curve, cells, starts, limits)
    fitted = _least_squares(_bounded_curve, cells, [start[:4] for start in starts], limits)
    return np.append(fitted, cells.ceiling_N.mean())


def _bent(cells: Columns, top: Any, n: float) -> Array:
    """Return C, α, β, n of the straight line through the cells with the bound taken off."""
    share_N = np.clip(cells.y_N / top, 1e-6, 0.98)
    power_N = top * (share_N**n / (1 - share_N**n)) ** (1 / n)
    return np.append(_loglinear(cells._replace(y_N=power_N)), n)


def _loglinear(cells: Columns) -> Array:
    """Return C, α, β of the straight line through the logarithms: a start for the fit on ΔL."""
    log_y_N = np.log(np.maximum(cells.y_N, 1e-3 * np.abs(cells.y_N).max() + 1e-12))
    x_NP = np.stack([np.ones_like(log_y_N), cells.log_size_N, -cells.log_length_N], axis=1)
    line, *_ = np.linalg.lstsq(x_NP, log_y_N, rcond=None)
    return np.array([_exp(line[0]), line[1], line[2]])


def _least_squares(
    curve: Callable[[Array, Any, Any, Any], Any],
    cells: Columns,
    starts: Sequence[Array],
    limits: Mapping[int, tuple[float, float]] | None = None,
) -> Array:
    """Return the constants of least squared error on ΔL, the best over the starts.

    The search is over ln C at the middle of the cells, since far from it C moves with α and β, and
    over a logit for the constants that have limits.
    """
    from scipy.optimize import leastsq

    middle_size, middle_length = cells.log_size_N.mean(), cells.log_length_N.mean()
    bounds = {i: limits[i] for i in range(3, len(starts[0])) if limits and i in limits}

    def constants(free: Array) -> Array:
        full = free.copy()
        full[0] = _exp(free[0] - free[1] * middle_size + free[2] * middle_length)
        for i, (low, high) in bounds.items():
            full[i] = low * (high / low) ** np.exp(-np.logaddexp(0.0, -free[i]))
        return full

    def free(start: Array) -> Array:
        full = start.copy()
        full[0] = np.log(start[0]) + start[1] * middle_size - start[2] * middle_length
        for i, (low, high) in bounds.items():
            # At a limit the logit has no slope, and the search would never leave it.
            share = np.clip(np.log(start[i] / low) / np.log(high / low), 0.02, 0.98)
            full[i] = np.log(share / (1 - share))
        return full

    def error(free: Array) -> Array:
        full = curve(constants(free), cells.log_size_N, cells.log_length_N, cells.ceiling_N)
        return np.asarray(full - cells.y_N)

    ends = [leastsq(error, free(start), full_output=True)[0] for start in starts]
    return constants(min(ends, key=lambda end: float((error(end) ** 2).sum())))


def _exp(exponent: float) -> float:
    return math.exp(min(max(exponent, -LARGEST_EXPONENT), LARGEST_EXPONENT))


def _fit_recall(cells: Columns, start: Array | None) -> Array:
    """Return a, k, g of greatest binomial likelihood, by Newton's method; it has one maximum."""
    columns = (cells.log_size_N, cells.log_length_N)
    means = [column.mean() for column in columns]
    scales = [column.std() for column in columns]
    size_N, length_N = ((c - m) / s for c, m, s in zip(columns, means, scales, strict=True))
    x_NP = np.stack([np.ones_like(size_N), size_N, -length_N], axis=1)
    slope_P = np.zeros(3)
    for _ in range(100):
        p_N = np.exp(-np.logaddexp(0.0, -(x_NP @ slope_P)))
        uphill_P = x_NP.T @ (cells.weight_N * (cells.y_N - p_N)) - RIDGE * slope_P
        bend_PP = (x_NP.T * (cells.weight_N * p_N * (1 - p_N))) @ x_NP + RIDGE * np.eye(3)
        step_P = np.linalg.solve(bend_PP, uphill_P)
        step_P /= max(1.0, float(np.abs(step_P).max()))  # a full step may overshoot on the flat
        slope_P = slope_P + step_P
        if np.abs(step_P).max() < 1e-10:
            break
    k, g = slope_P[1] / scales[0], slope_P[2] / scales[1]
    return np.array([slope_P[0] - k * means[0] + g * means[1], k, g])


def spread_of(form: Form, columns: Columns, best: Array) -> float:
    """Return how runs lie around the curve: sd of ln(ΔL / predicted), for recall a correlation.

    That is ρ of the beta-binomial, between answers of one run: 0 where they fail independently.
    """
    n_free = max(1, len(columns.y_N) - len(best))
    mean_N = form.curve(best, columns.log_size_N, columns.log_length_N, columns.ceiling_N)
    if form is FORMS["recall"]:
        # E (y - p)² = p (1 - p) (ρ + (1 - ρ) / n): what is left after the binomial share is ρ.
        noise_N = mean_N * (1 - mean_N)
        squares = float(((columns.y_N - mean_N) ** 2).sum() * len(mean_N) / n_free / noise_N.sum())
        binomial = float((noise_N / columns.weight_N).sum() / noise_N.sum())
        if columns.weight_N.max() == 1:  # no n was given: all of it is spread
            binomial = 0.0
        return min(max((squares - binomial) / (1 - binomial), 0.0), 0.99)
    both = (mean_N > 0) & (columns.y_N > 0)
    return math.sqrt(float((np.log(columns.y_N[both] / mean_N[both]) ** 2).sum()) / n_free)


# --- the forms ---------------------------------------------------------------------------------


def _is_unsaturated(cell: Cell) -> bool:
    return not cell.is_saturated


def _is_any(cell: Cell) -> bool:
    return True


def _has_recall(cell: Cell) -> bool:
    return cell.recall is not None


FORMS: dict[str, Form] = {
    "paper": Form(
        "C s^alpha l^-beta + b",
        ("C", "alpha", "beta", "b"),
        _power_curve,
        _fit_paper,
        _is_unsaturated,
    ),
    "paper_without_offset": Form(
        "C s^alpha l^-beta",
        ("C", "alpha", "beta"),
        _power_curve,
        _fit_without_offset,
        _is_unsaturated,
    ),
    "bounded": Form(
        "L0 (x / (1 + x))^(1/n), x = (C s^alpha l^-beta / L0)^n",
        ("C", "alpha", "beta", "n", "L0"),
        _bounded_curve,
        _fit_bounded,
        _is_any,
    ),
    "recall": Form(
        "1 / (1 + exp(-(a + k ln s - g ln l)))",
        ("a", "k", "g"),
        _recall_curve,
        _fit_recall,
        _has_recall,
    ),
}
