"""How the ways to ask compared on a folder's own probes, and what follows from it.

    atlas/index/modes.json    shares with intervals, no text

This module reads and writes the record; `compare` makes it, `ask` goes by it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from lorewright.errors import DataError
from lorewright.files import read_object, save_json
from lorewright.memory.folder import DERIVED, Folder
from lorewright.recall.statistics import Estimate

MODES_FILE = "modes.json"
SCHEMA = 1
HALVES = ("closed", "open")
MEASURED = ("closed", "open", "read", "hybrid")
PREFERRED = ("hybrid", "read", "open", "closed")
"""Of modes that were right equally often the first is used."""
ALL = "all"
"""The kind that stands for probes of every kind together."""


@dataclass(frozen=True)
class Comparison:
    """Shares of right answers by kind of probe and mode; declining what is not known is right."""

    metric: str
    kinds: Mapping[str, Mapping[str, Estimate]]
    memories: tuple[str, ...]
    """Ids of those that the folder had."""
    p_against_half: float
    """McNemar's exact p of hybrid against its better half, on the same probes."""

    @property
    def better_half(self) -> str:
        """Closed or open, whichever was right more often; open if equal."""
        return max(reversed(HALVES), key=lambda mode: self.kinds[ALL][mode].mean or 0.0)

    @property
    def hybrid_is_worse(self) -> bool:
        """Whether hybrid was right less often than its better half."""
        of = self.kinds[ALL]
        return (of["hybrid"].mean or 0.0) < (of[self.better_half].mean or 0.0)

    @property
    def best(self) -> str:
        """The mode that was right most often; records of before have no `read`."""
        of = self.kinds[ALL]
        return max((m for m in PREFERRED if m in of), key=lambda mode: of[mode].mean or 0.0)

    def sentence(self, mode: str) -> str:
        """What was measured of a mode beside hybrid, in words."""
        of = self.kinds[ALL]
        return f"on this folder hybrid was measured at {of['hybrid']}, {mode} at {of[mode]}"

    def to_json(self) -> dict[str, Any]:
        """Plain data: what lies in modes.json, and what follows from it."""
        follows = {key: getattr(self, key) for key in ("better_half", "hybrid_is_worse", "best")}
        return {"schema": SCHEMA, **asdict(self), **follows}


def store_comparison(comparison: Comparison, folder: Folder) -> None:
    """Store it. Raises StorageError when the disk refuses."""
    save_json(comparison.to_json(), folder.path / DERIVED / MODES_FILE)


def stored_comparison(folder: Folder) -> Comparison | None:
    """What was measured, unless half of the memories or more have come or gone since."""
    path = folder.path / DERIVED / MODES_FILE
    if not path.exists():
        return None
    try:
        plain = read_object(path, "delete it and measure again: lore modes")
        if plain["schema"] != SCHEMA:
            return None
        kinds = {
            kind: {mode: Estimate(**each) for mode, each in modes.items()}
            for kind, modes in plain["kinds"].items()
        }
        ids = tuple(map(str, plain["memories"]))
        comparison = Comparison(str(plain["metric"]), kinds, ids, float(plain["p_against_half"]))
        comparison.kinds[ALL]["hybrid"], comparison.better_half  # what is missing raises here
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} is damaged ({error!r}); delete it and measure again: lore modes."
        ) from error
    now = set(folder.names.values())
    return comparison if len(now & {*ids}) * 2 > max(len(now), len(ids)) else None
