"""Fixed matrices as products of decoder.c read them, and memory that is kept for the next pass."""

from __future__ import annotations

import ctypes
from typing import Any
from weakref import ref

import torch
from torch import Tensor


def floats(*shape: int) -> Tensor:
    """Fresh memory on the CPU, whatever torch's defaults are."""
    return torch.empty(*shape, dtype=torch.float32, device="cpu")


def panels(library: ctypes.CDLL, matrix_KN: Tensor, *, turned: bool = False) -> Tensor:
    """A matrix, or the turned one, cut into panels of columns one after another: one stream."""
    plain_KN, columns = matrix_KN.detach().contiguous(), library.lorewright_columns()
    k, n = plain_KN.shape[::-1] if turned else plain_KN.shape
    found = floats(k * (-(-n // columns) * columns))
    library.lorewright_panels(k, n, plain_KN.data_ptr(), turned, found.data_ptr())
    return found


def state(weight: Tensor) -> tuple[int, int]:
    """Where a weight lies and how often it was written to: its values' identity."""
    return weight.data_ptr(), 0 if weight.is_inference() else weight._version


class Panels:
    """Frozen weights (O, I) as products read them: W' and W in panels, made anew when changed.

    A change is one that torch counts: what is written through `.data` goes unseen.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library
        self._made: dict[int, tuple[ref[Tensor], Any, tuple[Tensor, Tensor]]] = {}

    def of(self, weight_OI: Tensor) -> tuple[Tensor, Tensor]:
        """W' for the way up and W for the way down."""
        made = self._made.get(id(weight_OI))
        if made is None or made[0]() is not weight_OI or made[1] != state(weight_OI):
            up, down = (panels(self.library, weight_OI, turned=turned) for turned in (True, False))
            made = ref(weight_OI), state(weight_OI), (up, down)
            self._made[id(weight_OI)] = made
        return made[2]


class Spare:
    """Memory that is not in use: fresh pages cost more than what is computed in them."""

    def __init__(self) -> None:
        self._tensors: list[Tensor] = []

    def take(self, n_values: int) -> Tensor:
        """At least so many values; one that is too small is let go."""
        try:
            tensor = self._tensors.pop()  # one step: threads may meet here
        except IndexError:
            return floats(n_values)
        return tensor if len(tensor) >= n_values else floats(n_values)

    def give(self, tensor: Tensor) -> None:
        """Bring it back."""
        self._tensors.append(tensor)
