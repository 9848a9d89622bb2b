"""Claims about the pages as a browser shows them: a real Chromium, the real model, real writes.

Skipped where there is no Chromium (`support.browsers`). With
LOREWRIGHT_PHOTOGRAPHS=FOLDER every page is photographed light, dark and 400 pixels wide.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.browsers import clean, visit
from support.studios import LORE, ROOT, Opened, opened, stored

from lorewright.files import load_jsonl
from lorewright.memory.folder import Folder

PHOTOGRAPHS = os.environ.get("LOREWRIGHT_PHOTOGRAPHS", "")
LEADER = "Who leads the Tide Office?"
FACTS = "\n".join(
    json.dumps({"question": q, "answer": a, "paraphrases": p})
    for q, a, p in [
        ("What is the code of Project Gannet?", "KX-41", ["Which code has Project Gannet?"]),
        ("What is the room of Project Heron?", "B 1207", ["Which room has Project Heron?"]),
        ("Who owns the Grain Mill?", "Bram Vell", ["Name the owner of the Grain Mill."]),
    ]
)
PAGES = {
    "memories": ("/", "table"),
    "write": ("/write", "#chart svg"),
    "memory": ("/memory/tide", "svg.chart"),
    "ask": (f"/ask?question={LEADER.replace(' ', '+')}", ".sides"),
    "doctor": ("/memory/tide/doctor", ".tree"),
    "ranks": ("/memory/tide/ranks", "#cut svg"),
    "budget": ("/budget", "#account svg.chart"),
    "sandbox": ("/sandbox/rank", ".cards"),
    "law": ("/law?form=paper_without_offset", ".family"),
    "compare": ("/compare", "svg.chart"),
    "doctors": ("/doctor", ".cards"),
    "failure": ("/failure/rank", "h1"),
    "plane": ("/merge", "[data-arrows]"),
    "sketch": ("/merge/sketch", "[data-arrows]"),
    "contradictions": ("/contradictions", "h1"),
    "error": ("/memory/nobody", ".error"),
}
slow = pytest.mark.slow


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Opened]:
    """A studio on a copy of the stored folder; the browser enters with the cookie."""
    with opened(stored(tmp_path_factory.mktemp("browser"))) as studio:
        yield studio


def write_facts(page: Any, studio: Opened, name: str, epochs: int = 60, facts: str = FACTS) -> None:
    """Fill in the form and send it, with its own button."""
    page.goto(f"{studio.address}/write")
    if not page.is_visible("textarea[name=text]"):
        page.click("text=A new memory")
    page.fill("form.fields input[name=name]", name)
    page.select_option("select[name=suffix]", ".jsonl")
    page.fill("textarea[name=text]", facts)
    page.fill("input[name=epochs]", str(epochs))
    page.click("form.fields button.action")


def points(page: Any, curve: str) -> int:
    """How many points the first curve of a kind has."""
    drawn = page.get_attribute(f"#chart polyline.{curve} >> nth=0", "points")
    return len(drawn.split())


@slow
def test_a_newcomer_writes_sees_recall_rise_and_asks(browser: Any, tmp_path: Path) -> None:
    with opened(tmp_path / "atlas", enter=False) as studio:
        page = browser.new_context().new_page()
        page.set_default_timeout(120_000)
        page.goto(studio.entrance)
        page.wait_for_selector("text=No memory yet")
        assert "token" not in page.url and "Marrow Bay" in page.inner_text("pre.text")
        write_facts(page, studio, "projects")
        page.wait_for_selector("text=finished")
        (run,) = (tmp_path / "atlas" / "runs").iterdir()
        rows = load_jsonl(run / "metrics.jsonl")
        assert points(page, "train") == points(page, "held") == len(rows)
        assert f"{rows[-1]['n_recalled']} of {rows[-1]['n_examples']}" in page.inner_text("#state")
        assert rows[-1]["held_out_nats"] != rows[0]["held_out_nats"]
        page.click("text=Ask it")
        page.fill("input[name=question]", "What is the code of Project Gannet?")
        page.click("button.action")
        page.wait_for_selector(".side.closed .reply")
        assert page.inner_text(".side.closed .reply") == "KX-41"
        clean(page)
        assert page.inner_text(".side.base .reply") != "KX-41"
        page.context.close()


@slow
def test_reload_keeps_the_run_and_a_second_window_shows_it(browser: Any, tmp_path: Path) -> None:
    with opened(stored(tmp_path)) as studio:
        page, other = visit(browser, studio), visit(browser, studio)
        write_facts(page, studio, "long", epochs=400, facts=_many())
        page.wait_for_selector("#controls button")
        page.wait_for_selector("#chart svg")
        page.reload()
        other.goto(f"{studio.address}/write")
        for each in (page, other):
            each.wait_for_selector("#controls button")
            assert "long" in each.inner_text("#state h2") and points(each, "train") >= 1
        page.click("#controls button")
        for each in (page, other):
            each.wait_for_selector("text=finished")
        run = studio.record("/write.json")["written"]
        assert run["outcome"]["reason"] in ("stopped", "recalled")
        rows = load_jsonl(Folder(studio.folder).run_path(run["run"]) / "metrics.jsonl")
        for each in (page, other):
            assert points(each, "train") == len(rows) == len(run["epochs"])
            shown = each.inner_text("#state .figures dd >> nth=0")
            assert shown.split()[0] == str(rows[-1]["epoch"])
        assert "long" in Folder(studio.folder).names
        page.context.close()
        other.context.close()


def _many(n: int = 64) -> str:
    """Facts that no rank learns in an epoch or two."""
    return "\n".join(
        json.dumps(
            {"question": f"What is the code of room {i}?", "answer": f"{i * 7919 % 9973:04}"}
        )
        for i in range(n)
    )


@slow
def test_a_killed_worker_resumes_to_the_same_adapter(tmp_path: Path) -> None:
    fields = {"name": "codes", "suffix": ".jsonl", "text": _many(24), "rank": "4", "epochs": "60"}

    def over(record: dict[str, Any]) -> bool:
        return bool(record["written"]) and record["written"]["state"] == "finished"

    def begun(record: dict[str, Any]) -> bool:
        return bool(record["written"]) and len(record["written"]["epochs"]) >= 3

    with opened(tmp_path / "whole") as studio:
        assert studio.post("/write", **fields).status_code == 303
        studio.wait("/write.json", over)
        whole = Folder(studio.folder).names["codes"]
    with opened(tmp_path / "killed") as studio:
        studio.post("/write", **fields)
        studio.wait("/write.json", begun)
        os.kill(studio.worker(), signal.SIGKILL)
        record = studio.wait(
            "/write.json", lambda r: r["order"] and r["order"]["state"] == "failed"
        )
        assert "goes on where it was" in record["order"]["error"]
        assert record["written"]["state"] == "interrupted"
        assert record["written"]["resumes"] and "Go on with it" in studio.get("/write").text
        assert studio.post("/write/resume").status_code == 400
        assert studio.post("/write/resume", run=record["written"]["run"]).status_code == 303
        studio.wait("/write.json", over)
        assert Folder(studio.folder).names["codes"] == whole


@slow
def test_a_restarted_studio_goes_on_with_one_click(browser: Any, tmp_path: Path) -> None:
    folder = tmp_path / "atlas"
    fields = {"name": "codes", "suffix": ".jsonl", "text": _many(24), "rank": "4", "epochs": "60"}
    with opened(tmp_path / "whole") as studio:
        studio.post("/write", **fields)
        studio.wait("/write.json", lambda r: r["written"] and r["written"]["state"] == "finished")
        whole = Folder(studio.folder).names["codes"]
    with opened(folder) as studio:
        studio.post("/write", **fields)
        studio.wait("/write.json", lambda r: r["written"] and len(r["written"]["epochs"]) >= 3)
        worker = studio.worker()
        studio.process.kill()
        os.kill(worker, signal.SIGKILL)
    with opened(folder) as studio:
        page = visit(browser, studio)
        page.goto(f"{studio.address}/write")
        page.wait_for_selector("#state h2:has-text('codes') >> text=interrupted")
        page.click("text=Go on with it")
        page.wait_for_selector("#state h2:has-text('codes') >> text=finished", timeout=120_000)
        assert Folder(folder).names["codes"] == whole and page.errors == []
        assert not page.is_visible("text=Go on")
        rows = load_jsonl(next(folder.glob("runs/*/metrics.jsonl")))
        assert [row["epoch"] for row in rows] == [*range(1, len(rows) + 1)]
        page.context.close()


@slow
def test_a_write_that_was_stopped_goes_on_with_one_click(browser: Any, tmp_path: Path) -> None:
    with opened(tmp_path / "atlas") as studio:
        page = visit(browser, studio)
        page.set_default_timeout(120_000)
        write_facts(page, studio, "codes", epochs=12, facts=_many(24))
        page.wait_for_selector("#controls button")
        page.click("#controls button")
        page.wait_for_selector("#state h2:has-text('codes') >> text=finished")
        first = studio.record("/write.json")["written"]
        assert first["outcome"]["reason"] == "stopped" and first["resumes"]
        write_facts(page, studio, "others", epochs=2)
        page.wait_for_selector("#state h2:has-text('others') >> text=finished")
        page.click(f"#unfinished button[aria-label*='{first['run']}']")
        page.wait_for_selector("#state h2:has-text('codes') >> text=finished")
        last = studio.record("/write.json")["written"]
        assert last["run"] != first["run"] and last["outcome"]["reason"] != "stopped"
        assert last["epochs"][: len(first["epochs"])] == first["epochs"]
        assert studio.record("/write.json")["unfinished"] == []
        page.context.close()


@slow
def test_forget_leaves_no_trace(tmp_path: Path) -> None:
    with opened(stored(tmp_path)) as studio:
        text = FACTS.replace("Bram Vell", "Quillon Verdegaard")
        fields = {"name": "mill", "suffix": ".jsonl", "text": text, "rank": "4"}
        studio.post("/write", **fields)
        studio.wait("/write.json", lambda r: r["written"] and r["written"]["state"] == "finished")
        assert "mill" in Folder(studio.folder).names
        answer = studio.post("/memory/mill/forget", typed="mill")
        assert answer.status_code == 200 and "proof" in answer.text
        assert studio.get("/memory/mill").status_code == 404
        for path in studio.folder.rglob("*"):
            if path.is_file():
                assert b"Verdegaard" not in path.read_bytes(), path


@slow
def test_a_write_in_a_terminal_is_followed(browser: Any, tmp_path: Path) -> None:
    source = tmp_path / "codes.jsonl"
    source.write_text(_many(24))
    with opened(stored(tmp_path)) as studio:
        page = visit(browser, studio)
        page.goto(f"{studio.address}/write")
        command = [*LORE, "write", str(source), "--into", str(studio.folder), "--rank", "4"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        with subprocess.Popen(command, env=environment, **silent) as writing:
            page.wait_for_selector("#state h2:has-text('codes')")
            page.wait_for_selector("#state h2:has-text('codes') >> text=finished")
            assert writing.wait(60) in (0, 1)
        run = studio.record("/write.json")["written"]
        assert points(page, "train") == len(run["epochs"])
        page.goto(studio.address)
        page.wait_for_selector("#list a:has-text('codes')")
        page.context.close()


def test_a_strip_is_one_stop_and_arrows_move_through_it(browser: Any, studio: Opened) -> None:
    page = visit(browser, studio)
    page.goto(f"{studio.address}/memory/tide")
    answer = studio.record("/memory/tide.json")["probes"][0]["answers"][0]
    page.fill("form[data-into=own] input[name=question]", LEADER)
    page.fill("form[data-into=own] input[name=answer]", answer)
    page.press("form[data-into=own] input[name=answer]", "Enter")
    page.wait_for_selector("#own .strip")
    tokens = studio.record("/memory/tide/trace.json", question=LEADER, answer=answer)["tokens"]
    assert page.locator("#own .token").count() == len(tokens)
    page.focus("#own .strip")
    for n, token in enumerate(tokens):
        page.keyboard.press("ArrowRight")
        assert page.locator("#own .token[aria-selected=true]").count() == 1
        about = page.inner_text("#own [data-strip-about]")
        assert f"p {token['p']:.3f}" in about
        assert page.get_attribute("#own .strip", "aria-activedescendant").endswith(f"-{n}")
    page.keyboard.press("Home")
    assert page.get_attribute("#own .strip", "aria-activedescendant").endswith("-0")
    assert page.errors == []
    page.context.close()


@slow
def test_keyboard_alone_writes_verifies_asks(browser: Any, tmp_path: Path) -> None:
    with opened(stored(tmp_path)) as studio:
        page = visit(browser, studio)
        page.set_default_timeout(120_000)
        page.goto(studio.address)
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.className") == "skip"
        page.keyboard.press("?")
        assert page.is_visible("#help")
        page.keyboard.press("Escape")
        _tab_to(page, "Write")
        page.keyboard.press("Enter")
        page.wait_for_url("**/write")
        _tab_to(page, "A new memory")
        page.keyboard.press("Enter")
        for name, text in (("name", "typed"), ("text", "The Grain Mill is owned by Bram Vell.")):
            _tab_to_field(page, name)
            page.keyboard.type(text)
        _tab_to_field(page, "rank")
        page.keyboard.type("4")
        page.keyboard.press("Enter")  # from a field of the form
        page.wait_for_selector("#state h2:has-text('typed') >> text=finished")
        page.goto(f"{studio.address}/memory/typed")
        _tab_to(page, "Take the verdict again")
        page.keyboard.press("Enter")
        page.wait_for_selector("#again svg")
        _tab_to_backwards(page, "Ask it")
        page.keyboard.press("Enter")
        page.wait_for_url("**/ask?memory=typed")
        page.keyboard.press("/")
        page.keyboard.type("Who owns the Grain Mill?")
        page.keyboard.press("Enter")
        page.wait_for_selector(".side.closed .reply")
        page.goto(f"{studio.address}/memory/tide")
        _tab_to(page, "Examine it")
        page.keyboard.press("Enter")
        page.wait_for_selector(".tree")
        assert page.errors == []
        page.context.close()


def _tab_to_backwards(page: Any, text: str) -> None:
    for _ in range(80):
        page.keyboard.press("Shift+Tab")
        if page.evaluate("document.activeElement.textContent.trim()") == text:
            return
    raise AssertionError(f"shift and tab do not reach {text!r}")


def _tab_to_field(page: Any, name: str) -> None:
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.name || ''") == name:
            return
    raise AssertionError(f"the tab key does not reach the field {name!r}")


def _tab_to(page: Any, text: str) -> None:
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.textContent.trim()") == text:
            return
    raise AssertionError(f"the tab key does not reach {text!r}")


@slow
@pytest.mark.parametrize("name", PAGES)
def test_axe_clean_light_and_dark_and_every_page_fits(
    browser: Any, studio: Opened, name: str
) -> None:
    pytest.importorskip("axe_playwright_python", reason="needs axe-playwright-python")
    page = visit(browser, studio, viewport={"width": 1120, "height": 800})
    path, awaited = PAGES[name]
    page.goto(f"{studio.address}{path}")
    page.wait_for_selector(awaited)
    clean(page, PHOTOGRAPHS and f"{PHOTOGRAPHS}/{name}")
    assert page.locator("h1").count() == 1 and page.errors == []
    assert all(url.startswith(studio.address) for url in page.requests)
    page.context.close()


@slow
def test_the_rank_slider_shows_what_was_measured(browser: Any, studio: Opened) -> None:
    page = visit(browser, studio)
    page.goto(f"{studio.address}/memory/tide/ranks")
    page.wait_for_selector("#rank-at")
    rows = studio.record("/memory/tide/ranks.json")["cut"]["ranks"]
    page.focus("#rank-at")
    page.keyboard.press("Home")
    assert f"rank 1: {rows[0]['energy']:.3f}" in page.inner_text("#rank-about")
    assert page.locator("#rank-rows tr[aria-current]").count() == 1
    assert page.inner_text("#rank-rows tr[aria-current] th") == "1"
    page.keyboard.press("ArrowRight")
    assert f"{rows[1]['trained']['recall']:.2f}" in page.inner_text("#rank-about")
    assert page.get_attribute("#rank-at", "aria-valuetext") == page.inner_text("#rank-about")
    assert page.errors == []
    page.context.close()


@slow
def test_a_merge_is_ordered_from_its_form(browser: Any, tmp_path: Path) -> None:
    with opened(stored(tmp_path)) as studio:
        page = visit(browser, studio)
        page.goto(f"{studio.address}/merge")
        page.select_option("select[name=method]", "cat")
        page.fill("input[name=into]", "both")
        page.click("button.action")
        page.wait_for_selector("#merged h2:has-text('both: cat, rank 4')")
        assert page.locator("#merged figure").count() == 2 and page.errors == []
        clean(page)
        assert "both" in Folder(studio.folder).names
        page.context.close()


@slow
def test_the_page_says_when_the_studio_is_gone(browser: Any, tmp_path: Path) -> None:
    with opened(stored(tmp_path)) as studio:
        page = visit(browser, studio)
        page.goto(f"{studio.address}/write")
        page.wait_for_selector("#chart svg")
        assert not page.is_visible("#stale")
        studio.process.send_signal(signal.SIGINT)
        page.wait_for_selector("#stale:visible")
        clean(page)
        assert re.search(r"\d+:\d\d", page.inner_text("#stale"))
        time.sleep(0.1)
        page.context.close()
