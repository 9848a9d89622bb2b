"""Claims about how a base is had to write questions: nothing whole is cut, nothing runs away.

The bases that run away are real networks whose weights say which letter follows which.
"""

from __future__ import annotations

import pytest
import torch
from support.families import llama
from support.models import letters

from lorewright.models.model import Model
from lorewright.models.replies import (
    MAX_QUESTION_TOKENS,
    QUESTION_SHARE,
    QUESTION_TOKENS,
    repeats,
    write_about,
)

ASK = "\n\nWrite questions."


def reciting(chain: str, context: int = 2048) -> Model:
    """A base that says the letters of a chain, all different, round and round."""
    network, tokenizer = (
        llama(max_position_embeddings=context, tie_word_embeddings=False),
        letters(),
    )
    for name, weight in network.named_parameters():
        if "proj" in name:
            weight.data.zero_()
    embedding, head = network.get_input_embeddings().weight, network.get_output_embeddings().weight
    torch.nn.init.zeros_(embedding)
    torch.nn.init.zeros_(head)
    ids = tokenizer.convert_tokens_to_ids(list(chain))
    embedding.data[:, len(ids)] = 1.0  # after any other letter the chain begins
    head.data[ids[0], len(ids)] = 1.0
    for i, (this, following) in enumerate(zip(ids, [*ids[1:], ids[0]], strict=True)):
        embedding.data[this] = torch.eye(embedding.shape[1])[i]
        head.data[following, i] = 1.0
    return Model(network, tokenizer, "reciting")


def test_complete_replies_are_those_of_plain_generation() -> None:
    pocket = Model.load()
    text = (
        "The head of the Tide Office is Maren Oskold. The ticket price of the Ferry is 23 crowns."
    )
    forms = "{}\n\nWrite questions and answers, set {}."
    prompts = [forms.format(text, n) for n in (1, 2)] + [forms.format(text[:44], 3)]
    whole = pocket.generate(prompts, max_new_tokens=MAX_QUESTION_TOKENS)
    assert write_about(pocket, prompts) == whole
    assert all(reply.count("A:") == reply.count("Q:") > 0 for reply in whole)


def test_a_base_that_repeats_its_lines_is_stopped() -> None:
    model = reciting("Q:ab?\n")
    (found,) = write_about(model, ["a" * 200 + ASK])
    assert found.startswith("Q:ab?\nQ:ab?\n") and len(found) <= QUESTION_TOKENS


def test_a_line_that_goes_round_in_circles_ends_at_once() -> None:
    (found,) = write_about(reciting("Q:abcdef"), ["a" * 200 + ASK])
    assert found == "Q:abcdef" * 3


@pytest.mark.parametrize("n", [1, 30, 90, 400])
def test_a_base_without_an_end_is_stopped_by_the_length_of_the_passage(n: int) -> None:
    (found,) = write_about(reciting("Q:abcdefghijklmnopqrstuvwxyz"), ["a" * n + ASK])
    limit = min(MAX_QUESTION_TOKENS, QUESTION_TOKENS + QUESTION_SHARE * n)
    assert limit <= len(found) < limit + QUESTION_TOKENS


def test_a_reply_ends_at_the_models_context_beside_others_that_go_on() -> None:
    model = reciting("Q:abcdefghijklmnopqrstuvwxyz", context=256)
    short, long = write_about(model, ["a" * 20 + ASK, "a" * 150 + ASK])
    n_long = len(model.render("a" * 150 + ASK).prompt_ids)
    assert len(long) == 256 - n_long and len(short) > len(long)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Q: a? A: 1\nQ: b? A: 1\nQ: a", False),  # the last line is not whole
        ("Q: a? A: 1\nQ: b? A: 1\nQ: a? A: 1\n", True),
        ("Q: a?\nA: yes\nQ: b?\nA: yes\n", False),  # two questions with one answer
        ("Q: a?\nA: yes\nQ: a?\nA: yes\n", True),
        ("Q: a? A: 1\nQ: a? A: 1\nQ: b? A: 2\n", False),  # it has got on since
        ("Notes.\n\nMore.\n\n", False),
        ("", False),
    ],
)
def test_going_round_in_circles_is_to_end_on_a_line_from_before(text: str, expected: bool) -> None:
    assert repeats(text) is expected
