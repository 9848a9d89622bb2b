"""Replies of another server: vLLM, SGLang, llama.cpp's, or this one, behind the same front.

A memory is loaded there under its content id, never under its name: names change hands, and an
engine that stores adapters by name would answer from an old one. Replies are passed on with the
client's own name for the model.

    vLLM, lorewright    POST /v1/load_lora_adapter, /v1/unload_lora_adapter; model = content id
    SGLang              POST /load_lora_adapter, /unload_lora_adapter; lora_path = content id
    llama.cpp           GET /lora-adapters; lora = [{id, scale}], adapters loaded at its start
    openai              any server with these paths: the base alone

No model and no tensors are loaded here.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import httpx
from pydantic import ValidationError

from lorewright.errors import ConfigError
from lorewright.serve.config import ServeConfig
from lorewright.serve.loads import Loads
from lorewright.serve.metrics import Metrics
from lorewright.serve.protocol import (
    APIError,
    ChatRequest,
    GenerationRequest,
    TextRequest,
    check_token_limit,
    redacted,
    unavailable,
)
from lorewright.serve.registry import AUTO, Registry, Target
from lorewright.serve.replies import Completion

READY_SECONDS = 5
"""Longest time that the engine may take to show that it is there."""
PASSED_ON = {400: 400, 413: 413, 422: 400, 429: 429, 503: 503}
"""The engine's statuses that are passed on, and as what; all others are 502."""
QUOTED_CHARS = 300
"""How much of the engine's own message is quoted, in characters."""


@dataclass(frozen=True)
class EngineAPI:
    """How one kind of server takes adapters."""

    load: str = ""
    """Path that loads one by name and path; empty = it cannot."""
    unload: str = ""
    listing: str = ""
    """Path that lists the adapters it was started with, where it cannot load any."""
    fields: Callable[[str, str], dict[str, Any]] = lambda base, adapter_id: {"model": adapter_id}
    """The fields that name an adapter in a request, from the base's name there and its id."""


class Upstream:
    """Replies of another server."""

    def __init__(
        self,
        registry: Registry,
        config: ServeConfig,
        metrics: Metrics,
        model: object,
        *,
        engine: str,
    ) -> None:
        """`engine` is an entry of ENGINES, empty = as the server reports; no `model` is needed.

        Raises ConfigError without an address.
        """
        if not config.engine_url.startswith(("http://", "https://")):
            url = config.engine_url
            raise ConfigError(f"engine URL {url!r} is no address; write http://HOST:PORT.")
        self.registry = registry
        self.metrics = metrics
        self.url = config.engine_url.rstrip("/").removesuffix("/v1")
        self.engine = engine
        self.max_tokens = config.max_tokens
        self.seconds = config.seconds
        self._key = config.engine_key
        self._base = ""
        self._loaded: Loads[None] = Loads()
        self._n_users = Counter[str]()
        self._client: httpx.AsyncClient | None = None
        self._n_requests = 0
        self._unloading: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Open connections; the engine may come later."""
        self._client = httpx.AsyncClient(
            base_url=self.url,
            headers={"authorization": f"Bearer {self._key}"} if self._key else {},
            timeout=httpx.Timeout(self.seconds, connect=min(10.0, self.seconds)),
            limits=httpx.Limits(max_connections=None),
        )

    async def stop(self) -> None:
        """Close the connections."""
        if self._client is not None:
            await self._client.aclose()

    async def trouble(self) -> str:
        """Return why no request can be answered now, after asking the engine."""
        try:
            async with asyncio.timeout(READY_SECONDS):
                await self._json("GET", "/v1/models")
        except APIError as error:
            return str(error)
        except TimeoutError:
            return f"the engine sent no reply within {READY_SECONDS} s"
        return ""

    def gauges(self) -> dict[str, float]:
        """Return how many adapters were loaded and requests sent."""
        return {"adapters_loaded": len(self._loaded), "requests_forwarded": self._n_requests}

    def drop_unnamed(self) -> None:
        """Have the engine unload adapters that have no name any more and no user."""
        named = set(self.registry.names.values())
        for adapter_id in [i for i in self._loaded if i not in named and not self._n_users[i]]:
            del self._loaded[adapter_id]
            task = asyncio.create_task(self._unload(adapter_id, ENGINES[self.engine]))
            self._unloading.add(task)
            task.add_done_callback(self._unloading.discard)

    async def load(self, adapter_id: str) -> None:
        """Have the engine load an adapter."""
        async with self._using(adapter_id):
            pass

    async def complete(self, request: GenerationRequest, target: Target) -> Completion:
        """Return a reply in one piece."""
        async with self._send(request, target) as response:
            completion = _parse(await response.aread())
        for choice in completion.choices:
            if choice.message and choice.message.content:  # as local replies are
                choice.message.content = choice.message.content.strip()
        return self._finished(completion, target)

    async def stream(self, request: GenerationRequest, target: Target) -> AsyncIterator[Completion]:
        """Yield a reply in chunks."""
        begun: set[int] = set()
        async with self._send(request, target) as response:
            async for line in response.aiter_lines():
                data = line.removeprefix("data:").strip()
                if not line.startswith("data:") or data == "[DONE]":
                    continue
                chunk = _parse(data)
                for choice in chunk.choices:
                    if choice.delta and choice.delta.content and choice.index not in begun:
                        choice.delta.content = choice.delta.content.lstrip()
                        if choice.delta.content:
                            begun.add(choice.index)
                yield self._finished(chunk, target)

    def _finished(self, completion: Completion, target: Target) -> Completion:
        """The reply or chunk with the client's name for the model; its tokens counted."""
        if completion.usage is not None:
            self.metrics.count_tokens(completion.usage)
        return completion.model_copy(update={"model": target.name, "lorewright": target.source})

    # -- requests to the engine ------------------------------------------------------------------

    @asynccontextmanager
    async def _send(
        self, request: GenerationRequest, target: Target
    ) -> AsyncIterator[httpx.Response]:
        """The engine's response, its status checked; once more if it lost the adapter."""
        path = "/v1/chat/completions" if isinstance(request, ChatRequest) else "/v1/completions"
        for attempt in (1, 2):
            async with self._using(target.adapter_id) as fields:
                body = self._body(request) | fields
                async with self._request("POST", path, body) as response:
                    if attempt == 1 and await self._lost(response, target.adapter_id):
                        continue
                    await _check(response)
                    yield response
                    return

    async def _lost(self, response: httpx.Response, adapter_id: str) -> bool:
        """Whether the engine no longer knows an adapter that it had loaded: it was restarted."""
        if adapter_id not in self._loaded or response.status_code not in (400, 404):
            return False
        if response.status_code == 400 and adapter_id.encode() not in await response.aread():
            return False
        del self._loaded[adapter_id]
        return True

    def _body(self, request: GenerationRequest) -> dict[str, Any]:
        """The request as it is passed on: greedy and within the limit unless it is explicit."""
        check_token_limit(request.token_limit, self.max_tokens)
        unused = {"model", "max_completion_tokens"}
        body = request.model_dump(mode="json", exclude_unset=True, exclude=unused)
        if isinstance(request, TextRequest) and len(request.prompt) == 1:
            body["prompt"] = request.prompt[0]
        return {"temperature": 0, **body, "max_tokens": request.token_limit or self.max_tokens}

    @asynccontextmanager
    async def _request(
        self, method: str, path: str, body: Mapping[str, Any] | None = None
    ) -> AsyncIterator[httpx.Response]:
        assert self._client is not None
        self._n_requests += 1
        try:
            async with self._client.stream(method, path, json=body) as response:
                yield response
        except httpx.TimeoutException as error:
            raise APIError(
                504, f"the engine sent no reply within {self.seconds:g} s.", code="timeout"
            ) from error
        except httpx.HTTPError as error:
            raise APIError(
                503,
                "the engine cannot be reached; start it, or correct --engine-url.",
                code="engine_unavailable",
                retry_after_seconds=5,
                detail=f"{self.url} cannot be reached: {error or type(error).__name__}",
            ) from error

    async def _json(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        async with self._request(method, path, body) as response:
            await _check(response)
            await response.aread()
            try:
                return response.json()
            except ValueError:
                return None  # vLLM confirms in plain text

    # -- adapters there ----------------------------------------------------------------------------

    @asynccontextmanager
    async def _using(self, adapter_id: str) -> AsyncIterator[dict[str, Any]]:
        """Have an adapter loaded inside the block; yields the fields that name it."""
        await self._identify()
        api = ENGINES[self.engine]
        if api.listing:
            yield {"model": self._base, **await self._scales(api.listing, adapter_id)}
            return
        if not adapter_id:
            yield {"model": self._base}
            return
        if not api.load:
            raise unavailable(
                f"an engine of kind {self.engine} takes no adapters; use {self.registry.base!r}."
            )
        self._n_users[adapter_id] += 1
        try:
            await self._loaded.load(adapter_id, partial(self._load, adapter_id, api))
            yield api.fields(self._base, adapter_id)
        finally:
            self._n_users[adapter_id] -= 1
            self.drop_unnamed()

    async def _identify(self) -> None:
        """Learn once which engine it is and what its base is called there."""
        if self._base:
            return
        listing = await self._json("GET", "/v1/models")
        try:
            models = [m for m in listing["data"] if not m.get("parent") and m["id"] != AUTO]
            owner, base = str(models[0].get("owned_by", "")), str(models[0]["id"])
        except (TypeError, KeyError, IndexError, AttributeError) as error:
            raise _bad_reply("its /v1/models lists no base model") from error
        self.engine = self.engine or (owner if owner in ENGINES else "openai")
        self._base = base

    async def _load(self, adapter_id: str, api: EngineAPI) -> None:
        body = {"lora_name": adapter_id, "lora_path": str(self.registry.path(adapter_id))}
        try:
            await self._json("POST", api.load, body)
        except APIError as error:
            if "already" in str(error):  # loaded before this server was started
                return
            if error.code in ("timeout", "engine_unavailable"):
                raise
            raise unavailable(
                f"the engine did not load adapter {adapter_id} ({str(error).rstrip('.')}); it must "
                "see this folder, take adapters while it runs (vLLM: --enable-lora and "
                "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True), and take this rank."
            ) from error

    async def _unload(self, adapter_id: str, api: EngineAPI) -> None:
        with suppress(APIError):  # it is gone, or the engine is: it is not served either way
            await self._json("POST", api.unload, {"lora_name": adapter_id})

    async def _scales(self, path: str, adapter_id: str) -> dict[str, Any]:
        """Scales of the adapters that llama.cpp was started with: 1 for this one, 0 for others.

        Its prompt cache does not distinguish the adapters that prompts were read with (build 11549
        of October 2026), so no request may use it.
        """
        scales = [
            {"id": each["id"], "scale": float(bool(adapter_id) and adapter_id in str(each["path"]))}
            for each in await self._json("GET", path) or ()
        ]
        if adapter_id and sum(each["scale"] for each in scales) != 1:
            raise unavailable(
                f"llama.cpp was not started with adapter {adapter_id}; write it with lore export "
                f"FOLDER/NAME --to gguf, and give llama-server --lora NAME-{adapter_id}.gguf too."
            )
        return {"lora": scales, "cache_prompt": False}


def _parse(data: str | bytes) -> Completion:
    """A reply or chunk of the engine. Raises APIError 502 for an error or anything else."""
    try:
        return Completion.model_validate_json(data)
    except ValidationError as invalid:
        try:
            message = _message(json.loads(data)["error"])
        except (ValueError, TypeError, KeyError) as error:
            raise _bad_reply("it sent no completion") from error
        raise _bad_reply(message) from invalid


def _message(error: Any) -> str:
    """The engine's own message, shortened and without its paths."""
    message = error.get("message", error) if isinstance(error, dict) else error
    return redacted(str(message))[:QUOTED_CHARS]


def _bad_reply(reason: str) -> APIError:
    return APIError(502, f"the engine's reply cannot be used: {reason}.", code="bad_engine_answer")


async def _check(response: httpx.Response) -> None:
    """Pass on what the engine refuses; what it cannot do is not the client's fault."""
    if response.is_success:
        return
    text = (await response.aread()).decode(errors="replace")
    try:
        content = json.loads(text)
        quoted = _message(content.get("error", content))
    except (ValueError, AttributeError):
        quoted = _message(text)
    status = response.status_code
    if status in (401, 403):
        raise APIError(502, "the engine wants another key; set LOREWRIGHT_ENGINE_KEY.")
    retry = 1 if status in (429, 503) else None
    message = f"the engine answered with status {status}: {quoted}"
    raise APIError(PASSED_ON.get(status, 502), message, retry_after_seconds=retry)


ENGINES: dict[str, EngineAPI] = {
    "vllm": EngineAPI("/v1/load_lora_adapter", "/v1/unload_lora_adapter"),
    "lorewright": EngineAPI("/v1/load_lora_adapter", "/v1/unload_lora_adapter"),
    "sglang": EngineAPI(
        "/load_lora_adapter",
        "/unload_lora_adapter",
        fields=lambda base, adapter_id: {"model": base, "lora_path": adapter_id},
    ),
    "llamacpp": EngineAPI(listing="/lora-adapters"),
    "openai": EngineAPI(),
}
"""The servers that can be upstream, by the `owned_by` that they report."""
