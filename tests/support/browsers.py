"""A real Chromium, where there is one: `PATH`, LOREWRIGHT_CHROMIUM or Playwright's own."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from support.studios import Opened

NAMES = ("chromium", "chromium-browser", "google-chrome")
TAGS = ("wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa")
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


LOOKS = {"light": ("light", 1120), "dark": ("dark", 1120), "narrow": ("light", 390)}


def clean(page: Any, photographs: str = "") -> None:
    """What a page shows at this moment fits, and is WCAG 2.2 AA, light, dark and narrow.

    Without axe-playwright-python the width alone is looked at. `photographs` begins the name of
    three files.
    """
    axe = importlib.util.find_spec("axe_playwright_python")
    for look, (scheme, width) in LOOKS.items():
        page.emulate_media(color_scheme=scheme)
        page.set_viewport_size({"width": width, "height": 800})
        where = f"{page.url}, {look}"
        if photographs:
            Path(photographs).parent.mkdir(parents=True, exist_ok=True)
            page.screenshot(path=f"{photographs}-{look}.png")
        assert page.evaluate("document.documentElement.scrollWidth") <= width, where
        if axe is None or not axe.submodule_search_locations:
            continue
        if not page.evaluate("'axe' in window"):
            script = Path(next(iter(axe.submodule_search_locations))) / "axe.min.js"
            page.evaluate(script.read_text(encoding="utf-8"))
        result = page.evaluate("tags => axe.run(document, {runOnly: tags})", [*TAGS])
        assert len(result["passes"]) > 8  # it looked
        wrong = json.dumps(result["violations"], indent=1)
        assert result["violations"] == [], f"{where}: {wrong[:3000]}"
