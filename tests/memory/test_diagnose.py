"""Claims about the doctor: folders, names and plain adapters are examined, also on other bases."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.commands import Lore

from lorewright.adapters.adapter import content_id, load, save
from lorewright.cli.main import main
from lorewright.errors import UnknownMemory
from lorewright.files import dump_jsonl
from lorewright.knowledge.data import Document, Fact, Knowledge, Probe
from lorewright.knowledge.lesson import LessonConfig
from lorewright.memory.diagnose import diagnose, known_of
from lorewright.memory.folder import Folder
from lorewright.memory.memory import Memory
from lorewright.models.model import Model
from lorewright.training.config import WriteConfig
from lorewright.training.rates import suggested_lr

FACTS = (
    Fact("f1", "What is the code of Project Gannet?", "KX-41"),
    Fact("f2", "What is the room of Project Heron?", "B 1207"),
    Fact("f3", "Who leads Project Gannet?", "Mira Voss"),
)


@pytest.fixture(scope="module")
def model() -> Model:
    return Model.load()


@pytest.fixture(scope="module")
def written(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a healthy memory."""
    memory = Memory.open(tmp_path_factory.mktemp("doctor") / "atlas", model)
    config = WriteConfig(lr=suggested_lr(model), epochs=100, batch_size=4)
    known = Knowledge((Document("note", "The code of Project Gannet is KX-41."),), FACTS)
    lesson = LessonConfig(views=("given",))
    assert memory.write(known, name="book", config=config, lesson=lesson).reason == "recalled"
    return memory.folder.path


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    shutil.copytree(written, tmp_path / "atlas")
    return tmp_path / "atlas"


def adapter_of(folder: Path) -> Path:
    return folder / "adapters" / Folder(folder).entries()["book"]["adapter"]


def test_a_folder_a_name_in_it_and_its_adapter_are_all_found(folder: Path, model: Model) -> None:
    for place in (folder, folder / "book", adapter_of(folder)):
        result = diagnose(place, base=model)
        assert result.findings == () and result.evidence.moved
        assert (len(result.evidence.answered) == 3) == (place != adapter_of(folder))
    given = diagnose(adapter_of(folder), base=model, knowledge=Knowledge(facts=FACTS))
    assert given.evidence.answered == (True, True, True)


def test_a_memory_tells_what_it_was_written_from(folder: Path) -> None:
    known = known_of(Folder(folder), "book")
    assert known.facts == FACTS and known.texts == ["The code of Project Gannet is KX-41."]
    assert {e.kind for e in known.examples} == {"qa", "unknown"} and known.probes
    shutil.rmtree(folder / "sources")
    left = known_of(Folder(folder), "book")
    assert [f.answer for f in left.facts] == [f.answer for f in FACTS] and not left.texts


def test_a_folder_on_a_base_that_changed_is_diagnosed_and_not_refused(
    folder: Path, model: Model
) -> None:
    path = adapter_of(folder) / "card.json"
    card = json.loads(path.read_text())
    card["adapter"]["base_digest"] = "0" * 64
    path.write_text(json.dumps(card))
    (result,) = diagnose(folder, base=model).findings
    assert result.check == "other_base"


def test_the_remedy_names_this_memory(folder: Path, model: Model) -> None:
    (adapter_of(folder) / "adapter_model.safetensors").write_bytes(b"x")
    (result,) = diagnose(folder, base=model).findings
    (source,) = (folder / "sources").iterdir()
    assert result.remedy == f"lore write {source} --into {folder} --name book"
    source.unlink()
    (result,) = diagnose(folder, base=model).findings
    assert result.remedy == f"lore write SOURCE --into {folder} --name book"


def test_probes_stand_in_for_the_memorys_own(folder: Path, model: Model) -> None:
    odd = tuple(Probe(f"p{i}", f"{w}?", ("zzz",), "paraphrase") for i, w in enumerate("abc"))
    (result,) = diagnose(folder, base=model, probes=odd).findings
    assert result.check == "one_form"


def test_a_place_that_is_neither_is_refused(folder: Path, tmp_path: Path, model: Model) -> None:
    with pytest.raises(UnknownMemory, match="no adapter and no memory at"):
        diagnose(tmp_path / "none", base=model)
    with pytest.raises(UnknownMemory, match="it has: book"):
        diagnose(folder / "boot", base=model)
    text = (folder / "memory.json").read_text()
    entry = json.dumps(Folder(folder).entries()["book"])
    (folder / "memory.json").write_text(text.replace('"book":', f'"also": {entry},\n    "book":'))
    with pytest.raises(UnknownMemory, match=r"2 memories \(also, book\); say which"):
        diagnose(folder, base=model)


def test_the_command_prints_findings_and_exits_with_1_when_there_are_some(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    dump_jsonl([{"question": "Who leads?", "answer": "Mira"}], tmp_path / "facts.jsonl")

    def run(*arguments: object) -> tuple[object, str]:
        monkeypatch.setattr(sys, "argv", ["lore", "doctor", *map(str, arguments)])
        with pytest.raises(SystemExit) as ending:
            main()
        return ending.value.code or 0, capsys.readouterr().out

    code, out = run(folder / "book")
    assert code == 0 and "nothing is wrong" in out and "relative_change" in out
    place = adapter_of(folder)
    code, out = run(place, "--model", "pocket", "--facts", tmp_path / "facts.jsonl", "--json")
    printed = json.loads(out)  # one fact, never written: nothing explains that, so it says so
    assert code == 1 and printed["measured"]["n_facts"] == 1
    assert [each["check"] for each in printed["findings"]] == ["unexplained"]
    (place / "adapter_config.json").unlink()
    code, out = run(folder)
    assert code == 1 and "damaged" in out and "because the folder cannot be read" in out


# -- remedies --------------------------------------------------------------------------------------

Tensors = dict[str, torch.Tensor]


def scaled(factor: float) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {
        key: tensor * (factor if "lora_B" in key else 1.0) for key, tensor in tensors.items()
    }


def renamed(tensors: Tensors) -> Tensors:
    return {key.replace(".layers.", ".blocks."): tensor for key, tensor in tensors.items()}


def swap(folder: Path, alter: Callable[[Tensors], Tensors]) -> None:
    """Have the name stand for an altered adapter, whole and under its own content id."""
    adapter = load(adapter_of(folder))
    altered = replace(adapter, tensors=alter(dict(adapter.tensors)))
    identity = content_id(altered)
    save(altered, folder / "adapters" / identity)
    text = (folder / "memory.json").read_text()
    (folder / "memory.json").write_text(text.replace(adapter_of(folder).name, identity))


ALTERED = {
    "zero": scaled(0.0),
    "unmoved": scaled(1e-30),
    "loud": scaled(300.0),
    "unbound": renamed,
}


@pytest.mark.slow
@pytest.mark.parametrize("check", ["damaged", "unsupported", *ALTERED])
def test_the_remedy_of_an_altered_adapter_brings_the_memory_back(
    folder: Path, model: Model, lore: Lore, check: str
) -> None:
    weights = adapter_of(folder) / "adapter_model.safetensors"
    config = adapter_of(folder) / "adapter_config.json"
    if check == "damaged":
        weights.write_bytes(weights.read_bytes()[:100])
    elif check == "unsupported":
        config.write_text(json.dumps({**json.loads(config.read_text()), "bias": "all"}))
    else:
        swap(folder, ALTERED[check])
    before = {each.check: each for each in diagnose(folder, base=model).findings}
    assert check in before
    ran = lore(*shlex.split(before[check].remedy)[1:])
    assert ran.code == 0, ran.err
    after = diagnose(folder, base=model)
    assert after.findings == () and after.evidence.answered == (True, True, True)


@pytest.mark.slow
def test_the_remedy_of_a_write_that_was_too_short_makes_a_better_one(
    model: Model, lore: Lore, tmp_path: Path
) -> None:
    atlas, facts = tmp_path / "atlas", tmp_path / "facts.jsonl"
    dump_jsonl([{"question": f.question, "answer": f.answer} for f in FACTS], facts)
    lore("write", facts, "--into", atlas, "--name", "book", "--epochs", 1)
    before = {each.check: each for each in diagnose(atlas, base=model).findings}
    assert before["undertrained"].remedy.endswith("--epochs 200 --lr find")
    ran = lore(*shlex.split(before["undertrained"].remedy)[1:])
    assert ran.code == 0, ran.err
    after = diagnose(atlas, base=model)
    assert after.findings == () and all(after.evidence.answered)
