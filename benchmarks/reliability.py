"""What a folder and its server withstand: malformed requests, kill -9, a full disk, two writers, many requests.

    python benchmarks/reliability.py fuzz  --n 5000      no request may end in status 5xx, or spoil the next answer
    python benchmarks/reliability.py kills --n 20        of each verb and of a server: nothing lost, same bytes after resumption
    python benchmarks/reliability.py soak  --n 10000     resident memory over as many requests: slope with its interval
    python benchmarks/reliability.py disk                each verb on a disk with so many bytes left, and again with space
    python benchmarks/reliability.py race  --n 20        two verbs in one folder at the same moment

On the embedded base. Every trial has a seed of its own, from --seed and its number; what is done lies in
--out/<command>.jsonl, a line a trial, and the same command goes on after the last line. The exit code is 1 where a
trial failed; its line says how.

A killed process is a fork of this one that runs the verb. Even trials kill it at a file operation that is drawn
(seen by an audit hook), odd ones at a time that is drawn. `same bytes` compares names, content ids, sources, and the
files of every adapter with those after the verb alone. `disk` mounts a small tmpfs, and as another user than root
limits the size of files (RLIMIT_FSIZE) instead.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
from ratio import machine

from lorewright.adapters.config import LoraConfig
from lorewright.cli.terminal import Exit, exit_of
from lorewright.errors import LorewrightError
from lorewright.files import jsonl, load_jsonl
from lorewright.knowledge.data import Fact, Knowledge, Probe
from lorewright.knowledge.lesson import LessonConfig
from lorewright.memory.folder import Folder
from lorewright.memory.memory import Memory
from lorewright.models.model import Model
from lorewright.recall.statistics import wilson
from lorewright.serve.config import ServeConfig
from lorewright.serve.server import serve
from lorewright.training.config import WriteConfig
from lorewright.training.rates import suggested_lr

NAMES = ("Alder", "Bram", "Cedar", "Dune", "Elm", "Fenn", "Gorse", "Heath", "Ivy", "Jarrow")
PEOPLE = ("Mirela Oduya", "Jon Alder", "Lotta Brisk", "Ines Varga", "Tobin Ashe", "Selma Quist")
SUBJECTS = {"depots": "depot", "bees": "hive", "mills": "mill", "docks": "dock"}
"""Memories and what their facts are about; the last one is written by the trials."""
NEW = "docks"
N_FACTS = 6


# --- the folder that trials begin with -----------------------------------------------------------


def knowledge_of(name: str, shift: int = 0) -> Knowledge:
    """Six facts of one memory; `shift` changes one answer."""
    rng = random.Random(name)
    people = rng.sample(PEOPLE, N_FACTS)
    people[0] = PEOPLE[(PEOPLE.index(people[0]) + shift) % len(PEOPLE)]
    places = rng.sample(NAMES, N_FACTS)
    return Knowledge(
        (),
        tuple(
            Fact(f"{name}-{i}", f"Who runs the {place} {SUBJECTS[name]}?", person)
            for i, (place, person) in enumerate(zip(places, people, strict=True))
        ),
    )


def written(model: Model, folder: Path, name: str) -> object:
    """A memory, with its own questions as the only probes, so that a verdict takes little time."""
    knowledge = knowledge_of(name)
    return Memory.open(folder, model).write(
        knowledge,
        name=name,
        config=WriteConfig(lora=LoraConfig(4), lr=suggested_lr(model)),
        lesson=LessonConfig(negatives=0.5),
        probes=[Probe(f.id, f.question, f.answers, "efficacy") for f in knowledge.facts],
    )


def prepare(model: Model, folder: Path) -> None:
    """Write the memories that every trial begins with, and their index for routing."""
    for name in [name for name in SUBJECTS if name != NEW]:
        written(model, folder, name)
    Memory.open(folder, model).route(f"Who runs the Alder {SUBJECTS['bees']}?")


Verb = Callable[[Model, Path], object]
VERBS: dict[str, Verb] = {
    "write": lambda model, folder: written(model, folder, NEW),
    "merge": lambda model, folder: Memory.open(folder, model).merge(
        ["bees", "mills"], method="ties", into="both"
    ),
    "forget": lambda model, folder: Memory.open(folder, model).forget("bees"),
    "supersede": lambda model, folder: Memory.open(folder, model).supersede(
        "mills", knowledge_of("mills", shift=1), keep=False
    ),
    "rename": lambda model, folder: Memory.open(folder, model).rename("depots", "yards"),
}
DONE_TWICE = {
    "merge": "both",
    "forget": "bees",
    "supersede": "source has not changed",
    "rename": "depots",
}
"""What a verb's refusal names where it was complete already when it was killed."""


def state(folder: Path) -> dict[str, Any]:
    """Names with content ids and sources, and the digest of every adapter's and source's file."""
    entries = Folder(folder).entries()
    names = {name: [e["adapter"], e.get("source", "")] for name, e in sorted(entries.items())}
    files = [
        path
        for pattern in ("adapters/*/adapter_*", "sources/*")
        for path in folder.glob(pattern)
        if not path.name.startswith(".")
    ]
    digests = {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files
    }
    return {"names": names, "files": dict(sorted(digests.items()))}


def strays(folder: Path) -> list[str]:
    """Files that no complete command leaves: half-written ones, journals, adapters without name."""
    named = {entry["adapter"] for entry in Folder(folder).entries().values()}
    hidden = [p for p in folder.rglob(".*") if p.name != ".lock"]
    journal = [p for p in (folder / "forgetting.json",) if p.exists()]
    nameless = [p for p in folder.glob("adapters/*") if p.name not in named and p not in hidden]
    return sorted(str(p.relative_to(folder)) for p in (*hidden, *journal, *nameless))


def lost(before: Mapping[str, Any], now: Mapping[str, Any], touched: Sequence[str]) -> list[str]:
    """Names that a trial had nothing to do with and that are not as they were, file by file."""
    found = []
    for name, (adapter, source) in before["names"].items():
        if name in touched:
            continue
        own = {k: v for k, v in before["files"].items() if adapter in k or (source and source in k)}
        if now["names"].get(name) != [adapter, source] or own.items() - now["files"].items():
            found.append(name)
    return found


# --- processes that are killed -------------------------------------------------------------------

WRITING = ("w", "x", "a", "+")
EVENTS = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.truncate", "open")


class Operations:
    """Counts file operations in a folder; at the n-th of them the process is killed."""

    def __init__(self, folder: Path, fatal: int) -> None:
        self.folder, self.fatal, self.n = str(folder), fatal, 0

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event not in EVENTS or not str(arguments[0]).startswith(self.folder):
            return
        mode, flags = (arguments[1], arguments[2]) if event == "open" else ("w", 0)
        by_flags = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if not by_flags and not (isinstance(mode, str) and any(c in mode for c in WRITING)):
            return
        self.n += 1
        if self.n == self.fatal:
            os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class Ended:
    """How a child ended."""

    code: int | None
    """Exit code; None = it was killed."""
    text: str
    """The error's sentence, or a traceback."""
    seconds: float
    n_operations: int = 0


def child(
    work: Callable[[], object], folder: Path, *, fatal: int = 0, seconds: float | None = None
) -> Ended:
    """Fork, work, and kill -9 at a file operation or after some seconds, if it still runs."""
    began = time.monotonic()
    report = folder.parent / f"{folder.name}.report"
    report.unlink(missing_ok=True)
    pid = start(work, folder, report, fatal)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(pid, signal.SIGKILL)
    return ended(pid, report, began)


def start(work: Callable[[], object], folder: Path, report: Path, fatal: int = 0) -> int:
    """Fork and work; the child's id. Its outcome goes into `report`."""
    pid = os.fork()
    if pid:
        return pid
    operations, code, text = Operations(folder, fatal), 0, ""
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        sys.addaudithook(operations)
        work()
    except LorewrightError as error:
        code, text = exit_of(error), f"{type(error).__name__}: {error}"
    except BaseException:  # noqa: BLE001 - whatever it is, it is the trial's finding
        code, text = Exit.FAULT, traceback.format_exc()[-1500:]
    try:
        report.write_text(json.dumps([text, operations.n]), encoding="utf-8")
    finally:
        os._exit(code)


def ended(pid: int, report: Path, began: float) -> Ended:
    """Wait for a child."""
    _, status = os.waitpid(pid, 0)
    seconds = time.monotonic() - began
    if os.WIFSIGNALED(status):
        return Ended(None, "", seconds)
    text, n = json.loads(report.read_text(encoding="utf-8"))
    return Ended(os.WEXITSTATUS(status), text, seconds, n)


def append(path: Path, row: Mapping[str, Any]) -> None:
    """Write one more line, on disk when it returns."""
    with path.open("ab") as file:
        file.write(jsonl([row]))
        file.flush()
        os.fsync(file.fileno())


class Trials:
    """A command's trials, one a line of a file; what it holds is not done again."""

    def __init__(self, out: Path, command: str, seed: int) -> None:
        self.path, self.seed = out / f"{command}.jsonl", seed
        out.mkdir(parents=True, exist_ok=True)
        rows = load_jsonl(self.path) if self.path.exists() else []
        self.rows = {row["trial"]: row for row in rows if row["seed"] == seed}

    def run(self, name: str, do: Callable[[random.Random], dict[str, Any]]) -> dict[str, Any]:
        """A trial's record, from before or from now."""
        if name not in self.rows:
            record = {"trial": name, "seed": self.seed, **do(random.Random(f"{self.seed} {name}"))}
            append(self.path, record)
            self.rows[name] = record
        return self.rows[name]


@contextmanager
def workplace(pristine: Path | None = None) -> Iterator[Path]:
    """A folder of the trial's own, with a copy of the memories if they are given."""
    with tempfile.TemporaryDirectory(prefix="reliability-") as place:
        folder = Path(place) / "atlas"
        if pristine is not None:
            shutil.copytree(pristine, folder)
        yield folder


def pristine_of(model: Model, out: Path) -> Path:
    """The folder that trials begin with, written once into --out."""
    folder = out / "atlas"
    if not (folder / "complete").exists():
        shutil.rmtree(folder, ignore_errors=True)
        made = child(lambda: prepare(model, folder), folder)
        if made.code != 0:
            raise SystemExit(f"the memories could not be written: {made.text}")
        (folder / "complete").touch()
    return folder


def finish(failures: list[dict[str, Any]], summary: str) -> int:
    """Print what came out; the exit code."""
    for row in failures[:10]:
        print("failed:", json.dumps(row)[:2000])
    print(summary)
    return 1 if failures else 0


def share(n_ok: int, n: int) -> str:
    """`n_ok of n [low, high]`."""
    return f"{n_ok} of {n} [{wilson(n_ok, n).low:.2f}, {wilson(n_ok, n).high:.2f}]"


# --- kill -9 -------------------------------------------------------------------------------------

TOUCHED = {
    "write": (NEW,),
    "merge": ("both",),
    "forget": ("bees",),
    "supersede": ("mills", "mills-before"),
    "rename": ("depots", "yards"),
}


def completed(verb: str, again: Ended) -> bool:
    """Whether a repeated command did what was left, or says that nothing was."""
    return again.code == 0 or (
        again.code == Exit.REFUSED and DONE_TWICE.get(verb, "\0") in again.text
    )


def kills(model: Model, options: argparse.Namespace) -> int:
    pristine, trials = pristine_of(model, options.out), Trials(options.out, "kills", options.seed)
    failures, counts = [], Counter[str]()
    for verb in options.verbs or [*(v for v in VERBS if v != "rename"), "serve"]:
        clean = trials.run(f"{verb} alone", lambda rng, v=verb: alone(model, pristine, v))
        for number in range(options.n):
            row = trials.run(
                f"{verb} {number}",
                lambda rng, v=verb, i=number, c=clean: (
                    killed_server(model, pristine, rng, c)
                    if v == "serve"
                    else killed(model, pristine, rng, v, c, by_operation=i % 2 == 0)
                ),
            )
            counts[verb] += bool(row["ok"])
            failures += [] if row["ok"] else [row]
            print(f"{verb} {number}: {row['how']}, {'ok' if row['ok'] else 'FAILED'}", flush=True)
    every = ", ".join(f"{verb} {share(counts[verb], options.n)}" for verb in counts)
    return finish(failures, f"kill -9, nothing lost and the same bytes after resumption: {every}")


def alone(model: Model, pristine: Path, verb: str) -> dict[str, Any]:
    """A verb that is not killed: its state, seconds and file operations."""
    verb = "write" if verb == "serve" else verb
    with workplace(pristine) as folder:
        run = child(lambda: VERBS[verb](model, folder), folder)
        if run.code != 0:
            raise SystemExit(f"{verb} alone ended in {run.code}: {run.text}")
        about = {"seconds": run.seconds, "n_operations": run.n_operations}
        return {**about, "state": state(folder), "strays": strays(folder)}


def killed(
    model: Model,
    pristine: Path,
    rng: random.Random,
    verb: str,
    clean: Mapping[str, Any],
    *,
    by_operation: bool,
) -> dict[str, Any]:
    """Kill a verb, look at what is there, and run the same verb again."""
    while True:  # one that ended before its time had come was not killed
        at = rng.randint(1, clean["n_operations"])
        seconds = rng.uniform(0.0, clean["seconds"])
        with workplace(pristine) as folder:
            work = lambda: VERBS[verb](model, folder)  # noqa: E731 - what both runs do
            first = child(work, folder, **({"fatal": at} if by_operation else {"seconds": seconds}))
            if first.code is not None:
                if first.code != 0:
                    return {"ok": False, "how": "not killed", "error": first.text}
                continue
            gone = lost(state(pristine), state(folder), TOUCHED[verb])
            again = child(work, folder)
            same = state(folder) == clean["state"]
            left = sorted(set(strays(folder)) - set(clean["strays"]))
            return {
                "ok": not gone and completed(verb, again) and same and not left,
                "how": f"operation {at}" if by_operation else f"{seconds:.2f} s",
                "lost": gone,
                "again": [again.code, again.text],
                "same": same,
                "left": left,
            }


def killed_server(
    model: Model, pristine: Path, rng: random.Random, clean: Mapping[str, Any]
) -> dict[str, Any]:
    """Kill a server that answers and a writer in its folder; write and serve again."""
    seconds = rng.uniform(0.0, clean["seconds"])
    with workplace(pristine) as folder:
        shutil.rmtree(folder / "index", ignore_errors=True)  # which the server then makes
        with serving(folder, rng) as first:
            report = folder.parent / "writer.report"
            writer = start(lambda: VERBS["write"](model, folder), folder, report)
            with ThreadPoolExecutor(4) as pool:
                asking = [pool.submit(first.ask_until_gone, i) for i in range(4)]
                time.sleep(seconds)
                first.kill()
                os.kill(writer, signal.SIGKILL)
                os.waitpid(writer, 0)
                wrong = [text for each in asking for text in each.result()]
        gone = lost(state(pristine), state(folder), (NEW,))
        again = child(lambda: VERBS["write"](model, folder), folder)
        with serving(folder, rng) as second:
            answers = {name: second.ask(name) for name in SUBJECTS}
            routed = second.ask("auto", "mills")
        right = {n: knowledge_of(n).facts[0].answer for n in SUBJECTS}
        same, left = state(folder) == clean["state"], strays(folder)
        fine = answers == right and routed == right["mills"] and again.code == 0
        return {
            "ok": fine and same and not (gone or left or wrong),
            "how": f"{seconds:.2f} s",
            "lost": gone,
            "again": [again.code, again.text],
            "same": same,
            "left": left,
            "answers": answers,
            "wrong": wrong[:5],
        }


@dataclass
class Server:
    """A server in a process of its own."""

    url: str
    pid: int

    def kill(self) -> None:
        """Kill -9; twice is harmless."""
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self.pid = 0

    def ask(self, model: str, about: str = "", client: Any = httpx, number: int = 0) -> str:
        """A memory's answer to one of its questions."""
        question = knowledge_of(about or model).facts[number].question
        body = {"model": model, "messages": [{"role": "user", "content": question}]}
        reply = client.post(f"{self.url}/v1/chat/completions", json=body, timeout=120)
        reply.raise_for_status()
        return str(reply.json()["choices"][0]["message"]["content"])

    def ask_until_gone(self, number: int) -> list[str]:
        """Ask memories by name and by `auto` until the server is gone; the wrong answers."""
        wrong, known = [], [name for name in SUBJECTS if name != NEW]
        with httpx.Client() as client:
            for turn in range(10**6):
                about, which = known[(number + turn) % 3], turn % N_FACTS
                try:
                    text = self.ask("auto" if turn % 4 == 3 else about, about, client, which)
                except httpx.TransportError:
                    break
                except httpx.HTTPStatusError as error:
                    text = f"status {error.response.status_code}"
                if text != knowledge_of(about).facts[which].answer and turn % 4 != 3:
                    wrong.append(f"{about}: {text[:80]}")
        return wrong


@contextmanager
def serving(folder: Path, rng: random.Random | None = None, **settings: Any) -> Iterator[Server]:
    """A server on a folder, killed at the end; it is ready when the block begins."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = ServeConfig(port=port, **settings)
    report = folder.parent / "server.report"
    server = Server(
        f"http://127.0.0.1:{port}", start(lambda: serve(folder, config), folder, report)
    )
    try:
        for _ in range(1200):
            try:
                if httpx.get(f"{server.url}/ready").status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(0.1)
        yield server
    finally:
        server.kill()


# --- malformed requests --------------------------------------------------------------------------

VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63) - 1, 10**30, 0.5, -0.0, 1e-308, 1e308),
    *(
        "",
        " ",
        "x",
        "\0",
        "\ud800",
        "auto",
        "pocket",
        "user",
        "../..",
        "\U0001f9ad" * 50,
        "a" * 5000,
    ),
    *([], [[]], {}, {"": None}, [None], [{"type": "text"}], {"type": "text", "text": "x"}),
    *(float("nan"), float("inf")),
)
BATCH = 100


def sample(schema: Mapping[str, Any], definitions: Mapping[str, Any], rng: random.Random) -> Any:
    """A value of a JSON schema, optional fields drawn."""
    if "$ref" in schema:
        return sample(definitions[schema["$ref"].rsplit("/", 1)[1]], definitions, rng)
    for key in ("anyOf", "oneOf"):
        if key in schema:
            return sample(rng.choice(schema[key]), definitions, rng)
    if "const" in schema or "enum" in schema:
        return schema["const"] if "const" in schema else rng.choice(schema["enum"])
    kind = schema.get("type")
    if kind == "object":
        required = schema.get("required", ())
        return {
            name: sample(each, definitions, rng)
            for name, each in schema.get("properties", {}).items()
            if name in required or rng.random() < 0.3
        }
    if kind == "array":
        least = schema.get("minItems", 0)
        n = rng.randint(least, min(schema.get("maxItems", least + 2), least + 2))
        return [sample(schema.get("items", {}), definitions, rng) for _ in range(n)]
    if kind in ("integer", "number"):
        low = int(schema.get("minimum", 0))  # numbers of the document may be floats
        high = min(int(schema.get("maximum", low + 4)), low + 4)
        return rng.randint(low, high) if kind == "integer" else rng.uniform(low, high)
    if kind == "string":
        return rng.choice(("x", "Who runs the Alder depot?", "depots", "bees", "auto", "pocket"))
    return {"boolean": rng.random() < 0.5, "null": None}.get(str(kind), rng.choice(VALUES))


def possible(value: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """The body with what its fields need of one another, so that it gets as far as a model."""
    if "model" in value:
        value["model"] = rng.choice(("bees", "mills", "auto", "pocket"))
    for name in ("messages", "input"):
        if isinstance(value.get(name), list):
            question = {"role": "user", "content": "Who runs the Alder depot?"}
            value[name] = [{"role": "system", "content": "x"}] * rng.randint(0, 1) + [question]
    if not value.get("stream"):
        value.pop("stream_options", None)
    if not value.get("logprobs"):
        value.pop("top_logprobs", None)
    if "max_completion_tokens" in value:
        value.pop("max_tokens", None)
    return value


def spoil(value: Any, rng: random.Random) -> Any:
    """The value with one place in it changed: another value, a field more or less, a wrapper."""
    if isinstance(value, dict) and value and rng.random() < 0.75:
        key = rng.choice(sorted(value))
        if rng.random() < 0.12:
            return {k: v for k, v in value.items() if k != key}
        if rng.random() < 0.12:
            return {**value, rng.choice(("tools", "x", "", "model", "n", "id")): rng.choice(VALUES)}
        return {**value, key: spoil(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.75:
        at = rng.randrange(len(value))
        return [*value[:at], spoil(value[at], rng), *value[at + 1 :]]
    return rng.choice((rng.choice(VALUES), [value], {"value": value}, [value] * 3))


def garble(body: bytes, rng: random.Random) -> bytes:
    """The bytes of a body with some changed, cut or repeated."""
    at, end = sorted(rng.randrange(len(body) + 1) for _ in range(2))
    change = (rng.randbytes(3), b"", body[at:end] * 2, b"[" * 3000, b"\xff\xfe", b'"')
    return body[:at] + rng.choice(change) + body[end if rng.random() < 0.5 else at :]


def requests_of(
    schema: Mapping[str, Any], rng: random.Random, n: int
) -> Iterator[tuple[str, str, bytes, dict[str, str]]]:
    """Requests to the paths of an OpenAPI document: well-formed, spoilt, garbled."""
    operations = [(p, m, o) for p, methods in schema["paths"].items() for m, o in methods.items()]
    posts = [each for each in operations if "requestBody" in each[2]]
    definitions = schema.get("components", {}).get("schemas", {})
    for _ in range(n):
        path, method, operation = rng.choice(posts if rng.random() < 0.9 else operations)
        path = path.replace("{model}", rng.choice(("bees", "x/../y", "%00", "auto", "%ff")))
        path = path.replace("{name}", rng.choice(("bees", "%2e%2e", "%00", "x")))
        headers, body = {"content-type": "application/json"}, b""
        if "requestBody" in operation:
            content = operation["requestBody"]["content"]["application/json"]["schema"]
            value = sample(content, definitions, rng)
            if isinstance(value, dict) and rng.random() < 0.8:
                value = possible(value, rng)
            for _ in range(rng.choice((0, 0, 0, 1, 1, 1, 2, 3))):
                value = spoil(value, rng)
            body = json.dumps(value, ensure_ascii=rng.random() < 0.9).encode(errors="surrogatepass")
            if rng.random() < 0.1:
                body = garble(body, rng)
            if rng.random() < 0.05:
                kind = rng.choice(("text/plain", "application/x-www-form-urlencoded", "", "x"))
                headers["content-type"] = kind
        yield path, method.upper(), body, headers


def fuzz(model: Model, options: argparse.Namespace) -> int:
    pristine, trials = pristine_of(model, options.out), Trials(options.out, "fuzz", options.seed)
    rows = []
    with workplace(pristine) as folder:
        limits = {"max_tokens": 16, "admin": True, "keys": ("a-key-for-fuzz",), "seconds": 60.0}
        with serving(folder, admin_keys=("an-admin-key-for-fuzz",), **limits) as server:
            schema = httpx.get(f"{server.url}/openapi.json", headers=key_for("/openapi")).json()
            for number in range(-(-options.n // BATCH)):
                row = trials.run(f"{number}", lambda rng: fuzzed(server, schema, rng))
                rows.append(row)
                print(f"{(number + 1) * BATCH}: {row['statuses']}", flush=True)
    failures = [row for row in rows if row["bad"] or not row["answers"]]
    statuses = Counter[str]()
    for row in rows:
        statuses.update(row["statuses"])
    n, n_bad = sum(statuses.values()), sum(len(row["bad"]) for row in rows)
    seen = ", ".join(f"{status} {count}" for status, count in sorted(statuses.items()))
    return finish(failures, f"fuzz: {n} requests, {n_bad} ended in 5xx or none; {seen}")


def key_for(path: str) -> dict[str, str]:
    admin = path.startswith(("/admin", "/v1/load", "/v1/unload"))
    return {"authorization": f"Bearer {'an-admin-key-for-fuzz' if admin else 'a-key-for-fuzz'}"}


def fuzzed(server: Server, schema: Mapping[str, Any], rng: random.Random) -> dict[str, Any]:
    """A batch of requests; afterwards a plain question is answered as ever."""
    statuses, bad = Counter[str](), []
    with httpx.Client(timeout=120) as client:
        for path, method, body, headers in requests_of(schema, rng, BATCH):
            try:
                reply = client.request(
                    method, server.url + path, content=body, headers=headers | key_for(path)
                )
                status, text = str(reply.status_code), reply.text
            except httpx.TransportError as error:
                status, text = "none", repr(error)
            statuses[status] += 1
            in_stream = '"server_error"' in text
            if status[0] not in "234" or in_stream:
                shown = body[:800].decode(errors="replace")
                bad.append({"path": path, "body": shown, "status": status, "text": text[:300]})
        client.post(f"{server.url}/admin/reload", headers=key_for("/admin"))
        client.headers.update(key_for("/v1/chat"))
        answers = server.ask("bees", client=client) == knowledge_of("bees").facts[0].answer
    return {"statuses": dict(sorted(statuses.items())), "bad": bad, "answers": answers}


# --- memory over time ----------------------------------------------------------------------------

N_WARM = 0.2
"""Share of the requests before the slope is measured: allocators and caches fill first."""
FLAT_MIB = 2.0
"""Of resident memory over 10,000 requests: what counts as none."""


def soak(model: Model, options: argparse.Namespace) -> int:
    from scipy.stats import theilslopes

    pristine = pristine_of(model, options.out)
    options.out.mkdir(parents=True, exist_ok=True)
    samples: list[tuple[int, float]] = []
    with workplace(pristine) as folder, serving(folder) as server:
        process = psutil.Process(server.pid)
        wrong, reconnected = Counter[str](), list[int]()

        async def ask(client: httpx.AsyncClient, number: int) -> None:
            about = [name for name in SUBJECTS if name != NEW][number % 3]
            fact = knowledge_of(about).facts[number // 3 % N_FACTS]
            name = ("auto", "pocket", about, about)[number % 4]
            body = {"model": name, "messages": [{"role": "user", "content": fact.question}]}
            body |= {"stream": number % 5 == 0, "max_tokens": 16}
            try:
                reply = await client.post(f"{server.url}/v1/chat/completions", json=body)
            except httpx.TransportError:  # a kept connection may close as it is taken up again
                reconnected.append(number)
                reply = await client.post(f"{server.url}/v1/chat/completions", json=body)
            if reply.status_code != 200:
                wrong[str(reply.status_code)] += 1
            elif name == about and number % 5 and fact.answer not in reply.text:
                wrong["answer"] += 1

        async def ask_all(client: httpx.AsyncClient, numbers: Iterator[int]) -> None:
            for number in numbers:
                await ask(client, number)

        async def run() -> None:
            async with httpx.AsyncClient(timeout=300) as client:
                for first in range(0, options.n, BATCH):
                    todo = iter(range(first, min(first + BATCH, options.n)))

                    await asyncio.gather(*(ask_all(client, todo) for _ in range(8)))
                    samples.append((first + BATCH, process.memory_info().rss / 2**20))
                    if first // BATCH % 10 == 9:
                        print(f"{samples[-1][0]}: {samples[-1][1]:.1f} MiB", flush=True)

        asyncio.run(run())
    warm = [(n, mib) for n, mib in samples if n > N_WARM * options.n]
    slope, _, low, high = theilslopes([mib for _, mib in warm], [n for n, _ in warm])
    append(options.out / "soak.jsonl", {"seed": options.seed, "samples": samples})
    per = 10_000
    text = (
        f"soak: {options.n} requests, {sum(wrong.values())} wrong {dict(wrong) or ''}, "
        f"{len(reconnected)} sent again on another connection; resident "
        f"{samples[0][1]:.0f} MiB after {BATCH}, {warm[0][1]:.1f} after {warm[0][0]}, "
        f"{warm[-1][1]:.1f} at the end; slope {slope * per:.2f} [{low * per:.2f}, "
        f"{high * per:.2f}] MiB per {per} requests"
    )
    failed = bool(wrong) or low * per > FLAT_MIB
    return finish([{"wrong": dict(wrong), "low": low * per}] if failed else [], text)


# --- a full disk ---------------------------------------------------------------------------------

FREE = (0, 4096, 20_000, 60_000, 150_000, 280_000, 400_000)
"""Bytes that are left."""


@contextmanager
def small_disk(pristine: Path, n_free: int) -> Iterator[tuple[Path, Callable[[], None]]]:
    """The folder on a disk with so many bytes left, and what makes space again."""
    with tempfile.TemporaryDirectory(prefix="reliability-") as place:
        disk = Path(place) / "disk"
        disk.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", disk], check=True)
        try:
            shutil.copytree(pristine, disk / "atlas")
            filler = disk / "filler"
            left = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize - n_free
            with filler.open("wb") as file:
                file.write(bytes(max(0, left)))
            yield disk / "atlas", filler.unlink
        finally:
            subprocess.run(["umount", disk], check=True)


@contextmanager
def small_files(pristine: Path, n_free: int) -> Iterator[tuple[Path, Callable[[], None]]]:
    """The folder where no file may have more bytes than these."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with workplace(pristine) as folder:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (n_free, before[1]))
        try:
            yield folder, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, before)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)


def disk(model: Model, options: argparse.Namespace) -> int:
    pristine, trials = pristine_of(model, options.out), Trials(options.out, "disk", options.seed)
    place = small_disk if os.geteuid() == 0 else small_files
    failures, counts = [], Counter[str]()
    for verb in options.verbs or VERBS:
        clean = trials.run(f"{verb} alone", lambda rng, v=verb: alone(model, pristine, v))
        for n_free in FREE:
            row = trials.run(
                f"{verb} {n_free}",
                lambda rng, v=verb, n=n_free, c=clean: filled(model, pristine, v, n, c, place),
            )
            counts[verb] += bool(row["ok"])
            failures += [] if row["ok"] else [row]
            print(
                f"{verb} {n_free}: {row['first'][0]}, {'ok' if row['ok'] else 'FAILED'}", flush=True
            )
    every = ", ".join(f"{verb} {counts[verb]} of {len(FREE)}" for verb in counts)
    return finish(failures, f"full disk ({place.__name__}), exit code 4 and resumed: {every}")


def filled(
    model: Model, pristine: Path, verb: str, n_free: int, clean: Mapping[str, Any], place: Any
) -> dict[str, Any]:
    """A verb on a full disk, and once more with space."""
    with place(pristine, n_free) as (folder, make_space):
        reports = Path(tempfile.mkdtemp(prefix="reliability-"))
        work = lambda: VERBS[verb](model, folder)  # noqa: E731 - what both runs do
        began = time.monotonic()
        first = ended(start(work, folder, reports / "first"), reports / "first", began)
        gone = lost(state(pristine), state(folder), TOUCHED[verb])
        make_space()
        again = ended(start(work, folder, reports / "again"), reports / "again", began)
        same = state(folder) == clean["state"]
        left = sorted(set(strays(folder)) - set(clean["strays"]))
        shutil.rmtree(reports)
        fine = first.code in (0, Exit.STORAGE) and completed(verb, again)
        return {
            "ok": fine and same and not (gone or left),
            "first": [first.code, first.text],
            "lost": gone,
            "again": [again.code, again.text],
            "same": same,
            "left": left,
        }


# --- two at once ---------------------------------------------------------------------------------

PAIRS = (
    ("write", "write"),
    ("write", "forget"),
    ("merge", "rename"),
    ("supersede", "write"),
    ("forget", "rename"),
)


def race(model: Model, options: argparse.Namespace) -> int:
    pristine, trials = pristine_of(model, options.out), Trials(options.out, "race", options.seed)
    failures = []
    for number in range(options.n):
        pair = PAIRS[number % len(PAIRS)]
        row = trials.run(f"{number}", lambda rng, p=pair: raced(model, pristine, p, rng))
        failures += [] if row["ok"] else [row]
        print(f"{number} {pair}: {row['codes']}, {'ok' if row['ok'] else 'FAILED'}", flush=True)
    n_ok = options.n - len(failures)
    return finish(
        failures, f"race: {share(n_ok, options.n)} pairs came to the same as one after another"
    )


def raced(
    model: Model, pristine: Path, pair: tuple[str, str], rng: random.Random
) -> dict[str, Any]:
    """Two verbs at once, the refused one again; compared with one after the other."""
    with workplace(pristine) as folder:
        for verb in dict.fromkeys(pair):
            if child(lambda v=verb: VERBS[v](model, folder), folder).code != 0:
                raise SystemExit(f"{verb} failed alone")
        wanted = state(folder)
    delay = rng.choice((0.0, 0.0, rng.uniform(0.0, 1.0)))
    with workplace(pristine) as folder:
        began, pids = time.monotonic(), []
        for i, verb in enumerate(pair):
            report = folder.parent / f"{i}.report"
            pids.append(
                (verb, start(lambda v=verb: VERBS[v](model, folder), folder, report), report)
            )
            time.sleep(delay * (i == 0))
        ends = [(verb, ended(pid, report, began)) for verb, pid, report in pids]
        for verb, end in ends:
            if end.code == Exit.LOCKED:
                end = child(lambda v=verb: VERBS[v](model, folder), folder)
                ends.append((verb, end)) if not completed(verb, end) else None
        fine = all(end.code in (0, Exit.LOCKED) or completed(verb, end) for verb, end in ends)
        same, left = state(folder) == wanted, strays(folder)
        return {
            "ok": fine and same and not left,
            "codes": [end.code for _, end in ends],
            "texts": [end.text for _, end in ends if end.code not in (0, Exit.LOCKED)],
            "same": same,
            "left": left,
        }


COMMANDS = {"fuzz": fuzz, "kills": kills, "soak": soak, "disk": disk, "race": race}
N_TRIALS = {"fuzz": 5000, "kills": 20, "soak": 10_000, "disk": 0, "race": 20}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("--n", type=int, default=0, help="Trials or requests.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("build/reliability"))
    parser.add_argument("--verbs", nargs="*", choices=[*VERBS, "serve"])
    options = parser.parse_args()
    options.n = options.n or N_TRIALS[options.command]
    options.out = options.out.resolve()
    print(machine(1))
    sys.exit(COMMANDS[options.command](Model.load(), options))


if __name__ == "__main__":
    main()
