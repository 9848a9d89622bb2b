"""A language model behind an OpenAI-compatible address, as a function from prompts to replies.

For whoever wants something larger than the base to write questions about a document. The `openai`
client (`pip install 'lorewright[teacher]'`) sends, waits and tries again. Replies are requested at
temperature 0 and can be stored on disk, so that an interrupted job sends nothing twice.
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

from lorewright.errors import ConfigError, DataError, StorageError, TeacherError
from lorewright.files import digest, jsonl_rows
from lorewright.knowledge.selfstudy import AskLLM

if TYPE_CHECKING:
    import openai

KEY_VARIABLES = ("LOREWRIGHT_API_KEY", "OPENAI_API_KEY")
"""Environment variables that may hold the key; the first that is set counts."""
CONNECT_SECONDS = 10.0
"""Longest wait for a connection; the rest of the time-out is for the reply."""
QUOTED_CHARS = 200
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
    does not. Without either the server must have exactly one. 429, 5xx, time-outs and dropped
    connections are tried again ``retries`` times; ``cache`` is a JSON-lines file of replies by
    (model, prompt). Raises ConfigError for settings that do not fit or a choice of several models;
    TeacherError, also later, when no usable reply comes; a reply cut off at ``max_tokens`` is
    refused, since half an answer would be learnt as a whole one.
    """
    for name, value in (("timeout_seconds", timeout_seconds), ("max_tokens", max_tokens)):
        if not value > 0:
            raise ConfigError(f"{name} is {value}; give a number above 0.")
    if retries < 0 or workers < 1:
        raise ConfigError(
            f"retries is {retries} and workers {workers}; give at least 0 and at least 1."
        )
    address, _, in_url = url.partition("#")
    server = _Server(_root(address), _key(api_key), timeout_seconds, retries)
    chosen = model or in_url or _only_model(server)
    stored = ReplyCache(cache)

    def ask(prompts: list[str]) -> list[str]:
        keys = [digest([chosen, prompt]) for prompt in prompts]
        pairs = zip(keys, prompts, strict=True)
        missing = {key: prompt for key, prompt in pairs if key not in stored.replies}
        if missing:
            send = _sender(server, chosen, max_tokens)
            _send_all(send, missing, lambda key, reply: stored.add(key, reply, chosen), workers)
        return [stored.replies[key] for key in keys]

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
    keys = [api_key] if api_key is not None else [os.environ.get(v, "") for v in KEY_VARIABLES]
    key = next((key.strip() for key in keys if key and key.strip()), "")
    if not key.isascii() or not key.isprintable():
        raise ConfigError("the API key holds characters that no key has; copy it again.")
    return key


AskOne = Callable[[str], str]
"""A prompt to its reply."""


# --- one request -------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Server:
    """Where to send requests, and how patiently."""

    root: str
    key: str = field(repr=False)
    timeout_seconds: float
    retries: int

    @property
    def shown(self) -> str:
        """The address for messages, without a password that may stand in it."""
        parts = urlsplit(self.root)
        return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()

    def client(self) -> openai.OpenAI:
        """The client, which threads may share."""
        try:
            import openai
        except ImportError as error:
            raise ConfigError(
                "another language model is reached through the openai client, which is not "
                "installed; run `pip install 'lorewright[teacher]'`."
            ) from error
        seconds = self.timeout_seconds
        timeout = openai.Timeout(seconds, connect=min(CONNECT_SECONDS, seconds))
        return openai.OpenAI(
            api_key=self.key or "none",  # there is no client without one; see `headers`
            base_url=self.root,
            max_retries=self.retries,
            timeout=timeout,
            # A redirect of a POST would drop its body.
            http_client=openai.DefaultHttpxClient(follow_redirects=False, timeout=timeout),
        )

    def headers(self) -> dict[str, Any]:
        """What a request without a key leaves out: local servers need none."""
        import openai

        return {} if self.key else {"Authorization": openai.Omit()}

    def json(self, request: Callable[[], Any], what: str) -> Mapping[str, Any]:
        """The JSON object that a request returns; raises TeacherError for anything else."""
        import openai

        again = "once" if not self.retries else f"{self.retries + 1} times"
        try:
            text = str(request().http_response.text)
        except openai.APITimeoutError as error:
            raise TeacherError(
                f"{self.shown} did not give {what}, {again}; no answer within "
                f"{self.timeout_seconds:g} s; give more timeout_seconds or fewer workers."
            ) from error
        except openai.APIConnectionError as error:
            raise TeacherError(
                f"{self.shown} cannot be reached or hung up, {again} ({error.__cause__ or error}); "
                "check the address and whether the server runs."
            ) from error
        except openai.APIStatusError as error:
            status = error.status_code
            tries = again if status in (408, 409, 429) or status >= 500 else "once"
            raise TeacherError(
                f"{self.shown} did not give {what}, {tries}; it answered "
                f"{status}{self._reason(error.body)}; {self._remedy(status)}."
            ) from error
        try:
            body = json.loads(text)
        except ValueError as error:
            raise TeacherError(
                f"{self.shown} did not give {what}; the answer is not JSON (it begins "
                f"{' '.join(text.split())[:60]!r}); check that the address is the API's and not a "
                "web page's."
            ) from error
        if not isinstance(body, dict):
            raise TeacherError(
                f"{self.shown} did not give {what}; the answer is a JSON {type(body).__name__}, "
                "not an object; check that this is an OpenAI-compatible server."
            )
        return body

    def _reason(self, body: object) -> str:
        """What the server gave as its reason, shortened, in brackets; the key never."""
        reason = body.get("message", body) if isinstance(body, dict) else body
        text = " ".join(str(reason or "").split())
        if self.key:
            text = text.replace(self.key, "…")
        return f" ({text[:QUOTED_CHARS]})" if text else ""

    def _remedy(self, status: int) -> str:
        if status in (401, 403):
            problem = "the key was refused" if self.key else "no key was given"
            return f"{problem}; give api_key= or set {KEY_VARIABLES[0]}"
        if 300 <= status < 400:
            return "give the address that it redirects to"
        if status >= 500:
            return "look into the server's log"
        return {
            404: "check the address (its root, or up to /v1) and the model's name",
            429: "wait, ask with fewer workers, or look at the account's limits",
        }.get(status, "change what it objects to")


def _only_model(server: _Server) -> str:
    listed = server.client().models.with_raw_response.list
    body = server.json(lambda: listed(extra_headers=server.headers()), "its models")
    rows = body.get("data")
    ids = [row.get("id") for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    names: list[str] = [name for name in ids if isinstance(name, str) and name]
    if not names:
        raise TeacherError(f"{server.shown} names no models; load one or give model=.")
    if len(names) > 1:
        some = ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
        raise ConfigError(
            f"{server.shown} has {len(names)} models ({some}); choose one by model=, or in the "
            f"address: {server.shown}#{names[0]}."
        )
    return names[0]


def _sender(server: _Server, model: str, max_tokens: int) -> AskOne:
    """A function that returns the reply to one prompt, and refuses one that is no whole text."""
    create = server.client().chat.completions.with_raw_response.create
    about = f"{server.shown} did not give a reply of model {model!r}"

    def send(prompt: str) -> str:
        body = server.json(
            lambda: create(
                model=model,
                messages=[{"role": "user", "content": prompt}],
                temperature=0,
                max_tokens=max_tokens,
                extra_headers=server.headers(),
            ),
            f"a reply of model {model!r}",
        )
        choices = body.get("choices")
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
            raise TeacherError(
                f"{about}; the reply holds no choices (keys: {', '.join(sorted(body)) or 'none'}); "
                "check that this is a chat-completions server."
            )
        if choices[0].get("finish_reason") == "length":
            raise TeacherError(
                f"{about}; the reply was cut off at max_tokens={max_tokens}; give more, or a model "
                "that says less."
            )
        message = choices[0].get("message")
        text = message.get("content") if isinstance(message, dict) else None
        if not isinstance(text, str) or not text.strip():
            raise TeacherError(
                f"{about}; the reply is empty; try another model, or look whether it only 'thinks' "
                f"within max_tokens={max_tokens}."
            )
        return text

    return send


# --- many requests, and where their replies are stored -----------------------------------------


def _send_all(
    send: AskOne, prompts: Mapping[str, str], store: Callable[[str, str], None], workers: int
) -> None:
    """Send every prompt once and store each reply; the first failure ends it."""
    stop = threading.Event()

    def one(key: str, prompt: str) -> None:
        if not stop.is_set():
            try:
                store(key, send(prompt))
            except BaseException:
                stop.set()
                raise

    with ThreadPoolExecutor(workers) as pool:
        try:
            futures = [pool.submit(one, key, prompt) for key, prompt in prompts.items()]
            for future in as_completed(futures):
                future.result()
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)


_LINE_START = b'{"key": "'


class ReplyCache:
    """Replies by digest of (model, prompt): in memory and, given a file, on disk as they come.

    Raises DataError for a file of something else, StorageError when the disk refuses.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = Path(path) if path is not None else None
        self.replies: dict[str, str] = {}
        self.lock = threading.Lock()
        if self.path is not None:
            try:
                self._load(self.path)
            except OSError as error:
                raise _refused(self.path, error) from error

    def _load(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        content = path.read_bytes() if path.exists() else b""
        whole = content.rfind(b"\n") + 1
        # A process killed while writing leaves the start of a line, at the end only. Anything else
        # there means that this is another kind of file, which must stay as it is.
        tail = content[whole:]
        if not _LINE_START.startswith(tail[: len(_LINE_START)]) or not content.isascii():
            raise DataError(f"{path} is no file of stored replies; name another one, or a new one.")
        for row in jsonl_rows(content[:whole].decode("ascii"), path):
            key, reply = row.values.get("key"), row.values.get("reply")
            if not isinstance(key, str) or not isinstance(reply, str):
                raise DataError(
                    f"{path} line {row.line} is no stored reply: it lacks key or reply; name "
                    "another file."
                )
            self.replies[key] = reply
        if tail:
            os.truncate(path, whole)

    def add(self, key: str, reply: str, model: str) -> None:
        """Remember a reply; on disk it is a whole line once this returns."""
        with self.lock:
            if self.path is not None:
                line = json.dumps({"key": key, "model": model, "reply": reply}) + "\n"
                try:
                    with self.path.open("ab") as file:
                        file.write(line.encode("ascii"))
                except OSError as error:
                    raise _refused(self.path, error) from error
            self.replies[key] = reply


def _refused(path: Path, error: OSError) -> StorageError:
    return StorageError(f"replies cannot be stored in {path}: {error}; name another file.")
