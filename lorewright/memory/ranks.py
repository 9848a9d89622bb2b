"""The verb `ranks`: what is left of a memory when its weight changes are cut to a smaller rank.

Each ΔW is replaced by its best approximation of the rank (Eckart–Young), as `merge` truncates, and
recall is *measured* with it: how much of the norm is left says little about how much comes back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lorewright.adapters.adapter import Adapter
from lorewright.adapters.proof import delta_norms
from lorewright.errors import ConfigError
from lorewright.files import slug
from lorewright.knowledge.data import Example
from lorewright.memory.opened import OpenFolder
from lorewright.memory.write import held_out_of
from lorewright.merging.algebra import merge
from lorewright.models.model import Model
from lorewright.recall.statistics import Estimate
from lorewright.recall.traces import reproduced
from lorewright.training.watch import Watch

MOST_EXAMPLES = 128
"""Of what was trained, and of questions in other words, that are asked at each rank."""
EVERY = 8
"""Up to here every rank is tried, above powers of two."""


@dataclass(frozen=True)
class AtRank:
    """A memory cut to a rank."""

    rank: int
    energy: float
    """Share of the squared Frobenius norm of all weight changes that is left, in [0, 1]."""
    trained: Estimate
    """Share of trained examples whose completion greedy decoding is certain to reproduce."""
    held: Estimate
    """The same of questions in other words."""
    n_parameters: int
    modules: Mapping[str, float]
    """`energy` of each adapted module alone."""

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        plain = {k: v for k, v in asdict(self).items() if k not in ("trained", "held")}
        return plain | {"trained": self.trained.to_json(), "held": self.held.to_json()}


@dataclass(frozen=True)
class Ranks:
    """A memory at its own rank and below."""

    memory: str
    rank: int
    at: tuple[AtRank, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        rows = [each.to_json() for each in self.at]
        return {"memory": self.memory, "rank": self.rank, "ranks": rows}


def ranks(memory: OpenFolder, name: str = "", *, watch: Watch | None = None) -> Ranks:
    """Cut a memory to every smaller rank and measure what comes back.

    Without a name the folder's only memory. Raises UnknownMemory, AdapterError for what is no plain
    adapter, ConfigError where nothing is known of what it was trained on.
    """
    name = slug(name) if name else memory.folder.only()
    adapter, lesson = memory.adapter(name), memory.folder.lesson(memory.folder.entry(name))
    trained = [example for example in lesson.examples if example.kind != "unknown"]
    if not trained:
        raise ConfigError(
            f"{name!r} has no lesson, so nothing is known that could be asked of it; write it here."
        )
    rows, held = _spread(trained), _spread(held_out_of(lesson))
    watch, own = watch or Watch(), adapter.config.rank
    results = []
    for rank in _tried(own):
        watch.step(f"cut to rank {rank} of {own}")
        results.append(_at(memory.model, adapter, rank, rows, held))
    return Ranks(name, own, tuple(results))


def _tried(own: int) -> list[int]:
    powers = [2**n for n in range(4, 20)]
    return sorted({r for r in (*range(1, EVERY + 1), *powers) if r < own} | {own})


def _at(
    model: Model, adapter: Adapter, rank: int, trained: Sequence[Example], held: Sequence[Example]
) -> AtRank:
    cut = merge([adapter], method="svd", rank=rank)
    squares = {module: norm**2 for module, norm in delta_norms(adapter).items()}
    total = sum(squares.values())
    energy = sum(squares[module] * share for module, share in cut.shares.items()) / total
    with model.using(cut.adapter):
        as_trained, in_other_words = (reproduced(model, rows) for rows in (trained, held))
    n_parameters = sum(tensor.numel() for tensor in cut.adapter.tensors.values())
    return AtRank(rank, energy, as_trained, in_other_words, n_parameters, dict(cut.shares))


def _spread(examples: Sequence[Example]) -> list[Example]:
    return list(examples[:: max(1, -(-len(examples) // MOST_EXAMPLES))])
