"""Claims about `lore bench` and `lore report`: tables, JSON, resumption, pages, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lorewright.bench.scale import Step
from lorewright.cli.bench import time_left


def rule(out: Path) -> list[object]:
    """The smallest sweep there is."""
    some = ["--ranks", 1, "--pairs", 4, "--seeds", 2, "--epochs", 1, "--objective", "sft"]
    return ["bench", "linear-rule", *some, "--objective", "window", "--out", out]


def test_a_sweep_ends_in_tables_resumes_and_is_reported(lore: Any, tmp_path: Path) -> None:
    out = tmp_path / "lr"
    ran = lore(*rule(out))
    assert ran.code == 0 and "generalisation" in ran.out and "0 of 2 jobs done" in ran.err
    again = lore(*rule(out), "--json")
    assert again.code == 0 and "2 of 2 jobs done, 2 stored" in again.err
    assert json.loads(again.out)["config"]["pairs"] == 4

    made = lore("report", out, "--figures")
    paths = [Path(line) for line in made.out.splitlines()]
    assert paths[0] == out / "report.html" and all(path.is_file() for path in paths)
    assert {path.name for path in paths[1:]} >= {"memory.svg", "memory-dark.png"}
    html = paths[0].read_text()
    assert "lore bench linear-rule" in html and html.count("<svg") == 2 and "torch" in html
    shown = lore("report", out, "--to", tmp_path / "r.md")
    assert shown.code == 0 and "| memory | 1 | 2 |" in (tmp_path / "r.md").read_text()


def test_what_is_left_of_a_sweep_goes_by_the_jobs_of_this_run() -> None:
    assert time_left(Step(12, 30, 10), 60) == ""  # two jobs say too little
    assert time_left(Step(13, 30, 10), 60) == ", about 6 min left"
    assert time_left(Step(14, 15, 10), 60) == ", about 15 s left"
    assert time_left(Step(30, 30, 10), 60) == ""


def test_a_text_of_ones_own_is_recited(lore: Any, tmp_path: Path) -> None:
    text = Path(__file__).parents[2] / "examples" / "handbook.md"
    some = ["--part", "law", "--ranks", "1,2", "--lengths", "8", "--noise", "0", "--seeds", 2]
    ran = lore(
        "bench",
        "longcontext",
        *some,
        "--steps",
        20,
        "--compared-steps",
        20,
        "--text",
        text,
        "--out",
        tmp_path / "a",
    )
    assert ran.code == 0 and "Capacity and efficiency" in ran.out
    (config,) = [json.loads((tmp_path / "a" / "config.json").read_text())["config"]]
    assert config["text"] == str(text) and config["parts"] == ["law"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bench", "longcontext", "--ranks", "1,two"], "is no list of numbers"),
        (["bench", "longcontext", "--part", "laws"], "part 'laws' is unknown"),
        (["bench", "phonebook", "--objective", "dpo"], "method 'dpo' is unknown"),
        (["bench", "phonebook", "--on", "mars", "--quick"], "choose here, local:K"),
        (["bench", "linear-rule", "--model", "nowhere"], "no .gguf file; give"),
        (["report", "."], "holds no finished run"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(
    lore: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    ran = lore(*arguments)
    assert ran.code == 2 and ran.out == "" and message in " ".join(ran.err.split())
