"""Claims about the folder: damage is named, one writer at a time, nothing half-entered."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import lorewright.memory.folder
from lorewright.errors import (
    DataError,
    Locked,
    StorageError,
    TeacherError,
    UnknownMemory,
    WrongBase,
)
from lorewright.files import read_object
from lorewright.memory.folder import Folder
from lorewright.memory.opened import OpenFolder

BASE = {"id": "pocket", "digest": "d" * 64, "template": "t" * 16, "dtype": "auto"}
ONE, TWO = "0123456789abcdef", "fedcba9876543210"
THIN = {"adapter": {"lora": {"rank": 8}}, "reason": "recalled", "report": {"recall": {}}}
CARD = {**THIN, "settings": {"seed": 0}}


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """A folder with one memory whose card says little."""
    place = Folder(tmp_path / "atlas")
    with place.writing(BASE):
        card(place, ONE, CARD)
        place.enter("book", ONE, source="s", run="r")
    return place


def card(folder: Folder, identity: str, content: Any) -> Path:
    path = folder.path / "adapters" / identity / "card.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(content))
    return path


def spoil(folder: Folder, **changes: Any) -> None:
    path = folder.path / "memory.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_what_was_entered_is_listed(folder: Folder) -> None:
    entry = {"adapter": ONE, "source": "s", "run": "r", "card": THIN}
    assert folder.entries() == {"book": entry}
    assert folder.briefs() == [{**THIN, "name": "book", "id": ONE}]
    assert folder.cards() == [{**CARD, "name": "book", "id": ONE}]


def test_what_needs_no_model_loads_no_torch() -> None:
    names = ("folder", "route", "removal", "contradictions", "modes", "snapshot")
    code = "".join(f"import lorewright.memory.{name}\n" for name in names)
    code += "import sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    # and what routes nothing, no retriever
    code = "import sys, lorewright.memory.removal; sys.exit('bm25s' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_name_that_is_entered_again_moves_and_others_stay(folder: Folder) -> None:
    folder.enter("other", TWO, source="s", run="r")
    folder.enter("book", TWO, source="s", run="r2")
    assert {name: entry["adapter"] for name, entry in folder.entries().items()} == {
        "book": TWO,
        "other": TWO,
    }
    assert (folder.path / "adapters" / ONE / "card.json").exists()


def test_a_name_that_is_not_there_is_refused_with_those_that_are(folder: Folder) -> None:
    with pytest.raises(UnknownMemory, match=r"no memory 'boot'; it has: book\.$"):
        folder.entry("boot")


def test_a_folder_without_memory_is_refused_with_the_command_that_makes_one(tmp_path: Path) -> None:
    for read in (Folder(tmp_path).index, Folder(tmp_path).cards):
        with pytest.raises(UnknownMemory, match="lore write SOURCE --into"):
            read()
    assert Folder(tmp_path).entries() == {}


# -- damage --------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b"{", b'{"schema": 1, "ba', b"[]", b"\xff\xfe", b"null"])
def test_a_damaged_memory_json_is_named(folder: Folder, content: bytes) -> None:
    (folder.path / "memory.json").write_bytes(content)
    with pytest.raises(DataError, match=r"memory.json is damaged .*restore it from a copy"):
        folder.index()


@pytest.mark.parametrize(
    "changes",
    [
        {"memories": []},
        {"memories": {"book": ONE}},
        {"memories": {"book": {}}},
        {"memories": {"book": {"adapter": "../../etc"}}},
        {"base": None},
        {"base": {"id": "pocket"}},
        {"base": {"id": 3, "digest": "d"}},
        {"base": {**BASE, "template": 3}},
        {"memories": {"book": {"adapter": ONE, "card": 5}}},
        {"memories": {"book": {"adapter": ONE, "source": "../../etc/passwd"}}},
        {"memories": {"book": {"adapter": ONE, "run": ".."}}},
        {"memories": {"book": {"adapter": ONE, "source": 3}}},
        {"memories": {"book": {"adapter": ONE, "parents": ["x"]}}},
        {"memories": {"book": {"adapter": ONE, "formerly": 5}}},
    ],
)
def test_a_memory_json_of_another_shape_is_named(folder: Folder, changes: dict[str, Any]) -> None:
    spoil(folder, **changes)
    with pytest.raises(DataError, match=r"memory.json is damaged"):
        folder.index()


def test_a_dtype_that_no_base_has_is_damage(folder: Folder) -> None:
    spoil(folder, base={**BASE, "dtype": "evil"})
    with pytest.raises(DataError, match=r"damaged \(base.dtype is 'evil'"):
        OpenFolder.open(folder.path)


def test_a_memory_json_of_another_schema_is_refused(folder: Folder) -> None:
    spoil(folder, schema=99)
    with pytest.raises(DataError, match="has schema 99; this version reads 1, 2; use a matching"):
        folder.index()


def test_a_card_that_is_gone_or_damaged_is_named(folder: Folder) -> None:
    path = folder.path / "adapters" / ONE / "card.json"
    path.write_text("{")
    with pytest.raises(DataError, match=r"card.json is damaged"):
        folder.cards()
    path.unlink()
    with pytest.raises(DataError, match=r"lists 'book' .*card.json is gone"):
        folder.cards()


def test_json_too_deep_to_read_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "deep.json"
    path.write_text("[" * 200_000)
    with pytest.raises(DataError, match="is damaged"):
        read_object(path, "copy it again")


def test_a_file_that_cannot_be_read_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="could not be read"):
        read_object(tmp_path, "copy it again")


# -- writing -------------------------------------------------------------------------------------


def test_a_second_process_is_locked_out_and_let_in_afterwards(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lorewright.memory.folder, "LOCK_SECONDS", 0.1)
    code = (
        "import sys, filelock\n"
        "with filelock.FileLock(sys.argv[1]):\n"
        "    print('held', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(folder.path / ".lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with holder:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        with pytest.raises(Locked, match="another process is writing into"), folder.writing(BASE):
            raise AssertionError("two writers at once")
        holder.kill()
    with folder.writing(BASE):
        pass


@pytest.mark.parametrize("key", ["digest", "template"])
def test_another_base_or_template_is_refused_before_and_under_the_lock(
    folder: Folder, key: str
) -> None:
    other = {**BASE, key: "0" * 16}
    with pytest.raises(WrongBase, match="was written"):
        folder.check_base(other)
    with pytest.raises(WrongBase), folder.writing(other):
        raise AssertionError("written on two bases")


def test_a_failed_lookup_inside_is_not_blamed_on_the_disk(folder: Folder) -> None:
    with pytest.raises(TeacherError, match="no reply"), folder.writing(BASE):
        raise TeacherError("no reply")
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(StorageError, match="No space left"), folder.writing(BASE):
        raise full


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    place = tmp_path / "file" / "atlas"
    with pytest.raises(StorageError, match="could not be written"), Folder(place).writing(BASE):
        raise AssertionError("written into a file")


def test_a_full_disk_leaves_the_index_as_it_was(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = (folder.path / "memory.json").read_bytes()
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(StorageError, match="No space left"):
        folder.enter("more", TWO, source="s", run="r")
    monkeypatch.undo()
    assert (folder.path / "memory.json").read_bytes() == before
    assert not list(folder.path.glob(".memory.json.*"))


def test_a_folder_of_other_files_is_refused_and_a_killed_start_is_not(tmp_path: Path) -> None:
    for name in (".lock", ".memory.json.1a2b.tmp"):
        (tmp_path / name).touch()
    Folder(tmp_path).refuse_foreign()
    Folder(tmp_path / "not there").refuse_foreign()
    (tmp_path / "thesis.md").touch()
    with pytest.raises(DataError, match=r"holds other files and no memory.json"):
        Folder(tmp_path).refuse_foreign()


def test_an_unfinished_run_is_found_by_its_settings_and_a_finished_one_is_not(
    folder: Folder,
) -> None:
    first = folder.run("book", {"key": "a"})
    assert folder.run("book", {"key": "a"}) == first
    assert folder.run("book", {"key": "b"}) != first
    (first / "report.json").touch()
    again = folder.run("book", {"key": "a"})
    assert again != first and read_object(again / "config.json", "") == {
        "name": "book",
        "key": "a",
    }
