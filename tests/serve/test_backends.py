"""The contract of what generates replies, over every entry of BACKENDS, and one from outside."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import nullcontext
from pathlib import Path

import pytest
from openai import OpenAI
from support.engines import EngineDouble, untrained
from support.serving import put, running, text_of

from lorewright.adapters.config import LoraConfig
from lorewright.errors import ConfigError, LorewrightError
from lorewright.models.model import Model
from lorewright.serve.backends import BACKENDS, open_backend
from lorewright.serve.config import ServeConfig
from lorewright.serve.metrics import Metrics
from lorewright.serve.protocol import ChatRequest, GenerationRequest, TextRequest
from lorewright.serve.registry import Registry, Target
from lorewright.serve.replies import AssistantMessage, Choice, Completion
from lorewright.serve.server import application

WITHOUT_MEMORIES = ("openai",)
"""Backends that answer for the base alone."""


@pytest.fixture(scope="module")
def atlas(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("backends") / "atlas"
    model = Model.load()
    put(folder, "north", untrained(model, LoraConfig(2, seed=0)), model)
    return folder


def chat(model: str, **more: object) -> ChatRequest:
    messages = [{"role": "user", "content": "Who?"}]
    return ChatRequest.model_validate({"model": model, "messages": messages, **more})


@pytest.mark.parametrize("name", BACKENDS)
def test_every_backend_answers_whole_and_in_chunks_and_counts(name: str, atlas: Path) -> None:
    engine = EngineDouble(name if name != "detect" else "vllm")
    (adapter,) = (atlas / "adapters").iterdir()
    if name == "llamacpp":
        engine.loaded["0"] = f"/models/{adapter.name}.gguf"
    local = name == "local"
    with nullcontext("") if local else running(engine.app()) as url:
        registry, metrics = Registry(atlas), Metrics()
        config = ServeConfig(engine=name, engine_url=url, max_tokens=6)
        backend = open_backend(registry, config, metrics, None)

        async def contract() -> None:
            await backend.start()
            try:
                assert await backend.trouble() == ""
                assert backend.gauges()
                for model in ("pocket", *(["north"] if name not in WITHOUT_MEMORIES else [])):
                    target = registry.target(model)
                    if target.adapter_id:
                        await backend.load(target.adapter_id)
                    whole = await backend.complete(chat(model), target)
                    assert (whole.model, whole.lorewright) == (model, target.source)
                    message = whole.choices[0].message
                    assert message and message.content == (message.content or "").strip()
                    chunks = [c async for c in backend.stream(chat(model, stream=True), target)]
                    texts = [c.delta.content for k in chunks for c in k.choices if c.delta]
                    assert "".join(filter(None, texts)) == message.content
                    assert {chunk.model for chunk in chunks} == {model}
                with pytest.raises(LorewrightError):
                    await backend.load("0123456789abcdef")
            finally:
                await backend.stop()

        asyncio.run(contract())
    assert b'lorewright_tokens_total{kind="completion"}' in metrics.text()


class Parrot:
    """A backend that repeats the question."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry

    async def start(self) -> None:
        """Nothing to start."""

    async def stop(self) -> None:
        """Nothing to stop."""

    async def trouble(self) -> str:
        return ""

    def gauges(self) -> dict[str, float]:
        return {"parrots": 1.0}

    def drop_unnamed(self) -> None:
        """Nothing to drop."""

    async def load(self, adapter_id: str) -> None:
        """Nothing to load."""

    async def complete(self, request: GenerationRequest, target: Target) -> Completion:
        message = AssistantMessage(role="assistant", content=request.question())
        choice = Choice(index=0, message=message, finish_reason="stop")
        return Completion(model=target.name, choices=[choice], lorewright=target.source)

    async def stream(self, request: GenerationRequest, target: Target) -> AsyncIterator[Completion]:
        delta = AssistantMessage(role="assistant", content=request.question())
        yield Completion(model=target.name, choices=[Choice(index=0, delta=delta)])


def test_a_backend_from_outside_serves_end_to_end(
    atlas: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(
        BACKENDS, "parrot", lambda registry, config, metrics, model: Parrot(registry)
    )
    with running(application(atlas, ServeConfig(engine="parrot"))) as url:
        client = OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        turns = [{"role": "user", "content": "Who?"}]
        reply = client.chat.completions.create(model="north", messages=turns)  # type: ignore[arg-type]
        assert (text_of(reply), reply.model) == ("Who?", "north")
        stream = client.chat.completions.create(model="north", messages=turns, stream=True)  # type: ignore[call-overload]
        assert "".join(part.choices[0].delta.content for part in stream) == "Who?"


def test_an_unknown_backend_is_refused_with_those_there_are(atlas: Path, tmp_path: Path) -> None:
    shutil.copytree(atlas, tmp_path / "atlas")
    with pytest.raises(ConfigError, match=r"'swallow' is unknown; use one of local, .*sglang"):
        application(tmp_path / "atlas", ServeConfig(engine="swallow"))
    with pytest.raises(ConfigError, match="leave --engine-url out"):
        application(atlas, ServeConfig(engine="local", engine_url="http://localhost:1"))
    with pytest.raises(ConfigError, match="no address"):
        application(atlas, ServeConfig(engine="vllm"))


def test_a_text_request_has_a_default_limit_and_a_chat_none() -> None:
    assert chat("m").token_limit is None
    assert TextRequest(model="m", prompt=["x"]).token_limit == 16
