"""Another language model over HTTP, against a real server on this machine's loopback."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path
from typing import Any

import pytest
from support.endpoints import Answer, Server, completion

from lorewright.errors import ConfigError, DataError, StorageError, TeacherError
from lorewright.knowledge.teacher import connect

SOON = {"retry-after-ms": "1"}
"""A header by which a server shortens the wait before the next try."""


def refusal(server: Server, **settings: Any) -> str:
    """The sentence with which one question fails."""
    with pytest.raises(TeacherError) as caught:
        connect(server.url, **{"model": "tiny", "retries": 1, **settings})(["Hello?"])
    return str(caught.value)


# Requests and replies


def test_replies_come_in_the_order_of_the_prompts(server: Server) -> None:
    def slower_first(prompt: str, n: int) -> Answer:
        time.sleep(0.02 * (5 - int(prompt)))
        return completion(f"reply {prompt}")

    server.reply = slower_first
    ask = connect(server.url, model="tiny", workers=5)
    assert ask([str(i) for i in range(5)]) == [f"reply {i}" for i in range(5)]


def test_requests_are_greedy_and_name_the_model(server: Server) -> None:
    connect(server.url, model="tiny", max_tokens=77)(["Hello?"])
    (request,) = server.requests
    assert request == {
        "model": "tiny",
        "messages": [{"role": "user", "content": "Hello?"}],
        "temperature": 0,
        "max_tokens": 77,
    }


@pytest.mark.parametrize("ending", ["", "/", "/v1", "/v1/"])
def test_root_and_v1_addresses_reach_the_same_path(server: Server, ending: str) -> None:
    connect(server.url + ending, model="tiny")(["Hello?"])
    assert server.paths == ["/v1/chat/completions"]


def test_no_prompts_send_nothing(server: Server) -> None:
    assert connect(server.url, model="tiny")([]) == []
    assert server.paths == []


def test_equal_prompts_are_sent_once(server: Server) -> None:
    assert connect(server.url, model="tiny")(["a", "b", "a"]) == ["re: a", "re: b", "re: a"]
    assert sorted(server.prompts) == ["a", "b"]


def test_the_only_model_is_chosen(server: Server) -> None:
    connect(server.url)(["Hello?"])
    assert server.paths == ["/v1/models", "/v1/chat/completions"]
    assert server.requests[0]["model"] == "tiny"


def test_several_models_must_be_chosen_from(server: Server) -> None:
    server.models = ["large", "small"]
    with pytest.raises(ConfigError, match=r"2 models \(large, small\); choose one by model="):
        connect(server.url)


def test_an_address_may_name_the_model(server: Server) -> None:
    server.models = ["large", "small"]
    connect(f"{server.url}/v1#small")(["Hello?"])
    assert server.requests[0]["model"] == "small" and server.paths == ["/v1/chat/completions"]
    connect(f"{server.url}#small", model="large")(["Hello?"])
    assert server.requests[1]["model"] == "large"


def test_a_server_without_models_is_refused(server: Server) -> None:
    server.models = []
    with pytest.raises(TeacherError, match="names no models"):
        connect(server.url)


def test_the_key_is_sent_and_the_first_variable_wins(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect(server.url, model="tiny")(["none"])
    monkeypatch.setenv("OPENAI_API_KEY", "second")
    connect(server.url, model="tiny")(["second"])
    monkeypatch.setenv("LOREWRIGHT_API_KEY", "first")
    connect(server.url, model="tiny")(["first"])
    connect(server.url, model="tiny", api_key="given\n")(["given"])
    connect(server.url, model="tiny", api_key="")(["given as none"])
    assert server.keys == [None, "Bearer second", "Bearer first", "Bearer given", None]


# Trying again


@pytest.mark.parametrize("status", [429, 500, 503])
def test_passing_trouble_is_tried_again(server: Server, status: int) -> None:
    server.reply = lambda prompt, n: (status, b"busy", SOON) if n < 2 else completion("at last")
    assert connect(server.url, model="tiny", retries=2)(["Hello?"]) == ["at last"]


def test_a_dropped_connection_is_tried_again(server: Server) -> None:
    server.reply = lambda prompt, n: None if n == 0 else completion("at last")
    assert connect(server.url, model="tiny", retries=1)(["Hello?"]) == ["at last"]


def test_a_timeout_is_tried_again(server: Server) -> None:
    def slow_once(prompt: str, n: int) -> Answer:
        if n == 0:
            time.sleep(0.6)
        return completion("at last")

    server.reply = slow_once
    ask = connect(server.url, model="tiny", retries=1, timeout_seconds=0.3)
    assert ask(["Hello?"]) == ["at last"]


def test_the_wait_that_the_server_requests_is_respected(server: Server) -> None:
    wait = {"Retry-After": "1"}
    server.reply = lambda prompt, n: (429, b"", wait) if n == 0 else completion("at last")
    started = time.monotonic()
    connect(server.url, model="tiny")(["Hello?"])
    assert time.monotonic() - started >= 1


def test_lasting_trouble_is_given_up_with_the_count_and_the_reason(server: Server) -> None:
    body = json.dumps({"error": {"message": "no credit left"}}).encode()
    server.reply = lambda prompt, n: (429, body, SOON)
    message = refusal(server, retries=2)
    assert "3 times; it answered 429 (no credit left); wait" in message
    assert len(server.requests) == 3


def test_a_refused_request_is_not_tried_again(server: Server) -> None:
    server.reply = lambda prompt, n: (400, b'{"error": "prompt too long"}', {})
    assert "once; it answered 400 (prompt too long)" in refusal(server, retries=3)
    assert len(server.requests) == 1


# Sentences


def test_unreachable_says_so(server: Server) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        url = f"http://user:secret@127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(TeacherError, match="cannot be reached") as caught:
            connect(url, retries=0)
    assert "secret" not in str(caught.value)


def test_silence_says_how_long_was_waited(server: Server) -> None:
    def silent(prompt: str, n: int) -> None:
        time.sleep(0.3)

    server.reply = silent
    message = refusal(server, timeout_seconds=0.1, retries=1)
    assert "2 times; no answer within 0.1 s; give more timeout_seconds" in message


@pytest.mark.parametrize("status", [401, 403])
def test_refused_keys_say_where_to_give_one_and_never_show_it(server: Server, status: int) -> None:
    server.reply = lambda prompt, n: (status, b'{"error": {"message": "bad key: sk-123"}}', {})
    message = refusal(server, api_key="sk-123")
    assert f"it answered {status} (bad key: …); the key was refused" in message
    assert "no key was given; give api_key= or set LOREWRIGHT_API_KEY" in refusal(server)


def test_not_found_asks_for_address_and_model(server: Server) -> None:
    server.reply = lambda prompt, n: (404, b'{"error": {"message": "no model tiny"}}', {})
    assert "404 (no model tiny); check the address" in refusal(server)


def test_a_redirect_is_shown_and_not_followed(server: Server) -> None:
    server.reply = lambda prompt, n: (301, b"", {"Location": f"{server.url}/elsewhere"})
    assert "it answered 301; give the address" in refusal(server)
    assert len(server.requests) == 1


def test_a_web_page_is_not_json(server: Server) -> None:
    server.reply = lambda prompt, n: (200, b"<html>Welcome</html>", {})
    assert "not JSON (it begins '<html>Welcome</html>')" in refusal(server)


def test_a_json_list_is_not_a_reply(server: Server) -> None:
    server.reply = lambda prompt, n: (200, b"[1]", {})
    assert "a JSON list, not an object" in refusal(server)


@pytest.mark.parametrize("body", [b"{}", b'{"choices": []}', b'{"choices": [3]}'])
def test_no_choices_are_named(server: Server, body: bytes) -> None:
    server.reply = lambda prompt, n: (200, body, {})
    assert "the reply holds no choices" in refusal(server)


@pytest.mark.parametrize("text", [None, "", " \n"])
def test_an_empty_reply_is_refused(server: Server, text: str | None) -> None:
    server.reply = lambda prompt, n: completion(text)
    assert "the reply is empty" in refusal(server)


def test_a_reply_cut_off_is_refused(server: Server) -> None:
    server.reply = lambda prompt, n: completion("Q: Who? A: An", finish="length")
    assert "cut off at max_tokens=9" in refusal(server, max_tokens=9)


@pytest.mark.parametrize("url", ["", "localhost:8000", "ftp://host", "http://", "http://h:x/v1"])
def test_what_is_no_address_is_refused_before_anything_is_sent(url: str) -> None:
    with pytest.raises(ConfigError, match="url"):
        connect(url, model="tiny")


@pytest.mark.parametrize(
    "settings",
    [{"timeout_seconds": 0}, {"max_tokens": 0}, {"retries": -1}, {"workers": 0}, {"api_key": "ü"}],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        connect("http://localhost", model="tiny", **settings)


# What is stored


def test_an_interrupted_job_sends_nothing_twice(server: Server, tmp_path: Path) -> None:
    cache = tmp_path / "new" / "replies.jsonl"
    server.reply = lambda prompt, n: completion("fine") if prompt != "c" else (400, b"", {})
    with pytest.raises(TeacherError):
        connect(server.url, model="tiny", workers=1, cache=cache)(["a", "b", "c", "d"])
    server.requests.clear()
    server.reply = lambda prompt, n: completion("later")
    replies = connect(server.url, model="tiny", workers=1, cache=cache)(["a", "b", "c", "d"])
    assert replies == ["fine", "fine", "later", "later"]
    assert server.prompts == ["c", "d"]


def test_a_failure_stops_what_was_not_yet_sent(server: Server) -> None:
    server.reply = lambda prompt, n: (400, b"", {})
    with pytest.raises(TeacherError, match="400"):
        connect(server.url, model="tiny", workers=2)([str(i) for i in range(200)])
    assert len(server.requests) <= 4


def test_another_model_or_prompt_is_sent_anew(server: Server, tmp_path: Path) -> None:
    cache = tmp_path / "replies.jsonl"
    for model, prompt in (("tiny", "a"), ("other", "a"), ("tiny", "a "), ("tiny", "a")):
        connect(server.url, model=model, cache=cache)([prompt])
    assert [(r["model"], r["messages"][0]["content"]) for r in server.requests] == [
        ("tiny", "a"),
        ("other", "a"),
        ("tiny", "a "),
    ]


def test_everything_stored_needs_no_server(server: Server, tmp_path: Path) -> None:
    cache = tmp_path / "replies.jsonl"
    odd = "ü \u2028 \ud83d\ude00 \udc80 end"  # a lone surrogate, which JSON can carry
    server.reply = lambda prompt, n: completion(odd)
    first = connect(server.url, model="tiny", cache=cache)(["a"])
    again = connect("http://127.0.0.1:1", model="tiny", cache=cache)(["a"])
    assert again == first
    assert len(server.requests) == 1


def test_half_a_last_line_is_dropped_and_sent_again(server: Server, tmp_path: Path) -> None:
    cache = tmp_path / "replies.jsonl"
    connect(server.url, model="tiny", workers=1, cache=cache)(["a", "b"])
    cache.write_bytes(cache.read_bytes()[:-7])
    server.requests.clear()
    for _ in range(2):
        replies = connect(server.url, model="tiny", cache=cache)(["a", "b"])
        assert replies == ["re: a", "re: b"]
    assert server.prompts == ["b"]


@pytest.mark.parametrize("content", [b"my notes", b"caf\xe9\n", b'{"a": 1}\n', b"[1]\n", b"x\ny"])
def test_a_file_of_something_else_is_refused_and_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    with pytest.raises(DataError):
        connect("http://localhost", model="tiny", cache=path)
    assert path.read_bytes() == content


def test_a_folder_cannot_hold_replies(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot be stored"):
        connect("http://localhost", model="tiny", cache=tmp_path)


def test_the_key_is_not_stored(server: Server, tmp_path: Path) -> None:
    cache = tmp_path / "replies.jsonl"
    connect(server.url, model="tiny", api_key="sk-123", cache=cache)(["a"])
    assert "sk-123" not in cache.read_text()
