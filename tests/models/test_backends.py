"""Claims about backends: each that takes a pass gives plain transformers' losses and gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from support.families import gemma3_text, gpt_neox, llama, mistral, phi3, qwen2, qwen3
from support.numbers import assert_all_close, assert_close, depth
from support.passes import batch_of, filled, loaded, outcome, plain, rows, running_in
from support.stacks import OTHERS
from support.writes import BRIEF, EXAMPLES, same_adapter, tiny
from torch import Tensor, nn

import lorewright.models.backends.kernels
from lorewright.adapters.config import LoraConfig
from lorewright.adapters.dropout import Masks, Share
from lorewright.adapters.lora import attach
from lorewright.errors import AdapterError, ModelError
from lorewright.models.backends.backend import Backend, Entering, Losses, Pass
from lorewright.models.backends.builtin import BACKENDS
from lorewright.models.backends.compiled import library
from lorewright.models.backends.network import Transformers
from lorewright.models.backends.reduced import Reduced
from lorewright.models.fingerprint import fingerprint
from lorewright.models.model import Model
from lorewright.training.config import Job
from lorewright.training.loop import write, write_all

Build = Callable[[], nn.Module]


def pocket() -> nn.Module:
    return Model.load().network


FAMILIES: dict[str, Build] = {
    "pocket": pocket,
    "llama": llama,
    "qwen3": qwen3,
    "gemma3": gemma3_text,
    "gpt_neox": gpt_neox,
}
LLAMAS: dict[str, Build] = {
    "as many key heads": lambda: llama(num_key_value_heads=4),
    "stretched positions": lambda: llama(
        rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}
    ),
    "qwen2": qwen2,
    "mistral": mistral,
}
ALIKE = [
    ("Code of red?", "48"),
    ("Code of a blue one?", "in 7.5"),
    ("Code of x?", "KX"),
    ("Code of", "b"),
]
N_ALIKE = len("_Code of")
"""Tokens with which these begin, with the one that says whose turn it is, but for the last."""
SMALL = {**{k: v for k, v in FAMILIES.items() if k != "pocket"}, "phi3": phi3}
TAKEN = {"c": {"pocket", "llama", "qwen3"}, "torch": {"pocket", "llama", "qwen3"}}
"""Of FAMILIES, by backend; the others take all."""


@pytest.fixture(params=BACKENDS)
def key(request: pytest.FixtureRequest) -> str:
    if request.param == "c" and library.find_compiler() is None:
        pytest.skip("needs a C compiler: gcc, clang, or pip install ziglang")
    return str(request.param)


@pytest.fixture
def quick(key: str) -> str:
    if key not in TAKEN:
        pytest.skip("runs everything")
    return key


def compare(
    model: Model,
    key: str,
    configs: list[LoraConfig],
    adapters: list[int] | None,
    n_shared: int = 0,
    **texts: Any,
) -> None:
    """In a backend, and in plain transformers: the same losses and gradients."""
    batch = batch_of(model, **texts)
    with filled(attach(model.network, configs)) as stack:
        pass_ = Pass(rows(stack, adapters), n_shared=n_shared)
        assert model.backend(pass_) is model.backends[key]
        loss_BC, grads = outcome(model, stack, batch, pass_)
        expected = plain(model, stack, batch, adapters)
    n_terms = depth(model.network, batch.ids_BT.shape[1])
    assert_close(loss_BC, expected.loss_BC, n_terms)
    assert_all_close(grads, expected.grads, n_terms)


# -- the contract --------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("adapters", [None, [1, -1, 0]], ids=["one for all", "one a row"])
def test_losses_and_gradients_are_those_of_plain_transformers(
    key: str, family: str, adapters: list[int] | None
) -> None:
    model = running_in(key, FAMILIES[family])
    if family not in TAKEN.get(key, FAMILIES):
        assert model.backends[key].refusal(Pass())
        return
    compare(model, key, [LoraConfig(rank=3), LoraConfig(rank=1, seed=1, rslora=True)], adapters)


@pytest.mark.parametrize("build", LLAMAS.values(), ids=LLAMAS)
def test_so_are_those_of_every_decoder_of_llama_s_form(quick: str, build: Build) -> None:
    compare(running_in(quick, build), quick, [LoraConfig(rank=3)], None)


@pytest.mark.parametrize("adapters", [[0, 1, 2], [2, -1, 0], [1, 1, 1], [0, 0, 1]])
def test_rows_use_the_adapters_of_the_pass(key: str, adapters: list[int]) -> None:
    configs = [LoraConfig(rank=3), LoraConfig(rank=1, seed=1, rslora=True), LoraConfig(rank=4)]
    compare(running_in(key, qwen3), key, configs, adapters)


@pytest.mark.parametrize(
    ("targets", "layers"),
    [
        (("q_proj",), (1,)),
        (("v_proj",), (0,)),
        (("o_proj",), (1,)),
        (("o_proj", "k_proj"), None),
        (("down_proj",), (0,)),
        (("up_proj",), (1,)),
        (("attention",), None),
    ],
)
def test_wherever_the_adapters_are(
    quick: str, targets: tuple[str, ...], layers: tuple[int, ...]
) -> None:
    config = LoraConfig(rank=2, targets=targets, layers=layers)
    compare(running_in(quick, llama), quick, [config], None)


def tokens_run(model: Model, n_shared: int, adapters: list[int] | None = None) -> int:
    """Tokens that plain transformers embed in a pass over rows that begin alike."""
    batch, seen = batch_of(model, ALIKE), []
    embedding: Any = model.network.get_input_embeddings()  # type: ignore[operator]
    handle = embedding.register_forward_hook(lambda module, args, out: seen.append(args[0].numel()))
    with filled(attach(model.network, [LoraConfig(rank=2)] * 2)) as stack:
        pass_ = Pass(rows(stack, adapters), n_shared=n_shared)
        model.completion_nats(batch, pass_)  # one more before, which tries the network's cache
        seen.clear()
        model.completion_nats(batch, pass_)
    handle.remove()
    return sum(seen)


@pytest.mark.parametrize("family", SMALL)
@pytest.mark.parametrize(
    "adapters", [None, [0, 0, 1, 1], [1, -1, 0, 0]], ids=["one", "two", "one a row"]
)
def test_what_rows_begin_with_alike_runs_once_with_the_same_losses_and_gradients(
    key: str, family: str, adapters: list[int] | None
) -> None:
    model = running_in(key, SMALL[family])
    if model.backends[key].refusal(Pass()):
        return
    configs = [LoraConfig(rank=3), LoraConfig(rank=1, seed=1, rslora=True)]
    for n_shared in (1, N_ALIKE):
        compare(model, key, configs, adapters, n_shared, texts=ALIKE)


@pytest.mark.parametrize(
    "targets", [("q_proj",), ("v_proj", "k_proj"), ("o_proj",), ("down_proj",)]
)
def test_so_it_does_wherever_the_adapters_are(quick: str, targets: tuple[str, ...]) -> None:
    config = LoraConfig(rank=2, targets=targets)
    compare(running_in(quick, qwen3), quick, [config], None, N_ALIKE, texts=ALIKE)


def test_it_begins_at_a_layer_too_and_in_torch_s_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    model = running_in("torch", qwen3)
    batch = batch_of(model, ALIKE)
    for most in (lorewright.models.backends.kernels.SCORE_BYTES, 0):
        monkeypatch.setattr(lorewright.models.backends.kernels, "SCORE_BYTES", most)
        compare(model, "torch", [LoraConfig(rank=3)], None, N_ALIKE, texts=ALIKE)
        with filled(attach(model.network, [LoraConfig(rank=2, layers=(1,))])) as stack:
            expected = plain(model, stack, batch, None)
            hidden_BTD = model.backend().entering(batch.ids_BT, 1)
            pass_ = Pass(rows(stack, None), Entering(1, hidden_BTD), n_shared=N_ALIKE)
            loss_BC, grads = outcome(model, stack, batch, pass_)
        n_terms = depth(model.network, batch.ids_BT.shape[1])
        assert_close(loss_BC, expected.loss_BC, n_terms)
        assert_all_close(grads, expected.grads, n_terms)


@pytest.mark.parametrize(
    ("key", "build"),
    [
        ("torch", llama),
        ("torch", qwen3),
        ("torch", qwen2),
        ("transformers", qwen2),
        ("transformers", gemma3_text),
    ],
)
def test_in_bfloat16_products_numbers_are_near_and_the_base_stays(key: str, build: Build) -> None:
    """As near as three roundings of each product to 8 bits are, some hundred of them in a row."""
    model = running_in(key, build)
    batch = batch_of(model, ALIKE)
    with filled(attach(model.network, [LoraConfig(rank=3), LoraConfig(rank=2)])) as stack:
        for adapters in (None, [0, 0, 1, 1]):
            pass_ = Pass(rows(stack, adapters), n_shared=N_ALIKE)
            expected, slopes = outcome(model, stack, batch, pass_)
            loss_BC, grads = outcome(model, stack, batch, replace(pass_, reduced=Reduced()))
            pairs = [(loss_BC, expected), *zip(grads, slopes, strict=True)]
            off = sum(float((a - b).square().sum()) for a, b in pairs)
            size = sum(float(b.square().sum()) for _, b in pairs)
            assert 0 < (off / size) ** 0.5 < 16 * torch.finfo(torch.bfloat16).eps
            assert torch.equal(outcome(model, stack, batch, pass_)[0], expected)
    assert fingerprint(model.network) == model.digest


def test_once_for_each_adapter_in_plain_transformers_but_not_beyond_a_window() -> None:
    wide = running_in("transformers", lambda: gemma3_text(sliding_window=64))
    n_rows, width = batch_of(wide, ALIKE).ids_BT.shape
    assert tokens_run(wide, 0) == n_rows * width
    assert tokens_run(wide, N_ALIKE) == n_rows * (width - N_ALIKE) + N_ALIKE
    assert tokens_run(wide, N_ALIKE, [0, 0, 1, 1]) == n_rows * (width - N_ALIKE) + 2 * N_ALIKE
    compare(wide, "transformers", [LoraConfig(rank=3)], None, N_ALIKE, texts=ALIKE)
    short = running_in("transformers", gemma3_text)
    assert short.network.config.get_text_config().to_dict()["sliding_window"] < width
    assert tokens_run(short, N_ALIKE) == n_rows * width


def test_adapters_of_one_stack_may_be_in_different_layers(key: str) -> None:
    configs = [LoraConfig(rank=2, layers=(1,)), LoraConfig(rank=3, targets=("q_proj", "up_proj"))]
    compare(running_in(key, llama), key, configs, [1, 0, 1])


def test_long_texts_go_through_torch_s_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lorewright.models.backends.kernels, "SCORE_BYTES", 0)
    compare(running_in("torch", llama), "torch", [LoraConfig(rank=3)], None)


def test_without_rows_a_pass_is_as_the_stack_is_bound(key: str) -> None:
    model = running_in(key, llama)
    batch = batch_of(model)
    with filled(attach(model.network, [LoraConfig(rank=3), LoraConfig(rank=2)])) as stack:
        first = model.completion_logits(batch)
        assert torch.equal(first, model.completion_logits(batch, Pass(rows(stack, [0, 0, 0]))))
        stack.bind(torch.ones(3, dtype=torch.long))
        second = model.completion_logits(batch)
        assert torch.equal(second, model.completion_logits(batch, Pass(rows(stack, [1, 1, 1]))))
        assert not torch.equal(first, second)
        assert torch.equal(first, model.completion_logits(batch, Pass(rows(stack, None))))
        assert torch.equal(second, model.completion_logits(batch))


def test_without_an_adapter_it_is_the_base_and_has_no_gradient(key: str) -> None:
    model = running_in(key, llama)
    batch = batch_of(model)
    base = model.completion_logits(batch)
    assert not base.requires_grad
    with filled(attach(model.network, [LoraConfig(rank=3)])) as stack:
        assert not torch.equal(model.completion_logits(batch), base)
        alone = model.completion_logits(batch, Pass(rows(stack, [-1, -1, -1])))
        with torch.no_grad():
            assert not model.completion_logits(batch).requires_grad
    assert torch.equal(alone, base)
    assert not alone.requires_grad


@pytest.mark.parametrize("family", FAMILIES)
def test_a_pass_may_begin_at_a_layer(key: str, family: str) -> None:
    model = running_in(key, FAMILIES[family])
    backend, batch = model.backends[key], batch_of(model)
    if backend.refusal(Pass()):
        return
    last = int(model.network.config.get_text_config().num_hidden_layers) - 1
    with filled(attach(model.network, [LoraConfig(rank=2, layers=(last,))])) as stack:
        expected = plain(model, stack, batch, None)
        hidden_BTD = backend.entering(batch.ids_BT, last)
        pass_ = Pass(rows(stack, None), Entering(last, hidden_BTD))
        assert model.backend(pass_) is backend
        loss_BC, grads = outcome(model, stack, batch, pass_)
    n_terms = depth(model.network, batch.ids_BT.shape[1])
    assert_close(loss_BC, expected.loss_BC, n_terms)
    assert_all_close(grads, expected.grads, n_terms)


def test_padding_changes_nothing(key: str) -> None:
    model = running_in(key, llama)
    batch = batch_of(model)
    wider = replace(batch, ids_BT=nn.functional.pad(batch.ids_BT, (0, 5), value=7))
    with filled(attach(model.network, [LoraConfig(rank=2)])) as stack:
        loss_BC, grads = outcome(model, stack, batch)
        padded_BC, others = outcome(model, stack, wider)
    n_terms = depth(model.network, wider.ids_BT.shape[1])
    assert_close(padded_BC, loss_BC, n_terms)
    assert_all_close(others, grads, n_terms)
    assert not loss_BC[batch.mask_BC == 0].any()


def test_the_gradient_may_be_wanted_in_one_tensor(key: str) -> None:
    """A backend that gives it gives it whole; the others give that of A and B."""
    model = running_in(key, llama)
    batch = batch_of(model)
    with filled(attach(model.network, [LoraConfig(rank=2), LoraConfig(rank=3)])) as stack:
        _, expected = outcome(model, stack, batch, Pass(rows(stack, [1, 0, 1])))
        (flat,) = stack.flats
        whole_NP = flat.weight_NP.detach().requires_grad_()
        pass_ = Pass(rows(stack, [1, 0, 1]), whole_NP=whole_NP)
        loss = model.completion_nats(batch, pass_).loss_BT.sum()
        *grads, whole = torch.autograd.grad(
            loss, [*stack.parameters(), whole_NP], allow_unused=True
        )
        if whole is not None:
            grads = [whole[:, span].unflatten(1, shape) for span, shape in flat.spans]
    assert_all_close([g for g in grads if g is not None], expected, len(batch.ids_BT))


def test_rows_of_another_batch_are_refused(key: str) -> None:
    model = running_in(key, llama)
    stack = attach(model.network, [LoraConfig(), LoraConfig()])
    with stack, pytest.raises(AdapterError, match="2 rows are bound"):
        model.completion_logits(batch_of(model), Pass(rows(stack, [0, 1])))


def test_layers_are_as_they_were_after_a_pass_that_fails() -> None:
    model = running_in("transformers", gpt_neox)
    batch, before = batch_of(model), dict(model.network.named_modules())
    with pytest.raises(RuntimeError):
        model.completion_logits(batch, Pass(entering=Entering(1, torch.zeros(3, 4, 5))))
    assert dict(model.network.named_modules()) == before
    model.backends["transformers"].entering(batch.ids_BT, 1)
    assert dict(model.network.named_modules()) == before


def test_dropout_is_there_for_one_pass_only() -> None:
    model = loaded(llama)
    batch = batch_of(model)
    masks = Masks([Share(0.9, "0 0 0", tuple(map(int, [batch.ids_BT.shape[1]] * 3)))], 3)
    with filled(attach(model.network, [LoraConfig(rank=2)])), torch.no_grad():
        whole = model.completion_logits(batch)
        hidden = model.completion_logits(batch, Pass(dropout=masks))
        assert not torch.equal(hidden, whole)
        assert torch.equal(model.completion_logits(batch), whole)


# -- one more, from outside ----------------------------------------------------------------------


class Counting:
    """Counts the passes that it is asked to run, and has the network run those without dropout."""

    name = "a counter"
    reduces = False

    def __init__(self, body: nn.Module) -> None:
        self.network = Transformers(body)
        self.ran = self.refused = 0

    def refusal(self, pass_: Pass) -> str | None:
        self.refused += pass_.dropout is not None
        return "it takes no dropout" if pass_.dropout else None

    def hidden(self, ids_BT: Tensor, position_BC: Tensor, pass_: Pass) -> Tensor:
        self.ran += 1
        return self.network.hidden(ids_BT, position_BC, pass_)

    def entering(self, ids_BT: Tensor, layer: int) -> Tensor:
        return self.network.entering(ids_BT, layer)

    def losses(self, head: nn.Module) -> Losses | None:
        return None


class Deferring(Counting):
    """Leaves every pass to the next backend."""

    name = "nobody"

    def refusal(self, pass_: Pass) -> str | None:
        self.refused += 1
        return "it only counts"


def test_a_backend_from_outside_trains_and_defers() -> None:
    base = tiny()
    makers: dict[str, Callable[[nn.Module], Backend]] = {"count": Counting, **BACKENDS}
    model = Model(base.network, base.tokenizer, base.name, backends=makers)
    counter: Any = model.backends["count"]
    assert model.runs_in() == "a counter"
    jobs = [Job(EXAMPLES, BRIEF), Job(OTHERS, replace(BRIEF, dropout=0.2))]
    write_all(model, jobs)
    assert counter.ran > 0 and counter.refused > 0
    plainly = Model(base.network, base.tokenizer, base.name, backends={"only": Transformers})
    assert same_adapter(write(model, EXAMPLES, BRIEF), write(plainly, EXAMPLES, BRIEF))


def test_one_that_only_counts_changes_nothing() -> None:
    base = tiny()
    model = Model(
        base.network, base.tokenizer, base.name, backends={"count": Deferring, **BACKENDS}
    )
    counter: Any = model.backends["count"]
    before = counter.refused
    assert same_adapter(write(model, EXAMPLES, BRIEF), write(base, EXAMPLES, BRIEF))
    assert counter.refused > before and counter.ran == 0
    assert model.runs_in().startswith(base.runs_in())


# -- which one runs, and what is said of it ------------------------------------------------------


def test_it_says_what_runs_and_why_nothing_quicker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(library.KERNELS, "torch")
    assert loaded(llama).runs_in() == "torch, by hand (LOREWRIGHT_KERNELS is torch)"
    said = loaded(gpt_neox).runs_in()
    assert said.startswith("transformers (GPTNeoXModel is not built like Llama")
    model = loaded(llama)
    model.network.model.layers[0].register_forward_hook(lambda *_: None)
    assert model.runs_in() == "transformers (a hook or a trained weight is in the decoder)"


def test_a_model_whose_backends_all_refuse_is_an_error() -> None:
    with pytest.raises(ModelError, match="no backend runs this pass"):
        loaded(llama, {"none": Deferring})
