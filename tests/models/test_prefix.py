"""Claims about keys and values before every row: as if the tokens stood there, for every pass."""

from __future__ import annotations

import pytest
import torch
from support.families import gemma3_text
from support.numbers import assert_close, depth, rounding
from support.writes import tiny
from torch import Tensor

from lorewright.errors import ModelError
from lorewright.models.model import Model
from lorewright.models.prefix import Reader, behind, written_prefix

DOCUMENT = "The code of red is 48 and that of blue is 7.5."
QUESTIONS = ("Code of red?", "And what is the code of blue, please?")


@pytest.fixture(scope="module", params=["transformers", "plain"])
def model(request: pytest.FixtureRequest) -> Model:
    """A network of transformers' and the embedded one, which is not."""
    return tiny() if request.param == "transformers" else Model.load()


def ids_of(model: Model, text: str) -> list[int]:
    return list(model.tokenizer(text, add_special_tokens=False)["input_ids"])


def hidden(model: Model, ids: list[int]) -> Tensor:
    with torch.no_grad():
        states: Tensor = model.network.get_decoder()(
            input_ids=torch.tensor([ids])
        ).last_hidden_state
    return states


def test_a_row_behind_the_prefix_of_a_text_is_the_row_after_the_text(model: Model) -> None:
    document, question = ids_of(model, DOCUMENT), ids_of(model, QUESTIONS[0])
    whole = hidden(model, [*document, *question])[:, len(document) :]
    alone = hidden(model, question)
    prefix = written_prefix(model.network, torch.tensor([document]))
    with behind(model.network, prefix):
        after = hidden(model, question)
    n_terms = depth(model.network, len(document) + len(question))
    assert_close(after, whole, n_terms)
    assert (alone - whole).abs().max() > 100 * rounding(torch.float32, n_terms, whole) / 32
    assert torch.equal(hidden(model, question), alone), "the base is as it was"


def test_replies_behind_a_prefix_are_those_after_its_tokens(model: Model) -> None:
    """Rows of unlike length, padded on the left, token by token."""
    document = ids_of(model, DOCUMENT)
    rows = [ids_of(model, question) for question in QUESTIONS]
    whole = model.generate_ids([[*document, *row] for row in rows], max_new_tokens=6)
    prefix = written_prefix(model.network, torch.tensor([document]))
    with torch.no_grad(), behind(model.network, prefix):
        replies = model.generate_ids(rows, max_new_tokens=6)
    assert replies == whole
    if model.name != "tiny":  # the random one says the same whatever it has read
        assert replies != model.generate_ids(rows, max_new_tokens=6)


def test_vectors_are_read_as_the_tokens_whose_embeddings_they_are(model: Model) -> None:
    ids_1M = torch.tensor([ids_of(model, DOCUMENT)])
    vectors_MD = model.network.get_input_embeddings()(ids_1M)[0].detach().requires_grad_()
    as_tokens = written_prefix(model.network, ids_1M)
    as_vectors = written_prefix(model.network, torch.zeros_like(ids_1M), vectors_MD)
    for one, other in zip(as_tokens, as_vectors, strict=True):
        assert torch.equal(one.keys_1GME, other.keys_1GME)
        assert torch.equal(one.values_1GME, other.values_1GME)
    assert as_vectors[-1].values_1GME.requires_grad


def test_a_text_read_in_pieces_is_the_text_read_at_once(model: Model) -> None:
    ids_1M = torch.tensor([ids_of(model, DOCUMENT)])
    reader = Reader(model.network)
    with torch.no_grad():
        whole = Reader(model.network).read(ids_1M)
        for piece in ids_1M.split(7, 1):
            pieces = reader.read(piece)
    n_terms = depth(model.network, ids_1M.shape[1])
    for one, other in zip(pieces, whole, strict=True):
        assert_close(one.values_1GME, other.values_1GME, n_terms)


def test_what_sees_a_window_only_has_no_prefix() -> None:
    network = gemma3_text()
    with pytest.raises(ModelError, match="sliding_window of 16; use a method that leaves an ad"):
        written_prefix(network, torch.tensor([[3, 4]]))
