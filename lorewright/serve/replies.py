"""The OpenAI protocol's replies, as pydantic models: whole ones, and chunks of streams.

One model reads and writes all four shapes (chat or text, whole or chunk): what is unset is absent
in the JSON, and fields that other engines add are passed on.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict


class Open(BaseModel):
    """A JSON object whose unknown fields are passed on."""

    model_config = ConfigDict(extra="allow")

    def to_json(self) -> bytes:
        """UTF-8 JSON of the fields that were set."""
        return self.model_dump_json(exclude_unset=True).encode()


class Usage(Open):
    """Tokens of a reply: read, generated, together."""

    prompt_tokens: int = 0
    completion_tokens: int | None = 0
    total_tokens: int = 0


class AssistantMessage(Open):
    """A reply, or what a chunk adds to it."""

    role: str = "assistant"
    content: str | None = None
    refusal: str | None = None


class Choice(Open):
    """One reply to a prompt: `message` of a whole chat reply, `delta` of a chunk, else `text`."""

    index: int = 0
    message: AssistantMessage | None = None
    delta: AssistantMessage | None = None
    text: str | None = None
    logprobs: Any = None
    finish_reason: str | None = None


class Source(Open):
    """Which memory answered; our own field of a reply."""

    memory: str
    """Its name; empty for the base."""
    adapter: str
    """Its content id; empty for the base."""
    routed: bool
    """Whether `auto` was requested."""


class Completion(Open):
    """A reply to POST /v1/chat/completions or /v1/completions, or a chunk of one."""

    id: str = ""
    object: str = ""
    created: int = 0
    model: str = ""
    """The name of what answered, as the client may request it: a memory's, or the base's."""
    choices: list[Choice]
    usage: Usage | None = None
    lorewright: Source | None = None


def event(data: bytes) -> bytes:
    """A server-sent event."""
    return b"data: " + data + b"\n\n"


DONE = event(b"[DONE]")
"""The last event of a stream."""


class TokenText(NamedTuple):
    """A generated token as text, with its log-probability in nats and the best alternatives."""

    text: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Delta:
    """What one choice gained since its last delta."""

    index: int
    text: str
    tokens: tuple[TokenText, ...] = ()
    """Empty unless log-probabilities were requested."""
    finish_reason: str | None = None
    first: bool = False
    """Whether the choice begins with it."""


@dataclass(frozen=True)
class ReplyFormat:
    """What all parts of one reply have in common, and how they are put into the protocol's form."""

    model: str
    source: Source
    chat: bool
    logprobs: bool
    """Whether log-probabilities were requested."""
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, deltas: Iterable[Delta], usage: Usage) -> Completion:
        """The reply in one piece; the deltas of each choice in order."""
        by_index: dict[int, list[Delta]] = {}
        for delta in deltas:
            by_index.setdefault(delta.index, []).append(delta)
        choices = []
        for index, parts in sorted(by_index.items()):
            text = "".join(part.text for part in parts)
            tokens = tuple(token for part in parts for token in part.tokens)
            message = {"message": AssistantMessage(role="assistant", content=text, refusal=None)}
            choices.append(
                self._choice(Delta(index, text, tokens, parts[-1].finish_reason), message)
            )
        return self._completion("chat.completion", choices, usage=usage)

    def chunk(self, delta: Delta) -> Completion:
        """A chunk with what one choice gained."""
        added: dict[str, Any] = {"role": "assistant", "refusal": None} if delta.first else {}
        if delta.text or delta.tokens or delta.first:
            added["content"] = delta.text
        choice = self._choice(delta, {"delta": AssistantMessage(**added)})
        return self._completion("chat.completion.chunk", [choice])

    def ending(self, usage: Usage) -> Completion:
        """The chunk after the last one, which counts the tokens."""
        return self._completion("chat.completion.chunk", [], usage=usage)

    def _choice(self, delta: Delta, chat: dict[str, Any]) -> Choice:
        return Choice(
            index=delta.index,
            **(chat if self.chat else {"text": delta.text}),
            logprobs=self._logprobs(delta.tokens) if self.logprobs else None,
            finish_reason=delta.finish_reason,
        )

    def _completion(self, kind: str, choices: list[Choice], **more: Any) -> Completion:
        return Completion(
            id=f"chatcmpl-{self.id}" if self.chat else f"cmpl-{self.id}",
            object=kind if self.chat else "text_completion",
            created=self.created,
            model=self.model,
            choices=choices,
            lorewright=self.source,
            **more,
        )

    def _logprobs(self, tokens: Sequence[TokenText]) -> dict[str, Any]:
        if self.chat:
            entries = []
            for token in tokens:
                top = [_token(text, logprob) for text, logprob in token.top]
                entries.append({**_token(token.text, token.logprob), "top_logprobs": top})
            return {"content": entries, "refusal": None}
        offsets = [sum(len(t.text) for t in tokens[:i]) for i in range(len(tokens))]
        return {
            "tokens": [token.text for token in tokens],
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [dict(token.top) for token in tokens],
            "text_offset": offsets,
        }


def _token(text: str, logprob: float) -> dict[str, Any]:
    return {"token": text, "logprob": logprob, "bytes": list(text.encode())}
