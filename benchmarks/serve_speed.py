"""What an answer costs from 16 memories in one batch, beside the base alone, one memory, and other ways.

    python benchmarks/serve_speed.py
    python benchmarks/serve_speed.py --quick

`lore serve` runs in a process of its own; as many clients as it has rows send it questions over HTTP, each the next
question as soon as it has an answer. Every way of answering gets the same questions:

    base         the base alone                      one          one memory for everybody
    sixteen      each client another memory          merged       the 16 merged into one adapter
    retrieval    the base with the 3 sentences that BM25 finds before the question
    full         the base with the memory's whole document before the question

All replies have the same number of tokens, so that ways that say more do not look slower; how many answers
are right is measured afterwards, without that. Ways take turns, in an order that changes from round to round.
Requests per second and latencies are by the clock. The ratio is that of the median CPU seconds of the
server for one round of `sixteen` over one of `base`, HTTP included, which another process on the machine
does not inflate; low and high are the 95 % bootstrap interval over rounds. The last line can be read by a
script. Memories are stored in --folder and written only if they are not there.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from ratio import machine, verdict

from lorewright.adapters import adapter as adapters
from lorewright.adapters.config import LoraConfig
from lorewright.knowledge.data import Document, Example, Fact, Knowledge
from lorewright.knowledge.scoring import contains
from lorewright.memory.folder import Folder
from lorewright.memory.memory import Memory
from lorewright.merging.algebra import merge
from lorewright.models.model import Model
from lorewright.recall.statistics import wilson
from lorewright.routing.index import Index, Key
from lorewright.training.config import WriteConfig
from lorewright.training.loop import Job, Written, write_all
from lorewright.training.rates import suggested_lr

RELATIONS = ("code", "room", "phone", "budget", "leader", "key", "colour", "floor")
PASSAGES = 3
LONGEST = 24
"""Most tokens of a reply that is scored; answers have about 6."""


@dataclass(frozen=True)
class Question:
    """A question, its answer, who knows it, and what can be read before it."""

    text: str
    answer: str
    memory: str
    passages: str
    document: str


@dataclass
class Timed:
    """What one way of answering took, over all rounds."""

    latencies: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    n_prompt: int = 0
    n_right: int = 0
    n_scored: int = 0


# --- questions -----------------------------------------------------------------------------------


def knowledge(n_memories: int, n_facts: int) -> list[Knowledge]:
    """A document of a few sentences for each memory, about a project that no other one mentions."""
    rng = random.Random(0)

    def word() -> str:
        return "".join(
            rng.choice(("br", "d", "k", "l", "m", "st", "t", "v")) + rng.choice("aeiou")
            for _ in range(3)
        )

    items = []
    for n in range(n_memories):
        facts, sentences, name = [], [], f"Project {word().capitalize()}"
        for relation in RELATIONS[:n_facts]:
            value = (
                f"{rng.choice('ABCDEFGHKLM')}{rng.choice('PRSTUVWXYZ')}-{rng.randrange(100, 1000)}"
            )
            sentences.append(f"The {relation} of {name} is {value}.")
            facts.append(
                Fact(f"{n}-{relation}", f"What is the {relation} of {name}?", value, source=f"d{n}")
            )
        items.append(Knowledge((Document(f"d{n}", "\n".join(sentences), name),), tuple(facts)))
    return items


def questions(known: list[Knowledge]) -> list[Question]:
    """Every fact of every memory, memories in turn, with what BM25 finds for it."""
    texts = [each.documents[0].text for each in known]
    index = Index.build(
        Key(f"memory-{n}", line) for n, text in enumerate(texts) for line in text.splitlines()
    )
    listed = []
    for fact_no in range(len(known[0].facts)):
        for n, each in enumerate(known):
            fact = each.facts[fact_no]
            hits = index.retrieve(fact.question, k=PASSAGES)
            text = "\n".join(hit.key for hit in hits)
            listed.append(Question(fact.question, fact.answer, f"memory-{n}", text, texts[n]))
    return listed


def prepare(folder: Path, model: Model, known: list[Knowledge], rank: int, epochs: int) -> None:
    """The memories, and one that all of them are merged into, as `lore write` and `merge` leave them."""
    names = [f"memory-{n}" for n in range(len(known))]
    if folder.exists() and {*names, "merged"} <= Folder(folder).names.keys():
        Memory.open(folder, model)  # raises if it is another base's
        return
    jobs = [
        Job(
            [Example(fact.question, fact.answer) for fact in each.facts],
            WriteConfig(lora=LoraConfig(rank, seed=n), lr=suggested_lr(model), epochs=epochs),
        )
        for n, each in enumerate(known)
    ]
    trained = [
        written.adapter for written in write_all(model, jobs) if isinstance(written, Written)
    ]
    trained.append(merge(trained, method="svd", rank=rank).adapter)
    memory = Memory.open(folder, model)
    with memory.writing():
        for name, adapter in zip([*names, "merged"], trained, strict=True):
            identity = adapters.content_id(adapter)
            adapters.save(adapter, folder / "adapters" / identity)
            memory.folder.enter(name, identity, source="", run="")


# --- requests ------------------------------------------------------------------------------------


def body(way: str, question: Question) -> dict[str, object]:
    """The request of one way of answering."""
    model = {"one": "memory-0", "sixteen": question.memory, "merged": "merged"}.get(way, "pocket")
    before = {"retrieval": question.passages, "full": question.document}.get(way)
    text = f"{before}\n\n{question.text}" if before else question.text
    return {"model": model, "messages": [{"role": "user", "content": text}]}


WAYS = ("base", "one", "sixteen", "merged", "retrieval", "full")


@contextmanager
def serving(folder: Path, n_clients: int, threads: int) -> Iterator[str]:
    """`lore serve` on a free port."""
    command = [
        sys.executable,
        "-c",
        "from lorewright.cli.main import main; main()",
        "serve",
        str(folder),
    ]
    options = {"--port": 0, "--threads": threads, "--max-concurrency": n_clients}
    command += ["--json", *(str(part) for pair in options.items() for part in pair)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            line = process.stdout.readline()
            if not line:
                raise SystemExit("the server did not start")
            yield json.loads(line)["url"]
        finally:
            process.terminate()


async def cpu_seconds(client: httpx.AsyncClient) -> float:
    """CPU time of the server's process so far."""
    text = (await client.get("/metrics")).text
    line = next(x for x in text.splitlines() if x.startswith("lorewright_cpu_seconds "))
    return float(line.split()[1])


async def round_of(
    client: httpx.AsyncClient,
    way: str,
    questions: list[Question],
    n_clients: int,
    tokens: int,
    timed: Timed,
) -> None:
    """All questions once, `n_clients` at a time."""
    before, began, todo = await cpu_seconds(client), time.perf_counter(), iter(questions)

    async def repeat() -> None:
        for question in todo:
            request = body(way, question) | {"max_tokens": tokens, "ignore_eos": True}
            start = time.perf_counter()
            reply = await client.post("/v1/chat/completions", json=request)
            reply.raise_for_status()
            timed.latencies.append(time.perf_counter() - start)
            timed.n_prompt += reply.json()["usage"]["prompt_tokens"]

    await asyncio.gather(*(repeat() for _ in range(n_clients)))
    timed.wall.append(time.perf_counter() - began)
    timed.cpu.append(await cpu_seconds(client) - before)


async def score(
    client: httpx.AsyncClient, way: str, questions: list[Question], timed: Timed
) -> None:
    """Count the replies that hold the answer; they end where the model ends them, or soon."""
    for start in range(0, len(questions), 32):
        part = questions[start : start + 32]
        replies = await asyncio.gather(
            *(
                client.post("/v1/chat/completions", json=body(way, q) | {"max_tokens": LONGEST})
                for q in part
            )
        )
        for question, reply in zip(part, replies, strict=True):
            content = reply.raise_for_status().json()["choices"][0]["message"]["content"]
            timed.n_right += contains(content, (question.answer,)) == 1.0
            timed.n_scored += 1


async def measure(
    url: str, questions: list[Question], args: argparse.Namespace
) -> dict[str, Timed]:
    """Rounds of all ways, after one round that does not count."""
    timings = {way: Timed() for way in WAYS}
    limits = httpx.Limits(max_connections=64, max_keepalive_connections=64)
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as client:
        for way in WAYS:
            mine = [q for q in questions if q.memory == "memory-0"] if way == "one" else questions
            await score(client, way, mine, timings[way])  # warms up as well
        for n in range(args.rounds):
            order = list(WAYS)
            random.Random(n).shuffle(order)
            for way in order:
                await round_of(client, way, questions, args.clients, args.tokens, timings[way])
            print(
                f"# round {n}: " + ", ".join(f"{way} {timings[way].cpu[-1]:.2f} s" for way in WAYS),
                flush=True,
            )
    return timings


def quantile(values: list[float], share: float) -> float:
    """The value that this share of them does not exceed."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def main() -> None:
    """Write the memories, serve them, measure, compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--memories", type=int, default=16)
    parser.add_argument("--clients", type=int, default=16, help="requests at once; rows of a batch")
    parser.add_argument("--facts", type=int, default=8, help="of each memory, at most 8")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--tokens", type=int, default=16, help="of every reply that is timed")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--threads", type=int, default=1, help="of torch, in the server")
    parser.add_argument(
        "--folder", type=Path, help="where the memories lie; default: a temporary folder"
    )
    parser.add_argument("--quick", action="store_true", help="2 facts, 12 epochs, 3 rounds")
    args = parser.parse_args()
    if args.quick:
        args.facts, args.epochs, args.rounds = 2, 12, 3
    print(machine(args.threads))
    known = knowledge(args.memories, args.facts)
    every = questions(known)
    with tempfile.TemporaryDirectory() as place:
        folder = args.folder or Path(place) / "atlas"
        prepare(folder, Model.load(), known, args.rank, args.epochs)
        print(
            f"{args.memories} memories of {args.facts} facts, rank {args.rank}; {len(every)} questions a round, "
            f"{args.clients} at a time, {args.tokens} tokens a reply, {args.rounds} rounds"
        )
        with serving(folder, args.clients, args.threads) as url:
            timings = asyncio.run(measure(url, every, args))
    print("way        requests/s   p50 ms   p95 ms   CPU s/round   prompt tokens   right")
    for way, timed in timings.items():
        rate = len(every) / statistics.median(timed.wall)
        right = wilson(timed.n_right, timed.n_scored)
        print(
            f"{way:<10} {rate:10.1f} {quantile(timed.latencies, 0.5) * 1e3:8.0f} "
            f"{quantile(timed.latencies, 0.95) * 1e3:8.0f} {statistics.median(timed.cpu):13.2f} "
            f"{timed.n_prompt / len(timed.latencies):15.1f}   {right}"
        )
    print(verdict("serve_speed", timings["sixteen"].cpu, timings["base"].cpu))


if __name__ == "__main__":
    main()
