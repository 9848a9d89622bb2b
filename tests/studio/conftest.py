"""One Chromium for all tests of the studio."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from support.browsers import launched


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A Chromium, or the reason why there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    with playwright.sync_playwright() as driver:
        chromium = launched(driver)
        yield chromium
        chromium.close()
