"""Who hears of progress."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lorewright.training.config import Epoch


@dataclass(frozen=True)
class Watch:
    """Functions told about progress; by default nobody is."""

    step: Callable[[str], None] = lambda text: None
    epoch: Callable[[Epoch], None] = lambda epoch: None
