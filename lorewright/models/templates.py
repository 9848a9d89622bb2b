"""A prompt and its reply in a base's chat template: as text, in one place.

Training and questions afterwards go through here, so that they cannot differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

import jinja2

from lorewright.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def templated(
    tokenizer: PreTrainedTokenizerBase,
    name: str,
    prompt: str,
    completion: str | None,
    system: str | None,
) -> tuple[str, str | None]:
    """The text up to the reply, and the reply with what the template ends it with.

    Without a chat template, prompt and reply are separated by a space. Raises ModelError when the
    template of the base called `name` refuses a question.
    """
    whole_prompt = f"{system}\n\n{prompt}" if system else prompt
    if tokenizer.chat_template is None:
        return whole_prompt, None if completion is None else f" {completion}"
    messages, head = [{"role": "user", "content": whole_prompt}], ""
    if system:
        both = [{"role": "system", "content": system}, {"role": "user", "content": prompt}]
        with suppress(ModelError):  # without a system message, the user's begins with it
            head = _applied(tokenizer, name, both, open_reply=True)
        messages = both if system.strip() in head else messages
    if messages[0]["role"] == "user":
        head = _applied(tokenizer, name, messages, open_reply=True)
    if completion is None:
        return head, None
    reply = {"role": "assistant", "content": completion}
    whole = _applied(tokenizer, name, [*messages, reply], open_reply=False)
    if whole.startswith(head):
        return head, whole[len(head) :].rstrip()
    # Past replies are written otherwise than new ones begin (no empty think block, say).
    _, spelled, ending = whole.rpartition(completion.strip())
    return head, completion + ending.rstrip() if spelled else completion


def conversation(
    tokenizer: PreTrainedTokenizerBase,
    name: str,
    turns: Sequence[tuple[str, str]],
    prompt: str,
    *,
    mark: str,
) -> str:
    """Earlier turns of user and assistant, then a prompt, up to the reply.

    Without a chat template they are plain text in which `mark` stands before every reply. Raises
    ModelError when the template of the base called `name` refuses them.
    """
    if tokenizer.chat_template is None:
        earlier = "".join(f"{user}\n{mark}: {reply}\n\n" for user, reply in turns)
        return f"{earlier}{prompt}\n{mark}:"
    messages = []
    for user, reply in turns:
        messages += [{"role": "user", "content": user}, {"role": "assistant", "content": reply}]
    messages.append({"role": "user", "content": prompt})
    return _applied(tokenizer, name, messages, open_reply=True)


def _applied(
    tokenizer: PreTrainedTokenizerBase,
    name: str,
    messages: list[dict[str, str]],
    *,
    open_reply: bool,
) -> str:
    try:
        text = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=open_reply, enable_thinking=False
        )
    except jinja2.TemplateError as error:
        roles = " and ".join(message["role"] for message in messages)
        raise ModelError(
            f"the chat template of {name!r} refuses messages of {roles}: {error}; use a base whose "
            "template takes a question, or remove its chat template."
        ) from error
    assert isinstance(text, str)
    return text
