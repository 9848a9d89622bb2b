"""A newcomer's path through the studio, timed step by step, and the photographs of the docs.

    python docs/photographs.py docs/assets
    python docs/photographs.py /tmp/shots --look dark

A studio is opened on a new folder, in a process of its own. In a Chromium the handbook is written with one click, followed, asked about, and
asked what it does not know; the seconds of each step are printed. Then the other pages are visited, one failure is made, and a picture of each
is stored. Needs the extras `studio` and `browser`.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from playwright.sync_api import sync_playwright  # noqa: E402
from support.browsers import CHROMIUM  # noqa: E402
from support.studios import Opened, opened  # noqa: E402

PATIENCE_MS = 600_000
EPOCHS_SHOWN = 4
"""After which the write is photographed."""
LEADER = "Who is in charge of the Tide Office?"
STRANGE = "What is the capital of France?"


class Camera:
    """A page of the studio, where pictures go, and the clock of the path."""

    def __init__(self, page: Any, studio: Opened, out: Path) -> None:
        self.page, self.studio, self.out = page, studio, out
        self.began = self.last = time.monotonic()

    def took(self, step: str) -> None:
        """Print what a step of the path has taken."""
        now = time.monotonic()
        print(f"{step:<44}{now - self.last:6.1f} s   {now - self.began:6.1f} s in all", flush=True)
        self.last = now

    def picture(self, name: str, element: str = "") -> None:
        """Store what the window shows, or from an element on."""
        self.page.wait_for_timeout(300)
        if element:
            self.page.eval_on_selector(
                element, "e => window.scrollTo(0, e.getBoundingClientRect().top + scrollY - 24)"
            )
        self.page.screenshot(path=str(self.out / f"studio-{name}.png"))

    def visit(self, path: str, awaited: str) -> None:
        """Open a page and wait for what it shows."""
        self.page.goto(self.studio.address + path)
        self.page.wait_for_selector(awaited)


def newcomer(camera: Camera) -> None:
    """From the printed address to an answer that is declined."""
    page = camera.page
    page.goto(camera.studio.entrance)
    page.wait_for_selector("text=Write the handbook")
    camera.took("the page is there")
    camera.picture("welcome")
    page.click("text=Write the handbook")
    page.wait_for_selector("#chart svg")
    camera.took("the first epoch is on the page")
    while int(page.inner_text("#state .figures dd >> nth=0").split()[0]) < EPOCHS_SHOWN:
        page.wait_for_timeout(200)
    camera.picture("write", "#state h2")
    page.wait_for_selector("text=Ask it")
    camera.took("it is written, proved and verified")
    camera.picture("written")
    page.click("text=Ask it")
    page.fill("input[name=question]", LEADER)
    page.click("button.action")
    page.wait_for_selector(".side.closed .reply")
    camera.took("a question is answered")
    camera.picture("ask")
    page.click(f"text={STRANGE}")
    page.wait_for_selector("text=No memory answers")
    camera.took("another is declined, and why")
    camera.picture("declined")


def others(camera: Camera) -> None:
    """Pictures of the other pages."""
    page, studio = camera.page, camera.studio
    studio.post("/write", example="phones")
    studio.wait("/memories.json", lambda r: r["n"] == 2 and not r["writing"])
    camera.visit("/", "table")
    camera.picture("memories")
    camera.visit("/memory/handbook?failed=1", ".probes")
    page.click("button:has-text('tokens') >> nth=0")
    page.wait_for_selector(".strip")
    camera.picture("tokens", "#probes")
    for name in ("sound", "wording"):
        studio.post(f"/failure/{name}")
        studio.wait(f"/failure/{name}.json", lambda r: r["there"])
    camera.visit("/failure/wording", ".tree")
    camera.picture("doctor")
    camera.visit("/law", ".family")
    camera.picture("law")
    camera.visit("/merge", "[data-arrows]")
    camera.picture("merge")
    camera.visit("/compare", "svg.chart")
    camera.picture("compare")
    camera.visit("/budget", "#account svg")
    camera.picture("budget")


def main() -> None:
    """Walk the path and print its times."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="folder of the pictures")
    parser.add_argument("--look", default="light", choices=("light", "dark", "narrow"))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    viewport = {"width": 400 if given.look == "narrow" else 1120, "height": 800}
    scheme = "dark" if given.look == "dark" else "light"
    with tempfile.TemporaryDirectory() as place, sync_playwright() as driver:
        os.environ.setdefault("LOREWRIGHT_CACHE", f"{place}/cache")
        path = CHROMIUM or driver.chromium.executable_path
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        began = time.monotonic()
        with opened(Path(place) / "atlas", enter=False) as studio:
            print(f"{'lore studio prints its address':<44}{time.monotonic() - began:6.1f} s")
            context = browser.new_context(color_scheme=scheme, viewport=viewport)
            page = context.new_page()
            page.set_default_timeout(PATIENCE_MS)
            camera = Camera(page, studio, given.out)
            newcomer(camera)
            import httpx

            studio.client = httpx.Client(base_url=studio.address, timeout=PATIENCE_MS / 1000)
            for each in context.cookies():
                studio.client.cookies.set(each["name"], each["value"])
            others(camera)


if __name__ == "__main__":
    main()
