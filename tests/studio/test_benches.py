"""Claims about the pages that predict, compare, mend and merge, as a browser shows them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.browsers import clean, visit
from support.commands import Lore
from support.studios import ROOT, Opened, opened, stored

from lorewright.files import load_jsonl, save_json
from lorewright.memory.failures import FAILURES, SOUND, name_of
from lorewright.memory.folder import Folder
from lorewright.models.model import Model

LEADER = "Who leads the Tide Office?"
LAW = ROOT / "examples" / "law_qwen_r100.csv"
QUICK_FORM = "paper_without_offset"
slow = pytest.mark.slow


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Opened]:
    """A studio on a copy of the stored folder."""
    with opened(stored(tmp_path_factory.mktemp("benches"))) as studio:
        yield studio


# -- law -------------------------------------------------------------------------------------------


def test_slider_equals_law_predict(browser: Any, studio: Opened, lore: Lore) -> None:
    page = visit(browser, studio)
    page.goto(f"{studio.address}/law?form={QUICK_FORM}&data=law_qwen_r100")
    page.wait_for_selector("#predicted dd[data-value]")
    page.evaluate(
        """() => { for (const [name, value] of [["tokens", 3000], ["rank", 8]]) {
          const input = document.querySelector(`form.sliders input[name=${name}]`);
          input.value = value;
          input.dispatchEvent(new Event("input", { bubbles: true }));
        } }"""
    )
    page.wait_for_selector("#predicted code:has-text('--tokens 3000 --rank 8')")
    shown = float(page.get_attribute("#predicted dd[data-value]", "data-value"))
    how = ("--from", LAW, "--form", QUICK_FORM, "--tokens", 3000)
    printed = lore("law", "predict", *how, "--rank", 8, "--json").json
    assert shown == printed["value"]
    low, high = (f"{printed[key]:.4g}" for key in ("low", "high"))
    assert f"[{low}, {high}]" in page.inner_text("#predicted dl")
    query = {"data": "law_qwen_r100", "form": QUICK_FORM, "tokens": "3000", "wanted": "4"}
    record = studio.record("/law/predict.json", **query)["predicted"]
    needed = lore("law", "predict", *how, "--wanted", 4, "--json").json
    assert record["needed"] == {key: needed[key] for key in ("size", "low", "high")}
    assert page.errors == []
    page.context.close()


def test_a_slider_step_takes_a_fifth_of_a_second(studio: Opened) -> None:
    query = {"data": "law_qwen_r100", "form": QUICK_FORM, "tokens": "3000"}
    studio.record("/law/predict.json", **query)
    seconds = []
    for rank in range(1, 12):
        began = time.perf_counter()
        studio.record("/law/predict.json", rank=str(rank), **query)
        seconds.append(time.perf_counter() - began)
    assert sorted(seconds)[len(seconds) // 2] < 0.2


@slow
def test_a_table_that_was_pasted_has_a_law_of_its_own(studio: Opened, lore: Lore) -> None:
    lines = LAW.read_text().splitlines()
    answer = studio.post("/law", csv="\n".join(lines[:40]))
    assert answer.status_code == 303
    name = answer.headers["location"].partition("data=")[2]
    record = studio.record("/law.json", data=name, form=QUICK_FORM)
    assert record["about"]["n_cells"] == 39 and record["refused"] == ""
    html = studio.get("/law", params={"data": name, "form": QUICK_FORM, "wait": "1"}).text
    for each in record["about"]["law"]["constants"].values():
        assert f"{each['value']:.4g}" in html and f"{each['low']:.4g}" in html
    held = studio.record("/law.json", form=QUICK_FORM, data="law_qwen_r100", above_rank="8")
    args = ("--above-rank", 8, "--draws", 0, "--json")
    printed = lore("law", "fit", "--from", LAW, *args).json["laws"][QUICK_FORM]["held_out"]
    assert held["about"]["law"]["held_out"]["mape"] == pytest.approx(printed["mape"])
    for csv, why in (("", "no table"), ("rank,n\n1,2", "missing")):
        refused = studio.post("/law", csv=csv)
        assert refused.status_code == 400 and why in refused.text
    missing = studio.get("/law.json", params={"data": "own-none"})
    assert "paste yours again" in missing.json()["error"]["message"]


# -- curves and replies ----------------------------------------------------------------------------


def test_curve_equals_metrics_file(browser: Any, studio: Opened) -> None:
    folder = Folder(studio.folder)
    run = str(folder.entry("tide")["run"])
    rows = load_jsonl(folder.run_path(run) / "metrics.jsonl")
    page = visit(browser, studio)
    page.goto(f"{studio.address}/write/{run}")
    page.click("text=The epochs as a table")
    cells = page.locator("#points tbody tr").all_inner_texts()
    assert len(cells) == len(rows)
    for cell, row in zip(cells, rows, strict=True):
        assert cell.split()[:2] == [str(row["epoch"]), f"{row['loss_nats']:.4f}"]
        assert f"{row['n_recalled']}/{row['n_examples']}" in cell
    drawn = page.get_attribute("#chart polyline.train >> nth=0", "points").split()
    heights = [float(point.split(",")[1]) for point in drawn]
    order = sorted(range(len(rows)), key=lambda n: -rows[n]["loss_nats"])
    assert [heights[n] for n in order] == sorted(heights)
    page.context.close()


def test_base_column_has_no_adapter(studio: Opened) -> None:
    replies = studio.record("/ask.json", question=LEADER, memory="tide")["sides"]["replies"]
    (alone,) = Model.load().generate([LEADER])
    assert replies["base"]["memory"] == "" and replies["base"]["text"] == alone.strip()
    assert replies["closed"]["text"] != replies["base"]["text"]


# -- merging ---------------------------------------------------------------------------------------


def _drag(page: Any, tip: str, dx: float, dy: float) -> None:
    box = page.locator(tip).bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + dx, y + dy, steps=4)
    page.mouse.up()


@slow
def test_drag_equals_fields_equals_cli(browser: Any, studio: Opened, lore: Lore) -> None:
    page = visit(browser, studio, viewport={"width": 1120, "height": 900})
    page.goto(f"{studio.address}/merge")
    page.wait_for_selector("[data-arrows]")
    _drag(page, "[data-tip='0']", 0, 160)  # down, through the middle: a negative weight
    weight = float(page.input_value("[data-factor=phones]"))
    assert weight < 0 and page.get_attribute("[data-tip='0']", "aria-valuenow") == f"{weight:g}"
    page.fill("[data-factor=tide]", "0.5")
    weights = f"{weight:g},0.5"
    printed = lore("plane", studio.folder, "phones", "tide", "--weights", weights, "--json").json
    at = {each["method"]: each["at"] for each in printed["landings"]}
    for method in ("task_arithmetic", "mean", "ties"):
        shown = ", ".join(f"{round(each, 3) + 0.0:.3f}" for each in at[method])
        page.wait_for_selector(f"tr[data-at={method}] td:text-is('{shown}')")
    record = studio.record("/merge/plane.json", names="phones,tide", weights=weights)["plane"]
    for each in record["landings"]:
        assert each["at"] == pytest.approx(at[each["method"]], abs=1e-6)
    page.focus("[data-tip='1']")
    page.keyboard.press("ArrowRight")
    assert page.input_value("[data-factor=tide]") == "0.55" and page.errors == []
    page.context.close()


@slow
def test_a_sketch_runs_the_same_algebra(browser: Any, studio: Opened, lore: Lore) -> None:
    page = visit(browser, studio)
    page.goto(f"{studio.address}/merge/sketch")
    page.wait_for_selector("[data-arrows=sketch]")
    page.focus("[data-tip='0']")
    page.keyboard.press("ArrowUp")
    assert page.input_value("[data-y='0']") == "0.3" and page.errors == []
    printed = lore("sketch", "0.9,0.3", "-0.2,0.8", "--json")
    record = studio.record("/merge/sketch.json", vectors="0.9,0.3 -0.2,0.8")["sketch"]
    wanted = printed.json["points"] if printed.code == 0 else {}
    ran = lore("sketch", "--json", "--", "0.9,0.3", "-0.2,0.8").json["points"]
    assert all(wanted.get(k, v) == v for k, v in ran.items())
    assert record["points"] == {k: v for k, v in ran.items() if k in record["points"]}
    wrong = studio.get("/merge/sketch.json", params={"vectors": "1"})
    assert wrong.status_code == 400
    page.context.close()


@slow
def test_three_are_trained_and_drawn(tmp_path: Path) -> None:
    with opened(tmp_path / "atlas") as studio:
        assert studio.post("/merge/three").status_code == 303
        studio.wait("/merge.json", lambda r: len(r["names"]) == 3 and not r["three"])
        plane = studio.record("/merge/plane.json", names="archive,clinic,ferry")["plane"]
        assert len(plane["at"]) == 3 and min(plane["in_plane"]) > 0.4
        for row, own in zip(plane["cosines"], range(3), strict=True):
            assert row[own] == pytest.approx(1.0)


# -- the doctor ------------------------------------------------------------------------------------


@slow
def test_each_broken_adapter_lights_its_leaf_and_mend_button_mends(
    browser: Any, tmp_path: Path, lore: Lore
) -> None:
    with opened(tmp_path / "atlas") as studio:
        for name, failure in FAILURES.items():
            began = time.monotonic()
            assert studio.post(f"/failure/{name}").status_code == 303
            record = studio.wait(f"/failure/{name}.json", lambda r: r["there"])
            assert time.monotonic() - began < 4 * 60  # on a machine that does other things as well
            assert record["memory"] == name_of(name) and record["written"]["epochs"]
            assert bool(record["sound"]) == (name != SOUND)
            diagnosis = studio.record(f"/memory/{name_of(name)}/doctor.json")["diagnosis"]
            lit = [each["check"] for each in diagnosis["tree"] if each["outcome"] == "failed"]
            assert lit[:1] == ([failure.finds] if failure.finds else [])
            assert bool(diagnosis["mends"]) == bool(failure.finds)
        printed = lore("failure", tmp_path / "other", name, "--json").json
        trees = [
            [{key: each[key] for key in each.keys() - {"remedy"}} for each in own["tree"]]
            for own in (printed, diagnosis)
        ]
        assert trees[0] == trees[1] and name == "wording"  # remedies name each its own folder
        page = visit(browser, studio)
        page.set_default_timeout(120_000)
        page.goto(f"{studio.address}/failure/wording")
        page.wait_for_selector("#check-one_form.failed")
        clean(page)
        assert page.locator("#failing .behind polyline").count() >= 2
        page.click("text=Run what mends it")
        page.wait_for_selector("#mended :text('Nothing is wrong.')")
        clean(page)
        after = studio.record("/memory/failure-wording/doctor.json")["diagnosis"]
        assert after["findings"] == [] and page.errors == []
        page.context.close()


# -- compare ---------------------------------------------------------------------------------------


@slow
def test_points_are_those_of_the_command_line(studio: Opened, lore: Lore) -> None:
    studio.wait("/compare.json", lambda r: r["n_base"])
    for small in ("0", "0.9"):
        record = studio.record("/compare.json", small=small)
        printed = lore("costs", studio.folder, "--small", small, "--json").json
        assert record["points"] == printed["points"] and record["claims"] == printed["claims"]
    assert [p["memory"] for p in record["points"]] == ["tide", "phones"]  # the smaller one first


@slow
def test_compare_point_is_measured(browser: Any, tmp_path: Path) -> None:
    records = tmp_path / "records" / "methods"
    share = {"n": 4, "mean": 0.5, "low": 0.1, "high": 0.9}
    entry = {"method": "prefix@16", "facts": 4, "control": "own", "seconds": 1.5}
    entry |= {"recall": share, "retained": share}
    about = {"bench": "methods", "command": "lore bench methods --out m", "entries": [entry]}
    save_json(about, records / "summary.json")
    with opened(stored(tmp_path), "--records", str(tmp_path / "records")) as studio:
        page = visit(browser, studio)
        page.set_default_timeout(120_000)
        page.goto(f"{studio.address}/compare")
        assert "prefix@16" in page.inner_text(
            "main"
        ) and "0.50 [0.10, 0.90] n=4" in page.inner_text("main")
        page.select_option("select[name=source]", "phones")
        page.select_option("select[name=method]", "gradient")
        page.click("text=Measure this point >> nth=-1")
        page.wait_for_selector("#points b:has-text('phones-gradient')")
        folder = Folder(studio.folder)
        card = folder.card(folder.entry("phones-gradient")["adapter"])
        points = studio.record("/compare.json")["points"]
        (point,) = [each for each in points if each["memory"] == "phones-gradient"]
        recall = card["report"]["recall"][point["kind"]]
        assert point["recall"] == recall["memory"] and point["base"] == recall["base"]
        assert point["seconds"] == card["training"]["seconds"]
        assert point["source"] == folder.entry("phones")["source"]
        assert page.locator("circle[data-memory=phones-gradient]").count() == 1
        shown = recall["memory"]
        text = f"{shown['recall']:.2f} [{shown['low']:.2f}, {shown['high']:.2f}] n={shown['n']}"
        assert text in page.inner_text("#points table") and page.errors == []
        clean(page)
        again = studio.post("/compare/measure", source="phones", method="gradient")
        assert again.status_code == 400 and "measured already" in again.text
        page.context.close()


# -- everywhere ------------------------------------------------------------------------------------


def test_no_request_leaves(browser: Any, studio: Opened) -> None:
    page = visit(browser, studio)
    paths = ("/", "/write", "/memory/tide", "/ask", "/doctor", "/merge", "/compare", "/sandbox")
    for path in (*paths, "/budget", f"/law?form={QUICK_FORM}", "/failure/rank"):
        page.goto(f"{studio.address}{path}")
        page.wait_for_selector("h1")
    assert len(page.requests) > 30 and page.errors == []
    assert all(url.startswith(studio.address) for url in page.requests), page.requests
    page.context.close()


def test_a_snapshot_is_that_of_the_folder(studio: Opened, tmp_path: Path, lore: Lore) -> None:
    answer = studio.get("/snapshot")
    assert answer.status_code == 200 and "attachment" in answer.headers["content-disposition"]
    path = tmp_path / "atlas.tar.gz"
    path.write_bytes(answer.content)
    restored = json.loads(lore("restore", path, "--into", tmp_path / "again", "--json").out)
    assert restored["n_memories"] == 2
    assert Folder(tmp_path / "again").names == Folder(studio.folder).names
