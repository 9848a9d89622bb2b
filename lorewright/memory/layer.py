"""The verb `layer`: one layer of a memory by hand: W, A, B and B A at a rank, block by block.

    y = W x + s B A x        A (R, I), B (O, R): at rank R from the singular values of s B A

A picture of a matrix has at most BLOCKS rows and columns: of each block the root of the mean
square, so that the picture of a large layer says where it changes and not what.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from lorewright.adapters.lowrank import energies, truncate
from lorewright.errors import ConfigError
from lorewright.files import slug
from lorewright.memory.opened import OpenFolder
from lorewright.merging.algebra import factors_of

BLOCKS = 16
"""Most rows and columns of a picture."""


@dataclass(frozen=True)
class Picture:
    """A matrix in blocks."""

    name: str
    shape: tuple[int, int]
    norm: float
    """Frobenius norm of the whole."""
    blocks: tuple[tuple[float, ...], ...]
    """Root mean square of each block, row by row."""


@dataclass(frozen=True)
class Layer:
    """One layer of a memory at a rank."""

    memory: str
    module: str
    modules: tuple[str, ...]
    """All that the memory adapts."""
    rank: int
    own: int
    """The memory's own rank."""
    pictures: tuple[Picture, ...]
    """W, A, B, and BA, the change of W."""
    energies: tuple[float, ...]
    """Share of the change's squared norm that rank 1, 2, … holds."""

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        plain = asdict(self)
        plain |= {key: list(plain[key]) for key in ("modules", "energies")}
        plain["pictures"] = [
            asdict(p) | {"shape": list(p.shape), "blocks": [list(row) for row in p.blocks]}
            for p in self.pictures
        ]
        return plain


def layer(memory: OpenFolder, name: str = "", *, module: str = "", rank: int = 0) -> Layer:
    """A layer of a memory, cut to a rank; by default its first module, at its own rank.

    Raises UnknownMemory, AdapterError for what is no plain adapter, ConfigError for a module that
    it does not adapt or a rank above its own.
    """
    name = slug(name) if name else memory.folder.only()
    adapter = memory.adapter(name)
    modules, own = tuple(adapter.modules), adapter.config.rank
    module, rank = module or modules[0], rank or own
    if module not in modules:
        raise ConfigError(
            f"{name!r} does not adapt {module!r}; take one of {', '.join(modules[:4])} …"
        )
    if not 1 <= rank <= own:
        raise ConfigError(f"rank is {rank}; {name!r} has rank {own}, so give 1 to {own}.")
    change = factors_of(adapter)[module]
    shares = energies(change)[:own]
    cut = truncate(change, rank)
    weight = memory.model.network.get_submodule(module).weight
    assert isinstance(weight, Tensor)
    matrices = {
        "W": weight.detach().double(),
        "A": cut.A_RI,
        "B": cut.B_OR,
        "BA": cut.B_OR @ cut.A_RI,
    }
    pictures = tuple(_picture(key, each) for key, each in matrices.items())
    return Layer(name, module, modules, rank, own, pictures, tuple(shares))


def _picture(name: str, matrix_XY: Tensor) -> Picture:
    rows = [_blocks(part.square()) for part in _parts(matrix_XY, 0)]
    shape = (matrix_XY.shape[0], matrix_XY.shape[1])
    return Picture(name, shape, float(matrix_XY.norm()), tuple(rows))


def _blocks(squares_XY: Tensor) -> tuple[float, ...]:
    return tuple(round(float(part.mean().sqrt()), 6) for part in _parts(squares_XY, 1))


def _parts(matrix_XY: Tensor, axis: int) -> Sequence[Tensor]:
    return torch.tensor_split(matrix_XY, min(BLOCKS, matrix_XY.shape[axis]), axis)
