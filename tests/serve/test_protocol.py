"""Claims about the wire: what OpenAI's clients send passes, or is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from lorewright.errors import AdapterError
from lorewright.serve.protocol import (
    IGNORED,
    NEUTRAL,
    APIError,
    ChatRequest,
    TextRequest,
    api_error,
    validation_error,
)
from lorewright.serve.replies import Completion

QUESTION = {"role": "user", "content": "Who?"}


def chat(**fields: Any) -> ChatRequest:
    return ChatRequest.model_validate({"model": "north", "messages": [QUESTION], **fields})


def refusal(model: Any, fields: Any) -> APIError:
    with pytest.raises(ValidationError) as invalid:
        model.model_validate(fields)
    return validation_error(invalid.value.errors())


def test_null_asks_for_the_default_whatever_the_field() -> None:
    fields = [*ChatRequest.model_fields, *IGNORED, *NEUTRAL, "a_field_of_next_year"]
    nulls = {name: None for name in fields if name not in ("model", "messages")}
    assert chat(**nulls) == chat()


UNSUPPORTED = {
    **{name: [] for name in ("tools", "functions", "a_field_of_next_year")},
    **dict.fromkeys(("presence_penalty", "frequency_penalty"), 0),
    "logit_bias": {},
    "echo": False,
    "suffix": "",
    **{name: values[0] for name, values in NEUTRAL.items()},
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_an_unsupported_field_passes_with_a_value_that_asks_for_nothing(name: str) -> None:
    assert chat(**{name: UNSUPPORTED[name]}) == chat()
    body = {"model": "north", "messages": [QUESTION], name: {"something": "else"}}
    error = refusal(ChatRequest, body)
    assert (error.status, error.param) == (400, name)
    assert str(error) == f"{name} is not supported; leave it out."


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "user", "content": [{"type": "image_url"}]}, "messages.0.content.0"),
        ({"role": "user", "content": "x", "refusal": "no"}, "messages.0.refusal"),
        ({"role": "user", "content": "x", "mood": "good"}, "messages.0.mood"),
        ({"role": "function", "content": "x"}, "messages.0.role"),
        ({"role": "user"}, "messages.0.content"),
        ({"role": "user", "content": "\ud800"}, "messages.0.content"),
        ("x", "messages.0"),
    ],
)
def test_what_a_message_may_not_have_is_named(message: Any, param: str) -> None:
    error = refusal(ChatRequest, {"model": "north", "messages": [message, QUESTION]})
    assert error.param == param
    assert str(error).endswith(".")


def test_content_parts_are_joined_by_line_breaks() -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    (message,) = chat(messages=[{"role": "user", "content": parts}]).messages
    assert message.content == "one\ntwo"


def test_a_reply_of_ours_is_a_message_of_the_next_request() -> None:
    reply = {"role": "assistant", "content": "KX-41", "refusal": None, "annotations": []}
    tool = {"role": "tool", "content": "42", "tool_call_id": "1"}
    turns = [QUESTION, reply, tool, {"role": "developer", "content": "Briefly."}, QUESTION]
    assert [m.role for m in chat(messages=turns).messages][1:4] == [
        "assistant",
        "tool",
        "developer",
    ]


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [("x", ["x"]), (["a", "b"], ["a", "b"]), ([1, 2], [[1, 2]]), ([[1], [2]], [[1], [2]])],
)
def test_a_prompt_is_a_text_or_ids_or_several(prompt: Any, prompts: Any) -> None:
    assert TextRequest.model_validate({"model": "m", "prompt": prompt}).prompt == prompts


@pytest.mark.parametrize("prompt", ["", [], [""], [[]], 5, [1, "a"], [1.5], ["\ud800"], [None]])
def test_other_prompts_are_refused_in_one_sentence(prompt: Any) -> None:
    error = refusal(TextRequest, {"model": "m", "prompt": prompt})
    assert error.param == "prompt"
    assert str(error).startswith("prompt must")


def test_no_path_and_no_address_of_this_machine_leaves_in_an_error() -> None:
    folder = Path("/srv/My Atlas")
    error = AdapterError(
        f"{folder}/adapters/0123/x.safetensors is damaged; see /home/me/log/a.txt, http://10.0.0.7:80/v1."
    )
    public = api_error(error, folder)
    assert public.status == 503
    assert public.detail == str(error)
    for secret in ("/srv", "My Atlas", "/home", "10.0.0.7"):
        assert secret not in str(public)
    assert "adapters/0123/x.safetensors" in str(public)


def test_a_reply_keeps_what_other_engines_add() -> None:
    text = '{"id":"1","object":"o","choices":[{"index":0,"message":{"content":"a","r":1}}],"k":[2]}'
    assert Completion.model_validate_json(text).to_json().decode() == text
