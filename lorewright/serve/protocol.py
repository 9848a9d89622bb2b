"""The OpenAI protocol's requests and errors, as pydantic models.

A request that needs what this server lacks is an `APIError` that names the field; null asks for
the default, whatever the field. Reference: OpenAI API, chat completions and completions.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)

from lorewright.errors import (
    AdapterError,
    LorewrightError,
    ModelError,
    StorageError,
    UnknownMemory,
)

MAX_CHOICES = 8
MAX_STOPS = 4
MAX_TOP_LOGPROBS = 20
MAX_TEXT_LOGPROBS = 5
DEFAULT_TEXT_TOKENS = 16
"""Tokens that /v1/completions generates by default; OpenAI's own number."""
IGNORED = frozenset(
    (
        *("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"),
        *("prompt_cache_retention", "parallel_tool_calls", "reasoning_effort", "verbosity"),
    )
)
"""Fields that are accepted and change nothing here."""
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "best_of": (1,),
    "text": ({"format": {"type": "text"}},),
    "truncation": ("disabled",),
}
"""Values of fields that are not supported which ask for nothing, as empty ones do."""
ABSOLUTE_PATH = re.compile(r"(?<![\w./])/(?:[^\s/:;,()'\"]+/)+")
ADDRESS = re.compile(r"https?://[^\s,;()'\"]+")


class APIError(LorewrightError):
    """A request that is answered by an error object."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after_seconds: int | None = None,
        detail: str = "",
    ) -> None:
        """`detail` goes to the server's log only; `retry_after_seconds` where a retry may help."""
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param
        self.retry_after_seconds = retry_after_seconds
        self.detail = detail

    @property
    def headers(self) -> dict[str, str]:
        """HTTP headers beside the error object."""
        seconds = self.retry_after_seconds
        headers = {"retry-after": str(seconds)} if seconds else {}
        return headers | ({"www-authenticate": "Bearer"} if self.status == 401 else {})

    def to_json(self) -> dict[str, Any]:
        """The error object, in OpenAI's shape."""
        types = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
        default = "server_error" if self.status >= 500 else "invalid_request_error"
        kind = types.get(self.status, default)
        return {
            "error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}
        }


def unknown_model(message: str, param: str = "model") -> APIError:
    """The error for a name that is not served."""
    return APIError(404, message, code="model_not_found", param=param)


def unavailable(message: str, detail: str = "") -> APIError:
    """The error for a memory that cannot be served now."""
    return APIError(503, message, code="memory_unavailable", param="model", detail=detail)


def too_many(what: str) -> APIError:
    """The error for a request beyond a limit on how many there may be at once."""
    message = f"{what}; try again later."
    return APIError(429, message, code="rate_limit_exceeded", retry_after_seconds=1)


def redacted(message: str, folder: Path | None = None) -> str:
    """The message without paths of this machine and addresses of engines; `folder` is served."""
    if folder is not None:
        message = message.replace(f"{folder}/", "").replace(str(folder), "the folder")
    return ABSOLUTE_PATH.sub("", ADDRESS.sub("the engine's address", message))


def api_error(error: LorewrightError, folder: Path) -> APIError:
    """The error object for an error of this library; the log gets the message as it was."""
    if isinstance(error, APIError):
        return error
    public, detail = redacted(str(error), folder), str(error)
    if isinstance(error, UnknownMemory):
        return unknown_model(public)
    if isinstance(error, AdapterError | StorageError):
        return unavailable(public, detail)
    if isinstance(error, ModelError):
        return APIError(503, public, code="engine_failed", retry_after_seconds=5, detail=detail)
    return APIError(400, public, detail=detail)


def validation_error(errors: Sequence[Mapping[str, Any]]) -> APIError:
    """The error object for what pydantic reports first."""
    first = errors[0]
    cause = first.get("ctx", {}).get("error")
    path = [str(part) for part in first["loc"] if part != "body"]
    if first["type"] == "json_invalid":
        return APIError(400, f"the body is not valid JSON ({cause}).")
    if isinstance(cause, InvalidField):
        param = ".".join([*path, cause.param] if cause.param else path)
        return APIError(400, f"{cause}.", param=param)
    if not path:
        return APIError(400, "the body must be a JSON object, with content-type application/json.")
    where = ".".join(path)
    if first["type"] == "extra_forbidden":
        return APIError(400, f"{where} is not supported; leave it out.", param=where)
    return APIError(400, f"{where}: {first['msg']}.", param=where)


class InvalidField(ValueError):
    """A value that the request may not have; `param` is where below the validated object."""

    def __init__(self, param: str, message: str) -> None:
        super().__init__(message)
        self.param = param


def _encodable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidField("", "a text holds half a surrogate pair; send valid Unicode") from error
    return text


Text = Annotated[str, AfterValidator(_encodable)]


# --- requests -----------------------------------------------------------------------------------


class Body(BaseModel):
    """A JSON object. Null means absent; a field that is not supported must be empty or neutral."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    ignored: ClassVar[frozenset[str]] = frozenset()

    @model_validator(mode="before")
    @classmethod
    def _drop_neutral(cls, data: Any) -> Any:
        """Drop what asks for nothing; what is left of unsupported fields is an error."""
        if not isinstance(data, dict):
            return data
        return {
            name: value
            for name, value in data.items()
            if (value if name not in cls.model_fields else value is not None)
            and name not in cls.ignored
            and value not in NEUTRAL.get(name, ())
        }


class TextPart(Body):
    """A part of a message's content; no other type is supported."""

    type: Literal["text"]
    text: Text


def _joined(content: Any) -> Any:
    """The text of content parts, joined by line breaks."""
    if not isinstance(content, list):
        return content
    for number, part in enumerate(content):
        if isinstance(part, dict) and part.get("type") != "text":
            kind = str(part.get("type"))[:40]
            raise InvalidField(f"{number}", f"content of type {kind!r} is not supported; send text")
    return "\n".join(TextPart.model_validate(part).text for part in content)


class Message(Body):
    """One message of a conversation."""

    ignored = frozenset(("name",))
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[Text, BeforeValidator(_joined, str | list[TextPart])] = ""
    tool_calls: list[dict[str, Any]] = []
    """Calls by an assistant in an earlier turn; the base's chat template must show them."""
    tool_call_id: str | None = None

    @model_validator(mode="after")
    def _has_content(self) -> Self:
        if "content" not in self.model_fields_set and not self.tool_calls:
            raise InvalidField("content", "a message needs content")
        return self


class StreamOptions(Body):
    """What a stream contains beside the reply."""

    ignored = frozenset(("include_obfuscation",))
    include_usage: bool = False


class _Request(Body):
    """What both kinds of completion have in common."""

    ignored = IGNORED
    model: Text
    """A memory's name or content id, the base's id, or `auto`."""
    max_tokens: int | None = Field(None, ge=1)
    temperature: float = Field(0.0, ge=0, le=2)
    """Greedy by default: a memory is queried for facts."""
    top_p: float = Field(1.0, ge=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), le=2**63 - 1)
    n: int = Field(1, ge=1, le=MAX_CHOICES)
    """Replies to each prompt."""
    stop: Annotated[
        tuple[Annotated[Text, Field(min_length=1)], ...],
        BeforeValidator(lambda s: (s,) if isinstance(s, str) else s, str | list[str]),
        Field(max_length=MAX_STOPS),
    ] = ()
    """Texts that end the reply and are not part of it."""
    stream: bool = False
    stream_options: StreamOptions | None = None
    ignore_eos: bool = False
    """Generate max_tokens tokens whatever they are, as other engines have it: for measuring."""

    @property
    def token_limit(self) -> int | None:
        """Most tokens to generate; None = as many as the server allows."""
        return self.max_tokens

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a chunk that counts the tokens."""
        return self.stream_options is not None and self.stream_options.include_usage

    @model_validator(mode="after")
    def _check_stream_options(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise InvalidField("stream_options", "stream_options needs stream to be true")
        return self


class ChatRequest(_Request):
    """The body of POST /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    """The newer name of max_tokens."""
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=MAX_TOP_LOGPROBS)

    @model_validator(mode="after")
    def _check_fields_together(self) -> Self:
        if None not in (self.max_tokens, self.max_completion_tokens):
            raise InvalidField("max_tokens", "give max_tokens or max_completion_tokens, not both")
        if self.top_logprobs and not self.logprobs:
            raise InvalidField("top_logprobs", "top_logprobs needs logprobs to be true")
        last = self.messages[-1]
        if last.role not in ("user", "tool"):
            raise InvalidField("messages", "messages must end with one of role user")
        if not last.content.strip():
            raise InvalidField("messages", "the last message is empty; write a question")
        return self

    @property
    def token_limit(self) -> int | None:
        """Most tokens to generate; None = as many as the server allows."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def n_top(self) -> int | None:
        """Alternatives to list for each token; None = no log-probabilities."""
        return self.top_logprobs if self.logprobs else None

    def question(self) -> str:
        """The text that `auto` routes by: the last message."""
        return self.messages[-1].content


def _prompts(prompt: Any, validate: ValidatorFunctionWrapHandler) -> Any:
    """One prompt as a list of one; every prompt a text or token ids, none of them empty."""
    if isinstance(prompt, str) or (isinstance(prompt, list) and isinstance((*prompt, "")[0], int)):
        prompt = [prompt]
    try:
        prompts = validate(prompt)
    except ValidationError as error:
        raise InvalidField("", "prompt must be a text, token ids, or a list of either") from error
    if not prompts or not all(prompts):
        raise InvalidField("", "prompt must not be empty")
    return prompts


class TextRequest(_Request):
    """The body of POST /v1/completions."""

    prompt: Annotated[list[Text | list[int]], WrapValidator(_prompts)]
    """Texts or token ids, one for each prompt."""
    max_tokens: int = Field(DEFAULT_TEXT_TOKENS, ge=1)
    logprobs: int | None = Field(None, ge=0, le=MAX_TEXT_LOGPROBS)

    @model_validator(mode="after")
    def _check_replies(self) -> Self:
        if len(self.prompt) * self.n > MAX_CHOICES:
            raise InvalidField("prompt", f"at most {MAX_CHOICES} replies are generated at once")
        return self

    @property
    def n_top(self) -> int | None:
        """Alternatives to list for each token; None = no log-probabilities."""
        return self.logprobs

    def question(self) -> str:
        """The text that `auto` routes by: the prompt, if it is a single text."""
        if len(self.prompt) != 1 or not isinstance(self.prompt[0], str):
            raise APIError(400, "model auto needs one prompt as text.", param="prompt")
        return self.prompt[0]


GenerationRequest = ChatRequest | TextRequest


def check_token_limit(requested: int | None, limit: int) -> None:
    """Raise APIError 400 when more tokens were requested than the server generates."""
    if requested is not None and requested > limit:
        message = f"max_tokens is {requested}; this server generates at most {limit}; lower it."
        raise APIError(400, message, param="max_tokens")


class AddMemory(Body):
    """The body of POST /admin/memories."""

    name: str
    adapter: str
    """A content id, or a path inside the folder."""
    replace: bool = False
    """Whether a name that is in use may change its adapter."""


class LoadAdapter(Body):
    """The body of vLLM's POST /v1/load_lora_adapter."""

    lora_name: str
    lora_path: str
    load_inplace: bool = False
    """Whether a name that is in use may change its adapter."""


class UnloadAdapter(Body):
    """The body of vLLM's POST /v1/unload_lora_adapter."""

    ignored = frozenset(("lora_int_id",))
    lora_name: str
