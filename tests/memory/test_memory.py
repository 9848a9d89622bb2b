"""Claims about a folder of memories: what a write leaves, what it survives, what is refused.

One small memory is written for all; tests that damage it work on a copy.
"""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.interruptions import interrupt_before

from lorewright.adapters.adapter import content_id
from lorewright.adapters.config import LoraConfig
from lorewright.errors import (
    AdapterError,
    ConfigError,
    DataError,
    LorewrightError,
    ModelError,
    StorageError,
    TargetsNotFound,
    UnknownMemory,
    WrongBase,
)
from lorewright.files import dump_jsonl, load_jsonl
from lorewright.knowledge.data import Document, Fact, Knowledge, Probe
from lorewright.knowledge.lesson import LessonConfig, prepare
from lorewright.knowledge.readers.read import read_knowledge
from lorewright.memory.memory import Memory
from lorewright.memory.opened import as_knowledge
from lorewright.memory.verify import verdict
from lorewright.memory.write import Outcome
from lorewright.models.model import Model
from lorewright.recall.traces import audit
from lorewright.reports.results import memories_table
from lorewright.training.config import WriteConfig
from lorewright.training.loop import write
from lorewright.training.rates import suggested_lr
from lorewright.training.watch import Watch

FACTS = Knowledge(
    facts=(
        Fact("f1", "What is the code of Project Gannet?", "KX-41", (), ("Gannet's code, please?",)),
        Fact("f2", "What is the room of Project Heron?", "B 12"),
        Fact("f3", "Who leads Project Gannet?", "Mira Voss"),
    )
)
OTHER = Knowledge(facts=(Fact("g1", "What is the colour of Project Alder?", "teal"),))
NO_NEGATIVES = LessonConfig(negatives=0)
TENSORS = "adapter_model.safetensors"
BYTES = (TENSORS, "adapter_config.json")
LORE = [sys.executable, "-c", "from lorewright.cli.main import main; main()"]

peft_warns = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")


@pytest.fixture(scope="module")
def model() -> Model:
    return Model.load()


@pytest.fixture(scope="module")
def config(model: Model) -> WriteConfig:
    return WriteConfig(lr=suggested_lr(model), epochs=100, batch_size=4)


@pytest.fixture(scope="module")
def outcome(model: Model, config: WriteConfig, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """The write that the others look at."""
    place = tmp_path_factory.mktemp("memory") / "atlas"
    memory = Memory.open(place, model)
    return memory.write(FACTS, name="Project Book", config=config, lesson=NO_NEGATIVES)


@pytest.fixture
def memory(model: Model, outcome: Outcome, tmp_path: Path) -> Memory:
    """A copy of the folder, to do anything with."""
    shutil.copytree(outcome.folder.parents[1], tmp_path / "atlas")
    return Memory.open(tmp_path / "atlas", model)


def brief(memory: Memory, known: Knowledge = OTHER, **arguments: Any) -> Outcome:
    """A write of two epochs."""
    config = WriteConfig(lr=1e-3, epochs=2)
    return memory.write(
        known, **{"name": "more", "config": config, "lesson": NO_NEGATIVES, **arguments}
    )


def folder_of(memory: Memory, name: str = "project-book") -> Path:
    return memory.folder.path / "adapters" / memory.names[name]


def run_of(memory: Memory) -> Path:
    (run,) = (memory.folder.path / "runs").iterdir()
    return run


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder but the lock and what an unfinished run holds."""
    files = (path for path in folder.rglob("*") if path.is_file())
    whole = (p for p in files if p.name != ".lock" and "runs" not in p.parts)
    return {str(path.relative_to(folder)): path.read_bytes() for path in whole}


# -- what a write leaves -------------------------------------------------------------------------


def test_a_write_leaves_the_layout_that_is_documented(memory: Memory, outcome: Outcome) -> None:
    run = run_of(memory)
    assert {p.name for p in memory.folder.path.iterdir()} - {".lock"} == {
        "memory.json",
        "sources",
        "adapters",
        "runs",
    }
    assert {p.name for p in folder_of(memory).iterdir()} == {*BYTES, "README.md", "card.json"}
    assert {p.name for p in run.iterdir()} == {
        "config.json",
        "lesson.json",
        "metrics.jsonl",
        "report.json",
    }
    (source,) = (memory.folder.path / "sources").iterdir()
    assert source.stem == FACTS.digest() and read_knowledge(source).facts[0].answer == "KX-41"
    assert len(load_jsonl(run / "metrics.jsonl")) == outcome.epochs
    assert json.loads((run / "report.json").read_text())["adapter"] == outcome.adapter_id
    about = json.loads((memory.folder.path / "memory.json").read_text())
    assert about["base"]["digest"] == memory.model.digest and about["schema"] == 2


def test_the_card_tells_source_settings_versions_and_verdict(memory: Memory) -> None:
    (card,) = memory.folder.cards()
    assert card["name"] == "project-book" and card["source"] == FACTS.digest()
    assert card["settings"]["write"]["lora"]["rank"] == 8
    assert card["settings"]["lesson"]["negatives"] == 0
    assert card["engine"].startswith(("compiled code (", "torch, by hand ("))
    assert set(card["versions"]) >= {"lorewright", "python", "torch", "transformers"}
    assert card["report"]["recall"]["efficacy"]["memory"]["n"] == 3
    assert card["report"]["trained"]["recall"] == 1.0
    assert len(memories_table([card]).rows) == 1


def test_what_was_trained_comes_back_from_disk_word_for_word(outcome: Outcome) -> None:
    assert outcome.reason == "recalled" and outcome.n_examples == 3
    assert outcome.audit.n_exact == 3 and outcome.report.proportion("memory", "efficacy").mean == 1


def test_notes_of_the_lesson_and_of_the_verdict_are_both_reported(outcome: Outcome) -> None:
    noted = replace(outcome, notes=("a pair was dropped",)).to_json()["notes"]
    assert noted[0] == "a pair was dropped" and any(note.startswith("wrong: ") for note in noted)


def test_sentences_without_a_question_lower_recall_over_the_documents(memory: Memory) -> None:
    lesson = replace(
        memory.folder.lesson(memory.folder.entry("project-book")),
        n_sentences=8,
        uncovered=("The gate is teal.", "The key is under the mat."),
    )
    state = memory.state("project-book")
    report = verdict(memory, "project-book", state, "", lesson, "exact_match", None)
    assert (report.context["n_sentences"], report.context["n_covered"]) == (8, 6)
    asked = report.proportion("memory", "paraphrase").mean
    assert asked is not None
    (note,) = (note for note in report.to_json()["notes"] if note.startswith("over the doc"))
    assert f"{asked * 6 / 8:.2f} rather than {asked:.2f} (paraphrase)" in note
    assert "2 of 8 sentences" in note


def test_the_same_write_in_two_folders_gives_the_same_bytes(
    model: Model, config: WriteConfig, outcome: Outcome, tmp_path: Path
) -> None:
    memory = Memory.open(tmp_path / "atlas", model)
    again = memory.write(FACTS, name="Project Book", config=config, lesson=NO_NEGATIVES)
    assert again.adapter_id == outcome.adapter_id
    for name in BYTES:
        assert (again.folder / name).read_bytes() == (outcome.folder / name).read_bytes()
    assert again.report == outcome.report


def test_a_document_is_written_from_questions_the_base_asks_itself(
    model: Model, tmp_path: Path
) -> None:
    text = "# Project Gannet\n\nThe deadline of Project Gannet is 4 May.\n"
    steps: list[str] = []
    try:
        result = Memory.open(tmp_path / "atlas", model).write(
            Document("gannet", text),
            config=WriteConfig(lr=1e-3, epochs=2),
            watch=Watch(steps.append),
        )
    except DataError as error:  # a base that can not ask yet says so
        assert "nothing came out to learn" in str(error)
        return
    assert result.name == "gannet" and result.n_examples > 0
    assert steps[0] == "reading gannet" and "proving that it is on disk" in steps


# -- reading it again ----------------------------------------------------------------------------


def test_recall_after_reload_equals_recall_before(
    model: Model, config: WriteConfig, memory: Memory
) -> None:
    made = prepare(FACTS, ask_llm=list, closed_book=list, config=NO_NEGATIVES)
    written = write(model, made.examples, config)
    reloaded = Memory.open(memory.folder.path).adapter("project-book")
    assert content_id(reloaded) == content_id(written.adapter)
    with model.using(written.adapter):
        before = audit(model, made.examples)
    with model.using(reloaded):
        assert audit(model, made.examples) == before


def test_verify_twice_gives_the_numbers_of_the_write(memory: Memory, outcome: Outcome) -> None:
    once, twice = memory.verify(), memory.verify("Project Book")
    assert once == twice
    assert once == outcome.report


def test_verify_keeps_the_metric_of_the_write_unless_told(memory: Memory) -> None:
    brief(memory, metric="token_f1")
    assert memory.verify("more").metric == "token_f1"
    assert memory.verify("more", metric="contains").metric == "contains"
    assert memory.verify("project-book").metric == "exact_match"


def test_verify_takes_other_probes_and_needs_some(memory: Memory) -> None:
    probe = Probe("p", "Which code has Gannet?", ("KX-41",), "paraphrase")
    assert memory.verify(probes=[probe]).proportion("memory", "paraphrase").n == 1
    shutil.rmtree(memory.folder.path / "runs")
    with pytest.raises(ConfigError, match="written without probes; give some with --probes"):
        memory.verify()


def test_a_fact_that_was_written_is_answered_after_reload(memory: Memory) -> None:
    for fact in FACTS.facts:
        result = Memory.open(memory.folder.path).ask(fact.question)
        assert (result.text, result.memory) == (fact.answer, "project-book")
        assert not result.declined and result.confidence > 0.5


@peft_warns
def test_peft_gives_the_same_greedy_answers(model: Model, memory: Memory) -> None:
    import peft

    rows = [model.render(fact.question).prompt_ids for fact in FACTS.facts]
    rows.append(model.render("What is the colour of Project Alder?").prompt_ids)
    with model.using(memory.adapter("project-book")):
        ours = model.generate_ids(rows, max_new_tokens=12)
    network = Model.load(implementation="transformers").network
    theirs = peft.PeftModel.from_pretrained(network, folder_of(memory)).eval()
    for row, expected in zip(rows, ours, strict=True):
        out = theirs.generate(
            input_ids=torch.tensor([row]),
            attention_mask=torch.ones(1, len(row), dtype=torch.long),
            generation_config=network.generation_config,
            max_new_tokens=12,
        )
        assert out[0, len(row) :].tolist()[: len(expected)] == expected


def test_an_unknown_or_ambiguous_name_is_refused_with_the_names_there_are(memory: Memory) -> None:
    with pytest.raises(UnknownMemory, match="no memory 'boot'; it has: project-book"):
        memory.ask("Who?", "boot")
    brief(memory)
    with pytest.raises(UnknownMemory, match=r"2 memories \(more, project-book\); say which"):
        memory.verify()


# -- names ---------------------------------------------------------------------------------------


def test_overwriting_a_name_moves_it_and_keeps_the_old_adapter(
    memory: Memory, outcome: Outcome
) -> None:
    old = tree(folder_of(memory))
    fresh = brief(memory, name="project book", overwrite=True)
    assert memory.names == {"project-book": fresh.adapter_id}
    assert fresh.adapter_id != outcome.adapter_id
    assert tree(memory.folder.path / "adapters" / outcome.adapter_id) == old


def test_the_wrong_memory_is_one_of_something_else(memory: Memory, config: WriteConfig) -> None:
    twin = memory.write(FACTS, name="a twin", config=config, lesson=NO_NEGATIVES)
    assert twin.adapter_id == memory.names["project-book"]
    assert "wrong" not in twin.report.arms
    assert "wrong" in brief(memory).report.arms
    assert "wrong" in memory.verify("a twin").arms


def test_facts_need_a_name_and_documents_bring_one(model: Model, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="give one with --name"):
        Memory.open(tmp_path / "atlas", model).write(OTHER)
    assert not (tmp_path / "atlas").exists()


def test_a_name_that_stands_for_another_source_is_refused_and_stays(memory: Memory) -> None:
    before = memory.folder.entries()
    with pytest.raises(ConfigError, match=r"--name.* lore supersede .* project-book .*--replace"):
        brief(memory, name="Project/Book")
    assert memory.folder.entries() == before and not list(memory.folder.path.glob("runs/*-more"))


@pytest.mark.parametrize("name", ["auto", "Pocket"])
def test_names_that_requests_use_otherwise_are_refused(memory: Memory, name: str) -> None:
    verbs: list[Callable[[], object]] = [
        lambda: brief(memory, name=name),
        lambda: memory.rename("project-book", name),
        lambda: memory.merge(["project-book"], into=name, rank=2),
        lambda: memory.add(folder_of(memory), name=name),
    ]
    for verb in verbs:
        with pytest.raises(ConfigError, match=f"cannot be named '{name.lower()}'"):
            verb()
    assert list(memory.names) == ["project-book"]


def test_no_memory_has_the_name_of_its_base(model: Model, tmp_path: Path) -> None:
    tiny = Model(model.network, model.tokenizer, "tiny")
    with pytest.raises(ConfigError, match="cannot be named 'tiny'"):
        brief(Memory.open(tmp_path / "atlas", tiny), name="tiny")


def test_a_source_may_be_a_path_documents_or_facts(tmp_path: Path) -> None:
    page, facts = Document("page", "The lamp is out."), OTHER.facts
    (tmp_path / "page.md").write_text(page.text)
    assert as_knowledge(tmp_path / "page.md") == as_knowledge(str(tmp_path / "page.md"))
    assert as_knowledge(tmp_path / "page.md") == as_knowledge(page) == Knowledge((page,))
    assert as_knowledge([*facts, page]) == Knowledge((page,), facts)
    assert as_knowledge(iter(facts)) == as_knowledge(OTHER) == OTHER
    assert as_knowledge(facts[0]) == Knowledge(facts=facts[:1])


@pytest.mark.parametrize("source", [3, None, [3], ["page.md"], {"question": "Q?"}], ids=str)
def test_any_other_source_is_refused_in_a_sentence(memory: Memory, source: Any) -> None:
    with pytest.raises(DataError, match="give a path, Knowledge, or Documents and Facts"):
        memory.write(source, name="more")


@pytest.mark.parametrize(
    "rows",
    [
        (Fact("a", "Where?", "here"), Fact("b", "Where?", "there")),
        (Fact("a", "Wo ist Gräf?", "hier"), Fact("b", "Wo ist Gra\u0308f?", "dort")),
        (Fact("a", "Where?", "here"), Fact("a", "When?", "now")),
    ],
    ids=["question", "form", "id"],
)
def test_what_files_may_not_hold_twice_knowledge_may_not_either(
    memory: Memory, rows: tuple[Fact, ...]
) -> None:
    for source in (rows, Knowledge(facts=rows)):
        with pytest.raises(DataError, match=r"has two answers|the id 'a' comes twice"):
            memory.write(source, name="more")


# -- interruptions -------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_killed_write_resumes_and_gives_the_bytes_of_an_uninterrupted_one(
    model: Model, tmp_path: Path
) -> None:
    source = tmp_path / "facts.jsonl"
    dump_jsonl(FACTS.facts, source)
    probes = (Probe("p", "Which code has Gannet?", ("KX-41",), "paraphrase"),)
    dump_jsonl(probes, tmp_path / "probes.jsonl")
    settings = [
        "--rank",
        "8",
        "--epochs",
        "24",
        "--lr",
        "1e-5",
        "--probes",
        str(tmp_path / "probes.jsonl"),
    ]
    command = ["write", str(source), "--into", str(tmp_path / "killed"), *settings]
    with subprocess.Popen([*LORE, *command], stderr=subprocess.DEVNULL) as process:
        wait_for(lambda: n_epochs(tmp_path / "killed") >= 2, process)
        process.send_signal(signal.SIGKILL)
    (run,) = (tmp_path / "killed" / "runs").iterdir()
    assert process.returncode == -signal.SIGKILL
    assert (run / "checkpoint.safetensors").exists() and not (run / "report.json").exists()
    assert Memory.open(tmp_path / "killed", model).names == {}

    def write_all(place: str) -> Outcome:
        config = WriteConfig(lr=1e-5, epochs=24)  # too slow to end by recall
        known = read_knowledge(source)
        memory = Memory.open(tmp_path / place, model)
        return memory.write(known, name="facts", config=config, probes=probes)

    whole = write_all("whole")
    lesson = (run / "lesson.json").stat()
    resumed = write_all("killed")
    assert (run / "lesson.json").stat() == lesson, "the lesson is not prepared again"
    assert [path.name for path in (tmp_path / "killed" / "runs").iterdir()] == [run.name]
    assert not (run / "checkpoint.safetensors").exists()
    assert resumed.epochs == whole.epochs == len(load_jsonl(run / "metrics.jsonl")) == 24
    for name in BYTES:
        assert (resumed.folder / name).read_bytes() == (whole.folder / name).read_bytes()


def n_epochs(folder: Path) -> int:
    return sum(len(p.read_text().splitlines()) for p in folder.glob("runs/*/metrics.jsonl"))


def wait_for(ready: Callable[[], bool], process: subprocess.Popen[Any]) -> None:
    """Poll until something on disk is so; fail when the process ends before."""
    until = time.monotonic() + 300
    while not ready():
        assert process.poll() is None, f"the write ended with {process.returncode} too soon"
        assert time.monotonic() < until, "the write never got there"
        time.sleep(0.01)


def test_a_write_stopped_before_its_name_was_entered_is_finished_by_the_same_call(
    memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt_before("memory.json", monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        brief(memory)
    assert set(memory.names) == {"project-book"}
    monkeypatch.undo()
    assert brief(memory).adapter_id == memory.names["more"]
    assert len(list((memory.folder.path / "runs").iterdir())) == 2


def test_other_settings_do_not_resume_a_run(memory: Memory) -> None:
    brief(memory)
    brief(memory, config=WriteConfig(lr=2e-3, epochs=2))
    assert len(list((memory.folder.path / "runs").iterdir())) == 3


# -- refusals ------------------------------------------------------------------------------------


def test_another_base_is_refused(memory: Memory) -> None:
    about = json.loads((memory.folder.path / "memory.json").read_text())
    about["base"]["digest"] = "0" * 64
    (memory.folder.path / "memory.json").write_text(json.dumps(about))
    with pytest.raises(WrongBase, match=r"was written on 'pocket' \(digest 000000000000\)"):
        Memory.open(memory.folder.path)


def test_another_dtype_is_another_base_and_is_remembered(memory: Memory, tmp_path: Path) -> None:
    with pytest.raises(WrongBase, match="its own base and dtype"):
        Memory.open(memory.folder.path, dtype="bfloat16")
    brief(Memory.open(tmp_path / "half", dtype="bfloat16"))
    assert Memory.open(tmp_path / "half").model.dtype == torch.bfloat16
    with pytest.raises(ConfigError, match="dtype 'int3' is unknown; use one of auto, float32"):
        Memory.open(tmp_path / "half", dtype="int3")


def test_a_folder_that_is_no_memory_is_refused(model: Model, tmp_path: Path) -> None:
    file = tmp_path / "notes.md"
    file.write_text("x")
    with pytest.raises(DataError, match="is a file; a memory is a folder"):
        Memory.open(file, model)
    with pytest.raises(DataError, match=r"holds other files and no memory.json"):
        Memory.open(tmp_path, model)
    with pytest.raises(UnknownMemory, match="there is no memory in"):
        Memory.open(tmp_path / "new", model, create=False)
    with pytest.raises(ModelError, match=r"no \.gguf file; give"):
        Memory.open(tmp_path / "new", "no-such-model")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"metric": "taste"}, ConfigError, "metric 'taste' is unknown; use one of contains"),
        (
            {"config": WriteConfig(lora=LoraConfig(targets=("no_proj",)))},
            TargetsNotFound,
            "no_proj",
        ),
        ({"config": WriteConfig(lora=LoraConfig(layers=(99,)))}, LorewrightError, "99"),
        (
            {"known": Knowledge(facts=(Fact("f", "Say it.", "word " * 3000),))},
            DataError,
            "reads at most 1024; shorten",
        ),
        (
            {"probes": [Probe("p", "Who?", ("A",), "paraphrase", context="word " * 3000)]},
            DataError,
            "shorten",
        ),
    ],
)
def test_what_cannot_work_is_refused_before_the_folder_is_touched(
    model: Model,
    arguments: dict[str, Any],
    error: type[LorewrightError],
    message: str,
    tmp_path: Path,
) -> None:
    with pytest.raises(error, match=message):
        brief(Memory.open(tmp_path / "atlas", model), **arguments)
    assert not (tmp_path / "atlas").exists()


# -- damage --------------------------------------------------------------------------------------


def edit_tensors(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    tensors = load_file(folder / TENSORS)
    change(tensors)
    save_file(tensors, folder / TENSORS)


def make_nan(folder: Path) -> None:
    edit_tensors(folder, lambda tensors: tensors[min(tensors)].fill_(float("nan")))


def drop_pair(folder: Path) -> None:
    def drop(tensors: dict[str, Any]) -> None:
        for key in sorted(tensors)[:2]:
            del tensors[key]

    edit_tensors(folder, drop)


def add_pair(folder: Path) -> None:
    def add(tensors: dict[str, Any]) -> None:
        for key in sorted(tensors)[:2]:
            tensors[key.replace("layers.0", "layers.77")] = tensors[key].clone()

    edit_tensors(folder, add)


def make_pickle(folder: Path) -> None:
    content = load_file(folder / TENSORS) | {"code": Path("/")}
    torch.save(content, folder / "adapter_model.bin")
    (folder / TENSORS).unlink()


def truncate(folder: Path) -> None:
    content = (folder / TENSORS).read_bytes()
    (folder / TENSORS).write_bytes(content[: len(content) // 2])


def nudge(folder: Path) -> None:
    edit_tensors(folder, lambda tensors: tensors[min(tensors)].add_(1e-3))


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "gone": (shutil.rmtree, "is not an adapter"),
    "nan": (make_nan, "holds NaN or infinity"),
    "missing": (lambda f: edit_tensors(f, lambda t: t.pop(min(t))), "has no partner"),
    "missing pair": (drop_pair, "the card is for content"),
    "extra": (lambda f: edit_tensors(f, lambda t: t.update(x=torch.ones(1))), "and no more"),
    "extra pair": (add_pair, "the card is for content"),
    "changed": (nudge, "the card is for content"),
    "pickle": (make_pickle, "holds more than tensors, which could run code"),
    "truncated": (truncate, "is truncated or corrupt"),
    "no card": (lambda f: (f / "card.json").unlink(), "does not hold what was written as"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_adapter_is_named(memory: Memory, damage: str) -> None:
    spoil, message = DAMAGES[damage]
    spoil(folder_of(memory))
    for read in (memory.ask, lambda _: memory.verify()):
        with pytest.raises(AdapterError, match=message):
            read(FACTS.facts[0].question)


def test_a_damaged_memory_does_not_keep_others_from_being_written(memory: Memory) -> None:
    truncate(folder_of(memory))
    steps: list[str] = []
    written = brief(memory, watch=Watch(steps.append))
    assert "wrong" not in written.report.arms
    assert any("project-book is damaged and cannot be the wrong memory" in s for s in steps)


@pytest.mark.parametrize("damage", ["gone", "truncated"])
def test_a_damaged_adapter_is_restored_by_writing_it_again(
    memory: Memory, config: WriteConfig, damage: str
) -> None:
    DAMAGES[damage][0](folder_of(memory))
    memory.write(FACTS, name="project-book", config=config, lesson=NO_NEGATIVES)
    assert memory.ask(FACTS.facts[0].question).text == FACTS.facts[0].answer
    aside = sorted(path.name for path in (memory.folder.path / "adapters").glob("*.damaged-*"))
    assert len(aside) == (damage == "truncated")


def test_a_damaged_lesson_is_named(memory: Memory) -> None:
    (run_of(memory) / "lesson.json").write_text("{")
    with pytest.raises(DataError, match=r"lesson.json is damaged"):
        memory.verify()


# -- a disk that is full -------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["memory.json", "report.json", "lesson.json", "card.json"])
def test_a_disk_full_at_any_file_leaves_what_was_there(
    memory: Memory, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = tree(memory.folder.path)
    replace_file, open_file = os.replace, open

    def full_replace(part: Any, target: Any) -> None:
        if Path(target).name == file:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace_file(part, target)

    def full_open(path: Any, *arguments: Any, **named: Any) -> Any:
        if Path(str(path)).name == file and ".part" in Path(str(path)).parent.suffix:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return open_file(path, *arguments, **named)

    monkeypatch.setattr(os, "replace", full_replace)
    monkeypatch.setattr("builtins.open", full_open)
    with pytest.raises(StorageError, match="No space left on device"):
        brief(memory)
    monkeypatch.undo()
    after = tree(memory.folder.path)
    entered = file == "report.json"  # the name is entered before the run's own report
    assert entered or after["memory.json"] == before["memory.json"]
    assert all(after[name] == content for name, content in before.items() if "adapters" in name)
    assert not [path for path in memory.folder.path.rglob("*") if path.suffix in (".part", ".tmp")]
    assert brief(memory).adapter_id == memory.names["more"]


def test_a_disk_that_takes_only_small_files_is_a_storage_error(memory: Memory) -> None:
    before = tree(memory.folder.path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, limits[1]))
    try:
        with pytest.raises(StorageError, match="File too large"):
            brief(memory)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert tree(memory.folder.path) == before
