"""The Parametric Memory Law: what a rank will hold of a text, before anything is trained.

Laws over size s (the rank, or the adapter's parameters) and length ℓ (answer tokens):

    paper      ΔL = C s^α ℓ^(-β) + b, least squares on ΔL, without saturated cells; also with b = 0
    bounded    ΔL = L0 (x / (1 + x))^(1/n), x = (C s^α ℓ^(-β) / L0)^n, which holds at saturation too
    recall     logit(recall) = a + k ln s - g ln ℓ: the share of answers reproduced exactly

Paper: "How LoRA Remembers? A Parametric Memory Law for LLM Finetuning", arXiv 2605.30260. We add
the last two, intervals (bootstrap over cells or groups, Efron 1979) and scores on cells that a law
was not fitted on. Knows nothing of models: a law holds for the base, the targets and
the recipe that its cells came from, and cannot tell when these differ.
"""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from lorewright.errors import ConfigError, DataError
from lorewright.law.cells import (
    REFERENCE_BITS,
    Cell,
    capacity,
)
from lorewright.law.curves import (
    FORMS,
    Array,
    Form,
    bootstrap,
    columns_of,
    fixes,
    spread_of,
)

Unit = Callable[[Cell], Hashable]
"""A cell to what the bootstrap draws as one; ``cells.by_group`` draws whole seeds or documents."""

REACH = 4  # times the largest size fitted: as far as invert looks by default


# --- the law -----------------------------------------------------------------------------------


class Interval(NamedTuple):
    """A value and the percentile bootstrap interval around it."""

    value: float
    low: float
    high: float


class Needed(NamedTuple):
    """The smallest size that reaches what was wanted, in ranks or parameters, with its interval.

    ``high`` is None where that share of the draws does not reach it as far as was looked.
    """

    size: int
    low: int
    high: int | None


@dataclass(frozen=True)
class MemoryLaw:
    """A fitted law; predictions are nats of ΔL, or the share of answers for the law of recall.

    Its methods raise ConfigError for a size, length, confidence or loss_init that makes no sense.
    """

    form: str
    """A key of FORMS."""
    size: str
    """What size means: "rank" or "parameters"."""
    constants: Mapping[str, float]
    spread: float
    """Of runs around the curve: sd of ln(ΔL / predicted); for recall the correlation of answers
    within a run (beta-binomial)."""
    sizes: tuple[float, float]
    """Smallest and largest fitted."""
    lengths: tuple[float, float]
    n_used: int
    n_dropped: int
    """Saturated cells (paper's forms), cells without recall (recall)."""
    draws: tuple[tuple[float, ...], ...] = field(default=(), repr=False)
    """Constants of every bootstrap sample, in the order of ``constants``."""

    def predict(
        self, size: float, n_answer_tokens: float, *, loss_init: float | None = None
    ) -> float:
        """Return what a run of this size keeps of a text of this length.

        loss_init replaces the ceiling of the bounded form by the text's own; ConfigError elsewhere.
        """
        constants = np.array(list(self.constants.values()))
        return float(self._values(constants, size, n_answer_tokens, loss_init))

    def predict_interval(
        self,
        size: float,
        n_answer_tokens: float,
        *,
        loss_init: float | None = None,
        confidence: float = 0.95,
    ) -> Interval:
        """Return the prediction with the interval of the curve: where the mean of many runs lies.

        Raises ConfigError for a law that was fitted without draws.
        """
        values = self._values(self._draws(), size, n_answer_tokens, loss_init)
        value = self.predict(size, n_answer_tokens, loss_init=loss_init)
        return _interval(value, values, confidence)

    def intervals(self, *, confidence: float = 0.95) -> dict[str, Interval]:
        """Return every constant with its interval; a given L0 has one without width."""
        columns = self._draws().T
        return {
            name: _interval(value, column, confidence)
            for (name, value), column in zip(self.constants.items(), columns, strict=True)
        }

    def invert(
        self,
        wanted: float,
        n_answer_tokens: float,
        *,
        loss_init: float | None = None,
        up_to: int | None = None,
        confidence: float = 0.95,
    ) -> Needed:
        """Return the smallest whole size that reaches a recall or a ΔL in nats, with its interval.

        Looks as far as up_to, by default REACH times the largest size fitted. Raises DataError
        where that is too short, or no size would do.
        """
        up_to = math.ceil(REACH * self.sizes[1]) if up_to is None else up_to
        best_P = np.array([list(self.constants.values())])
        constants_DP = np.concatenate([best_P, self._draws()])

        def reaches(size_D: Any) -> Any:
            return self._values(constants_DP, size_D, n_answer_tokens, loss_init) >= wanted

        low_D, high_D = np.ones(len(constants_DP)), np.full(len(constants_DP), float(up_to))
        found_D = np.where(reaches(high_D), high_D, math.inf)
        found_D = high_D = np.where(reaches(low_D), 1.0, found_D)
        while (open_D := np.isfinite(found_D) & (high_D - low_D > 1)).any():
            middle_D = np.where(open_D, np.floor((low_D + high_D) / 2), low_D)
            enough_D = reaches(middle_D)
            low_D = np.where(open_D & ~enough_D, middle_D, low_D)
            found_D = high_D = np.where(open_D & enough_D, middle_D, high_D)
        if not math.isfinite(found_D[0]):
            most = self.predict(up_to, n_answer_tokens, loss_init=loss_init)
            what = "a recall" if self.form == "recall" else "a fall of the loss"
            raise DataError(
                f"no {self.size} up to {up_to} reaches {what} of {wanted:g} on "
                f"{n_answer_tokens:g} tokens; {up_to} gives {most:.4g}; want less, split the text, "
                "or look further (up_to)."
            )
        low, high = _quantiles(found_D[1:], confidence, nearest=True)
        low, high = min(low, found_D[0]), max(high, found_D[0])
        return Needed(int(found_D[0]), int(low), int(high) if math.isfinite(high) else None)

    def _draws(self) -> Array:
        if not self.draws:
            raise ConfigError("this law was fitted with n_draws=0; fit it again for intervals.")
        return np.array(self.draws)

    def _values(self, constants: Array, size: Any, length: Any, ceiling: Any) -> Any:
        if not (
            np.all(np.isfinite(size)) and np.all(np.asarray(size) > 0) and 0 < length < math.inf
        ):
            raise ConfigError(
                f"{self.size} is {size} and the length {length} tokens; give both above 0."
            )
        if ceiling is not None and (self.form != "bounded" or not 0 < ceiling < math.inf):
            raise ConfigError(
                f"loss_init is {ceiling} for the {self.form} law; give nats above 0, and only to "
                "the bounded law."
            )
        return _form(self.form).curve(constants, np.log(size), math.log(length), ceiling)


def _interval(value: float, values_D: Array, confidence: float) -> Interval:
    low, high = _quantiles(values_D, confidence)
    return Interval(value, min(value, low), max(value, high))


def _quantiles(values_D: Array, confidence: float, *, nearest: bool = False) -> tuple[float, float]:
    if not 0 < confidence < 1:
        raise ConfigError(
            f"confidence is {confidence}; give a share between 0 and 1, such as 0.95."
        )
    tails = ((1 - confidence) / 2, (1 + confidence) / 2)
    if nearest:  # never between a number and infinity
        low = np.quantile(values_D, tails[0], method="lower")
        return float(low), float(np.quantile(values_D, tails[1], method="higher"))
    low, high = np.quantile(values_D, tails)
    return float(low), float(high)


def _form(name: str) -> Form:
    if name not in FORMS:
        raise ConfigError(f"there is no law {name!r}; choose one of {', '.join(FORMS)}.")
    return FORMS[name]


# --- fitting -----------------------------------------------------------------------------------


def fit(
    cells: Sequence[Cell],
    form: str = "bounded",
    *,
    size: str = "rank",
    loss_init: float | None = None,
    unit: Unit | None = None,
    n_draws: int = 1000,
    seed: int = 0,
) -> MemoryLaw:
    """Return the law of a form that fits the cells best, with draws for its intervals.

    ``loss_init`` is for cells without their own. Where it is known, the paper's forms leave
    saturated cells out and the bounded form stays below it; else one ceiling L0 is fitted. Recall
    is weighted by ``n``, equally where no cell has it. The bootstrap draws cells, or what ``unit``
    puts together; samples that fix no law (one rank, one length) are drawn again.

    Raises ConfigError for an unknown form or size, DataError for too few or contradictory cells.
    """
    shape = _form(form)
    if loss_init is not None:
        known = [cell.loss_init or loss_init for cell in cells]
        cells = [replace(cell, loss_init=top) for cell, top in zip(cells, known, strict=True)]
    usable = [cell for cell in cells if shape.keeps(cell)]
    columns = columns_of(usable, form, size, [cell.loss_init for cell in usable])
    n_constants = len(shape.constants)
    if not usable or not fixes(columns, n_constants + 1):
        raise DataError(
            f"{len(usable)} of {len(cells)} cells (the others are saturated or lack recall) do not "
            f"fix the {n_constants} constants of the {form} law; give {n_constants + 1} "
            "or more, of at least two sizes and two lengths, that differ in what was learnt."
        )
    best = shape.fit(columns, None)
    units = [n if unit is None else unit(cell) for n, cell in enumerate(usable)]
    draws = bootstrap(shape, columns, best, units, n_draws=n_draws, seed=seed) if n_draws else []
    sizes, lengths = np.exp(columns.log_size_N).round(), np.exp(columns.log_length_N).round()
    return MemoryLaw(
        form=form,
        size=size,
        constants=dict(zip(shape.constants, best.tolist(), strict=True)),
        spread=spread_of(shape, columns, best),
        sizes=(float(sizes.min()), float(sizes.max())),
        lengths=(float(lengths.min()), float(lengths.max())),
        n_used=len(usable),
        n_dropped=len(cells) - len(usable),
        draws=tuple(tuple(draw.tolist()) for draw in draws),
    )


# --- scoring -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Score:
    """How far a law is from cells; errors are in nats of ΔL, or shares of answers for recall."""

    n: int
    n_unscored: int
    """Cells without what is predicted."""
    r2: float | None
    """In linear space; None where the cells do not vary."""
    mean_error: float
    """Signed, predicted - measured."""
    mean_absolute_error: float
    worst: float
    """The largest absolute error."""
    mape: float | None
    """Mean of |predicted - measured| / measured where measured > 0; None for recall."""
    worst_relative: float | None


def score(law: MemoryLaw, cells: Sequence[Cell]) -> Score:
    """Return how far the law is from cells, best ones that it was not fitted on.

    The bounded law uses a cell's own loss_init where it has one. Raises DataError for no cells.
    """
    scored = [cell for cell in cells if law.form != "recall" or cell.recall is not None]
    if not scored:
        raise DataError(f"there are no cells to score the {law.form} law on; give at least one.")
    ceilings = [cell.loss_init or law.constants.get("L0") for cell in scored]
    columns = columns_of(scored, law.form, law.size, ceilings)
    constants = np.array(list(law.constants.values()))
    curve = _form(law.form).curve
    mean_N = curve(constants, columns.log_size_N, columns.log_length_N, columns.ceiling_N)
    error_N = mean_N - columns.y_N
    square = float(((columns.y_N - columns.y_N.mean()) ** 2).sum())
    learnt = columns.y_N > (math.inf if law.form == "recall" else 0.0)
    share_N = np.abs(error_N[learnt] / columns.y_N[learnt])
    return Score(
        n=len(scored),
        n_unscored=len(cells) - len(scored),
        r2=1 - float((error_N**2).sum()) / square if square > 0 else None,
        mean_error=float(error_N.mean()),
        mean_absolute_error=float(np.abs(error_N).mean()),
        worst=float(np.abs(error_N).max()),
        mape=float(share_N.mean()) if len(share_N) else None,
        worst_relative=float(share_N.max()) if len(share_N) else None,
    )


# --- the report --------------------------------------------------------------------------------


def fit_report(
    cells: Sequence[Cell],
    *,
    size: str = "rank",
    loss_init: float | None = None,
    unit: Unit | None = None,
    n_draws: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
    hold_out_above_rank: int | None = None,
    hold_out_above_length: int | None = None,
) -> dict[str, Any]:
    """Return every form fitted on all cells as plain JSON: constants with intervals, scores, bits.

    With a limit, each form is fitted once more without the cells above it and scored on them. A
    form that cannot be fitted stands there with the reason; the law of recall is there where a cell
    has recall. What is held out may be saturated. Raises as fit does when no form can be fitted,
    DataError where a limit holds out all or nothing.
    """
    limits = {"above_rank": hold_out_above_rank, "above_length": hold_out_above_length}
    held = [cell for cell in cells if _is_above(cell, hold_out_above_rank, hold_out_above_length)]
    usable = [cell for cell in cells if cell not in held]
    if set(limits.values()) != {None} and not (held and usable):
        raise DataError(
            f"the limits hold out {len(held)} of {len(cells)} cells; give a rank or a length that "
            "leaves some on both sides."
        )
    how: dict[str, Any] = {"size": size, "loss_init": loss_init}
    laws: dict[str, Any] = {}
    refusals: list[DataError] = []
    for form in FORMS:
        if form == "recall" and all(cell.recall is None for cell in cells):
            continue
        try:
            law = fit(cells, form, unit=unit, n_draws=n_draws, seed=seed, **how)
            laws[form] = _law_report(law, cells, confidence)
            if held:
                before = fit(usable, form, n_draws=0, **how)
                laws[form]["held_out"] = asdict(score(before, held)) | {
                    "constants": dict(before.constants)
                }
        except DataError as refusal:
            refusals.append(refusal)
            laws[form] = laws.get(form, {}) | {"refused": str(refusal)}
    if len(refusals) == len(laws):
        raise refusals[0]
    return {
        "n_cells": len(cells),
        "size": size,
        "loss_init": _ceiling_source(cells, loss_init),
        "confidence": confidence,
        "n_draws": n_draws,
        "seed": seed,
        "laws": laws,
        "held_out": {"n": len(held), **limits} if held else None,
        "capacity": [row._asdict() for row in capacity(cells)],
        "reference_bits_per_parameter": dict(REFERENCE_BITS),
    }


def _ceiling_source(cells: Sequence[Cell], loss_init: float | None) -> str:
    if all(cell.loss_init is not None for cell in cells):
        return "of the cells"
    return "fitted" if loss_init is None else "given"


def _is_above(cell: Cell, rank: int | None, length: int | None) -> bool:
    too_large = rank is not None and cell.rank > rank
    return too_large or (length is not None and cell.n_answer_tokens > length)


def _law_report(law: MemoryLaw, cells: Sequence[Cell], confidence: float) -> dict[str, Any]:
    intervals = law.intervals(confidence=confidence) if law.draws else {}
    fitted_on = [cell for cell in cells if FORMS[law.form].keeps(cell)]
    return {
        "equation": FORMS[law.form].equation,
        "n_used": law.n_used,
        "n_dropped": law.n_dropped,
        "constants": {
            name: intervals[name]._asdict()
            if intervals
            else {"value": value, "low": None, "high": None}
            for name, value in law.constants.items()
        },
        "spread": law.spread,
        "scores": asdict(score(law, fitted_on)),
    }


def table(report: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return a fit_report as rows for a terminal, the header first."""
    rows: list[tuple[str, ...]] = [
        ("law", "quantity", "value", f"{report['confidence']:.0%} interval")
    ]
    for form, law in report["laws"].items():
        for name, constant in law.get("constants", {}).items():
            rows.append((form, name, f"{constant['value']:.4g}", _range(constant)))
        for name, key in (("fit", "scores"), ("held out", "held_out")):
            if key in law:
                rows.append((form, name, _errors(law[key]), f"n={law[key]['n']}"))
        if "refused" in law:
            rows.append((form, "refused", law["refused"], ""))
    for row in report["capacity"]:
        if row["bits_per_parameter"] is not None:
            name, value = f"rank {row['rank']}", f"{row['bits_per_parameter']:.2f}"
            rows.append(("bits a parameter", name, value, f"at {row['n_answer_tokens']} tokens"))
    for name, bits in report["reference_bits_per_parameter"].items():
        rows.append(("bits a parameter", name, f"{bits:g}", ""))
    return rows


def _range(interval: Mapping[str, float | None]) -> str:
    low, high = interval["low"], interval["high"]
    return "" if low is None or high is None else f"[{low:.4g}, {high:.4g}]"


def _errors(scores: Mapping[str, Any]) -> str:
    r2 = "" if scores["r2"] is None else f"R² {scores['r2']:.4f}, "
    if scores["mape"] is None:
        return f"{r2}error {scores['mean_absolute_error']:.3f}, worst {scores['worst']:.3f}"
    return f"{r2}error {scores['mape']:.2%}, worst {scores['worst_relative']:.1%}"
