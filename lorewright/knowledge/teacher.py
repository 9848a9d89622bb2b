"""A language model behind an OpenAI-compatible address, as a function from prompts to replies.

For whoever wants something larger than the base to write questions about a document. What comes
back is the ``AskLLM`` that ``views`` takes. Replies are asked for at temperature 0 and can be kept
on disk, so that an interrupted job asks nothing twice.

This room knows HTTP and the chat-completions shape. It knows nothing of documents, of what the
prompts say, of torch or of the base model.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from lorewright.errors import ConfigError, DataError, LorewrightError, StorageError, TeacherError
from lorewright.files import digest, jsonl_rows
from lorewright.knowledge.selfstudy import AskLLM

if TYPE_CHECKING:
    import httpx

KEY_VARIABLES = ("LOREWRIGHT_API_KEY", "OPENAI_API_KEY")
"""Environment variables that may hold the key; the first that is set counts."""
FIRST_WAIT_SECONDS = 0.5
"""Wait before the first retry; it doubles with each further one."""
MAX_WAIT_SECONDS = 30.0
"""Longest wait before a retry, also when the server asks for more."""
CONNECT_SECONDS = 10.0
"""Longest wait for a connection; the rest of the time-out is for the reply."""
SAID_CHARS = 200
"""How much of a server's own message is quoted in an error, in characters."""


def connect(
    url: str,
    *,
    model: str | None = None,
    api_key: str | None = None,
    timeout_seconds: float = 120,
    max_tokens: int = 1024,
    retries: int = 3,
    workers: int = 4,
    cache: Path | None = None,
) -> AskLLM:
    """Return a function that puts prompts to the model at ``url`` and gives its replies in order.

    ``url`` is the server's root or ends in /v1; ``url#name`` names the model too, where ``model``
    does not. Without either the server is asked which one it has. 429, 5xx, time-outs and dropped
    connections are tried again ``retries`` times; ``cache`` is a JSON-lines file of replies by
    (model, prompt). Raises ConfigError for settings that do not fit or a choice of several models;
    TeacherError, also later, when no usable reply comes; a reply cut off at ``max_tokens`` is
    refused, since half an answer would be learnt as a whole one.
    """
    for name, value in (("timeout_seconds", timeout_seconds), ("max_tokens", max_tokens)):
        if not value > 0:
            raise ConfigError(f"{name} must be above 0; found {value}.")
    if retries < 0 or workers < 1:
        raise ConfigError(
            f"retries is {retries} and workers {workers}; give at least 0 and at least 1."
        )
    address, _, named = url.partition("#")
    server = _Server(_root(address), _key(api_key), timeout_seconds, retries)
    with server.client() as client:
        chosen = model or named or _only_model(server, client)
    replies = _Replies(cache)

    def ask(prompts: list[str]) -> list[str]:
        keys = [digest([chosen, prompt]) for prompt in prompts]
        missing = {
            key: prompt for key, prompt in zip(keys, prompts, strict=True) if key not in replies.by
        }
        if missing:
            _ask_all(server, chosen, missing, replies, max_tokens=max_tokens, workers=workers)
        return [replies.by[key] for key in keys]

    return ask


def _root(url: str) -> str:
    """The address that /chat/completions is appended to."""
    root = url.strip().rstrip("/")
    try:
        parts = urlsplit(root)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and not parts.query
        usable = usable and parts.port != 0  # reading the port checks it
    except ValueError:
        usable = False
    if not usable:
        raise ConfigError(
            f"url {url!r} is not an address of a server; give one such as http://localhost:8000/v1."
        )
    return root if root.endswith("/v1") else f"{root}/v1"


def _key(api_key: str | None) -> str:
    given = [api_key] if api_key is not None else [os.environ.get(v, "") for v in KEY_VARIABLES]
    key = next((value.strip() for value in given if value and value.strip()), "")
    if not key.isascii() or not key.isprintable():
        raise ConfigError("the API key holds characters that no key has; copy it again.")
    return key


@dataclass(frozen=True)
class _Server:
    """Where to ask, and how patiently."""

    root: str
    key: str = field(repr=False)
    timeout_seconds: float
    retries: int

    @property
    def shown(self) -> str:
        """The address for messages, without a password that may stand in it."""
        parts = urlsplit(self.root)
        return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()

    def client(self) -> httpx.Client:
        """An HTTP client; the caller closes it."""
        try:
            import httpx
        except ImportError as error:
            raise ConfigError(
                "asking another language model needs httpx, which is not installed; run "
                "`pip install httpx`."
            ) from error
        return httpx.Client(
            headers={"Authorization": f"Bearer {self.key}"} if self.key else {},
            timeout=httpx.Timeout(
                self.timeout_seconds, connect=min(CONNECT_SECONDS, self.timeout_seconds)
            ),
        )

    def said(self, response: httpx.Response) -> str:
        """What the server gave as its reason, shortened, in brackets; the key never."""
        try:
            body = response.json()
        except ValueError:
            body = response.text
        inner = body.get("error", body) if isinstance(body, dict) else body
        reason = inner.get("message", inner) if isinstance(inner, dict) else inner
        text = " ".join(str(reason).split())
        if self.key:
            text = text.replace(self.key, "…")
        return f" ({text[:SAID_CHARS]})" if text else ""


# -- one request ---------------------------------------------------------------------------------


def _only_model(server: _Server, client: httpx.Client) -> str:
    never = threading.Event()
    body = _request(server, lambda: client.get(f"{server.root}/models"), "its models", never)
    rows = body.get("data")
    ids = [row.get("id") for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    names: list[str] = [name for name in ids if isinstance(name, str) and name]
    if not names:
        raise TeacherError(
            f"asked {server.shown} which models it has; it names none; load one or give model=."
        )
    if len(names) > 1:
        some = ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
        raise ConfigError(
            f"{server.shown} has {len(names)} models ({some}); choose one by model=, or in the "
            f"address: {server.shown}#{names[0]}."
        )
    return names[0]


def _reply(
    server: _Server,
    client: httpx.Client,
    model: str,
    prompt: str,
    max_tokens: int,
    stop: threading.Event,
) -> str:
    body = _request(
        server,
        lambda: client.post(
            f"{server.root}/chat/completions",
            json={
                "model": model,
                "messages": [{"role": "user", "content": prompt}],
                "temperature": 0,
                "max_tokens": max_tokens,
            },
        ),
        f"model {model!r}",
        stop,
    )
    asked = f"asked model {model!r} at {server.shown}"
    choices = body.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise TeacherError(
            f"{asked}; the reply holds no choices (keys found: {', '.join(sorted(body)) or 'none'})"
            "; check that this is a chat-completions server."
        )
    message = choices[0].get("message")
    text = message.get("content") if isinstance(message, dict) else None
    if choices[0].get("finish_reason") == "length":
        raise TeacherError(
            f"{asked}; a reply was cut off at max_tokens={max_tokens}; give more, or a model that "
            "says less."
        )
    if not isinstance(text, str) or not text.strip():
        raise TeacherError(
            f"{asked}; the reply is empty; try another model, or look whether it only 'thinks' "
            f"within max_tokens={max_tokens}."
        )
    return text


def _request(
    server: _Server, send: Callable[[], httpx.Response], what: str, stop: threading.Event
) -> Mapping[str, Any]:
    """Send until there is an answer worth having, and return its JSON object."""
    import httpx

    n_tries = 0
    while not stop.is_set():
        n_tries += 1
        wait_seconds = min(MAX_WAIT_SECONDS, FIRST_WAIT_SECONDS * 2 ** (n_tries - 1))
        try:
            response = send()
        except httpx.InvalidURL as error:
            raise ConfigError(f"url {server.shown!r} is not an address ({error}).") from error
        except httpx.ConnectError as error:
            raise TeacherError(
                f"{server.shown} cannot be reached ({error}); check the address and whether the "
                "server runs."
            ) from error
        except httpx.RequestError as error:
            if n_tries > server.retries:
                raise _no_answer(server, what, n_tries, error) from error
        else:
            passing = response.status_code == 429 or response.status_code >= 500
            if n_tries > server.retries or not passing:
                return _body(server, response, what, n_tries)
            wait_seconds = _asked_wait_seconds(response) or wait_seconds
        stop.wait(wait_seconds)
    raise TeacherError(f"asked {server.shown} for {what}; given up, as another request failed.")


def _no_answer(server: _Server, what: str, n_tries: int, error: httpx.RequestError) -> TeacherError:
    import httpx

    slow = isinstance(error, httpx.TimeoutException)
    found = f"no answer within {server.timeout_seconds:g} s" if slow else f"{error}"
    todo = "give more timeout_seconds or fewer workers" if slow else "look into the server's log"
    return TeacherError(
        f"asked {server.shown} for {what}, {_times(n_tries)}; {found or 'it hung up'}; {todo}."
    )


def _times(n: int) -> str:
    return "once" if n == 1 else f"{n} times"


def _asked_wait_seconds(response: httpx.Response) -> float | None:
    """What Retry-After says in seconds, within our limit; its date form is passed over."""
    text = response.headers.get("retry-after", "")
    return min(MAX_WAIT_SECONDS, float(text)) if text.isascii() and text.isdigit() else None


def _body(server: _Server, response: httpx.Response, what: str, n_tries: int) -> Mapping[str, Any]:
    status = response.status_code
    if status != 200:
        asked = f"asked {server.shown} for {what}, {_times(n_tries)}"
        raise TeacherError(
            f"{asked}; it answered {status}{server.said(response)}; {_remedy(status, server)}."
        )
    try:
        body = response.json()
    except ValueError as error:
        found = " ".join(response.text.split())[:60]
        raise TeacherError(
            f"asked {server.shown} for {what}; the answer is not JSON (it begins {found!r}); check "
            "that the address is the API's and not a web page's."
        ) from error
    if not isinstance(body, dict):
        raise TeacherError(
            f"asked {server.shown} for {what}; the answer is a JSON {type(body).__name__}, not an "
            "object; check that this is an OpenAI-compatible server."
        )
    return body


def _remedy(status: int, server: _Server) -> str:
    if status in (401, 403):
        held = "the key was refused" if server.key else "no key was given"
        return f"{held}; give api_key= or set {KEY_VARIABLES[0]}"
    if 300 <= status < 400:
        return "give the address that it redirects to"
    if status == 404:
        return "check the address (its root, or up to /v1) and the model's name"
    if status == 429:
        return "wait, ask with fewer workers, or look at the account's limits"
    if status >= 500:
        return "look into the server's log"
    return "change what it objects to"


# -- many requests, and what is kept of them -----------------------------------------------------


def _ask_all(
    server: _Server,
    model: str,
    prompts: Mapping[str, str],
    replies: _Replies,
    *,
    max_tokens: int,
    workers: int,
) -> None:
    """Ask every prompt once; the first failure ends it, and what came by then is kept."""
    stop = threading.Event()
    failures: list[LorewrightError] = []
    with server.client() as client, ThreadPoolExecutor(workers) as pool:

        def one(key: str, prompt: str) -> None:
            if stop.is_set():
                return
            try:
                replies.keep(key, _reply(server, client, model, prompt, max_tokens, stop), model)
            except LorewrightError as error:
                failures.append(error)
                stop.set()

        try:
            futures = [pool.submit(one, key, prompt) for key, prompt in prompts.items()]
            for future in as_completed(futures):
                future.result()
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)
    if failures:  # the first is the cause; later ones were given up because of it
        raise failures[0]


class _Replies:
    """Replies by digest of (model, prompt): in memory and, given a file, on disk as they come."""

    def __init__(self, path: Path | None) -> None:
        self.path = Path(path) if path is not None else None
        self.by: dict[str, str] = {}
        self.lock = threading.Lock()
        if self.path is not None:
            self._load(self.path)

    def _load(self, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            content = path.read_bytes() if path.exists() else b""
        except OSError as error:
            raise _refused(path, error) from error
        whole = content.rfind(b"\n") + 1
        # A process killed while writing leaves the start of a line, at the end only. Anything else
        # there means that this is another kind of file, which must stay as it is.
        tail = content[whole:]
        if not _LINE_START.startswith(tail[: len(_LINE_START)]):
            raise DataError(f"{path} is no file of kept replies; name another one, or a new one.")
        try:
            text = content[:whole].decode("ascii")
        except UnicodeDecodeError as error:
            raise DataError(f"{path} is no file of kept replies ({error}).") from error
        for row in jsonl_rows(text, path):
            key, reply = row.values.get("key"), row.values.get("reply")
            if not isinstance(key, str) or not isinstance(reply, str):
                raise DataError(
                    f"{path} line {row.line} is no kept reply: it lacks key or reply; name "
                    "another file."
                )
            self.by[key] = reply
        try:
            if tail:
                os.truncate(path, whole)
        except OSError as error:
            raise _refused(path, error) from error

    def keep(self, key: str, reply: str, model: str) -> None:
        """Remember a reply; on disk it is a whole line once this returns."""
        with self.lock:
            if self.path is not None:
                line = json.dumps({"key": key, "model": model, "reply": reply}) + "\n"
                try:
                    with self.path.open("ab") as file:
                        file.write(line.encode("ascii"))
                except OSError as error:
                    raise _refused(self.path, error) from error
            self.by[key] = reply


_LINE_START = b'{"key": "'


def _refused(path: Path, error: OSError) -> StorageError:
    return StorageError(
        f"asked to keep replies in {path}; the disk said: {error}; name another file."
    )
