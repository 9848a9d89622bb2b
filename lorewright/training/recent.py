"""What the next write of a process may need again: the last results, while they are small together.

Benchmarks write the same document in many ways, and every write protects and rehearses the same.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

V = TypeVar("V")


class Recent(Generic[V]):
    """Results by key; those used longest ago go first when all hold more than `n_bytes`."""

    def __init__(self, n_bytes: int, size_of: Callable[[V], int]) -> None:
        self.n_bytes, self.size_of = n_bytes, size_of
        self.results: OrderedDict[Hashable, V] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], V]) -> V:
        """The result of this key, made where it is not here."""
        if key not in self.results:
            self.results[key] = make()
        self.results.move_to_end(key)
        result = self.results[key]
        while self.results and sum(map(self.size_of, self.results.values())) > self.n_bytes:
            self.results.popitem(last=False)
        return result
