"""Claims about forgetting: what goes, what stays, and that the proof can fail.

Two small memories are written for all; every test works on a copy of the folder.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from support.commands import Lore
from support.interruptions import interrupt_before

from lorewright.adapters import adapter as adapters
from lorewright.errors import ConfigError, DataError, StorageError, UnknownMemory
from lorewright.files import cache_folder, digest, dump_jsonl, load_jsonl, save_json
from lorewright.knowledge.data import Document, Fact, Knowledge
from lorewright.knowledge.lesson import LessonConfig, prepare
from lorewright.knowledge.selfstudy import prompts_of
from lorewright.knowledge.teacher import ReplyCache
from lorewright.memory.leftovers import scan, wanted
from lorewright.memory.memory import Memory
from lorewright.memory.removal import plan_removal, unfinished
from lorewright.memory.snapshot import restore, take
from lorewright.merging.algebra import merge
from lorewright.models.model import Model
from lorewright.training.config import WriteConfig
from lorewright.training.rates import suggested_lr

GANNET = Knowledge(
    documents=(
        Document("note", '# Settings\n\nAt 07:45 the "blue\\grey" café of Gannet opens.\n'),
    ),
    facts=(
        Fact("f1", "What is the code of Project Gannet?", "KX-4109", (), ("Gannet's code?",)),
        Fact("f3", "Who leads Project Gannet?", "Mira Voss"),
    ),
)
HERON = Knowledge(
    facts=(
        Fact("g1", "What is the room of Project Heron?", "B 1207"),
        Fact("g2", "Who leads Project Heron?", "Ansel Thorne"),
    )
)
QUICK = LessonConfig(negatives=0, views=("given",))


@pytest.fixture(scope="module")
def model() -> Model:
    return Model.load()


@pytest.fixture(scope="module")
def folder(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two memories."""
    memory = Memory.open(tmp_path_factory.mktemp("forget") / "atlas", model)
    config = WriteConfig(lr=suggested_lr(model), epochs=80, batch_size=2, margin=0.5)
    for name, known in (("gannet", GANNET), ("heron", HERON)):
        written = memory.write(known, name=name, config=config, lesson=QUICK)
        assert written.audit.n_exact >= len(known.facts)
    return memory.folder.path


@pytest.fixture
def memory(model: Model, folder: Path, tmp_path: Path) -> Memory:
    """A copy of the folder, to do anything with."""
    shutil.copytree(folder, tmp_path / "atlas")
    return Memory.open(tmp_path / "atlas", model)


def texts_of(known: Knowledge) -> list[str]:
    documents = [line for d in known.documents for line in d.text.split("\n") if " " in line[2:]]
    return [*documents, *(t for f in known.facts for t in (f.question, *f.answers))]


def files(memory: Memory) -> set[str]:
    result = (p for p in memory.folder.path.rglob("*") if p.is_file())
    return {str(p.relative_to(memory.folder.path)) for p in result if p.name != ".lock"}


def merged(memory: Memory, name: str, *of: str) -> str:
    """Enter the merge of some memories, with its parents."""
    parts = [memory.adapter(each) for each in of]
    made = merge(parts, method="cat").adapter
    identity = adapters.content_id(made)
    adapters.save(made, memory.folder.path / "adapters" / identity)
    parents = [{"name": each, "adapter": memory.names[each]} for each in of]
    both = Knowledge(GANNET.documents, GANNET.facts + HERON.facts)
    dump_jsonl(
        [*both.documents, *both.facts], memory.folder.path / "sources" / f"{both.digest()}.jsonl"
    )
    run = memory.folder.path / "runs" / f"20260101-000000-{name}"
    save_json({"name": name, "source": both.digest()}, run / "config.json")
    made_of = prepare(both, ask_llm=list, closed_book=list, config=QUICK)
    save_json(made_of, run / "lesson.json")
    with memory.writing():
        about = {"source": both.digest(), "run": run.name, "parents": parents}
        memory.folder.enter(name, identity, **about)
    return identity


# -- what goes -----------------------------------------------------------------------------------


def test_forgetting_leaves_the_other_memory_and_no_word_of_the_forgotten(memory: Memory) -> None:
    before = files(memory)
    heron = {name for name in before if memory.names["heron"] in name or "-heron" in name}
    assert scan(memory.folder.path, wanted(texts_of(GANNET))).leftovers
    proof = memory.forget("gannet")
    assert proof.holds and not proof.scan.leftovers and proof.scan.n_files > 5
    assert memory.names.keys() == {"heron"} and heron <= files(memory)
    assert not scan(memory.folder.path, wanted(texts_of(GANNET))).leftovers
    assert proof.removal.names == ("gannet",) and len(proof.removal.sources) == 1
    assert memory.ask("Who leads Project Heron?", "heron", mode="closed").text == "Ansel Thorne"


def test_recall_of_the_forgotten_falls_to_the_level_of_the_base(memory: Memory) -> None:
    proof = memory.forget("gannet")
    assert proof.before is not None and proof.before.mean == 2 / 3  # the paraphrase is not trained
    assert proof.base is not None and proof.base.mean == 0 and proof.base.n == 3
    assert proof.others.keys() == {"heron"} and proof.others["heron"].mean == 0


def test_words_in_the_verdicts_of_others_are_blanked(memory: Memory) -> None:
    (run,) = memory.folder.path.glob("runs/*-heron")
    report = json.loads((run / "report.json").read_text())
    assert "wrong" in report["outcomes"]
    report["outcomes"]["wrong"][0]["output"] = "The code is KX-4109."
    save_json(report, run / "report.json")
    proof = memory.forget("gannet")
    after = json.loads((run / "report.json").read_text())
    assert proof.n_blanked >= 1 and proof.holds
    assert after["outcomes"]["wrong"][0]["output"] == "[forgotten]"
    assert after["recall"] == report["recall"]
    assert after["outcomes"]["memory"] == report["outcomes"]["memory"]


def test_what_a_teacher_replied_on_it_is_removed_and_the_rest_of_its_cache_reads(
    memory: Memory,
) -> None:
    replies = ReplyCache(memory.folder.path / "teacher.jsonl")
    prompt = next(iter(prompts_of(GANNET.documents[0])))
    replies.add(digest(["m", prompt]), "In words that the source does not have.", "m")
    replies.add("k2", "Q: Which code? A: KX-4109", "m")
    replies.add("k3", "Something élse.", "m")
    assert memory.forget("gannet").holds
    assert ReplyCache(memory.folder.path / "teacher.jsonl").replies == {"k3": "Something élse."}
    assert len(load_jsonl(memory.folder.path / "teacher.jsonl")) == 1


def test_earlier_adapters_of_the_name_and_interrupted_runs_go_too(memory: Memory) -> None:
    old = memory.names["gannet"]
    brief = WriteConfig(lr=1e-3, epochs=1)
    less = Knowledge(facts=GANNET.facts[:1])
    memory.write(less, name="gannet", overwrite=True, config=brief, lesson=QUICK)
    run = memory.folder.path / "runs" / "20200101-000000-half"
    save_json({"key": "k", "name": "other", "source": GANNET.digest()}, run / "config.json")
    (run / "checkpoint.safetensors").write_bytes(b"x")
    shutil.copytree(
        memory.folder.path / "adapters" / old, memory.folder.path / f"adapters/{old}.damaged-1"
    )
    proof = memory.forget("gannet")
    assert {old, f"{old}.damaged-1"} <= {*proof.removal.adapters} and len(proof.removal.runs) == 3
    assert {p.name for p in (memory.folder.path / "adapters").iterdir()} == {memory.names["heron"]}
    assert len(list((memory.folder.path / "sources").iterdir())) == 1


# -- what stays ----------------------------------------------------------------------------------


def test_what_another_name_uses_stays_and_is_named(memory: Memory) -> None:
    with memory.writing():
        entry = memory.folder.entries()["gannet"]
        memory.folder.change(lambda names: names.update(twin=entry))
    proof = memory.forget("gannet")
    assert memory.names.keys() == {"heron", "twin"}
    assert memory.ask("Who leads Project Gannet?", "twin", mode="closed").text == "Mira Voss"
    assert [line.split()[0] for line in proof.removal.kept] == ["adapter", "source"]
    assert all("twin still uses it" in line for line in proof.removal.kept)
    assert not proof.removal.adapters and not proof.removal.sources and not proof.removal.runs
    assert proof.above_base == ("twin",) and not proof.holds


def test_words_that_others_were_written_from_are_shared_and_not_traces(memory: Memory) -> None:
    both = Knowledge(facts=(GANNET.facts[1], HERON.facts[0]))
    memory.write(both, name="both", config=WriteConfig(lr=1e-3, epochs=1), lesson=QUICK)
    proof = memory.forget("gannet")
    assert "mira voss" in proof.shared and "kx 4109" not in proof.shared
    assert not proof.scan.leftovers


def test_what_was_merged_from_it_is_named_and_goes_when_told(memory: Memory) -> None:
    merged(memory, "pair", "gannet", "heron")
    merged(memory, "grandchild", "pair", "heron")
    before = files(memory)
    with pytest.raises(ConfigError, match=r"2 memories were merged from it \(pair, grandchild\)"):
        memory.forget("gannet")
    assert files(memory) == before
    proof = memory.forget("gannet", with_merged=True)
    assert proof.removal.names == ("gannet", "pair", "grandchild") and proof.holds
    assert memory.names.keys() == {"heron"} and len(proof.removal.adapters) == 3
    assert proof.base is not None and proof.base.n == 3  # not those of the other parent


def test_a_merge_stays_out_of_the_way_of_its_other_parent(memory: Memory) -> None:
    merged(memory, "pair", "gannet", "heron")
    assert plan_removal(memory.folder, "pair").names == ("pair",)
    proof = memory.forget("pair")
    assert len(proof.removal.sources) == 1 and not proof.scan.leftovers
    assert memory.names.keys() == {"gannet", "heron"}
    assert proof.holds and proof.removal.parents == ("gannet", "heron")
    assert "gannet stays: pair was merged from it." in proof.removal.kept


# -- the proof can fail --------------------------------------------------------------------------


def test_a_copy_left_in_the_folder_is_found(memory: Memory) -> None:
    (memory.folder.path / "notes").mkdir()
    (memory.folder.path / "notes" / ".draft").write_text(
        '{"said": "at 07:45 the \\"blue\\\\grey\\" caf\\u00e9"}'
    )
    proof = memory.forget("gannet")
    assert not proof.holds and {str(t.path) for t in proof.scan.leftovers} == {"notes/.draft"}
    plain = proof.to_json()
    assert plain["files"]["traces"][0]["words"] and not plain["holds"]
    (record,) = memory.folder.path.glob("runs/*-forget/report.json")
    assert "blue" not in record.read_text() and "notes/.draft" in record.read_text()


def test_a_memory_that_still_knows_it_is_named(memory: Memory) -> None:
    with memory.writing():
        known = memory.folder.entries()["gannet"]
        copy = {**known, "source": "", "run": ""}
        memory.folder.change(lambda names: names.update(copy=copy))
    proof = memory.forget("gannet")
    assert proof.above_base == ("copy",) and not proof.holds


# -- weights -------------------------------------------------------------------------------------


def refuse_to_remove(*_: Any, **__: Any) -> None:
    raise PermissionError(1, "Operation not permitted")


def test_what_the_disk_does_not_let_go_is_an_error_and_nothing_is_forgotten(
    memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = memory.folder.state_path(memory.names["gannet"])
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", refuse_to_remove)
        with pytest.raises(StorageError, match=r"could not be removed .*is not forgotten"):
            memory.forget("gannet")
    assert place.exists()
    proof = memory.forget("gannet")
    assert proof.holds and not place.exists() and proof.wanted.runs and proof.base is not None


@pytest.mark.parametrize("what", ["adapter", "adapters", "tensors", "source"])
def test_a_link_among_what_goes_is_refused_unless_its_target_can_go_too(
    memory: Memory, tmp_path: Path, what: str
) -> None:
    entry = memory.folder.entries()["gannet"]
    adapter = memory.folder.state_path(entry["adapter"])
    link = {
        "adapter": adapter,
        "adapters": memory.folder.path / "adapters",
        "tensors": adapter / "adapter_model.safetensors",
        "source": memory.folder.source_path(entry["source"]),
    }[what]
    elsewhere = tmp_path / "elsewhere"
    link.rename(elsewhere)
    link.symlink_to(elsewhere)
    if what == "adapters":
        assert memory.forget("gannet").holds
        assert not (elsewhere / entry["adapter"]).exists()
        return
    with pytest.raises(DataError, match=r"is a link to .*would stay"):
        memory.forget("gannet")
    assert memory.folder.entries()["gannet"] == entry and elsewhere.exists()
    link.unlink()
    elsewhere.rename(link)
    assert memory.forget("gannet").holds


@pytest.mark.parametrize("place", ["notes/copy.bin", "adapters/.hidden/x", "runs/old/tensors"])
def test_a_copy_of_the_weights_anywhere_in_the_folder_fails_the_proof(
    memory: Memory, place: str
) -> None:
    copy = memory.folder.path / place
    copy.parent.mkdir(parents=True)
    tensors = memory.folder.state_path(memory.names["gannet"]) / "adapter_model.safetensors"
    shutil.copy(tensors, copy)
    proof = memory.forget("gannet")
    assert not proof.holds
    assert [(str(each.path), each.words) for each in proof.scan.leftovers] == [(place, ())]


def test_words_behind_a_link_are_searched_for(memory: Memory, tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "old.txt").write_text("Mira Voss")
    (memory.folder.path / "notes").symlink_to(tmp_path / "notes")
    (tmp_path / "notes" / "round").symlink_to(memory.folder.path)
    proof = memory.forget("gannet")
    assert [str(each.path) for each in proof.scan.leftovers] == ["notes/old.txt"]


def test_half_written_copies_are_swept_and_what_was_set_aside_is_put_back(memory: Memory) -> None:
    adapters_folder = memory.folder.path / "adapters"
    gannet, heron = memory.names["gannet"], memory.names["heron"]
    shutil.copytree(adapters_folder / gannet, adapters_folder / f".{gannet}.0123abcd.part")
    (adapters_folder / heron).rename(adapters_folder / f".{heron}.0123abcd.old")
    source = next((memory.folder.path / "sources").iterdir())
    shutil.copy(source, source.with_name(f".{source.name}.0123abcd.tmp"))
    assert memory.forget("gannet").holds
    assert [p.name for p in adapters_folder.iterdir()] == [heron]
    assert len(list((memory.folder.path / "sources").iterdir())) == 1


def test_replies_to_plans_of_the_source_are_removed_from_the_users_cache(memory: Memory) -> None:
    cached = cache_folder() / "teacher.jsonl"
    replies = ReplyCache(cached)
    prompt = next(iter(prompts_of(GANNET.documents[0])))
    replies.add(digest(["m", prompt]), "In words that the source does not have.", "m")
    replies.add("k2", "Q: Which code? A: KX-4109", "m")
    replies.add("k3", "Something else.", "m")
    assert memory.forget("gannet").holds
    assert ReplyCache(cached).replies == {"k3": "Something else."}


# -- damage and interruptions --------------------------------------------------------------------


def test_a_damaged_memory_can_be_forgotten(memory: Memory) -> None:
    place = memory.folder.path / "adapters" / memory.names["gannet"]
    (place / "adapter_model.safetensors").write_bytes(b"x")
    (memory.folder.path / "runs").joinpath(
        memory.folder.entries()["gannet"]["run"], "lesson.json"
    ).unlink()
    proof = memory.forget("gannet")
    assert proof.before is None and proof.base is None and proof.holds
    assert not place.exists() and "gannet" not in memory.names


@pytest.mark.parametrize("at", ["memory.json", "rmtree", "unlink"])
def test_an_interrupted_removal_is_completed_by_the_same_command(
    memory: Memory, at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    if at == "memory.json":
        interrupt_before(at, monkeypatch)
    else:
        monkeypatch.setattr(shutil if at == "rmtree" else Path, at, stop)
    with pytest.raises(KeyboardInterrupt):
        memory.forget("gannet")
    monkeypatch.undo()
    assert unfinished(memory.folder)
    proof = memory.forget("gannet")
    assert proof.holds and proof.removal.sources and proof.wanted.runs
    assert proof.base is not None and proof.base.n == 3
    assert not (memory.folder.path / "forgetting.json").exists()
    assert memory.names.keys() == {"heron"}


def test_an_interrupted_removal_is_completed_before_another_begins(
    memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt_before("memory.json", monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        memory.forget("gannet")
    monkeypatch.undo()
    assert memory.forget("heron").holds
    assert not memory.names and not list((memory.folder.path / "adapters").iterdir())
    assert not scan(memory.folder.path, wanted(texts_of(GANNET))).leftovers


def interrupted(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Begin to forget gannet, and stop before any file is removed."""
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(shutil, "rmtree", stop_here)
        memory.forget("gannet")


def stop_here(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def test_an_interrupted_removal_is_listed_and_completed_by_the_next_writer(
    memory: Memory, lore: Lore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    interrupted(memory, monkeypatch)
    shown = lore("show", memory.folder.path)
    assert f"lore forget {memory.folder.path} gannet" in "".join(shown.out.splitlines())
    assert lore("show", memory.folder.path, "--json").json["forgetting"] == ["gannet"]
    take(memory.folder.path, tmp_path / "a.tar")
    restore(tmp_path / "a.tar", tmp_path / "b")
    for folder in (memory.folder.path, tmp_path / "b"):
        assert not scan(folder, wanted(texts_of(GANNET))).leftovers
        assert [p.name for p in (folder / "adapters").iterdir()] == [memory.names["heron"]]
        assert not (folder / "forgetting.json").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"adapters": [".."]},
        {"runs": ["../adapters"]},
        {"sources": ["/etc/passwd"]},
        {"adapters": ["."]},
        {"runs": [""]},
        {"adapters": [3]},
        {"names": []},
        {"names": ["other"]},
        {"parents": 3},
    ],
    ids=str,
)
def test_a_note_that_no_removal_would_leave_is_refused_and_nothing_goes(
    memory: Memory, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    journal = memory.folder.path / "forgetting.json"
    entries = memory.folder.entries()
    interrupted(memory, monkeypatch)
    note = json.loads(journal.read_text())
    note["removal"] |= changes
    if changes == {"names": ["other"]}:  # and what it removes is in use
        with memory.folder.writing(memory.base()):
            memory.folder.change(lambda names: names.update(entries))
    save_json(note, journal)
    before = files(memory)
    for act in (lambda: memory.forget("heron"), lambda: memory.forget("gannet")):
        with pytest.raises(DataError, match=r"forgetting\.json .*delete it and forget"):
            act()
    with pytest.raises(DataError), memory.writing():
        raise AssertionError("went on")
    assert files(memory) == before


def test_an_unknown_name_is_refused_and_nothing_is_touched(memory: Memory) -> None:
    before = files(memory)
    with pytest.raises(UnknownMemory, match="it has: gannet, heron"):
        memory.forget("boot")
    assert files(memory) == before
