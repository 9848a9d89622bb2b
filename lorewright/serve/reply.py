"""The OpenAI protocol's answers: whole replies, parts of streams, events; all as plain dicts.

This room knows what has been generated, as text. It knows nothing of who generates it.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Spelled:
    """A generated token as text, with its alternatives."""

    text: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Delta:
    """What one choice gained since it was last heard of."""

    index: int
    text: str
    spelled: tuple[Spelled, ...] = ()
    finish: str | None = None


@dataclass(frozen=True)
class Reply:
    """What all parts of one reply have in common."""

    model: str
    """What answered, by the name that the client may use: a memory's, or the base's."""
    about: Mapping[str, Any]
    """Ours, under `lorewright`: which memory, its content id, whether it was routed, how sure."""
    chat: bool
    spells: bool
    """Whether log-probabilities were asked for."""
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, deltas: Iterable[Delta], usage: Mapping[str, int]) -> dict[str, Any]:
        """The reply as one object; `deltas` of a choice in order."""
        by_index: dict[int, list[Delta]] = {}
        for delta in deltas:
            by_index.setdefault(delta.index, []).append(delta)
        choices = []
        for index, parts in sorted(by_index.items()):
            text = "".join(part.text for part in parts)
            spelled = [each for part in parts for each in part.spelled]
            said: dict[str, Any] = {"text": text}
            if self.chat:
                said = {"message": {"role": "assistant", "content": text, "refusal": None}}
            ending = {"logprobs": self._logprobs(spelled), "finish_reason": parts[-1].finish}
            choices.append({"index": index, **said, **ending})
        return self._object("chat.completion", choices) | {"usage": dict(usage)}

    def opening(self, n_choices: int) -> Iterator[dict[str, Any]]:
        """What a stream begins with: for chat, who speaks."""
        for index in range(n_choices if self.chat else 0):
            delta = {"role": "assistant", "content": "", "refusal": None}
            yield self._chunk(index, {"delta": delta}, None, None)

    def chunk(self, delta: Delta) -> dict[str, Any]:
        """One part of a stream."""
        said: dict[str, Any] = {"text": delta.text}
        if self.chat:
            said = {"delta": {"content": delta.text} if delta.text or delta.spelled else {}}
        logprobs = self._logprobs(delta.spelled) if delta.spelled else None
        return self._chunk(delta.index, said, logprobs, delta.finish)

    def ending(self, usage: Mapping[str, int]) -> dict[str, Any]:
        """The last part of a stream, which counts the tokens."""
        return self._object("chat.completion.chunk", []) | {"usage": dict(usage)}

    def _chunk(
        self, index: int, said: Mapping[str, Any], logprobs: Any, finish: str | None
    ) -> dict[str, Any]:
        choice = {"index": index, **said, "logprobs": logprobs, "finish_reason": finish}
        return self._object("chat.completion.chunk", [choice])

    def _object(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": f"chatcmpl-{self.id}" if self.chat else f"cmpl-{self.id}",
            "object": kind if self.chat else "text_completion",
            "created": self.created,
            "model": self.model,
            "choices": choices,
            "lorewright": dict(self.about),
        }

    def _logprobs(self, spelled: Sequence[Spelled]) -> dict[str, Any] | None:
        if not self.spells:
            return None
        if self.chat:
            return {"content": [_chat_token(each) for each in spelled], "refusal": None}
        ends = [len(each.text) for each in spelled]
        return {
            "tokens": [each.text for each in spelled],
            "token_logprobs": [each.logprob for each in spelled],
            "top_logprobs": [dict(each.top) for each in spelled],
            "text_offset": [sum(ends[:i]) for i in range(len(ends))],
        }


def _chat_token(spelled: Spelled) -> dict[str, Any]:
    def entry(text: str, logprob: float) -> dict[str, Any]:
        return {"token": text, "logprob": logprob, "bytes": list(text.encode())}

    top = [entry(text, logprob) for text, logprob in spelled.top]
    return {**entry(spelled.text, spelled.logprob), "top_logprobs": top}


def usage(n_prompt: int, n_completion: int) -> dict[str, int]:
    """Tokens read and generated."""
    total = n_prompt + n_completion
    return {
        "prompt_tokens": n_prompt,
        "completion_tokens": n_completion,
        "total_tokens": total,
    }


def event(data: Mapping[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(data, ensure_ascii=False).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"
"""What a stream ends with."""
