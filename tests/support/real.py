"""The user's own pretrained models, for tests of claims about them; other tests have none."""

from __future__ import annotations

from pathlib import Path

import pytest
from platformdirs import user_cache_path

from lorewright.models.catalogue import known

USERS = user_cache_path("lorewright", appauthor=False)


def needs(name: str) -> pytest.MarkDecorator:
    """Skip where a model of the catalogue was not fetched, and say how it is."""
    model = known(name)
    stem = Path(model.file_name).stem
    return pytest.mark.skipif(
        not any(path.is_dir() for path in USERS.glob(f"models/{stem}-*")),
        reason=f"{model.title} is not in the cache: lore models get {name}",
    )


def link_models(cache: Path) -> None:
    """Put the user's models into a test's own cache, which the fixture `own_cache` gives."""
    (cache / "lorewright" / "models").symlink_to(USERS / "models", target_is_directory=True)
