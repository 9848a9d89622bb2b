"""The law page's data: tables of measurements, laws fitted to them once, and what these predict.

A table is a CSV of `examples`, or one that was pasted; beside a table of ours lies the record of
the sweep that made it, with what the CSV cannot hold: accuracies by cell, the probability of every
token, first failures. Every number is that of `lore law fit` and `lore law predict` on the same
file with the same settings.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

from lorewright.errors import ConfigError, DataError, LorewrightError
from lorewright.files import digest, store
from lorewright.law.cells import Cell, read_cells
from lorewright.law.curves import FORMS
from lorewright.law.law import MemoryLaw, fit, score
from lorewright.memory.folder import readable
from lorewright.studio.sources import EXAMPLES

PREFIX, OWN = "law_", "own-"
MOST_OWN = 8
"""Pasted tables that are held; the oldest goes first."""
ABOUT: Mapping[str, str] = {
    "law_qwen_r100": "Qwen, random text: a table of 70 runs, rank 1 to 32",
    "law_pocket_r100": "the embedded base, random text: a sweep of this library",
}
"""What packaged tables are, by name."""
STEPS = 32
"""Values of a rank or a length at which a curve is drawn."""


@dataclass
class Tables:
    """Tables of measurements by name, and laws that were fitted to them."""

    place: Path = EXAMPLES
    own: dict[str, tuple[Cell, ...]] = field(default_factory=dict)
    fitted: dict[tuple[str, str, int], MemoryLaw] = field(default_factory=dict)
    lock: Lock = field(default_factory=Lock)

    @property
    def names(self) -> dict[str, str]:
        """Name and description of every table, the packaged ones first."""
        packaged = sorted((path.stem for path in self.place.glob(f"{PREFIX}*.csv")), reverse=True)
        listed = {name: ABOUT.get(name, name) for name in packaged}
        return listed | {name: f"your table, {len(c)} rows" for name, c in self.own.items()}

    def add(self, text: str) -> str:
        """A pasted CSV as a table; its name. Raises DataError as `read_cells`."""
        with tempfile.TemporaryDirectory() as place:
            path = Path(place) / "table.csv"
            store(text.encode(), path)
            try:
                cells = read_cells(path)
            except DataError as error:
                raise DataError(str(error).replace(str(path), "the table")) from error
        name = OWN + digest(text)[:8]
        with self.lock:
            self.own.pop(name, None)
            self.own[name] = cells
            while len(self.own) > MOST_OWN:
                self.own.pop(next(iter(self.own)))
        return name

    def cells(self, name: str) -> tuple[Cell, ...]:
        """The rows of a table. Raises ConfigError for an unknown one."""
        if name in self.own:
            return self.own[name]
        if name not in self.names:
            listed = ", ".join(self.names)
            raise ConfigError(
                f"there is no table {name!r}; take one of {listed}, or paste yours again."
            )
        return read_cells(self.place / f"{name}.csv")

    def law(self, name: str, form: str, above_rank: int = 0) -> MemoryLaw:
        """The law of a table, fitted once; with a rank, without the cells above it.

        Raises as `fit`, ConfigError for a rank that leaves nothing out.
        """
        key = (name, form, above_rank)
        with self.lock:
            if key not in self.fitted:
                cells = self.cells(name)
                if above_rank:
                    cells = tuple(cell for cell in cells if cell.rank <= above_rank)
                    self.fitted[key] = fit(cells, form, n_draws=0)
                else:
                    self.fitted[key] = fit(cells, form)
            return self.fitted[key]


def predicted(
    tables: Tables, name: str, form: str, *, rank: int, n_tokens: int, wanted: float
) -> dict[str, Any]:
    """What a rank holds of so many tokens, and the rank for what is wanted, as `lore law predict`.

    Where no rank would do, `needed` says so. Raises as `Tables.law` and `MemoryLaw`.
    """
    law = tables.law(name, form)
    record: dict[str, Any] = {
        "data": name,
        "form": form,
        "rank": rank,
        "tokens": n_tokens,
        "wanted": wanted,
        "prediction": law.predict_interval(rank, n_tokens)._asdict(),
        "inside": law.sizes[0] <= rank <= law.sizes[1]
        and law.lengths[0] <= n_tokens <= law.lengths[1],
        "curve": _curve(law, n_tokens, rank),
    }
    try:
        record["needed"] = law.invert(wanted, n_tokens)._asdict()
    except DataError as refusal:
        record["needed"] = {"refused": str(refusal)}
    return record


def _curve(law: MemoryLaw, n_tokens: int, rank: int) -> list[dict[str, float]]:
    """The prediction by rank at one length, with the interval of the curve."""
    most = max(law.sizes[1], rank)
    ranks = [most ** (i / (STEPS - 1)) for i in range(STEPS)]
    rows = [law.predict_interval(each, n_tokens) for each in ranks]
    return [{"rank": r, **row._asdict()} for r, row in zip(ranks, rows, strict=True)]


def about(tables: Tables, name: str, form: str, above_rank: int) -> dict[str, Any]:
    """A table, its law, and how far the law is from it.

    Raises as `Tables.law`.
    """
    cells, law = tables.cells(name), tables.law(name, form)
    tested = law
    if above_rank:
        held = [cell for cell in cells if cell.rank > above_rank]
        if not held or len(held) == len(cells):
            raise ConfigError(
                f"rank {above_rank} leaves {len(held)} of {len(cells)} rows out; give a rank "
                "between the least and the largest."
            )
        tested = tables.law(name, form, above_rank)
    scored = [cell for cell in cells if form != "recall" or cell.recall is not None]
    points = [
        {
            "rank": cell.rank,
            "tokens": cell.n_answer_tokens,
            "measured": cell.recall if form == "recall" else cell.loss_drop,
            "predicted": _of(tested, cell),
            "held_out": bool(above_rank and cell.rank > above_rank),
        }
        for cell in scored
    ]
    held_out = [cell for cell in scored if above_rank and cell.rank > above_rank]
    intervals = {key: each._asdict() for key, each in law.intervals().items()}
    return {
        "n_cells": len(cells),
        "ranks": sorted({cell.rank for cell in cells}),
        "lengths": sorted({cell.n_answer_tokens for cell in cells}),
        "has_recall": any(cell.recall is not None for cell in cells),
        "law": {
            "form": form,
            "equation": FORMS[form].equation,
            "constants": intervals,
            "n_used": law.n_used,
            "n_dropped": law.n_dropped,
            "scores": asdict(score(law, scored)),
            "held_out": asdict(score(tested, held_out)) if held_out else None,
        },
        "above_rank": above_rank,
        "points": points,
        "plane": _plane(law, cells),
        "families": _families(law, cells),
        "sweep": sweep_of(tables, name),
    }


def _of(law: MemoryLaw, cell: Cell) -> float:
    top = cell.loss_init if law.form == "bounded" else None
    return law.predict(cell.rank, cell.n_answer_tokens, loss_init=top)


def _plane(law: MemoryLaw, cells: Sequence[Cell]) -> dict[str, Any]:
    """The law over rank and length, evenly in their logarithms."""
    ranks, lengths = ([getattr(c, key) for c in cells] for key in ("rank", "n_answer_tokens"))
    across, along = (_spaced(min(each), max(each), 14) for each in (ranks, lengths))
    rows = [[round(law.predict(r, n), 4) for r in across] for n in along]
    return {"ranks": across, "lengths": along, "values": rows}


def _spaced(low: float, high: float, n: int) -> list[float]:
    return [low * (high / low) ** (i / (n - 1)) for i in range(n)]


def _families(law: MemoryLaw, cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """The law by rank at every length of the table."""
    high = max(cell.rank for cell in cells)
    low = min(cell.rank for cell in cells)
    ranks = _spaced(low, max(high, low + 1), STEPS)
    return [
        {"tokens": n, "ranks": ranks, "values": [law.predict(rank, n) for rank in ranks]}
        for n in sorted({cell.n_answer_tokens for cell in cells})
    ]


def sweep_of(tables: Tables, name: str) -> dict[str, Any] | None:
    """What the record of the sweep behind a table says of cells and tokens; None without one."""
    record = readable(tables.place / f"{name}.json")
    if record.get("bench") != "longcontext":
        return None
    noise = next(iter(record.get("grid", {})), "")
    return {
        "command": record.get("command", ""),
        "base": record.get("base", {}).get("id", ""),
        "noise": noise,
        "grid": record.get("grid", {}).get(noise, []),
        "positions": record.get("positions", {}).get(noise, []),
        "stubborn": record.get("stubborn"),
    }


def chosen(tables: Tables, query: Mapping[str, str]) -> dict[str, Any]:
    """What a page wants to see, from the fields of its form, with what is usual for the others.

    Raises ConfigError for what is no number or no form.
    """
    names = tables.names
    name = query.get("data") or next(iter(names), "")
    cells = tables.cells(name)
    form = query.get("form") or "bounded"
    if form not in FORMS:
        raise ConfigError(f"there is no law {form!r}; choose one of {', '.join(FORMS)}.")
    ranks = sorted({cell.rank for cell in cells})
    lengths = sorted({cell.n_answer_tokens for cell in cells})
    values = [c.recall if form == "recall" else c.loss_drop for c in cells]
    top = max((v for v in values if v is not None), default=1.0)
    usual = {
        "rank": ranks[len(ranks) // 2],
        "tokens": lengths[len(lengths) // 2],
        "wanted": 0.95 if form == "recall" else round(10 * top) / 20,
        "above_rank": 0,
    }
    numbers = {key: _number(key, query.get(key, ""), value) for key, value in usual.items()}
    return {
        "data": name,
        "form": form,
        "rank": max(1, int(numbers["rank"])),
        "tokens": max(1, int(numbers["tokens"])),
        "wanted": numbers["wanted"],
        "above_rank": int(numbers["above_rank"]),
        "most_rank": 2 * ranks[-1],
        "most_tokens": 2 * lengths[-1],
        "most_wanted": 1.0 if form == "recall" else math.ceil(top),
    }


def _number(key: str, text: str, usual: float) -> float:
    try:
        number = float(text) if text.strip() else usual
    except ValueError:
        raise ConfigError(f"{key} is {text!r}; give a number such as {usual:g}.") from None
    if not (math.isfinite(number) and 0 <= number <= 1e12):
        raise ConfigError(f"{key} is {text!r}; give a number from 0 up.")
    return number


def page(tables: Tables, query: Mapping[str, str]) -> dict[str, Any]:
    """The whole record of the page. A law that the table does not fix stands as `refused`."""
    wanted = chosen(tables, query)
    record: dict[str, Any] = {"chosen": wanted, "tables": tables.names, "forms": [*FORMS]}
    name, form = wanted["data"], wanted["form"]
    try:
        record["about"] = about(tables, name, form, wanted["above_rank"])
        record["predicted"] = predict_chosen(tables, wanted)
        record["refused"] = ""
    except LorewrightError as refusal:
        record |= {"about": None, "predicted": None, "refused": str(refusal)}
    return record


def predict_chosen(tables: Tables, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """`predicted` for what `chosen` returned."""
    return predicted(
        tables,
        wanted["data"],
        wanted["form"],
        rank=wanted["rank"],
        n_tokens=wanted["tokens"],
        wanted=wanted["wanted"],
    )
