"""A real Chromium, where there is one: `PATH`, LOREWRIGHT_CHROMIUM or Playwright's own."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from support.studios import Opened

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = os.environ.get("LOREWRIGHT_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), "")


def launched(driver: Any) -> Any:
    """The browser; skips the test, with the reason, where there is none."""
    path = CHROMIUM or driver.chromium.executable_path
    if not Path(path).exists():
        pytest.skip("needs a Chromium: apt install chromium, or playwright install chromium")
    return driver.chromium.launch(executable_path=path, args=["--no-sandbox"])


def visit(browser: Any, studio: Opened, **look: Any) -> Any:
    """A page of a browser that has the studio's cookie, and notes every request and error."""
    assert studio.client is not None
    context = browser.new_context(**look)
    (name, value), *_ = studio.client.cookies.items()
    context.add_cookies([{"name": name, "value": value, "url": studio.address}])
    page = context.new_page()
    page.requests, page.errors = [], []
    page.on("request", lambda request: page.requests.append(request.url))
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.set_default_timeout(60_000)
    return page
