"""Claims about bfloat16 in training: where it is chosen, what it may change, how it is audited."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from safetensors.torch import save as dump_tensors
from support.families import gemma3_text
from support.models import letters
from support.writes import BRIEF, CONFIG, EXAMPLES, interrupted, same_adapter, tiny
from torch import Tensor, nn

from lorewright.adapters.config import DORA
from lorewright.errors import ConfigError
from lorewright.models import reducing
from lorewright.models.backends.backend import Pass
from lorewright.models.backends.by_hand import ByHand
from lorewright.models.backends.network import Transformers
from lorewright.models.fingerprint import fingerprint
from lorewright.models.model import Model
from lorewright.recall.traces import certify
from lorewright.training import checkpoint
from lorewright.training.arithmetic import choose
from lorewright.training.config import Job, WriteConfig
from lorewright.training.filenames import CHECKPOINT_FILE
from lorewright.training.loop import write, write_all

HALF = replace(CONFIG, arithmetic="bfloat16")


def in_torch(make: Callable[[nn.Module], ByHand] = ByHand) -> Model:
    base = tiny()
    backends: Any = {"torch": make, "all": Transformers}
    return Model(base.network, base.tokenizer, "tiny", backends=backends)


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bfloat16 counts as faster, on bases of any size."""
    monkeypatch.setattr(reducing, "LEAST_BYTES", 0)
    monkeypatch.setattr(reducing, "FASTER", 0.0)


def chosen(model: Model, config: WriteConfig = CONFIG) -> str:
    return choose(model, [config])[0]


def test_it_is_chosen_for_a_large_base_that_multiplies_faster_in_it(
    monkeypatch: pytest.MonkeyPatch, eager: None
) -> None:
    model = in_torch()
    name, why = choose(model, [CONFIG])
    assert name == "bfloat16" and "times as fast here" in why
    assert chosen(model, replace(CONFIG, arithmetic="float32")) == "float32"
    monkeypatch.setattr(reducing, "FASTER", math.inf)
    assert choose(model, [CONFIG]) == ("float32", "")
    assert chosen(model, HALF) == "bfloat16"
    monkeypatch.setattr(reducing, "FASTER", 0.0)
    monkeypatch.setattr(reducing, "LEAST_BYTES", 1 << 28)
    assert chosen(model) == "float32"


def test_also_with_dropout_and_in_transformers_but_not_where_a_dtype_was_named(
    eager: None,
) -> None:
    model = in_torch()
    assert chosen(model, replace(CONFIG, dropout=0.1)) == "bfloat16"
    other = Model(gemma3_text(), letters(), "tiny")  # type: ignore[arg-type]
    assert chosen(other) == "bfloat16"
    for each in (model, other):
        each.loaded_as = "float32"
        assert chosen(each) == "float32"
    half = Model(gemma3_text().bfloat16(), letters(), "tiny")  # type: ignore[arg-type]
    assert chosen(half) == "float32"


def test_what_drafts_asks_the_same_question(monkeypatch: pytest.MonkeyPatch, eager: None) -> None:
    model = in_torch()
    assert reducing.reduced_for(model) is not None
    monkeypatch.setattr(reducing, "FASTER", math.inf)
    assert reducing.reduced_for(model) is None
    monkeypatch.setattr(reducing, "FASTER", 0.0)
    monkeypatch.setattr(reducing, "LEAST_BYTES", 1 << 28)
    assert reducing.reduced_for(model) is None


def test_a_base_without_linear_layers_is_not_timed(eager: None) -> None:
    model = in_torch()
    for name, module in list(model.network.named_modules()):
        if isinstance(module, nn.Linear) and "lm_head" not in name:
            model.network.set_submodule(name, nn.Identity())
    assert reducing.worth(model) == 0.0 and reducing.reduced_for(model) is None


def test_what_cannot_be_done_in_it_is_refused() -> None:
    model = in_torch()
    with pytest.raises(ConfigError, match="needs a base in float32 on a CPU and no DoRA"):
        write(model, EXAMPLES, replace(HALF, lora=replace(CONFIG.lora, variant=DORA)))
    with pytest.raises(ConfigError, match="bfloat16, float32; write them separately"):
        write_all(model, [Job(EXAMPLES, HALF), Job(EXAMPLES, replace(HALF, arithmetic="float32"))])
    with pytest.raises(ConfigError, match="arithmetic 'half' is unknown"):
        replace(CONFIG, arithmetic="half")


@pytest.mark.parametrize("make", [ByHand, Transformers])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_all_is_recalled_in_float32_and_the_base_is_as_it_was(
    make: Callable[[nn.Module], ByHand], dropout: float
) -> None:
    model = in_torch(make)
    done = write(model, EXAMPLES, replace(HALF, dropout=dropout))
    assert done.complete and done.arithmetics[0] == "bfloat16"
    assert fingerprint(model.network) == model.digest == done.adapter.base_digest
    with model.using(done.adapter):
        assert all(certify(model, EXAMPLES, margin=CONFIG.margin))
    assert not same_adapter(done, write(model, EXAMPLES, CONFIG))


def test_a_write_resumes_in_what_it_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, eager: None
) -> None:
    monkeypatch.setattr(checkpoint, "CHECKPOINT_SECONDS", 0.0)
    model, notes = in_torch(), list[str]()
    whole = write(model, EXAMPLES, BRIEF, on_note=notes.append)
    assert whole.arithmetics[0] == "bfloat16" and "bfloat16" in notes[0]
    interrupted(model, tmp_path, at=3)
    monkeypatch.setattr(reducing, "FASTER", math.inf)
    resumed = write(model, EXAMPLES, BRIEF, run=tmp_path)
    assert same_adapter(resumed, whole) and resumed.arithmetics == whole.arithmetics
    assert write(model, EXAMPLES, BRIEF).arithmetics == ("float32",)


def test_one_that_an_earlier_version_began_goes_on_in_float32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, eager: None
) -> None:
    monkeypatch.setattr(checkpoint, "CHECKPOINT_SECONDS", 0.0)
    model, plainly = in_torch(), replace(BRIEF, arithmetic="float32")
    monkeypatch.setattr(reducing, "FASTER", math.inf)
    interrupted(model, tmp_path, at=3)
    path = tmp_path / CHECKPOINT_FILE
    with safe_open(path, "pt") as file:
        about = json.loads(file.metadata()["about"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118, no dict
    del about["members"][0]["arithmetics"]
    path.write_bytes(dump_tensors(tensors, {"about": json.dumps(about)}))
    monkeypatch.setattr(reducing, "FASTER", 0.0)
    resumed = write(model, EXAMPLES, BRIEF, run=tmp_path)
    assert resumed.arithmetics == ("float32",)
    assert same_adapter(resumed, write(model, EXAMPLES, plainly))


class Sure(ByHand):
    """Is surer of everything in bfloat16 than in float32."""

    def hidden(self, ids_BT: Tensor, position_BC: Tensor, pass_: Pass) -> Tensor:
        return super().hidden(ids_BT, position_BC, pass_) * (4 if pass_.reduced else 1)


def test_what_fails_the_audit_is_trained_on_in_float32() -> None:
    model, notes = in_torch(Sure), list[str]()
    done = write(model, EXAMPLES, HALF, on_note=notes.append)
    assert done.arithmetics == ("bfloat16", "float32") and done.complete
    assert [note for note in notes if "recalled in float32; going on in it" in note]
    with model.using(done.adapter):
        assert all(certify(model, EXAMPLES, margin=CONFIG.margin))
    audits = [epoch.n_recalled for epoch in done.epochs if epoch.certified]
    assert len(audits) > 1 and audits[0] < len(EXAMPLES) == audits[-1]
    # One that has no epoch left says what is recalled as it serves.
    steady = replace(HALF, schedule="constant")  # so that fewer epochs are the first of many
    first = next(e.epoch for e in write(model, EXAMPLES, steady).epochs if e.certified)
    short = write(model, EXAMPLES, replace(steady, epochs=first))
    assert short.epochs[-1].certified and short.arithmetics == ("bfloat16",)
    with model.using(short.adapter):
        passed = certify(model, EXAMPLES, margin=CONFIG.margin)
    assert sum(map(bool, passed)) == short.epochs[-1].n_recalled
