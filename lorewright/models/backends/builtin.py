"""The backends that come with the package."""

from __future__ import annotations

from lorewright.models.backends.backend import MakeBackend
from lorewright.models.backends.by_hand import ByHand
from lorewright.models.backends.compiled.backend import Compiled
from lorewright.models.backends.network import Transformers

BACKENDS: dict[str, MakeBackend] = {
    "c": Compiled,
    "torch": ByHand,
    "transformers": Transformers,
}
"""Quickest first: a pass runs in the first that does not refuse it."""
