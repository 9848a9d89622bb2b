"""Claims about the studio over HTTP: who gets in, what pages say, and that they say it in JSON."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from html import escape, unescape
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.commands import Lore, refused
from support.studios import ROOT, Opened, opened, stored

from lorewright.adapters.adapter import load
from lorewright.adapters.proof import delta_norms
from lorewright.files import dump_jsonl, load_jsonl, read_object, save_json
from lorewright.memory.experiments import EXPERIMENTS
from lorewright.memory.folder import Folder
from lorewright.merging.algebra import merge
from lorewright.merging.methods import METHODS
from lorewright.studio.access import POLICY, Gate
from lorewright.studio.app import MERGES, OBJECTIVES
from lorewright.studio.config import StudioConfig, read_token

LEADER = "Who leads the Tide Office?"
PAGES = (
    *("/", "/write", "/ask", "/budget", "/sandbox", "/merge", "/memory/tide", "/memory/phones"),
    *("/law", "/compare", "/doctor", "/failure/rank", "/merge/sketch"),
)


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Opened]:
    """A studio on a copy of the stored folder."""
    with opened(stored(tmp_path_factory.mktemp("studio"))) as studio:
        yield studio


# -- who gets in ----------------------------------------------------------------------------------


def test_the_token_works_once_and_without_the_cookie_nothing_is_shown(studio: Opened) -> None:
    with httpx.Client(base_url=studio.address) as stranger:
        for path in (*PAGES, "/memories.json", "/static/studio.js", studio.entrance):
            answer = stranger.get(path)
            assert answer.status_code == 401 and "tide" not in answer.text, path
        assert stranger.get("/", params={"token": "x"}).status_code == 401
        assert stranger.post("/write", data={"example": "handbook"}).status_code == 401


def test_foreign_origin_refused_on_http_and_socket(studio: Opened) -> None:
    assert studio.client is not None
    for headers in (
        {"origin": "http://evil.example"},
        {"origin": studio.address.replace("127.0.0.1", "localhost")},
        {"host": "evil.example"},
        {"origin": "null"},
    ):
        assert studio.client.get("/", headers=headers).status_code == 403, headers
        answer = studio.client.post("/memory/tide/forget", data={"typed": "tide"}, headers=headers)
        assert answer.status_code == 403
    assert "tide" in Folder(studio.folder).names
    socket = {"connection": "upgrade", "upgrade": "websocket", "sec-websocket-version": "13"}
    key = {"sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ=="}
    for origin, status in (("http://evil.example", 403), (studio.address, 200)):
        headers = socket | key | {"origin": origin}
        with studio.client.stream("GET", "/write/events", headers=headers) as answer:
            assert answer.status_code == status  # 101 would be a socket; there are none


def test_a_socket_is_closed_before_it_is_open() -> None:
    sent: list[dict[str, Any]] = []

    async def never(*_: Any) -> None:
        raise AssertionError("the pages were reached")

    async def receive() -> dict[str, Any]:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    gate = Gate(never, StudioConfig(), "t" * 20, once=True)
    headers = [(b"host", b"localhost:1"), (b"origin", b"http://localhost:1")]
    scope = {"type": "websocket", "path": "/", "headers": headers, "query_string": b""}
    asyncio.run(gate(scope, receive, send))
    assert [message["type"] for message in sent] == ["websocket.close"]


def test_pages_carry_the_policy_and_load_nothing_from_elsewhere(studio: Opened) -> None:
    for path in PAGES:
        answer = studio.get(path)
        assert answer.status_code == 200
        assert answer.headers["content-security-policy"] == POLICY
        assert answer.headers["cache-control"] == "no-store"
        addresses = re.findall(r'(?:src|href|action|data-\w+)="([^"]+)"', answer.text)
        assert addresses and all("//" not in address for address in addresses)
        assert "<style" not in answer.text and not re.search(r"\sstyle=", answer.text)
        assert not re.search(r"<script(?! src=)|\son\w+=", answer.text)
    cookie = httpx.get(studio.entrance).headers.get("set-cookie")
    assert cookie is None  # the token was spent


def test_another_host_needs_a_token_file_that_cannot_be_guessed(lore: Lore, tmp_path: Path) -> None:
    refused(lore("studio", tmp_path / "a", "--host", "0.0.0.0", "--port", "0"), "ConfigError")
    (tmp_path / "token").write_text("short\n")
    args = ("--host", "0.0.0.0", "--token-file", tmp_path / "token")
    refused(lore("studio", tmp_path / "a", *args), "ConfigError")
    (tmp_path / "token").write_text("x" * 32 + "\n")
    assert read_token(tmp_path / "token") == "x" * 32


def test_a_folder_of_something_else_is_refused(lore: Lore, tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("private")
    refused(lore("studio", tmp_path), "DataError", "other files")


def test_the_server_loads_no_torch_and_no_index(tmp_path: Path) -> None:
    code = "import sys; import lorewright.studio.server\n"
    code += "assert not {'torch', 'transformers', 'bm25s', 'scipy'} & sys.modules.keys()"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, cwd=tmp_path)


# -- what pages say -------------------------------------------------------------------------------


def numbers(record: Any) -> Iterator[str]:
    """Shares of a record as pages print them, and names."""
    if isinstance(record, dict):
        if {"recall", "low", "high", "n"} <= record.keys() and record["recall"] is not None:
            yield f"{record['recall']:.2f} [{record['low']:.2f}, {record['high']:.2f}]"
            yield f"n={record['n']}"
        for value in record.values():
            yield from numbers(value)
    if isinstance(record, list):
        for value in record:
            yield from numbers(value)


@pytest.mark.parametrize(
    ("page", "twin"),
    [
        ("/", "/memories.json"),
        ("/write", "/write.json"),
        ("/memory/tide", "/memory/tide.json"),
        ("/memory/phones", "/memory/phones.json"),
        ("/compare", "/compare.json"),
        ("/doctor", "/doctor.json"),
        ("/failure/rank", "/failure/rank.json"),
        ("/sandbox/rank", "/sandbox/rank.json"),
        ("/merge/sketch", "/merge/sketch.json"),
        ("/merge", "/merge.json"),
    ],
)
def test_every_page_equals_its_json(studio: Opened, page: str, twin: str) -> None:
    record, html = studio.record(twin), studio.get(page).text
    for shown in numbers(record):
        assert shown in html
    for claim in record.get("claims", ()):
        assert claim["says"] in unescape(html)
    for name in record.get("names", ()):
        assert name in html
    for each in record.get("failures", ()):
        assert each["about"] in unescape(html)
    for point in record.get("points", ()):
        assert f"{point['n_values']:,}" in html and point["method"] in html
    for method, at in record.get("sketch", {}).get("points", {}).items():
        assert f"{method} {at[0]:.3f}, {at[1]:.3f}" in html
    for each in record.get("memories", ()):
        assert f">{each['name']}</a>" in html and f"{each['bytes'] / 1e6:.2f} MB" in html
    for probe in record.get("probes", ()):
        assert probe["question"].split("'")[0] in html
    if record.get("written"):
        last = record["written"]["epochs"][-1]
        assert f"{last['loss_nats']:.4f}" in html and record["written"]["memory"] in html


def test_the_list_is_that_of_the_folder(studio: Opened, lore: Lore) -> None:
    printed = json.loads(lore("show", studio.folder, "--json").out)["memories"]
    record = studio.record("/memories.json")
    assert [each["name"] for each in record["memories"]] == [each["name"] for each in printed]
    assert [each["id"] for each in record["memories"]] == [each["id"] for each in printed]
    assert studio.record("/memories.json", q="tid")["n_matching"] == 1
    newest = studio.record("/memories.json", sort="written")["memories"]
    assert [each["name"] for each in newest] == ["tide", "phones"]


@pytest.mark.slow
def test_contradictions_are_those_of_the_command_line(tmp_path: Path, lore: Lore) -> None:
    folder = stored(tmp_path)
    index = read_object(folder / "memory.json", "")
    entry = index["memories"]["tide"]
    source = folder / "sources" / f"{entry['source']}.jsonl"
    other = json.loads(json.dumps(entry)) | {"source": "0" * 64}
    rows = [{"id": "f", "question": LEADER, "answer": "Somebody Else"}]
    dump_jsonl([*load_jsonl(source), {**rows[0], "answer": "Maren Oskold"}], source)
    dump_jsonl(rows, folder / "sources" / f"{'0' * 64}.jsonl")
    index["memories"]["other"] = other | {"run": ""}
    save_json(index, folder / "memory.json")
    printed = json.loads(lore("contradictions", folder, "--json").out)["contradictions"]
    with opened(folder) as studio:
        record = studio.record("/contradictions.json")
        assert record["contradictions"] == printed and record["n"] == len(printed) > 0
        html = studio.get("/contradictions").text
        assert "Somebody Else" in html and ">same<" in html
        assert "Look for contradictions" in studio.get("/").text


def test_probes_are_filtered_and_have_the_sentence_of_their_source(studio: Opened) -> None:
    every = studio.record("/memory/tide.json")
    failed = studio.record("/memory/tide.json", failed="1")
    assert failed["n_failed"] == len([p for p in every["probes"] if not p["score"]])
    assert [p["probe_id"] for p in failed["probes"]] == [
        p["probe_id"] for p in every["probes"] if not p["score"]
    ]
    spans = [p for p in every["probes"] if p["answers"] and p["span"]]
    assert spans and all(any(a in p["span"] for a in p["answers"]) for p in spans)


@pytest.mark.slow
def test_replies_are_those_of_the_command_line(studio: Opened, lore: Lore) -> None:
    sides = studio.record("/ask.json", question=LEADER)["sides"]
    printed = json.loads(
        lore("ask", LEADER, "--memory", studio.folder, "--side-by-side", "--json").out
    )
    assert sides == printed and sides["memory"] == "tide"
    assert sides["replies"]["base"]["memory"] == ""
    html = studio.get("/ask", params={"question": LEADER, "wait": "1"}).text
    for reply in sides["replies"].values():
        assert reply["text"] in html and f"{reply['confidence']:.2f}" in html


def test_the_router_shows_none(studio: Opened) -> None:
    question = "Which whale is the largest?"
    record = studio.record("/ask.json", question=question)
    assert record["sides"]["memory"] == "" and list(record["sides"]["replies"]) == ["base"]
    assert "No memory answers" in studio.get("/ask", params={"question": question, "wait": 1}).text


def test_strip_equals_trace(studio: Opened, lore: Lore) -> None:
    answer = studio.record("/memory/tide.json")["probes"][0]["answers"][0]
    query = {"question": LEADER, "answer": answer}
    record = studio.record("/memory/tide/trace.json", **query)
    ran = lore("trace", studio.folder, LEADER, answer, "--name", "tide", "--json")
    assert record["tokens"] == json.loads(ran.out)["tokens"]
    html = studio.get("/memory/tide/trace", params=query).text
    cells = re.findall(r'<span role="option"[^>]*>.*?</span>', html)
    assert len(cells) == len(record["tokens"])
    for cell, token in zip(cells, record["tokens"], strict=True):
        assert f"{token['p']:.2f}" in cell and ("doubtful" in cell) == (token["p"] < 0.5)


@pytest.mark.slow
def test_the_tree_on_the_page_is_that_of_the_doctor(studio: Opened, lore: Lore) -> None:
    record = studio.record("/memory/tide/doctor.json")["diagnosis"]
    printed = json.loads(lore("doctor", studio.folder / "tide", "--json").out)
    assert record["tree"] == printed["tree"]
    html = studio.get("/memory/tide/doctor", params={"wait": "1"}).text
    for branch in record["tree"]:
        assert f'id="check-{branch["check"]}"' in html


@pytest.mark.slow
def test_rank_view_equals_truncated_merge_and_the_command_line(studio: Opened, lore: Lore) -> None:
    cut = studio.record("/memory/tide/ranks.json")["cut"]
    assert cut == json.loads(lore("ranks", studio.folder, "--name", "tide", "--json").out)
    adapter = load(Folder(studio.folder).state_path(Folder(studio.folder).names["tide"]))
    norms = delta_norms(merge([adapter], method="svd", rank=1).adapter)
    whole = sum(norm**2 for norm in delta_norms(adapter).values())
    energy = sum(norm**2 for norm in norms.values()) / whole
    assert cut["ranks"][0]["energy"] == pytest.approx(energy, rel=1e-4)
    one = studio.record("/memory/tide/layer.json", rank="1")["layer"]
    assert one == lore("layer", studio.folder, "--name", "tide", "--rank", 1, "--json").json
    own = merge([adapter], method="svd", rank=1).adapter
    assert one["pictures"][3]["norm"] == pytest.approx(delta_norms(own)[one["module"]], rel=1e-5)
    assert one["energies"][-1] == pytest.approx(1.0) and len(one["energies"]) == one["own"]
    for wrong in ({"rank": "99"}, {"module": "model.norm"}):
        assert studio.get("/memory/tide/layer.json", params=wrong).status_code == 400
    html = studio.get("/memory/tide/ranks", params={"wait": "1"}).text
    for row in cut["ranks"]:
        assert f"{row['energy']:.3f}" in html and f"{row['n_parameters']:,}" in html
    assert all(shown in html for shown in numbers(cut))


@pytest.mark.slow
def test_a_merge_shows_what_it_cost_each_source(tmp_path: Path) -> None:
    with opened(stored(tmp_path)) as studio:
        wrong = studio.post("/merge", **{"take tide": "1"})
        assert wrong.status_code == 400 and "choose two" in wrong.text
        sources = {"take tide": "1", "take phones": "1", "weight tide": "1", "weight phones": "1"}
        answer = studio.post("/merge", **sources, method="cat", into="both", rank="")
        assert answer.status_code == 200, answer.text
        folder = Folder(studio.folder)
        entry = folder.entry("both")
        assert sorted(parent["name"] for parent in entry["parents"]) == ["phones", "tide"]
        report = read_object(folder.run_path(entry["run"]) / "report.json", "")
        for part in report["parts"]:
            for shown in numbers(part["recall"]):
                assert shown in answer.text
        row = next(m for m in studio.record("/memories.json")["memories"] if m["name"] == "both")
        assert row["rank"] == 4 and sorted(row["lineage"]) == ["phones", "tide"]
        card = folder.card(entry["adapter"])
        assert studio.record("/memory/both.json")["recall"] == card["report"]["recall"] != {}
        assert "No verdict" not in studio.get("/memory/both").text
        assert studio.get("/write").status_code == 200


def test_the_page_offers_merges_that_there_are() -> None:
    assert {*MERGES} <= {*METHODS, "auto"}


def test_the_page_offers_every_objective() -> None:
    """Named on the page without torch, which their module loads."""
    from lorewright.training.objectives import OBJECTIVES as KNOWN

    assert {*OBJECTIVES} == {*KNOWN}


@pytest.mark.slow
def test_budget_rows_add_up_and_are_those_of_the_command_line(studio: Opened, lore: Lore) -> None:
    fields = {"base": "pocket", "method": "qlora", "rank": "16", "tokens": "512", "float32": "1"}
    record = studio.record("/budget.json", **fields)["account"]
    args = ("--method", "qlora", "--rank", 16, "--tokens", 512, "--float32", "--no-checkpointing")
    assert record == json.loads(lore("budget", "pocket", *args, "--json").out)
    chosen = record["chosen"]
    assert sum(t["n_bytes"] for t in chosen["terms"]) == pytest.approx(chosen["n_bytes"])
    html = studio.get("/budget", params=fields | {"wait": "1"}).text
    for term in record["chosen"]["terms"]:
        assert term["formula"] in html and f"{term['n_bytes'] / 1e9:.3f}" in html
    for wrong, why in (
        ({"config": "{"}, "no JSON"),
        ({"config": "[1]"}, "one object"),
        ({"base": "/etc/passwd"}, "lore budget"),
        ({"rank": "x"}, "whole number"),
    ):
        answer = studio.get("/budget.json", params=fields | wrong)
        assert answer.status_code == 400 and why in answer.json()["error"]["message"]


@pytest.mark.slow
def test_four_experiments_conclude(studio: Opened, lore: Lore) -> None:
    for name, each in EXPERIMENTS.items():
        assert studio.post(f"/sandbox/{name}").status_code == 303
        began = time.monotonic()
        page = f"/sandbox/{name}.json"
        chosen = studio.wait(page, lambda r: not r["chosen"]["order"], 60 * 6)["chosen"]
        assert time.monotonic() - began < 60 * 6  # on a machine that does other things as well
        assert chosen["sentence"] and chosen["expected"] == each.expected
        rows = load_jsonl(studio.cache / "sandbox" / name / "metrics.jsonl")
        for job, arm in enumerate(chosen["arms"]):
            own = [row for row in rows if row["job"] == job]
            assert arm["epochs"] == own and bool(own) == arm["trains"] and arm["held"]["n"]
            assert not own or arm["held"]["n"] == own[-1]["n_held_out"]
        html = studio.get(f"/sandbox/{name}").text
        assert escape(chosen["sentence"]) in html and html.count('class="chart small"') == len(
            [arm for arm in chosen["arms"] if arm["trains"]]
        )
        if name in ("forms", "merging"):  # the quickest
            assert lore("sandbox", name, "--json").json["sentence"] == chosen["sentence"]


def test_experiments_are_listed_with_what_is_expected(studio: Opened) -> None:
    html = studio.get("/sandbox").text
    assert all(each.question in html for each in EXPERIMENTS.values())
    record = studio.record("/sandbox/rank.json")["chosen"]
    assert record["question"] == EXPERIMENTS["rank"].question and record["order"] is None
    assert studio.get("/sandbox/magic.json").status_code == 400
    assert studio.post("/sandbox/magic").status_code == 400


def test_names_never_become_paths(studio: Opened) -> None:
    for path in ("/memory/..%2f..%2fetc", "/memory/nobody", "/write/..%2fadapters", "/write/none"):
        for twin in (path, f"{path}.json"):
            assert studio.get(twin).status_code == 404, twin
    assert studio.get("/static/../app.py").status_code == 404
    assert studio.get("/static/%2e%2e/app.py").status_code == 404


def test_an_error_is_the_librarys_sentence_and_can_be_retried(studio: Opened) -> None:
    answer = studio.get("/memory/nobody")
    assert "has no memory" in answer.text and "Try again" in answer.text
    said = studio.get("/memory/tide/trace.json", params={"question": LEADER, "answer": ""}).json()
    assert said["error"]["message"] == "there is no answer to trace; write one."
    for fields, why in (
        ({"name": "x", "text": " "}, "no text"),
        ({"name": "", "text": "a"}, "needs a name"),
        ({"name": "x", "text": "a", "rank": "-1"}, "whole number"),
        ({"name": "x", "text": "a", "preset": "wild"}, "unknown"),
        ({"example": "../../secret"}, "no example"),
    ):
        answer = studio.post("/write", **fields)
        assert answer.status_code == 400 and why in answer.text, fields
    answer = studio.post("/memory/tide/forget", typed="tid")
    assert answer.status_code == 400 and "type the name" in answer.text
    assert studio.post("/write/stop").status_code == 400


def test_a_memory_is_renamed_and_back(studio: Opened) -> None:
    assert studio.post("/memory/phones/rename", name="Numbers").status_code == 303
    assert sorted(Folder(studio.folder).names) == ["numbers", "tide"]
    assert studio.post("/memory/numbers/rename", name="phones").status_code == 303


def test_events_are_the_pieces_of_the_page(studio: Opened) -> None:
    assert studio.client is not None
    run = Folder(studio.folder).entry("tide")["run"]
    with studio.client.stream("GET", f"/write/{run}/events") as events:
        line = next(line for line in events.iter_lines() if line.startswith("data: "))
    pieces = json.loads(line.removeprefix("data: "))
    parts = {"state", "chart", "points", "controls", "unfinished", "spoken", "trouble"}
    assert pieces.keys() == parts and pieces["trouble"] == ""
    assert len(line) < 20_000
    html = studio.get(f"/write/{run}").text
    assert all(pieces[key].strip() in html for key in ("state", "chart"))


@pytest.mark.slow
def test_the_first_point_is_of_a_part_of_an_epoch_and_says_so(tmp_path: Path) -> None:
    rows = [{"question": f"What is the code of room {i}?", "answer": f"{i:04}"} for i in range(200)]
    text = "\n".join(map(json.dumps, rows))
    with opened(tmp_path / "atlas") as studio:
        assert studio.client is not None
        studio.wait("/write.json", lambda r: not r["base"])
        studio.post("/write", name="codes", suffix=".jsonl", text=text, rank="4")
        with studio.client.stream("GET", "/write/events") as events:
            lines = (line for line in events.iter_lines() if line.startswith("data: "))
            charts = (json.loads(line.removeprefix("data: ")).get("chart", "") for line in lines)
            first = next(chart for chart in charts if "<svg" in chart)
        assert 'class="point part"' in first and "○ part of epoch 1: " in first
        assert "polyline" not in first and "No epoch is over yet." in first
        studio.post("/write/stop")
        studio.wait("/write.json", lambda r: not r["order"])
        assert studio.record("/write.json")["written"]["part"] is None


def test_script_in_a_document_stays_text(studio: Opened) -> None:
    folder, script = Folder(studio.folder), "<script>alert(1)</script>"
    path = folder.run_path(folder.entry("tide")["run"]) / "report.json"
    report = read_object(path, "")
    before = json.dumps(report)
    report["outcomes"]["memory"][0] |= {"output": script, "question": script, "answers": [script]}
    save_json(report, path)
    try:
        html = studio.get("/memory/tide").text
        assert script not in html and html.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 3
        asked = studio.get("/ask", params={"question": f'"{script}'}).text
        assert script not in asked
    finally:
        save_json(json.loads(before), path)


def test_read_only_changes_nothing(tmp_path: Path) -> None:
    with opened(stored(tmp_path), "--read-only") as studio:
        before = (studio.folder / "memory.json").read_bytes()
        for path in ("/write", "/write/stop", "/memory/tide/forget", "/memory/tide/rename"):
            answer = studio.post(path, typed="tide", name="x", text="y")
            assert answer.status_code == 400 and "--read-only" in answer.text
        assert (studio.folder / "memory.json").read_bytes() == before
        for page in PAGES:
            assert 'method="post"' not in studio.get(page).text


@pytest.mark.slow
def test_ten_thousand_memories_are_listed_in_two_seconds_and_100_kilobytes(tmp_path: Path) -> None:
    folder = stored(tmp_path)
    index = read_object(folder / "memory.json", "")
    entry = index["memories"]["tide"]
    index["memories"] = {f"memory-{n:05}": entry for n in range(10_000)}
    save_json(index, folder / "memory.json")
    with opened(folder) as studio:
        studio.get("/")
        began = time.perf_counter()
        answer = studio.get("/", params={"sort": "recall", "page": "3"})
        assert time.perf_counter() - began < 2.0
        assert len(answer.content) < 100_000 and "page 3 of 200" in answer.text
        assert "memory-00100" in answer.text
        (only,) = studio.record("/memories.json", q="09999")["memories"]
        assert only["name"] == "memory-09999"
