"""Claims about the frozen trunk: same logits, layers below skipped, families, honest refusals."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from support.families import FAMILIES, gpt2, llama
from support.models import letters
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from lorewright.adapters.config import LoraConfig
from lorewright.adapters.lora import attach
from lorewright.errors import ModelError, StorageError
from lorewright.models.model import Batch, Model
from lorewright.training.trunk import Trunk, decoder_layers

Build = Callable[[], nn.Module]
family = pytest.mark.parametrize("build", FAMILIES.values(), ids=FAMILIES)
TEXTS = [("Code of red?", "48"), ("Where is the blue one now?", "in 7.5"), ("Teal?", "KX-12")]


def table(model: Model) -> tuple[Batch, list[int]]:
    rows = [model.render(prompt, completion) for prompt, completion in TEXTS]
    return model.batch(rows), [len(row) for row in rows]


@family
def test_a_fed_pass_gives_the_logits_of_a_whole_one_and_skips_what_is_below(build: Build) -> None:
    model = Model(build(), letters(), "tiny")  # type: ignore[arg-type]
    batch, lengths = table(model)
    ran: list[int] = []
    layers = decoder_layers(model.network)
    with attach(model.network, [LoraConfig(layers=(1,), seed=4)]), torch.no_grad():
        trunk = Trunk(model, batch, lengths, 1, None)
        whole = model.completion_logits(batch)
        layers[1].register_forward_hook(lambda *_: ran.append(1))
        below = next(m for m in layers[0].modules() if isinstance(m, nn.Linear))
        below.register_forward_hook(lambda *_: ran.append(0))
        with trunk.skipping():
            trunk.check(batch, [0, 1, 2])
            ran.clear()
            trunk.feed([0, 1, 2], batch.ids_BT.shape[1])
            fed = model.completion_logits(batch)
        assert ran == [1]
        real = batch.mask_BC.bool()
        after = model.completion_logits(batch)  # through the network: something listens
        torch.testing.assert_close(after[real], whole[real], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(fed[real], whole[real], atol=1e-5, rtol=1e-4)
        trunk.close()


def test_rows_may_come_in_any_order_and_more_than_once() -> None:
    model = Model(llama(num_hidden_layers=3), letters(), "tiny")
    batch, lengths = table(model)
    with attach(model.network, [LoraConfig(layers=(2,))]), torch.no_grad():
        trunk = Trunk(model, batch, lengths, 2, None)
        with trunk.skipping():
            for index in ([2, 0, 0], [1], [1, 2]):
                n_tokens = max(lengths[i] for i in index)
                part = batch.take(torch.tensor(index), n_tokens, batch.mask_BC.shape[1])
                whole = model.completion_logits(part)
                trunk.feed(index, n_tokens)
                fed = model.completion_logits(part)
                real = part.mask_BC.bool()
                torch.testing.assert_close(fed[real], whole[real], atol=1e-5, rtol=1e-4)


def test_a_short_cut_that_changes_logits_is_refused() -> None:
    model = Model(llama(), letters(), "tiny")
    batch, lengths = table(model)
    with attach(model.network, [LoraConfig(layers=(1,))]):
        trunk = Trunk(model, batch, lengths, 1, None)
        trunk.hidden_MD += 1.0
        with trunk.skipping(), pytest.raises(ModelError, match=r"changes its logits .* trunk off"):
            trunk.check(batch, [0, 1, 2])


def test_an_error_inside_leaves_the_layers_as_they_were() -> None:
    model = Model(llama(), letters(), "tiny")
    batch, lengths = table(model)

    def logits() -> Tensor:
        with torch.no_grad():
            return model.completion_logits(batch)

    before = logits()
    with attach(model.network, [LoraConfig(layers=(1,))]):
        trunk = Trunk(model, batch, lengths, 1, None)
        with pytest.raises(KeyError), trunk.skipping():
            trunk.feed([0, 1, 2], batch.ids_BT.shape[1])
            raise KeyError
    assert torch.equal(logits(), before)


@pytest.mark.parametrize("kind", ["bloom", "gptj", "falcon"])
def test_layers_that_return_tuples_are_fed_as_well(kind: str) -> None:
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = {"vocab_size": 512, "hidden_size": 32, "n_layer": 2, "n_head": 2, **ids}
    more = {"gptj": {"n_embd": 32, "n_positions": 256, "rotary_dim": 8}, "falcon": {}}
    names = {"falcon": {"num_hidden_layers": 2, "num_attention_heads": 2}}
    settings = config | more.get(kind, {}) | names.get(kind, {})
    network = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **settings))
    model = Model(network, letters(), kind)
    batch, lengths = table(model)
    with attach(model.network, [LoraConfig(layers=(1,))]), torch.no_grad():
        trunk = Trunk(model, batch, lengths, 1, None)
        with trunk.skipping():
            trunk.check(batch, [0, 1, 2])


def test_a_wrapped_forward_is_put_back() -> None:
    model = Model(llama(), letters(), "tiny")
    batch, lengths = table(model)
    first = decoder_layers(model.network)[0]
    wrapper = first.forward
    first.forward = lambda *args, **kwargs: wrapper(*args, **kwargs)
    with attach(model.network, [LoraConfig(layers=(1,))]):
        mine = vars(first)["forward"]
        with Trunk(model, batch, lengths, 1, None).skipping():
            assert vars(first)["forward"] is not mine
        assert vars(first)["forward"] is mine


def test_hidden_states_of_no_number_are_refused() -> None:
    model = Model(llama(), letters(), "tiny")
    batch, lengths = table(model)
    with attach(model.network, [LoraConfig(layers=(1,))]):
        trunk = Trunk(model, batch, lengths, 1, None)
        trunk.hidden_MD.fill_(float("nan"))
        with trunk.skipping(), pytest.raises(ModelError, match="changes its logits by nan"):
            trunk.check(batch, [0, 1, 2])


def test_a_disk_without_room_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
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
        decoder_layers(gpt2())
