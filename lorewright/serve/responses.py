"""POST /v1/responses: OpenAI's newer shape of a chat, in which a reply is a list of output items.

    request ──chat──▶ ChatRequest ──backend──▶ Completion ──▶ response, or events of a stream

Nothing is stored here, so a conversation is sent whole: `input` takes messages and the output items
of earlier responses as they are. Reference: OpenAI API, responses and their streaming events.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Annotated, Any, Self
from uuid import uuid4

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from lorewright.serve.protocol import (
    IGNORED,
    APIError,
    Body,
    ChatRequest,
    InvalidField,
    Message,
    Text,
)
from lorewright.serve.replies import Completion, Usage

MADE_HERE = frozenset(("type", "id", "status", "phase"))
"""Fields of an output item that an input message does not have."""
TEXT_PARTS = ("input_text", "output_text", "text")


def _messages(content: Any) -> Any:
    """Input as messages: a text is one of the user, output items are the assistant's."""
    if isinstance(content, str):
        return [{"role": "user", "content": content}]
    if not isinstance(content, list):
        return content
    for number, item in enumerate(content):
        kind = item.get("type", "message") if isinstance(item, dict) else "message"
        if kind != "message":
            why = f"items of type {str(kind)[:40]!r} are not supported; send messages"
            raise InvalidField(f"{number}.type", why)
    return [_message(item) if isinstance(item, dict) else item for item in content]


def _message(item: dict[str, Any]) -> dict[str, Any]:
    message = {name: value for name, value in item.items() if name not in MADE_HERE}
    if isinstance(message.get("content"), list):
        message["content"] = [
            {"type": "text", "text": part.get("text")}
            if isinstance(part, dict) and part.get("type") in TEXT_PARTS
            else part
            for part in message["content"]
        ]
    return message


class ResponsesRequest(Body):
    """The body of POST /v1/responses."""

    ignored = IGNORED | {"reasoning", "prompt_cache_options"}
    model: Text
    input: Annotated[list[Message], BeforeValidator(_messages, str | list[dict[str, Any]])] = Field(
        min_length=1
    )
    instructions: Text = ""
    """A system turn before the others."""
    max_output_tokens: int | None = Field(None, ge=1)
    temperature: float = Field(0.0, ge=0, le=2)
    top_p: float = Field(1.0, ge=0, le=1)
    stream: bool = False

    @model_validator(mode="after")
    def _check_as_chat(self) -> Self:
        try:
            self.chat()
        except ValidationError as error:  # of fields together; each alone was checked before
            cause = str(error.errors()[0].get("ctx", {}).get("error", error))
            raise InvalidField("input", cause.replace("messages", "input")) from error
        return self

    def chat(self) -> ChatRequest:
        """The same as a chat request; a stream counts its tokens."""
        system = [{"role": "system", "content": self.instructions}] if self.instructions else []
        turns = [message.model_dump(exclude_unset=True) for message in self.input]
        options = {"include_usage": True} if self.stream else None
        return ChatRequest.model_validate(
            {
                **self.model_dump(include={"model", "temperature", "top_p", "stream"}),
                "messages": [*system, *turns],
                "max_tokens": self.max_output_tokens,
                "stream_options": options,
            }
        )


@dataclass(frozen=True)
class ResponseFormat:
    """What all events of one response have in common."""

    request: ResponsesRequest
    id: str = field(default_factory=lambda: uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, completion: Completion) -> dict[str, Any]:
        """The response, from a chat's reply."""
        choice = completion.choices[0]
        text = (choice.message.content if choice.message else "") or ""
        return self._response(completion, text, choice.finish_reason, completion.usage)

    async def events(self, parts: AsyncIterator[Completion | APIError]) -> AsyncIterator[bytes]:
        """The server-sent events of a stream; an error on the way is one as well."""
        number, text, finish, usage = 0, "", None, None
        last: Completion | None = None
        where = {"item_id": f"msg_{self.id}", "output_index": 0, "content_index": 0}

        def event(kind: str, **fields: Any) -> bytes:
            nonlocal number
            data = json.dumps({"type": kind, "sequence_number": number, **fields})
            number += 1
            return f"event: {kind}\ndata: {data}\n\n".encode()

        async for part in parts:
            if isinstance(part, APIError):
                yield event("error", code=part.code, message=str(part), param=part.param)
                return
            if last is None:
                begun = self._response(part, "", None, None) | {"status": "in_progress"}
                begun |= {"output": []}
                yield event("response.created", response=begun)
                yield event("response.in_progress", response=begun)
                item = self._item("", "in_progress") | {"content": []}
                yield event("response.output_item.added", output_index=0, item=item)
                yield event("response.content_part.added", **where, part=_part(""))
            last, usage = part, part.usage or usage
            for choice in part.choices:
                finish = choice.finish_reason or finish
                if choice.delta and choice.delta.content:
                    text += choice.delta.content
                    delta = choice.delta.content
                    yield event("response.output_text.delta", **where, delta=delta, logprobs=[])
        if last is None:
            return
        yield event("response.output_text.done", **where, text=text, logprobs=[])
        yield event("response.content_part.done", **where, part=_part(text))
        ended = self._response(last, text, finish, usage)
        yield event("response.output_item.done", output_index=0, item=ended["output"][0])
        yield event(f"response.{ended['status']}", response=ended)

    def _response(
        self, completion: Completion, text: str, finish: str | None, usage: Usage | None
    ) -> dict[str, Any]:
        cut = finish == "length"
        source = completion.lorewright
        return {
            "id": f"resp_{self.id}",
            "object": "response",
            "created_at": self.created,
            "status": "incomplete" if cut else "completed",
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "instructions": self.request.instructions or None,
            "max_output_tokens": self.request.max_output_tokens,
            "model": completion.model,
            "output": [self._item(text, "incomplete" if cut else "completed")],
            "parallel_tool_calls": False,
            "previous_response_id": None,
            "temperature": self.request.temperature,
            "text": {"format": {"type": "text"}},
            "tool_choice": "none",
            "tools": [],
            "top_p": self.request.top_p,
            "usage": _usage(usage) if usage else None,
            "lorewright": source.model_dump() if source else None,
        }

    def _item(self, text: str, status: str) -> dict[str, Any]:
        about = {"type": "message", "id": f"msg_{self.id}", "status": status, "role": "assistant"}
        return {**about, "content": [_part(text)]}


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": usage.completion_tokens or 0,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.total_tokens,
    }
