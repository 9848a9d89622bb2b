"""Between text and token ids: prompts on the way in, a growing reply on the way out.

A question is rendered as in training, by `Model.render`. A reply grows token by token; text that
was returned is never taken back, so text waits while it may be half a character, the beginning of
a stop text, or white space at an end that will be stripped.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import jinja2

from lorewright.errors import DataError
from lorewright.models.model import Model
from lorewright.serve.protocol import (
    APIError,
    ChatRequest,
    GenerationRequest,
    Message,
    check_token_limit,
)
from lorewright.serve.replies import TokenText
from lorewright.serve.scheduler import Token

INCOMPLETE = "\N{REPLACEMENT CHARACTER}"
"""What tokenizers decode bytes to that are not a whole character yet."""


class Tokenization:
    """Token ids of requests; for one thread at a time, as tokenizers are."""

    def __init__(self, model: Model, max_tokens: int) -> None:
        """`max_tokens` is the server's limit on a reply."""
        self.model = model
        self.max_tokens = max_tokens

    @cached_property
    def _max_chars(self) -> int:
        """Characters that cannot fit the context, however they are tokenised."""
        return self.model.context * max(map(len, self.model.tokenizer.get_vocab()))

    def prompts(self, request: GenerationRequest) -> list[tuple[tuple[int, ...], int]]:
        """Token ids of each prompt, and how many tokens its reply may have.

        Raises APIError 400 for what is too long, for ids that are no tokens, and for conversations
        that the base's chat template cannot render.
        """
        if isinstance(request, ChatRequest):
            param, texts = "messages", ["".join(message.content for message in request.messages)]
        else:
            param, texts = "prompt", [each for each in request.prompt if isinstance(each, str)]
        n_chars = max(map(len, texts), default=0)
        if n_chars > self._max_chars:  # before they are tokenised, which may take long
            raise self._too_long(f"{n_chars} characters are too many", param)
        if isinstance(request, ChatRequest):
            prompts = [self._chat(request.messages)]
        else:
            prompts = [self._text(prompt) for prompt in request.prompt]
        return [(p, self._budget(len(p), request.token_limit, param)) for p in prompts]

    def _chat(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """Ids up to where the reply begins; one question looks exactly as `lore ask` renders it."""
        model = self.model
        turns: list[dict[str, Any]] = []
        for message in messages:
            role = "system" if message.role == "developer" else message.role
            calls = {"tool_calls": message.tool_calls} if message.tool_calls else {}
            turns.append({"role": role, "content": message.content, **calls})
        roles = [turn["role"] for turn in turns]
        if roles in (["user"], ["system", "user"]):
            system = turns[0]["content"] if len(turns) == 2 else None
            try:
                return model.render(turns[-1]["content"].strip(), system=system).prompt_ids
            except DataError as error:
                raise self._too_long(str(error), "messages") from error
        if model.tokenizer.chat_template is None:
            why = f"{model.name!r} has no chat template, so it takes one question at a time."
            raise APIError(400, why, param="messages")
        template = f"the chat template of {model.name!r}"
        try:
            text = model.tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=True, enable_thinking=False
            )
        except (jinja2.TemplateError, TypeError) as error:
            why = f"{template} cannot render these messages: {error}."
            raise APIError(400, why, param="messages") from error
        assert isinstance(text, str)
        for number, message in enumerate(messages):
            if not _shown(message, text):
                why = f"{template} leaves out role {message.role!r}; write a user message instead."
                raise APIError(400, why, param=f"messages.{number}")
        return tuple(model.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _text(self, prompt: str | Sequence[int]) -> tuple[int, ...]:
        """Ids of plain text after the base's start token; ids are taken as they are."""
        model = self.model
        if isinstance(prompt, str):
            start = model.render("").prompt_ids
            return (*start, *model.tokenizer(prompt, add_special_tokens=False)["input_ids"])
        n_tokens = int(model.network.get_input_embeddings().weight.shape[0])
        invalid = [each for each in prompt if not 0 <= each < n_tokens]
        if invalid:
            why = f"{invalid[0]} is no token; ids go from 0 to {n_tokens - 1}."
            raise APIError(400, why, param="prompt")
        return tuple(prompt)

    def _budget(self, n_prompt: int, requested: int | None, param: str) -> int:
        """Tokens that may be generated after a prompt."""
        check_token_limit(requested, self.max_tokens)
        n_left = self.model.context - n_prompt
        if n_left < 1 or (requested is not None and requested > n_left):
            reply = "a reply" if requested is None else f"{requested} new ones"
            raise self._too_long(f"{n_prompt} prompt tokens and {reply} are too many", param)
        return min(n_left, requested or self.max_tokens)

    def _too_long(self, why: str, param: str) -> APIError:
        context = f"the context of {self.model.name!r} is {self.model.context} tokens"
        message = f"{why.rstrip('.')}; {context}."
        return APIError(400, message, code="context_length_exceeded", param=param)


def _shown(message: Message, text: str) -> bool:
    """Whether a rendered conversation holds a message; templates may rewrite what models say."""
    if message.role == "assistant":
        names = [str(call.get("function", {}).get("name", "")) for call in message.tool_calls]
        return all(name in text for name in names)
    content = message.content.strip()
    return content in text or json.dumps(content, ensure_ascii=False)[1:-1] in text


class Detokenizer:
    """Text of a growing reply; what `push` returns is final."""

    def __init__(self, tokenizer: Any, stops: Sequence[str] = (), *, strip: bool = False) -> None:
        """`stops` end the reply before them; `strip` takes white space off both ends."""
        self.tokenizer = tokenizer
        self.stops = tuple(stops)
        self.strip = strip
        self.stopped = False
        """Whether one of the stops was generated."""
        self._ids: list[int] = []
        self._start = 0
        self._n_read = 0
        self._pending = ""
        self._began = False

    def push(self, ids: Sequence[int]) -> str:
        """Append tokens; return the text that is certain now."""
        self._ids += ids
        before = self._decode(self._start, self._n_read)
        now = self._decode(self._start, len(self._ids))
        if len(now) <= len(before) or now.endswith(INCOMPLETE):
            return ""
        # from here on decode with the last piece as context: some tokenizers write a space or not
        self._start, self._n_read = self._n_read, len(self._ids)
        return self._release(now[len(before) :])

    def finish(self) -> str:
        """Return the text that was pending; nothing comes after."""
        before = self._decode(self._start, self._n_read)
        text = self._release(self._decode(self._start, len(self._ids))[len(before) :])
        last, self._pending = "" if self.stopped else self._pending, ""
        return text + (last.rstrip() if self.strip else last)

    def _decode(self, start: int, end: int) -> str:
        return str(self.tokenizer.decode(self._ids[start:end], skip_special_tokens=True))

    def _release(self, text: str) -> str:
        """What of the pending text and this is certain: no stop in it, or begun at its end."""
        if self.stopped:
            return ""
        text = self._pending + text
        if self.strip and not self._began:
            text = text.lstrip()
        places = [at for stop in self.stops if (at := text.find(stop)) >= 0]
        if places:
            self.stopped, self._pending, text = True, "", text[: min(places)]
            return text.rstrip() if self.strip else text
        n_pending = max((_overlap(text, stop) for stop in self.stops), default=0)
        if self.strip:
            n_pending = max(n_pending, len(text) - len(text[: len(text) - n_pending].rstrip()))
        self._pending = text[len(text) - n_pending :]
        text = text[: len(text) - n_pending]
        self._began = self._began or bool(text)
        return text


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of the text that the stop begins with."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)


def token_text(tokenizer: Any, token: Token) -> TokenText:
    """A token and its alternatives as text."""
    top = tuple((str(tokenizer.decode([id])), logprob) for id, logprob in token.top)
    return TokenText(str(tokenizer.decode([token.id])), token.logprob or 0.0, top)
