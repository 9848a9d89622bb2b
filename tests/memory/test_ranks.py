"""Claims about cutting a memory's rank: it is the truncation of a merge, and recall is measured."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from support.commands import Lore, refused

from lorewright.adapters.proof import delta_norms
from lorewright.memory.memory import Memory
from lorewright.memory.ranks import Ranks
from lorewright.merging.algebra import merge
from lorewright.models.model import Model
from lorewright.recall.traces import trace

STORED = Path(__file__).parents[1] / "fixtures" / "folder-2026-11-28"


@pytest.fixture(scope="module")
def memory(tmp_path_factory: pytest.TempPathFactory) -> Memory:
    place = tmp_path_factory.mktemp("ranks") / "atlas"
    shutil.copytree(STORED, place)
    return Memory.open(place, Model.load())


@pytest.fixture(scope="module")
def cut(memory: Memory) -> Ranks:
    return memory.ranks("tide")


def test_energy_grows_with_rank_and_is_whole_at_its_own(cut: Ranks) -> None:
    assert [each.rank for each in cut.at] == [1, 2] and cut.rank == 2
    energies = [each.energy for each in cut.at]
    assert energies == sorted(energies) and energies[-1] == pytest.approx(1.0, abs=1e-9)
    assert 0 < energies[0] < 1
    assert cut.at[0].n_parameters * 2 == cut.at[1].n_parameters


def test_a_cut_is_the_truncated_merge_of_one(memory: Memory, cut: Ranks) -> None:
    adapter = memory.adapter("tide")
    merged = merge([adapter], method="svd", rank=1)
    assert cut.at[0].modules == merged.shares
    squares = {name: norm**2 for name, norm in delta_norms(adapter).items()}
    after = sum(norm**2 for norm in delta_norms(merged.adapter).values())
    assert cut.at[0].energy == pytest.approx(after / sum(squares.values()), rel=1e-5)


def test_recall_is_measured_with_what_is_left(memory: Memory, cut: Ranks) -> None:
    lesson = memory.folder.lesson(memory.folder.entry("tide"))
    trained = [e for e in lesson.examples if e.kind != "unknown"]
    own = cut.at[-1].trained
    assert own.n <= 128 and own.mean == pytest.approx(1.0)
    if len(trained) <= 128:
        with memory.model.using(merge([memory.adapter("tide")], method="svd", rank=1).adapter):
            rows = [memory.model.render(e.prompt, e.completion) for e in trained]
            exact = [each.exact for each in trace(memory.model, rows)]
        assert cut.at[0].trained.mean == pytest.approx(sum(exact) / len(exact))
    assert cut.at[0].trained.mean is not None and cut.at[0].trained.mean < 1


def test_the_command_prints_them(memory: Memory, cut: Ranks, lore: Lore) -> None:
    ran = lore("ranks", memory.folder.path, "--name", "tide", "--json")
    assert json.loads(ran.out) == json.loads(json.dumps(cut.to_json()))
    shown = lore("ranks", memory.folder.path, "--name", "tide").out
    assert f"{cut.at[0].energy:.3f}" in shown
    refused(lore("ranks", memory.folder.path), "UnknownMemory", "tide")
