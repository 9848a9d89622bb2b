"""Claims about points: they are what cards say, sorted by what is wanted."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from support.commands import Lore, refused
from support.studios import STORED

from lorewright.errors import ConfigError
from lorewright.memory.costs import CLAIMS, costs, parameters_of
from lorewright.memory.folder import Folder
from lorewright.memory.mend import LORE, PLACEHOLDERS, command_of
from lorewright.models.model import Model
from lorewright.recall.diagnose import Diagnosis, Finding
from lorewright.recall.evidence import Evidence
from lorewright.writers.methods import WRITERS


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    shutil.copytree(STORED, tmp_path / "atlas")
    return Folder(tmp_path / "atlas")


def test_points_are_what_the_cards_say(folder: Folder) -> None:
    n_base = parameters_of(folder)
    assert n_base == sum(p.numel() for p in Model.load().network.parameters())
    compared = costs(folder, n_base=n_base)
    for point in compared.points:
        card = folder.card(folder.entry(point.memory)["adapter"])
        assert point.recall == card["report"]["recall"][point.kind]["memory"]
        assert point.seconds == card["training"]["seconds"] and point.method == "gradient"
        assert point.share == point.n_values / n_base and point.written == "2026-11-30"


def test_smallness_counts_as_much_as_is_wanted(folder: Folder) -> None:
    small = costs(folder, small=1.0)
    sizes = [point.n_values for point in small.points]
    assert sizes == sorted(sizes) and small.scores == (1.0, 0.0)
    assert small.points[0].share is None  # the base was not counted
    with pytest.raises(ConfigError, match="from 0 to 1"):
        costs(folder, small=1.5)
    assert costs(Folder(folder.path / "none")).points == ()


def test_claims_are_of_ways_that_there_are_and_name_their_source(
    lore: Lore, folder: Folder
) -> None:
    assert {claim.method for claim in CLAIMS if claim.method} <= {*WRITERS}
    assert all(claim.source or not claim.published for claim in CLAIMS)
    printed = lore("costs", folder.path)
    assert printed.code == 0 and "2106.09685" in printed.out and "tide" in printed.out


def test_only_commands_that_are_whole_are_run(lore: Lore, folder: Folder) -> None:
    def mends(*remedies: str) -> str:
        findings = tuple(Finding("m", "c", remedy) for remedy in remedies)
        return command_of(Diagnosis(Evidence("a", "pocket"), findings))

    whole = "lore write a.jsonl --into atlas --name x --rank 8"
    assert mends(whole) == whole and mends("lore doctor a --facts FILE", whole) == whole
    for word in PLACEHOLDERS:
        assert mends(f"lore write {word} --into atlas") == ""
    assert mends("rm -r atlas") == "" and LORE[0]
    refused(lore("failure", folder.path, "magic", "--json"), "ConfigError", "wording")
    refused(lore("doctor", folder.path, "--name", "tide", "--mend"), "ConfigError", "FOLDER/NAME")
