"""Files, once for everybody: whole writes, JSON, JSON lines, digests, locks, the user's cache."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import secrets
import shutil
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from lorewright.errors import DataError, Locked, LorewrightError, StorageError

CACHE = "LOREWRIGHT_CACHE"
"""Environment variable that names the user's cache folder."""
MAX_BYTES = 64 * 1024 * 1024
"""Largest file that is read as knowledge or probes, in bytes."""
SLUG_CHARS = 60
LOCK_FILE = ".lock"
HALF_WRITTEN = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{8}\.(?P<kind>tmp|part|old)")
"""Names of what is put in its place by a rename, and of what it replaces until then."""


def cache_folder() -> Path:
    """LOREWRIGHT_CACHE, or the platform's cache folder for lorewright."""
    from platformdirs import user_cache_path

    return Path(os.environ.get(CACHE) or user_cache_path("lorewright", appauthor=False))


# --- reading -----------------------------------------------------------------------------------


class Text(NamedTuple):
    """The text of a file, and the encoding in which it stood."""

    content: str
    encoding: str


def read_text(path: Path) -> str:
    """Return the text of a file, as read_encoded does."""
    return read_encoded(path).content


def read_encoded(path: Path, *, markup: bool = False) -> Text:
    """Return the text of a file with ``\\n`` line ends and without a byte order mark.

    UTF-8, UTF-16 and, where nothing speaks against it, Windows-1252; others where the package
    charset-normalizer is sure of them. Raises DataError when it is
    missing, not a file, empty, over MAX_BYTES, binary (whatever its name), or in another encoding;
    StorageError when the disk refuses. HTML is text to readers of `markup` only.
    """
    check_size(path, MAX_BYTES)
    try:
        text = _decode(path.read_bytes(), path, markup=markup)
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error}; check the disk.") from error
    if not text.content.strip():
        raise DataError(f"{path} is empty; give a file with text in it.")
    return text


def check_size(path: Path, max_bytes: int) -> None:
    """Raise DataError for what is no file, empty or larger; StorageError if the disk refuses."""
    if not path.exists():
        raise DataError(f"{path} cannot be read: there is no such file; check the path.")
    if not path.is_file():
        raise DataError(f"{path} cannot be read: it is not a regular file; give a file.")
    try:
        n_bytes = path.stat().st_size
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error}; check the disk.") from error
    if n_bytes > max_bytes:
        raise DataError(
            f"{path} has {n_bytes} bytes; at most {max_bytes} ({max_bytes >> 20} MiB) are read; "
            "split it."
        )
    if not n_bytes:
        raise DataError(f"{path} is empty; give a file with text in it.")


_HTML = "an HTML page"
_MAGIC = {
    b"%pdf-": "a PDF",
    b"%!ps": "PostScript",
    b"{\\rtf": "an RTF document",
    b"pk\x03\x04": "a ZIP archive (such as .docx, .xlsx or .epub)",
    b"\xd0\xcf\x11\xe0": "an old Office document",
    b"\x1f\x8b": "a gzip archive",
    b"\x89png": "a picture",
    b"gif8": "a picture",
    b"\xff\xd8\xff": "a picture",
    b"sqlite format 3": "a database",
    b"<!doctype html": _HTML,
    b"<html": _HTML,
}
"""First bytes, in lower case, of what is no plain text under any name."""

_UNLIKELY_1252 = re.compile(
    r"(?<=[^\W\d_])[¡-©¬-³¶¸¹¼-¿×÷](?=[^\W\d_])"  # a sign inside a word: Latin-2 and others
    r"|(?<=[a-zß-ÿ])[À-ÞŠŒŽŸ]"  # a capital inside a word: a cut UTF-8 character, Mac OS Roman
)
MIN_HIGH_BYTES = 100
"""With fewer bytes that are not ASCII an encoding is not detected."""
MAX_CHAOS, MIN_COHERENCE = 0.1, 0.5
"""Of an encoding that is detected: unlikely neighbours, and letters as frequent as in a text."""
MAX_HIGH_SHARE = 0.25
"""Text with a larger share of non-ASCII letters is in no Latin script, so not in Windows-1252."""


def kind_of(content: bytes) -> str:
    """What a file is by its first bytes, such as "a PDF"; empty for text and what is not known."""
    start = content[:400].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    return next((kind for magic, kind in _MAGIC.items() if start.startswith(magic)), "")


def _decode(content: bytes, path: Path, *, markup: bool) -> Text:
    kind = kind_of(content)
    if kind and not (markup and kind == _HTML):
        raise DataError(f"{path} is {kind}, not text; save it as text, Markdown or CSV.")
    n_zero = content.count(0)
    halves = (content[::2].count(0), content[1::2].count(0))
    # Latin text saved as UTF-16 without a mark has a NUL in every other byte.
    alternating = min(halves) == 0 and max(halves) * 20 > len(content) * 9
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return _text(content, "utf-16", path)
    if alternating:
        return _text(content, "utf-16-le" if halves[1] else "utf-16-be", path)
    n_control = sum(content.count(byte) for byte in (*range(1, 9), *range(14, 27), *range(28, 32)))
    if n_zero or n_control * 10 > len(content):
        raise DataError(
            f"{path} is binary ({n_zero} NUL and {n_control} control bytes of {len(content)}); "
            "give a text file."
        )
    try:
        return _text(content, "utf-8-sig", path)
    except DataError:
        # A damaged UTF-8 file has whole characters beside the damaged one.
        whole = content.decode("utf-8", errors="ignore")
        text = content.decode("latin-1") if whole.isascii() else ""
        n_high = sum(not char.isascii() for char in text)
        if text and n_high <= len(text) * MAX_HIGH_SHARE:
            text = content.decode("cp1252", errors="replace")
            if "\ufffd" not in text and not _UNLIKELY_1252.search(text):
                return _text(content, "cp1252", path)
        if encoding := _detected(content, n_unicode=sum(not char.isascii() for char in whole)):
            return _text(content, encoding, path)
        raise


def _detected(content: bytes, *, n_unicode: int) -> str:
    """The encoding by the frequencies of letters; empty where that is not sure.

    Too little text is not, nor is one of which `n_unicode` characters are UTF-8: it is damaged.
    """
    n_high = len(content) - len(content.translate(None, bytes(range(128, 256))))
    if n_high < MIN_HIGH_BYTES or n_unicode * 8 > n_high:
        return ""
    try:
        from charset_normalizer import from_bytes
    except ModuleNotFoundError:
        return ""
    best = from_bytes(content[:100_000]).best()
    if best is None or best.chaos > MAX_CHAOS or best.coherence < MIN_COHERENCE:
        return ""
    return best.encoding


def _text(content: bytes, encoding: str, path: Path) -> Text:
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        # The codec counts from after the byte order mark.
        marked = encoding == "utf-8-sig" and content.startswith(b"\xef\xbb\xbf")
        offset = error.start + (3 if marked else 0)
        name = encoding.removesuffix("-sig").upper()
        raise DataError(
            f"{path} is not {name}: byte {content[offset]:#04x} at offset {offset}; "
            "save it as UTF-8."
        ) from error
    text = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    return Text(text, encoding.removesuffix("-sig"))


class Row(NamedTuple):
    """One JSON object and the line, counted from 1, on which it stands."""

    line: int
    values: dict[str, Any]


def jsonl_rows(
    text: str, path: Path, *, parse_float: Callable[[str], Any] = float
) -> Iterator[Row]:
    """Yield the objects of a JSON-lines text; ``path`` is for messages only.

    Raises DataError naming the line that is not valid JSON or not an object.
    """
    # Not str.splitlines: it also breaks at U+2028 and U+0085, which JSON strings may hold.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            values = json.loads(line, parse_float=parse_float, object_pairs_hook=unique_keys)
        except DataError as error:
            raise DataError(f"{path} line {number} {error}") from error
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{path} line {number} is not valid JSON ({error}); it may be cut off or lack a "
                "quote; repair that line."
            ) from error
        if not isinstance(values, dict):
            raise DataError(
                f"{path} line {number} holds a {type(values).__name__}; write one object per line."
            )
        yield Row(number, values)


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of these pairs; raises DataError, for a message to end in, for a key twice."""
    values = dict(pairs)
    if len(values) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for n, key in enumerate(keys) if key in keys[:n])
        raise DataError(f"has the key {twice!r} twice in one object; leave one of them.")
    return values


def load_jsonl(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a JSON-lines file; an empty file gives an empty list.

    Raises DataError for a missing file or a bad line, StorageError when the disk refuses.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"{path} cannot be read: there is no such file; check the path.") from error
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error}; check the disk.") from error
    return [row.values for row in jsonl_rows(_text(content, "utf-8-sig", path).content, path)]


def read_object(path: Path, remedy: str) -> dict[str, Any]:
    """Return the JSON object of a file.

    Raises DataError with the remedy when the file holds none, StorageError when the disk refuses.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise StorageError(f"{path} could not be read: {error}; check the path.") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is damaged ({error}); {remedy}.") from error
    if not isinstance(values, dict):
        raise DataError(f"{path} is damaged (it holds no JSON object); {remedy}.")
    return values


# --- writing -----------------------------------------------------------------------------------


def store(content: bytes, path: Path, *, durable: bool = True) -> None:
    """Write a file whole or not at all, with its folder; raises StorageError.

    Temporary name, fsync, rename, fsync of the folder: once this returns, a loss of power leaves
    the new content, and before that the old. What is not `durable` is written without the fsyncs,
    which take longer than all else: for what is replaced in a moment.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("xb") as file:
                file.write(content)
                if durable:
                    file.flush()
                    os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"{path} could not be written: {error}; check the disk.") from error
    if durable:
        sync_folder(path.parent)


@contextmanager
def new_folder(folder: Path, made: str) -> Iterator[Path]:
    """Give the path of a temporary folder, which has the folder's name once the block has ended.

    Where another process was quicker its folder stays, known by the file `made` in it. Raises
    StorageError when the disk refuses.
    """
    temporary = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        os.replace(temporary, folder)
    except OSError as error:
        if not (folder / made).is_file():
            raise StorageError(
                f"{folder} could not be written: {error}; check space and permissions."
            ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def sync_folder(folder: Path) -> None:
    """Have the disk record the names in a folder; file systems without that are left alone."""
    with suppress(OSError):  # Windows opens no folder; some network file systems sync none
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def sweep(folder: Path) -> None:
    """Remove what interrupted writers left half-written directly in a folder, under its lock.

    What had been set aside to be replaced is put back where nothing has taken its place.
    """
    for path in folder.glob(".*"):
        named = HALF_WRITTEN.fullmatch(path.name)
        if named and named["kind"] == "old" and not path.with_name(named["name"]).exists():
            path.rename(path.with_name(named["name"]))
        elif named and path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif named:
            path.unlink(missing_ok=True)


def save_json(obj: object, path: Path) -> None:
    """Write an object (plain data or dataclasses) as indented JSON, whole or not at all.

    Raises DataError for what JSON cannot hold (NaN included), StorageError when the disk refuses.
    """
    try:
        text = json.dumps(obj, indent=2, ensure_ascii=False, allow_nan=False, default=_plain)
        content = (text + "\n").encode()
    except (TypeError, ValueError) as error:
        raise DataError(f"{path} was not written: the record cannot be JSON: {error}.") from error
    store(content, Path(path))


def dump_jsonl(rows: Iterable[Any], path: Path) -> None:
    """Write one JSON object per line, whole or not at all; rows are mappings or dataclasses.

    Raises DataError for what JSON or UTF-8 cannot hold, StorageError when the disk refuses; the old
    file, if any, is then still there.
    """
    path = Path(path)
    try:
        content = jsonl(rows)
    except ValueError as error:
        raise DataError(f"{path} was not written: a row cannot be stored: {error}.") from error
    store(content, path)


def jsonl(rows: Iterable[Any]) -> bytes:
    """Return rows as JSON lines; raises ValueError for what JSON or UTF-8 cannot hold."""
    return "".join(_json(row, ensure_ascii=False) + "\n" for row in rows).encode()


def _json(obj: object, *, ensure_ascii: bool) -> str:
    return json.dumps(
        obj,
        ensure_ascii=ensure_ascii,
        allow_nan=False,
        sort_keys=True,
        separators=(",", ":") if ensure_ascii else None,
        default=_plain,
    )


def _plain(obj: object) -> object:
    if dataclasses.is_dataclass(obj) and not isinstance(obj, type):
        return {field.name: vars(obj)[field.name] for field in dataclasses.fields(obj)}
    if isinstance(obj, Mapping):
        return dict(obj)
    raise TypeError(f"a {type(obj).__name__} cannot be written as JSON")


@contextmanager
def locked(
    folder: Path, *, work: str, wait_seconds: float = 0.0, remedy: str = "use another folder"
) -> Iterator[None]:
    """Keep other processes out of a folder for a block; the folder is created if need be.

    `work` completes "another process is … FOLDER", `remedy` "wait for it to end, or …". Raises
    Locked when another process holds it for longer than `wait_seconds`, StorageError for what the
    disk refuses, inside the block too.
    """
    import filelock

    try:
        folder.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(folder / LOCK_FILE, timeout=wait_seconds):
            yield
    except LorewrightError:
        raise  # many of the family are OSErrors too: a teacher's, a lock's
    except filelock.Timeout as error:
        raise Locked(
            f"another process is {work} {folder}; wait for it to end, or {remedy}."
        ) from error
    except OSError as error:
        raise StorageError(
            f"{folder} could not be written: {error}; check space and permissions, or {remedy}."
        ) from error


def is_locked(folder: Path) -> bool:
    """Whether a process holds a folder's lock, as `locked` does."""
    import filelock

    path = folder / LOCK_FILE
    if not path.is_file():
        return False
    try:
        with filelock.FileLock(path, timeout=0):
            return False
    except (filelock.Timeout, OSError):  # what may not be opened is somebody else's
        return True


# --- names -------------------------------------------------------------------------------------


def digest(obj: object) -> str:
    """Return the sha256 of an object's canonical JSON (sorted keys, ASCII) as 64 hex digits."""
    return hashlib.sha256(_json(obj, ensure_ascii=True).encode()).hexdigest()


def slug(text: str) -> str:
    """Return a name safe in file names and addresses: lower-case words joined by hyphens.

    Letters of every script stay. At most SLUG_CHARS characters: longer ones, and texts without any
    letter, end in eight hex digits of the text's sha256, so that they stay apart.
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    chars = (c if c.isalnum() or unicodedata.category(c)[0] == "M" else " " for c in folded)
    name = "-".join("".join(chars).split())
    if name and len(name) <= SLUG_CHARS:
        return name
    return f"{name[: SLUG_CHARS - 9]}-{digest(text)[:8]}".strip("-")
