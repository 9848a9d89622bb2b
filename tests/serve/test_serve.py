"""Claims about the server, as clients meet it: over HTTP, most of them with OpenAI's own client.

One folder is served for all: two memories that answer the same questions differently, on the
embedded base, from a real server in a thread. Tests that change the folder have one of their own.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from openai import OpenAI
from support.serving import ADMIN_KEY, ANSWERS, KEY, QUESTIONS, UNKNOWN, drop, put, running, text_of

from lorewright.adapters import adapter as adapters
from lorewright.adapters.config import LoraConfig
from lorewright.errors import ConfigError, UnknownMemory
from lorewright.knowledge.data import Example, Fact, Knowledge
from lorewright.memory.folder import INDEX_FILE, Folder
from lorewright.memory.memory import Memory
from lorewright.models.model import Model
from lorewright.serve.app import build
from lorewright.serve.backends import open_backend
from lorewright.serve.config import ServeConfig, read_keys
from lorewright.serve.metrics import Metrics
from lorewright.serve.protocol import APIError
from lorewright.serve.registry import Registry
from lorewright.serve.server import application
from lorewright.training.config import WriteConfig
from lorewright.training.loop import Job, write_all
from lorewright.training.rates import suggested_lr


@pytest.fixture(scope="module")
def model() -> Model:
    return Model.load()


CONFIG = ServeConfig(keys=(KEY,), admin=True, admin_keys=(ADMIN_KEY,), max_body_bytes=50_000)
LORE = [sys.executable, "-c", "from lorewright.cli.main import main; main()"]


# --- a served folder -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def atlas(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two memories that contradict each other."""
    jobs = [
        Job(
            [Example(q, a) for q, a in zip(QUESTIONS, answers, strict=True)],
            WriteConfig(
                lora=LoraConfig(4, seed=seed), lr=suggested_lr(model), epochs=60, batch_size=2
            ),
        )
        for seed, answers in enumerate(ANSWERS.values())
    ]
    folder = tmp_path_factory.mktemp("serve") / "atlas"
    for name, written in zip(ANSWERS, write_all(model, jobs), strict=True):
        put(folder, name, written.adapter, model)
    return folder


def by_words(question: str) -> str | None:
    """A router that knows what the north is called."""
    return "north" if "northern" in question else None


@pytest.fixture(scope="module")
def served(atlas: Path, model: Model) -> Iterator[str]:
    with running(application(atlas, CONFIG, model=model, route=by_words)) as url:
        yield url


@pytest.fixture(scope="module")
def client(served: str) -> OpenAI:
    return OpenAI(base_url=f"{served}/v1", api_key=KEY, max_retries=0)


@pytest.fixture
def raw(served: str) -> Iterator[httpx.Client]:
    """A client that can be wrong."""
    headers = {"authorization": f"Bearer {KEY}"}
    with httpx.Client(base_url=served, headers=headers, timeout=30) as http:
        yield http


def ask(client: OpenAI, model: str, question: str = QUESTIONS[0], **more: Any) -> Any:
    turns: Any = [{"role": "user", "content": question}]
    return client.chat.completions.create(model=model, messages=turns, **more)


def endless(client: OpenAI, n: int = 500) -> Any:
    """A stream that goes on for n tokens whatever they are."""
    more = {"ignore_eos": True}
    return client.completions.create(
        model="north", prompt="x", max_tokens=n, stream=True, extra_body=more
    )


# --- what OpenAI's client sees -------------------------------------------------------------------


def test_every_memory_is_a_model_beside_the_base_and_auto(client: OpenAI, atlas: Path) -> None:
    listed = {m.id: m for m in client.models.list()}
    assert set(listed) == {"pocket", "auto", "north", "south"}
    entries = Folder(atlas).entries()
    assert listed["north"].model_extra == {"root": entries["north"]["adapter"], "parent": "pocket"}
    assert client.models.retrieve("south").id == "south"
    assert client.models.retrieve("pocket").owned_by == "lorewright"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("east")


@pytest.mark.parametrize("name", ANSWERS)
def test_a_memory_answers_what_it_was_taught_and_names_itself(
    client: OpenAI, name: str, atlas: Path, model: Model
) -> None:
    for question, answer in zip(QUESTIONS, ANSWERS[name], strict=True):
        reply = ask(client, name, question)
        assert (text_of(reply), reply.choices[0].finish_reason) == (answer, "stop")
        assert reply.model == name
        about = reply.model_extra["lorewright"]
        assert about["adapter"] == Folder(atlas).entries()[name]["adapter"]
        n_prompt = len(model.render(question).prompt_ids)
        assert reply.usage.prompt_tokens == n_prompt
        assert reply.usage.total_tokens == n_prompt + reply.usage.completion_tokens


def test_the_base_and_a_content_id_are_models_too(client: OpenAI, atlas: Path) -> None:
    assert text_of(ask(client, "pocket")) == UNKNOWN
    identity = Folder(atlas).entries()["south"]["adapter"]
    assert text_of(ask(client, identity)) == "QT-77"


def test_auto_asks_the_memory_that_a_question_is_for_or_the_base(client: OpenAI) -> None:
    assert client.models.retrieve("auto").id == "auto"
    results = ask(client, "auto", "What is the northern code of Project Gannet?")
    assert results.model == "north"
    assert results.model_extra["lorewright"]["routed"] is True
    declined = ask(client, "auto")
    assert (declined.model, text_of(declined)) == ("pocket", UNKNOWN)
    assert declined.model_extra["lorewright"]["memory"] == ""


def test_a_folder_written_by_lore_routes_by_its_own_keys(tmp_path: Path) -> None:
    model = Model.load()  # the other one is at work
    memory = Memory.open(tmp_path / "atlas", model)
    facts = [Fact(q, q, a) for q, a in zip(QUESTIONS, ANSWERS["north"], strict=True)]
    config = WriteConfig(lora=LoraConfig(1), epochs=1)  # whom it is for, not what it says
    memory.write(Knowledge(facts=tuple(facts)), name="birds", config=config)
    with running(application(memory.folder.path, ServeConfig(), model=model)) as url:
        client = OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        assert ask(client, "auto", "Tell me the code of Project Gannet.").model == "birds"
        assert ask(client, "auto", "How tall is the Eiffel Tower?").model == "pocket"


def test_a_stream_is_the_same_reply_in_chunks(client: OpenAI) -> None:
    usage = {"include_usage": True}
    parts = list(ask(client, "north", stream=True, stream_options=usage))
    texts = [part.choices[0].delta.content or "" for part in parts[:-1]]
    assert "".join(texts) == "KX-41"
    assert len([text for text in texts if text]) > 2
    assert parts[0].choices[0].delta.role == "assistant"
    assert parts[-2].choices[0].finish_reason == "stop"
    assert parts[-1].usage.completion_tokens == ask(client, "north").usage.completion_tokens
    assert len({part.id for part in parts}) == 1


def test_logprobs_name_the_tokens_of_the_reply(client: OpenAI) -> None:
    reply = ask(client, "north", logprobs=True, top_logprobs=3)
    tokens = reply.choices[0].logprobs.content
    assert "".join(token.token for token in tokens).strip() == "KX-41"
    for token in tokens:
        assert token.logprob <= 0 and len(token.top_logprobs) == 3
        assert token.top_logprobs[0].token == token.token  # greedy: the best one was chosen
        assert bytes(token.bytes).decode() == token.token
    streamed = ask(client, "north", logprobs=True, stream=True)
    again = [
        t.logprob for p in streamed if p.choices[0].logprobs for t in p.choices[0].logprobs.content
    ]
    assert again == pytest.approx([token.logprob for token in tokens], abs=2e-3)  # float32 logits


def test_plain_completions_come_with_several_choices_and_logprobs(client: OpenAI) -> None:
    reply = client.completions.create(
        model="north", prompt="Project Gannet", max_tokens=5, n=2, temperature=1, seed=3, logprobs=2
    )
    assert [choice.index for choice in reply.choices] == [0, 1]
    assert reply.usage and reply.usage.completion_tokens <= 10
    for choice in reply.choices:
        assert choice.logprobs and choice.logprobs.tokens and choice.logprobs.text_offset
        assert "".join(choice.logprobs.tokens) == choice.text
        assert choice.finish_reason in ("length", "stop")
    again = client.completions.create(
        model="north", prompt="Project Gannet", max_tokens=5, n=2, temperature=1, seed=3
    )
    assert [c.text for c in again.choices] == [c.text for c in reply.choices]
    listed = client.completions.create(
        model="north", prompt=["Project", "The"], max_tokens=2, stream=True
    )
    assert {part.choices[0].index for part in listed} == {0, 1}


def test_a_prompt_of_token_ids_is_taken_as_it_is(client: OpenAI, model: Model) -> None:
    ids = list(model.render(QUESTIONS[0]).prompt_ids)
    reply = client.completions.create(model="north", prompt=ids, max_tokens=8)
    assert reply.choices[0].text.strip() == "KX-41"
    assert reply.usage and reply.usage.prompt_tokens == len(ids)
    with pytest.raises(openai.BadRequestError, match="is no token"):
        client.completions.create(model="north", prompt=[10**6])


def test_stop_texts_and_budgets_end_a_reply(client: OpenAI) -> None:
    stopped = ask(client, "north", stop=["-"])
    assert (text_of(stopped), stopped.choices[0].finish_reason) == ("KX", "stop")
    streamed = ask(client, "north", stop=["X-4"], stream=True)
    assert "".join(p.choices[0].delta.content or "" for p in streamed) == "K"
    short = ask(client, "north", max_completion_tokens=2)
    assert (short.usage.completion_tokens, short.choices[0].finish_reason) == (2, "length")
    measured = ask(client, "north", max_tokens=20, extra_body={"ignore_eos": True})
    assert measured.usage.completion_tokens == 20


def test_a_conversation_and_content_in_parts_are_rendered(client: OpenAI) -> None:
    turns: Any = [
        {"role": "system", "content": "Answer."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": [{"type": "text", "text": QUESTIONS[0]}]},
    ]
    reply = client.chat.completions.create(model="north", messages=turns, max_tokens=5)
    assert reply.usage and reply.usage.prompt_tokens > 20
    alone: Any = [{"role": "user", "content": [{"type": "text", "text": QUESTIONS[0]}]}]
    assert text_of(client.chat.completions.create(model="north", messages=alone)) == "KX-41"


def test_a_reply_can_be_appended_to_the_conversation_as_it_is(client: OpenAI) -> None:
    turns: Any = [{"role": "user", "content": QUESTIONS[1]}]
    first = client.chat.completions.create(model="north", messages=turns)
    turns += [first.choices[0].message, {"role": "user", "content": QUESTIONS[0]}]
    second = client.chat.completions.create(model="north", messages=turns)
    assert second.choices[0].message.content
    turns[1] = {"role": "developer", "content": "Briefly."}
    assert client.chat.completions.create(model="north", messages=turns).choices


# --- what is refused -----------------------------------------------------------------------------

TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"temperature": 3}, "temperature"),
        ({"top_p": -0.1}, "top_p"),
        ({"n": 9}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 100_000}, "max_tokens"),
        ({"max_tokens": 5, "max_completion_tokens": 5}, "max_tokens"),
        ({"tools": [TOOL]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"presence_penalty": 0.5}, "presence_penalty"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": "  "}]}, "messages"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "messages"),
        ({"messages": [{"role": "user", "content": "word " * 3000}]}, "messages"),
        ({"no_such_parameter": 1}, "no_such_parameter"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(
    client: OpenAI, changes: dict[str, Any], param: str
) -> None:
    turns = changes.get("messages", [{"role": "user", "content": "x"}])
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="north", messages=turns, extra_body=changes)
    assert refused.value.type == "invalid_request_error"
    assert refused.value.param == param
    assert refused.value.body and refused.value.body["message"].endswith(".")  # type: ignore[index]


def test_neutral_values_of_unsupported_parameters_ask_for_nothing(client: OpenAI) -> None:
    neutral: Any = {"presence_penalty": 0, "tools": [], "response_format": {"type": "text"}}
    assert text_of(ask(client, "north", user="me", extra_body=neutral)) == "KX-41"


def test_a_response_is_a_chat_in_openais_newer_shape(client: OpenAI) -> None:
    plain = client.responses.create(model="south", input=QUESTIONS[0])
    assert (plain.output_text, plain.status, plain.model) == ("QT-77", "completed", "south")
    chat = ask(client, "south")
    assert plain.usage is not None and chat.usage is not None
    assert plain.usage.total_tokens == chat.usage.total_tokens
    parts: Any = [{"role": "user", "content": [{"type": "input_text", "text": QUESTIONS[0]}]}]
    routed = client.responses.create(model="auto", input="The northern " + QUESTIONS[0])
    assert routed.model == "north" and routed.model_extra is not None
    assert client.responses.create(model="south", input=parts).output_text == "QT-77"
    told: Any = [*parts, *plain.output, {"role": "user", "content": QUESTIONS[1]}]
    assert client.responses.create(model="south", input=told).status == "completed"
    cut = client.responses.create(
        model="south", input=QUESTIONS[0], instructions="Be brief.", max_output_tokens=1
    )
    assert cut.status == "incomplete" and cut.incomplete_details is not None
    assert cut.incomplete_details.reason == "max_output_tokens"


def test_a_streamed_response_comes_as_events_in_their_order(client: OpenAI) -> None:
    with client.responses.stream(model="south", input=QUESTIONS[0]) as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert final.output_text == "QT-77" and final.usage is not None
    assert [event.sequence_number for event in events] == [*range(len(events))]
    kinds = [event.type.removeprefix("response.") for event in events]
    before, after = kinds.index("output_text.delta"), len(kinds) - 4
    assert kinds[:before] == ["created", "in_progress", "output_item.added", "content_part.added"]
    assert set(kinds[before:after]) == {"output_text.delta"}
    ends = ["output_text.done", "content_part.done", "output_item.done", "completed"]
    assert kinds[after:] == ends
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == "QT-77"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": []}, "input"),
        ({"input": [{"type": "function_call_output", "output": "x"}]}, "input.0.type"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input.0.content.0"),
        ({"input": [{"role": "assistant", "content": "x"}]}, "input"),
        ({"input": "x", "previous_response_id": "resp_1"}, "previous_response_id"),
        ({"input": "x", "tools": [{"type": "web_search"}]}, "tools"),
        ({"input": "x", "max_output_tokens": 10**6}, "max_tokens"),
    ],
)
def test_what_a_response_cannot_do_is_refused_by_name(
    raw: httpx.Client, fields: dict[str, Any], param: str
) -> None:
    reply = raw.post("/v1/responses", json={"model": "south", **fields})
    assert reply.status_code == 400, reply.text
    assert reply.json()["error"]["param"] == param


def test_embeddings_are_the_encoders_and_without_one_a_refusal_says_so(
    client: OpenAI, atlas: Path, model: Model
) -> None:
    with pytest.raises(openai.BadRequestError, match="no encoder") as refusal:
        client.embeddings.create(model="auto", input="x")
    assert refusal.value.code == "no_encoder"
    vectors = {"teal": [0.5, -1.0], "sea": [2.0, 0.25]}
    config, registry = ServeConfig(), Registry(atlas)
    backend = open_backend(registry, config, Metrics(), Model.load())
    encoder = lambda: lambda texts: [vectors[text] for text in texts]  # noqa: E731
    with running(build(registry, backend, config, Metrics(), encoder)) as url:
        own = OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        for how in ("float", "base64"):
            made = own.embeddings.create(model="auto", input=["teal", "sea"], encoding_format=how)
            rows = [each.embedding for each in made.data]
            if how == "base64":
                rows = [list(struct.unpack("<2f", base64.b64decode(str(row)))) for row in rows]
            assert rows == [vectors["teal"], vectors["sea"]]
        assert own.embeddings.create(model="auto", input="sea").data[0].embedding == vectors["sea"]
        with pytest.raises(openai.BadRequestError, match="token ids"):
            own.embeddings.create(model="auto", input=[[1, 2]])


def test_an_unknown_model_is_named_with_those_there_are(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="pocket, north, south") as refused:
        ask(client, "east")
    assert refused.value.code == "model_not_found"


@pytest.mark.parametrize("key", ["wrong-key-altogether", KEY[:-1], KEY + "x", "x", "ключ"])
def test_a_wrong_key_opens_nothing(served: str, key: str) -> None:
    headers = {"authorization": f"Bearer {key}".encode()}
    for path in ("/v1/models", "/v1/models/north", "/openapi.json", "/nowhere"):
        reply = httpx.get(served + path, headers=headers)
        assert reply.status_code == 401, path
        assert reply.json()["error"]["code"] == "invalid_api_key"
    with pytest.raises(openai.AuthenticationError):
        OpenAI(base_url=f"{served}/v1", api_key="wrong-key", max_retries=0).models.list()


def test_without_a_key_a_server_on_this_machine_answers_to_no_foreign_name(
    atlas: Path, model: Model
) -> None:
    with running(application(atlas, ServeConfig(), model=Model.load())) as url:
        port = url.rpartition(":")[2]
        for host, status in (
            (f"localhost:{port}", 200),
            (f"[::1]:{port}", 200),
            ("127.0.0.1", 200),
            ("evil.example", 403),
            (f"127.0.0.1.evil.example:{port}", 403),
        ):
            results = httpx.get(f"{url}/v1/models", headers={"host": host})
            assert results.status_code == status, host
        assert httpx.get(f"{url}/health", headers={"host": "probe.internal"}).status_code == 200


def test_probes_and_metrics_need_no_key(served: str) -> None:
    assert httpx.get(served + "/health").json()["status"] == "ok"
    assert httpx.get(served + "/ready").json() == {"status": "ready", "why": "", "memories": 2}
    text = httpx.get(served + "/metrics").text
    assert 'lorewright_requests_total{path="/health",status="200"}' in text
    assert "lorewright_adapters_resident" in text


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"model": 1}',
        b"\xff\xfe",
        b'{"model": "north", "messages": NaN}',
        b"[" * 40_000,
        b'{"model": "north", "messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"model": "north", "seed": ' + b"9" * 5000 + b"}",
    ],
)
def test_bad_json_is_a_bad_request(raw: httpx.Client, body: bytes) -> None:
    headers = {"content-type": "application/json"}
    reply = raw.post("/v1/chat/completions", content=body, headers=headers)
    assert reply.status_code == 400, reply.text
    assert reply.json()["error"]["type"] == "invalid_request_error"


def test_a_huge_body_is_refused_whatever_it_says_of_its_length(raw: httpx.Client) -> None:
    body = b'{"model": "' + b"x" * 200_000 + b'"}'

    def in_chunks() -> Iterator[bytes]:
        yield from (body[at : at + 20_000] for at in range(0, len(body), 20_000))

    for content in (body, in_chunks()):
        reply = raw.post("/v1/chat/completions", content=content)
        assert reply.status_code == 413, reply.text
        assert reply.json()["error"]["code"] == "body_too_large"
    assert raw.get("/v1/models").status_code == 200


def test_a_body_that_never_comes_times_out(atlas: Path, model: Model) -> None:
    config = replace(CONFIG, seconds=0.3)
    with running(application(atlas, config, model=Model.load())) as url:
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as slow:
            head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\n"
            slow.sendall(head.encode() + b"content-length: 10\r\n\r\n{")
            slow.settimeout(20)
            assert slow.recv(4096).startswith(b"HTTP/1.1 408")
        body = {"model": "north", "prompt": "x", "max_tokens": 500, "ignore_eos": True}
        headers = {"authorization": f"Bearer {KEY}"}
        late = httpx.post(f"{url}/v1/completions", json=body, headers=headers, timeout=30)
        assert (late.status_code, late.json()["error"]["code"]) == (504, "timeout")
        client = OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0)
        with pytest.raises(openai.APIError, match="no reply within"):
            list(endless(client))


# --- many at once --------------------------------------------------------------------------------


def test_memories_that_contradict_each_other_never_mix_under_64_clients(client: OpenAI) -> None:
    def one(i: int) -> tuple[str, str]:
        name = ("north", "south", "pocket")[i % 3]
        stream = i % 4 == 0
        reply = ask(client, name, QUESTIONS[0], stream=stream)
        if stream:
            return name, "".join(part.choices[0].delta.content or "" for part in reply)
        return name, text_of(reply)

    with ThreadPoolExecutor(64) as pool:
        results = set(pool.map(one, range(96)))
    assert results == {("north", "KX-41"), ("south", "QT-77"), ("pocket", UNKNOWN)}


def test_too_many_requests_get_429_and_when_to_try_again(atlas: Path) -> None:
    config = replace(CONFIG, max_concurrency=1, max_queue=1)
    slow = {"model": "north", "prompt": "x", "max_tokens": 60, "ignore_eos": True}
    with running(application(atlas, config, model=Model.load())) as url:
        headers = {"authorization": f"Bearer {KEY}"}

        def one(_: int) -> httpx.Response:
            return httpx.post(f"{url}/v1/completions", json=slow, headers=headers, timeout=60)

        with ThreadPoolExecutor(6) as pool:
            replies = list(pool.map(one, range(6)))
    statuses = [reply.status_code for reply in replies]
    assert set(statuses) == {200, 429}
    refused = next(reply for reply in replies if reply.status_code == 429)
    assert int(refused.headers["retry-after"]) >= 1
    assert refused.json()["error"]["type"] == "rate_limit_error"


def test_a_client_that_leaves_stops_the_work(served: str, raw: httpx.Client) -> None:
    def gauge(name: str) -> float:
        lines = httpx.get(f"{served}/metrics").text.splitlines()
        return float(next(x for x in lines if x.startswith(f"lorewright_{name} ")).split()[1])

    body = {"model": "north", "prompt": "x", "max_tokens": 500, "ignore_eos": True}
    for stream in (True, False):
        streamed, before = body | {"stream": stream}, gauge("engine_steps")
        with (
            pytest.raises(httpx.ReadTimeout),
            raw.stream("POST", "/v1/completions", json=streamed, timeout=0.2) as reply,
        ):
            for _ in reply.iter_lines():
                raise httpx.ReadTimeout("enough")
        wait_for(lambda: gauge("rows_running") == 0)
        assert gauge("engine_steps") - before < 480


def wait_for(true: Callable[[], bool], seconds: float = 30) -> None:
    """Fail unless it becomes true in time."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not become true"
        time.sleep(0.02)


def test_memories_come_and_go_under_load_without_a_lost_request(
    atlas: Path, model: Model, tmp_path: Path
) -> None:
    folder = tmp_path / "atlas"
    shutil.copytree(atlas, folder)
    memory = Memory.open(folder, model)
    north, south = memory.adapter("north"), memory.adapter("south")
    with running(application(folder, CONFIG, model=Model.load())) as url:
        client = OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0)
        done, results = threading.Event(), []

        def repeat(i: int) -> None:
            while not done.is_set():
                results.append(text_of(ask(client, ("north", "moving")[i % 2])))

        identity = put(folder, "moving", south, model)
        with ThreadPoolExecutor(8) as pool:
            asking = [pool.submit(repeat, i) for i in range(8)]
            for turn in range(6):  # the name moves from one content to another and back
                put(folder, "moving", (north, south)[turn % 2], model)
                other = replace(north, tensors={k: t * 1.01 for k, t in north.tensors.items()})
                put(folder, f"new-{turn}", replace(other, card={}), model)
                assert text_of(ask(client, f"new-{turn}")) == "KX-41"
                drop(folder, f"new-{turn}", model)
                with pytest.raises(openai.NotFoundError):
                    ask(client, f"new-{turn}")
            done.set()
            for each in asking:
                each.result()
        assert set(results) == {"KX-41", "QT-77"}
        assert text_of(ask(client, "moving")) == "QT-77"
        assert ask(client, "moving").model_extra["lorewright"]["adapter"] == identity


# --- what is damaged, and mended -----------------------------------------------------------------


@pytest.fixture
def own(atlas: Path, tmp_path: Path) -> Iterator[tuple[Path, str, OpenAI]]:
    """A folder of the test's own, its server's address and a client."""
    folder = tmp_path / "an atlas"
    shutil.copytree(atlas, folder)
    with running(application(folder, CONFIG, model=Model.load())) as url:
        yield folder, url, OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0)


def test_what_another_process_forgets_leaves_the_server_without_a_request(
    own: tuple[Path, str, OpenAI], model: Model
) -> None:
    folder, url, client = own

    def resident() -> str:
        lines = httpx.get(f"{url}/metrics", timeout=60).text.splitlines()
        return next(line for line in lines if line.startswith("lorewright_adapters_resident"))

    ask(client, "south")
    reply = endless(client)
    assert next(iter(reply)).choices[0].text
    assert resident().endswith(" 2.0")
    drop(folder, "south", model)
    wait_for(lambda: resident().endswith(" 1.0"))  # beside a row that goes on
    drop(folder, "north", model)
    assert "".join(chunk.choices[0].text for chunk in reply)
    wait_for(lambda: resident().endswith(" 0.0"))


@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_damaged_adapter_is_unavailable_without_a_path_and_served_once_mended(
    own: tuple[Path, str, OpenAI], file: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder, _, client = own
    path = folder / "adapters" / Folder(folder).entries()["north"]["adapter"] / file
    good = path.read_bytes()
    path.write_bytes(b'{"a":' * 5000 + b"1" + b"}" * 5000)  # too deep for a JSON parser
    with pytest.raises(openai.InternalServerError) as refused:
        ask(client, "north")
    assert (refused.value.status_code, refused.value.code) == (503, "memory_unavailable")
    assert str(folder.parent) not in refused.value.message
    assert str(path.parent) in caplog.text  # the log has it
    assert text_of(ask(client, "south")) == "QT-77"
    path.write_bytes(good)
    assert text_of(ask(client, "north")) == "KX-41"


def test_a_damaged_index_stops_auto_alone_until_it_is_mended(
    own: tuple[Path, str, OpenAI],
) -> None:
    folder, url, client = own
    index = folder / INDEX_FILE
    good = index.read_text()
    index.write_text("{")
    with pytest.raises(openai.InternalServerError, match="auto") as refused:
        ask(client, "auto")
    assert refused.value.status_code == 503
    trouble = httpx.get(f"{url}/health").json()["trouble"]
    assert "damaged" in trouble
    assert not any(str(folder.parent) in text for text in (refused.value.message, trouble))
    assert text_of(ask(client, "north")) == "KX-41"
    index.write_text(good)
    assert ask(client, "auto").model == "pocket"
    assert httpx.get(f"{url}/health").json()["trouble"] == ""


def test_a_memory_with_a_reserved_name_is_reported_and_not_served(
    own: tuple[Path, str, OpenAI],
) -> None:
    folder, url, client = own
    content = json.loads((folder / INDEX_FILE).read_text())
    for name in ("auto", "pocket"):
        content["memories"][name] = content["memories"]["north"]
    (folder / INDEX_FILE).write_text(json.dumps(content))
    names = [model.id for model in client.models.list()]
    assert sorted(names) == ["auto", "north", "pocket", "south"]
    assert "'auto' has a reserved name" in httpx.get(f"{url}/health").json()["trouble"]
    assert text_of(ask(client, "pocket")) == UNKNOWN


def test_a_memory_that_is_no_adapter_is_reported_and_not_served(
    own: tuple[Path, str, OpenAI],
) -> None:
    folder, url, client = own
    content = json.loads((folder / INDEX_FILE).read_text())
    content["memories"]["north"]["card"] = {"kind": "prefix"}
    (folder / INDEX_FILE).write_text(json.dumps(content))
    assert sorted(model.id for model in client.models.list()) == ["auto", "pocket", "south"]
    trouble = httpx.get(f"{url}/health").json()["trouble"]
    assert "'north' is of kind 'prefix' and is not served" in trouble and "lore ask" in trouble


def test_the_index_of_another_base_is_not_served_by_this_one(
    own: tuple[Path, str, OpenAI],
) -> None:
    folder, url, client = own
    content = json.loads((folder / INDEX_FILE).read_text())
    content["base"] = {**content["base"], "id": "other", "digest": "0" * 64}
    (folder / INDEX_FILE).write_text(json.dumps(content))
    assert {model.id for model in client.models.list()} >= {"pocket"}
    assert "another base" in httpx.get(f"{url}/health").json()["trouble"]


# --- an administrator ----------------------------------------------------------------------------


def admin(url: str, method: str, path: str, body: Any = None, key: str = ADMIN_KEY) -> Any:
    headers = {"authorization": f"Bearer {key}"}
    return httpx.request(method, url + path, json=body, headers=headers, timeout=30)


def test_an_administrator_adds_and_removes_what_the_folder_holds(
    served: str, client: OpenAI, atlas: Path
) -> None:
    identity = Folder(atlas).entries()["north"]["adapter"]
    before = (atlas / INDEX_FILE).read_bytes()
    try:
        added = admin(served, "POST", "/admin/memories", {"name": "alias", "adapter": identity})
        assert added.json()["memories"]["alias"] == identity
        assert text_of(ask(client, "alias")) == "KX-41"
        assert admin(served, "DELETE", "/admin/memories/alias").status_code == 200
        with pytest.raises(openai.NotFoundError):
            ask(client, "alias")
        path = str(atlas / "adapters" / identity)
        loaded = {"lora_name": "as-vllm", "lora_path": path}
        assert "added" in admin(served, "POST", "/v1/load_lora_adapter", loaded).text
        assert text_of(ask(client, "as-vllm")) == "KX-41"
        gone = admin(served, "POST", "/v1/unload_lora_adapter", {"lora_name": "north"})
        assert gone.status_code == 200
        with pytest.raises(openai.NotFoundError):
            ask(client, "north")
    finally:
        names = admin(served, "POST", "/admin/reload").json()["memories"]
    assert set(names) == {"north", "south"}
    assert (atlas / INDEX_FILE).read_bytes() == before


def test_a_name_in_use_changes_its_adapter_only_on_request(
    served: str, client: OpenAI, atlas: Path
) -> None:
    south = Folder(atlas).entries()["south"]["adapter"]
    try:
        body = {"lora_name": "north", "lora_path": south}
        refused = admin(served, "POST", "/v1/load_lora_adapter", body)
        assert refused.status_code == 400
        assert "already been loaded" in refused.json()["error"]["message"]
        assert text_of(ask(client, "north")) == "KX-41"
        again = {"name": "south", "adapter": south}  # what is served already is no change
        assert admin(served, "POST", "/admin/memories", again).status_code == 200
        loaded = admin(served, "POST", "/v1/load_lora_adapter", body | {"load_inplace": True})
        assert loaded.status_code == 200
        assert text_of(ask(client, "north")) == "QT-77"
        for name in ("auto", "pocket"):
            reserved = {"name": name, "adapter": south, "replace": True}
            assert admin(served, "POST", "/admin/memories", reserved).status_code == 400
    finally:
        admin(served, "POST", "/admin/reload")


@pytest.mark.parametrize(
    "path",
    [
        "..",
        "../../etc",
        "/etc",
        "adapters/../../atlas2/adapters/0123456789abcdef",
        "0123456789abcdef",
        "sources",
        "",
        "\x00",
        "a" * 5000,
        "link",
    ],
)
def test_no_path_leads_out_of_the_folder(served: str, atlas: Path, path: str) -> None:
    link = atlas / "link"
    if path == "link" and not link.exists():
        link.symlink_to("/tmp")
    body = {"name": "x", "adapter": path}
    reply = admin(served, "POST", "/admin/memories", body)
    assert reply.status_code == 400, reply.text
    link.unlink(missing_ok=True)


def test_an_adapter_of_another_base_is_not_added(served: str, atlas: Path, model: Model) -> None:
    good = Memory.open(atlas, model).adapter("north")
    foreign = replace(good, base_digest="0" * 64, config=replace(good.config, seed=77))
    identity = adapters.content_id(foreign)
    adapters.save(foreign, atlas / "adapters" / identity)
    reply = admin(served, "POST", "/admin/memories", {"name": "foreign", "adapter": identity})
    shutil.rmtree(atlas / "adapters" / identity)
    assert reply.status_code == 503
    assert "written on" in reply.json()["error"]["message"]


def test_admin_calls_want_their_own_key_and_are_off_by_default(
    served: str, atlas: Path, model: Model
) -> None:
    assert admin(served, "GET", "/admin/memories", key=KEY).status_code == 401
    assert admin(served, "GET", "/admin/memories").status_code == 200
    off = ServeConfig(keys=(KEY,), admin_keys=(ADMIN_KEY,))
    with running(application(atlas, off, model=Model.load())) as url:
        assert admin(url, "GET", "/admin/memories").status_code == 401
        assert admin(url, "POST", "/admin/reload", key=KEY).status_code == 401
    with pytest.raises(ConfigError, match="key of their own"):
        ServeConfig(admin=True)
    with pytest.raises(ConfigError, match="own"):
        ServeConfig(admin=True, keys=(KEY,), admin_keys=(KEY,))


# --- what fuzzing tries ---------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::hypothesis.errors.NonInteractiveExampleWarning")
def test_no_request_breaks_the_server(served: str) -> None:
    headers = {"authorization": f"Bearer {ADMIN_KEY}"}
    schema = schemathesis.openapi.from_url(f"{served}/openapi.json", headers=headers)
    statuses: Counter[int] = Counter()
    for result in schema.get_all_operations():
        operation = result.ok()

        @given(case=operation.as_strategy())
        @settings(max_examples=6, suppress_health_check=list(HealthCheck))
        def no_server_error(case: Any) -> None:
            if isinstance(case.body, dict) and "model" in case.body:
                # invented models are refused at once: let these requests get further
                case.body.update(model="north", max_tokens=4, n=1)
            response = case.call(headers=headers)
            case.validate_response(response, checks=[schemathesis.checks.not_a_server_error])
            statuses[response.status_code] += 1

        no_server_error()
    assert statuses[200] >= 5 and statuses[400] >= 5, statuses  # some got all the way
    assert admin(served, "POST", "/admin/reload").status_code == 200


# --- the command ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_killed_at_work_the_server_loses_no_memory(
    atlas: Path, model: Model, tmp_path: Path
) -> None:
    folder = tmp_path / "atlas"
    shutil.copytree(atlas, folder)
    command = [*LORE, "serve", str(folder), "--port", "0", "--json", "--threads", "1"]
    env = {**os.environ, "LOREWRIGHT_API_KEY": KEY}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as process:
        assert process.stdout
        url = json.loads(process.stdout.readline())["url"]
        client = OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0)
        next(iter(endless(client)))
        put(folder, "late", Memory.open(folder, model).adapter("south"), model)
        assert text_of(ask(client, "late")) == "QT-77"
        process.kill()
    memory = Memory.open(folder, model)
    assert set(memory.names) == {"north", "south", "late"}
    for name in memory.names:
        memory.adapter(name)  # checks what it holds against its content id
    with running(application(folder, CONFIG, model=Model.load())) as url:
        client = OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0)
        assert text_of(ask(client, "late")) == "QT-77"


def test_a_server_that_gets_a_signal_finishes_what_it_began(atlas: Path) -> None:
    with running(application(atlas, CONFIG, model=Model.load())) as url:
        stream = endless(OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0), 60)
        next(iter(stream))
        finishes: list[str | None] = []
        reading = threading.Thread(
            target=lambda: finishes.extend(part.choices[0].finish_reason for part in stream)
        )
        reading.start()
    reading.join(30)
    assert finishes[-1] == "length"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["nowhere"], "no memory"),
        (["{atlas}", "--admin"], "LOREWRIGHT_ADMIN_KEY"),
        (["{atlas}", "--api-key", "short"], "at least 8"),
        (["{atlas}", "--api-key-file", "missing.txt"], "missing.txt"),
        (["{atlas}", "--engine-url", "localhost:1"], "no address"),
        (["{atlas}", "--engine-url", "http://localhost:1", "--engine", "x"], "sglang"),
    ],
)
def test_what_cannot_be_served_is_one_sentence_and_exit_code_2(
    atlas: Path, arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from lorewright.cli import main as cli

    command = ["lore", "serve", *(part.format(atlas=atlas) for part in arguments)]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr(sys, "argv", command)
        cli.main()
    assert ended.value.code == 2
    assert complaint in " ".join(capsys.readouterr().err.split())


def test_key_files_hold_a_key_a_line(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("# of the web front\nfirst-key-of-it\n\nsecond-key-of-it\n")
    assert read_keys(path) == ("first-key-of-it", "second-key-of-it")
    path.write_text("# nothing\n")
    with pytest.raises(ConfigError, match="holds no key"):
        read_keys(path)


# --- the registry --------------------------------------------------------------------------------


def test_a_damaged_index_is_reported_and_the_last_good_one_served(
    atlas: Path, tmp_path: Path
) -> None:
    shutil.copytree(atlas, tmp_path / "atlas")
    registry = Registry(tmp_path / "atlas")
    index = tmp_path / "atlas" / INDEX_FILE
    good = index.read_text()
    index.write_text("{")
    assert set(registry.names) == {"north", "south"}
    assert "damaged" in registry.trouble
    index.write_text(good)
    assert set(registry.names) == {"north", "south"}
    assert registry.trouble == ""
    with pytest.raises(UnknownMemory):
        Registry(tmp_path)


def test_a_listing_shows_the_verdict_of_a_memory_that_has_one(atlas: Path) -> None:
    stored = Path(__file__).parents[1] / "fixtures" / "folder-2026-11-28"
    listed = {entry["id"]: entry for entry in Registry(stored).listing()}
    recall = listed["tide"]["recall"]["paraphrase"]
    assert recall["memory"]["n"] == recall["base"]["n"] == 6
    assert recall["memory"]["recall"] == 1 and recall["base"]["recall"] == 0
    assert "recall" not in listed["phones"] and "recall" not in listed["pocket"]
    assert not any("recall" in entry for entry in Registry(atlas).listing())


def test_without_a_router_auto_is_no_model(atlas: Path) -> None:
    registry = Registry(atlas)
    assert "auto" not in {entry["id"] for entry in registry.listing()}
    with pytest.raises(APIError, match="does not route"):
        registry.routed("x?")
