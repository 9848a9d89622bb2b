"""A memory folder in one file, and back: a tar archive with a manifest, checked before it counts.

    lorewright.json       first: schema, and of every other member its size and SHA-256
    memory.json, sources/…, adapters/…, runs/…

Equal folders give equal bytes: members are sorted, without times, owners or modes. A snapshot is
taken under the folder's lock, so that no write is caught half-way, and once an interrupted removal
is completed. Restoring trusts nothing: a
member that is not a plain file of the manifest, has another size or digest, or a name that leaves
the folder, ends it, and what was unpacked is removed; the folder appears only when all is right.

This module loads no model.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import shutil
import tarfile
import uuid
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from lorewright.errors import DataError, LorewrightError, StorageError
from lorewright.files import HALF_WRITTEN, LOCK_FILE, sync_folder
from lorewright.memory.folder import INDEX_FILE, JOURNAL, Folder
from lorewright.memory.removal import writing

MANIFEST = "lorewright.json"
SCHEMA = 1
MAX_MANIFEST_BYTES = 64 * 1024 * 1024
MAX_MEMBER_BYTES = 16 * 1024**3
"""Largest file that is unpacked, in bytes."""
MAX_TOTAL_BYTES = 256 * 1024**3
"""Most that is unpacked in all, in bytes."""
ZIPPED = (".gz", ".tgz")

Files = dict[str, dict[str, Any]]
"""Name of every file -> its bytes and sha256."""


@dataclass(frozen=True)
class Snapshot:
    """What a snapshot holds."""

    path: str
    n_memories: int
    n_files: int
    n_bytes: int
    """Of the files, before compression."""
    digest: str
    """SHA-256 of the manifest: equal for equal folders, however they were compressed."""

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def take(folder: Path, to: Path) -> Snapshot:
    """Write a folder into one file, `.tar`, or `.tar.gz` or `.tgz` for a compressed one.

    Raises UnknownMemory without a memory, DataError for another suffix, a file that is there
    already, a link inside the folder or a place inside it; Locked; StorageError.
    """
    folder, to = Path(folder), Path(to)
    base = Folder(folder).index()["base"]
    if not to.name.endswith((".tar", ".tar.gz", ".tgz")):
        raise DataError(f"snapshot {to}: its name must end in .tar, .tar.gz or .tgz.")
    if to.exists():
        raise DataError(f"{to} exists already; give another name, or remove it first.")
    if folder.resolve() in to.resolve().parents:
        raise DataError(f"{to} lies in the folder itself; put the snapshot elsewhere.")
    part = to.with_name(f".{to.name}.{uuid.uuid4().hex[:8]}.part")
    with writing(Folder(folder), base), _refusals(f"the snapshot {to} could not be written"):
        files = {str(name): folder / name for name in _files(folder)}
        about = {name: _about(path) for name, path in files.items()}
        manifest = _manifest(about)
        try:
            to.parent.mkdir(parents=True, exist_ok=True)
            with part.open("xb") as raw, _compressed(raw, to) as out:
                _pack(out, manifest, files, about)
                out.flush()
            with part.open("rb+") as written:
                os.fsync(written.fileno())
            os.replace(part, to)
            sync_folder(to.parent)
        finally:
            with suppress(OSError):
                part.unlink(missing_ok=True)
        return _snapshot(to, manifest, about, len(Folder(folder).entries()))


def restore(source: Path, into: Path) -> Snapshot:
    """Unpack a snapshot into a folder that is new or empty, all of it or nothing.

    Raises DataError for an archive that is damaged, too large, or holds anything but the plain
    files of its manifest, and for a folder that holds something; StorageError.
    """
    source, into = Path(source), Path(into)
    if not source.is_file():
        raise DataError(f"restore {source}: there is no such file; check the path.")
    if into.exists() and (not into.is_dir() or any(into.iterdir())):
        raise DataError(f"{into} holds something already; restore into a new or empty folder.")
    part = into.with_name(f".{into.name}.{uuid.uuid4().hex[:8]}.part")
    with _refusals(f"{source} could not be restored into {into}"):
        try:
            part.mkdir(parents=True)
            with _archive(source) as archive:
                manifest, about = _read_manifest(archive, source)
                _unpack(archive, part, about, source)
            n_memories = len(Folder(part).entries())
            if into.exists():
                into.rmdir()
            part.rename(into)
            sync_folder(into.parent)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return _snapshot(source, manifest, about, n_memories)


@contextmanager
def _refusals(what: str) -> Iterator[None]:
    """What the disk or the archive says, as errors of the family."""
    try:
        yield
    except LorewrightError:
        raise
    except (tarfile.TarError, zlib.error, EOFError, gzip.BadGzipFile) as error:
        raise DataError(
            f"{what}: the archive is damaged ({error}); take it from a copy."
        ) from error
    except OSError as error:
        raise StorageError(f"{what}: {error}; check space and permissions.") from error


# -- packing -------------------------------------------------------------------------------------


def _files(folder: Path) -> Iterator[PurePosixPath]:
    """Every file of the folder but the lock and what an interrupted write left half-written."""
    for path in sorted(folder.rglob("*"), key=lambda p: p.relative_to(folder).parts):
        name = path.relative_to(folder)
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise DataError(f"{path} is a link or no file; take it out of the folder first.")
        half = any(map(HALF_WRITTEN.fullmatch, name.parts))
        if path.is_file() and not half and str(name) != LOCK_FILE:
            if _strange(name.as_posix()):
                raise DataError(f"{path} has a name that a snapshot cannot have; rename it first.")
            yield PurePosixPath(*name.parts)


def _about(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": sha256}


def _manifest(about: Files) -> bytes:
    plain = {"lorewright_snapshot": SCHEMA, "files": about}
    return (json.dumps(plain, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


@contextmanager
def _compressed(raw: IO[bytes], to: Path) -> Iterator[IO[bytes]]:
    if not to.name.endswith(ZIPPED):
        yield raw
        return
    with gzip.GzipFile("", "wb", compresslevel=6, fileobj=raw, mtime=0) as out:
        yield out  # type: ignore[misc]  # no name, no time: equal folders, equal bytes


def _pack(out: IO[bytes], manifest: bytes, files: dict[str, Path], about: Files) -> None:
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(_member(MANIFEST, len(manifest)), io.BytesIO(manifest))
        for name, path in files.items():
            with path.open("rb") as file:
                archive.addfile(_member(name, about[name]["bytes"]), file)


def _member(name: str, size: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size, member.mode, member.mtime = size, 0o644, 0
    return member


def _snapshot(path: Path, manifest: bytes, about: Files, n_memories: int) -> Snapshot:
    size = sum(each["bytes"] for each in about.values())
    digest = hashlib.sha256(manifest).hexdigest()
    return Snapshot(str(path), n_memories, len(about), size, digest)


# -- unpacking -----------------------------------------------------------------------------------


class _Bounded:
    """A file that refuses to read much at once: headers may claim any size, and are read whole."""

    def __init__(self, file: IO[bytes], source: Path) -> None:
        self.file, self.source = file, source
        self.seek, self.tell = file.seek, file.tell

    def read(self, n: int = -1) -> bytes:
        """Read n bytes, at most MAX_MANIFEST_BYTES."""
        if not 0 <= n <= MAX_MANIFEST_BYTES:
            raise DataError(f"{self.source} has a header of {n} bytes; nothing was restored.")
        return self.file.read(n)


@contextmanager
def _archive(source: Path) -> Iterator[tarfile.TarFile]:
    with source.open("rb") as raw:
        zipped = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        plain = gzip.GzipFile(fileobj=raw) if zipped else raw
        bounded = _Bounded(plain, source)  # type: ignore[arg-type]
        with tarfile.open(fileobj=bounded, mode="r:") as archive:  # type: ignore[call-overload]
            yield archive


def _read_manifest(archive: tarfile.TarFile, source: Path) -> tuple[bytes, Files]:
    first = archive.next()
    if first is None or first.name != MANIFEST or not first.isreg():
        raise DataError(f"{source} is no snapshot: it does not begin with {MANIFEST}.")
    if first.size > MAX_MANIFEST_BYTES:
        raise DataError(f"{source} has a manifest of {first.size} bytes; too large to be one.")
    file = archive.extractfile(first)
    assert file is not None
    content = file.read()
    try:
        plain = json.loads(content)
        schema, files = plain["lorewright_snapshot"], plain["files"]
        about = {
            str(k): {"bytes": int(v["bytes"]), "sha256": v["sha256"]} for k, v in files.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{source} has a damaged manifest ({error!r}); use a copy.") from error
    if schema != SCHEMA:
        raise DataError(f"{source} is of schema {schema!r}; this version reads {SCHEMA}.")
    sizes = [each["bytes"] for each in about.values()]
    if (
        min(sizes, default=0) < 0
        or max(sizes, default=0) > MAX_MEMBER_BYTES
        or (sum(sizes) > MAX_TOTAL_BYTES)
    ):
        raise DataError(
            f"{source} would unpack to {sum(sizes)} bytes, of which {max(sizes)} in one file; at "
            f"most {MAX_TOTAL_BYTES} and {MAX_MEMBER_BYTES} are unpacked."
        )
    if INDEX_FILE not in about:
        raise DataError(f"{source} holds no {INDEX_FILE}; it is no snapshot of a memory.")
    return content, about


def _unpack(archive: tarfile.TarFile, folder: Path, about: Files, source: Path) -> None:
    left = dict(about)
    while (member := archive.next()) is not None:
        _check_member(member, left, source)
        each = left.pop(member.name)
        target = folder / member.name
        target.parent.mkdir(parents=True, exist_ok=True)
        file = archive.extractfile(member)
        assert file is not None
        with target.open("xb") as out:
            shutil.copyfileobj(file, out)
            out.flush()
            os.fsync(out.fileno())
        digest = _about(target)["sha256"]
        if digest != each["sha256"]:
            raise DataError(
                f"{source}: {member.name!r} is not what was stored (SHA-256 {digest[:16]}, "
                f"expected {str(each['sha256'])[:16]}); use a copy."
            )
    if left:
        raise DataError(
            f"{source} ends too soon: {len(left)} files are missing, the first is {min(left)!r}; "
            "use a copy."
        )


def _check_member(member: tarfile.TarInfo, left: Files, source: Path) -> None:
    if not member.isreg():
        why = "is a link, a device or a folder, not a plain file"
    elif _strange(member.name):
        why = "has a name that a snapshot cannot have"
    elif member.name not in left:
        why = "is not in the manifest, or there twice"
    elif member.size != left[member.name]["bytes"]:
        why = f"has {member.size} bytes, the manifest says {left[member.name]['bytes']}"
    else:
        return
    raise DataError(f"{source}: {member.name!r} {why}; nothing was restored.")


def _strange(name: str) -> bool:
    """Whether a name is none of a file below the folder, on any system, or one that is acted on."""
    path = PurePosixPath(name)
    leaves = path.is_absolute() or ".." in path.parts or set(name) & {"\\", ":", "\0"}
    ours = name.casefold() in (LOCK_FILE, MANIFEST, JOURNAL)
    half = any(map(HALF_WRITTEN.fullmatch, path.parts))
    return bool(leaves) or str(path) != name or ours or half
