"""Adam on one adapter of a stack in one call: clip, rotate, moments, rotate back, decay, move.

`training.optimisers` has the same operation by operation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from lorewright.models.backends.compiled.library import Library
from lorewright.models.backends.compiled.memory import floats, pack


class Matrices(NamedTuple):
    """Matrices of one shape in a flat buffer that have one basis (I, I), or none."""

    starts: Sequence[int]
    rows: int
    width: int
    basis_II: Tensor | None
    ratio: float
    """Of their rate to the adapter's."""


class Mover:
    """Moves one adapter's values."""

    def __init__(
        self, library: Library, parts: Sequence[Matrices], packed: dict[int, Tensor]
    ) -> None:
        """`packed` holds packed bases by where these lie, for others of the stack too."""
        self.library, self.parts, self.packed = library, list(parts), packed  # bases stay alive
        ffi = library.ffi
        self._starts = [ffi.new("long[]", list(part.starts)) for part in parts]
        self._spans = ffi.new("Span[]", len(parts))
        for span, part, starts in zip(self._spans, parts, self._starts, strict=True):
            span.n_spans, span.rows, span.width = len(part.starts), part.rows, part.width
            span.spans, span.ratio = starts, part.ratio
            if part.basis_II is not None:
                place = part.basis_II.data_ptr()
                if place not in packed:
                    packed[place] = pack(library, part.basis_II)
                span.basis = library.floats(packed[place])
        largest = max(len(part.starts) * part.rows * part.width for part in parts)
        self._work = floats(2 * largest)

    def move(
        self,
        weight_P: Tensor,
        moments: Sequence[Tensor],
        grad_P: Tensor,
        *,
        clip: float,
        steps: float,
        betas: tuple[float, float],
        eps: float,
        rate: float,
        decay: float,
    ) -> None:
        """One step of all values, the gradient's norm brought down to `clip` if it is above."""
        first_P, second_P = moments
        values = [self.library.floats(x) for x in (weight_P, first_P, second_P, grad_P)]
        whole = [1 - beta**steps for beta in betas]
        settings = clip, *(1 - beta for beta in betas), *whole, eps, rate, decay
        moving = self.library.ffi.new("Moving *", (*values, *settings))
        work = self.library.floats(self._work)
        self.library.lib.lorewright_adam(len(self._spans), self._spans, moving, work)
