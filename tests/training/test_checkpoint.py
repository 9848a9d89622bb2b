"""Claims about checkpoints: what was saved comes back, only to the write that saved it."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lorewright.errors import ConfigError, StorageError
from lorewright.training import checkpoint
from lorewright.training.checkpoint import CHECKPOINT, METRICS

TENSORS = {"a": torch.arange(6.0).view(2, 3), "n": torch.tensor(7)}


def test_tensors_and_account_come_back_as_they_were(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "run", "mark", TENSORS, {"epochs": [1, 2]})
    found = checkpoint.load(tmp_path / "run", "mark")
    assert found is not None
    tensors, about = found
    assert about["epochs"] == [1, 2]
    assert all(torch.equal(tensors[k], t) for k, t in TENSORS.items())
    assert not list((tmp_path / "run").glob("*.part"))


def test_nothing_saved_is_nothing_loaded(tmp_path: Path) -> None:
    assert checkpoint.load(tmp_path, "mark") is None


def test_another_writes_checkpoint_is_refused(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, "mark", TENSORS, {})
    with pytest.raises(ConfigError, match="other examples, settings or base"):
        checkpoint.load(tmp_path, "another")


@pytest.mark.parametrize("content", [b"", b"not tensors", b"\x08" + b"\x00" * 7 + b"{}      "])
def test_a_damaged_checkpoint_is_refused_not_ignored(tmp_path: Path, content: bytes) -> None:
    (tmp_path / CHECKPOINT).write_bytes(content)
    with pytest.raises(ConfigError, match=r"cannot be resumed from .* delete the run folder"):
        checkpoint.load(tmp_path, "mark")


def test_a_full_disk_keeps_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint.save(tmp_path, "mark", TENSORS, {"n": 1})

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(StorageError, match=r"No space left .* goes on from the last one"):
        checkpoint.save(tmp_path, "mark", TENSORS, {"n": 2})
    monkeypatch.undo()
    found = checkpoint.load(tmp_path, "mark")
    assert found is not None and found[1]["n"] == 1


def test_metrics_are_appended_or_begun_anew(tmp_path: Path) -> None:
    for rows, append in (([{"e": 1}], False), ([{"e": 2}], True)):
        checkpoint.log(tmp_path, rows, append=append)
    lines = (tmp_path / METRICS).read_text().splitlines()
    assert [json.loads(line)["e"] for line in lines] == [1, 2]
    checkpoint.log(tmp_path, [{"e": 9}], append=False)
    assert json.loads((tmp_path / METRICS).read_text())["e"] == 9
