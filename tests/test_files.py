"""Claims about files: what is refused as text, whole writes, JSON lines, locks, names."""

from __future__ import annotations

import json
import multiprocessing
import os
import stat
from multiprocessing.synchronize import Event
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lorewright import files
from lorewright.errors import ConfigError, DataError, Locked, StorageError
from lorewright.knowledge.data import Document, Fact

JSON_VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.just("k"), inner),
    max_leaves=4,
)


# --- text in


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\xef\xbb\xbf \n", "is empty"),
        (b"abc\x00def", "is binary"),
        (b"\x01\x02\x03\x04a", "is binary"),
        (b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR", "is a picture"),
        (b"caf\xe9 au l\x81it", r"byte 0xe9 at offset 3"),
        (b"\xef\xbb\xbfcaf\xe9", r"byte 0xe9 at offset 6"),
    ],
)
def test_read_text_refuses(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        files.read_text(path)


def test_read_text_refuses_missing_folders_and_large_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        files.read_text(tmp_path / "none.txt")
    with pytest.raises(DataError, match="not a regular file"):
        files.read_text(tmp_path)
    large = tmp_path / "large.txt"
    with large.open("wb") as file:
        file.truncate(files.MAX_BYTES + 1)
    with pytest.raises(DataError, match=r"64 MiB"):
        files.read_text(large)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "cp1252"])
def test_read_encoded_names_the_encoding(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("Grüße an alle\r\n".encode(encoding))
    assert files.read_encoded(path) == ("Grüße an alle\n", encoding)


def test_read_text_makes_line_ends_alike(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"a\r\nb\rc\n")
    assert files.read_text(path) == "a\nb\nc\n"


# --- JSON lines


@given(st.lists(st.dictionaries(st.sampled_from("aé"), JSON_VALUES, max_size=2), max_size=3))
@example([{"a": "line\u2028and\x85break\r\n", "b": "\x00\x7f"}])
def test_jsonl_round_trip(tmp_path_factory: pytest.TempPathFactory, rows: list[Any]) -> None:
    path = tmp_path_factory.mktemp("jsonl") / "rows.jsonl"
    files.dump_jsonl(rows, path)
    assert files.load_jsonl(path) == rows


def test_dataclasses_survive_json_lines(tmp_path: Path) -> None:
    fact = Fact("a", "q", "x", aliases=("y",), paraphrases=("r",), source="s")
    document = Document("d", "t", "title", {"page": 4, "tags": ["x"]})
    files.dump_jsonl([fact, document], tmp_path / "new" / "a.jsonl")
    first, second = files.load_jsonl(tmp_path / "new" / "a.jsonl")
    assert Fact(**first) == fact
    assert Document(**second) == document


@pytest.mark.parametrize("line", ['{"a": 1', "[1]", "nothing", '"text"', "[" * 100_000])
def test_load_jsonl_names_the_bad_line(tmp_path: Path, line: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n\n' + line)
    with pytest.raises(DataError, match=r"a\.jsonl line 3"):
        files.load_jsonl(path)


def test_load_jsonl_refuses_missing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        files.load_jsonl(tmp_path / "none.jsonl")


@pytest.mark.parametrize("value", [float("nan"), "\ud800"])
def test_dump_jsonl_leaves_the_old_file_when_a_row_is_bad(tmp_path: Path, value: object) -> None:
    path = tmp_path / "a.jsonl"
    files.dump_jsonl([{"a": 1}], path)
    with pytest.raises(DataError, match="cannot be stored"):
        files.dump_jsonl([{"a": 2}, {"a": value}], path)
    assert files.load_jsonl(path) == [{"a": 1}]


def test_dump_jsonl_leaves_nothing_behind_when_the_disk_refuses(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "inside").touch()
    with pytest.raises(StorageError, match="could not be written"):
        files.dump_jsonl([{"a": 1}], tmp_path / "taken")
    assert os.listdir(tmp_path) == ["taken"]


# --- whole writes and locks


def test_a_file_and_then_its_folder_reach_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[tuple[str, bool]] = []
    fsync = os.fsync

    def spy(descriptor: int) -> None:
        kind = "folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file"
        synced.append((kind, (tmp_path / "a").exists()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", spy)
    files.store(b"x", tmp_path / "a")
    assert synced == [("file", False), ("folder", True)]
    assert os.listdir(tmp_path) == ["a"]


def hold(folder: Path, ready: Event, leave: Event) -> None:
    with files.locked(folder, work="writing into"):
        ready.set()
        leave.wait(30)


def test_one_process_at_a_time_holds_a_folder(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ready, leave = context.Event(), context.Event()
    holder = context.Process(target=hold, args=(tmp_path / "new", ready, leave))
    holder.start()
    try:
        assert ready.wait(30)
        with (
            pytest.raises(Locked, match=r"process is counting .*new; wait .*, or count later"),
            files.locked(tmp_path / "new", work="counting", remedy="count later"),
        ):
            raise AssertionError("two holders")
    finally:
        leave.set()
        holder.join()
    with files.locked(tmp_path / "new", work="counting"):
        pass


def test_what_the_disk_refuses_under_the_lock_is_a_storage_error_and_ours_pass(
    tmp_path: Path,
) -> None:
    with pytest.raises(StorageError, match="check space"), files.locked(tmp_path, work="writing"):
        raise OSError("no space left")
    with pytest.raises(ConfigError, match="mine"), files.locked(tmp_path, work="writing"):
        raise ConfigError("mine")
    (tmp_path / "file").touch()
    with (
        pytest.raises(StorageError, match="could not be written"),
        files.locked(tmp_path / "file", work="writing"),
    ):
        raise AssertionError("a file is no folder")


# --- names


@given(st.text())
def test_slug_is_a_safe_name_and_stable(text: str) -> None:
    name = files.slug(text)
    assert 0 < len(name) <= files.SLUG_CHARS
    assert not set(name) & set('/\\ .:*?"<>|\n\0_')
    assert files.slug(name) == name


def test_slug_has_letters_of_every_script() -> None:
    assert files.slug("  Staff_Handbook (v2).md ") == "staff-handbook-v2-md"
    assert files.slug("Größe 日本語 हिन्दी") == "grösse-日本語-हिन्दी"


def test_long_and_letterless_slugs_stay_apart() -> None:
    assert files.slug("x" * 200) != files.slug("x" * 201)
    assert files.slug("!!!") != files.slug("???")


def test_digest_ignores_key_order_and_sees_values() -> None:
    assert files.digest({"a": 1, "b": (2,)}) == files.digest({"b": [2], "a": 1})
    assert files.digest({"a": 1}) != files.digest({"a": 2})
    with pytest.raises(TypeError, match="object"):
        files.digest(object())


# --- JSON out


def test_save_json_keeps_order_and_text_and_takes_dataclasses(tmp_path: Path) -> None:
    path = tmp_path / "new" / "record.json"
    fact = Fact("f", "Who?", "Ann")
    files.save_json({"b": "Größe", "a": [1, None], "p": fact, "m": MappingProxyType({})}, path)
    stored = json.loads(path.read_text(encoding="utf-8"))
    assert list(stored) == ["b", "a", "p", "m"] and stored["p"]["question"] == "Who?"
    assert "Größe" in path.read_text(encoding="utf-8")
    assert [p.name for p in path.parent.iterdir()] == ["record.json"]


@pytest.mark.parametrize("bad", [float("nan"), {1, 2}, object(), "\ud800"])
def test_what_json_cannot_hold_is_refused_and_the_old_file_stays(
    tmp_path: Path, bad: object
) -> None:
    path = tmp_path / "record.json"
    files.save_json(1, path)
    with pytest.raises(DataError):
        files.save_json({"a": bad}, path)
    assert path.read_text() == "1\n"


def test_save_json_leaves_nothing_behind_when_the_disk_refuses(tmp_path: Path) -> None:
    path = tmp_path / "taken"
    path.mkdir()
    with pytest.raises(StorageError):
        files.save_json(1, path)
    assert [p.name for p in tmp_path.iterdir()] == ["taken"]
