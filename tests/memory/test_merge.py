"""Claims about merging memories of a folder: what is measured, chosen, left and refused.

Two small memories are written in one stack for all; every test works on a copy of the folder.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.atlases import FORMS, PAGES, known, lesson_of, put, taught, written_pages

from lorewright.adapters.adapter import HALVES, Adapter, content_id, load
from lorewright.adapters.proof import delta_norms
from lorewright.cli.main import main
from lorewright.errors import ConfigError, NoEffect, UnknownMemory
from lorewright.knowledge.data import Example, Probe
from lorewright.memory.folder import Folder
from lorewright.memory.memory import Memory
from lorewright.memory.merge import Merged
from lorewright.memory.removal import descendants
from lorewright.merging.imitate import Source
from lorewright.merging.methods import METHODS, Evidence
from lorewright.models.model import Model
from lorewright.recall.traces import audit
from lorewright.recall.verify import side_by_side
from lorewright.training.watch import Watch

TWO = ("harbour", "mill")


@pytest.fixture(scope="module")
def model() -> Model:
    return Model.load()


@pytest.fixture(scope="module")
def sources() -> list[Source]:
    """Both memories, written at once."""
    return list(written_pages())


@pytest.fixture(scope="module")
def folder(model: Model, sources: list[Source], tmp_path_factory: pytest.TempPathFactory) -> Path:
    memory = Memory.open(tmp_path_factory.mktemp("merging") / "atlas", model)
    for name, source in zip(TWO, sources, strict=True):
        put(memory, name, known(name), taught(name), source.adapter)
    return memory.folder.path


@pytest.fixture
def memory(model: Model, folder: Path, tmp_path: Path) -> Memory:
    shutil.copytree(folder, tmp_path / "atlas")
    return Memory.open(tmp_path / "atlas", model)


@pytest.fixture(scope="module")
def merged(
    model: Model, folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Merged, Path]:
    """What the tests look at: both memories, merged by what `auto` takes; and its folder."""
    place = tmp_path_factory.mktemp("merged") / "atlas"
    shutil.copytree(folder, place)
    return Memory.open(place, model).merge(TWO, into="Both of them"), place


# -- what a merge leaves -------------------------------------------------------------------------


def test_every_source_is_asked_its_own_probes_before_and_after(
    merged: tuple[Merged, Path], model: Model, sources: list[Source]
) -> None:
    result, _ = merged
    assert [part.name for part in result.parts] == list(TWO)
    for part, source, name in zip(result.parts, sources, TWO, strict=True):
        assert part.adapter_id == content_id(source.adapter)
        assert set(part.report.arms) == {"alone", "merged", "base"}
        probes = lesson_of(name).probes
        again = side_by_side(
            model, probes, {"alone": source.adapter, "merged": load(result.folder)}
        )
        assert part.report.arms == again.arms, "it is measured, from disk, on the stored probes"
        assert part.report.proportion("alone", "paraphrase").n == 3
        assert part.report.proportion("base", "paraphrase").mean == 0.0
        alone, after = (part.report.proportion(arm, "paraphrase") for arm in ("alone", "merged"))
        assert alone.mean is not None and after.mean is not None
        assert part.lost("paraphrase").mean == pytest.approx(alone.mean - after.mean)


def test_auto_tries_every_method_and_takes_the_one_that_kept_most(
    merged: tuple[Merged, Path],
) -> None:
    result, _ = merged
    assert {trial.method for trial in result.trials} == {*METHODS} - {"rewrite"}
    best = max(result.trials, key=lambda trial: trial.merit)
    assert (result.method, result.options, result.rank) == (best.method, best.options, best.rank)
    assert result.rank <= 8 and all(len(trial.held) == 2 for trial in result.trials)
    retained = {trial.method: trial.merit[1] for trial in result.trials if trial.rank == 8}
    assert retained["imitate"] > retained["mean"], "the choice makes a difference"


def test_a_merge_keeps_at_least_half_of_what_was_trained_on_either_side(
    merged: tuple[Merged, Path], model: Model, sources: list[Source]
) -> None:
    result, _ = merged
    with model.using(load(result.folder)):
        retained = [audit(model, source.examples).recall.mean for source in sources]
    assert min(share or 0 for share in retained) >= 0.5


def test_entry_and_card_name_parents_method_and_weights(merged: tuple[Merged, Path]) -> None:
    result, folder = merged
    known_entries = Folder(folder).entries()
    parents = [{"name": name, "adapter": known_entries[name]["adapter"]} for name in TWO]
    assert known_entries["both-of-them"]["parents"] == parents
    assert [*descendants(known_entries, "mill")] == ["both-of-them"]
    card = next(card for card in Folder(folder).cards() if card["name"] == "both-of-them")
    assert card["parents"] == parents and card["reason"] == f"merged by {result.method}"
    assert card["merge"]["sources"] == [each["adapter"] for each in parents]
    assert [part["memory"] for part in card["report"]["parts"]] == list(TWO)
    assert card["report"]["recall"]["paraphrase"]["memory"]["n"] == 6
    assert "outcomes" not in json.dumps(card["report"])
    run = folder / "runs" / known_entries["both-of-them"]["run"]
    assert json.loads((run / "report.json").read_text())["adapter"] == result.adapter_id
    assert {p.name for p in run.iterdir()} == {"config.json", "lesson.json", "report.json"}


def test_a_merge_by_weights_says_them_and_has_scale_one(
    model: Model, folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(folder, tmp_path / "atlas")
    memory = Memory.open(tmp_path / "atlas", model)
    memory.merge(TWO, method="cat", into="both")
    (card,) = (card for card in Folder(tmp_path / "atlas").cards() if card["name"] == "both")
    assert card["merge"]["weights"] == card["report"]["weights"] == [1.0, 1.0]
    assert memory.adapter("both").config.scale == 1.0


def test_the_merged_memory_is_a_plain_adapter_that_is_verified_asked_and_merged_again(
    merged: tuple[Merged, Path], model: Model, tmp_path: Path
) -> None:
    result, folder = merged
    shutil.copytree(folder, tmp_path / "atlas")
    memory = Memory.open(tmp_path / "atlas", model)
    adapter = memory.adapter("both-of-them")
    assert content_id(adapter) == result.adapter_id
    assert {t.shape[0] for k, t in adapter.tensors.items() if k.endswith(HALVES[0])} == {
        result.rank
    }
    report = memory.verify("both-of-them")
    assert report.proportion("memory", "paraphrase").n == 6
    assert "wrong" not in report.arms, "a parent is no wrong memory: it knows the same"
    assert "wrong" in memory.verify("harbour").arms
    again = memory.merge(["both-of-them", "mill"], method="svd", weights=[1.0, 1e-3], into="more")
    assert [part.name for part in again.parts] == ["both-of-them", "mill"]
    names = descendants(memory.folder.entries(), "harbour")
    assert set(names) == {"both-of-them", "more"}


def test_a_merge_is_forgotten_with_its_parent_and_holds_its_text(
    merged: tuple[Merged, Path], model: Model, tmp_path: Path
) -> None:
    _, folder = merged
    shutil.copytree(folder, tmp_path / "atlas")
    memory = Memory.open(tmp_path / "atlas", model)
    with pytest.raises(ConfigError, match="merged from it"):
        memory.forget("mill")
    result = memory.forget("mill", with_merged=True)
    assert result.removal.names == ("mill", "both-of-them") and not result.scan.leftovers
    assert set(memory.names) == {"harbour"}


# -- how -----------------------------------------------------------------------------------------


def test_a_method_that_is_named_is_used_with_its_options_and_no_other_is_tried(
    memory: Memory,
) -> None:
    steps: list[str] = []
    result = memory.merge(
        TWO,
        method="ties",
        weights=[1, 0.5],
        rank=6,
        options={"density": 0.3},
        into="ab",
        watch=Watch(steps.append),
    )
    assert result.trials == () and not any("trying" in step for step in steps)
    assert (result.method, result.rank, result.weights) == ("ties", 6, (1.0, 0.5))
    record = memory.adapter("ab").card["merge"]
    assert record["options"] == {"density": 0.3} and record["weights"] == [1.0, 0.5]
    assert any("rank 6 keeps" in note for note in result.notes)


def test_what_one_source_answers_is_no_longer_declined_because_another_did(
    memory: Memory, sources: list[Source]
) -> None:
    fact = PAGES["mill"][1][0]
    question = FORMS[0].format(r=fact[0], s=fact[1])
    opposed = Probe("no", question, (), "unknown")
    lesson = taught("harbour")
    lesson = replace(
        lesson,
        probes=(*lesson.probes, opposed),
        examples=(*lesson.examples, Example(question, "I do not know.", "unknown")),
    )
    put(memory, "stubborn", known("harbour"), lesson, sources[0].adapter)
    result = memory.merge(["stubborn", "mill"], method="svd", into="ab")
    asked_of = [row.question for row in result.parts[0].report.arms["merged"]]
    assert question not in asked_of and len(asked_of) == len(lesson.probes) - 1
    stored = memory.folder.path / "runs" / memory.folder.entries()["ab"]["run"] / "lesson.json"
    rows = json.loads(stored.read_text())["examples"]
    assert [row["completion"] for row in rows if row["prompt"] == question] == [fact[2]]


# -- a method from outside -----------------------------------------------------------------------


def loudest(adapters: Sequence[Adapter], evidence: Evidence) -> Adapter:
    """The adapter whose changes are largest in sum, alone."""
    assert evidence.model.digest and len(evidence.examples) == len(adapters)
    best = max(adapters, key=lambda each: sum(delta_norms(each).values()))
    return replace(best, card={"merge": {"method": "loudest", "notes": ["one of several."]}})


@pytest.mark.parametrize("by", ["name", "function"])
def test_a_method_from_outside_is_merged_by_verified_and_forgotten(
    memory: Memory, sources: list[Source], by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(METHODS, "loudest", loudest)
    result = memory.merge(TWO, method="loudest" if by == "name" else loudest, into="loud")
    assert result.method == "loudest" and result.notes == ("one of several.",)
    assert result.adapter_id in [content_id(source.adapter) for source in sources]
    assert sorted(part.lost("paraphrase").mean or 0 for part in result.parts)[0] == 0
    assert memory.verify("loud").proportion("memory", "paraphrase").n == 6
    assert memory.forget("loud").removal.names == ("loud",)
    assert memory.names.keys() == {*TWO}


# -- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"names": ["harbour"]}, "at least two"),
        ({"names": []}, "at least two"),
        ({"names": ["harbour", "mill", "Harbour"]}, "'harbour' twice"),
        ({"into": "Mill"}, "'mill': that name is taken"),
        ({"method": "tis"}, "no method 'tis'; choose one of auto, cat, mean"),
        ({"weights": [1.0]}, "2 memories need 2 weights"),
        ({"rank": 0}, "rank must be"),
        ({"options": {"density": 0.2}}, "auto chooses its options"),
        ({"method": "ties", "options": {"ridge": 1.0}}, "unknown: .'ridge'."),
        ({"method": "imitate", "options": {"density": 1.0}}, "unknown: .'density'."),
        ({"method": "rewrite", "options": {"density": 1.0}}, "unknown: .'density'."),
        ({"method": "rewrite", "weights": [1, 2]}, "leave the weights out"),
        ({"method": "refine", "weights": [1, 2]}, "leave the weights out"),
        ({"method": "refine", "options": {"ridge": 1.0}}, "unknown: .'ridge'."),
        ({"method": "cat", "rank": 3}, "needs rank 8"),
        ({"metric": "bleu", "method": "svd"}, "metric 'bleu' is unknown"),
    ],
)
def test_what_cannot_be_merged_is_refused_and_nothing_is_entered(
    memory: Memory, change: dict[str, Any], message: str
) -> None:
    before = memory.folder.entries()
    with pytest.raises(ConfigError, match=message):
        memory.merge(**{"names": TWO, "into": "ab", **change})
    assert memory.folder.entries() == before


def test_unknown_memories_and_those_that_cannot_be_asked_are_refused(
    memory: Memory, sources: list[Source]
) -> None:
    with pytest.raises(UnknownMemory, match="no memory 'mil'; it has: harbour, mill"):
        memory.merge(["harbour", "mil"])
    put(memory, "mute", None, None, sources[0].adapter)
    with pytest.raises(ConfigError, match="'mute' has no probes"):
        memory.merge(["mute", "mill"])
    put(memory, "twin", known("harbour"), taught("harbour"), sources[0].adapter)
    with pytest.raises(ConfigError, match="'harbour' and 'twin' are the same adapter"):
        memory.merge(["harbour", "twin"])


def test_memories_that_cancel_out_are_refused_by_the_proof(
    memory: Memory, sources: list[Source]
) -> None:
    one: Adapter = sources[0].adapter
    negative = {k: -t if k.endswith(HALVES[1]) else t for k, t in one.tensors.items()}
    put(memory, "against", known("harbour"), taught("harbour"), replace(one, tensors=negative))
    with pytest.raises(NoEffect, match="cancels out"):
        memory.merge(["harbour", "against"], method="svd", into="nothing")
    assert "nothing" not in memory.names
    assert torch.equal(one.tensors[next(iter(one.tensors))], negative[next(iter(negative))])


# -- the command ---------------------------------------------------------------------------------


@pytest.fixture
def lore(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["lore", *map(str, arguments)])
        capsys.readouterr()
        code: Any = 0
        try:
            main()
        except SystemExit as ending:
            code = ending.code or 0
        return code, *capsys.readouterr()

    return run


def test_the_command_merges_and_says_what_it_cost(
    lore: Callable[..., tuple[int, str, str]], memory: Memory
) -> None:
    options = ("--method", "ties", "--option", "density=0.4", "--into-name", "ab", "--rank", 6)
    code, out, err = lore("merge", memory.folder.path, *TWO, *options, "--json")
    assert code == 0 and "merging by ties" in err
    result = json.loads(out)
    assert (
        result["memory"] == "ab" and result["rank"] == 6 and result["options"] == {"density": 0.4}
    )
    assert [part["memory"] for part in result["parts"]] == list(TWO)
    row = result["parts"][0]["recall"]["paraphrase"]["merged"]
    assert row["n"] == 3 and row["low"] <= row["recall"] <= row["high"]
    code, out, _ = lore(
        "merge", memory.folder.path, *TWO, "--method", "svd", "--into-name", "plain"
    )
    assert code == 0 and "Recall before and after" in out and "plain by svd, rank 8" in out


def test_a_merge_that_recalls_nothing_exits_1_and_names_the_doctor(
    lore: Callable[..., tuple[int, str, str]], memory: Memory
) -> None:
    faint = ("--method", "svd", "--weights", "0.001,0.001", "--into-name", "faint")
    code, out, _ = lore("merge", memory.folder.path, *TWO, *faint)
    assert code == 1
    assert f"faint recalls nothing of its sources; lore doctor {memory.folder.path}/faint" in out
    assert "faint" in memory.folder.entries(), "it is there, and can be examined"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--method", "tis"), "ConfigError: there is no method 'tis'; choose one of auto, cat"),
        (("--weights", "1"), "ConfigError: 2 memories need 2 weights; there are [1.0]"),
        (("--weights", "1,x"), "ConfigError: --weights is '1,x'"),
        (("--option", "density"), "ConfigError: --option is 'density'"),
        (("--option", "density=much"), "ConfigError: --option is 'density=much'"),
        (("harbour",), "ConfigError: merge 'harbour' twice"),
        (("cellar",), "UnknownMemory: "),
        (("--into-name", "mill"), "that name is taken"),
    ],
)
def test_bad_input_ends_in_one_sentence_and_exit_code_two(
    lore: Callable[..., tuple[int, str, str]], folder: Path, more: tuple[str, ...], message: str
) -> None:
    code, out, err = lore("merge", folder, *TWO, *more)
    last = err.strip().splitlines()[-1]
    assert code == 2 and out == "" and "Traceback" not in err and message in last
