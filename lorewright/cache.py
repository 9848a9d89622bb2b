"""Where the user's cache is: calibrations, compiled code, replies of teachers."""

from __future__ import annotations

import os
from pathlib import Path

CACHE = "LOREWRIGHT_CACHE"


def cache_folder() -> Path:
    """LOREWRIGHT_CACHE, or the platform's cache folder for lorewright."""
    from platformdirs import user_cache_path

    return Path(os.environ.get(CACHE) or user_cache_path("lorewright", appauthor=False))
