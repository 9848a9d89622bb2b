"""Claims about base models: what is rendered, scored and generated; what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.families import FAMILIES, gemma3_text, llama
from support.models import PLAIN, an_adapter, letters, saved
from support.numbers import assert_close, depth
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    LlamaModel,
    T5Config,
)

from lorewright.adapters.lora import LoraLinear
from lorewright.errors import AdapterError, DataError, LorewrightError, ModelError, WrongBase
from lorewright.models.model import Model, Rendered


@pytest.fixture(scope="module", params=FAMILIES.values(), ids=FAMILIES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    build: Callable[[], nn.Module] = request.param
    return Model.load(saved(build(), tmp_path_factory.mktemp("base")), device="cpu")


NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system turn') }}{% endif %}"
) + PLAIN
DROPS_SYSTEM = PLAIN.replace("messages %}", "messages if m.role != 'system' %}")
BLOCK = "<think>\n\n</think>\n\n"
OPENS_BLOCK = "<|assistant|>{% if enable_thinking is false %}" + BLOCK + "{% endif %}"
# Qwen3 writes the empty block into the last reply too; others leave it out of every past turn.
THINKING = {
    "block in the last reply": PLAIN.replace(
        "{{ m.content }}",
        "{% if m.role == 'assistant' %}" + BLOCK + "{% endif %}{{ m.content }}",
    ).replace("<|end|>{% endfor", "<|end|>\n{% endfor"),
    "no block in replies": PLAIN.replace("<|end|>{% endfor", "<|end|>\n{% endfor"),
}
THINKING = {
    name: text.replace("%}<|assistant|>", "%}" + OPENS_BLOCK) for name, text in THINKING.items()
}
TEXTS = st.text(min_size=1, max_size=40).filter(str.strip)


def speaking(template: str | None) -> Model:
    """A tiny model with this chat template."""
    return Model(llama(max_position_embeddings=256), letters(template), "tiny")


@pytest.fixture(scope="module")
def pocket() -> Model:
    return Model.load(device="cpu")


def some_rows(model: Model) -> list[Rendered]:
    asked = [("Who?", "Ada"), ("What is the code of Teal?", "KX-42"), ("Why", "no, it is 7.5")]
    return [model.render(prompt, completion) for prompt, completion in asked]


def scores(model: Model, rows: list[Rendered]) -> Tensor:
    with torch.no_grad():
        return model.completion_logits(model.batch(rows))


# --- scores and replies, for every family


def test_completion_logits_equal_those_of_the_whole_network(model: Model) -> None:
    rows = some_rows(model)
    found_BCV = scores(model, rows)
    for row, found_CV in zip(rows, found_BCV, strict=True):
        ids = torch.tensor([row.prompt_ids + row.completion_ids])
        with torch.no_grad():
            whole_TV = model.network(input_ids=ids).logits[0]
        n, start = len(row.completion_ids), len(row.prompt_ids) - 1
        assert_close(found_CV[:n], whole_TV[start : start + n], depth(model.network, 64))


def test_padding_on_the_right_changes_nothing(model: Model) -> None:
    rows = some_rows(model)
    together = scores(model, rows)
    for row, found_CV in zip(rows, together, strict=True):
        n = len(row.completion_ids)
        assert_close(found_CV[:n], scores(model, [row])[0], depth(model.network, 64))


def test_replies_of_a_left_padded_batch_equal_those_one_by_one(model: Model) -> None:
    rows = [model.render(text).prompt_ids for text in ("a", "What is it?", "Tell me, who was", "7")]
    together = model.generate_ids(rows, max_new_tokens=8)
    assert together == [model.generate_ids([row], max_new_tokens=8)[0] for row in rows]
    assert any(together)


def test_using_an_adapter_leaves_the_network_bit_identical(model: Model) -> None:
    rows = some_rows(model)
    adapter, before, base = an_adapter(model), model.network.state_dict(), scores(model, rows)
    before = {name: tensor.clone() for name, tensor in before.items()}
    with model.using(adapter):
        assert not torch.equal(scores(model, rows), base)
    after = model.network.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert not any(isinstance(module, LoraLinear) for module in model.network.modules())
    assert not any(weight.requires_grad for weight in model.network.parameters())
    assert torch.equal(scores(model, rows), base)


def test_using_leaves_the_network_clean_when_its_block_fails(model: Model) -> None:
    base = scores(model, some_rows(model))
    with pytest.raises(KeyboardInterrupt), model.using(an_adapter(model)):
        raise KeyboardInterrupt
    assert torch.equal(scores(model, some_rows(model)), base)


def test_no_adapter_is_the_base(model: Model) -> None:
    base = scores(model, some_rows(model))
    with model.using() as stack:
        assert stack is None
        assert torch.equal(scores(model, some_rows(model)), base)


def test_rows_bound_to_two_adapters_equal_each_adapter_alone(model: Model) -> None:
    first, second, row = an_adapter(model, 1), an_adapter(model, 2), some_rows(model)[0]
    alone = []
    for adapter in (first, second):
        with model.using(adapter):
            alone.append(scores(model, [row])[0])
    with model.using(first, second) as stack:
        assert stack is not None
        stack.bind(torch.tensor([1, 0, -1]))
        found = scores(model, [row] * 3)
    wanted = [alone[1], alone[0], scores(model, [row])[0]]
    assert_close(found, torch.stack(wanted), depth(model.network, 64))


def test_an_adapter_of_another_base_is_refused_before_anything_is_touched(model: Model) -> None:
    with pytest.raises(WrongBase), model.using(an_adapter(model, base_digest="0" * 64)):
        pytest.fail("it was attached")
    assert not any(isinstance(module, LoraLinear) for module in model.network.modules())


def test_an_adapter_of_another_family_is_refused(model: Model, pocket: Model) -> None:
    with pytest.raises(AdapterError), model.using(an_adapter(pocket, base_digest="")):
        pytest.fail("it was attached")


def test_a_bf16_base_takes_float32_adapters(model: Model) -> None:
    half = Model.load(model.name, dtype="bfloat16", device="cpu")
    adapter, rows = an_adapter(half), some_rows(half)
    assert half.dtype == torch.bfloat16
    assert all(tensor.dtype == torch.float32 for tensor in adapter.tensors.values())
    base = scores(half, rows)
    with half.using(adapter):
        assert not torch.equal(scores(half, rows), base)
    assert torch.equal(scores(half, rows), base)


# --- scores and replies, in corners


def test_a_model_that_caps_its_logits_is_scored_with_the_cap() -> None:
    network = gemma3_text()
    network.config.final_logit_softcapping = 0.5
    capped, plain = Model(network, letters(), "capped"), Model(gemma3_text(), letters(), "plain")
    found = scores(capped, some_rows(capped))
    torch.testing.assert_close(found, 0.5 * torch.tanh(scores(plain, some_rows(plain)) / 0.5))
    assert found.abs().max() < 0.5


def test_replies_ignore_penalties_that_a_model_ships_with(tmp_path: Path) -> None:
    network = llama()
    plain = Model(llama(), letters(), "plain").generate(["Who?"], max_new_tokens=20)
    network.generation_config.update(repetition_penalty=50.0, no_repeat_ngram_size=1, min_length=60)
    shipped = Model.load(saved(network, tmp_path), device="cpu").generate(
        ["Who?"], max_new_tokens=20
    )
    assert shipped == plain


def test_a_row_near_the_context_shortens_no_other_reply() -> None:
    model = Model(llama(), letters(None), "tiny")
    short, long = [7] * 10, [8] * (model.context - 3)
    alone = [model.generate_ids([row], max_new_tokens=12)[0] for row in (short, long)]
    assert model.generate_ids([short, long], max_new_tokens=12) == alone
    assert len(alone[0]) == 12
    assert len(alone[1]) == 3


def test_a_prompt_without_room_for_a_reply_is_refused() -> None:
    model = Model(llama(), letters(None), "tiny")
    with pytest.raises(DataError, match=r"64 tokens; 'tiny' reads at most 64.*shorten"):
        model.generate_ids([[7] * model.context], max_new_tokens=1)


def test_replies_come_in_the_order_of_the_prompts(pocket: Model) -> None:
    prompts = [f"Repeat exactly: {'ha ' * n}{n}" for n in (9, 1, 5)]
    together = pocket.generate(prompts, max_new_tokens=6, batch_size=2)
    assert together == [pocket.generate([p], max_new_tokens=6)[0] for p in prompts]


def test_the_digest_tells_other_weights_and_knows_the_same(tmp_path: Path) -> None:
    network = llama()
    digest = Model(network, letters(), "a").digest
    assert Model.load(saved(network, tmp_path), device="cpu").digest == digest
    network.lm_head.weight[5, 5] += 1e-3
    assert Model(network, letters(), "b").digest != digest


# --- loading


def of_another_kind(folder: Path) -> str:
    T5Config().save_pretrained(folder)
    return str(folder)


def without_config(folder: Path) -> str:
    letters().save_pretrained(folder)
    return str(folder)


def without_head(folder: Path) -> str:
    return saved(LlamaModel(llama().config), folder)


def reading_ahead(folder: Path) -> str:
    shape = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48}
    return saved(BertForMaskedLM(BertConfig(vocab_size=128, **shape, num_hidden_layers=2)), folder)


def cut_off(folder: Path) -> str:
    place = saved(llama(), folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    return place


def with_code(folder: Path) -> str:
    place = saved(llama(), folder)
    config = json.loads((folder / "config.json").read_text())
    auto = {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"}
    config |= {"model_type": "evil", "auto_map": auto}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text("raise SystemExit('code of a model was run')")
    return place


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda folder: "nowhere", "no .gguf file; give"),
        (lambda folder: str(folder / "nowhere"), "no .gguf file; give"),
        (lambda folder: "someone/no-such-model", "could not be loaded: .*Check the name"),
        (without_config, "could not be loaded: .*config"),
        (without_head, "1 weights of LlamaForCausalLM are not in its files.*lm_head"),
        (cut_off, "could not be loaded: .*incomplete"),
        (of_another_kind, "t5 is an encoder-decoder, not a causal language model"),
        (reading_ahead, "is not a causal language model: later tokens changed"),
        (with_code, "could not be loaded: .*trust_remote_code|custom code"),
    ],
)
def test_what_cannot_be_loaded_is_said_in_a_sentence(
    make: Callable[[Path], str], says: str, tmp_path: Path
) -> None:
    name = make(tmp_path)
    with pytest.raises(ModelError, match=says) as caught:
        Model.load(name)
    assert repr(name) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_base_without_tokenizer_is_refused(model: Model, tmp_path: Path) -> None:
    folder, tokenizer = tmp_path / "base", ("tokenizer*", "chat_template*")
    shutil.copytree(model.name, folder, ignore=shutil.ignore_patterns(*tokenizer))
    with pytest.raises(ModelError, match="no tokenizer comes with it"):
        Model.load(str(folder))


def test_an_unknown_device_is_refused() -> None:
    with pytest.raises(ModelError, match=r"on 'gramophone'.*use device cpu"):
        Model.load(device="gramophone")


def test_a_tokenizer_without_an_end_is_refused() -> None:
    tokenizer, network = letters(), llama(eos_token_id=None)
    tokenizer.eos_token = None
    with pytest.raises(ModelError, match="no end-of-text token; set eos_token"):
        Model(network, tokenizer, "endless")


# --- rendering


@given(prompt=TEXTS, completion=TEXTS)
def test_prompt_and_completion_are_the_templates_own_text_tokenised_at_once(
    pocket: Model, prompt: str, completion: str
) -> None:
    turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]
    whole = pocket.tokenizer.apply_chat_template(turns, tokenize=False)
    row = pocket.render(prompt, completion)
    ids = pocket.tokenizer(whole, add_special_tokens=False)["input_ids"]
    assert [*row.prompt_ids, *row.completion_ids] == ids


@pytest.mark.parametrize("template", [PLAIN, NO_SYSTEM, *THINKING.values(), None])
@given(prompt=st.one_of(st.just(""), TEXTS), completion=TEXTS)
def test_every_completion_ends_in_its_only_stop_token(
    template: str | None, prompt: str, completion: str
) -> None:
    row = SPEAKING[template].render(prompt, completion)
    assert row.completion_ids.index(2) == len(row.completion_ids) - 1


SPEAKING = {text: speaking(text) for text in (PLAIN, NO_SYSTEM, *THINKING.values(), None)}


def said(model: Model, row: Rendered) -> tuple[str, str]:
    """Prompt and completion as the tokenizer reads them, special tokens included."""
    decode = model.tokenizer.decode
    return str(decode(row.prompt_ids)), str(decode(row.completion_ids))


def test_the_system_turn_is_used_where_the_template_has_one() -> None:
    model = speaking(PLAIN)
    prompt, _ = said(model, model.render("Who?", "Ada", system="Be brief."))
    assert prompt == "<bos><|system|>Be brief.<|end|><|user|>Who?<|end|><|assistant|>"


@pytest.mark.parametrize("template", [NO_SYSTEM, DROPS_SYSTEM], ids=["raises", "drops it"])
def test_the_user_says_it_where_the_template_has_no_system_turn(template: str) -> None:
    model = speaking(template)
    prompt, completion = said(model, model.render("Who?", "Ada", system="Be brief."))
    assert prompt == "<bos><|user|>Be brief.\n\nWho?<|end|><|assistant|>"
    assert completion == "Ada<|end|>"


@pytest.mark.parametrize("template", THINKING.values(), ids=THINKING)
def test_the_empty_think_block_is_in_the_prompt_and_not_in_the_completion(template: str) -> None:
    model = speaking(template)
    prompt, completion = said(model, model.render("Who?", "Ada"))
    assert prompt == "<bos><|user|>Who?<|end|>\n<|assistant|>" + BLOCK
    assert completion == "Ada<|end|>"


def test_without_a_template_question_and_answer_stand_in_a_line() -> None:
    model = speaking(None)
    assert said(model, model.render("Who?", "Ada")) == ("Who?", " Ada<|end|>")
    assert said(model, model.render("Who?", system="Be brief."))[0] == "Be brief.\n\nWho?"


def test_an_empty_prompt_is_plain_text_after_the_start_token() -> None:
    model = speaking(PLAIN)
    assert said(model, model.render("", "Once upon.")) == ("<bos>", "Once upon.<|end|>")


def test_a_completion_too_long_for_the_context_is_refused_not_cut() -> None:
    model = speaking(PLAIN)
    room = model.context - len(model.render("Who?", "a")) + 1
    assert len(model.render("Who?", "a" * room)) == model.context
    with pytest.raises(DataError, match=rf"8 \+ {room + 2} tokens.*at most 256; shorten or split"):
        model.render("Who?", "a" * (room + 1))


def test_a_completion_that_spells_the_stop_token_is_refused() -> None:
    with pytest.raises(DataError, match=r"holds '<\|end\|>', which ends a reply"):
        speaking(PLAIN).render("Who?", "Ada<|end|> and Bob")


def test_a_template_that_refuses_questions_is_named() -> None:
    model = speaking("{{ raise_exception('only poems') }}")
    with pytest.raises(ModelError, match="refuses messages of user: only poems"):
        model.render("Who?")


def test_every_failure_here_is_of_the_house() -> None:
    assert issubclass(ModelError, LorewrightError)
    assert issubclass(ModelError, ValueError)
