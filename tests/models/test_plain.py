"""The plain Llama: transformers' bits, and read only where transformers would read the same."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.families import llama
from support.models import saved
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel

from lorewright.adapters.lora import Rows
from lorewright.errors import ConfigError, ModelError
from lorewright.models.backends.backend import Pass
from lorewright.models.backends.network import Transformers
from lorewright.models.catalogue import POCKET_FOLDER
from lorewright.models.model import Model
from lorewright.models.plain import PlainLlama, read_plain
from lorewright.models.plain_tokenizer import read_plain_tokenizer

STORED = Path(__file__).parents[1] / "fixtures" / "folder-2026-11-28"
SHAPES: dict[str, dict[str, Any]] = {
    "query heads share a key head": {},
    "a head for each, tied": {"num_key_value_heads": 4, "tie_word_embeddings": True},
    "one key head, wide heads": {"num_key_value_heads": 1, "head_dim": 16},
}


@pytest.fixture(scope="module", params=["pocket", *SHAPES])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if request.param == "pocket":
        return POCKET_FOLDER
    return Path(saved(llama(**SHAPES[request.param]), tmp_path_factory.mktemp("base")))


@pytest.fixture(scope="module")
def pair(folder: Path) -> tuple[Any, PlainLlama]:
    """transformers' network of a folder, and ours.

    Weights that lie where a file has them are not aligned, and some processors' products of one
    row have other bits there; so theirs are copied, as ours are.
    """
    theirs, ours = AutoModelForCausalLM.from_pretrained(folder), read_plain(folder)
    assert ours is not None
    for name, tensor in theirs.state_dict().items():
        part, _, last = name.rpartition(".")
        theirs.get_submodule(part).get_parameter(last).data = tensor.clone()
    theirs.tie_weights()
    return theirs.eval().requires_grad_(False), ours.eval().requires_grad_(False)


def some_ids(n_rows: int, n_tokens: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(n_tokens)
    return torch.randint(6, 100, (n_rows, n_tokens), generator=generator)


def left_padded(n_rows: int, n_tokens: int) -> dict[str, torch.Tensor]:
    """Rows of unlike lengths, the first whole."""
    ids, mask = some_ids(n_rows, n_tokens), torch.ones(n_rows, n_tokens, dtype=torch.long)
    for row in range(n_rows):
        mask[row, : 3 * row] = 0
    return {"input_ids": ids * mask, "attention_mask": mask}


# --- the same bits


def test_it_has_transformers_weights_under_their_names(pair: tuple[Any, PlainLlama]) -> None:
    theirs, ours = (network.state_dict() for network in pair)
    assert list(theirs) == list(ours)
    assert all(torch.equal(theirs[name], ours[name]) for name in theirs)
    tied = [n.lm_head.weight is n.get_input_embeddings().weight for n in pair]
    assert tied[0] == tied[1]


@pytest.mark.parametrize("shape", [(1, 1), (1, 33), (3, 17)])
def test_logits_have_the_same_bits(pair: tuple[Any, PlainLlama], shape: tuple[int, int]) -> None:
    theirs, ours = (network(input_ids=some_ids(*shape), use_cache=False) for network in pair)
    assert torch.equal(theirs.logits, ours.logits)


@pytest.mark.parametrize("n_rows", [1, 4])
@pytest.mark.parametrize("n_more", [1, 5])
def test_passes_after_a_cache_have_the_same_bits(
    pair: tuple[Any, PlainLlama], n_rows: int, n_more: int
) -> None:
    logits = []
    first = left_padded(n_rows, 20)
    mask = torch.cat([first["attention_mask"], torch.ones(n_rows, n_more, dtype=torch.long)], 1)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    for network in pair:
        begun = network(**first, position_ids=positions[:, :20], use_cache=True)
        more = network(
            input_ids=some_ids(n_rows, n_more),
            attention_mask=mask,
            position_ids=positions[:, 20:],
            past_key_values=begun.past_key_values,
            use_cache=True,
        )
        logits.append((begun.logits, more.logits))
    assert all(torch.equal(a, b) for a, b in zip(*logits, strict=True))


@pytest.mark.parametrize("n_rows", [1, 4])
def test_greedy_continuations_are_the_same(pair: tuple[Any, PlainLlama], n_rows: int) -> None:
    rows = left_padded(n_rows, 20)
    free = {"do_sample": False, "num_beams": 1, "max_new_tokens": 12, "pad_token_id": 0}
    endless = GenerationConfig(**free, eos_token_id=[5])
    whole = pair[0].generate(**rows, generation_config=endless)
    stops = [5, int(whole[-1, 20:][-4:][0])]  # what the last row says, if it can, before its end
    config = GenerationConfig(**free, eos_token_id=stops)
    theirs, ours = (network.generate(**rows, generation_config=config) for network in pair)
    assert torch.equal(theirs, ours)
    assert set(stops) & set(theirs[-1, 20:].tolist())


def test_gradients_have_the_same_bits(pair: tuple[Any, PlainLlama]) -> None:
    found = []
    for network in pair:
        weight = network.model.layers[0].self_attn.q_proj.weight
        weight.requires_grad_(True)
        network(input_ids=some_ids(2, 9), use_cache=False).logits.logsumexp(-1).sum().backward()
        found.append(weight.grad)
        weight.grad = None
        weight.requires_grad_(False)
    assert torch.equal(*found)


TEXTS = [
    "Who leads it?",
    "",
    " a  b\n\n",
    "2.5 \u20ac, na\u00efve <|end|> x",
    "\x00\x7f <|user|>Hi",
    "it 's , no",
]
TURNS = [
    {"role": "user", "content": "Who?"},
    {"role": "assistant", "content": "<|end|> Eva \u00e9"},
]


def test_the_tokenizer_does_what_that_of_transformers_does(folder: Path) -> None:
    theirs, ours = AutoTokenizer.from_pretrained(folder), read_plain_tokenizer(folder)
    assert ours is not None
    assert theirs.backend_tokenizer.to_str() == ours.backend_tokenizer.to_str()
    assert theirs.special_tokens_map.items() >= ours.special_tokens_map.items()
    for name in ("chat_template", "model_max_length", "eos_token_id", "bos_token_id"):
        assert getattr(theirs, name) == getattr(ours, name), name
    assert theirs.pad_token_id == ours.pad_token_id
    assert theirs.get_vocab() == ours.get_vocab()
    assert len(theirs) == len(ours)
    for special in (True, False):
        ids = [each(TEXTS, add_special_tokens=special).input_ids for each in (theirs, ours)]
        assert ids[0] == ids[1]
        assert ids[1] == [ours(text, add_special_tokens=special)["input_ids"] for text in TEXTS]
        for row in ids[1]:
            assert theirs.decode(row, skip_special_tokens=special) == ours.decode(
                row, skip_special_tokens=special
            )
            assert theirs.convert_ids_to_tokens(row) == ours.convert_ids_to_tokens(row)
    for begun in (True, False):
        form = {"tokenize": False, "add_generation_prompt": begun, "enable_thinking": False}
        if theirs.chat_template is not None:
            rendered = [t.apply_chat_template(TURNS, **form) for t in (theirs, ours)]
            assert rendered[0] == rendered[1]


def test_what_the_tokenizer_has_not_that_of_transformers_does(folder: Path) -> None:
    theirs, ours = AutoTokenizer.from_pretrained(folder), read_plain_tokenizer(folder)
    assert ours is not None
    cut = {"truncation": True, "max_length": 2, "add_special_tokens": False}
    assert ours("Who leads it?", **cut)["input_ids"] == theirs("Who leads it?", **cut)["input_ids"]
    assert ours.all_special_ids == theirs.all_special_ids
    ids = ours("it 's , no")["input_ids"]
    for cleaned in (True, False):
        said = [t.decode(ids, clean_up_tokenization_spaces=cleaned) for t in (theirs, ours)]
        assert said[0] == said[1]
    with pytest.raises(AttributeError):
        ours.no_such_thing  # noqa: B018


def test_a_copy_of_the_tokenizer_is_another_one(folder: Path) -> None:
    ours = read_plain_tokenizer(folder)
    assert ours is not None
    copied = copy.deepcopy(ours)
    assert copied.backend_tokenizer is not ours.backend_tokenizer
    assert copied(TEXTS)["input_ids"] == ours(TEXTS)["input_ids"]


def change(name: str = "config.json", /, **said: Any) -> Callable[[Path], None]:
    """Say something else in a folder's configuration; None takes a key away."""

    def changed(folder: Path) -> None:
        file = folder / name
        config = json.loads(file.read_text(encoding="utf-8")) | said
        config = {key: value for key, value in config.items() if value is not None}
        file.write_text(json.dumps(config), encoding="utf-8")

    return changed


def stated(**said: Any) -> Callable[[Path], None]:
    """Say something else in the settings of a folder's tokenizer."""
    return change("tokenizer_config.json", **said)


def template(text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / "chat_template.jinja").write_text(text, encoding="utf-8")


def cut_short(folder: Path) -> None:
    file = folder / "tokenizer.json"
    plain = json.loads(file.read_text(encoding="utf-8"))
    cut = {"max_length": 4, "stride": 0, "strategy": "LongestFirst", "direction": "Right"}
    file.write_text(json.dumps(plain | {"truncation": cut}), encoding="utf-8")


OTHER_TOKENIZERS: dict[str, Callable[[Path], None]] = {
    "a class of its own": stated(tokenizer_class="LlamaTokenizer"),
    "code that came with it": stated(auto_map={"AutoTokenizer": ["a.B", None]}),
    "spaces are cleaned up": stated(clean_up_tokenization_spaces=True),
    "a special token that its file has not": stated(eos_token="<|nothing|>"),
    "a special token with settings": stated(eos_token={"content": "<|end|>", "lstrip": True}),
    "a template of tracked blocks": template("{% generation %}{% endgeneration %}"),
    "a template with the date": template("{{ strftime_now('%Y') }}"),
    "a template that is none": template("{% if %}"),
    "it cuts": cut_short,
    "a damaged file": lambda f: (f / "tokenizer.json").write_text("[", encoding="utf-8"),
    "damaged settings": lambda f: (f / "tokenizer_config.json").write_bytes(b"\xff"),
    "no settings": lambda f: (f / "tokenizer_config.json").unlink(),
    "no file": lambda f: (f / "tokenizer.json").unlink(),
}


@pytest.mark.parametrize("alter", OTHER_TOKENIZERS.values(), ids=OTHER_TOKENIZERS)
def test_what_is_not_exactly_its_tokenizer_is_left_to_transformers(
    alter: Callable[[Path], None], tmp_path: Path
) -> None:
    folder = tmp_path / "base"
    shutil.copytree(POCKET_FOLDER, folder)
    assert read_plain_tokenizer(folder) is not None
    alter(folder)
    assert read_plain_tokenizer(folder) is None


def test_both_networks_make_the_same_model(folder: Path) -> None:
    theirs = Model.load(str(folder), implementation="transformers")
    state = torch.get_rng_state()
    ours = Model.load(str(folder))
    assert torch.equal(torch.get_rng_state(), state), "loading draws no random numbers"
    assert isinstance(theirs.network, PreTrainedModel)
    assert isinstance(ours.network, PlainLlama)
    for name in ("digest", "template_digest", "context", "phrasing", "device", "dtype"):
        assert getattr(theirs, name) == getattr(ours, name), name
    assert theirs.runs_in() == ours.runs_in()


def test_what_rows_share_runs_once_in_it_as_well(folder: Path) -> None:
    """Its cache goes on as transformers' own does, or every row would run whole."""
    body = Model.load(str(folder)).network.model
    backend, ids = Transformers(body), some_ids(4, 12)
    ids[:, :7] = ids[0, :7]
    position = torch.full((4, 1), 11)
    with torch.no_grad():
        whole = backend.hidden(ids, position, Pass(Rows()))
        n_read: list[int] = []
        body.embed_tokens.register_forward_hook(lambda m, args, out: n_read.append(args[0].numel()))
        once = backend.hidden(ids, position, Pass(Rows(), n_shared=7))
    assert sum(n_read[-2:]) == 7 + 4 * 5
    torch.testing.assert_close(once, whole, rtol=1e-4, atol=1e-4)


# --- read only where that is so


def tensors(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    """Change a folder's weights."""

    def changed(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        weights = {name: weight.clone() for name, weight in weights.items()}
        change(weights)
        save_file(weights, folder / "model.safetensors", {"format": "pt"})

    return changed


def halved(weights: dict[str, torch.Tensor]) -> None:
    weights["model.norm.weight"] = weights["model.norm.weight"].bfloat16()


OTHER: dict[str, Callable[[Path], None]] = {
    "another family": change(model_type="mistral", architectures=["MistralForCausalLM"]),
    "another activation": change(hidden_act="gelu"),
    "biases": change(attention_bias=True),
    "scaled positions": change(
        rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}
    ),
    "no positions": change(rope_parameters=None),
    "a key that it does not know": change(sliding_window=8),
    "weights in bfloat16": change(dtype="bfloat16"),
    "no dtype": change(dtype=None),
    "more layers than weights": change(num_hidden_layers=3),
    "one weight in bfloat16": tensors(halved),
    "one weight too many": tensors(lambda w: w.update(more=torch.ones(1))),
    "one weight missing": tensors(lambda w: w.pop("model.norm.weight")),
    "weights in several files": lambda f: (f / "model.safetensors.index.json").touch(),
    "an adapter beside them": lambda f: (f / "adapter_config.json").touch(),
    "no weights": lambda f: (f / "model.safetensors").unlink(),
    "damaged weights": lambda f: (f / "model.safetensors").write_bytes(b"\xff" * 64),
    "a damaged configuration": lambda f: (f / "config.json").write_text("[", encoding="utf-8"),
    "no configuration": lambda f: (f / "config.json").unlink(),
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(saved(llama(), tmp_path_factory.mktemp("tiny")))


@pytest.mark.parametrize("alter", OTHER.values(), ids=OTHER)
def test_what_is_not_exactly_its_form_is_left_to_transformers(
    alter: Callable[[Path], None], tiny: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "base"
    shutil.copytree(tiny, folder)
    assert read_plain(folder) is not None
    alter(folder)
    assert read_plain(folder) is None


def test_errors_of_damaged_files_are_those_of_transformers(tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / "base"
    shutil.copytree(tiny, folder)
    OTHER["damaged weights"](folder)
    sentences = []
    for implementation in ("auto", "transformers"):
        with pytest.raises(ModelError, match="could not be loaded") as caught:
            Model.load(str(folder), implementation=implementation)
        sentences.append(str(caught.value))
    assert sentences[0] == sentences[1]


def test_an_unknown_implementation_is_refused() -> None:
    with pytest.raises(ConfigError, match="'tinygrad' is unknown; use one of auto, transformers"):
        Model.load(implementation="tinygrad")


# --- and imported alone


def test_a_question_to_the_embedded_base_imports_nothing_of_transformers(tmp_path: Path) -> None:
    shutil.copytree(STORED, tmp_path / "atlas")
    slow = {"transformers", "torch._dynamo", "sympy", "scipy.stats", "matplotlib", "peft"}
    code = (
        "import sys; from lorewright.cli.main import main\n"
        "try: main()\n"
        f"except SystemExit: print(*sorted({slow!r} & set(sys.modules)), file=sys.stderr)"
    )
    question = "Who leads the Tide Office?"
    done = subprocess.run(
        [sys.executable, "-c", code, "ask", question, "--memory", str(tmp_path / "atlas")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("Maren Oskold")
    assert done.stderr.strip() == ""
