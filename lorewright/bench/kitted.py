"""Methods with a kit on a benchmark: which kits have rows, and the controls that only kits have.

    untrained     the facts' own write with the kit as it was before its first step
    plain start   the learnt first A and B replaced by random A and zero B, at the learnt rates and
                  weights: zero-initialised LoRA with the same steps, of methods that start so

A method has the kit that `lore write` takes for the base, and a row more for every file that is
given. One without any has a row that says so.

Knows kits and entries of a summary; nothing of sweeps.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lorewright.adapters.adapter import HALVES
from lorewright.bench.tables import NOTHING, spelt
from lorewright.errors import ConfigError
from lorewright.kits.examine import as_before_training, without_its_start
from lorewright.models.model import Model
from lorewright.reports.tables import Table
from lorewright.writers import kit as kits
from lorewright.writers.kit import SUFFIX, Kit
from lorewright.writers.methods import LEARNED

UNTRAINED, PLAIN_START = "untrained", "plain start"
CONTROLS = (UNTRAINED, PLAIN_START)
MEANING = (
    "own: the facts' own write; another's: the same state under the questions of another source; "
    "shuffled: a write with values moved among the facts; blank: a write of a page without facts; "
    "untrained: with the kit before its training; plain start: at its rates, from zero-initialised "
    "LoRA."
)
SPREAD = "mean of the kits' recalls, and the lowest and highest of them; every kit on all sources."


class Kitted(NamedTuple):
    """A kit that has rows."""

    method: str
    path: str
    """Empty for the one that `lore write` takes."""
    id: str
    starts: bool
    """Whether it has a first A and B."""

    @property
    def job(self) -> dict[str, str]:
        """What it adds to a job."""
        return {"kit": self.path, "kit_id": self.id}


def files_in(given: Sequence[str]) -> list[Path]:
    """Kits that are named, and those in folders that are. Raises ConfigError where none is."""
    files = []
    for each in map(Path, given):
        own = sorted(each.glob(f"*{SUFFIX}")) if each.is_dir() else [each]
        if not own or not own[0].is_file():
            raise ConfigError(f"{each} is no kit and no folder of kits; files end in {SUFFIX}.")
        files += own
    return files


def kits_of(method: str, base_digest: str, given: Sequence[str]) -> list[Kitted]:
    """The kits of a method that have rows: the base's usual one, then those given.

    Raises DataError for a file that is damaged; a kit of another base is for its write to refuse.
    """
    usual = kits.usual_path(method, base_digest)
    own = [_kitted(kits.load(usual), "")] if usual else []
    loaded = [(kits.load(path), path) for path in files_in(given)]
    return own + [_kitted(kit, str(path.resolve())) for kit, path in loaded if kit.method == method]


def _kitted(kit: Kit, path: str) -> Kitted:
    return Kitted(kit.method, path, kit.id, any(name.endswith(HALVES) for name in kit.tensors))


def row_of(job: Mapping[str, Any]) -> str:
    """What a row is called: the method, and the name of a kit that was given."""
    path = job.get("kit", "")
    return f"{job['method']} ({Path(path).name.removesuffix(SUFFIX)})" if path else job["method"]


def changed(model: Model, job: Mapping[str, Any]) -> Kit | None:
    """The kit of a job's control; None where it is the one that is stored."""
    if job.get("control") not in CONTROLS:
        return None
    kit = kits.find(model, job["method"], job["kit"])
    change = as_before_training if job["control"] == UNTRAINED else without_its_start
    return change(model, kit)


# -- tables --------------------------------------------------------------------------------------


def controls_table(entries: Sequence[Mapping[str, Any]], controls: Sequence[str]) -> Table:
    """A row for every kit and size at which controls were written: recall of each of them."""
    by_place = {(e["method"], e["facts"], e["control"]): e for e in entries}
    rows = []
    for (name, n, control), entry in by_place.items():
        others = [by_place.get((name, n, each)) for each in controls]
        if control == "own" and entry.get("kit_id") and any(others):
            cells = (entry["held"], entry["other"], *(e and e["held"] for e in others))
            rows.append((name, str(n), str(entry["held"]["n"]), *map(spelt, cells)))
    head = ("kit", "facts", "n", "own", "another's", *controls)
    title = "Recall with a kit beside its controls"
    return Table(title, head, tuple(rows), (MEANING,), n_keys=3, stacked=("state", "recall"))


def spread_table(entries: Sequence[Mapping[str, Any]], sizes: Sequence[int]) -> Table | None:
    """Recall over the kits of one method that were given; None where no method has two."""
    rows = []
    for method in LEARNED:
        cells = [_over_kits(entries, method, n) for n in sizes]
        most = max((n for n, _ in cells), default=0)
        if most > 1:
            rows.append((method, str(most), *(text for _, text in cells)))
    if not rows:
        return None
    head = ("method", "kits", *map(str, sizes))
    title = "Between kits of one method"
    return Table(title, head, tuple(rows), (SPREAD,), n_keys=2, stacked=("facts", "recall"))


def _over_kits(entries: Sequence[Mapping[str, Any]], method: str, n: int) -> tuple[int, str]:
    means = [
        entry["held"]["mean"]
        for entry in entries
        if entry["facts"] == n and entry["control"] == "own"
        if entry["method"].startswith(f"{method} (") and entry["held"]["mean"] is not None
    ]
    if not means:
        return 0, NOTHING
    text = f"{sum(means) / len(means):.2f}, {min(means):.2f} to {max(means):.2f}"
    return len(means), text


def identities(entries: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Which kit every row is of."""
    named = {entry["method"]: entry["kit_id"] for entry in entries if entry.get("kit_id")}
    if named:
        yield "Kits: " + ", ".join(f"{name} {kit_id}" for name, kit_id in named.items()) + "."
