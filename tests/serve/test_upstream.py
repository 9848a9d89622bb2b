"""Claims about the front over other engines: vLLM, SGLang, llama.cpp, and a server of our own.

The engine is a small real server that answers in each one's shapes and records its requests; for
the path without a double it is `lore serve` itself, with a memory.
"""

from __future__ import annotations

import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI
from support.engines import EngineDouble, untrained
from support.serving import ADMIN_KEY, KEY, drop, put, running, text_of

from lorewright.adapters.config import LoraConfig
from lorewright.memory.folder import Folder
from lorewright.memory.memory import Memory
from lorewright.models.model import Model
from lorewright.serve.config import ServeConfig
from lorewright.serve.server import application
from lorewright.serve.upstream import ENGINES


@pytest.fixture(scope="module")
def model() -> Model:
    return Model.load()


@pytest.fixture(scope="module")
def untouched(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("upstream") / "atlas"
    for seed, name in enumerate(("north", "south")):
        put(folder, name, untrained(model, LoraConfig(2, seed=seed)), model)
    return folder


@pytest.fixture
def atlas(untouched: Path, tmp_path: Path) -> Path:
    shutil.copytree(untouched, tmp_path / "atlas")
    return tmp_path / "atlas"


def front(atlas: Path, url: str, **more: Any) -> Any:
    return running(application(atlas, ServeConfig(engine_url=url, keys=(KEY,), **more)))


def at(url: str) -> OpenAI:
    return OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0)


def ask(client: OpenAI, model: str, **more: Any) -> Any:
    turns: Any = [{"role": "user", "content": "Who?"}]
    return client.chat.completions.create(model=model, messages=turns, **more)


@pytest.mark.parametrize("owner", ["vllm", "sglang"])
def test_memories_are_loaded_once_by_content_id_and_unloaded_when_gone(
    atlas: Path, model: Model, owner: str
) -> None:
    engine = EngineDouble(owner)
    ids = {name: entry["adapter"] for name, entry in Folder(atlas).entries().items()}
    with running(engine.app()) as there, front(atlas, there) as url:
        client = at(url)
        for _ in range(2):
            reply = ask(client, "north", max_tokens=7)
            assert text_of(reply) == f"from {ids['north']}"
            assert reply.model == "north"
            assert reply.model_extra["lorewright"]["adapter"] == ids["north"]
        assert engine.calls == [f"load {ids['north']}"]
        assert Path(engine.loaded[ids["north"]]) == atlas / "adapters" / ids["north"]
        assert text_of(ask(client, "pocket")) == "from their-base"
        streamed = list(ask(client, "south", stream=True))
        assert "".join(p.choices[0].delta.content or "" for p in streamed) == f"from {ids['south']}"
        assert {p.model for p in streamed} == {"south"}
        assert engine.bodies[0]["max_tokens"] == 7 and engine.bodies[0]["temperature"] == 0
        anew = put(atlas, "north", untrained(model, LoraConfig(2, seed=9)), model)
        assert text_of(ask(client, "north")) == f"from {anew}"  # never yesterday's
        drop(atlas, "south", model)
        assert text_of(ask(client, "pocket")) == "from their-base"
        ask(client, "north")
        assert text_of(ask(client, "north")) == f"from {anew}"
        deadline = 50
        while f"unload {ids['south']}" not in engine.calls and deadline:
            ask(client, "north")
            deadline -= 1
        assert set(engine.loaded) == {anew}


def test_an_engine_that_was_started_anew_is_given_the_memory_again(atlas: Path) -> None:
    engine = EngineDouble("vllm")
    with running(engine.app()) as there, front(atlas, there) as url:
        client = at(url)
        first = text_of(ask(client, "north"))
        engine.loaded.clear()
        assert text_of(ask(client, "north")) == first
        assert len(engine.calls) == 2


def test_an_engine_that_cannot_load_a_memory_is_quoted_and_tried_again(atlas: Path) -> None:
    engine = EngineDouble("vllm")
    identity = Folder(atlas).entries()["north"]["adapter"]
    hidden = atlas / "adapters" / identity / "adapter_config.json"
    hidden.rename(hidden.with_suffix(".away"))  # as on a machine that does not have the folder
    with running(engine.app()) as there, front(atlas, there) as url:
        with pytest.raises(openai.InternalServerError, match=r"found\); .*RUNTIME") as refused:
            ask(at(url), "north")
        assert (refused.value.status_code, refused.value.code) == (503, "memory_unavailable")
        hidden.with_suffix(".away").rename(hidden)
        assert text_of(ask(at(url), "north")) == f"from {identity}"


def test_a_memory_that_the_engine_has_already_is_used(atlas: Path) -> None:
    engine = EngineDouble("vllm")
    with running(engine.app()) as there:
        for _ in range(2):  # the second front knows nothing of the first
            with front(atlas, there) as url:
                text_of(ask(at(url), "north"))
    assert len(engine.loaded) == 1


def test_llama_cpp_gets_the_scale_of_each_adapter_it_was_started_with(atlas: Path) -> None:
    ids = {name: entry["adapter"] for name, entry in Folder(atlas).entries().items()}
    engine = EngineDouble(
        "llamacpp", {"0": f"/models/{ids['south']}.gguf", "1": "/models/other.gguf"}
    )
    with running(engine.app()) as there, front(atlas, there) as url:
        client = at(url)
        ask(client, "south")
        assert engine.bodies[-1]["lora"] == [{"id": 0, "scale": 1.0}, {"id": 1, "scale": 0.0}]
        assert engine.bodies[-1]["cache_prompt"] is False
        ask(client, "pocket")
        assert engine.bodies[-1]["lora"] == [{"id": 0, "scale": 0.0}, {"id": 1, "scale": 0.0}]
        with pytest.raises(openai.InternalServerError, match=rf"--lora NAME-{ids['north']}.gguf"):
            ask(client, "north")


def test_a_server_that_takes_no_adapters_answers_for_the_base_alone(atlas: Path) -> None:
    engine = EngineDouble("somebody")
    with running(engine.app()) as there, front(atlas, there) as url:
        assert text_of(ask(at(url), "pocket")) == "from their-base"
        assert ask(at(url), "auto").model == "pocket"  # no memory has keys; no base is needed
        with pytest.raises(openai.InternalServerError, match="takes no adapters"):
            ask(at(url), "north")
    assert ENGINES["openai"].load == ""


@pytest.mark.parametrize(
    ("status", "expected"), [(400, 400), (429, 429), (500, 502), (401, 502), (503, 503), (404, 502)]
)
def test_what_the_engine_refuses_reaches_the_client_in_our_shape(
    atlas: Path, status: int, expected: int
) -> None:
    engine = EngineDouble("vllm", status=status)
    with running(engine.app()) as there, front(atlas, there) as url:
        for stream in (False, True):
            with pytest.raises(openai.APIStatusError) as refused:
                ask(at(url), "north", stream=stream)
            assert refused.value.status_code == expected
            assert set(refused.value.body or {}) == {"message", "type", "param", "code"}
            assert (refused.value.response.headers.get("retry-after") is not None) == (
                expected in (429, 503)
            )


def test_an_engine_that_is_not_there_is_503_and_limits_hold_before_it(atlas: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens
        with front(atlas, f"http://127.0.0.1:{taken.getsockname()[1]}", max_tokens=8) as url:
            with pytest.raises(openai.InternalServerError, match="cannot be reached") as refused:
                ask(at(url), "north")
            assert refused.value.status_code == 503
            assert "127.0.0.1" not in refused.value.message
            assert httpx.get(f"{url}/ready").status_code == 503
            assert httpx.get(f"{url}/v1/models").status_code == 401
            with pytest.raises(openai.NotFoundError):
                ask(at(url), "east")


def test_the_limit_on_tokens_is_the_fronts_own(atlas: Path) -> None:
    engine = EngineDouble("vllm")
    with running(engine.app()) as there, front(atlas, there, max_tokens=8) as url:
        with pytest.raises(openai.BadRequestError, match="at most 8"):
            ask(at(url), "north", max_tokens=9)
        ask(at(url), "north")
        assert engine.bodies[-1]["max_tokens"] == 8


@pytest.fixture
def own_engine(atlas: Path) -> Iterator[str]:
    """A server of our own, as an engine that shows no names of the front's folder."""
    config = ServeConfig(admin=True, admin_keys=(ADMIN_KEY,))
    with running(application(atlas, config, model=Model.load())) as url:
        for name in Folder(atlas).entries():
            headers = {"authorization": f"Bearer {ADMIN_KEY}"}
            httpx.delete(f"{url}/admin/memories/{name}", headers=headers).raise_for_status()
        yield url


def test_over_a_server_of_our_own_a_memory_replies_as_it_does_alone(
    atlas: Path, own_engine: str, model: Model
) -> None:
    memory = Memory.open(atlas, model)
    turns: Any = [{"role": "user", "content": "Hello"}]
    with running(application(atlas, ServeConfig(), model=Model.load())) as direct:
        expected = at(direct).completions.create(model="north", prompt="The", max_tokens=9)
    with front(atlas, own_engine, engine_key=ADMIN_KEY) as url:
        client = at(url)
        reply = client.completions.create(model="north", prompt="The", max_tokens=9)
        assert reply.choices[0].text == expected.choices[0].text
        base = client.chat.completions.create(model="pocket", messages=turns)
        assert base.model == "pocket" and text_of(base)
    ids = (
        *model.render("").prompt_ids,
        *model.tokenizer("The", add_special_tokens=False)["input_ids"],
    )
    with model.using(memory.adapter("north")):
        (alone,) = model.generate_ids([ids], max_new_tokens=9)
    assert expected.choices[0].text.strip() == model.decode(alone)
