"""Claims about sentence encoders: what is read of a folder, what pools how, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from support.encoders import tiny_encoder
from support.real import link_models, needs

from lorewright.errors import ConfigError, ModelError
from lorewright.models.catalogue import KNOWN_ENCODERS, located, unpacked
from lorewright.models.encoders import ENCODERS, MEAN, POOLINGS, encoder_of, in_folder

TEXTS = ["red mill", "who owns the old red mill by the river", "x"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[needs("minilm")] * (name == "minilm")) for name in ENCODERS]
)
def test_every_encoder_by_name_is_none_or_gives_rows_of_length_one(
    name: str, own_cache: Path
) -> None:
    if name == "minilm":
        link_models(own_cache)
    encoder = encoder_of(name)
    if encoder is not None:
        vector_ND = encoder.embed(TEXTS)
        assert len(vector_ND) == len(TEXTS) and "@" in encoder.id
        assert np.allclose(np.linalg.norm(vector_ND, axis=1), 1, atol=1e-5)


def test_auto_is_none_where_nothing_was_fetched() -> None:
    assert not KNOWN_ENCODERS["minilm"].here and encoder_of("auto") is None


def test_a_folder_is_an_encoder_whose_vectors_do_not_depend_on_the_batch(folder: Path) -> None:
    encoder = encoder_of(str(folder))
    assert encoder is not None and encoder.id.startswith(f"{folder.name}@")
    together = encoder.embed(TEXTS)
    alone = np.concatenate([encoder.embed([text]) for text in TEXTS])
    assert np.allclose(together, alone, atol=1e-5) and not np.allclose(together[0], together[1])


def test_another_folder_has_another_digest(folder: Path, tmp_path: Path) -> None:
    first, second = (encoder_of(str(place)) for place in (folder, tiny_encoder(tmp_path, seed=1)))
    assert first and second and first.id.split("@")[1] != second.id.split("@")[1]


@pytest.mark.parametrize("pooling", sorted(POOLINGS))
def test_every_pooling_ignores_what_is_padded(pooling: str) -> None:
    state_BTH = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    right = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    pooled_BH = POOLINGS[pooling](state_BTH, right)
    alone_BH = POOLINGS[pooling](state_BTH[1:, :3], right[1:, :3])
    assert torch.allclose(pooled_BH[1], alone_BH[0])
    left = torch.tensor([[0, 0, 1, 1, 1]])
    assert torch.allclose(
        POOLINGS[pooling](state_BTH[:1], left)[0],
        POOLINGS[pooling](state_BTH[:1, 2:], left[:, 2:])[0],
    )


def test_a_folder_says_which_pooling_and_which_prefixes(tmp_path: Path) -> None:
    plain = in_folder(tiny_encoder(tmp_path / "mean", pooling=MEAN), "a@1")
    first = in_folder(tiny_encoder(tmp_path / "cls", pooling="pooling_mode_cls_token"), "b@1")
    assert plain.embed_question is None
    assert not np.allclose(plain.embed(TEXTS), first.embed(TEXTS))
    place = tiny_encoder(tmp_path / "prefixed")
    prompts = {"prompts": {"query": "query: ", "passage": "passage: "}}
    (place / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    prefixed = in_folder(place, "c@1")
    assert prefixed.embed_question is not None
    assert np.allclose(
        prefixed.embed_question(TEXTS), plain.embed([f"query: {text}" for text in TEXTS]), atol=1e-6
    )
    assert np.allclose(
        prefixed.embed(TEXTS), plain.embed([f"passage: {text}" for text in TEXTS]), atol=1e-6
    )


def test_what_is_no_encoder_is_refused_with_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="none of auto, none, minilm and no folder"):
        encoder_of("no-such-encoder")
    with pytest.raises(ModelError, match="is no sentence encoder"):
        encoder_of(str(tmp_path))
    place = tiny_encoder(tmp_path / "cut")
    (place / "model.safetensors").write_bytes(b"cut")
    encoder = encoder_of(str(place))
    assert encoder is not None
    with pytest.raises(ModelError, match="could not be loaded"):
        encoder.embed(["a"])
    (place / "2_Dense").mkdir()
    with pytest.raises(ModelError, match="no further layer is read"):
        encoder_of(str(place))


def test_an_encoder_is_no_base_and_a_base_no_encoder() -> None:
    with pytest.raises(ConfigError, match="give it to --encoder"):
        located("minilm")
    with pytest.raises(ConfigError, match="no encoder is called 'smollm2'"):
        unpacked("smollm2")


@needs("minilm")
def test_minilm_is_nearer_to_what_says_the_same_in_other_words(own_cache: Path) -> None:
    link_models(own_cache)
    encoder = encoder_of("auto")
    assert encoder is not None
    asked, same, other = encoder.embed(
        [
            "Who looks after the Kestrel cluster?",
            "The Kestrel cluster is administered by Ines Varga.",
            "What is the capital of France?",
        ]
    )
    assert asked @ same > 0.5 > 0.2 > asked @ other
