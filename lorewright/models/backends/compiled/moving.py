"""Adam on one adapter of a stack in one call: clip, turn, moments, turn back, decay, move.

`optim` has the same operation by operation; its words are used here.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from lorewright.models.backends.compiled.buffers import floats, panels
from lorewright.models.backends.compiled.layout import CMoving, CSpan


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
        self, library: ctypes.CDLL, parts: Sequence[Matrices], made: dict[int, Tensor]
    ) -> None:
        """`made` holds panels of bases by where these lie, for others of the stack too."""
        self.library, self.parts = library, list(parts)  # bases stay alive, so their places hold
        self._held = [(ctypes.c_long * len(part.starts))(*part.starts) for part in parts]
        self._spans = (CSpan * len(parts))()
        for span, part, starts in zip(self._spans, parts, self._held, strict=True):
            span.n_spans, span.rows, span.width = len(part.starts), part.rows, part.width
            span.spans, span.ratio = ctypes.addressof(starts), part.ratio
            if part.basis_II is not None:
                place = part.basis_II.data_ptr()
                if place not in made:
                    made[place] = panels(library, part.basis_II)
                span.basis = made[place].data_ptr()
        self.made = made
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
        places = [x.data_ptr() for x in (weight_P, first_P, second_P, grad_P)]
        whole = [1 - beta**steps for beta in betas]
        moving = CMoving(*places, clip, *(1 - beta for beta in betas), *whole, eps, rate, decay)
        arguments = len(self._spans), self._spans, ctypes.byref(moving), self._work.data_ptr()
        self.library.lorewright_adam(*arguments)
