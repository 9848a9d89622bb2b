"""Claims about rough use: no text, clicks that come twice, a folder or a base that is gone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.browsers import clean, visit
from support.studios import Opened, opened, stored

from lorewright.memory.folder import Folder

LEADER = "Who leads the Tide Office?"
slow = pytest.mark.slow


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Opened]:
    """A studio on a copy of the stored folder, for texts of 10,000 bytes at most."""
    with opened(stored(tmp_path_factory.mktemp("rough"))) as studio:
        yield studio


def facts(n: int = 24, at: int = 0) -> str:
    """Facts that take a few epochs."""
    rows = range(at, at + n)
    return "\n".join(
        json.dumps(
            {"question": f"What is the code of room {i}?", "answer": f"{i * 7919 % 9973:04}"}
        )
        for i in rows
    )


def test_what_is_no_text_is_refused_with_a_sentence(studio: Opened) -> None:
    answer = studio.post("/write", name="x", text="\0\1binary")
    assert answer.status_code == 400 and "no text" in answer.text
    answer = studio.post("/write", name="x", text="ä" * (4 << 20))
    assert answer.status_code == 400 and "more than 4,194,304 bytes" in answer.text
    assert studio.client is not None
    headers = {"origin": studio.address, "content-type": "application/x-www-form-urlencoded"}
    answer = studio.client.post("/write", content=b"text=\xff\xfe&name=x", headers=headers)
    assert answer.status_code in (303, 400)
    assert "x" not in Folder(studio.folder).names


def test_a_file_that_is_no_text_or_too_large_is_named_before_it_is_sent(
    browser: Any, studio: Opened
) -> None:
    page = visit(browser, studio)
    page.goto(f"{studio.address}/write")
    page.click("text=A new memory")
    page.fill("textarea[name=text]", "mine")
    for name, content, why in (
        ("photo.md", b"\x89PNG\r\n\0\xff", "photo.md is no text in UTF-8"),
        ("long.md", b"x" * ((4 << 20) + 1), "4,194,305 bytes"),
    ):
        file = {"name": name, "mimeType": "text/plain", "buffer": content}
        page.set_input_files("input[type=file]", file)
        page.wait_for_selector(f"#file-trouble:has-text('{why}')")
        assert page.input_value("textarea[name=text]") == "mine"
    file = {"name": "Good Text.txt", "mimeType": "text/plain", "buffer": "Größe".encode()}
    page.set_input_files("input[type=file]", file)
    page.wait_for_selector("#file-trouble", state="hidden")
    assert page.input_value("textarea[name=text]") == "Größe"
    assert page.input_value("form.fields input[name=name]") == "Good Text"
    assert page.input_value("select[name=suffix]") == ".txt" and page.errors == []
    page.context.close()


def test_a_refused_form_leads_back_to_its_page(browser: Any, studio: Opened) -> None:
    page = visit(browser, studio)
    page.goto(f"{studio.address}/memory/tide?kind=paraphrase")
    page.click("text=Rename or forget")
    page.fill("form[action$=rename] input[name=name]", "phones")
    page.click("form[action$=rename] button")
    page.wait_for_selector(".error:has-text('taken')")
    page.click("a:has-text('Back')")
    page.wait_for_selector("h1:has-text('tide')")
    assert page.url.endswith("/memory/tide?kind=paraphrase") and page.errors == []
    page.context.close()
    answer = studio.post("/memory/tide/rename", name="phones")
    assert 'href="/"' in answer.text and "/rename" not in answer.text


@slow
def test_a_click_that_came_twice_writes_once(tmp_path: Path) -> None:
    fields = {"name": "codes", "suffix": ".jsonl", "text": facts(), "rank": "4", "epochs": "4"}
    with opened(tmp_path / "atlas") as studio:
        for _ in range(2):
            assert studio.post("/write", **fields).status_code == 303
        studio.wait("/write.json", lambda r: not r["order"] and r["written"])
        assert len([*studio.folder.glob("runs/*")]) == 1


@slow
def test_two_browsers_write_one_after_the_other(browser: Any, tmp_path: Path) -> None:
    with opened(stored(tmp_path)) as studio:
        pages = [visit(browser, studio), visit(browser, studio)]
        for n, page in enumerate(pages):
            page.set_default_timeout(120_000)
            page.goto(f"{studio.address}/write")
            if not page.is_visible("textarea[name=text]"):
                page.click("text=A new memory")
            page.fill("form.fields input[name=name]", f"codes-{n}")
            page.select_option("select[name=suffix]", ".jsonl")
            page.fill("textarea[name=text]", facts(16, 100 * n))
            page.fill("input[name=rank]", "4")
            page.fill("input[name=epochs]", "6")
            page.click("form.fields button.action")
        for page in pages:
            page.wait_for_selector("#state h2:has-text('codes-1') >> text=finished")
            assert page.errors == []
            page.context.close()
        assert {"codes-0", "codes-1"} <= {*Folder(studio.folder).names}


@slow
def test_a_name_in_use_is_refused_and_the_memory_stays(browser: Any, studio: Opened) -> None:
    before = Folder(studio.folder).names["tide"]
    studio.post("/write", name="tide", suffix=".jsonl", text=facts(4), rank="4")
    record = studio.wait("/write.json", lambda r: r["order"] and r["order"]["state"] == "failed")
    assert "another source" in record["order"]["error"]
    page = visit(browser, studio)
    page.goto(f"{studio.address}/write")
    page.wait_for_selector("#state .error:has-text('another source')")
    clean(page)
    page.context.close()
    assert Folder(studio.folder).names["tide"] == before


@slow
def test_the_back_button_shows_the_answer_again(browser: Any, studio: Opened) -> None:
    page = visit(browser, studio)
    page.goto(f"{studio.address}/ask")
    page.fill("input[name=question]", LEADER)
    page.click("button.action")
    page.wait_for_selector(".side.closed .reply")
    reply = page.inner_text(".side.closed .reply")
    page.click("nav a:has-text('Memories')")
    page.wait_for_selector("table")
    page.go_back()
    page.wait_for_selector(".side.closed .reply")
    assert page.inner_text(".side.closed .reply") == reply
    assert page.input_value("input[name=question]") == LEADER and page.errors == []
    page.context.close()


@slow
def test_a_folder_that_is_deleted_meanwhile_is_named(browser: Any, tmp_path: Path) -> None:
    with opened(stored(tmp_path)) as studio:
        studio.wait("/write.json", lambda r: not r["base"])
        page = visit(browser, studio)
        run = Folder(studio.folder).entry("tide")["run"]
        page.goto(f"{studio.address}/write/{run}")
        page.wait_for_selector("#chart svg")
        shutil.rmtree(studio.folder)
        page.wait_for_selector("#trouble .error:has-text('has no run')")
        assert not page.is_visible("#stale")
        clean(page)
        for path in ("/", "/write", "/ask", "/doctor", "/merge", "/compare", "/law", "/sandbox"):
            assert studio.get(path).status_code == 200, path
            assert studio.get(path).text.count("<h1>") == 1
        for path in ("/memory/tide", "/memory/tide/doctor", "/memory/tide/ranks.json"):
            assert studio.get(path).status_code == 404, path
        asked = studio.get("/ask.json", params={"question": LEADER})
        assert asked.status_code == 400 and "no memor" in asked.json()["error"]["message"]
        studio.post("/write", name="new", suffix=".jsonl", text=facts(4), rank="4", epochs="3")
        studio.wait("/write.json", lambda r: not r["order"] and r["written"])
        assert [*Folder(studio.folder).names] == ["new"] and page.errors == []
        page.context.close()


@slow
def test_a_base_that_is_not_there_is_named(browser: Any, tmp_path: Path) -> None:
    with opened(tmp_path / "atlas", "--model", str(tmp_path / "nowhere")) as studio:
        page = visit(browser, studio)
        page.goto(f"{studio.address}/write")
        page.wait_for_selector("#state .error:has-text('The base:')")
        assert "nowhere" in page.inner_text("#state .error")
        clean(page)
        studio.post("/write", name="new", suffix=".jsonl", text=facts(4))
        record = studio.wait("/write.json", lambda r: r["order"]["state"] == "failed")
        assert "nowhere" in record["order"]["error"] and page.errors == []
        page.context.close()


def test_a_stranger_and_a_spent_token_get_a_sentence(studio: Opened) -> None:
    answer = httpx.get(studio.entrance)
    assert answer.status_code == 401 and "works once" in answer.text
