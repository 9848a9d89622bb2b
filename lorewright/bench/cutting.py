"""How low is the rank of a fact? Weight changes cut to every smaller rank, and what is recalled.

Full fine-tuning at a rank that holds all of its change, LoRA and in-place fast weights: each is
written, cut by singular values (Eckart–Young), and answers the same questions at every rank. Beside
it stands the share of the squared norm that a rank holds, of the module that loses most.

Knows adapters and replies; nothing of sweeps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from lorewright.adapters.adapter import HALVES
from lorewright.adapters.lowrank import Factors, energies
from lorewright.bench.sources import sources
from lorewright.bench.tables import counted, spelt
from lorewright.bench.written import Share, Spec, scores, sentence, sheet_of, written
from lorewright.errors import AdapterError, ConfigError, ModelError
from lorewright.merging.algebra import merge
from lorewright.models.model import Model
from lorewright.reports.tables import Table
from lorewright.writers.adapter import AdapterState

RANKS = (1, 2, 3, 4, 6, 8, 16, 32, 64, 192)
SHARES = (0.5, 0.9, 0.99)
"""Of the squared norm: the ranks that hold so much are counted."""
MEANING = (
    "recall: the questions of the table above, closed-book; energy: share of the squared norm of "
    "the weight changes that is left, of the module that loses most; ranks for 0.5, 0.9, 0.99 of "
    "it: median over modules and sources."
)


def attempt(model: Model, job: Mapping[str, Any]) -> dict[str, Any]:
    """Write, cut to every rank and ask; what fails is a record, too."""
    where = (job["data"], job["facts"], job["source"], job["skip"])
    sheet = sheet_of(model, *where)
    source = sources(job["data"], job["facts"], job["skip"])[job["source"]]
    try:
        state, _ = written(
            model, Spec.of(job["method"]), source, seed=job["seed"], epochs=job["epochs"]
        )
    except (AdapterError, ConfigError, ModelError) as error:
        return {"failed": sentence(error)}
    if not isinstance(state, AdapterState):
        return {"failed": f"a state of kind {state.kind!r} has no rank to cut."}
    own = state.adapter.config.rank
    cuts = []
    for rank in [r for r in RANKS if r < own] + [own]:
        cut = merge([state.adapter], method="svd", rank=rank)
        at = AdapterState(cut.adapter)
        row = {"rank": rank, "energy": min(cut.shares.values())}
        cuts.append(row | {k: scores(model, getattr(sheet, k), at) for k in ("held", "trained")})
    return {"cuts": cuts, "needed": _needed(state)}


def _needed(state: AdapterState) -> dict[str, list[int]]:
    """Of every module the least rank that holds a share of its squared norm, by share."""
    tensors = state.adapter.tensors
    halves = [[tensors[name + half].double() for half in HALVES] for name in state.adapter.modules]
    held = [energies(Factors(B_OR, A_RI)) for A_RI, B_OR in halves]
    return {
        str(share): [next(r for r, e in enumerate(each, 1) if e >= share) for each in held]
        for share in SHARES
    }


def entries_of(
    method: str, n_facts: int, records: Sequence[Mapping[str, Any]], share: Share
) -> list[dict[str, Any]]:
    """An entry for every rank."""
    whole = [record for record in records if "cuts" in record]
    by_rank: dict[int, list[Mapping[str, Any]]] = {}
    for record in whole:
        for cut in record["cuts"]:
            by_rank.setdefault(cut["rank"], []).append(cut)
    needed = {
        str(s): median([r for record in whole for r in record["needed"][str(s)]]) if whole else None
        for s in SHARES
    }
    about = {"method": method, "facts": n_facts, "needed": needed, "n_writes": len(records)}
    return [
        {
            **about,
            "rank": rank,
            "energy": min(cut["energy"] for cut in cuts),
            **{part: share([cut[part] for cut in cuts]) for part in ("held", "trained")},
        }
        for rank, cuts in by_rank.items()
    ] or [about | {"why": sorted({record["failed"] for record in records})}]


def table(entries: Sequence[Mapping[str, Any]]) -> Table:
    """A row for every method, number of facts and rank."""
    rows = tuple(
        (
            *(entry["method"], str(entry["facts"]), str(entry["rank"])),
            str(entry["held"]["n"]),
            f"{entry['energy']:.3f}",
            *(spelt(entry[part]) for part in ("held", "trained")),
        )
        for entry in entries
        if "rank" in entry
    )
    notes = [MEANING]
    for entry in {(e["method"], e["facts"]): e for e in entries}.values():
        where = f"{entry['method']}, {counted(entry['facts'], 'fact')}"
        if "why" in entry:
            notes.append(f"{where}: nothing was written. {entry['why'][0]}")
        else:
            ranks = ", ".join(f"{k}: {v:g}" for k, v in entry["needed"].items())
            notes.append(f"{where}: ranks that hold a share of the norm, {ranks}.")
    head = ("method", "facts", "rank", "n", "energy", "recall", "as trained")
    return Table("Cut to a rank", head, rows, tuple(notes), n_keys=3, stacked=("", "share"))
