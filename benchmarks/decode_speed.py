"""How fast memories answer on a pretrained base: torch in this process against llama.cpp in it.

    python benchmarks/decode_speed.py                 # SmolLM2, 1 and 8 streams, one and 8 memories
    python benchmarks/decode_speed.py --model pocket --quick

Both serve the same folder of untrained adapters through the same front, one after the other, on as
many threads. A stream is a client that asks again as soon as it has its reply; tokens are those of
all replies, and the time is from the first request to the last reply. Printed are the median, least
and most of the repeats, and the ratio of the medians.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from openai import OpenAI  # noqa: E402
from support.engines import untrained  # noqa: E402
from support.serving import put, running  # noqa: E402

from lorewright.adapters.config import LoraConfig  # noqa: E402
from lorewright.models.model import Model  # noqa: E402
from lorewright.serve.config import ServeConfig  # noqa: E402
from lorewright.serve.server import application  # noqa: E402

ENGINES = ("local", "llamacpp")
N_MEMORIES = 8


def rate(url: str, memories: Sequence[str], n_streams: int, n_each: int, n_tokens: int) -> float:
    """Tokens a second over all streams; stream i asks memory i, and again from the first on."""
    client = OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=600)

    def stream(number: int) -> int:
        total = 0
        for k in range(n_each):
            turns = [{"role": "user", "content": f"Tell me about number {number * n_each + k}."}]
            reply = client.chat.completions.create(
                model=memories[number % len(memories)],
                messages=turns,  # type: ignore[arg-type]
                max_tokens=n_tokens,
            )
            total += reply.usage.completion_tokens if reply.usage else 0
        return total

    start = time.perf_counter()
    with ThreadPoolExecutor(n_streams) as pool:
        n = sum(pool.map(stream, range(n_streams)))
    return n / (time.perf_counter() - start)


def main() -> None:
    """Measure both engines in every setting."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=48, help="of a reply, at most")
    parser.add_argument("--quick", action="store_true", help="one repeat, short replies")
    options = parser.parse_args()
    repeats, n_tokens = (1, 12) if options.quick else (options.repeats, options.tokens)
    torch.set_num_threads(options.threads)
    model = Model.load(options.model)
    settings = [(1, 1), (N_MEMORIES, 1), (N_MEMORIES, N_MEMORIES)]
    rates: dict[tuple[int, int], dict[str, list[float]]] = {each: {} for each in settings}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "atlas"
        names = [f"m{i}" for i in range(N_MEMORIES)]
        for i, name in enumerate(names):
            put(folder, name, untrained(model, LoraConfig(8, seed=i)), model)
        for engine in ENGINES:
            with running(application(folder, ServeConfig(engine=engine), model=model)) as url:
                rate(url, names[:1], 1, 1, 4)
                for n_streams, n_memories in settings:
                    rates[n_streams, n_memories][engine] = [
                        rate(url, names[:n_memories], n_streams, 2, n_tokens)
                        for _ in range(repeats)
                    ]
    threads = f"{options.threads} thread{'s' if options.threads > 1 else ''}"
    print(f"{options.model}, {threads}, tokens a second: median (least to most of {repeats})")
    for (n_streams, n_memories), by_engine in rates.items():
        medians = {engine: statistics.median(each) for engine, each in by_engine.items()}
        cells = [
            f"{engine} {medians[engine]:6.1f} ({min(each):.1f} to {max(each):.1f})"
            for engine, each in by_engine.items()
        ]
        ratio = medians["llamacpp"] / medians["local"]
        streams = f"{n_streams} streams" if n_streams > 1 else "1 stream"
        memories = f"{n_memories} memories" if n_memories > 1 else "1 memory"
        print(f"{streams:10} {memories:11} {'   '.join(cells)}   ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
