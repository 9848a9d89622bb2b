"""Claims about pages in every state that a user reaches: readable in both themes, and narrow.

Photographed as well with LOREWRIGHT_PHOTOGRAPHS=FOLDER.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.browsers import clean, visit
from support.studios import Opened, opened, stored

from lorewright.files import read_object, save_json
from lorewright.memory.experiments import EXPERIMENTS
from lorewright.memory.folder import Folder

PHOTOGRAPHS = os.environ.get("LOREWRIGHT_PHOTOGRAPHS", "")
LEADER = "Who leads the Tide Office?"
LONG = "a" * 60
FACTS = "\n".join(
    json.dumps({"question": f"What is the code of room {i}?", "answer": f"{i * 7919 % 9973:04}"})
    for i in range(64)
)
slow = pytest.mark.slow


def photographs(name: str) -> str:
    """How files of photographs begin; empty where none are wanted."""
    return PHOTOGRAPHS and f"{PHOTOGRAPHS}/state-{name}"


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Opened]:
    """A studio on a copy of the stored folder, with a memory of a long name."""
    folder = stored(tmp_path_factory.mktemp("states"))
    index = read_object(folder / "memory.json", "")
    index["memories"][LONG] = index["memories"]["tide"]
    save_json(index, folder / "memory.json")
    with opened(folder) as studio:
        yield studio


def trace(page: Any) -> None:
    page.click("button:has-text('tokens') >> nth=0")
    page.wait_for_selector(".strip")
    page.focus(".strip")
    page.keyboard.press("ArrowRight")


def refuse(page: Any) -> None:
    page.click("text=Rename or forget")
    page.fill("input[name=typed]", "another")
    page.click("button.danger")
    page.wait_for_selector("#forgotten .error")
    page.wait_for_selector("#forgotten button:has-text('Try again')")


def verify(page: Any) -> None:
    page.click("text=Take the verdict again")
    page.wait_for_selector("#again .skeleton, #again svg")
    page.wait_for_selector("#again svg")


def unfold(page: Any) -> None:
    page.evaluate(
        "document.querySelectorAll('main details').forEach((each) => { each.open = true; })"
    )


def search(page: Any) -> None:
    page.fill("input[name=q]", "nothing of this name")
    page.click("text=Show >> nth=0")
    page.wait_for_selector("text=No memory has")


def disagree(page: Any) -> None:
    page.click("text=Look for contradictions")
    page.wait_for_selector("#disagreements > *:not(.skeleton)")


def help_(page: Any) -> None:
    page.keyboard.press("?")
    page.wait_for_selector("#help[open]")


def ask_none(page: Any) -> None:
    page.fill("input[name=question]", "Which whale is the largest?")
    page.click("button.action")
    page.wait_for_selector("text=No memory answers")


def plane_of_one(page: Any) -> None:
    page.wait_for_selector("[data-arrows]")
    for each in reversed(page.locator("[data-take]:checked").all()[1:]):
        each.uncheck()
    page.wait_for_selector("text=Choose two memories")


def refuse_budget(page: Any) -> None:
    page.wait_for_selector("#account svg")
    page.fill("textarea[name=config]", "{")
    page.click("button.action")
    page.wait_for_selector("#account .error")


def predict(page: Any) -> None:
    page.wait_for_selector("#predicted dd[data-value]")
    unfold(page)


def plan(page: Any) -> None:
    page.fill("form[data-into=plan] textarea[name=text]", "The Grain Mill is owned by Bram Vell.")
    page.click("form[data-into=plan] button.action")
    page.wait_for_selector("#plan .skeleton, #plan table")
    page.wait_for_selector("#plan table", timeout=120_000)


def refuse_plan(page: Any) -> None:
    page.fill("form[data-into=plan] textarea[name=text]", " ")
    page.click("form[data-into=plan] button.action")
    page.wait_for_selector("#plan .error")


def binary(page: Any) -> None:
    unfold(page)
    page.set_input_files(
        "input[type=file]",
        {"name": "photo.png", "mimeType": "image/png", "buffer": b"\x89PNG\r\n\0\xff"},
    )
    page.wait_for_selector("#file-trouble:visible")


def layer(page: Any) -> None:
    page.wait_for_selector("#layer figure")
    unfold(page)


STATES: dict[str, tuple[str, Callable[[Any], None]]] = {
    "trace": ("/memory/tide", trace),
    "forget-refused": ("/memory/tide", refuse),
    "verified": ("/memory/tide", verify),
    "memory-unfolded": ("/memory/tide", unfold),
    "memory-long": (f"/memory/{LONG}", unfold),
    "memory-failed-only": ("/memory/tide?failed=1", unfold),
    "memories-none-match": ("/", search),
    "contradictions": ("/", disagree),
    "help": ("/", help_),
    "write-unfolded": ("/write", unfold),
    "write-binary": ("/write", binary),
    "ask-none": ("/ask", ask_none),
    "plane-of-one": ("/merge", plane_of_one),
    "budget-refused": ("/budget", refuse_budget),
    "law-unfolded": ("/law?form=paper_without_offset&data=law_qwen_r100", predict),
    "plan": ("/law?form=paper_without_offset", plan),
    "plan-refused": ("/law?form=paper_without_offset", refuse_plan),
    "ranks-unfolded": ("/memory/tide/ranks", layer),
    "trace-alone": (f"/memory/tide/trace?question={LEADER}&answer=Maren", lambda page: None),
    "forget-alone": ("/memory/nobody/doctor", lambda page: None),
    "method-not-allowed": ("/write/stop", lambda page: None),
}


@slow
@pytest.mark.parametrize("name", STATES)
def test_every_state_is_clean(browser: Any, studio: Opened, name: str) -> None:
    path, reach = STATES[name]
    page = visit(browser, studio)
    page.goto(f"{studio.address}{path}")
    reach(page)
    clean(page, photographs(name))
    assert page.locator("h1").count() == 1 and page.errors == []
    page.context.close()


@slow
def test_a_write_is_clean_while_it_waits_trains_fails_and_ends(
    browser: Any, tmp_path: Path
) -> None:
    with opened(tmp_path / "atlas") as studio:
        page = visit(browser, studio)
        page.goto(studio.address)
        page.wait_for_selector("text=No memory yet")
        clean(page, photographs("offer"))
        for path in ("/ask", "/doctor", "/merge", "/compare", "/write"):
            page.goto(f"{studio.address}{path}")
            clean(page, photographs(f"empty{path.replace('/', '-')}"))
        studio.post("/write", name="broken", suffix=".jsonl", text="{no JSON")
        page.wait_for_selector("#state .error:has-text('broken.jsonl line 1 is not valid JSON')")
        assert "/tmp" not in page.inner_text("#state .error")
        clean(page, photographs("write-failed"))
        studio.post("/write", name=LONG, suffix=".jsonl", text=FACTS, epochs="200", rank="4")
        page.wait_for_selector("#controls button:has-text('Stop')")
        page.wait_for_selector("#chart svg")
        unfold(page)
        clean(page, photographs("write-trains"))
        page.click("text=Stop after this epoch")
        page.wait_for_selector("#state >> text=finished")
        page.wait_for_selector("text=Go on with it")
        clean(page, photographs("write-stopped"))
        run = Folder(studio.folder).run_path(studio.record("/write.json")["written"]["run"])
        report = (run / "report.json").read_bytes()
        (run / "report.json").unlink()
        page.wait_for_selector("#state >> text=interrupted")
        clean(page, photographs("write-interrupted"))
        (run / "report.json").write_bytes(report)
        page.goto(f"{studio.address}/")
        page.wait_for_selector("table")
        clean(page, photographs("memories-long"))
        assert page.errors == []
        page.context.close()


@slow
def test_experiments_are_clean_in_every_state(browser: Any, studio: Opened) -> None:
    share = {"recall": 0.5, "n": 40, "low": 0.35, "high": 0.65}
    chosen = EXPERIMENTS["merging"]
    page, place = visit(browser, studio), studio.cache / "sandbox" / "merging"
    page.goto(f"{studio.address}/sandbox/merging")
    about = {"base": "pocket", "n_facts": 12, "arms": ["source 1", "source 2", "mean"]}
    save_json(about, place / "about.json")
    page.reload()
    clean(page, photographs("sandbox-begun"))
    rows = [
        {
            "epoch": n,
            "epochs": 9,
            "loss_nats": 3 / n,
            "job": job,
            "n_examples": 40,
            "n_recalled": n,
            "held_out_nats": 4 / n,
            "held_out_recalled": 1,
            "n_held_out": 12,
        }
        for job in (0, 1)
        for n in (1, 2, 3)
    ]
    (place / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    outcomes = [{"arm": arm, "trained": share, "held": share} for arm in about["arms"]]
    save_json({"outcomes": outcomes, "sentence": chosen.expected}, place / "record.json")
    page.reload()
    page.wait_for_selector(".arms figure")
    clean(page, photographs("sandbox-over"))
    page.context.close()
