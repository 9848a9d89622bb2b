"""Things that take long to load, loaded once for all who wait for them."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class Loads(OrderedDict[str, "asyncio.Task[T]"]):
    """Tasks by key, least recently used first; a failure is not remembered."""

    async def load(self, key: str, start: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Return the result of `start` for a key, from now or from before. Raises as it does."""
        if key not in self:
            self[key] = asyncio.create_task(start())
        self.move_to_end(key)
        task = self[key]
        try:
            return await asyncio.shield(task)  # who leaves must not cancel it for the others
        except Exception:
            if self.get(key) is task:
                del self[key]
            raise
