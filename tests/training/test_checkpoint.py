"""Claims about run folders: what was stored comes back, and only to the write that stored it."""

from __future__ import annotations

import json
import resource
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from support.stacks import JOBS
from support.writes import BRIEF, EXAMPLES, interrupted, same_adapter, tiny

from lorewright.adapters.config import LoraConfig
from lorewright.errors import ConfigError, StorageError
from lorewright.models.model import Model
from lorewright.training import checkpoint
from lorewright.training.config import Epoch, WriteConfig
from lorewright.training.filenames import CHECKPOINT_FILE, METRICS_FILE, PARTS_FILE
from lorewright.training.loop import write, write_all
from lorewright.training.optimisers import OPTIMIZERS


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny()


def refused(model: Model, run: Path, config: WriteConfig = BRIEF, **settings: Any) -> None:
    with pytest.raises(ConfigError, match=r"other examples, settings or base; finish that one"):
        write(model, EXAMPLES, config, run=run, **settings)


@pytest.mark.parametrize(
    "change",
    [{"lr": 2e-2}, {"seed": 1}, {"lora": LoraConfig(rank=2)}, {"epochs": 9}, {"margin": 0.7}],
    ids=str,
)
def test_resuming_with_other_settings_is_refused(
    model: Model, change: dict[str, Any], tmp_path: Path
) -> None:
    interrupted(model, tmp_path, at=2)
    refused(model, tmp_path, replace(BRIEF, **change))


def test_resuming_with_other_examples_or_another_base_is_refused(
    model: Model, tmp_path: Path
) -> None:
    interrupted(model, tmp_path, at=2)
    with pytest.raises(ConfigError, match="other examples, settings or base"):
        write(model, EXAMPLES[1:], BRIEF, run=tmp_path)
    refused(tiny(num_hidden_layers=1), tmp_path)


@pytest.mark.parametrize("content", [b"", b"not tensors", b"\x08" + b"\x00" * 7 + b"{}      "])
def test_a_checkpoint_that_cannot_be_read_is_refused_not_ignored(
    model: Model, content: bytes, tmp_path: Path
) -> None:
    (tmp_path / CHECKPOINT_FILE).write_bytes(content)
    with pytest.raises(ConfigError, match=r"cannot be resumed from .* delete the run folder"):
        write(model, EXAMPLES, BRIEF, run=tmp_path)


def test_a_checkpoint_that_was_cut_short_is_refused(model: Model, tmp_path: Path) -> None:
    interrupted(model, tmp_path, at=2)
    checkpoint = tmp_path / CHECKPOINT_FILE
    checkpoint.write_bytes(checkpoint.read_bytes()[:-100])
    with pytest.raises(ConfigError, match=r"cannot be resumed from .* delete the run folder"):
        write(model, EXAMPLES, BRIEF, run=tmp_path)


def test_a_checkpoint_of_another_layout_is_refused_in_a_sentence(
    model: Model, tmp_path: Path
) -> None:
    interrupted(model, tmp_path, at=2)
    tensors = load_file(tmp_path / CHECKPOINT_FILE)
    about = json.dumps({"fingerprint": "0" * 64, "members": [{}]})  # as before there were layouts
    save_file(tensors, tmp_path / CHECKPOINT_FILE, {"about": about})
    with pytest.raises(ConfigError, match="another version of lorewright; finish the write with"):
        write(model, EXAMPLES, BRIEF, run=tmp_path)


def test_a_finished_run_gives_its_adapter_again_without_training(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = write(model, EXAMPLES, BRIEF, run=tmp_path)
    monkeypatch.setitem(OPTIMIZERS, "adamw", lambda *_: pytest.fail("it trained"))
    again = write(model, EXAMPLES, BRIEF, run=tmp_path)
    assert same_adapter(first, again)
    assert again.epochs == first.epochs


def test_a_failed_write_of_a_finished_run_fails_again(model: Model, tmp_path: Path) -> None:
    jobs = [JOBS[0], replace(JOBS[0], config=replace(BRIEF, lr=1e30))]
    first, again = (write_all(model, jobs, run=tmp_path)[1] for _ in range(2))
    assert first == again


def test_metrics_on_disk_are_the_epochs_without_gaps_or_repeats(
    model: Model, tmp_path: Path
) -> None:
    interrupted(model, tmp_path, at=4)
    done = write(model, EXAMPLES, BRIEF, run=tmp_path)
    lines = (tmp_path / METRICS_FILE).read_text().splitlines()
    assert [Epoch(**json.loads(line)) for line in lines] == list(done.epochs)


def test_metrics_of_a_stack_name_the_job(model: Model, tmp_path: Path) -> None:
    done = write_all(model, JOBS, run=tmp_path)
    rows = [json.loads(line) for line in (tmp_path / METRICS_FILE).read_text().splitlines()]
    assert sorted((row["job"], row["epoch"]) for row in rows) == [
        (i, epoch.epoch) for i, each in enumerate(done) for epoch in each.epochs
    ]


def test_a_full_disk_is_a_storage_error_and_leaves_the_last_checkpoint(
    model: Model, tmp_path: Path
) -> None:
    interrupted(model, tmp_path, at=1)
    stored = (tmp_path / CHECKPOINT_FILE).read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:  # a real refusal: no file may grow beyond 10 kB
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
        with pytest.raises(StorageError, match=r"could not be written: .* Free some space"):
            write(model, EXAMPLES, BRIEF, run=tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / CHECKPOINT_FILE).read_bytes() == stored
    assert {path.name for path in tmp_path.iterdir()} == {CHECKPOINT_FILE, METRICS_FILE}
    assert same_adapter(write(model, EXAMPLES, BRIEF, run=tmp_path), write(model, EXAMPLES, BRIEF))


def test_a_run_folder_that_cannot_be_made_is_a_storage_error(model: Model, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="could not be written"):
        write(model, EXAMPLES, BRIEF, run=tmp_path / "file" / "run")


def test_of_an_epoch_under_way_the_loss_of_the_part_that_is_done_is_stored(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PARTS_SECONDS", "METRICS_SECONDS"):
        monkeypatch.setattr(checkpoint, name, 0.0)
    seen: list[dict[str, Any]] = []

    def look(phase: str, done: int, total: int, note: str) -> None:
        if (tmp_path / PARTS_FILE).exists():
            seen.extend(json.loads((tmp_path / PARTS_FILE).read_text())["parts"])

    written = write(model, EXAMPLES, replace(BRIEF, batch_size=2), run=tmp_path, advance=look)
    assert not (tmp_path / PARTS_FILE).exists()
    for epoch in written.epochs:
        own = [part for part in seen if part["epoch"] == epoch.epoch]
        shares = list(dict.fromkeys(part["done"] for part in own))
        assert len(shares) > 1 and shares == sorted(shares) and shares[-1] == 1.0
        assert own[-1]["loss_nats"] == epoch.loss_nats and own[0]["n_tokens"] < own[-1]["n_tokens"]
    alone = write(model, EXAMPLES, replace(BRIEF, batch_size=2))
    assert same_adapter(alone, written)
