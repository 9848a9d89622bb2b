"""Replies from another server: vLLM, SGLang, llama.cpp's, or this one, behind the same front.

A memory is loaded there under its content id, never under its name: names change hands, and an
engine that keeps adapters by name would answer from yesterday's. What comes back is handed on with
the client's own name for the model in it.

    vLLM, lorewright    POST /v1/load_lora_adapter, /v1/unload_lora_adapter; model = content id
    SGLang              POST /load_lora_adapter, /unload_lora_adapter; lora_path = content id
    llama.cpp           GET /lora-adapters; lora = [{id, scale}], adapters loaded at its start
    openai              any server with these paths: the base alone

This room knows those servers' calls. It loads no model and no tensors.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from lorewright.errors import ConfigError
from lorewright.serve.meters import Meters
from lorewright.serve.roster import Roster, Target
from lorewright.serve.wire import Asked, ChatAsked, Refused

if TYPE_CHECKING:
    import httpx

KEPT_TO_ITSELF = ("model", "user", "metadata", "store", "service_tier", "safety_identifier")
"""What is not handed on: the model is named anew, the rest has no use there."""
SAID_CHARS = 300
"""How much of the engine's own message is quoted, in characters."""


@dataclass(frozen=True)
class Dialect:
    """How one kind of server takes adapters."""

    load: str = ""
    """Path that loads one by name and path; empty = it cannot."""
    unload: str = ""
    listing: str = ""
    """Path that lists the adapters it was started with, where it cannot load any."""
    named: Callable[[str, str], dict[str, Any]] = lambda base, identity: {"model": identity}
    """The fields of a request to an adapter, from the base's name there and the content id."""


class Upstream:
    """Answers from another server."""

    def __init__(
        self,
        roster: Roster,
        url: str,
        meters: Meters,
        *,
        engine: str = "",
        key: str = "",
        max_tokens: int = 512,
        seconds: float = 120.0,
    ) -> None:
        """Say where it is; `engine` names its kind, empty asks it. Raises ConfigError."""
        if engine and engine not in ENGINES:
            raise ConfigError(f"engine {engine!r} is unknown; use one of {', '.join(ENGINES)}.")
        if not url.startswith(("http://", "https://")):
            raise ConfigError(f"{url!r} is no address; write one like http://127.0.0.1:8001.")
        self.roster = roster
        self.url = url.rstrip("/").removesuffix("/v1")
        self.meters = meters
        self.engine = engine
        self.key = key
        self.max_tokens = max_tokens
        self.seconds = seconds
        self._base = ""
        self._loaded: dict[str, asyncio.Task[None]] = {}
        self._n_users: dict[str, int] = {}
        self._client: httpx.AsyncClient | None = None
        self._n_asked = 0
        self._unloading: set[asyncio.Task[None]] = set()

    # -- what a server asks of whoever answers ---------------------------------------------------

    async def start(self) -> None:
        """Open connections; the engine may come later."""
        import httpx

        key = {"authorization": f"Bearer {self.key}"} if self.key else {}
        self._client = httpx.AsyncClient(
            base_url=self.url,
            headers=key,
            timeout=httpx.Timeout(self.seconds, connect=min(10.0, self.seconds)),
            limits=httpx.Limits(max_connections=None),
        )

    async def stop(self) -> None:
        """Close the connections."""
        if self._client is not None:
            await self._client.aclose()

    def ready(self) -> str:
        """Return why no request can be answered now: it is asked at the first request."""
        return "" if self._client is not None else "the server has ended"

    def gauges(self) -> dict[str, float]:
        """Numbers for /metrics."""
        return {"adapters_loaded": len(self._loaded), "requests_forwarded": self._n_asked}

    async def prove(self, identity: str) -> None:
        """Have the engine load an adapter."""
        async with self._using(identity):
            pass

    async def whole(self, asked: Asked, target: Target) -> dict[str, Any]:
        """Return a reply in one piece."""
        async with self._asking(asked, target) as response:
            await response.aread()
            try:
                found = response.json()
            except ValueError as error:
                raise _spoilt(f"it sent no JSON ({error})") from error
        self.meters.used(found.get("usage") or {})
        _trim(found, "message", str.strip)
        return self._renamed(found, target)

    async def stream(self, asked: Asked, target: Target) -> AsyncIterator[dict[str, Any]]:
        """Yield a reply part by part."""
        begun: set[int] = set()
        async with self._asking(asked, target) as response:
            async for line in response.aiter_lines():
                data = line.removeprefix("data:").strip()
                if not line.startswith("data:") or data == "[DONE]":
                    continue
                try:
                    part = json.loads(data)
                except ValueError as error:
                    raise _spoilt(f"it sent an event that is no JSON ({error})") from error
                if "error" in part:
                    raise _spoilt(str(part["error"])[:SAID_CHARS])
                self.meters.used(part.get("usage") or {})
                _trim(part, "delta", str.lstrip, begun)
                yield self._renamed(part, target)

    def _renamed(self, found: dict[str, Any], target: Target) -> dict[str, Any]:
        return {**found, "model": target.name, "lorewright": target.to_json()}

    # -- asking ------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _asking(self, asked: Asked, target: Target) -> AsyncIterator[httpx.Response]:
        """The engine's answer, its status checked; once more if it has forgotten the adapter."""
        path = "/v1/chat/completions" if isinstance(asked, ChatAsked) else "/v1/completions"
        for attempt in (1, 2):
            async with self._using(target.identity) as naming:
                body = json.dumps(self._body(asked) | naming)
                async with self._request("POST", path, body) as response:
                    if attempt == 1 and await self._forgot(response, target.identity):
                        continue
                    await _check(response)
                    yield response
                    return

    async def _forgot(self, response: httpx.Response, identity: str) -> bool:
        """Whether the engine does not know an adapter that it had loaded: it was started anew."""
        if identity not in self._loaded or response.status_code not in (400, 404):
            return False
        if response.status_code == 400 and identity.encode() not in await response.aread():
            return False
        del self._loaded[identity]
        return True

    def _body(self, asked: Asked) -> dict[str, Any]:
        """What is handed on: what was asked for, greedy and within the limit unless it says so."""
        budget = asked.budget
        if budget is not None and budget > self.max_tokens:
            raise Refused(
                400,
                f"max_tokens is {budget}; this server generates at most {self.max_tokens}.",
                param="max_tokens",
            )
        body = {k: v for k, v in _said(asdict(asked)).items() if k not in KEPT_TO_ITSELF}
        body.pop("max_completion_tokens", None)
        return {"temperature": 0, **body, "max_tokens": budget or self.max_tokens}

    @asynccontextmanager
    async def _request(
        self, method: str, path: str, body: str | None = None
    ) -> AsyncIterator[httpx.Response]:
        import httpx

        assert self._client is not None
        self._n_asked += 1
        headers = {"content-type": "application/json"} if body is not None else None
        try:
            async with self._client.stream(method, path, content=body, headers=headers) as response:
                yield response
        except httpx.TimeoutException as error:
            raise Refused(
                504, f"the engine gave no reply within {self.seconds:g} s.", code="timeout"
            ) from error
        except httpx.HTTPError as error:
            raise Refused(
                503,
                f"the engine at {self.url} cannot be reached ({error or type(error).__name__}); "
                "start it, or correct --engine-url.",
                code="engine_unavailable",
                retry_after_seconds=5,
            ) from error

    async def _json(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        content = None if body is None else json.dumps(body)
        async with self._request(method, path, content) as response:
            await _check(response)
            await response.aread()
            return response.json() if "json" in response.headers.get("content-type", "") else None

    # -- adapters there ----------------------------------------------------------------------------

    @asynccontextmanager
    async def _using(self, identity: str) -> AsyncIterator[dict[str, Any]]:
        """Have an adapter loaded while it is used; yields the fields that name it."""
        await self._know()
        dialect = ENGINES[self.engine]
        if not identity:
            off = await self._llama("") if dialect.listing else {}
            yield {"model": self._base, **off}
            return
        if dialect.listing:
            yield {"model": self._base, **await self._llama(identity)}
            return
        if not dialect.load:
            raise Refused(
                503,
                f"an engine of kind {self.engine} takes no adapters; ask for {self.roster.base!r}.",
                code="memory_unavailable",
                param="model",
            )
        self._n_users[identity] = self._n_users.get(identity, 0) + 1
        try:
            await self._load(identity, dialect)
            yield dialect.named(self._base, identity)
        finally:
            self._n_users[identity] -= 1
            if not self._n_users[identity]:
                del self._n_users[identity]
            self._tidy(dialect)

    async def _know(self) -> None:
        """Ask the engine once what it is and what its base is called."""
        if self._base:
            return
        found = await self._json("GET", "/v1/models")
        try:
            models = [m for m in found["data"] if not m.get("parent") and m["id"] != "auto"]
            owner, base = str(models[0].get("owned_by", "")), str(models[0]["id"])
        except (TypeError, KeyError, IndexError, AttributeError) as error:
            raise _spoilt("its /v1/models lists no base model") from error
        self.engine = self.engine or (owner if owner in ENGINES else "openai")
        self._base = base

    async def _load(self, identity: str, dialect: Dialect) -> None:
        """Load an adapter unless it is there; once, however many ask for it at the same time."""
        task = self._loaded.get(identity)
        if task is None:
            task = asyncio.create_task(self._send(identity, dialect))
            self._loaded[identity] = task
        try:
            await asyncio.shield(task)
        except Refused:
            self._loaded.pop(identity, None)
            raise

    async def _send(self, identity: str, dialect: Dialect) -> None:
        body = {"lora_name": identity, "lora_path": str(self.roster.path(identity))}
        try:
            await self._json("POST", dialect.load, body)
        except Refused as refused:
            if "already" in str(refused):  # loaded before this front was started
                return
            if refused.code in ("timeout", "engine_unavailable"):
                raise
            raise Refused(
                503,
                f"the engine did not load adapter {identity} ({str(refused).rstrip('.')}); it must "
                "see this folder, take adapters while it runs (vLLM: --enable-lora and "
                "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True), and take this rank.",
                code="memory_unavailable",
                param="model",
            ) from refused

    def _tidy(self, dialect: Dialect) -> None:
        """Have the engine unload what no name stands for any more and nobody uses."""
        named = set(self.roster.names.values())
        for identity in [i for i in self._loaded if i not in named and i not in self._n_users]:
            del self._loaded[identity]
            task = asyncio.create_task(self._unload(identity, dialect))
            self._unloading.add(task)
            task.add_done_callback(self._unloading.discard)

    async def _unload(self, identity: str, dialect: Dialect) -> None:
        try:
            await self._json("POST", dialect.unload, {"lora_name": identity})
        except Refused:
            return  # it is gone, or the engine is: nothing is served from it either way

    async def _llama(self, identity: str) -> dict[str, Any]:
        """Scales of all adapters that llama.cpp was started with: 1 for this one, else 0.

        Its cache of prompts does not ask with which adapter a prompt was read (found in build 11549
        of October 2026), so no request may use it.
        """
        found = await self._json("GET", "/lora-adapters")
        scales = [
            {"id": each["id"], "scale": float(bool(identity) and identity in str(each["path"]))}
            for each in found or ()
        ]
        if identity and sum(each["scale"] for each in scales) != 1:
            raise Refused(
                503,
                f"llama.cpp was not started with adapter {identity}; write it with lore export "
                f"FOLDER/NAME --to gguf, and give llama-server --lora NAME-{identity}.gguf too.",
                code="memory_unavailable",
                param="model",
            )
        return {"lora": scales, "cache_prompt": False}


def _said(value: Any) -> Any:
    """Plain data without what was left out."""
    if isinstance(value, dict):
        return {key: _said(each) for key, each in value.items() if each is not None}
    return [_said(each) for each in value] if isinstance(value, list) else value


def _trim(
    found: dict[str, Any], key: str, cut: Callable[[str], str], begun: set[int] | None = None
) -> None:
    """Take the white space off replies of a chat, as our own engine does; templates begin with it.

    `begun` gathers the choices that have said something, whose white space is their own.
    """
    for choice in found.get("choices") or ():
        index, message = choice.get("index", 0), choice.get(key)
        if not isinstance(message, dict) or (begun is not None and index in begun):
            continue
        if content := message.get("content"):
            message["content"] = cut(content)
        if begun is not None and message.get("content"):
            begun.add(index)


def _spoilt(what: str) -> Refused:
    return Refused(502, f"the engine's answer cannot be used: {what}.", code="bad_engine_answer")


async def _check(response: httpx.Response) -> None:
    """Hand on what the engine refuses; what it cannot do is not the client's fault."""
    if response.is_success:
        return
    text = (await response.aread()).decode(errors="replace")
    try:
        found = json.loads(text)
        said = found.get("error", found)
        said = said.get("message", said) if isinstance(said, dict) else said
    except (ValueError, AttributeError):
        said = text
    status, quoted = response.status_code, str(said)[:SAID_CHARS]
    if status in (400, 413, 422):
        raise Refused(413 if status == 413 else 400, f"the engine refuses: {quoted}")
    if status in (429, 503):
        raise Refused(status, f"the engine is busy: {quoted}", retry_after_seconds=1)
    if status in (401, 403):
        raise Refused(502, "the engine wants another key; set LOREWRIGHT_ENGINE_KEY.")
    raise Refused(502, f"the engine answered with status {status}: {quoted}")


ENGINES: dict[str, Dialect] = {
    "vllm": Dialect("/v1/load_lora_adapter", "/v1/unload_lora_adapter"),
    "lorewright": Dialect("/v1/load_lora_adapter", "/v1/unload_lora_adapter"),
    "sglang": Dialect(
        "/load_lora_adapter",
        "/unload_lora_adapter",
        named=lambda base, identity: {"model": base, "lora_path": identity},
    ),
    "llamacpp": Dialect(listing="/lora-adapters"),
    "openai": Dialect(),
}
"""The servers that can be the engine."""
