"""Claims about folders of older schemas: read as they are, written anew beside a copy.

tests/fixtures/schema-1 is a folder as the version that wrote schema 1 left it.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from lorewright.errors import DataError
from lorewright.memory.folder import Folder
from lorewright.memory.migrations import MIGRATIONS, SCHEMA, brief, migrate
from lorewright.reports.results import memories_table

STORED = Path(__file__).parents[1] / "fixtures" / "schema-1"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the stored folder."""
    shutil.copytree(STORED, tmp_path / "atlas")
    return tmp_path / "atlas"


def test_every_schema_before_this_one_has_its_migration() -> None:
    assert sorted(MIGRATIONS) == list(range(1, SCHEMA))


def test_reading_an_old_folder_migrates_what_is_read_and_no_file(folder: Path) -> None:
    before = (folder / "memory.json").read_bytes()
    old = json.loads(before)["memories"]
    assert Folder(folder).index()["schema"] == SCHEMA
    for name, entry in Folder(folder).entries().items():
        assert {k: v for k, v in entry.items() if k != "card"} == old[name]
        assert entry["card"]["adapter"]["lora"]["rank"] == 1
    assert (folder / "memory.json").read_bytes() == before
    assert not list(folder.glob("memory.schema-*"))


def test_a_list_from_the_index_says_what_the_cards_say(folder: Path) -> None:
    shown = [
        brief(card) | {"name": card["name"], "id": card["id"]} for card in Folder(folder).cards()
    ]
    assert Folder(folder).briefs() == shown
    assert shown[0]["report"]["recall"]["paraphrase"]["memory"]["n"] == 1
    assert len(memories_table(Folder(folder).briefs()).rows) == 2


def test_the_next_writer_keeps_a_copy_and_writes_the_schema_of_today_once(folder: Path) -> None:
    before, seen = (folder / "memory.json").read_bytes(), Folder(folder).index()
    with Folder(folder).writing(seen["base"]):
        pass
    assert (folder / "memory.schema-1.json").read_bytes() == before
    assert json.loads((folder / "memory.json").read_text()) == seen == Folder(folder).index()
    written = (folder / "memory.json").stat().st_mtime_ns
    with Folder(folder).writing(seen["base"]):
        pass
    assert (folder / "memory.json").stat().st_mtime_ns == written


@pytest.mark.parametrize("content", ["{", "[]", None])
def test_a_damaged_card_leaves_the_folder_readable(folder: Path, content: str | None) -> None:
    path = folder / "adapters" / Folder(folder).entries()["gannet"]["adapter"] / "card.json"
    path.unlink()
    if content is not None:
        path.write_text(content)
    thin = Folder(folder).entries()["gannet"]["card"]
    assert thin["adapter"]["lora"]["rank"] is None and "damaged or gone" in thin["reason"]
    assert len(memories_table(Folder(folder).briefs()).rows) == 2


@pytest.mark.parametrize("schema", [None, 0, SCHEMA + 1, "1", True, [1]])
def test_another_schema_is_refused_with_those_that_are_read(folder: Path, schema: object) -> None:
    result = {**json.loads((folder / "memory.json").read_text()), "schema": schema}
    with pytest.raises(DataError, match=r"this version reads 1, 2; use a matching version"):
        migrate(result, folder)
