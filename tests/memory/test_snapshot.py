"""Claims about snapshots: equal bytes, everything back, and nothing of a doctored archive."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import shutil
import tarfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import filelock
import pytest

from lorewright.errors import DataError, Locked, StorageError, UnknownMemory
from lorewright.memory.folder import Folder
from lorewright.memory.snapshot import MANIFEST, restore, take

STORED = Path(__file__).parents[1] / "fixtures" / "schema-1"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of two memories, with a lock and an empty directory."""
    place = tmp_path / "atlas"
    shutil.copytree(STORED, place)
    (place / ".lock").touch()
    (place / "runs" / "empty").mkdir()
    return place


def files(folder: Path) -> dict[str, bytes]:
    result = (p for p in folder.rglob("*") if p.is_file() and p.name != ".lock")
    return {str(p.relative_to(folder)): p.read_bytes() for p in result}


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tgz"])
def test_what_was_taken_comes_back_byte_for_byte(folder: Path, tmp_path: Path, suffix: str) -> None:
    taken = take(folder, tmp_path / f"a{suffix}")
    restored = restore(tmp_path / f"a{suffix}", tmp_path / "new" / "place")
    assert files(tmp_path / "new" / "place") == files(folder)
    assert (taken.n_memories, taken.n_files) == (2, len(files(folder)))
    assert restored == taken and taken.n_bytes == sum(map(len, files(folder).values()))
    assert Folder(tmp_path / "new" / "place").entries() == Folder(folder).entries()


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz"])
def test_equal_folders_give_equal_bytes(folder: Path, tmp_path: Path, suffix: str) -> None:
    take(folder, tmp_path / f"a{suffix}")
    time.sleep(0.01)
    twin = tmp_path / "twin"
    shutil.copytree(folder, twin)
    os.utime(twin / "memory.json", (1, 1))
    (twin / "memory.json").chmod(0o600)
    assert take(twin, tmp_path / f"b{suffix}").digest
    assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()
    (twin / "sources" / "x.jsonl").write_text("{}\n")
    take(twin, tmp_path / f"c{suffix}")
    assert (tmp_path / f"a{suffix}").read_bytes() != (tmp_path / f"c{suffix}").read_bytes()


def test_half_written_files_and_the_lock_are_left_out(folder: Path, tmp_path: Path) -> None:
    expected = {*files(folder), "memory.schema-1.json"}  # a writer migrates
    (folder / ".memory.json.1a2b3c4d.tmp").touch()
    (folder / "adapters" / ".x.1a2b3c4d.part").mkdir()
    (folder / "adapters" / ".x.1a2b3c4d.part" / "card.json").touch()
    take(folder, tmp_path / "a.tar")
    restore(tmp_path / "a.tar", tmp_path / "b")
    assert set(files(tmp_path / "b")) == expected


def test_a_snapshot_waits_for_no_writer_and_is_not_taken_beside_one(
    folder: Path, tmp_path: Path
) -> None:
    with (
        filelock.FileLock(folder / ".lock"),
        pytest.raises(Locked, match="another process is writing"),
    ):
        take_in_thread(folder, tmp_path / "a.tar")
    assert not list(tmp_path.glob("*.tar*")) and not list(tmp_path.glob(".*part"))


def take_in_thread(folder: Path, to: Path) -> None:
    """A file lock lets its own thread in again."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            take(folder, to)
        except Locked as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if raised:
        raise raised[0]


def test_where_a_snapshot_cannot_go_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"must end in \.tar, \.tar\.gz or \.tgz"):
        take(folder, tmp_path / "a.zip")
    (tmp_path / "a.tar").touch()
    with pytest.raises(DataError, match="exists already"):
        take(folder, tmp_path / "a.tar")
    with pytest.raises(DataError, match="lies in the folder itself"):
        take(folder, folder / "a.tar")
    with pytest.raises(UnknownMemory):
        take(tmp_path / "no", tmp_path / "b.tar")
    (folder / "link").symlink_to(tmp_path / "a.tar")
    with pytest.raises(DataError, match="is a link or no file"):
        take(folder, tmp_path / "b.tar")


def test_restoring_overwrites_nothing_and_fills_an_empty_folder(
    folder: Path, tmp_path: Path
) -> None:
    take(folder, tmp_path / "a.tar")
    before = files(folder)
    with pytest.raises(DataError, match="holds something already"):
        restore(tmp_path / "a.tar", folder)
    assert files(folder) == before
    (tmp_path / "empty").mkdir()
    restore(tmp_path / "a.tar", tmp_path / "empty")
    assert files(tmp_path / "empty") == before
    with pytest.raises(DataError, match="no such file"):
        restore(tmp_path / "none.tar", tmp_path / "x")


# -- doctored archives ---------------------------------------------------------------------------

Members = list[tuple[tarfile.TarInfo, bytes]]


def read(path: Path) -> Members:
    with tarfile.open(path) as archive:
        return [(m, archive.extractfile(m).read()) for m in archive]  # type: ignore[union-attr]


def write(path: Path, members: Members) -> None:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for member, content in members:
            archive.addfile(member, io.BytesIO(content))


def member(
    name: str, content: bytes = b"x", kind: bytes = tarfile.REGTYPE, to: str = ""
) -> Members:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, to
    info.size = len(content) if kind == tarfile.REGTYPE else 0
    return [(info, content if kind == tarfile.REGTYPE else b"")]


def listed(members: Members, more: dict[str, bytes | int]) -> Members:
    """The members with others in the manifest as well: content, or a size alone."""
    info, content = members[0]
    plain = json.loads(content)
    for name, what in more.items():
        size = what if isinstance(what, int) else len(what)
        digest = hashlib.sha256(what if isinstance(what, bytes) else b"").hexdigest()
        plain["files"][name] = {"bytes": size, "sha256": digest}
    content = json.dumps(plain).encode()
    info.size = len(content)
    return [(info, content), *members[1:]]


def edited(members: Members, change: Callable[[bytes], bytes]) -> Members:
    """The first stored file changed."""
    info, content = members[1]
    return [members[0], (info, change(content)), *members[2:]]


DOCTORED: dict[str, tuple[Callable[[Members], Members], str]] = {
    "parent": (lambda m: [*listed(m, {"../x": b"x"}), *member("../x")], "cannot have"),
    "absolute": (lambda m: [*listed(m, {"/tmp/x": b"x"}), *member("/tmp/x")], "cannot have"),
    "backslash": (lambda m: [*listed(m, {"..\\x": b"x"}), *member("..\\x")], "cannot have"),
    "dotted": (lambda m: [*listed(m, {"a/./x": b"x"}), *member("a/./x")], "cannot have"),
    "lock": (lambda m: [*listed(m, {".lock": b"x"}), *member(".lock")], "cannot have"),
    "journal": (
        lambda m: [*listed(m, {"forgetting.json": b"x"}), *member("forgetting.json")],
        "cannot have",
    ),
    "journal where names have no case": (
        lambda m: [*listed(m, {"Forgetting.JSON": b"x"}), *member("Forgetting.JSON")],
        "cannot have",
    ),
    "half-written": (
        lambda m: [*listed(m, {"a/.x.0123abcd.old": b"x"}), *member("a/.x.0123abcd.old")],
        "cannot have",
    ),
    "symlink": (
        lambda m: [*listed(m, {"l": 0}), *member("l", kind=tarfile.SYMTYPE, to="/etc/passwd")],
        "is a link, a device",
    ),
    "hard link": (
        lambda m: [*listed(m, {"l": 0}), *member("l", kind=tarfile.LNKTYPE, to="memory.json")],
        "is a link, a device",
    ),
    "device": (lambda m: [*m, *member("d", kind=tarfile.CHRTYPE)], "is a link, a device"),
    "pipe": (lambda m: [*m, *member("d", kind=tarfile.FIFOTYPE)], "is a link, a device"),
    "directory": (lambda m: [*m, *member("d", kind=tarfile.DIRTYPE)], "is a link, a device"),
    "not listed": (lambda m: [*m, *member("more")], "is not in the manifest"),
    "twice": (lambda m: [*m, m[1]], "is not in the manifest, or there twice"),
    "oversized": (lambda m: listed(m, {"big": 1 << 60}), "at most"),
    "larger than listed": (
        lambda m: [*listed(m, {"big": 3}), *member("big", b"x" * 9)],
        "has 9 bytes, the manifest says 3",
    ),
    "changed": (lambda m: edited(m, lambda c: b"\0" + c[1:]), "is not what was stored"),
    "missing": (lambda m: m[:-1], "ends too soon: 1 files are missing"),
    "no manifest": (lambda m: m[1:], "does not begin with"),
    "manifest last": (lambda m: [*m[1:], m[0]], "does not begin with"),
    "no index": (
        lambda m: [(replaced(m[0], b'{"lorewright_snapshot": 1, "files": {}}'))],
        "holds no memory.json",
    ),
    "another schema": (
        lambda m: [(replaced(m[0], b'{"lorewright_snapshot": 9, "files": {}}'))],
        "schema 9; this version reads 1",
    ),
    "damaged manifest": (lambda m: [(replaced(m[0], b"[1]"))], "damaged manifest"),
}


def replaced(first: tuple[tarfile.TarInfo, bytes], content: bytes) -> tuple[tarfile.TarInfo, bytes]:
    first[0].size = len(content)
    return (first[0], content)


@pytest.mark.parametrize("what", DOCTORED)
def test_a_doctored_archive_restores_nothing(folder: Path, tmp_path: Path, what: str) -> None:
    change, message = DOCTORED[what]
    take(folder, tmp_path / "a.tar")
    write(tmp_path / "b.tar", change(read(tmp_path / "a.tar")))
    with pytest.raises(DataError, match=message):
        restore(tmp_path / "b.tar", tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.tar", "atlas", "b.tar"]


@pytest.mark.parametrize(
    "content",
    [b"", b"x" * 2000, b"\x1f\x8b garbage", gzip.compress(b"x" * 2000)],
    ids=["empty", "noise", "bad gzip", "no tar in gzip"],
)
def test_what_is_no_archive_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(DataError):
        restore(tmp_path / "a.tar", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz"])
def test_a_truncated_archive_restores_nothing(folder: Path, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    take(folder, path)
    content = path.read_bytes()
    for share in (0.2, 0.5, 0.9):
        path.write_bytes(content[: int(len(content) * share)])
        with pytest.raises(DataError):
            restore(path, tmp_path / "out")
        assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))


def test_a_header_that_claims_to_be_huge_is_not_read(folder: Path, tmp_path: Path) -> None:
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.XHDTYPE, 1 << 33
    content = header.tobuf(tarfile.GNU_FORMAT)
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(content + b"\0" * 4096))
    with pytest.raises(DataError, match=f"has a header of {1 << 33} bytes"):
        restore(tmp_path / "a.tar.gz", tmp_path / "out")


def test_a_full_disk_leaves_no_half_of_either(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    take(folder, tmp_path / "a.tar")
    refusal = OSError(28, os.strerror(28))

    def full(*_: object, **__: object) -> None:
        raise refusal

    monkeypatch.setattr(tarfile.TarFile, "addfile", full)
    with pytest.raises(StorageError, match="No space left"):
        take(folder, tmp_path / "b.tar")
    monkeypatch.setattr(tarfile.TarFile, "extractfile", full)
    with pytest.raises(StorageError, match="No space left"):
        restore(tmp_path / "a.tar", tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.tar", "atlas"]
    assert Folder(folder).index()["memories"] and MANIFEST not in files(folder)
