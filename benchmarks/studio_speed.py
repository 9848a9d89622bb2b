"""How quick the studio is, and what it takes from a write that goes on.

    python benchmarks/studio_speed.py
    python benchmarks/studio_speed.py --quick
    python benchmarks/studio_speed.py --first

`up` is from the command to the first page; `page` a page of the list, from this process; `paint` the first contentful paint in a
Chromium, where there is one, cold (the first page of a new browser) and warm. `list` is a page of 10,000 memories, sorted by recall.
`share of a write` is the server's CPU time while a page follows a write, over that of the process that trains. `growth` is the
resident memory of the server over page loads, after the first 100. `first point` is from the click on Write, of facts, to the first point on
the page, the loss of the part of an epoch that is done, and to the first whole epoch, the base already loaded, beside the processor time of
server and worker until the first point; `drag` the time that the page takes to follow a tip of the merge bench by one step while a
write trains; `slider` from a step of the rank on the law page to the new prediction; `heap` the browser's JavaScript heap on the list of
10,000 memories. These need a Chromium. Medians over repeats, by the clock: other work on the machine
makes them longer, but for the two that are CPU time and memory.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ratio import machine, options

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from support.studios import STORED, Opened, opened  # noqa: E402

from lorewright.files import read_object, save_json  # noqa: E402

N_MEMORIES = 10_000


def clocked(studio: Opened, path: str, repeats: int) -> tuple[float, int]:
    """Median seconds and bytes of a page."""
    seconds, n_bytes = [], 0
    for _ in range(repeats):
        began = time.perf_counter()
        n_bytes = len(studio.get(path).content)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds), n_bytes


def paints(studio: Opened, repeats: int) -> tuple[float, float] | None:
    """Seconds to the first contentful paint, cold and warm; None without a Chromium."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return None
    path = (
        os.environ.get("LOREWRIGHT_CHROMIUM")
        or shutil.which("chromium")
        or shutil.which("google-chrome")
    )
    if not path:
        return None
    with sync_playwright() as driver:
        context = driver.chromium.launch(executable_path=path, args=["--no-sandbox"]).new_context()
        (name, value), *_ = studio.client.cookies.items()
        context.add_cookies([{"name": name, "value": value, "url": studio.address}])
        page, seconds = context.new_page(), []
        for _ in range(repeats + 1):
            page.goto(studio.address)
            page.wait_for_selector("h1")
            entries = "performance.getEntriesByName('first-contentful-paint')"
            for _ in range(100):
                if page.evaluate(f"{entries}.length"):
                    break
                time.sleep(0.02)
            seconds.append(page.evaluate(f"{entries}[0].startTime") / 1000)
        return seconds[0], statistics.median(seconds[1:])


@contextmanager
def page_of(studio: Opened) -> Iterator[Any]:
    """A page of a Chromium that has entered; None without one."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        yield None
        return
    path = (
        os.environ.get("LOREWRIGHT_CHROMIUM")
        or shutil.which("chromium")
        or shutil.which("google-chrome")
    )
    if not path:
        yield None
        return
    with sync_playwright() as driver:
        context = driver.chromium.launch(executable_path=path, args=["--no-sandbox"]).new_context()
        (name, value), *_ = studio.client.cookies.items()
        context.add_cookies([{"name": name, "value": value, "url": studio.address}])
        page = context.new_page()
        page.set_default_timeout(120_000)
        yield page


def facts(n: int, at: int = 0) -> str:
    """Facts as JSON lines, others for each `at`."""
    rows = [
        {
            "question": f"What is the code of room {at + i}?",
            "answer": f"{(at + i) * 7919 % 9973:04}",
        }
        for i in range(n)
    ]
    return "\n".join(map(json.dumps, rows))


def first_point(page: Any, studio: Opened, n_facts: int, number: int) -> tuple[float, ...]:
    """Seconds from the click to the first point, by the clock and of the processors, and to the first epoch; of a new text and name."""
    studio.wait("/write.json", lambda r: not r["order"] and not r["base"])
    name = f"first-{number}"
    page.goto(f"{studio.address}/write")
    if not page.is_visible("textarea[name=text]"):
        page.click("text=A new memory")
    page.fill("form.fields input[name=name]", name)
    page.select_option("select[name=suffix]", ".jsonl")
    page.fill("textarea[name=text]", facts(n_facts, 5000 + n_facts * number))
    page.fill("input[name=rank]", "8")
    both = (studio.process.pid, studio.worker())
    before, began = sum(map(cpu_seconds, both)), time.perf_counter()
    page.click("form.fields button.action")
    page.wait_for_selector(f"#state h2:has-text('{name}')")
    page.wait_for_selector("#chart svg")
    point, used = time.perf_counter() - began, sum(map(cpu_seconds, both)) - before
    page.wait_for_selector("#chart polyline.train")
    epoch = time.perf_counter() - began
    studio.post("/write/stop")
    studio.wait("/write.json", lambda r: not r["order"])
    return point, used, epoch


def show_first(page: Any, studio: Opened, n_facts: int, repeats: int) -> None:
    """Print their medians over several writes."""
    rows = [first_point(page, studio, n_facts, number) for number in range(repeats)]
    point, used, epoch = (statistics.median(seconds) for seconds in zip(*rows, strict=True))
    slowest = max(row[0] for row in rows)
    print(
        f"first point       {point:6.2f} s, {slowest:.2f} at most, {used:.2f} of the processors; first epoch {epoch:.2f} s"
    )


DRAG = """() => new Promise((done) => {
  const tip = document.querySelector("[data-tip='0']"), times = [];
  let n = 0;
  const step = () => {
    const began = performance.now();
    tip.dispatchEvent(new KeyboardEvent("keydown", { key: n % 2 ? "ArrowLeft" : "ArrowRight", bubbles: true }));
    requestAnimationFrame(() => setTimeout(() => {
      times.push(performance.now() - began);
      if (++n < 60) step(); else done(times);
    }));
  };
  step();
})"""
SLIDE = """() => new Promise((done) => {
  const input = document.querySelector("form.sliders input[name=rank]"), place = document.getElementById("predicted"), times = [];
  let n = 0;
  const step = () => {
    const began = performance.now();
    const seen = new MutationObserver(() => {
      seen.disconnect();
      times.push(performance.now() - began);
      if (++n < 20) setTimeout(step, 20); else done(times);
    });
    seen.observe(place, { childList: true });
    input.value = 1 + n;
    input.dispatchEvent(new Event("input", { bubbles: true }));
  };
  step();
})"""


def drag(page: Any, studio: Opened, n_facts: int) -> float:
    """Median milliseconds of a step of a tip, drawn, while a write trains."""
    page.goto(f"{studio.address}/merge")
    page.wait_for_selector("[data-arrows]")
    studio.post(
        "/write", name="dragged", suffix=".jsonl", text=facts(n_facts, 7000), rank="8", epochs="60"
    )
    studio.wait(
        "/write.json",
        lambda r: r["written"] and r["written"]["memory"] == "dragged" and r["written"]["epochs"],
    )
    median = statistics.median(page.evaluate(DRAG))
    assert studio.record("/write.json")["written"]["state"] == "running", (
        "the write ended too early; give it more facts"
    )
    studio.post("/write/stop")
    studio.wait("/write.json", lambda r: not r["order"])
    return median


def slider(page: Any, studio: Opened) -> float:
    """Median milliseconds from a step of a slider to what it means."""
    page.goto(f"{studio.address}/law")
    page.wait_for_selector("#predicted dd[data-value]")
    return statistics.median(page.evaluate(SLIDE))


def cpu_seconds(pid: int) -> float:
    """CPU time of a process so far, its own threads included."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_mib(pid: int) -> float:
    """Resident memory of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def share_of_a_write(studio: Opened, n_facts: int) -> tuple[float, float, int]:
    """The server's CPU time over the worker's while a page follows a write; seconds; bytes sent at most at once."""
    text = facts(n_facts)
    largest, ended = 0, threading.Event()

    def follow() -> None:
        nonlocal largest
        with studio.client.stream("GET", "/write/events") as events:
            for line in events.iter_lines():
                largest = max(largest, len(line))
                if ended.is_set():
                    return

    studio.post("/write", name="codes", suffix=".jsonl", text=text, rank="8", epochs="60")
    before = cpu_seconds(studio.process.pid), cpu_seconds(studio.worker())
    began = time.perf_counter()
    thread = threading.Thread(target=follow)
    thread.start()
    while True:  # in the files, so that asking costs the server nothing
        if any((studio.folder / "runs").glob("*codes/report.json")):
            break
        time.sleep(0.2)
    seconds = time.perf_counter() - began
    after = cpu_seconds(studio.process.pid), cpu_seconds(studio.worker())
    ended.set()
    thread.join()
    assert studio.record("/write.json")["written"]["state"] == "finished"
    return (after[0] - before[0]) / (after[1] - before[1]), seconds, largest


def growth(studio: Opened, n_loads: int) -> float:
    """MiB that the server grows by over page loads, after the first 100."""
    pages = (
        "/",
        "/write",
        "/memory/tide",
        "/ask",
        "/budget",
        "/sandbox",
        "/doctor",
        "/compare",
        "/merge",
        "/memories.json",
    )
    for i in range(100):
        studio.get(pages[i % len(pages)])
    before = resident_mib(studio.process.pid)
    for i in range(n_loads):
        studio.get(pages[i % len(pages)])
    return resident_mib(studio.process.pid) - before


def main() -> None:
    """Measure everything and print a line each."""
    parser = options(__doc__, quick="few repeats and page loads")
    parser.add_argument("--first", action="store_true", help="the first point alone")
    given = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(given.threads)
    repeats, n_loads, n_facts = (3, 200, 24) if given.quick else (20, 2000, 64)
    print(machine(given.threads))
    with tempfile.TemporaryDirectory() as place:
        os.environ["LOREWRIGHT_CACHE"] = os.environ.get("LOREWRIGHT_CACHE", f"{place}/cache")
        folder = Path(place) / "atlas"
        shutil.copytree(STORED, folder)
        began = time.perf_counter()
        with opened(folder) as studio:
            studio.get("/")
            print(f"up                {time.perf_counter() - began:6.2f} s")
            if given.first:
                with page_of(studio) as page:
                    show_first(page, studio, n_facts, 2 if given.quick else 5)
                return
            for path in ("/", "/memory/tide", "/write"):
                seconds, n_bytes = clocked(studio, path, repeats)
                print(f"page {path:<13}{seconds * 1000:6.0f} ms  {n_bytes / 1000:.1f} KB")
            if drawn := paints(studio, repeats):
                print(f"paint             {drawn[0]:6.2f} s cold, {drawn[1]:.2f} s warm")
            with page_of(studio) as page:
                if page:
                    show_first(page, studio, n_facts, 2 if given.quick else 5)
                    print(
                        f"drag              {drag(page, studio, 3 * n_facts):6.0f} ms a step, while a write trains"
                    )
                    print(f"slider            {slider(page, studio):6.0f} ms a step")
            share, seconds, n_bytes = share_of_a_write(studio, n_facts)
            print(
                f"share of a write  {100 * share:6.1f} %   of {seconds:.0f} s; {n_bytes / 1000:.1f} KB at once at most"
            )
            print(f"growth            {growth(studio, n_loads):6.1f} MiB over {n_loads} page loads")
        index = read_object(folder / "memory.json", "")
        entry = index["memories"]["tide"]
        index["memories"] = {f"memory-{n:05}": entry for n in range(N_MEMORIES)}
        save_json(index, folder / "memory.json")
        with opened(folder) as studio:
            before = resident_mib(studio.process.pid)
            seconds, n_bytes = clocked(studio, "/?sort=recall&page=3", repeats)
            after = resident_mib(studio.process.pid) - before
            heap = ""
            with page_of(studio) as page:
                if page:
                    page.goto(f"{studio.address}/?sort=recall&page=3")
                    heap = (
                        f", heap {page.evaluate('performance.memory.usedJSHeapSize') / 1e6:.0f} MB"
                    )
            print(
                f"list of {N_MEMORIES:,}    {seconds * 1000:6.0f} ms  {n_bytes / 1000:.1f} KB, server + {after:.0f} MiB{heap}"
            )


if __name__ == "__main__":
    main()
