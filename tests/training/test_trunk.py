"""Claims about the frozen trunk: same logits, layers below skipped, families, honest refusals."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.families import FAMILIES, gpt2, llama
from support.models import letters
from support.numbers import assert_close, depth
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from lorewright.adapters.config import LoraConfig
from lorewright.adapters.lora import attach
from lorewright.adapters.targets import layer_list
from lorewright.errors import ModelError, StorageError
from lorewright.models.backends.backend import Pass
from lorewright.models.model import Batch, Model
from lorewright.training.trunk import Trunk

Build = Callable[[], nn.Module]
family = pytest.mark.parametrize("build", FAMILIES.values(), ids=FAMILIES)
TEXTS = [("Code of red?", "48"), ("Where is the blue one now?", "in 7.5"), ("Teal?", "KX-12")]


def table(model: Model) -> tuple[Batch, list[int]]:
    rows = [model.render(prompt, completion) for prompt, completion in TEXTS]
    return model.batch(rows), [len(row) for row in rows]


def same(model: Model, trunk: Trunk, batch: Batch, index_B: list[int]) -> None:
    """A pass that begins with the trunk gives the logits of a whole one."""
    whole, real = model.completion_logits(batch), batch.mask_BC.bool()
    pass_ = Pass(entering=trunk.entering(index_B, batch.ids_BT.shape[1]))
    short = model.completion_logits(batch, pass_)
    assert_close(short[real], whole[real].double(), depth(model.network, batch.ids_BT.shape[1]))


@family
def test_a_pass_from_the_trunk_gives_the_logits_of_a_whole_one_and_skips_what_is_below(
    build: Build,
) -> None:
    model = Model(build(), letters(), "tiny")  # type: ignore[arg-type]
    batch, lengths = table(model)
    ran: list[int] = []
    layers = layer_list(model.network)
    with attach(model.network, [LoraConfig(layers=(1,), seed=4)]), torch.no_grad():
        trunk = Trunk(model, batch, lengths, 1, None)
        same(model, trunk, batch, [0, 1, 2])
        layers[1].register_forward_hook(lambda *_: ran.append(1))
        below = next(m for m in layers[0].modules() if isinstance(m, nn.Linear))
        below.register_forward_hook(lambda *_: ran.append(0))
        same(model, trunk, batch, [0, 1, 2])  # in transformers: hooks are there
        assert ran == [0, 1, *ran[2:-1], 1] and ran[2:-1] in ([], [0, 1])
        trunk.check(batch, [0, 1, 2])


def test_rows_may_come_in_any_order_and_more_than_once() -> None:
    model = Model(llama(num_hidden_layers=3), letters(), "tiny")
    batch, lengths = table(model)
    with attach(model.network, [LoraConfig(layers=(2,))]), torch.no_grad():
        trunk = Trunk(model, batch, lengths, 2, None)
        for index in ([2, 0, 0], [1], [1, 2]):
            n_tokens = max(lengths[i] for i in index)
            part = batch.take(torch.tensor(index), n_tokens, batch.mask_BC.shape[1])
            same(model, trunk, part, index)


@pytest.mark.parametrize(("value", "told"), [(1.0, r"[\d.]+"), (float("nan"), "nan")])
def test_a_short_cut_that_changes_logits_is_refused(value: float, told: str) -> None:
    model = Model(llama(), letters(), "tiny")
    batch, lengths = table(model)
    with attach(model.network, [LoraConfig(layers=(1,))]):
        trunk = Trunk(model, batch, lengths, 1, None)
        trunk.hidden_MD += value
        with pytest.raises(ModelError, match=f"changes its logits by {told}; .* trunk off"):
            trunk.check(batch, [0, 1, 2])


@pytest.mark.parametrize("kind", ["bloom", "gptj", "falcon"])
def test_layers_that_return_tuples_are_passed_over_as_well(kind: str) -> None:
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = {"vocab_size": 512, "hidden_size": 32, "n_layer": 2, "n_head": 2, **ids}
    more = {"gptj": {"n_embd": 32, "n_positions": 256, "rotary_dim": 8}, "falcon": {}}
    names = {"falcon": {"num_hidden_layers": 2, "num_attention_heads": 2}}
    settings = config | more.get(kind, {}) | names.get(kind, {})
    network = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **settings))
    model = Model(network, letters(), kind)
    batch, lengths = table(model)
    with attach(model.network, [LoraConfig(layers=(1,))]), torch.no_grad():
        Trunk(model, batch, lengths, 1, None).check(batch, [0, 1, 2])


def test_a_large_trunk_is_in_a_file_that_is_gone_when_it_is_closed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model = Model(llama(), letters(), "tiny")
    batch, lengths = table(model)
    monkeypatch.setattr("lorewright.training.trunk.MEMORY_BYTES", 0)
    with attach(model.network, [LoraConfig(layers=(1,))]), torch.no_grad():
        trunk = Trunk(model, batch, lengths, 1, tmp_path)
        assert trunk.on_disk and not list(tmp_path.iterdir())
        same(model, trunk, batch, [0, 1, 2])


def test_a_full_disk_is_an_error_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    model = Model(llama(), letters(), "tiny")
    monkeypatch.setattr("lorewright.training.trunk.MEMORY_BYTES", 0)
    monkeypatch.setattr("os.posix_fallocate", full)
    with (
        attach(model.network, [LoraConfig(layers=(1,))]),
        pytest.raises(StorageError, match="No space left"),
    ):
        Trunk(model, *table(model), 1, None)


def test_a_decoder_without_linear_layers_has_no_list_of_layers() -> None:
    with pytest.raises(ModelError, match="0 lists of layers"):
        layer_list(gpt2())
