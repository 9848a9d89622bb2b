"""The OpenAI protocol as data: what is asked, and what is refused and how.

Requests are frozen dataclasses that refuse what no part of the server does, in one sentence and
with the parameter's name; nothing that was asked for is dropped in silence. This room knows the
protocol's questions; `reply` knows its answers. Neither knows HTTP servers, models or folders.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from lorewright.errors import (
    AdapterError,
    ConfigError,
    LorewrightError,
    ModelError,
    StorageError,
    UnknownMemory,
)

MAX_CHOICES = 8
MAX_STOPS = 4
MAX_TOP_LOGPROBS = 20
MAX_LEGACY_LOGPROBS = 5
LEGACY_TOKENS = 16
"""What `/v1/completions` generates unless it is told otherwise; OpenAI's own default."""
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "presence_penalty": (None, 0),
    "frequency_penalty": (None, 0),
    "logit_bias": (None, {}),
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "functions": (None, []),
    "function_call": (None, "none", "auto"),
    "response_format": (None, {"type": "text"}),
    "modalities": (None, ["text"]),
    "audio": (None,),
    "prediction": (None,),
    "web_search_options": (None,),
    "echo": (None, False),
    "suffix": (None, ""),
    "best_of": (None, 1),
}
"""Parameters of the protocol that are not supported, and the values that ask for nothing."""


class Refused(LorewrightError):
    """A request that gets an error object instead of a reply."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after_seconds: int | None = None,
    ) -> None:
        """Say why, with the HTTP status; `retry_after_seconds` where asking again may help."""
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param
        self.retry_after_seconds = retry_after_seconds

    @property
    def headers(self) -> dict[str, str]:
        """What goes with the error object."""
        found = {"retry-after": str(self.retry_after_seconds)} if self.retry_after_seconds else {}
        return found | ({"www-authenticate": "Bearer"} if self.status == 401 else {})

    def to_json(self) -> dict[str, Any]:
        """The error object, in OpenAI's shape."""
        kind = KINDS.get(self.status, "server_error" if self.status >= 500 else KINDS[400])
        about = {"message": str(self), "type": kind, "param": self.param, "code": self.code}
        return {"error": about}


KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
}
"""`type` of the error object by status; all other 4xx are invalid requests, 5xx server errors."""


def refusal_of(error: LorewrightError) -> Refused:
    """What a client is told of an error of this library."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, UnknownMemory):
        return Refused(404, str(error), code="model_not_found", param="model")
    if isinstance(error, AdapterError | StorageError):
        return Refused(503, str(error), code="memory_unavailable", param="model")
    if isinstance(error, ModelError):
        return Refused(503, str(error), code="engine_failed", retry_after_seconds=5)
    return Refused(400, str(error))


# --- asked ---------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Part:
    """A piece of a message's content."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}
    type: Literal["text"]
    text: str


@dataclass(frozen=True, kw_only=True)
class Message:
    """One turn of a conversation."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part]
    name: str | None = None
    """Taken and not used: templates have no place for it."""

    @property
    def text(self) -> str:
        """The content, its parts joined by line breaks."""
        if isinstance(self.content, str):
            return self.content
        return "\n".join(part.text for part in self.content)


@dataclass(frozen=True, kw_only=True)
class StreamOptions:
    """How a stream ends."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}
    include_usage: bool = False
    include_obfuscation: bool = False
    """Taken and not used."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What both kinds of completion can be asked for."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}
    model: str
    """A memory's name or content id, the base's id, or `auto`."""
    max_tokens: int | None = None
    temperature: float | None = None
    """0 to 2; greedy unless given: a memory is asked for facts."""
    top_p: float | None = None
    seed: int | None = None
    n: int | None = None
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    ignore_eos: bool | None = None
    """Generate up to max_tokens whatever comes: for measuring, as other engines have it."""
    user: str | None = None
    """Taken and not used, like the four below."""
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None

    def __post_init__(self) -> None:
        """Raise ValueError for a value outside its range and for what is not supported."""
        for name, low, high in (
            ("max_tokens", 1, math.inf),
            ("temperature", 0, 2),
            ("top_p", 0, 1),
            ("n", 1, MAX_CHOICES),
            ("seed", -(2**63), 2**63 - 1),
        ):
            in_range(name, vars(self)[name], low, high)
        if len(self.stops) > MAX_STOPS or not all(self.stops):
            raise OutOfRange("stop", f"stop takes up to {MAX_STOPS} texts that are not empty")
        if self.stream_options is not None and not self.stream:
            raise OutOfRange("stream_options", "stream_options needs stream to be true")
        for name, neutral in NEUTRAL.items():
            if vars(self).get(name) not in neutral:
                raise OutOfRange(name, f"{name} is not supported; leave it out")
        try:
            for text in self.texts():
                text.encode()
        except UnicodeEncodeError as error:
            raise ConfigError("a text holds half a surrogate pair; send valid Unicode.") from error

    @property
    def stops(self) -> tuple[str, ...]:
        """Texts that end the reply and are not part of it."""
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def n_choices(self) -> int:
        """Replies to each prompt."""
        return self.n or 1

    @property
    def budget(self) -> int | None:
        """Most tokens to generate; None = not said."""
        return self.max_tokens

    @property
    def n_top(self) -> int | None:
        """Alternatives to list for each token; None = no log-probabilities."""
        raise NotImplementedError

    @property
    def with_usage(self) -> bool:
        """Whether a stream ends with a chunk that counts the tokens."""
        return self.stream_options is not None and self.stream_options.include_usage

    def texts(self) -> Iterator[str]:
        """Every text that will be encoded or sent back."""
        yield self.model
        yield from self.stops

    def question(self) -> str:
        """What `auto` routes by."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class ChatAsked(Asked):
    """The body of POST /v1/chat/completions."""

    messages: list[Message]
    max_completion_tokens: int | None = None
    """The newer name of max_tokens; one of the two."""
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: list[Any] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    """Taken and not used, like reasoning_effort, verbosity and prompt_cache_key."""
    reasoning_effort: str | None = None
    verbosity: str | None = None
    prompt_cache_key: str | None = None
    functions: list[Any] | None = None
    function_call: Any = None
    response_format: Any = None
    modalities: list[str] | None = None
    audio: Any = None
    prediction: Any = None
    web_search_options: Any = None

    def __post_init__(self) -> None:
        """Raise ValueError as the class above does, and for a conversation without a question."""
        super().__post_init__()
        in_range("max_completion_tokens", self.max_completion_tokens, 1, math.inf)
        in_range("top_logprobs", self.top_logprobs, 0, MAX_TOP_LOGPROBS)
        if None not in (self.max_tokens, self.max_completion_tokens):
            raise OutOfRange("max_tokens", "give max_tokens or max_completion_tokens, not both")
        if self.top_logprobs and not self.logprobs:
            raise OutOfRange("top_logprobs", "top_logprobs needs logprobs to be true")
        if not self.messages or self.messages[-1].role != "user":
            raise OutOfRange("messages", "messages must end with a turn of role user")
        if not self.messages[-1].text.strip():
            raise OutOfRange("messages", "the last message is empty; ask something")

    @property
    def budget(self) -> int | None:
        """Most tokens to generate; None = not said."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def n_top(self) -> int | None:
        """Alternatives to list for each token; None = no log-probabilities."""
        return (self.top_logprobs or 0) if self.logprobs else None

    def texts(self) -> Iterator[str]:
        """Every text that will be encoded or sent back."""
        yield from super().texts()
        yield from (message.text for message in self.messages)

    def question(self) -> str:
        """What `auto` routes by: the last turn."""
        return self.messages[-1].text


@dataclass(frozen=True, kw_only=True)
class TextAsked(Asked):
    """The body of POST /v1/completions."""

    prompt: str | list[str] | list[int] | list[list[int]]
    logprobs: int | None = None
    echo: bool | None = None
    suffix: str | None = None
    best_of: int | None = None

    def __post_init__(self) -> None:
        """Raise ValueError as the class above does, and for no prompt or too many."""
        super().__post_init__()
        in_range("logprobs", self.logprobs, 0, MAX_LEGACY_LOGPROBS)
        if not self.prompts or not all(self.prompts):
            raise OutOfRange("prompt", "prompt must be a text, or a list of some; none empty")
        if len(self.prompts) * self.n_choices > MAX_CHOICES:
            raise OutOfRange("prompt", f"at most {MAX_CHOICES} replies are made at once")

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """Texts or token ids, one for each prompt."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        ids = [each for each in self.prompt if isinstance(each, int)]
        if ids:
            return [ids]
        return self.prompt  # type: ignore[return-value]  # a list of ints was the case above

    @property
    def budget(self) -> int | None:
        """Most tokens to generate."""
        return self.max_tokens or LEGACY_TOKENS

    @property
    def n_top(self) -> int | None:
        """Alternatives to list for each token; None = no log-probabilities."""
        return self.logprobs

    def texts(self) -> Iterator[str]:
        """Every text that will be encoded or sent back."""
        yield from super().texts()
        yield from (each for each in self.prompts if isinstance(each, str))

    def question(self) -> str:
        """What `auto` routes by: the prompt, if it is a single text."""
        if len(self.prompts) != 1 or not isinstance(self.prompts[0], str):
            raise Refused(400, "model auto needs one prompt as text", param="prompt")
        return self.prompts[0]


class OutOfRange(ConfigError):
    """A parameter whose value cannot be used."""

    def __init__(self, param: str, message: str) -> None:
        """Say what is wrong with it, without the full stop."""
        super().__init__(f"{message}.")
        self.param = param


def in_range(name: str, value: float | None, low: float, high: float) -> None:
    """Raise OutOfRange unless the value is None or within the bounds; NaN is outside."""
    if value is not None and not low <= value <= high:
        bounds = f"at least {low}" if high == math.inf else f"from {low} to {high}"
        raise OutOfRange(name, f"{name} must be {bounds}; found {value}")
