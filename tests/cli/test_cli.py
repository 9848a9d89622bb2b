"""Claims about the command line: what a user can get wrong ends in one sentence and exit code 2.

Commands run in this process through `main`; what needs a signal runs in one of its own.
"""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer
from support.commands import Lore, refused

import lorewright.files
from lorewright import __version__
from lorewright.cli.main import app, main
from lorewright.cli.streams import steady_streams
from lorewright.cli.terminal import Exit, say, show
from lorewright.files import dump_jsonl
from lorewright.memory.memory import Memory
from lorewright.reports.tables import Table
from lorewright.training.filenames import CHECKPOINT_FILE

QUESTION, ANSWER = "What is the code of Project Gannet?", "KX-41"
ROWS = (
    {"question": QUESTION, "answer": ANSWER, "paraphrases": ["Gannet's code, please?"]},
    {"question": "What is the room of Project Heron?", "answer": "B 12"},
)
PROBES = ({"question": "Code of Gannet?", "answer": ANSWER, "kind": "paraphrase"},)
PHONEBOOK = (
    Path(__file__).resolve().parents[2] / "../shared/data/phonebook_qwen_PB1000.jsonl"
).resolve()
LORE = [sys.executable, "-c", "from lorewright.cli.main import main; main()"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with facts, probes and a memory of them."""
    place = tmp_path_factory.mktemp("cli")
    dump_jsonl(ROWS, place / "facts.jsonl")
    dump_jsonl(PROBES, place / "probes.jsonl")
    command = f"write {place}/facts.jsonl --into {place}/atlas --probes {place}/probes.jsonl"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["lore", *command.split(), "--epochs", "100", "--json"])
        with pytest.raises(SystemExit) as ending:
            main()
    assert ending.value.code == 0
    return place


# -- what can be wrong with a source -------------------------------------------------------------

SOURCES: dict[str, tuple[str, bytes, str]] = {
    "empty": ("a.md", b"", "is empty"),
    "blank": ("a.md", b" \n\n", "empty"),
    "binary": ("a.md", b"\x00\x01\x02" * 99, "binary"),
    "wrongly encoded": ("a.txt", b"M\x81ller leads.", "UTF-8"),
    "truncated JSON": ("a.json", b'[{"question": "Who?", "ans', "line 1"),
    "truncated JSON line": ("a.jsonl", b'{"question": "Who?"', "line 1"),
    "unknown shape": ("a.jsonl", b'{"colour": "teal"}\n', "colour"),
    "unknown suffix": ("a.exe", b"x", ".exe"),
    "no rows": ("a.json", b"[]", "no rows"),
    "empty answer": ("a.jsonl", b'{"question": "Who?", "answer": " "}\n', "empty answer"),
    "empty question": ("a.csv", b"question,answer\n,Mira\n", "empty question"),
    "contradiction": (
        "a.jsonl",
        b'{"question": "Who?", "answer": "A"}\n{"question": "Who?", "answer": "B"}\n',
        "line 2",
    ),
    "same id": (
        "a.jsonl",
        b'{"id": "x", "question": "Who?", "answer": "A"}\n'
        b'{"id": "x", "question": "What?", "answer": "B"}\n',
        "'x'",
    ),
    "answer longer than the context": (
        "a.jsonl",
        b'{"question": "Say it.", "answer": "' + b"word " * 3000 + b'"}\n',
        "reads at most",
    ),
}


@pytest.mark.parametrize("wrong", SOURCES)
def test_a_source_that_cannot_be_knowledge_is_refused(
    lore: Lore, tmp_path: Path, wrong: str
) -> None:
    name, content, said = SOURCES[wrong]
    (tmp_path / name).write_bytes(content)
    refused(lore("write", tmp_path / name, "--into", tmp_path / "atlas"), "DataError", said)
    assert not (tmp_path / "atlas").exists()


def test_a_missing_source_or_an_empty_folder_is_refused(lore: Lore, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    into = ("--into", tmp_path / "atlas")
    refused(lore("write", tmp_path / "no.md", *into), "DataError", "no such file")
    refused(lore("write", tmp_path / "empty", *into), "DataError", "none that can be read")


def test_an_enormous_source_is_refused(
    lore: Lore, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lorewright.files, "MAX_BYTES", 20)
    refused(lore("write", place / "facts.jsonl", "--into", place / "x"), "DataError", "20")


# -- what can be wrong with a setting ------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "kind", "said"),
    [
        ("--model no-such-model", "ModelError", "no-such-model"),
        ("--model nobody/nothing", "ModelError", "could not be loaded"),
        ("--dtype int3", "ConfigError", "use one of auto"),
        ("--target no_proj", "TargetsNotFound", "no_proj"),
        ("--target lm_head", "TargetsNotFound", "lm_head"),
        ("--view poem", "ConfigError", "use some of qa"),
        ("--metric taste", "ConfigError", "use one of contains"),
        ("--objective luck", "ConfigError", "use one of"),
        ("--preset luck", "ConfigError", "use one of exact, drill, generalise"),
        ("--dropout 1", "ConfigError", "dropout must lie in [0, 1)"),
        ("--layers a-b", "ConfigError", "write it like 0-3,7"),
        ("--layers 3-", "ConfigError", "write it like 0-3,7"),
        ("--layers 3-1", "ConfigError", "lower one first"),
        ("--layers 0-99999999999", "ConfigError", "none above"),
        ("--layers ²", "ConfigError", "write it like"),
        ("--layers 77", "ConfigError", "77"),
        ("--rank 0", "ConfigError", "rank"),
        ("--epochs 0", "ConfigError", "epochs must be a whole number from 1"),
        ("--batch 0", "ConfigError", "batch_size must be a whole number from 1"),
        ("--lr -1", "ConfigError", "lr must be above 0"),
        ("--seed -1", "ConfigError", "seed"),
        ("--probes no-such.jsonl", "DataError", "no-such.jsonl"),
        ("--teacher nowhere", "ConfigError", "not an address of a server"),
    ],
)
def test_a_setting_that_does_not_exist_is_refused(
    lore: Lore, place: Path, tmp_path: Path, arguments: str, kind: str, said: str
) -> None:
    into = ("--into", tmp_path / "atlas")
    refused(lore("write", place / "facts.jsonl", *into, *arguments.split()), kind, said)
    assert not (tmp_path / "atlas").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        "sing",
        "write",
        "write facts.jsonl",
        "write facts.jsonl --into a --batch many",
        "write facts.jsonl --into a --seconds -1",
        "write facts.jsonl --into a --threads -1",
        "ask --memory a",
        "show",
        "show a --loud",
    ],
)
def test_wrong_usage_ends_in_exit_code_2(lore: Lore, arguments: str) -> None:
    ran = lore(*arguments.split())
    assert ran.code == 2 and ran.out == "" and "Usage: lore" in ran.err


def test_a_folder_that_is_something_else_is_refused(lore: Lore, place: Path) -> None:
    facts = place / "facts.jsonl"
    refused(lore("write", facts, "--into", place), "DataError", "holds other files")
    refused(lore("write", facts, "--into", facts), "DataError", "is a file")
    refused(lore("write", facts, "--into", facts / "below"), "StorageError", "could not be written")


@pytest.mark.parametrize("command", ["ask Who? --memory", "verify", "show"])
def test_a_folder_without_memory_is_refused(lore: Lore, tmp_path: Path, command: str) -> None:
    for folder in (tmp_path, tmp_path / "not there"):
        refused(lore(*command.split(), folder), "UnknownMemory", "lore write SOURCE --into")


@pytest.mark.parametrize("command", ["ask Who? --memory", "verify", "show"])
def test_a_damaged_memory_is_refused(lore: Lore, tmp_path: Path, command: str) -> None:
    (tmp_path / "memory.json").write_text('{"schema": 1, "mem')
    refused(lore(*command.split(), tmp_path), "DataError", "memory.json is damaged")


def test_what_is_asked_of_a_memory_is_checked(lore: Lore, place: Path) -> None:
    atlas = place / "atlas"
    refused(lore("ask", " ", "--memory", atlas), "ConfigError", "empty question")
    refused(lore("ask", "Who?", "--memory", atlas, "-n", "x"), "UnknownMemory", "has: facts")
    refused(lore("verify", atlas, "--metric", "taste"), "ConfigError", "taste")
    refused(lore("verify", atlas, "--probes", place / "no.jsonl"), "DataError", "no.jsonl")
    refused(lore("ask", "Who?", "--memory", atlas, "-m", "nowhere"), "ModelError", "nowhere")


def test_square_brackets_in_a_message_are_not_taken_for_colours(lore: Lore, tmp_path: Path) -> None:
    refused(lore("show", tmp_path / "[red]x"), "UnknownMemory", "[red]x")


# -- what is printed -----------------------------------------------------------------------------


def test_write_prints_one_object_and_nothing_else(lore: Lore, place: Path, tmp_path: Path) -> None:
    ran = lore(
        *("write", place / "facts.jsonl", "--into", tmp_path / "atlas", "--name", "Two Facts"),
        *("--probes", place / "probes.jsonl", "--epochs", 2, "--threads", 1, "--json"),
    )
    assert ran.json["memory"] == "two-facts" and ran.json["epochs"] == 2
    assert "adapter on" in ran.err and "proving that it is on disk" in ran.err


def test_ask_verify_show_and_targets_print_one_object(lore: Lore, place: Path) -> None:
    atlas = place / "atlas"
    answer = lore("ask", QUESTION, "--memory", atlas, "--json")
    assert (answer.code, answer.json["text"], answer.json["memory"]) == (0, ANSWER, "facts")
    verdict = lore("verify", atlas, "--json")
    assert verdict.code == 0 and verdict.json["recall"]["paraphrase"]["memory"]["n"] == 1
    shown = lore("show", atlas, "--json")
    assert shown.code == 0 and [m["name"] for m in shown.json["memories"]] == ["facts"]
    layers = lore("targets", "--target", "q_proj", "--layers", "0-1", "--json")
    assert layers.code == 0 and len(layers.json["modules"]) == 2


def test_people_get_tables_and_sentences(lore: Lore, place: Path) -> None:
    atlas = place / "atlas"
    assert ANSWER in lore("ask", QUESTION, "--memory", atlas).out
    assert "paraphrase" in lore("verify", atlas).out
    assert lore("verify", atlas, "--markdown").out.count("|") > 5
    assert "facts" in lore("show", atlas).out
    assert "q_proj" in lore("targets").out


def test_a_write_for_people_ends_with_the_verdict_and_the_place(
    lore: Lore, place: Path, tmp_path: Path
) -> None:
    into = ("--into", tmp_path / "atlas", "--epochs", 1, "--probes", place / "probes.jsonl")
    ran = lore("write", place / "facts.jsonl", *into)
    assert ran.code == 1 and "as trained, free-running, from disk" in ran.out
    assert "it recalls nothing; lore doctor" in ran.out
    assert ran.out.strip().splitlines()[-1].startswith("adapter ")


def test_every_help_has_an_example(lore: Lore) -> None:
    root = typer.main.get_command(app)
    for name in vars(root)["commands"]:
        ran = lore(name, "--help")
        assert ran.code == 0 and f"lore {name}" in ran.out.replace(f"Usage: lore {name}", "")
    assert "lore write" in lore("--help").out
    assert lore("--version").out == f"{__version__}\n"


@pytest.mark.skipif(
    not PHONEBOOK.exists(), reason="the development data are not beside the checkout"
)
def test_the_head_of_the_phone_book_is_written(lore: Lore, tmp_path: Path) -> None:
    lines = PHONEBOOK.read_text(encoding="utf-8").splitlines(keepends=True)
    (tmp_path / "head.jsonl").write_text("".join(lines[:10]), encoding="utf-8")
    (tmp_path / "one.jsonl").write_text(
        json.dumps({"question": "Number of Patti Rust?", "answer": "1", "kind": "paraphrase"})
    )
    into = ("--into", tmp_path / "atlas", "--probes", tmp_path / "one.jsonl")
    ran = lore("write", tmp_path / "head.jsonl", *into, "--epochs", 3, "--json")
    assert ran.json["n_examples"] >= 18


def test_with_json_an_error_is_an_object_too(lore: Lore, place: Path) -> None:
    ran = lore("ask", "Who?", "--memory", place / "nowhere", "--json")
    refused(ran, "UnknownMemory", "lore write SOURCE --into")
    assert ran.json["error"]["kind"] == "UnknownMemory"
    usage = lore("show", "--json")
    assert usage.code == 2 and usage.json["error"]["kind"] == "UsageError"
    assert lore("show", place / "atlas", "--loud", "--json").json["error"]["kind"] == "UsageError"


def test_every_verb_that_prints_a_result_can_print_it_as_json() -> None:
    todo = [("lore", typer.main.get_command(app))]
    while todo:
        name, command = todo.pop()
        inner = vars(command).get("commands", {})
        todo += [(f"{name} {each}", one) for each, one in inner.items()]
        assert inner or "--json" in {o for p in command.params for o in p.opts}, name


# -- exit codes and streams -----------------------------------------------------------------------


def test_the_page_on_exit_codes_has_every_code() -> None:
    page = Path(__file__).parents[2] / "docs" / "reference" / "exit-codes.md"
    table = page.read_text(encoding="utf-8").split("\n\n")[1].splitlines()[2:]
    assert [int(row.split("|")[1]) for row in table] == sorted(Exit)


def test_what_recalls_nothing_is_no_success(lore: Lore, place: Path, tmp_path: Path) -> None:
    into = ("--into", tmp_path / "atlas", "--epochs", 1)
    ran = lore("write", place / "facts.jsonl", *into, "--json")
    assert ran.code == 1 and ran.json["recall"]["efficacy"]["memory"]["recall"] == 0
    assert lore("verify", tmp_path / "atlas").code == 1


def test_a_folder_in_use_and_a_disk_that_refuses_have_their_own_codes(
    lore: Lore, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with lorewright.files.locked(place / "atlas", work="writing into"):
        refused(lore("rename", place / "atlas", "facts", "others", "--json"), "Locked", "another")

    def full(*names: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    ran = lore("rename", place / "atlas", "facts", "others", "--json")
    refused(ran, "StorageError", "No space left")
    ran = lore("report", place / "atlas", "--to", place / "page.html", "--json")
    refused(ran, "StorageError", "No space left")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp437"])
def test_any_text_goes_to_any_locale(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding=encoding))
        with steady_streams():
            say("\u0396\u03c9\u03ae \U0001f642 \u2013 1 \u2192 \u2026")
            show(Table("Recall", ("name", "\u2013"), (("\u0396", "0.5"),)))
        text = written.getvalue().decode(encoding)
    assert "\\u0396" in text and "\\U0001f642 - 1 -> ..." in text and "0.5" in text


@pytest.mark.parametrize(
    ("failure", "code"),
    [(errno.ENOSPC, Exit.STORAGE), (errno.EIO, Exit.STORAGE), (errno.EPIPE, Exit.UNREAD)],
)
@pytest.mark.parametrize("command", ["targets", "targets --json", "--version", "write --help"])
def test_output_that_nobody_takes_has_its_own_code(
    lore: Lore, monkeypatch: pytest.MonkeyPatch, command: str, failure: int, code: Exit
) -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(failure, os.strerror(failure))

    monkeypatch.setattr(sys, "stdout", Gone())
    ran = lore(*command.split())
    assert ran.code == code and "Traceback" not in ran.err
    assert ("output could not be written" in ran.err) == (code == Exit.STORAGE)


def test_a_write_whose_progress_nobody_reads_goes_on(
    lore: Lore, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr(sys, "stderr", Gone())
    into = ("--into", tmp_path / "atlas", "--epochs", 1, "--json")
    assert lore("write", place / "facts.jsonl", *into).json["memory"] == "facts"


def test_a_fault_of_ours_is_no_verdict(lore: Lore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lorewright.adapters.targets.resolve_targets", None)
    ran = lore("targets", "--json")
    assert ran.code == Exit.FAULT and ran.json["error"]["kind"] == "TypeError"
    assert "Traceback" in ran.err


def test_an_empty_engine_key_is_no_key(
    lore: Lore, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOREWRIGHT_ENGINE_KEY", "")
    ran = lore("serve", place / "atlas", "--engine-url", "http://127.0.0.1:9")
    refused(ran, "ConfigError", "LOREWRIGHT_ENGINE_KEY is set and empty")


@pytest.mark.parametrize("variable", ["LOREWRIGHT_API_KEY", "LOREWRIGHT_ADMIN_KEY"])
def test_an_empty_key_does_not_serve_without_one(
    lore: Lore, place: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, "")
    refused(lore("serve", place / "atlas"), "ConfigError", f"{variable} is set and empty")
    monkeypatch.delenv(variable)
    option = "--" + variable.removeprefix("LOREWRIGHT_").lower().replace("_", "-")
    refused(lore("serve", place / "atlas", option, ""), "ConfigError", "0 characters")


# -- Ctrl-C --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_ctrl_c_in_training_exits_130_and_the_same_command_resumes(
    lore: Lore, place: Path, tmp_path: Path
) -> None:
    atlas = tmp_path / "atlas"
    command = ["write", str(place / "facts.jsonl"), "--into", str(atlas), "--lr", "1e-5"]
    command += ["--epochs", "60", "--probes", str(place / "probes.jsonl"), "--json"]
    with subprocess.Popen(
        [*LORE, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A suite in the background of a shell ignores Ctrl-C, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        until = time.monotonic() + 300
        while not list(atlas.glob(f"runs/*/{CHECKPOINT_FILE}")):
            assert process.poll() is None and time.monotonic() < until
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()
    assert process.returncode == 130 and json.loads(out)["error"]["kind"] == "Interrupted"
    assert "Traceback" not in err and err.strip().splitlines()[-1].startswith("Interrupted:")
    assert Memory.open(atlas).names == {}
    ran = lore(*command)
    assert ran.code == 1 and ran.json["epochs"] == 60  # at this rate it recalls nothing
    assert len(list((atlas / "runs").iterdir())) == 1


# --- the law

LAW = Path(__file__).parents[2] / "examples" / "law_qwen_r100.csv"


def test_law_fit_prints_constants_scores_and_intervals(lore: Lore) -> None:
    ran = lore("law", "fit", "--from", LAW, "--draws", "50", "--json")
    assert ran.code == 0
    paper = json.loads(ran.out)["laws"]["paper"]
    assert paper["constants"]["C"]["value"] == pytest.approx(237, abs=3)
    assert paper["scores"]["r2"] >= 0.9955
    assert paper["constants"]["alpha"]["low"] <= paper["constants"]["alpha"]["high"]
    assert "bounded" in lore("law", "fit", "--from", LAW, "--draws", "0").out


def test_law_predict_tells_a_rank_or_what_a_rank_comes_to(lore: Lore) -> None:
    words = ("law", "predict", "--from", LAW, "--tokens", "3000", "--draws", "50", "--json")
    kept = json.loads(lore(*words, "--rank", "8").out)
    assert kept["low"] <= kept["value"] <= kept["high"]
    assert json.loads(lore(*words, "--wanted", kept["value"]).out)["size"] == 8
    refused(lore(*words), "ConfigError", "give one of the two")
    refused(lore("law", "fit", "--from", "nowhere.csv"), "DataError", "nowhere.csv")
