"""The verb `plane`: memories as arrows in one plane, and where each way of merging lands.

Nothing is written, and nothing is measured of recall: that is what `merge` does.
"""

from __future__ import annotations

from collections.abc import Sequence

from lorewright.files import slug
from lorewright.memory.opened import OpenFolder
from lorewright.merging import plane as planes
from lorewright.merging.plane import PLANAR, Plane


def plane(
    memory: OpenFolder,
    names: Sequence[str],
    *,
    weights: Sequence[float] | None = None,
    methods: Sequence[str] = PLANAR,
) -> Plane:
    """Draw memories of this folder in their common plane, and their merges with these weights.

    Raises UnknownMemory, AdapterError for a memory that is no adapter, and as `merging.plane`.
    """
    own = [slug(name) for name in names]
    adapters = [memory.adapter(name) for name in own]
    return planes.plane(own, adapters, weights=weights, methods=methods)
