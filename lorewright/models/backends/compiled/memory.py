"""Frozen matrices packed as decoder.c multiplies by them, and memory that is used again."""

from __future__ import annotations

from weakref import ref

import torch
from torch import Tensor

from lorewright.models.backends.compiled.library import Library


def floats(*shape: int) -> Tensor:
    """Fresh memory on the CPU, whatever torch's defaults are."""
    return torch.empty(*shape, dtype=torch.float32, device="cpu")


def pack(library: Library, matrix_KN: Tensor, *, transposed: bool = False) -> Tensor:
    """A matrix, or its transpose, in blocks of columns one after another: read as one stream."""
    plain_KN, columns = matrix_KN.detach().contiguous(), library.lib.lorewright_columns()
    k, n = plain_KN.shape[::-1] if transposed else plain_KN.shape
    packed = floats(k * (-(-n // columns) * columns))
    values = library.floats(plain_KN), transposed, library.floats(packed)
    library.lib.lorewright_pack(k, n, *values)
    return packed


def version(weight: Tensor) -> tuple[int, int]:
    """Where a weight lies and how often it was written to: its values' identity."""
    return weight.data_ptr(), 0 if weight.is_inference() else weight._version


class Packed:
    """Frozen weights (O, I) as products read them: W' and W packed, anew when they changed.

    A change is one that torch counts: what is written through `.data` goes unseen.
    """

    def __init__(self, library: Library) -> None:
        self.library = library
        self._cache: dict[int, tuple[ref[Tensor], tuple[int, int], tuple[Tensor, Tensor]]] = {}

    def of(self, weight_OI: Tensor) -> tuple[Tensor, Tensor]:
        """W' for the forward pass and W for the backward pass."""
        entry = self._cache.get(id(weight_OI))
        if entry is None or entry[0]() is not weight_OI or entry[1] != version(weight_OI):
            up, down = (pack(self.library, weight_OI, transposed=t) for t in (True, False))
            entry = ref(weight_OI), version(weight_OI), (up, down)
            self._cache[id(weight_OI)] = entry
        return entry[2]


class Spare:
    """Memory that is not in use: fresh pages cost more than what is computed in them."""

    def __init__(self) -> None:
        self._tensors: list[Tensor] = []

    def take(self, n_values: int) -> Tensor:
        """At least so many values; one that is too small is freed."""
        try:
            tensor = self._tensors.pop()  # one step: several threads may be here
        except IndexError:
            return floats(n_values)
        return tensor if len(tensor) >= n_values else floats(n_values)

    def give(self, tensor: Tensor) -> None:
        """Bring it back."""
        self._tensors.append(tensor)
